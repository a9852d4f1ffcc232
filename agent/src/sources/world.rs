use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::sync::Arc;
use std::time::Duration;

use causeway_model::{Cluster, ClusterName, Node, NodeId, PodName};
use causeway_policy::{PolicyKey, Read, namespace_labels};
use causeway_services::{Read as Served, ServiceName, SliceName};
use imbl::OrdMap;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::documents::{Parsed, Placed};
use super::objects::{Object, ObjectKey};
use super::offers::{Offer, Offers};

/// The directory of other clusters within a directory of manifests.
pub(super) const CLUSTERS: &str = "clusters";

/// Every object that is known, of this cluster and of others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    /// This cluster's name, once its Cluster object is there; without it no object of this cluster is here either.
    pub cluster: Option<ClusterName>,
    /// The clusters that have a Cluster object, this one among them.
    pub clusters: BTreeMap<ClusterName, ClusterObject>,
    /// The nodes of all clusters.
    pub nodes: BTreeMap<NodeId, NodeObject>,
    /// The labels of the namespaces that have an object; [`World::namespace_labels`] adds the implied ones.
    pub namespaces: BTreeMap<(ClusterName, String), BTreeMap<String, String>>,
    /// The pods of all clusters.
    pub pods: BTreeMap<PodId, PodObject>,
    /// The policies of this cluster, and what is to be told of each.
    pub policies: BTreeMap<PolicyKey, Arc<Read>>,
    /// The services of this cluster that have an object.
    pub services: OrdMap<ServiceName, Arc<Served>>,
    /// Their endpoint slices.
    pub slices: OrdMap<SliceName, Arc<Served>>,
    /// What all clusters say of their services to each other.
    pub offers: BTreeMap<ClusterName, Arc<Offers>>,
    /// Other clusters that are marked lost, and how old what is known of them was then.
    pub lost: BTreeMap<ClusterName, Duration>,
    /// What is wrong with the source's objects: each names its place and its object.
    pub problems: Vec<String>,
    /// How many objects of other kinds there are, by kind.
    pub ignored: BTreeMap<String, usize>,
}

/// A Cluster object.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterObject {
    /// The cluster.
    pub cluster: Cluster,
    /// When the object was made.
    pub created: Option<Time>,
    /// What whoever wrote the objects calls this state of them (`causeway.dev/revision`).
    pub revision: Option<String>,
}

/// A Node object. Its prefixes have no host bits and can be routed.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeObject {
    /// The node.
    pub node: Node,
    /// The labels that policies may choose it by.
    pub labels: BTreeMap<String, String>,
    /// When the object was made.
    pub created: Option<Time>,
}

/// A pod and the cluster it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId {
    /// The cluster.
    pub cluster: ClusterName,
    /// Namespace and name there.
    pub pod: PodName,
}

/// A Pod object. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct PodObject(Arc<Pod>);

impl PodObject {
    pub(super) fn new(pod: Arc<Pod>) -> Self {
        Self(pod)
    }

    /// What is known of a pod that no object tells of: the annotations that the runtime passes on.
    pub(crate) fn of_annotations(annotations: &BTreeMap<String, String>) -> Self {
        let metadata = ObjectMeta { annotations: Some(annotations.clone()), ..ObjectMeta::default() };
        Self(Arc::new(Pod { metadata, ..Pod::default() }))
    }

    /// Whether this is the very same reading of an object.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The object as Kubernetes has it.
    pub fn object(&self) -> &Pod {
        &self.0
    }

    /// Its labels.
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.0.metadata.labels.clone().unwrap_or_default()
    }
}

/// What a file's new state changes in a world.
pub(super) struct Difference<'a> {
    gone: Vec<&'a Placed>,
    /// What is new or not what it was.
    new: Vec<&'a Placed>,
}

impl Difference<'_> {
    pub fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.new.is_empty()
    }
}

/// Whose objects a file holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    /// This cluster's.
    Own,
    /// Another cluster's.
    Other(ClusterName),
}

impl Scope {
    /// The scope of a file by its path within the directory of manifests.
    pub fn of(relative: &Path) -> Result<Self, String> {
        let parts: Vec<_> = relative.components().collect();
        match parts[..] {
            [_file] => Ok(Scope::Own),
            [Component::Normal(clusters), Component::Normal(name), _file] if clusters == CLUSTERS => {
                let name = name.to_string_lossy().into_owned();
                ClusterName::try_from(name).map(Scope::Other).map_err(|error| error.to_string())
            }
            _ => Err(format!("manifests lie at the top or in {CLUSTERS}/NAME/")),
        }
    }
}

impl World {
    /// The world that these files tell of: paths within a directory of manifests, and texts.
    pub fn of_files<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut parsed = BTreeMap::new();
        let mut problems = Vec::new();
        for (path, text) in files {
            match Scope::of(Path::new(path)) {
                Ok(scope) => drop(parsed.insert(Path::new(path), (scope, Parsed::read(path, text)))),
                Err(problem) => problems.push(format!("{path}: {problem}")),
            }
        }
        Self::assemble(parsed.values().map(|(scope, parsed)| (scope, parsed)), problems)
    }

    /// Puts the files together, in the order of their paths: where two define one object, the first one wins.
    pub(super) fn assemble<'a>(
        files: impl Iterator<Item = (&'a Scope, &'a Parsed)> + Clone,
        problems: Vec<String>,
    ) -> Self {
        let mut world = World { problems, ..World::default() };
        let own =
            files.clone().filter(|(scope, _)| **scope == Scope::Own).flat_map(|(_, parsed)| &parsed.objects);
        world.cluster = own.clone().find_map(|placed| match &placed.object {
            Object::Cluster { cluster, .. } => Some(cluster.name.clone()),
            _ => None,
        });
        let mut places = BTreeMap::new();
        for (scope, parsed) in files {
            world.problems.extend(parsed.problems.iter().cloned());
            if let (Scope::Other(cluster), Some(age)) = (scope, parsed.lost) {
                world.lost.insert(cluster.clone(), age);
            }
            for (kind, count) in &parsed.ignored {
                *world.ignored.entry(kind.clone()).or_default() += count;
            }
            for placed in &parsed.objects {
                world.place(scope, placed, &mut places);
            }
        }
        world
    }

    /// What a file's new state changes, where this world with that change is what all files together say. None where it may not be.
    pub(super) fn difference<'a>(
        &self,
        scope: &Scope,
        before: &'a Parsed,
        now: &'a Parsed,
    ) -> Option<Difference<'a>> {
        // With a problem anywhere this file's objects may not be the ones that count.
        let plain = self.problems.is_empty() && now.problems.is_empty();
        let plain = plain && (&before.ignored, before.lost) == (&now.ignored, now.lost);
        let name = self.name_in(scope)?;
        let was: BTreeMap<_, _> = before.objects.iter().map(|placed| (&placed.key, placed)).collect();
        let is: BTreeMap<_, _> = now.objects.iter().map(|placed| (&placed.key, placed)).collect();
        let gone: Vec<_> =
            was.iter().filter(|(key, _)| !is.contains_key(*key)).map(|(_, placed)| *placed).collect();
        let old = |placed: &Placed| was.get(&placed.key).map(|old| &old.object);
        let new: Vec<_> = is.values().copied().filter(|placed| old(placed) != Some(&placed.object)).collect();
        // An object that another file may define, too, without its being here: other clusters' are not all kept.
        let came = |placed: &&Placed| !was.contains_key(&placed.key);
        let contested = match scope {
            Scope::Own => new.iter().filter(|placed| came(placed)).any(|placed| self.has(&name, placed)),
            Scope::Other(_) => new.iter().any(came),
        };
        let twice = is.len() != now.objects.len() || was.len() != before.objects.len();
        let of_cluster =
            gone.iter().chain(&new).any(|placed| matches!(placed.object, Object::Cluster { .. }));
        (plain && !twice && !contested && !of_cluster).then_some(Difference { gone, new })
    }

    /// Takes up such a difference.
    pub(super) fn renew(&mut self, scope: &Scope, Difference { gone, new }: Difference<'_>) {
        let Some(cluster) = self.name_in(scope) else { return };
        gone.into_iter().for_each(|placed| self.remove(&cluster, placed));
        new.into_iter().for_each(|placed| self.insert(cluster.clone(), placed));
    }

    /// The cluster whose objects are in such a file, where that is known.
    fn name_in(&self, scope: &Scope) -> Option<ClusterName> {
        match scope {
            Scope::Other(name) if Some(name) == self.cluster.as_ref() => None,
            Scope::Other(name) => Some(name.clone()),
            Scope::Own => self.cluster.clone(),
        }
    }

    /// Takes up one object, if its place and nobody before it speak against it.
    fn place<'a>(
        &mut self,
        scope: &Scope,
        placed: &'a Placed,
        places: &mut BTreeMap<(ClusterName, &'a ObjectKey), &'a str>,
    ) {
        let Placed { key, place, object } = placed;
        let cluster = match (scope, &self.cluster) {
            // Nothing can be said of this cluster's objects before the cluster itself is known.
            (Scope::Own, None) => return,
            (Scope::Own, Some(own)) => own.clone(),
            (Scope::Other(name), Some(own)) if name == own => {
                let own = format!("{place}: {key}: {CLUSTERS}/{name}/ has the name of this cluster itself");
                return self.problems.push(own);
            }
            (Scope::Other(name), _) => name.clone(),
        };
        if let Object::Cluster { cluster: told, .. } = object
            && told.name != cluster
        {
            let told = format!("{place}: {key}: this is the place of cluster {cluster}'s objects");
            return self.problems.push(told);
        }
        if let Some(first) = places.get(&(cluster.clone(), key)) {
            return self.problems.push(format!("{place}: {key}: defined by {first} already"));
        }
        places.insert((cluster.clone(), key), place);
        self.insert(cluster, placed);
    }

    fn insert(&mut self, name: ClusterName, placed: &Placed) {
        match placed.object.clone() {
            Object::Cluster { cluster, created, revision } => {
                self.clusters.insert(name, ClusterObject { cluster, created, revision });
            }
            Object::Node(written) => {
                let id = written.id_in(&name);
                let vtep_mac = Node::derived_vtep_mac(&id);
                let (underlay, pod_prefixes) = (written.underlay, written.pod_prefixes);
                let node = Node { id: id.clone(), underlay, vtep_mac, pod_prefixes };
                self.nodes.insert(id, NodeObject { node, labels: written.labels, created: written.created });
            }
            Object::Namespace { labels } => {
                self.namespaces.insert((name, placed.key.name.clone()), labels);
            }
            Object::Pod(pod) => {
                self.pods.insert(PodId { cluster: name, pod: pod.name() }, pod);
            }
            // Another cluster's policies are for its own pods.
            Object::Policy(read) if Some(&name) == self.cluster.as_ref() => {
                self.policies.insert(read.report.policy.clone(), read);
            }
            Object::Policy(_) => {}
            Object::Served(read, offer) => {
                // Another cluster's services are its own nodes' to keep.
                if Some(&name) == self.cluster.as_ref() {
                    match &*read {
                        Served::Service(name, ..) => drop(self.services.insert(name.clone(), read)),
                        Served::Slice(name, ..) => drop(self.slices.insert(name.clone(), read)),
                    }
                }
                self.offer(name, &placed.key, offer);
            }
            Object::Offer(offer) => self.offer(name, &placed.key, offer),
        }
    }

    fn offer(&mut self, cluster: ClusterName, key: &ObjectKey, offer: Offer) {
        Arc::make_mut(self.offers.entry(cluster).or_default()).put(offered(key), offer);
    }

    fn remove(&mut self, name: &ClusterName, Placed { key, object, .. }: &Placed) {
        match object {
            Object::Cluster { .. } => drop(self.clusters.remove(name)),
            Object::Node(written) => drop(self.nodes.remove(&written.id_in(name))),
            Object::Namespace { .. } => drop(self.namespaces.remove(&(name.clone(), key.name.clone()))),
            Object::Pod(pod) => drop(self.pods.remove(&PodId { cluster: name.clone(), pod: pod.name() })),
            Object::Policy(read) if Some(name) == self.cluster.as_ref() => {
                self.policies.remove(&read.report.policy);
            }
            Object::Policy(_) => {}
            Object::Served(read, offer) => {
                if Some(name) == self.cluster.as_ref() {
                    match &**read {
                        Served::Service(name, ..) => drop(self.services.remove(name)),
                        Served::Slice(name, ..) => drop(self.slices.remove(name)),
                    }
                }
                self.withdraw(name, key, offer);
            }
            Object::Offer(offer) => self.withdraw(name, key, offer),
        }
    }

    fn withdraw(&mut self, cluster: &ClusterName, key: &ObjectKey, offer: &Offer) {
        let Some(offers) = self.offers.get_mut(cluster) else { return };
        Arc::make_mut(offers).remove(&offered(key), offer);
        // As if it had never said anything.
        if **offers == Offers::default() {
            self.offers.remove(cluster);
        }
    }

    /// Whether an object of this key is here.
    fn has(&self, name: &ClusterName, Placed { key, object, .. }: &Placed) -> bool {
        match object {
            Object::Cluster { .. } => self.clusters.contains_key(name),
            Object::Node(written) => self.nodes.contains_key(&written.id_in(name)),
            Object::Namespace { .. } => self.namespaces.contains_key(&(name.clone(), key.name.clone())),
            Object::Pod(pod) => self.pods.contains_key(&PodId { cluster: name.clone(), pod: pod.name() }),
            Object::Policy(read) => self.policies.contains_key(&read.report.policy),
            Object::Served(read, _) => match &**read {
                Served::Service(name, ..) => self.services.contains_key(name),
                Served::Slice(name, ..) => self.slices.contains_key(name),
            },
            Object::Offer(offer) => {
                self.offers.get(name).is_some_and(|offers| offers.has(&offered(key), offer))
            }
        }
    }

    /// A pod of this cluster.
    pub fn pod(&self, pod: &PodName) -> Option<&PodObject> {
        self.pods.get(&PodId { cluster: self.cluster.clone()?, pod: pod.clone() })
    }

    /// What this cluster's objects are called as they are here.
    pub fn revision(&self) -> Option<&str> {
        self.clusters.get(self.cluster.as_ref()?)?.revision.as_deref()
    }

    /// A namespace's labels with those that are implied, whether or not it has an object.
    pub fn namespace_labels(&self, cluster: &ClusterName, namespace: &str) -> BTreeMap<String, String> {
        let written = self.namespaces.get(&(cluster.clone(), namespace.to_owned()));
        namespace_labels(self.cluster.as_ref(), cluster, namespace, written.cloned().unwrap_or_default())
    }
}

/// What others call an object that is offered to them.
fn offered(key: &ObjectKey) -> causeway_mesh::ServiceName {
    causeway_mesh::ServiceName { namespace: key.namespace.clone(), name: key.name.clone() }
}
