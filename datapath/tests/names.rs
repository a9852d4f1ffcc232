//! The address at which the agent answers for names: pods ask there whatever policy says, nobody finds anything else there, and
//! nobody else gets there.
#![expect(clippy::unwrap_used, reason = "a story that goes wrong is a panic")]

mod rig;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use causeway_datapath::connection::Connections;
use causeway_datapath::{Port, Tracking};
use causeway_model::policy::{Class, Direction, RowVerdicts, RuleNumber, Rulebook, Stage, StageId, Table};
use causeway_model::{DropReason, Family, GATEWAY_MAC, Snapshot};
use rig::{HOST_MAC, Side, ether, ip, key, ping, plain, sent_by, snapshot, tcp, tunnelled, udp};

const A: [&str; 2] = ["10.70.1.10", "fd70:0:0:1::10"];
const NAMES: [&str; 2] = ["169.254.53.53", "fd53::53"];
const DENIES: RuleNumber = RuleNumber(16);

/// Node east, which answers for names; its pod `a` may begin and take nothing.
fn state() -> Snapshot {
    let mut snapshot = snapshot(1, Family::V4);
    snapshot.settings.names.addresses = NAMES.map(ip).into();
    let nobody = Stage {
        rules: Vec::new(),
        otherwise: Some(DENIES),
        identities: Vec::new(),
        v4: Vec::new(),
        v6: Vec::new(),
        ports: [(); 3].map(|()| vec![(0, Class(0))]),
        rows: vec![RowVerdicts { start: 0, otherwise: Stage::NO_RULE }],
        verdicts: Vec::new(),
    };
    let mut book = Rulebook::default();
    book.stages.insert(StageId(1), Arc::new(nobody));
    snapshot.policy = Arc::new(book);
    let tables = &mut snapshot.endpoints.get_mut(&key("a")).unwrap().policy;
    for direction in Direction::BOTH {
        *tables.of_mut(direction) = Table { stages: vec![StageId(1)], epoch: 1 };
    }
    snapshot
}

fn side(snapshot: &Snapshot) -> Side {
    const CAPACITY: u32 = 256;
    let words = (0..Connections::words(CAPACITY)).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak();
    let tracking = Tracking::new(Connections::open(words, CAPACITY).unwrap());
    let Side { world, worker, slots, now } = Side::of(snapshot);
    let worker = worker.into_inner().tracking(tracking);
    worker.tally().make_room(DENIES);
    Side { world, worker: RefCell::new(worker), slots, now }
}

fn asks(side: &Side, packet: &[u8]) -> Result<Port, DropReason> {
    side.one(side.port("a"), plain(&sent_by(10, packet))).map(|out| out.egress)
}

fn answers(side: &Side, packet: &[u8]) -> Result<Port, DropReason> {
    side.one(Port::Host, plain(&ether(GATEWAY_MAC, HOST_MAC, packet))).map(|out| out.egress)
}

#[test]
fn a_pod_that_may_do_nothing_asks_and_is_answered() {
    let side = side(&state());
    for (a, names) in A.into_iter().zip(NAMES) {
        assert_eq!(asks(&side, &udp(a, names, (1000, 53), 40)), Ok(Port::Host), "{names}");
        assert_eq!(answers(&side, &udp(names, a, (53, 1000), 90)), Ok(side.port("a")), "{names}");
        let unasked = answers(&side, &udp(names, a, (53, 1001), 90));
        assert_eq!(unasked, Err(DropReason::PolicyDenied), "what nobody asked for");
    }
    assert_eq!(
        asks(&side, &udp(A[0], "10.70.2.10", (1000, 53), 40)),
        Err(DropReason::PolicyDenied),
        "elsewhere"
    );
}

#[test]
fn nothing_else_is_there_for_anybody() {
    let mut free = state();
    free.endpoints.get_mut(&key("a")).unwrap().policy = Default::default();
    for (whose, state) in [("under policy", state()), ("free", free)] {
        let side = side(&state);
        for (a, names) in A.into_iter().zip(NAMES) {
            for packet in [udp(a, names, (1000, 54), 40), tcp(a, names, (1000, 80), 0), ping(a, names, 40)] {
                side.run(side.port("a"), [plain(&sent_by(10, &packet))]);
            }
        }
        assert_eq!(side.dropped(DropReason::ServiceRefused), 6, "{whose}");
    }
}

#[test]
fn nobody_gets_there_from_elsewhere() {
    let side = side(&state());
    let far = udp("10.70.2.10", NAMES[0], (1000, 53), 40);
    let verdict = side.one(Port::Uplink, plain(&tunnelled(&rig::inner_to_east(&far)))).map(|out| out.egress);
    assert_eq!(verdict, Err(DropReason::NoRoute), "through the tunnel");
    let world = answers(&side, &udp("203.0.113.5", NAMES[0], (1000, 53), 40));
    assert_eq!(world, Err(DropReason::NoRoute), "from outside");
    let spoofed = udp(NAMES[0], "10.70.2.10", (53, 1000), 40);
    assert_eq!(answers(&side, &spoofed), Err(DropReason::SpoofedAddress), "behind the tunnel nobody asked");
    assert_eq!(asks(&side, &udp(NAMES[0], A[0], (53, 1000), 40)), Err(DropReason::SpoofedAddress), "a pod");
}

#[test]
fn without_a_mesh_it_is_an_address_like_any_other() {
    let mut state = state();
    state.settings.names = Default::default();
    assert_eq!(asks(&side(&state), &udp(A[0], NAMES[0], (1000, 53), 40)), Err(DropReason::PolicyDenied));
}
