use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use causeway_model::plugin::{Failure, Reply, Request};
use causeway_model::{FrameError, read_frame, write_frame};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};
use thiserror::Error;

use crate::namespace::Namespace;

/// A question to the agent without a readable answer.
#[derive(Debug, Error)]
pub enum Unanswered {
    /// Nobody takes the connection.
    #[error("cannot be reached: {0}")]
    Unreachable(#[source] io::Error),
    /// The connection broke or closed first.
    #[error("broke off: {0}")]
    BrokenOff(#[source] io::Error),
    /// It took the question and kept silent.
    #[error("did not answer within {0:?}")]
    Silent(Duration),
    /// What came is not an answer.
    #[error("gave an answer that cannot be read: {0}")]
    Unreadable(#[source] FrameError),
    /// What came is an answer, but to another question.
    #[error("gave the answer to another question")]
    Beside,
}

impl Unanswered {
    /// Dead or silent passes; forbidden or unreadable does not by itself.
    pub fn code(&self) -> u32 {
        match self {
            Self::Unreachable(error) if error.kind() == io::ErrorKind::PermissionDenied => Failure::IO,
            Self::Unreachable(_) | Self::BrokenOff(_) | Self::Silent(_) => Failure::TRY_AGAIN,
            Self::Unreadable(_) | Self::Beside => Failure::DECODING,
        }
    }
}

/// Asks the agent, with the pod's namespace in hand, and waits for its answer no longer than `patience`.
pub fn ask(
    socket: &Path,
    request: &Request,
    namespace: Option<&Namespace>,
    connecting: Duration,
    patience: Duration,
) -> Result<Reply, Unanswered> {
    let until = Instant::now() + patience;
    let stream = dial(socket, connecting).map_err(Unanswered::Unreachable)?;
    let mut line = Line { stream, until, descriptor: namespace.map(AsFd::as_fd) };
    let answer = write_frame(&mut line, request).and_then(|()| read_frame(&mut line));
    answer.map_err(|error| match error {
        FrameError::Io(error) if error.kind() == io::ErrorKind::TimedOut => Unanswered::Silent(patience),
        FrameError::Io(error) => Unanswered::BrokenOff(error),
        error => Unanswered::Unreadable(error),
    })
}

/// Connects within bounds: the standard library would wait for ever while the agent's backlog is full.
fn dial(path: &Path, connecting: Duration) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let stream = UnixStream::from(socket);
    // A unix socket waits for room in the backlog no longer than for sending (unix(7), SO_SNDTIMEO).
    stream.set_write_timeout(Some(connecting))?;
    match connect(stream.as_raw_fd(), &address) {
        Ok(()) => Ok(stream),
        Err(nix::errno::Errno::EAGAIN) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {connecting:?}")))
        }
        Err(error) => Err(error.into()),
    }
}

/// A connection with an end in time, whose first byte carries a descriptor.
struct Line<'a> {
    stream: UnixStream,
    until: Instant,
    descriptor: Option<BorrowedFd<'a>>,
}

impl Line<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

/// What a socket with a time limit says when the time is over (socket(7), SO_RCVTIMEO).
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        let descriptors: Vec<_> = self.descriptor.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let beside = if descriptors.is_empty() { &[][..] } else { &rights[..] };
        let fd = self.stream.as_raw_fd();
        let sent = sendmsg::<UnixAddr>(fd, &[IoSlice::new(bytes)], beside, MsgFlags::MSG_NOSIGNAL, None);
        let sent = sent.map_err(|error| timed_out(error.into()))?;
        self.descriptor = None;
        Ok(sent)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Line<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(bytes).map_err(timed_out)
    }
}
