//! Ethernet II and the 802.1Q tag.

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{MacAddr, Malformed};

/// What an Ethernet frame carries. Every number is legal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EtherType(pub u16);

impl EtherType {
    /// IPv4 (RFC 894).
    pub const IPV4: Self = Self(0x0800);
    /// ARP (RFC 826).
    pub const ARP: Self = Self(0x0806);
    /// An 802.1Q tag follows.
    pub const VLAN: Self = Self(0x8100);
    /// IPv6 (RFC 2464 §3).
    pub const IPV6: Self = Self(0x86dd);
    /// An 802.1ad service tag follows.
    pub const SERVICE_VLAN: Self = Self(0x88a8);

    /// True when a [`VlanTag`] lies before the payload.
    pub const fn is_tag(self) -> bool {
        matches!(self, Self::VLAN | Self::SERVICE_VLAN)
    }
}

/// The Ethernet II header as it lies in a frame (IEEE 802.3; RFC 894, RFC 2464).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Ethernet {
    destination: MacAddr,
    source: MacAddr,
    ether_type: U16,
}

impl Ethernet {
    /// Bytes of the header.
    pub const LEN: usize = size_of::<Self>();

    /// A header for these two ends.
    pub const fn new(destination: MacAddr, source: MacAddr, ether_type: EtherType) -> Self {
        Self { destination, source, ether_type: U16::new(ether_type.0) }
    }

    /// Splits a frame into its Ethernet header and what follows, which may begin with a [`VlanTag`].
    #[inline]
    pub fn split(frame: &[u8]) -> Result<(&Self, &[u8]), Malformed> {
        Self::ref_from_prefix(frame).map_err(|_| Malformed::EthernetShort)
    }

    /// [`split`](Self::split), to write.
    #[inline]
    pub fn split_mut(frame: &mut [u8]) -> Result<(&mut Self, &mut [u8]), Malformed> {
        Self::mut_from_prefix(frame).map_err(|_| Malformed::EthernetShort)
    }

    /// Whom the frame is for.
    pub const fn destination(&self) -> MacAddr {
        self.destination
    }

    /// Sets whom the frame is for.
    pub const fn set_destination(&mut self, mac: MacAddr) {
        self.destination = mac;
    }

    /// Who sent the frame.
    pub const fn source(&self) -> MacAddr {
        self.source
    }

    /// Sets who sent the frame.
    pub const fn set_source(&mut self, mac: MacAddr) {
        self.source = mac;
    }

    /// What follows the header. Below 0x0600 it is a length of IEEE 802.3, which no IP packet uses.
    pub const fn ether_type(&self) -> EtherType {
        EtherType(self.ether_type.get())
    }

    /// Sets what follows the header.
    pub const fn set_ether_type(&mut self, ether_type: EtherType) {
        self.ether_type = U16::new(ether_type.0);
    }
}

/// The rest of an 802.1Q tag, after the type that announced it: control information, then the type
/// of what follows (IEEE 802.1Q §9.6).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct VlanTag {
    control: U16,
    ether_type: U16,
}

impl VlanTag {
    /// Bytes of the tag that follow the type that announced it.
    pub const LEN: usize = size_of::<Self>();
    const ID: u16 = 0x0fff;

    /// Splits what follows a type with [`EtherType::is_tag`] into the tag and the rest.
    #[inline]
    pub fn split(payload: &[u8]) -> Result<(&Self, &[u8]), Malformed> {
        Self::ref_from_prefix(payload).map_err(|_| Malformed::VlanShort)
    }

    /// [`split`](Self::split), to write.
    #[inline]
    pub fn split_mut(payload: &mut [u8]) -> Result<(&mut Self, &mut [u8]), Malformed> {
        Self::mut_from_prefix(payload).map_err(|_| Malformed::VlanShort)
    }

    /// The VLAN identifier, 12 bits; zero means "priority only".
    pub const fn id(&self) -> u16 {
        self.control.get() & Self::ID
    }

    /// Sets the VLAN identifier; bits above the twelfth are dropped.
    pub const fn set_id(&mut self, id: u16) {
        self.control = U16::new(self.control.get() & !Self::ID | id & Self::ID);
    }

    /// The priority code point, 0 to 7.
    pub const fn priority(&self) -> u8 {
        (self.control.get() >> 13) as u8
    }

    /// True when the frame may be dropped before others.
    pub const fn drop_eligible(&self) -> bool {
        self.control.get() & 0x1000 != 0
    }

    /// What follows the tag; another tag, perhaps.
    pub const fn ether_type(&self) -> EtherType {
        EtherType(self.ether_type.get())
    }

    /// Sets what follows the tag.
    pub const fn set_ether_type(&mut self, ether_type: EtherType) {
        self.ether_type = U16::new(ether_type.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 2464 §2 gives the order of the fields; addresses from RFC 7042's documentation range.
    const FRAME: [u8; 20] = [
        0x00, 0x00, 0x5e, 0x00, 0x53, 0x02, 0x00, 0x00, 0x5e, 0x00, 0x53, 0x01, 0x81, 0x00, 0xb0, 0x64, 0x86,
        0xdd, 0x60, 0x00,
    ];

    #[test]
    fn a_tagged_frame_is_recognised_and_read() {
        let (header, rest) = Ethernet::split(&FRAME).unwrap();
        assert_eq!(header.destination(), MacAddr([0, 0, 0x5e, 0, 0x53, 2]));
        assert_eq!(header.source(), MacAddr([0, 0, 0x5e, 0, 0x53, 1]));
        assert!(header.ether_type().is_tag());
        let (tag, rest) = VlanTag::split(rest).unwrap();
        assert_eq!((tag.id(), tag.priority(), tag.drop_eligible()), (100, 5, true));
        assert_eq!(tag.ether_type(), EtherType::IPV6);
        assert_eq!(rest, [0x60, 0x00]);
    }

    #[test]
    fn what_is_written_is_read() {
        let (a, b) = (MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));
        let mut frame = FRAME;
        let (header, rest) = Ethernet::split_mut(&mut frame).unwrap();
        header.set_destination(a);
        header.set_source(b);
        header.set_ether_type(EtherType::SERVICE_VLAN);
        assert_eq!(*header, Ethernet::new(a, b, EtherType::SERVICE_VLAN));
        let (tag, _) = VlanTag::split_mut(rest).unwrap();
        tag.set_id(0xf001);
        tag.set_ether_type(EtherType::ARP);
        assert_eq!((tag.id(), tag.priority(), tag.drop_eligible()), (1, 5, true));
        assert_eq!(frame[14..18], [0xb0, 0x01, 0x08, 0x06]);
    }

    #[test]
    fn a_short_frame_is_named() {
        assert_eq!(Ethernet::split(&FRAME[..13]), Err(Malformed::EthernetShort));
        assert_eq!(VlanTag::split(&FRAME[14..17]), Err(Malformed::VlanShort));
    }
}
