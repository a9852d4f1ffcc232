//! How a worker that has nothing to do waits for something.

use std::hint;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollTimeout;

use crate::table::Wait;

/// How long a worker looks again and again where there are CPUs to spare: waking from a wait costs more than most gaps last.
const SPIN: Duration = Duration::from_micros(50);
/// CPUs for each worker from which on there are some to spare. With fewer, a spinning worker keeps from running whoever it waits
/// for: with two processors each question between two pods takes 60 µs instead of 42.
const PLENTY: usize = 3;
/// How long after that it naps between looks at devices that have no descriptor.
const NAP_UNTIL: Duration = Duration::from_micros(500);
const NAP: Duration = Duration::from_micros(20);

/// How long workers spin when there is nothing to do.
pub(crate) fn spin(workers: u16, cpus: usize) -> Duration {
    if cpus >= usize::from(workers) * PLENTY { SPIN } else { Duration::ZERO }
}

/// Since when there was nothing to do.
#[derive(Debug)]
pub(crate) struct Idleness {
    spin: Duration,
    idle: bool,
    /// Read only when it matters: the clock costs something.
    since: Option<Instant>,
}

impl Idleness {
    pub(crate) fn new(spin: Duration) -> Self {
        Self { spin, idle: false, since: None }
    }

    /// Notes whether a turn had something to do.
    #[inline]
    pub(crate) fn note(&mut self, busy: bool) {
        self.idle = !busy;
        if busy {
            self.since = None;
        }
    }

    /// Whether the last turn had nothing to do.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.idle
    }

    /// Rests before the next turn, and says how long that turn waits for descriptors.
    #[inline]
    pub(crate) fn rest(&mut self, wait: &Wait) -> EpollTimeout {
        if self.spin.is_zero() && !wait.devices {
            // The kernel knows whether there is something, and asking it once is enough.
            return wait.at_most;
        }
        if self.idle { self.rest_longer(wait) } else { EpollTimeout::ZERO }
    }

    /// The longer, the longer there was nothing.
    fn rest_longer(&mut self, wait: &Wait) -> EpollTimeout {
        let idle = self.since.get_or_insert_with(Instant::now).elapsed();
        if idle < self.spin {
            hint::spin_loop();
        } else if wait.devices && idle < NAP_UNTIL {
            thread::sleep(NAP);
        } else {
            return wait.at_most;
        }
        EpollTimeout::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_spins_where_others_can_run_meanwhile() {
        assert_eq!((spin(1, 2), spin(1, 3)), (Duration::ZERO, SPIN));
        assert_eq!((spin(4, 8), spin(4, 16)), (Duration::ZERO, SPIN));
    }
}
