//! ICMP for IPv6.

use std::net::Ipv6Addr;

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{IpProtocol, Malformed, checksum};

/// The kind of an ICMPv6 message. Every number is legal.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Hash, Debug,
)]
#[repr(transparent)]
pub struct Icmpv6Type(pub u8);

impl Icmpv6Type {
    /// The packet could not be delivered; the code says why.
    pub const DESTINATION_UNREACHABLE: Self = Self(1);
    /// The packet was too big for the next link.
    pub const PACKET_TOO_BIG: Self = Self(2);
    /// The hop limit ran out (code 0), or reassembly took too long (code 1).
    pub const TIME_EXCEEDED: Self = Self(3);
    /// Echo, also known as ping.
    pub const ECHO_REQUEST: Self = Self(128);
    /// Answer to an echo.
    pub const ECHO_REPLY: Self = Self(129);
    /// Is there a router? (RFC 4861 §4.1)
    pub const ROUTER_SOLICITATION: Self = Self(133);
    /// There is. (RFC 4861 §4.2)
    pub const ROUTER_ADVERTISEMENT: Self = Self(134);
    /// Who has this address? (RFC 4861 §4.3)
    pub const NEIGHBOR_SOLICITATION: Self = Self(135);
    /// I have. (RFC 4861 §4.4)
    pub const NEIGHBOR_ADVERTISEMENT: Self = Self(136);
    /// There is a better first hop. (RFC 4861 §4.5)
    pub const REDIRECT: Self = Self(137);

    /// True for messages about another packet, which they quote (RFC 4443 §2.1).
    pub const fn is_error(self) -> bool {
        self.0 < 128
    }
}

/// The ICMPv6 header as it lies in a packet (RFC 4443 §2.1): its four bytes and the four after them,
/// which every message has. What follows is an echo's data or an error's quote.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Icmpv6 {
    kind: Icmpv6Type,
    code: u8,
    checksum: U16,
    word: U32,
}

impl Icmpv6 {
    /// Bytes of the header.
    pub const LEN: usize = size_of::<Self>();

    /// A header without a checksum; `word` is its last four bytes, whose meaning depends on the type.
    pub const fn new(kind: Icmpv6Type, code: u8, word: u32) -> Self {
        Self { kind, code, checksum: U16::ZERO, word: U32::new(word) }
    }

    /// Splits an IP payload into its ICMPv6 header and the rest of the message.
    #[inline]
    pub fn split(message: &[u8]) -> Result<(&Self, &[u8]), Malformed> {
        Self::ref_from_prefix(message).map_err(|_| Malformed::IcmpShort)
    }

    /// [`split`](Self::split), to write.
    #[inline]
    pub fn split_mut(message: &mut [u8]) -> Result<(&mut Self, &mut [u8]), Malformed> {
        Self::mut_from_prefix(message).map_err(|_| Malformed::IcmpShort)
    }

    /// Whether a whole message between these addresses sums up to its checksum (RFC 4443 §2.3).
    pub fn verify(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> Result<(), Malformed> {
        Self::split(message)?;
        match checksum::transport_v6(source, destination, IpProtocol::ICMPV6, message) {
            0 => Ok(()),
            _ => Err(Malformed::IcmpChecksum),
        }
    }

    /// The kind of the message.
    pub const fn kind(&self) -> Icmpv6Type {
        self.kind
    }

    /// Sets the kind of the message.
    pub const fn set_kind(&mut self, kind: Icmpv6Type) {
        self.kind = kind;
    }

    /// What the type leaves open.
    pub const fn code(&self) -> u8 {
        self.code
    }

    /// The checksum, over pseudo header and message.
    pub const fn checksum(&self) -> u16 {
        self.checksum.get()
    }

    /// Sets the checksum.
    pub const fn set_checksum(&mut self, checksum: u16) {
        self.checksum = U16::new(checksum);
    }

    /// The identifier of an echo, which stands where a transport would have its port.
    pub const fn identifier(&self) -> u16 {
        (self.word.get() >> 16) as u16
    }

    /// Sets the identifier of an echo.
    pub const fn set_identifier(&mut self, identifier: u16) {
        self.word = U32::new((identifier as u32) << 16 | self.word.get() & 0xffff);
    }

    /// The sequence number of an echo.
    pub const fn sequence(&self) -> u16 {
        self.word.get() as u16
    }

    /// What would have fitted, in a message that says "packet too big" (RFC 4443 §3.2).
    pub const fn mtu(&self) -> u32 {
        self.word.get()
    }

    /// Sets what would have fitted.
    pub const fn set_mtu(&mut self, mtu: u32) {
        self.word = U32::new(mtu);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_is_read_verified_and_turned_around() {
        // RFC 4443 §4.1: code 0, identifier 0x1234, sequence 7, data.
        let mut bytes = [128, 0, 0, 0, 0x12, 0x34, 0, 7, b'h', b'j'];
        let (a, b) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let sum = checksum::transport_v6(a, b, IpProtocol::ICMPV6, &bytes);
        let (header, data) = Icmpv6::split_mut(&mut bytes).unwrap();
        header.set_checksum(sum);
        assert_eq!((header.kind(), header.code(), header.checksum()), (Icmpv6Type::ECHO_REQUEST, 0, sum));
        assert_eq!((header.identifier(), header.sequence(), &*data), (0x1234, 7, &b"hj"[..]));
        assert_eq!(Icmpv6::verify(a, b, &bytes), Ok(()));
        assert_eq!(Icmpv6::verify(b, a, &bytes), Ok(()), "the pseudo header does not know directions");
        assert_eq!(Icmpv6::verify(a, a, &bytes), Err(Malformed::IcmpChecksum));
        assert_eq!(Icmpv6::verify(a, b, &bytes[..7]), Err(Malformed::IcmpShort));
        let (header, _) = Icmpv6::split_mut(&mut bytes).unwrap();
        header.set_kind(Icmpv6Type::ECHO_REPLY);
        header.set_identifier(0xffff);
        assert_eq!((bytes[0], &bytes[4..8]), (129, &[0xff, 0xff, 0, 7][..]));
    }

    #[test]
    fn the_mtu_has_four_bytes() {
        let mut header = Icmpv6::new(Icmpv6Type::PACKET_TOO_BIG, 0, 1450);
        assert_eq!(header.as_bytes(), [2, 0, 0, 0, 0, 0, 0x05, 0xaa]);
        header.set_mtu(0x1_0000);
        assert_eq!(header.mtu(), 0x1_0000);
        assert!(header.kind().is_error() && !Icmpv6Type::ECHO_REQUEST.is_error());
    }
}
