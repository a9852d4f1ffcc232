//! Records and descriptors over local sockets: how agent and fast path reach each other.
//!
//! A [`Channel`] is a unix SOCK_SEQPACKET connection that carries the records of [`causeway_model::fastpath`], cut into datagrams, with
//! the descriptors of one port beside a record's first datagram. Every wait is bounded, and after any error the
//! channel is of no more use: both sides meet again on a new one.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use causeway_model::fastpath::{Assembler, CHUNK, MAX_QUEUES, ProtocolError, chunks};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// A conversation that did not come about, or broke off.
#[derive(Debug, Error)]
pub enum SocketError {
    /// An operation on the socket failed.
    #[error("{doing} {path}: {source}")]
    Io {
        /// The operation.
        doing: &'static str,
        /// The socket's path, or what stands for it.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Something listens there already.
    #[error("{0}: another process listens on this socket")]
    Taken(PathBuf),
    /// The path is something else than a socket.
    #[error("{0}: this path is taken by something that is no socket")]
    NotASocket(PathBuf),
    /// The other side closed the connection.
    #[error("the other side has gone")]
    Gone,
    /// The other side did not answer in time.
    #[error("the other side did not answer within {0:?}")]
    Silent(Duration),
    /// The other side is not root.
    #[error("uid {0} may not speak here")]
    Stranger(u32),
    /// A record did not come through.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(Errno) -> SocketError {
    let path = path.to_owned();
    move |errno| SocketError::Io { doing, path, source: errno.into() }
}

/// Makes way for a socket at `path`: a dead one is removed, a living one and anything else are errors that name it.
pub fn make_way(path: &Path, kind: SocketType) -> Result<(), SocketError> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(SocketError::Io { doing: "looking at", path: path.into(), source }),
        Ok(metadata) => metadata,
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.into()));
    }
    let probe = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
        .map_err(io_error("probing", path))?;
    let address = SocketAddrUnix::new(path).map_err(io_error("naming", path))?;
    match rustix::net::connect(&probe, &address) {
        // A socket of another kind is alive as well: EPROTOTYPE comes only from one that is bound.
        Ok(()) | Err(Errno::PROTOTYPE | Errno::AGAIN) => Err(SocketError::Taken(path.into())),
        Err(_) => fs::remove_file(path).map_err(|source| SocketError::Io {
            doing: "removing dead",
            path: path.into(),
            source,
        }),
    }
}

/// The agent's end: waits for fast paths.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`, for root only.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        make_way(path, SocketType::SEQPACKET)?;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(io_error("making", path))?;
        let address = SocketAddrUnix::new(path).map_err(io_error("naming", path))?;
        rustix::net::bind(&socket, &address).map_err(io_error("binding", path))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(|source| SocketError::Io {
            doing: "restricting",
            path: path.into(),
            source,
        })?;
        rustix::net::listen(&socket, 4).map_err(io_error("listening on", path))?;
        Ok(Self { socket, path: path.into() })
    }

    /// Waits for the next connection.
    pub fn accept(&self) -> Result<Channel, SocketError> {
        let socket = rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC)
            .map_err(io_error("accepting on", &self.path))?;
        let peer = sockopt::socket_peercred(&socket).map_err(io_error("asking who is on", &self.path))?;
        if !peer.uid.is_root() {
            return Err(SocketError::Stranger(peer.uid.as_raw()));
        }
        Ok(Channel { socket, path: self.path.clone(), assembler: Assembler::default() })
    }
}

/// One connection between agent and fast path.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    path: PathBuf,
    assembler: Assembler,
}

impl Channel {
    /// Connects to the agent.
    pub fn connect(path: &Path) -> Result<Self, SocketError> {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(io_error("making", path))?;
        let address = SocketAddrUnix::new(path).map_err(io_error("naming", path))?;
        rustix::net::connect(&socket, &address).map_err(io_error("connecting to", path))?;
        Ok(Self { socket, path: path.into(), assembler: Assembler::default() })
    }

    /// Sends a record, with descriptors beside it.
    pub fn send(
        &self,
        record: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<(), SocketError> {
        sockopt::set_socket_timeout(&self.socket, Timeout::Send, Some(patience))
            .map_err(io_error("timing", &self.path))?;
        let mut beside = descriptors;
        for datagram in chunks(record)? {
            self.send_datagram(&datagram, beside, patience)?;
            beside = &[];
        }
        Ok(())
    }

    fn send_datagram(
        &self,
        datagram: &[u8],
        descriptors: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<(), SocketError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_QUEUES))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io_error("passing too many descriptors over", &self.path)(Errno::NOBUFS));
        }
        let sent = rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.socket, &[IoSlice::new(datagram)], &mut control, SendFlags::NOSIGNAL)
        });
        match sent {
            Ok(_) => Ok(()),
            Err(Errno::AGAIN) => Err(SocketError::Silent(patience)),
            Err(Errno::PIPE | Errno::CONNRESET) => Err(SocketError::Gone),
            Err(errno) => Err(io_error("sending on", &self.path)(errno)),
        }
    }

    /// Waits for a record and the descriptors beside it. `None` waits without end.
    pub fn receive<T: DeserializeOwned>(
        &mut self,
        patience: Option<Duration>,
    ) -> Result<(T, Vec<OwnedFd>), SocketError> {
        sockopt::set_socket_timeout(&self.socket, Timeout::Recv, patience)
            .map_err(io_error("timing", &self.path))?;
        let mut descriptors = Vec::new();
        let mut datagram = vec![0; CHUNK];
        loop {
            let length = self.receive_datagram(&mut datagram, &mut descriptors, patience)?;
            if let Some(record) = self.assembler.push(&datagram[..length])? {
                return Ok((record, descriptors));
            }
        }
    }

    fn receive_datagram(
        &self,
        datagram: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
        patience: Option<Duration>,
    ) -> Result<usize, SocketError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_QUEUES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(datagram)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        });
        let received = match received {
            Ok(received) => received,
            Err(Errno::AGAIN) => return Err(SocketError::Silent(patience.unwrap_or_default())),
            Err(Errno::CONNRESET) => return Err(SocketError::Gone),
            Err(errno) => return Err(io_error("receiving on", &self.path)(errno)),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io_error("receiving a whole record on", &self.path)(Errno::MSGSIZE));
        }
        // A record is never empty: nothing means the end.
        if received.bytes == 0 { Err(SocketError::Gone) } else { Ok(received.bytes) }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    const SOON: Duration = Duration::from_millis(200);

    fn pair(directory: &tempfile::TempDir) -> (Channel, Channel) {
        let path = directory.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        let far = Channel::connect(&path).unwrap();
        (listener.accept().unwrap(), far)
    }

    #[test]
    fn a_long_record_and_its_descriptors_arrive_together() {
        let directory = tempfile::tempdir().unwrap();
        let (near, mut far) = pair(&directory);
        let record = "x".repeat(3 * CHUNK);
        let (a, b) = UnixStream::pair().unwrap();
        // Three datagrams of 64 KiB are more than a socket buffer holds: send and receive at once.
        std::thread::scope(|scope| {
            scope.spawn(|| near.send(&record, &[a.as_fd(), b.as_fd()], SOON * 10).unwrap());
            let (received, descriptors) = far.receive::<String>(Some(SOON * 10)).unwrap();
            assert_eq!(received, record);
            assert_eq!(descriptors.len(), 2);
            assert_ne!(descriptors[0].as_raw_fd(), a.as_raw_fd());
        });
    }

    #[test]
    fn silence_and_death_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let (mut near, far) = pair(&directory);
        assert!(matches!(near.receive::<String>(Some(SOON)), Err(SocketError::Silent(_))));
        drop(far);
        assert!(matches!(near.receive::<String>(Some(SOON)), Err(SocketError::Gone)));
        assert!(matches!(near.send(&"?", &[], SOON), Err(SocketError::Gone)));
    }

    #[test]
    fn a_stopped_reader_is_an_error_not_a_wait() {
        let directory = tempfile::tempdir().unwrap();
        let (near, _far) = pair(&directory);
        let long = "x".repeat(16 * CHUNK);
        assert!(matches!(near.send(&long, &[], SOON), Err(SocketError::Silent(_))));
    }

    #[test]
    fn a_taken_path_is_named_and_a_dead_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let first = Listener::bind(&path).unwrap();
        assert!(Listener::bind(&path).unwrap_err().to_string().contains(&path.display().to_string()));
        drop(first);
        drop(Listener::bind(&path).unwrap());
        fs::remove_file(&path).unwrap();
        let _stream = UnixListener::bind(&path).unwrap();
        assert!(
            matches!(Listener::bind(&path), Err(SocketError::Taken(_))),
            "a living socket of another kind"
        );
        let file = directory.path().join("f");
        fs::write(&file, "").unwrap();
        assert!(matches!(Listener::bind(&file), Err(SocketError::NotASocket(_))));
        assert!(file.exists(), "and is left alone");
    }
}
