use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use causeway_model::policy::{Direction, RuleId, Rulebook, Traffic};
use causeway_model::{Delta, Endpoint, EndpointKey, Node, NodeId, NodeName, PodName, Snapshot};
use causeway_policy::{Change, Compiler, Moved, NamespaceId, NodeFacts, Presence, Workload, WorkloadId};

use super::compilers::Compilers;
use crate::sources::{PodId, PodObject, World};

/// The endpoints of this node with what the world says of them: their labels and identities, and what policy lets them do.
#[derive(Default)]
pub(super) struct Roster {
    endpoints: BTreeMap<EndpointKey, Endpoint>,
    /// Those that have a pod, by pod.
    by_pod: BTreeMap<PodName, BTreeSet<EndpointKey>>,
    /// None until this cluster's name is known.
    compilers: Option<Compilers>,
    /// The pods as rules know them.
    pods: BTreeMap<PodId, PodObject>,
}

impl Roster {
    /// The endpoints of before a restart.
    pub(super) fn new(endpoints: impl Iterator<Item = Endpoint>) -> Self {
        let mut roster = Self::default();
        endpoints.for_each(|endpoint| roster.insert(endpoint));
        roster
    }

    pub(super) fn endpoints(&self) -> &BTreeMap<EndpointKey, Endpoint> {
        &self.endpoints
    }

    /// The compiler of what is enforced.
    fn compiler(&self) -> Option<&Compiler> {
        self.compilers.as_ref().map(Compilers::enforced)
    }

    /// The rule of an audited policy that would deny a connection between an endpoint of ours, which has the one address, and a peer.
    pub(super) fn audit(
        &self,
        own: IpAddr,
        direction: Direction,
        peer: IpAddr,
        traffic: Traffic,
    ) -> Option<RuleId> {
        let compilers = self.compilers.as_ref()?;
        let endpoint = self.endpoints.values().find(|endpoint| endpoint.addresses.contains(&own))?;
        compilers.audit(&workload_id(compilers.enforced(), endpoint), direction, peer, traffic)
    }

    /// Whether any policy is audited.
    pub(super) fn audits(&self) -> bool {
        self.compilers.as_ref().is_some_and(Compilers::audits)
    }

    /// The addresses of a pod, wherever it is.
    pub(super) fn addresses_of(&self, pod: &PodName) -> Vec<IpAddr> {
        let Some(compiler) = self.compiler() else { return Vec::new() };
        let id = WorkloadId::Pod(compiler.world().cluster().clone(), pod.clone());
        let workload = compiler.world().workloads.get(&id).filter(|workload| workload.is_present());
        workload.map(|workload| workload.addresses.iter().copied().collect()).unwrap_or_default()
    }

    /// Who has an address that is a workload's, in words.
    pub(super) fn describe(&self, address: IpAddr) -> String {
        let workloads = self.compiler().into_iter().flat_map(|compiler| &compiler.world().workloads);
        let mut whose = workloads.filter(|(_, w)| w.is_present() && w.addresses.contains(&address));
        match whose.next() {
            Some((WorkloadId::Pod(cluster, pod), _)) => format!("pod {pod} of cluster {cluster}"),
            Some((WorkloadId::Attachment(_, key), _)) => key.to_string(),
            None => address.to_string(),
        }
    }

    /// What the tables of endpoints refer to.
    pub(super) fn book(&self) -> Rulebook {
        self.compiler().map(|compiler| compiler.book().clone()).unwrap_or_default()
    }

    /// Takes up news of pods, namespaces and policies. An endpoint whose pod's object has gone keeps what it had.
    pub(super) fn learn(&mut self, node: &NodeName, world: &World) {
        let Some(cluster) = &world.cluster else { return };
        let id = NodeId { cluster: cluster.clone(), name: node.clone() };
        if self.compiler().is_none_or(|compiler| compiler.world().node != id) {
            self.compilers = Some(Compilers::new(id, first_epoch()));
            self.pods.clear();
        }
        let mut changes = self.workloads(world);
        let Some(compilers) = &mut self.compilers else { return };
        changes.extend(namespaces(compilers.enforced(), world));
        compilers.learn(changes, world);
        let keys: Vec<_> = self.endpoints.keys().cloned().collect();
        keys.iter().for_each(|key| self.refresh(key, world));
    }

    /// Takes up who is in the mesh.
    pub(super) fn learn_mesh(&mut self, mesh: &Snapshot, world: &World) {
        let Some(compilers) = &mut self.compilers else { return };
        let nodes: BTreeMap<&NodeId, &Node> =
            mesh.peers.iter().chain(std::iter::once((&mesh.settings.node.id, &mesh.settings.node))).collect();
        let gone = compilers.enforced().world().nodes.keys().filter(|id| !nodes.contains_key(id)).cloned();
        let mut changes: Vec<_> = gone.map(|id| Change::Node(id, None)).collect();
        let facts = |node: &Node| {
            let object = world.nodes.get(&node.id);
            let labels = object.map(|object| object.labels.clone()).unwrap_or_default();
            NodeFacts { labels, addresses: node.stack().collect() }
        };
        changes.extend(nodes.values().map(|node| Change::Node(node.id.clone(), Some(facts(node)))));
        let of_clusters = mesh.clusters.values().flat_map(|cluster| &cluster.pod_prefixes);
        let of_nodes = nodes.values().flat_map(|node| &node.pod_prefixes);
        let prefixes: BTreeSet<_> = of_clusters.chain(of_nodes).copied().collect();
        changes.push(Change::Clusters(prefixes.into_iter().collect()));
        let moved = compilers.apply(changes);
        self.refresh_moved(&moved, world);
    }

    fn insert(&mut self, endpoint: Endpoint) {
        if let Some(pod) = &endpoint.pod {
            self.by_pod.entry(pod.clone()).or_default().insert(endpoint.key.clone());
        }
        self.endpoints.insert(endpoint.key.clone(), endpoint);
    }

    fn remove(&mut self, key: &EndpointKey) -> Option<Endpoint> {
        let endpoint = self.endpoints.remove(key)?;
        if let Some(pod) = &endpoint.pod
            && let Some(keys) = self.by_pod.get_mut(pod)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.by_pod.remove(pod);
            }
        }
        Some(endpoint)
    }

    /// The attachments of a workload to this node.
    fn of(&self, id: &WorkloadId) -> Vec<EndpointKey> {
        match id {
            WorkloadId::Pod(cluster, pod) => {
                let ours = self.compiler().is_some_and(|c| c.world().cluster() == cluster);
                let keys = self.by_pod.get(pod).filter(|_| ours);
                keys.into_iter().flatten().cloned().collect()
            }
            WorkloadId::Attachment(_, key) => {
                let endpoint = self.endpoints.get(key).filter(|endpoint| endpoint.pod.is_none());
                endpoint.into_iter().map(|endpoint| endpoint.key.clone()).collect()
            }
        }
    }

    /// Takes in a new endpoint, and gives it its identity and its tables; what of the state has changed with it.
    pub(super) fn admit(&mut self, endpoint: Endpoint, world: &World) -> Vec<Delta> {
        let key = endpoint.key.clone();
        let id = self.compiler().map(|compiler| workload_id(compiler, &endpoint));
        self.insert(endpoint);
        let (mut deltas, concerned) = id.map_or_else(Default::default, |id| self.tell(&id, world));
        self.refresh(&key, world);
        deltas.extend(self.told(concerned.into_iter().chain([key])));
        deltas
    }

    /// Forgets an endpoint; what of the state has changed with it.
    pub(super) fn dismiss(&mut self, key: &EndpointKey, world: &World) -> Vec<Delta> {
        let Some(endpoint) = self.remove(key) else { return Vec::new() };
        let id = self.compiler().map(|compiler| workload_id(compiler, &endpoint));
        let (mut deltas, concerned) = id.map_or_else(Default::default, |id| self.tell(&id, world));
        deltas.extend(self.told(concerned));
        deltas.push(Delta::EndpointGone(key.clone()));
        deltas
    }

    /// What is said of endpoints.
    fn told(&self, keys: impl IntoIterator<Item = EndpointKey>) -> Vec<Delta> {
        let keys: BTreeSet<_> = keys.into_iter().collect();
        let endpoints = keys.iter().filter_map(|key| self.endpoints.get(key));
        endpoints.map(|endpoint| Delta::Endpoint(Box::new(endpoint.clone()))).collect()
    }

    /// Tells the rules what has become of one workload; what tables refer to and is new, and the endpoints concerned.
    fn tell(&mut self, id: &WorkloadId, world: &World) -> (Vec<Delta>, Vec<EndpointKey>) {
        let workload = self.workload(id, world);
        let Some(compilers) = &mut self.compilers else { return Default::default() };
        let moved = compilers.apply(vec![Change::Workload(id.clone(), workload)]);
        let deltas = moved.deltas(compilers.enforced().book());
        (deltas, self.refresh_moved(&moved, world))
    }

    /// Gives the endpoints whose tables have moved what they have now; which these are.
    fn refresh_moved(&mut self, moved: &Moved, world: &World) -> Vec<EndpointKey> {
        let ids: BTreeSet<_> = moved.tables.iter().map(|(id, _)| id).collect();
        let concerned: Vec<_> = ids.into_iter().flat_map(|id| self.of(id)).collect();
        concerned.iter().for_each(|key| self.refresh(key, world));
        concerned
    }

    /// Gives an endpoint what its pod's object says, and what follows from it.
    fn refresh(&mut self, key: &EndpointKey, world: &World) {
        let compiler = self.compilers.as_ref().map(Compilers::enforced);
        let (Some(endpoint), Some(compiler)) = (self.endpoints.get_mut(key), compiler) else { return };
        let id = workload_id(compiler, endpoint);
        let object = endpoint.pod.as_ref().and_then(|pod| world.pod(pod));
        if let Some(object) = object {
            // Who wrote something that cannot be read meant to close it.
            endpoint.deny_new = object.denies_new().unwrap_or(true);
            endpoint.labels = object.labels();
        }
        match (compiler.identity(&id), compiler.tables(&id)) {
            (Some(identity), Some(tables)) => {
                endpoint.identity = identity;
                endpoint.policy.clone_from(tables);
            }
            // Nothing is known of what it may.
            _ => endpoint.deny_new = true,
        }
    }

    /// The pods that are new, gone or not what they were, and the endpoints.
    fn workloads(&mut self, world: &World) -> Vec<Change> {
        let same = |id: &PodId, pod: &PodObject| self.pods.get(id).is_some_and(|before| before.is(pod));
        let changed = world.pods.iter().filter(|(id, pod)| !same(id, pod)).map(|(id, _)| id);
        let gone = self.pods.keys().filter(|id| !world.pods.contains_key(id));
        let mut ids: BTreeSet<_> =
            changed.chain(gone).map(|id| WorkloadId::Pod(id.cluster.clone(), id.pod.clone())).collect();
        if let Some(compiler) = self.compiler() {
            ids.extend(self.endpoints.values().map(|endpoint| workload_id(compiler, endpoint)));
        }
        self.pods.clone_from(&world.pods);
        ids.into_iter()
            .map(|id| (self.workload(&id, world), id))
            .map(|(w, id)| Change::Workload(id, w))
            .collect()
    }

    /// What a workload is: what its object says, and the addresses that it really has where it is an endpoint of ours.
    fn workload(&self, id: &WorkloadId, world: &World) -> Option<Workload> {
        let here: Vec<_> = self.of(id).iter().filter_map(|key| self.endpoints.get(key)).cloned().collect();
        let object = match id {
            WorkloadId::Pod(cluster, pod) => {
                world.pods.get(&PodId { cluster: cluster.clone(), pod: pod.clone() })
            }
            WorkloadId::Attachment(..) => None,
        };
        let told = object.map(|object| {
            let mut told = Workload::of_pod(object.object(), false);
            if told.addresses.is_empty() {
                // Before its status tells, those that it must get.
                told.addresses.extend(object.wanted_addresses().into_iter().flatten());
            }
            told
        });
        let Some(first) = here.first() else { return told };
        let addresses = here.iter().flat_map(|endpoint| endpoint.addresses.iter().copied()).collect();
        let labels = first.labels.clone();
        let unknown = || Workload {
            labels,
            addresses: BTreeSet::new(),
            ports: BTreeSet::new(),
            presence: Presence::Living,
            local: true,
        };
        // It has its addresses until its DEL, whatever became of its processes.
        Some(Workload { addresses, presence: Presence::Living, local: true, ..told.unwrap_or_else(unknown) })
    }
}

fn workload_id(compiler: &Compiler, endpoint: &Endpoint) -> WorkloadId {
    let cluster = compiler.world().cluster().clone();
    match &endpoint.pod {
        Some(pod) => WorkloadId::Pod(cluster, pod.clone()),
        None => WorkloadId::Attachment(cluster, endpoint.key.clone()),
    }
}

/// The namespaces that are new, gone or not what they were.
fn namespaces(compiler: &Compiler, world: &World) -> Vec<Change> {
    let known = &compiler.world().namespaces;
    let id =
        |(cluster, name): &(_, String)| NamespaceId { cluster: Clone::clone(cluster), name: name.clone() };
    let gone =
        known.keys().filter(|id| !world.namespaces.contains_key(&(id.cluster.clone(), id.name.clone())));
    let gone = gone.map(|id| Change::Namespace(id.clone(), None));
    let changed = world.namespaces.iter().map(|(key, labels)| (id(key), labels));
    let changed = changed.filter(|(id, labels)| known.get(id) != Some(labels));
    gone.chain(changed.map(|(id, labels)| Change::Namespace(id, Some(labels.clone())))).collect()
}

/// Where epochs begin: beyond those of any earlier agent, whose marks may still be on flows.
fn first_epoch() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // In 64ths of a second: no endpoint's tables move that often for long. It begins anew after two years.
    (since.as_millis() / 16) as u32
}
