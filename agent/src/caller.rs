//! Who waits for an answer.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::Error;

/// A plugin that asked, and how long it waits. It may be ended at any moment, and then somebody else's question about the same
/// attachment may already have been answered.
#[derive(Debug)]
pub(crate) struct Caller {
    /// Its process, where that can be seen from here.
    pub pid: Option<i32>,
    /// Its connection.
    stream: Option<OwnedFd>,
    until: Instant,
}

impl Caller {
    /// Who holds the other end of a connection, and waits so long at most.
    pub(crate) fn new(stream: Option<OwnedFd>, pid: Option<i32>, patience: Duration) -> Self {
        Self { pid, stream, until: Instant::now() + patience }
    }

    /// Whether the answer is still waited for; asked before any work that it is for.
    pub(crate) fn waits(&self) -> Result<(), Error> {
        match () {
            () if Instant::now() >= self.until => Err(Error::Busy),
            () if self.stream.as_ref().is_some_and(has_closed) => Err(Error::CallerGone),
            () => Ok(()),
        }
    }
}

/// Whether the other end has been closed. What cannot be told is taken for open.
fn has_closed(stream: &OwnedFd) -> bool {
    let mut looked = [PollFd::new(stream, PollFlags::RDHUP)];
    let asked = poll(&mut looked, Some(&Timespec::default()));
    asked.is_ok() && looked[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP)
}
