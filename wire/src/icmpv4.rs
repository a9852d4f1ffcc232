//! ICMP for IPv4.

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Malformed, checksum};

/// The kind of an ICMP message. Every number is legal.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Hash, Debug,
)]
#[repr(transparent)]
pub struct Icmpv4Type(pub u8);

impl Icmpv4Type {
    /// Answer to an echo.
    pub const ECHO_REPLY: Self = Self(0);
    /// The packet could not be delivered; the code says why.
    pub const DESTINATION_UNREACHABLE: Self = Self(3);
    /// Echo, also known as ping.
    pub const ECHO_REQUEST: Self = Self(8);
    /// The time to live ran out (code 0), or reassembly took too long (code 1).
    pub const TIME_EXCEEDED: Self = Self(11);

    /// True for messages about another packet, which they quote (RFC 1122 §3.2.2): destination
    /// unreachable, source quench, redirect, time exceeded, parameter problem.
    pub const fn is_error(self) -> bool {
        matches!(self.0, 3 | 4 | 5 | 11 | 12)
    }
}

/// The ICMP header as it lies in a packet (RFC 792). What follows is an echo's data or an error's quote.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Icmpv4 {
    kind: Icmpv4Type,
    code: u8,
    checksum: U16,
    words: [U16; 2],
}

impl Icmpv4 {
    /// Bytes of the header.
    pub const LEN: usize = size_of::<Self>();
    /// The code of [`Icmpv4Type::DESTINATION_UNREACHABLE`] that says "too big, and not to be fragmented".
    pub const FRAGMENTATION_NEEDED: u8 = 4;

    /// A header without a checksum; `words` are its last four bytes, whose meaning depends on the type.
    pub const fn new(kind: Icmpv4Type, code: u8, words: [u16; 2]) -> Self {
        Self { kind, code, checksum: U16::ZERO, words: [U16::new(words[0]), U16::new(words[1])] }
    }

    /// Splits an IP payload into its ICMP header and the rest of the message.
    #[inline]
    pub fn split(message: &[u8]) -> Result<(&Self, &[u8]), Malformed> {
        Self::ref_from_prefix(message).map_err(|_| Malformed::IcmpShort)
    }

    /// [`split`](Self::split), to write.
    #[inline]
    pub fn split_mut(message: &mut [u8]) -> Result<(&mut Self, &mut [u8]), Malformed> {
        Self::mut_from_prefix(message).map_err(|_| Malformed::IcmpShort)
    }

    /// Whether a whole message sums up to its checksum.
    pub fn verify(message: &[u8]) -> Result<(), Malformed> {
        Self::split(message)?;
        if checksum::internet(message) == 0 { Ok(()) } else { Err(Malformed::IcmpChecksum) }
    }

    /// The kind of the message.
    pub const fn kind(&self) -> Icmpv4Type {
        self.kind
    }

    /// Sets the kind of the message.
    pub const fn set_kind(&mut self, kind: Icmpv4Type) {
        self.kind = kind;
    }

    /// What the type leaves open.
    pub const fn code(&self) -> u8 {
        self.code
    }

    /// The checksum, over the whole message.
    pub const fn checksum(&self) -> u16 {
        self.checksum.get()
    }

    /// Sets the checksum.
    pub const fn set_checksum(&mut self, checksum: u16) {
        self.checksum = U16::new(checksum);
    }

    /// The identifier of an echo, which stands where a transport would have its port.
    pub const fn identifier(&self) -> u16 {
        self.words[0].get()
    }

    /// Sets the identifier of an echo.
    pub const fn set_identifier(&mut self, identifier: u16) {
        self.words[0] = U16::new(identifier);
    }

    /// The sequence number of an echo.
    pub const fn sequence(&self) -> u16 {
        self.words[1].get()
    }

    /// What would have fitted, in a message that says "fragmentation needed" (RFC 1191 §4); zero from
    /// routers that do not know of the field.
    pub const fn next_hop_mtu(&self) -> u16 {
        self.words[1].get()
    }

    /// Sets what would have fitted.
    pub const fn set_next_hop_mtu(&mut self, mtu: u16) {
        self.words[1] = U16::new(mtu);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 792, "Echo or Echo Reply Message": code 0, identifier 0x1234, sequence 7, two bytes of data.
    const ECHO: [u8; 10] = [8, 0, 0x7d, 0x5a, 0x12, 0x34, 0, 7, b'h', b'j'];

    #[test]
    fn an_echo_is_read_and_verified() {
        let (header, data) = Icmpv4::split(&ECHO).unwrap();
        assert_eq!((header.kind(), header.code()), (Icmpv4Type::ECHO_REQUEST, 0));
        assert_eq!((header.identifier(), header.sequence(), data), (0x1234, 7, &b"hj"[..]));
        assert_eq!(header.checksum(), 0x7d5a);
        assert_eq!(Icmpv4::verify(&ECHO), Ok(()));
        assert_eq!(Icmpv4::verify(&ECHO[..9]), Err(Malformed::IcmpChecksum));
        assert_eq!(Icmpv4::verify(&ECHO[..7]), Err(Malformed::IcmpShort));
    }

    #[test]
    fn the_mtu_lies_where_rfc_1191_puts_it() {
        let mut bytes = [0; 8];
        let (header, _) = Icmpv4::split_mut(&mut bytes).unwrap();
        *header = Icmpv4::new(Icmpv4Type::DESTINATION_UNREACHABLE, Icmpv4::FRAGMENTATION_NEEDED, [0, 1450]);
        assert_eq!(header.next_hop_mtu(), 1450);
        header.set_next_hop_mtu(1400);
        header.set_checksum(0xfeff);
        assert_eq!(bytes, [3, 4, 0xfe, 0xff, 0, 0, 0x05, 0x78]);
    }

    #[test]
    fn an_echo_is_turned_around_in_place() {
        let mut bytes = ECHO;
        let (header, _) = Icmpv4::split_mut(&mut bytes).unwrap();
        header.set_kind(Icmpv4Type::ECHO_REPLY);
        header.set_identifier(0x1235);
        header.set_checksum(0);
        let sum = checksum::internet(&bytes);
        Icmpv4::split_mut(&mut bytes).unwrap().0.set_checksum(sum);
        assert_eq!(Icmpv4::verify(&bytes), Ok(()));
        assert_eq!(bytes[4..6], [0x12, 0x35]);
    }

    #[test]
    fn five_types_are_errors() {
        let errors: Vec<u8> = (0..=u8::MAX).filter(|kind| Icmpv4Type(*kind).is_error()).collect();
        assert_eq!(errors, [3, 4, 5, 11, 12]);
    }
}
