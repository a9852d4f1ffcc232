//! Tables that the control path fills and the packet path only reads.

use std::collections::BTreeMap;

/// What a table is keyed by: an IPv4 address as `u32`, an IPv6 address as `u128`.
pub(crate) trait Address: Copy + Ord {
    /// The length of a prefix that is one address.
    const LENGTH: u8;

    /// The first `len` bits set.
    fn mask(len: u8) -> Self;

    /// What both have.
    fn and(self, mask: Self) -> Self;

    /// 64 well-mixed bits.
    fn scatter(self) -> u64;

    /// One bit of 64, told by the address's last six.
    fn last_bits(self) -> u64;
}

// 2^64 divided by the golden ratio, and another odd number without pattern.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const OTHER: u64 = 0xd6e8_feb8_6659_fd93;

impl Address for u32 {
    const LENGTH: u8 = 32;

    fn mask(len: u8) -> Self {
        Self::MAX.checked_shl(u32::from(Self::LENGTH - len.min(Self::LENGTH))).unwrap_or(0)
    }

    #[inline]
    fn and(self, mask: Self) -> Self {
        self & mask
    }

    #[inline]
    fn scatter(self) -> u64 {
        u64::from(self).wrapping_mul(GOLDEN)
    }

    #[inline]
    fn last_bits(self) -> u64 {
        1 << (self % 64)
    }
}

impl Address for u128 {
    const LENGTH: u8 = 128;

    fn mask(len: u8) -> Self {
        Self::MAX.checked_shl(u32::from(Self::LENGTH - len.min(Self::LENGTH))).unwrap_or(0)
    }

    #[inline]
    fn and(self, mask: Self) -> Self {
        self & mask
    }

    #[inline]
    fn scatter(self) -> u64 {
        ((self >> 64) as u64).wrapping_mul(OTHER).wrapping_add(self as u64).wrapping_mul(GOLDEN)
    }

    #[inline]
    fn last_bits(self) -> u64 {
        1 << (self as u64 % 64)
    }
}

/// A hash table of open addressing, at most half full, so that a look-up ends after a step or two.
#[derive(Clone, Debug)]
pub(crate) struct Table<K, V> {
    // A power of two of them.
    slots: Box<[(K, Option<V>)]>,
    shift: u32,
}

impl<K: Address, V: Copy> Table<K, V> {
    /// A table of these entries; of equal keys the first is taken.
    pub(crate) fn new(entries: &[(K, V)]) -> Self {
        let size = (entries.len() * 2 + 2).next_power_of_two();
        let none = (K::mask(0), None);
        let mut table = Self { slots: vec![none; size].into(), shift: 64 - size.trailing_zeros() };
        for &(key, value) in entries {
            let slot = table.find(key);
            if table.slots[slot].1.is_none() {
                table.slots[slot] = (key, Some(value));
            }
        }
        table
    }

    /// Where `key` is or would be. There is always an empty slot, at which the search ends.
    fn find(&self, key: K) -> usize {
        let mut at = self.first(key);
        while self.slots[at].1.is_some() && self.slots[at].0 != key {
            at = (at + 1) & (self.slots.len() - 1);
        }
        at
    }

    #[inline]
    fn first(&self, key: K) -> usize {
        (key.scatter() >> self.shift) as usize
    }

    /// The value of `key`.
    #[inline]
    pub(crate) fn get(&self, key: K) -> Option<V> {
        let mut at = self.first(key);
        loop {
            match self.slots.get(at) {
                Some((found, Some(value))) if *found == key => return Some(*value),
                Some((_, Some(_))) => at = (at + 1) & (self.slots.len() - 1),
                _ => return None,
            }
        }
    }
}

/// Longest prefix match: a table for each length that occurs, the longest first. A cluster has few lengths, and all that is asked
/// for often is found at the first look: whole addresses of pods here, prefixes of nodes elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct Prefixes<K, V> {
    whole: Table<K, V>,
    lengths: Box<[(K, Table<K, V>)]>,
    /// The prefixes of the commonest length, which are those of nodes, and that length's mask.
    blocks: Table<K, Block<V>>,
    mask: K,
}

/// A prefix of the commonest length.
#[derive(Clone, Copy, Debug)]
struct Block<V> {
    value: V,
    /// The last bits of the addresses inside of it that longer prefixes may cover.
    deeper: u64,
}

impl<K: Address, V: Copy> Prefixes<K, V> {
    /// A table of these prefixes and their lengths; of equal ones the first is taken.
    pub(crate) fn new(entries: &[(K, u8, V)]) -> Self {
        let mut by_length = BTreeMap::<u8, Vec<(K, V)>>::new();
        for (key, len, value) in entries {
            by_length.entry(*len).or_default().push((key.and(K::mask(*len)), *value));
        }
        let whole = Table::new(&by_length.remove(&K::LENGTH).unwrap_or_default());
        let commonest = by_length.iter().max_by_key(|(_, same)| same.len()).map_or(0, |(len, _)| *len);
        let mask = K::mask(commonest);
        let mut deeper = BTreeMap::<K, u64>::new();
        for (key, len, _) in entries.iter().filter(|(_, len, _)| *len > commonest) {
            let bits = if *len == K::LENGTH { key.last_bits() } else { u64::MAX };
            *deeper.entry(key.and(mask)).or_default() |= bits;
        }
        let block = |&(key, value): &(K, V)| {
            (key, Block { value, deeper: deeper.get(&key).copied().unwrap_or_default() })
        };
        let blocks: Vec<_> = by_length.get(&commonest).into_iter().flatten().map(block).collect();
        let lengths = by_length.iter().rev().map(|(len, same)| (K::mask(*len), Table::new(same)));
        Self { whole, lengths: lengths.collect(), blocks: Table::new(&blocks), mask }
    }

    /// The value of the longest prefix that covers `address`; soonest found when a whole address does.
    #[inline(always)]
    pub(crate) fn get(&self, address: K) -> Option<V> {
        self.whole.get(address).or_else(|| self.covering(address))
    }

    #[inline(never)]
    fn get_deep(&self, address: K) -> Option<V> {
        self.get(address)
    }

    #[inline(never)]
    fn covering(&self, address: K) -> Option<V> {
        self.lengths.iter().find_map(|(mask, table)| table.get(address.and(*mask)))
    }

    /// The same; soonest found when a node's prefix does.
    #[inline(always)]
    pub(crate) fn get_afar(&self, address: K) -> Option<V> {
        match self.blocks.get(address.and(self.mask)) {
            Some(block) if block.deeper & address.last_bits() == 0 => Some(block.value),
            _ => self.get_deep(address),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The obvious look-up: of the entries that cover the address the longest, of equals the first.
    fn slow<K: Address>(entries: &[(K, u8, u16)], address: K) -> Option<u16> {
        let covers = |(key, len, _): &&(K, u8, u16)| key.and(K::mask(*len)) == address.and(K::mask(*len));
        let longest = entries.iter().filter(covers).map(|entry| entry.1).max()?;
        entries.iter().filter(covers).find(|entry| entry.1 == longest).map(|entry| entry.2)
    }

    proptest! {
        #[test]
        fn fast_is_slow_over_ipv4(
            entries in prop::collection::vec((0..64_u32, 24..=32_u8, any::<u16>()), 0..60),
            asked in prop::collection::vec(0..80_u32, 20),
        ) {
            let table = Prefixes::new(&entries);
            for address in asked {
                prop_assert_eq!(table.get(address), slow(&entries, address));
                prop_assert_eq!(table.get_afar(address), slow(&entries, address));
            }
        }

        #[test]
        fn fast_is_slow_over_ipv6(
            entries in prop::collection::vec((any::<u8>(), any::<bool>(), any::<u16>()), 0..60),
            asked in any::<[u8; 20]>(),
        ) {
            let high = |byte: u8| u128::from(byte) << 64 | u128::from(byte & 1);
            let entries: Vec<_> =
                entries.iter().map(|&(byte, whole, value)| (high(byte), if whole { 128 } else { 62 }, value)).collect();
            let table = Prefixes::new(&entries);
            for byte in asked {
                prop_assert_eq!(table.get(high(byte)), slow(&entries, high(byte)));
                prop_assert_eq!(table.get_afar(high(byte)), slow(&entries, high(byte)));
            }
        }
    }

    #[test]
    fn an_empty_table_has_nothing() {
        assert_eq!(Prefixes::<u32, u16>::new(&[]).get(7), None);
        assert_eq!(Table::<u128, u16>::new(&[]).get(7), None);
    }

    #[test]
    fn a_prefix_of_length_zero_covers_everything() {
        assert_eq!(Prefixes::new(&[(0_u32, 0, 1_u16)]).get(u32::MAX), Some(1));
    }
}
