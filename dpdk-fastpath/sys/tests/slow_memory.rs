//! Every story over ordinary memory: no hugepage is needed, none is touched.
#![expect(clippy::unwrap_used, reason = "a story that goes wrong is a panic")]

mod story;

use dpdk_sys::Memory;

fn main() -> std::process::ExitCode {
    story::run(Memory::Slow { mib: 256 })
}
