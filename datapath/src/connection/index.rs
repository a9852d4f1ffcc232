//! The index of the table: where a connection is, by either of its keys.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};

use causeway_wire::IpProtocol;
use causeway_wire::checksum::Change;

use super::entry::{CLIENT, Entry, Life, State};
use super::key::{End, Key};
use super::prefetch::prefetch;
use super::table::{BUCKET, Connections, Place};
use crate::packet::{Family, Ip};

/// Words of a cache line.
const LINE: usize = 8;
/// What a word of the index says beside its entry's number: that a hit touches one line more than the first, that its connection is
/// translated, and that this is the key that the client knows.
const LONG: u32 = 1 << 29;
const TRANSLATED: u32 = 1 << 30;
const FOR_CLIENT: u32 = 1 << 31;
const NUMBER: u32 = LONG - 1;

/// A connection that was looked for. Words, since what is put together of smaller things is slow to be handed on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(super) entry: Entry<'static>,
    index: u32,
    /// By the key that the client knows.
    pub(crate) for_client: bool,
    /// The end that a packet comes from, as the connection's first key has it.
    pub(crate) from: End,
    state: u64,
}

impl Found {
    #[inline(always)]
    pub(super) fn new(
        entry: Entry<'static>,
        (place, state): (Place, State),
        from: End,
        for_client: bool,
    ) -> Self {
        Self { entry, index: place.index, for_client, from, state: state.pack() }
    }

    /// Its place.
    #[inline(always)]
    pub(crate) fn place(&self) -> Place {
        Place { index: self.index, generation: State::unpack(self.state).generation }
    }

    /// Its state when it was found.
    #[inline(always)]
    pub(super) fn state(&self) -> State {
        State::unpack(self.state)
    }

    /// That state, packed.
    #[inline(always)]
    pub(super) fn state_word(&self) -> u64 {
        self.state
    }

    /// Whether nobody had answered then.
    #[inline(always)]
    pub(super) fn is_new(&self) -> bool {
        State::is_new(self.state)
    }

    /// Whether addresses and ports of its packets are changed on their way.
    #[inline(always)]
    pub(crate) fn is_translated(&self) -> bool {
        self.state().client.is_some()
    }

    /// Whether its first packet came from the node's own stack.
    pub(crate) fn is_by_host(&self) -> bool {
        self.state().by_host
    }

    /// Whether a packet goes the way of the first one.
    #[inline(always)]
    pub(crate) fn is_onward(&self) -> bool {
        self.from == self.state().originator
    }

    /// Where a packet of a translated connection comes from and goes to when it is turned, and what that does to checksums: over addresses, and
    /// over addresses and ports.
    #[inline(always)]
    pub(crate) fn turned<I: Ip>(&self) -> ([(I::Address, u16); 2], [Change; 2]) {
        if self.for_client {
            return (I::ends(&self.entry.key(), self.from), self.entry.changes());
        }
        let client = self.state().client.unwrap_or(self.from);
        (I::ends(&self.entry.client_key(), client.other()), self.entry.changes().map(Change::back))
    }

    /// The slot of the pod whose connection it is: of a translated one the client's, as long as [its way](Self::way) is known.
    #[inline(always)]
    pub(crate) fn owner(&self) -> u16 {
        self.entry.owner()
    }

    /// The way to the other end of a translated connection, if it was found in this world.
    #[inline(always)]
    pub(crate) fn way(&self, world: u32) -> Option<NonZeroU32> {
        self.entry.way(world)
    }

    /// Notes it.
    pub(crate) fn set_way(&self, world: u32, way: u32) {
        self.entry.set_way(world, way);
    }

    /// Where the client of a connection has sent its first packet: address and port, as it knows them.
    pub(crate) fn asked(&self) -> (IpAddr, u16) {
        let state = self.state();
        match state.client {
            Some(client) => self.entry.client_key().end(client.other()),
            None => self.entry.key().end(state.originator.other()),
        }
    }

    /// Who answers, on the wire.
    pub(crate) fn answers(&self) -> (IpAddr, u16) {
        self.entry.key().end(self.state().originator.other())
    }

    /// Whether a connection goes where services of another mark had it go, and may go elsewhere: one of TCP or SCTP whose other end
    /// has answered may not.
    #[inline(always)]
    pub(crate) fn is_outdated(&self, stamp: u32) -> bool {
        self.entry.served() != stamp && (self.is_new() || !binds(self.entry.key().protocol()))
    }

    /// Notes that it goes where services of this mark have it go.
    pub(crate) fn is_current(&self, stamp: u32) {
        self.entry.set_served(stamp);
    }
}

/// Whether a connection is lost when its other end becomes another.
fn binds(protocol: IpProtocol) -> bool {
    matches!(protocol, IpProtocol::TCP | IpProtocol::SCTP)
}

/// The keys of a new connection, each with its hash.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    /// As the other end has it.
    pub(crate) wire: (Key, u64),
    /// As the client has it, and which end of it the client is; only where that is another one.
    pub(crate) client: Option<(Key, u64, End)>,
}

impl Connections {
    #[inline(always)]
    fn bucket(&self, number: u64) -> &'static [AtomicU64; BUCKET] {
        // The number of buckets is a power of two.
        &self.buckets[number as usize & (self.buckets.len() - 1)]
    }

    /// The two buckets that a key can be in, the likelier one first.
    #[inline(always)]
    fn homes(&self, hash: u64) -> impl Iterator<Item = &'static [AtomicU64; BUCKET]> {
        [hash, beside(hash)].into_iter().map(|number| self.bucket(number))
    }

    /// Asks for the part of the index that a lookup will touch first.
    #[inline(always)]
    pub(crate) fn approach(&self, hash: u64) {
        prefetch(self.bucket(hash));
    }

    /// Asks for the entry that a lookup will find, if it lies where it most likely does: the lines that a hit touches; says whether it is
    /// one of an answer in a translated connection. If it does not lie there, there is mostly none, which the other part of the index must say.
    #[inline(always)]
    pub(crate) fn approach_entry(&self, hash: u64) -> bool {
        let word = self.bucket(hash)[first_place(hash)].load(Relaxed);
        if word >> 32 != hash >> 32 {
            prefetch(self.bucket(beside(hash)));
            return false;
        }
        let Some(entry) =
            (word as u32 & NUMBER).checked_sub(1).and_then(|index| self.entries.get(index as usize))
        else {
            return false;
        };
        prefetch(&entry[0]);
        if word as u32 & LONG != 0 {
            prefetch(&entry[LINE]);
        }
        if word as u32 & TRANSLATED != 0 {
            prefetch(&entry[CLIENT]);
        }
        word as u32 & (TRANSLATED | FOR_CLIENT) == TRANSLATED
    }

    /// Asks for all of an entry, which will be filled.
    #[inline(always)]
    pub(super) fn approach_place(&self, index: u32) {
        if let Some(entry) = self.entries.get(index as usize) {
            entry.iter().step_by(LINE).for_each(prefetch);
        }
    }

    /// The connection of a packet with this key that comes from that end of it. A client's packet is looked for as the client has
    /// it, and an answer as it is on the wire: of a translated connection they have different keys.
    #[inline(always)]
    pub(crate) fn find(&self, key: &Key, hash: u64, from: End) -> Option<Found> {
        let mut found = self.look(key, hash, from, |for_client, state| match state.client {
            None => true,
            Some(client) if for_client => from == client,
            Some(_) => from != state.originator,
        })?;
        if found.for_client {
            found.from = State::unpack(found.state).originator;
        }
        Some(found)
    }

    /// The connection of a packet of which an error to its sender quotes this key, as the sender or somebody on the way had it.
    #[cold]
    pub(crate) fn find_quoted(&self, key: &Key, hash: u64, sender: End) -> Option<Found> {
        let suits = |for_client: bool, state: &State| !for_client || state.client != Some(sender);
        let mut found = self.look(key, hash, sender, suits)?;
        if found.for_client {
            found.from = State::unpack(found.state).originator.other();
        }
        Some(found)
    }

    /// The first connection with a key that suits, by whichever key.
    #[inline(always)]
    fn look(&self, key: &Key, hash: u64, from: End, suits: impl Fn(bool, &State) -> bool) -> Option<Found> {
        for bucket in self.homes(hash) {
            for at in 0..BUCKET {
                let word = bucket[(first_place(hash) + at) & (BUCKET - 1)].load(Relaxed);
                if word >> 32 != hash >> 32 || word as u32 == 0 {
                    continue;
                }
                let index = (word as u32 & NUMBER) - 1;
                let for_client = word as u32 & FOR_CLIENT != 0;
                let entry = self.entry(index);
                let state = entry.state_word();
                let holds = if for_client { entry.holds_for_client(key) } else { entry.holds(key) };
                let unpacked = State::unpack(state);
                if unpacked.life == Life::Live && holds && suits(for_client, &unpacked) {
                    return Some(Found { entry, index, for_client, from, state });
                }
            }
        }
        None
    }

    /// Whether some connection has a key on the wire.
    #[inline(never)]
    pub(crate) fn is_on_wire(&self, key: &Key, hash: u64) -> bool {
        self.look(key, hash, End::Low, |for_client, _| !for_client).is_some()
    }

    /// Another connection than the one in this place that has one of its keys. A translated one is the same only if its client
    /// knows it by the same key; else it is in the way.
    pub(super) fn rival(&self, own: u32, keys: &Keys) -> Option<(Place, State, bool)> {
        let same = keys.client.and_then(|(key, hash, _)| self.look_beside(&key, hash, own, true));
        same.or_else(|| self.look_beside(&keys.wire.0, keys.wire.1, own, false))
    }

    /// [`look`](Self::look), for another place than one's own, by keys that clients know or by others.
    fn look_beside(&self, key: &Key, hash: u64, own: u32, of_clients: bool) -> Option<(Place, State, bool)> {
        for bucket in self.homes(hash) {
            for word in bucket {
                let word = word.load(SeqCst);
                let number = word as u32 & NUMBER;
                if word >> 32 != hash >> 32 || number == 0 || number - 1 == own {
                    continue;
                }
                let (index, for_client) = (number - 1, word as u32 & FOR_CLIENT != 0);
                let entry = self.entry(index);
                let state = entry.state();
                let holds = if for_client { entry.holds_for_client(key) } else { entry.holds(key) };
                if state.life == Life::Live && holds && for_client == of_clients {
                    return Some((Place { index, generation: state.generation }, state, for_client));
                }
            }
        }
        None
    }

    /// What the index says of a connection, by the hash of each of its keys.
    fn said_of(index: u32, entry: Entry<'_>, state: State) -> ((u32, u64), Option<(u32, u64)>) {
        let key = entry.key();
        let is_short = key.family() == Family::V4 && key.protocol() == IpProtocol::UDP;
        let (number, wire) = ((index + 1) | if is_short { 0 } else { LONG }, key.hash());
        match state.client {
            None => ((number, wire), None),
            Some(_) => {
                let number = number | TRANSLATED;
                ((number, wire), Some((number | FOR_CLIENT, entry.client_key().hash())))
            }
        }
    }

    /// Enters a connection in the index by all its keys; false when the buckets of one are full.
    pub(super) fn link_all(&self, index: u32, entry: Entry<'_>, state: State) -> bool {
        let (wire, client) = Self::said_of(index, entry, state);
        let linked = self.link(wire.0, wire.1);
        if linked && client.is_some_and(|(low, hash)| !self.link(low, hash)) {
            self.unlink(wire.0, wire.1);
            return false;
        }
        linked
    }

    fn link(&self, low: u32, hash: u64) -> bool {
        let word = hash >> 32 << 32 | u64::from(low);
        self.homes(hash).any(|bucket| {
            let mut places = (0..BUCKET).map(|at| &bucket[(first_place(hash) + at) & (BUCKET - 1)]);
            places.any(|place| place.compare_exchange(0, word, SeqCst, Relaxed).is_ok())
        })
    }

    pub(super) fn unlink_all(&self, index: u32, entry: Entry<'_>, state: State) {
        let (wire, client) = Self::said_of(index, entry, state);
        self.unlink(wire.0, wire.1);
        if let Some((low, hash)) = client {
            self.unlink(low, hash);
        }
    }

    fn unlink(&self, low: u32, hash: u64) {
        let word = hash >> 32 << 32 | u64::from(low);
        for place in self.homes(hash).flatten() {
            if place.compare_exchange(word, 0, AcqRel, Relaxed).is_ok() {
                return;
            }
        }
    }
}

/// The number of the less likely of both buckets.
#[inline(always)]
fn beside(hash: u64) -> u64 {
    hash ^ (hash >> 32 | 1).wrapping_mul(0x5bd1_e995)
}

#[inline(always)]
fn first_place(hash: u64) -> usize {
    (hash >> 29) as usize & (BUCKET - 1)
}
