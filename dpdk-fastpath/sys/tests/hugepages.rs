//! Every story over 2 MiB pages, which are reserved here and given back.
#![expect(clippy::unwrap_used, reason = "a story that goes wrong is a panic")]

mod story;

use dpdk_sys::{Memory, hugepages};
use std::{fs, process::ExitCode};

const MIB: u32 = 256;
const RESERVED: &str = "/proc/sys/vm/nr_hugepages";

fn main() -> ExitCode {
    let _pages = Pages::reserve(hugepages::pages_for(MIB));
    story::run(Memory::Hugepages { mib: MIB })
}

/// Pages added to what the machine has reserved, taken off it again at the end.
struct Pages(u64);

impl Pages {
    fn reserve(more: u64) -> Self {
        set(reserved() + more);
        let pages = Self(more);
        hugepages::check(MIB).expect("the machine has memory for 2 MiB pages");
        pages
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        set(reserved().saturating_sub(self.0));
    }
}

fn reserved() -> u64 {
    fs::read_to_string(RESERVED).unwrap().trim().parse().unwrap()
}

fn set(pages: u64) {
    fs::write(RESERVED, pages.to_string()).expect("reserving hugepages needs root");
}
