//! The world compiled into tables, change by change: a change touches the endpoints that depend on it, and no others.

mod lists;
mod numbers;
mod pieces;
mod population;
mod selectors;
mod stage;
mod stages;
#[cfg(test)]
mod tests;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use causeway_model::policy::{Decision, Direction, Rulebook, StageId, Tables, Traffic};
use causeway_model::{Identity, NodeId};

use crate::identity::LabelSet;
use crate::policy::{Policy, PolicyKey};
use crate::world::{Change, NamespaceId, NodeFacts, WorkloadId, World};
use lists::{Lists, Names};
use numbers::Numbers;
use population::{Population, Turnover};
use selectors::Selectors;
use stages::{Shop, Stages};

/// What a batch of changes has moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// The tables that are new or have another epoch now.
    pub tables: BTreeSet<(WorkloadId, Direction)>,
    /// The endpoints that have gone.
    pub endpoints_gone: BTreeSet<WorkloadId>,
    /// The stages that are new or not what they were.
    pub stages: BTreeSet<StageId>,
    /// The stages that have gone.
    pub stages_gone: BTreeSet<StageId>,
    /// The addresses that are somebody else's now.
    pub peers: BTreeSet<IpAddr>,
}

/// Compiles what one node knows for the endpoints that it has.
#[derive(Debug)]
pub struct Compiler {
    world: World,
    population: Population,
    selectors: Selectors,
    numbers: Numbers,
    lists: Lists,
    stages: Stages,
    book: Rulebook,
    /// The identities that endpoints of this node have.
    subjects: BTreeMap<Identity, Subject>,
    endpoints: BTreeMap<WorkloadId, Tables>,
}

/// The endpoints of one identity: the same holds for all of them.
#[derive(Debug, Default)]
struct Subject {
    endpoints: BTreeSet<WorkloadId>,
    stages: [Vec<StageId>; 2],
}

/// What a batch of changes touches.
#[derive(Default)]
struct Touched {
    workloads: BTreeSet<WorkloadId>,
    namespaces: BTreeSet<NamespaceId>,
    /// As they were before.
    policies: BTreeMap<PolicyKey, Option<Policy>>,
    nodes: bool,
    /// Something that every verdict depends on.
    ground: bool,
}

impl Compiler {
    /// The compiler of a node that knows nothing yet.
    pub fn new(node: NodeId) -> Self {
        Self {
            world: World::new(node),
            population: Population::default(),
            selectors: Selectors::default(),
            numbers: Numbers::default(),
            lists: Lists::default(),
            stages: Stages::default(),
            book: Rulebook::default(),
            subjects: BTreeMap::new(),
            endpoints: BTreeMap::new(),
        }
    }

    /// What is known.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// What the tables refer to.
    pub fn book(&self) -> &Rulebook {
        &self.book
    }

    /// The endpoints of this node and their tables.
    pub fn endpoints(&self) -> &BTreeMap<WorkloadId, Tables> {
        &self.endpoints
    }

    /// The labels behind an identity.
    pub fn labels(&self, identity: Identity) -> Option<&LabelSet> {
        self.population.identities().labels(identity)
    }

    /// Judges a new connection by the tables; `None` if there is no such endpoint here.
    pub fn decide(
        &self,
        endpoint: &WorkloadId,
        direction: Direction,
        peer: IpAddr,
        traffic: Traffic,
    ) -> Option<Decision> {
        let table = self.endpoints.get(endpoint)?.of(direction);
        let own: Vec<_> = self.world.workloads.get(endpoint)?.addresses.iter().copied().collect();
        Some(self.book.decide(table, &own, peer, traffic))
    }

    /// Takes up changes, all at once: nothing in between is ever compiled.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Moved {
        let mut touched = Touched::default();
        for change in changes {
            self.take(change, &mut touched);
        }
        let mut moved = Moved::default();
        let Turnover { addresses, born, dead, changes, endpoints } =
            self.population.identify(&self.world, &touched.workloads, &touched.namespaces);
        for address in &addresses {
            let identity = self.population.whose(*address, &self.world.node);
            let known = &mut self.book.peers.addresses;
            let before = known.get(address).copied();
            match identity {
                Some(identity) => drop(known.insert(*address, identity)),
                None => drop(known.remove(address)),
            }
            if before != identity {
                moved.peers.insert(*address);
            }
        }
        let mut unlike = self.turn_over(&born, &dead, &changes, &mut moved.stages);
        let peers = !moved.peers.is_empty() || !changes.is_empty() || !born.is_empty() || !dead.is_empty();
        if peers || touched.nodes {
            let stages = &mut self.stages;
            let renewed = stages.renew(
                peers,
                touched.nodes,
                &mut shop(&self.world, &self.population, &self.lists, &mut self.selectors, &mut self.book),
            );
            moved.stages.extend(&renewed);
            unlike.extend(renewed);
        }
        let mut dirty = self.replace_policies(touched.policies);
        for (id, before, now) in endpoints {
            self.resettle(id, before, now, &mut dirty, &mut moved);
        }
        let restaged = self.restage(&dirty, &mut moved.stages);
        self.move_epochs(&restaged, &unlike, touched.ground, &mut moved);
        moved.stages_gone = self.stages.sweep(&mut self.selectors, &mut self.book);
        moved.stages = mem::take(&mut moved.stages).difference(&moved.stages_gone).copied().collect();
        moved
    }

    /// Notes a change and what it touches.
    fn take(&mut self, change: Change, touched: &mut Touched) {
        match &change {
            Change::Workload(id, new) => {
                if self.world.workloads.get(id) == new.as_ref() {
                    return;
                }
                touched.workloads.insert(id.clone());
            }
            Change::Namespace(id, new) => {
                if self.world.namespaces.get(id) == new.as_ref() {
                    return;
                }
                touched.namespaces.insert(id.clone());
            }
            Change::Node(id, new) => {
                let old = self.world.nodes.get(id);
                if old == new.as_ref() {
                    return;
                }
                let addresses = |node: Option<&NodeFacts>| node.map(|node| node.addresses.clone());
                let (before, now) = (addresses(old), addresses(new.as_ref()));
                touched.ground |= *id == self.world.node && before != now;
                self.population.move_node(id, &before.unwrap_or_default(), &now.unwrap_or_default());
                touched.nodes = true;
            }
            Change::Policy(key, new) => {
                let old = self.world.policies.get(key);
                if old == new.as_ref() {
                    return;
                }
                self.population.want_labels(old, new.as_ref());
                touched.policies.entry(key.clone()).or_insert_with(|| old.cloned());
            }
            Change::Clusters(prefixes) => {
                if self.world.clusters == *prefixes {
                    return;
                }
                touched.ground = true;
                self.book.peers.clusters.clone_from(prefixes);
            }
        }
        self.world.apply(change);
    }

    /// Puts new identities into the stages that speak of them and takes out those that have gone; the stages that judge a peer
    /// otherwise than before.
    fn turn_over(
        &mut self,
        born: &BTreeSet<Identity>,
        dead: &BTreeMap<Identity, Arc<LabelSet>>,
        changes: &BTreeSet<(Option<Identity>, Option<Identity>)>,
        touched: &mut BTreeSet<StageId>,
    ) -> BTreeSet<StageId> {
        for identity in born {
            let Some(labels) = self.population.identities().shared_labels(*identity) else { continue };
            let stages = self.selectors.admit(*identity, &labels, self.world.cluster());
            touched.extend(self.stages.admit(*identity, &stages, &self.selectors, &mut self.book));
        }
        let mut unlike = BTreeSet::new();
        for (before, now) in changes {
            let labels = |identity: &Identity| {
                dead.get(identity).cloned().or_else(|| self.population.identities().shared_labels(*identity))
            };
            let both = [before, now].into_iter().flatten().filter_map(labels);
            let by_selector = both.flat_map(|labels| self.selectors.stages_of(&labels, self.world.cluster()));
            for id in by_selector.chain(self.stages.naming_ports_of_peers()) {
                let Some(stage) = self.book.stages.get(&id) else { continue };
                let row = |identity: &Option<Identity>| {
                    identity.map(|i| stage.row_of_identity(i)).unwrap_or_default()
                };
                if row(before) != row(now) {
                    unlike.insert(id);
                }
            }
        }
        for (identity, labels) in dead {
            for id in self.selectors.stages_of(labels, self.world.cluster()) {
                if let Some(stage) = self.book.stages.get_mut(&id)
                    && stage.forget(*identity)
                {
                    touched.insert(id);
                }
            }
            self.selectors.dismiss(*identity, labels, self.world.cluster());
        }
        unlike
    }

    /// Puts policies in the place of older ones; the identities to which they or these apply.
    fn replace_policies(&mut self, policies: BTreeMap<PolicyKey, Option<Policy>>) -> BTreeSet<Identity> {
        let mut dirty = BTreeSet::new();
        let mut names = Names {
            own: self.world.cluster(),
            selectors: &mut self.selectors,
            numbers: &mut self.numbers,
            book: &mut self.book,
        };
        for (key, old) in policies {
            let new = self.world.policies.get(&key);
            dirty.extend(self.lists.replace(old.as_ref(), new, &mut names));
        }
        dirty
    }

    /// Gives an endpoint of this node its place among those of its identity.
    fn resettle(
        &mut self,
        id: WorkloadId,
        before: Option<Identity>,
        now: Option<Identity>,
        dirty: &mut BTreeSet<Identity>,
        moved: &mut Moved,
    ) {
        if let Some(subject) = before.and_then(|identity| self.subjects.get_mut(&identity)) {
            subject.endpoints.remove(&id);
        }
        dirty.extend(before.into_iter().chain(now));
        match now {
            Some(identity) => {
                self.subjects.entry(identity).or_default().endpoints.insert(id.clone());
                if let Entry::Vacant(vacant) = self.endpoints.entry(id.clone()) {
                    vacant.insert(Tables::default());
                    moved.tables.extend(Direction::BOTH.map(|direction| (id.clone(), direction)));
                }
            }
            None => {
                self.endpoints.remove(&id);
                moved.endpoints_gone.insert(id);
            }
        }
    }

    /// Works out anew which stages some identities' endpoints have; those identities whose stages are others now, or whose
    /// endpoints are.
    fn restage(&mut self, dirty: &BTreeSet<Identity>, made: &mut BTreeSet<StageId>) -> BTreeSet<Identity> {
        let mut restaged = BTreeSet::new();
        for identity in dirty {
            let Some(subject) = self.subjects.get_mut(identity) else { continue };
            let mut now: [Vec<StageId>; 2] = Default::default();
            if !subject.endpoints.is_empty()
                && let Some(labels) = self.population.identities().labels(*identity)
            {
                let lists = self.lists.of(*identity, labels, &self.selectors);
                let mut shop =
                    shop(&self.world, &self.population, &self.lists, &mut self.selectors, &mut self.book);
                for (direction, tiers) in Direction::BOTH.into_iter().zip(lists) {
                    for lists in tiers.into_iter().filter(|lists| !lists.is_empty()) {
                        let stage = self.stages.of(direction, lists, labels, &mut shop, made);
                        now[direction as usize].push(stage);
                    }
                }
            }
            for id in subject.stages.iter().flatten() {
                self.stages.set_user(*id, *identity, false);
            }
            for id in now.iter().flatten() {
                self.stages.set_user(*id, *identity, true);
            }
            subject.stages = now;
            restaged.insert(*identity);
            if subject.endpoints.is_empty() {
                self.subjects.remove(identity);
            }
        }
        restaged
    }

    /// Moves the epochs of the tables that judge otherwise than before.
    fn move_epochs(
        &mut self,
        restaged: &BTreeSet<Identity>,
        unlike: &BTreeSet<StageId>,
        ground: bool,
        moved: &mut Moved,
    ) {
        let mut concerned = restaged.clone();
        concerned.extend(unlike.iter().flat_map(|id| self.stages.users(*id)));
        if ground {
            concerned.extend(self.subjects.keys());
        }
        for identity in concerned {
            let Some(subject) = self.subjects.get(&identity) else { continue };
            for id in &subject.endpoints {
                let Some(tables) = self.endpoints.get_mut(id) else { continue };
                for direction in Direction::BOTH {
                    let stages = &subject.stages[direction as usize];
                    let table = tables.of_mut(direction);
                    let judges_otherwise = table.stages != *stages
                        || stages.iter().any(|stage| unlike.contains(stage))
                        || ground && !stages.is_empty();
                    if judges_otherwise {
                        table.stages.clone_from(stages);
                        table.epoch = table.epoch.wrapping_add(1);
                        moved.tables.insert((id.clone(), direction));
                    }
                }
            }
        }
    }
}

fn shop<'a>(
    world: &'a World,
    population: &'a Population,
    lists: &'a Lists,
    selectors: &'a mut Selectors,
    book: &'a mut Rulebook,
) -> Shop<'a> {
    Shop {
        own: world.cluster(),
        selectors,
        identities: population.identities(),
        nodes: &world.nodes,
        lists,
        book,
    }
}
