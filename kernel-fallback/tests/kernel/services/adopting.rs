//! What a process takes over from the one before it, and what it takes away.

use causeway_model::service::{Answer, BackendsId};
use causeway_model::{Delta, Family};

use super::tending::{broken, populate};
use super::world::{Met, TCP, VIP4, World, at, backends, change, frontend, node_port, served, service, tcp};

const TABLE: &str = "inet causeway-services";

/// What the kernel tells this table from any other by.
fn handle(world: &mut World) -> String {
    let listed = world.node().ns.run(&format!("nft -a list table {TABLE}"));
    listed.lines().next().unwrap().to_owned()
}

fn nothing() -> Vec<String> {
    Vec::new()
}

#[test]
fn a_new_process_changes_the_table_that_is_there() {
    let mut world = World::new();
    populate(&mut world);
    let table = handle(&mut world);
    world.node().restart();
    world.node().apply_whole();
    assert_eq!(world.node().mend(), nothing());
    assert_eq!(handle(&mut world), table);
    // Whoever compiles services anew gives backends other numbers, and everything else has changed as well.
    let node = world.lab.nodes[0].underlay(0);
    let mut services = (*world.node().snapshot.services).clone();
    let turned = |answer: &mut Answer| {
        if let Answer::Backends(BackendsId(id)) = answer {
            *id = 13 - *id;
        }
    };
    services.backends = services.backends.into_iter().map(|(id, all)| (BackendsId(13 - id.0), all)).collect();
    for service in services.frontends.values_mut() {
        turned(&mut service.inside);
        turned(&mut service.outside);
    }
    world.node().snapshot.services = services.into();
    world.node().restart();
    world.node().apply_whole();
    assert_eq!((handle(&mut world), broken(&mut world)), (table.clone(), nothing()));
    let mut some = service(Answer::Backends(BackendsId(50)), Answer::Drop);
    some.sources = Some(vec!["10.70.1.0/25".parse().unwrap(), "192.0.2.64/26".parse().unwrap()]);
    let deltas = [
        Delta::BackendsGone(BackendsId(12)),
        Delta::Backends(
            BackendsId(50),
            std::sync::Arc::clone(&world.node().snapshot.services.backends[&BackendsId(12)]),
        ),
        Delta::Service(frontend(VIP4, TCP, 87), Box::new(some)),
        Delta::ServiceGone(node_port(Family::V4, TCP, 30080)),
        Delta::ServicePrefixes(vec!["10.96.0.0/17".parse().unwrap()]),
    ];
    let kept = world.node().snapshot.clone();
    deltas.into_iter().rev().for_each(|delta| world.node().snapshot.apply(delta));
    world.node().restart();
    world.node().apply_whole();
    assert_eq!((handle(&mut world), world.node().mend()), (table.clone(), nothing()));
    assert_eq!(tcp(&world.client.ns, at(VIP4, 87)), Met::Served("near".into(), world.client.v4()));
    assert_eq!(tcp(&world.outside, at(VIP4, 87)), Met::Silence);
    assert_eq!(tcp(&world.client.ns, at(node, 30080)), Met::Refused);
    world.node().snapshot = kept;
    world.node().restart();
    world.node().apply_whole();
    assert_eq!((handle(&mut world), broken(&mut world)), (table, nothing()));
}

#[test]
fn what_another_hand_did_while_nobody_was_there_is_mended() {
    let mut world = World::new();
    populate(&mut world);
    for what in ["flush set inet causeway-services local4", "flush map inet causeway-services frontends4"] {
        let table = handle(&mut world);
        world.node().ns.run(&format!("nft {what}"));
        world.node().restart();
        world.node().apply_whole();
        assert_eq!((handle(&mut world), broken(&mut world)), (table, nothing()), "{what}: elements alone");
    }
    for what in ["flush chain inet causeway-services nobody4", "delete table inet causeway-services"] {
        let table = handle(&mut world);
        world.node().ns.run(&format!("nft {what}"));
        world.node().restart();
        world.node().apply_whole();
        assert_ne!(handle(&mut world), table, "{what}");
        assert_eq!(broken(&mut world), nothing(), "{what}");
        assert_eq!(world.node().mend(), nothing());
    }
}

#[test]
fn chains_that_nobody_uses_go() {
    let mut world = World::new();
    populate(&mut world);
    let has = |world: &mut World, chain: &str| {
        world.node().ns.run("nft list chains").contains(&format!("chain {chain} {{"))
    };
    assert!(has(&mut world, "inside_1_0") && has(&mut world, "outside_2_60"));
    let (near, far) = (world.near.v4(), world.far.v4());
    change(world.node(), vec![backends(3, &[near])]);
    assert_eq!(world.node().mend(), nothing());
    assert!(!has(&mut world, "inside_2_60") && !has(&mut world, "outside_2_60"));
    assert!(has(&mut world, "inside_1_60") && has(&mut world, "inside_1_0"));
    // And come again, for a process that took over, too.
    world.node().restart();
    world.node().apply_whole();
    change(
        world.node(),
        vec![backends(3, &[near, far]), Delta::Service(frontend(VIP4, TCP, 90), Box::new(served(3)))],
    );
    assert_eq!(world.node().mend(), nothing());
    assert!(has(&mut world, "inside_2_0") && has(&mut world, "inside_2_60"));
    assert_eq!(broken(&mut world), nothing());
}
