//! IPv6.

use std::net::Ipv6Addr;

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Ecn, IpProtocol, Malformed, TrafficClass};

/// The IPv6 header as it lies in a packet (RFC 8200 §3).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Ipv6 {
    version_class_flow: U32,
    payload_length: U16,
    next_header: IpProtocol,
    hop_limit: u8,
    source: [u8; 16],
    destination: [u8; 16],
}

impl Ipv6 {
    /// Bytes of the header.
    pub const LEN: usize = size_of::<Self>();
    const FLOW: u32 = 0x000f_ffff;
    const CLASS_SHIFT: u32 = 20;

    /// A header with a hop limit of 64, no flow label and a traffic class of zero. `payload_length`
    /// does not count the header.
    pub const fn new(
        source: Ipv6Addr,
        destination: Ipv6Addr,
        next_header: IpProtocol,
        payload_length: u16,
    ) -> Self {
        Self {
            version_class_flow: U32::new(6 << 28),
            payload_length: U16::new(payload_length),
            next_header,
            hop_limit: 64,
            source: source.octets(),
            destination: destination.octets(),
        }
    }

    /// Splits an Ethernet payload into its IPv6 header and what follows, trimmed to the payload length;
    /// it begins with extension headers, perhaps: see [`Upper`](crate::Upper). A jumbogram's length of
    /// zero (RFC 2675) means an empty payload here.
    #[inline]
    pub fn split(packet: &[u8]) -> Result<(&Self, &[u8]), Malformed> {
        let (header, rest) = Self::ref_from_prefix(packet).map_err(|_| Malformed::Ipv6Short)?;
        let payload = rest.get(..header.extent()?).ok_or(Malformed::Ipv6PayloadLength)?;
        Ok((header, payload))
    }

    /// [`split`](Self::split), to write.
    #[inline]
    pub fn split_mut(packet: &mut [u8]) -> Result<(&mut Self, &mut [u8]), Malformed> {
        let (header, rest) = Self::mut_from_prefix(packet).map_err(|_| Malformed::Ipv6Short)?;
        let payload = rest.get_mut(..header.extent()?).ok_or(Malformed::Ipv6PayloadLength)?;
        Ok((header, payload))
    }

    /// Splits what may be only the front of a packet: one quoted in an ICMP error, or the first part of
    /// a chain of buffers. The payload ends where the bytes do if the payload length says more.
    #[inline]
    pub fn split_partial(packet: &[u8]) -> Result<(&Self, &[u8]), Malformed> {
        let (header, rest) = Self::ref_from_prefix(packet).map_err(|_| Malformed::Ipv6Short)?;
        Ok((header, &rest[..header.extent()?.min(rest.len())]))
    }

    #[inline]
    fn extent(&self) -> Result<usize, Malformed> {
        if self.version_class_flow.get() >> 28 == 6 {
            Ok(usize::from(self.payload_length()))
        } else {
            Err(Malformed::Ipv6Version)
        }
    }

    /// DSCP and ECN.
    pub const fn traffic_class(&self) -> TrafficClass {
        TrafficClass((self.version_class_flow.get() >> Self::CLASS_SHIFT) as u8)
    }

    /// Sets DSCP and ECN.
    pub const fn set_traffic_class(&mut self, class: TrafficClass) {
        let rest = self.version_class_flow.get() & !(0xff << Self::CLASS_SHIFT);
        self.version_class_flow = U32::new(rest | (class.0 as u32) << Self::CLASS_SHIFT);
    }

    /// The differentiated services code point.
    pub const fn dscp(&self) -> u8 {
        self.traffic_class().dscp()
    }

    /// The congestion bits.
    pub const fn ecn(&self) -> Ecn {
        self.traffic_class().ecn()
    }

    /// Changes the congestion bits.
    pub const fn remark(&mut self, ecn: Ecn) {
        self.set_traffic_class(self.traffic_class().with_ecn(ecn));
    }

    /// The flow label, 20 bits (RFC 6437).
    pub const fn flow_label(&self) -> u32 {
        self.version_class_flow.get() & Self::FLOW
    }

    /// Sets the flow label; bits above the twentieth are dropped.
    pub const fn set_flow_label(&mut self, label: u32) {
        self.version_class_flow = U32::new(self.version_class_flow.get() & !Self::FLOW | label & Self::FLOW);
    }

    /// Bytes after the header.
    pub const fn payload_length(&self) -> u16 {
        self.payload_length.get()
    }

    /// Sets the bytes after the header.
    pub const fn set_payload_length(&mut self, length: u16) {
        self.payload_length = U16::new(length);
    }

    /// What follows: an extension header or the payload.
    pub const fn next_header(&self) -> IpProtocol {
        self.next_header
    }

    /// Sets what follows.
    pub const fn set_next_header(&mut self, protocol: IpProtocol) {
        self.next_header = protocol;
    }

    /// How many more routers may forward the packet.
    pub const fn hop_limit(&self) -> u8 {
        self.hop_limit
    }

    /// Sets how many more routers may forward the packet.
    pub const fn set_hop_limit(&mut self, limit: u8) {
        self.hop_limit = limit;
    }

    /// Takes one from the hop limit. False, and nothing changed, when none would be left: the packet is
    /// not to be forwarded (RFC 8200 §3).
    pub const fn decrement_hop_limit(&mut self) -> bool {
        if self.hop_limit <= 1 {
            return false;
        }
        self.hop_limit -= 1;
        true
    }

    /// Who sent the packet.
    pub fn source(&self) -> Ipv6Addr {
        self.source.into()
    }

    /// Sets who sent the packet.
    pub const fn set_source(&mut self, address: Ipv6Addr) {
        self.source = address.octets();
    }

    /// Whom the packet is for.
    pub fn destination(&self) -> Ipv6Addr {
        self.destination.into()
    }

    /// Sets whom the packet is for.
    pub const fn set_destination(&mut self, address: Ipv6Addr) {
        self.destination = address.octets();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet() -> [u8; 46] {
        // RFC 8200 §3: version 6, class 0xb9, flow 0x12345, length 4, next 17, limit 255;
        // after the payload two bytes of padding.
        let mut bytes = [0; 46];
        bytes[..8].copy_from_slice(&[0x6b, 0x91, 0x23, 0x45, 0, 4, 17, 255]);
        bytes[8..24].copy_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        bytes[24..40].copy_from_slice(&"2001:db8::2".parse::<Ipv6Addr>().unwrap().octets());
        bytes[40..44].copy_from_slice(b"data");
        bytes
    }

    #[test]
    fn the_rfcs_picture_is_read() {
        let bytes = packet();
        let (header, payload) = Ipv6::split(&bytes).unwrap();
        assert_eq!((header.traffic_class().0, header.flow_label()), (0xb9, 0x12345));
        assert_eq!((header.dscp(), header.ecn()), (46, Ecn::Ect1));
        assert_eq!((header.payload_length(), header.next_header()), (4, IpProtocol::UDP));
        assert_eq!((header.hop_limit(), header.source().to_string()), (255, "2001:db8::1".to_owned()));
        assert_eq!(header.destination().to_string(), "2001:db8::2");
        assert_eq!(payload, b"data");
    }

    #[test]
    fn lies_are_named() {
        let mut bytes = packet();
        assert_eq!(Ipv6::split(&bytes[..39]), Err(Malformed::Ipv6Short));
        assert_eq!(Ipv6::split(&bytes[..43]), Err(Malformed::Ipv6PayloadLength));
        assert_eq!(Ipv6::split_mut(&mut bytes[..43]), Err(Malformed::Ipv6PayloadLength));
        assert_eq!(Ipv6::split_partial(&bytes[..43]).unwrap().1, b"dat");
        assert_eq!(Ipv6::split_partial(&bytes).unwrap().1, b"data");
        bytes[0] = 0x45;
        assert_eq!(Ipv6::split(&bytes), Err(Malformed::Ipv6Version));
        assert_eq!(Ipv6::split_mut(&mut bytes), Err(Malformed::Ipv6Version));
        assert_eq!(Ipv6::split_partial(&bytes), Err(Malformed::Ipv6Version));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            source: [u8; 16], destination: [u8; 16], class: u8, flow: u32, length: u16, next: u8, limit: u8,
        ) {
            let mut header = Ipv6::new(source.into(), destination.into(), IpProtocol(next), length);
            header.set_flow_label(flow);
            header.set_traffic_class(TrafficClass(class));
            header.set_hop_limit(limit);
            prop_assert_eq!(header.as_bytes()[0] >> 4, 6);
            prop_assert_eq!((header.traffic_class().0, header.flow_label()), (class, flow & 0xf_ffff));
            prop_assert_eq!((header.payload_length(), header.next_header().0), (length, next));
            prop_assert_eq!((header.source().octets(), header.destination().octets()), (source, destination));
            header.remark(Ecn::Ce);
            prop_assert_eq!((header.dscp(), header.ecn()), (class >> 2, Ecn::Ce));
            prop_assert_eq!(header.flow_label(), flow & 0xf_ffff);
            prop_assert_eq!(header.decrement_hop_limit(), limit > 1);
            prop_assert_eq!(header.hop_limit(), if limit > 1 { limit - 1 } else { limit });
            header.set_source(destination.into());
            header.set_destination(source.into());
            header.set_payload_length(!length);
            header.set_next_header(IpProtocol(!next));
            prop_assert_eq!((header.source().octets(), header.destination().octets()), (destination, source));
            prop_assert_eq!((header.payload_length(), header.next_header().0), (!length, !next));
        }
    }
}
