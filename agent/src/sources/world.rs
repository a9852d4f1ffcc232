use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::sync::Arc;

use causeway_model::{Cluster, ClusterName, Node, NodeId, PodName};
use causeway_policy::{PolicyKey, Read, namespace_labels};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::documents::{Parsed, Placed};
use super::objects::{Object, ObjectKey};

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
}

/// A Node object. Its prefixes have no host bits and can be routed.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeObject {
    /// The node.
    pub node: Node,
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

    /// The object as Kubernetes has it.
    pub fn object(&self) -> &Pod {
        &self.0
    }

    /// Its labels.
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.0.metadata.labels.clone().unwrap_or_default()
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
            for (kind, count) in &parsed.ignored {
                *world.ignored.entry(kind.clone()).or_default() += count;
            }
            for placed in &parsed.objects {
                world.place(scope, placed, &mut places);
            }
        }
        if !world.policies.is_empty() {
            let many = world.policies.len();
            world
                .problems
                .push(format!("policies: {many} are read and none is enforced: no data path takes them yet"));
        }
        world
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
            Object::Cluster { cluster, created } => {
                self.clusters.insert(name, ClusterObject { cluster, created });
            }
            Object::Node(written) => {
                let id = NodeId { cluster: name, name: written.name };
                let vtep_mac = Node::derived_vtep_mac(&id);
                let (underlay, pod_prefixes) = (written.underlay, written.pod_prefixes);
                let node = Node { id: id.clone(), underlay, vtep_mac, pod_prefixes };
                self.nodes.insert(id, NodeObject { node, created: written.created });
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
        }
    }

    /// A pod of this cluster.
    pub fn pod(&self, pod: &PodName) -> Option<&PodObject> {
        self.pods.get(&PodId { cluster: self.cluster.clone()?, pod: pod.clone() })
    }

    /// A namespace's labels with those that are implied, whether or not it has an object.
    pub fn namespace_labels(&self, cluster: &ClusterName, namespace: &str) -> BTreeMap<String, String> {
        let written = self.namespaces.get(&(cluster.clone(), namespace.to_owned()));
        namespace_labels(self.cluster.as_ref(), cluster, namespace, written.cloned().unwrap_or_default())
    }
}
