//! The traffic class byte: DSCP and ECN.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The byte that IPv4 once called type of service and IPv6 calls traffic class: six bits of DSCP
/// (RFC 2474 §3) above two of ECN (RFC 3168 §5).
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Hash, Debug, Default,
)]
#[repr(transparent)]
pub struct TrafficClass(pub u8);

impl TrafficClass {
    /// Internetwork control, which routers use for their ICMP errors (RFC 1812 §4.3.2.5).
    pub const INTERNETWORK_CONTROL: Self = Self(0xc0);

    /// The differentiated services code point, 0 to 63.
    pub const fn dscp(self) -> u8 {
        self.0 >> 2
    }

    /// The congestion bits.
    pub const fn ecn(self) -> Ecn {
        Ecn::from_low_bits(self.0)
    }

    /// The same code point with other congestion bits.
    pub const fn with_ecn(self, ecn: Ecn) -> Self {
        Self(self.0 & !0b11 | ecn as u8)
    }
}

/// Explicit congestion notification (RFC 3168 §5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Ecn {
    /// The transport does not take part.
    #[default]
    NotEct = 0b00,
    /// The transport takes part, ECT(1).
    Ect1 = 0b01,
    /// The transport takes part, ECT(0).
    Ect0 = 0b10,
    /// Congestion was met on the way.
    Ce = 0b11,
}

impl Ecn {
    /// The congestion bits of a traffic class byte; the upper six bits are ignored.
    pub const fn from_low_bits(byte: u8) -> Self {
        match byte & 0b11 {
            0b00 => Self::NotEct,
            0b01 => Self::Ect1,
            0b10 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// What a tunnel's inner packet carries on after it left the tunnel under `outer` (RFC 6040 §4.2,
    /// figure 4); `None` when it must be dropped, since congestion cannot be told to its receiver.
    pub const fn leaving_tunnel(self, outer: Self) -> Option<Self> {
        match (self, outer) {
            (Self::NotEct, Self::Ce) => None,
            (Self::NotEct, _) => Some(Self::NotEct),
            (Self::Ce, _) | (_, Self::Ce) => Some(Self::Ce),
            (Self::Ect0, Self::Ect1) => Some(Self::Ect1),
            (inner, _) => Some(inner),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_is_a_code_point_and_two_bits() {
        for byte in 0..=u8::MAX {
            let class = TrafficClass(byte);
            assert_eq!(class.dscp() << 2 | class.ecn() as u8, byte);
            for ecn in [Ecn::NotEct, Ecn::Ect1, Ecn::Ect0, Ecn::Ce] {
                let remarked = class.with_ecn(ecn);
                assert_eq!((remarked.dscp(), remarked.ecn()), (class.dscp(), ecn));
            }
        }
    }

    /// RFC 6040 §4.2, figure 4, row by row; columns are outer Not-ECT, ECT(0), ECT(1), CE.
    #[test]
    fn leaving_a_tunnel_follows_the_rfcs_figure() {
        use Ecn::{Ce, Ect0, Ect1, NotEct};
        let figure = [
            (NotEct, [Some(NotEct), Some(NotEct), Some(NotEct), None]),
            (Ect0, [Some(Ect0), Some(Ect0), Some(Ect1), Some(Ce)]),
            (Ect1, [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)]),
            (Ce, [Some(Ce); 4]),
        ];
        for (inner, row) in figure {
            assert_eq!([NotEct, Ect0, Ect1, Ce].map(|outer| inner.leaving_tunnel(outer)), row, "{inner:?}");
        }
    }
}
