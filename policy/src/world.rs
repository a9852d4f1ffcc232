//! What is known: pods, namespaces, nodes and policies.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use causeway_model::{ClusterName, EndpointKey, NodeId, PodName, PortProtocol};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::identity::{LabelSet, is_filtered};
use crate::policy::{Policy, PolicyKey};

/// The label that tells whose namespace it is; on every namespace of another cluster.
pub const CLUSTER_LABEL: &str = "causeway.dev/cluster";
/// The label that Kubernetes gives every namespace.
pub const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";

/// A namespace's labels with those that are implied. What is implied cannot be said otherwise: another cluster's namespace
/// would pass for ours.
pub fn namespace_labels(
    own: Option<&ClusterName>,
    cluster: &ClusterName,
    namespace: &str,
    mut written: BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    written.insert(NAMESPACE_LABEL.to_owned(), namespace.to_owned());
    if Some(cluster) != own {
        written.insert(CLUSTER_LABEL.to_owned(), cluster.to_string());
    } else if written.get(CLUSTER_LABEL).is_some_and(|label| label != cluster.as_str()) {
        written.remove(CLUSTER_LABEL);
    }
    written
}

/// What has addresses and labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WorkloadId {
    /// A pod of a cluster.
    Pod(ClusterName, PodName),
    /// An attachment on this node that no pod object describes.
    Attachment(ClusterName, EndpointKey),
}

impl WorkloadId {
    /// The namespace it is in; an attachment is in the one of no name.
    pub fn namespace(&self) -> NamespaceId {
        match self {
            Self::Pod(cluster, pod) => NamespaceId { cluster: cluster.clone(), name: pod.namespace.clone() },
            Self::Attachment(cluster, _) => NamespaceId { cluster: cluster.clone(), name: String::new() },
        }
    }
}

/// A namespace of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId {
    /// The cluster.
    pub cluster: ClusterName,
    /// The namespace's name there.
    pub name: String,
}

/// A port that a pod has a name for. Two containers of a pod may give one name to different ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// The protocol.
    pub protocol: PortProtocol,
    /// The port.
    pub port: u16,
}

/// Whether a workload's addresses are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// They are.
    Living,
    /// It has ended: its addresses may be another's by now.
    Ended,
    /// They are its node's.
    HostNetwork,
}

/// A pod, or an attachment that no pod object describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its labels as they are written.
    pub labels: BTreeMap<String, String>,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The ports that it names.
    pub ports: BTreeSet<NamedPort>,
    /// Whether these addresses are its own.
    pub presence: Presence,
    /// It is an endpoint of this node: it gets tables.
    pub local: bool,
}

impl Workload {
    /// What a Pod object says. Ports and addresses that cannot be read are no ports and no addresses.
    pub fn of_pod(pod: &Pod, local: bool) -> Self {
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let ended = status.and_then(|status| status.phase.as_deref());
        let presence = match ended {
            Some("Succeeded" | "Failed") => Presence::Ended,
            _ if spec.and_then(|spec| spec.host_network) == Some(true) => Presence::HostNetwork,
            _ => Presence::Living,
        };
        let many = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
        let one = status.and_then(|status| status.pod_ip.as_deref());
        let addresses = many.map(|ip| ip.ip.as_str()).chain(one).filter_map(|ip| ip.parse().ok()).collect();
        // An init container that is restarted always runs beside the others.
        let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
        let beside =
            spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten().filter(sidecar);
        let containers = spec.map(|spec| &spec.containers).into_iter().flatten().chain(beside);
        let ports = containers.flat_map(|container| container.ports.iter().flatten());
        let named = ports.filter_map(|port| {
            let protocol = match port.protocol.as_deref() {
                None | Some("TCP") => PortProtocol::Tcp,
                Some("UDP") => PortProtocol::Udp,
                Some("SCTP") => PortProtocol::Sctp,
                Some(_) => return None,
            };
            Some(NamedPort { name: port.name.clone()?, protocol, port: port.container_port.try_into().ok()? })
        });
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        Self { labels, addresses, ports: named.collect(), presence, local }
    }

    /// Whether anything can come from it or go to it under its own address.
    pub fn is_present(&self) -> bool {
        self.presence == Presence::Living
    }
}

/// A node, as far as rules can tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// One change of what is known; `None` is its end.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A pod or an attachment.
    Workload(WorkloadId, Option<Workload>),
    /// A namespace's written labels. A namespace without an object has the implied ones.
    Namespace(NamespaceId, Option<BTreeMap<String, String>>),
    /// A node.
    Node(NodeId, Option<NodeFacts>),
    /// A policy of the own cluster.
    Policy(PolicyKey, Option<Policy>),
    /// The pod prefixes of all known clusters.
    Clusters(Vec<IpNetwork>),
}

/// All that is known, as one node sees it.
#[derive(Clone, Debug)]
pub struct World {
    /// This node.
    pub node: NodeId,
    /// Pods and attachments.
    pub workloads: BTreeMap<WorkloadId, Workload>,
    /// Written labels of namespaces.
    pub namespaces: BTreeMap<NamespaceId, BTreeMap<String, String>>,
    /// Nodes of all clusters.
    pub nodes: BTreeMap<NodeId, NodeFacts>,
    /// Policies of the own cluster.
    pub policies: BTreeMap<PolicyKey, Policy>,
    /// The pod prefixes of all known clusters.
    pub clusters: Vec<IpNetwork>,
}

impl World {
    /// What a node knows at first.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            workloads: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            nodes: BTreeMap::new(),
            policies: BTreeMap::new(),
            clusters: Vec::new(),
        }
    }

    /// The own cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.node.cluster
    }

    /// Takes up a change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Workload(id, value) => put(&mut self.workloads, id, value),
            Change::Namespace(id, value) => put(&mut self.namespaces, id, value),
            Change::Node(id, value) => put(&mut self.nodes, id, value),
            Change::Policy(key, value) => put(&mut self.policies, key, value),
            Change::Clusters(prefixes) => self.clusters = prefixes,
        }
    }

    /// The labels that replicas or runs differ by and that some selector nevertheless speaks of.
    pub fn wanted_labels(&self) -> BTreeSet<String> {
        let keys = self.policies.values().flat_map(Policy::pod_labels);
        keys.filter(|key| is_filtered(key)).map(str::to_owned).collect()
    }

    /// What selectors see of a workload.
    pub fn label_set(&self, id: &WorkloadId, workload: &Workload, wanted: &BTreeSet<String>) -> LabelSet {
        let namespace = id.namespace();
        let written = self.namespaces.get(&namespace).cloned().unwrap_or_default();
        let namespace_labels = match namespace.name.as_str() {
            // No namespace at all: nothing is implied.
            "" => written,
            name => namespace_labels(Some(self.cluster()), &namespace.cluster, name, written),
        };
        LabelSet::seeing(namespace.cluster, namespace.name, namespace_labels, workload.labels.clone(), wanted)
            .with_ports(workload.ports.clone())
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}
