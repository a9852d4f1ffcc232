//! What the node's own stack hands over: sentences of "packet in, verdict, packet out".

mod rig;

use causeway_datapath::Port;
use causeway_model::{DropReason, GATEWAY_MAC};
use rig::*;

#[test]
fn the_node_and_its_kernel_pods_reach_everybody_and_nobody_else_is_believed() {
    let east = east();
    let a = Ok(east.port("a"));
    let spoofed = Err(DropReason::SpoofedAddress);
    let cases = [
        ("the node to its own pod", "192.0.2.1", "10.70.1.10", a),
        ("the same over IPv6", "2001:db8::1", "fd70:0:0:1::10", a),
        ("a probe from the overlay host address", "10.70.1.1", "10.70.1.10", a),
        ("a kernel pod to a fast pod", "10.70.1.20", "10.70.1.10", a),
        ("the world to a fast pod", "203.0.113.5", "10.70.1.10", a),
        ("the world to a fast pod over IPv6", "2001:db8:ffff::5", "fd70:0:0:1::10", a),
        ("another node, led to a fast pod by the node's stack", "192.0.2.2", "10.70.1.10", a),
        ("the same to a third node's pod", "192.0.2.2", "10.70.2.10", spoofed),
        ("the node to another node's pod", "10.70.1.1", "10.70.2.10", Ok(Port::Uplink)),
        ("a kernel pod to another node's pod", "10.70.1.20", "10.70.2.10", Ok(Port::Uplink)),
        ("the same over IPv6", "fd70:0:0:1::20", "fd70:0:0:2::10", Ok(Port::Uplink)),
        ("a kernel pod to another node", "10.70.1.20", "192.0.2.2", Ok(Port::Uplink)),
        ("the world to another node's pod", "203.0.113.5", "10.70.2.10", spoofed),
        ("another node's pod to a fast pod", "10.70.2.10", "10.70.1.10", spoofed),
        ("a fast pod, which has its own port", "10.70.1.11", "10.70.1.10", spoofed),
        ("nobody's address of our prefix", "10.70.1.99", "10.70.1.10", spoofed),
        ("loopback", "127.0.0.1", "10.70.1.10", spoofed),
        ("a group", "224.0.0.1", "10.70.1.10", spoofed),
        ("no source", "0.0.0.0", "10.70.1.10", spoofed),
        ("the gateway", "169.254.1.1", "10.70.1.10", spoofed),
        (
            "a kernel pod, which is the kernel's own affair",
            "192.0.2.1",
            "10.70.1.20",
            Err(DropReason::NoRoute),
        ),
        ("the world", "192.0.2.1", "203.0.113.5", Err(DropReason::NoRoute)),
    ];
    for (sentence, from, to, expected) in cases {
        let frame = ether(GATEWAY_MAC, HOST_MAC, &udp(from, to, (1, 2), 9));
        assert_eq!(east.one(Port::Host, plain(&frame)).map(|out| out.egress), expected, "{sentence}");
    }
}

#[test]
fn the_hop_limit_is_the_kernels_affair() {
    let (east, west) = (east(), west());
    for limit in [1, 64] {
        let packet = with(tcp("10.70.1.20", "10.70.1.10", (1, 2), 9), 8, limit);
        let out = east.one(Port::Host, plain(&ether(GATEWAY_MAC, HOST_MAC, &packet))).unwrap();
        assert_eq!((out.packet(), out.macs()), (&packet[..], (mac(10), GATEWAY_MAC)));
    }
    let packet = tcp("10.70.1.20", "10.70.2.10", (1, 2), 9);
    let out = east.one(Port::Host, plain(&ether(GATEWAY_MAC, HOST_MAC, &packet))).unwrap();
    assert_all_right(&out);
    assert_eq!(out.packet(), packet);
    assert_eq!(west.one(Port::Uplink, plain(&out.bytes)).unwrap().egress, west.port("a"));
}

#[test]
fn an_address_of_our_prefix_that_nobody_has_is_said_to_be_unreachable() {
    let east = east();
    let frame = ether(GATEWAY_MAC, HOST_MAC, &udp("192.0.2.1", "10.70.1.99", (1, 2), 9));
    let out = east.run(Port::Host, [plain(&frame)]).remove(0);
    assert_eq!((out.egress, out.macs()), (Port::Host, (HOST_MAC, GATEWAY_MAC)));
    assert_eq!(out.packet()[20..22], [3, 1]);
    assert_eq!(east.dropped(DropReason::NoSuchEndpoint), 1);
}

#[test]
fn what_the_kernel_says_to_its_neighbours_has_a_name() {
    let east = east();
    let packet = udp("192.0.2.1", "10.70.1.10", (1, 2), 9);
    let arp = [&[0xff; 6][..], &HOST_MAC.0, &[8, 6], &[0; 28]].concat();
    let other = ether(mac(9), HOST_MAC, &packet);
    assert_eq!(east.one(Port::Host, plain(&arp)), Err(DropReason::UnansweredNeighbour));
    assert_eq!(east.one(Port::Host, plain(&other)), Err(DropReason::NotForUs));
    assert_eq!(east.one(Port::Host, plain(&other[..9])), Err(DropReason::Malformed));
}
