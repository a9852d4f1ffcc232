//! An independent parser, etherparse, reads the same packets the same way: it takes what we take, refuses
//! what we refuse, and finds the same values, in packets that are valid and in packets that were damaged.
//!
//! Where its rules are other than ours, by intent, the difference is written here as a rule of its own:
//! - it takes an IPv6 payload length of zero, and a UDP length of zero, for "as much as there is";
//! - it looks through authentication headers, which we leave to whoever has the key;
//! - it walks chains without bound, and on into later fragments and second fragment headers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::ops::Range;

use causeway_wire::{
    Arp, EtherType, Ethernet, Icmpv4, Icmpv6, IpProtocol, Ipv4, Ipv6, Malformed, Tcp, TcpFlags, Udp, Upper,
    VlanTag, checksum,
};
use etherparse::{
    ArpPacketSlice, Ethernet2Slice, Icmpv4Slice, Icmpv6Slice, IpFragOffset, IpNumber, Ipv4Header, Ipv4Slice,
    Ipv6ExtensionsSlice, Ipv6FragmentHeader, Ipv6Header, Ipv6HeaderSlice, Ipv6RawExtHeader, PacketBuilder,
    SingleVlanSlice, TcpSlice, UdpSlice, VlanId,
};
use proptest::collection::vec;
use proptest::prelude::*;

const AUTHENTICATION: IpProtocol = IpProtocol(51);

/// What an IP packet of [`write`] carries: these, or bare bytes under any protocol number.
const WITH_CHECKSUM: Range<u8> = 0..5;
const ANY: Range<u8> = 0..6;

/// A packet that etherparse wrote, from its Ethernet header on.
fn valid(kinds: Range<u8>) -> impl Strategy<Value = Vec<u8>> {
    let ends = (any::<[u8; 6]>(), any::<[u8; 6]>(), any::<[u8; 16]>(), any::<[u8; 16]>());
    let shape = (kinds, any::<bool>(), prop::option::of(0..4096_u16), any::<u8>());
    let transport = (any::<u16>(), any::<u16>(), any::<u32>(), 0..=10_usize);
    (ends, shape, transport, vec(any::<u8>(), 0..120))
        .prop_map(|(ends, shape, transport, data)| write(ends, shape, transport, &data))
}

type Ends = ([u8; 6], [u8; 6], [u8; 16], [u8; 16]);

fn write(
    (a, b, from, to): Ends,
    (kind, v6, vlan, ttl): (u8, bool, Option<u16>, u8),
    (source, destination, number, options): (u16, u16, u32, usize),
    data: &[u8],
) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(a, b);
    let v4 = |whole: [u8; 16]| [whole[0], whole[1], whole[2], whole[3]];
    let ip = match (vlan, v6) {
        (None, false) => link.ipv4(v4(from), v4(to), ttl),
        (None, true) => link.ipv6(from, to, ttl),
        (Some(id), false) => link.single_vlan(VlanId::try_new(id).unwrap()).ipv4(v4(from), v4(to), ttl),
        (Some(id), true) => link.single_vlan(VlanId::try_new(id).unwrap()).ipv6(from, to, ttl),
    };
    let mut out = Vec::new();
    match kind {
        0 | 1 => {
            let options = vec![1; options * 4];
            let tcp = ip.tcp(source, destination, number, source).ack(number).options_raw(&options).unwrap();
            if kind == 0 { tcp.syn() } else { tcp.psh().ece() }.write(&mut out, data)
        }
        2 | 3 => ip.udp(source, destination).write(&mut out, data),
        4 if v6 => ip.icmpv6_echo_request(source, destination).write(&mut out, data),
        4 => ip.icmpv4_echo_request(source, destination).write(&mut out, data),
        // Numbers that name no extension header: to those it would want the header too.
        _ => ip.write(&mut out, IpNumber(61 + ttl % 64), data),
    }
    .unwrap();
    out
}

/// A packet, whole or with some of its bytes overwritten, some cut off and some padding added.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    let damage = prop_oneof![
        2 => Just(Vec::new()),
        3 => vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ];
    let end = prop_oneof![3 => Just(None), 1 => any::<prop::sample::Index>().prop_map(Some)];
    (valid(ANY), damage, end, vec(any::<u8>(), 0..8)).prop_map(|(mut bytes, damage, end, padding)| {
        for (at, value) in damage {
            let headers = bytes.len().min(90);
            bytes[at.index(headers)] = value;
        }
        match end {
            None => bytes.extend(padding),
            Some(end) => bytes.truncate(end.index(bytes.len() + 1)),
        }
        bytes
    })
}

fn frame(bytes: &[u8]) {
    let ours = Ethernet::split(bytes);
    let theirs = Ethernet2Slice::from_slice_without_fcs(bytes);
    assert_eq!(ours.is_ok(), theirs.is_ok());
    let (Ok((header, rest)), Ok(theirs)) = (ours, theirs) else { return };
    assert_eq!(header.destination().0, theirs.destination());
    assert_eq!(header.source().0, theirs.source());
    assert_eq!(header.ether_type().0, theirs.ether_type().0);
    assert_eq!(rest, theirs.payload_slice());
    if header.ether_type().is_tag() { tag(rest) } else { network(header.ether_type(), rest) }
}

fn tag(bytes: &[u8]) {
    let ours = VlanTag::split(bytes);
    let theirs = SingleVlanSlice::from_slice(bytes);
    assert_eq!(ours.is_ok(), theirs.is_ok());
    let (Ok((tag, rest)), Ok(theirs)) = (ours, theirs) else { return };
    assert_eq!(tag.id(), theirs.vlan_identifier().value());
    assert_eq!(tag.priority(), theirs.priority_code_point().value());
    assert_eq!(tag.drop_eligible(), theirs.drop_eligible_indicator());
    assert_eq!(tag.ether_type().0, theirs.ether_type().0);
    network(tag.ether_type(), rest);
}

fn network(ether_type: EtherType, bytes: &[u8]) {
    match ether_type {
        EtherType::IPV4 => ipv4(bytes),
        EtherType::IPV6 => ipv6(bytes),
        EtherType::ARP => arp(bytes),
        _ => {}
    }
}

fn ipv4(bytes: &[u8]) {
    let ours = Ipv4::split_with_options(bytes);
    if let Ok((header, ..)) = ours
        && header.protocol() == AUTHENTICATION
    {
        return;
    }
    let theirs = Ipv4Slice::from_slice(bytes);
    assert_eq!(ours.is_ok(), theirs.is_ok(), "{ours:?} {theirs:?}");
    let (Ok((header, options, payload)), Ok(theirs)) = (ours, theirs) else { return };
    let their = theirs.header();
    assert_eq!(header.header_len(), usize::from(their.ihl()) * 4);
    assert_eq!((header.dscp(), header.ecn() as u8), (their.dcp().value(), their.ecn().value()));
    assert_eq!((header.total_length(), header.identification()), (their.total_len(), their.identification()));
    assert_eq!(header.dont_fragment(), their.dont_fragment());
    assert_eq!(header.more_fragments(), their.more_fragments());
    assert_eq!(header.fragment_offset(), their.fragments_offset().byte_offset());
    assert_eq!(header.is_fragment(), their.is_fragmenting_payload());
    assert_eq!((header.ttl(), header.protocol().0), (their.ttl(), their.protocol().0));
    assert_eq!((header.source(), header.destination()), (their.source_addr(), their.destination_addr()));
    assert_eq!(header.checksum(), their.header_checksum());
    // Its header keeps no reserved flag, so that it cannot sum up one that is set.
    if bytes[6] & 0x80 == 0 {
        let right = their.to_header().calc_header_checksum();
        assert_eq!(Ipv4::verify(bytes).is_ok(), same(right, header.checksum()));
    }
    assert_eq!((options, payload), (their.options(), theirs.payload().payload));
    transport(header.protocol(), payload);
}

/// Ones' complement has two zeros, and a header that was sent with either is right.
fn same(a: u16, b: u16) -> bool {
    a % 0xffff == b % 0xffff
}

fn ipv6(bytes: &[u8]) {
    let ours = Ipv6::split(bytes);
    let theirs = Ipv6HeaderSlice::from_slice(bytes);
    if theirs.is_err() {
        assert!(ours.is_err());
        return;
    }
    let their = theirs.unwrap();
    let long_enough = bytes.len() >= Ipv6::LEN + usize::from(their.payload_length());
    assert_eq!(ours.is_ok(), long_enough);
    let Ok((header, payload)) = ours else { return };
    assert_eq!(header.traffic_class().0, their.traffic_class());
    assert_eq!((header.dscp(), header.ecn() as u8), (their.dscp().value(), their.ecn().value()));
    assert_eq!(header.flow_label(), their.flow_label().value());
    assert_eq!((header.payload_length(), header.hop_limit()), (their.payload_length(), their.hop_limit()));
    assert_eq!((header.source(), header.destination()), (their.source_addr(), their.destination_addr()));
    assert_eq!(header.next_header().0, their.next_header().0);
    assert_eq!(payload.len(), usize::from(header.payload_length()));
    extensions(header.next_header(), payload);
}

fn extensions(next_header: IpProtocol, payload: &[u8]) {
    let ours = Upper::find(next_header, payload);
    let theirs = Ipv6ExtensionsSlice::from_slice(IpNumber(next_header.0), payload);
    match (ours, theirs) {
        (Err(Malformed::Ipv6ExtensionChain), Err(_)) => {}
        (Err(Malformed::Ipv6ExtensionChain), Ok((extensions, ..))) => {
            let fragments = extensions.clone().into_iter().filter(is_fragment_header).count();
            assert!(fragments > 1 || extensions.into_iter().count() > Upper::MAX_EXTENSIONS);
        }
        (Err(reason), theirs) => {
            assert_eq!(reason, Malformed::Ipv6ExtensionShort);
            assert!(theirs.is_err());
        }
        (Ok(upper), theirs) => {
            // These are where our walk ends and theirs goes on.
            if upper.is_inside_fragment() || upper.protocol == AUTHENTICATION {
                return;
            }
            let (extensions, number, rest) = theirs.unwrap();
            assert_eq!((upper.protocol.0, upper.payload), (number.0, rest));
            assert_eq!(upper.offset, extensions.slice().len());
            assert_eq!(upper.is_fragment(), extensions.is_fragmenting_payload());
            transport(upper.protocol, upper.payload);
        }
    }
}

fn is_fragment_header(extension: &etherparse::Ipv6ExtensionSlice<'_>) -> bool {
    matches!(extension, etherparse::Ipv6ExtensionSlice::Fragment(_))
}

fn transport(protocol: IpProtocol, bytes: &[u8]) {
    match protocol {
        IpProtocol::TCP => tcp(bytes),
        IpProtocol::UDP => udp(bytes),
        IpProtocol::ICMPV4 => icmpv4(bytes),
        IpProtocol::ICMPV6 => icmpv6(bytes),
        _ => {}
    }
}

fn tcp(bytes: &[u8]) {
    let ours = Tcp::split_with_options(bytes);
    let theirs = TcpSlice::from_slice(bytes);
    assert_eq!(ours.is_ok(), theirs.is_ok(), "{ours:?} {theirs:?}");
    let (Ok((header, options, data)), Ok(theirs)) = (ours, theirs) else { return };
    assert_eq!((header.source(), header.destination()), (theirs.source_port(), theirs.destination_port()));
    assert_eq!(header.sequence(), theirs.sequence_number());
    assert_eq!(header.acknowledgment(), theirs.acknowledgment_number());
    assert_eq!((header.window(), header.checksum()), (theirs.window_size(), theirs.checksum()));
    assert_eq!(header.urgent(), theirs.urgent_pointer());
    let flags = [
        (TcpFlags::FIN, theirs.fin()),
        (TcpFlags::SYN, theirs.syn()),
        (TcpFlags::RST, theirs.rst()),
        (TcpFlags::PSH, theirs.psh()),
        (TcpFlags::ACK, theirs.ack()),
        (TcpFlags::URG, theirs.urg()),
        (TcpFlags::ECE, theirs.ece()),
        (TcpFlags::CWR, theirs.cwr()),
    ];
    for (flag, set) in flags {
        assert_eq!(header.flags().contains(flag), set, "{flag:?}");
    }
    assert_eq!((options, data), (theirs.options(), theirs.payload()));
}

fn udp(bytes: &[u8]) {
    let ours = Udp::split(bytes);
    let theirs = UdpSlice::from_slice(bytes);
    if theirs.as_ref().is_ok_and(|theirs| theirs.length() == 0) {
        return assert_eq!(ours, Err(Malformed::UdpLength));
    }
    assert_eq!(ours.is_ok(), theirs.is_ok(), "{ours:?} {theirs:?}");
    let (Ok((header, data)), Ok(theirs)) = (ours, theirs) else { return };
    assert_eq!((header.source(), header.destination()), (theirs.source_port(), theirs.destination_port()));
    assert_eq!((header.length(), header.checksum()), (theirs.length(), theirs.checksum()));
    assert_eq!(data, theirs.payload());
}

fn icmpv4(bytes: &[u8]) {
    let ours = Icmpv4::split(bytes);
    let theirs = Icmpv4Slice::from_slice(bytes);
    // It asks a timestamp message for its whole length; that is not the header's business here.
    if matches!(bytes, [13 | 14, 0, ..]) {
        return assert_eq!(ours.is_ok(), bytes.len() >= Icmpv4::LEN);
    }
    assert_eq!(ours.is_ok(), theirs.is_ok());
    let (Ok((header, data)), Ok(theirs)) = (ours, theirs) else { return };
    assert_eq!((header.kind().0, header.code()), (theirs.type_u8(), theirs.code_u8()));
    assert_eq!((header.checksum(), data), (theirs.checksum(), &bytes[8..]));
    let [a, b, c, d] = theirs.bytes5to8();
    assert_eq!(header.identifier(), u16::from_be_bytes([a, b]));
    assert_eq!(
        (header.sequence(), header.next_hop_mtu()),
        (u16::from_be_bytes([c, d]), u16::from_be_bytes([c, d]))
    );
}

fn icmpv6(bytes: &[u8]) {
    let ours = Icmpv6::split(bytes);
    let theirs = Icmpv6Slice::from_slice(bytes);
    assert_eq!(ours.is_ok(), theirs.is_ok());
    let (Ok((header, _)), Ok(theirs)) = (ours, theirs) else { return };
    assert_eq!((header.kind().0, header.code()), (theirs.type_u8(), theirs.code_u8()));
    assert_eq!(header.checksum(), theirs.checksum());
    assert_eq!(header.mtu(), u32::from_be_bytes(theirs.bytes5to8()));
}

fn arp(bytes: &[u8]) {
    let ours = Arp::split(bytes);
    let theirs = ArpPacketSlice::from_slice(bytes);
    match (ours, theirs) {
        (Ok((arp, _)), Ok(theirs)) => {
            assert_eq!(arp.operation().0, theirs.operation().0);
            assert_eq!(
                (&arp.sender_mac().0[..], &arp.sender_ip().octets()[..]),
                (theirs.sender_hw_addr(), theirs.sender_protocol_addr())
            );
            assert_eq!(
                (&arp.target_mac().0[..], &arp.target_ip().octets()[..]),
                (theirs.target_hw_addr(), theirs.target_protocol_addr())
            );
        }
        (Ok(ours), Err(theirs)) => panic!("{ours:?} {theirs:?}"),
        (Err(Malformed::ArpShort), theirs) => assert!(theirs.is_err()),
        (Err(reason), _) => {
            assert_eq!(reason, Malformed::ArpUnsupported);
            assert_ne!(bytes[..6], [0, 1, 8, 0, 6, 4]);
        }
    }
}

/// A chain of extension headers that etherparse wrote.
fn chain() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let kind = prop_oneof![Just(0_u8), Just(43), Just(44), Just(60), Just(60), Just(51)];
    let header = (kind, 0..3_usize, 0..3_u16, any::<bool>());
    (vec(header, 0..11), prop_oneof![Just(6_u8), Just(17), Just(58), Just(59)], vec(any::<u8>(), 0..60))
        .prop_map(|(headers, last, payload)| {
            let mut next = last;
            let mut bytes = payload;
            for (kind, eights, offset, more) in headers.into_iter().rev() {
                let header = if kind == 44 {
                    let offset = IpFragOffset::try_new(offset / 2).unwrap();
                    Ipv6FragmentHeader::new(IpNumber(next), offset, more, 7).to_bytes().to_vec()
                } else {
                    let data = vec![0; 6 + eights * 8];
                    Ipv6RawExtHeader::new_raw(IpNumber(next), &data).unwrap().to_bytes().to_vec()
                };
                bytes = [header, bytes].concat();
                next = kind;
            }
            (next, bytes)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8 * ProptestConfig::default().cases))]

    #[test]
    fn on_packets_whole_and_damaged(bytes in packet()) {
        frame(&bytes);
    }

    #[test]
    fn on_noise_behind_any_header(bytes in vec(any::<u8>(), 0..100), protocol in 0..140_u8) {
        frame(&bytes);
        ipv4(&bytes);
        ipv6(&bytes);
        arp(&bytes);
        extensions(IpProtocol(protocol), &bytes);
        for protocol in [IpProtocol::TCP, IpProtocol::UDP, IpProtocol::ICMPV4, IpProtocol::ICMPV6] {
            transport(protocol, &bytes);
        }
    }

    #[test]
    fn on_chains_of_extension_headers(
        (first, bytes) in chain(),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let end = cut.map_or(bytes.len(), |cut| cut.index(bytes.len() + 1));
        extensions(IpProtocol(first), &bytes[..end]);
    }

    #[test]
    fn on_arp(mut bytes in vec(any::<u8>(), 0..40), right in 0..7_usize) {
        for (byte, value) in bytes.iter_mut().zip([0, 1, 8, 0, 6, 4]).take(right) {
            *byte = value;
        }
        arp(&bytes);
    }

    #[test]
    fn on_checksums(bytes in valid(WITH_CHECKSUM)) {
        let (header, mut rest) = Ethernet::split(&bytes).unwrap();
        let mut ether_type = header.ether_type();
        if ether_type.is_tag() {
            let (tag, inner) = VlanTag::split(rest).unwrap();
            (ether_type, rest) = (tag.ether_type(), inner);
        }
        let computed = match ether_type {
            EtherType::IPV4 => {
                let (ip, segment) = Ipv4::split(rest).unwrap();
                prop_assert_eq!(Ipv4::verify(rest), Ok(()));
                match ip.protocol() {
                    IpProtocol::ICMPV4 => checksum::internet(segment),
                    protocol => checksum::transport_v4(ip.source(), ip.destination(), protocol, segment),
                }
            }
            _ => {
                let (ip, segment) = Ipv6::split(rest).unwrap();
                checksum::transport_v6(ip.source(), ip.destination(), ip.next_header(), segment)
            }
        };
        prop_assert_eq!(computed, 0);
    }

    #[test]
    fn on_headers_that_we_write(from: [u8; 16], to: [u8; 16], length in 20..u16::MAX, protocol: u8) {
        use zerocopy::IntoBytes;
        let (from4, to4) = ([from[0], from[1], from[2], from[3]], [to[0], to[1], to[2], to[3]]);
        let ours = Ipv4::new(from4.into(), to4.into(), IpProtocol(protocol), length);
        let mut theirs = Ipv4Header::new(length - 20, 64, IpNumber(protocol), from4, to4).unwrap();
        theirs.header_checksum = theirs.calc_header_checksum();
        prop_assert_eq!(ours.as_bytes(), &theirs.to_bytes()[..]);
        let ours = Ipv6::new(from.into(), to.into(), IpProtocol(protocol), length);
        let theirs = Ipv6Header {
            payload_length: length,
            next_header: IpNumber(protocol),
            hop_limit: 64,
            source: from,
            destination: to,
            ..Default::default()
        };
        prop_assert_eq!(ours.as_bytes(), &theirs.to_bytes()[..]);
    }
}
