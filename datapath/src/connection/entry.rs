//! One connection, as it lies in memory that outlives the process.

use std::num::NonZeroU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use causeway_model::connection::Stage;
use causeway_model::policy::RuleNumber;
use causeway_wire::checksum::Change;

use super::key::{End, Key, WORDS};
use crate::packet::Family;

/// Words of an entry: four cache lines. A hit of a datagram over IPv4 touches the first one; one of TCP or over IPv6 the second, too, and
/// one of a translated connection the last besides.
pub(super) const ENTRY: usize = 32;

/// Where what lies; [`LAYOUT`] is to change whenever these do.
const STATE: usize = WORDS;
/// The marks of the epochs in which the verdicts were made: of who begins in the upper half, of who answers in the lower.
const STAMP: usize = 6;
/// When it was last seen, in the lower half; in the upper the mark of the services in force when it was last asked whether they still
/// have it go where it goes.
const TIMES: usize = 7;
const DIRECTION: [usize; 2] = [8, 12];
/// What was counted of each end since it was last added to the rest, where a key over IPv4 leaves room.
const LATELY: [usize; 2] = [1, 3];
/// Where in such a word the packets begin; below are the bytes.
const PACKETS: u32 = 40;
/// A word in which one of these is set is half full.
const HALF_FULL: u64 = 1 << 63 | 1 << (PACKETS - 1);
const BEGAN: usize = 16;
const HANDSHAKE: usize = 17;
const RETRANSMITS: usize = 18;
/// The rules that let it pass, as one of who begins and as one of who answers.
const RULES: usize = 19;
/// A second key, of a translated connection: addresses and ports as the client knows them, where the first has those on the wire.
pub(super) const CLIENT: usize = 24;
/// The way to the other end: that in the lower half, the number of the world in which it was found in the upper.
const WAY: usize = CLIENT + WORDS;
/// The slot of the pod whose connection it is, and of a translated one what the client's packets becoming those on the wire does to checksums: over
/// addresses, and over addresses and ports.
const OWNER: usize = WAY + 1;
const CHANGES: [u32; 2] = [16, 32];
const NEXT: usize = 31;
const _: () = assert!(RULES + 2 <= CLIENT && OWNER < NEXT && NEXT < ENTRY);

/// A number that names this layout: a file of another one is refused.
pub(super) const LAYOUT: u64 = 0xca05_e3a7_0001_0005;

/// The life of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Life {
    /// Nobody's.
    Free,
    /// A worker fills it.
    Claimed,
    /// A connection.
    Live,
}

/// The word of an entry that changes by compare-and-swap: everything that two workers could disagree about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct State {
    pub(super) life: Life,
    pub(super) stage: Stage,
    /// The end that sent the first packet.
    pub(super) originator: End,
    /// Which ends have said their last.
    pub(super) finished: [bool; 2],
    /// TCP's window scales; none where an end did not offer it.
    pub(super) scales: [Option<u8>; 2],
    /// The beginning was not seen: taken up in the middle.
    pub(super) picked_up: bool,
    /// The client knows it by another key: that says which end of it the client is.
    pub(super) client: Option<End>,
    /// The first packet came from the node's own stack, which may have translated it.
    pub(super) by_host: bool,
    /// Counts the connections that this place has had.
    pub(super) generation: u16,
}

impl State {
    pub(super) const FREE: Self = Self {
        life: Life::Free,
        stage: Stage::New,
        originator: End::Low,
        finished: [false; 2],
        scales: [None; 2],
        picked_up: false,
        client: None,
        by_host: false,
        generation: 0,
    };

    #[inline(always)]
    pub(super) fn pack(self) -> u64 {
        let scale = |scale: Option<u8>| scale.map_or(0, |scale| u64::from(scale.min(14)) + 1);
        self.life as u64
            | (self.stage as u64) << 4
            | (self.originator as u64) << 8
            | u64::from(self.finished[0]) << 9
            | u64::from(self.finished[1]) << 10
            | u64::from(self.picked_up) << 11
            | self.client.map_or(0, |end| 1 | (end as u64) << 1) << 12
            | u64::from(self.by_host) << 14
            | scale(self.scales[0]) << 16
            | scale(self.scales[1]) << 20
            | u64::from(self.generation) << 48
    }

    /// Whether nobody has answered in a state that is packed.
    #[inline(always)]
    pub(super) fn is_new(word: u64) -> bool {
        word >> 4 & 15 == Stage::New as u64
    }

    #[inline(always)]
    pub(super) fn unpack(word: u64) -> Self {
        let bit = |at: u32| word >> at & 1 == 1;
        let scale = |at: u32| ((word >> at & 15) as u8).checked_sub(1);
        let life = match word & 3 {
            0 => Life::Free,
            1 => Life::Claimed,
            _ => Life::Live,
        };
        let stage = Stage::ALL.get((word >> 4 & 15) as usize).copied().unwrap_or(Stage::Closed);
        let end = |at: u32| if bit(at) { End::High } else { End::Low };
        Self {
            life,
            stage,
            originator: end(8),
            finished: [bit(9), bit(10)],
            scales: [scale(16), scale(20)],
            picked_up: bit(11),
            client: bit(12).then(|| end(13)),
            by_host: bit(14),
            generation: (word >> 48) as u16,
        }
    }
}

/// What one end's packets have shown of TCP's window (RFC 9293 §3.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Window {
    /// One beyond the last byte it has sent.
    pub(super) end: u32,
    /// One beyond the last byte that the other end lets it send.
    pub(super) limit: u32,
    /// The largest window it has offered.
    pub(super) offered: u32,
    /// The last byte of the other end that it has acknowledged.
    pub(super) acknowledged: u32,
}

/// A connection's place in the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a>(pub(super) &'a [AtomicU64; ENTRY]);

impl Entry<'_> {
    #[inline(always)]
    pub(super) fn holds(&self, key: &Key) -> bool {
        self.has(0, key)
    }

    /// [`holds`](Self::holds), of the key that the client knows.
    #[inline(always)]
    pub(super) fn holds_for_client(&self, key: &Key) -> bool {
        self.has(CLIENT, key)
    }

    /// Whether a key lies there.
    #[inline(always)]
    fn has(&self, begin: usize, key: &Key) -> bool {
        let differs = |at: &[usize]| {
            at.iter().fold(0, |differs, at| differs | (self.0[begin + at].load(Relaxed) ^ key.0[*at]))
        };
        differs(&[0, 2]) == 0 && (key.family() == Family::V4 || differs(&[1, 3, 4]) == 0)
    }

    #[inline(always)]
    pub(super) fn key(&self) -> Key {
        Key::of(std::array::from_fn(|at| self.0[at].load(Relaxed)))
    }

    #[inline(always)]
    fn family(&self) -> Family {
        Key::family_of(self.0[2].load(Relaxed))
    }

    /// The key that the client knows, of a translated connection.
    #[inline(always)]
    pub(super) fn client_key(&self) -> Key {
        Key(std::array::from_fn(|at| self.0[CLIENT + at].load(Relaxed)))
    }

    pub(super) fn set_client_key(&self, key: &Key) {
        for (word, value) in self.0[CLIENT..].iter().zip(key.0) {
            word.store(value, Relaxed);
        }
        let changes = CHANGES.into_iter().zip(key.changes(&self.key()));
        let words = changes.fold(0, |words, (at, change)| words | u64::from(change.0) << at);
        self.0[OWNER].store(words | u64::from(self.owner()), Relaxed);
    }

    /// What a packet of the client becoming one on the wire does to a checksum over addresses, and to one over addresses and ports.
    #[inline(always)]
    pub(super) fn changes(&self) -> [Change; 2] {
        let words = self.0[OWNER].load(Relaxed);
        CHANGES.map(|at| Change((words >> at) as u16))
    }

    /// The way of a translated connection's packets to the other end, if it was found in this world.
    #[inline(always)]
    pub(super) fn way(&self, world: u32) -> Option<NonZeroU32> {
        let word = self.0[WAY].load(Relaxed);
        NonZeroU32::new(word as u32).filter(|_| (word >> 32) as u32 == world)
    }

    pub(super) fn set_way(&self, world: u32, way: u32) {
        self.0[WAY].store(u64::from(world) << 32 | u64::from(way), Relaxed);
    }

    /// The mark of the services that last had it go where it goes.
    #[inline(always)]
    pub(super) fn served(&self) -> u32 {
        (self.0[TIMES].load(Relaxed) >> 32) as u32
    }

    #[inline]
    pub(super) fn set_served(&self, stamp: u32) {
        let times = self.0[TIMES].load(Relaxed);
        self.0[TIMES].store(u64::from(stamp) << 32 | times & 0xffff_ffff, Relaxed);
    }

    #[inline]
    pub(super) fn state(&self) -> State {
        State::unpack(self.state_word())
    }

    /// The same, packed.
    #[inline(always)]
    pub(super) fn state_word(&self) -> u64 {
        self.0[STATE].load(Acquire)
    }

    /// Changes the state unless somebody else did; then says what it is now.
    #[inline]
    pub(super) fn change(&self, from: State, to: State) -> Result<(), State> {
        let changed = self.0[STATE].compare_exchange(from.pack(), to.pack(), AcqRel, Acquire);
        changed.map(drop).map_err(State::unpack)
    }

    /// Writes everything of a new connection but its state, which makes it one.
    pub(super) fn fill(&self, key: &Key, now: u32, owner: u16, began: u64) {
        for (word, value) in self.0.iter().zip(key.0) {
            word.store(value, Relaxed);
        }
        for word in &self.0[STAMP..NEXT] {
            word.store(0, Relaxed);
        }
        self.0[TIMES].store(now.into(), Relaxed);
        self.0[BEGAN].store(began, Relaxed);
        self.0[OWNER].store(owner.into(), Relaxed);
    }

    pub(super) fn publish(&self, state: State) {
        self.0[STATE].store(state.pack(), Release);
    }

    /// When it was last seen, in milliseconds that wrap around.
    #[inline]
    pub(super) fn last_seen(&self) -> u32 {
        self.0[TIMES].load(Relaxed) as u32
    }

    #[inline(always)]
    pub(super) fn see(&self, now: u32) {
        let times = self.0[TIMES].load(Relaxed);
        if times as u32 != now {
            self.0[TIMES].store(times & !0xffff_ffff | u64::from(now), Relaxed);
        }
    }

    /// Counts packets of one direction, those of one frame.
    #[inline(always)]
    pub(super) fn count(&self, from: End, packets: u64, bytes: u64) {
        if self.family() == Family::V6 {
            return self.add(from, packets, bytes);
        }
        let lately = &self.0[LATELY[from.index()]];
        let sum = lately.load(Relaxed).wrapping_add(packets << PACKETS | bytes);
        lately.store(sum, Relaxed);
        if sum & HALF_FULL != 0 {
            self.put_by(from);
        }
    }

    #[cold]
    fn put_by(&self, from: End) {
        let (packets, bytes) = parts(self.0[LATELY[from.index()]].swap(0, Relaxed));
        self.add(from, packets, bytes);
    }

    #[inline]
    fn add(&self, from: End, packets: u64, bytes: u64) {
        let at = DIRECTION[from.index()];
        for (word, more) in [(at, packets), (at + 1, bytes)] {
            self.0[word].store(self.0[word].load(Relaxed).wrapping_add(more), Relaxed);
        }
    }

    /// What was counted of one direction: packets, bytes.
    pub(super) fn counted(&self, from: End) -> (u64, u64) {
        let lately = match self.family() {
            Family::V4 => self.0[LATELY[from.index()]].load(Relaxed),
            Family::V6 => 0,
        };
        let (at, (packets, bytes)) = (DIRECTION[from.index()], parts(lately));
        (self.0[at].load(Relaxed).wrapping_add(packets), self.0[at + 1].load(Relaxed).wrapping_add(bytes))
    }

    #[inline]
    pub(super) fn window(&self, of: End) -> Window {
        let at = DIRECTION[of.index()] + 2;
        let (sent, taken) = (self.0[at].load(Relaxed), self.0[at + 1].load(Relaxed));
        Window {
            end: (sent >> 32) as u32,
            limit: sent as u32,
            offered: (taken >> 32) as u32,
            acknowledged: taken as u32,
        }
    }

    #[inline]
    pub(super) fn set_window(&self, of: End, window: Window) {
        let at = DIRECTION[of.index()] + 2;
        self.0[at].store(u64::from(window.end) << 32 | u64::from(window.limit), Relaxed);
        self.0[at + 1].store(u64::from(window.offered) << 32 | u64::from(window.acknowledged), Relaxed);
    }

    /// SCTP's verification tags, of what each end sends, in the place of TCP's windows.
    pub(super) fn tag(&self, of: End) -> u32 {
        self.window(of).end
    }

    pub(super) fn set_tag(&self, of: End, tag: u32) {
        self.set_window(of, Window { end: tag, ..Window::default() });
    }

    pub(super) fn began(&self) -> u64 {
        self.0[BEGAN].load(Relaxed)
    }

    #[inline(always)]
    pub(super) fn owner(&self) -> u16 {
        self.0[OWNER].load(Relaxed) as u16
    }

    pub(super) fn set_owner(&self, owner: u16) {
        let words = self.0[OWNER].load(Relaxed);
        self.0[OWNER].store(words & !0xffff | u64::from(owner), Relaxed);
    }

    /// Microseconds from the first packet to the other end's first; zero while there is none.
    pub(super) fn handshake(&self) -> u64 {
        self.0[HANDSHAKE].load(Relaxed)
    }

    pub(super) fn set_handshake(&self, micros: u64) {
        self.0[HANDSHAKE].store(micros.max(1), Relaxed);
    }

    #[cold]
    pub(super) fn count_retransmit(&self, from: End) {
        let word = self.0[RETRANSMITS].load(Relaxed);
        let shift = 32 * from.index();
        let one = (word >> shift) as u32;
        let word = word & !(0xffff_ffff << shift) | u64::from(one.wrapping_add(1)) << shift;
        self.0[RETRANSMITS].store(word, Relaxed);
    }

    pub(super) fn retransmits(&self, from: End) -> u32 {
        (self.0[RETRANSMITS].load(Relaxed) >> (32 * from.index())) as u32
    }

    #[inline(always)]
    pub(super) fn stamp(&self) -> u64 {
        self.0[STAMP].load(Relaxed)
    }

    /// Notes under which tables it was let through, and by which rules.
    pub(super) fn set_verdict(&self, stamp: u64, rules: [RuleNumber; 2]) {
        for (word, rule) in self.0[RULES..].iter().zip(rules) {
            word.store(rule.0.into(), Relaxed);
        }
        self.0[STAMP].store(stamp, Relaxed);
    }

    /// The rules that let it pass.
    pub(super) fn rules(&self) -> [RuleNumber; 2] {
        [RULES, RULES + 1].map(|word| RuleNumber(self.0[word].load(Relaxed) as u32))
    }

    pub(super) fn next(&self) -> u64 {
        self.0[NEXT].load(Relaxed)
    }

    pub(super) fn set_next(&self, next: u64) {
        self.0[NEXT].store(next, Relaxed);
    }
}

/// Packets and bytes of a word that has both.
fn parts(lately: u64) -> (u64, u64) {
    (lately >> PACKETS, lately & ((1 << PACKETS) - 1))
}

#[cfg(test)]
mod tests {
    use causeway_wire::IpProtocol;

    use super::*;

    #[test]
    fn nothing_is_lost_of_what_is_counted() {
        let v4 = Key::v4((1, 2), (3, 4), IpProtocol::UDP).0;
        let v6 = Key::v6((1, 2), (3, 4), IpProtocol::UDP).0;
        // The most that one frame stands for, until either part has run over.
        for (key, packets, bytes, times) in
            [(v4, 1, 65_535, 9_000_000_u64), (v4, 65_535, 65_535, 300), (v6, 3, 100, 1000)]
        {
            let words: [AtomicU64; ENTRY] = std::array::from_fn(|_| AtomicU64::new(0));
            let entry = Entry(&words);
            entry.fill(&key, 0, 0, 0);
            (0..times).for_each(|_| entry.count(End::High, packets, bytes));
            assert_eq!(entry.counted(End::High), (times * packets, times * bytes));
            assert_eq!(entry.counted(End::Low), (0, 0));
            assert!(entry.holds(&key) && entry.key() == key, "what is counted is not the key");
        }
    }

    #[test]
    fn a_state_survives_its_word() {
        for stage in Stage::ALL {
            for (life, originator) in
                [(Life::Free, End::Low), (Life::Claimed, End::High), (Life::Live, End::High)]
            {
                for scales in [[None, None], [Some(0), Some(14)], [Some(7), None]] {
                    let state = State {
                        life,
                        stage,
                        originator,
                        finished: [stage > Stage::New, false],
                        scales,
                        picked_up: life == Life::Live,
                        client: scales[0].map(|_| originator.other()),
                        by_host: scales[1].is_some(),
                        generation: 0xfedc,
                    };
                    assert_eq!(State::unpack(state.pack()), state);
                }
            }
        }
        assert_eq!(State::FREE.pack(), 0, "memory that was never written is free");
    }

    #[test]
    fn what_is_said_of_one_end_leaves_the_other_alone() {
        let words: [AtomicU64; ENTRY] = std::array::from_fn(|_| AtomicU64::new(0));
        let entry = Entry(&words);
        let window = Window { end: 1, limit: 2, offered: 3, acknowledged: 4 };
        entry.set_window(End::High, window);
        entry.count(End::High, 2, 3000);
        entry.count_retransmit(End::High);
        entry.count_retransmit(End::High);
        assert_eq!((entry.window(End::High), entry.window(End::Low)), (window, Window::default()));
        assert_eq!((entry.counted(End::High), entry.counted(End::Low)), ((2, 3000), (0, 0)));
        assert_eq!((entry.retransmits(End::High), entry.retransmits(End::Low)), (2, 0));
    }
}
