use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::connection::ConnectionRules;
use crate::{Cluster, ClusterName, Endpoint, EndpointKey, Family, Node, NodeId, Vni};

/// Who holds this node's tunnel. Fixed when the node's path is chosen, not by who is alive at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TunnelOwner {
    /// The kernel's vxlan device; no fast path on this node.
    Kernel,
    /// The fast path; kernel pods reach remote prefixes through the host port.
    FastPath,
}

/// Where the fast path's tunnel frames enter and leave the node. Means nothing where the kernel holds the tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UplinkKind {
    /// Through the kernel, which hands received ones over and routes sent ones: it keeps the NIC.
    #[default]
    HostRouted,
    /// Through a device that the fast path opens itself. The kernel, where it sees them too, must not answer them.
    Ethdev,
}

/// What is equal on all nodes of a mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// The network identifier.
    pub vni: Vni,
    /// The UDP port of the tunnel.
    pub port: u16,
}

/// What a node's data path is told once, and again only when it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The overlay.
    pub overlay: Overlay,
    /// This node.
    pub node: Node,
    /// Where this node's tunnel ends: one of the node's underlay addresses; its family is the underlay's.
    pub tunnel_address: IpAddr,
    /// Who holds the tunnel.
    pub tunnel: TunnelOwner,
    /// How the fast path reaches the underlay.
    #[serde(default)]
    pub uplink: UplinkKind,
    /// The MTU of pods, of the tunnel and of the host port: the uplink's less the overhead.
    pub pod_mtu: u16,
    /// How connections are kept.
    #[serde(default)]
    pub connections: ConnectionRules,
}

impl Settings {
    /// The family of the underlay.
    pub fn underlay_family(&self) -> Family {
        Family::of(self.tunnel_address)
    }
}

/// The desired state of one node's data path. Both drivers take the same one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// This node and its overlay.
    pub settings: Settings,
    /// Every other node, of all clusters. Each has a tunnel address of the underlay's family.
    #[serde(with = "as_list")]
    pub peers: BTreeMap<NodeId, Node>,
    /// The endpoints on this node.
    #[serde(with = "as_list")]
    pub endpoints: BTreeMap<EndpointKey, Endpoint>,
    /// The clusters of the mesh, this one among them.
    #[serde(with = "as_list")]
    pub clusters: BTreeMap<ClusterName, Cluster>,
}

/// One change of a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Delta {
    /// This node's settings are now these.
    Settings(Box<Settings>),
    /// A node is new or has changed.
    Peer(Node),
    /// A node has gone.
    PeerGone(NodeId),
    /// An endpoint is new or has changed.
    Endpoint(Box<Endpoint>),
    /// An endpoint has gone.
    EndpointGone(EndpointKey),
    /// A cluster is new or has changed.
    Cluster(Cluster),
    /// A cluster has gone.
    ClusterGone(ClusterName),
}

impl Snapshot {
    /// The state of a node that knows nobody yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, peers: BTreeMap::new(), endpoints: BTreeMap::new(), clusters: BTreeMap::new() }
    }

    /// The changes that make `next` of this, what goes before what comes.
    pub fn deltas_to(&self, next: &Self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        if self.settings != next.settings {
            deltas.push(Delta::Settings(Box::new(next.settings.clone())));
        }
        deltas.extend(gone(&self.endpoints, &next.endpoints).map(Delta::EndpointGone));
        deltas.extend(gone(&self.peers, &next.peers).map(Delta::PeerGone));
        deltas.extend(gone(&self.clusters, &next.clusters).map(Delta::ClusterGone));
        deltas.extend(changed(&self.clusters, &next.clusters).map(Delta::Cluster));
        deltas.extend(changed(&self.peers, &next.peers).map(Delta::Peer));
        deltas.extend(changed(&self.endpoints, &next.endpoints).map(|e| Delta::Endpoint(Box::new(e))));
        deltas
    }

    /// The change that takes `delta` back.
    pub fn inverse(&self, delta: &Delta) -> Delta {
        let Self { settings, peers, endpoints, clusters } = self;
        let peer = |id| peers.get(id).cloned().map_or_else(|| Delta::PeerGone(id.clone()), Delta::Peer);
        let endpoint = |key| {
            let old = endpoints.get(key).cloned();
            old.map_or_else(|| Delta::EndpointGone(key.clone()), |e| Delta::Endpoint(Box::new(e)))
        };
        let cluster = |name| {
            clusters.get(name).cloned().map_or_else(|| Delta::ClusterGone(name.clone()), Delta::Cluster)
        };
        match delta {
            Delta::Settings(_) => Delta::Settings(Box::new(settings.clone())),
            Delta::Peer(node) => peer(&node.id),
            Delta::PeerGone(id) => peer(id),
            Delta::Endpoint(new) => endpoint(&new.key),
            Delta::EndpointGone(key) => endpoint(key),
            Delta::Cluster(new) => cluster(&new.name),
            Delta::ClusterGone(name) => cluster(name),
        }
    }

    /// Takes up one change. A change that holds already, or the going of what is not there, changes nothing.
    pub fn apply(&mut self, delta: Delta) {
        match delta {
            Delta::Settings(settings) => self.settings = *settings,
            Delta::Peer(node) => drop(self.peers.insert(node.id.clone(), node)),
            Delta::PeerGone(id) => drop(self.peers.remove(&id)),
            Delta::Endpoint(endpoint) => drop(self.endpoints.insert(endpoint.key.clone(), *endpoint)),
            Delta::EndpointGone(key) => drop(self.endpoints.remove(&key)),
            Delta::Cluster(cluster) => drop(self.clusters.insert(cluster.name.clone(), cluster)),
            Delta::ClusterGone(name) => drop(self.clusters.remove(&name)),
        }
    }
}

fn gone<'a, K: Ord + Clone, V>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = K> + 'a {
    old.keys().filter(|key| !new.contains_key(key)).cloned()
}

fn changed<'a, K: Ord, V: PartialEq + Clone>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = V> + 'a {
    new.iter().filter(|(key, value)| old.get(key) != Some(value)).map(|(_, value)| value.clone())
}

/// What carries its own key in a snapshot.
trait Keyed {
    type Key: Ord;
    fn key(&self) -> Self::Key;
}

impl Keyed for Node {
    type Key = NodeId;
    fn key(&self) -> NodeId {
        self.id.clone()
    }
}

impl Keyed for Endpoint {
    type Key = EndpointKey;
    fn key(&self) -> EndpointKey {
        self.key.clone()
    }
}

impl Keyed for Cluster {
    type Key = ClusterName;
    fn key(&self) -> ClusterName {
        self.name.clone()
    }
}

/// JSON has only text keys: a map goes over the wire as the list of its values, which carry their keys.
mod as_list {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Keyed;

    pub(super) fn serialize<K, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map.values())
    }

    pub(super) fn deserialize<'de, V, D>(deserializer: D) -> Result<BTreeMap<V::Key, V>, D::Error>
    where
        V: Keyed + Deserialize<'de>,
        D: Deserializer<'de>,
    {
        let values = Vec::<V>::deserialize(deserializer)?;
        Ok(values.into_iter().map(|value| (value.key(), value)).collect())
    }
}
