//! The stories both memory modes are told, and the harness: one process, one thread, one EAL.

mod devices;
mod frames;
mod ports;
mod start;
mod wire;

use dpdk_sys::{Burst, Eal, EalConfig, LogLevel, Mbuf, Memory, Pool, PoolConfig};
use libtest_mimic::{Arguments, Trial};
use std::{
    env,
    process::ExitCode,
    sync::OnceLock,
    time::{Duration, Instant},
};

static EAL: OnceLock<Eal> = OnceLock::new();
static MEMORY: OnceLock<Memory> = OnceLock::new();

/// Runs the stories in this memory; a child that `start` asked for only starts the EAL.
pub fn run(memory: Memory) -> ExitCode {
    if env::args().nth(1).as_deref() == Some(start::CHILD) {
        return start::child(memory);
    }
    MEMORY.set(memory).unwrap();
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let stories = [start::all(), frames::all(), ports::all(), devices::all(), wire::all()];
    libtest_mimic::run(&arguments, stories.into_iter().flatten().collect()).exit_code()
}

/// A story with its name.
pub fn story(name: &str, tell: fn()) -> Trial {
    Trial::test(name, move || {
        tell();
        Ok(())
    })
}

/// The process's one EAL.
pub fn eal() -> &'static Eal {
    EAL.get_or_init(|| Eal::start(&quiet(memory())).expect("the EAL starts"))
}

/// The memory these stories are told in.
pub fn memory() -> Memory {
    *MEMORY.get().unwrap()
}

/// Nothing but warnings.
pub fn quiet(memory: Memory) -> EalConfig {
    EalConfig { log: LogLevel::Warning, ..EalConfig::new(memory) }
}

/// A pool of ordinary frames.
pub fn pool(name: &str, frames: u32) -> Pool {
    Pool::new(eal(), PoolConfig { name, frames, cache: 64, room: 2048 }).unwrap()
}

/// A frame with these bytes in it.
pub fn frame(pool: &Pool, bytes: &[u8]) -> Mbuf {
    let mut frame = pool.alloc().expect("a free frame");
    frame.append(bytes).unwrap();
    frame
}

/// A frame of two segments.
pub fn chain(pool: &Pool, head: &[u8], tail: &[u8]) -> Mbuf {
    let mut first = frame(pool, head);
    first.chain(frame(pool, tail)).unwrap();
    first
}

/// All bytes of a frame.
pub fn whole(frame: &Mbuf) -> Vec<u8> {
    frame.each_segment().flatten().copied().collect()
}

/// Every frame is either free or out, and all that are out are these.
pub fn assert_out(pool: &Pool, out: u32) {
    assert_eq!(pool.in_use(), out, "frames of {} that are out", pool.name());
    assert_eq!(pool.free() + out, pool.frames(), "free + in flight = pool {}", pool.name());
}

/// Tries again and again, for seconds at most.
pub fn within<T>(seconds: u64, what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < end, "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A burst of frames that say 0, 1, 2 and so on.
pub fn counted(pool: &Pool, n: u64) -> Burst {
    let mut burst = Burst::new();
    for number in 0..n {
        burst.push(frame(pool, &number.to_be_bytes())).unwrap();
    }
    burst
}

/// What the frames of a burst say.
pub fn numbers(burst: &Burst) -> Vec<u64> {
    burst.iter().map(|frame| u64::from_be_bytes(frame.data()[..8].try_into().unwrap())).collect()
}
