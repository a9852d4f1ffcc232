//! The table as it is kept: loaded whole, changed by what changed, compared with what is really there, its counts carried on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use causeway_model::policy::{Direction, RuleId, RuleNumber, Rulebook, Stage, StageId};
use causeway_model::{Count, Delta, DropReason, Endpoint, EndpointKey, Identity, IpNetwork, Snapshot};

use super::entry::{compared, earlier, none_with_none, of_clusters, of_endpoint, of_peer, of_stage, orders};
use super::message::{self, Counted, OURS, TABLE};
use super::program::{PHASES, Program};
use super::set::{Entry, Set};
use super::stamps::{Judge, Stamp, Stamps, field};
use crate::conntrack;
use crate::error::KernelError;
use crate::flows::now;
use crate::netlink::Netlink;
use crate::nfnetlink::transact;
use crate::tables::{Message, Named, difference, words};

/// A denied packet is told of by then.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// A thing that has entries of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Thing {
    Stage(StageId),
    Peer(IpAddr),
    Clusters,
    Endpoint(EndpointKey),
}

impl Thing {
    /// What a change is about, if it is about anything here.
    pub(crate) fn of(delta: &Delta) -> Option<Self> {
        match delta {
            Delta::Stage(id, _) | Delta::StageGone(id) => Some(Self::Stage(*id)),
            Delta::Identity(address, _) | Delta::IdentityGone(address) => Some(Self::Peer(*address)),
            Delta::PodPrefixes(_) => Some(Self::Clusters),
            Delta::Endpoint(endpoint) => Some(Self::Endpoint(endpoint.key.clone())),
            Delta::EndpointGone(key) => Some(Self::Endpoint(key.clone())),
            _ => None,
        }
    }
}

/// What the kernel has, by thing.
#[derive(Clone, Debug, Default)]
struct Loaded {
    stages: BTreeMap<StageId, (Arc<Stage>, u32)>,
    peers: BTreeMap<IpAddr, Identity>,
    clusters: Vec<IpNetwork>,
    endpoints: BTreeMap<EndpointKey, Vec<Entry>>,
    /// Up to which order all are compared.
    compared: u32,
    phase: u32,
}

impl Loaded {
    fn most_orders(&self) -> u32 {
        self.stages.values().map(|(_, orders)| *orders).max().unwrap_or_default()
    }

    /// Everything, as entries.
    fn entries(&self) -> Vec<Entry> {
        let mut all: Vec<Entry> =
            self.stages.iter().flat_map(|(id, (stage, _))| of_stage(*id, stage)).collect();
        all.extend(self.peers.iter().map(|(address, identity)| of_peer(*address, *identity)));
        all.extend(of_clusters(&self.clusters));
        all.extend(self.endpoints.values().flatten().cloned());
        all.extend(earlier(0, self.compared));
        all.extend([none_with_none(), phase(self.phase)]);
        // Of two endpoints with one address, which ought not to be, the last one counts.
        all.sort();
        all.dedup_by(|next, kept| {
            let same = next.set == kept.set && next.key == kept.key;
            if same {
                std::mem::swap(next, kept);
            }
            same
        });
        all
    }
}

fn phase(number: u32) -> Entry {
    Entry { set: Set::Phase, key: words([0]), end: None, data: words([number % PHASES]) }
}

/// A thing as it shall be.
enum Becoming {
    Stage(StageId, Option<(Arc<Stage>, u32)>),
    Peer(IpAddr, Option<Identity>),
    Clusters(Vec<IpNetwork>),
    Endpoint(EndpointKey, Option<Vec<Entry>>),
}

/// What changes, ready to be sent; [`PolicyTable::done`] takes it up.
pub(crate) struct Pending {
    pub(crate) gone: Vec<Message>,
    pub(crate) new: Vec<Message>,
    becoming: Vec<Becoming>,
    compared: u32,
}

/// What was denied.
#[derive(Clone, Debug, Default)]
pub(crate) struct Denied {
    pub(crate) by_reason: BTreeMap<DropReason, Count>,
    pub(crate) by_address: BTreeMap<IpAddr, Count>,
    pub(crate) by_rule: BTreeMap<RuleId, Count>,
}

/// The table.
#[derive(Debug, Default)]
pub(crate) struct PolicyTable {
    /// What was loaded, and what never changes of it as the kernel tells of that.
    loaded: Option<(Loaded, BTreeSet<Vec<u8>>)>,
    stamps: Stamps,
    /// The table that an earlier process left has been looked at.
    inherited: bool,
    /// What tables before this one have counted.
    before: Denied,
    /// The rules behind the numbers.
    rules: BTreeMap<RuleNumber, RuleId>,
    /// What a number had counted in this table when it was given to its rule.
    began: BTreeMap<RuleNumber, Count>,
    /// Whose numbers were until when, as long as a packet denied by one may still be told of.
    former: Vec<(u64, RuleNumber, RuleId)>,
}

impl PolicyTable {
    /// What must be sent for some things to be as they shall be; nothing where nothing changes. Before a table was loaded, that is
    /// the matter of loading it.
    pub(crate) fn prepare(
        &mut self,
        things: BTreeSet<Thing>,
        wanted: &Snapshot,
    ) -> Result<Option<Pending>, KernelError> {
        if self.loaded.is_none() || things.is_empty() {
            return Ok(None);
        }
        let endpoints = things.iter().filter_map(|thing| match thing {
            Thing::Endpoint(key) => wanted.endpoints.get(key),
            _ => None,
        });
        self.assign_stamps(endpoints)?;
        let Some((loaded, _)) = &self.loaded else { return Ok(None) };
        let (mut gone, mut new, mut becoming) = (Vec::new(), Vec::new(), Vec::new());
        // What has been compared is compared until the table is loaded again.
        let mut most = loaded.compared;
        for thing in things {
            let (less, more, thing) = loaded.becoming(thing, wanted, &self.stamps);
            if let Becoming::Stage(_, Some((_, orders))) = &thing {
                most = most.max(compared(*orders));
            }
            gone.extend(less);
            new.extend(more);
            becoming.push(thing);
        }
        if gone.is_empty() && new.is_empty() {
            return Ok(None);
        }
        new.extend(earlier(loaded.compared, most));
        gone.push(phase(loaded.phase));
        new.push(phase(loaded.phase + 1));
        gone.sort();
        new.sort();
        Ok(Some(Pending {
            gone: OURS.entries(false, &gone),
            new: OURS.entries(true, &new),
            becoming,
            compared: most,
        }))
    }

    /// What was prepared is in force.
    pub(crate) fn done(&mut self, pending: Pending) {
        let Some((loaded, _)) = &mut self.loaded else { return };
        loaded.compared = pending.compared;
        loaded.phase = (loaded.phase + 1) % PHASES;
        for thing in pending.becoming {
            match thing {
                Becoming::Stage(id, stage) => put(&mut loaded.stages, id, stage),
                Becoming::Peer(address, identity) => put(&mut loaded.peers, address, identity),
                Becoming::Clusters(clusters) => loaded.clusters = clusters,
                Becoming::Endpoint(key, entries) => put(&mut loaded.endpoints, key, entries),
            }
        }
    }

    /// Everything of a state that is not as it was loaded.
    pub(crate) fn differing(&self, wanted: &Snapshot) -> BTreeSet<Thing> {
        let Some((loaded, _)) = &self.loaded else { return BTreeSet::new() };
        let Rulebook { stages, peers, .. } = &*wanted.policy;
        let mut things = BTreeSet::new();
        let known = loaded.stages.keys().chain(stages.keys());
        let changed = |id: &&StageId| match (loaded.stages.get(id), stages.get(id)) {
            (Some((old, _)), Some(new)) => !Arc::ptr_eq(old, new) && old != new,
            _ => true,
        };
        things.extend(known.filter(changed).map(|id| Thing::Stage(*id)));
        let known = loaded.peers.keys().chain(peers.addresses.keys());
        let changed = known.filter(|address| loaded.peers.get(address) != peers.addresses.get(address));
        things.extend(changed.map(|address| Thing::Peer(*address)));
        things.extend((loaded.clusters != peers.clusters).then_some(Thing::Clusters));
        things.extend(
            loaded.endpoints.keys().chain(wanted.endpoints.keys()).map(|key| Thing::Endpoint(key.clone())),
        );
        things
    }

    /// Loads the table in the place of whatever is there, in one transaction: what is judged meanwhile is judged by the old one.
    pub(crate) fn load(&mut self, netlink: &mut Netlink, wanted: &Snapshot) -> Result<(), KernelError> {
        self.inherit(netlink)?;
        self.loaded = None;
        self.carry_counts(netlink, &wanted.policy.rules);
        self.assign_stamps(wanted.endpoints.values())?;
        let mut loaded = Loaded::default();
        let Rulebook { stages, peers, .. } = &*wanted.policy;
        loaded.stages = stages.iter().map(|(id, stage)| (*id, (stage.clone(), orders(stage)))).collect();
        loaded.peers = peers.addresses.clone();
        loaded.clusters = peers.clusters.clone();
        let endpoints = wanted.endpoints.iter();
        loaded.endpoints =
            endpoints.map(|(key, endpoint)| (key.clone(), of_endpoint(endpoint, &self.stamps))).collect();
        loaded.compared = compared(loaded.most_orders());
        let mut messages = message::whole(&Program::new());
        messages.extend(OURS.entries(true, &loaded.entries()));
        transact(netlink, messages, &format!("loading nft table inet {TABLE}"))?;
        let fixed = OURS.fixed(netlink)?;
        self.loaded = Some((loaded, fixed));
        Ok(())
    }

    /// Compares what is there with what was loaded; returns what differs, in words.
    pub(crate) fn compare(&self, netlink: &mut Netlink) -> Result<Vec<String>, KernelError> {
        let Some((loaded, fixed)) = &self.loaded else {
            return Ok(vec![format!("nft table inet {TABLE} was not loaded")]);
        };
        OURS.compare(netlink, fixed, &loaded.entries(), Set::all())
    }

    /// Somebody else has changed the table: what was judged by it was not judged by us.
    pub(crate) fn distrust(&mut self) {
        self.stamps.distrust();
        self.loaded = None;
    }

    /// Whether there is a table of ours, as far as we know.
    pub(crate) fn is_loaded(&self) -> bool {
        self.loaded.is_some()
    }

    /// What an endpoint's connections are judged by and is not there. The kernel is asked for each.
    pub(crate) fn check(
        &self,
        netlink: &mut Netlink,
        endpoint: &EndpointKey,
    ) -> Result<Vec<String>, KernelError> {
        let Some((loaded, _)) = &self.loaded else {
            return Ok(vec![format!("nft table inet {TABLE} was not loaded")]);
        };
        let Some(entries) = loaded.endpoints.get(endpoint) else {
            return Ok(vec![format!("nft table inet {TABLE} knows nothing of {endpoint}")]);
        };
        let mut wrong = Vec::new();
        for entry in entries {
            if !OURS.is_there(netlink, entry)? {
                wrong.push(format!("nft set {} of {TABLE} lacks an element of {endpoint}", entry.set.name()));
            }
        }
        Ok(wrong)
    }

    /// Numbers are given to rules: each begins to be counted at zero.
    pub(crate) fn begin_counts(&mut self, netlink: &mut Netlink, deltas: &[Delta]) {
        let mut counted = None;
        for delta in deltas {
            let (number, id) = match delta {
                Delta::Rule(number, id) => (number, Some(id)),
                Delta::RuleGone(number) => (number, None),
                _ => continue,
            };
            if self.rules.get(number) == id {
                continue;
            }
            if let Some(old) = self.rules.remove(number) {
                self.before.by_rule.remove(&old);
                self.give_up(*number, old);
            }
            if let Some(id) = id {
                self.rules.insert(*number, id.clone());
                // What cannot be listed leaves them the counts of the rules before them.
                let counted = counted.get_or_insert_with(|| message::counted(netlink).unwrap_or_default());
                self.began.extend(counted.by_rule.get(number).map(|count| (*number, *count)));
            }
        }
    }

    /// A number is a rule's no more.
    fn give_up(&mut self, number: RuleNumber, rule: RuleId) {
        let now = now();
        self.former.retain(|(until, ..)| *until + TOLD_WITHIN.as_nanos() as u64 > now);
        self.former.push((now, number, rule));
    }

    /// The rule that had a number at a time, in nanoseconds since 1970.
    pub(crate) fn rule_at(&self, number: RuleNumber, at: u64) -> Option<RuleId> {
        let former = self.former.iter().find(|(until, own, _)| *own == number && at <= *until);
        former.map(|(.., rule)| rule.clone()).or_else(|| rule(&self.rules, number))
    }

    /// What was denied so far.
    pub(crate) fn denied(&self, netlink: &mut Netlink) -> Result<Denied, KernelError> {
        let mut denied = self.before.clone();
        if self.loaded.is_some() {
            self.add(message::counted(netlink)?, &mut denied);
        }
        denied.by_rule.retain(|_, count| count.packets > 0);
        Ok(denied)
    }

    /// Adds what this table has counted.
    fn add(&self, counted: Counted, to: &mut Denied) {
        for (reason, count) in counted.by_reason {
            *to.by_reason.entry(reason).or_default() += count;
        }
        for (address, count) in counted.by_address {
            *to.by_address.entry(address).or_default() += count;
        }
        for (number, mut count) in counted.by_rule {
            let began = self.began.get(&number).copied().unwrap_or_default();
            count.packets = count.packets.saturating_sub(began.packets);
            count.bytes = count.bytes.saturating_sub(began.bytes);
            if let Some(id) = rule(&self.rules, number) {
                *to.by_rule.entry(id).or_default() += count;
            }
        }
    }

    /// What the table has counted goes on in the next one, for rules that are there still.
    fn carry_counts(&mut self, netlink: &mut Netlink, rules: &BTreeMap<RuleNumber, RuleId>) {
        let mut before = std::mem::take(&mut self.before);
        match message::counted(netlink) {
            Ok(counted) => self.add(counted, &mut before),
            Err(error) => tracing::debug!(%error, "counts of the old policy table are lost"),
        }
        let old = std::mem::replace(&mut self.rules, rules.clone());
        for (number, rule) in old.into_iter().filter(|(number, rule)| rules.get(number) != Some(rule)) {
            self.give_up(number, rule);
        }
        self.began.clear();
        let ids: BTreeSet<RuleId> =
            rules.values().cloned().chain(Direction::BOTH.map(RuleId::unknown)).collect();
        before.by_rule.retain(|id, _| ids.contains(id));
        self.before = before;
    }

    /// Once: takes note of the stamps of the table that an earlier process left, which goes on to judge until ours is loaded, and
    /// takes all others off the flows that there are.
    fn inherit(&mut self, netlink: &mut Netlink) -> Result<(), KernelError> {
        if self.inherited {
            return Ok(());
        }
        let found: BTreeMap<Judge, Stamp> = message::stamps(netlink)?.into_iter().collect();
        unmark(|judge, stamp| found.get(&judge) != Some(&stamp))?;
        self.stamps = Stamps::found(found);
        self.inherited = true;
        Ok(())
    }

    fn assign_stamps<'a>(
        &mut self,
        endpoints: impl Iterator<Item = &'a Endpoint>,
    ) -> Result<(), KernelError> {
        let judges: Vec<(Judge, u32)> = endpoints
            .flat_map(|endpoint| {
                let each = endpoint.addresses.iter().flat_map(|a| Direction::BOTH.map(|d| (*a, d)));
                each.map(|judge| (judge, endpoint.policy.of(judge.1).epoch))
            })
            .collect();
        let exhausted = judges.iter().filter(|(judge, epoch)| self.stamps.is_exhausted(*judge, *epoch));
        let exhausted: BTreeSet<Judge> = exhausted.map(|(judge, _)| *judge).collect();
        self.take_off(&exhausted)?;
        judges.into_iter().for_each(|(judge, epoch)| self.stamps.assign(judge, epoch));
        Ok(())
    }

    /// Takes stamps off all flows before there are none left that no flow bears: a change would have to wait for it, and the
    /// kernel looks through every place for a flow that the whole machine has.
    pub(crate) fn refresh_stamps(&mut self) -> Result<(), KernelError> {
        self.take_off(&self.stamps.low())
    }

    fn take_off(&mut self, judges: &BTreeSet<Judge>) -> Result<(), KernelError> {
        if !judges.is_empty() {
            let stamps = &self.stamps;
            unmark(|judge, stamp| judges.contains(&judge) && stamps.of(judge.0, judge.1) != Some(stamp))?;
            judges.iter().for_each(|judge| self.stamps.refresh(*judge));
        }
        Ok(())
    }
}

impl Loaded {
    /// What goes and what comes for a thing to be as it shall be.
    fn becoming(
        &self,
        thing: Thing,
        wanted: &Snapshot,
        stamps: &Stamps,
    ) -> (Vec<Entry>, Vec<Entry>, Becoming) {
        let Rulebook { stages, peers, .. } = &*wanted.policy;
        let (old, new, thing) = match thing {
            Thing::Stage(id) => {
                let entries = |stage: Option<&Arc<Stage>>| stage.map(|stage| of_stage(id, stage));
                let (old, new) = (self.stages.get(&id).map(|(stage, _)| stage), stages.get(&id));
                let becoming = Becoming::Stage(id, new.map(|stage| (stage.clone(), orders(stage))));
                if old == new {
                    return (Vec::new(), Vec::new(), becoming);
                }
                (entries(old), entries(new), becoming)
            }
            Thing::Peer(address) => {
                let entry = |identity: Option<&Identity>| identity.map(|i| vec![of_peer(address, *i)]);
                let (old, new) = (self.peers.get(&address), peers.addresses.get(&address));
                (entry(old), entry(new), Becoming::Peer(address, new.copied()))
            }
            Thing::Clusters => {
                let (old, new) = (of_clusters(&self.clusters), of_clusters(&peers.clusters));
                (Some(old), Some(new), Becoming::Clusters(peers.clusters.clone()))
            }
            Thing::Endpoint(key) => {
                let old = self.endpoints.get(&key).cloned();
                let new = wanted.endpoints.get(&key).map(|endpoint| of_endpoint(endpoint, stamps));
                (old, new.clone(), Becoming::Endpoint(key, new))
            }
        };
        let (gone, new) = difference(old.unwrap_or_default(), new.unwrap_or_default());
        (gone, new, thing)
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

/// Takes stamps off the flows that bear them.
fn unmark(is_stale: impl Fn(Judge, Stamp) -> bool) -> Result<(), KernelError> {
    conntrack::unmark(|flow| {
        let ends = [(flow.from.ip(), Direction::Egress), (flow.answers.ip(), Direction::Ingress)].into_iter();
        let stale = ends
            .filter(|judge| Stamp::of_mark(flow.mark, judge.1).is_some_and(|stamp| is_stale(*judge, stamp)));
        stale.map(|(_, direction)| field(direction)).sum()
    })
}

/// The rule behind a number.
fn rule(rules: &BTreeMap<RuleNumber, RuleId>, number: RuleNumber) -> Option<RuleId> {
    let unknown = Direction::BOTH.into_iter().find(|direction| number == RuleNumber::unknown(*direction));
    unknown.map(RuleId::unknown).or_else(|| rules.get(&number).cloned())
}
