//! Sockets that do not wait, and what comes to raw ones.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::time::Duration;

use causeway_wire::{Ipv4, Sctp};
use rustix::event::{PollFd, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sockopt};

use crate::traffic::sctp;

/// What servers of SCTP know their associations by.
pub(crate) const SERVER_TAG: u32 = 0x5e12_7e12;
/// How long nothing may happen before the clock is asked again.
const LOOK: Duration = Duration::from_millis(5);

/// A network namespace and an address in it: of someone who begins or answers connections.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct End {
    /// The namespace's name.
    pub place: String,
    /// The address.
    pub address: IpAddr,
}

/// A socket that does not wait, in the namespace of this thread; so are all here.
fn open(address: IpAddr, kind: SocketType, protocol: Option<net::Protocol>) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(net::socket_with(family, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, protocol)?)
}

/// One that connections of TCP come to.
pub(crate) fn listener(own: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(own)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// One for datagrams.
pub(crate) fn datagrams(own: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(own)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A raw one, which hears all ports and both roles of SCTP.
pub(crate) fn raw(own: IpAddr) -> io::Result<OwnedFd> {
    let socket = open(own, SocketType::RAW, Some(ipproto::SCTP))?;
    net::bind(&socket, &SocketAddr::new(own, 0))?;
    Ok(socket)
}

/// Sends a chunk in a packet of SCTP.
pub(crate) fn send(
    raw: &OwnedFd,
    own: SocketAddr,
    target: SocketAddr,
    tag: u32,
    chunk: &[u8],
) -> io::Result<()> {
    let packet = sctp::packet((own.port(), target.port()), tag, chunk)?;
    net::sendto(raw, &packet, SendFlags::empty(), &SocketAddr::new(target.ip(), 0))?;
    Ok(())
}

/// Begins a connection of TCP; with what has come of it at once where that is an error.
pub(crate) fn connect(own: SocketAddr, target: SocketAddr) -> io::Result<(OwnedFd, io::Result<()>)> {
    let socket = open(own.ip(), SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // Whoever ends it says so with a reset, and keeps nothing of it.
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    net::bind(&socket, &own)?;
    let begun = match net::connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(()),
        Err(error) => Err(error.into()),
    };
    Ok((socket, begun))
}

/// Waits a moment until something comes: which of these have something, if any has.
pub(crate) fn ready(mut fds: Vec<PollFd<'_>>) -> io::Result<Option<Vec<bool>>> {
    let look = Timespec { tv_sec: 0, tv_nsec: LOOK.as_nanos() as i64 };
    match poll(&mut fds, Some(&look)) {
        Ok(0) => return Ok(None),
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(Some(fds.iter().map(|fd| !fd.revents().is_empty()).collect()))
}

/// A packet that a raw socket has read, whose checksum is right. Over IPv4 its header comes along.
pub(crate) fn heard(packet: &[u8], own: IpAddr) -> Option<(&Sctp, &[u8])> {
    let packet = match own {
        IpAddr::V4(_) => Ipv4::split(packet).ok()?.1,
        IpAddr::V6(_) => packet,
    };
    let (header, chunk) = Sctp::split(packet).ok()?;
    (Sctp::checksum_of(packet).ok()? == header.checksum()).then_some((header, chunk))
}

/// What came, if anything did by now.
pub(crate) fn now<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(came) => Ok(Some(came)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        // One who was accepted and has gone meanwhile.
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
        Err(error) => Err(error),
    }
}

/// An address without what only one socket knows of it.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

/// Ports for those who begin, each namespace's in turn: none is used again for a long time.
#[derive(Default)]
pub(crate) struct Ports {
    last: BTreeMap<String, u16>,
}

impl Ports {
    /// The next one of a range in a namespace that is not taken.
    pub fn next(&mut self, place: &str, range: RangeInclusive<u16>, is_taken: impl Fn(u16) -> bool) -> u16 {
        let last = self.last.entry(place.to_owned()).or_insert(*range.end());
        loop {
            *last = if *last < *range.end() { *last + 1 } else { *range.start() };
            if !is_taken(*last) {
                return *last;
            }
        }
    }
}
