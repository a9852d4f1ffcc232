//! A connection to a service: which backends it may come to, and what policy says of each.

use std::net::IpAddr;

use causeway_model::policy::{Traffic, Verdict};
use causeway_model::service::ServicePort;
use causeway_model::why::{Behind, Outcome, Party, Share, Through};
use causeway_model::{PortProtocol, Snapshot};
use causeway_services::{Client, ServiceName};

use super::Core;

impl Core {
    /// The service that a client asks at an address, if it is one's.
    pub(super) fn through(
        &self,
        desired: &Snapshot,
        (from, to): (IpAddr, IpAddr),
        traffic: Traffic,
    ) -> Result<Option<Through>, String> {
        let tables = &desired.services;
        let Traffic::To(protocol, port) = traffic else {
            // What has no ports passes by, and an address that is a service's alone has nothing behind it.
            return match tables.addresses.contains(&to) {
                true => Err(format!("{to} is a service's: ask with a protocol and a port, as in tcp/80")),
                false => Ok(None),
            };
        };
        let client = client(desired, from);
        let of_node = is_node(desired, client, to);
        let outcome = causeway_services::ask(tables, (client, from), (to, of_node), protocol, port);
        let outcome = match outcome {
            causeway_services::Outcome::NotOurs => return Ok(None),
            causeway_services::Outcome::Dropped => Outcome::Dropped,
            causeway_services::Outcome::Refused => Outcome::Refused,
            causeway_services::Outcome::Served(shares) => Outcome::Served(Share::of(shares)),
        };
        if client == Client::Outside
            && let Some(node) = desired.peers.values().find(|node| {
                node.id.cluster == desired.settings.node.id.cluster
                    && node.pod_prefixes.iter().any(|prefix| prefix.contains(from))
            })
        {
            return Err(format!("{from} is a pod of node {}, which translates for it: ask there", node.id));
        }
        let service = tables.at(to, of_node, protocol, port).map(|service| service.id.clone());
        let behind = match &outcome {
            Outcome::Served(shares) => self.behind(desired, from, protocol, shares),
            Outcome::Refused | Outcome::Dropped => Vec::new(),
        };
        let reason = reason(service.as_ref(), &outcome, to);
        Ok(Some(Through { service, outcome, reason, behind }))
    }

    fn behind(
        &self,
        desired: &Snapshot,
        from: IpAddr,
        protocol: PortProtocol,
        shares: &[Share],
    ) -> Vec<Behind> {
        let of = |Share { backend, weight }: &Share| {
            let traffic = Traffic::To(protocol, backend.port);
            let (verdict, sides) = self.sides(desired, from, backend.address, traffic, true);
            let to = Party { address: backend.address, who: self.who(desired, backend.address) };
            Behind { to, port: backend.port, weight: *weight, verdict, sides }
        };
        shares.iter().map(of).collect()
    }

    /// The ClusterIPs of a service.
    pub(super) fn addresses_of_service(&self, namespace: &str, name: &str) -> Option<Vec<IpAddr>> {
        let name = ServiceName { namespace: namespace.to_owned(), name: name.to_owned() };
        let service = self.served.compiler()?.world().services.get(&name)?;
        Some(service.cluster_ips.clone())
    }
}

/// Who a client is to this node's tables.
fn client(desired: &Snapshot, from: IpAddr) -> Client {
    let pod = desired.endpoints.values().any(|endpoint| endpoint.addresses.contains(&from));
    match () {
        () if pod => Client::Pod,
        () if desired.settings.node.stack().any(|own| own == from) => Client::Process,
        () => Client::Outside,
    }
}

/// Whether an address is a node's whose node ports this node answers for that client.
fn is_node(desired: &Snapshot, client: Client, address: IpAddr) -> bool {
    let own = &desired.settings.node;
    let others = desired.peers.values().filter(|node| node.id.cluster == own.id.cluster);
    own.underlay.contains(&address)
        || client == Client::Pod && others.into_iter().any(|node| node.underlay.contains(&address))
}

fn reason(service: Option<&ServicePort>, outcome: &Outcome, to: IpAddr) -> String {
    match (service, outcome) {
        (None, Outcome::Refused) => format!("{to} is a service's, and the service has no such port"),
        (None, _) => format!("{to} lies within the prefixes of services, and no service has it"),
        (Some(service), Outcome::Refused) => format!("service {service} has no backend anywhere"),
        (Some(service), Outcome::Dropped) => {
            format!("service {service} has no backend on this node, or does not serve this source")
        }
        (Some(service), Outcome::Served(shares)) => match &shares[..] {
            [_] => format!("service {service} leads to one backend"),
            [Share { weight: Some(_), .. }, ..] => {
                format!("service {service} leads to one of {} backends, by weight", shares.len())
            }
            _ => format!("service {service} leads to one of {} backends", shares.len()),
        },
    }
}

/// What holds of all backends, if the same does.
pub(super) fn of_all(behind: &[Behind]) -> Option<Verdict> {
    let first = behind.first()?.verdict;
    if behind.iter().all(|one| one.verdict == first) { first } else { None }
}
