//! What a pod sends: sentences of "packet in, verdict, packet out".

#![expect(clippy::unwrap_used, reason = "what cannot be written or read fails its test")]

mod rig;

use causeway_datapath::{Checksum, Offload, Port};
use causeway_model::{DropReason, GATEWAY_MAC, MacAddr};
use causeway_wire::{Arp, ArpOperation};
use rig::*;
use zerocopy::IntoBytes;

/// Of a packet from pod `a` on node 1: what became of it.
fn verdict(packet: &[u8]) -> Result<Port, DropReason> {
    let east = east();
    east.one(east.port("a"), plain(&sent_by(10, packet))).map(|out| out.egress)
}

#[test]
fn every_destination_has_its_way_and_every_refusal_its_name() {
    let b = east().port("b");
    let a4 = "10.70.1.10";
    let a6 = "fd70:0:0:1::10";
    let cases = [
        ("another fast pod of the node", udp(a4, "10.70.1.11", (1, 2), 9), Ok(b)),
        ("the same over IPv6", udp(a6, "fd70:0:0:1::11", (1, 2), 9), Ok(b)),
        ("a kernel pod of the node", udp(a4, "10.70.1.20", (1, 2), 9), Ok(Port::Host)),
        ("the same over IPv6", udp(a6, "fd70:0:0:1::20", (1, 2), 9), Ok(Port::Host)),
        ("the node's own address", udp(a4, "192.0.2.1", (1, 2), 9), Ok(Port::Host)),
        ("the node's overlay host address", udp(a4, "10.70.1.1", (1, 2), 9), Ok(Port::Host)),
        ("a pod of another node", udp(a4, "10.70.2.10", (1, 2), 9), Ok(Port::Uplink)),
        ("the same over IPv6", udp(a6, "fd70:0:0:2::10", (1, 2), 9), Ok(Port::Uplink)),
        ("another node's own address", udp(a4, "192.0.2.2", (1, 2), 9), Ok(Port::Uplink)),
        ("the same over IPv6", udp(a6, "2001:db8::2", (1, 2), 9), Ok(Port::Uplink)),
        ("the world", udp(a4, "203.0.113.5", (1, 2), 9), Ok(Port::Host)),
        ("the same over IPv6", udp(a6, "2001:db8:ffff::5", (1, 2), 9), Ok(Port::Host)),
        ("a group", udp(a4, "224.0.0.251", (1, 2), 9), Err(DropReason::NoRoute)),
        ("everybody", udp(a4, "255.255.255.255", (1, 2), 9), Err(DropReason::NoRoute)),
        ("the node's loopback", udp(a4, "127.0.0.1", (1, 2), 9), Err(DropReason::NoRoute)),
        ("a group over IPv6", udp(a6, "ff02::fb", (1, 2), 9), Err(DropReason::NoRoute)),
        ("a link-local stranger", udp(a6, "fe80::2", (1, 2), 9), Err(DropReason::NoRoute)),
        ("the gateway, by a port", udp(a4, "169.254.1.1", (1, 2), 9), Err(DropReason::NoRoute)),
        ("the node's tunnel port", udp(a4, "192.0.2.1", (1, PORT), 30), Err(DropReason::TunnelPortFromPod)),
        (
            "another node's tunnel port",
            udp(a4, "192.0.2.2", (1, PORT), 30),
            Err(DropReason::TunnelPortFromPod),
        ),
        ("the same over IPv6", udp(a6, "2001:db8::2", (1, PORT), 30), Err(DropReason::TunnelPortFromPod)),
        (
            "a node's tunnel port by its overlay host address",
            udp(a4, "10.70.2.1", (1, PORT), 30),
            Err(DropReason::TunnelPortFromPod),
        ),
        (
            "the same port of a pod is the pod's affair",
            udp(a4, "10.70.2.10", (1, PORT), 30),
            Ok(Port::Uplink),
        ),
        ("the same port over TCP", tcp(a4, "192.0.2.2", (1, PORT), 30), Ok(Port::Uplink)),
        ("another pod's source", udp("10.70.1.11", "10.70.2.10", (1, 2), 9), Err(DropReason::SpoofedAddress)),
        ("a node's source", udp("192.0.2.1", "10.70.2.10", (1, 2), 9), Err(DropReason::SpoofedAddress)),
        (
            "another pod's source over IPv6",
            udp("fd70:0:0:1::11", "fd70:0:0:2::10", (1, 2), 9),
            Err(DropReason::SpoofedAddress),
        ),
        ("no source at all", udp("0.0.0.0", "10.70.2.10", (1, 2), 9), Err(DropReason::SpoofedAddress)),
        (
            "a link-local source with a payload",
            udp("fe80::7", "fd70:0:0:2::10", (1, 2), 9),
            Err(DropReason::SpoofedAddress),
        ),
        (
            "a wrong header checksum",
            {
                let mut p = udp(a4, "10.70.2.10", (1, 2), 9);
                p[10] ^= 1;
                p
            },
            Err(DropReason::Malformed),
        ),
        (
            "more length than bytes",
            with(udp(a4, "10.70.2.10", (1, 2), 9), 3, 200),
            Err(DropReason::Malformed),
        ),
        (
            "more length than bytes over IPv6",
            with(udp(a6, "fd70:0:0:2::10", (1, 2), 9), 5, 200),
            Err(DropReason::Malformed),
        ),
        ("a header of 16 bytes", with(udp(a4, "10.70.2.10", (1, 2), 9), 0, 0x44), Err(DropReason::Malformed)),
        ("half a header", udp(a4, "10.70.2.10", (1, 2), 9)[..10].to_vec(), Err(DropReason::Malformed)),
    ];
    for (sentence, packet, expected) in cases {
        assert_eq!(verdict(&packet), expected, "{sentence}");
    }
}

#[test]
fn what_the_frame_itself_must_be() {
    let east = east();
    let packet = udp("10.70.1.10", "10.70.2.10", (1, 2), 9);
    let cases = [
        ("another pod's hardware address", ether(GATEWAY_MAC, mac(11), &packet), DropReason::SpoofedMac),
        ("not for the gateway", ether(mac(11), mac(10), &packet), DropReason::NotForUs),
        ("for everybody", ether(MacAddr::BROADCAST, mac(10), &packet), DropReason::NotForUs),
        ("13 bytes", vec![0; 13], DropReason::Malformed),
        (
            "of another virtual network",
            [&sent_by(10, &packet)[..12], &[0x81, 0, 0, 5, 8, 0], &packet].concat(),
            DropReason::NotForUs,
        ),
        (
            "LLDP",
            [&sent_by(10, &packet)[..12], &[0x88, 0xcc], &packet].concat(),
            DropReason::UnhandledEtherType,
        ),
    ];
    for (sentence, bytes, reason) in cases {
        assert_eq!(east.one(east.port("a"), plain(&bytes)), Err(reason), "{sentence}");
    }
    let counted = east.worker.borrow().tally().endpoint(east.slot("a"));
    assert_eq!((counted.from_pod.packets, counted.drops.values().map(|count| count.packets).sum()), (6, 6));
    assert_eq!(counted.drops[&DropReason::SpoofedMac].bytes, 14 + packet.len() as u64);
    let nobody = Port::Endpoint(7);
    assert_eq!(east.one(nobody, plain(&sent_by(10, &packet))), Err(DropReason::NoSuchPort));
}

#[test]
fn f19_a_priority_tag_is_taken_off_and_never_carried() {
    let east = east();
    for packet in
        [udp("10.70.1.10", "10.70.2.10", (1, 2), 9), udp("fd70:0:0:1::10", "fd70:0:0:2::10", (1, 2), 9)]
    {
        let frame = sent_by(10, &packet);
        let tagged = [&frame[..12], &[0x81, 0, 0xe0, 0], &frame[12..]].concat();
        let [bare, taken] = [&frame, &tagged].map(|frame| east.one(east.port("a"), plain(frame)).unwrap());
        assert_eq!(bare, taken);
    }
    let arp = [
        &[0xff; 6][..],
        &mac(10).0,
        &[0x81, 0, 0, 0, 8, 6],
        &[0, 1, 8, 0, 6, 4, 0, 1],
        &mac(10).0,
        &[10, 70, 1, 10],
        &[0; 6],
        &[169, 254, 1, 1],
    ]
    .concat();
    assert_eq!(east.one(east.port("a"), plain(&arp)).unwrap().egress, east.port("a"), "the gateway answers");
}

#[test]
fn a_delivered_packet_lost_one_hop_its_padding_and_its_old_hardware_addresses_and_nothing_else() {
    let east = east();
    for packet in
        [tcp("10.70.1.10", "10.70.1.11", (1, 2), 3), tcp("fd70:0:0:1::10", "fd70:0:0:1::11", (1, 2), 3)]
    {
        let padded = [sent_by(10, &packet), vec![0xee; 9]].concat();
        let out = east.one(east.port("a"), plain(&padded)).unwrap();
        assert_eq!((out.egress, out.macs()), (east.port("b"), (mac(11), GATEWAY_MAC)));
        assert_right(out.packet());
        let hop = if packet[0] >> 4 == 4 { 8 } else { 7 };
        assert_eq!(out.packet(), with(packet, hop, 63));
    }
}

#[test]
fn towards_the_host_the_nodes_own_stack_counts_the_hop() {
    let east = east();
    let packet = with(udp("10.70.1.10", "203.0.113.5", (1, 2), 3), 8, 1);
    let out = east.one(east.port("a"), plain(&sent_by(10, &packet))).unwrap();
    assert_eq!((out.egress, out.macs()), (Port::Host, (HOST_MAC, GATEWAY_MAC)));
    assert_eq!(out.packet(), packet);
}

fn arp(operation: ArpOperation, sender: (MacAddr, &str), target: &str, ethernet_source: MacAddr) -> Vec<u8> {
    let arp =
        Arp::new(operation, (sender.0, sender.1.parse().unwrap()), (MacAddr::ZERO, target.parse().unwrap()));
    [&MacAddr::BROADCAST.0[..], &ethernet_source.0, &[8, 6], arp.as_bytes(), &[0; 18]].concat()
}

#[test]
fn f26_arp_is_answered_for_the_gateway_and_for_nobody_else() {
    let east = east();
    let request = ArpOperation::REQUEST;
    let answered = [
        ("the gateway", (mac(10), "10.70.1.10")),
        ("the gateway, by a pod that probes before it has an address", (mac(10), "0.0.0.0")),
    ];
    for (sentence, asker) in answered {
        let out =
            east.one(east.port("a"), plain(&arp(request, asker, "169.254.1.1", mac(10)))).expect(sentence);
        assert_eq!((out.egress, out.macs()), (east.port("a"), (mac(10), GATEWAY_MAC)), "{sentence}");
        assert_eq!(out.bytes.len(), 42, "{sentence}");
        let (reply, _) = Arp::split(&out.bytes[14..]).unwrap();
        assert_eq!(reply.operation(), ArpOperation::REPLY);
        assert_eq!((reply.sender_mac(), reply.sender_ip()), (GATEWAY_MAC, "169.254.1.1".parse().unwrap()));
        assert_eq!((reply.target_mac(), reply.target_ip()), (mac(10), asker.1.parse().unwrap()));
    }
    let own = (mac(10), "10.70.1.10");
    let silent = [
        (
            "a probe for the pod's own address",
            request,
            (mac(10), "0.0.0.0"),
            "10.70.1.10",
            mac(10),
            DropReason::UnansweredNeighbour,
        ),
        ("an announcement", request, own, "10.70.1.10", mac(10), DropReason::UnansweredNeighbour),
        ("another pod", request, own, "10.70.1.11", mac(10), DropReason::UnansweredNeighbour),
        (
            "a reply for the gateway",
            ArpOperation::REPLY,
            own,
            "169.254.1.1",
            mac(10),
            DropReason::UnansweredNeighbour,
        ),
        (
            "in another pod's name",
            request,
            (mac(10), "10.70.1.11"),
            "169.254.1.1",
            mac(10),
            DropReason::SpoofedAddress,
        ),
        (
            "as the gateway",
            ArpOperation::REPLY,
            (mac(10), "169.254.1.1"),
            "10.70.1.10",
            mac(10),
            DropReason::SpoofedAddress,
        ),
        (
            "with another hardware address inside",
            request,
            (mac(11), "10.70.1.10"),
            "169.254.1.1",
            mac(10),
            DropReason::SpoofedMac,
        ),
        (
            "with another hardware address outside",
            request,
            own,
            "169.254.1.1",
            mac(11),
            DropReason::SpoofedMac,
        ),
    ];
    for (sentence, operation, sender, target, ethernet, reason) in silent {
        assert_eq!(
            east.one(east.port("a"), plain(&arp(operation, sender, target, ethernet))),
            Err(reason),
            "{sentence}"
        );
    }
}

/// A solicitation, with the asker's hardware address where it has an address.
fn solicitation(from: &str, to: &str, target: &str, hop_limit: u8) -> Vec<u8> {
    let [from6, to6, target6]: [std::net::Ipv6Addr; 3] = [from, to, target].map(|text| text.parse().unwrap());
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target6.octets());
    if !from6.is_unspecified() {
        message.extend([1, 1]);
        message.extend(mac(10).0);
    }
    let pseudo =
        [&from6.octets()[..], &to6.octets(), &(message.len() as u32).to_be_bytes(), &[0, 0, 0, 58]].concat();
    let sum = !slow_sum(&[&pseudo, &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let header =
        [&[0x60, 0, 0, 0, 0, message.len() as u8, 58, hop_limit][..], &from6.octets(), &to6.octets()]
            .concat();
    ether(MacAddr::for_multicast(to6), mac(10), &[header, message].concat())
}

#[test]
fn f26_neighbour_solicitations_are_answered_for_the_gateway_and_for_nobody_else() {
    let east = east();
    let group = "ff02::1:ff00:1";
    for (asker, to, to_mac) in [
        ("fd70:0:0:1::10", "fd70:0:0:1::10", mac(10)),
        ("fe80::42", "fe80::42", mac(10)),
        ("::", "ff02::1", MacAddr([0x33, 0x33, 0, 0, 0, 1])),
    ] {
        let out = east.one(east.port("a"), plain(&solicitation(asker, group, "fe80::1", 255))).expect(asker);
        assert_eq!((out.egress, out.macs()), (east.port("a"), (to_mac, GATEWAY_MAC)));
        assert_right(out.packet());
        let packet = out.packet();
        assert_eq!(
            (packet[7], packet[40], packet[44] & 0xa0),
            (255, 136, 0xa0),
            "hop limit, type, router and override"
        );
        assert_eq!(packet[44] & 0x40 != 0, asker != "::", "solicited");
        assert_eq!(packet[24..40], to.parse::<std::net::Ipv6Addr>().unwrap().octets());
        assert_eq!(packet[48..64], "fe80::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        assert_eq!(packet[64..], [&[2, 1][..], &GATEWAY_MAC.0].concat());
    }
    let silent = [
        (
            "a pod that looks for its own address before it takes it",
            solicitation("::", "ff02::1:ff00:10", "fd70:0:0:1::10", 255),
            DropReason::UnansweredNeighbour,
        ),
        (
            "another pod",
            solicitation("fd70:0:0:1::10", "ff02::1:ff00:11", "fd70:0:0:1::11", 255),
            DropReason::UnansweredNeighbour,
        ),
        (
            "one that was forwarded",
            solicitation("fd70:0:0:1::10", group, "fe80::1", 254),
            DropReason::UnansweredNeighbour,
        ),
        (
            "in another pod's name",
            solicitation("fd70:0:0:1::11", group, "fe80::1", 255),
            DropReason::SpoofedAddress,
        ),
        (
            "with a wrong checksum",
            {
                let mut f = solicitation("fd70:0:0:1::10", group, "fe80::1", 255);
                f[57] ^= 1;
                f
            },
            DropReason::UnansweredNeighbour,
        ),
    ];
    for (sentence, frame, reason) in silent {
        assert_eq!(east.one(east.port("a"), plain(&frame)), Err(reason), "{sentence}");
    }
}

#[test]
fn a_pod_reports_its_groups_unheard_and_is_not_called_a_spoofer() {
    let east = east();
    // Hop-by-hop options with a router alert, then a version 2 report (RFC 3810 §5.2) from the link-local address.
    let mut packet = vec![0x60, 0, 0, 0, 0, 16, 0, 1];
    packet.extend("fe80::42".parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet.extend("ff02::16".parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet.extend([58, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0, 0, 0, 0, 0]);
    let frame = ether(MacAddr([0x33, 0x33, 0, 0, 0, 0x16]), mac(10), &packet);
    assert_eq!(east.one(east.port("a"), plain(&frame)), Err(DropReason::UnansweredNeighbour));
}

#[test]
fn the_gateway_answers_a_ping() {
    let east = east();
    for (from, to) in [("10.70.1.10", "169.254.1.1"), ("fd70:0:0:1::10", "fe80::1")] {
        let out = east.one(east.port("a"), plain(&sent_by(10, &ping(from, to, 56)))).unwrap();
        assert_eq!((out.egress, out.macs()), (east.port("a"), (mac(10), GATEWAY_MAC)));
        assert_right(out.packet());
        let mut back = ping(to, from, 56);
        let at = if back[0] >> 4 == 4 { 20 } else { 40 };
        back[at] = if back[0] >> 4 == 4 { 0 } else { 129 };
        assert_eq!(out.packet()[at + 4..], back[at + 4..]);
        assert_eq!(out.packet()[at], back[at]);
    }
}

/// The ICMP error a pod gets, and how it was counted.
fn answer(side: &Side, bytes: &[u8], reason: DropReason) -> Out {
    let before = side.dropped(reason);
    let mut out = side.run(side.port("a"), [plain(bytes)]);
    assert_eq!((out.len(), side.dropped(reason)), (1, before + 1), "{reason}");
    let out = out.remove(0);
    assert_eq!((out.egress, out.macs()), (side.port("a"), (mac(10), GATEWAY_MAC)));
    assert_all_right(&out);
    out
}

#[test]
fn a_packet_at_its_last_hop_is_told_of_by_the_nodes_overlay_host_address() {
    let east = east();
    let packet = with(udp("10.70.1.10", "10.70.2.10", (1, 2), 900), 8, 1);
    let out = answer(&east, &sent_by(10, &packet), DropReason::HopLimit);
    let error = out.packet();
    assert_eq!(error[12..20], [10, 70, 1, 1, 10, 70, 1, 10]);
    assert_eq!((error[20], error[21]), (11, 0));
    assert_eq!(error.len(), 576);
    assert_eq!(error[28..], packet[..576 - 28]);

    let packet = with(udp("fd70:0:0:1::10", "fd70:0:0:1::11", (1, 2), 900), 7, 1);
    let out = answer(&east, &sent_by(10, &packet), DropReason::HopLimit);
    let error = out.packet();
    assert_eq!(error[8..24], "fd70:0:0:1::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    assert_eq!((error[40], error[41]), (3, 0));
    assert_eq!(error[48..], packet);
}

#[test]
fn an_address_that_nobody_has_any_more_is_said_to_be_unreachable() {
    let east = east();
    let out =
        answer(&east, &sent_by(10, &udp("10.70.1.10", "10.70.1.99", (1, 2), 9)), DropReason::NoSuchEndpoint);
    assert_eq!(out.packet()[20..22], [3, 1]);
    let out = answer(
        &east,
        &sent_by(10, &udp("fd70:0:0:1::10", "fd70:0:0:1::99", (1, 2), 9)),
        DropReason::NoSuchEndpoint,
    );
    assert_eq!(out.packet()[40..42], [1, 0]);
}

#[test]
fn errors_are_never_answered_and_others_only_so_often() {
    let mut east = east();
    let unreachable = {
        let mut packet = with(ping("10.70.1.10", "10.70.2.10", 40), 8, 1);
        packet[20] = 3;
        packet
    };
    assert_eq!(east.one(east.port("a"), plain(&sent_by(10, &unreachable))), Err(DropReason::HopLimit));
    let late = sent_by(10, &with(udp("10.70.1.10", "10.70.2.10", (1, 2), 9), 8, 1));
    let answers =
        |side: &Side| (0..100).map(|_| side.run(side.port("a"), [plain(&late)]).len()).sum::<usize>();
    assert_eq!(answers(&east), 50, "a burst");
    east.now += 10_000_000;
    assert_eq!(answers(&east), 10, "ten milliseconds' worth");
    let big = sent_by(10, &udp("10.70.1.10", "10.70.2.10", (1, 2), 1472));
    assert_eq!(
        east.run(east.port("a"), [plain(&big)]).len(),
        1,
        "traceroutes do not use up what path MTU discovery needs"
    );
}

#[test]
fn a_pods_claim_that_its_checksum_was_verified_is_not_handed_on() {
    let east = east();
    let verified = Offload { checksum: Checksum::Verified, gso: None };
    let bytes = sent_by(10, &udp("10.70.1.10", "10.70.1.11", (1, 2), 9));
    let out = east.one(east.port("a"), frame_in_two(&bytes, bytes.len(), verified)).unwrap();
    assert_eq!(out.offload, Offload::NONE);
}

#[test]
fn ports_are_not_hidden_behind_a_tiny_first_fragment() {
    // An IPv6 first fragment that ends before its UDP header does.
    let whole = udp("fd70:0:0:1::10", "2001:db8::2", (1, PORT), 40);
    let mut packet = whole[..40].to_vec();
    packet[4..6].copy_from_slice(&10_u16.to_be_bytes());
    packet[6] = 44;
    packet.extend([17, 0, 0, 1, 0, 0, 0, 9, whole[40], whole[41]]);
    assert_eq!(verdict(&packet), Err(DropReason::Malformed));
}
