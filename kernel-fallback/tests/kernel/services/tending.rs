//! What becomes of flows and of the table when something changes, whoever changes it.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use causeway_kernel_fallback::KernelDataplane;
use causeway_model::service::{Answer, At, Backend, Backends, BackendsId, Frontend, ServicePort};
use causeway_model::{Delta, DropReason, Family, HostServices};

use super::world::{
    Asker, Met, OUTSIDE, TCP, UDP, VIP4, VIP6, World, at, backends, backends_at, change, frontend, node_port,
    open, served, service, tcp, udp,
};

#[test]
fn datagrams_move_at_once_and_connections_run_on() {
    let mut world = World::new();
    let (near, far) = (world.near.v4(), world.far.v4());
    world.serve(&[near], &[world.near.v6()]);
    let ports = vec![Delta::Service(node_port(Family::V4, UDP, 30080), Box::new(served(4)))];
    change(world.node(), ports);
    let node = world.lab.nodes[0].underlay(0);
    let askers = [
        Asker::new(&world.client.ns, at(VIP4, 80)),
        Asker::new(&world.client.ns, at(node, 30080)),
        Asker::new(&world.lab.nodes[0].ns, at(VIP4, 80)),
        Asker::new(&world.outside, at(node, 30080)),
    ];
    assert!(askers.iter().all(|asker| asker.ask().server() == "near"));
    // Somebody else's flow to the very backend.
    let others = Asker::new(&world.client.ns, at(near, 8080));
    assert_eq!(others.ask().server(), "near");
    let (mut stream, met) = open(&world.client.ns, at(VIP4, 80)).unwrap();
    assert_eq!(met.server(), "near");
    // One who leaves keeps what it has, and gets no more.
    change(world.node(), vec![backends_at(4, &[far], &[near], 8080)]);
    assert!(askers.iter().all(|asker| asker.ask().server() == "near"), "leaving");
    assert_eq!(udp(&world.client.ns, at(VIP4, 80)).server(), "far");
    change(world.node(), vec![backends(4, &[far])]);
    for (index, asker) in askers.iter().enumerate() {
        assert_eq!(asker.ask().server(), "far", "{index}");
    }
    assert_eq!(others.ask().server(), "near");
    let flows = world.lab.nodes[0].ns.run("cat /proc/net/nf_conntrack");
    assert!(flows.lines().any(|line| line.contains("tcp") && line.contains(VIP4)), "{flows}");
    stream.write_all(b"still there").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let error = stream.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "neither reset nor ended");
    // And when nobody is left.
    change(
        world.node(),
        vec![Delta::Service(frontend(VIP4, UDP, 80), Box::new(service(Answer::Refuse, Answer::Refuse)))],
    );
    assert_eq!(askers[0].ask(), Met::Refused);
}

#[test]
fn datagrams_that_began_before_their_service_are_led_to_it() {
    let mut world = World::new();
    let near = world.near.v4();
    // An address outside of all prefixes: what nobody serves goes out.
    let asker = Asker::new(&world.client.ns, at(OUTSIDE[2], 8080));
    assert_eq!(asker.ask().server(), "outside");
    let node = world.lab.nodes[0].underlay(0);
    let own = Asker::new(&world.outside, at(node, 8080));
    assert_eq!(own.ask().server(), "node0");
    let deltas = vec![
        backends(1, &[near]),
        Delta::Service(frontend(OUTSIDE[2], UDP, 8080), Box::new(served(1))),
        Delta::Service(node_port(Family::V4, UDP, 8080), Box::new(served(1))),
    ];
    change(world.node(), deltas);
    assert_eq!(asker.ask().server(), "near");
    assert_eq!(own.ask().server(), "near");
    change(world.node(), vec![Delta::ServiceGone(frontend(OUTSIDE[2], UDP, 8080))]);
    assert_eq!(asker.ask().server(), "outside");
}

/// Everything that must hold, in sentences; what does not.
pub fn broken(world: &mut World) -> Vec<String> {
    let before = world.drops(DropReason::NoSuchService);
    let (client, own, outside) = (&world.client.ns, &world.lab.nodes[0].ns, &world.outside);
    let [node, other] = [0, 1].map(|index| world.lab.nodes[index].underlay(0));
    let host = world.lab.nodes[0].overlay(Family::V4);
    let stranger: IpAddr = OUTSIDE[0].parse().unwrap();
    let as_itself = world.client.v4();
    let by = |name: &str, seen| Met::Served(name.to_owned(), seen);
    // By TCP: a datagram from a port that was used a moment ago would belong to the flow of then.
    let says = [
        ("a pod by address", client, at(VIP4, 80), by("near", as_itself)),
        ("a pod by node port", client, at(node, 30080), by("far", as_itself)),
        ("a pod by another's", client, at(other, 30080), by("far", as_itself)),
        ("a process", own, at(VIP4, 81), by("far", node)),
        ("outside by address", outside, at(VIP4, 80), by("near", stranger)),
        ("outside by node port", outside, at(node, 30080), by("far", host)),
        ("itself", &world.near.ns, at(VIP4, 80), by("near", host)),
        ("refused", client, at(VIP4, 82), Met::Refused),
        ("unknown port", client, at(VIP4, 99), Met::Refused),
        ("sources", client, at(VIP4, 83), Met::Silence),
        ("a source", outside, at(VIP4, 83), by("near", stranger)),
        ("elsewhere", outside, at(VIP4, 84), Met::Silence),
    ];
    let mut broken: Vec<String> = std::thread::scope(|scope| {
        let asks = says.map(|(what, from, to, right)| (what, scope.spawn(move || tcp(from, to)), right));
        let met = asks.into_iter().map(|(what, ask, right)| (what, ask.join().unwrap(), right));
        let wrong = met.filter(|(_, met, right)| met != right);
        wrong.map(|(what, met, right)| format!("{what}: {met:?} and not {right:?}")).collect()
    });
    let stuck: BTreeSet<String> = (0..8).map(|_| format!("{:?}", tcp(client, at(VIP4, 86)))).collect();
    if stuck.len() != 1 || !stuck.iter().all(|met| met.starts_with("Served")) {
        broken.push(format!("sticking: {stuck:?}"));
    }
    let lost = udp(client, at("10.96.9.9", 80));
    let after = world.drops(DropReason::NoSuchService);
    if (lost, after) != (Met::Silence, before + 1) {
        broken.push("what is for nobody leaves the node".into());
    }
    broken
}

/// What [`broken`] asks about.
pub fn populate(world: &mut World) {
    let (near, far) = (world.near.v4(), world.far.v4());
    let mut some = served(1);
    some.sources = Some(vec!["192.0.2.77/32".parse().unwrap()]);
    let mut sticky = served(3);
    sticky.affinity = Some(60);
    let deltas = vec![
        backends(1, &[near]),
        backends(2, &[far]),
        backends(3, &[near, far]),
        Delta::Service(frontend(VIP4, TCP, 80), Box::new(served(1))),
        Delta::Service(node_port(Family::V4, TCP, 30080), Box::new(served(2))),
        Delta::Service(frontend(VIP4, TCP, 81), Box::new(served(2))),
        Delta::Service(frontend(VIP4, TCP, 82), Box::new(service(Answer::Refuse, Answer::Refuse))),
        Delta::Service(frontend(VIP4, TCP, 83), Box::new(some)),
        Delta::Service(frontend(VIP4, TCP, 84), Box::new(service(Answer::Refuse, Answer::Drop))),
        Delta::Service(frontend(VIP4, UDP, 85), Box::new(sticky.clone())),
        Delta::Service(frontend(VIP4, TCP, 86), Box::new(sticky)),
    ];
    change(world.node(), deltas);
}

#[test]
fn whatever_another_hand_breaks_is_noticed_and_mended() {
    let mut world = World::new();
    populate(&mut world);
    assert_eq!(broken(&mut world), Vec::<String>::new());
    assert_eq!(world.node().mend(), Vec::<String>::new());
    let table = "inet causeway-services";
    let faults = [
        ("flush chain", "before_routing"),
        ("flush chain", "going_out"),
        ("flush chain", "behind_routing"),
        ("flush chain", "nobody4"),
        ("flush chain", "others4"),
        ("flush chain", "refuse"),
        ("flush chain", "inside_1_0"),
        ("flush chain", "inside_2_60"),
        ("flush set", "frontends4"),
        ("flush set", "backends4"),
        ("flush set", "nodes4"),
        ("flush set", "sources4"),
        ("flush set", "selves4"),
        ("flush set", "prefixes4"),
        ("flush set", "addresses4"),
        ("flush set", "local4"),
        ("flush set", "hits4"),
    ];
    for (what, name) in faults {
        // Flushing a map is said like flushing a set.
        let what =
            if name.starts_with("frontends") || name.starts_with("backends") { "flush map" } else { what };
        world.node().ns.run(&format!("nft {what} {table} {name}"));
        let red = broken(&mut world);
        assert!(!red.is_empty(), "{name}: nobody noticed");
        let mended = world.node().mend();
        assert!(mended.iter().any(|word| word.contains("causeway-services")), "{name}: {mended:?}");
        assert_eq!(broken(&mut world), Vec::<String>::new(), "{name}");
    }
    world.node().ns.run(&format!("nft delete table {table}"));
    assert!(!broken(&mut world).is_empty());
    assert!(!world.node().mend().is_empty());
    assert_eq!(broken(&mut world), Vec::<String>::new());
    assert_eq!(world.node().mend(), Vec::<String>::new());
}

#[test]
fn a_new_process_takes_over_and_an_uninstall_leaves_nothing() {
    let mut world = World::new();
    populate(&mut world);
    let asker = Asker::new(&world.client.ns, at(VIP4, 85));
    let before = asker.ask();
    let stuck = tcp(&world.client.ns, at(VIP4, 86));
    // Whoever lists tables lives, and is told of nothing amiss.
    let listed = world.node().ns.run("nft list table inet causeway-services 2>&1");
    assert!(listed.contains("chain inside_2_60") && !listed.contains("Error"), "{listed}");
    world.node().ns.run("nft list ruleset");
    for _ in 0..5 {
        world.node().restart();
        world.node().apply_whole();
        assert_eq!(tcp(&world.client.ns, at(VIP4, 86)), stuck, "whoever sticks goes on sticking");
    }
    assert_eq!(broken(&mut world), Vec::<String>::new());
    assert_eq!(asker.ask(), before, "the flow goes on");
    let state = world.node().state.path().join("sysctls.json");
    world.node().ns.inside(|| KernelDataplane::remove_all(&state)).unwrap();
    assert_eq!(world.node().ns.run("nft list ruleset").trim(), "");
}

/// kube-proxy's chains as iptables-nft has them (1.33, one service, one endpoint), for an address and backend.
const KUBE_PROXY: &str = "*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-ERIFXISQEP7F7OF4 - [0:0]
:KUBE-SEP-IT2ZTR26TO4XFPTO - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-ERIFXISQEP7F7OF4
-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-MARK-MASQ
-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-SVC-ERIFXISQEP7F7OF4
-A KUBE-SVC-ERIFXISQEP7F7OF4 ! -s 10.70.0.0/16 -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-ERIFXISQEP7F7OF4 -j KUBE-SEP-IT2ZTR26TO4XFPTO
-A KUBE-SEP-IT2ZTR26TO4XFPTO -s BACKEND/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-IT2ZTR26TO4XFPTO -p tcp -m tcp -j DNAT --to-destination BACKEND:8080
COMMIT
";

#[test]
fn beside_kube_proxy_nobody_translates_twice() {
    let mut world = World::of(HostServices::Deferred);
    let kube_proxy =
        |world: &World| world.lab.nodes[0].ns.inside(causeway_kernel_fallback::kube_proxy).unwrap();
    assert_eq!(kube_proxy(&world), None);
    let (near, far) = (world.near.v4(), world.far.v4());
    let rules = world.lab.nodes[0].state.path().join("kube-proxy.rules");
    std::fs::write(&rules, KUBE_PROXY.replace("BACKEND", &far.to_string())).unwrap();
    world.node().ns.run(&format!("iptables-nft-restore {}", rules.display()));
    assert!(kube_proxy(&world).unwrap().contains("iptables"), "{:?}", kube_proxy(&world));
    let deltas = vec![
        backends(1, &[near]),
        Delta::Service(frontend(VIP4, TCP, 80), Box::new(served(1))),
        Delta::Service(node_port(Family::V4, TCP, 30080), Box::new(served(1))),
    ];
    change(world.node(), deltas);
    let node = world.lab.nodes[0].underlay(0);
    let as_itself = world.client.v4();
    // Pods are ours, all others are its.
    for to in [at(VIP4, 80), at(node, 30080)] {
        assert_eq!(tcp(&world.client.ns, to), Met::Served("near".into(), as_itself), "{to}");
        assert_eq!(tcp(&world.lab.nodes[0].ns, to).server(), "far", "{to}");
        assert_eq!(tcp(&world.outside, to).server(), "far", "{to}");
    }
    let mut settings = world.lab.nodes[0].snapshot.settings.clone();
    settings.host_services = HostServices::Own;
    change(world.node(), vec![Delta::Settings(Box::new(settings))]);
    for ns in [&world.client.ns, &world.lab.nodes[0].ns, &world.outside] {
        for to in [at(VIP4, 80), at(node, 30080)] {
            assert_eq!(
                tcp(ns, to).server(),
                "near",
                "whoever comes first translates, and nobody again: {to}"
            );
        }
    }
    world.node().ns.run("iptables-nft -t nat -F");
    world.node().ns.run("iptables-nft -t nat -X");
    assert_eq!(kube_proxy(&world), None);
    world.node().ns.run("nft add table ip kube-proxy");
    assert!(kube_proxy(&world).unwrap().contains("nftables"));
}

#[test]
fn ten_thousand_services_are_loaded_in_seconds_and_changed_in_a_moment() {
    let mut world = World::new();
    let node = world.node();
    let mut services = (*node.snapshot.services).clone();
    let [near, far]: [IpAddr; 2] = ["10.70.1.4".parse().unwrap(), "10.70.2.3".parse().unwrap()];
    for number in 0..10_000_u32 {
        let [_, _, high, low] = number.to_be_bytes();
        let vip: IpAddr = [10, 97, high, low].into();
        let id = BackendsId(number + 100);
        let chosen =
            (0..10).map(|n| Backend { address: [10, 71 + n, high, low].into(), port: 8080 }).collect();
        services.backends.insert(id, Backends::alike(chosen, Vec::new()).into());
        let mut service = served(id.0);
        service.id = ServicePort { name: format!("s{number}"), ..service.id };
        let at = Frontend { at: At::Address(vip), protocol: TCP, port: 80 };
        services.frontends.insert(at, service);
        services.addresses.insert(vip);
    }
    node.snapshot.services = services.into();
    let start = Instant::now();
    node.apply_whole();
    let whole = start.elapsed();
    let mut times = Vec::new();
    for turn in 0..20 {
        let chosen = if turn % 2 == 0 { [near, far] } else { [far, near] };
        let start = Instant::now();
        change(node, vec![backends(100 + turn, &chosen)]);
        times.push(start.elapsed());
    }
    times.sort();
    let start = Instant::now();
    let mended = node.mend();
    println!(
        "10,000 services: {whole:?}; a change: {:?}, at most {:?}; nothing to mend: {:?}",
        times[10],
        times[19],
        start.elapsed()
    );
    assert_eq!(mended, Vec::<String>::new());
    // Several times what an idle machine needs, unoptimised.
    assert!(whole < Duration::from_secs(20), "{whole:?}");
    assert!(times[10] < Duration::from_millis(500), "{times:?}");
    node.ns.run("nft flush chain inet causeway-services refuse");
    assert!(!node.mend().is_empty());
    let (vip, vip6) = (at("10.97.0.1", 80), at(VIP6, 80));
    assert!(matches!(tcp(&world.client.ns, vip), Met::Served(..)));
    assert_eq!(tcp(&world.client.ns, vip6), Met::Refused);
    assert!(world.drops(DropReason::ServiceRefused) > 0);
}
