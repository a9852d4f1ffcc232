//! Who reaches whom, over which families, and what is answered when something is too big.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};

use crate::lab::{Lab, LabPod, Namespace, UNDERLAY};
use causeway_model::{Dataplane, Delta, Family};

fn everybody_talks(underlay: &[&str]) {
    let mut lab = Lab::new(2, underlay);
    let (a, a2, b) = (lab.add_pod(0), lab.add_pod(0), lab.add_pod(1));
    for family in Family::BOTH {
        let of = |pod: &LabPod| pod.endpoint.address(family).unwrap();
        assert!(a.ns.ping(of(&a2), ""), "pod to pod on one node, {family}");
        assert!(a.ns.ping(of(&b), ""), "pod to pod across, {family}");
        assert!(b.ns.ping(of(&a), ""), "and the other way, {family}");
        assert!(lab.nodes[0].ns.ping(of(&a), ""), "node to own pod, {family}");
        assert!(lab.nodes[0].ns.ping(of(&b), ""), "node to remote pod, {family}");
        assert!(a.ns.ping(lab.nodes[0].overlay(family), ""), "pod to own node's overlay address, {family}");
        assert!(
            a.ns.ping(lab.nodes[1].overlay(family), ""),
            "pod to remote node's overlay address, {family}"
        );
        let own = lab.nodes[0].snapshot.settings.node.underlay.clone();
        let remote = lab.nodes[1].snapshot.settings.node.underlay.clone();
        for address in [own, remote].concat().into_iter().filter(|address| Family::of(*address) == family) {
            assert!(a.ns.ping(address, ""), "pod to node {address}");
        }
    }
    let drops = lab.nodes[0].on(Dataplane::counters).unwrap().drops;
    assert!(drops.is_empty(), "{drops:?}");
    let counters = lab.nodes[1].on(Dataplane::counters).unwrap();
    assert!(counters.tunnel_received.packets > 0 && counters.tunnel_sent.packets > 0);
    assert!(counters.endpoints[&b.endpoint.key].from_pod.packets > 0);
    assert!(counters.endpoints[&b.endpoint.key].to_pod.packets > 0);
}

#[test]
fn everybody_talks_over_an_ipv4_underlay() {
    everybody_talks(&UNDERLAY);
}

#[test]
fn everybody_talks_over_an_ipv6_underlay() {
    everybody_talks(&[UNDERLAY[1], UNDERLAY[0]]);
}

#[test]
fn no_pod_address_is_seen_on_the_fabric() {
    let mut lab = Lab::new(2, &UNDERLAY);
    let a = lab.add_pod(0);
    // Whatever is no tunnel frame and has a pod's address in it is counted on the wire.
    let pods =
        ["ip saddr 10.70.0.0/16", "ip daddr 10.70.0.0/16", "ip6 saddr fd70::/16", "ip6 daddr fd70::/16"];
    let bare = pods.map(|bare| format!("{bare} counter name bare;")).concat();
    let rules = format!("type filter hook forward priority 0; {bare} udp dport 4789 counter name tunnel;");
    lab.switch.run("nft add table bridge wire");
    lab.switch.run("nft add counter bridge wire bare");
    lab.switch.run("nft add counter bridge wire tunnel");
    lab.switch.run(&format!("nft 'table bridge wire {{ chain c {{ {rules} }}; }}'"));
    for family in 0..2 {
        assert!(a.ns.ping(lab.nodes[1].underlay(family), ""));
        assert!(lab.nodes[1].ns.ping(a.endpoint.addresses[family], ""));
    }
    let bare = lab.switch.run("nft list counter bridge wire bare");
    assert!(bare.contains("packets 0 "), "{bare}");
    let tunnel = lab.switch.run("nft list counter bridge wire tunnel");
    assert!(!tunnel.contains("packets 0 "), "the rules see what is on the wire: {tunnel}");
}

#[test]
fn too_big_is_answered_with_the_next_links_mtu() {
    for (underlay, mtu) in [(&UNDERLAY[..], 1450), (&[UNDERLAY[1], UNDERLAY[0]], 1430)] {
        let mut lab = Lab::new(2, underlay);
        let (a, local, remote) = (lab.add_pod(0), lab.add_pod(0), lab.add_pod(1));
        a.ns.run("ip link set eth0 mtu 1500");
        for to in [&local, &remote] {
            // 28 and 48 bytes of headers around what ping sends.
            let said = a.ns.run(&format!("sh -c 'ping -n -c 1 -W 1 -M do -s 1472 {} || true'", to.v4()));
            assert!(said.contains(&format!("mtu = {mtu}")) || said.contains(&format!("mtu={mtu}")), "{said}");
            let said = a.ns.run(&format!("sh -c 'ping -n -c 1 -W 1 -M do -s 1452 {} || true'", to.v6()));
            assert!(said.contains(&format!("mtu={mtu}")) || said.contains(&format!("mtu = {mtu}")), "{said}");
            assert!(a.ns.ping(to.v4(), &format!("-M do -s {}", mtu - 28)), "exactly as big as can be");
            assert!(a.ns.ping(to.v6(), &format!("-M do -s {}", mtu - 48)), "exactly as big as can be");
            assert!(a.ns.ping(to.v4(), "-M dont -s 3000"), "without DF the inner packet is fragmented");
        }
    }
}

/// Sends so many bytes over one connection; returns when the other side has read them all.
fn bulk(from: &LabPod, to: &LabPod, address: IpAddr, bytes: usize) {
    let listener = to.ns.inside(|| TcpListener::bind((address, 5001)).unwrap());
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut buffer, mut total) = (vec![0; 1 << 16], 0);
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                total += read;
            }
            total
        });
        from.ns.inside(|| {
            let mut stream = TcpStream::connect((address, 5001)).unwrap();
            let piece = vec![7; 1 << 16];
            for _ in 0..bytes / piece.len() {
                stream.write_all(&piece).unwrap();
            }
        });
        assert_eq!(reader.join().unwrap(), bytes);
    });
}

#[test]
fn whole_segments_pass_the_sender_check() {
    let mut lab = Lab::new(2, &UNDERLAY);
    let (a, b) = (lab.add_pod(0), lab.add_pod(1));
    let start = std::time::Instant::now();
    bulk(&a, &b, b.v4(), 256 << 20);
    println!("256 MiB over IPv4 in {:?}", start.elapsed());
    bulk(&b, &a, a.v6(), 64 << 20);
    let counters = lab.nodes[1].on(Dataplane::counters).unwrap();
    assert!(counters.drops.is_empty(), "{:?}", counters.drops);
    // Fewer frames than full-sized packets: they came as super-packets, and were judged as such.
    let frames = counters.tunnel_received.packets;
    assert!(frames < (256 << 20) / 1400, "{frames} frames");
}

#[test]
fn a_new_agent_takes_over_without_a_hitch() {
    let mut lab = Lab::new(2, &UNDERLAY);
    let (a, b) = (lab.add_pod(0), lab.add_pod(1));
    let flood = std::thread::scope(|scope| {
        let flood = scope.spawn(|| a.ns.run(&format!("ping -n -q -i 0.002 -c 500 -W 1 {}", b.v4())));
        for node in &mut lab.nodes {
            node.restart();
            node.apply_whole();
            node.mend();
        }
        flood.join().unwrap()
    });
    assert!(flood.contains(" 0% packet loss"), "{flood}");
}

#[test]
fn nodes_and_pods_come_and_go() {
    let mut lab = Lab::new(2, &UNDERLAY);
    let (a, b) = (lab.add_pod(0), lab.add_pod(1));
    assert!(a.ns.ping(b.v4(), ""));
    let peer = lab.nodes[1].snapshot.settings.node.clone();
    lab.nodes[0].apply(Delta::PeerGone(peer.id.clone()));
    assert!(!a.ns.ping(b.v4(), "") && !a.ns.ping(b.v6(), ""), "its node is nobody now");
    lab.nodes[0].apply(Delta::Peer(peer));
    assert!(a.ns.ping(b.v4(), "") && a.ns.ping(b.v6(), ""));
    lab.nodes[1].unplug(&b.endpoint);
    assert!(!a.ns.ping(b.v4(), "") && !lab.nodes[1].ns.ping(b.v6(), ""));
    // Another pod gets its address, with another hardware address.
    let mut endpoint = lab.nodes[1].new_endpoint();
    endpoint.addresses.clone_from(&b.endpoint.addresses);
    let ns = Namespace::new("heir");
    lab.nodes[1].plug(&endpoint, &ns);
    assert!(a.ns.ping(b.v4(), "") && a.ns.ping(b.v6(), ""), "the first packet to the heir arrives");
}
