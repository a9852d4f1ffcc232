//! How fast the time stamp counter runs: what "cycles" means in every table.
#![expect(unsafe_code, reason = "the time stamp counter has no other reader")]

use std::time::{Duration, Instant};

/// Long against what one look at the clock may be late.
const SPAN: Duration = Duration::from_millis(200);

/// Ticks of the counter in a second.
pub fn rate() -> f64 {
    let (began, first) = (Instant::now(), now());
    std::thread::sleep(SPAN);
    let (took, last) = (began.elapsed(), now());
    (last - first) as f64 / took.as_secs_f64()
}

#[cfg(target_arch = "x86_64")]
/// The counter.
pub fn now() -> u64 {
    // SAFETY: reads a register that every processor of this architecture has.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(target_arch = "aarch64")]
/// The counter.
pub fn now() -> u64 {
    let ticks: u64;
    // SAFETY: reads a register that the kernel lets every program read.
    unsafe { core::arch::asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack)) };
    ticks
}
