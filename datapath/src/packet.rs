use causeway_model::DropReason;
use causeway_wire::{EtherType, Ethernet, IpProtocol, Ipv4, Ipv6, Malformed, Ports, Upper};

use crate::offload::settle;
use crate::{Buffer, Frame};

/// An address family, as a frame's EtherType names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// The family of the packet in a frame, if there is one.
    #[inline]
    pub(crate) fn of(head: &[u8]) -> Option<Self> {
        match head.get(12..14)? {
            [0x08, 0x00] => Some(Self::V4),
            [0x86, 0xdd] => Some(Self::V6),
            _ => None,
        }
    }
}

/// Whom a packet is from and for, as numbers that tables are keyed by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Addresses {
    V4 { source: u32, destination: u32 },
    V6 { source: u128, destination: u128 },
}

/// Checks the IP header in a frame, cuts off Ethernet's padding, and checks what was left to hardware. `other` is the
/// reason to drop what is not IP.
#[inline]
pub(crate) fn examine<B: Buffer>(frame: &mut Frame<B>) -> Result<Addresses, DropReason> {
    let head = frame.head();
    let (addresses, len) = match Family::of(head) {
        Some(Family::V4) => examine_v4(&head[Ethernet::LEN..])?,
        Some(Family::V6) => examine_v6(&head[Ethernet::LEN..])?,
        None => return Err(DropReason::UnhandledEtherType),
    };
    let len = Ethernet::LEN + len;
    if len > frame.len() {
        return Err(DropReason::Malformed);
    }
    frame.truncate(len);
    if !frame.offload.is_none() {
        settle(frame)?;
    }
    Ok(addresses)
}

#[inline]
fn examine_v4(packet: &[u8]) -> Result<(Addresses, usize), DropReason> {
    Ipv4::verify(packet)?;
    let (ip, _) = Ipv4::split_partial(packet)?;
    let addresses = Addresses::V4 { source: ip.source().into(), destination: ip.destination().into() };
    Ok((addresses, usize::from(ip.total_length())))
}

#[inline]
fn examine_v6(packet: &[u8]) -> Result<(Addresses, usize), DropReason> {
    let (ip, _) = Ipv6::split_partial(packet)?;
    let addresses = Addresses::V6 { source: ip.source().into(), destination: ip.destination().into() };
    Ok((addresses, Ipv6::LEN + usize::from(ip.payload_length())))
}

/// What a packet carries, and where in its frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Transport {
    pub(crate) family: Family,
    pub(crate) protocol: IpProtocol,
    /// Where it begins, counted from the Ethernet header.
    pub(crate) offset: usize,
    /// A part of a packet, first or not.
    pub(crate) fragment: bool,
    /// Every fragment but the first: no transport header is there.
    pub(crate) inside: bool,
}

impl Transport {
    /// Finds it behind the headers at the front of a frame.
    #[inline]
    pub(crate) fn find(head: &[u8]) -> Result<Self, Malformed> {
        let (ethernet, packet) = Ethernet::split(head)?;
        if ethernet.ether_type() == EtherType::IPV4 {
            let (ip, _) = Ipv4::split_partial(packet)?;
            return Ok(Self {
                family: Family::V4,
                protocol: ip.protocol(),
                offset: Ethernet::LEN + ip.header_len(),
                fragment: ip.is_fragment(),
                inside: ip.fragment_offset() != 0,
            });
        }
        let (ip, payload) = Ipv6::split_partial(packet)?;
        let upper = Upper::find(ip.next_header(), payload)?;
        Ok(Self {
            family: Family::V6,
            protocol: upper.protocol,
            offset: Ethernet::LEN + Ipv6::LEN + upper.offset,
            fragment: upper.is_fragment(),
            inside: upper.is_inside_fragment(),
        })
    }

    /// The ports of TCP, UDP and SCTP; never read from a later fragment.
    #[inline]
    pub(crate) fn ports<'a>(&self, head: &'a [u8]) -> Option<&'a Ports> {
        if self.inside || !self.protocol.has_ports() {
            return None;
        }
        Ports::split(head.get(self.offset..)?).ok().map(|(ports, _)| ports)
    }
}
