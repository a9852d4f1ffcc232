//! A TAP's queues.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;

use causeway_datapath::{Buffer, Burst, Capabilities, Frame, HEADROOM};
use causeway_model::DropReason;
use causeway_model::fastpath::Tap;
use nix::errno::Errno;
use nix::sys::uio::{readv, writev};

use crate::packet::{Buffers, Packet, SMALL_ROOM};
use crate::virtio;

/// The offload bits of TUNSETOFFLOAD that say something about what the other side takes.
const TUN_F_USO: u32 = 0x20 | 0x40;
const TUN_F_UDP_TUNNEL_GSO: u32 = 0x80;

/// Bytes after which a burst is full. Whole frames are copied in and out of the kernel: more of them than a processor's own cache holds
/// come back from memory.
const MOST: usize = 128 << 10;

/// A TAP that workers share: each reads one of its queues, and may write to any.
#[derive(Debug)]
pub(crate) struct TapPort {
    pub(crate) queues: Vec<OwnedFd>,
    pub(crate) tap: Tap,
}

/// Buffers that wait for the next frame: most reads fill the first and leave the second empty.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    small: Option<Packet>,
    large: Option<Packet>,
}

/// What came of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// The burst is full; there may be more.
    Full,
    /// There was nothing more.
    Empty,
    /// No buffer was free: frames stay in the kernel's queue.
    NoBuffer,
}

impl TapPort {
    /// What may be written to it undone.
    pub(crate) fn capabilities(&self) -> Capabilities {
        let offloads = self.tap.offloads;
        Capabilities {
            checksum: offloads != 0,
            tcp4: offloads != 0,
            tcp6: offloads != 0,
            udp: offloads & TUN_F_USO == TUN_F_USO,
            tunnel: offloads & TUN_F_UDP_TUNNEL_GSO != 0,
        }
    }

    /// Fills a burst from one queue.
    pub(crate) fn receive(
        &self,
        queue: usize,
        burst: &mut Burst<Packet>,
        spare: &mut Spare,
        buffers: &Buffers,
        refuse: impl Fn(DropReason, usize),
    ) -> Read {
        let mut bytes = 0;
        while burst.len() < Burst::<Packet>::SIZE && bytes < MOST {
            match self.receive_one(queue, spare, buffers) {
                Ok(Some(frame)) => {
                    bytes += frame.len();
                    drop(burst.push(frame));
                }
                Ok(None) => refuse(DropReason::Malformed, 0),
                Err(end) => return end,
            }
        }
        Read::Full
    }

    /// One frame; none when what came is not one.
    fn receive_one(
        &self,
        queue: usize,
        spare: &mut Spare,
        buffers: &Buffers,
    ) -> Result<Option<Frame<Packet>>, Read> {
        let mut small = spare.small.take().or_else(|| buffers.small()).ok_or(Read::NoBuffer)?;
        let Some(mut large) = spare.large.take().or_else(|| buffers.large()) else {
            spare.small = Some(small);
            return Err(Read::NoBuffer);
        };
        let mut header = [0; virtio::LONGEST];
        let room = usize::from(SMALL_ROOM);
        let mut parts = [
            IoSliceMut::new(&mut header[..usize::from(self.tap.header)]),
            IoSliceMut::new(&mut small.head_mut()[HEADROOM..HEADROOM + room]),
            IoSliceMut::new(large.head_mut()),
        ];
        let read = readv(&self.queues[queue], &mut parts);
        let len = match read {
            Ok(read) => read.saturating_sub(self.tap.header.into()),
            Err(_) => {
                *spare = Spare { small: Some(small), large: Some(large) };
                return Err(Read::Empty);
            }
        };
        let (head, tail) = (len.min(room), len.saturating_sub(room));
        if tail == 0 {
            spare.large = Some(large);
        } else if !small.chain(large, tail) {
            return Ok(None);
        }
        let Some(offload) = virtio::read(&header) else { return Ok(None) };
        let frame = Frame::new(small, HEADROOM, head, tail);
        Ok(frame.map(|mut frame| {
            frame.offload = offload;
            frame
        }))
    }

    /// Writes one frame that [`causeway_datapath::fit`] has made fit.
    pub(crate) fn send(&self, queue: usize, frame: &Frame<Packet>) -> Result<(), DropReason> {
        let header = virtio::write(frame.offload, frame.outer_len());
        let parts = [
            IoSlice::new(&header[..usize::from(self.tap.header)]),
            IoSlice::new(frame.head()),
            IoSlice::new(frame.tail()),
        ];
        match writev(&self.queues[queue % self.queues.len()], &parts) {
            Ok(_) => Ok(()),
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => Err(DropReason::PortFull),
            Err(Errno::EINVAL) => Err(DropReason::Malformed),
            Err(_) => Err(DropReason::PortDown),
        }
    }
}
