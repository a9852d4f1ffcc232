//! Long frames and unfinished checksums: kept whole where the egress takes them, cut and completed where it does not.

#![expect(clippy::unwrap_used, reason = "what cannot be fitted fails its test")]

mod rig;

use causeway_datapath::{Capabilities, Checksum, Frame, Gso, Offload, Port, Segments, fit};
use causeway_model::{DropReason, Family};
use proptest::prelude::*;
use rig::*;

const NOTHING: Capabilities =
    Capabilities { checksum: false, tcp4: false, tcp6: false, udp: false, tunnel: false };
const EVERYTHING: Capabilities =
    Capabilities { checksum: true, tcp4: true, tcp6: true, udp: true, tunnel: true };

/// What a port of these capabilities is handed.
fn fitted(side: &Side, frame: Frame<Bytes>, port: Capabilities) -> Vec<Out> {
    let mut outs = Vec::new();
    let pool = &mut side.worker.borrow_mut().pool;
    fit(frame, port, pool, |frame| outs.push(Out::of(&frame))).unwrap();
    outs
}

/// A packet that stands for several, as a sender's stack leaves it: with the pseudo header's sum for a checksum.
#[derive(Clone, Debug)]
struct Long {
    packet: Vec<u8>,
    kind: Segments,
    transport: usize,
    headers: usize,
}

impl Long {
    fn new(kind: Segments, v6: bool, to_node: u8, len: usize) -> Self {
        let (from, to) = if v6 {
            ("fd70:0:0:1::10", format!("fd70:0:0:{to_node}::11"))
        } else {
            ("10.70.1.10", format!("10.70.{to_node}.11"))
        };
        let transport = if v6 { 40 } else { 20 };
        let (mut packet, offset, header) = match kind {
            Segments::Udp => (udp(from, &to, (40_000, 443), len), 6, 8),
            _ => (tcp(from, &to, (40_000, 443), len), 16, if v6 { 20 } else { 32 }),
        };
        let sum = pseudo(&packet, transport, packet.len() - transport);
        packet[transport + offset..transport + offset + 2].copy_from_slice(&sum.to_be_bytes());
        Self { packet, kind, transport, headers: transport + header }
    }

    fn offload(&self, size: u16) -> Offload {
        let offset = if self.kind == Segments::Udp { 6 } else { 16 };
        let start = 14 + self.transport as u16;
        Offload {
            checksum: Checksum::Partial { start, offset },
            gso: Some(Gso { kind: self.kind, ecn: true, size, headers: 0 }),
        }
    }

    /// The segments, by taking the definitions at their word.
    fn slow_segments(&self, size: usize) -> Vec<Vec<u8>> {
        let (headers, payload) = self.packet.split_at(self.headers);
        let chunks: Vec<_> = payload.chunks(size).collect();
        let mut at = 0;
        let mut segments = Vec::new();
        for (index, chunk) in chunks.iter().enumerate() {
            let mut packet = [headers, chunk].concat();
            let len = packet.len();
            if packet[0] >> 4 == 4 {
                packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
                let id = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(index as u16);
                packet[4..6].copy_from_slice(&id.to_be_bytes());
                seal_v4(&mut packet);
            } else {
                packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
            }
            let field = if self.kind == Segments::Udp {
                packet[self.transport + 4..self.transport + 6]
                    .copy_from_slice(&((len - self.transport) as u16).to_be_bytes());
                self.transport + 6
            } else {
                let sequence = 0xffff_fa00_u32.wrapping_add(at);
                packet[self.transport + 4..self.transport + 8].copy_from_slice(&sequence.to_be_bytes());
                let flags = &mut packet[self.transport + 13];
                if index > 0 {
                    *flags &= !0x80;
                }
                if index + 1 < chunks.len() {
                    *flags &= !0x09;
                }
                self.transport + 16
            };
            packet[field..field + 2].fill(0);
            let pseudo = pseudo(&packet, self.transport, len - self.transport).to_be_bytes();
            let sum = match !slow_sum(&[&pseudo, &packet[self.transport..]]) {
                0 if self.kind == Segments::Udp => 0xffff,
                sum => sum,
            };
            packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
            segments.push(packet);
            at += chunk.len() as u32;
        }
        segments
    }
}

fn pseudo(packet: &[u8], transport: usize, len: usize) -> u16 {
    let (addresses, protocol) =
        if transport == 20 { (&packet[12..20], packet[9]) } else { (&packet[8..40], packet[6]) };
    slow_sum(&[addresses, &(len as u32).to_be_bytes(), &[0, 0, 0, protocol]])
}

fn aged(packet: &[u8], hops: u8) -> Vec<u8> {
    let at = if packet[0] >> 4 == 4 { 8 } else { 7 };
    with(packet.to_vec(), at, packet[at] - hops)
}

fn kinds() -> [(Segments, bool); 4] {
    [(Segments::Tcp4, false), (Segments::Tcp6, true), (Segments::Udp, false), (Segments::Udp, true)]
}

#[test]
fn a_long_frame_goes_whole_from_pod_to_pod() {
    let east = east();
    for (kind, v6) in kinds() {
        let long = Long::new(kind, v6, 1, 40_000);
        let frame = frame_in_two(&sent_by(10, &long.packet), 1000, long.offload(1200));
        let frame = east.run_frames(east.port("a"), [frame]).remove(0);
        assert_eq!(frame.egress, east.port("b"));
        let outs = fitted(&east, frame, EVERYTHING);
        assert_eq!((outs.len(), outs[0].packet()), (1, &aged(&long.packet, 1)[..]), "{kind:?}");
        let headers = 14 + long.headers as u16;
        let gso = outs[0].offload.gso.unwrap();
        assert_eq!((gso.size, gso.headers, gso.ecn), (1200, headers, true));
    }
}

#[test]
fn a_long_frame_goes_whole_through_the_tunnel_and_arrives_whole() {
    for underlay in Family::BOTH {
        let (east, west) = (Side::of(&snapshot(1, underlay)), Side::of(&snapshot(2, underlay)));
        for (kind, v6) in kinds() {
            let long = Long::new(kind, v6, 2, 60_000);
            let frame = frame_in_two(&sent_by(10, &long.packet), 1000, long.offload(1200));
            let wire = east.one(east.port("a"), frame).unwrap();
            assert_eq!(wire.egress, Port::Uplink);
            let moved = underlay.tunnel_overhead();
            let start = 14 + long.transport as u16 + moved;
            let headers = 14 + long.headers as u16 + moved;
            let Offload { checksum: Checksum::Partial { start: now, .. }, gso: Some(gso) } = wire.offload
            else {
                panic!("{wire:?}");
            };
            assert_eq!((now, gso.headers, gso.size), (start, headers, 1200));
            let arrived = west.one(Port::Uplink, frame_in_two(&wire.bytes, 1000, wire.offload)).unwrap();
            assert_eq!((arrived.egress, arrived.packet()), (west.port("b"), &aged(&long.packet, 2)[..]));
            let Offload { checksum: Checksum::Partial { start: now, .. }, gso: Some(gso) } = arrived.offload
            else {
                panic!("{arrived:?}");
            };
            assert_eq!((now, gso.headers), (start - moved, headers - moved));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn segments_are_those_of_a_slow_segmenter(
        which in 0..4_usize,
        len in 1..9000_usize,
        size in 1..1360_u16,
        split in 110..3000_usize,
        remote: bool,
        underlay6: bool,
    ) {
        prop_assume!(len / usize::from(size) < 600);
        let (kind, v6) = kinds()[which];
        let underlay = if underlay6 { Family::V6 } else { Family::V4 };
        let east = Side::of(&snapshot(1, underlay));
        let long = Long::new(kind, v6, if remote { 2 } else { 1 }, len);
        let frame = frame_in_two(&sent_by(10, &long.packet), split, long.offload(size));
        let frame = east.run_frames(east.port("a"), [frame]).remove(0);
        let outs = fitted(&east, frame, NOTHING);
        let right: Vec<_> = long.slow_segments(usize::from(size)).iter().map(|packet| aged(packet, 1)).collect();
        prop_assert_eq!(outs.len(), right.len());
        let outer_ports = outs.iter().map(|out| out.bytes[34..36].to_vec());
        for ((out, right), port) in outs.iter().zip(right).zip(outer_ports) {
            assert_all_right(out);
            prop_assert_eq!(out.packet(), right);
            prop_assert_eq!(out.outer, if remote { usize::from(underlay.tunnel_overhead()) } else { 0 });
            prop_assert!(!remote || underlay6 || port == outs[0].bytes[34..36], "one flow, one outer port");
        }
    }

    #[test]
    fn fragments_come_together_again_as_the_same_bytes(
        len in 1431..20_000_usize,
        split in 110..3000_usize,
        options in prop::collection::vec(prop::sample::select(vec![0x01_u8, 0x07, 0x83]), 0..4),
        partial: bool,
        remote: bool,
    ) {
        let east = east();
        let to = if remote { "10.70.2.11" } else { "10.70.1.11" };
        let mut packet = fragmentable(udp("10.70.1.10", to, (40_000, 53), len));
        let complete = packet[20..].to_vec();
        let mut offload = Offload::NONE;
        let list: Vec<u8> = options.iter().flat_map(|kind| if *kind == 1 { vec![1] } else { vec![*kind, 4, 4, 0] }).collect();
        let words = list.len().div_ceil(4);
        packet.splice(20..20, [&list[..], &vec![0; words * 4 - list.len()]].concat());
        packet[0] = 0x45 + words as u8;
        let total = packet.len() as u16;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        seal_v4(&mut packet);
        let header = 20 + words * 4;
        if partial {
            let sum = slow_sum(&[&packet[12..20], &[0, 17], &(complete.len() as u16).to_be_bytes()]);
            packet[header + 6..header + 8].copy_from_slice(&sum.to_be_bytes());
            offload.checksum = Checksum::Partial { start: 14 + header as u16, offset: 6 };
        }
        let outs = east.run(east.port("a"), [frame_in_two(&sent_by(10, &packet), split, offload)]);
        let mut payload: Vec<u8> = Vec::new();
        for (index, out) in outs.iter().enumerate() {
            assert_all_right(out);
            let piece = out.packet();
            prop_assert!(piece.len() <= 1450);
            prop_assert_eq!(piece[0], packet[0], "the header's length");
            prop_assert_eq!(&piece[4..6], &packet[4..6], "identification");
            prop_assert_eq!(piece[8], 63);
            let flags = u16::from_be_bytes([piece[6], piece[7]]);
            prop_assert_eq!(usize::from(flags & 0x1fff) * 8, payload.len());
            prop_assert_eq!(flags & 0x2000 != 0, index + 1 < outs.len());
            let kept: Vec<u8> = list_kinds(&piece[20..header]);
            let expected: Vec<u8> = options.iter().copied().filter(|kind| *kind != 1 && (index == 0 || *kind >= 0x80)).collect();
            prop_assert_eq!(kept, expected, "options");
            payload.extend(&piece[header..]);
        }
        prop_assert!(outs.len() > 1);
        prop_assert_eq!(payload, complete);
    }
}

/// The options that mean something.
fn list_kinds(mut options: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let [kind, rest @ ..] = options {
        match kind {
            0 => break,
            1 => options = rest,
            _ => {
                kinds.push(*kind);
                options = &options[usize::from(options[1])..];
            }
        }
    }
    kinds
}

#[test]
fn a_fragment_is_fragmented_further() {
    let east = east();
    // Without the first one it would not go anywhere.
    let first = with(fragmentable(udp("10.70.1.10", "10.70.2.11", (1, 2), 792)), 6, 0x20);
    east.one(east.port("a"), plain(&sent_by(10, &first))).unwrap();
    // From byte 800 on, and more to come.
    let packet = with(with(fragmentable(udp("10.70.1.10", "10.70.2.11", (1, 2), 1992)), 6, 0x20), 7, 100);
    let out = east.run(east.port("a"), [plain(&sent_by(10, &packet))]);
    let marks: Vec<_> =
        out.iter().map(|piece| (piece.packet()[6], piece.packet()[7], piece.packet().len())).collect();
    let second = 100 + 1424 / 8;
    assert_eq!(marks, [(0x20, 100, 1444), (0x20 | (second >> 8) as u8, second as u8, 20 + 2000 - 1424)]);
    out.iter().for_each(assert_all_right);
    // Beyond the end of the longest packet there can be nothing.
    let beyond = with(with(packet, 6, 0x1f), 7, 0xff);
    assert_eq!(east.one(east.port("a"), plain(&sent_by(10, &beyond))), Err(DropReason::BadFragment));
}

#[test]
fn f20_a_partial_checksum_is_complete_and_right_where_the_port_cannot_do_it() {
    for underlay in Family::BOTH {
        let east = Side::of(&snapshot(1, underlay));
        for (kind, v6) in kinds() {
            for (node, len) in [(1, 501), (2, 501), (2, 0)] {
                let long = Long::new(kind, v6, node, len);
                let offload = Offload { gso: None, ..long.offload(1) };
                for split in [usize::MAX, 120] {
                    let frame = frame_in_two(&sent_by(10, &long.packet), split, offload);
                    let frame = east.run_frames(east.port("a"), [frame]).remove(0);
                    let outs = fitted(&east, frame, NOTHING);
                    assert_eq!(outs.len(), 1);
                    assert_all_right(&outs[0]);
                    let right = if len == 0 {
                        aged(&long_whole(&long), 1)
                    } else {
                        aged(&long.slow_segments(len)[0], 1)
                    };
                    assert_eq!(outs[0].packet(), right, "{kind:?}");
                }
            }
        }
    }
}

fn long_whole(long: &Long) -> Vec<u8> {
    let mut packet = long.packet.clone();
    let field = long.transport + if long.kind == Segments::Udp { 6 } else { 16 };
    packet[field..field + 2].fill(0);
    let sum = !slow_sum(&[
        &pseudo(&packet, long.transport, packet.len() - long.transport).to_be_bytes(),
        &packet[long.transport..],
    ]);
    packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn f20_a_computed_zero_is_sent_as_all_ones() {
    // Bytes whose UDP checksum comes out as zero: the last two are chosen so.
    let east = east();
    let mut packet = udp("fd70:0:0:1::10", "fd70:0:0:1::11", (1, 2), 16);
    let end = packet.len();
    packet[46..48].fill(0);
    packet[end - 2..].fill(0);
    let sum = slow_sum(&[&pseudo(&packet, 40, 24).to_be_bytes(), &packet[40..]]);
    packet[end - 2..].copy_from_slice(&(!sum).to_be_bytes());
    let partial = pseudo(&packet, 40, 24);
    packet[46..48].copy_from_slice(&partial.to_be_bytes());
    let offload = Offload { checksum: Checksum::Partial { start: 54, offset: 6 }, gso: None };
    let frame =
        east.run_frames(east.port("a"), [frame_in_two(&sent_by(10, &packet), usize::MAX, offload)]).remove(0);
    let out = fitted(&east, frame, NOTHING).remove(0);
    assert_eq!(out.packet()[46..48], [0xff, 0xff]);
    assert_all_right(&out);
}

#[test]
fn what_a_sender_says_it_left_to_do_is_checked() {
    let east = east();
    let long = Long::new(Segments::Tcp4, false, 2, 4000);
    let good = long.offload(1200);
    let gso = good.gso.unwrap();
    let partial = |start, offset| Offload { checksum: Checksum::Partial { start, offset }, gso: None };
    let cases = [
        ("segments of nothing", Offload { gso: Some(Gso { size: 0, ..gso }), ..good }),
        ("segments without a checksum", Offload { checksum: Checksum::Whole, ..good }),
        ("another family", Offload { gso: Some(Gso { kind: Segments::Tcp6, ..gso }), ..good }),
        ("another protocol", Offload { gso: Some(Gso { kind: Segments::Udp, ..gso }), ..good }),
        ("a checksum that is not the transport's", Offload { gso: Some(gso), ..partial(34, 6) }),
        ("a checksum behind the frame", partial(34, u16::MAX)),
        ("a checksum that begins behind the frame", partial(u16::MAX, 0)),
        ("a checksum inside of the IP header", partial(14, 10)),
        ("a checksum over the destination port", partial(34, 2)),
        ("a checksum behind the transport's header", partial(54, 2)),
    ];
    for (sentence, offload) in cases {
        let frame = frame_in_two(&sent_by(10, &long.packet), 1000, offload);
        assert_eq!(east.one(east.port("a"), frame), Err(DropReason::Malformed), "{sentence}");
    }
    let v6 = udp("fd70:0:0:1::10", "fd70:0:0:2::10", (1, 2), 100);
    let own_tunnel = udp("10.70.1.10", "10.70.2.10", (1, 8472), 100);
    let fragment = with(with(fragmentable(udp("10.70.1.10", "10.70.2.10", (1, 2), 100)), 6, 0x20), 7, 0);
    let cases = [
        ("written over the source address", &v6, partial(34, 2), Err(DropReason::Malformed)),
        ("written over the destination address", &v6, partial(34, 18), Err(DropReason::Malformed)),
        ("written over the source port", &v6, partial(54, 0), Err(DropReason::Malformed)),
        ("of UDP over IPv6", &v6, partial(54, 6), Ok(Port::Uplink)),
        ("inside of a tunnel of the pod's own", &own_tunnel, partial(92, 16), Ok(Port::Uplink)),
        ("of a fragment", &fragment, partial(34, 6), Err(DropReason::Malformed)),
    ];
    for (sentence, packet, offload, expected) in cases {
        let frame = frame_in_two(&sent_by(10, packet), usize::MAX, offload);
        assert_eq!(east.one(east.port("a"), frame).map(|out| out.egress), expected, "a checksum {sentence}");
    }
    let short = Long::new(Segments::Tcp4, false, 2, 1200);
    let out = east
        .one(east.port("a"), frame_in_two(&sent_by(10, &short.packet), 1000, short.offload(1200)))
        .unwrap();
    assert_eq!(out.offload.gso, None, "one segment is none");
}

#[test]
fn f23_long_frames_are_judged_by_their_segments() {
    let east = east();
    // Segments of 1448 bytes of payload under 52 of headers are packets of 1500.
    let long = Long::new(Segments::Tcp4, false, 2, 20_000);
    let frame = frame_in_two(&sent_by(10, &long.packet), 1000, long.offload(1448));
    let out = east.run(east.port("a"), [frame]);
    assert_eq!((out.len(), out[0].egress, &out[0].packet()[20..22]), (1, east.port("a"), &[3, 4][..]));
    assert_all_right(&out[0]);
    assert_eq!(out[0].packet()[28..48], long.packet[..20]);
    // Without DF each segment is fragmented.
    let mut long = Long::new(Segments::Udp, false, 2, 4500);
    long.packet = fragmentable(long.packet);
    let frame = frame_in_two(&sent_by(10, &long.packet), 1000, long.offload(1500));
    let out = east.run(east.port("a"), [frame]);
    assert_eq!(out.len(), 6);
    out.iter().for_each(assert_all_right);
    let ids: Vec<_> = out.iter().map(|piece| piece.packet()[4..6].to_vec()).collect();
    assert_eq!(ids, [[0xbe, 0xef], [0xbe, 0xef], [0xbe, 0xf0], [0xbe, 0xf0], [0xbe, 0xf1], [0xbe, 0xf1]]);
}

#[test]
fn a_frame_too_long_for_the_outer_length_fields_is_cut_before_it_enters_the_tunnel() {
    for underlay in Family::BOTH {
        let east = Side::of(&snapshot(1, underlay));
        let long = Long::new(Segments::Tcp4, false, 2, 65_535 - 52);
        let frame = frame_in_two(&sent_by(10, &long.packet), 1000, long.offload(1300));
        let out = east.run(east.port("a"), [frame]);
        let right = long.slow_segments(1300);
        assert_eq!(out.len(), right.len());
        for (out, right) in out.iter().zip(right) {
            assert_all_right(out);
            assert_eq!((out.egress, out.packet()), (Port::Uplink, &aged(&right, 1)[..]));
        }
    }
}

#[test]
fn pieces_go_all_or_none() {
    let east = east();
    east.worker.borrow_mut().pool.left = 3;
    let packet = fragmentable(udp("10.70.1.10", "10.70.2.11", (1, 2), 8000));
    assert_eq!(east.one(east.port("a"), plain(&sent_by(10, &packet))), Err(DropReason::NoBuffer));
    // Room for pieces is bounded as well: 32 datagrams of 46 fragments are more than a burst holds.
    east.worker.borrow_mut().pool.left = 100_000;
    let packet = fragmentable(udp("10.70.1.10", "10.70.2.11", (1, 2), 64_000));
    let bytes = sent_by(10, &packet);
    let out = east.run(east.port("a"), (0..32).map(|_| frame_in_two(&bytes, 1000, Offload::NONE)));
    let each = 64_008_usize.div_ceil(1424);
    assert_eq!(out.len() % each, 0, "whole datagrams only");
    assert_eq!(out.len() / each + east.dropped(DropReason::NoBuffer) as usize - 1, 32);
}
