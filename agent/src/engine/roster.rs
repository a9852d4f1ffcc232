use std::collections::{BTreeMap, BTreeSet};

use causeway_model::{Endpoint, EndpointKey};
use causeway_policy::identity::{Identities, LabelSet};

use crate::sources::{PodObject, World};

/// The endpoints of this node with the labels and identities they have now.
#[derive(Default)]
pub(super) struct Roster {
    endpoints: BTreeMap<EndpointKey, Endpoint>,
    identities: Identities,
    /// Whose identities are counted; those of before a restart are not until the world is known.
    counted: BTreeSet<EndpointKey>,
}

impl Roster {
    /// The endpoints of before a restart.
    pub(super) fn new(endpoints: impl Iterator<Item = Endpoint>) -> Self {
        let endpoints = endpoints.map(|endpoint| (endpoint.key.clone(), endpoint)).collect();
        Self { endpoints, ..Self::default() }
    }

    pub(super) fn endpoints(&self) -> &BTreeMap<EndpointKey, Endpoint> {
        &self.endpoints
    }

    /// Gives all endpoints the labels of their pods, and what else their pods may change. One whose pod's object has gone keeps
    /// what it had.
    pub(super) fn identify(&mut self, world: &World) {
        for endpoint in self.endpoints.values_mut() {
            endpoint.deny_new = denies_new(endpoint, world);
            let Some(labels) = label_set(endpoint, world) else { return };
            if !self.counted.contains(&endpoint.key) {
                endpoint.identity = self.identities.intern_again(labels.clone(), endpoint.identity);
                self.counted.insert(endpoint.key.clone());
            } else if self.identities.labels(endpoint.identity) != Some(&labels) {
                let last = endpoint.identity;
                endpoint.identity = self.identities.intern(labels.clone());
                self.identities.release(last);
            }
            endpoint.labels.clone_from(labels.labels());
        }
    }

    /// Takes in a new endpoint, and gives it its identity.
    pub(super) fn admit(&mut self, mut endpoint: Endpoint, world: &World) -> Endpoint {
        endpoint.deny_new = denies_new(&endpoint, world);
        if let Some(labels) = label_set(&endpoint, world) {
            endpoint.labels.clone_from(labels.labels());
            endpoint.identity = self.identities.intern(labels);
            self.counted.insert(endpoint.key.clone());
        }
        self.endpoints.insert(endpoint.key.clone(), endpoint.clone());
        endpoint
    }

    /// Forgets an endpoint.
    pub(super) fn dismiss(&mut self, key: &EndpointKey) {
        if let Some(endpoint) = self.endpoints.remove(key)
            && self.counted.remove(key)
        {
            self.identities.release(endpoint.identity);
        }
    }
}

/// Whether an endpoint's pod wants no new connections. Who wrote something that cannot be read meant to close it.
fn denies_new(endpoint: &Endpoint, world: &World) -> bool {
    let object = endpoint.pod.as_ref().and_then(|pod| world.pod(pod));
    object.map_or(endpoint.deny_new, |object| object.denies_new().unwrap_or(true))
}

/// What selectors may tell an endpoint by, once this cluster's name is known.
fn label_set(endpoint: &Endpoint, world: &World) -> Option<LabelSet> {
    let cluster = world.cluster.clone()?;
    Some(match &endpoint.pod {
        Some(pod) => {
            let namespace = world.namespace_labels(&cluster, &pod.namespace);
            let labels = world.pod(pod).map_or_else(|| endpoint.labels.clone(), PodObject::labels);
            LabelSet::new(cluster, pod.namespace.as_str(), namespace, labels)
        }
        None => LabelSet::new(cluster, "", BTreeMap::new(), endpoint.labels.clone()),
    })
}
