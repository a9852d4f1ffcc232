//! The machine's pages of 2 MiB: more of them for a while.

use std::fs::{self, File};
use std::io;

/// How many the machine shall have.
const RESERVED: &str = "/proc/sys/vm/nr_hugepages";
/// What is locked meanwhile: the count is the machine's, and several tests may want to change it.
const LOCKED: &str = "/sys/kernel/mm/hugepages";

/// Pages added to what the machine has reserved, taken off it again at the end. Others wait meanwhile.
#[derive(Debug)]
pub struct Hugepages {
    more: u64,
    _lock: File,
}

impl Hugepages {
    /// Reserves so many more, all of them or an error.
    pub fn reserve(more: u64) -> io::Result<Self> {
        let lock = File::open(LOCKED)?;
        lock.lock()?;
        let before = reserved()?;
        fs::write(RESERVED, (before + more).to_string())?;
        // From here on whatever was got is given back.
        let got = reserved()?.saturating_sub(before);
        let this = Self { more: got, _lock: lock };
        if got < more {
            return Err(io::Error::other(format!("of {more} hugepages the machine has room for {got}")));
        }
        Ok(this)
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        let given_back =
            reserved().and_then(|all| fs::write(RESERVED, all.saturating_sub(self.more).to_string()));
        if let Err(error) = given_back {
            eprintln!("giving back {} hugepages: {error}", self.more);
        }
    }
}

/// How many the machine has reserved.
fn reserved() -> io::Result<u64> {
    fs::read_to_string(RESERVED)?.trim().parse().map_err(io::Error::other)
}
