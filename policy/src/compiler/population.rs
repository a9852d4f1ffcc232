//! Who is there: identities of workloads, and whose each address is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use causeway_model::{Identity, NodeId, PodName};

use crate::identity::{Identities, LabelSet, is_filtered};
use crate::policy::Policy;
use crate::world::{NamespaceId, WorkloadId, World};

/// Everybody.
#[derive(Debug, Default)]
pub(super) struct Population {
    identities: Identities,
    held: BTreeMap<WorkloadId, Held>,
    /// Who says that an address is theirs: one that is there twice counts twice.
    claims: HashMap<IpAddr, Vec<Identity>>,
    nodes: HashMap<IpAddr, BTreeSet<NodeId>>,
    /// Labels that are left out of identities unless a selector speaks of them, and how many do.
    wanted: BTreeMap<String, usize>,
    /// Nobody has been identified since these changed.
    wanted_changed: bool,
    moved_addresses: BTreeSet<IpAddr>,
}

/// What a workload that is there has.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    identity: Identity,
    addresses: BTreeSet<IpAddr>,
    local: bool,
}

/// What a batch of changes makes of everybody.
#[derive(Debug, Default)]
pub(super) struct Turnover {
    /// The addresses that may be another's now.
    pub addresses: BTreeSet<IpAddr>,
    /// The identities that nobody had before.
    pub born: BTreeSet<Identity>,
    /// The identities that all who had them have still, under other labels: those that they had before.
    pub relabelled: BTreeMap<Identity, Arc<LabelSet>>,
    /// The identities that nobody has any more.
    pub dead: BTreeMap<Identity, Arc<LabelSet>>,
    /// The endpoints of this node that are new, gone or somebody else, with the identities they had and have.
    pub endpoints: Vec<(WorkloadId, Option<Identity>, Option<Identity>)>,
}

impl Population {
    /// Sets of labels and their numbers.
    pub(super) fn identities(&self) -> &Identities {
        &self.identities
    }

    /// What a workload that is there is.
    pub(super) fn identity(&self, id: &WorkloadId) -> Option<Identity> {
        self.held.get(id).map(|held| held.identity)
    }

    /// A node has other addresses than before.
    pub(super) fn move_node(&mut self, node: &NodeId, before: &BTreeSet<IpAddr>, now: &BTreeSet<IpAddr>) {
        for address in before.difference(now) {
            if let Some(nodes) = self.nodes.get_mut(address) {
                nodes.remove(node);
                if nodes.is_empty() {
                    self.nodes.remove(address);
                }
            }
        }
        for address in now {
            self.nodes.entry(*address).or_default().insert(node.clone());
        }
        self.moved_addresses.extend(before.symmetric_difference(now));
    }

    /// A policy is in the place of an older one.
    pub(super) fn want_labels(&mut self, old: Option<&Policy>, new: Option<&Policy>) {
        let filtered = |policy: &Policy| -> Vec<String> {
            policy.pod_labels().filter(|label| is_filtered(label)).map(str::to_owned).collect()
        };
        for label in new.map(filtered).into_iter().flatten() {
            let uses = self.wanted.entry(label).or_default();
            *uses += 1;
            self.wanted_changed |= *uses == 1;
        }
        for label in old.map(filtered).into_iter().flatten() {
            if let Some(uses) = self.wanted.get_mut(&label) {
                *uses -= 1;
                if *uses == 0 {
                    self.wanted.remove(&label);
                    self.wanted_changed = true;
                }
            }
        }
    }

    /// Whose an address is; `None` where nobody says it is theirs.
    pub(super) fn whose(&self, address: IpAddr, own: &NodeId) -> Option<Identity> {
        if let Some(nodes) = self.nodes.get(&address) {
            return Some(if nodes.contains(own) { Identity::HOST } else { Identity::REMOTE_HOST });
        }
        let claims = self.claims.get(&address)?;
        let first = *claims.first()?;
        // Two that differ cannot both have it.
        Some(if claims.iter().all(|claim| *claim == first) { first } else { Identity::UNKNOWN })
    }

    /// Gives these workloads, and all of these namespaces, the identities they have now.
    pub(super) fn identify(
        &mut self,
        world: &World,
        workloads: &BTreeSet<WorkloadId>,
        namespaces: &BTreeSet<NamespaceId>,
    ) -> Turnover {
        let mut turnover = Turnover::default();
        let wanted: BTreeSet<String> = self.wanted.keys().cloned().collect();
        let everybody = std::mem::take(&mut self.wanted_changed);
        let mut concerned = workloads.clone();
        concerned.extend(namespaces.iter().flat_map(|namespace| of_namespace(world, namespace)));
        if everybody {
            concerned.extend(world.workloads.keys().cloned());
        }
        let present = |id: &WorkloadId| world.workloads.get(id).filter(|workload| workload.is_present());
        let labelled = |id: WorkloadId| {
            let workload = present(&id);
            let now = workload.map(|workload| (workload, world.label_set(&id, workload, &wanted)));
            (id, now)
        };
        let all: Vec<_> = concerned.into_iter().map(labelled).collect();
        turnover.relabelled =
            self.relabel(all.iter().map(|(id, now)| (id, now.as_ref().map(|(_, labels)| labels))));
        let mut released = Vec::new();
        for (id, now) in all {
            let now = now.map(|(workload, labels)| {
                let is_new = self.identities.number(&labels).is_none();
                let identity = self.identities.intern(labels);
                if is_new {
                    turnover.born.insert(identity);
                }
                Held { identity, addresses: workload.addresses.clone(), local: workload.local }
            });
            let before = self.held.remove(&id);
            released.extend(before.as_ref().map(|held| held.identity));
            if before != now {
                self.note(&id, before.as_ref(), now.as_ref(), &mut turnover);
            }
            if let Some(now) = now {
                self.held.insert(id, now);
            }
        }
        for identity in released {
            let labels = self.identities.shared_labels(identity);
            self.identities.release(identity);
            if self.identities.labels(identity).is_none() {
                turnover.dead.extend(labels.map(|labels| (identity, labels)));
            }
        }
        turnover.addresses.append(&mut self.moved_addresses);
        turnover
    }

    /// Lets identities go on whose every owner has the same other labels now, that nobody has.
    fn relabel<'a>(
        &mut self,
        all: impl Iterator<Item = (&'a WorkloadId, Option<&'a LabelSet>)>,
    ) -> BTreeMap<Identity, Arc<LabelSet>> {
        // Of how many, and what they are if they are one.
        let mut now: BTreeMap<Identity, (usize, Option<&LabelSet>)> = BTreeMap::new();
        for (id, labels) in all {
            let Some(held) = self.held.get(id) else { continue };
            let (count, one) = now.entry(held.identity).or_insert((0, labels));
            *count += 1;
            *one = one.filter(|one| labels == Some(one));
        }
        let mut relabelled = BTreeMap::new();
        for (identity, (count, labels)) in now {
            let (Some(now), Some(before)) = (labels, self.identities.labels(identity)) else { continue };
            // By their ports stages are told apart.
            if count == self.identities.uses(identity) && before.ports() == now.ports() {
                let before = self.identities.relabel(identity, now.clone());
                relabelled.extend(before.map(|before| (identity, before)));
            }
        }
        relabelled
    }

    fn note(&mut self, id: &WorkloadId, before: Option<&Held>, now: Option<&Held>, turnover: &mut Turnover) {
        if let Some(held) = before {
            for address in &held.addresses {
                if let Some(claims) = self.claims.get_mut(address)
                    && let Some(place) = claims.iter().position(|claim| *claim == held.identity)
                {
                    claims.swap_remove(place);
                    if claims.is_empty() {
                        self.claims.remove(address);
                    }
                }
                turnover.addresses.insert(*address);
            }
        }
        if let Some(held) = now {
            for address in &held.addresses {
                self.claims.entry(*address).or_default().push(held.identity);
                turnover.addresses.insert(*address);
            }
        }
        let local = |held: Option<&Held>| held.filter(|held| held.local).map(|held| held.identity);
        if local(before) != local(now) {
            turnover.endpoints.push((id.clone(), local(before), local(now)));
        }
    }
}

/// The pods of a namespace: they lie beside each other.
fn of_namespace<'a>(world: &'a World, namespace: &'a NamespaceId) -> impl Iterator<Item = WorkloadId> + 'a {
    let first = PodName { namespace: namespace.name.clone(), name: String::new() };
    let pods = world.workloads.range(WorkloadId::Pod(namespace.cluster.clone(), first)..);
    pods.map(|(id, _)| id.clone())
        .take_while(|id| matches!(id, WorkloadId::Pod(..)) && id.namespace() == *namespace)
}
