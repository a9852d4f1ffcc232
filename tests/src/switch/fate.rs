//! What becomes of one frame on one way: a pure function of rules, chance and time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::conditions::Rules;

/// What a rate limit may keep waiting before it loses.
const LONGEST_QUEUE: Duration = Duration::from_millis(100);
/// How long a frame is held back so that others overtake it.
const HELD_BACK: Duration = Duration::from_millis(3);

/// What happened to the frames that one port sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Frames that came in.
    pub received: u64,
    /// Frames that went out to other ports.
    pub sent: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Sent a second time.
    pub duplicated: u64,
    /// Held back.
    pub reordered: u64,
    /// Damaged.
    pub corrupted: u64,
    /// Lost on a cut way.
    pub cut: u64,
    /// Longer than the way's MTU.
    pub oversize: u64,
    /// Lost because the way was too slow.
    pub overflow: u64,
    /// Refused by the port they were for.
    pub refused: u64,
}

/// One copy of a frame on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// When it arrives.
    pub at: Instant,
    /// The bit that is turned over.
    pub turned: Option<usize>,
}

/// What is remembered of each way.
#[derive(Default)]
pub struct Fates {
    chance: fastrand::Rng,
    /// When the way is free again.
    free: HashMap<(String, String), Instant>,
    /// When its last frame arrives; no later one comes before.
    last: HashMap<(String, String), Instant>,
}

impl Fates {
    /// Begins chance anew.
    pub fn seed(&mut self, seed: u64) {
        self.chance = fastrand::Rng::with_seed(seed);
    }

    /// The copies that arrive of a frame of so many bytes.
    pub fn judge(
        &mut self,
        rules: &Rules,
        way: &(String, String),
        length: usize,
        now: Instant,
        tally: &mut Tally,
    ) -> Vec<Copy> {
        let conditions = rules.on_way(&way.0, &way.1);
        if rules.cuts.contains(way) {
            tally.cut += 1;
            return Vec::new();
        }
        if conditions.mtu.is_some_and(|mtu| length > mtu + 14) {
            tally.oversize += 1;
            return Vec::new();
        }
        if self.happens(conditions.loss) {
            tally.lost += 1;
            return Vec::new();
        }
        let Some(leaves) = self.leaves(conditions.rate, way, length, now) else {
            tally.overflow += 1;
            return Vec::new();
        };
        let jitter = conditions.jitter.unwrap_or_default().mul_f64(self.chance.f64());
        let mut at = leaves + conditions.delay.unwrap_or_default() + jitter;
        if self.happens(conditions.reorder) {
            tally.reordered += 1;
            at += HELD_BACK.max(conditions.jitter.unwrap_or_default());
        } else {
            let last = self.last.entry(way.clone()).or_insert(at);
            at = at.max(*last);
            *last = at;
        }
        let turned = self.happens(conditions.corrupt).then(|| self.chance.usize(0..length * 8));
        tally.corrupted += u64::from(turned.is_some());
        let copies = if self.happens(conditions.duplicate) { 2 } else { 1 };
        tally.duplicated += copies - 1;
        (0..copies).map(|_| Copy { at, turned }).collect()
    }

    fn happens(&mut self, share: Option<f64>) -> bool {
        share.is_some_and(|share| self.chance.f64() * 100.0 < share)
    }

    /// When a frame has left a way of limited rate; `None` when its queue is full.
    fn leaves(
        &mut self,
        rate: Option<u64>,
        way: &(String, String),
        length: usize,
        now: Instant,
    ) -> Option<Instant> {
        let Some(rate) = rate else { return Some(now) };
        let begins = self.free.get(way).copied().filter(|free| *free > now).unwrap_or(now);
        if begins - now > LONGEST_QUEUE {
            return None;
        }
        let ends = begins + Duration::from_secs_f64(length as f64 * 8.0 / rate as f64);
        self.free.insert(way.clone(), ends);
        Some(ends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Judges a thousand frames of 1,000 bytes, one a millisecond.
    fn thousand(words: &str) -> (Vec<(Duration, Duration)>, Tally) {
        let words: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
        let rules = Rules::default().after(&words, &["a", "b"]).unwrap();
        let mut fates = Fates::default();
        fates.seed(1);
        let (mut tally, start) = (Tally::default(), Instant::now());
        let way = ("a".to_owned(), "b".to_owned());
        let frames = (0..1000).flat_map(|i| {
            let sent = Duration::from_millis(i);
            let copies = fates.judge(&rules, &way, 1000, start + sent, &mut tally);
            copies.into_iter().map(move |copy| (sent, copy.at - start)).collect::<Vec<_>>()
        });
        (frames.collect(), tally)
    }

    #[test]
    fn without_conditions_nothing_happens() {
        let (frames, tally) = thousand("");
        assert_eq!(frames.len(), 1000);
        assert!(frames.iter().all(|(sent, at)| sent == at));
        assert_eq!(tally, Tally::default());
    }

    #[test]
    fn shares_are_what_was_asked_for() {
        let (frames, tally) = thousand("loss=20%");
        assert_eq!(frames.len() as u64, 1000 - tally.lost);
        assert!((150..250).contains(&tally.lost), "{tally:?}");
        let (frames, tally) = thousand("duplicate=20% corrupt=20%");
        assert_eq!(frames.len() as u64, 1000 + tally.duplicated);
        assert!((150..250).contains(&tally.duplicated) && (150..250).contains(&tally.corrupted), "{tally:?}");
    }

    #[test]
    fn jitter_keeps_the_order_and_reorder_breaks_it() {
        let (frames, _) = thousand("delay=10ms jitter=5ms");
        assert!(frames.windows(2).all(|pair| pair[0].1 <= pair[1].1));
        assert!(frames.iter().all(|(sent, at)| (10..=15).contains(&(*at - *sent).as_millis())));
        let (frames, tally) = thousand("reorder=10%");
        assert!((60..140).contains(&tally.reordered), "{tally:?}");
        assert!(frames.windows(2).any(|pair| pair[0].1 > pair[1].1));
    }

    #[test]
    fn a_rate_makes_frames_wait_and_then_loses_them() {
        // A thousand bytes a millisecond are 8 Mbit/s: half of them get through 4 Mbit/s.
        let (frames, tally) = thousand("rate=4mbit");
        assert!((500..600).contains(&frames.len()), "{}", frames.len());
        assert_eq!(frames.len() as u64 + tally.overflow, 1000);
        assert!(frames.iter().all(|(sent, at)| (*at - *sent).as_millis() <= 103));
    }

    #[test]
    fn cut_ways_and_long_frames_carry_nothing() {
        assert_eq!(thousand("cut=a>b").1.cut, 1000);
        assert_eq!(thousand("cut=b>a").0.len(), 1000);
        assert_eq!(thousand("mtu=985").1.oversize, 1000);
        assert_eq!(thousand("mtu=986").0.len(), 1000);
    }
}
