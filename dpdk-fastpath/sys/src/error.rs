//! What can go wrong, with the object in it.

use crate::{ffi, hugepages::Shortage};
use std::{ffi::CStr, fmt};

/// A failed operation of this crate.
#[derive(Debug, thiserror::Error)]
pub enum SysError {
    /// The memory asked for is not there; the EAL was not started.
    #[error("hugepages: {0}")]
    Hugepages(#[from] Shortage),
    /// An EAL can be started once in a process, whether that succeeded or not.
    #[error("DPDK was already started in this process")]
    StartedBefore,
    /// The EAL did not start.
    #[error("starting DPDK: {0}")]
    Start(Reason),
    /// Not a PCI address such as 0000:03:00.0.
    #[error("{0:?} is not a PCI address such as 0000:03:00.0")]
    PciAddress(String),
    /// A name or an argument that C cannot take.
    #[error("{0:?} has a zero byte in it")]
    ZeroByte(String),
    /// The calling thread could not be made known to DPDK.
    #[error("registering a thread with DPDK: {0}")]
    Thread(Reason),
    /// DPDK did not tell its memory figures.
    #[error("reading DPDK's memory figures: {0}")]
    Memory(Reason),
    /// A pool could not be made.
    #[error("making the pool {pool} of {frames} frames of {room} bytes: {reason}")]
    Pool {
        /// The pool's name.
        pool: String,
        /// Frames asked for.
        frames: u32,
        /// Bytes per frame asked for.
        room: u16,
        /// Why.
        reason: Reason,
    },
    /// A device could not be made a port.
    #[error("attaching {devargs}: {reason}")]
    Attach {
        /// What was asked for.
        devargs: String,
        /// Why.
        reason: Reason,
    },
    /// An operation on a port failed.
    #[error("port {port}: {step}: {reason}")]
    Port {
        /// The port's name.
        port: String,
        /// What was being done.
        step: &'static str,
        /// Why.
        reason: Reason,
    },
    /// A port can be closed only when nothing else holds it.
    #[error("port {0}: its queues are still in use")]
    InUse(String),
    /// The queue has no descriptor to sleep on.
    #[error("port {port}: queue {queue} has no interrupt descriptor")]
    NoDescriptor {
        /// The port's name.
        port: String,
        /// The queue's number.
        queue: u16,
    },
}

/// Why DPDK refused: its error number, and what it logged meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    errno: i32,
    said: Vec<String>,
}

impl Reason {
    pub(crate) fn new(returned: i32, said: Vec<String>) -> Self {
        Self { errno: returned.saturating_abs(), said }
    }

    /// The error number, positive.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// The lines DPDK logged as errors or warnings, in order.
    pub fn said(&self) -> &[String] {
        &self.said
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: rte_strerror takes any number and returns a NUL-terminated string that is valid
        // until this thread's next call of it; it is copied out before that.
        let text = unsafe { CStr::from_ptr(ffi::cw_error_text(self.errno)) };
        write!(f, "{}", text.to_string_lossy())?;
        if self.said.is_empty() { Ok(()) } else { write!(f, " ({})", self.said.join("; ")) }
    }
}

/// Runs a C call that answers 0 or a negative errno, together with what DPDK logs meanwhile.
pub(crate) fn hear(call: impl FnOnce() -> i32) -> Result<(), Reason> {
    let (returned, said) = crate::log::hear(call);
    if returned >= 0 { Ok(()) } else { Err(Reason::new(returned, said)) }
}
