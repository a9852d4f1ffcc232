//! The program with connections: what belongs together goes on, and nothing else does.
#![expect(clippy::unwrap_used, reason = "a story that goes wrong is a panic")]

mod rig;

use std::cell::RefCell;
use std::sync::atomic::AtomicU64;

use causeway_datapath::connection::{Connections, Stage, Timeouts};
use causeway_datapath::{Port, Tracking};
use causeway_model::{Count, DropReason, Family};
use rig::{Side, plain, sent_by, snapshot, tcp, tunnelled, udp};

const A: &str = "10.70.1.10";
const FAR: &str = "10.70.2.10";

fn tracking() -> Tracking {
    const CAPACITY: u32 = 256;
    let words = (0..Connections::words(CAPACITY)).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak();
    let connections = Connections::open(words, CAPACITY).unwrap();
    Tracking::new(connections)
}

/// Node east with connections; pod `a` denies new ones if so asked.
fn east(tracking: Tracking, deny_new: bool) -> Side {
    let mut snapshot = snapshot(1, Family::V4);
    snapshot.endpoints.get_mut(&rig::key("a")).unwrap().deny_new = deny_new;
    let Side { world, worker, slots, now } = Side::of(&snapshot);
    Side { world, worker: RefCell::new(worker.into_inner().tracking(tracking)), slots, now }
}

fn out(side: &Side, packet: &[u8]) -> Result<(), DropReason> {
    side.one(side.port("a"), plain(&sent_by(10, packet))).map(drop)
}

fn back(side: &Side, packet: &[u8]) -> Result<(), DropReason> {
    side.one(Port::Uplink, plain(&tunnelled(&rig::inner_to_east(packet)))).map(drop)
}

fn stages(tracking: &Tracking) -> Vec<Stage> {
    tracking.connections.records(0, &Timeouts::default()).map(|record| record.stage).collect()
}

#[test]
fn a_datagram_begins_a_connection_and_its_answer_establishes_it() {
    let tracking = tracking();
    let side = east(tracking, false);
    out(&side, &udp(A, FAR, (1000, 53), 20)).unwrap();
    assert_eq!(stages(&tracking), [Stage::New]);
    back(&side, &udp(FAR, A, (53, 1000), 30)).unwrap();
    let record = tracking.connections.records(0, &Timeouts::default()).next().unwrap();
    assert_eq!((record.stage, record.from.1, record.to.1), (Stage::Established, 1000, 53));
    let count = |bytes| Count { packets: 1, bytes };
    assert_eq!((record.sent, record.answered), (count(20 + 28), count(30 + 28)), "bytes of IP");
    assert_eq!(tracking.connections.live_count(), 1, "one for both directions");
}

#[test]
fn a_pod_that_denies_new_connections_keeps_those_it_has() {
    let tracking = tracking();
    let before = east(tracking, false);
    out(&before, &udp(A, FAR, (1000, 53), 20)).unwrap();
    back(&before, &udp(FAR, A, (53, 1000), 20)).unwrap();
    out(&before, &udp(A, FAR, (1002, 53), 20)).unwrap();
    let after = east(tracking, true);
    assert_eq!(
        out(&after, &udp(A, FAR, (1002, 53), 20)),
        Err(DropReason::DeniedNew),
        "nobody has answered it yet"
    );
    assert_eq!(out(&after, &udp(A, FAR, (1000, 53), 20)), Ok(()));
    assert_eq!(back(&after, &udp(FAR, A, (53, 1000), 20)), Ok(()));
    assert_eq!(out(&after, &udp(A, FAR, (1001, 53), 20)), Err(DropReason::DeniedNew));
    assert_eq!(back(&after, &udp(FAR, A, (53, 1001), 20)), Err(DropReason::DeniedNew));
    assert_eq!(tracking.connections.live_count(), 2, "what was denied takes no place");
}

#[test]
fn a_pod_begins_no_more_than_it_may_and_more_when_one_has_ended() {
    let tracking = tracking();
    let mut snapshot = snapshot(1, Family::V4);
    snapshot.settings.connections.per_endpoint = Some(3);
    let Side { world, worker, slots, now } = Side::of(&snapshot);
    let side = Side { world, worker: RefCell::new(worker.into_inner().tracking(tracking)), slots, now };
    let begin = |port| out(&side, &udp(A, FAR, (port, 53), 20));
    let begun: Vec<_> = (1..=4).map(begin).collect();
    assert_eq!(begun, [Ok(()), Ok(()), Ok(()), Err(DropReason::ConnectionLimit)]);
    assert_eq!(begin(1), Ok(()), "what it has goes on");
    assert_eq!(
        back(&side, &udp(FAR, A, (53, 9), 20)),
        Err(DropReason::ConnectionLimit),
        "from elsewhere, too"
    );
    let timeouts = Timeouts::default();
    tracking.connections.sweep(0..256, u32::MAX / 2 - 1, &timeouts);
    assert_eq!(begin(4), Ok(()));
}

#[test]
fn without_connections_a_pod_that_denies_new_ones_gets_nothing() {
    let mut snapshot = snapshot(1, Family::V4);
    snapshot.endpoints.get_mut(&rig::key("a")).unwrap().deny_new = true;
    assert_eq!(out(&Side::of(&snapshot), &udp(A, FAR, (1, 2), 20)), Err(DropReason::DeniedNew));
}

#[test]
fn an_answer_to_nothing_is_invalid() {
    let side = east(tracking(), false);
    // `tcp` makes segments with an acknowledgment; its flags are the fourteenth byte behind an IP header of twenty.
    let syn_ack = rig::with(tcp(FAR, A, (80, 1000), 0), 33, 0x12);
    assert_eq!(back(&side, &resealed(syn_ack)), Err(DropReason::InvalidConnection));
    let reset = rig::with(tcp(FAR, A, (80, 1000), 0), 33, 0x04);
    assert_eq!(back(&side, &resealed(reset)), Err(DropReason::InvalidConnection));
}

/// The program does not verify a pod's transport checksum, so only the IP header must be right.
fn resealed(mut packet: Vec<u8>) -> Vec<u8> {
    rig::seal_v4(&mut packet);
    packet
}

/// An echo between these ends, request or reply.
fn echo(from: &str, to: &str, reply: bool) -> Vec<u8> {
    let udp = udp(from, to, (0, 0), 12);
    let kind = if reply { 0 } else { 8 };
    let packet = [&udp[..20], &[kind, 0, 0, 0, 0x12, 0x34, 0, 1], &udp[28..]].concat();
    rig::with(packet, 9, 1)
}

#[test]
fn an_echo_is_answered_the_other_way_and_only_once_asked_for() {
    let tracking = tracking();
    let side = east(tracking, false);
    assert_eq!(back(&side, &echo(FAR, A, true)), Err(DropReason::InvalidConnection), "nobody asked");
    out(&side, &echo(A, FAR, false)).unwrap();
    assert_eq!(
        out(&side, &echo(A, FAR, true)),
        Err(DropReason::InvalidConnection),
        "who asked does not answer"
    );
    back(&side, &echo(FAR, A, true)).unwrap();
    let record = tracking.connections.records(0, &Timeouts::default()).next().unwrap();
    assert_eq!((record.stage, record.from.1, record.to.1), (Stage::Established, 0x1234, 0x1234));
    back(&side, &echo(FAR, A, false)).unwrap();
    assert_eq!(tracking.connections.live_count(), 2, "both ask with one identifier");
}

#[test]
fn a_datagram_that_says_it_is_longer_than_it_is_begins_nothing() {
    let side = east(tracking(), false);
    for len in [[0, 29], [0, 7]] {
        let [high, low] = len;
        let packet = rig::with(rig::with(udp(A, FAR, (1000, 53), 20), 24, high), 25, low);
        assert_eq!(out(&side, &packet), Err(DropReason::InvalidConnection), "{len:?}");
    }
    out(&side, &udp(A, FAR, (1000, 53), 20)).unwrap();
}

#[test]
fn what_a_router_would_not_pass_on_is_told_to_its_sender_and_begins_nothing() {
    let tracking = tracking();
    let side = east(tracking, true);
    let last_hop = rig::with(udp(A, FAR, (1000, 53), 20), 8, 1);
    let too_long = rig::with(udp(A, FAR, (1000, 53), 1472), 6, 0x40);
    for side in [side, east(tracking, false)] {
        for (packet, reason) in [(&last_hop, DropReason::HopLimit), (&too_long, DropReason::TooBig)] {
            let told = side.run(side.port("a"), [plain(&sent_by(10, packet))]);
            assert_eq!(side.dropped(reason), 1, "whatever its pod denies: {:?}", side.drops());
            assert_eq!((told.len(), told[0].egress), (1, side.port("a")), "{reason}");
        }
    }
    assert_eq!(tracking.connections.live_count(), 0);
}

#[test]
fn a_packet_between_others_than_pods_of_this_path_is_none_of_ours() {
    let tracking = tracking();
    let side = east(tracking, false);
    // A kernel pod of this node to a pod behind the tunnel: the kernel's to follow.
    let frame = rig::ether(causeway_model::GATEWAY_MAC, rig::mac(20), &udp("10.70.1.20", FAR, (5, 6), 20));
    side.one(Port::Host, plain(&frame)).unwrap();
    assert_eq!(tracking.connections.live_count(), 0);
}
