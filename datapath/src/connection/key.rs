//! What a connection is known by.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use causeway_wire::IpProtocol;
use causeway_wire::checksum::{Change, Replaced};

use crate::entropy::mix;
use crate::packet::Family;

/// Words of a key.
pub(super) const WORDS: usize = 5;

/// Which of a connection's two ends a packet comes from: they are told apart by their addresses and ports alone, so that
/// both directions have one key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The one with the lower address, or the lower port.
    Low,
    /// The other.
    High,
}

impl End {
    /// The other end.
    #[inline]
    pub fn other(self) -> Self {
        match self {
            Self::Low => Self::High,
            Self::High => Self::Low,
        }
    }

    #[inline]
    pub(super) fn index(self) -> usize {
        self as usize
    }
}

/// Both ends of a connection and its protocol: equal for both directions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key(pub(crate) [u64; WORDS]);

impl Key {
    /// The key of a connection over IPv4, and the end that a packet with these addresses and ports comes from.
    #[inline(always)]
    pub(crate) fn v4(source: (u32, u16), destination: (u32, u16), protocol: IpProtocol) -> (Self, End) {
        let (low, high, from) = order(source, destination);
        let addresses = u64::from(low.0) << 32 | u64::from(high.0);
        (Self([addresses, 0, rest(low.1, high.1, protocol, 4), 0, 0]), from)
    }

    /// The same over IPv6.
    #[inline(always)]
    pub(crate) fn v6(source: (u128, u16), destination: (u128, u16), protocol: IpProtocol) -> (Self, End) {
        let (low, high, from) = order(source, destination);
        let ([a, b], [c, d]) = (halves(low.0), halves(high.0));
        (Self([a, b, rest(low.1, high.1, protocol, 6), c, d]), from)
    }

    /// Address and port of one end of a connection over IPv4, and of the other.
    #[inline(always)]
    pub(crate) fn ends_v4(&self, first: End) -> [(u32, u16); 2] {
        let [addresses, _, rest, ..] = self.0;
        let low = ((addresses >> 32) as u32, (rest >> 48) as u16);
        let high = (addresses as u32, (rest >> 32) as u16);
        if first == End::Low { [low, high] } else { [high, low] }
    }

    /// The same over IPv6.
    #[inline(always)]
    pub(crate) fn ends_v6(&self, first: End) -> [(u128, u16); 2] {
        let [a, b, rest, c, d] = self.0;
        let low = (u128::from(a) << 64 | u128::from(b), (rest >> 48) as u16);
        let high = (u128::from(c) << 64 | u128::from(d), (rest >> 32) as u16);
        if first == End::Low { [low, high] } else { [high, low] }
    }

    /// A hash whose every bit depends on every bit of the key.
    #[inline(always)]
    pub fn hash(&self) -> u64 {
        let [a, b, rest, c, d] = self.0;
        let addresses = if rest & 0xff == 4 { a } else { mix(mix(a ^ c.rotate_left(32)) ^ b) ^ mix(d) };
        mix(mix(addresses) ^ rest)
    }

    /// What it does to a checksum over addresses, and to one over addresses and ports, that a packet of the connection with this key becomes one of
    /// another's.
    pub(super) fn changes(&self, to: &Self) -> [Change; 2] {
        let and = |words: Replaced, at: usize, shift: u32| {
            words.and((self.0[at] >> shift) as u32, (to.0[at] >> shift) as u32)
        };
        let addresses =
            [0, 1, 3, 4].iter().fold(Replaced::default(), |sum, at| and(and(sum, *at, 32), *at, 0));
        [addresses.change(), and(addresses, 2, 32).change()]
    }

    /// The key in these words; of one over IPv4 others are none of its.
    #[inline(always)]
    pub(super) fn of(words: [u64; WORDS]) -> Self {
        match Self::family_of(words[2]) {
            Family::V4 => Self([words[0], 0, words[2], 0, 0]),
            Family::V6 => Self(words),
        }
    }

    #[inline(always)]
    pub(crate) fn family(&self) -> Family {
        Self::family_of(self.0[2])
    }

    /// The family of a key by its middle word.
    #[inline(always)]
    pub(super) fn family_of(rest: u64) -> Family {
        if rest & 0xff == 4 { Family::V4 } else { Family::V6 }
    }

    /// The transport protocol.
    #[inline]
    pub fn protocol(&self) -> IpProtocol {
        IpProtocol((self.0[2] >> 8) as u8)
    }

    /// Address and port of one end; the port is zero where the protocol has none, and the identifier of an echo.
    pub fn end(&self, end: End) -> (IpAddr, u16) {
        let [a, b, rest, c, d] = self.0;
        let (high_half, low_half, port) = match end {
            End::Low => (a, b, rest >> 48),
            End::High => (c, d, rest >> 32),
        };
        let address = match (self.family(), end) {
            (Family::V4, End::Low) => Ipv4Addr::from((a >> 32) as u32).into(),
            (Family::V4, End::High) => Ipv4Addr::from(a as u32).into(),
            (Family::V6, _) => Ipv6Addr::from(u128::from(high_half) << 64 | u128::from(low_half)).into(),
        };
        (address, port as u16)
    }
}

#[inline(always)]
fn order<A: Ord + Copy>(source: (A, u16), destination: (A, u16)) -> ((A, u16), (A, u16), End) {
    if source <= destination { (source, destination, End::Low) } else { (destination, source, End::High) }
}

#[inline(always)]
fn rest(low_port: u16, high_port: u16, protocol: IpProtocol, family: u64) -> u64 {
    u64::from(low_port) << 48 | u64::from(high_port) << 32 | u64::from(protocol.0) << 8 | family
}

#[inline(always)]
fn halves(address: u128) -> [u64; 2] {
    [(address >> 64) as u64, address as u64]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn v4(source: u32, destination: u32, ports: (u16, u16)) -> (Key, End) {
        Key::v4((source, ports.0), (destination, ports.1), IpProtocol::TCP)
    }

    #[test]
    fn both_directions_have_one_key_and_different_ends() {
        let table = [
            (v4(1, 2, (9, 8)), v4(2, 1, (8, 9))),
            (v4(7, 7, (9, 8)), v4(7, 7, (8, 9))),
            (v4(u32::MAX, 0, (0, 0)), v4(0, u32::MAX, (0, 0))),
        ];
        for ((key, end), (back, other)) in table {
            assert_eq!((key, end), (back, other.other()));
            assert_eq!(key.hash(), back.hash());
        }
    }

    #[test]
    fn a_key_tells_what_it_was_made_of() {
        let (key, end) = Key::v6((1 << 100 | 5, 1000), (3, 53), IpProtocol::UDP);
        assert_eq!(key.end(end), (Ipv6Addr::from(1 << 100 | 5).into(), 1000));
        assert_eq!(key.end(end.other()), (Ipv6Addr::from(3).into(), 53));
        assert_eq!(key.protocol(), IpProtocol::UDP);
        let (key, end) = v4(0x0a46_010a, 0x0a46_020a, (1, 2));
        assert_eq!(key.end(end), (Ipv4Addr::new(10, 70, 1, 10).into(), 1));
    }

    #[test]
    fn neighbouring_flows_have_hashes_apart() {
        let mut seen = BTreeSet::new();
        for port in 0..60_000 {
            for host in 0..4 {
                seen.insert(v4(0x0a46_0100 | host, 0x0a46_020a, (port, 80)).0.hash() & 0xf_ffff);
            }
        }
        // 240,000 balls in 2^20 boxes fill 214,600 of them when they fall at random.
        assert!(seen.len() > 213_000, "{}", seen.len());
    }
}
