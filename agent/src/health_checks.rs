//! What load balancers ask a node: whether it has backends of a service (`healthCheckNodePort`), answered as kube-proxy does.
//!
//! A server a service and family, at all addresses of the node: as many as there are services that ask for it, opened and
//! closed with them.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use causeway_model::Family;
use causeway_services::{Health, ServiceName};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::engine::{Engine, HealthChecks};

/// How soon a port is tried again that somebody else has.
const RETRY: Duration = Duration::from_secs(5);
/// How many connections may wait to be taken.
const BACKLOG: i32 = 128;
/// What a load balancer that weighs nodes by their backends reads.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");
const SNIFF: HeaderName = HeaderName::from_static("x-content-type-options");

/// Which server it is.
type Key = (ServiceName, Family, u16);

/// What a server is asked about.
#[derive(Clone)]
struct Asked {
    service: ServiceName,
    family: Family,
    told: watch::Receiver<HealthChecks>,
    engine: Arc<Engine>,
}

/// Keeps the servers that services ask for, for ever.
pub(crate) async fn serve(engine: Arc<Engine>) {
    let mut told = engine.health_checks();
    let mut open: BTreeMap<Key, AbortHandle> = BTreeMap::new();
    loop {
        let wanted = wanted(&told.borrow_and_update());
        open.retain(|key, server| {
            let keep = wanted.contains(key) && !server.is_finished();
            if !keep {
                server.abort();
            }
            keep
        });
        for key in wanted {
            if open.contains_key(&key) {
                continue;
            }
            match start(&key, &told, &engine) {
                Ok(server) => drop(open.insert(key, server)),
                Err(error) => {
                    let (service, family, port) = key;
                    tracing::warn!("Service {service}: healthCheckNodePort {port} over {family}: {error}");
                }
            }
        }
        // A port that somebody has now may be free later.
        if let Ok(Err(_)) = tokio::time::timeout(RETRY, told.changed()).await {
            return;
        }
    }
}

/// One for each family that the service has an address of.
fn wanted(told: &HealthChecks) -> Vec<Key> {
    let of = |(name, health): (&ServiceName, &Health)| {
        let Health { port, v4, v6 } = *health;
        let families = [(Family::V4, v4), (Family::V6, v6)];
        let there = families.into_iter().filter(|(_, count)| count.is_some());
        there.map(|(family, _)| (name.clone(), family, port)).collect::<Vec<_>>()
    };
    told.iter().flat_map(of).collect()
}

fn start(
    (service, family, port): &Key,
    told: &watch::Receiver<HealthChecks>,
    engine: &Arc<Engine>,
) -> io::Result<AbortHandle> {
    let listener = listen(*family, *port)?;
    let asked =
        Asked { service: service.clone(), family: *family, told: told.clone(), engine: engine.clone() };
    let router = Router::new().fallback(answer).with_state(asked);
    let server = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::warn!("a health check has ended: {error}");
        }
    });
    Ok(server.abort_handle())
}

/// Each family has its own: they may have different backends.
fn listen(family: Family, port: u16) -> io::Result<TcpListener> {
    let (kind, all) = match family {
        Family::V4 => (AddressFamily::INET, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
        Family::V6 => (AddressFamily::INET6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(kind, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if family == Family::V6 {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &all)?;
    rustix::net::listen(&socket, BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn answer(State(asked): State<Asked>) -> Response {
    let Asked { service, family, told, engine } = asked;
    let count = told.borrow().get(&service).and_then(|health| match family {
        Family::V4 => health.v4,
        Family::V6 => health.v6,
    });
    let count = count.unwrap_or_default();
    // What waits for the world, or for its data path, serves what it served before.
    let healthy =
        tokio::task::spawn_blocking(move || engine.waiting_for().is_empty()).await.unwrap_or_default();
    let status = if count > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let ServiceName { namespace, name } = service;
    let body = json!({
        "service": { "namespace": namespace, "name": name },
        "localEndpoints": count,
        "serviceProxyHealthy": healthy,
    });
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (SNIFF, HeaderValue::from_static("nosniff")),
        (WEIGHT, HeaderValue::from(count)),
    ];
    (status, headers, Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{IpAddr, TcpStream};
    use std::time::Instant;

    use super::*;
    use crate::engine::bench::{Bench, CLUSTER, world};

    /// A port that nobody has: of a listener that has gone.
    fn free_port() -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    /// What is answered there; nothing where nobody listens, or goes before it answers.
    fn ask(address: &str, port: u16) -> Option<String> {
        let address: IpAddr = address.parse().unwrap();
        let mut stream = TcpStream::connect((address, port)).ok()?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// What is answered once it is as it shall be.
    fn soon(address: &str, port: u16, good: impl Fn(Option<&str>) -> bool) -> Option<String> {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let answer = ask(address, port);
            if good(answer.as_deref()) || Instant::now() > until {
                return answer;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn service(port: u16, policy: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\n\
             spec: {{type: LoadBalancer, clusterIPs: [10.96.0.1], ports: [{{port: 80}}], externalTrafficPolicy: {policy}, healthCheckNodePort: {port}}}\n"
        )
    }

    fn slice(conditions: &str) -> String {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
             addressType: IPv4\nports: [{{port: 8080}}]\n\
             endpoints: [{{addresses: [10.70.1.4], nodeName: east, conditions: {{{conditions}}}}}, {{addresses: [10.70.2.4], nodeName: west}}]\n"
        )
    }

    #[test]
    fn a_load_balancer_is_told_of_ready_backends_here_for_as_long_as_the_service_asks_for_it() {
        let bench = Bench::new();
        let engine = Arc::new(bench.ready());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(serve(engine.clone()));
        let port = free_port();
        let hear = |texts: &[&str]| engine.hear(Ok(world(texts)));
        let starts = |with: &'static str| {
            move |answer: Option<&str>| answer.is_some_and(|text| text.starts_with(with))
        };

        hear(&[CLUSTER, &service(port, "Local"), &slice("ready: true")]);
        let answer = soon("127.0.0.1", port, starts("HTTP/1.1 200")).expect("somebody listens");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("x-load-balancing-endpoint-weight: 1\r\n"), "{answer}");
        let body: serde_json::Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        let expected = json!({"service": {"namespace": "shop", "name": "web"}, "localEndpoints": 1, "serviceProxyHealthy": true});
        assert_eq!(body, expected);
        assert_eq!(ask("::1", port), None, "the service has no address of that family");

        hear(&[CLUSTER, &service(port, "Local"), &slice("ready: false, serving: true, terminating: true")]);
        let answer = soon("127.0.0.1", port, starts("HTTP/1.1 503")).expect("somebody listens");
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\"localEndpoints\":0"), "{answer}");

        hear(&[CLUSTER, &service(port, "Cluster"), &slice("ready: true")]);
        assert_eq!(soon("127.0.0.1", port, |answer| answer.is_none()), None);
        hear(&[CLUSTER, &service(port, "Local"), &slice("ready: true")]);
        assert!(soon("127.0.0.1", port, starts("HTTP/1.1 200")).is_some_and(|text| text.contains(" 200 ")));
        hear(&[CLUSTER]);
        assert_eq!(soon("127.0.0.1", port, |answer| answer.is_none()), None);
    }
}
