use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::Identity;

/// Who has which address, as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peers {
    /// Known endpoints of all clusters, this node ([`Identity::HOST`]) and other nodes.
    pub addresses: BTreeMap<IpAddr, Identity>,
    /// The pod prefixes of all known clusters: what else lies in them is unknown, and never the world.
    pub clusters: Vec<IpNetwork>,
}

impl Peers {
    /// Who has an address.
    pub fn identity(&self, address: IpAddr) -> Identity {
        match self.addresses.get(&address) {
            Some(identity) => *identity,
            None if self.clusters.iter().any(|prefix| prefix.contains(address)) => Identity::UNKNOWN,
            None => Identity::WORLD,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_a_cluster_without_an_endpoint_is_unknown_and_not_the_world() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let peers = Peers {
            addresses: BTreeMap::from([
                (address("10.70.1.3"), Identity(256)),
                (address("192.0.2.1"), Identity::HOST),
            ]),
            clusters: vec!["10.70.0.0/16".parse().unwrap(), "fd70::/48".parse().unwrap()],
        };
        for (text, identity) in [
            ("10.70.1.3", Identity(256)),
            ("10.70.1.4", Identity::UNKNOWN),
            ("fd70::4", Identity::UNKNOWN),
            ("10.71.0.1", Identity::WORLD),
            ("192.0.2.1", Identity::HOST),
        ] {
            assert_eq!(peers.identity(address(text)), identity, "{text}");
        }
    }
}
