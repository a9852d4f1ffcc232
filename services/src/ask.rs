//! What the tables say to a client.

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_model::PortProtocol;
use causeway_model::service::{Answer, Backend, Service, Services};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    /// A pod of this node: all nodes' node ports are answered here.
    Pod,
    /// A process of this node: only its own node ports are.
    Process,
    /// Anybody else who comes to this node, to whatever address.
    Outside,
}

/// What becomes of a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is no matter of services.
    NotOurs,
    /// It is not answered.
    Dropped,
    /// It is refused.
    Refused,
    /// One of these gets it, each so many parts of all such connections.
    Served(BTreeMap<Backend, u32>),
}

/// Looks up what becomes of a new connection to an address, which is this or, for pods, any node's (`of_node`) or not.
pub fn ask(
    services: &Services,
    (client, source): (Client, IpAddr),
    (address, of_node): (IpAddr, bool),
    protocol: PortProtocol,
    port: u16,
) -> Outcome {
    let Some(service) = services.at(address, of_node && !address.is_loopback(), protocol, port) else {
        return match () {
            () if services.addresses.contains(&address) => Outcome::Refused,
            () if services.prefixes.iter().any(|prefix| prefix.contains(address)) => Outcome::Dropped,
            () => Outcome::NotOurs,
        };
    };
    let Service { inside, outside, sources, .. } = service;
    if sources.as_ref().is_some_and(|sources| !sources.iter().any(|range| range.contains(source))) {
        return Outcome::Dropped;
    }
    match if client == Client::Outside { outside } else { inside } {
        Answer::Refuse => Outcome::Refused,
        Answer::Drop => Outcome::Dropped,
        Answer::Backends(id) => {
            let backends = services.backends.get(id).into_iter();
            Outcome::Served(backends.flat_map(|backends| backends.shares()).collect())
        }
    }
}
