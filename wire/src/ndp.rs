//! Neighbor Discovery: solicitation, advertisement, and their options.

use std::net::Ipv6Addr;

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Icmpv6Type, MacAddr, Malformed};

/// A neighbor solicitation, without its options, as it lies in a packet (RFC 4861 §4.3).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct NeighborSolicitation {
    kind: Icmpv6Type,
    code: u8,
    checksum: U16,
    reserved: [u8; 4], // sent as zero, ignored on receipt
    target: [u8; 16],
}

impl NeighborSolicitation {
    /// Bytes of the message without options.
    pub const LEN: usize = size_of::<Self>();

    /// A question for `target`, without a checksum.
    pub const fn new(target: Ipv6Addr) -> Self {
        Self {
            kind: Icmpv6Type::NEIGHBOR_SOLICITATION,
            code: 0,
            checksum: U16::ZERO,
            reserved: [0; 4],
            target: target.octets(),
        }
    }

    /// Splits an ICMPv6 message into its solicitation and the options.
    pub fn split(message: &[u8]) -> Result<(&Self, NdpOptions<'_>), Malformed> {
        let (head, options) = Self::ref_from_prefix(message).map_err(|_| Malformed::NdpShort)?;
        expect(head.kind, head.code, Icmpv6Type::NEIGHBOR_SOLICITATION)?;
        Ok((head, NdpOptions(options)))
    }

    /// [`split`](Self::split), to write.
    pub fn split_mut(message: &mut [u8]) -> Result<(&mut Self, &mut [u8]), Malformed> {
        let (head, options) = Self::mut_from_prefix(message).map_err(|_| Malformed::NdpShort)?;
        expect(head.kind, head.code, Icmpv6Type::NEIGHBOR_SOLICITATION)?;
        Ok((head, options))
    }

    /// The address that is looked for.
    pub fn target(&self) -> Ipv6Addr {
        self.target.into()
    }
}

/// A neighbor advertisement, without its options, as it lies in a packet (RFC 4861 §4.4).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct NeighborAdvertisement {
    kind: Icmpv6Type,
    code: u8,
    checksum: U16,
    flags: u8,
    reserved: [u8; 3], // sent as zero, ignored on receipt, as are five bits of `flags`
    target: [u8; 16],
}

impl NeighborAdvertisement {
    /// Bytes of the message without options.
    pub const LEN: usize = size_of::<Self>();
    /// The sender is a router.
    pub const ROUTER: u8 = 0x80;
    /// The sender was asked.
    pub const SOLICITED: u8 = 0x40;
    /// What is said here replaces what was known before.
    pub const OVERRIDE: u8 = 0x20;

    /// A statement about `target`, without a checksum; `flags` as they are named here.
    pub const fn new(target: Ipv6Addr, flags: u8) -> Self {
        Self {
            kind: Icmpv6Type::NEIGHBOR_ADVERTISEMENT,
            code: 0,
            checksum: U16::ZERO,
            flags: flags & (Self::ROUTER | Self::SOLICITED | Self::OVERRIDE),
            reserved: [0; 3],
            target: target.octets(),
        }
    }

    /// Splits an ICMPv6 message into its advertisement and the options.
    pub fn split(message: &[u8]) -> Result<(&Self, NdpOptions<'_>), Malformed> {
        let (head, options) = Self::ref_from_prefix(message).map_err(|_| Malformed::NdpShort)?;
        expect(head.kind, head.code, Icmpv6Type::NEIGHBOR_ADVERTISEMENT)?;
        Ok((head, NdpOptions(options)))
    }

    /// [`split`](Self::split), to write.
    pub fn split_mut(message: &mut [u8]) -> Result<(&mut Self, &mut [u8]), Malformed> {
        let (head, options) = Self::mut_from_prefix(message).map_err(|_| Malformed::NdpShort)?;
        expect(head.kind, head.code, Icmpv6Type::NEIGHBOR_ADVERTISEMENT)?;
        Ok((head, options))
    }

    /// The address that is spoken of.
    pub fn target(&self) -> Ipv6Addr {
        self.target.into()
    }

    /// True when the sender is a router.
    pub const fn is_router(&self) -> bool {
        self.flags & Self::ROUTER != 0
    }

    /// True when the sender was asked.
    pub const fn is_solicited(&self) -> bool {
        self.flags & Self::SOLICITED != 0
    }

    /// True when this replaces what was known before.
    pub const fn overrides(&self) -> bool {
        self.flags & Self::OVERRIDE != 0
    }
}

fn expect(kind: Icmpv6Type, code: u8, wanted: Icmpv6Type) -> Result<(), Malformed> {
    if kind == wanted && code == 0 { Ok(()) } else { Err(Malformed::NdpKind) }
}

/// One option of a Neighbor Discovery message (RFC 4861 §4.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NdpOption<'a> {
    /// Which option it is.
    pub kind: u8,
    /// What follows its two bytes of type and length.
    pub data: &'a [u8],
}

impl NdpOption<'_> {
    /// Source link-layer address (RFC 4861 §4.6.1).
    pub const SOURCE_LINK_LAYER: u8 = 1;
    /// Target link-layer address (RFC 4861 §4.6.1).
    pub const TARGET_LINK_LAYER: u8 = 2;

    /// A link-layer address option as it lies in a packet (RFC 2464 §6).
    pub const fn link_layer(kind: u8, MacAddr([a, b, c, d, e, f]): MacAddr) -> [u8; 8] {
        [kind, 1, a, b, c, d, e, f]
    }
}

/// The options of a Neighbor Discovery message, one after the other. After the first that is impossible
/// nothing more comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NdpOptions<'a>(&'a [u8]);

impl<'a> NdpOptions<'a> {
    /// The Ethernet address in the first option of this kind. All options are looked at: one that is
    /// impossible spoils the message (RFC 4861 §4.6).
    pub fn link_layer(self, kind: u8) -> Result<Option<MacAddr>, Malformed> {
        let mut found = None;
        for option in self {
            let option = option?;
            if option.kind == kind && found.is_none() {
                found = Some(MacAddr(option.data.try_into().map_err(|_| Malformed::NdpOption)?));
            }
        }
        Ok(found)
    }

    fn take(&mut self) -> Option<NdpOption<'a>> {
        let length = usize::from(*self.0.get(1)?) * 8;
        let (option, rest) = self.0.split_at_checked(length)?;
        let [kind, _, data @ ..] = option else { return None };
        self.0 = rest;
        Some(NdpOption { kind: *kind, data })
    }
}

impl<'a> Iterator for NdpOptions<'a> {
    type Item = Result<NdpOption<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        Some(self.take().ok_or_else(|| {
            self.0 = &[];
            Malformed::NdpOption
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0a]);

    fn solicitation(options: &[u8]) -> Vec<u8> {
        // RFC 4861 §4.3, with reserved bits set as a receiver must bear them.
        let target = "fe80::1".parse::<Ipv6Addr>().unwrap().octets();
        [&[135, 0, 0, 0, 0xff, 0xff, 0xff, 0xff][..], &target, options].concat()
    }

    #[test]
    fn a_solicitation_and_its_options_are_read() {
        let nonce = [14, 1, 1, 2, 3, 4, 5, 6]; // RFC 3971 §5.3.2
        let bytes = solicitation(&[nonce, NdpOption::link_layer(NdpOption::SOURCE_LINK_LAYER, MAC)].concat());
        let (head, options) = NeighborSolicitation::split(&bytes).unwrap();
        assert_eq!(head.target().to_string(), "fe80::1");
        assert_eq!(options.link_layer(NdpOption::SOURCE_LINK_LAYER), Ok(Some(MAC)));
        assert_eq!(options.link_layer(NdpOption::TARGET_LINK_LAYER), Ok(None));
        let kinds: Vec<_> = options.map(|option| option.unwrap().kind).collect();
        assert_eq!(kinds, [14, 1]);
        assert_eq!(NeighborAdvertisement::split(&bytes), Err(Malformed::NdpKind));
        assert_eq!(NeighborSolicitation::split(&bytes[..23]), Err(Malformed::NdpShort));
    }

    #[test]
    fn of_two_addresses_the_first_counts() {
        let options = [MAC, MacAddr::BROADCAST].map(|mac| NdpOption::link_layer(1, mac)).concat();
        let bytes = solicitation(&options);
        let (_, options) = NeighborSolicitation::split(&bytes).unwrap();
        assert_eq!(options.link_layer(NdpOption::SOURCE_LINK_LAYER), Ok(Some(MAC)));
    }

    #[test]
    fn an_advertisement_is_the_rfcs_picture() {
        let target = "fe80::1".parse().unwrap();
        let mut head = NeighborAdvertisement::new(target, 0xff);
        assert_eq!(head.as_bytes()[..8], [136, 0, 0, 0, 0xe0, 0, 0, 0]);
        assert!(head.is_router() && head.is_solicited() && head.overrides());
        let (copy, options) = NeighborAdvertisement::split_mut(head.as_mut_bytes()).unwrap();
        assert_eq!((copy.target(), options.len()), (target, 0));
        head = NeighborAdvertisement::new(target, 0);
        assert!(!head.is_router() && !head.is_solicited() && !head.overrides());
        let mut other = NeighborSolicitation::new(target);
        assert_eq!(NeighborAdvertisement::split_mut(other.as_mut_bytes()), Err(Malformed::NdpKind));
        assert_eq!(NeighborSolicitation::split_mut(other.as_mut_bytes()).unwrap().0.target(), target);
    }

    #[test]
    fn impossible_options_end_the_walk() {
        for options in [&[1, 0, 0, 0, 0, 0, 0, 0][..], &[1, 2, 0, 0, 0, 0, 0, 0], &[1]] {
            let bytes = solicitation(options);
            let (_, mut options) = NeighborSolicitation::split(&bytes).unwrap();
            assert_eq!(options.link_layer(NdpOption::TARGET_LINK_LAYER), Err(Malformed::NdpOption));
            assert_eq!(options.next(), Some(Err(Malformed::NdpOption)));
            assert_eq!(options.next(), None);
        }
        // An address of fourteen bytes is none of Ethernet's.
        let bytes = solicitation(&[1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let (_, options) = NeighborSolicitation::split(&bytes).unwrap();
        assert_eq!(options.link_layer(1), Err(Malformed::NdpOption));
    }
}
