//! DPDK's buffers as the packet program sees them.

use causeway_datapath::{Buffer, Frame, HEADROOM, Pool};
use dpdk_sys::{Eal, LARGEST_ROOM, Mbuf, Memory, PoolConfig, SysError};

/// Bytes of a small buffer behind its headroom: a packet of any common MTU.
pub(crate) const SMALL_ROOM: u16 = 2048;
/// Bytes of a frame before its packet: Ethernet and a VLAN tag.
const LINK_HEADERS: usize = 18;
/// Small buffers, and how many of them a worker keeps back.
const SMALL: (u32, u32) = (16_383, 256);
/// The MiB that these numbers are for, and the small buffers that every one more is turned into.
const ENOUGH: u32 = 256;
const MORE: u32 = 400;
/// Large ones: the rest of a frame of up to 64 KiB, 32 MiB in all.
const LARGE: (u32, u32) = (511, 32);

/// A buffer, or a small one with a large one behind it: its bytes are the whole buffer, and where the frame lies in it is the
/// holder's to know until it [goes out](Buffers::outgoing). Dropping it frees both.
#[derive(Debug)]
pub(crate) struct Packet(Mbuf);

impl Packet {
    /// A received frame; nothing when it is in more pieces than the packet program knows.
    #[inline]
    pub(crate) fn frame(mbuf: Mbuf) -> Option<Frame<Self>> {
        let (start, head) = (mbuf.headroom(), mbuf.data().len());
        if mbuf.segments() == 1 {
            return Frame::whole(Self(mbuf), start, head);
        }
        let len = mbuf.len();
        if mbuf.segments() > 2 { None } else { Frame::new(Self(mbuf), start, head, len - head) }
    }

    /// Hangs a second segment of `len` bytes behind.
    pub(crate) fn chain(&mut self, mut second: Self, len: usize) -> bool {
        second.0.set_window(0, len).is_ok() && self.0.chain(second.0).is_ok()
    }
}

impl Buffer for Packet {
    #[inline]
    fn head(&self) -> &[u8] {
        self.0.buffer()
    }

    #[inline]
    fn head_mut(&mut self) -> &mut [u8] {
        self.0.buffer_mut()
    }

    #[inline]
    fn tail(&self) -> &[u8] {
        if self.0.segments() > 1 { self.0.each_segment().nth(1).unwrap_or_default() } else { &[] }
    }
}

/// Where buffers come from; clones are the same pools.
#[derive(Clone, Debug)]
pub(crate) struct Buffers {
    small: dpdk_sys::Pool,
    large: dpdk_sys::Pool,
}

impl Buffers {
    pub(crate) fn new(eal: &Eal) -> Result<Self, SysError> {
        let pool =
            |name, (frames, cache), room| dpdk_sys::Pool::new(eal, PoolConfig { name, frames, cache, room });
        let large = LARGEST_ROOM - HEADROOM as u16;
        let (Memory::Hugepages { mib } | Memory::Slow { mib }) = eal.memory();
        let small = (SMALL.0 + mib.saturating_sub(ENOUGH) * MORE, SMALL.1);
        Ok(Self { small: pool("small", small, SMALL_ROOM)?, large: pool("large", LARGE, large)? })
    }

    pub(crate) fn small(&self) -> Option<Packet> {
        self.small.alloc().map(Packet)
    }

    pub(crate) fn large(&self) -> Option<Packet> {
        self.large.alloc().map(Packet)
    }

    /// Where a port with this MTU receives: every frame fits one buffer.
    pub(crate) fn for_mtu(&self, mtu: u16) -> &dpdk_sys::Pool {
        if usize::from(mtu) + LINK_HEADERS <= usize::from(SMALL_ROOM) { &self.small } else { &self.large }
    }

    /// A frame as a port sends it; nothing when it had to be copied and no buffer was free.
    #[inline]
    pub(crate) fn outgoing(&self, frame: Frame<Packet>, chains: bool) -> Option<Mbuf> {
        if frame.buffer().0.segments() > 1 && !chains {
            let mut copy = self.large.alloc()?;
            copy.append(frame.head()).and_then(|()| copy.append(frame.tail())).ok()?;
            return Some(copy);
        }
        let (start, head, len) = (frame.headroom(), frame.head_len(), frame.len());
        let Packet(mut mbuf) = frame.into_buffer();
        mbuf.set_window(start, head).ok()?;
        mbuf.truncate(len);
        Some(mbuf)
    }

    /// A frame all of which is in the first segment, as a port sends it.
    // Nothing here has the address of the frame, so that it is never copied on its way out of a burst.
    #[inline]
    pub(crate) fn outgoing_plain(frame: Frame<Packet>) -> Option<Mbuf> {
        let (start, len) = (frame.headroom(), frame.head_len());
        let Packet(mut mbuf) = frame.into_buffer();
        if mbuf.segments() > 1 {
            mbuf.set_window(start, len).ok()?;
            mbuf.truncate(len);
        } else {
            mbuf.set_only_window(start, len).ok()?;
        }
        Some(mbuf)
    }

    /// How many there are, and how many of them are free.
    pub(crate) fn figures(&self) -> (u32, u32) {
        (self.small.frames() + self.large.frames(), self.small.free() + self.large.free())
    }
}

impl Pool for Buffers {
    type Buffer = Packet;

    #[inline]
    fn take(&mut self, len: usize) -> Option<Packet> {
        let packet = if len <= usize::from(SMALL_ROOM) { self.small() } else { self.large() };
        packet.filter(|packet| packet.head().len() >= HEADROOM + len)
    }
}
