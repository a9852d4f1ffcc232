//! Fragments: what is decided of the first holds for the others, in whatever order they come.
#![expect(clippy::unwrap_used, reason = "a story that goes wrong is a panic")]

mod rig;

use std::cell::RefCell;
use std::sync::atomic::AtomicU64;

use causeway_datapath::connection::{Connections, Timeouts};
use causeway_datapath::{Links, NextHop, Port, Slots, Tracking, World};
use causeway_model::{DropReason, Family};
use rig::*;

/// Both families: the ends of a flow from node 2's pod `a` to node 1's.
const ENDS: [(&str, &str); 2] = [("10.70.2.10", "10.70.1.10"), ("fd70:0:0:2::10", "fd70:0:0:1::10")];
const SECOND: u64 = 1_000_000_000;

fn tracking() -> Tracking {
    const CAPACITY: u32 = 256;
    let words = (0..Connections::words(CAPACITY)).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak();
    Tracking::new(Connections::open(words, CAPACITY).unwrap())
}

/// Node east with connections; pod `a` denies new ones if so asked.
fn east(tracking: Tracking, deny_new: bool) -> Side {
    let mut snapshot = snapshot(1, Family::V4);
    snapshot.endpoints.get_mut(&key("a")).unwrap().deny_new = deny_new;
    let Side { world, worker, slots, now } = Side::of(&snapshot);
    Side { world, worker: RefCell::new(worker.into_inner().tracking(tracking)), slots, now }
}

/// One fragment of a packet, with these bytes at this place.
fn fragment(packet: &[u8], at: usize, bytes: &[u8], more: bool) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        let mut header = packet[..20].to_vec();
        header[2..4].copy_from_slice(&((20 + bytes.len()) as u16).to_be_bytes());
        header[4..6].copy_from_slice(&[0xbe, 0xef]);
        header[6..8].copy_from_slice(&((at / 8) as u16 | if more { 0x2000 } else { 0 }).to_be_bytes());
        seal_v4(&mut header);
        return [&header, bytes].concat();
    }
    let mut header = packet[..40].to_vec();
    header[4..6].copy_from_slice(&((8 + bytes.len()) as u16).to_be_bytes());
    let place = (at as u16 | u16::from(more)).to_be_bytes();
    let extension = [header[6], 0, place[0], place[1], 0, 0, 0xbe, 0xef];
    header[6] = 44;
    [&header, &extension[..], bytes].concat()
}

/// A packet in fragments of at most `step` bytes.
fn cut(packet: &[u8], step: usize) -> Vec<Vec<u8>> {
    let payload = &packet[if packet[0] >> 4 == 4 { 20 } else { 40 }..];
    let piece = |(index, bytes): (usize, &[u8])| {
        fragment(packet, index * step, bytes, index * step + bytes.len() < payload.len())
    };
    payload.chunks(step).enumerate().map(piece).collect()
}

/// Lets a packet come out of the tunnel, and tells what goes to the pod because of it.
fn come(side: &Side, packet: &[u8]) -> Vec<Vec<u8>> {
    let out = side.run(Port::Uplink, [plain(&tunnelled(&inner_to_east(packet)))]);
    assert!(out.iter().all(|out| out.egress == side.port("a")));
    out.iter().map(|out| out.packet().to_vec()).collect()
}

/// The same packet one hop older.
fn older(packet: &[u8]) -> Vec<u8> {
    with(packet.to_vec(), if packet[0] >> 4 == 4 { 8 } else { 7 }, 63)
}

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

#[test]
fn fragments_pass_with_their_first_in_any_order() {
    for ((from, to), order) in ENDS.into_iter().flat_map(|ends| ORDERS.map(|order| (ends, order))) {
        let tracking = tracking();
        let side = east(tracking, false);
        let pieces = cut(&udp(from, to, (4000, 53), 3000), 1200);
        let mut out = Vec::new();
        for (index, which) in order.into_iter().enumerate() {
            let now = come(&side, &pieces[which]);
            let first = order.iter().position(|which| *which == 0).unwrap();
            let expected = usize::from(index >= first) * if index == first { first + 1 } else { 1 };
            assert_eq!(now.len(), expected, "{order:?}: what waits goes with the first, and nothing before");
            out.extend(now);
        }
        let mut right: Vec<_> = pieces.iter().map(|piece| older(piece)).collect();
        right.sort();
        out.sort();
        assert_eq!(out, right, "{order:?}");
        let record = tracking.connections.records(0, &Timeouts::default()).next().unwrap();
        assert_eq!(record.sent.packets, 3, "each is counted into the connection");
        assert!(!side.worker.borrow().is_waiting());
        assert!(side.drops().iter().all(|(_, count)| *count == 0));
    }
}

#[test]
fn what_is_refused_of_the_first_is_refused_of_the_others() {
    for ((from, to), order) in ENDS.into_iter().flat_map(|ends| ORDERS.map(|order| (ends, order))) {
        let tracking = tracking();
        let before = east(tracking, false);
        before.one(before.port("a"), plain(&sent_by(10, &udp(to, from, (53, 4000), 9)))).unwrap();
        let side = east(tracking, true);
        // To a port that has no connection; the second fragment reads like the ports of one that has.
        let mut pieces = cut(&udp(from, to, (4000, 54), 3000), 1200);
        let behind = pieces[1].len() - 1200;
        pieces[1][behind..behind + 4].copy_from_slice(&[0x0f, 0xa0, 0, 53]);
        assert!(order.iter().all(|which| come(&side, &pieces[*which]).is_empty()), "{order:?}");
        assert_eq!(side.dropped(DropReason::DeniedNew), 3, "{order:?}");
        assert!(!side.worker.borrow().is_waiting());
        // The same to the port that has one; another identification is not needed, since that datagram is over.
        let pieces = cut(&udp(from, to, (4000, 53), 3000), 1200);
        let passed: usize = order.iter().map(|which| come(&side, &pieces[*which]).len()).sum();
        assert_eq!(passed, 3, "{order:?}");
    }
}

#[test]
fn a_lone_fragment_waits_for_its_time_and_goes() {
    for (from, to) in ENDS {
        let side = east(tracking(), false);
        let pieces = cut(&udp(from, to, (4000, 53), 3000), 1200);
        assert!(come(&side, &pieces[1]).is_empty());
        let mut worker = side.worker.borrow_mut();
        worker.let_go(side.now + SECOND);
        assert!(worker.is_waiting());
        worker.let_go(side.now + 3 * SECOND);
        assert!(!worker.is_waiting());
        drop(worker);
        assert_eq!(side.dropped(DropReason::LoneFragment), 1);
        let of_pod = side.worker.borrow().tally().endpoint(side.slot("a")).drops;
        assert_eq!(of_pod[&DropReason::LoneFragment].packets, 1, "counted for the pod it was for");
    }
}

#[test]
fn fragments_that_overlap_spoil_their_datagram() {
    for (from, to) in ENDS {
        let packet = udp(from, to, (4000, 53), 3000);
        let payload = &packet[if packet[0] >> 4 == 4 { 20 } else { 40 }..];
        let pieces = cut(&packet, 1200);
        let overlapping = fragment(&packet, 800, &payload[800..2000], true);
        let side = east(tracking(), false);
        assert_eq!(come(&side, &pieces[0]).len(), 1);
        for piece in [&overlapping, &pieces[1], &pieces[2]] {
            assert!(come(&side, piece).is_empty());
        }
        assert_eq!(side.dropped(DropReason::BadFragment), 3, "the one that overlaps, and all that follow");
        // One that comes before its first takes those that wait along.
        let side = east(tracking(), false);
        assert!(come(&side, &pieces[1]).is_empty() && come(&side, &overlapping).is_empty());
        assert!(come(&side, &pieces[0]).is_empty());
        assert_eq!(side.dropped(DropReason::BadFragment), 3);
        // One that comes twice is dropped once and spoils nothing.
        let side = east(tracking(), false);
        let sent = [0, 1, 1, 2].map(|which| come(&side, &pieces[which]).len());
        assert_eq!((sent, side.dropped(DropReason::BadFragment)), ([1, 1, 0, 1], 1));
    }
}

#[test]
fn what_no_sender_makes_is_refused() {
    for (from, to) in ENDS {
        let (datagram, segment) = (udp(from, to, (1, 2), 3000), tcp(from, to, (1, 2), 300));
        let header = if segment[0] >> 4 == 4 { 20 } else { 40 };
        let cases = [
            ("half a TCP header", fragment(&segment, 0, &segment[header..header + 8], true)),
            ("the other half", fragment(&segment, 8, &segment[header + 8..], false)),
            ("nothing", fragment(&datagram, 800, &[], true)),
            ("no multiple of eight", fragment(&datagram, 800, &[7; 13], true)),
            ("beyond the longest packet", fragment(&datagram, 65_528, &[7; 9], false)),
        ];
        for (sentence, packet) in cases {
            let side = east(tracking(), false);
            assert!(come(&side, &packet).is_empty(), "{sentence}");
            assert_eq!(side.dropped(DropReason::BadFragment), 1, "{sentence}");
        }
    }
}

#[test]
fn no_more_wait_than_there_is_room_for() {
    let side = east(tracking(), false);
    let pieces = cut(&udp(ENDS[0].0, ENDS[0].1, (1, 2), 3000), 1200);
    let numbered = |number: u16| {
        let mut piece = pieces[1].clone();
        piece[4..6].copy_from_slice(&number.to_be_bytes());
        seal_v4(&mut piece);
        piece
    };
    (0..300).for_each(|number| assert!(come(&side, &numbered(number)).is_empty()));
    assert_eq!(side.dropped(DropReason::LoneFragment), 44, "256 wait");
    // Of one datagram, 64.
    let side = east(tracking(), false);
    let long = cut(&udp(ENDS[0].0, ENDS[0].1, (1, 2), 4000), 40);
    long[1..=70].iter().for_each(|piece| assert!(come(&side, piece).is_empty()));
    assert_eq!(side.dropped(DropReason::LoneFragment), 6);
    assert_eq!(come(&side, &long[0]).len(), 65);
}

#[test]
fn what_has_waited_does_not_go_the_way_of_a_world_that_is_no_more() {
    let mut side = east(tracking(), false);
    let pieces = cut(&udp(ENDS[0].0, ENDS[0].1, (1, 2), 3000), 1200);
    assert!(come(&side, &pieces[1]).is_empty());
    let snapshot = snapshot(1, Family::V4);
    let mut slots = Slots::new(8);
    slots.take_up(&snapshot);
    let links = Links { host: HOST_MAC, source: UPLINK_MAC, next_hop: NextHop::Same(NEXT_HOP) };
    side.world = World::new(&snapshot, &slots, &links).unwrap();
    assert_eq!(come(&side, &pieces[0]), [older(&pieces[0])]);
    assert_eq!(side.dropped(DropReason::LoneFragment), 1);
}

#[test]
fn f24_the_last_fragment_may_be_four_bytes_and_is_read_by_nobody() {
    for (from, to) in ENDS {
        let side = east(tracking(), false);
        let pieces = cut(&ping(from, to, 2 * 1200 - 8 + 4), 1200);
        assert_eq!(pieces.len(), 3);
        let passed: usize = pieces.iter().map(|piece| come(&side, piece).len()).sum();
        assert_eq!(passed, 3);
    }
}

#[test]
fn fragments_of_a_pod_wait_too_and_reach_the_tunnel() {
    let side = east(tracking(), false);
    let pieces = cut(&udp("10.70.1.10", "10.70.2.10", (1, 2), 3000), 1200);
    let send = |which: usize| side.run(side.port("a"), [plain(&sent_by(10, &pieces[which]))]);
    assert_eq!(send(2).len() + send(1).len(), 0);
    let out = send(0);
    assert_eq!(out.len(), 3);
    for out in &out {
        assert_eq!(out.egress, Port::Uplink);
        assert_all_right(out);
    }
    let ports: std::collections::BTreeSet<_> = out.iter().map(|out| out.bytes[34..36].to_vec()).collect();
    assert_eq!(ports.len(), 1, "one outer port for all");
    let sent = side.worker.borrow().tally().endpoint(side.slot("a")).from_pod;
    assert_eq!(sent.packets, 3);
}

#[test]
fn what_later_fragments_send_may_be_acknowledged() {
    for backwards in [false, true] {
        let tracking = tracking();
        let side = east(tracking, false);
        let (far, own) = ENDS[0];
        // A connection with a handshake, so that its windows are known; `tcp` makes ends of connections, of flags at 33.
        let segment = |from, to, ports, flags, sequence: u32, acknowledgment: u32, len| {
            let mut packet = tcp(from, to, ports, len);
            packet[24..28].copy_from_slice(&sequence.to_be_bytes());
            packet[28..32].copy_from_slice(&acknowledgment.to_be_bytes());
            with(packet, 33, flags)
        };
        let inward = |flags, sequence, acknowledgment, len| {
            segment(far, own, (80, 1000), flags, sequence, acknowledgment, len)
        };
        let outward = |flags, sequence, acknowledgment, len| {
            sent_by(10, &segment(own, far, (1000, 80), flags, sequence, acknowledgment, len))
        };
        side.one(side.port("a"), plain(&outward(0x02, 99, 0, 0))).unwrap();
        assert_eq!(come(&side, &inward(0x12, 499, 100, 0)).len(), 1);
        side.one(side.port("a"), plain(&outward(0x10, 100, 500, 0))).unwrap();
        let mut pieces = cut(&inward(0x10, 500, 100, 2000), 800);
        if backwards {
            pieces.reverse();
        }
        let came: usize = pieces.iter().map(|piece| come(&side, piece).len()).sum();
        assert_eq!(came, pieces.len());
        let acknowledges =
            |sequence| side.one(side.port("a"), plain(&outward(0x10, 100, sequence, 0))).map(drop);
        assert_eq!(acknowledges(2501), Err(DropReason::InvalidConnection), "what was never sent");
        assert_eq!(acknowledges(2500), Ok(()));
    }
}
