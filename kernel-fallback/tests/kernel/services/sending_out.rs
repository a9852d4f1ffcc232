//! Whom backends see, and with which address packets of pods leave the node.

use std::net::IpAddr;
use std::sync::Arc;

use causeway_model::policy::{Direction, RuleNumber, StageId};
use causeway_model::service::{Answer, BackendsId};
use causeway_model::{Delta, Family, Identity, Masquerade};

use super::world::{
    Met, OUTSIDE, PORT, TCP, UDP, VIP4, VIP6, World, at, backends, change, frontend, node_port, served,
    service, tcp, udp,
};
use crate::lab::LabNode;
use crate::sample::stage;

fn outside(family: usize) -> IpAddr {
    OUTSIDE[family].parse().unwrap()
}

#[test]
fn a_client_from_outside_is_seen_by_pods_here_and_hidden_from_all_others() {
    let mut world = World::new();
    let both = |world: &World, index: usize| world.lab.nodes[index].underlay(0);
    let (here, there) = (both(&world, 0), both(&world, 1));
    let host = world.lab.nodes[0].overlay(Family::V4);
    let cases = [
        (world.near.v4(), "near", outside(0)),
        (world.far.v4(), "far", host),
        (there, "node1", here),
        (outside(0), "outside", here),
        (here, "node0", outside(0)),
    ];
    for (backend, name, seen) in cases {
        let mut deltas = vec![backends(1, &[backend])];
        for protocol in [TCP, UDP] {
            for at in [frontend(VIP4, protocol, 80), node_port(Family::V4, protocol, 30080)] {
                deltas.push(Delta::Service(at, Box::new(served(1))));
            }
        }
        change(world.node(), deltas);
        for to in [at(VIP4, 80), at(here, 30080)] {
            let met = Met::Served(name.into(), seen);
            assert_eq!((tcp(&world.outside, to), udp(&world.outside, to)), (met.clone(), met), "{to}");
        }
    }
    let host = world.lab.nodes[0].overlay(Family::V6);
    for (backend, name, seen) in [(world.near.v6(), "near", outside(1)), (world.far.v6(), "far", host)] {
        world.serve(&[], &[backend]);
        assert_eq!(tcp(&world.outside, at(VIP6, 80)), Met::Served(name.into(), seen));
    }
}

#[test]
fn the_nodes_own_processes_are_answered_by_whoever_serves() {
    let mut world = World::new();
    let node = |world: &World, index: usize| world.lab.nodes[index].underlay(0);
    let here = node(&world, 0);
    let cases =
        [(world.near.v4(), "near"), (world.far.v4(), "far"), (node(&world, 1), "node1"), (here, "node0")];
    for (backend, name) in cases {
        world.serve(&[backend], &[]);
        let ns = &world.lab.nodes[0].ns;
        let own = [here, world.lab.nodes[0].overlay(Family::V4)];
        for met in [tcp(ns, at(VIP4, 80)), udp(ns, at(VIP4, 80))] {
            assert_eq!(met.server(), name);
            assert!(own.contains(&met.seen()), "{met:?}");
        }
    }
    let cases =
        [(world.near.v6(), "near"), (world.far.v6(), "far"), (world.lab.nodes[1].underlay(1), "node1")];
    for (backend, name) in cases {
        world.serve(&[], &[backend]);
        assert_eq!(tcp(&world.lab.nodes[0].ns, at(VIP6, 80)).server(), name);
    }
}

#[test]
fn a_pod_reaches_itself_and_is_answered_by_the_service() {
    let mut world = World::new();
    let own = [world.near.v4(), world.near.v6()];
    world.serve(&own[..1], &own[1..]);
    for (vip, family) in [(VIP4, Family::V4), (VIP6, Family::V6)] {
        let met = Met::Served("near".into(), world.lab.nodes[0].overlay(family));
        assert_eq!((tcp(&world.near.ns, at(vip, 80)), udp(&world.near.ns, at(vip, 80))), (met.clone(), met));
    }
    // Judged is the pod, not the address that it sees.
    let near = world.near.endpoint.clone();
    isolate(world.node(), &near, Direction::Ingress);
    assert_eq!(tcp(&world.near.ns, at(VIP4, 80)), Met::Silence);
    assert_eq!(tcp(&world.client.ns, at(VIP4, 80)), Met::Silence);
}

/// Denies all of an endpoint's connections in one direction.
fn isolate(node: &mut LabNode, endpoint: &causeway_model::Endpoint, direction: Direction) {
    let mut endpoint = node.snapshot.endpoints[&endpoint.key].clone();
    let table = endpoint.policy.of_mut(direction);
    table.stages = vec![StageId(9)];
    table.epoch += 1;
    let rule = causeway_model::policy::RuleId {
        policy: "nobody".into(),
        direction,
        index: causeway_model::policy::RuleIndex::Rule(0),
    };
    let deltas = vec![
        Delta::Rule(RuleNumber(9), rule),
        Delta::Stage(StageId(9), Arc::new(stage(&[], Some(9)))),
        Delta::Endpoint(Box::new(endpoint)),
    ];
    change(node, deltas);
}

#[test]
fn what_the_node_forwards_is_not_its_own_also_when_it_was_translated() {
    let mut world = World::new();
    let near = world.near.v4();
    let mut deltas = vec![backends(1, &[near])];
    let here = world.lab.nodes[0].underlay(0);
    let hosts = [here, world.lab.nodes[0].overlay(Family::V4)];
    deltas.extend(hosts.map(|address| Delta::Identity(address, Identity::HOST)));
    deltas.push(Delta::PodPrefixes(vec!["10.70.0.0/16".parse().unwrap()]));
    deltas.push(Delta::Service(node_port(Family::V4, TCP, 30080), Box::new(served(1))));
    deltas.push(Delta::Service(frontend(VIP4, TCP, 80), Box::new(served(1))));
    change(world.node(), deltas);
    assert_eq!(tcp(&world.outside, at(here, 30080)).server(), "near");
    let endpoint = world.near.endpoint.clone();
    isolate(world.node(), &endpoint, Direction::Ingress);
    assert_eq!(tcp(&world.outside, at(here, 30080)), Met::Silence);
    assert_eq!(tcp(&world.outside, at(VIP4, 80)), Met::Silence);
    assert_eq!(tcp(&world.client.ns, at(VIP4, 80)), Met::Silence);
    assert_eq!(tcp(&world.lab.nodes[0].ns, at(VIP4, 80)).server(), "near", "the node itself");
    assert_eq!(tcp(&world.lab.nodes[0].ns, at(here, 30080)).server(), "near");
}

#[test]
fn pods_leave_the_clusters_as_the_node_unless_told_otherwise() {
    let mut world = World::new();
    let own = [world.client.v4(), world.client.v6()];
    let to = [at(OUTSIDE[0], PORT), at(OUTSIDE[1], PORT)];
    assert_eq!(tcp(&world.client.ns, to[0]).seen(), own[0], "nobody asked for it");
    let here = [0, 1].map(|family| world.lab.nodes[0].underlay(family));
    masquerade(&mut world, &[]);
    for family in [0, 1] {
        let met = Met::Served("outside".into(), here[family]);
        assert_eq!(
            (tcp(&world.client.ns, to[family]), udp(&world.client.ns, to[family])),
            (met.clone(), met)
        );
    }
    let (near, far) = (world.near.v4(), world.far.v4());
    let there = world.lab.nodes[1].underlay(0);
    for address in [near, far, here[0], there, world.lab.nodes[1].overlay(Family::V4)] {
        assert_eq!(tcp(&world.client.ns, at(address, PORT)).seen(), own[0], "{address}");
    }
    // A backend outside is the world, too.
    world.serve(&[OUTSIDE[0].parse().unwrap()], &[]);
    assert_eq!(tcp(&world.client.ns, at(VIP4, 80)), Met::Served("outside".into(), here[0]));
    masquerade(&mut world, &["192.0.2.64/26", "2001:db8::/126"]);
    assert_eq!(tcp(&world.client.ns, to[0]).seen(), own[0]);
    assert_eq!(tcp(&world.client.ns, to[1]).seen(), here[1]);
    assert_eq!(world.node().mend(), Vec::<String>::new());
    let listed = world.node().ns.run("nft list ruleset");
    assert!(listed.contains("causeway-services"));
}

fn masquerade(world: &mut World, except: &[&str]) {
    let mut settings = world.lab.nodes[0].snapshot.settings.clone();
    let except = except.iter().map(|prefix| prefix.parse().unwrap()).collect();
    settings.masquerade = Some(Masquerade { except });
    change(world.node(), vec![Delta::Settings(Box::new(settings))]);
}

#[test]
fn inside_and_outside_have_backends_of_their_own() {
    let mut world = World::new();
    let (near, far) = (world.near.v4(), world.far.v4());
    let split = service(Answer::Backends(BackendsId(1)), Answer::Backends(BackendsId(2)));
    let deltas = vec![
        backends(1, &[far]),
        backends(2, &[near]),
        Delta::Service(frontend(VIP4, TCP, 80), Box::new(split)),
    ];
    change(world.node(), deltas);
    let asked = [&world.client.ns, &world.lab.nodes[0].ns, &world.outside].map(|ns| tcp(ns, at(VIP4, 80)));
    assert_eq!(asked.each_ref().map(Met::server), ["far", "far", "near"]);
}
