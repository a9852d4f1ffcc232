//! Pages of 2 MiB and the better part of the processors for those who are measured; both are put back afterwards.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::undo::Undo;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
const PAGE_MIB: u64 = 2;

/// Reserved pages, until this is dropped.
pub struct Hugepages {
    _undo: Undo,
}

impl Hugepages {
    /// Sees to it that so many MiB are free.
    pub fn reserve(mib: u64) -> Result<Self> {
        let (need, free) = (mib.div_ceil(PAGE_MIB), read("free_hugepages")?);
        let more = need.saturating_sub(free);
        // Those we added, whatever others have changed meanwhile.
        let undo = Undo::with(move || {
            let less = read("nr_hugepages").and_then(|pages| write(pages.saturating_sub(more)));
            if let Err(error) = less {
                eprintln!("giving back {more} hugepages: {error:#}");
            }
        });
        write(read("nr_hugepages")? + more)?;
        let free = read("free_hugepages")?;
        ensure!(free >= need, "{need} hugepages are needed and the kernel gave {free}");
        Ok(Self { _undo: undo })
    }
}

fn read(name: &str) -> Result<u64> {
    let file = format!("{POOL}/{name}");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
    text.trim().parse().with_context(|| file)
}

fn write(pages: u64) -> Result<()> {
    let file = format!("{POOL}/nr_hugepages");
    fs::write(&file, pages.to_string()).with_context(|| format!("writing {pages} to {file}"))
}

/// What the kernel divides processors by, where it does so by sessions: within one, niceness counts.
const GROUP: &str = "/proc/self/autogroup";

/// The session's share of the processors, until this is dropped.
pub struct Priority {
    _undo: Option<Undo>,
}

impl Priority {
    /// As much as can be had: what else the machine does shall not be measured.
    pub fn most() -> Result<Self> {
        // "/autogroup-84 nice 0"; not there where the kernel does not group.
        let Ok(before) = fs::read_to_string(GROUP) else { return Ok(Self { _undo: None }) };
        let Some((_, before)) = before.trim().rsplit_once(' ') else { return Ok(Self { _undo: None }) };
        let before = before.to_owned();
        fs::write(GROUP, "-20").with_context(|| format!("writing {GROUP}"))?;
        let undo = Undo::with(move || {
            if let Err(error) = fs::write(GROUP, &before) {
                eprintln!("putting back {before} in {GROUP}: {error}");
            }
        });
        Ok(Self { _undo: Some(undo) })
    }
}
