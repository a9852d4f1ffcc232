//! ICMP errors for IPv6.

use std::net::Ipv6Addr;

use zerocopy::IntoBytes;

use super::{NoReply, lay_icmpv6};
use crate::{Icmpv6, Icmpv6Type, IpProtocol, Ipv6, MacAddr, Upper};

/// An ICMPv6 error is no longer than this, its IPv6 header included (RFC 4443 §2.4(c)).
pub const ICMPV6_ERROR_LIMIT: usize = 1280;

/// What an ICMPv6 error says (RFC 4443 §3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Icmpv6Error {
    /// There is no route.
    NoRoute,
    /// Policy forbids it.
    Prohibited,
    /// There is a route, but nobody at its end.
    AddressUnreachable,
    /// Nobody listens at the port.
    PortUnreachable,
    /// The packet is too big.
    PacketTooBig {
        /// What would have fitted.
        mtu: u32,
    },
    /// The hop limit ran out.
    TimeExceeded,
}

impl Icmpv6Error {
    fn header(self) -> Icmpv6 {
        let unreachable = |code| (Icmpv6Type::DESTINATION_UNREACHABLE, code, 0);
        let (kind, code, mtu) = match self {
            Self::NoRoute => unreachable(0),
            Self::Prohibited => unreachable(1),
            Self::AddressUnreachable => unreachable(3),
            Self::PortUnreachable => unreachable(4),
            Self::PacketTooBig { mtu } => (Icmpv6Type::PACKET_TOO_BIG, 0, mtu),
            Self::TimeExceeded => (Icmpv6Type::TIME_EXCEEDED, 0, 0),
        };
        Icmpv6::new(kind, code, mtu)
    }

    /// Groups learn of a small link as everybody does (RFC 4443 §2.4(e.3)).
    const fn may_answer_groups(self) -> bool {
        matches!(self, Self::PacketTooBig { .. })
    }
}

/// Writes the ICMPv6 error that `source` sends about `packet`, which came in a frame for `link`. Of the
/// packet, which may be only the front of one, as much is quoted as the
/// [limit](ICMPV6_ERROR_LIMIT) allows.
pub fn icmpv6_error(
    error: Icmpv6Error,
    source: Ipv6Addr,
    link: MacAddr,
    packet: &[u8],
    out: &mut [u8],
) -> Result<usize, NoReply> {
    let (about, payload) = Ipv6::split_partial(packet)?;
    if icmpv6_error_forbidden(error, link, packet) {
        return Err(NoReply::Forbidden);
    }
    let limit = ICMPV6_ERROR_LIMIT - Ipv6::LEN - Icmpv6::LEN;
    let quote = &packet[..limit.min(Ipv6::LEN + payload.len())];
    let header = Ipv6::new(source, about.source(), IpProtocol::ICMPV6, 0);
    lay_icmpv6(header, [error.header().as_bytes(), quote], out)
}

/// Whether this error may not be sent about `packet`, which came in a frame for `link` (RFC 4443
/// §2.4(e)): it is an ICMPv6 error or a redirect, for a group (unless it is too big), from a source that is
/// no single host, or it cannot be told what it is.
pub fn icmpv6_error_forbidden(error: Icmpv6Error, link: MacAddr, packet: &[u8]) -> bool {
    let Ok((header, payload)) = Ipv6::split_partial(packet) else { return true };
    let Ok(upper) = Upper::find(header.next_header(), payload) else { return true };
    let for_group = link.is_multicast() || header.destination().is_multicast();
    (for_group && !error.may_answer_groups())
        || !is_single_host(header.source())
        || (upper.protocol == IpProtocol::ICMPV6 && !is_answerable_icmp(&upper))
}

/// False for the unspecified address, loopback, and groups.
pub(super) fn is_single_host(address: Ipv6Addr) -> bool {
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

/// True for ICMPv6 messages that are known to be neither errors nor redirects; inside of a fragment
/// nobody knows.
fn is_answerable_icmp(upper: &Upper<'_>) -> bool {
    let kind = upper.payload.first().map(|kind| Icmpv6Type(*kind));
    !upper.is_inside_fragment() && kind.is_some_and(|kind| !kind.is_error() && kind != Icmpv6Type::REDIRECT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Malformed;

    const LINK: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const TOO_BIG: Icmpv6Error = Icmpv6Error::PacketTooBig { mtu: 1430 };

    fn address(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    fn packet(next: IpProtocol, payload: &[u8], change: impl FnOnce(&mut Ipv6)) -> Vec<u8> {
        let len = payload.len().try_into().unwrap();
        let mut header = Ipv6::new(address("fd70::1:5"), address("fd70::2:6"), next, len);
        change(&mut header);
        [header.as_bytes(), payload].concat()
    }

    fn forbidden(error: Icmpv6Error, packet: &[u8]) -> bool {
        let verdict = icmpv6_error_forbidden(error, LINK, packet);
        let mut out = [0; 1280];
        let written = icmpv6_error(error, address("fe80::1"), LINK, packet, &mut out);
        assert_eq!(written.is_err(), verdict, "the builder obeys the predicate");
        verdict
    }

    #[test]
    fn too_big_tells_the_mtu_and_quotes_what_fits() {
        let data: Vec<u8> = (0..1460).map(|n| n as u8).collect();
        let big = packet(IpProtocol::TCP, &data, |_| {});
        let mut out = [0; 1500];
        let len = icmpv6_error(TOO_BIG, address("fe80::1"), LINK, &big, &mut out).unwrap();
        assert_eq!(len, ICMPV6_ERROR_LIMIT);
        let (header, message) = Ipv6::split(&out).unwrap();
        assert_eq!((header.source(), header.destination()), (address("fe80::1"), address("fd70::1:5")));
        assert_eq!((header.next_header(), header.hop_limit()), (IpProtocol::ICMPV6, 64));
        assert_eq!(Icmpv6::verify(header.source(), header.destination(), message), Ok(()));
        let (icmp, quote) = Icmpv6::split(message).unwrap();
        assert_eq!((icmp.kind(), icmp.code(), icmp.mtu()), (Icmpv6Type::PACKET_TOO_BIG, 0, 1430));
        assert_eq!(quote, &big[..1232]);
        let short = icmpv6_error(TOO_BIG, address("fe80::1"), LINK, &big, &mut out[..1279]);
        assert_eq!(short, Err(NoReply::NoRoom));
    }

    #[test]
    fn a_small_packet_is_quoted_whole_without_its_padding() {
        let small = packet(IpProtocol::UDP, &[7; 9], |_| {});
        let padded = [&small[..], &[0; 6]].concat();
        let mut out = [0; 200];
        let error = Icmpv6Error::TimeExceeded;
        let len = icmpv6_error(error, address("fe80::1"), LINK, &padded, &mut out).unwrap();
        let (icmp, quote) = Icmpv6::split(Ipv6::split(&out[..len]).unwrap().1).unwrap();
        assert_eq!((icmp.kind(), icmp.code(), quote), (Icmpv6Type::TIME_EXCEEDED, 0, &small[..]));
    }

    #[test]
    fn every_error_has_its_number() {
        let numbers = [
            (Icmpv6Error::NoRoute, [1, 0]),
            (Icmpv6Error::Prohibited, [1, 1]),
            (Icmpv6Error::AddressUnreachable, [1, 3]),
            (Icmpv6Error::PortUnreachable, [1, 4]),
            (TOO_BIG, [2, 0]),
            (Icmpv6Error::TimeExceeded, [3, 0]),
        ];
        for (error, number) in numbers {
            assert_eq!(error.header().as_bytes()[..2], number, "{error:?}");
        }
    }

    #[test]
    fn what_rfc_4443_protects_is_not_answered() {
        let udp = [0, 1, 0, 2, 0, 8, 0, 0];
        assert!(!forbidden(Icmpv6Error::TimeExceeded, &packet(IpProtocol::UDP, &udp, |_| {})));
        for source in ["::", "::1", "ff02::1"] {
            let bytes = packet(IpProtocol::UDP, &udp, |h| h.set_source(address(source)));
            assert!(forbidden(TOO_BIG, &bytes), "{source}");
        }
        let for_group = packet(IpProtocol::UDP, &udp, |h| h.set_destination(address("ff0e::1")));
        assert!(forbidden(Icmpv6Error::TimeExceeded, &for_group));
        assert!(!forbidden(TOO_BIG, &for_group), "a group is told of a small link");
        let plain = packet(IpProtocol::UDP, &udp, |_| {});
        assert!(icmpv6_error_forbidden(Icmpv6Error::NoRoute, MacAddr::BROADCAST, &plain));
        assert!(!icmpv6_error_forbidden(TOO_BIG, MacAddr::BROADCAST, &plain));
        assert!(
            forbidden(TOO_BIG, &packet(IpProtocol::HOP_BY_HOP, &[6, 9], |_| {})),
            "nobody knows what it is"
        );
    }

    #[test]
    fn no_icmp_error_answers_an_icmp_error() {
        for kind in 0..=u8::MAX {
            let informational = kind >= 128 && kind != 137;
            let message = [kind, 0, 0, 0, 0, 0, 0, 0];
            let direct = packet(IpProtocol::ICMPV6, &message, |_| {});
            assert_eq!(forbidden(TOO_BIG, &direct), !informational, "type {kind}");
            let behind_options = [&[58, 0, 1, 4, 0, 0, 0, 0], &message[..]].concat();
            let behind = packet(IpProtocol::DESTINATION_OPTIONS, &behind_options, |_| {});
            assert_eq!(forbidden(TOO_BIG, &behind), !informational, "type {kind}");
        }
        assert!(forbidden(TOO_BIG, &packet(IpProtocol::ICMPV6, &[], |_| {})));
        let later_fragment = [58, 0, 0, 8, 0, 0, 0, 1, 128, 0];
        assert!(forbidden(TOO_BIG, &packet(IpProtocol::FRAGMENT, &later_fragment, |_| {})));
        let later_fragment_of_udp = [17, 0, 0, 8, 0, 0, 0, 1, 1, 0];
        assert!(!forbidden(TOO_BIG, &packet(IpProtocol::FRAGMENT, &later_fragment_of_udp, |_| {})));
    }

    #[test]
    fn what_is_no_packet_is_named() {
        let written = icmpv6_error(TOO_BIG, address("fe80::1"), LINK, &[0x45; 60], &mut [0; 1280]);
        assert_eq!(written, Err(Malformed::Ipv6Version.into()));
    }
}
