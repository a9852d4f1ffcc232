//! The way through IPv6 extension headers.

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{IpProtocol, Malformed};

/// The first two bytes of a hop-by-hop options, routing or destination options header as they lie in a
/// packet (RFC 8200 §4.3, §4.4, §4.6).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Ipv6Extension {
    next_header: IpProtocol,
    length: u8,
}

impl Ipv6Extension {
    /// Splits a payload into its extension header, that header's own data, and what follows.
    pub fn split(payload: &[u8]) -> Result<(&Self, &[u8], &[u8]), Malformed> {
        let (header, rest) = Self::ref_from_prefix(payload).map_err(|_| Malformed::Ipv6ExtensionShort)?;
        let data = header.header_len() - size_of::<Self>();
        let (data, rest) = rest.split_at_checked(data).ok_or(Malformed::Ipv6ExtensionShort)?;
        Ok((header, data, rest))
    }

    /// What follows this header.
    pub const fn next_header(&self) -> IpProtocol {
        self.next_header
    }

    /// Bytes of the whole header; the field counts in eights, the first not included.
    pub const fn header_len(&self) -> usize {
        8 + self.length as usize * 8
    }
}

/// The fragment header as it lies in a packet (RFC 8200 §4.5).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Ipv6Fragment {
    next_header: IpProtocol,
    reserved: u8, // sent as zero, ignored on receipt, as are two bits of `offset`
    offset: U16,
    identification: U32,
}

impl Ipv6Fragment {
    /// Bytes of the header.
    pub const LEN: usize = size_of::<Self>();
    const MORE: u16 = 0x0001;
    const OFFSET: u16 = 0xfff8;

    /// Splits a payload into its fragment header and the fragment.
    pub fn split(payload: &[u8]) -> Result<(&Self, &[u8]), Malformed> {
        Self::ref_from_prefix(payload).map_err(|_| Malformed::Ipv6ExtensionShort)
    }

    /// What the original payload begins with.
    pub const fn next_header(&self) -> IpProtocol {
        self.next_header
    }

    /// Where in the original payload this fragment begins, in bytes.
    pub const fn offset(&self) -> u16 {
        self.offset.get() & Self::OFFSET
    }

    /// True in every fragment but the last.
    pub const fn more_fragments(&self) -> bool {
        self.offset.get() & Self::MORE != 0
    }

    /// False for a packet that merely carries the header and is whole (an atomic fragment, RFC 6946).
    pub const fn is_fragment(&self) -> bool {
        self.offset() != 0 || self.more_fragments()
    }

    /// What the fragments of a packet have in common.
    pub const fn identification(&self) -> u32 {
        self.identification.get()
    }
}

/// What an IPv6 packet carries once its extension headers are passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Upper<'a> {
    /// What `payload` is: the upper-layer protocol, or a header that is not looked through (ESP, AH).
    /// In a fragment that is not the first, `payload` lies somewhere inside of it.
    pub protocol: IpProtocol,
    /// What follows the last extension header.
    pub payload: &'a [u8],
    /// Where `payload` begins, counted from the end of the IPv6 header.
    pub offset: usize,
    /// The fragment header that was passed.
    pub fragment: Option<&'a Ipv6Fragment>,
}

impl<'a> Upper<'a> {
    /// More headers than this are refused: RFC 8200 §4.1 foresees each once and destination options
    /// twice, and a chain without bound is a way to waste our time.
    pub const MAX_EXTENSIONS: usize = 8;

    /// Walks from an IPv6 header's next header and payload to what they carry. Hop-by-hop options must
    /// come first and a fragment header may come once (RFC 8200 §4.1); the walk ends in a fragment that
    /// is not the first, whose bytes are no headers.
    #[inline]
    pub fn find(next_header: IpProtocol, payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut upper = Self { protocol: next_header, payload, offset: 0, fragment: None };
        let mut passed = 0;
        while upper.step(passed == 0)? {
            passed += 1;
            if passed > Self::MAX_EXTENSIONS {
                return Err(Malformed::Ipv6ExtensionChain);
            }
        }
        Ok(upper)
    }

    /// Passes one extension header; false when there is none to pass.
    #[inline]
    fn step(&mut self, first: bool) -> Result<bool, Malformed> {
        let (next_header, rest) = match self.protocol {
            _ if self.is_inside_fragment() => return Ok(false),
            IpProtocol::HOP_BY_HOP if !first => return Err(Malformed::Ipv6ExtensionChain),
            IpProtocol::HOP_BY_HOP | IpProtocol::ROUTING | IpProtocol::DESTINATION_OPTIONS => {
                let (header, _, rest) = Ipv6Extension::split(self.payload)?;
                (header.next_header(), rest)
            }
            IpProtocol::FRAGMENT if self.fragment.is_some() => return Err(Malformed::Ipv6ExtensionChain),
            IpProtocol::FRAGMENT => {
                let (header, rest) = Ipv6Fragment::split(self.payload)?;
                self.fragment = Some(header);
                (header.next_header(), rest)
            }
            _ => return Ok(false),
        };
        self.offset += self.payload.len() - rest.len();
        self.protocol = next_header;
        self.payload = rest;
        Ok(true)
    }

    /// True for a part of a packet, first or not.
    pub fn is_fragment(&self) -> bool {
        self.fragment.is_some_and(Ipv6Fragment::is_fragment)
    }

    /// True when `payload` does not begin with a header: every fragment but the first.
    pub fn is_inside_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.offset() != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: u8 = 17;

    fn find(next: u8, payload: &[u8]) -> Result<Upper<'_>, Malformed> {
        Upper::find(IpProtocol(next), payload)
    }

    #[test]
    fn all_four_headers_are_passed() {
        let payload = [
            [43, 0, 1, 4, 0, 0, 0, 0],           // hop-by-hop: PadN
            [60, 0, 3, 0, 0, 0, 0, 0],           // routing: nothing left
            [44, 1, 1, 12, 0, 0, 0, 0],          // destination options of 16 bytes …
            [0; 8],                              // … continued
            [UDP, 0xff, 0x00, 0x07, 1, 2, 3, 4], // fragment: first, reserved bits set, more follow
            [0, 53, 0, 53, 0, 8, 0, 0],          // UDP
        ]
        .concat();
        let upper = find(0, &payload).unwrap();
        assert_eq!((upper.protocol, upper.offset), (IpProtocol::UDP, 40));
        assert_eq!(upper.payload, &payload[40..]);
        let fragment = upper.fragment.unwrap();
        assert_eq!((fragment.offset(), fragment.identification()), (0, 0x0102_0304));
        assert!(upper.is_fragment() && fragment.more_fragments() && !upper.is_inside_fragment());
        for len in 0..40 {
            assert_eq!(find(0, &payload[..len]), Err(Malformed::Ipv6ExtensionShort), "{len}");
        }
    }

    #[test]
    fn a_later_fragment_ends_the_walk() {
        let payload = [[60, 0, 0x00, 0x10, 0, 0, 0, 9], [0xff; 8]].concat();
        let upper = find(44, &payload).unwrap();
        assert_eq!(
            (upper.protocol, upper.offset, upper.payload),
            (IpProtocol::DESTINATION_OPTIONS, 8, &[0xff; 8][..])
        );
        assert!(upper.is_inside_fragment() && upper.is_fragment());
        assert_eq!(upper.fragment.unwrap().offset(), 16);
    }

    #[test]
    fn an_atomic_fragment_is_no_fragment() {
        let payload = [58, 0, 0, 0, 0, 0, 0, 1, 128];
        let upper = find(44, &payload).unwrap();
        assert!(!upper.is_fragment() && !upper.is_inside_fragment());
        assert_eq!((upper.protocol, upper.payload), (IpProtocol::ICMPV6, &[128][..]));
    }

    #[test]
    fn forbidden_orders_are_named() {
        let hop_by_hop_second = [[0, 0, 1, 4, 0, 0, 0, 0], [UDP, 0, 1, 4, 0, 0, 0, 0]].concat();
        assert_eq!(find(60, &hop_by_hop_second), Err(Malformed::Ipv6ExtensionChain));
        let two_fragments = [[44, 0, 0, 0, 0, 0, 0, 1], [UDP, 0, 0, 0, 0, 0, 0, 1]].concat();
        assert_eq!(find(44, &two_fragments), Err(Malformed::Ipv6ExtensionChain));
    }

    #[test]
    fn the_walk_is_bounded() {
        let chain = |count: usize| {
            let mut bytes = [60, 0, 1, 4, 0, 0, 0, 0].repeat(count);
            bytes[(count - 1) * 8] = UDP;
            bytes
        };
        let longest = chain(Upper::MAX_EXTENSIONS);
        assert_eq!(find(60, &longest).unwrap().protocol, IpProtocol::UDP);
        assert_eq!(find(60, &chain(Upper::MAX_EXTENSIONS + 1)), Err(Malformed::Ipv6ExtensionChain));
    }

    #[test]
    fn no_header_at_all_is_no_walk() {
        let upper = find(59, b"ignored").unwrap();
        assert_eq!(
            (upper.protocol, upper.offset, upper.payload),
            (IpProtocol::NO_NEXT_HEADER, 0, &b"ignored"[..])
        );
    }
}
