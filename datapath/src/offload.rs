use causeway_model::DropReason;
use causeway_wire::checksum::{Sum, never_zero};
use causeway_wire::{IpProtocol, Tcp, Udp};

use crate::packet::{Family, Ip};
use crate::transport::Transport;
use crate::{Buffer, Frame};

/// What is known of a packet's transport checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Checksum {
    /// It lies in the packet, right or wrong.
    #[default]
    Whole,
    /// It lies in the packet and was found right.
    Verified,
    /// It is still to be computed: over all bytes from `start` on, into the word `offset` bytes behind `start`, which
    /// holds the pseudo header's sum. For a frame in a tunnel that is the inner checksum.
    Partial {
        /// Where the sum begins, counted from the frame's first byte.
        start: u16,
        /// Where from there the checksum belongs.
        offset: u16,
    },
}

/// Into what a long frame is to be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Segments {
    /// TCP segments over IPv4.
    Tcp4,
    /// TCP segments over IPv6.
    Tcp6,
    /// UDP datagrams over either.
    Udp,
}

/// A frame that stands for several packets of one flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gso {
    /// Of what kind they are.
    pub kind: Segments,
    /// Whether the first of a TCP flow's packets says "congestion window reduced", which must not be copied to the others.
    pub ecn: bool,
    /// Payload bytes of each but the last.
    pub size: u16,
    /// Bytes before the payload. Filled in by the pipelines: what a sender says is not believed.
    pub headers: u16,
}

/// Work that a sender left to hardware, as in a virtio header. Offsets count from the frame's first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offload {
    /// The checksum.
    pub checksum: Checksum,
    /// The segmentation.
    pub gso: Option<Gso>,
}

impl Offload {
    /// Nothing is left to do.
    pub const NONE: Self = Self { checksum: Checksum::Whole, gso: None };

    /// True when nothing is left to do.
    #[inline]
    pub fn is_none(&self) -> bool {
        matches!(self.checksum, Checksum::Whole) && self.gso.is_none()
    }

    /// The same work after `len` bytes were put in front of the frame.
    #[cold]
    pub(crate) fn moved_back(self, len: usize) -> Self {
        self.moved(|at| at.checked_add(len as u16))
    }

    /// The same work after `len` bytes were taken off the frame's front. What was left to do for those is done.
    #[cold]
    pub(crate) fn moved_up(self, len: usize) -> Self {
        self.moved(|at| at.checked_sub(len as u16))
    }

    fn moved(self, to: impl Fn(u16) -> Option<u16>) -> Self {
        let checksum = match self.checksum {
            Checksum::Partial { start, offset } => {
                to(start).map_or(Checksum::Whole, |start| Checksum::Partial { start, offset })
            }
            // What was verified was the outermost checksum, which is another one now.
            Checksum::Whole | Checksum::Verified => Checksum::Whole,
        };
        let gso = self.gso.map(|gso| Gso { headers: to(gso.headers).unwrap_or(0), ..gso });
        Self { checksum, gso }
    }
}

/// Checks what a sender says it left to do against its packet, whose IP header was examined before.
#[cold]
pub(crate) fn settle<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    transport: Option<Transport>,
) -> Result<(), DropReason> {
    if let Checksum::Partial { start, offset } = frame.offload.checksum
        && !is_transport_checksum(frame.head(), transport, start.into(), offset.into())
    {
        return Err(DropReason::Malformed);
    }
    if let Some(gso) = frame.offload.gso {
        let headers = segment_headers::<B, I>(frame, transport, gso).ok_or(DropReason::Malformed)?;
        let one = frame.len() - headers <= usize::from(gso.size);
        frame.offload.gso = (!one).then_some(Gso { headers: headers as u16, ..gso });
    }
    Ok(())
}

/// Whether a checksum is where a transport has it, or inside of a tunnel of the sender's own. Anywhere else its completion would
/// write over what was judged before: addresses and ports.
fn is_transport_checksum(head: &[u8], transport: Option<Transport>, start: usize, offset: usize) -> bool {
    let Some(transport) = transport else { return false };
    let behind = start.checked_sub(transport.offset());
    let is_its_own = match (transport.protocol(), behind) {
        (_, None) => false,
        (IpProtocol::TCP, Some(behind)) => behind == 0 && offset == 16,
        (IpProtocol::UDP, Some(0)) => offset == 6,
        (IpProtocol::UDP, Some(behind)) => behind >= Udp::LEN,
        (IpProtocol::ICMPV6, Some(behind)) => behind == 0 && offset == 2,
        (IpProtocol::ICMPV4 | IpProtocol::SCTP, _) => false,
        _ => true,
    };
    is_its_own && !transport.fragment() && start + offset + 2 <= head.len()
}

/// Bytes before the payload of a frame that stands for several, if it is what it says it is.
fn segment_headers<B: Buffer, I: Ip>(
    frame: &Frame<B>,
    transport: Option<Transport>,
    gso: Gso,
) -> Option<usize> {
    let head = frame.head();
    let transport = transport?;
    let (protocol, field, len) = match gso.kind {
        Segments::Tcp4 | Segments::Tcp6 => {
            let (tcp, _) = Tcp::split(head.get(transport.offset()..)?).ok()?;
            (IpProtocol::TCP, 16, tcp.header_len())
        }
        Segments::Udp => (IpProtocol::UDP, 6, Udp::LEN),
    };
    let is_family = match gso.kind {
        Segments::Tcp4 => I::FAMILY == Family::V4,
        Segments::Tcp6 => I::FAMILY == Family::V6,
        Segments::Udp => true,
    };
    let partial = Checksum::Partial { start: transport.offset() as u16, offset: field };
    let headers = transport.offset() + len;
    let agrees = is_family
        && transport.protocol() == protocol
        && frame.offload.checksum == partial
        && gso.size > 0
        && headers <= head.len();
    agrees.then_some(headers)
}

/// Computes the checksum that the sender left open.
pub(crate) fn complete<B: Buffer>(frame: &mut Frame<B>) -> Result<(), DropReason> {
    let Checksum::Partial { start, offset } = frame.offload.checksum else { return Ok(()) };
    let (start, field) = (usize::from(start), usize::from(start) + usize::from(offset));
    // All ones and zero say the same, except in UDP, where zero means "none".
    let checksum = never_zero(frame.add_from(start, Sum::ZERO).checksum());
    let place = frame.head_mut().get_mut(field..field + 2).ok_or(DropReason::Malformed)?;
    place.copy_from_slice(&checksum.to_be_bytes());
    frame.offload.checksum = Checksum::Whole;
    Ok(())
}
