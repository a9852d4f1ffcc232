//! The clock that connections are timed by.

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since the machine started, suspension included: the same for every process of a boot, and never back.
#[inline]
pub(crate) fn now() -> u64 {
    // This clock is always there.
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}
