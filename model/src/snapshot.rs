use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::connection::ConnectionRules;
use crate::policy::{RuleId, RuleNumber, Rulebook, Stage, StageId};
use crate::service::{Backends, BackendsId, Frontend, Service, Services};
use crate::{Cluster, ClusterName, Endpoint, EndpointKey, Family, Identity, NameServer, Node, NodeId, Vni};

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

/// Who translates services in the node's own stack: for its processes, and for clients from outside. What pods ask for is always
/// ours to translate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostServices {
    /// Somebody else, kube-proxy by name, or nobody.
    #[default]
    Deferred,
    /// We do.
    Own,
}

/// Which packets of pods leave the node with an address of the node's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Masquerade {
    /// Beside the pods and nodes of every known cluster, who sees pods' own addresses.
    #[serde(default)]
    pub except: Vec<IpNetwork>,
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
    /// Who translates services in the node's own stack.
    #[serde(default)]
    pub host_services: HostServices,
    /// What pods send to the world carries the node's address; none: their own.
    #[serde(default)]
    pub masquerade: Option<Masquerade>,
    /// Where the agent answers for names of the mesh.
    #[serde(default)]
    pub names: NameServer,
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
    /// What the tables of the endpoints refer to.
    #[serde(default)]
    pub policy: Arc<Rulebook>,
    /// The services, as they are on this node.
    #[serde(default)]
    pub services: Arc<Services>,
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
    /// A stage of policy is new or has changed.
    Stage(StageId, Arc<Stage>),
    /// A stage has gone.
    StageGone(StageId),
    /// An address is this identity's.
    Identity(IpAddr, Identity),
    /// Nobody says any more that an address is theirs.
    IdentityGone(IpAddr),
    /// The pod prefixes of all known clusters are these.
    PodPrefixes(Vec<IpNetwork>),
    /// A number is this rule's.
    Rule(RuleNumber, RuleId),
    /// A number is no rule's any more.
    RuleGone(RuleNumber),
    /// What becomes of clients at a frontend, new or changed.
    Service(Frontend, Box<Service>),
    /// Nobody is served at a frontend any more.
    ServiceGone(Frontend),
    /// Backends are new or have changed.
    Backends(BackendsId, Arc<Backends>),
    /// Nobody refers to these backends any more.
    BackendsGone(BackendsId),
    /// An address is a service's and nothing else.
    ServiceAddress(IpAddr),
    /// It is no more.
    ServiceAddressGone(IpAddr),
    /// Addresses of services come from these.
    ServicePrefixes(Vec<IpNetwork>),
}

impl Delta {
    /// Whether it is about what tables of policy refer to, and nothing else.
    pub fn is_of_policy(&self) -> bool {
        matches!(
            self,
            Self::Stage(..)
                | Self::StageGone(_)
                | Self::Identity(..)
                | Self::IdentityGone(_)
                | Self::PodPrefixes(_)
                | Self::Rule(..)
                | Self::RuleGone(_)
        )
    }

    /// Whether it is about services, and nothing else.
    pub fn is_of_services(&self) -> bool {
        matches!(
            self,
            Self::Service(..)
                | Self::ServiceGone(_)
                | Self::Backends(..)
                | Self::BackendsGone(_)
                | Self::ServiceAddress(_)
                | Self::ServiceAddressGone(_)
                | Self::ServicePrefixes(_)
        )
    }
}

impl Snapshot {
    /// The state of a node that knows nobody yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            peers: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            clusters: BTreeMap::new(),
            policy: Arc::default(),
            services: Arc::default(),
        }
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
        if !Arc::ptr_eq(&self.policy, &next.policy) {
            deltas.extend(self.policy.deltas_to(&next.policy));
        }
        if !Arc::ptr_eq(&self.services, &next.services) {
            deltas.extend(self.services.deltas_to(&next.services));
        }
        deltas.extend(changed(&self.endpoints, &next.endpoints).map(|e| Delta::Endpoint(Box::new(e))));
        deltas
    }

    /// The rulebook, to be changed: a copy where somebody else has it, too.
    fn book(&mut self) -> &mut Rulebook {
        Arc::make_mut(&mut self.policy)
    }

    /// The services, to be changed: a copy where somebody else has them, too.
    fn served(&mut self) -> &mut Services {
        Arc::make_mut(&mut self.services)
    }

    /// The change that takes `delta` back.
    pub fn inverse(&self, delta: &Delta) -> Delta {
        let Self { settings, peers, endpoints, clusters, policy, services } = self;
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
            Delta::Stage(id, _) | Delta::StageGone(id) => policy.stage(*id),
            Delta::Identity(address, _) | Delta::IdentityGone(address) => policy.identity_of(*address),
            Delta::PodPrefixes(_) => Delta::PodPrefixes(policy.peers.clusters.clone()),
            Delta::Rule(number, _) | Delta::RuleGone(number) => policy.rule(*number),
            Delta::Service(frontend, _) | Delta::ServiceGone(frontend) => services.service(*frontend),
            Delta::Backends(id, _) | Delta::BackendsGone(id) => services.backends_of(*id),
            Delta::ServiceAddress(address) | Delta::ServiceAddressGone(address) => services.address(*address),
            Delta::ServicePrefixes(_) => Delta::ServicePrefixes(services.prefixes.clone()),
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
            Delta::Stage(id, stage) => drop(self.book().stages.insert(id, stage)),
            Delta::StageGone(id) => drop(self.book().stages.remove(&id)),
            Delta::Identity(address, identity) => {
                self.book().peers.addresses.insert(address, identity);
            }
            Delta::IdentityGone(address) => drop(self.book().peers.addresses.remove(&address)),
            Delta::PodPrefixes(prefixes) => self.book().peers.clusters = prefixes,
            Delta::Rule(number, id) => drop(self.book().rules.insert(number, id)),
            Delta::RuleGone(number) => drop(self.book().rules.remove(&number)),
            Delta::Service(frontend, service) => {
                self.served().frontends.insert(frontend, *service);
            }
            Delta::ServiceGone(frontend) => drop(self.served().frontends.remove(&frontend)),
            Delta::Backends(id, backends) => drop(self.served().backends.insert(id, backends)),
            Delta::BackendsGone(id) => drop(self.served().backends.remove(&id)),
            Delta::ServiceAddress(address) => drop(self.served().addresses.insert(address)),
            Delta::ServiceAddressGone(address) => drop(self.served().addresses.remove(&address)),
            Delta::ServicePrefixes(prefixes) => self.served().prefixes = prefixes,
        }
    }
}

impl Rulebook {
    /// What is said of a stage: itself, or that there is none.
    pub fn stage(&self, id: StageId) -> Delta {
        self.stages.get(&id).map_or(Delta::StageGone(id), |stage| Delta::Stage(id, stage.clone()))
    }

    /// What is said of an address: whose it is, or that it is nobody's.
    pub fn identity_of(&self, address: IpAddr) -> Delta {
        let identity = self.peers.addresses.get(&address);
        identity.map_or(Delta::IdentityGone(address), |identity| Delta::Identity(address, *identity))
    }

    /// What is said of a rule's number: whose it is, or that it is free.
    pub fn rule(&self, number: RuleNumber) -> Delta {
        self.rules.get(&number).map_or(Delta::RuleGone(number), |id| Delta::Rule(number, id.clone()))
    }

    fn deltas_to(&self, next: &Self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        if self.peers.clusters != next.peers.clusters {
            deltas.push(Delta::PodPrefixes(next.peers.clusters.clone()));
        }
        let addresses = different(&self.peers.addresses, &next.peers.addresses);
        deltas.extend(addresses.into_iter().map(|address| next.identity_of(address)));
        deltas.extend(different(&self.rules, &next.rules).into_iter().map(|number| next.rule(number)));
        deltas.extend(different(&self.stages, &next.stages).into_iter().map(|id| next.stage(id)));
        deltas
    }
}

impl Services {
    /// What is said of a frontend: what becomes of clients there, or that nobody is served.
    pub fn service(&self, frontend: Frontend) -> Delta {
        let service = self.frontends.get(&frontend).cloned();
        service.map_or(Delta::ServiceGone(frontend), |service| Delta::Service(frontend, Box::new(service)))
    }

    /// What is said of backends: themselves, or that there are none.
    pub fn backends_of(&self, id: BackendsId) -> Delta {
        self.backends
            .get(&id)
            .map_or(Delta::BackendsGone(id), |backends| Delta::Backends(id, backends.clone()))
    }

    /// What is said of an address: that it is a service's, or that it is not.
    pub fn address(&self, address: IpAddr) -> Delta {
        match self.addresses.contains(&address) {
            true => Delta::ServiceAddress(address),
            false => Delta::ServiceAddressGone(address),
        }
    }

    /// The changes that make `next` of these: whom a frontend refers to is there before it and gone after it.
    pub fn deltas_to(&self, next: &Self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        if self.prefixes != next.prefixes {
            deltas.push(Delta::ServicePrefixes(next.prefixes.clone()));
        }
        let addresses = self.addresses.symmetric_difference(&next.addresses);
        deltas.extend(addresses.map(|address| next.address(*address)));
        let (gone, changed): (Vec<_>, Vec<_>) = different(&self.backends, &next.backends)
            .into_iter()
            .map(|id| next.backends_of(id))
            .partition(|delta| matches!(delta, Delta::BackendsGone(_)));
        deltas.extend(changed);
        let frontends = different(&self.frontends, &next.frontends);
        deltas.extend(frontends.into_iter().map(|frontend| next.service(frontend)));
        deltas.extend(gone);
        deltas
    }
}

/// The keys that have another value, or none, in the one than in the other.
fn different<K: Ord + Copy, V: PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> BTreeSet<K> {
    let gone = old.keys().filter(|key| !new.contains_key(key));
    let changed = new.iter().filter(|(key, value)| old.get(key) != Some(value)).map(|(key, _)| key);
    gone.chain(changed).copied().collect()
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
