//! What is told of services is what they say.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::btree_map;
use proptest::prelude::*;

use super::*;

fn backend(number: u8) -> Backend {
    Backend { address: [10, 70, 1, number].into(), port: 8080 }
}

fn alike(numbers: impl IntoIterator<Item = u8>) -> Backends {
    Backends::alike(numbers.into_iter().map(backend).collect(), Vec::new())
}

fn counts(slots: &[Backend]) -> BTreeMap<Backend, usize> {
    let mut counts = BTreeMap::new();
    slots.iter().for_each(|backend| *counts.entry(*backend).or_default() += 1);
    counts
}

fn weighted(shares: &BTreeMap<u8, u32>) -> Backends {
    Backends::weighted(shares.iter().map(|(number, weight)| (backend(*number), *weight)), [])
}

proptest! {
    #[test]
    fn slots_are_one_row_of_all_that_are_chosen_and_whoever_stays_stays_where_it_was(
        old in btree_map(0_u8..30, 1_u32..9, 0..20),
        new in btree_map(0_u8..30, 1_u32..9, 0..20),
    ) {
        let (old, new) = (slots(&[], &weighted(&old)), weighted(&new));
        let now = slots(&old, &new);
        let shares: BTreeMap<Backend, usize> = new.shares().map(|(backend, weight)| (backend, weight as usize)).collect();
        prop_assert_eq!(counts(&now), shares.clone());
        let mut left = shares;
        for (slot, backend) in old.iter().enumerate().take(now.len()) {
            if let Some(left) = left.get_mut(backend).filter(|left| **left > 0) {
                *left -= 1;
                prop_assert_eq!(&now[slot], backend);
            }
        }
        prop_assert_eq!(slots(&now, &new), now);
    }

    #[test]
    fn of_many_weights_each_has_the_slots_next_to_its_part_and_one_at_least(
        shares in btree_map(any::<u8>(), prop_oneof![1_u32..9, 1_u32..1000, any::<u32>()], 1..250),
    ) {
        let backends = weighted(&shares);
        let row = slots(&[], &backends);
        let room = SLOTS.max(4 * shares.len() as u64);
        let whole: u64 = backends.shares().map(|(_, weight)| u64::from(weight)).sum();
        prop_assert_eq!(row.len() as u64, whole.min(room));
        let counts = counts(&row);
        let mut told: Vec<_> = backends.shares().map(|(backend, weight)| (weight, counts.get(&backend).copied().unwrap_or(0))).collect();
        told.sort_unstable();
        prop_assert!(told.iter().all(|(_, slots)| *slots > 0), "everybody has one");
        prop_assert!(told.windows(2).all(|pair| pair[0].1 <= pair[1].1), "nobody has fewer than who weighs less: {:?}", told);
        let part = |weight: u32| f64::from(weight) / whole as f64 * row.len() as f64;
        if told.iter().all(|(weight, _)| part(*weight) >= 1.0) {
            for (weight, slots) in &told {
                prop_assert!((*slots as f64 - part(*weight)).abs() < 1.0, "{} slots for {}: {:?}", slots, weight, told);
            }
        }
    }
}

#[test]
fn a_backend_less_changes_two_slots_at_most() {
    let old: Vec<Backend> = (0..10).map(backend).collect();
    let new = slots(&old, &alike((0..10).filter(|number| *number != 3)));
    assert_eq!(new[3], backend(9), "the last one moves up");
    let (gone, come) = crate::tables::difference(of_backends(7, &old, false), of_backends(7, &new, false));
    assert_eq!((gone.len(), come.len()), (2, 1));
}

#[test]
fn a_key_tells_its_frontend() {
    let frontends = [
        (At::Address([10, 96, 0, 10].into()), PortProtocol::Tcp, 80),
        (At::Address("fd96::10".parse().unwrap()), PortProtocol::Sctp, 65_535),
        (At::Nodes(Family::V4), PortProtocol::Udp, 30_080),
        (At::Nodes(Family::V6), PortProtocol::Tcp, 1),
    ];
    for (at, protocol, port) in frontends {
        let frontend = Frontend { at, protocol, port };
        assert_eq!(frontend_of(&frontend_key(&frontend)), Some(frontend));
    }
    assert_eq!(frontend_of(&[0; 7]), None);
    assert_eq!(frontend_of(&[0; 12]), None, "no such protocol");
}

#[test]
fn sources_are_intervals_of_their_number_to_the_last_address() {
    let told = Told {
        sources: Some((
            5,
            vec!["10.0.0.0/8".parse().unwrap(), "0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        )),
        answers: [(1, 0); 2],
        backends: BTreeSet::new(),
        sticks: false,
    };
    let at = At::Address([10, 96, 0, 10].into());
    let entries = of_frontend(&Frontend { at, protocol: PortProtocol::Tcp, port: 80 }, &told);
    let sources: Vec<&Entry> = entries.iter().filter(|entry| matches!(entry.set, Set::Sources(_))).collect();
    assert_eq!(sources.len(), 1, "nested ones are one, and the other family's are not asked");
    assert_eq!(sources[0].key, [0, 0, 0, 5, 0, 0, 0, 0]);
    assert_eq!(sources[0].end.as_deref(), Some(&[0, 0, 0, 6, 0, 0, 0, 0][..]));
}
