//! What ports do for us: on receipt, and when asked on the way out.

use crate::ffi;
use std::ops::BitOr;

/// What the receiving port says about a frame's transport checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing: it must be checked where that matters.
    Unknown,
    /// It is right.
    Good,
    /// It is wrong.
    Bad,
    /// It is not filled in, but the data is whole: a neighbour on the same host sent it.
    Absent,
}

impl Checksum {
    pub(crate) fn from_flags(flags: u64) -> Self {
        match (flags & ffi::CW_SEEN_L4_GOOD != 0, flags & ffi::CW_SEEN_L4_BAD != 0) {
            (false, false) => Self::Unknown,
            (true, false) => Self::Good,
            (false, true) => Self::Bad,
            (true, true) => Self::Absent,
        }
    }
}

macro_rules! flag_set {
    // Two sets of bits that must not be mixed up: what receives and what sends.
    ($(#[$doc:meta])* $name:ident { $($(#[$bit_doc:meta])* $bit:ident = $value:expr;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $name(u64);

        impl $name {
            /// None of them.
            pub const NONE: Self = Self(0);
            $($(#[$bit_doc])* pub const $bit: Self = Self($value);)*

            pub(crate) fn from_bits(bits: u64) -> Self {
                Self(bits)
            }

            pub(crate) fn bits(self) -> u64 {
                self.0
            }

            /// Whether it has all of `others`.
            pub fn contains(self, others: Self) -> bool {
                self.0 & others.0 == others.0
            }

            /// Those that are not in `others`.
            pub fn without(self, others: Self) -> Self {
                Self(self.0 & !others.0)
            }
        }

        impl BitOr for $name {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }
    };
}

flag_set! {
    /// What a port can do, or is told to do, on receipt.
    RxOffloads {
        /// Checks the IPv4 header's checksum.
        IPV4_CHECKSUM = ffi::CW_RX_IPV4_CHECKSUM;
        /// Checks UDP checksums.
        UDP_CHECKSUM = ffi::CW_RX_UDP_CHECKSUM;
        /// Checks TCP checksums.
        TCP_CHECKSUM = ffi::CW_RX_TCP_CHECKSUM;
        /// Checks SCTP checksums.
        SCTP_CHECKSUM = ffi::CW_RX_SCTP_CHECKSUM;
        /// Hands frames longer than a buffer over as chains.
        SCATTER = ffi::CW_RX_SCATTER;
        /// Tells the hash that chose the queue.
        RSS_HASH = ffi::CW_RX_RSS_HASH;
    }
}

flag_set! {
    /// What a port can do, or is told to do, when it sends.
    TxOffloads {
        /// Fills in the IPv4 header's checksum.
        IPV4_CHECKSUM = ffi::CW_TX_IPV4_CHECKSUM;
        /// Fills in UDP checksums.
        UDP_CHECKSUM = ffi::CW_TX_UDP_CHECKSUM;
        /// Fills in TCP checksums.
        TCP_CHECKSUM = ffi::CW_TX_TCP_CHECKSUM;
        /// Fills in SCTP checksums.
        SCTP_CHECKSUM = ffi::CW_TX_SCTP_CHECKSUM;
        /// Cuts TCP frames up.
        TCP_SEGMENTS = ffi::CW_TX_TCP_SEGMENTS;
        /// Cuts UDP frames up.
        UDP_SEGMENTS = ffi::CW_TX_UDP_SEGMENTS;
        /// Fills in the outer IPv4 header's checksum.
        OUTER_IPV4_CHECKSUM = ffi::CW_TX_OUTER_IPV4_CHECKSUM;
        /// Fills in the outer UDP checksum.
        OUTER_UDP_CHECKSUM = ffi::CW_TX_OUTER_UDP_CHECKSUM;
        /// Cuts up what is inside VXLAN.
        VXLAN_SEGMENTS = ffi::CW_TX_VXLAN_SEGMENTS;
        /// Sends frames of several segments.
        CHAINS = ffi::CW_TX_CHAINS;
    }
}

impl TxOffloads {
    /// What a port must be able to do to honour these flags of a frame.
    #[inline]
    pub(crate) fn needed_for(flags: u64) -> Self {
        if flags & ffi::CW_ASK_ANY == 0 {
            return Self::NONE;
        }
        let when = |asked: u64, needed: Self| if flags & asked == asked { needed } else { Self::NONE };
        let layer4 = match flags & ffi::CW_ASK_L4_CHECKSUM {
            ffi::CW_ASK_TCP_CHECKSUM => Self::TCP_CHECKSUM,
            ffi::CW_ASK_UDP_CHECKSUM => Self::UDP_CHECKSUM,
            ffi::CW_ASK_SCTP_CHECKSUM => Self::SCTP_CHECKSUM,
            _ => Self::NONE,
        };
        let cut = ffi::CW_ASK_TCP_SEGMENTS | ffi::CW_ASK_UDP_SEGMENTS;
        let tunnelled = flags & cut != 0 && flags & ffi::CW_ASK_VXLAN != 0;
        layer4
            | when(ffi::CW_ASK_IPV4_CHECKSUM, Self::IPV4_CHECKSUM)
            | when(ffi::CW_ASK_TCP_SEGMENTS, Self::TCP_SEGMENTS)
            | when(ffi::CW_ASK_UDP_SEGMENTS, Self::UDP_SEGMENTS)
            | when(ffi::CW_ASK_OUTER_IPV4_CHECKSUM, Self::OUTER_IPV4_CHECKSUM)
            | when(ffi::CW_ASK_OUTER_UDP_CHECKSUM, Self::OUTER_UDP_CHECKSUM)
            | if tunnelled { Self::VXLAN_SEGMENTS } else { Self::NONE }
    }
}

/// What a frame asks of the port that sends it. The default asks for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TxRequest {
    /// Bytes before the IP header; inside a tunnel they count from the end of the outer IP header.
    pub l2_len: u16,
    /// Bytes of the IP header, extension headers included.
    pub l3_len: u16,
    /// The IP header is IPv6's.
    pub ipv6: bool,
    /// Fill in the IPv4 header's checksum.
    pub ip_checksum: bool,
    /// Fill in the transport checksum; the field holds the pseudo header's sum.
    pub checksum: Option<Layer4>,
    /// Cut the frame up.
    pub segments: Option<Segments>,
    /// The frame is VXLAN, and the above is said of what is inside.
    pub outer: Option<Outer>,
}

/// A transport whose checksum a port can fill in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as they are")]
pub enum Layer4 {
    Tcp,
    Udp,
    Sctp,
}

/// How a frame is to be cut up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// Bytes of the transport header.
    pub l4_len: u16,
    /// Bytes of payload in each segment.
    pub size: u16,
}

/// The outer headers of a VXLAN frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outer {
    /// Bytes of the outer Ethernet header.
    pub l2_len: u16,
    /// Bytes of the outer IP header.
    pub l3_len: u16,
    /// The outer IP header is IPv6's.
    pub ipv6: bool,
    /// Fill in the outer IPv4 header's checksum.
    pub ip_checksum: bool,
    /// Fill in the outer UDP checksum.
    pub udp_checksum: bool,
}

/// A request that makes no sense or that DPDK has no bits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedRequest {
    /// A header is longer than its field can tell.
    #[error("a header of {0} bytes is too long to be described")]
    HeaderTooLong(u16),
    /// Only TCP and UDP can be cut up, their checksums being filled in.
    #[error("only TCP and UDP with checksum can be segmented, into at least one byte each")]
    NotSegmentable,
    /// IPv6 has no header checksum.
    #[error("an IPv6 header has no checksum")]
    Ipv6Checksum,
}

impl TxRequest {
    pub(crate) fn encode(&self) -> Result<ffi::cw_request, MalformedRequest> {
        if *self == Self::default() {
            return Ok(ffi::cw_request::default());
        }
        let outer = self.outer.unwrap_or(Outer {
            l2_len: 0,
            l3_len: 0,
            ipv6: false,
            ip_checksum: false,
            udp_checksum: false,
        });
        if (self.ipv6 && self.ip_checksum) || (outer.ipv6 && outer.ip_checksum) {
            return Err(MalformedRequest::Ipv6Checksum);
        }
        let (l4_len, segment) = self.segments.map_or((0, 0), |cut| (cut.l4_len, cut.size));
        let fits = |len: u16, bits: u32| {
            if u32::from(len) < 1 << bits { Ok(len) } else { Err(MalformedRequest::HeaderTooLong(len)) }
        };
        Ok(ffi::cw_request {
            flags: self.inner_flags()? | self.outer.map_or(0, Outer::flags),
            l2_len: fits(self.l2_len, 7)?,
            l3_len: fits(self.l3_len, 9)?,
            l4_len: fits(l4_len, 8)?,
            segment,
            outer_l2_len: fits(outer.l2_len, 7)?,
            outer_l3_len: fits(outer.l3_len, 9)?,
        })
    }

    fn inner_flags(&self) -> Result<u64, MalformedRequest> {
        let family = if self.ipv6 { ffi::CW_ASK_IPV6 } else { ffi::CW_ASK_IPV4 };
        let header = if self.ip_checksum { ffi::CW_ASK_IPV4_CHECKSUM } else { 0 };
        let checksum = match self.checksum {
            Some(Layer4::Tcp) => ffi::CW_ASK_TCP_CHECKSUM,
            Some(Layer4::Udp) => ffi::CW_ASK_UDP_CHECKSUM,
            Some(Layer4::Sctp) => ffi::CW_ASK_SCTP_CHECKSUM,
            None => 0,
        };
        let cut = match (self.segments, self.checksum) {
            (None, _) => 0,
            (Some(Segments { size: 1.., .. }), Some(Layer4::Tcp)) => ffi::CW_ASK_TCP_SEGMENTS,
            (Some(Segments { size: 1.., .. }), Some(Layer4::Udp)) => ffi::CW_ASK_UDP_SEGMENTS,
            (Some(_), _) => return Err(MalformedRequest::NotSegmentable),
        };
        Ok(family | header | checksum | cut)
    }

    pub(crate) fn decode(request: &ffi::cw_request) -> Self {
        let has = |bit: u64| request.flags & bit == bit;
        let cut = has(ffi::CW_ASK_TCP_SEGMENTS) || has(ffi::CW_ASK_UDP_SEGMENTS);
        let checksum = match request.flags & ffi::CW_ASK_L4_CHECKSUM {
            ffi::CW_ASK_TCP_CHECKSUM => Some(Layer4::Tcp),
            ffi::CW_ASK_UDP_CHECKSUM => Some(Layer4::Udp),
            ffi::CW_ASK_SCTP_CHECKSUM => Some(Layer4::Sctp),
            // A driver may ask for segments alone, which implies the checksum.
            _ if has(ffi::CW_ASK_TCP_SEGMENTS) => Some(Layer4::Tcp),
            _ if has(ffi::CW_ASK_UDP_SEGMENTS) => Some(Layer4::Udp),
            _ => None,
        };
        Self {
            l2_len: request.l2_len,
            l3_len: request.l3_len,
            ipv6: has(ffi::CW_ASK_IPV6),
            ip_checksum: has(ffi::CW_ASK_IPV4_CHECKSUM),
            checksum,
            segments: cut.then_some(Segments { l4_len: request.l4_len, size: request.segment }),
            outer: has(ffi::CW_ASK_VXLAN).then(|| Outer {
                l2_len: request.outer_l2_len,
                l3_len: request.outer_l3_len,
                ipv6: has(ffi::CW_ASK_OUTER_IPV6),
                ip_checksum: has(ffi::CW_ASK_OUTER_IPV4_CHECKSUM),
                udp_checksum: has(ffi::CW_ASK_OUTER_UDP_CHECKSUM),
            }),
        }
    }
}

impl Outer {
    fn flags(self) -> u64 {
        let family = if self.ipv6 { ffi::CW_ASK_OUTER_IPV6 } else { ffi::CW_ASK_OUTER_IPV4 };
        let header = if self.ip_checksum { ffi::CW_ASK_OUTER_IPV4_CHECKSUM } else { 0 };
        let udp = if self.udp_checksum { ffi::CW_ASK_OUTER_UDP_CHECKSUM } else { 0 };
        ffi::CW_ASK_VXLAN | family | header | udp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TUNNELLED: TxRequest = TxRequest {
        l2_len: 30,
        l3_len: 40,
        ipv6: true,
        ip_checksum: false,
        checksum: Some(Layer4::Tcp),
        segments: Some(Segments { l4_len: 32, size: 1388 }),
        outer: Some(Outer { l2_len: 14, l3_len: 20, ipv6: false, ip_checksum: true, udp_checksum: false }),
    };

    #[test]
    fn a_request_survives_the_way_through_c() {
        let plain = TxRequest { l2_len: 14, l3_len: 20, ip_checksum: true, ..TxRequest::default() };
        let udp = TxRequest { checksum: Some(Layer4::Udp), ..plain };
        for request in [TxRequest::default(), plain, udp, TUNNELLED] {
            assert_eq!(TxRequest::decode(&request.encode().unwrap()), request);
        }
    }

    #[test]
    fn each_flag_needs_its_offload() {
        let flags = TUNNELLED.encode().unwrap().flags;
        let needed = TxOffloads::needed_for(flags);
        let expected = TxOffloads::TCP_CHECKSUM
            | TxOffloads::TCP_SEGMENTS
            | TxOffloads::VXLAN_SEGMENTS
            | TxOffloads::OUTER_IPV4_CHECKSUM;
        assert_eq!(needed, expected);
        assert_eq!(TxOffloads::needed_for(ffi::CW_SEEN_L4_GOOD), TxOffloads::NONE);
        assert_eq!(TxOffloads::needed_for(ffi::CW_ASK_SCTP_CHECKSUM), TxOffloads::SCTP_CHECKSUM);
    }

    #[test]
    fn nonsense_is_refused() {
        let long = TxRequest { l2_len: 128, ..TxRequest::default() };
        assert_eq!(long.encode().unwrap_err(), MalformedRequest::HeaderTooLong(128));
        let sctp = TxRequest { checksum: Some(Layer4::Sctp), ..TUNNELLED };
        assert_eq!(sctp.encode().unwrap_err(), MalformedRequest::NotSegmentable);
        let empty = TxRequest { segments: Some(Segments { l4_len: 20, size: 0 }), ..TUNNELLED };
        assert_eq!(empty.encode().unwrap_err(), MalformedRequest::NotSegmentable);
        let six = TxRequest { ipv6: true, ip_checksum: true, ..TxRequest::default() };
        assert_eq!(six.encode().unwrap_err(), MalformedRequest::Ipv6Checksum);
    }
}
