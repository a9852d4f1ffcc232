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

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use causeway_model::policy::{Decision, Direction, RuleNumber, Rulebook, StageId, Table, Tables, Traffic};
use causeway_model::{Delta, Identity, NodeId};

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
    /// The tables that are new or have another epoch now, each once.
    pub tables: Vec<(Arc<WorkloadId>, Direction)>,
    /// The endpoints that have gone.
    pub endpoints_gone: BTreeSet<WorkloadId>,
    /// The stages that are new or not what they were.
    pub stages: BTreeSet<StageId>,
    /// The stages that have gone.
    pub stages_gone: BTreeSet<StageId>,
    /// The addresses that are somebody else's now.
    pub peers: BTreeSet<IpAddr>,
    /// The numbers that are another rule's now, or nobody's.
    pub rules: BTreeSet<RuleNumber>,
    /// The pod prefixes of all clusters are others.
    pub prefixes: bool,
}

impl Moved {
    /// What a data path is to be told of what tables refer to; the tables themselves go with their endpoints.
    pub fn deltas(&self, book: &Rulebook) -> Vec<Delta> {
        let prefixes = self.prefixes.then(|| Delta::PodPrefixes(book.peers.clusters.clone()));
        let addresses = self.peers.iter().map(|address| book.identity_of(*address));
        let rules = self.rules.iter().map(|number| book.rule(*number));
        let stages = self.stages.iter().chain(&self.stages_gone).map(|id| book.stage(*id));
        prefixes.into_iter().chain(addresses).chain(rules).chain(stages).collect()
    }
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
    /// What the tables of new endpoints begin with.
    epoch: u32,
}

/// The endpoints of one identity: the same holds for all of them.
#[derive(Debug, Default)]
struct Subject {
    endpoints: BTreeMap<Arc<WorkloadId>, Tables>,
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
    prefixes: bool,
}

impl Compiler {
    /// The compiler of a node that knows nothing yet. Epochs begin at `epoch`: where data paths outlive a compiler, at none that
    /// an earlier one has come to.
    pub fn new(node: NodeId, epoch: u32) -> Self {
        Self {
            world: World::new(node),
            population: Population::default(),
            selectors: Selectors::default(),
            numbers: Numbers::default(),
            lists: Lists::default(),
            stages: Stages::default(),
            book: Rulebook::default(),
            subjects: BTreeMap::new(),
            epoch,
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
    pub fn endpoints(&self) -> impl Iterator<Item = (&WorkloadId, &Tables)> {
        self.subjects.values().flat_map(|subject| &subject.endpoints).map(|(id, tables)| (&**id, tables))
    }

    /// The tables of an endpoint of this node.
    pub fn tables(&self, endpoint: &WorkloadId) -> Option<&Tables> {
        self.subjects.get(&self.identity(endpoint)?)?.endpoints.get(endpoint)
    }

    /// What an endpoint, a pod or an attachment is, as far as it is there.
    pub fn identity(&self, id: &WorkloadId) -> Option<Identity> {
        self.population.identity(id)
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
        let table = self.tables(endpoint)?.of(direction);
        Some(self.book.decide((direction, table), peer, traffic))
    }

    /// Takes up changes, all at once: nothing in between is ever compiled.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Moved {
        let mut touched = Touched::default();
        for change in changes {
            self.take(change, &mut touched);
        }
        let mut moved = Moved::default();
        let Turnover { addresses, born, relabelled, dead, endpoints } =
            self.population.identify(&self.world, &touched.workloads, &touched.namespaces);
        let mut changes = BTreeSet::new();
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
                // Nobody has flows from an address that was unknown.
                let was_unknown = || self.world.clusters.iter().any(|prefix| prefix.contains(*address));
                if before.is_some() || !was_unknown() {
                    changes.insert((before, identity));
                }
            }
        }
        let (mut unlike, mut dirty) = self.relabel(&relabelled);
        moved.stages.extend(&unlike);
        unlike.extend(self.turn_over(&born, &dead, &changes, &mut moved.stages));
        let peers = !moved.peers.is_empty() || !born.is_empty() || !dead.is_empty() || !dirty.is_empty();
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
        dirty.extend(self.replace_policies(touched.policies));
        let mut arrived = BTreeMap::new();
        for (id, before, now) in endpoints {
            let id = Arc::new(id);
            arrived.extend(now.map(|_| (id.clone(), before.is_none())));
            self.resettle(id, before, now, &mut dirty, &mut moved);
        }
        let restaged = self.restage(&dirty, &mut moved.stages);
        self.move_epochs(&arrived, &restaged, (&unlike, touched.ground), &mut moved);
        moved.stages_gone = self.stages.sweep(&mut self.selectors, &mut self.book);
        moved.stages = mem::take(&mut moved.stages).difference(&moved.stages_gone).copied().collect();
        moved.rules = self.numbers.moved();
        moved.prefixes = touched.prefixes;
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
                touched.prefixes = true;
                self.book.peers.clusters.clone_from(prefixes);
            }
        }
        self.world.apply(change);
    }

    /// Gives identities that go on under other labels what these have; the stages that judge them otherwise than before, and those
    /// of them that selectors can tell.
    fn relabel(
        &mut self,
        relabelled: &BTreeMap<Identity, Arc<LabelSet>>,
    ) -> (BTreeSet<StageId>, BTreeSet<Identity>) {
        let mut told_apart = BTreeMap::new();
        for (identity, before) in relabelled {
            let Some(labels) = self.population.identities().shared_labels(*identity) else { continue };
            let chosen = self.selectors.relabel(*identity, before, &labels, self.world.cluster());
            told_apart.extend(chosen.map(|chosen| (*identity, chosen)));
        }
        let unlike = self.stages.put(&told_apart, &mut self.book);
        (unlike, told_apart.into_keys().collect())
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
        let mut admitted = BTreeMap::new();
        for identity in born {
            let Some(labels) = self.population.identities().shared_labels(*identity) else { continue };
            admitted.insert(*identity, self.selectors.admit(*identity, &labels, self.world.cluster()));
        }
        touched.extend(self.stages.put(&admitted, &mut self.book));
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
                    && Arc::make_mut(stage).forget(*identity)
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
        id: Arc<WorkloadId>,
        before: Option<Identity>,
        now: Option<Identity>,
        dirty: &mut BTreeSet<Identity>,
        moved: &mut Moved,
    ) {
        let mut tables = None;
        if let Some(identity) = before
            && let Some(subject) = self.subjects.get_mut(&identity)
        {
            tables = subject.endpoints.remove(&id);
            if subject.endpoints.is_empty() {
                dirty.insert(identity);
            }
        }
        match now {
            Some(identity) => {
                let subject = self.subjects.entry(identity).or_default();
                if subject.endpoints.is_empty() {
                    dirty.insert(identity);
                }
                let table = || Table { stages: Vec::new(), epoch: self.epoch };
                let tables = tables.unwrap_or_else(|| Tables { ingress: table(), egress: table() });
                subject.endpoints.insert(id, tables);
            }
            None => drop(moved.endpoints_gone.insert(Arc::unwrap_or_clone(id))),
        }
    }

    /// Works out anew which stages some identities' endpoints have; those identities whose stages are others now.
    fn restage(&mut self, dirty: &BTreeSet<Identity>, made: &mut BTreeSet<StageId>) -> BTreeSet<Identity> {
        let mut restaged = BTreeSet::new();
        let mut applying = self.lists.applying(&self.selectors);
        let of = |identity: &Identity| {
            let subject = self.subjects.get(identity).filter(|subject| !subject.endpoints.is_empty());
            let labels = subject.and_then(|_| self.population.identities().labels(*identity));
            (*identity, labels.map(|labels| (labels, applying.to(*identity, labels))))
        };
        // In order, and all before the first stage is made of them: making one binds selectors.
        let lists: Vec<_> = dirty.iter().map(of).collect();
        for (identity, lists) in lists {
            let Some(subject) = self.subjects.get_mut(&identity) else { continue };
            let mut now: [Vec<StageId>; 2] = Default::default();
            if let Some((labels, lists)) = lists {
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
                self.stages.set_user(*id, identity, false);
            }
            for id in now.iter().flatten() {
                self.stages.set_user(*id, identity, true);
            }
            if subject.stages != now {
                subject.stages = now;
                restaged.insert(identity);
            }
            if subject.endpoints.is_empty() {
                self.subjects.remove(&identity);
            }
        }
        restaged
    }

    /// Moves the epochs of the tables that judge otherwise than before. Of those that have arrived it is known whether they are new.
    fn move_epochs(
        &mut self,
        arrived: &BTreeMap<Arc<WorkloadId>, bool>,
        restaged: &BTreeSet<Identity>,
        (unlike, ground): (&BTreeSet<StageId>, bool),
        moved: &mut Moved,
    ) {
        let mut identities = restaged.clone();
        identities.extend(unlike.iter().flat_map(|id| self.stages.users(*id)));
        if ground {
            identities.extend(self.subjects.keys());
        }
        for (id, new) in arrived {
            let subject = self.population.identity(id).and_then(|identity| self.subjects.get_mut(&identity));
            let Some(Subject { endpoints, stages }) = subject else { continue };
            let Some(tables) = endpoints.get_mut(id) else { continue };
            for direction in Direction::BOTH {
                let table = tables.of_mut(direction);
                if turn(table, &stages[direction as usize], unlike, ground) || *new {
                    moved.tables.push((id.clone(), direction));
                }
            }
        }
        for identity in identities {
            let Some(Subject { endpoints, stages }) = self.subjects.get_mut(&identity) else { continue };
            for (id, tables) in endpoints.iter_mut().filter(|(id, _)| !arrived.contains_key(*id)) {
                for direction in Direction::BOTH {
                    if turn(tables.of_mut(direction), &stages[direction as usize], unlike, ground) {
                        moved.tables.push((id.clone(), direction));
                    }
                }
            }
        }
    }
}

/// Gives a table its stages, and another epoch if it judges otherwise than before; whether it does.
fn turn(table: &mut Table, stages: &[StageId], unlike: &BTreeSet<StageId>, ground: bool) -> bool {
    let judges_otherwise = table.stages != stages
        || stages.iter().any(|stage| unlike.contains(stage))
        || ground && !stages.is_empty();
    if judges_otherwise {
        stages.clone_into(&mut table.stages);
        table.epoch = table.epoch.wrapping_add(1);
    }
    judges_otherwise
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
