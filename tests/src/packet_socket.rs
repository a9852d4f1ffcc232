//! Whole frames to and from an interface of this thread's namespace.
#![expect(
    unsafe_code,
    reason = "the address of a packet socket can only be made from its C structure, and no library knows PACKET_VNET_HDR"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use causeway_wire::checksum::{Sum, never_zero};
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind, recv, send,
    setsockopt, socket, sockopt,
};

/// Room for what a reader has not taken yet: hundreds of the longest frames.
const ROOM: usize = 32 << 20;
/// The length of `struct virtio_net_hdr`.
const DESCRIPTION: usize = 10;

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
        setsockopt(&this.socket, sockopt::RcvBufForce, &ROOM)?;
        Ok(this)
    }

    /// Has every frame that is received from now on described: what its sender left to others stands before it.
    fn describe(&self) -> io::Result<()> {
        let (on, length) = (1_i32, libc::socklen_t::try_from(size_of::<i32>()).map_err(io::Error::other)?);
        let socket = self.socket.as_raw_fd();
        // SAFETY: the option takes one int, which lives on this stack for the whole call, with its length.
        let set = unsafe {
            libc::setsockopt(socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, (&raw const on).cast(), length)
        };
        Ok(nix::errno::Errno::result(set).map(drop)?)
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

/// A packet socket for looking only: a checksum that a sender left to others is computed as those would, so that what they will
/// make of the frame can be judged.
#[derive(Debug)]
pub struct Lookout(PacketSocket);

/// A frame that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Its bytes, its checksum computed.
    pub frame: Vec<u8>,
    /// Whether its checksum was left to others.
    pub partial: bool,
}

impl Lookout {
    /// Opens the interface with this name in this thread's namespace.
    pub fn open(interface: &str) -> io::Result<Self> {
        let socket = PacketSocket::open(interface)?;
        socket.describe()?;
        Ok(Self(socket))
    }

    /// The next frame, if one comes in time.
    pub fn receive(&self, patience: Duration) -> io::Result<Option<Sighting>> {
        let Some(mut description) = self.0.receive(patience)? else { return Ok(None) };
        if description.len() < DESCRIPTION {
            return Err(io::Error::other("a frame without its description"));
        }
        let mut frame = description.split_off(DESCRIPTION);
        let word = |at: usize| usize::from(u16::from_ne_bytes([description[at], description[at + 1]]));
        let partial = description[0] & 1 != 0;
        if partial {
            complete(&mut frame, word(6), word(8));
        }
        Ok(Some(Sighting { frame, partial }))
    }
}

/// Sums up all bytes from `start` on, the pseudo header's sum among them, into the word `offset` bytes behind.
fn complete(frame: &mut [u8], start: usize, offset: usize) {
    const OF_UDP: usize = 6;
    let checksum = Sum::ZERO.bytes(frame.get(start..).unwrap_or_default()).checksum();
    let checksum = if offset == OF_UDP { never_zero(checksum) } else { checksum };
    // One that would lie outside stays as it is: wrong.
    if let Some(place) = frame.get_mut(start + offset..start + offset + 2) {
        place.copy_from_slice(&checksum.to_be_bytes());
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
