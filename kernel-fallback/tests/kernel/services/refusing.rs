//! Who is refused at once, and who is dropped and counted.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use causeway_model::service::{Answer, BackendsId};
use causeway_model::{Dataplane, Delta, DropReason, Family, PortProtocol};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

use super::world::{
    Met, OUTSIDE, TCP, UDP, VIP4, VIP6, World, at, backends, change, frontend, node_port, served, service,
    tcp, udp,
};
use crate::lab::Namespace;

#[test]
fn who_asks_where_nobody_serves_is_refused_at_once() {
    let mut world = World::new();
    let mut deltas = Vec::new();
    for protocol in [TCP, UDP] {
        for vip in [VIP4, VIP6] {
            let refused = service(Answer::Refuse, Answer::Refuse);
            deltas.push(Delta::Service(frontend(vip, protocol, 80), Box::new(refused.clone())));
        }
        let refused = service(Answer::Refuse, Answer::Refuse);
        deltas.push(Delta::Service(node_port(Family::V4, protocol, 30080), Box::new(refused)));
    }
    change(world.node(), deltas);
    let node = world.lab.nodes[0].underlay(0);
    for from in [&world.client.ns, &world.lab.nodes[0].ns, &world.outside] {
        // The last one is a port that no service has.
        for to in [at(VIP4, 80), at(VIP6, 80), at(node, 30080), at(VIP4, 81), at(VIP6, 81)] {
            for ask in [tcp, udp] {
                let start = Instant::now();
                assert_eq!(ask(from, to), Met::Refused, "{} {to}", from.name);
                assert!(start.elapsed() < Duration::from_millis(400), "{:?}", start.elapsed());
            }
        }
        assert!(!from.succeeds(&format!("ping -n -c 1 -W 1 {VIP4}")));
    }
    assert!(world.drops(DropReason::ServiceRefused) >= 30);
}

/// Sends the first packet of an association and says whether ICMP refused it.
fn init_is_refused(from: &Namespace, own: &str, to: &str, port: u16) -> bool {
    from.run("nft add table inet heard");
    from.run("nft 'add chain inet heard c { type filter hook input priority 0; }'");
    from.run(
        "nft add rule inet heard c icmp type destination-unreachable icmp code port-unreachable counter",
    );
    let address = |text: &str| -> std::net::Ipv4Addr { text.parse().unwrap() };
    let mut packet = vec![0x45, 0, 0, 52, 0, 0, 0, 0, 64, 132, 0, 0];
    packet.extend(address(own).octets());
    packet.extend(address(to).octets());
    let mut sctp = vec![0x30, 0x39];
    sctp.extend(port.to_be_bytes());
    sctp.extend([0; 8]);
    sctp.extend([1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let mut crc = u32::MAX;
    for byte in &sctp {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    sctp[8..12].copy_from_slice(&(!crc).to_le_bytes());
    packet.extend(sctp);
    from.inside(|| {
        let raw =
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), Some(SockProtocol::Raw)).unwrap();
        let to = SockaddrIn::from(std::net::SocketAddrV4::new(address(to), 0));
        sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty()).unwrap();
    });
    std::thread::sleep(Duration::from_millis(100));
    let said = from.run("nft list table inet heard");
    from.run("nft delete table inet heard");
    !said.contains("packets 0")
}

#[test]
fn sctp_is_led_to_its_backend_and_refused_by_icmp() {
    let mut world = World::new();
    let near = world.near.v4();
    let sctp = PortProtocol::Sctp;
    let refused = service(Answer::Refuse, Answer::Refuse);
    let deltas = vec![
        backends(1, &[near]),
        Delta::Service(frontend(VIP4, sctp, 80), Box::new(served(1))),
        Delta::Service(frontend(VIP4, sctp, 81), Box::new(refused)),
    ];
    change(world.node(), deltas);
    world.near.ns.run("nft add table inet t");
    world.near.ns.run("nft 'add chain inet t c { type filter hook input priority 0; }'");
    world.near.ns.run("nft add rule inet t c sctp dport 8080 counter drop");
    let own = world.client.v4().to_string();
    assert!(!init_is_refused(&world.client.ns, &own, VIP4, 80));
    assert!(world.near.ns.run("nft list table inet t").contains("packets 1 "));
    assert!(init_is_refused(&world.client.ns, &own, VIP4, 81));
    assert!(init_is_refused(&world.outside, OUTSIDE[0], VIP4, 81));
}

#[test]
fn who_has_backends_elsewhere_only_answers_nothing() {
    let mut world = World::new();
    let far = world.far.v4();
    let local = service(Answer::Backends(BackendsId(1)), Answer::Drop);
    let mut deltas = vec![backends(1, &[far])];
    for protocol in [TCP, UDP] {
        deltas.push(Delta::Service(node_port(Family::V4, protocol, 30080), Box::new(local.clone())));
    }
    deltas.push(Delta::Service(frontend(VIP4, TCP, 80), Box::new(service(Answer::Drop, Answer::Refuse))));
    change(world.node(), deltas);
    let node = world.lab.nodes[0].underlay(0);
    assert_eq!(tcp(&world.outside, at(node, 30080)), Met::Silence);
    assert_eq!(udp(&world.outside, at(node, 30080)), Met::Silence);
    assert!(world.drops(DropReason::NoLocalBackend) >= 2);
    assert_eq!(tcp(&world.client.ns, at(node, 30080)).server(), "far");
    assert_eq!(tcp(&world.lab.nodes[0].ns, at(node, 30080)).server(), "far");
    assert_eq!(tcp(&world.client.ns, at(VIP4, 80)), Met::Silence);
    assert_eq!(tcp(&world.outside, at(VIP4, 80)), Met::Refused);
}

/// Whether somebody is served, or else dropped.
fn ask(from: &Namespace, vip: &str, port: u16) -> bool {
    match tcp(from, at(vip, port)) {
        Met::Served(..) => true,
        Met::Silence => false,
        Met::Refused => panic!("{vip} {port}"),
    }
}

#[test]
fn only_the_sources_that_are_said_are_served() {
    let mut world = World::new();
    let near = [world.near.v4(), world.near.v6()];
    let of = |id, sources: &[&str]| {
        let mut service = served(id);
        service.sources = Some(sources.iter().map(|source| source.parse().unwrap()).collect());
        Box::new(service)
    };
    let outside = format!("{}/32", OUTSIDE[0]);
    let deltas = vec![
        backends(4, &near[..1]),
        backends(6, &near[1..]),
        Delta::Service(frontend(VIP4, TCP, 80), of(4, &["198.51.100.0/24", &outside, "192.0.2.64/26"])),
        Delta::Service(frontend(VIP4, TCP, 81), of(4, &["10.70.1.0/24"])),
        Delta::Service(frontend(VIP4, TCP, 82), of(4, &["0.0.0.0/0", "::/0"])),
        Delta::Service(frontend(VIP6, TCP, 80), of(6, &["2001:db8::/64"])),
        Delta::Service(frontend(VIP6, TCP, 81), of(6, &["fd70::/16"])),
        Delta::Service(frontend(VIP6, TCP, 83), of(6, &[])),
    ];
    change(world.node(), deltas);
    let (client, outside) = (&world.client.ns, &world.outside);
    assert!(ask(outside, VIP4, 80) && !ask(client, VIP4, 80));
    assert!(!ask(outside, VIP4, 81) && ask(client, VIP4, 81));
    assert!(ask(outside, VIP4, 82) && ask(client, VIP4, 82));
    assert!(ask(outside, VIP6, 80) && !ask(client, VIP6, 80));
    assert!(!ask(outside, VIP6, 81) && ask(client, VIP6, 81));
    assert!(!ask(outside, VIP6, 83) && !ask(client, VIP6, 83), "none is nobody");
    assert!(world.drops(DropReason::ServiceSource) >= 6);
    // Other sources, and none.
    change(world.node(), vec![Delta::Service(frontend(VIP4, TCP, 80), of(4, &["10.70.0.0/16"]))]);
    change(world.node(), vec![Delta::Service(frontend(VIP4, TCP, 81), Box::new(served(4)))]);
    let (client, outside) = (&world.client.ns, &world.outside);
    assert!(!ask(outside, VIP4, 80) && ask(client, VIP4, 80));
    assert!(ask(outside, VIP4, 81) && ask(client, VIP4, 81));
    assert_eq!(world.node().mend(), Vec::<String>::new());
}

#[test]
fn what_is_for_no_service_of_the_prefixes_never_leaves_the_node() {
    let mut world = World::new();
    world.outside.run("nft add table inet t");
    world.outside.run("nft 'add chain inet t c { type filter hook prerouting priority 0; }'");
    world.outside.run("nft add rule inet t c ip daddr 10.96.0.0/16 counter");
    world.outside.run("nft add rule inet t c ip6 daddr fd96::/112 counter");
    for from in [&world.client.ns, &world.lab.nodes[0].ns, &world.outside] {
        for to in [at("10.96.9.9", 80), at("fd96::99", 80)] {
            assert_eq!((tcp(from, to), udp(from, to)), (Met::Silence, Met::Silence), "{} {to}", from.name);
        }
    }
    let heard = world.outside.run("nft list table inet t");
    assert_eq!(heard.matches("packets 0").count(), 2, "{heard}");
    assert!(world.drops(DropReason::NoSuchService) >= 12);
}

#[test]
fn what_is_dropped_of_a_pod_is_counted_with_it() {
    let mut world = World::new();
    let near = world.near.v4();
    let mut some = served(1);
    some.sources = Some(vec!["192.0.2.77/32".parse().unwrap()]);
    let deltas = vec![
        backends(1, &[near]),
        Delta::Service(frontend(VIP4, UDP, 80), Box::new(service(Answer::Refuse, Answer::Refuse))),
        Delta::Service(frontend(VIP4, UDP, 81), Box::new(service(Answer::Drop, Answer::Drop))),
        Delta::Service(frontend(VIP4, UDP, 82), Box::new(some)),
    ];
    change(world.node(), deltas);
    let count = |world: &mut World, pod: &causeway_model::Endpoint, reason: DropReason| {
        let counters = world.node().on(Dataplane::counters).unwrap();
        counters.endpoints[&pod.key].drops.get(&reason).map_or(0, |count| count.packets)
    };
    let (client, other) = (world.client.endpoint.clone(), world.near.endpoint.clone());
    let asked = [
        (at(VIP4, 80), DropReason::ServiceRefused),
        (at(VIP6, 80), DropReason::ServiceRefused),
        (at(VIP4, 81), DropReason::NoLocalBackend),
        (at(VIP4, 82), DropReason::ServiceSource),
        (at("10.96.9.9", 80), DropReason::NoSuchService),
        (at("fd96::99", 80), DropReason::NoSuchService),
    ];
    for (number, (to, reason)) in (1..).zip(asked) {
        // Somebody else's are not the pod's.
        for from in [&world.client.ns, &world.outside] {
            assert_ne!(udp(from, to), Met::Served("near".into(), near), "{to}");
        }
        let same = asked[..number].iter().filter(|(_, one)| *one == reason).count() as u64;
        assert_eq!(count(&mut world, &client, reason), same, "{to}");
        assert_eq!(count(&mut world, &other, reason), 0, "{to}");
    }
    // A table that is loaded again goes on counting, and whoever has the address next begins anew.
    world.node().ns.run("nft flush chain inet causeway-services refuse");
    assert!(!world.node().mend().is_empty());
    assert_eq!(count(&mut world, &client, DropReason::ServiceRefused), 2);
    world.node().unplug(&client);
    let ns = Namespace::new("next");
    world.node().plug(&client, &ns);
    assert_eq!(count(&mut world, &client, DropReason::ServiceRefused), 0);
}
