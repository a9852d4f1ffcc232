//! The Internet checksum: computed (RFC 1071), verified, and patched after a change (RFC 1624).
//!
//! The Internet *sum* of a packet is the ones' complement sum of its 16-bit words, the Internet *checksum*
//! its complement. A packet that carries its checksum sums up to `0xffff`, so that its own checksum is zero.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::IpProtocol;

/// A ones' complement sum under way. Pieces may be of odd length: each is taken as if it were laid
/// directly behind the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sum {
    // Sixteen bits a piece in 64 bits: no number of pieces that fits into memory overflows.
    words: u64,
    odd: bool,
}

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self { words: 0, odd: false };

    /// The sum of these bytes.
    #[inline]
    pub fn of(bytes: &[u8]) -> Self {
        Self::ZERO.bytes(bytes)
    }

    /// The pseudo header of a transport over IPv4 (RFC 9293 §3.1); `length` counts its header and data.
    pub fn ipv4_pseudo(source: Ipv4Addr, destination: Ipv4Addr, protocol: IpProtocol, length: u16) -> Self {
        Self::of(&source.octets()).bytes(&destination.octets()).word(protocol.0.into()).word(length)
    }

    /// The pseudo header of a transport over IPv6 (RFC 8200 §8.1); `length` counts its header and data.
    pub fn ipv6_pseudo(source: Ipv6Addr, destination: Ipv6Addr, protocol: IpProtocol, length: u32) -> Self {
        Self::of(&source.octets())
            .bytes(&destination.octets())
            .bytes(&length.to_be_bytes())
            .word(protocol.0.into())
    }

    /// The sum with these bytes behind it.
    #[inline]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        // RFC 1071 §2(B): the sum of swapped words is the swapped sum, so words are added as the
        // machine reads them and the sum alone is turned around.
        let piece = u16::from_be(fold(native_sum(bytes)));
        let piece = if self.odd { piece.swap_bytes() } else { piece };
        Self { words: self.words + u64::from(piece), odd: self.odd ^ (bytes.len() % 2 == 1) }
    }

    /// The sum with this word behind it.
    #[inline]
    pub fn word(self, word: u16) -> Self {
        self.bytes(&word.to_be_bytes())
    }

    /// The sum itself, carries folded in. This, of a pseudo header, is what a partial checksum holds.
    #[inline]
    pub const fn folded(self) -> u16 {
        fold(self.words)
    }

    /// The checksum: the complement of the sum.
    #[inline]
    pub const fn checksum(self) -> u16 {
        !self.folded()
    }
}

/// Eight bytes at a time, in two halves whose carries have 32 bits to go to; then the words that are left.
#[inline]
fn native_sum(bytes: &[u8]) -> u64 {
    let (chunks, tail) = bytes.as_chunks::<8>();
    let (words, odd) = tail.as_chunks::<2>();
    let mut sum = 0;
    for chunk in chunks {
        let word = u64::from_ne_bytes(*chunk);
        sum += (word >> 32) + (word & 0xffff_ffff);
    }
    for word in words {
        sum += u64::from(u16::from_ne_bytes(*word));
    }
    if let [last] = odd {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    sum
}

/// Straight, since a loop whose turns depend on the bytes is mispredicted: 33 bits are left after the first step, then 18, 17 and 16.
#[inline]
const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

/// The Internet checksum of `bytes`: what their checksum field must hold if it is zero now, and zero if
/// it holds the right one.
#[inline]
pub fn internet(bytes: &[u8]) -> u16 {
    Sum::of(bytes).checksum()
}

/// Whether a header of 20 bytes, its checksum among them, sums up to that: [`internet`] would be zero. Sums that are the same
/// modulo 0xffff fold to the same word, and no sum of an IP header is zero.
#[inline]
pub const fn is_right(header: &[u8; 20]) -> bool {
    let (words, _) = header.as_chunks::<4>();
    let mut sum = 0;
    let mut at = 0;
    while at < words.len() {
        sum += u32::from_ne_bytes(words[at]) as u64;
        at += 1;
    }
    sum.is_multiple_of(0xffff)
}

/// [`internet`] of a whole transport segment under its IPv4 pseudo header.
pub fn transport_v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: IpProtocol, segment: &[u8]) -> u16 {
    // No segment of IPv4 is longer than its total length field can say.
    Sum::ipv4_pseudo(source, destination, protocol, segment.len() as u16).bytes(segment).checksum()
}

/// [`internet`] of a whole transport segment under its IPv6 pseudo header.
pub fn transport_v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: IpProtocol, segment: &[u8]) -> u16 {
    Sum::ipv6_pseudo(source, destination, protocol, segment.len() as u32).bytes(segment).checksum()
}

/// A checksum as UDP sends it: a computed zero is sent as all ones, since zero means "none" (RFC 768;
/// RFC 8200 §8.1).
pub const fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// `checksum` after bytes that summed up to `old` were replaced by bytes that sum up to `new`, at even
/// offsets (RFC 1624 §3, equation 3).
#[inline]
pub const fn replace(checksum: u16, old: Sum, new: Sum) -> u16 {
    !fold(!checksum as u64 + old.checksum() as u64 + new.folded() as u64)
}

/// [`replace`] for one word.
#[inline]
pub const fn replace_u16(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(!checksum as u64 + !old as u64 + new as u64)
}

/// [`replace`] for two words: an IPv4 address, a sequence number.
#[inline]
pub const fn replace_u32(checksum: u16, old: u32, new: u32) -> u16 {
    // A sum of 32-bit words folds to the sum of their halves.
    !fold(!checksum as u64 + !old as u64 + new as u64)
}

/// `checksum` after a few words that were zero were filled in; `words` is their plain sum, carries and all, below 2³¹.
#[inline]
pub const fn put_in(checksum: u16, words: u32) -> u16 {
    let sum = !checksum as u32 + words;
    let sum = (sum >> 16) + (sum & 0xffff);
    !((sum >> 16) + (sum & 0xffff)) as u16
}

/// Words that are replaced by others, added up once for all checksums over them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Replaced(u64);

impl Replaced {
    /// Two words more, as an address or two ports are; at an even offset.
    #[inline(always)]
    pub const fn and(self, old: u32, new: u32) -> Self {
        Self(self.0 + !old as u64 + new as u64)
    }

    /// What that does to the checksums.
    #[inline(always)]
    pub const fn change(self) -> Change {
        Change(fold(self.0))
    }
}

/// What replacing some words by others does to the checksums over them: a sum of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Change(pub u16);

impl Change {
    /// What takes it back: the old words in the place of the new ones.
    #[inline(always)]
    pub const fn back(self) -> Self {
        Self(!self.0)
    }

    /// A checksum after that.
    #[inline(always)]
    pub const fn of(self, checksum: u16) -> u16 {
        !self.of_sum(!checksum)
    }

    /// The same of UDP: no checksum stays no checksum, and no change makes one into none.
    #[inline(always)]
    pub const fn of_udp(self, checksum: u16) -> u16 {
        if checksum == 0 { 0 } else { never_zero(self.of(checksum)) }
    }

    /// A sum, not its complement, after that.
    #[inline(always)]
    pub const fn of_sum(self, sum: u16) -> u16 {
        let (sum, carry) = sum.overflowing_add(self.0);
        sum + carry as u16
    }
}

/// [`replace`] for UDP: no checksum stays no checksum, and no change makes one into none.
#[inline]
pub const fn replace_udp(checksum: u16, old: Sum, new: Sum) -> u16 {
    if checksum == 0 { 0 } else { never_zero(replace(checksum, old, new)) }
}

/// Finishes a partial checksum, as a sender leaves it to hardware: the word at `field` of `segment` holds
/// the [folded](Sum::folded) pseudo header and is replaced by the checksum of the whole. `None`, and nothing
/// changed, when the word does not lie within the segment.
pub fn complete(segment: &mut [u8], field: usize) -> Option<()> {
    let end = field.checked_add(2).filter(|end| *end <= segment.len())?;
    // Zero is avoided for every transport: it is wrong for UDP, and for the others 0xffff says the same.
    let checksum = never_zero(internet(segment));
    segment[field..end].copy_from_slice(&checksum.to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Word by word with the carry brought round at once, as RFC 1071 §1 defines it.
    fn slow(bytes: &[u8]) -> u16 {
        bytes.chunks(2).fold(0, |sum: u16, pair| {
            let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
            let (sum, carry) = sum.overflowing_add(word);
            sum + u16::from(carry)
        })
    }

    #[test]
    fn the_rfcs_example_holds() {
        // RFC 1071 §3.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::of(&bytes).folded(), 0xddf2);
        // RFC 1624 §4: the case that equation 2 of RFC 1141 gets wrong.
        assert_eq!(replace_u16(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn all_ones_of_any_length_sum_up_to_all_ones() {
        let bytes = vec![0xff; 1 << 17];
        assert_eq!(Sum::of(&bytes).folded(), 0xffff);
        assert_eq!(Sum::of(&[0; 100]).folded(), 0);
    }

    #[test]
    fn udp_never_sends_a_zero_it_computed() {
        let old = Sum::ZERO.word(1);
        assert_eq!(replace_udp(0, old, Sum::ZERO.word(2)), 0);
        // ~(~c + ~1 + n) is zero exactly when the new words sum up to all ones.
        let checksum = internet(&[0xff, 0xf0, 0, 1]);
        assert_eq!(replace(checksum, old, Sum::ZERO.word(0xf)), 0);
        assert_eq!(replace_udp(checksum, old, Sum::ZERO.word(0xf)), 0xffff);
    }

    #[test]
    fn a_field_outside_the_segment_is_left_alone() {
        let mut segment = [1, 2, 3];
        for field in [2, 3, usize::MAX] {
            assert_eq!(complete(&mut segment, field), None);
        }
        assert_eq!(segment, [1, 2, 3]);
        assert_eq!(complete(&mut segment, 1), Some(()));
    }

    proptest! {
        #[test]
        fn fast_is_slow_in_any_pieces(pieces in vec(vec(any::<u8>(), 0..70), 0..6)) {
            let whole = pieces.concat();
            let sum = pieces.iter().fold(Sum::ZERO, |sum, piece| sum.bytes(piece));
            prop_assert_eq!(sum.folded(), slow(&whole));
            prop_assert_eq!(Sum::of(&whole).folded(), slow(&whole));
            prop_assert_eq!(internet(&whole), !slow(&whole));
        }

        #[test]
        fn a_right_header_is_told_from_a_wrong_one(mut header: [u8; 20], flip in 0..160_usize) {
            header[0] |= 1;
            header[10..12].fill(0);
            let checksum = internet(&header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            prop_assert!(is_right(&header));
            header[flip / 8] ^= 1 << (flip % 8);
            prop_assert_eq!(is_right(&header), internet(&header) == 0);
        }

        #[test]
        fn words_are_put_in_as_they_are_summed_up(mut bytes: [u8; 20], one: u16, other: u16) {
            bytes[0] |= 1;
            bytes[2..6].fill(0);
            let before = internet(&bytes);
            bytes[2..4].copy_from_slice(&one.to_be_bytes());
            bytes[4..6].copy_from_slice(&other.to_be_bytes());
            prop_assert_eq!(put_in(before, u32::from(one) + u32::from(other)), internet(&bytes));
        }

        #[test]
        fn what_carries_its_checksum_has_none(
            mut bytes in vec(any::<u8>(), 2..200),
            at: prop::sample::Index,
        ) {
            let field = at.index(bytes.len() / 2) * 2;
            bytes[field..field + 2].fill(0);
            let checksum = internet(&bytes);
            bytes[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
            prop_assert_eq!(internet(&bytes), 0);
        }

        #[test]
        fn patching_is_computing_anew(
            mut bytes in vec(any::<u8>(), 4..100),
            at: prop::sample::Index,
            new: [u8; 4],
        ) {
            bytes[0] |= 1; // a packet of nothing but zeros has no IP version
            let before = internet(&bytes);
            let at = at.index((bytes.len() - 2) / 2) * 2;
            let end = bytes.len().min(at + 4) & !1;
            let old: Vec<_> = bytes[at..end].to_vec();
            bytes[at..end].copy_from_slice(&new[..end - at]);
            prop_assume!(bytes.iter().any(|b| *b != 0));
            let want = internet(&bytes);
            prop_assert_eq!(replace(before, Sum::of(&old), Sum::of(&bytes[at..end])), want);
            match (old.as_slice().try_into(), bytes[at..end].try_into()) {
                (Ok(old), Ok(new)) => {
                    let (old, new) = (u32::from_be_bytes(old), u32::from_be_bytes(new));
                    prop_assert_eq!(replace_u32(before, old, new), want);
                    let change = Replaced::default().and(old, new).change();
                    prop_assert_eq!(change.of(before), want);
                    // Zero has two words.
                    prop_assert_eq!(change.back().of(want) % 0xffff, before % 0xffff);
                }
                _ => {
                    let word = |pair: &[u8]| u16::from_be_bytes([pair[0], pair[1]]);
                    prop_assert_eq!(replace_u16(before, word(&old), word(&bytes[at..end])), want);
                }
            }
        }

        #[test]
        fn pseudo_headers_are_the_rfcs_pictures(
            a: [u8; 16], b: [u8; 16], protocol: u8, segment in vec(any::<u8>(), 0..100),
        ) {
            let length = segment.len() as u32;
            let v6 = [&a[..], &b, &length.to_be_bytes(), &[0, 0, 0, protocol], &segment].concat();
            let protocol = IpProtocol(protocol);
            prop_assert_eq!(transport_v6(a.into(), b.into(), protocol, &segment), !slow(&v6));
            let (a, b) = ([a[0], a[1], a[2], a[3]], [b[0], b[1], b[2], b[3]]);
            let v4 = [&a[..], &b, &[0, protocol.0], &(length as u16).to_be_bytes(), &segment].concat();
            prop_assert_eq!(transport_v4(a.into(), b.into(), protocol, &segment), !slow(&v4));
        }

        #[test]
        fn a_completed_checksum_is_right(
            a: [u8; 4], b: [u8; 4], mut segment in vec(any::<u8>(), 8..100),
        ) {
            let pseudo = Sum::ipv4_pseudo(a.into(), b.into(), IpProtocol::UDP, segment.len() as u16);
            segment[6..8].copy_from_slice(&pseudo.folded().to_be_bytes());
            complete(&mut segment, 6).unwrap();
            prop_assert_ne!(&segment[6..8], &[0, 0]);
            prop_assert_eq!(transport_v4(a.into(), b.into(), IpProtocol::UDP, &segment), 0);
        }
    }
}
