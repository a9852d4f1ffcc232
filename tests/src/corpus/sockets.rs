//! Sockets that do not wait, and what comes to raw ones.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

use causeway_wire::{Ipv4, Sctp};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};

/// A socket that does not wait, in the namespace of this thread.
pub(crate) fn open(
    address: IpAddr,
    kind: SocketType,
    protocol: Option<net::Protocol>,
) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(net::socket_with(family, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, protocol)?)
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
