//! The table: found without a lock, filled by any worker, left in memory that outlives the process.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use causeway_model::connection::{Stage, Timeout, Timeouts};
use causeway_model::policy::RuleNumber;

use super::entry::{ENTRY, Entry, LAYOUT, Life, State};
use super::index::Keys;
use super::key::End;

/// Words before the index: one page, so that what follows is aligned.
const HEAD: usize = 512;
/// How many owners connections are counted by.
pub const OWNERS: u16 = 4096;
/// Places of a bucket: one cache line.
pub(super) const BUCKET: usize = 8;
/// Entries for each bucket: the index is a quarter full, or half full of connections with two keys.
const PER_BUCKET: usize = 2;
/// Entries that are looked at for one to put another in the place of.
const SAMPLE: usize = 32;
/// By so many the number of places that were ever used grows.
const USED_AT_ONCE: u64 = 64;
/// How long an established connection must be idle before pressure takes its place, in milliseconds.
const IDLE: u32 = 1000;

/// Where in the head what lies. The layout comes last when a file is made, and first when it is read.
const AT_LAYOUT: usize = 0;
const AT_CAPACITY: usize = 1;
const AT_FREE: usize = 8;
const AT_LIMBO: usize = 16;
const AT_HAND: usize = 24;
const AT_USED: usize = 25;
const AT_LIVE: usize = 26;
const AT_PRESSURE: usize = 32;

/// Memory that holds another table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OtherLayout {
    found: (u64, u64),
    expected: (u64, u64),
}

impl fmt::Display for OtherLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((layout, capacity), (our_layout, ours)) = (self.found, self.expected);
        write!(f, "layout {layout:x} with {capacity} entries, where {our_layout:x} with {ours} is expected")
    }
}

impl std::error::Error for OtherLayout {}

/// Why a connection could not be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoPlace {
    /// Every place is taken by a connection that is in use.
    Full,
    /// Another connection has these addresses and ports on the wire.
    Clash,
}

/// The place of a connection, as long as it has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub(super) index: u32,
    pub(super) generation: u16,
}

impl Place {
    #[inline(always)]
    pub(crate) fn of(index: u32, generation: u16) -> Self {
        Self { index, generation }
    }

    #[inline(always)]
    pub(crate) fn words(self) -> (u32, u16) {
        (self.index, self.generation)
    }
}

/// What lack of room has led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pressure {
    /// Connections that were not yet established and lost their place.
    pub half_open: u64,
    /// Idle connections that lost theirs.
    pub idle: u64,
    /// Packets that would have begun a connection and found no place.
    pub refused: u64,
}

/// All connections of a node's fast pods: shared by all workers, in memory that the caller keeps.
#[derive(Clone, Copy, Debug)]
pub struct Connections {
    head: &'static [AtomicU64; HEAD],
    /// How many connections each owner has.
    owned: &'static [AtomicU64; OWNERS as usize],
    pub(super) buckets: &'static [[AtomicU64; BUCKET]],
    pub(super) entries: &'static [[AtomicU64; ENTRY]],
}

impl Connections {
    /// The words of memory that a table of this many connections takes: 288 bytes each when the number is a power of two.
    pub fn words(capacity: u32) -> usize {
        HEAD + usize::from(OWNERS) + buckets(capacity) * BUCKET + capacity as usize * ENTRY
    }

    /// A table over memory of [`words`](Self::words): a new one where that is all zero, else what an earlier process left, with
    /// whatever it was in the middle of undone. Nobody else may use the memory meanwhile. Other memory is refused and not changed.
    /// It should begin with a cache line: what a look-up asks for early are lines.
    pub fn open(words: &'static [AtomicU64], capacity: u32) -> Result<Self, OtherLayout> {
        let ours = (LAYOUT, u64::from(capacity));
        let (head, rest) = words.split_first_chunk::<HEAD>().unwrap_or_else(|| unreachable!("too few words"));
        let (owned, rest) = rest.split_first_chunk().unwrap_or_else(|| unreachable!("too few words"));
        let (index, entries) = rest.split_at(buckets(capacity) * BUCKET);
        let (buckets, entries) = (index.as_chunks().0, entries.as_chunks().0);
        let table = Self { head, owned, buckets, entries: &entries[..capacity as usize] };
        match (head[AT_LAYOUT].load(Acquire), head[AT_CAPACITY].load(Relaxed)) {
            (0, _) => {
                head[AT_CAPACITY].store(ours.1, Relaxed);
                table.recover();
                head[AT_LAYOUT].store(ours.0, Release);
            }
            found if found == ours => table.recover(),
            found => return Err(OtherLayout { found, expected: ours }),
        }
        Ok(table)
    }

    /// Makes index and free list anew from what the entries say.
    fn recover(&self) {
        self.buckets.iter().flatten().for_each(|word| word.store(0, Relaxed));
        self.head[AT_FREE].store(0, Relaxed);
        self.head[AT_LIMBO].store(0, Relaxed);
        self.head[AT_LIVE].store(0, Relaxed);
        self.owned.iter().for_each(|count| count.store(0, Relaxed));
        for index in (0..self.entries.len() as u32).rev() {
            let entry = self.entry(index);
            let state = entry.state();
            if state.life == Life::Live && self.link_all(index, entry, state) {
                // The services and the worlds of this process have numbers of their own.
                entry.set_served(0);
                entry.set_way(0, 0);
                self.head[AT_LIVE].fetch_add(1, Relaxed);
                self.owned_by(entry.owner()).fetch_add(1, Relaxed);
                continue;
            }
            entry.publish(State { life: Life::Free, generation: state.generation, ..State::FREE });
            self.push(AT_FREE, index);
        }
    }

    /// How many connections there is room for.
    pub fn capacity(&self) -> u32 {
        self.entries.len() as u32
    }

    #[inline]
    pub(super) fn entry(&self, index: u32) -> Entry<'static> {
        Entry(&self.entries[index as usize])
    }

    /// Makes a connection of keys that were not found. Another worker may be doing the same: then both have the one that
    /// is in the table, and the second value is false for the one that did not make it.
    pub(super) fn insert(
        &self,
        keys: &Keys,
        state: State,
        fill: impl FnOnce(Entry<'_>),
        now: u32,
        timeouts: &Timeouts,
    ) -> Result<(Place, State, bool), NoPlace> {
        let index = self.claim(now, timeouts).ok_or(NoPlace::Full).inspect_err(|_| self.count(2))?;
        let entry = self.entry(index);
        fill(entry);
        let client = keys.client.map(|(key, _, end)| {
            entry.set_client_key(&key);
            end
        });
        let state = State { life: Life::Live, client, generation: entry.state().generation, ..state };
        let own = Place { index, generation: state.generation };
        entry.publish(state);
        self.head[AT_LIVE].fetch_add(1, Relaxed);
        self.owned_by(entry.owner()).fetch_add(1, Relaxed);
        if !self.link_all(index, entry, state) {
            self.retire(own, state);
            self.count(2);
            return Err(NoPlace::Full);
        }
        // Whoever links second sees the first: each links before it looks, in one order of all that is linked and looked at. The lower
        // place stays, and whoever sees both ends the other, which its maker may have thought alone.
        while let Some((place, found, for_client)) = self.rival(index, keys) {
            let is_same = for_client || keys.client.is_none() && found.client.is_none();
            if !is_same {
                self.release(own);
                return Err(NoPlace::Clash);
            }
            if place.index < index {
                self.release(own);
                return Ok((place, found, false));
            }
            self.release(place);
        }
        Ok((own, state, true))
    }

    /// Takes a place out of the free list, or, when that is empty, from whoever needs it least.
    fn claim(&self, now: u32, timeouts: &Timeouts) -> Option<u32> {
        let index = self.pop(AT_FREE).or_else(|| self.evict(now, timeouts))?;
        if u64::from(index) >= self.head[AT_USED].load(Relaxed) {
            // Mostly the next ones follow.
            self.head[AT_USED].fetch_max((u64::from(index) + 1).next_multiple_of(USED_AT_ONCE), Relaxed);
        }
        let entry = self.entry(index);
        let generation = entry.state().generation.wrapping_add(1);
        entry.publish(State { life: Life::Claimed, generation, ..State::FREE });
        Some(index)
    }

    /// Ends a connection. Its place is not given to another before it is [settled](Self::settle): a worker may be looking at it.
    pub(crate) fn release(&self, place: Place) -> bool {
        let state = self.entry(place.index).state();
        let done = state.generation == place.generation && self.retire(place, state);
        if done {
            self.push(AT_LIMBO, place.index);
        }
        done
    }

    /// Takes a connection out of the table if it is still in this state.
    fn retire(&self, place: Place, state: State) -> bool {
        let entry = self.entry(place.index);
        let dying = State { life: Life::Claimed, ..state };
        let was_live = state.life == Life::Live && entry.change(state, dying).is_ok();
        if was_live {
            self.head[AT_LIVE].fetch_sub(1, Relaxed);
            self.owned_by(entry.owner()).fetch_sub(1, Relaxed);
            self.unlink_all(place.index, entry, state);
            entry.publish(State { life: Life::Free, generation: state.generation, ..State::FREE });
        }
        was_live
    }

    /// Finds a place where there is none: of a sample, the connection that was longest not yet established, else the one that
    /// was longest idle. Its worker, should it look this very moment, finds another generation there.
    #[cold]
    fn evict(&self, now: u32, timeouts: &Timeouts) -> Option<u32> {
        for _ in 0..8 {
            let hand = self.head[AT_HAND].fetch_add(SAMPLE as u64, Relaxed);
            let sample = (0..SAMPLE as u64).map(|at| ((hand + at) % self.entries.len() as u64) as u32);
            let victim =
                sample.filter_map(|index| self.worth(index, now, timeouts)).min_by_key(|(worth, ..)| *worth);
            let Some((worth, place, state)) = victim else { continue };
            if self.retire(place, state) {
                self.count(worth.0.into());
                return Some(place.index);
            }
        }
        self.pop(AT_LIMBO)
    }

    /// How much a connection is worth its place: half open before idle, old before young. Nothing when it is in use.
    fn worth(&self, index: u32, now: u32, timeouts: &Timeouts) -> Option<((u8, u32), Place, State)> {
        let entry = self.entry(index);
        let state = entry.state();
        if state.life != Life::Live {
            return None;
        }
        let idle = now.wrapping_sub(entry.last_seen());
        let place = Place { index, generation: state.generation };
        let timeout = Timeout::of(entry.key().protocol(), state.stage);
        let left = timeouts.millis(timeout).saturating_sub(idle);
        match state.stage {
            Stage::New | Stage::SynReceived | Stage::Closed | Stage::TimeWait => {
                Some(((0, u32::MAX - idle), place, state))
            }
            _ if idle >= IDLE || left == 0 => Some(((1, u32::MAX - idle), place, state)),
            _ => None,
        }
    }

    /// Ends what was not seen for too long, among these places. For one thread, now and then.
    pub fn sweep(&self, places: Range<u32>, now: u32, timeouts: &Timeouts) -> u32 {
        let mut ended = 0;
        for index in places.start..places.end.min(self.used()) {
            let entry = self.entry(index);
            let state = entry.state();
            if state.life != Life::Live {
                continue;
            }
            let idle = now.wrapping_sub(entry.last_seen());
            // A packet may have come since `now` was taken.
            let timeout = Timeout::of(entry.key().protocol(), state.stage);
            let over = idle < u32::MAX / 2 && idle >= timeouts.millis(timeout);
            if over && self.release(Place { index, generation: state.generation }) {
                ended += 1;
            }
        }
        ended
    }

    /// Places from this one on were never used.
    pub fn used(&self) -> u32 {
        (self.head[AT_USED].load(Relaxed) as u32).min(self.capacity())
    }

    /// The places of connections that have ended; nobody has them until they are [settled](Self::settle).
    pub fn ended(&self) -> Ended {
        Ended(self.head[AT_LIMBO].fetch_and(!0xffff_ffff, AcqRel) as u32)
    }

    /// Gives places to new connections. Call when every worker has begun another burst since they were taken.
    pub fn settle(&self, mut ended: Ended) {
        while let Some(index) = ended.0.checked_sub(1) {
            ended.0 = self.entry(index).next() as u32;
            self.push(AT_FREE, index);
        }
    }

    fn push(&self, stack: usize, index: u32) {
        let top = &self.head[stack];
        let mut seen = top.load(Acquire);
        loop {
            self.entry(index).set_next(seen & 0xffff_ffff);
            // The upper half counts changes, so that a top that is the same again is not taken for one that never changed.
            let new = (seen >> 32).wrapping_add(1) << 32 | u64::from(index + 1);
            match top.compare_exchange_weak(seen, new, AcqRel, Acquire) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    fn pop(&self, stack: usize) -> Option<u32> {
        let top = &self.head[stack];
        let mut seen = top.load(Acquire);
        loop {
            let index = (seen as u32).checked_sub(1)?;
            let new = (seen >> 32).wrapping_add(1) << 32 | self.entry(index).next() & 0xffff_ffff;
            match top.compare_exchange_weak(seen, new, AcqRel, Acquire) {
                Ok(_) => {
                    // Connections seldom begin alone, and nobody has looked at the next place for long.
                    if let Some(next) = (new as u32).checked_sub(1) {
                        self.approach_place(next);
                    }
                    return Some(index);
                }
                Err(now) => seen = now,
            }
        }
    }

    fn count(&self, what: usize) {
        self.head[AT_PRESSURE + what].fetch_add(1, Relaxed);
    }

    /// What lack of room has led to since the table was made.
    pub fn pressure(&self) -> Pressure {
        let [half_open, idle, refused] = [0, 1, 2].map(|what| self.head[AT_PRESSURE + what].load(Relaxed));
        Pressure { half_open, idle, refused }
    }

    /// The rules that let a connection pass, of who begins and of whom it is for.
    pub(crate) fn rules(&self, place: Place) -> [RuleNumber; 2] {
        self.entry(place.index).rules()
    }

    /// How many connections an owner has.
    #[inline]
    pub(crate) fn count_of(&self, owner: u16) -> u64 {
        self.owned_by(owner).load(Relaxed)
    }

    #[inline]
    fn owned_by(&self, owner: u16) -> &'static AtomicU64 {
        &self.owned[usize::from(owner % OWNERS)]
    }

    /// Gives every connection that a process before has left the owner that it has now, and ends those that are nobody's any more.
    /// Call before any worker uses the table.
    pub fn adopt(&self, owner_of: impl Fn(IpAddr) -> Option<u16>) {
        self.owned.iter().for_each(|count| count.store(0, Relaxed));
        for (place, state, entry) in self.live() {
            let (key, from) = (entry.key(), state.originator);
            let owner = owner_of(key.end(from).0).or_else(|| owner_of(key.end(from.other()).0));
            entry.set_owner(owner.unwrap_or_default());
            self.owned_by(entry.owner()).fetch_add(1, Relaxed);
            if owner.is_none() {
                self.release(place);
            }
        }
    }

    /// Ends the connections of addresses whose pods have gone, so that nobody inherits them; says how many. Call when no worker
    /// leads packets there any more.
    pub fn end_of(&self, gone: &BTreeSet<IpAddr>) -> usize {
        let is_of = |entry: &Entry<'_>| {
            [End::Low, End::High].into_iter().any(|end| gone.contains(&entry.key().end(end).0))
        };
        self.live().filter(|(place, _, entry)| is_of(entry) && self.release(*place)).count()
    }

    /// How many connections there are.
    pub fn live_count(&self) -> u32 {
        self.head[AT_LIVE].load(Relaxed) as u32
    }

    /// Every connection that there is.
    pub(super) fn live(&self) -> impl Iterator<Item = (Place, State, Entry<'static>)> + '_ {
        (0..self.used()).filter_map(|index| {
            let entry = self.entry(index);
            let state = entry.state();
            let place = Place { index, generation: state.generation };
            (state.life == Life::Live).then_some((place, state, entry))
        })
    }
}

/// Places of ended connections, chained.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "places that are not settled are lost until the next start"]
pub struct Ended(u32);

impl Ended {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0 == 0
    }
}

fn buckets(capacity: u32) -> usize {
    (capacity as usize / PER_BUCKET).next_power_of_two().max(1)
}

/// The state of a connection that begins with a packet from this end.
pub(super) fn beginning(originator: End, stage: Stage) -> State {
    State { life: Life::Live, stage, originator, ..State::FREE }
}

#[cfg(test)]
mod tests;
