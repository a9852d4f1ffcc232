//! Frames for the packet program of a node that remembers connections.
//!
//! An input is a byte that chooses the node, then frames: a byte that chooses the port and how the frame lies in memory, two bytes
//! of length, and the frame.

use std::cell::RefCell;
use std::sync::atomic::AtomicU64;

use causeway_datapath::connection::Connections;
use causeway_datapath::{Capabilities, Checksum, Offload, Port, Tracking, fit};
use causeway_model::Family;

use crate::rig::served::{A, B, FAR, serving};
use crate::rig::{Out, Side, frame_in_two, key, snapshot};

/// Frames of one input.
const MOST: usize = 64;
/// Connections that a node has room for: few, so that places run out.
const CAPACITY: u32 = 64;
/// Longer than anything waits, in nanoseconds.
const LONG: u64 = 60_000_000_000;
/// Buffers that answers and pieces are made in.
const BUFFERS: usize = 4096;

/// The frames of an input, each with what chooses its port.
pub(crate) fn frames(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut frames = Vec::new();
    while let Some((&[choice, high, low], rest)) = bytes.split_first_chunk()
        && frames.len() < MOST
    {
        let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        frames.push((choice, &rest[..length]));
        bytes = &rest[length..];
    }
    frames
}

/// An input of these frames.
pub(crate) fn input(node: u8, frames: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![node];
    for (choice, frame) in frames {
        bytes.push(*choice);
        bytes.extend((frame.len() as u16).to_be_bytes());
        bytes.extend(frame);
    }
    bytes
}

/// A node, its table of connections in `words`.
fn node(choice: u8, words: &'static [AtomicU64]) -> Side {
    let underlay = if choice & 1 == 0 { Family::V4 } else { Family::V6 };
    let mut snapshot = snapshot(1, underlay);
    if choice & 16 != 0 {
        // Backends here, elsewhere, and the client itself; all of them over IPv4, none of them for good over IPv6.
        let over_v6: &[&str] = if choice & 32 == 0 { &[B[1], FAR[1]] } else { &[A[1]] };
        snapshot = serving(snapshot, [&[A[0], B[0], FAR[0]], over_v6]);
    }
    if let Some(endpoint) = snapshot.endpoints.get_mut(&key("b")) {
        endpoint.deny_new = choice & 2 != 0;
    }
    let side = Side::of(&snapshot);
    side.worker.borrow_mut().pool.left = if choice & 4 == 0 { BUFFERS } else { 3 };
    if choice & 8 != 0 {
        return side;
    }
    for word in words {
        word.store(0, std::sync::atomic::Ordering::Relaxed);
    }
    let connections = Connections::open(words, CAPACITY)
        .unwrap_or_else(|error| panic!("a table of {CAPACITY} connections: {error:?}"));
    let Side { world, worker, slots, now } = side;
    let tracking = Tracking::new(connections);
    Side { world, worker: RefCell::new(worker.into_inner().tracking(tracking)), slots, now }
}

thread_local! {
    /// A table lives as long as its thread: one for all inputs, blank before each.
    static WORDS: &'static [AtomicU64] =
        (0..Connections::words(CAPACITY)).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak();
}

/// Runs the program over the frames, one after the other.
pub fn run(bytes: &[u8]) {
    let Some((choice, rest)) = bytes.split_first() else { return };
    let side = node(*choice, WORDS.with(|words| *words));
    for (choice, frame) in frames(rest) {
        let port = match choice & 3 {
            0 => Port::Host,
            1 => Port::Uplink,
            2 => side.port("a"),
            _ => side.port("b"),
        };
        // The rest of the choice: where the second segment begins.
        let split = if choice & 0x80 == 0 { frame.len() } else { 14 + usize::from(choice & 0x7c) };
        one(&side, port, frame, split);
    }
    // What waited for the first fragment of its datagram is let go some time.
    let mut worker = side.worker.borrow_mut();
    worker.let_go(side.now + LONG);
    assert!(!worker.is_waiting(), "fragments wait for ever");
}

/// One frame in: it goes out, whole or in pieces, or it is dropped by name, or both when its sender is told. A fragment may wait for
/// the first of its datagram, and goes with it then.
fn one(side: &Side, port: Port, frame: &[u8], split: usize) {
    let dropped = |side: &Side| side.drops().iter().map(|drop| drop.1).sum::<u64>();
    let waits = |side: &Side| side.worker.borrow().is_waiting();
    let (before, left, waited) = (dropped(side), side.worker.borrow().pool.left, waits(side));
    let out = side.run_frames(port, [frame_in_two(frame, split, Offload::NONE)]);
    let taken = left - side.worker.borrow().pool.left;
    match (dropped(side) - before, out.len()) {
        (1, 0 | 1) => {}
        (0, 1..) => {}
        (0, 0) if waits(side) => {}
        _ if waited => {}
        other => panic!("drops and frames out are {other:?}"),
    }
    // What was taken for answers and pieces has come out, or was dropped with the frame it was for.
    assert!(waited || out.len() <= taken + 1, "{} frames came out of {taken} buffers and one", out.len());
    for frame in out {
        check(&Out::of(&frame), port, side);
        let mut sent = 0;
        let fitted = fit(frame, Capabilities::default(), &mut side.worker.borrow_mut().pool, |frame| {
            let out = Out::of(&frame);
            assert!(out.offload.gso.is_none() && !matches!(out.offload.checksum, Checksum::Partial { .. }));
            sent += 1;
        });
        assert!(fitted.is_err() || sent > 0, "{fitted:?}");
    }
}

/// What goes out is of a piece: its lengths agree, and a tunnel is around it where it leaves the node and nowhere else.
fn check(out: &Out, from: Port, side: &Side) {
    let length = |packet: &[u8]| match packet[0] >> 4 {
        4 => usize::from(u16::from_be_bytes([packet[2], packet[3]])),
        6 => 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])),
        version => panic!("a packet of version {version} goes out"),
    };
    if out.inner()[12..14] != [8, 6] {
        assert_eq!(length(out.packet()), out.packet().len());
    }
    assert_eq!(out.outer > 0, out.egress == Port::Uplink, "{:?}", out.egress);
    if out.outer > 0 {
        assert_eq!(length(&out.bytes[14..]), out.bytes.len() - 14);
        assert_eq!(out.bytes[out.outer - 8..out.outer], [8, 0, 0, 0, 0, 0x10, 0, 0]);
    }
    // Nothing from a tunnel goes into one: no packet crosses this node.
    assert!(
        !(from == Port::Uplink && out.egress == Port::Uplink && !is_error(out)),
        "a packet crosses the node"
    );
    if let Port::Endpoint(slot) = out.egress {
        assert!([side.slot("a"), side.slot("b")].contains(&slot), "to nobody's slot {slot}");
    }
}

/// Whether the packet is an answer of this node's own, about a packet that it could not deliver.
fn is_error(out: &Out) -> bool {
    let packet = out.packet();
    match packet[0] >> 4 {
        4 => packet[9] == 1,
        _ => packet[6] == 58,
    }
}
