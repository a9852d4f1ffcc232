//! What must not pass: each refusal reaches nobody and is counted under its own name.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::lab::{Lab, LabNode, LabPod, Namespace, UNDERLAY};
use causeway_model::{Dataplane, Delta, DropReason, MacAddr};

/// What a node has dropped for a reason.
fn dropped(node: &mut LabNode, reason: DropReason) -> u64 {
    let drops = node.on(Dataplane::counters).unwrap().drops;
    drops.get(&reason).map_or(0, |count| count.packets)
}

/// Does something and expects drops of one reason, and of no other.
fn refused(node: &mut LabNode, reason: DropReason, what: impl FnOnce()) {
    let before = node.on(Dataplane::counters).unwrap().drops;
    what();
    let mut risen = || -> Vec<_> {
        let after = node.on(Dataplane::counters).unwrap().drops;
        after.iter().filter(|(key, count)| before.get(key) != Some(count)).map(|(key, _)| *key).collect()
    };
    // What was sent is received by and by.
    let until = Instant::now() + Duration::from_secs(3);
    while risen().is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(risen(), [reason]);
}

fn send(from: &Namespace, source: IpAddr, to: (IpAddr, u16), bytes: &[u8]) {
    from.inside(|| {
        let socket = UdpSocket::bind((source, 0)).unwrap();
        socket.send_to(bytes, SocketAddr::from(to)).unwrap();
    });
}

/// An IPv4 packet with a UDP datagram to port 7000; no UDP checksum.
fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = |n: usize| u16::try_from(n + payload.len()).unwrap().to_be_bytes();
    let mut header = [0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[2..4].copy_from_slice(&length(28));
    header[12..16].copy_from_slice(&source.octets());
    header[16..].copy_from_slice(&destination.octets());
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    header[10..12].copy_from_slice(&(!folded).to_be_bytes());
    let mut packet = header.to_vec();
    packet.extend([0x1b, 0x58, 0x1b, 0x58]);
    packet.extend(length(8));
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// A tunnel frame around a packet.
fn tunnel(vxlan: [u8; 8], to: MacAddr, ether_type: u16, packet: &[u8]) -> Vec<u8> {
    [&vxlan[..], &to.0, &[2, 0, 0, 0, 0, 9], &ether_type.to_be_bytes(), packet].concat()
}

/// The header with our network identifier, 51717.
const OURS: [u8; 8] = [8, 0, 0, 0, 0, 0xca, 0x05, 0];

/// What a pod hears on port 7000.
fn ear(pod: &LabPod) -> UdpSocket {
    let socket = pod.ns.inside(|| UdpSocket::bind((pod.v4(), 7000))).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket
}

fn hears(ear: &UdpSocket, payload: &[u8]) -> bool {
    let mut buffer = [0; 64];
    ear.recv(&mut buffer).is_ok_and(|length| &buffer[..length] == payload)
}

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => panic!("{v6}"),
    }
}

#[test]
fn a_pod_sends_as_itself_only() {
    let mut lab = Lab::new(2, &UNDERLAY);
    let (a, a2) = (lab.add_pod(0), lab.add_pod(0));
    let node = lab.nodes[0].underlay(0);
    let lab_node = &mut lab.nodes[0];
    // Another pod's address, a stranger's, and an IPv6 one.
    for (length, address) in
        [(32, a2.v4()), (32, "10.70.2.3".parse().unwrap()), (128, "fd70:0:0:9::9".parse().unwrap())]
    {
        a.ns.run(&format!(
            "ip addr add {address}/{length} dev eth0 {}",
            if length == 128 { "nodad" } else { "" }
        ));
        let to = if length == 32 { node } else { "fd70:0:0:1::1".parse().unwrap() };
        refused(lab_node, DropReason::SpoofedAddress, || {
            assert!(!a.ns.ping(to, &format!("-I {address}")));
        });
        a.ns.run(&format!("ip addr del {address}/{length} dev eth0"));
    }
    for to in [node, lab_node.overlay(causeway_model::Family::V4), "192.0.2.2".parse().unwrap()] {
        refused(lab_node, DropReason::TunnelPortFromPod, || send(&a.ns, a.v4(), (to, 4789), b"hello"));
    }
    refused(lab_node, DropReason::TunnelPortFromPod, || {
        send(&a.ns, a.v6(), ("2001:db8::2".parse().unwrap(), 4789), b"hello");
    });
    refused(lab_node, DropReason::NoSuchEndpoint, || {
        send(&a.ns, a.v4(), ("10.70.1.200".parse().unwrap(), 9), b"hello");
    });
    assert!(a.ns.ping(a2.v4(), ""), "the pod itself is well");
    a.ns.run("ip link set eth0 address 02:00:00:00:00:99");
    a.ns.run("ip neigh replace 169.254.1.1 lladdr 02:ca:5e:00:00:01 dev eth0 nud permanent");
    refused(lab_node, DropReason::SpoofedMac, || send(&a.ns, a.v4(), (node, 9), b"hello"));
}

#[test]
fn a_link_without_an_endpoint_is_heard_by_nobody() {
    let mut lab = Lab::new(1, &UNDERLAY);
    let a = lab.add_pod(0);
    let node = lab.nodes[0].underlay(0);
    lab.nodes[0].apply(Delta::EndpointGone(a.endpoint.key.clone()));
    refused(&mut lab.nodes[0], DropReason::NoSuchPort, || send(&a.ns, a.v4(), (node, 9), b"hello"));
}

#[test]
fn the_tunnel_takes_only_what_its_sender_may_send() {
    let mut lab = Lab::new(2, &UNDERLAY);
    let (a, b) = (lab.add_pod(0), lab.add_pod(1));
    let ear = ear(&a);
    let (sender, to) = (lab.nodes[1].underlay(0), (lab.nodes[0].underlay(0), 4789));
    let mac = lab.nodes[0].snapshot.settings.node.vtep_mac;
    let good = ipv4(v4(b.v4()), v4(a.v4()), b"good");
    let frame = |vxlan| tunnel(vxlan, mac, 0x0800, &good);
    let [own, other] = &mut lab.nodes[..] else { unreachable!("two nodes") };
    let from = |bytes: Vec<u8>| move |ns: &Namespace| send(ns, sender, to, &bytes);

    for vxlan in [OURS, [0xff, 0, 0, 0, 0, 0xca, 0x05, 0], [8, 0xab, 0xcd, 0xef, 0, 0xca, 0x05, 0x55]] {
        from(frame(vxlan))(&other.ns);
        assert!(hears(&ear, b"good"), "reserved bits are ignored: {vxlan:x?}");
    }
    let inner_host = ipv4(v4(sender), v4(a.v4()), b"good");
    from(tunnel(OURS, mac, 0x0800, &inner_host))(&other.ns);
    assert!(hears(&ear, b"good"), "a node's own address is its to send from");

    let foreign = ipv4([10, 70, 7, 7].into(), v4(a.v4()), b"bad");
    let own_pod = ipv4(v4(a.v4()), v4(a.v4()), b"bad");
    let v6 = [&[0x60, 0, 0, 0, 0, 0, 59, 64][..], &[0xfd, 0x71], &[0; 14], &[0xfd, 0x70], &[0; 14]].concat();
    for (reason, bytes) in [
        (DropReason::VxlanWithoutVni, frame([0, 0, 0, 0, 0, 0xca, 0x05, 0])),
        (DropReason::VxlanWithoutVni, frame([0xf7, 0, 0, 0, 0, 0xca, 0x05, 0])),
        (DropReason::NoSuchTunnel, frame([8, 0, 0, 0, 0, 0x10, 0x01, 0])),
        (DropReason::NoSuchTunnel, frame([8, 0, 0, 0, 0, 0, 0, 0])),
        (DropReason::ForeignInnerSource, tunnel(OURS, mac, 0x0800, &foreign)),
        (DropReason::ForeignInnerSource, tunnel(OURS, mac, 0x0800, &own_pod)),
        (DropReason::ForeignInnerSource, tunnel(OURS, mac, 0x86dd, &v6)),
        (DropReason::InnerVlan, tunnel(OURS, mac, 0x8100, &[&[0, 5, 8, 0], &good[..]].concat())),
        (DropReason::InnerVlan, tunnel(OURS, mac, 0x8100, &[&[0, 0, 8, 0], &good[..]].concat())),
        (DropReason::InnerNotIp, tunnel(OURS, mac, 0x0806, &[0; 28])),
        (DropReason::Malformed, vec![]),
        (DropReason::Malformed, [&OURS[..], &[0; 13]].concat()),
        (DropReason::Malformed, tunnel(OURS, mac, 0x0800, &good[..10])),
        (DropReason::Malformed, tunnel(OURS, mac, 0x86dd, &v6[..30])),
    ] {
        refused(own, reason, || from(bytes)(&other.ns));
        assert!(!hears(&ear, b"bad"), "{reason}");
        from(frame(OURS))(&other.ns);
        assert!(hears(&ear, b"good"), "the next good packet is not lost after {reason}");
    }
    let big = ipv4(v4(b.v4()), v4(a.v4()), &[7; 2000]);
    refused(own, DropReason::OuterFragment, || from(tunnel(OURS, mac, 0x0800, &big))(&other.ns));
}

#[test]
fn a_stranger_is_no_sender() {
    let mut lab = Lab::new(3, &UNDERLAY);
    let (a, b) = (lab.add_pod(0), lab.add_pod(1));
    let ear = ear(&a);
    let to = (lab.nodes[0].underlay(0), 4789);
    let mac = lab.nodes[0].snapshot.settings.node.vtep_mac;
    let frame = tunnel(OURS, mac, 0x0800, &ipv4(v4(b.v4()), v4(a.v4()), b"hello"));
    let stranger = Namespace::new("stranger");
    lab.switch.run(&format!("ip link add px type veth peer name eth0 netns {}", stranger.name));
    lab.switch.run("ip link set px master br0 up");
    stranger.run("ip addr add 192.0.2.99/24 dev eth0");
    stranger.run("ip link set eth0 up");
    refused(&mut lab.nodes[0], DropReason::UnknownSender, || {
        send(&stranger, [192, 0, 2, 99].into(), to, &frame);
    });
    // A node whose prefixes are others, and one that was removed a moment ago.
    let third = lab.nodes[2].snapshot.settings.node.id.clone();
    let [own, _, other] = &mut lab.nodes[..] else { unreachable!("three nodes") };
    refused(own, DropReason::ForeignInnerSource, || send(&other.ns, [192, 0, 2, 3].into(), to, &frame));
    own.apply(Delta::PeerGone(third));
    refused(own, DropReason::UnknownSender, || send(&other.ns, [192, 0, 2, 3].into(), to, &frame));
    assert!(!hears(&ear, b"hello"));
}

#[test]
fn another_tunnel_of_the_node_is_left_alone() {
    let mut lab = Lab::new(2, &UNDERLAY);
    for (own, remote) in [(0, 2), (1, 1)] {
        let node = &mut lab.nodes[own];
        node.ns.run(&format!(
            "ip link add other type vxlan id 555000 dstport 4789 remote 192.0.2.{remote} dev eth0"
        ));
        node.ns.run(&format!("ip addr add 172.30.0.{}/24 dev other", own + 1));
        node.ns.run("ip link set other up");
    }
    assert!(lab.nodes[0].ns.ping("172.30.0.2".parse().unwrap(), ""), "before it is known to us");
    lab.nodes[0].mend();
    let before = dropped(&mut lab.nodes[0], DropReason::NoSuchTunnel);
    assert!(lab.nodes[0].ns.ping("172.30.0.2".parse().unwrap(), ""));
    assert_eq!(dropped(&mut lab.nodes[0], DropReason::NoSuchTunnel), before, "and it counts no longer");
}

#[test]
fn counts_go_on_when_the_table_is_loaded_again() {
    let mut lab = Lab::new(1, &UNDERLAY);
    let a = lab.add_pod(0);
    let to = ("192.0.2.1".parse().unwrap(), 4789);
    for count in 1..=3 {
        send(&a.ns, a.v4(), to, b"hello");
        let node = &mut lab.nodes[0];
        assert_eq!(dropped(node, DropReason::TunnelPortFromPod), count);
        match count {
            1 => drop(node.ns.run("nft delete table inet causeway")),
            _ => node.restart(),
        }
        node.apply_whole();
        node.mend();
    }
}

#[test]
fn a_kernel_that_cannot_ignore_reserved_bits_says_so() {
    let mut lab = Lab::bare(2, &UNDERLAY);
    lab.nodes[1].apply_whole();
    // A device that ignores them is there already, from an agent that was not masked.
    lab.nodes[0].apply_whole();
    let strict = |limits: &[String]| limits.iter().any(|limit| limit.contains("strict reserved bits"));
    assert!(!strict(&lab.nodes[0].dataplane.limits()));
    lab.nodes[0].restart_masked();
    lab.nodes[0].apply_whole();
    let limits = lab.nodes[0].dataplane.limits();
    assert!(strict(&limits), "{limits:?}");
    assert_eq!(lab.nodes[0].mend(), Vec::<String>::new());
    let (a, b) = (lab.add_pod(0), lab.add_pod(1));
    assert!(a.ns.ping(b.v4(), ""), "everything else works");
    let ear = ear(&a);
    let [own, other] = &mut lab.nodes[..] else { unreachable!("two nodes") };
    let mac = own.snapshot.settings.node.vtep_mac;
    let packet = ipv4(v4(b.v4()), v4(a.v4()), b"bits");
    let frame = tunnel([8, 0xab, 0xcd, 0xef, 0, 0xca, 0x05, 0x55], mac, 0x0800, &packet);
    let to = (own.underlay(0), 4789);
    refused(own, DropReason::KernelMalformed, || send(&other.ns, [192, 0, 2, 2].into(), to, &frame));
    assert!(!hears(&ear, b"bits"));
}

#[test]
fn over_ipv6_the_sender_check_is_the_same() {
    let mut lab = Lab::new(3, &[UNDERLAY[1], UNDERLAY[0]]);
    let (a, b) = (lab.add_pod(0), lab.add_pod(1));
    let ear = ear(&a);
    let mac = lab.nodes[0].snapshot.settings.node.vtep_mac;
    let to = (lab.nodes[0].underlay(0), 4789);
    let frame = |source| tunnel(OURS, mac, 0x0800, &ipv4(source, v4(a.v4()), b"six"));
    let (good, foreign) = (frame(v4(b.v4())), frame([10, 70, 3, 3].into()));
    let [own, second, third] = &mut lab.nodes[..] else { unreachable!("three nodes") };
    let (second_address, third_address) = (second.underlay(0), third.underlay(0));
    send(&second.ns, second_address, to, &good);
    assert!(hears(&ear, b"six"));
    refused(own, DropReason::ForeignInnerSource, || send(&second.ns, second_address, to, &foreign));
    refused(own, DropReason::ForeignInnerSource, || send(&third.ns, third_address, to, &good));
    refused(own, DropReason::OuterFragment, || {
        let big = tunnel(OURS, mac, 0x0800, &ipv4(v4(b.v4()), v4(a.v4()), &[7; 2000]));
        send(&second.ns, second_address, to, &big);
    });
    // Over the family that is not the underlay's nobody is a sender.
    refused(own, DropReason::UnknownSender, || {
        send(&second.ns, [192, 0, 2, 2].into(), ([192, 0, 2, 1].into(), 4789), &good);
    });
    own.apply(Delta::PeerGone(third.snapshot.settings.node.id.clone()));
    refused(own, DropReason::UnknownSender, || send(&third.ns, third_address, to, &good));
    assert!(!hears(&ear, b"six"));
}

#[test]
fn congestion_that_nobody_would_hear_of_is_a_drop() {
    let mut lab = Lab::new(2, &UNDERLAY);
    let (a, b) = (lab.add_pod(0), lab.add_pod(1));
    let ear = ear(&a);
    let [own, other] = &mut lab.nodes[..] else { unreachable!("two nodes") };
    let mac = own.snapshot.settings.node.vtep_mac;
    let send = |outer: i32, inner: u8| {
        let mut packet = ipv4(v4(b.v4()), v4(a.v4()), b"ecn");
        packet[1] = inner;
        // The header's sum is over sixteen-bit words, and the field is the lower half of the first one.
        let sum = u16::from_be_bytes([packet[10], packet[11]]) - u16::from(inner);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        other.ns.inside(|| {
            let socket = UdpSocket::bind("192.0.2.2:0").unwrap();
            setsockopt(&socket, sockopt::Ipv4Tos, &outer).unwrap();
            socket.send_to(&tunnel(OURS, mac, 0x0800, &packet), "192.0.2.1:4789").unwrap();
        });
    };
    for outer in 0..4 {
        for inner in 0..4 {
            if (outer, inner) == (3, 0) {
                refused(own, DropReason::EcnNotCapable, || send(outer, inner));
            } else {
                send(outer, inner);
                assert!(hears(&ear, b"ecn"), "outer {outer}, inner {inner}");
            }
        }
    }
}
