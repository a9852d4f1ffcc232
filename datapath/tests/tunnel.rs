//! From one node's pod to another's: what is on the wire between them, and that nothing is lost.

#![expect(clippy::unwrap_used, reason = "what cannot be written or read fails its test")]

mod rig;

use std::collections::BTreeSet;

use causeway_datapath::{Checksum, Links, NextHop, Offload, Port, Slots, World};
use causeway_model::{DropReason, Family, IpNetwork};
use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
use rig::*;

fn side(number: u8, underlay: Family) -> Side {
    Side::of(&snapshot(number, underlay))
}

#[test]
fn a_packet_arrives_as_it_was_sent_two_hops_older() {
    for underlay in Family::BOTH {
        let (east, west) = (side(1, underlay), side(2, underlay));
        for (packet, hop) in [
            (tcp("10.70.1.10", "10.70.2.11", (40_000, 80), 1200), 8),
            (tcp("fd70:0:0:1::10", "fd70:0:0:2::11", (40_000, 80), 1200), 7),
            (udp("10.70.1.10", "10.70.2.11", (40_000, 80), 0), 8),
            (ping("fd70:0:0:1::10", "fd70:0:0:2::11", 1), 7),
        ] {
            for split in [usize::MAX, 100] {
                let frame = frame_in_two(&sent_by(10, &packet), split, Offload::NONE);
                let wire = east.one(east.port("a"), frame).unwrap();
                assert_eq!(
                    (wire.egress, wire.outer),
                    (Port::Uplink, usize::from(underlay.tunnel_overhead()))
                );
                assert_all_right(&wire);
                let arrived = west.one(Port::Uplink, plain(&wire.bytes)).unwrap();
                assert_eq!(arrived.egress, west.port("b"));
                assert_eq!(arrived.packet(), with(packet.clone(), hop, 62));
            }
        }
    }
}

#[test]
fn f17_what_is_sent_has_the_i_flag_and_nothing_else() {
    for underlay in Family::BOTH {
        let east = side(1, underlay);
        let packet = udp("10.70.1.10", "10.70.2.10", (1, 2), 9);
        let wire = east.one(east.port("a"), plain(&sent_by(10, &packet))).unwrap();
        let read = PacketHeaders::from_ethernet_slice(&wire.bytes).unwrap();
        let Some(TransportHeader::Udp(outer)) = read.transport else { panic!("{read:?}") };
        assert_eq!((outer.destination_port, usize::from(outer.length)), (PORT, 16 + 14 + packet.len()));
        let payload = read.payload.slice();
        assert_eq!(payload[..8], [8, 0, 0, 0, 0, 0x10, 0, 0]);
        assert_eq!(payload[8..22], [&vtep(2).0[..], &vtep(1).0, &[8, 0]].concat());
        assert_eq!(wire.bytes[..12], [NEXT_HOP.0, UPLINK_MAC.0].concat());
        match read.net {
            Some(NetHeaders::Ipv4(ip, _)) => {
                assert_eq!((ip.source, ip.destination), ([192, 0, 2, 1], [192, 0, 2, 2]));
                assert!(ip.dont_fragment && !ip.more_fragments && ip.time_to_live == 64);
                assert_eq!(outer.checksum, 0);
            }
            Some(NetHeaders::Ipv6(ip, _)) => {
                assert_eq!((ip.source[15], ip.destination[15], ip.hop_limit), (1, 2, 64));
                assert_ne!(outer.checksum, 0);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Sends all packets from node 1's pod `a`, and gives the outer source ports.
fn ports(packets: impl IntoIterator<Item = Vec<u8>>) -> Vec<u16> {
    let east = east();
    let port = |packet: Vec<u8>| {
        let wire = east.one(east.port("a"), plain(&sent_by(10, &packet))).unwrap();
        u16::from_be_bytes([wire.bytes[34], wire.bytes[35]])
    };
    packets.into_iter().map(port).collect()
}

#[test]
fn f21_flows_spread_over_outer_ports_and_one_flow_keeps_its_own() {
    for (from, to) in [("10.70.1.10", "10.70.2.10"), ("fd70:0:0:1::10", "fd70:0:0:2::10")] {
        let many = ports((0..256).map(|n| tcp(from, to, (30_000 + n, 443), 5)));
        assert!(many.iter().all(|port| (49_152..=65_535).contains(port)));
        let distinct: BTreeSet<_> = many.iter().collect();
        assert!(distinct.len() >= 200, "{} ports for 256 flows", distinct.len());
        let one: BTreeSet<_> = ports((0..100).map(|n| tcp(from, to, (30_000, 443), n))).into_iter().collect();
        assert_eq!(one.len(), 1);
        // Flows between many pods spread as well, with equal ports and addresses that differ in equal ways.
        let pods =
            |n: u8| if from.contains(':') { format!("fd70:0:0:2::{n}") } else { format!("10.70.2.{n}") };
        let distinct: BTreeSet<_> =
            ports((1..=200).map(|n| udp(from, &pods(n), (53, 53), 5))).into_iter().collect();
        assert!(distinct.len() >= 190, "{} ports for 200 pods", distinct.len());
    }
}

#[test]
fn both_directions_of_a_flow_share_their_outer_port() {
    for (a, b) in [("10.70.1.10", "10.70.2.10"), ("fd70:0:0:1::10", "fd70:0:0:2::10")] {
        let there = east().one(east().port("a"), plain(&sent_by(10, &tcp(a, b, (40_000, 80), 5)))).unwrap();
        let back = west().one(west().port("a"), plain(&sent_by(10, &tcp(b, a, (80, 40_000), 5)))).unwrap();
        assert_eq!(there.bytes[34..36], back.bytes[34..36]);
    }
}

#[test]
fn f24_all_fragments_of_a_datagram_share_an_outer_port_and_no_payload_is_read_as_ports() {
    let fragment = |offset: u16, more: bool, fill: u8| {
        let mut packet = fragmentable(udp("10.70.1.10", "10.70.2.10", (40_000, 53), 64));
        packet[28..].fill(fill);
        packet[6..8].copy_from_slice(&((offset / 8) | if more { 0x2000 } else { 0 }).to_be_bytes());
        if offset > 0 {
            packet[20..24].fill(fill);
        }
        seal_v4(&mut packet);
        packet
    };
    let v4 = ports([fragment(0, true, 1), fragment(1400, true, 2), fragment(2800, false, 3)]);
    let fragment6 = |offset: u16, more: u16, fill: u8| {
        let mut packet = udp("fd70:0:0:1::10", "fd70:0:0:2::10", (40_000, 53), 64);
        packet[5] += 8;
        packet[6] = 44;
        packet.splice(40..40, [&[17, 0][..], &(offset | more).to_be_bytes(), &[0, 0, 0, 7]].concat());
        if offset > 0 {
            packet[48..].fill(fill);
        }
        packet
    };
    let v6 = ports([fragment6(0, 1, 1), fragment6(1400, 1, 2), fragment6(2800, 0, 3)]);
    for ports in [v4, v6] {
        assert!(ports.iter().all(|port| *port == ports[0]), "{ports:?}");
    }
}

#[test]
fn f22_dscp_and_congestion_bits_are_copied_outward() {
    for underlay in Family::BOTH {
        let east = side(1, underlay);
        let v4 = with(udp("10.70.1.10", "10.70.2.10", (1, 2), 9), 1, 0xb9);
        let mut v6 = udp("fd70:0:0:1::10", "fd70:0:0:2::10", (1, 2), 9);
        v6[..2].copy_from_slice(&[0x6b, 0x90]);
        for packet in [v4, v6] {
            let wire = east.one(east.port("a"), plain(&sent_by(10, &packet))).unwrap();
            assert_all_right(&wire);
            let outer = &wire.bytes[14..];
            let class = if underlay == Family::V4 { outer[1] } else { outer[0] << 4 | outer[1] >> 4 };
            assert_eq!(class, 0xb9);
        }
    }
}

#[test]
fn f23_too_big_is_told_fragmented_inside_or_just_fits() {
    for (underlay, limit) in [(Family::V4, 1450_usize), (Family::V6, 1430)] {
        let (east, west) = (side(1, underlay), side(2, underlay));
        let [v4, v6] = [("10.70.1.10", "10.70.2.10", 28), ("fd70:0:0:1::10", "fd70:0:0:2::10", 48)]
            .map(|(from, to, headers)| move |len: usize| udp(from, to, (1, 2), len - headers));
        // (a) and (c)
        for (packet, kind, quote) in [(v4(1500), [3, 4], 548), (v6(1500), [2, 0], 1232)] {
            let out = east.run(east.port("a"), [plain(&sent_by(10, &packet))]);
            assert_eq!((out.len(), out[0].egress), (1, east.port("a")));
            assert_all_right(&out[0]);
            let error = &out[0].packet()[if packet[0] >> 4 == 4 { 20 } else { 40 }..];
            assert_eq!(error[..2], kind);
            assert_eq!(usize::from(u16::from_be_bytes([error[6], error[7]])), limit);
            assert_eq!(error[8..], packet[..quote]);
        }
        // (b)
        let packet = fragmentable(v4(1500));
        let out = east.run(east.port("a"), [plain(&sent_by(10, &packet))]);
        assert_eq!(out.len(), 2);
        for piece in &out {
            assert_eq!(piece.egress, Port::Uplink);
            assert_all_right(piece);
            assert!(piece.bytes.len() - 14 <= 1500);
            assert_eq!(west.one(Port::Uplink, plain(&piece.bytes)).unwrap().egress, west.port("a"));
        }
        assert_eq!(reassembled(&out), packet[20..]);
        assert_eq!(out[0].bytes[34..36], out[1].bytes[34..36]);
        // (d)
        for packet in [v4(limit), v6(limit)] {
            let wire = east.one(east.port("a"), plain(&sent_by(10, &packet))).unwrap();
            assert_eq!(wire.bytes.len() - 14, 1500);
        }
        assert_eq!(
            (east.dropped(DropReason::TooBig), west.drops().iter().map(|drop| drop.1).sum::<u64>()),
            (2, 0)
        );
    }
}

/// The payload of IPv4 fragments.
fn reassembled(pieces: &[Out]) -> Vec<u8> {
    let mut payload = Vec::new();
    for piece in pieces {
        let packet = piece.packet();
        let (header, flags) = (usize::from(packet[0] & 15) * 4, u16::from_be_bytes([packet[6], packet[7]]));
        let offset = usize::from(flags & 0x1fff) * 8;
        assert_eq!(offset, payload.len(), "in order, without holes");
        payload.extend(&packet[header..]);
    }
    payload
}

#[test]
fn f20_a_partial_inner_checksum_is_noted_at_its_new_place_and_the_outer_one_is_right_once_it_is_complete() {
    for underlay in Family::BOTH {
        let (east, west) = (side(1, underlay), side(2, underlay));
        for (packet, start, offset) in [
            (tcp("10.70.1.10", "10.70.2.10", (1, 2), 333), 34, 16),
            (udp("fd70:0:0:1::10", "fd70:0:0:2::10", (1, 2), 334), 54, 6),
        ] {
            let complete = packet.clone();
            let partial = Offload { checksum: Checksum::Partial { start, offset }, gso: None };
            let packet = with_pseudo(packet, usize::from(start) - 14, usize::from(offset));
            let wire = east.one(east.port("a"), frame_in_two(&sent_by(10, &packet), 120, partial)).unwrap();
            let moved = start + underlay.tunnel_overhead();
            assert_eq!(wire.offload.checksum, Checksum::Partial { start: moved, offset });
            // As it goes over a wire without any help.
            let mut bytes = wire.bytes.clone();
            let field = usize::from(moved + offset);
            let sum = !slow_sum(&[&bytes[usize::from(moved)..]]);
            bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
            let complete_wire = Out { bytes: bytes.clone(), offload: Offload::NONE, ..wire.clone() };
            assert_all_right(&complete_wire);
            let hop = if packet[0] >> 4 == 4 { 8 } else { 7 };
            assert_eq!(west.one(Port::Uplink, plain(&bytes)).unwrap().packet(), with(complete, hop, 62));
            // As it comes to a node on the same machine.
            let here = west.one(Port::Uplink, frame_in_two(&wire.bytes, 160, wire.offload)).unwrap();
            assert_eq!(here.offload, partial);
        }
    }
}

#[test]
fn f20_an_outer_checksum_that_comes_out_as_zero_is_sent_as_all_ones() {
    let (east, west) = (side(1, Family::V6), side(2, Family::V6));
    // Without an inner checksum the outer one can be made any number by two bytes of the payload.
    let mut packet = udp("10.70.1.10", "10.70.2.10", (1, 2), 64);
    packet[26..28].fill(0);
    let send = |packet: &[u8], split| {
        east.one(east.port("a"), frame_in_two(&sent_by(10, packet), split, Offload::NONE)).unwrap()
    };
    let sum = |wire: &Out| u16::from_be_bytes([wire.bytes[60], wire.bytes[61]]);
    packet[28..30].fill(0);
    let rest = sum(&send(&packet, usize::MAX));
    packet[28..30].copy_from_slice(&rest.to_be_bytes());
    for split in [usize::MAX, 60] {
        let wire = send(&packet, split);
        assert_eq!(sum(&wire), 0xffff);
        assert_all_right(&wire);
        assert_eq!(west.one(Port::Uplink, plain(&wire.bytes)).unwrap().egress, west.port("a"));
    }
}

/// A packet with the pseudo header's sum where its checksum was.
fn with_pseudo(mut packet: Vec<u8>, transport: usize, offset: usize) -> Vec<u8> {
    let len = (packet.len() - transport) as u32;
    let (addresses, protocol) = if packet[0] >> 4 == 4 {
        (packet[12..20].to_vec(), packet[9])
    } else {
        (packet[8..40].to_vec(), packet[6])
    };
    let sum = slow_sum(&[&addresses, &len.to_be_bytes(), &[0, 0, 0, protocol]]);
    packet[transport + offset..transport + offset + 2].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn without_a_next_hop_a_peer_cannot_be_sent_to_and_is_still_heard() {
    let snapshot = snapshot(1, Family::V4);
    let mut east = east();
    let mut slots = Slots::new(8);
    slots.take_up(&snapshot);
    let links = |next_hop| Links { host: HOST_MAC, source: UPLINK_MAC, next_hop };
    east.world = World::new(&snapshot, &slots, &links(NextHop::Each(Default::default()))).unwrap();
    let packet = sent_by(10, &udp("10.70.1.10", "10.70.2.10", (1, 2), 9));
    assert_eq!(east.one(east.port("a"), plain(&packet)), Err(DropReason::UnresolvedNextHop));
    let heard = tunnelled(&inner_to_east(&udp("10.70.2.10", "10.70.1.10", (1, 2), 9)));
    assert_eq!(east.one(Port::Uplink, plain(&heard)).unwrap().egress, east.port("a"));
    let known = NextHop::Each([(ip("192.0.2.2"), mac(99))].into());
    east.world = World::new(&snapshot, &slots, &links(known)).unwrap();
    assert_eq!(east.one(east.port("a"), plain(&packet)).unwrap().macs().0, mac(99));
}

#[test]
fn a_frame_without_room_before_it_is_dropped_by_name() {
    let east = east();
    let bytes = sent_by(10, &udp("10.70.1.10", "10.70.2.10", (1, 2), 9));
    let mut frames =
        east.run_frames(Port::Host, [plain(&ether(causeway_model::GATEWAY_MAC, HOST_MAC, &bytes[14..]))]);
    assert!(frames.pop().is_none(), "a fast pod's source is not the host's");
    let tight = causeway_datapath::Frame::new(tight(&bytes), 49, bytes.len(), 0).unwrap();
    assert_eq!(east.one(east.port("a"), tight), Err(DropReason::NoHeadroom));
}

fn tight(bytes: &[u8]) -> Bytes {
    Bytes::of(&[&[0; 49], bytes].concat())
}

#[test]
fn peers_without_a_family_have_none_of_it() {
    let mut one_family = snapshot(1, Family::V4);
    for peer in one_family.peers.values_mut() {
        peer.pod_prefixes.retain(IpNetwork::is_ipv4);
    }
    let east = Side::of(&one_family);
    let packet = sent_by(10, &udp("fd70:0:0:1::10", "fd70:0:0:2::10", (1, 2), 9));
    assert_eq!(
        east.one(east.port("a"), plain(&packet)).unwrap().egress,
        Port::Host,
        "the world, as far as anybody knows"
    );
}
