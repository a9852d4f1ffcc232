use std::fs::{File, OpenOptions, metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use nix::fcntl::OFlag;
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use thiserror::Error;

/// A path that is no pod's network namespace.
#[derive(Debug, Error)]
pub enum NamespaceError {
    /// It cannot be opened.
    #[error("cannot be opened: {0}")]
    Open(#[source] io::Error),
    /// It is a file of some other kind.
    #[error("is not a network namespace")]
    NotANamespace,
    /// It is where the plugin itself runs: a recycled pid, or a runtime gone wrong.
    #[error("is the host's own network namespace")]
    Host,
    /// Where the plugin runs cannot be told, so that nothing is safe.
    #[error("cannot be told from the plugin's own namespace: {0}")]
    OwnUnknown(#[source] io::Error),
}

/// The network namespace of a pod, held open so that it can neither vanish nor be exchanged.
#[derive(Debug)]
pub struct Namespace(File);

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opens CNI_NETNS and makes sure that it is a namespace and not the host's.
pub fn open(path: &str) -> Result<Namespace, NamespaceError> {
    // Without O_NONBLOCK a FIFO in that place would hold us for ever.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
    let file = opened.map_err(NamespaceError::Open)?;
    let kind = fstatfs(&file).map_err(|error| NamespaceError::Open(error.into()))?.filesystem_type();
    if kind != NSFS_MAGIC {
        return Err(NamespaceError::NotANamespace);
    }
    let this = identity(&file.metadata().map_err(NamespaceError::Open)?);
    let own = metadata("/proc/thread-self/ns/net").map_err(NamespaceError::OwnUnknown)?;
    // The first process stands for the host even where the plugin plays a node in a namespace.
    let first = metadata("/proc/1/ns/net").ok();
    if this == identity(&own) || first.is_some_and(|first| this == identity(&first)) {
        return Err(NamespaceError::Host);
    }
    Ok(Namespace(file))
}

/// What tells namespaces apart (namespaces(7)).
fn identity(of: &std::fs::Metadata) -> (u64, u64) {
    (of.dev(), of.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_namespace_is_known_by_any_name() {
        for path in ["/proc/self/ns/net", "/proc/thread-self/ns/net", "/proc/self/task/../ns/net"] {
            assert!(matches!(open(path), Err(NamespaceError::Host)), "{path}");
        }
    }

    #[test]
    fn other_files_are_no_namespaces() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        for path in ["/dev/null", "/etc/passwd", "/", fifo.to_str().unwrap()] {
            assert!(matches!(open(path), Err(NamespaceError::NotANamespace)), "{path}");
        }
        for path in ["/run/netns/nobody-made-this", "/etc/passwd/x", "a\0b"] {
            assert!(matches!(open(path), Err(NamespaceError::Open(_))), "{path:?}");
        }
    }
}
