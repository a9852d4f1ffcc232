//! Which backend a client had last, where its next connection shall go to the same.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::entropy::mix;

/// Clients that are remembered, 16 bytes each, in so many sets of so many: of a full set the one that was longest not seen is forgotten.
const SETS: usize = 1 << 14;
const WAYS: usize = 4;
/// A second, as far as affinity cares.
const UNIT: u64 = 1_000_000_000;

/// The clients that all workers remember, in memory that the caller keeps. It may be what an earlier process left: what does not mean
/// anything here is nobody's.
#[derive(Clone, Copy, Debug)]
pub struct Clients(&'static [AtomicU64]);

/// A client at a frontend, and its backend with the second in which it was chosen. The first word is mixed with the second: what two workers
/// wrote at once is nobody's.
#[derive(Debug)]
struct Place<'a> {
    who: &'a AtomicU64,
    what: &'a AtomicU64,
}

impl Place<'_> {
    fn read(&self) -> (u64, u64) {
        let what = self.what.load(Relaxed);
        (self.who.load(Relaxed) ^ mix(what), what)
    }

    fn write(&self, who: u64, what: u64) {
        self.what.store(what, Relaxed);
        self.who.store(who ^ mix(what), Relaxed);
    }
}

impl Clients {
    /// The words of memory that they take.
    pub const WORDS: usize = 2 * SETS * WAYS;

    /// In memory of [`WORDS`](Self::WORDS), all zero or an earlier process's.
    pub fn over(words: &'static [AtomicU64]) -> Self {
        Self(words)
    }

    fn set(&self, who: u64) -> impl Iterator<Item = Place<'static>> {
        let first = 2 * (who as usize % SETS * WAYS);
        let words = self.0.get(first..first + 2 * WAYS).unwrap_or_default();
        words.as_chunks().0.iter().map(|[who, what]| Place { who, what })
    }

    /// The first half of the digest of the backend that a client at a frontend had within this time.
    pub(crate) fn last(&self, who: u64, within: u64, now: u64) -> Option<u32> {
        let (_, what) =
            self.set(who).map(|place| place.read()).find(|(there, what)| *there == who && *what != 0)?;
        let since = (now / UNIT).wrapping_sub(what & 0xffff_ffff) as u32;
        (u64::from(since) * UNIT < within).then_some((what >> 32) as u32)
    }

    /// Notes the backend of a client's new connection.
    pub(crate) fn note(&self, who: u64, backend: u64, now: u64) {
        let second = (now / UNIT) as u32;
        let age = |place: &Place<'_>| {
            let (there, what) = place.read();
            let since = if what == 0 { u32::MAX } else { second.wrapping_sub(what as u32) };
            (there == who && what != 0, since)
        };
        if let Some(place) = self.set(who).max_by_key(age) {
            place.write(who, backend & !0xffff_ffff | u64::from(second));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: u64 = 10_800 * UNIT;

    fn clients() -> Clients {
        Clients::over((0..Clients::WORDS).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak())
    }

    #[test]
    fn a_client_is_remembered_for_its_time() {
        let memory = clients();
        assert_eq!(memory.last(7, LONG, 0), None);
        memory.note(7, 0xabcd_0000_1234_5678, 5 * UNIT);
        assert_eq!(memory.last(7, 10 * UNIT, 14 * UNIT), Some(0xabcd_0000));
        assert_eq!(memory.last(7, 10 * UNIT, 15 * UNIT), None);
        memory.note(7, 0x1111_0000_0000_0000, 20 * UNIT);
        assert_eq!(memory.last(7, 10 * UNIT, 21 * UNIT), Some(0x1111_0000));
        assert_eq!(memory.last(8, 10 * UNIT, 21 * UNIT), None);
    }

    #[test]
    fn what_an_earlier_process_left_is_known_and_noise_is_nobodys() {
        let memory = clients();
        memory.note(7, 0xabcd_0000_1234_5678, 5 * UNIT);
        assert_eq!(Clients::over(memory.0).last(7, LONG, 6 * UNIT), Some(0xabcd_0000));
        memory.0.iter().zip(1..).for_each(|(word, number)| word.store(mix(number), Relaxed));
        assert!((0..100_000).all(|who| memory.last(who, LONG, 6 * UNIT).is_none()));
    }

    #[test]
    fn of_too_many_the_oldest_is_forgotten() {
        let memory = clients();
        let same_set = |number: u64| 5 + number * SETS as u64;
        for number in 0..=WAYS as u64 {
            memory.note(same_set(number), u64::MAX, (number + 1) * UNIT);
        }
        let known: Vec<_> =
            (0..=WAYS as u64).map(|number| memory.last(same_set(number), LONG, 9 * UNIT).is_some()).collect();
        assert_eq!(known, [false, true, true, true, true]);
    }
}
