//! Who answers, and whom they see.

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_model::service::{Answer, BackendsId};
use causeway_model::{Dataplane, Delta, Family, HostServices};

use super::world::{
    Met, OUTSIDE, PORT, TCP, UDP, VIP4, VIP6, World, at, backends, backends_at, change, frontend, node_port,
    served, service, tcp, udp,
};

#[test]
fn a_pod_reaches_backends_here_and_there_as_itself() {
    let mut world = World::new();
    let (near, far) = ([world.near.v4(), world.near.v6()], [world.far.v4(), world.far.v6()]);
    world.serve(&[near[0]], &[near[1]]);
    for (vip, own) in [(VIP4, world.client.v4()), (VIP6, world.client.v6())] {
        let near = Met::Served("near".into(), own);
        assert_eq!(
            (tcp(&world.client.ns, at(vip, 80)), udp(&world.client.ns, at(vip, 80))),
            (near.clone(), near)
        );
    }
    world.serve(&[far[0]], &[far[1]]);
    for (vip, own) in [(VIP4, world.client.v4()), (VIP6, world.client.v6())] {
        let far = Met::Served("far".into(), own);
        assert_eq!(
            (tcp(&world.client.ns, at(vip, 80)), udp(&world.client.ns, at(vip, 80))),
            (far.clone(), far)
        );
    }
    let hits = world.node().on(Dataplane::counters).unwrap().services;
    assert_eq!((hits[&frontend(VIP4, TCP, 80)], hits[&frontend(VIP6, UDP, 80)]), (2, 2));
    // Whoever lists all tables lives.
    let listed = world.node().ns.run("nft list ruleset");
    assert!(listed.contains("causeway-services"));
    assert_eq!(world.node().mend(), Vec::<String>::new());
}

#[test]
fn every_backend_is_chosen_and_none_that_has_gone() {
    let mut world = World::new();
    let all = [world.near.v4(), world.far.v4(), world.lab.nodes[1].underlay(0)];
    world.serve(&all, &[]);
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..60 {
        *seen.entry(udp(&world.client.ns, at(VIP4, 80)).server().into()).or_default() += 1;
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
    // By chance nobody gets fewer than five of sixty in a thousand runs.
    assert!(seen.values().all(|count| *count >= 4), "{seen:?}");
    change(world.node(), vec![backends(4, &all[1..])]);
    for _ in 0..20 {
        assert_ne!(udp(&world.client.ns, at(VIP4, 80)).server(), "near");
    }
    change(world.node(), vec![backends(4, &all[..1])]);
    assert_eq!(tcp(&world.client.ns, at(VIP4, 80)).server(), "near");
    assert_eq!(tcp(&world.client.ns, at(VIP6, 80)), Met::Refused, "no backend of that family");
}

#[test]
fn a_node_port_is_asked_at_any_node_by_pods_and_at_the_node_itself_by_others() {
    let mut world = World::new();
    let (near, far) = (world.near.v4(), world.far.v4());
    let inside_is_near = service(Answer::Backends(BackendsId(1)), Answer::Backends(BackendsId(2)));
    let mut deltas = vec![backends(1, &[near]), backends(2, &[far])];
    for protocol in [TCP, UDP] {
        let at = node_port(Family::V4, protocol, 30080);
        deltas.push(Delta::Service(at, Box::new(inside_is_near.clone())));
    }
    change(world.node(), deltas);
    let own = world.client.v4();
    let nodes = [world.lab.nodes[0].underlay(0), world.lab.nodes[1].underlay(0)];
    let hosts = [world.lab.nodes[0].overlay(Family::V4), world.lab.nodes[1].overlay(Family::V4)];
    for address in nodes.into_iter().chain(hosts) {
        for met in [tcp(&world.client.ns, at(address, 30080)), udp(&world.client.ns, at(address, 30080))] {
            assert_eq!(met, Met::Served("near".into(), own), "{address}");
        }
    }
    let node = &world.lab.nodes[0].ns;
    assert_eq!(tcp(node, at(nodes[0], 30080)).server(), "near");
    assert_eq!(tcp(node, at(nodes[1], 30080)), Met::Refused, "that node serves nobody");
    assert_eq!(tcp(node, at("127.0.0.1", 30080)), Met::Refused, "the loopback is no address of a node");
    assert_eq!(tcp(&world.outside, at(nodes[0], 30080)).server(), "far");
    assert_eq!(udp(&world.outside, at(nodes[0], 30080)).server(), "far");
    // A service at a node's very address comes before its node ports.
    let external = frontend(&nodes[0].to_string(), TCP, 30080);
    change(world.node(), vec![Delta::Service(external, Box::new(served(2)))]);
    assert_eq!(tcp(&world.client.ns, at(nodes[0], 30080)).server(), "far");
    assert_eq!(tcp(&world.client.ns, at(nodes[1], 30080)).server(), "near");
}

#[test]
fn others_are_served_only_where_that_is_ours_and_pods_always() {
    let mut world = World::of(HostServices::Deferred);
    let near = world.near.v4();
    world.serve(&[near], &[]);
    let at_node = node_port(Family::V4, TCP, 30080);
    change(world.node(), vec![Delta::Service(at_node, Box::new(served(4)))]);
    let node = world.lab.nodes[0].underlay(0);
    let unserved = |met: Met| !matches!(met, Met::Served(..));
    assert_eq!(tcp(&world.client.ns, at(VIP4, 80)).server(), "near");
    assert_eq!(tcp(&world.client.ns, at(node, 30080)).server(), "near");
    assert!(unserved(tcp(&world.lab.nodes[0].ns, at(VIP4, 80))));
    assert!(unserved(tcp(&world.lab.nodes[0].ns, at(node, 30080))));
    assert!(unserved(tcp(&world.outside, at(VIP4, 80))) && unserved(tcp(&world.outside, at(node, 30080))));
    let mut settings = world.lab.nodes[0].snapshot.settings.clone();
    settings.host_services = HostServices::Own;
    change(world.node(), vec![Delta::Settings(Box::new(settings))]);
    assert_eq!(tcp(&world.lab.nodes[0].ns, at(VIP4, 80)).server(), "near");
    assert_eq!(tcp(&world.lab.nodes[0].ns, at(node, 30080)).server(), "near");
    let client: IpAddr = OUTSIDE[0].parse().unwrap();
    for to in [at(VIP4, 80), at(node, 30080)] {
        assert_eq!(tcp(&world.outside, to), Met::Served("near".into(), client));
    }
}

#[test]
fn a_client_sticks_to_its_backend_for_a_time_and_no_longer_than_that_is_one() {
    let mut world = World::new();
    let all = [world.near.v4(), world.far.v4(), world.lab.nodes[1].underlay(0)];
    let (near6, far6) = (world.near.v6(), world.far.v6());
    let sticky = |id| {
        let mut service = served(id);
        service.affinity = Some(2);
        Box::new(service)
    };
    let mut deltas = vec![backends(1, &all), backends(2, &[near6, far6])];
    deltas.push(Delta::Service(frontend(VIP4, TCP, 80), sticky(1)));
    deltas.push(Delta::Service(frontend(VIP4, UDP, 81), sticky(1)));
    deltas.push(Delta::Service(frontend(VIP6, TCP, 80), sticky(2)));
    deltas.push(Delta::Service(node_port(Family::V4, TCP, 30080), sticky(1)));
    change(world.node(), deltas);
    let nodes = [world.lab.nodes[0].underlay(0), world.lab.nodes[1].underlay(0)];
    for to in [at(VIP4, 80), at(VIP6, 80)] {
        let first = tcp(&world.client.ns, to);
        for _ in 0..12 {
            assert_eq!(tcp(&world.client.ns, to), first, "{to}");
        }
    }
    let first = tcp(&world.client.ns, at(nodes[0], 30080));
    for turn in 0..12 {
        assert_eq!(tcp(&world.client.ns, at(nodes[turn % 2], 30080)), first, "one frontend at every node");
    }
    let first = udp(&world.client.ns, at(VIP4, 81));
    assert_eq!(udp(&world.client.ns, at(VIP4, 81)), first);
    // When it goes, another one is stuck to.
    let name = tcp(&world.client.ns, at(VIP4, 80)).server().to_owned();
    let servers = ["near", "far", "node1"];
    let rest: Vec<IpAddr> = (0..3).filter(|index| servers[*index] != name).map(|index| all[index]).collect();
    change(world.node(), vec![backends(1, &rest)]);
    let next = tcp(&world.client.ns, at(VIP4, 80));
    assert_ne!(next.server(), name);
    change(world.node(), vec![backends(1, &all)]);
    for _ in 0..8 {
        assert_eq!(tcp(&world.client.ns, at(VIP4, 80)), next, "the one that came back is not gone back to");
    }
    // Its time is up: by chance it stays with the same one in one of 3^8 runs.
    let moved = (0..8).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(2200));
        tcp(&world.client.ns, at(VIP4, 80)) != next
    });
    assert!(moved);
    assert_eq!(world.node().mend(), Vec::<String>::new(), "what packets fill is no reason to mend");
}

#[test]
fn one_backend_is_asked_at_ports_of_its_own_by_several_frontends() {
    let mut world = World::new();
    let near = world.near.v4();
    let second = super::world::Server::new(&world.near.ns, "second", PORT + 1);
    let deltas = vec![
        backends(1, &[near]),
        backends_at(2, &[near], &[], PORT + 1),
        Delta::Service(frontend(VIP4, TCP, 80), Box::new(served(1))),
        Delta::Service(frontend(VIP4, TCP, 443), Box::new(served(2))),
        Delta::Service(frontend("203.0.113.9", TCP, 80), Box::new(served(2))),
    ];
    change(world.node(), deltas);
    let asked = [at(VIP4, 80), at(VIP4, 443), at("203.0.113.9", 80)].map(|to| tcp(&world.client.ns, to));
    assert_eq!(asked.each_ref().map(Met::server), ["near", "second", "second"]);
    change(world.node(), vec![Delta::ServiceGone(frontend(VIP4, TCP, 80))]);
    assert_eq!(tcp(&world.client.ns, at(VIP4, 80)), Met::Refused);
    let hits = world.node().on(Dataplane::counters).unwrap().services;
    assert_eq!((hits.get(&frontend(VIP4, TCP, 80)), hits[&frontend(VIP4, TCP, 443)]), (None, 1));
    drop(second);
}
