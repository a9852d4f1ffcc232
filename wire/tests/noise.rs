//! Noise never panics: whatever bytes come, every split and every builder returns, and what it returns lies
//! within the bytes it was given.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use causeway_wire::reply::{
    Echo, ICMPV4_ERROR_LIMIT, ICMPV6_ERROR_LIMIT, Icmpv4Error, Icmpv6Error, NoReply, arp_reply,
    icmpv4_echo_reply, icmpv4_echo_request, icmpv4_error, icmpv6_echo_reply, icmpv6_echo_request,
    icmpv6_error, neighbor_advertisement,
};
use causeway_wire::{
    Arp, ArpOperation, Ethernet, Icmpv4, Icmpv6, IpProtocol, Ipv4, Ipv6, Ipv6Extension, Ipv6Fragment,
    MacAddr, Malformed, NdpOption, NeighborAdvertisement, NeighborSolicitation, Ports, Sctp, Tcp, Udp, Upper,
    VlanTag, Vxlan, checksum,
};
use proptest::collection::vec;
use proptest::prelude::*;
use zerocopy::IntoBytes;

const BLANK: u8 = 0xa5;
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

/// Noise that is let through the first checks often enough to reach the later ones.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![Just(0x45), 0x45..=0x4f_u8, Just(0x60), Just(0x00), Just(0x88), any::<u8>()];
    let protocol =
        prop_oneof![Just(0), Just(1), Just(6), Just(17), Just(43), Just(44), Just(58), Just(60), any::<u8>()];
    let length = prop_oneof![0..160_u16, any::<u16>()];
    (vec(any::<u8>(), 0..160), first, protocol, length).prop_map(|(mut bytes, first, protocol, length)| {
        let v6 = first >> 4 == 6;
        let [high, low] = length.to_be_bytes();
        let field = if v6 { 4 } else { 2 };
        for (at, value) in [(0, first), (if v6 { 6 } else { 9 }, protocol), (field, high), (field + 1, low)] {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes
    })
}

fn place<T>(part: &[T]) -> Range<usize> {
    let range = part.as_ptr_range();
    range.start as usize..range.end as usize
}

type Split<H> = fn(&[u8]) -> Result<(&H, &[u8]), Malformed>;
type SplitMut<H> = fn(&mut [u8]) -> Result<(&mut H, &mut [u8]), Malformed>;

/// Both splits of a header say the same, and the rest is a part of the bytes behind the header.
fn agree<H: PartialEq + std::fmt::Debug>(bytes: &[u8], split: Split<H>, split_mut: SplitMut<H>) {
    let mut copy = bytes.to_vec();
    let written = split_mut(&mut copy).map(|(header, rest)| (&*header, &*rest));
    let read = split(bytes);
    assert_eq!(read, written);
    if let Ok((header, rest)) = read {
        let (whole, head, rest) = (place(bytes), place(std::slice::from_ref(header)), place(rest));
        assert_eq!(head.start, whole.start);
        assert!(head.end <= rest.start && rest.end <= whole.end);
    }
}

fn options_end(bytes: &[u8]) {
    for split in [
        |bytes| NeighborSolicitation::split(bytes).map(|(_, options)| options),
        |bytes| NeighborAdvertisement::split(bytes).map(|(_, options)| options),
    ] {
        let Ok(options) = split(bytes) else { continue };
        assert!(options.count() <= bytes.len() / 8 + 1);
        let impossible = options.clone().any(|option| option.is_err());
        for kind in [NdpOption::SOURCE_LINK_LAYER, NdpOption::TARGET_LINK_LAYER] {
            assert!(options.link_layer(kind).is_err() || !impossible);
        }
    }
}

/// What was written lies at the front and is a valid packet of its version; nothing else was touched.
fn written_v4(written: Result<usize, NoReply>, out: &[u8]) {
    let len = written.unwrap_or(0);
    assert!(out[len..] == vec![BLANK; out.len() - len]);
    if written.is_ok() {
        let (header, message) = Ipv4::split(&out[..len]).unwrap();
        assert_eq!((usize::from(header.total_length()), header.protocol()), (len, IpProtocol::ICMPV4));
        assert_eq!((Ipv4::verify(out), Icmpv4::verify(message)), (Ok(()), Ok(())));
    }
}

fn written_v6(written: Result<usize, NoReply>, out: &[u8]) {
    let len = written.unwrap_or(0);
    assert!(out[len..] == vec![BLANK; out.len() - len]);
    if written.is_ok() {
        let (header, message) = Ipv6::split(&out[..len]).unwrap();
        assert_eq!((message.len(), header.next_header()), (len - Ipv6::LEN, IpProtocol::ICMPV6));
        assert_eq!(Icmpv6::verify(header.source(), header.destination(), message), Ok(()));
    }
}

/// Every builder over these bytes, into this much room; true when one of them wrote something about them.
fn build(bytes: &[u8], room: usize, number: u32, source: [u8; 16], link: MacAddr) -> bool {
    let v4 = Ipv4Addr::from([source[0], source[1], source[2], source[3]]);
    let v6 = Ipv6Addr::from(source);
    let echo = Echo { identifier: number as u16, sequence: room as u16, data: bytes };
    let fragment = Icmpv4Error::FragmentationNeeded { mtu: number as u16 };
    let too_big = Icmpv6Error::PacketTooBig { mtu: number };
    let mut answered = false;
    let mut out = vec![BLANK; room];
    let v4_too = |built: Result<usize, NoReply>, out: &mut Vec<u8>, limit| {
        written_v4(built, out);
        assert!(built.unwrap_or(0) <= limit);
        out.fill(BLANK);
        built.is_ok()
    };
    answered |= v4_too(icmpv4_error(fragment, v4, link, bytes, &mut out), &mut out, ICMPV4_ERROR_LIMIT);
    answered |= v4_too(icmpv4_echo_reply(bytes, &mut out), &mut out, bytes.len());
    v4_too(icmpv4_echo_request(v4, v4, echo, &mut out), &mut out, 28 + bytes.len());
    let v6_too = |built: Result<usize, NoReply>, out: &mut Vec<u8>, limit| {
        written_v6(built, out);
        assert!(built.unwrap_or(0) <= limit);
        out.fill(BLANK);
        built.is_ok()
    };
    answered |= v6_too(icmpv6_error(too_big, v6, link, bytes, &mut out), &mut out, ICMPV6_ERROR_LIMIT);
    answered |= v6_too(icmpv6_echo_reply(bytes, &mut out), &mut out, bytes.len());
    answered |= v6_too(neighbor_advertisement(bytes, MAC, true, &mut out), &mut out, 72);
    v6_too(icmpv6_echo_request(v6, v6, echo, &mut out), &mut out, 48 + bytes.len());
    match arp_reply(bytes, MAC, &mut out) {
        Ok(len) => {
            assert_eq!(Arp::split(&out[..len]).unwrap().0.sender_mac(), MAC);
            answered = true;
        }
        Err(_) => assert!(out == vec![BLANK; room]),
    }
    answered
}

/// Packets that each are answered by one builder or another.
fn answerable() -> [Vec<u8>; 5] {
    let pod = (MAC, Ipv4Addr::new(10, 70, 1, 5));
    let (a, b) = ("fe80::5".parse().unwrap(), "fe80::1".parse().unwrap());
    let echo = Echo { identifier: 1, sequence: 2, data: b"causeway" };
    let mut v4 = [0; 36];
    icmpv4_echo_request(pod.1, Ipv4Addr::new(169, 254, 1, 1), echo, &mut v4).unwrap();
    let mut v6 = [0; 56];
    icmpv6_echo_request(a, b, echo, &mut v6).unwrap();
    let arp = Arp::new(ArpOperation::REQUEST, pod, (MacAddr::ZERO, Ipv4Addr::new(169, 254, 1, 1)));
    let udp = [Ipv6::new(a, b, IpProtocol::UDP, 8).as_bytes(), Udp::new(1, 2, 8).as_bytes()].concat();
    let option = NdpOption::link_layer(NdpOption::SOURCE_LINK_LAYER, MAC);
    let mut question = [NeighborSolicitation::new(b).as_bytes(), &option].concat();
    let sum = checksum::transport_v6(a, b, IpProtocol::ICMPV6, &question);
    question[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut header = Ipv6::new(a, b, IpProtocol::ICMPV6, 32);
    header.set_hop_limit(255);
    [v4.to_vec(), v6.to_vec(), arp.as_bytes().to_vec(), udp, [header.as_bytes(), &question].concat()]
}

/// Puts the checksums of an IPv4 header right, so that damage behind them is looked at.
fn reseal(bytes: &mut [u8]) {
    let Ok((header, _)) = Ipv4::split_partial(bytes) else { return };
    let len = header.header_len();
    bytes[10..12].fill(0);
    let sum = checksum::internet(&bytes[..len]);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn undamaged_packets_are_answered() {
    for bytes in answerable() {
        assert!(build(&bytes, 1280, 1450, [10; 16], MAC), "{bytes:x?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8 * ProptestConfig::default().cases))]

    #[test]
    fn every_split_returns(bytes in noise()) {
        agree(&bytes, Ethernet::split, Ethernet::split_mut);
        agree(&bytes, VlanTag::split, VlanTag::split_mut);
        agree(&bytes, Arp::split, Arp::split_mut);
        agree(&bytes, Ipv4::split, Ipv4::split_mut);
        agree(&bytes, Ipv6::split, Ipv6::split_mut);
        agree(&bytes, Icmpv4::split, Icmpv4::split_mut);
        agree(&bytes, Icmpv6::split, Icmpv6::split_mut);
        agree(&bytes, Tcp::split, Tcp::split_mut);
        agree(&bytes, Udp::split, Udp::split_mut);
        agree(&bytes, Sctp::split, Sctp::split_mut);
        agree(&bytes, Ports::split, Ports::split_mut);
        agree(&bytes, Vxlan::split, Vxlan::split_mut);
        prop_assert_eq!(
            NeighborSolicitation::split(&bytes).is_ok(),
            NeighborSolicitation::split_mut(&mut bytes.clone()).is_ok()
        );
        prop_assert_eq!(
            NeighborAdvertisement::split(&bytes).is_ok(),
            NeighborAdvertisement::split_mut(&mut bytes.clone()).is_ok()
        );
        options_end(&bytes);
    }

    #[test]
    fn a_partial_split_takes_whatever_a_whole_one_takes(bytes in noise(), cut: prop::sample::Index) {
        for (whole, partial) in [(Ipv4::split(&bytes).map(|s| s.1), Ipv4::split_partial(&bytes).map(|s| s.1)),
            (Ipv6::split(&bytes).map(|s| s.1), Ipv6::split_partial(&bytes).map(|s| s.1))] {
            if whole.is_ok() {
                prop_assert_eq!(whole, partial);
            }
        }
        if let Ok((header, data)) = Udp::split(&bytes) {
            let (same, longer) = Udp::split_partial(&bytes).unwrap();
            prop_assert_eq!(header, same);
            prop_assert!(longer.starts_with(data));
        }
        let front = &bytes[..cut.index(bytes.len() + 1)];
        if let (Ok((_, all)), Ok((_, part))) = (Ipv4::split_partial(&bytes), Ipv4::split_partial(front)) {
            prop_assert!(all.starts_with(part));
        }
        if let (Ok((_, all)), Ok((_, part))) = (Ipv6::split_partial(&bytes), Ipv6::split_partial(front)) {
            prop_assert!(all.starts_with(part));
        }
    }

    #[test]
    fn every_walk_ends_within_the_bytes(next: u8, bytes in vec(any::<u8>(), 0..200)) {
        // Small lengths and the numbers of extension headers, so that the walk goes on.
        let likely = |byte: u8| [0, 1, 2, 3, 43, 44, 60, byte][usize::from(byte % 8)];
        let bytes: Vec<u8> = bytes.into_iter().map(likely).collect();
        if let Ok(upper) = Upper::find(IpProtocol(next), &bytes) {
            prop_assert_eq!(upper.payload, &bytes[upper.offset..]);
            prop_assert!(upper.is_fragment() || !upper.is_inside_fragment());
        }
        if let Ok((header, data, rest)) = Ipv6Extension::split(&bytes) {
            prop_assert_eq!(2 + data.len(), header.header_len());
            prop_assert_eq!(header.header_len() + rest.len(), bytes.len());
        }
        prop_assert_eq!(Ipv6Fragment::split(&bytes).is_ok(), bytes.len() >= Ipv6Fragment::LEN);
    }

    #[test]
    fn every_builder_returns(
        bytes in noise(),
        room in 0..1400_usize,
        number: u32,
        source: [u8; 16],
        link: [u8; 6],
    ) {
        build(&bytes, room, number, source, MacAddr(link));
    }

    #[test]
    fn every_builder_returns_on_damaged_packets(
        which in 0..5_usize,
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        repaired: bool,
        room in 0..200_usize,
    ) {
        let mut bytes = answerable()[which].clone();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len() + 1)));
        if repaired {
            reseal(&mut bytes);
        }
        build(&bytes, room, 1450, [10; 16], MAC);
    }

    #[test]
    fn every_checksum_returns(mut bytes in noise(), field: usize) {
        prop_assert_eq!(Sctp::checksum_of(&bytes).is_ok(), bytes.len() >= Sctp::LEN);
        prop_assert!(Ipv4::verify(&bytes).is_err() || Ipv4::split_partial(&bytes).is_ok());
        let len = bytes.len();
        let field = field % (len + 4);
        prop_assert_eq!(checksum::complete(&mut bytes, field).is_some(), field + 2 <= len);
    }
}
