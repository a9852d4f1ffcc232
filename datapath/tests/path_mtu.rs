//! Narrow paths: what a router says of a tunnel frame reaches the pod whose packet that was, and is remembered for a while.

mod rig;

use std::net::IpAddr;

use causeway_datapath::{Links, NextHop, Port, Slots, World};
use causeway_model::{DropReason, Family};
use rig::*;

/// A pod of each family, one behind node 2, and one behind node 3.
const PODS: [(&str, &str, &str); 2] =
    [("10.70.1.10", "10.70.2.10", "10.70.3.10"), ("fd70:0:0:1::10", "fd70:0:0:2::10", "fd70:0:0:3::10")];
const SECOND: u64 = 1_000_000_000;

/// Node 1 and the path's MTU that leaves 1,350 bytes inside.
fn cases() -> [(Family, Side, u32); 2] {
    let side = |underlay| Side::of(&snapshot(1, underlay));
    [(Family::V4, side(Family::V4), 1400), (Family::V6, side(Family::V6), 1420)]
}

/// What a router far away says of a packet of ours, of which it quotes so many bytes.
fn narrow(packet: &[u8], mtu: u32, quote: usize) -> Vec<u8> {
    let quote = &packet[..quote.min(packet.len())];
    let checksum = |mut message: Vec<u8>, pseudo: &[u8]| {
        let sum = !slow_sum(&[pseudo, &message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        message
    };
    let packet = if packet[0] >> 4 == 4 {
        let message = checksum([&[3, 4, 0, 0, 0, 0], &(mtu as u16).to_be_bytes()[..], quote].concat(), &[]);
        let len = (20 + message.len()) as u16;
        let mut header =
            [&[0x45, 0], &len.to_be_bytes()[..], &[0, 0, 0, 0, 60, 1, 0, 0, 198, 51, 100, 1]].concat();
        header.extend_from_slice(&packet[12..16]);
        seal_v4(&mut header);
        [header, message].concat()
    } else {
        let len = (8 + quote.len()) as u16;
        let IpAddr::V6(router) = ip("2001:db8:ff::1") else { unreachable!() };
        let pseudo =
            [&router.octets()[..], &packet[8..24], &[0, 0], &len.to_be_bytes(), &[0, 0, 0, 58]].concat();
        let message = checksum([&[2, 0, 0, 0][..], &mtu.to_be_bytes(), quote].concat(), &pseudo);
        let header =
            [&[0x60, 0, 0, 0][..], &len.to_be_bytes(), &[58, 60], &router.octets(), &packet[8..24]].concat();
        [header, message].concat()
    };
    ether(UPLINK_MAC, NEXT_HOP, &packet)
}

/// A packet of the pod of so many bytes.
fn packet(from: &str, to: &str, len: usize) -> Vec<u8> {
    udp(from, to, (1, 2), len - if from.contains(':') { 48 } else { 28 })
}

fn send(side: &Side, packet: &[u8]) -> Vec<Out> {
    side.run(side.port("a"), [plain(&sent_by(10, packet))])
}

/// The MTU that the pod is told, and the packet that this is about.
fn told(out: &[Out], side: &Side) -> (u32, Vec<u8>) {
    assert_eq!((out.len(), out[0].egress), (1, side.port("a")), "{out:?}");
    assert_all_right(&out[0]);
    let packet = out[0].packet();
    let (kind, error) = if packet[0] >> 4 == 4 { ([3, 4], &packet[20..]) } else { ([2, 0], &packet[40..]) };
    assert_eq!(error[..2], kind);
    (u32::from_be_bytes([0, 0, error[6], error[7]]), error[8..].to_vec())
}

#[test]
fn the_pod_hears_of_its_own_packet_and_the_path_is_remembered() {
    for (from, to, other) in PODS {
        for (underlay, side, mtu) in cases() {
            let long = packet(from, to, 1400);
            let wire = send(&side, &long);
            let out = side.run(Port::Uplink, [plain(&narrow(&wire[0].bytes[14..], mtu, 1000))]);
            let (says, quote) = told(&out, &side);
            assert_eq!(says, 1350, "{underlay}");
            let aged = with(long.clone(), if long[0] >> 4 == 4 { 8 } else { 7 }, 63);
            assert!(quote.len() >= 28 && aged.starts_with(&quote), "its own packet");
            // The next one is not sent in vain, and what fits is.
            assert_eq!(told(&send(&side, &long), &side).0, 1350);
            let wire = send(&side, &packet(from, to, 1350));
            assert_eq!((wire[0].egress, wire[0].bytes.len() as u32 - 14), (Port::Uplink, mtu));
            assert_eq!(
                send(&side, &packet(from, other, 1400))[0].egress,
                Port::Uplink,
                "another node's path"
            );
            if long[0] >> 4 == 4 {
                // What may be cut is, inside.
                let out = send(&side, &fragmentable(packet(from, to, 1400)));
                assert_eq!(out.len(), 2);
                assert!(
                    out.iter().all(|out| out.egress == Port::Uplink && out.bytes.len() - 14 <= mtu as usize)
                );
            }
        }
    }
}

#[test]
fn a_short_quote_is_enough_to_learn_and_too_little_to_tell() {
    for (_, side, mtu) in cases() {
        let (from, to, _) = PODS[0];
        let wire = send(&side, &packet(from, to, 1400));
        let headers = wire[0].outer - 22;
        let out = side.run(Port::Uplink, [plain(&narrow(&wire[0].bytes[14..], mtu, headers))]);
        assert!(out.is_empty(), "{out:?}");
        assert_eq!(told(&send(&side, &packet(from, to, 1400)), &side).0, 1350);
    }
}

#[test]
fn what_is_learned_while_a_world_is_made_is_known_there() {
    for (underlay, mut side, mtu) in cases() {
        let (from, to, _) = PODS[0];
        let long = packet(from, to, 1400);
        let wire = send(&side, &long);
        let world = without_the_first_peers(underlay, &side);
        side.run(Port::Uplink, [plain(&narrow(&wire[0].bytes[14..], mtu, 1000))]);
        side.world = world;
        assert_eq!(told(&send(&side, &long), &side).0, 1350);
    }
}

/// The next world, in which west has another number.
fn without_the_first_peers(underlay: Family, side: &Side) -> World {
    let mut snapshot = snapshot(1, underlay);
    snapshot.peers.retain(|id, _| id.name.as_str() == "west");
    let mut slots = Slots::new(8);
    slots.take_up(&snapshot);
    let links = Links { host: HOST_MAC, source: UPLINK_MAC, next_hop: NextHop::Same(NEXT_HOP) };
    let mut world = World::new(&snapshot, &slots, &links).expect("a world");
    world.inherit(&side.world);
    world
}

#[test]
fn what_was_learned_outlives_a_world_and_not_ten_minutes() {
    for (underlay, mut side, mtu) in cases() {
        let (from, to, _) = PODS[0];
        let long = packet(from, to, 1400);
        let wire = send(&side, &long);
        side.run(Port::Uplink, [plain(&narrow(&wire[0].bytes[14..], mtu, 1000))]);
        side.world = without_the_first_peers(underlay, &side);
        assert_eq!(told(&send(&side, &long), &side).0, 1350);
        side.world.forget_paths(side.now + 599 * SECOND);
        assert_eq!(told(&send(&side, &long), &side).0, 1350);
        side.world.forget_paths(side.now + 601 * SECOND);
        assert_eq!(send(&side, &long)[0].egress, Port::Uplink);
    }
}

#[test]
fn a_path_is_believed_within_bounds() {
    for (_, side, mtu) in cases() {
        let (from, to, _) = PODS[0];
        let wire = send(&side, &packet(from, to, 1400));
        let hear = |mtu| side.run(Port::Uplink, [plain(&narrow(&wire[0].bytes[14..], mtu, 1000))]);
        assert!(hear(1500).is_empty() && hear(9000).is_empty(), "what everything fits into is no news");
        assert_eq!(send(&side, &packet(from, to, 1400))[0].egress, Port::Uplink);
        hear(mtu);
        hear(mtu + 20);
        assert_eq!(told(&send(&side, &packet(from, to, 1400)), &side).0, 1350, "nothing grows again");
        // A router that does not say, and one that says nonsense.
        for nonsense in [68, 0] {
            assert_eq!(told(&hear(nonsense), &side).0, 1280);
        }
        assert_eq!(told(&send(&side, &packet(from, to, 1300)), &side).0, 1280);
        assert_eq!(send(&side, &packet(from, to, 1280))[0].egress, Port::Uplink);
    }
}

#[test]
fn what_is_said_of_no_frame_of_ours_changes_nothing() {
    let east = east();
    let (from, to, _) = PODS[0];
    let wire = send(&east, &packet(from, to, 1400));
    let outer = wire[0].bytes[14..].to_vec();
    let quoting = |packet: Vec<u8>| narrow(&packet, 1400, 1000);
    let changed = |at: usize, bytes: &[u8]| {
        let mut packet = outer.clone();
        packet[at..at + bytes.len()].copy_from_slice(bytes);
        seal_v4(&mut packet);
        packet
    };
    let good = quoting(outer.clone());
    let set = |at: usize, bytes: &[u8]| {
        let mut packet = good[14..].to_vec();
        packet[at..at + bytes.len()].copy_from_slice(bytes);
        seal_v4(&mut packet);
        [&good[..14], &packet].concat()
    };
    let elsewhere = {
        // For us, about a packet that somebody else has sent.
        let mut frame = quoting(changed(12, &[192, 0, 2, 9]));
        frame[30..34].copy_from_slice(&outer[12..16]);
        let mut packet = frame[14..].to_vec();
        seal_v4(&mut packet);
        [&frame[..14], &packet].concat()
    };
    let cases = [
        ("a wrong checksum", set(22, &[0xde, 0xad])),
        ("for somebody else", set(16, &[192, 0, 2, 9])),
        ("port unreachable", set(20, &[3, 3])),
        ("a fragment", set(6, &[0x20, 0])),
        ("about somebody else's packet", elsewhere),
        ("about a packet to a stranger", quoting(changed(16, &[203, 0, 113, 9]))),
        ("about another port", quoting(changed(22, &[0, 53]))),
        ("about a port that is none of ours", quoting(changed(20, &[0, 53]))),
        ("about another network", quoting(changed(32, &[9, 9, 9]))),
        ("about TCP", quoting(changed(9, &[6]))),
        ("cut short", good[..40].to_vec()),
    ];
    for (sentence, frame) in cases {
        assert_eq!(east.one(Port::Uplink, plain(&frame)), Err(DropReason::NotForUs), "{sentence}");
        assert_eq!(send(&east, &packet(from, to, 1400))[0].egress, Port::Uplink, "{sentence}");
    }
    // The checksums of what was changed are made right by `narrow`; the frame that all are made of is heard.
    assert_eq!(told(&east.run(Port::Uplink, [plain(&good)]), &east).0, 1350);
}
