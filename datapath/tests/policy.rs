//! The program under policy: what tables allow begins, what they deny no more stops, and the rule that says so is counted.
#![expect(clippy::unwrap_used, reason = "a story that goes wrong is a panic")]

mod rig;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use causeway_datapath::connection::Connections;
use causeway_datapath::{Port, Tracking};
use causeway_model::policy::{
    Action, Class, Direction, Row, RowVerdicts, RuleNumber, Rulebook, Stage, StageId, StageRule, Table,
};
use causeway_model::{DropReason, Family, GATEWAY_MAC, Identity, Snapshot};
use rig::{Side, key, ping, plain, sent_by, snapshot, tunnelled, udp};

const A: &str = "10.70.1.10";
const B: &str = "10.70.1.11";
const FAR: &str = "10.70.2.10";
const OTHER: &str = "10.70.2.11";
const STRANGER: &str = "10.70.2.99";
const ALLOWS: RuleNumber = RuleNumber(16);
const ISOLATES: RuleNumber = RuleNumber(17);
const ISOLATION: StageId = StageId(1);
const OPEN_TO_ALL: StageId = StageId(2);

/// Allows this identity UDP 53, and everything else nobody.
fn isolation(allowed: Identity) -> Stage {
    Stage {
        rules: vec![StageRule { action: Action::Accept, number: ALLOWS }],
        otherwise: Some(ISOLATES),
        identities: vec![(allowed, Row(1))],
        v4: Vec::new(),
        v6: Vec::new(),
        ports: [Vec::new(), vec![(0, Class(0)), (53, Class(1)), (54, Class(0))], Vec::new()],
        rows: vec![RowVerdicts { start: 0, otherwise: Stage::NO_RULE }; 2],
        verdicts: vec![(Class(1), 0)],
    }
}

/// Everybody, everything.
fn open_to_all() -> Stage {
    let rows = vec![RowVerdicts { start: 0, otherwise: 0 }];
    Stage { v4: vec![([0, 0, 0, 0].into(), Row(0))], rows, verdicts: Vec::new(), ..isolation(Identity(1)) }
}

/// Node east, whose pod `a` has this table in this direction.
fn under(direction: Direction, stages: Vec<StageId>, epoch: u32) -> Snapshot {
    let mut snapshot = snapshot(1, Family::V4);
    let mut book = Rulebook::default();
    book.stages.insert(ISOLATION, Arc::new(isolation(Identity(400))));
    book.stages.insert(OPEN_TO_ALL, Arc::new(open_to_all()));
    book.peers.clusters = vec!["10.70.0.0/16".parse().unwrap(), "fd70::/32".parse().unwrap()];
    for (address, identity) in [(A, 300), (B, 401), (FAR, 400), (OTHER, 401), ("192.0.2.1", Identity::HOST.0)]
    {
        book.peers.addresses.insert(address.parse().unwrap(), Identity(identity));
    }
    snapshot.policy = Arc::new(book);
    *snapshot.endpoints.get_mut(&key("a")).unwrap().policy.of_mut(direction) = Table { stages, epoch };
    snapshot
}

fn tracking() -> Tracking {
    const CAPACITY: u32 = 256;
    let words = (0..Connections::words(CAPACITY)).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak();
    Tracking::new(Connections::open(words, CAPACITY).unwrap())
}

fn side(snapshot: &Snapshot, tracking: Tracking) -> Side {
    let Side { world, worker, slots, now } = Side::of(snapshot);
    let worker = worker.into_inner().tracking(tracking);
    worker.tally().make_room(ISOLATES);
    Side { world, worker: RefCell::new(worker), slots, now }
}

fn out(side: &Side, packet: &[u8]) -> Result<(), DropReason> {
    side.one(side.port("a"), plain(&sent_by(10, packet))).map(drop)
}

fn back(side: &Side, packet: &[u8]) -> Result<(), DropReason> {
    side.one(Port::Uplink, plain(&tunnelled(&rig::inner_to_east(packet)))).map(drop)
}

fn denied(side: &Side, rule: RuleNumber) -> u64 {
    side.worker.borrow().tally().rule(rule).packets
}

const DENIED: Result<(), DropReason> = Err(DropReason::PolicyDenied);

#[test]
fn what_a_pod_begins_is_judged_by_whom_it_is_for_and_the_rule_is_counted() {
    let side = side(&under(Direction::Egress, vec![ISOLATION], 1), tracking());
    assert_eq!(out(&side, &udp(A, FAR, (1000, 53), 20)), Ok(()));
    assert_eq!(back(&side, &udp(FAR, A, (53, 1000), 20)), Ok(()), "an answer");
    for packet in [udp(A, FAR, (1000, 54), 20), udp(A, OTHER, (1000, 53), 20), ping(A, FAR, 20)] {
        assert_eq!(out(&side, &packet), DENIED);
    }
    assert_eq!((denied(&side, ISOLATES), denied(&side, ALLOWS)), (3, 0));
    assert_eq!(out(&side, &udp(A, STRANGER, (1000, 53), 20)), DENIED);
    assert_eq!(denied(&side, RuleNumber::unknown(Direction::Egress)), 1, "nobody that is known");
    assert_eq!(back(&side, &udp(OTHER, A, (1, 2), 20)), Ok(()), "the other direction is open");
    assert_eq!(side.dropped(DropReason::PolicyDenied), 4);
}

#[test]
fn what_comes_to_a_pod_is_judged_by_whom_it_is_from() {
    let side = side(&under(Direction::Ingress, vec![ISOLATION], 1), tracking());
    assert_eq!(back(&side, &udp(FAR, A, (1000, 53), 20)), Ok(()));
    assert_eq!(out(&side, &udp(A, FAR, (53, 1000), 20)), Ok(()), "an answer");
    assert_eq!(back(&side, &udp(OTHER, A, (1000, 53), 20)), DENIED);
    let neighbour = |packet: &[u8]| side.one(side.port("b"), plain(&sent_by(11, packet))).map(drop);
    assert_eq!(neighbour(&udp(B, A, (1000, 53), 20)), DENIED, "on the same node, too");
    assert_eq!(
        side.one(
            Port::Host,
            plain(&rig::ether(GATEWAY_MAC, rig::HOST_MAC, &udp("192.0.2.1", A, (1, 99), 20)))
        )
        .map(drop),
        Ok(()),
        "its node"
    );
    assert_eq!(
        side.one(
            Port::Host,
            plain(&rig::ether(GATEWAY_MAC, rig::HOST_MAC, &udp("198.51.100.1", A, (1, 53), 20)))
        )
        .map(drop),
        DENIED,
        "the world"
    );
    assert_eq!(denied(&side, ISOLATES), 3);
}

#[test]
fn a_flow_is_judged_again_when_its_pods_tables_have_moved_and_others_are_not() {
    let tracking = tracking();
    let before = side(&under(Direction::Egress, vec![OPEN_TO_ALL], 1), tracking);
    for (to, port) in [(FAR, 53), (OTHER, 53)] {
        out(&before, &udp(A, to, (1000, port), 20)).unwrap();
        back(&before, &udp(to, A, (port, 1000), 20)).unwrap();
    }
    // The tables are others, and no epoch moved: nobody asks.
    let same = side(&under(Direction::Egress, vec![ISOLATION], 1), tracking);
    assert_eq!(out(&same, &udp(A, OTHER, (1000, 53), 20)), Ok(()));
    let after = side(&under(Direction::Egress, vec![ISOLATION], 2), tracking);
    assert_eq!(out(&after, &udp(A, OTHER, (1000, 53), 20)), DENIED);
    assert_eq!(back(&after, &udp(OTHER, A, (53, 1000), 20)), DENIED, "in both directions");
    assert_eq!(
        (out(&after, &udp(A, FAR, (1000, 53), 20)), back(&after, &udp(FAR, A, (53, 1000), 20))),
        (Ok(()), Ok(()))
    );
    assert_eq!(denied(&after, ISOLATES), 2);
    let again = side(&under(Direction::Egress, vec![OPEN_TO_ALL], 3), tracking);
    assert_eq!(back(&again, &udp(OTHER, A, (53, 1000), 20)), Ok(()), "what is allowed once more goes on");
}

#[test]
fn every_fragment_of_what_is_denied_is_counted_by_its_rule() {
    let side = side(&under(Direction::Egress, vec![ISOLATION], 1), tracking());
    let whole = rig::fragmentable(udp(A, OTHER, (1000, 53), 40));
    let piece = |at: usize, len: usize, more: bool| {
        let mut packet = [&whole[..20], &whole[20 + at..20 + at + len]].concat();
        packet[2..4].copy_from_slice(&((20 + len) as u16).to_be_bytes());
        packet[6..8].copy_from_slice(&((at / 8) as u16 | if more { 0x2000 } else { 0 }).to_be_bytes());
        rig::seal_v4(&mut packet);
        packet
    };
    assert_eq!(out(&side, &piece(0, 24, true)), DENIED);
    assert_eq!(out(&side, &piece(24, 24, false)), DENIED);
    assert_eq!(denied(&side, ISOLATES), 2);
}

#[test]
fn without_connections_every_packet_stands_before_the_tables_alone() {
    let side = Side::of(&under(Direction::Egress, vec![ISOLATION], 1));
    side.worker.borrow().tally().make_room(ISOLATES);
    assert_eq!(out(&side, &udp(A, FAR, (1000, 53), 20)), Ok(()));
    assert_eq!(out(&side, &udp(A, OTHER, (1000, 53), 20)), DENIED);
    assert_eq!(denied(&side, ISOLATES), 1);
}
