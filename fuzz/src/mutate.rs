//! Inputs made of others: bits turned, bytes set to what hurts, parts cut, doubled and swapped, two inputs spliced.

/// Numbers in an order that a seed decides (SplitMix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The same seed throws the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below this one; 0 when there is none.
    pub fn below(&mut self, end: usize) -> usize {
        (self.throw() % end.max(1) as u64) as usize
    }

    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        // Most parts are short.
        let most = if self.below(4) == 0 { len - start } else { (len - start).min(16) };
        start..start + self.below(most + 1)
    }
}

/// What lengths, counts and offsets are wrong at.
const EDGES: &[u64] = &[
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    15,
    16,
    19,
    20,
    39,
    40,
    63,
    64,
    127,
    128,
    255,
    256,
    1279,
    1280,
    1499,
    1500,
    0x3fff,
    0x4000,
    0x7fff,
    0x8000,
    0xfffe,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    u64::MAX,
];

/// The longest input that is made.
const LONGEST: usize = 16 << 10;

/// An input made of those that are there.
pub fn mutated(dice: &mut Dice, kept: &[Vec<u8>]) -> Vec<u8> {
    let pick = |dice: &mut Dice| kept.get(dice.below(kept.len())).cloned().unwrap_or_default();
    let mut bytes = pick(dice);
    for _ in 0..=dice.below(6) {
        change(dice, &mut bytes, &pick);
    }
    bytes.truncate(LONGEST);
    bytes
}

fn change(dice: &mut Dice, bytes: &mut Vec<u8>, pick: &impl Fn(&mut Dice) -> Vec<u8>) {
    match dice.below(9) {
        0 | 1 => {
            let at = dice.below(bytes.len());
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << dice.below(8);
            }
        }
        2 => {
            let at = dice.below(bytes.len());
            if let Some(byte) = bytes.get_mut(at) {
                *byte = dice.throw() as u8;
            }
        }
        3 => {
            let width = [1, 2, 2, 4, 8][dice.below(5)];
            let value = EDGES[dice.below(EDGES.len())].to_be_bytes();
            let at = dice.below(bytes.len());
            if let Some(place) = bytes.get_mut(at..at + width) {
                place.copy_from_slice(&value[8 - width..]);
            }
        }
        4 => drop(bytes.drain(dice.range(bytes.len()))),
        5 => {
            let part = bytes[dice.range(bytes.len())].to_vec();
            let at = dice.below(bytes.len() + 1);
            drop(bytes.splice(at..at, part));
        }
        6 => bytes.truncate(dice.below(bytes.len() + 1)),
        7 => {
            let more = (0..dice.below(20)).map(|_| dice.throw() as u8).collect::<Vec<_>>();
            let at = dice.below(bytes.len() + 1);
            drop(bytes.splice(at..at, more));
        }
        _ => {
            let other = pick(dice);
            let (from, to) = (dice.range(other.len()), dice.range(bytes.len()));
            drop(bytes.splice(to, other[from].iter().copied()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_inputs_again_and_another_one_others() {
        let kept = [b"one input".to_vec(), b"and another".to_vec()];
        let make = |seed| {
            let mut dice = Dice::new(seed);
            (0..200).map(|_| mutated(&mut dice, &kept)).collect::<Vec<_>>()
        };
        assert_eq!(make(7), make(7));
        assert_ne!(make(7), make(8));
        let fresh = make(7).iter().filter(|input| !kept.contains(input)).count();
        assert!(fresh > 150, "only {fresh} of 200 inputs are new");
    }

    #[test]
    fn nothing_can_be_made_of_nothing_without_harm() {
        let mut dice = Dice::new(1);
        for _ in 0..200 {
            mutated(&mut dice, &[]);
            mutated(&mut dice, &[Vec::new()]);
        }
    }
}
