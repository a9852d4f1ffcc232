//! ICMP errors for IPv4.

use std::net::Ipv4Addr;

use super::{NoReply, lay_icmpv4};
use crate::{Icmpv4, Icmpv4Type, IpProtocol, Ipv4, MacAddr, TrafficClass};

/// An ICMP error is no longer than this, its IPv4 header included (RFC 1812 §4.3.2.3).
pub const ICMPV4_ERROR_LIMIT: usize = 576;

/// What an ICMP error says (RFC 792; RFC 1812 §5.2.7.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Icmpv4Error {
    /// There is no route.
    NetUnreachable,
    /// There is a route, but nobody at its end.
    HostUnreachable,
    /// Nobody listens at the port.
    PortUnreachable,
    /// Policy forbids it.
    Prohibited,
    /// The packet is too big and may not be fragmented (RFC 1191 §4).
    FragmentationNeeded {
        /// What would have fitted.
        mtu: u16,
    },
    /// The time to live ran out.
    TimeExceeded,
}

impl Icmpv4Error {
    fn header(self) -> Icmpv4 {
        let unreachable = |code, mtu| (Icmpv4Type::DESTINATION_UNREACHABLE, code, mtu);
        let (kind, code, mtu) = match self {
            Self::NetUnreachable => unreachable(0, 0),
            Self::HostUnreachable => unreachable(1, 0),
            Self::PortUnreachable => unreachable(3, 0),
            Self::Prohibited => unreachable(13, 0),
            Self::FragmentationNeeded { mtu } => unreachable(Icmpv4::FRAGMENTATION_NEEDED, mtu),
            Self::TimeExceeded => (Icmpv4Type::TIME_EXCEEDED, 0, 0),
        };
        Icmpv4::new(kind, code, [0, mtu])
    }
}

/// Writes the ICMP error that `source` sends about `packet`, which came in a frame for `link`. Of the
/// packet, which may be only the front of one, as much is quoted as the
/// [limit](ICMPV4_ERROR_LIMIT) allows.
pub fn icmpv4_error(
    error: Icmpv4Error,
    source: Ipv4Addr,
    link: MacAddr,
    packet: &[u8],
    out: &mut [u8],
) -> Result<usize, NoReply> {
    let (about, _) = Ipv4::split_partial(packet)?;
    if icmpv4_error_forbidden(link, packet) {
        return Err(NoReply::Forbidden);
    }
    let limit = (ICMPV4_ERROR_LIMIT - Ipv4::LEN - Icmpv4::LEN).min(about.total_length().into());
    let quote = &packet[..packet.len().min(limit)];
    let mut header = Ipv4::new(source, about.source(), IpProtocol::ICMPV4, 0);
    header.set_traffic_class(TrafficClass::INTERNETWORK_CONTROL);
    lay_icmpv4(header, error.header(), quote, out)
}

/// Whether no ICMP error may be sent about `packet`, which came in a frame for `link` (RFC 1122 §3.2.2,
/// RFC 1812 §4.3.2.7): it is an ICMP error itself or of a type nobody knows, a fragment other than the
/// first, for a group or for everybody, from a source that is no single host, or fails validation.
pub fn icmpv4_error_forbidden(link: MacAddr, packet: &[u8]) -> bool {
    let Ok((header, payload)) = Ipv4::split_partial(packet) else { return true };
    link.is_multicast()
        || Ipv4::verify(packet).is_err()
        || header.fragment_offset() != 0
        || !is_single_host(header.source())
        || is_group(header.destination())
        || (header.protocol() == IpProtocol::ICMPV4 && !is_icmp_query(payload))
}

/// False for what RFC 1122 §3.2.1.3 lets nobody send from on a wire: "this network", loopback, groups,
/// and class E with the limited broadcast address.
pub(super) fn is_single_host(address: Ipv4Addr) -> bool {
    !matches!(address.octets()[0], 0 | 127 | 224..)
}

/// True for addresses of many hosts as far as they can be told without knowing their networks; a
/// directed broadcast is told by its frame.
pub(super) fn is_group(address: Ipv4Addr) -> bool {
    address.is_multicast() || address.is_broadcast() || address.is_unspecified()
}

/// True for ICMP messages that are known not to be errors; those that end before their type are not.
fn is_icmp_query(message: &[u8]) -> bool {
    // Echo, router discovery, timestamp, information, address mask; extended echo (RFC 8335).
    message.first().is_some_and(|kind| matches!(kind, 0 | 8..=10 | 13..=18 | 42 | 43))
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;
    use crate::{Malformed, Udp};

    const POD: Ipv4Addr = Ipv4Addr::new(10, 70, 1, 5);
    const PEER: Ipv4Addr = Ipv4Addr::new(10, 70, 2, 6);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
    const LINK: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    /// A UDP packet with room for one change before its header is sealed.
    fn packet(len: u16, change: impl FnOnce(&mut Ipv4)) -> Vec<u8> {
        let mut header = Ipv4::new(POD, PEER, IpProtocol::UDP, len);
        change(&mut header);
        header.seal();
        let udp = Udp::new(1, 2, len - 20);
        let data: Vec<u8> = (28..len).map(|n| n as u8).collect();
        [header.as_bytes(), udp.as_bytes(), &data].concat()
    }

    fn forbidden(packet: &[u8]) -> bool {
        let verdict = icmpv4_error_forbidden(LINK, packet);
        let mut out = [0; 576];
        let written = icmpv4_error(Icmpv4Error::TimeExceeded, GATEWAY, LINK, packet, &mut out);
        assert_eq!(written.is_err(), verdict, "the builder obeys the predicate");
        verdict
    }

    #[test]
    fn too_big_tells_the_mtu_and_quotes_what_fits() {
        let big = packet(1500, |_| {});
        let mut out = [0; 1500];
        let error = Icmpv4Error::FragmentationNeeded { mtu: 1450 };
        let len = icmpv4_error(error, GATEWAY, LINK, &big, &mut out).unwrap();
        assert_eq!(len, ICMPV4_ERROR_LIMIT);
        assert_eq!(Ipv4::verify(&out[..len]), Ok(()));
        let (header, message) = Ipv4::split(&out).unwrap();
        assert_eq!((header.source(), header.destination()), (GATEWAY, POD));
        assert_eq!((header.protocol(), header.ttl()), (IpProtocol::ICMPV4, 64));
        assert_eq!(Icmpv4::verify(message), Ok(()));
        let (icmp, quote) = Icmpv4::split(message).unwrap();
        assert_eq!((icmp.kind(), icmp.code()), (Icmpv4Type::DESTINATION_UNREACHABLE, 4));
        assert_eq!((icmp.next_hop_mtu(), quote), (1450, &big[..548]));
        assert_eq!(icmpv4_error(error, GATEWAY, LINK, &big, &mut out[..575]), Err(NoReply::NoRoom));
    }

    #[test]
    fn a_small_packet_is_quoted_whole_without_its_padding() {
        let small = packet(30, |_| {});
        let padded = [&small[..], &[0; 16]].concat();
        let mut out = [0; 100];
        let len = icmpv4_error(Icmpv4Error::TimeExceeded, GATEWAY, LINK, &padded, &mut out).unwrap();
        let (icmp, quote) = Icmpv4::split(Ipv4::split(&out[..len]).unwrap().1).unwrap();
        assert_eq!((icmp.kind(), icmp.code(), quote), (Icmpv4Type::TIME_EXCEEDED, 0, &small[..]));
    }

    #[test]
    fn every_error_has_its_number() {
        let numbers = [
            (Icmpv4Error::NetUnreachable, [3, 0]),
            (Icmpv4Error::HostUnreachable, [3, 1]),
            (Icmpv4Error::PortUnreachable, [3, 3]),
            (Icmpv4Error::Prohibited, [3, 13]),
            (Icmpv4Error::FragmentationNeeded { mtu: 1 }, [3, 4]),
            (Icmpv4Error::TimeExceeded, [11, 0]),
        ];
        for (error, number) in numbers {
            assert_eq!(error.header().as_bytes()[..2], number, "{error:?}");
        }
    }

    #[test]
    fn what_rfc_1122_protects_is_not_answered() {
        assert!(!forbidden(&packet(40, |_| {})));
        assert!(forbidden(&packet(40, |h| h.set_fragment(8, true))));
        assert!(forbidden(&packet(40, |h| h.set_fragment(8, false))));
        assert!(!forbidden(&packet(40, |h| h.set_fragment(0, true))), "a first fragment is answered");
        for destination in ["224.0.0.1", "239.255.255.250", "255.255.255.255", "0.0.0.0"] {
            assert!(forbidden(&packet(40, |h| h.set_destination(destination.parse().unwrap()))));
        }
        for source in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"] {
            assert!(forbidden(&packet(40, |h| h.set_source(source.parse().unwrap()))), "{source}");
        }
        assert!(icmpv4_error_forbidden(MacAddr::BROADCAST, &packet(40, |_| {})));
        assert!(icmpv4_error_forbidden(MacAddr([1, 0, 0x5e, 0, 0, 1]), &packet(40, |_| {})));
        let mut broken = packet(40, |_| {});
        broken[8] ^= 1;
        assert!(forbidden(&broken), "the header checksum is wrong");
        assert!(forbidden(&broken[..10]));
    }

    #[test]
    fn no_icmp_error_answers_an_icmp_error() {
        for kind in 0..=u8::MAX {
            let mut bytes = packet(40, |h| h.set_protocol(IpProtocol::ICMPV4));
            bytes[20] = kind;
            let query = [0, 8, 9, 10, 13, 14, 15, 16, 17, 18, 42, 43].contains(&kind);
            assert_eq!(forbidden(&bytes), !query, "type {kind}");
        }
        let typeless = packet(28, |h| {
            h.set_protocol(IpProtocol::ICMPV4);
            h.set_total_length(20);
        });
        assert!(forbidden(&typeless[..20]));
    }

    #[test]
    fn what_is_no_packet_is_named() {
        let mut out = [0; 576];
        let written = icmpv4_error(Icmpv4Error::TimeExceeded, GATEWAY, LINK, &[0x60; 40], &mut out);
        assert_eq!(written, Err(Malformed::Ipv4Version.into()));
    }
}
