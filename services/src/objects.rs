//! Services and slices as the compiler and the slow evaluator have them: every default filled in, every range checked.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use causeway_model::{Family, PortProtocol};
use ipnetwork::IpNetwork;

/// A service of this cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An endpoint slice of this cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceName {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

/// A service that has addresses of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its ClusterIPs, at most one of a family. Of a family without one it has no other addresses and no node ports either.
    pub cluster_ips: Vec<IpAddr>,
    /// The external IPs that lead to it.
    pub external_ips: Vec<IpAddr>,
    /// The addresses of its load balancer that nodes are to take for their own (`ipMode: VIP`).
    pub ingress: Vec<IpAddr>,
    /// Who may come to those; none is everybody.
    pub sources: Option<Sources>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Who asks its ClusterIP gets backends of the own node only.
    pub internal_local: bool,
    /// Who comes from outside to any other of its addresses gets backends of that node only.
    pub external_local: bool,
    /// For how many seconds a client stays with its backend.
    pub affinity: Option<u32>,
    /// Where load balancers ask a node whether it has backends.
    pub health_check: Option<u16>,
}

impl Service {
    /// Its ClusterIP of a family.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|address| Family::of(*address) == family)
    }
}

/// Who may come to the addresses of a load balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// Those whose address lies in one of these.
    pub ranges: Vec<IpNetwork>,
    /// There were others, which could not be read: nobody comes in by a family of which there is none here.
    pub unreadable: bool,
}

impl Sources {
    /// Who may come over a family; none is everybody: ranges of the other family say nothing about it.
    pub fn of(&self, family: Family) -> Option<Vec<IpNetwork>> {
        let ranges = self.ranges.iter().copied().filter(|range| Family::of(range.ip()) == family);
        let ranges: Vec<_> = ranges.collect();
        let open = ranges.iter().any(|range| range.prefix() == 0) || ranges.is_empty() && !self.unreadable;
        (!open).then_some(ranges)
    }
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name; empty where it has none.
    pub name: String,
    /// The transport.
    pub protocol: PortProtocol,
    /// The port at the service's addresses.
    pub port: u16,
    /// The port at every node's.
    pub node_port: Option<u16>,
}

/// An endpoint slice of some service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Whose it is, by name: the namespace is the slice's.
    pub service: String,
    /// The family of all its addresses.
    pub family: Family,
    /// Its ports.
    pub ports: Vec<SlicePort>,
    /// Who serves all of them.
    pub endpoints: Vec<SliceEndpoint>,
}

/// A port of an endpoint slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the service's port that it is behind.
    pub name: String,
    /// The transport.
    pub protocol: PortProtocol,
    /// The number there.
    pub port: u16,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// The first of its addresses: the others mean the same.
    pub address: IpAddr,
    /// It wants connections.
    pub ready: bool,
    /// It answers.
    pub serving: bool,
    /// It is about to end.
    pub terminating: bool,
    /// Its part of new connections among those that get any: 1, but of services of a mesh.
    pub weight: u32,
    /// The node it is on, if on one.
    pub node: Option<String>,
    /// The zones whose clients it is meant for.
    pub for_zones: BTreeSet<String>,
    /// The nodes whose clients it is meant for.
    pub for_nodes: BTreeSet<String>,
}
