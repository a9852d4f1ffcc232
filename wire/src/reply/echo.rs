//! Echo requests and their replies.

use std::net::{Ipv4Addr, Ipv6Addr};

use zerocopy::IntoBytes;

use super::{NoReply, icmpv4, icmpv6, lay_icmpv4, lay_icmpv6};
use crate::{Icmpv4, Icmpv4Type, Icmpv6, Icmpv6Type, IpProtocol, Ipv4, Ipv6, Upper};

/// What an echo carries there and back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Echo<'a> {
    /// Which sender this is about.
    pub identifier: u16,
    /// Which of its requests.
    pub sequence: u16,
    /// Anything.
    pub data: &'a [u8],
}

/// Writes an echo request (RFC 792).
pub fn icmpv4_echo_request(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    echo: Echo<'_>,
    out: &mut [u8],
) -> Result<usize, NoReply> {
    let header = Ipv4::new(source, destination, IpProtocol::ICMPV4, 0);
    let message = Icmpv4::new(Icmpv4Type::ECHO_REQUEST, 0, [echo.identifier, echo.sequence]);
    lay_icmpv4(header, message, echo.data, out)
}

/// Writes an ICMPv6 echo request (RFC 4443 §4.1).
pub fn icmpv6_echo_request(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    echo: Echo<'_>,
    out: &mut [u8],
) -> Result<usize, NoReply> {
    let header = Ipv6::new(source, destination, IpProtocol::ICMPV6, 0);
    let word = u32::from(echo.identifier) << 16 | u32::from(echo.sequence);
    let message = Icmpv6::new(Icmpv6Type::ECHO_REQUEST, 0, word);
    lay_icmpv6(header, [message.as_bytes(), echo.data], out)
}

/// Answers the echo request in `packet` in the name of the address it is for (RFC 1122 §3.2.2.6); whether
/// that address is ours is the caller's to know. A fragment is not answered, nor what is for or from a group.
pub fn icmpv4_echo_reply(packet: &[u8], out: &mut [u8]) -> Result<usize, NoReply> {
    let (about, message) = Ipv4::split(packet)?;
    Ipv4::verify(packet)?;
    if about.protocol() != IpProtocol::ICMPV4 {
        return Err(NoReply::NotRequest);
    }
    if about.is_fragment() || !icmpv4::is_single_host(about.source()) || icmpv4::is_group(about.destination())
    {
        return Err(NoReply::Forbidden);
    }
    let (request, data) = Icmpv4::split(message)?;
    if (request.kind(), request.code()) != (Icmpv4Type::ECHO_REQUEST, 0) {
        return Err(NoReply::NotRequest);
    }
    Icmpv4::verify(message)?;
    let mut header = Ipv4::new(about.destination(), about.source(), IpProtocol::ICMPV4, 0);
    header.set_traffic_class(about.traffic_class());
    let words = [request.identifier(), request.sequence()];
    lay_icmpv4(header, Icmpv4::new(Icmpv4Type::ECHO_REPLY, 0, words), data, out)
}

/// Answers the ICMPv6 echo request in `packet` in the name of the address it is for (RFC 4443 §4.2); the
/// rest is as in [`icmpv4_echo_reply`].
pub fn icmpv6_echo_reply(packet: &[u8], out: &mut [u8]) -> Result<usize, NoReply> {
    let (about, payload) = Ipv6::split(packet)?;
    let upper = Upper::find(about.next_header(), payload)?;
    if upper.protocol != IpProtocol::ICMPV6 {
        return Err(NoReply::NotRequest);
    }
    if upper.is_fragment()
        || !icmpv6::is_single_host(about.source())
        || about.destination().is_multicast()
        || about.destination().is_unspecified()
    {
        return Err(NoReply::Forbidden);
    }
    let (request, data) = Icmpv6::split(upper.payload)?;
    if (request.kind(), request.code()) != (Icmpv6Type::ECHO_REQUEST, 0) {
        return Err(NoReply::NotRequest);
    }
    Icmpv6::verify(about.source(), about.destination(), upper.payload)?;
    let mut header = Ipv6::new(about.destination(), about.source(), IpProtocol::ICMPV6, 0);
    header.set_traffic_class(about.traffic_class());
    let mut reply = *request;
    reply.set_kind(Icmpv6Type::ECHO_REPLY);
    reply.set_checksum(0);
    lay_icmpv6(header, [reply.as_bytes(), data], out)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::{Malformed, TrafficClass, checksum};

    const A4: Ipv4Addr = Ipv4Addr::new(10, 70, 1, 5);
    const B4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
    const A6: Ipv6Addr = Ipv6Addr::new(0xfd70, 0, 0, 1, 0, 0, 0, 5);
    const B6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    const PING: Echo<'static> = Echo { identifier: 0x1234, sequence: 7, data: b"causeway" };

    /// What is changed in a request, and what becomes of it.
    type Case<Header> = (fn(&mut Header), NoReply);

    fn request_v4(change: impl FnOnce(&mut Ipv4)) -> Vec<u8> {
        let mut bytes = vec![0; 100];
        let len = icmpv4_echo_request(A4, B4, PING, &mut bytes).unwrap();
        bytes.truncate(len);
        let (header, _) = Ipv4::split_mut(&mut bytes).unwrap();
        change(header);
        header.seal();
        bytes
    }

    fn request_v6(change: impl FnOnce(&mut Ipv6)) -> Vec<u8> {
        let mut bytes = vec![0; 100];
        let len = icmpv6_echo_request(A6, B6, PING, &mut bytes).unwrap();
        bytes.truncate(len);
        change(Ipv6::split_mut(&mut bytes).unwrap().0);
        bytes
    }

    proptest! {
        #[test]
        fn what_goes_out_comes_back(identifier: u16, sequence: u16, data in vec(any::<u8>(), 0..200)) {
            let echo = Echo { identifier, sequence, data: &data };
            let (mut request, mut reply) = ([0; 300], [0; 300]);
            let len = icmpv4_echo_request(A4, B4, echo, &mut request).unwrap();
            prop_assert_eq!(len, 28 + data.len());
            prop_assert_eq!(icmpv4_echo_reply(&request[..len], &mut reply), Ok(len));
            let (header, message) = Ipv4::split(&reply).unwrap();
            prop_assert_eq!((header.source(), header.destination(), header.ttl()), (B4, A4, 64));
            prop_assert_eq!((Ipv4::verify(&reply), Icmpv4::verify(message)), (Ok(()), Ok(())));
            let (icmp, back) = Icmpv4::split(message).unwrap();
            prop_assert_eq!((icmp.kind(), icmp.code()), (Icmpv4Type::ECHO_REPLY, 0));
            prop_assert_eq!((icmp.identifier(), icmp.sequence(), back), (identifier, sequence, &data[..]));

            let len = icmpv6_echo_request(A6, B6, echo, &mut request).unwrap();
            prop_assert_eq!(len, 48 + data.len());
            prop_assert_eq!(icmpv6_echo_reply(&request[..len], &mut reply), Ok(len));
            let (header, message) = Ipv6::split(&reply).unwrap();
            prop_assert_eq!((header.source(), header.destination(), header.hop_limit()), (B6, A6, 64));
            prop_assert_eq!(Icmpv6::verify(B6, A6, message), Ok(()));
            let (icmp, back) = Icmpv6::split(message).unwrap();
            prop_assert_eq!((icmp.kind(), icmp.code()), (Icmpv6Type::ECHO_REPLY, 0));
            prop_assert_eq!((icmp.identifier(), icmp.sequence(), back), (identifier, sequence, &data[..]));
        }
    }

    #[test]
    fn the_traffic_class_comes_back_too() {
        let mut out = [0; 100];
        icmpv4_echo_reply(&request_v4(|h| h.set_traffic_class(TrafficClass(0xb8))), &mut out).unwrap();
        assert_eq!(Ipv4::split(&out).unwrap().0.traffic_class(), TrafficClass(0xb8));
        icmpv6_echo_reply(&request_v6(|h| h.set_traffic_class(TrafficClass(0xb8))), &mut out).unwrap();
        assert_eq!(Ipv6::split(&out).unwrap().0.traffic_class(), TrafficClass(0xb8));
    }

    #[test]
    fn what_is_not_to_be_answered_is_not() {
        let mut out = [0; 100];
        let cases: [Case<Ipv4>; 6] = [
            (|h| h.set_protocol(IpProtocol::UDP), NoReply::NotRequest),
            (|h| h.set_fragment(0, true), NoReply::Forbidden),
            (|h| h.set_fragment(8, false), NoReply::Forbidden),
            (|h| h.set_source([224, 0, 0, 1].into()), NoReply::Forbidden),
            (|h| h.set_destination([224, 0, 0, 1].into()), NoReply::Forbidden),
            (|h| h.set_total_length(27), NoReply::Malformed(Malformed::IcmpShort)),
        ];
        for (change, want) in cases {
            assert_eq!(icmpv4_echo_reply(&request_v4(change), &mut out), Err(want));
        }
        let cases: [Case<Ipv6>; 5] = [
            (|h| h.set_next_header(IpProtocol::UDP), NoReply::NotRequest),
            (|h| h.set_source(Ipv6Addr::UNSPECIFIED), NoReply::Forbidden),
            (|h| h.set_destination("ff02::1".parse().unwrap()), NoReply::Forbidden),
            (|h| h.set_destination(A6), NoReply::Malformed(Malformed::IcmpChecksum)),
            (|h| h.set_payload_length(7), NoReply::Malformed(Malformed::IcmpShort)),
        ];
        for (change, want) in cases {
            assert_eq!(icmpv6_echo_reply(&request_v6(change), &mut out), Err(want));
        }
        assert_eq!(out, [0; 100], "nothing was written");
    }

    #[test]
    fn a_damaged_request_is_not_answered() {
        let mut out = [0; 100];
        let mut bytes = request_v4(|_| {});
        bytes[10] ^= 1;
        assert_eq!(icmpv4_echo_reply(&bytes, &mut out), Err(Malformed::Ipv4Checksum.into()));
        bytes[10] ^= 1;
        bytes[30] ^= 1;
        assert_eq!(icmpv4_echo_reply(&bytes, &mut out), Err(Malformed::IcmpChecksum.into()));
        bytes[20] = 0; // a reply answers no reply
        assert_eq!(icmpv4_echo_reply(&bytes, &mut out), Err(NoReply::NotRequest));
        let mut bytes = request_v6(|_| {});
        bytes[50] ^= 1;
        assert_eq!(icmpv6_echo_reply(&bytes, &mut out), Err(Malformed::IcmpChecksum.into()));
        bytes[40] = 129;
        assert_eq!(icmpv6_echo_reply(&bytes, &mut out), Err(NoReply::NotRequest));
    }

    #[test]
    fn a_request_behind_options_is_answered_without_them() {
        let bytes = request_v6(|_| {});
        let options = [58, 0, 1, 4, 0, 0, 0, 0];
        let mut behind = [&bytes[..40], &options, &bytes[40..]].concat();
        let (header, _) = Ipv6::split_mut(&mut behind).unwrap();
        header.set_next_header(IpProtocol::DESTINATION_OPTIONS);
        header.set_payload_length(24);
        let mut out = [0; 100];
        assert_eq!(icmpv6_echo_reply(&behind, &mut out), Ok(56));
        assert_eq!(checksum::transport_v6(B6, A6, IpProtocol::ICMPV6, &out[40..56]), 0);
    }

    #[test]
    fn what_no_length_field_can_say_does_not_fit() {
        let (data, mut out) = (vec![0; 65_536], vec![0; 70_000]);
        let echo = |len: usize| Echo { identifier: 0, sequence: 0, data: &data[..len] };
        assert_eq!(icmpv4_echo_request(A4, B4, echo(65_507), &mut out), Ok(65_535));
        assert_eq!(icmpv4_echo_request(A4, B4, echo(65_508), &mut out), Err(NoReply::NoRoom));
        assert_eq!(icmpv6_echo_request(A6, B6, echo(65_527), &mut out), Ok(65_575));
        assert_eq!(icmpv6_echo_request(A6, B6, echo(65_528), &mut out), Err(NoReply::NoRoom));
        assert_eq!(icmpv4_echo_request(A4, B4, echo(8), &mut out[..35]), Err(NoReply::NoRoom));
        assert_eq!(icmpv6_echo_request(A6, B6, echo(8), &mut out[..55]), Err(NoReply::NoRoom));
    }
}
