//! Overlapping ranges cut into pieces that do not overlap, each with everything that covered it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::policy::Block;

/// A range, both ends included, and what it belongs to.
pub(super) type Range = (u128, u128, u32);

/// The space from 0 to `last` in pieces: where each begins, and what covers it, sorted. Neighbours differ.
pub(super) fn cut(ranges: &[Range], last: u128) -> Vec<(u128, Vec<u32>)> {
    let mut edges: Vec<(u128, bool, u32)> = Vec::with_capacity(2 * ranges.len());
    for (start, end, owner) in ranges {
        edges.push((*start, true, *owner));
        // What reaches the end of the space does not end.
        if *end < last {
            edges.push((end + 1, false, *owner));
        }
    }
    edges.sort_unstable_by_key(|(at, ..)| *at);
    let mut covering: BTreeMap<u32, usize> = BTreeMap::new();
    let mut pieces: Vec<(u128, Vec<u32>)> = vec![(0, Vec::new())];
    let mut edges = edges.into_iter().peekable();
    while let Some((at, begins, owner)) = edges.next() {
        let times = covering.entry(owner).or_default();
        if begins {
            *times += 1;
        } else {
            // An end may be seen before a beginning at the same place: the sum is what counts.
            *times = times.wrapping_sub(1);
        }
        if edges.peek().is_some_and(|(next, ..)| *next == at) {
            continue;
        }
        covering.retain(|_, times| *times != 0);
        let owners: Vec<u32> = covering.keys().copied().collect();
        match pieces.last_mut() {
            Some((last, covered)) if *last == at => *covered = owners,
            Some((_, covered)) if *covered == owners => {}
            _ => pieces.push((at, owners)),
        }
    }
    pieces
}

/// The ranges of a block less its holes, as numbers of its family.
pub(super) fn of_block(block: &Block, owner: u32) -> Vec<Range> {
    let mut ranges = Vec::new();
    let (mut start, end) = bounds(block.cidr);
    // Holes are in order, and one may lie in another.
    for (hole_start, hole_end) in block.except.iter().map(|hole| bounds(*hole)) {
        if hole_start > start {
            ranges.push((start, hole_start - 1, owner));
        }
        match hole_end.checked_add(1) {
            Some(after) if after <= end => start = start.max(after),
            _ => return ranges,
        }
    }
    ranges.push((start, end, owner));
    ranges
}

/// The first and the last address of a prefix.
fn bounds(prefix: IpNetwork) -> (u128, u128) {
    (number(prefix.network()), number(prefix.broadcast()))
}

/// An address as a number of its family.
pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_piece_has_what_covers_it(ranges in prop::collection::vec((0u128..45, 0u128..45, 0u32..6), 0..12)) {
            let ranges: Vec<Range> = ranges.into_iter().map(|(a, b, o)| (a.min(b), a.max(b), o)).collect();
            let pieces = cut(&ranges, 44);
            prop_assert!(pieces.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 != two[1].1));
            prop_assert!(pieces.iter().all(|(start, _)| *start <= 44));
            for at in 0..45 {
                let mut covering: Vec<u32> =
                    ranges.iter().filter(|(start, end, _)| (*start..=*end).contains(&at)).map(|r| r.2).collect();
                covering.sort_unstable();
                covering.dedup();
                let piece = pieces.iter().rfind(|(start, _)| *start <= at);
                prop_assert_eq!(&piece.unwrap().1, &covering);
            }
        }

        #[test]
        fn a_block_less_its_holes_is_what_it_contains(holes in prop::collection::vec((0u8..64, 27u8..33), 0..6)) {
            let hole = |(at, length)| IpNetwork::new(IpAddr::from([10, 0, 0, at]), length).unwrap();
            let except = holes.into_iter().map(hole).map(|h| IpNetwork::new(h.network(), h.prefix()).unwrap()).collect();
            let block = Block { cidr: "10.0.0.0/26".parse().unwrap(), except };
            let ranges = of_block(&block, 7);
            for last in 0..=255 {
                let address = IpAddr::from([10, 0, 0, last]);
                let inside = ranges.iter().any(|(s, e, _)| (*s..=*e).contains(&number(address)));
                prop_assert_eq!(inside, block.contains(address), "{}", address);
            }
        }
    }

    #[test]
    fn what_reaches_the_end_of_the_space_does_not_wrap_around() {
        let all = Block::whole("::/0".parse().unwrap());
        assert_eq!(cut(&of_block(&all, 1), u128::MAX), [(0, vec![1])]);
        let top = Block { cidr: "8000::/1".parse().unwrap(), except: ["ffff::/16".parse().unwrap()].into() };
        assert_eq!(cut(&of_block(&top, 1), u128::MAX).len(), 3);
    }
}
