//! Network namespaces: finding one and working in it.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::error::KernelError;

/// Opens the namespace at a path.
pub fn open(path: &Path) -> Result<File, KernelError> {
    File::open(path).map_err(KernelError::io(format!("opening network namespace {}", path.display())))
}

/// Runs a function in a namespace, on a thread of its own: a namespace belongs to a thread, and one that has been elsewhere
/// is not used again.
pub fn within<T: Send>(netns: BorrowedFd<'_>, function: impl FnOnce() -> T + Send) -> Result<T, KernelError> {
    let entered = || {
        setns(netns, CloneFlags::CLONE_NEWNET).map_err(|errno| KernelError::Io {
            doing: "entering a network namespace".into(),
            source: errno.into(),
        })?;
        Ok(function())
    };
    thread::scope(|scope| scope.spawn(entered).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
