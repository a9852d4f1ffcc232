use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::hash::fnv1a;
use crate::{ClusterName, MacAddr, NodeName};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in the order that results list them.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The prefix length of a single address.
    pub fn host_length(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// What VXLAN adds to an inner IP packet over an underlay of this family: inner Ethernet 14, VXLAN 8, UDP 8, IP.
    pub fn tunnel_overhead(self) -> u16 {
        match self {
            Family::V4 => 50,
            Family::V6 => 70,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// A node's name and the cluster it belongs to: names are unique only within a cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId {
    /// The cluster.
    pub cluster: ClusterName,
    /// The node's name there.
    pub name: NodeName,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cluster, self.name)
    }
}

/// A node: where its tunnel ends and which pod addresses are behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Which node.
    pub id: NodeId,
    /// The node's own addresses. The first of a family is where a tunnel over that family ends.
    pub underlay: Vec<IpAddr>,
    /// The inner hardware address of frames to this node.
    pub vtep_mac: MacAddr,
    /// The pod prefixes of this node.
    pub pod_prefixes: Vec<IpNetwork>,
}

impl Node {
    /// The hardware address every part derives for a node's tunnel end: locally administered, from cluster and name alone, so
    /// that it is the same after any restart and needs no exchange.
    pub fn derived_vtep_mac(id: &NodeId) -> MacAddr {
        let hash = fnv1a([id.cluster.as_str(), id.name.as_str()]);
        let [a, b, c, d, e, ..] = (hash ^ (hash >> 24)).to_be_bytes();
        MacAddr([0x02, a, b, c, d, e])
    }

    /// Where a tunnel over `family` ends.
    pub fn tunnel_address(&self, family: Family) -> Option<IpAddr> {
        self.underlay.iter().copied().find(|address| Family::of(*address) == family)
    }

    /// The node's pod prefixes of one family.
    pub fn pod_prefixes_of(&self, family: Family) -> impl Iterator<Item = IpNetwork> + '_ {
        self.pod_prefixes.iter().copied().filter(move |prefix| Family::of(prefix.ip()) == family)
    }

    /// The overlay host address (network + 1 of the first pod prefix): the source of host → remote pod traffic.
    pub fn overlay_host_address(&self, family: Family) -> Option<IpAddr> {
        self.pod_prefixes_of(family).next().and_then(|prefix| nth(prefix, 1))
    }

    /// The probe address (network + 2 of the first pod prefix).
    pub fn probe_address(&self, family: Family) -> Option<IpAddr> {
        self.pod_prefixes_of(family).next().and_then(|prefix| nth(prefix, 2))
    }

    /// The addresses of its own stack: its own, and those that are reserved in its pod prefixes.
    pub fn stack(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let reserved = |family| [self.overlay_host_address(family), self.probe_address(family)];
        let reserved = Family::BOTH.into_iter().flat_map(reserved).flatten();
        self.underlay.iter().copied().chain(reserved)
    }

    /// Whether an inner packet may carry this source when it comes from this node.
    pub fn may_send_from(&self, source: IpAddr) -> bool {
        self.underlay.contains(&source) || self.pod_prefixes.iter().any(|prefix| prefix.contains(source))
    }
}

/// The `n`th address of a prefix, if the prefix has so many.
fn nth(prefix: IpNetwork, n: u32) -> Option<IpAddr> {
    let address = match prefix.network() {
        IpAddr::V4(network) => IpAddr::V4(u32::from(network).checked_add(n)?.into()),
        IpAddr::V6(network) => IpAddr::V6(u128::from(network).checked_add(n.into())?.into()),
    };
    prefix.contains(address).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(cluster: &str, name: &str) -> NodeId {
        NodeId { cluster: cluster.parse().unwrap(), name: name.parse().unwrap() }
    }

    fn east() -> Node {
        Node {
            id: id("lyon", "east"),
            underlay: vec!["192.0.2.11".parse().unwrap(), "2001:db8::11".parse().unwrap()],
            vtep_mac: Node::derived_vtep_mac(&id("lyon", "east")),
            pod_prefixes: vec!["10.70.1.0/24".parse().unwrap(), "fd70:0:0:1::/64".parse().unwrap()],
        }
    }

    #[test]
    fn reserved_addresses_are_the_first_two_after_the_network() {
        let east = east();
        assert_eq!(east.overlay_host_address(Family::V4), "10.70.1.1".parse().ok());
        assert_eq!(east.probe_address(Family::V4), "10.70.1.2".parse().ok());
        assert_eq!(east.overlay_host_address(Family::V6), "fd70:0:0:1::1".parse().ok());
        assert_eq!(east.probe_address(Family::V6), "fd70:0:0:1::2".parse().ok());
    }

    #[test]
    fn a_prefix_of_one_address_has_no_reserved_ones() {
        let mut east = east();
        east.pod_prefixes = vec!["255.255.255.255/32".parse().unwrap()];
        assert_eq!(east.overlay_host_address(Family::V4), None);
    }

    #[test]
    fn a_node_sends_from_its_pods_and_its_own_addresses_only() {
        let east = east();
        for good in ["10.70.1.9", "192.0.2.11", "fd70:0:0:1::9", "2001:db8::11"] {
            assert!(east.may_send_from(good.parse().unwrap()), "{good}");
        }
        for bad in ["10.70.2.9", "192.0.2.12", "fd70:0:0:2::9", "8.8.8.8"] {
            assert!(!east.may_send_from(bad.parse().unwrap()), "{bad}");
        }
    }

    #[test]
    fn derived_macs_are_fixed_for_ever_and_differ_by_cluster() {
        let mac = Node::derived_vtep_mac(&id("lyon", "east"));
        assert_ne!(mac, Node::derived_vtep_mac(&id("paris", "east")));
        assert_ne!(mac, Node::derived_vtep_mac(&id("lyon", "west")));
        assert_eq!(mac.0[0], 0x02, "locally administered, unicast");
    }
}
