//! What becomes of flows when services change, ports run out, or the process dies.

mod rig;

use std::collections::BTreeSet;
use std::sync::Arc;

use causeway_datapath::Port;
use causeway_datapath::connection::Timeouts;
use causeway_model::service::{Answer, Backend, Backends, BackendsId, Service};
use causeway_model::{Delta, DropReason, PortProtocol};
use rig::served::*;
use rig::*;

#[test]
fn four_connections_of_one_port_to_one_backend_are_told_apart() {
    // By the address that the client asked: node, peer, service, the backend itself; whichever comes first.
    let asked = [(VIP[0], 80), (NODE[0], 30_080), (EXTERNAL, 80), (FAR[0], 8080)];
    for first in 0..asked.len() {
        let mut served = Served::by([&[FAR[0]], &[FAR[1]]]);
        served.change([
            Delta::Service(
                frontend("nodes", PortProtocol::Udp, 30_080),
                Box::new(service(Answer::Backends(BackendsId(0)))),
            ),
            Delta::Service(
                frontend(EXTERNAL, PortProtocol::Udp, 80),
                Box::new(service(Answer::Backends(BackendsId(0)))),
            ),
        ]);
        let mut ports = BTreeSet::new();
        for turn in 0..2 {
            for at in 0..asked.len() {
                let (to, port) = asked[(first + at) % asked.len()];
                let sent = served.sent(&udp(A[0], to, (4000, port), 20)).unwrap();
                let (from, source, backend, _) = ends(sent.packet());
                assert_eq!((from, backend), (ip(A[0]), ip(FAR[0])));
                assert!(ports.insert(source) == (turn == 0), "{to}: a port of its own, and the same again");
                let back = served.arrives(&udp(FAR[0], A[0], (8080, source), 20)).unwrap();
                assert_eq!(ends(back.packet()), as_ends((to, port), (A[0], 4000)));
            }
        }
        assert!(ports.contains(&4000), "the first keeps its own");
    }
}

#[test]
fn ports_run_out_by_name_and_come_back() {
    let snapshot = Served::by([&[A[0]], &[]]).snapshot;
    let few = tracking().of_worker(3, 16_000);
    let mut served = Served::of(snapshot, few);
    let address = |n: u8| format!("10.96.1.{n}");
    served.change((1..=9).map(|n| {
        Delta::Service(
            frontend(&address(n), PortProtocol::Udp, 80),
            Box::new(service(Answer::Backends(BackendsId(0)))),
        )
    }));
    // All of one port to one backend, seen from the gateway: the port itself, and those of the worker's share.
    let outcomes: Vec<_> =
        (1..=9).map(|n| served.sent(&udp(A[0], &address(n), (4000, 80), 20)).map(drop)).collect();
    let begun = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(begun, 5, "{outcomes:?}");
    assert!(outcomes[begun..].iter().all(|outcome| *outcome == Err(DropReason::NoPortLeft)));
    assert!(served.sent(&udp(A[0], &address(9), (4001, 80), 20)).is_ok(), "another port of the client's");
    served.tracking.connections.sweep(0..CAPACITY, u32::MAX / 2 - 1, &Timeouts::default());
    assert!(served.sent(&udp(A[0], &address(9), (4000, 80), 20)).is_ok());
}

#[test]
fn flows_move_with_their_backends_and_streams_run_on() {
    let mut served = Served::by([&[FAR[0]], &[]]);
    let to = |served: &Served, kind: &str| {
        let sent = served.sent(&packet(kind, (A[0], 4000), (VIP[0], 80))).unwrap();
        ends(sent.packet()).2
    };
    assert_eq!((to(&served, "udp"), to(&served, "syn")), (ip(FAR[0]), ip(FAR[0])));
    served.arrives(&packet("syn-ack", (FAR[0], 8080), (A[0], 4000))).unwrap();
    let second = "10.70.2.11";
    served.change([Delta::Backends(BackendsId(0), backends(&[second], &[FAR[0]], 8080))]);
    assert_eq!(to(&served, "udp"), ip(FAR[0]), "who leaves keeps what it has");
    assert_eq!(served.hits(), 2);
    served.change([Delta::Backends(BackendsId(0), backends(&[second], &[], 8080))]);
    assert_eq!(to(&served, "udp"), ip(second), "who has left does not");
    let ack = flagged(tcp(A[0], VIP[0], (4000, 80), 0), 0x10, 0xffff_fa01);
    assert_eq!(ends(served.sent(&ack).unwrap().packet()).2, ip(FAR[0]), "a stream runs on");
    served.change([Delta::ServiceGone(frontend(VIP[0], PortProtocol::Udp, 80))]);
    served.refused(&packet("udp", (A[0], 4000), (VIP[0], 80)), DropReason::ServiceRefused);
    assert_eq!(served.hits(), 2 - 1, "hits go with their frontend, those of TCP stay");
}

#[test]
fn new_connections_are_shared_by_weight_and_those_there_are_stay() {
    let mut served = Served::by([&[FAR[0]], &[]]);
    let second = "10.70.2.11";
    let weighted = |weights: [u32; 2]| {
        let backend = |address| Backend { address: ip(address), port: 8080 };
        let backends = Backends::weighted([FAR[0], second].map(backend).into_iter().zip(weights), []);
        Delta::Backends(BackendsId(0), Arc::new(backends))
    };
    let to_second = |served: &Served, port| {
        let sent = served.sent(&udp(A[0], VIP[0], (port, 80), 20)).unwrap();
        ends(sent.packet()).2 == ip(second)
    };
    let share =
        |served: &Served, ports: std::ops::Range<u16>| ports.filter(|port| to_second(served, *port)).count();
    served.change([weighted([1, 3])]);
    let before: Vec<_> = (4000..4300).map(|port| to_second(&served, port)).collect();
    let first = before.iter().filter(|second| **second).count();
    assert!((205..245).contains(&first), "{first} of 300 with three quarters");
    served.change([weighted([3, 1])]);
    let then = share(&served, 5000..5300);
    assert!((55..95).contains(&then), "{then} of 300 with a quarter");
    served.change([weighted([5, 0])]);
    assert_eq!(share(&served, 6000..6100), 0, "with none");
    assert!((4000..4300).map(|port| to_second(&served, port)).eq(before), "who has a backend keeps it");
    served.change([weighted([2, 2])]);
    let last = share(&served, 7000..7300);
    assert!(last.abs_diff(150) < 25, "{last} of 300 with half");
}

#[test]
fn a_flow_that_was_begun_before_its_service_does_not_stick() {
    let mut served = Served::by([&[FAR[0]], &[]]);
    let way = |served: &Served, to: &str, port| {
        let sent = served.sent(&udp(A[0], to, (4000, port), 20)).unwrap();
        (sent.egress, ends(sent.packet()).2)
    };
    assert_eq!(way(&served, EXTERNAL, 80), (Port::Host, ip(EXTERNAL)));
    assert_eq!(way(&served, NODE[0], 30_080), (Port::Host, ip(NODE[0])));
    served.change([
        Delta::Service(
            frontend("nodes", PortProtocol::Udp, 30_080),
            Box::new(service(Answer::Backends(BackendsId(0)))),
        ),
        Delta::Service(
            frontend(EXTERNAL, PortProtocol::Udp, 80),
            Box::new(service(Answer::Backends(BackendsId(0)))),
        ),
    ]);
    assert_eq!(way(&served, EXTERNAL, 80), (Port::Uplink, ip(FAR[0])));
    assert_eq!(way(&served, NODE[0], 30_080), (Port::Uplink, ip(FAR[0])));
    served.change([Delta::ServiceGone(frontend("nodes", PortProtocol::Udp, 30_080))]);
    assert_eq!(way(&served, NODE[0], 30_080), (Port::Host, ip(NODE[0])), "and back");
}

#[test]
fn a_syn_that_nobody_answered_goes_to_another_backend_when_its_own_has_gone() {
    let mut served = Served::by([&[FAR[0]], &[]]);
    served.sent(&packet("syn", (A[0], 4000), (VIP[0], 80))).unwrap();
    served.change([Delta::Backends(BackendsId(0), backends(&[B[0]], &[], 8080))]);
    let sent = served.sent(&packet("syn", (A[0], 4000), (VIP[0], 80))).unwrap();
    assert_eq!((sent.egress, ends(sent.packet()).2), (served.side.port("b"), ip(B[0])));
}

#[test]
fn a_port_that_once_asked_a_backend_asks_another_when_that_has_gone() {
    for gone in [true, false] {
        let mut served = Served::by([&[B[0]], &[]]);
        let asks = |served: &Served| served.sent(&packet("syn", (A[0], 4000), (VIP[0], 80)));
        assert_eq!(ends(asks(&served).unwrap().packet()).2, ip(B[0]));
        // It is over: who was asked refuses.
        let refusal = flagged(tcp(B[0], A[0], (8080, 4000), 0), 0x14, 0xffff_fa01);
        served.sent_by_b(&refusal).unwrap();
        served.change([Delta::Backends(BackendsId(0), backends(&[FAR[0]], &[B[0]], 8080))]);
        if gone {
            served.change([Delta::EndpointGone(key("b"))]);
        }
        assert_eq!(ends(asks(&served).unwrap().packet()).2, ip(FAR[0]));
    }
}

#[test]
fn a_death_of_the_process_loses_no_translation() {
    let served = Served::by([&[FAR[0]], &[FAR[1]]]);
    for (at, vip) in [(0, VIP[0]), (1, VIP[1])] {
        served.sent(&packet("syn", (A[at], 4000), (vip, 80))).unwrap();
        served.arrives(&packet("syn-ack", (FAR[at], 8080), (A[at], 4000))).unwrap();
    }
    let served = served.again();
    for (at, vip) in [(0, VIP[0]), (1, VIP[1])] {
        let back = served.arrives(&flagged(tcp(FAR[at], A[at], (8080, 4000), 0), 0x12, 0xffff_fa01)).unwrap();
        assert_eq!(ends(back.packet()), as_ends((vip, 80), (A[at], 4000)));
        let ack = flagged(tcp(A[at], vip, (4000, 80), 0), 0x10, 0xffff_fa01);
        assert_eq!(ends(served.sent(&ack).unwrap().packet()), as_ends((A[at], 4000), (FAR[at], 8080)));
    }
    assert_eq!(served.tracking.connections.live_count(), 2);
}

#[test]
fn a_client_with_affinity_stays_with_its_backend_for_its_time() {
    let far: Vec<_> = (10..40).map(|n| format!("10.70.2.{n}")).collect();
    let far: Vec<_> = far.iter().map(String::as_str).collect();
    let mut served = Served::by([&far, &[]]);
    let udp80 = frontend(VIP[0], PortProtocol::Udp, 80);
    let kept = Service { affinity: Some(100), ..service(Answer::Backends(BackendsId(0))) };
    let chosen =
        |served: &Served, port| ends(served.sent(&udp(A[0], VIP[0], (port, 80), 20)).unwrap().packet()).2;
    let all: BTreeSet<_> = (1000..1040).map(|port| chosen(&served, port)).collect();
    assert!(all.len() > 10, "without it they are spread");
    served.change([Delta::Service(udp80, Box::new(kept))]);
    let all: BTreeSet<_> = (2000..2040).map(|port| chosen(&served, port)).collect();
    assert_eq!(all.len(), 1);
    served
        .change([Delta::Service(frontend(VIP[0], PortProtocol::Udp, 99), Box::new(service(Answer::Refuse)))]);
    let same: BTreeSet<_> = (3000..3040).map(|port| chosen(&served, port)).collect();
    assert_eq!(all, same, "in the next world, too");
    let rest: Vec<_> = far.iter().copied().filter(|address| !all.contains(&ip(address))).collect();
    served.change([Delta::Backends(
        BackendsId(0),
        backends(&rest, &[*far.iter().find(|a| all.contains(&ip(a))).unwrap()], 8080),
    )]);
    let other: BTreeSet<_> = (4000..4040).map(|port| chosen(&served, port)).collect();
    assert!(other.len() == 1 && other != all, "who leaves gets no new connection");
    served.side.now += 101 * 1_000_000_000;
    let later: BTreeSet<_> = (5000..5001).map(|port| chosen(&served, port)).collect();
    assert_eq!(later.len(), 1);
}
