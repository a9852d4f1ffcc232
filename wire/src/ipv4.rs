//! IPv4.

use std::net::Ipv4Addr;
use std::ops::Range;

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Ecn, IpProtocol, Malformed, TrafficClass, checksum};

/// The IPv4 header, without its options, as it lies in a packet (RFC 791 §3.1). Setters leave the
/// checksum alone unless they say otherwise.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Ipv4 {
    version_length: u8,
    traffic_class: TrafficClass,
    total_length: U16,
    identification: U16,
    fragment: U16,
    ttl: u8,
    protocol: IpProtocol,
    checksum: U16,
    source: [u8; 4],
    destination: [u8; 4],
}

impl Ipv4 {
    /// Bytes of the header without options.
    pub const LEN: usize = size_of::<Self>();
    const DONT_FRAGMENT: u16 = 0x4000;
    const MORE_FRAGMENTS: u16 = 0x2000;
    const OFFSET: u16 = 0x1fff;

    /// A header without options for an unfragmentable packet, hence without an identification (RFC 6864
    /// §4.1), with a time to live of 64 and the right checksum. `total_length` counts the header too.
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr, protocol: IpProtocol, total_length: u16) -> Self {
        let mut header = Self {
            version_length: 0x45,
            traffic_class: TrafficClass(0),
            total_length: U16::new(total_length),
            identification: U16::ZERO,
            fragment: U16::new(Self::DONT_FRAGMENT),
            ttl: 64,
            protocol,
            checksum: U16::ZERO,
            source: source.octets(),
            destination: destination.octets(),
        };
        header.seal();
        header
    }

    /// Splits an Ethernet payload into its IPv4 header and what follows the options, trimmed to the
    /// total length: Ethernet pads short frames. The checksum is not looked at; see
    /// [`verify`](Self::verify).
    #[inline]
    pub fn split(packet: &[u8]) -> Result<(&Self, &[u8]), Malformed> {
        let (header, _, payload) = Self::split_with_options(packet)?;
        Ok((header, payload))
    }

    /// [`split`](Self::split), with the options between header and payload.
    #[inline]
    pub fn split_with_options(packet: &[u8]) -> Result<(&Self, &[u8], &[u8]), Malformed> {
        let (header, _) = Self::ref_from_prefix(packet).map_err(|_| Malformed::Ipv4Short)?;
        let payload = header.extent()?;
        let options = packet.get(Self::LEN..payload.start).ok_or(Malformed::Ipv4Short)?;
        let payload = packet.get(payload).ok_or(Malformed::Ipv4TotalLength)?;
        Ok((header, options, payload))
    }

    /// [`split`](Self::split), to write.
    #[inline]
    pub fn split_mut(packet: &mut [u8]) -> Result<(&mut Self, &mut [u8]), Malformed> {
        let (header, rest) = Self::mut_from_prefix(packet).map_err(|_| Malformed::Ipv4Short)?;
        let Range { start, end } = header.extent()?;
        if rest.len() < start - Self::LEN {
            return Err(Malformed::Ipv4Short);
        }
        let payload = rest.get_mut(start - Self::LEN..end - Self::LEN).ok_or(Malformed::Ipv4TotalLength)?;
        Ok((header, payload))
    }

    /// Splits what may be only the front of a packet: one quoted in an ICMP error, or the first part of
    /// a chain of buffers. The payload ends where the bytes do if the total length says more.
    #[inline]
    pub fn split_partial(packet: &[u8]) -> Result<(&Self, &[u8]), Malformed> {
        let (header, _) = Self::ref_from_prefix(packet).map_err(|_| Malformed::Ipv4Short)?;
        let Range { start, end } = header.extent()?;
        let payload = packet.get(start..end.min(packet.len())).ok_or(Malformed::Ipv4Short)?;
        Ok((header, payload))
    }

    /// [`split_partial`](Self::split_partial) of a packet whose header, options included, sums up to its checksum.
    #[inline]
    pub fn split_verified(packet: &[u8]) -> Result<(&Self, &[u8]), Malformed> {
        let (header, payload) = Self::split_partial(packet)?;
        let checksum = checksum::internet(packet.get(..header.header_len()).unwrap_or_default());
        if checksum == 0 { Ok((header, payload)) } else { Err(Malformed::Ipv4Checksum) }
    }

    /// Whether this is version 4 and has no options, as nearly every packet's. What then may be asked at once:
    /// [`is_right_without_options`](Self::is_right_without_options).
    #[inline]
    pub const fn is_without_options(&self) -> bool {
        self.version_length == 0x45
    }

    /// What [`split_verified`](Self::split_verified) asks of a header that [has no options](Self::is_without_options).
    #[inline]
    pub fn is_right_without_options(&self) -> Result<(), Malformed> {
        if usize::from(self.total_length()) < Self::LEN {
            return Err(Malformed::Ipv4TotalLength);
        }
        if checksum::is_right(&zerocopy::transmute!(*self)) { Ok(()) } else { Err(Malformed::Ipv4Checksum) }
    }

    /// Where the payload lies in the packet, by the header's own word.
    #[inline]
    fn extent(&self) -> Result<Range<usize>, Malformed> {
        if self.version_length >> 4 != 4 {
            return Err(Malformed::Ipv4Version);
        }
        let payload = self.header_len()..usize::from(self.total_length());
        if payload.start < Self::LEN {
            return Err(Malformed::Ipv4HeaderLength);
        }
        if payload.end < payload.start {
            return Err(Malformed::Ipv4TotalLength);
        }
        Ok(payload)
    }

    /// Whether the header of `packet`, options included, sums up to its checksum.
    #[inline]
    pub fn verify(packet: &[u8]) -> Result<(), Malformed> {
        Self::split_verified(packet).map(|_| ())
    }

    /// Computes the checksum of a header without options. With options, patch it by
    /// [`checksum::replace_u16`].
    pub fn seal(&mut self) {
        self.checksum = U16::ZERO;
        self.checksum = U16::new(checksum::internet(self.as_bytes()));
    }

    /// Bytes of header and options.
    pub const fn header_len(&self) -> usize {
        (self.version_length & 0x0f) as usize * 4
    }

    /// DSCP and ECN.
    pub const fn traffic_class(&self) -> TrafficClass {
        self.traffic_class
    }

    /// Sets DSCP and ECN.
    pub const fn set_traffic_class(&mut self, class: TrafficClass) {
        self.traffic_class = class;
    }

    /// The differentiated services code point.
    pub const fn dscp(&self) -> u8 {
        self.traffic_class.dscp()
    }

    /// The congestion bits.
    pub const fn ecn(&self) -> Ecn {
        self.traffic_class.ecn()
    }

    /// Changes the congestion bits and patches the checksum.
    pub const fn remark(&mut self, ecn: Ecn) {
        let old = u16::from_be_bytes([self.version_length, self.traffic_class.0]);
        self.traffic_class = self.traffic_class.with_ecn(ecn);
        let new = u16::from_be_bytes([self.version_length, self.traffic_class.0]);
        self.checksum = U16::new(checksum::replace_u16(self.checksum.get(), old, new));
    }

    /// Bytes of header, options and payload.
    pub const fn total_length(&self) -> u16 {
        self.total_length.get()
    }

    /// Sets the bytes of header, options and payload.
    pub const fn set_total_length(&mut self, length: u16) {
        self.total_length = U16::new(length);
    }

    /// What the fragments of a packet have in common.
    pub const fn identification(&self) -> u16 {
        self.identification.get()
    }

    /// Sets what the fragments of a packet have in common.
    pub const fn set_identification(&mut self, identification: u16) {
        self.identification = U16::new(identification);
    }

    /// True when routers may not fragment the packet.
    pub const fn dont_fragment(&self) -> bool {
        self.fragment.get() & Self::DONT_FRAGMENT != 0
    }

    /// True in every fragment but the last.
    pub const fn more_fragments(&self) -> bool {
        self.fragment.get() & Self::MORE_FRAGMENTS != 0
    }

    /// Where in the original payload this fragment begins, in bytes.
    pub const fn fragment_offset(&self) -> u16 {
        (self.fragment.get() & Self::OFFSET) * 8
    }

    /// True for a part of a packet, first or not.
    pub const fn is_fragment(&self) -> bool {
        self.fragment.get() & (Self::MORE_FRAGMENTS | Self::OFFSET) != 0
    }

    /// Sets or clears the wish not to be fragmented.
    pub const fn set_dont_fragment(&mut self, wish: bool) {
        let rest = self.fragment.get() & !Self::DONT_FRAGMENT;
        self.fragment = U16::new(if wish { rest | Self::DONT_FRAGMENT } else { rest });
    }

    /// Makes this the header of a fragment that begins `offset` bytes into the original payload, a
    /// multiple of eight (lower bits are dropped).
    pub const fn set_fragment(&mut self, offset: u16, more: bool) {
        let rest = (self.fragment.get() & Self::DONT_FRAGMENT) | (offset / 8);
        self.fragment = U16::new(if more { rest | Self::MORE_FRAGMENTS } else { rest });
    }

    /// How many more routers may forward the packet.
    pub const fn ttl(&self) -> u8 {
        self.ttl
    }

    /// Sets how many more routers may forward the packet.
    pub const fn set_ttl(&mut self, ttl: u8) {
        self.ttl = ttl;
    }

    /// Takes one from the time to live and patches the checksum (RFC 1812 §5.3.1). False, and nothing
    /// changed, when none would be left: the packet is not to be forwarded.
    #[inline]
    pub const fn decrement_ttl(&mut self) -> bool {
        if self.ttl <= 1 {
            return false;
        }
        self.ttl -= 1;
        // RFC 1624 with all that is known of the change put in: one less in the upper byte of a word.
        let checksum = self.checksum.get() as u32 + 0x0100;
        self.checksum = U16::new((checksum + (checksum >= 0xffff) as u32) as u16);
        true
    }

    /// What the payload is.
    pub const fn protocol(&self) -> IpProtocol {
        self.protocol
    }

    /// Sets what the payload is.
    pub const fn set_protocol(&mut self, protocol: IpProtocol) {
        self.protocol = protocol;
    }

    /// The header checksum.
    pub const fn checksum(&self) -> u16 {
        self.checksum.get()
    }

    /// Sets the header checksum.
    pub const fn set_checksum(&mut self, checksum: u16) {
        self.checksum = U16::new(checksum);
    }

    /// Who sent the packet.
    pub fn source(&self) -> Ipv4Addr {
        self.source.into()
    }

    /// Sets who sent the packet.
    pub const fn set_source(&mut self, address: Ipv4Addr) {
        self.source = address.octets();
    }

    /// Whom the packet is for.
    pub fn destination(&self) -> Ipv4Addr {
        self.destination.into()
    }

    /// Sets whom the packet is for.
    pub const fn set_destination(&mut self, address: Ipv4Addr) {
        self.destination = address.octets();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 791 appendix A, example 1: version 4, length 5, total 21, id 111, ttl 123, protocol 1, one
    /// byte of data; addresses and checksum filled in, then Ethernet padding.
    const EXAMPLE_1: [u8; 24] =
        [0x45, 0, 0, 21, 0, 111, 0, 0, 123, 1, 0x53, 0x42, 192, 0, 2, 1, 198, 51, 100, 2, b'd', 0, 0, 0];

    /// RFC 791 appendix A, example 3: header length 8, options of 3, 4, 1, 3 and 1 bytes; shortened from a
    /// total of 576 to 40.
    const WITH_OPTIONS: [u8; 40] = [
        0x48, 0, 0, 40, 0, 111, 0, 0, 123, 6, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2, 0x88, 3, 9, 0x88, 4, 9, 9,
        1, 0x85, 3, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8,
    ];

    #[test]
    fn the_rfcs_first_example_is_read() {
        let (header, payload) = Ipv4::split(&EXAMPLE_1).unwrap();
        assert_eq!((header.header_len(), header.total_length(), header.identification()), (20, 21, 111));
        assert_eq!((header.ttl(), header.protocol()), (123, IpProtocol::ICMPV4));
        assert_eq!(header.source(), Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(header.destination(), Ipv4Addr::new(198, 51, 100, 2));
        assert!(!header.is_fragment() && !header.dont_fragment());
        assert_eq!(payload, b"d", "padding is dropped");
        assert_eq!((header.checksum(), Ipv4::verify(&EXAMPLE_1)), (0x5342, Ok(())));
    }

    #[test]
    fn options_lie_between_header_and_payload() {
        let (header, options, payload) = Ipv4::split_with_options(&WITH_OPTIONS).unwrap();
        assert_eq!((header.header_len(), options, payload), (32, &WITH_OPTIONS[20..32], &WITH_OPTIONS[32..]));
        let mut bytes = WITH_OPTIONS;
        assert_eq!(Ipv4::verify(&bytes), Err(Malformed::Ipv4Checksum));
        let sum = checksum::internet(&bytes[..32]);
        let (header, payload) = Ipv4::split_mut(&mut bytes).unwrap();
        header.set_checksum(sum);
        assert_eq!(payload, &WITH_OPTIONS[32..]);
        assert_eq!(Ipv4::verify(&bytes), Ok(()));
        bytes[31] ^= 1;
        assert_eq!(Ipv4::verify(&bytes), Err(Malformed::Ipv4Checksum));
    }

    #[test]
    fn lies_are_named() {
        let cases: [(usize, u8, Malformed); 6] = [
            (0, 0x65, Malformed::Ipv4Version),
            (0, 0x44, Malformed::Ipv4HeaderLength),
            (0, 0x4f, Malformed::Ipv4TotalLength),
            (3, 19, Malformed::Ipv4TotalLength),
            (3, 25, Malformed::Ipv4TotalLength),
            (2, 1, Malformed::Ipv4TotalLength),
        ];
        for (at, value, reason) in cases {
            let mut bytes = EXAMPLE_1;
            bytes[at] = value;
            assert_eq!(Ipv4::split(&bytes), Err(reason), "byte {at} = {value:#x}");
            assert_eq!(Ipv4::split_mut(&mut bytes), Err(reason), "byte {at} = {value:#x}");
        }
        assert_eq!(Ipv4::split(&EXAMPLE_1[..19]), Err(Malformed::Ipv4Short));
        assert_eq!(Ipv4::split(&WITH_OPTIONS[..31]), Err(Malformed::Ipv4Short));
        assert_eq!(Ipv4::split_mut(&mut { WITH_OPTIONS }[..31]), Err(Malformed::Ipv4Short));
        assert_eq!(Ipv4::split_partial(&WITH_OPTIONS[..31]), Err(Malformed::Ipv4Short));
        assert_eq!(Ipv4::split_partial(&WITH_OPTIONS[..35]).unwrap().1, [1, 2, 3]);
    }

    #[test]
    fn a_fragment_is_told_by_offset_or_flag() {
        let mut header = Ipv4::new([192, 0, 2, 1].into(), [192, 0, 2, 2].into(), IpProtocol::UDP, 100);
        assert!(header.dont_fragment() && !header.is_fragment());
        header.set_dont_fragment(false);
        header.set_fragment(0, true);
        assert!(header.is_fragment() && header.more_fragments() && header.fragment_offset() == 0);
        header.set_fragment(65_528, false);
        assert!(header.is_fragment() && !header.more_fragments() && header.fragment_offset() == 65_528);
        header.set_dont_fragment(true);
        assert_eq!(header.as_bytes()[6..8], [0x5f, 0xff]);
    }

    proptest! {
        #[test]
        fn patched_headers_verify(source: [u8; 4], destination: [u8; 4], class: u8, ttl: u8, ecn: u8) {
            let mut header = Ipv4::new(source.into(), destination.into(), IpProtocol::TCP, 20);
            prop_assert_eq!(Ipv4::verify(header.as_bytes()), Ok(()));
            header.set_traffic_class(TrafficClass(class));
            header.set_ttl(ttl);
            header.set_identification(u16::from_be_bytes([ttl, class]));
            header.set_source(destination.into());
            header.set_destination(source.into());
            header.set_protocol(IpProtocol(ecn));
            header.set_total_length(20);
            header.seal();
            prop_assert_eq!(Ipv4::verify(header.as_bytes()), Ok(()));
            header.remark(Ecn::from_low_bits(ecn));
            prop_assert_eq!((header.dscp(), header.ecn()), (class >> 2, Ecn::from_low_bits(ecn)));
            prop_assert_eq!(Ipv4::verify(header.as_bytes()), Ok(()));
            prop_assert_eq!(header.decrement_ttl(), ttl > 1);
            prop_assert_eq!(header.ttl(), if ttl > 1 { ttl - 1 } else { ttl });
            prop_assert_eq!(Ipv4::verify(header.as_bytes()), Ok(()));
            prop_assert_eq!(header.source(), Ipv4Addr::from(destination));
            prop_assert_eq!(header.destination(), Ipv4Addr::from(source));
        }
    }
}
