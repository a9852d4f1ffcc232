//! Whatever comes in, nothing panics, nothing is lost without a name, and what goes out is of a piece.

mod rig;

use std::cell::RefCell;
use std::sync::atomic::AtomicU64;

use causeway_datapath::connection::Connections;
use causeway_datapath::{Capabilities, Checksum, Gso, Offload, Port, Segments, Tracking, fit};
use causeway_model::{Family, GATEWAY_MAC, MacAddr};
use proptest::prelude::*;
use rig::*;

fn any_offload() -> impl Strategy<Value = Offload> {
    let checksum = prop_oneof![
        3 => Just(Checksum::Whole),
        1 => Just(Checksum::Verified),
        1 => (any::<u16>(), any::<u16>()).prop_map(|(start, offset)| Checksum::Partial { start, offset }),
        3 => (prop::sample::select(vec![34_u16, 54, 84, 104]), prop::sample::select(vec![6_u16, 16]))
            .prop_map(|(start, offset)| Checksum::Partial { start, offset }),
    ];
    let kind = prop::sample::select(vec![Segments::Tcp4, Segments::Tcp6, Segments::Udp]);
    let gso = (kind, any::<bool>(), 0..2000_u16, any::<u16>()).prop_map(|(kind, ecn, size, headers)| Gso {
        kind,
        ecn,
        size,
        headers,
    });
    (checksum, prop::option::of(gso)).prop_map(|(checksum, gso)| Offload { checksum, gso })
}

fn any_address() -> impl Strategy<Value = (&'static str, &'static str)> {
    let v4 = vec![
        "10.70.1.10",
        "10.70.1.11",
        "10.70.1.20",
        "10.70.1.99",
        "10.70.2.10",
        "192.0.2.1",
        "192.0.2.2",
        "169.254.1.1",
        "203.0.113.5",
    ];
    let v6 = vec![
        "fd70:0:0:1::10",
        "fd70:0:0:1::11",
        "fd70:0:0:2::10",
        "2001:db8::2",
        "fe80::1",
        "ff02::1",
        "2001:db8:ffff::1",
    ];
    let pair = |list: Vec<&'static str>| (prop::sample::select(list.clone()), prop::sample::select(list));
    prop_oneof![pair(v4), pair(v6)]
}

fn any_packet() -> impl Strategy<Value = Vec<u8>> {
    (
        any_address(),
        0..3_u8,
        prop_oneof![4 => 0..200_usize, 1 => 0..6000_usize],
        any::<bool>(),
        any::<(u16, u16)>(),
    )
        .prop_map(|((from, to), kind, len, fragmentable_too, ports)| {
            let ports = (ports.0, if ports.1 % 4 == 0 { PORT } else { ports.1 });
            let packet = match kind {
                0 => udp(from, to, ports, len),
                1 => tcp(from, to, ports, len),
                _ => ping(from, to, len),
            };
            if fragmentable_too && packet[0] >> 4 == 4 { fragmentable(packet) } else { packet }
        })
}

/// Frames that are nearly right: right ones with a few bytes changed or cut off, and sometimes mere noise.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let mac = |own: Vec<MacAddr>| prop::sample::select(own);
    let good = (
        any_packet(),
        mac(vec![GATEWAY_MAC, vtep(1), MacAddr::BROADCAST]),
        mac(vec![rig::mac(10), vtep(2)]),
        0..3_u8,
    )
        .prop_map(|(packet, destination, source, outer)| {
            let frame = ether(destination, source, &packet);
            match outer {
                0 => frame,
                1 => tunnelled(&frame),
                _ => tunnelled_from("2001:db8::2", "2001:db8::1", [8, 0, 0, 0, 0, 0x10, 0, 0], &frame),
            }
        });
    let change = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let nearly = (good, change, prop::option::weighted(0.2, any::<prop::sample::Index>())).prop_map(
        |(mut frame, changes, cut)| {
            for (at, value) in changes {
                // Headers are where it hurts.
                let at = at.index(frame.len().min(130));
                frame[at] = value;
            }
            if let Some(cut) = cut {
                frame.truncate(cut.index(frame.len()));
            }
            frame
        },
    );
    prop_oneof![8 => nearly, 1 => prop::collection::vec(any::<u8>(), 0..300)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn every_frame_goes_out_or_is_dropped_by_name(
        frames in prop::collection::vec((any_frame(), any_offload(), 60..4000_usize, any::<bool>()), 1..32),
        from in prop::sample::select(vec![Port::Host, Port::Uplink, Port::Endpoint(0), Port::Endpoint(6)]),
        underlay in prop::sample::select(vec![Family::V4, Family::V6]),
        buffers in prop_oneof![3 => Just(4096_usize), 1 => 0..8_usize],
    ) {
        let side = Side::of(&snapshot(1, underlay));
        side.worker.borrow_mut().pool.left = buffers;
        let mut answers = 0;
        let mut cut = 0;
        for (bytes, offload, split, with_offload) in &frames {
            let before: u64 = side.drops().iter().map(|drop| drop.1).sum();
            let offload = if *with_offload { *offload } else { Offload::NONE };
            let out = side.run_frames(from, [frame_in_two(bytes, *split, offload)]);
            let dropped = side.drops().iter().map(|drop| drop.1).sum::<u64>() - before;
            match (dropped, out.len()) {
                (0, 1) | (1, 0) => {}
                (1, 1) => answers += 1,
                (0, pieces) if pieces > 1 => cut += pieces,
                other => prop_assert!(false, "{other:?}"),
            }
            for frame in out {
                prop_assert!(frame.len() >= 14);
                let note = Out::of(&frame);
                check(&note)?;
                let mut sent = 0;
                let pool = &mut side.worker.borrow_mut().pool;
                let fitted = fit(frame, Capabilities::default(), pool, |frame| {
                    let out = Out::of(&frame);
                    assert_eq!(out.offload.gso, None);
                    assert!(!matches!(out.offload.checksum, Checksum::Partial { .. }));
                    sent += 1;
                });
                prop_assert!(fitted.is_err() || sent > 0, "{fitted:?}");
            }
        }
        prop_assert!(answers + cut <= 32 * 1024);
    }

    #[test]
    fn a_burst_is_treated_like_its_frames_one_by_one(
        frames in prop::collection::vec((any_frame(), 60..4000_usize), 1..32),
        from in prop::sample::select(vec![Port::Host, Port::Uplink, Port::Endpoint(0)]),
    ) {
        let (one_by_one, at_once) = (east(), east());
        let mut whole = at_once.run(from, frames.iter().map(|(bytes, split)| frame_in_two(bytes, *split, Offload::NONE)));
        let mut single: Vec<_> = frames
            .iter()
            .flat_map(|(bytes, split)| one_by_one.run(from, [frame_in_two(bytes, *split, Offload::NONE)]))
            .collect();
        prop_assert_eq!(one_by_one.drops(), at_once.drops());
        // Pieces come behind what was whole.
        whole.sort_by(|a, b| a.bytes.cmp(&b.bytes));
        single.sort_by(|a, b| a.bytes.cmp(&b.bytes));
        prop_assert_eq!(whole, single);
    }
}

/// Node east with connections.
fn remembering() -> (Side, Connections) {
    const CAPACITY: u32 = 64;
    let words = (0..Connections::words(CAPACITY)).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak();
    let connections = Connections::open(words, CAPACITY).expect("fresh words are a table");
    let Side { world, worker, slots, now } = east();
    let worker = RefCell::new(worker.into_inner().tracking(Tracking::new(connections)));
    (Side { world, worker, slots, now }, connections)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// What one look finds as it should be goes where it would have gone step by step: a frame with a byte behind its packet, which
    /// is none of it, is looked at step by step.
    #[test]
    fn the_short_way_leads_where_the_long_one_does(
        frames in prop::collection::vec((any_frame(), any::<bool>()), 1..32),
    ) {
        let [(short, few), (long, many)] = [(); 2].map(|()| remembering());
        for (bytes, up) in &frames {
            let from = if *up { Port::Uplink } else { Port::Endpoint(0) };
            let as_is = short.run(from, [frame_in_two(bytes, 4000, Offload::NONE)]);
            let padded = [bytes.as_slice(), &[0]].concat();
            let padded = long.run(from, [frame_in_two(&padded, 4000, Offload::NONE)]);
            if !as_is.is_empty() {
                prop_assert_eq!(as_is, padded);
            }
        }
        prop_assert!(few.live_count() <= many.live_count(), "each is found again");
    }
}

/// The lengths of what goes out agree with one another.
fn check(out: &Out) -> Result<(), TestCaseError> {
    let lengths = |packet: &[u8]| match packet[0] >> 4 {
        4 => usize::from(u16::from_be_bytes([packet[2], packet[3]])),
        6 => 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])),
        _ => 0,
    };
    let kind = &out.inner()[12..14];
    if kind != [8, 6] {
        prop_assert_eq!(lengths(out.packet()), out.packet().len());
    }
    if out.outer > 0 {
        prop_assert_eq!(out.egress, Port::Uplink);
        prop_assert_eq!(lengths(&out.bytes[14..]), out.bytes.len() - 14);
        prop_assert_eq!(&out.bytes[out.outer - 8..out.outer], &[8, 0, 0, 0, 0, 0x10, 0, 0]);
    }
    Ok(())
}
