//! What a lab shall look like: names and addresses, decided before anything is made.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use causeway_model::{ClusterName, IpNetwork, Node, NodeId, NodeName};
use serde::{Deserialize, Serialize};

use super::LabError;

/// The most nodes of a lab, foreign ones included: their addresses are 192.0.2.11 and on.
const MOST_NODES: usize = 200;
/// The most clusters of a lab: their pod prefixes are 10.70.0.0/16 and on.
const MOST_CLUSTERS: usize = 20;

// Words on the command line, in lab.json and in the agents' configuration: one list makes all three agree.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident: $what:literal { $($(#[$help:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$help])* #[serde(rename = $word)] $variant,)+
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(match self { $($name::$variant => $word,)+ })
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(word: &str) -> Result<Self, String> {
                match word {
                    $($word => Ok($name::$variant),)+
                    _ => Err(format!("{word:?} is no {}; there are: {}", $what, [$($word),+].join(", "))),
                }
            }
        }
    };
}

words! {
    /// Which data paths the nodes have.
    Datapath: "data path" {
        /// The fast path on every node.
        Fast = "fast",
        /// The kernel on every node.
        Kernel = "kernel",
        /// Odd nodes fast, their pods fast and kernel in turn; even nodes kernel.
        Mixed = "mixed",
    }
}

words! {
    /// What joins the nodes.
    WireKind: "wire" {
        /// A bridge of the kernel: fast, perfect.
        Bridge = "bridge",
        /// A switch of our own that can delay, lose, double, reorder, damage, slow down and cut.
        Userspace = "userspace",
    }
}

words! {
    /// Which of their underlay addresses the nodes are known by.
    Underlay: "underlay" {
        /// Both, IPv4 first: the tunnel goes over IPv4.
        Both = "both",
        /// IPv6 only: the tunnel goes over IPv6.
        V6 = "v6",
    }
}

/// A node whose name and addresses are asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its name.
    pub name: NodeName,
    /// Its addresses on the wire, which the others know it by. Of a family that is missing here it has a lab's own one.
    pub addresses: Vec<IpAddr>,
    /// The prefixes of its pods' addresses.
    pub pod_prefixes: Vec<IpNetwork>,
}

/// A lab as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabSpec {
    /// Its name: in all names of namespaces and directories.
    pub name: String,
    /// How many nodes it begins with: n1, n2, …
    pub nodes: usize,
    /// How many clusters the nodes are dealt to in turn: c1, c2, …
    pub clusters: usize,
    /// Which data paths the nodes have.
    pub datapath: Datapath,
    /// What joins them.
    pub wire: WireKind,
    /// What they know each other by.
    pub underlay: Underlay,
    /// The MTU of the wire.
    pub mtu: u16,
    /// More lines for every agent's configuration.
    pub config: Vec<String>,
    /// The options of every fast path, besides where its agent is.
    pub fastpath: Vec<String>,
    /// Whether the nodes have agents; without, a lab is namespaces and a wire.
    pub agents: bool,
    /// Whether the lab writes the objects of what it makes; else whoever asks for it writes them all.
    pub objects: bool,
    /// The nodes that are not as the lab would make them, from the first one on. Nobody else is on their network: what they
    /// shall reach on the wire they need routes for.
    pub places: Vec<Place>,
}

impl LabSpec {
    /// Two nodes of one cluster on the kernel path, joined by a bridge.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            nodes: 2,
            clusters: 1,
            datapath: Datapath::Kernel,
            wire: WireKind::Bridge,
            underlay: Underlay::Both,
            mtu: 1500,
            config: Vec::new(),
            fastpath: vec!["--memory".into(), "slow".into()],
            agents: true,
            objects: true,
            places: Vec::new(),
        }
    }

    /// Refuses what cannot be made.
    pub(super) fn check(&self) -> Result<(), LabError> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let refuse = |why: String| Err(LabError::Refused(format!("lab {:?}: {why}", self.name)));
        if !(1..=20).contains(&self.name.len()) || !self.name.chars().all(good) {
            return refuse("a name has 1 to 20 small letters, digits and '-'".into());
        }
        if !(1..=MOST_NODES).contains(&self.nodes) {
            return refuse(format!("{} nodes: 1 to {MOST_NODES} can be had", self.nodes));
        }
        if !(1..=MOST_CLUSTERS).contains(&self.clusters) {
            return refuse(format!("{} clusters: 1 to {MOST_CLUSTERS} can be had", self.clusters));
        }
        Ok(())
    }

    /// The node with this number in a cluster.
    pub(super) fn plan(&self, number: usize, cluster: usize) -> Result<NodePlan, LabError> {
        let plan = NodePlan::new(number, cluster, self.underlay)?;
        Ok(match number.checked_sub(1).and_then(|index| self.places.get(index)) {
            Some(place) => plan.placed(place),
            None => plan,
        })
    }

    /// The data path of the node with this number.
    pub(super) fn datapath_of(&self, number: usize) -> Datapath {
        match self.datapath {
            Datapath::Mixed if number % 2 == 1 => Datapath::Fast,
            Datapath::Mixed => Datapath::Kernel,
            same => same,
        }
    }
}

/// A node as it will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlan {
    /// Its number, from 1.
    pub number: usize,
    /// Its cluster's number, from 1.
    pub cluster: usize,
    /// Its address on the wire, over IPv4.
    pub v4: Ipv4Addr,
    /// Its address on the wire, over IPv6.
    pub v6: Ipv6Addr,
    /// The lengths of their subnets.
    pub subnets: (u8, u8),
    /// The node as every part of the system shall know it.
    pub node: Node,
}

impl NodePlan {
    /// The node with this number in a cluster.
    pub fn new(number: usize, cluster: usize, underlay: Underlay) -> Result<Self, LabError> {
        let refused = || LabError::Refused(format!("node {number}: {MOST_NODES} nodes are the most"));
        let n = u8::try_from(number).ok().filter(|n| usize::from(*n) <= MOST_NODES).ok_or_else(refused)?;
        let v4 = Ipv4Addr::new(192, 0, 2, n + 10);
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n) + 10);
        let (pods4, pods6) = prefix_bases(cluster);
        let pod_prefixes = vec![
            network(Ipv4Addr::from(u32::from(pods4) | u32::from(n) << 8).into(), 24),
            network(Ipv6Addr::from(u128::from(pods6) | u128::from(n) << 64).into(), 64),
        ];
        let id = NodeId { cluster: cluster_name(cluster), name: name(&format!("n{number}")) };
        let underlay = match underlay {
            Underlay::Both => vec![v4.into(), v6.into()],
            Underlay::V6 => vec![v6.into()],
        };
        let node = Node { vtep_mac: Node::derived_vtep_mac(&id), id, underlay, pod_prefixes };
        Ok(Self { number, cluster, v4, v6, subnets: (24, 64), node })
    }

    /// The same node elsewhere.
    fn placed(self, place: &Place) -> Self {
        let (mut v4, mut v6) = (self.v4, self.v6);
        for address in place.addresses.iter().rev() {
            match address {
                IpAddr::V4(address) => v4 = *address,
                IpAddr::V6(address) => v6 = *address,
            }
        }
        let id = NodeId { name: place.name.clone(), ..self.node.id };
        let vtep_mac = Node::derived_vtep_mac(&id);
        let (underlay, pod_prefixes) = (place.addresses.clone(), place.pod_prefixes.clone());
        Self { v4, v6, subnets: (32, 128), node: Node { id, underlay, vtep_mac, pod_prefixes }, ..self }
    }
}

/// The name of a cluster by its number.
pub fn cluster_name(number: usize) -> ClusterName {
    format!("c{number}").parse().unwrap_or_else(|_| unreachable!("a letter and digits"))
}

fn name(name: &str) -> NodeName {
    name.parse().unwrap_or_else(|_| unreachable!("a letter and digits"))
}

fn prefix_bases(cluster: usize) -> (Ipv4Addr, Ipv6Addr) {
    let c = u8::try_from(cluster).unwrap_or_else(|_| unreachable!("checked with the spec"));
    (Ipv4Addr::new(10, 69 + c, 0, 0), Ipv6Addr::new(0xfd6f + u16::from(c), 0, 0, 0, 0, 0, 0, 0))
}

fn network(address: IpAddr, length: u8) -> IpNetwork {
    IpNetwork::new(address, length).unwrap_or_else(|_| unreachable!("the length suits the family"))
}

/// Every pod of a cluster has an address in these.
pub fn cluster_prefixes(cluster: usize) -> [IpNetwork; 2] {
    let (v4, v6) = prefix_bases(cluster);
    [network(v4.into(), 16), network(v6.into(), 48)]
}

/// Every service of a cluster has an address in this.
pub fn service_prefix(cluster: usize) -> IpNetwork {
    let c = u8::try_from(cluster).unwrap_or_else(|_| unreachable!("checked with the spec"));
    network(Ipv4Addr::new(10, 95 + c, 0, 0).into(), 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_get_the_addresses_that_the_documentation_shows() {
        let n2 = NodePlan::new(2, 1, Underlay::Both).unwrap();
        assert_eq!(n2.node.id.to_string(), "c1/n2");
        assert_eq!(n2.node.underlay, ["192.0.2.12", "2001:db8::c"].map(|a| a.parse::<IpAddr>().unwrap()));
        assert_eq!(n2.node.pod_prefixes, ["10.70.2.0/24", "fd70:0:0:2::/64"].map(|p| p.parse().unwrap()));
        let n1 = NodePlan::new(1, 2, Underlay::V6).unwrap();
        assert_eq!(n1.node.underlay, ["2001:db8::b".parse::<IpAddr>().unwrap()]);
        assert_eq!(n1.node.pod_prefixes[0].to_string(), "10.71.1.0/24");
        assert!(NodePlan::new(201, 1, Underlay::Both).is_err());
    }

    #[test]
    fn every_node_lies_in_its_cluster_and_no_other() {
        for (number, cluster) in [(1, 1), (200, 1), (7, 20)] {
            let plan = NodePlan::new(number, cluster, Underlay::Both).unwrap();
            for (c, prefix) in (1..=20).flat_map(|c| cluster_prefixes(c).map(|p| (c, p))) {
                let inside = plan.node.pod_prefixes.iter().any(|own| prefix.contains(own.network()));
                assert_eq!(inside, c == cluster, "{:?} in {prefix}", plan.node.pod_prefixes);
            }
        }
    }

    #[test]
    fn impossible_labs_are_refused_with_the_reason() {
        let refused = |change: fn(&mut LabSpec)| {
            let mut spec = LabSpec::named("x");
            change(&mut spec);
            spec.check().expect_err("impossible").to_string()
        };
        assert!(refused(|s| s.name = "Bad".into()).contains("small letters"));
        assert!(refused(|s| s.name = "a".repeat(21)).contains("1 to 20"));
        assert!(refused(|s| s.nodes = 0).contains("0 nodes"));
        assert!(refused(|s| s.clusters = 21).contains("21 clusters"));
        assert!("quick".parse::<Datapath>().expect_err("no path").contains("fast, kernel, mixed"));
    }
}
