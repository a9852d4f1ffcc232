//! The page of services.

use std::net::SocketAddr;

use causeway_model::operator::{BackendState, BackendStatus, FrontendStatus, HealthStatus, ServiceStatus};
use causeway_model::why::{Outcome, Share};

use super::{Table, list, or};

/// The page of services.
pub fn services(services: &[ServiceStatus]) -> String {
    let mut table = Table::of(&["SERVICE", "FRONTEND", "PODS AND NODE", "OTHERS", "HITS"]);
    let mut behind = Table::of(&["SERVICE", "BACKEND", "NODE", "STATE"]);
    for ServiceStatus { namespace, name, frontends, backends, affinity, health, .. } in services {
        let port_of = |port: &str| match port {
            "" => format!("{namespace}/{name}"),
            port => format!("{namespace}/{name}:{port}"),
        };
        for FrontendStatus { frontend, port_name, inside, outside, sources, hits } in frontends {
            let mut others = outcome(outside);
            if let Some(sources) = sources {
                others += &format!(" (from {})", or(list(sources), "nowhere"));
            }
            let own = match (affinity, inside) {
                (Some(seconds), Outcome::Served(_)) => format!("{}, {seconds} s by client", outcome(inside)),
                _ => outcome(inside),
            };
            table.row([port_of(port_name), frontend.to_string(), own, others, hits.to_string()]);
        }
        if let Some(HealthStatus { port, v4, v6 }) = health {
            let count = v4.iter().chain(v6).sum::<usize>();
            let told = format!("{count} here are told to load balancers");
            table.row([port_of(""), format!("nodes:{port}/http"), "-".to_owned(), told, "-".to_owned()]);
        }
        for BackendStatus { backend, port_name, state, node, .. } in backends {
            let state = match state {
                BackendState::Ready => "ready",
                BackendState::Leaving => "leaving: asked for want of a ready one",
                BackendState::Serving => "not ready: keeps what it has",
                BackendState::Down => "down",
            };
            let address = SocketAddr::new(backend.address, backend.port).to_string();
            let node = node.clone().unwrap_or_else(|| "-".to_owned());
            behind.row([port_of(port_name), address, node, state.to_owned()]);
        }
    }
    format!("{}\n{}", table.text(""), behind.text(""))
}

fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Refused => "refused".to_owned(),
        Outcome::Dropped => "dropped".to_owned(),
        Outcome::Served(shares) if shares.len() == 1 => "1 backend".to_owned(),
        Outcome::Served(shares) => match weights(shares) {
            Some(weights) => format!("{} backends, {weights}", shares.len()),
            None => format!("{} backends", shares.len()),
        },
    }
}

/// The weights of backends that have some: one by one while a reader can tell whose is whose, else how far they go.
fn weights(shares: &[Share]) -> Option<String> {
    const FEW: usize = 6;
    let weights: Vec<u32> = shares.iter().filter_map(|share| share.weight).collect();
    let (least, most) = (weights.iter().min()?, weights.iter().max()?);
    let each: Vec<String> = weights.iter().map(u32::to_string).collect();
    Some(if each.len() <= FEW { each.join(":") } else { format!("weights {least} to {most}") })
}

#[cfg(test)]
mod tests {
    use causeway_model::service::Backend;
    use serde_json::json;

    use super::*;

    #[test]
    fn weights_are_shown_where_they_differ() {
        let shown = |weights: &[u32]| {
            let backend = |(number, weight): (u8, &u32)| {
                (Backend { address: [10, 70, 1, number].into(), port: 8080 }, *weight)
            };
            outcome(&Outcome::Served(Share::of((0..).zip(weights).map(backend))))
        };
        assert_eq!(shown(&[1, 1, 1]), "3 backends");
        assert_eq!(shown(&[3, 1, 1]), "3 backends, 3:1:1");
        assert_eq!(shown(&[1, 2, 3, 4, 5, 6, 7]), "7 backends, weights 1 to 7");
    }

    #[test]
    fn a_service_is_shown_with_its_frontends_its_backends_and_how_often_it_was_asked() {
        let one = json!({"address": "10.70.1.4", "port": 8080});
        let page: Vec<ServiceStatus> = serde_json::from_value(json!([{
            "namespace": "shop", "name": "web", "affinity": 60, "hits": 7, "health": {"port": 32000, "v4": 1, "v6": null},
            "frontends": [
                {"at": {"address": "10.96.0.1"}, "protocol": "tcp", "port": 80, "port_name": "http", "inside": {"served": [one]}, "outside": "dropped", "hits": 7},
                {"at": {"nodes": "v4"}, "protocol": "tcp", "port": 30080, "port_name": "http", "inside": "refused", "outside": "refused", "sources": ["192.0.2.0/24"], "hits": 0}],
            "backends": [{"address": "10.70.1.4", "port": 8080, "port_name": "http", "state": "ready", "node": "east", "local": true}],
        }]))
        .expect("a list of services");
        let page = services(&page);
        for line in [
            "SERVICE        FRONTEND                PODS AND NODE              OTHERS                             HITS",
            "shop/web:http  10.96.0.1:80/tcp        1 backend, 60 s by client  dropped                            7",
            "shop/web:http  nodes:30080/tcp (IPv4)  refused                    refused (from 192.0.2.0/24)        0",
            "shop/web       nodes:32000/http        -                          1 here are told to load balancers  -",
            "shop/web:http  10.70.1.4:8080  east  ready",
        ] {
            assert!(page.lines().any(|found| found == line), "{line:?} is not in\n{page}");
        }
    }
}
