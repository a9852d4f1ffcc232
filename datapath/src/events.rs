//! What is told of single connections: that they began, or that a rule denied them. A ring for each worker, which never waits:
//! what finds it full is counted as lost.

use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use causeway_model::policy::{RuleNumber, Verdict};
use causeway_wire::IpProtocol;

use crate::connection::{End, Key};

/// Words of an event: the key's five, time, bytes, two rules, and the rest.
const WORDS: usize = 9;
const DENIED: u64 = 1;
const FROM_HIGH: u64 = 1 << 1;

/// What was decided of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds of the worker's clock.
    pub at: u64,
    /// The verdict.
    pub verdict: Verdict,
    /// The transport.
    pub protocol: IpProtocol,
    /// Who begins: address and port.
    pub from: (IpAddr, u16),
    /// Whom it is for.
    pub to: (IpAddr, u16),
    /// Bytes of the packet that asked, from its IP header on.
    pub bytes: u64,
    /// The rules that let it pass, of who begins and of whom it is for; of what is denied, the one that denies twice.
    pub rules: [RuleNumber; 2],
}

/// The events of one worker, which alone writes; one other reads.
#[derive(Debug)]
pub struct Events {
    places: Box<[[AtomicU64; WORDS]]>,
    written: AtomicU64,
    read: AtomicU64,
    lost: AtomicU64,
}

impl Events {
    /// Room for so many that nobody has read.
    pub fn new(room: usize) -> Self {
        let place = |_| std::array::from_fn(|_| AtomicU64::new(0));
        let places = (0..room.next_power_of_two()).map(place).collect();
        Self { places, written: AtomicU64::new(0), read: AtomicU64::new(0), lost: AtomicU64::new(0) }
    }

    fn place(&self, number: u64) -> &[AtomicU64; WORDS] {
        &self.places[number as usize & (self.places.len() - 1)]
    }

    /// Tells of a connection that an end begins.
    #[cold]
    pub(crate) fn tell(
        &self,
        (key, from): (&Key, End),
        (at, bytes): (u64, u64),
        verdict: Verdict,
        rules: [RuleNumber; 2],
    ) {
        let written = self.written.load(Relaxed);
        if written.wrapping_sub(self.read.load(Acquire)) >= self.places.len() as u64 {
            self.lost.store(self.lost.load(Relaxed) + 1, Relaxed);
            return;
        }
        let flags = if verdict == Verdict::Deny { DENIED } else { 0 };
        let flags = flags | if from == End::High { FROM_HIGH } else { 0 };
        let [a, b, rest, c, d] = key.0;
        let rules = u64::from(rules[0].0) << 32 | u64::from(rules[1].0);
        for (word, value) in self.place(written).iter().zip([a, b, rest, c, d, at, bytes, rules, flags]) {
            word.store(value, Relaxed);
        }
        self.written.store(written.wrapping_add(1), Release);
    }

    /// Takes what has been told since the last time, the oldest first, and how much was ever lost. For one reader.
    pub fn take(&self) -> (Vec<Event>, u64) {
        let (first, end) = (self.read.load(Relaxed), self.written.load(Acquire));
        let events = (first..end).map(|number| self.event(number)).collect();
        self.read.store(end, Release);
        (events, self.lost.load(Relaxed))
    }

    fn event(&self, number: u64) -> Event {
        let [a, b, rest, c, d, at, bytes, rules, flags] =
            std::array::from_fn(|word| self.place(number)[word].load(Relaxed));
        let key = Key([a, b, rest, c, d]);
        let from = if flags & FROM_HIGH == 0 { End::Low } else { End::High };
        Event {
            at,
            verdict: if flags & DENIED == 0 { Verdict::Allow } else { Verdict::Deny },
            protocol: key.protocol(),
            from: key.end(from),
            to: key.end(from.other()),
            bytes,
            rules: [RuleNumber((rules >> 32) as u32), RuleNumber(rules as u32)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> (Key, End) {
        Key::v4((0x0a46_0209, port), (0x0a46_0103, 80), IpProtocol::TCP)
    }

    #[test]
    fn events_come_out_as_they_went_in_and_what_finds_no_room_is_counted() {
        let events = Events::new(4);
        for round in 0..3 {
            for number in 0..6_u16 {
                let (key, from) = key(1000 + number);
                let verdict = if number % 2 == 0 { Verdict::Allow } else { Verdict::Deny };
                events.tell(
                    (&key, from),
                    (7 + u64::from(number), 60),
                    verdict,
                    [RuleNumber(16), RuleNumber(17)],
                );
            }
            let (taken, lost) = events.take();
            assert_eq!((taken.len(), lost), (4, 2 * (round + 1)));
            let event = &taken[1];
            assert_eq!((event.at, event.verdict, event.bytes), (8, Verdict::Deny, 60));
            assert_eq!(
                (event.from, event.to),
                (("10.70.2.9".parse().unwrap(), 1001), ("10.70.1.3".parse().unwrap(), 80))
            );
            assert_eq!((event.protocol, event.rules), (IpProtocol::TCP, [RuleNumber(16), RuleNumber(17)]));
        }
        assert_eq!(events.take().0, []);
    }
}
