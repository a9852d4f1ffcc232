//! The memory of connections, and of clients' backends: files that outlive the process.
#![expect(unsafe_code, reason = "memory is mapped, and read as the atomic words that it is made of")]

use std::fs::{self, File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::slice;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, ensure};
use causeway_datapath::Clients;
use causeway_datapath::connection::Connections;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap};

/// Takes up the connections of the process before, or makes a new table for so many. The text says why those of before
/// were not taken up, where there were any.
pub(crate) fn open(path: &Path, capacity: u32) -> anyhow::Result<(Connections, Option<String>)> {
    let named = || format!("connections: {}", path.display());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(named)?;
    }
    let words = Connections::words(capacity);
    match Connections::open(map(&lock(path)?, path, words)?, capacity) {
        Ok(table) => Ok((table, None)),
        Err(other) => {
            fs::remove_file(path).with_context(named)?;
            let table = Connections::open(map(&lock(path)?, path, words)?, capacity).with_context(named)?;
            Ok((table, Some(format!("{}: those of before are not taken over: {other}", named()))))
        }
    }
}

/// The clients that are remembered beside the connections of this file.
pub(crate) fn clients(connections: &Path) -> anyhow::Result<Clients> {
    let path = connections.with_extension("clients");
    Ok(Clients::over(map(&lock(&path)?, &path, Clients::WORDS)?))
}

/// The file, for this process alone as long as that lives.
fn lock(path: &Path) -> anyhow::Result<File> {
    let options =
        || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = options().with_context(|| format!("opening {}", path.display()))?;
    let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("{} is another fast path's", path.display()))?;
    let own = locked.try_clone().with_context(|| format!("keeping {}", path.display()))?;
    // The lock goes with the process.
    std::mem::forget(locked);
    Ok(own)
}

/// Maps so many words of the file. It may be longer, having held another table; the table itself says so.
fn map(file: &File, path: &Path, words: usize) -> anyhow::Result<&'static [AtomicU64]> {
    let bytes = words * size_of::<AtomicU64>();
    let named = || format!("mapping {} bytes of {}", bytes, path.display());
    if file.metadata().with_context(named)?.len() < bytes as u64 {
        file.set_len(bytes as u64).with_context(named)?;
    }
    let length = NonZeroUsize::new(bytes).with_context(named)?;
    let (access, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
    // SAFETY: the kernel chooses the address, and nothing was there before.
    let memory = unsafe { mmap(None, length, access, flags, file, 0) }.with_context(named)?;
    // SAFETY: this is advice about the mapping just made; without huge pages it is slower, not wrong.
    let _ = unsafe { madvise(memory, bytes, MmapAdvise::MADV_HUGEPAGE) };
    let words_at: *mut AtomicU64 = memory.as_ptr().cast();
    ensure!(words_at.is_aligned(), "a mapping begins at a page");
    // SAFETY: the mapping has `words` words, is never unmapped, and is only read and written as atomic words here; any bytes
    // are good words. The file is locked against another process of ours, and shortening it is root's to refrain from.
    Ok(unsafe { slice::from_raw_parts(words_at, words) })
}
