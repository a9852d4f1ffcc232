use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_model::Family;
use ipnetwork::IpNetwork;

/// Disjoint prefixes, each with whose it is, found by overlap in logarithmic time.
#[derive(Debug)]
pub(super) struct Ranges<T> {
    /// By family and first address.
    by_start: BTreeMap<(Family, u128), (IpNetwork, T)>,
}

impl<T> Ranges<T> {
    pub fn new() -> Self {
        Self { by_start: BTreeMap::new() }
    }

    /// One of the prefixes that share an address with this one, and whose it is.
    pub fn overlap(&self, prefix: IpNetwork) -> Option<&(IpNetwork, T)> {
        let (family, first, last) = bounds(prefix);
        // The prefixes are disjoint: of those that begin before our end, only the last can reach our beginning.
        let (_, candidate) = self.by_start.range((family, 0)..=(family, last)).next_back()?;
        (bounds(candidate.0).2 >= first).then_some(candidate)
    }

    /// Takes up a prefix that overlaps none of those here.
    pub fn insert(&mut self, prefix: IpNetwork, owner: T) {
        let (family, first, _) = bounds(prefix);
        self.by_start.insert((family, first), (prefix, owner));
    }
}

/// Whether two prefixes share an address.
pub(super) fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    let ((family_a, first_a, last_a), (family_b, first_b, last_b)) = (bounds(a), bounds(b));
    family_a == family_b && first_a <= last_b && first_b <= last_a
}

/// A single address as a prefix.
pub(super) fn single(address: IpAddr) -> IpNetwork {
    IpNetwork::from(address)
}

fn bounds(prefix: IpNetwork) -> (Family, u128, u128) {
    let number = |address| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    };
    (Family::of(prefix.ip()), number(prefix.network()), number(prefix.broadcast()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Prefixes crowded enough to meet: short ones hold long ones, and both families use the same numbers.
    fn prefix() -> impl Strategy<Value = IpNetwork> {
        let v4 = (0u32..64, 24u8..=32).prop_map(|(low, length)| (IpAddr::from(low.to_be_bytes()), length));
        let v6 = (0u128..64, 120u8..=128).prop_map(|(low, length)| (IpAddr::from(low.to_be_bytes()), length));
        prop_oneof![v4, v6, Just((IpAddr::from([0; 4]), 0)), Just((IpAddr::from([0u16; 8]), 0))].prop_map(
            |(address, length)| {
                let prefix = IpNetwork::new(address, length).unwrap();
                IpNetwork::new(prefix.network(), length).unwrap()
            },
        )
    }

    /// Either holds the other's first address: the definition, told in ipnetwork's words.
    fn slow_overlap(a: IpNetwork, b: IpNetwork) -> bool {
        a.contains(b.network()) || b.contains(a.network())
    }

    proptest! {
        #[test]
        fn overlap_is_what_the_slow_check_says(a in prefix(), b in prefix()) {
            prop_assert_eq!(overlap(a, b), slow_overlap(a, b));
            prop_assert_eq!(overlap(b, a), overlap(a, b));
        }

        #[test]
        fn the_index_finds_an_overlap_exactly_when_there_is_one(prefixes in prop::collection::vec(prefix(), 1..40)) {
            let mut ranges = Ranges::new();
            let mut taken: Vec<IpNetwork> = Vec::new();
            for prefix in prefixes {
                let slow: Vec<_> = taken.iter().filter(|other| slow_overlap(**other, prefix)).collect();
                match ranges.overlap(prefix) {
                    Some((found, ())) => prop_assert!(slow.contains(&found)),
                    None => {
                        prop_assert!(slow.is_empty(), "{prefix} overlaps {slow:?}");
                        ranges.insert(prefix, ());
                        taken.push(prefix);
                    }
                }
            }
        }
    }
}
