//! Whole frames to and from an interface of this thread's namespace.
#![expect(unsafe_code, reason = "the address of a packet socket can only be made from its C structure")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind, recv, send,
    socket,
};

/// A packet socket on one interface: it sends frames as they are, and sees what comes and what goes.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
}

impl PacketSocket {
    /// Opens the interface with this name in this thread's namespace.
    pub fn open(interface: &str) -> io::Result<Self> {
        let index = if_nametoindex(interface)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
        bind(socket.as_raw_fd(), &address(index)?)?;
        // What came in before the socket was bound may be of another interface.
        let this = Self { socket };
        while this.receive(Duration::ZERO)?.is_some() {}
        Ok(this)
    }

    /// Sends a frame as it is.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        match send(self.socket.as_raw_fd(), frame, MsgFlags::empty())? {
            sent if sent == frame.len() => Ok(()),
            sent => Err(io::Error::other(format!("{sent} of {} bytes were sent", frame.len()))),
        }
    }

    /// The next frame, if one comes in time.
    pub fn receive(&self, patience: Duration) -> io::Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + patience;
        let mut buffer = vec![0; 1 << 17];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    buffer.truncate(length);
                    return Ok(Some(buffer));
                }
                Err(nix::Error::EAGAIN) if Instant::now() < deadline => {
                    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
                    poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout)?;
                }
                Err(nix::Error::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Every frame of one interface.
fn address(index: u32) -> io::Result<LinkAddr> {
    let family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    let protocol = u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?.to_be();
    let index = i32::try_from(index).map_err(io::Error::other)?;
    let raw = libc::sockaddr_ll {
        sll_family: family,
        sll_protocol: protocol,
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&raw)).map_err(io::Error::other)?;
    // SAFETY: `raw` is a whole, initialised sockaddr_ll whose family says so, of the length that is passed, and it outlives
    // the call, which copies it.
    let address = unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(length)) };
    address.ok_or_else(|| io::Error::other("no address of a packet socket"))
}
