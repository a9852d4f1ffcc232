//! What comes out of the tunnel: sentences of "frame in, verdict, frame out", with the field log's cases by their numbers.

mod rig;

use causeway_datapath::{Checksum, Offload, Port};
use causeway_model::{DropReason, Family, GATEWAY_MAC, MacAddr};
use rig::*;

const HEADER: [u8; 8] = [8, 0, 0, 0, 0, 0x10, 0, 0];

fn ping4() -> Vec<u8> {
    ping("10.70.2.10", "10.70.1.10", 40)
}

fn ping6() -> Vec<u8> {
    ping("fd70:0:0:2::10", "fd70:0:0:1::10", 40)
}

fn verdict(frame: &[u8]) -> Result<Port, DropReason> {
    east().one(Port::Uplink, plain(frame)).map(|out| out.egress)
}

/// Node 1 over an IPv6 underlay.
fn east6() -> Side {
    Side::of(&snapshot(1, Family::V6))
}

#[test]
fn every_inner_destination_has_its_way() {
    let a = east().port("a");
    let cases = [
        ("a fast pod", "10.70.2.10", "10.70.1.10", Ok(a)),
        ("the same over IPv6", "fd70:0:0:2::10", "fd70:0:0:1::10", Ok(a)),
        ("a kernel pod", "10.70.2.10", "10.70.1.20", Ok(Port::Host)),
        ("the node's own address", "10.70.2.10", "192.0.2.1", Ok(Port::Host)),
        ("the same over IPv6", "fd70:0:0:2::10", "2001:db8::1", Ok(Port::Host)),
        ("the node's overlay host address", "10.70.2.10", "10.70.1.1", Ok(Port::Host)),
        ("from the other node's own address", "192.0.2.2", "10.70.1.10", Ok(a)),
        ("from the other node's overlay host address", "10.70.2.1", "10.70.1.10", Ok(a)),
        ("back into the tunnel", "10.70.2.10", "10.70.2.11", Err(DropReason::NoRoute)),
        ("the other node itself", "10.70.2.10", "192.0.2.2", Err(DropReason::NoRoute)),
        ("out into the world", "10.70.2.10", "203.0.113.5", Err(DropReason::NoRoute)),
        ("a group", "10.70.2.10", "224.0.0.5", Err(DropReason::NoRoute)),
        ("from another node's pod", "10.70.3.10", "10.70.1.10", Err(DropReason::ForeignInnerSource)),
        ("from another node itself", "192.0.2.3", "10.70.1.10", Err(DropReason::ForeignInnerSource)),
        ("from a pod of no node", "10.70.4.10", "10.70.1.10", Err(DropReason::ForeignInnerSource)),
        ("from one of our own pods", "10.70.1.11", "10.70.1.10", Err(DropReason::ForeignInnerSource)),
        ("from our kernel pod", "10.70.1.20", "10.70.1.10", Err(DropReason::ForeignInnerSource)),
        ("from our own address", "192.0.2.1", "10.70.1.10", Err(DropReason::ForeignInnerSource)),
        ("from the world", "203.0.113.5", "10.70.1.10", Err(DropReason::ForeignInnerSource)),
        (
            "from the world over IPv6",
            "2001:db8:ffff::5",
            "fd70:0:0:1::10",
            Err(DropReason::ForeignInnerSource),
        ),
        ("from the gateway", "169.254.1.1", "10.70.1.10", Err(DropReason::ForeignInnerSource)),
    ];
    for (sentence, from, to, expected) in cases {
        let frame = tunnelled(&inner_to_east(&udp(from, to, (1, 2), 20)));
        assert_eq!(verdict(&frame), expected, "{sentence}");
    }
}

#[test]
fn a_delivered_packet_lost_its_tunnel_and_one_hop() {
    let east = east();
    for packet in
        [tcp("10.70.2.10", "10.70.1.10", (1, 2), 1000), tcp("fd70:0:0:2::10", "fd70:0:0:1::10", (1, 2), 1000)]
    {
        let frame = tunnelled(&inner_to_east(&packet));
        let out = east.one(Port::Uplink, plain(&[frame.clone(), vec![0; 4]].concat())).unwrap();
        assert_eq!((out.egress, out.macs(), out.outer), (east.port("a"), (mac(10), GATEWAY_MAC), 0));
        assert_right(out.packet());
        assert_eq!(out.packet(), with(packet.clone(), if packet[0] >> 4 == 4 { 8 } else { 7 }, 63));
        // The node's own stack counts its hop itself.
        let to_host = if packet[0] >> 4 == 4 { "10.70.1.20" } else { "fd70:0:0:1::20" };
        let packet =
            udp(if packet[0] >> 4 == 4 { "10.70.2.10" } else { "fd70:0:0:2::10" }, to_host, (1, 2), 20);
        let out = east.one(Port::Uplink, plain(&tunnelled(&inner_to_east(&packet)))).unwrap();
        assert_eq!(
            (out.egress, out.macs(), out.packet()),
            (Port::Host, (HOST_MAC, GATEWAY_MAC), &packet[..])
        );
    }
    let received = east.worker.borrow().tally().tunnel_received();
    assert_eq!(received.packets, 4);
}

#[test]
fn f17_reserved_bits_are_ignored_and_the_i_flag_is_not() {
    let east = east();
    let inner = inner_to_east(&ping4());
    let good = [HEADER, [0xff, 0, 0, 0, 0, 0x10, 0, 0], [8, 0xab, 0xcd, 0xef, 0, 0x10, 0, 0x55]];
    let outs: Vec<_> = good
        .iter()
        .map(|header| {
            east.one(Port::Uplink, plain(&tunnelled_from("192.0.2.2", "192.0.2.1", *header, &inner))).unwrap()
        })
        .collect();
    assert!(outs.iter().all(|out| *out == outs[0]));
    for header in [[0, 0, 0, 0, 0, 0x10, 0, 0], [0xf7, 0, 0, 0, 0, 0x10, 0, 0]] {
        let frame = tunnelled_from("192.0.2.2", "192.0.2.1", header, &inner);
        assert_eq!(east.one(Port::Uplink, plain(&frame)), Err(DropReason::VxlanWithoutVni));
    }
}

#[test]
fn f18_a_foreign_network_or_an_unknown_sender_reaches_no_pod() {
    let inner = inner_to_east(&ping4());
    let cases = [
        ("network 4097", "192.0.2.2", [8, 0, 0, 0, 0, 0x10, 1, 0], DropReason::NoSuchTunnel),
        ("network 0", "192.0.2.2", [8, 0, 0, 0, 0, 0, 0, 0], DropReason::NoSuchTunnel),
        ("a stranger", "203.0.113.9", HEADER, DropReason::UnknownSender),
        ("our own address", "192.0.2.1", HEADER, DropReason::UnknownSender),
    ];
    for (sentence, from, header, reason) in cases {
        assert_eq!(verdict(&tunnelled_from(from, "192.0.2.1", header, &inner)), Err(reason), "{sentence}");
    }
    let mut without = snapshot(1, Family::V4);
    without.peers.clear();
    let east = Side::of(&without);
    assert_eq!(
        east.one(Port::Uplink, plain(&tunnelled(&inner))),
        Err(DropReason::UnknownSender),
        "a node just removed"
    );
}

/// A tunnel frame whose UDP and IP lengths are what its bytes are, after `change` to the bytes behind the VXLAN header.
fn carrying(inner: &[u8]) -> Vec<u8> {
    tunnelled(inner)
}

#[test]
fn f19_malformed_fragmented_and_tagged_payloads_are_named() {
    let inner = inner_to_east(&ping4());
    let set = |frame: Vec<u8>, at: usize, bytes: &[u8]| {
        let mut packet = frame[14..].to_vec();
        packet[at..at + bytes.len()].copy_from_slice(bytes);
        seal_v4(&mut packet);
        [&frame[..14], &packet].concat()
    };
    let tagged = |vid: u8| [&inner[..12], &[0x81, 0, 0, vid], &inner[12..]].concat();
    let cases = [
        ("(a) a UDP length of 8", set(carrying(&inner), 24, &[0, 8]), DropReason::Malformed),
        ("(b) a UDP length beyond the packet", set(carrying(&inner), 24, &[2, 0]), DropReason::Malformed),
        ("a UDP length below its own header", set(carrying(&inner), 24, &[0, 7]), DropReason::Malformed),
        ("(c) thirteen bytes of inner frame", carrying(&inner[..13]), DropReason::Malformed),
        ("no inner frame", carrying(&[]), DropReason::Malformed),
        ("(d) ten bytes of inner packet", carrying(&inner[..24]), DropReason::Malformed),
        (
            "(e) a total length beyond the bytes",
            carrying(&[&inner[..16], &[2, 0], &inner[18..]].concat()),
            DropReason::Malformed,
        ),
        (
            "(f) the first fragment of a tunnel datagram",
            set(carrying(&inner), 6, &[0x20, 0]),
            DropReason::OuterFragment,
        ),
        ("(f) a later fragment", set(carrying(&inner), 6, &[0, 9]), DropReason::OuterFragment),
        ("(g) an inner VLAN tag", carrying(&tagged(5)), DropReason::InnerVlan),
        ("(h) an inner priority tag", carrying(&tagged(0)), DropReason::InnerVlan),
        (
            "a service tag",
            carrying(&[&inner[..12], &[0x88, 0xa8, 0, 5], &inner[12..]].concat()),
            DropReason::InnerVlan,
        ),
        ("inner ARP", carrying(&[&inner[..12], &[8, 6], &inner[14..]].concat()), DropReason::InnerNotIp),
        (
            "a wrong outer header checksum",
            {
                let mut f = carrying(&inner);
                f[24] ^= 1;
                f
            },
            DropReason::Malformed,
        ),
        (
            "a wrong inner header checksum",
            carrying(&[&inner[..24], &[0, 0], &inner[26..]].concat()),
            DropReason::Malformed,
        ),
        ("for another hardware address", carrying(&[&mac(1).0, &inner[6..]].concat()), DropReason::NotForUs),
        ("for everybody", carrying(&[&MacAddr::BROADCAST.0, &inner[6..]].concat()), DropReason::NotForUs),
        (
            "another outer destination",
            tunnelled_from("192.0.2.2", "192.0.2.7", HEADER, &inner),
            DropReason::NotForUs,
        ),
        ("another port", set(carrying(&inner), 22, &[0x12, 0xb6]), DropReason::NotForUs),
        ("another protocol", set(carrying(&inner), 9, &[6]), DropReason::NotForUs),
        ("a stranger's fragment", tunnelled_fragment(&inner), DropReason::NotForUs),
        (
            "over the other family",
            tunnelled_from("2001:db8::2", "2001:db8::1", HEADER, &inner),
            DropReason::NotForUs,
        ),
        ("outer ARP", [&[0xff; 12][..], &[8, 6], &[0; 28]].concat(), DropReason::NotForUs),
        (
            "an outer VLAN tag",
            {
                let f = carrying(&inner);
                [&f[..12], &[0x81, 0, 0, 1], &f[12..]].concat()
            },
            DropReason::NotForUs,
        ),
    ];
    let east = east();
    for (sentence, frame, reason) in cases {
        assert_eq!(east.one(Port::Uplink, plain(&frame)), Err(reason), "{sentence}");
        let next = east.one(Port::Uplink, plain(&carrying(&inner)));
        assert_eq!(next.map(|out| out.egress), Ok(east.port("a")), "the next good one after {sentence}");
    }
}

fn tunnelled_fragment(inner: &[u8]) -> Vec<u8> {
    let frame = tunnelled_from("203.0.113.9", "192.0.2.1", HEADER, inner);
    let packet = with(frame[14..].to_vec(), 7, 9);
    [&frame[..14], &packet].concat()
}

#[test]
fn f20_outer_checksums_are_verified_where_there_is_one_to_verify() {
    let (east, east6) = (east(), east6());
    let inner = inner_to_east(&ping4());
    let v4 = |sum: Option<[u8; 2]>| {
        let mut frame = tunnelled(&inner);
        let packet = frame[14..].to_vec();
        let len = (packet.len() - 20) as u16;
        let right = !slow_sum(&[&packet[12..20], &[0, 17], &len.to_be_bytes(), &packet[20..]]);
        frame[40..42].copy_from_slice(&sum.unwrap_or(right.to_be_bytes()));
        frame
    };
    let v6 = tunnelled_from("2001:db8::2", "2001:db8::1", HEADER, &inner);
    let v6_with = |sum: [u8; 2]| [&v6[..60], &sum, &v6[62..]].concat();
    let a = Ok(east.port("a"));
    let cases = [
        ("(a) none over IPv4", &east, v4(Some([0, 0])), a),
        ("(b) the right one over IPv4", &east, v4(None), a),
        ("(c) a wrong one over IPv4", &east, v4(Some([0xde, 0xad])), Err(DropReason::OuterChecksum)),
        ("(d) none over IPv6", &east6, v6_with([0, 0]), Err(DropReason::OuterChecksum)),
        ("(e) the right one over IPv6", &east6, v6.clone(), a),
        ("a wrong one over IPv6", &east6, v6_with([0xde, 0xad]), Err(DropReason::OuterChecksum)),
    ];
    for (sentence, side, frame, expected) in cases {
        for split in [frame.len(), 106] {
            let out = side.one(Port::Uplink, frame_in_two(&frame, split, Offload::NONE));
            assert_eq!(out.map(|out| out.egress), expected, "{sentence}, split at {split}");
        }
    }
    let padded = [&v4(None)[..], &[0xee; 7]].concat();
    assert_eq!(east.one(Port::Uplink, plain(&padded)).map(|out| out.egress), a, "padding is not summed up");
    // What the sender's stack left to hardware never left this machine; what hardware verified need not be verified again.
    let outer = Checksum::Partial { start: 34, offset: 6 };
    for checksum in [outer, Checksum::Verified] {
        let frame = frame_in_two(&v4(Some([0xde, 0xad])), usize::MAX, Offload { checksum, gso: None });
        let out = east.one(Port::Uplink, frame).unwrap();
        assert_eq!(
            (out.egress, out.offload),
            (east.port("a"), Offload::NONE),
            "nothing of it concerns the inner packet"
        );
    }
}

#[test]
fn f22_all_sixteen_pairs_of_congestion_bits_leave_the_tunnel_as_rfc_6040_says() {
    // Rows: inner Not-ECT, ECT(1), ECT(0), CE, each under outer Not-ECT, ECT(1), ECT(0), CE.
    let right = [
        [Some(0), Some(0), Some(0), None],
        [Some(1), Some(1), Some(1), Some(3)],
        [Some(2), Some(1), Some(2), Some(3)],
        [Some(3), Some(3), Some(3), Some(3)],
    ];
    for (side, from, to) in [(east(), "192.0.2.2", "192.0.2.1"), (east6(), "2001:db8::2", "2001:db8::1")] {
        for (inner, outer) in (0..4_u8).flat_map(|inner| (0..4_u8).map(move |outer| (inner, outer))) {
            for packet in [ping4(), ping6()] {
                let class = 0xb8 | inner;
                let packet = with_class(packet, class);
                let frame = tunnelled_from(from, to, HEADER, &inner_to_east(&packet));
                let frame = [&frame[..14], &with_class(frame[14..].to_vec(), 0x40 | outer)].concat();
                let out = side.one(Port::Uplink, plain(&frame));
                match right[usize::from(inner)][usize::from(outer)] {
                    None => assert_eq!(out, Err(DropReason::EcnNotCapable), "{inner} under {outer}"),
                    Some(ecn) => {
                        let out = out.unwrap();
                        assert_right(out.packet());
                        assert_eq!(class_of(out.packet()), 0xb8 | ecn, "{inner} under {outer}");
                    }
                }
            }
        }
    }
}

fn with_class(mut packet: Vec<u8>, class: u8) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        return with(packet, 1, class);
    }
    packet[0] = 0x60 | class >> 4;
    packet[1] = packet[1] & 15 | class << 4;
    packet
}

fn class_of(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 4 { packet[1] } else { packet[0] << 4 | packet[1] >> 4 }
}

#[test]
fn outer_options_are_passed_over() {
    let inner = inner_to_east(&ping4());
    let frame = tunnelled(&inner);
    let mut packet = frame[14..].to_vec();
    packet[0] = 0x46;
    packet.splice(20..20, [1, 1, 1, 1]);
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    seal_v4(&mut packet);
    let east = east();
    let out = east.one(Port::Uplink, plain(&[&frame[..14], &packet].concat())).unwrap();
    assert_eq!(out.egress, east.port("a"));
    assert_right(out.packet());
}

#[test]
fn senders_are_told_through_the_tunnel_they_came_by() {
    let east = east();
    for packet in [with(ping4(), 8, 1), with(ping6(), 7, 1)] {
        let out = east.run(Port::Uplink, [plain(&tunnelled(&inner_to_east(&packet)))]).remove(0);
        assert_eq!((out.egress, out.outer), (Port::Uplink, 50));
        assert_all_right(&out);
        // The other node takes it for what it is, and hands it to the pod.
        let west = west();
        let there = west.one(Port::Uplink, plain(&out.bytes)).unwrap();
        assert_eq!(there.egress, west.port("a"));
        let at = if packet[0] >> 4 == 4 { 20 } else { 40 };
        assert_eq!(there.packet()[at..at + 2], if at == 20 { [11, 0] } else { [3, 0] });
        assert_eq!(there.packet()[at + 8..], packet);
    }
    assert_eq!(east.dropped(DropReason::HopLimit), 2);
    let drops = east.worker.borrow().tally().endpoint(east.slot("a")).drops;
    assert_eq!(drops[&DropReason::HopLimit].packets, 2, "counted for the pod it was for");
}

#[test]
fn f23_a_packet_too_big_for_a_pod_of_small_mtu_is_answered_or_fragmented() {
    let mut small = snapshot(1, Family::V4);
    small.endpoints.get_mut(&key("a")).unwrap().mtu = 1300;
    let east = Side::of(&small);
    for (packet, answer) in [
        (udp("10.70.2.10", "10.70.1.10", (1, 2), 1400), [3, 4, 0x05, 0x14]),
        (udp("fd70:0:0:2::10", "fd70:0:0:1::10", (1, 2), 1380), [2, 0, 0x05, 0x14]),
    ] {
        let out = east.run(Port::Uplink, [plain(&tunnelled(&inner_to_east(&packet)))]).remove(0);
        assert_eq!(out.egress, Port::Uplink);
        assert_all_right(&out);
        let error = &out.packet()[if packet[0] >> 4 == 4 { 20 } else { 40 }..];
        assert_eq!([error[0], error[1], error[6], error[7]], answer);
    }
    let packet = fragmentable(udp("10.70.2.10", "10.70.1.10", (1, 2), 1400));
    let out = east.run(Port::Uplink, [plain(&tunnelled(&inner_to_east(&packet)))]);
    assert_eq!(out.len(), 2);
    assert!(out.iter().all(|piece| piece.egress == east.port("a") && piece.packet().len() <= 1300));
}
