//! What is known: services, endpoint slices and nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use causeway_model::{NodeId, NodeName};
use ipnetwork::IpNetwork;

use crate::objects::{Service, ServiceName, Slice, SliceName};

/// The label of a node that names its zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// A node, as far as services can tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its zone.
    pub zone: Option<String>,
    /// Its addresses, at which its node ports are.
    pub addresses: BTreeSet<IpAddr>,
}

/// One change of what is known; `None` is its end.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A service.
    Service(ServiceName, Option<Service>),
    /// An endpoint slice.
    Slice(SliceName, Option<Slice>),
    /// A node of this cluster.
    Node(NodeName, Option<NodeFacts>),
    /// The prefixes that ClusterIPs come from.
    Prefixes(Vec<IpNetwork>),
}

/// All that is known of this cluster's services, as one node sees it.
#[derive(Clone, Debug)]
pub struct World {
    /// This node.
    pub node: NodeId,
    /// Services that have addresses of their own.
    pub services: BTreeMap<ServiceName, Service>,
    /// Endpoint slices.
    pub slices: BTreeMap<SliceName, Slice>,
    /// The slices of a service.
    pub slices_of: BTreeMap<ServiceName, BTreeSet<SliceName>>,
    /// Nodes.
    pub nodes: BTreeMap<NodeName, NodeFacts>,
    /// The prefixes that ClusterIPs come from.
    pub prefixes: Vec<IpNetwork>,
}

impl World {
    /// What a node knows at first.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            slices_of: BTreeMap::new(),
            nodes: BTreeMap::new(),
            prefixes: Vec::new(),
        }
    }

    /// This node's facts, as far as there are any.
    pub fn own(&self) -> Option<&NodeFacts> {
        self.nodes.get(&self.node.name)
    }

    /// Takes up a change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Service(name, service) => put(&mut self.services, name, service),
            Change::Slice(name, slice) => self.put_slice(name, slice),
            Change::Node(name, facts) => put(&mut self.nodes, name, facts),
            Change::Prefixes(prefixes) => self.prefixes = prefixes,
        }
    }

    fn put_slice(&mut self, name: SliceName, slice: Option<Slice>) {
        if let Some(before) = self.slices.get(&name).map(|slice| service_of(&name, slice))
            && let Some(slices) = self.slices_of.get_mut(&before)
        {
            slices.remove(&name);
            if slices.is_empty() {
                self.slices_of.remove(&before);
            }
        }
        if let Some(slice) = &slice {
            self.slices_of.entry(service_of(&name, slice)).or_default().insert(name.clone());
        }
        put(&mut self.slices, name, slice);
    }
}

/// Whose a slice is.
pub(crate) fn service_of(name: &SliceName, slice: &Slice) -> ServiceName {
    ServiceName { namespace: name.namespace.clone(), name: slice.service.clone() }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}
