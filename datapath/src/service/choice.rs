//! Which backend a new connection gets: the same for the same connection on every worker, after every restart, and for nearly every
//! connection whichever of the other backends come and go, or change their weight.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;

use causeway_model::service::{Backend, Backends};

use crate::entropy::mix;

/// Up to so many backends each is asked (rendezvous hashing, by weight as in Schindelhauer and Schomaker, SPAA 2005): nobody but the
/// connections of one that goes ever moves. Beyond, a table is (Maglev, NSDI 2016 §3.4), whose size steps with the number of
/// backends: at a step connections move.
const ASKED: usize = 128;
/// The sizes of the table, primes, each for up to so many backends: large enough that hardly anything moves between two steps.
const TABLES: [(usize, usize); 3] = [(1000, 131_071), (4000, 524_287), (usize::MAX, LARGEST)];
const LARGEST: usize = 2_097_143;
/// So many slots of the table for the smallest weight, where the largest table has them: its share is within 5 % of its part.
const SMALLEST: u64 = 20;

/// A backend, and what it is known by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Member {
    pub(crate) backend: Backend,
    pub(crate) digest: u64,
}

impl Member {
    fn new(backend: &Backend) -> Self {
        Self { backend: *backend, digest: digest(backend.address, backend.port) }
    }
}

/// 64 bits that tell addresses and ports apart.
pub(crate) fn digest(address: IpAddr, port: u16) -> u64 {
    let address = match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    };
    mix(mix(mix((address >> 64) as u64) ^ address as u64) ^ u64::from(port))
}

/// Who answers, ready to be chosen from.
#[derive(Debug)]
pub(crate) struct Set {
    /// Who gets new connections.
    chosen: Box<[Member]>,
    /// Their weights, where each is asked and they are not all the same.
    weights: Box<[f64]>,
    /// For each slot of the table, who; empty when each is asked.
    table: Box<[u16]>,
    /// The digests of all who may keep the connections they have, in order.
    keeping: Box<[u64]>,
}

impl Set {
    pub(crate) fn new(backends: &Backends) -> Self {
        let mut shares: Vec<_> =
            backends.shares().map(|(backend, weight)| (Member::new(&backend), weight)).collect();
        // The order in which they were told makes no difference.
        shares.sort_unstable_by_key(|(member, weight)| (member.digest, *weight));
        shares.dedup_by_key(|(member, _)| member.digest);
        shares.truncate(usize::from(u16::MAX));
        let (chosen, weights): (Vec<_>, Vec<_>) = shares.into_iter().unzip();
        let leaving = backends.leaving.iter().map(Member::new);
        let mut keeping: Vec<_> = chosen.iter().copied().chain(leaving).map(|member| member.digest).collect();
        keeping.sort_unstable();
        let alike = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let (weights, table) = match chosen.len() > ASKED {
            true if alike => (Vec::new(), maglev(&chosen, size(chosen.len(), 0), (0..chosen.len()).cycle())),
            true => (Vec::new(), maglev(&chosen, size(chosen.len(), slots(&weights)), turns(&weights))),
            false if alike => (Vec::new(), Box::default()),
            false => (weights.into_iter().map(f64::from).collect(), Box::default()),
        };
        Self { chosen: chosen.into(), weights: weights.into(), table, keeping: keeping.into() }
    }

    /// The backend of a new connection with this hash.
    #[inline]
    pub(crate) fn choose(&self, hash: u64) -> Option<&Member> {
        if !self.table.is_empty() {
            let slot = (u128::from(mix(hash)) * self.table.len() as u128) >> 64;
            return self.chosen.get(usize::from(*self.table.get(slot as usize)?));
        }
        if self.weights.is_empty() {
            return self.chosen.iter().max_by_key(|member| mix(hash ^ member.digest));
        }
        let waits = self
            .chosen
            .iter()
            .zip(&self.weights)
            .map(|(member, weight)| (wait(hash, member) / weight, member));
        waits.min_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, member)| member)
    }

    /// One of those that get new connections, by the first half of its digest.
    pub(crate) fn chosen_before(&self, half: u32) -> Option<&Member> {
        let at = self.chosen.partition_point(|member| (member.digest >> 32) < u64::from(half));
        self.chosen.get(at).filter(|member| member.digest >> 32 == u64::from(half))
    }

    /// Whether a backend may keep the connections that it has.
    pub(crate) fn keeps(&self, digest: u64) -> bool {
        self.keeping.binary_search(&digest).is_ok()
    }
}

/// How long a connection would wait for a member of weight 1: exponentially distributed. Who is waited for least has it. The order of
/// waits is that of the hashes from the greatest down, so that who gets as much as all others keeps what it had by hash.
fn wait(hash: u64, member: &Member) -> f64 {
    const BITS: u32 = f64::MANTISSA_DIGITS;
    let drawn = (mix(hash ^ member.digest) >> (64 - BITS)) + 1;
    -(drawn as f64 / (1_u64 << BITS) as f64).ln()
}

/// The slots that a table shall have at least for so many backends and these slots.
fn size(members: usize, slots: u64) -> usize {
    let mut sizes = TABLES.iter().filter(|(most, size)| members <= *most && *size as u64 >= slots);
    sizes.next().map_or(LARGEST, |(_, size)| *size)
}

/// The slots by which the smallest weight has enough.
fn slots(weights: &[u32]) -> u64 {
    let smallest = weights.iter().copied().min().unwrap_or(1);
    let all: u64 = weights.iter().copied().map(u64::from).sum();
    all * SMALLEST / u64::from(smallest.max(1))
}

/// Whose turn it is, for ever: everybody's first, and then each one's the more often the greater its weight.
fn turns(weights: &[u32]) -> impl Iterator<Item = usize> {
    let paces: Vec<u128> =
        weights.iter().map(|weight| (1_u128 << 64) / u128::from((*weight).max(1))).collect();
    let mut next: BinaryHeap<_> = (0..weights.len()).map(|number| Reverse((0_u128, number))).collect();
    std::iter::from_fn(move || {
        let mut first = next.peek_mut()?;
        let Reverse((time, number)) = *first;
        *first = Reverse((time + paces[number], number));
        Some(number)
    })
}

/// Each backend whose turn it is takes the next free slot of an order of its own, until all are taken.
fn maglev(members: &[Member], size: usize, turns: impl Iterator<Item = usize>) -> Box<[u16]> {
    const FREE: u16 = u16::MAX;
    let step = |member: &Member| {
        let [offset, skip] = [mix(member.digest), mix(member.digest.rotate_left(32))];
        (offset % size as u64, skip % (size as u64 - 1) + 1)
    };
    let mut orders: Vec<_> = members.iter().map(step).collect();
    let mut table = vec![FREE; size];
    for number in turns.take(size) {
        let (at, skip) = &mut orders[number];
        while table[*at as usize] != FREE {
            *at = (*at + *skip) % size as u64;
        }
        table[*at as usize] = number as u16;
    }
    table.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn backend(number: u32) -> Backend {
        Backend { address: std::net::Ipv4Addr::from(0x0a46_0000 | number).into(), port: 8080 }
    }

    fn set(numbers: impl IntoIterator<Item = u32>) -> Set {
        Set::new(&Backends::alike(numbers.into_iter().map(backend).collect(), Vec::new()))
    }

    fn weighted(shares: impl IntoIterator<Item = (u32, u32)>) -> Set {
        let shares = shares.into_iter().map(|(number, weight)| (backend(number), weight));
        Set::new(&Backends::weighted(shares, []))
    }

    fn spread(set: &Set, connections: u64) -> Vec<u64> {
        let mut counts = std::collections::BTreeMap::<u64, u64>::new();
        for connection in 0..connections {
            let hash = mix(connection.wrapping_mul(0x1234_5679));
            *counts.entry(set.choose(hash).unwrap().digest).or_default() += 1;
        }
        counts.into_values().collect()
    }

    #[test]
    fn connections_are_spread_evenly() {
        for backends in [2, 3, 10, 100, 129, 150] {
            let counts = spread(&set(0..backends), 1_000_000);
            let equal = 1_000_000.0 / f64::from(backends);
            assert_eq!(counts.len(), backends as usize, "everybody gets some");
            for count in counts {
                let off = (count as f64 - equal).abs() / equal;
                assert!(off < 0.05, "{backends} backends: one is {off:.3} off");
            }
        }
    }

    /// The worst that a backend's share of the connections is off its part, as a part of that; and χ², for each of its degrees of freedom.
    fn off(set: &Set, shares: &[(u32, u32)], connections: u64) -> (f64, f64) {
        let mut counts = std::collections::BTreeMap::<IpAddr, u64>::new();
        for connection in 0..connections {
            let hash = mix(connection.wrapping_mul(0x1234_5679));
            *counts.entry(set.choose(hash).unwrap().backend.address).or_default() += 1;
        }
        let all: u32 = shares.iter().map(|(_, weight)| weight).sum();
        let (mut worst, mut squares) = (0_f64, 0.0);
        for (number, weight) in shares {
            let part = f64::from(*weight) / f64::from(all) * connections as f64;
            let count = counts.remove(&backend(*number).address).unwrap_or_default() as f64;
            worst = worst.max((count - part).abs() / part);
            squares += (count - part).powi(2) / part;
        }
        assert!(counts.is_empty(), "who has no weight gets none: {counts:?}");
        (worst, squares / (shares.len() - 1) as f64)
    }

    #[test]
    fn connections_are_spread_by_weight() {
        let few = [(1, 3), (2, 1), (3, 1)];
        let many: Vec<_> = (0..100).map(|number| (number, number % 7 + 1)).collect();
        for shares in [&few[..], &many] {
            let (worst, squares) = off(&weighted(shares.iter().copied()), shares, 1_000_000);
            assert!(squares < 2.0 && worst < 0.1, "{} backends: {worst:.3} off, {squares:.2}", shares.len());
            let forgotten = set(shares.iter().map(|(number, _)| *number));
            let (_, squares) = off(&forgotten, shares, 1_000_000);
            assert!(squares > 100.0, "{squares}: a set that forgets weights is found out");
        }
    }

    #[test]
    fn a_table_has_slots_by_weight_for_everybody() {
        let even = |backends, heavy| {
            (0..backends).map(move |number| (number, if number % 9 == 0 { heavy } else { 1 }))
        };
        for (backends, heavy, size) in
            [(129, 3, 131_071), (600, 100, 524_287), (2000, 50, 524_287), (1000, 5000, LARGEST)]
        {
            let set = weighted(even(backends, heavy));
            assert_eq!(set.table.len(), size);
            let mut counts = vec![0_u32; backends as usize];
            set.table.iter().for_each(|slot| counts[usize::from(*slot)] += 1);
            let whole: u32 = even(backends, heavy).map(|(_, weight)| weight).sum();
            for (number, weight) in even(backends, heavy) {
                let at = set.chosen.iter().position(|member| member.backend == backend(number)).unwrap();
                let part = f64::from(weight) / f64::from(whole) * size as f64;
                let off = (f64::from(counts[at]) - part).abs();
                let near = off / part <= 0.05 || size == LARGEST && off <= 1.0;
                assert!(near, "{number} of {backends} has {} slots instead of {part}", counts[at]);
            }
        }
    }

    #[test]
    fn who_is_weighted_anew_wins_or_loses_and_nobody_else() {
        let others =
            |weight| (0..12).map(move |number| (number, if number == 5 { weight } else { number % 3 + 1 }));
        for (before, after) in [(1, 4), (4, 2), (3, 0), (0, 3)] {
            let sets = [before, after].map(|weight| weighted(others(weight)));
            let mut moved = 0_u32;
            for hash in (0..100_000).map(mix) {
                let [old, new] = [&sets[0], &sets[1]].map(|set| set.choose(hash).unwrap().backend);
                moved += u32::from(old != new);
                let turned = if after > before { new } else { old };
                assert!(old == new || turned == backend(5), "{before} to {after}: from {old:?} to {new:?}");
            }
            assert!(moved > 1000, "{moved}");
        }
        // Weights that are all the same choose as none do.
        let twice =
            Backends { weights: vec![2; 9], ..Backends::alike((0..9).map(backend).collect(), vec![]) };
        let (twice, plain) = (Set::new(&twice), set(0..9));
        assert!((0..1000).map(mix).all(|hash| twice.choose(hash) == plain.choose(hash)));
    }

    #[test]
    fn when_one_of_many_by_weight_goes_hardly_any_connection_to_the_others_moves() {
        for (backends, gone) in [(130_u32, 0), (300, 7), (1500, 1499)] {
            let shares = |without| (0..backends).map(|n| (n, n % 4 + 1)).filter(move |(n, _)| *n != without);
            let (before, after) = (weighted(shares(backends)), weighted(shares(gone)));
            let hashes = || (0..200_000).map(mix);
            let held = |hash| before.choose(hash).filter(|held| held.backend != backend(gone));
            let moved = hashes()
                .filter(|hash| held(*hash).is_some_and(|held| after.choose(*hash) != Some(held)))
                .count();
            assert!(
                moved < 2000,
                "{moved} of {} connections moved from {backends} backends",
                hashes().count()
            );
        }
    }

    /// Of the connections to others, the share that moves when one backend goes.
    fn moved(backends: u32, gone: u32) -> f64 {
        let (before, after) = (set(0..backends), set((0..backends).filter(|number| *number != gone)));
        let (mut stayed, mut moved) = (0, 0);
        for connection in 0..200_000_u64 {
            let hash = mix(connection);
            let (old, new) = (before.choose(hash).unwrap(), after.choose(hash).unwrap());
            match old.backend == backend(gone) {
                true => assert_ne!(new.backend, backend(gone)),
                false if old == new => stayed += 1,
                false => moved += 1,
            }
        }
        f64::from(moved) / f64::from(moved + stayed)
    }

    #[test]
    fn when_a_backend_goes_hardly_any_connection_to_the_others_moves() {
        for backends in [2, 5, 16, 128] {
            assert_eq!(moved(backends, backends / 2), 0.0, "{backends}: rendezvous moves none");
        }
        for backends in [130, 200, 1000, 1500, 4000] {
            for gone in [0, backends / 2, backends - 1] {
                let moved = moved(backends, gone);
                println!("{backends} {gone} {moved}");
                assert!(moved <= 0.01, "{moved:.4} of {backends} backends' connections moved");
            }
        }
    }

    proptest! {
        #[test]
        fn neither_order_nor_repetition_matters(shares in prop::collection::btree_map(0_u32..60, 0_u32..4, 1..60), hashes in any::<[u64; 20]>()) {
            prop_assume!(shares.values().any(|weight| *weight > 0));
            let told = weighted(shares.clone());
            let again = weighted(shares.iter().rev().chain(&shares).map(|(number, weight)| (*number, *weight)));
            for hash in hashes {
                let choice = told.choose(hash).unwrap();
                prop_assert_eq!(choice, again.choose(hash).unwrap());
                prop_assert!(shares.iter().any(|(number, weight)| backend(*number) == choice.backend && *weight > 0));
                prop_assert_eq!(told.chosen_before((choice.digest >> 32) as u32), Some(choice));
                prop_assert!(told.keeps(choice.digest));
            }
        }
    }

    #[test]
    fn who_leaves_gets_nothing_new_and_keeps_what_it_has() {
        let set = Set::new(&Backends::alike(vec![backend(1)], vec![backend(2)]));
        let digests = [1, 2, 3].map(|number| digest(backend(number).address, 8080));
        assert!((0..100).all(|hash| set.choose(hash).unwrap().backend == backend(1)));
        assert_eq!(digests.map(|digest| set.keeps(digest)), [true, true, false]);
        assert_eq!(
            digests.map(|digest| set.chosen_before((digest >> 32) as u32).is_some()),
            [true, false, false]
        );
        assert!(Set::new(&Backends::default()).choose(7).is_none());
    }
}
