//! The headers of the tunnel: prepared by the control path, copied and patched here.

use std::net::{Ipv4Addr, Ipv6Addr};

use causeway_model::{DropReason, Overlay};
use causeway_wire::checksum::{self, Sum};
use causeway_wire::{EtherType, Ethernet, IpProtocol, Ipv4, Ipv6, MacAddr, TrafficClass, Udp, Vxlan};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::offload::Checksum;
use crate::packet::Ip;
use crate::send::{Hop, count_hop};
use crate::{Buffer, Frame, Port};

/// What lies before an inner packet over an IPv4 underlay, up to the inner frame's EtherType.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct OuterV4 {
    pub(crate) ethernet: Ethernet,
    pub(crate) ip: Ipv4,
    udp: Udp,
    vxlan: Vxlan,
    inner: Macs,
}

/// The same over an IPv6 underlay.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct OuterV6 {
    ethernet: Ethernet,
    ip: Ipv6,
    udp: Udp,
    vxlan: Vxlan,
    inner: Macs,
}

/// The two addresses at the front of an Ethernet frame.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub(crate) struct Macs {
    pub(crate) destination: MacAddr,
    pub(crate) source: MacAddr,
}

/// A tunnel's headers, prepared or in a frame.
pub(crate) trait Outer: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned + Copy {
    /// Bytes that it puts before an inner frame.
    const LEN: usize;

    /// Fills in what differs from packet to packet, the UDP ports and checksum left out, after a template, in which that is
    /// zero, was copied; `len` is the inner frame's.
    fn stamp(&mut self, template: &Self, len: u16, class: TrafficClass);

    /// Fills in another length than there is.
    fn refit(&mut self, len: u16);

    /// The UDP header.
    fn udp(&mut self) -> &mut Udp;
}

/// Bytes of the UDP and VXLAN headers, which the UDP length counts.
const UDP_VXLAN: u16 = (Udp::LEN + Vxlan::LEN) as u16;

/// The longest inner frame whose outer lengths fit into their fields, over either underlay.
pub(crate) const MAX_INNER: usize = u16::MAX as usize - Ipv4::LEN - UDP_VXLAN as usize;

impl OuterV4 {
    pub(crate) fn new(link: Macs, ends: (Ipv4Addr, Ipv4Addr), overlay: Overlay, inner: Macs) -> Self {
        Self {
            ethernet: Ethernet::new(link.destination, link.source, EtherType::IPV4),
            ip: Ipv4::new(ends.0, ends.1, IpProtocol::UDP, 0),
            udp: Udp::new(0, overlay.port, 0),
            vxlan: Vxlan::new(overlay.vni),
            inner,
        }
    }

    /// Whether it is as a peer makes it for us around a frame of so many bytes in all: without options, checksum and padding.
    #[inline(always)]
    pub(crate) fn is_plain(&self, len: usize, own: Ipv4Addr, overlay: Overlay) -> bool {
        let word = |vxlan: Vxlan| -> u64 { zerocopy::transmute!(vxlan) };
        let (ip, udp) = (&self.ip, &self.udp);
        self.ethernet.ether_type() == EtherType::IPV4
            && ip.is_without_options()
            && !ip.is_fragment()
            && ip.protocol() == IpProtocol::UDP
            && ip.destination() == own
            && Ethernet::LEN + usize::from(ip.total_length()) == len
            && udp.destination() == overlay.port
            && udp.checksum() == 0
            && Ethernet::LEN + Ipv4::LEN + usize::from(udp.length()) == len
            && word(self.vxlan) == word(Vxlan::new(overlay.vni))
            && ip.is_right_without_options().is_ok()
    }
}

impl Outer for OuterV4 {
    const LEN: usize = Ethernet::LEN + Ipv4::LEN + Udp::LEN + Vxlan::LEN;

    #[inline(always)]
    fn stamp(&mut self, template: &Self, len: u16, class: TrafficClass) {
        let total = len + Ipv4::LEN as u16 + UDP_VXLAN;
        self.ip.set_traffic_class(class);
        self.ip.set_total_length(total);
        self.ip.set_checksum(checksum::put_in(template.ip.checksum(), u32::from(class.0) + u32::from(total)));
        self.udp.set_length(len + UDP_VXLAN);
    }

    fn refit(&mut self, len: u16) {
        self.ip.set_total_length(len + Ipv4::LEN as u16 + UDP_VXLAN);
        self.ip.seal();
        self.udp.set_length(len + UDP_VXLAN);
    }

    #[inline]
    fn udp(&mut self) -> &mut Udp {
        &mut self.udp
    }
}

impl OuterV6 {
    pub(crate) fn new(link: Macs, ends: (Ipv6Addr, Ipv6Addr), overlay: Overlay, inner: Macs) -> Self {
        Self {
            ethernet: Ethernet::new(link.destination, link.source, EtherType::IPV6),
            ip: Ipv6::new(ends.0, ends.1, IpProtocol::UDP, 0),
            udp: Udp::new(0, overlay.port, 0),
            vxlan: Vxlan::new(overlay.vni),
            inner,
        }
    }
}

impl Outer for OuterV6 {
    const LEN: usize = Ethernet::LEN + Ipv6::LEN + Udp::LEN + Vxlan::LEN;

    #[inline]
    fn stamp(&mut self, _: &Self, len: u16, class: TrafficClass) {
        self.ip.set_traffic_class(class);
        self.refit(len);
    }

    #[inline]
    fn refit(&mut self, len: u16) {
        self.ip.set_payload_length(len + UDP_VXLAN);
        self.udp.set_length(len + UDP_VXLAN);
    }

    #[inline]
    fn udp(&mut self) -> &mut Udp {
        &mut self.udp
    }
}

/// Puts a prepared tunnel header in front of a frame, with a packet of this class, from this port.
#[inline(always)]
pub(crate) fn encap<B: Buffer, I: Ip, O: Outer>(
    frame: &mut Frame<B>,
    (class, source): (TrafficClass, u16),
    hop: Hop,
    template: &O,
) -> Result<(), DropReason> {
    let len = u16::try_from(frame.len()).ok().filter(|len| usize::from(*len) <= MAX_INNER);
    let len = len.ok_or(DropReason::TooBig)?;
    frame.push(O::LEN)?;
    let (outer, rest) = O::mut_from_prefix(frame.head_mut()).map_err(|_| DropReason::Malformed)?;
    *outer = *template;
    outer.stamp(template, len, class);
    outer.udp().set_source(source);
    if hop == Hop::Router {
        count_hop::<I>(rest);
    }
    if !frame.offload.is_none() {
        frame.offload = frame.offload.moved_back(O::LEN);
    }
    frame.outer = O::LEN as u8;
    frame.egress = Port::Uplink;
    if O::LEN == OuterV6::LEN { seal_v6(frame) } else { Ok(()) }
}

/// Makes a tunnel header that was copied from a longer frame fit the one it is in now.
pub(crate) fn refit<B: Buffer>(frame: &mut Frame<B>) -> Result<(), DropReason> {
    match frame.outer_len() {
        OuterV4::LEN => refit_as::<B, OuterV4>(frame),
        OuterV6::LEN => refit_as::<B, OuterV6>(frame).and_then(|()| seal_v6(frame)),
        _ => Ok(()),
    }
}

fn refit_as<B: Buffer, O: Outer>(frame: &mut Frame<B>) -> Result<(), DropReason> {
    let len = (frame.len() - O::LEN) as u16;
    let (outer, _) = O::mut_from_prefix(frame.head_mut()).map_err(|_| DropReason::Malformed)?;
    outer.refit(len);
    Ok(())
}

/// Computes the outer UDP checksum, which IPv6 demands (RFC 8200 §8.1). An inner checksum that is still partial will turn
/// the bytes it covers into the complement of its pseudo header, so these need not be read. A frame that stands for several
/// gets the pseudo header's sum: who cuts it computes the rest.
fn seal_v6<B: Buffer>(frame: &mut Frame<B>) -> Result<(), DropReason> {
    const UDP: usize = Ethernet::LEN + Ipv6::LEN;
    let (outer, _) = OuterV6::mut_from_prefix(frame.head_mut()).map_err(|_| DropReason::Malformed)?;
    outer.udp.set_checksum(0);
    let (ip, len) = (outer.ip, u32::from(outer.udp.length()));
    let pseudo = Sum::ipv6_pseudo(ip.source(), ip.destination(), IpProtocol::UDP, len);
    let checksum = match frame.offload.checksum {
        _ if frame.offload.gso.is_some() => pseudo.folded(),
        Checksum::Partial { start, offset } => {
            let (start, field) = (usize::from(start), usize::from(start) + usize::from(offset));
            let head = frame.head();
            let before = head.get(UDP..start).ok_or(DropReason::Malformed)?;
            let partial = head.get(field..field + 2).ok_or(DropReason::Malformed)?;
            let covered = !u16::from_be_bytes([partial[0], partial[1]]);
            checksum::never_zero(pseudo.bytes(before).word(covered).checksum())
        }
        Checksum::Whole | Checksum::Verified => checksum::never_zero(frame.add_from(UDP, pseudo).checksum()),
    };
    let (outer, _) = OuterV6::mut_from_prefix(frame.head_mut()).map_err(|_| DropReason::Malformed)?;
    outer.udp.set_checksum(checksum);
    Ok(())
}
