//! However a state came about, what is in the kernel is what a load of it would be.

use std::collections::BTreeMap;

use causeway_model::service::{At, Backends, Service, ServicePort};
use causeway_model::{Family, NameServer, Node, NodeId, Overlay, PortProtocol, Settings, TunnelOwner};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;

fn nobody() -> Snapshot {
    let id = NodeId { cluster: "lyon".parse().unwrap(), name: "n1".parse().unwrap() };
    let node = Node {
        underlay: vec![[192, 0, 2, 1].into()],
        vtep_mac: Node::derived_vtep_mac(&id),
        pod_prefixes: vec!["10.70.1.0/24".parse().unwrap()],
        id,
    };
    Snapshot::new(Settings {
        overlay: Overlay { vni: 51717.try_into().unwrap(), port: 4789 },
        tunnel_address: node.underlay[0],
        tunnel: TunnelOwner::Kernel,
        uplink: Default::default(),
        pod_mtu: 1450,
        connections: Default::default(),
        host_services: Default::default(),
        masquerade: None,
        names: NameServer::default(),
        node,
    })
}

fn frontend(number: u8) -> Frontend {
    let at = if number == 0 { At::Nodes(Family::V4) } else { At::Address([10, 96, 0, number].into()) };
    Frontend { at, protocol: PortProtocol::Udp, port: 80 }
}

fn service(inside: Answer, outside: Answer, affinity: Option<u32>, sources: bool) -> Service {
    let id = ServicePort {
        cluster: "lyon".parse().unwrap(),
        namespace: "default".into(),
        name: "web".into(),
        port: String::new(),
    };
    let sources = sources.then(|| vec!["192.0.2.0/24".parse().unwrap()]);
    Service { id, inside, outside, sources, affinity }
}

fn backends(chosen: &[u8], leaving: &[u8]) -> Backends {
    let all =
        |of: &[u8]| of.iter().map(|n| Backend { address: [10, 70, 1, *n].into(), port: 8080 }).collect();
    Backends::alike(all(chosen), all(leaving))
}

/// Backends that get connections by weight.
fn weighted(chosen: &BTreeMap<u8, u32>, leaving: &[u8]) -> Backends {
    let backend = |n: &u8| Backend { address: [10, 70, 1, *n].into(), port: 8080 };
    Backends::weighted(chosen.iter().map(|(n, weight)| (backend(n), *weight)), leaving.iter().map(backend))
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        Just(Answer::Refuse),
        Just(Answer::Drop),
        (0_u32..4).prop_map(|id| Answer::Backends(BackendsId(id))),
    ]
}

fn delta() -> impl Strategy<Value = Delta> {
    let affinity = prop_oneof![Just(None), Just(Some(60)), Just(Some(90))];
    prop_oneof![
        (0_u8..5, answer(), answer(), affinity, any::<bool>()).prop_map(
            |(at, inside, outside, affinity, sources)| {
                Delta::Service(frontend(at), Box::new(service(inside, outside, affinity, sources)))
            }
        ),
        (0_u8..5).prop_map(|at| Delta::ServiceGone(frontend(at))),
        (0_u32..4, btree_map(1_u8..6, 1_u32..4, 1..5), vec(1_u8..6, 0..3)).prop_map(
            |(id, chosen, leaving)| { Delta::Backends(BackendsId(id), weighted(&chosen, &leaving).into()) }
        ),
        (0_u32..4).prop_map(|id| Delta::BackendsGone(BackendsId(id))),
        (1_u8..5).prop_map(|n| Delta::ServiceAddress([10, 96, 0, n].into())),
        (1_u8..5).prop_map(|n| Delta::ServiceAddressGone([10, 96, 0, n].into())),
    ]
}

type Meaning = (Vec<(u32, Vec<Backend>)>, bool);

/// What a frontend leads to: who is in the slots of each side, in whatever order, how sticky, and whether by a way for just so many.
fn meaning(loaded: &Loaded) -> BTreeMap<Frontend, Meaning> {
    let choices: BTreeMap<u32, Choice> =
        loaded.ways.iter().map(|(choice, number)| (*number, *choice)).collect();
    let placed: BTreeMap<u32, &Placed> = loaded.backends.values().map(|one| (one.number, one)).collect();
    let of = |told: &Told| {
        let sides = told.answers.iter().map(|(way, number)| match choices.get(way) {
            None => (*way, Vec::new()),
            Some(choice) => {
                let mut slots = placed[number].slots.clone();
                assert_eq!(choice.of as usize, slots.len());
                slots.sort_unstable();
                (1000 + choice.sticks, slots)
            }
        });
        (sides.collect(), told.sources.is_some())
    };
    loaded.frontends.iter().map(|(frontend, told)| (*frontend, of(told))).collect()
}

proptest! {
    #[test]
    fn changes_come_to_what_a_load_comes_to(updates in vec(vec(delta(), 1..6), 1..12)) {
        let mut wanted = nobody();
        let mut kept = Loaded::default();
        kept.take_up(Loaded::default().becoming(all_of(&wanted), &wanted));
        for deltas in updates {
            let things = deltas.iter().flat_map(Thing::of).collect();
            deltas.into_iter().for_each(|delta| wanted.apply(delta));
            let pending = kept.becoming(things, &wanted);
            // No element comes twice, and none goes that is not there.
            kept.take_up(pending);
            let mut entries = kept.entries();
            entries.sort();
            let mut keys: Vec<_> = entries.iter().map(|entry| (entry.set, &entry.key)).collect();
            keys.dedup();
            prop_assert_eq!(keys.len(), entries.len());
            let mut anew = Loaded::default();
            anew.take_up(Loaded::default().becoming(all_of(&wanted), &wanted));
            prop_assert_eq!(meaning(&kept), meaning(&anew));
            let stuck = |loaded: &Loaded| loaded.entries().into_iter().filter(|e| matches!(e.set, Set::Members(_))).count();
            prop_assert_eq!(stuck(&kept), stuck(&anew));
            prop_assert!(!kept.becoming(all_of(&wanted), &wanted).is_change());
        }
    }
}

#[test]
fn flows_move_when_their_backend_goes_and_not_before() {
    let mut wanted = nobody();
    wanted.apply(Delta::Backends(BackendsId(1), backends(&[1, 2], &[]).into()));
    let to = Answer::Backends(BackendsId(1));
    wanted.apply(Delta::Service(frontend(3), Box::new(service(to, to, None, false))));
    let mut kept = Loaded::default();
    kept.take_up(Loaded::default().becoming(all_of(&wanted), &wanted));
    let mut moves = |chosen: &[u8], leaving: &[u8]| {
        let delta = Delta::Backends(BackendsId(1), backends(chosen, leaving).into());
        let things = Thing::of(&delta).into_iter().collect();
        wanted.apply(delta);
        let pending = kept.becoming(things, &wanted);
        let moved = !pending.moved.is_empty();
        kept.take_up(pending);
        moved
    };
    assert!(!moves(&[1, 2, 3], &[]), "one more");
    assert!(!moves(&[1, 2], &[3]), "one is leaving");
    assert!(moves(&[1, 2], &[]), "and has left");
    assert!(moves(&[2], &[]));
}
