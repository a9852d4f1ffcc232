//! The table as it is kept: loaded whole, changed by what changed, compared with what is really there, its counts carried on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use causeway_model::service::{Answer, Backend, BackendsId, Frontend};
use causeway_model::{Delta, EndpointKey, IpNetwork, Snapshot};

use adopt::Notebook;

use super::choice::Choice;
use super::entry::{
    Told, dropped_of, family_of, of_address, of_backends, of_endpoint, of_frontend, of_kept, of_nodes,
    of_prefixes, slots,
};
use super::message::{self, Counted, OURS, TABLE};
use super::moves::Moved;
use super::program::{DROPPED, FIRST_WAY, Program, REFUSED};
use super::set::{Entry, Set};
use crate::error::KernelError;
use crate::netlink::Netlink;
use crate::nfnetlink::transact;
use crate::tables::{Message, difference};

/// A thing that has entries of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Thing {
    Frontend(Frontend),
    Backends(BackendsId),
    Address(IpAddr),
    Prefixes,
    /// The addresses of nodes.
    Nodes,
    /// Who sees pods' own addresses.
    Kept,
    Endpoint(EndpointKey),
}

impl Thing {
    /// What a change is about, as far as it is about anything here.
    pub(crate) fn of(delta: &Delta) -> Vec<Self> {
        match delta {
            Delta::Service(frontend, _) | Delta::ServiceGone(frontend) => vec![Self::Frontend(*frontend)],
            Delta::Backends(id, _) | Delta::BackendsGone(id) => vec![Self::Backends(*id)],
            Delta::ServiceAddress(address) | Delta::ServiceAddressGone(address) => {
                vec![Self::Address(*address)]
            }
            Delta::ServicePrefixes(_) => vec![Self::Prefixes, Self::Kept],
            Delta::Peer(_) | Delta::PeerGone(_) => vec![Self::Nodes, Self::Kept],
            Delta::Cluster(_) | Delta::ClusterGone(_) | Delta::PodPrefixes(_) => vec![Self::Kept],
            Delta::Endpoint(endpoint) => vec![Self::Endpoint(endpoint.key.clone())],
            Delta::EndpointGone(key) => vec![Self::Endpoint(key.clone())],
            _ => Vec::new(),
        }
    }
}

/// Backends as they are in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Placed {
    /// Their number there. It outlives the process, other than the one that they were given by who compiled them.
    number: u32,
    slots: Vec<Backend>,
    leaving: Vec<Backend>,
}

impl Placed {
    fn all(&self) -> BTreeSet<&Backend> {
        self.slots.iter().chain(&self.leaving).collect()
    }

    fn lost_some(&self, next: Option<&Self>) -> bool {
        !self.all().is_subset(&next.map(Self::all).unwrap_or_default())
    }
}

/// What the kernel has.
#[derive(Clone, Debug, Default)]
struct Loaded {
    frontends: BTreeMap<Frontend, Told>,
    backends: BTreeMap<BackendsId, Placed>,
    /// Who leads to backends.
    users: BTreeMap<BackendsId, BTreeSet<Frontend>>,
    /// Whatever else has entries.
    others: BTreeMap<Thing, Vec<Entry>>,
    /// The choices that have a way, and its number.
    ways: BTreeMap<Choice, u32>,
    /// The last number of sources.
    sources: u32,
    /// The last number of backends.
    numbers: u32,
}

/// What changes, ready to be sent; [`ServicesTable::done`] takes it up.
#[derive(Default)]
pub(crate) struct Pending {
    pub(crate) gone: Vec<Message>,
    pub(crate) new: Vec<Message>,
    frontends: BTreeMap<Frontend, Option<Told>>,
    backends: BTreeMap<BackendsId, Option<Placed>>,
    others: BTreeMap<Thing, Vec<Entry>>,
    ways: BTreeMap<Choice, u32>,
    sources: u32,
    numbers: u32,
    moved: BTreeSet<Frontend>,
}

impl Pending {
    /// Whether the table gets chains.
    pub(crate) fn has_chains(&self) -> bool {
        !self.ways.is_empty()
    }
}

/// The table.
#[derive(Debug)]
pub(crate) struct ServicesTable {
    /// What was loaded: the chains, the entries, and what never changes of it as the kernel tells of that.
    loaded: Option<(Program, Loaded, BTreeSet<Vec<u8>>)>,
    /// What tables before this one have counted.
    before: Counted,
    /// Whose datagram flows are to be looked through.
    moved: Moved,
    /// The table that an earlier process left has been looked at.
    inherited: bool,
    notebook: Notebook,
}

impl ServicesTable {
    /// Nothing is loaded; a file remembers what will be for the next process.
    pub(crate) fn new(memory: PathBuf) -> Self {
        let notebook = Notebook::new(memory);
        Self { loaded: None, before: Counted::default(), moved: Moved::default(), inherited: false, notebook }
    }

    /// Whether the table is there, as far as we know, with the chains that it shall have.
    pub(crate) fn is_loaded(&self, program: &Program) -> bool {
        self.loaded.as_ref().is_some_and(|(loaded, ..)| loaded == program)
    }

    /// What must be sent for some things to be as they shall be; nothing where nothing changes.
    pub(crate) fn prepare(&self, things: BTreeSet<Thing>, wanted: &Snapshot) -> Option<Pending> {
        let (_, loaded, _) = self.loaded.as_ref()?;
        let pending = loaded.becoming(things, wanted);
        pending.is_change().then_some(pending)
    }

    /// What was prepared is in force.
    pub(crate) fn done(&mut self, pending: Pending) {
        let Some((_, loaded, _)) = &mut self.loaded else { return };
        self.before.hits.retain(|frontend, _| !matches!(pending.frontends.get(frontend), Some(None)));
        self.moved.add(&pending.moved);
        loaded.take_up(pending);
        if !self.before.of_pods.is_empty() {
            // Whoever comes to an address begins at nothing.
            let pods = loaded.counted_pods();
            self.before.of_pods.retain(|(address, _), _| pods.contains(address));
        }
    }

    /// Which services changed so that flows to them may have to begin anew, since the last call.
    pub(crate) fn take_moved(&mut self) -> Moved {
        std::mem::take(&mut self.moved)
    }

    /// Takes note of chains that came or went.
    pub(crate) fn note_chains(&mut self, netlink: &mut Netlink) -> Result<(), KernelError> {
        if let Some((program, loaded, fixed)) = &mut self.loaded {
            *fixed = OURS.fixed(netlink)?;
            self.notebook.remember(program, loaded, fixed);
        }
        Ok(())
    }

    /// Takes chains away to which nobody leads any more; returns whether there were any. Not in the transaction that led their last
    /// connections elsewhere: a packet may be on its way to them then.
    pub(crate) fn sweep(&mut self, netlink: &mut Netlink) -> Result<bool, KernelError> {
        let Some((_, loaded, _)) = &mut self.loaded else { return Ok(false) };
        let unused = loaded.unused();
        if unused.is_empty() {
            return Ok(false);
        }
        let ways = unused.iter().map(|(choice, way)| (*choice, *way));
        let messages = ways.flat_map(|(choice, way)| message::without(choice, way)).collect();
        transact(netlink, messages, "taking away chains of services that nobody uses")?;
        loaded.ways.retain(|choice, _| !unused.contains_key(choice));
        self.note_chains(netlink)?;
        Ok(true)
    }

    /// Everything of a state that is not as it was loaded.
    pub(crate) fn differing(&self, wanted: &Snapshot) -> BTreeSet<Thing> {
        let Some((_, loaded, _)) = &self.loaded else { return BTreeSet::new() };
        let mut things = loaded.all();
        things.extend(all_of(wanted));
        things
    }

    /// Loads the table in the place of whatever is there, in one transaction.
    pub(crate) fn load(
        &mut self,
        netlink: &mut Netlink,
        program: &Program,
        wanted: &Snapshot,
    ) -> Result<(), KernelError> {
        self.loaded = None;
        self.carry_counts(netlink, wanted);
        let mut loaded = Loaded::default();
        let mut pending = loaded.becoming(all_of(wanted), wanted);
        let doing = format!("loading nft table inet {TABLE}");
        let whole = |new: &mut Vec<Message>| {
            let mut messages = message::whole(program);
            messages.append(new);
            messages
        };
        let mut messages = whole(&mut pending.new);
        messages.extend(message::sticking(netlink).unwrap_or_default());
        if let Err(error) = transact(netlink, messages, &doing) {
            tracing::warn!(%error, "clients stick to their backends no more");
            let mut again = loaded.becoming(all_of(wanted), wanted);
            transact(netlink, whole(&mut again.new), &doing)?;
        }
        loaded.take_up(pending);
        self.moved = Moved::All;
        self.inherited = true;
        self.loaded = Some((program.clone(), loaded, BTreeSet::new()));
        self.note_chains(netlink)
    }

    /// Somebody else has changed the table.
    pub(crate) fn distrust(&mut self) {
        self.notebook.forget();
        self.loaded = None;
    }

    /// Compares what is there with what was loaded; returns what differs, in words.
    pub(crate) fn compare(&self, netlink: &mut Netlink) -> Result<Vec<String>, KernelError> {
        let Some((_, loaded, fixed)) = &self.loaded else {
            return Ok(vec![format!("nft table inet {TABLE} was not loaded")]);
        };
        OURS.compare(netlink, fixed, &loaded.entries(), Set::all())
    }

    /// What was dropped so far, by reason, and the connections begun at frontends.
    pub(crate) fn counted(&self, netlink: &mut Netlink) -> Result<Counted, KernelError> {
        let mut counted = self.before.clone();
        if self.loaded.is_some() {
            add(message::counted(netlink)?, &mut counted);
        }
        Ok(counted)
    }

    /// What the table has counted goes on in the next one, for frontends that are there still.
    fn carry_counts(&mut self, netlink: &mut Netlink, wanted: &Snapshot) {
        match message::counted(netlink) {
            Ok(counted) => add(counted, &mut self.before),
            Err(error) => tracing::debug!(%error, "counts of the old table of services are lost"),
        }
        self.before.hits.retain(|frontend, _| wanted.services.frontends.contains_key(frontend));
        let pods: BTreeSet<IpAddr> =
            wanted.endpoints.values().flat_map(|endpoint| endpoint.addresses.iter().copied()).collect();
        self.before.of_pods.retain(|(address, _), _| pods.contains(address));
    }
}

fn add(counted: Counted, to: &mut Counted) {
    for (reason, count) in counted.by_reason {
        *to.by_reason.entry(reason).or_default() += count;
    }
    for (whose, count) in counted.of_pods {
        *to.of_pods.entry(whose).or_default() += count;
    }
    for (frontend, hits) in counted.hits {
        *to.hits.entry(frontend).or_default() += hits;
    }
}

/// Every thing of a state.
fn all_of(wanted: &Snapshot) -> BTreeSet<Thing> {
    let services = &wanted.services;
    let mut things = BTreeSet::from([Thing::Prefixes, Thing::Nodes, Thing::Kept]);
    things.extend(services.frontends.keys().copied().map(Thing::Frontend));
    things.extend(services.backends.keys().copied().map(Thing::Backends));
    things.extend(services.addresses.iter().copied().map(Thing::Address));
    things.extend(wanted.endpoints.keys().cloned().map(Thing::Endpoint));
    things
}

/// What a thing that is neither a frontend nor backends has.
fn entries_of(thing: &Thing, wanted: &Snapshot) -> Vec<Entry> {
    let mut entries = match thing {
        Thing::Frontend(_) | Thing::Backends(_) => Vec::new(),
        Thing::Address(address) => {
            let has = wanted.services.addresses.contains(address);
            has.then(|| of_address(*address)).into_iter().collect()
        }
        Thing::Prefixes => of_prefixes(&wanted.services.prefixes),
        Thing::Nodes => of_nodes(wanted),
        Thing::Kept => of_kept(wanted),
        Thing::Endpoint(key) => wanted.endpoints.get(key).map(of_endpoint).unwrap_or_default(),
    };
    entries.sort_unstable();
    entries
}

fn sorted(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_unstable();
    entries
}

impl Pending {
    fn is_change(&self) -> bool {
        !(self.gone.is_empty() && self.new.is_empty() && self.backends.is_empty() && self.moved.is_empty())
    }

    /// The way of an answer, and the number of the backends it leads to.
    fn way(&mut self, answer: Answer, frontend: &Frontend, sticks: u32, known: &Loaded) -> (u32, u32) {
        let id = match answer {
            Answer::Refuse => return (REFUSED, 0),
            Answer::Drop => return (DROPPED, 0),
            Answer::Backends(id) => id,
        };
        let placed = match self.backends.get(&id) {
            Some(next) => next.as_ref(),
            None => known.backends.get(&id),
        };
        let Some(Placed { number, slots, .. }) = placed else { return (REFUSED, 0) };
        let family = slots.first().map(|backend| causeway_model::Family::of(backend.address));
        if family != Some(family_of(frontend)) {
            return (REFUSED, 0);
        }
        let choice = Choice { of: slots.len() as u32, sticks };
        let last = known.ways.values().chain(self.ways.values()).max();
        let next = last.map_or(FIRST_WAY, |last| last + 1);
        let way = known.ways.get(&choice).copied();
        (way.unwrap_or_else(|| *self.ways.entry(choice).or_insert(next)), *number)
    }

    fn told(&mut self, frontend: &Frontend, wanted: &Snapshot, known: &Loaded) -> Option<Told> {
        let service = wanted.services.frontends.get(frontend)?;
        let sticks = service.affinity.unwrap_or(0);
        let answers =
            [service.inside, service.outside].map(|answer| self.way(answer, frontend, sticks, known));
        let old = known.frontends.get(frontend).and_then(|told| told.sources.as_ref());
        let sources = service.sources.clone().map(|sources: Vec<IpNetwork>| {
            let number = old.map(|(number, _)| *number).unwrap_or_else(|| {
                self.sources += 1;
                self.sources
            });
            (number, sources)
        });
        let backends = [service.inside, service.outside].into_iter().filter_map(|answer| match answer {
            Answer::Backends(id) => Some(id),
            Answer::Refuse | Answer::Drop => None,
        });
        let backends = backends.collect();
        Some(Told { sources, answers, backends, sticks: sticks > 0 })
    }
}

impl Loaded {
    /// What changes if some things become what they shall be.
    fn becoming(&self, things: BTreeSet<Thing>, wanted: &Snapshot) -> Pending {
        let mut pending = Pending { sources: self.sources, numbers: self.numbers, ..Pending::default() };
        let mut frontends = BTreeSet::new();
        for thing in &things {
            match thing {
                Thing::Frontend(frontend) => drop(frontends.insert(*frontend)),
                Thing::Backends(id) => self.place(*id, wanted, &mut pending),
                _ => {}
            }
        }
        for id in pending.backends.keys() {
            frontends.extend(self.users.get(id).into_iter().flatten());
        }
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        for frontend in frontends {
            let told = pending.told(&frontend, wanted, self);
            let old = self.frontends.get(&frontend);
            if old == told.as_ref() {
                continue;
            }
            // Another number of the same backends is no reason for a flow to move.
            let backends =
                |told: Option<&Told>| told.map(|told| told.answers.map(|(way, id)| (way >= FIRST_WAY, id)));
            if backends(old) != backends(told.as_ref()) {
                pending.moved.insert(frontend);
            }
            let entries =
                |told: Option<&Told>| told.map_or(Vec::new(), |told| sorted(of_frontend(&frontend, told)));
            let (less, more) = difference(entries(old), entries(told.as_ref()));
            gone.extend(less);
            new.extend(more);
            pending.frontends.insert(frontend, told);
        }
        let (less, more) = self.replaced(&pending);
        gone.extend(less);
        new.extend(more);
        for thing in things {
            if matches!(thing, Thing::Frontend(_) | Thing::Backends(_)) {
                continue;
            }
            let old = self.others.get(&thing).cloned().unwrap_or_default();
            let entries = entries_of(&thing, wanted);
            if old != entries {
                let (less, more) = difference(old, entries.clone());
                gone.extend(less);
                new.extend(more);
                pending.others.insert(thing, entries);
            }
        }
        gone.sort_unstable();
        new.sort_unstable();
        // Chains come before what leads to them.
        let ways = pending.ways.iter().flat_map(|(choice, number)| message::choice(*choice, *number));
        pending.new = ways.collect();
        pending.new.extend(OURS.entries(true, &new));
        pending.gone = OURS.entries(false, &gone);
        pending
    }

    /// Gives backends their slots.
    fn place(&self, id: BackendsId, wanted: &Snapshot, pending: &mut Pending) {
        let old = self.backends.get(&id);
        let placed = wanted.services.backends.get(&id).map(|backends| Placed {
            number: old.map_or(pending.numbers + 1, |old| old.number),
            slots: slots(old.map_or(&[], |old| &old.slots), backends),
            leaving: backends.leaving.clone(),
        });
        if old == placed.as_ref() {
            return;
        }
        pending.numbers += u32::from(old.is_none());
        if old.is_some_and(|old| old.lost_some(placed.as_ref())) {
            pending.moved.extend(self.users.get(&id).into_iter().flatten());
        }
        pending.backends.insert(id, placed);
    }

    /// The entries of backends that are others, or that clients stick to since now or no more.
    fn replaced(&self, pending: &Pending) -> (Vec<Entry>, Vec<Entry>) {
        let touched = pending.frontends.iter().flat_map(|(frontend, told)| {
            let old = self.frontends.get(frontend);
            old.into_iter().chain(told.as_ref()).filter(|told| told.sticks).flat_map(|told| &told.backends)
        });
        let ids: BTreeSet<BackendsId> = touched.chain(pending.backends.keys()).copied().collect();
        let told = pending.frontends.values().flatten().filter(|told| told.sticks);
        let newly: BTreeSet<BackendsId> = told.flat_map(|told| told.backends.iter().copied()).collect();
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        for id in ids {
            let users = || self.users.get(&id).into_iter().flatten();
            let stuck = users().any(|user| self.frontends[user].sticks);
            let untouched = users().filter(|user| !pending.frontends.contains_key(user));
            let mut rest = untouched.map(|user| self.frontends[user].sticks);
            let sticks = newly.contains(&id) || rest.any(|sticks| sticks);
            let old = self.backends.get(&id);
            let next = pending.backends.get(&id).map_or(old, Option::as_ref);
            let entries = |placed: Option<&Placed>, sticks| {
                placed.map_or(Vec::new(), |placed| sorted(of_backends(placed.number, &placed.slots, sticks)))
            };
            let (less, more) = difference(entries(old, stuck), entries(next, sticks));
            gone.extend(less);
            new.extend(more);
        }
        (gone, new)
    }

    fn take_up(&mut self, pending: Pending) {
        let Pending { frontends, backends, others, ways, sources, numbers, .. } = pending;
        for (frontend, told) in frontends {
            if let Some(old) = self.frontends.remove(&frontend) {
                for id in old.backends {
                    if let Some(users) = self.users.get_mut(&id) {
                        users.remove(&frontend);
                    }
                }
            }
            if let Some(told) = told {
                for id in &told.backends {
                    self.users.entry(*id).or_default().insert(frontend);
                }
                self.frontends.insert(frontend, told);
            }
        }
        self.users.retain(|_, users| !users.is_empty());
        for (id, placed) in backends {
            match placed {
                Some(placed) => self.backends.insert(id, placed),
                None => self.backends.remove(&id),
            };
        }
        for (thing, entries) in others {
            if entries.is_empty() {
                self.others.remove(&thing)
            } else {
                self.others.insert(thing, entries)
            };
        }
        self.ways.extend(ways);
        (self.sources, self.numbers) = (sources, numbers);
    }

    /// The choices that nobody's way leads to.
    fn unused(&self) -> BTreeMap<Choice, u32> {
        let answers = self.frontends.values().flat_map(|told| told.answers);
        let used: BTreeSet<u32> = answers.map(|(way, _)| way).collect();
        let ways = self.ways.iter().filter(|(_, way)| !used.contains(way));
        ways.map(|(choice, way)| (*choice, *way)).collect()
    }

    /// The addresses of pods of which is counted what is dropped.
    fn counted_pods(&self) -> BTreeSet<IpAddr> {
        let counting = self.others.values().flatten().filter(|entry| matches!(entry.set, Set::Dropped(_)));
        counting.filter_map(|entry| Some(dropped_of(&entry.key)?.0)).collect()
    }

    fn all(&self) -> BTreeSet<Thing> {
        let frontends = self.frontends.keys().copied().map(Thing::Frontend);
        let backends = self.backends.keys().copied().map(Thing::Backends);
        frontends.chain(backends).chain(self.others.keys().cloned()).collect()
    }

    /// Everything, as entries.
    fn entries(&self) -> Vec<Entry> {
        let frontends = self.frontends.iter().flat_map(|(frontend, told)| of_frontend(frontend, told));
        let backends = self.backends.iter().flat_map(|(id, placed)| {
            let users = self.users.get(id).into_iter().flatten();
            of_backends(
                placed.number,
                &placed.slots,
                users.into_iter().any(|user| self.frontends[user].sticks),
            )
        });
        frontends.chain(backends).chain(self.others.values().flatten().cloned()).collect()
    }
}

mod adopt;
#[cfg(test)]
mod tests;
