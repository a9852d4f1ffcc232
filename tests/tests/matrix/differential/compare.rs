//! Whether two outcomes are one, but for what docs/decisions.md names.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use causeway_model::{DropReason, Family};

use super::sequence::{Fault, Lie, Sequence, TunnelLie, Twist, Who};
use super::theatre::{Arrival, Drops, Outcome};

/// What is different, if anything is, in one line; the kernel's outcome comes first.
pub fn difference(sequence: &Sequence, kernel: &Outcome, fast: &Outcome) -> Option<String> {
    for (index, (one, other)) in kernel.arrivals.iter().zip(&fast.arrivals).enumerate() {
        let (one, mut other) = (sightings(one), sightings(other));
        let to_nobody = matches!(sequence.steps[index].twist, Twist::To(_));
        if to_nobody && sequence.family == Family::V4 {
            // Of an unreachable address the kernel says so once in a second.
            other.retain(|sighting| !matches!(sighting, Sighting::Told { .. }) || one.contains(sighting));
        }
        if one != other {
            return Some(format!("step {}: kernel {one:?}, fast {other:?}", index + 1));
        }
    }
    let (one, other) = (counted(sequence, &kernel.drops), counted(sequence, &fast.drops));
    (one != other).then(|| format!("drops: kernel {one:?}, fast {other:?}"))
}

/// What was counted, by node, under names that both paths have.
fn counted(sequence: &Sequence, drops: &Drops) -> BTreeMap<(usize, DropReason), u64> {
    let in_pieces = sequence.has(|twist| matches!(twist, Twist::Fragments { .. }));
    let contradicts = sequence.has(|twist| {
        use Twist::{Cut, HeaderWords, Longer, TransportLength, Version};
        matches!(twist, Cut(_) | HeaderWords(_) | Longer(_) | TransportLength(_) | Version(_))
    });
    let is_faulty =
        sequence.has(|twist| matches!(twist, Twist::Fragments { fault, .. } if fault != Fault::None));
    let for_others =
        sequence.has(|twist| matches!(twist, Twist::DestinationMac | Twist::Tunnel(TunnelLie::InnerMac)));
    let is_impossible =
        sequence.has(|twist| matches!(twist, Twist::From(Lie::Loopback | Lie::Multicast | Lie::Unspecified)));
    let is_compared = |reason: &DropReason| match reason {
        // Of lengths and checksums either path tells some by a name of its own, and the kernel some by none.
        DropReason::Malformed | DropReason::OuterChecksum | DropReason::KernelMalformed => false,
        DropReason::InvalidConnection => !contradicts && !is_faulty,
        // Of fragments that are wrong one path sees first that they are, the other to whom they go.
        DropReason::DeniedNew => !is_faulty,
        // Counted when their time is over.
        DropReason::LoneFragment => false,
        // Links say things, too, that are for nobody here.
        DropReason::NotForUs => for_others,
        // What they say of themselves.
        DropReason::UnansweredNeighbour => false,
        // The kernel's IP does not forward them, and counts them under no name of ours.
        DropReason::HopLimit | DropReason::TooBig | DropReason::NoRoute => false,
        // The kernel counts but overlaps, and those over IPv4 only.
        DropReason::BadFragment => !is_faulty,
        // What nobody can be is dropped before anything of ours sees it.
        DropReason::SpoofedAddress => !is_impossible,
        _ => true,
    };
    let counted = drops.iter().filter(|((_, reason), _)| is_compared(reason));
    // A datagram that the kernel has put together is one, not as many as its fragments.
    counted.map(|(key, count)| (*key, if in_pieces { 1 } else { *count })).collect()
}

/// What somebody has seen, comparable.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sighting {
    /// A frame; one that came in fragments as if it had not: how it is cut is each path's own affair.
    Frame { at: Who, outer: Option<String>, bytes: Vec<u8> },
    /// What a node says about a packet; how much of it is quoted is each path's own affair.
    Told { at: Who, from: Vec<u8>, says: [u8; 8], quote: Vec<u8> },
}

impl fmt::Debug for Sighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame { at, outer, bytes } => {
                write!(f, "{at:?} gets {} bytes {}", bytes.len(), hex(bytes))?;
                outer.as_ref().map_or(Ok(()), |outer| write!(f, " in {outer}"))
            }
            Self::Told { at, from, says, quote } => {
                write!(f, "{at:?} is told by {} {} about {}", hex(from), hex(says), hex(quote))
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    let text: String = bytes.iter().take(96).map(|byte| format!("{byte:02x}")).collect();
    if bytes.len() > 96 { text + "…" } else { text }
}

pub fn sightings(arrivals: &[Arrival]) -> Vec<Sighting> {
    let (mut seen, mut pieces) = (Vec::new(), BTreeMap::<_, BTreeSet<Piece>>::new());
    for arrival in arrivals {
        if let Some(told) = told(arrival) {
            seen.extend(told);
        } else if let Some((header, piece)) = piece(&arrival.frame) {
            pieces.entry((arrival.at, header, arrival.outer.clone())).or_default().insert(piece);
        } else {
            let Arrival { at, frame, outer, .. } = arrival.clone();
            seen.push(Sighting::Frame { at, outer, bytes: without_length(frame) });
        }
    }
    for ((at, header, outer), pieces) in pieces {
        // Those without the others of their datagram are of no use to anybody: only one path puts them together before it decides.
        if let Some(payload) = joined(&pieces) {
            seen.push(Sighting::Frame { at, outer, bytes: [header, payload].concat() });
        }
    }
    seen.sort();
    seen
}

/// A frame without what is another in its fragments: lengths and the header's checksum. The length of what is there tells.
fn without_length(mut frame: Vec<u8>) -> Vec<u8> {
    let fields: &[usize] = match frame.get(12..14) {
        // Of what may be cut, which is told from the flag that it may not.
        Some([8, 0]) if frame.get(20).is_some_and(|flags| flags & 0x40 == 0) => &[16, 17, 24, 25],
        Some([0x86, 0xdd]) => &[18, 19],
        _ => &[],
    };
    for at in fields {
        if let Some(byte) = frame.get_mut(*at) {
            *byte = 0;
        }
    }
    frame
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    at: usize,
    more: bool,
    bytes: Vec<u8>,
}

/// A fragment, and the header that it shares with those of its datagram.
fn piece(frame: &[u8]) -> Option<(Vec<u8>, Piece)> {
    let packet = frame.get(14..)?;
    let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    match frame.get(12..14)? {
        [8, 0] => {
            let place = word(6)?;
            let header = usize::from(packet.first()? & 15) * 4;
            if place & 0x3fff == 0 || packet.len() < header {
                return None;
            }
            let mut shared = frame[..14 + header].to_vec();
            for at in [16, 17, 20, 21, 24, 25] {
                *shared.get_mut(at)? = 0;
            }
            let bytes = packet[header..].to_vec();
            Some((shared, Piece { at: usize::from(place & 0x1fff) * 8, more: place & 0x2000 != 0, bytes }))
        }
        [0x86, 0xdd] if *packet.get(6)? == 44 => {
            let place = word(42)?;
            // As if there were no fragment header.
            let mut shared = frame[..14 + 40].to_vec();
            (shared[20], shared[18], shared[19]) = (packet[40], 0, 0);
            let bytes = packet[48..].to_vec();
            Some((shared, Piece { at: usize::from(place & !7), more: place & 1 != 0, bytes }))
        }
        _ => None,
    }
}

fn joined(pieces: &BTreeSet<Piece>) -> Option<Vec<u8>> {
    let mut payload = Vec::new();
    for piece in pieces {
        if piece.at != payload.len() {
            return None;
        }
        payload.extend_from_slice(&piece.bytes);
    }
    pieces.last().filter(|last| !last.more).map(|_| payload)
}

/// An error that a node has made; nothing of it where that was about another time.
fn told(arrival: &Arrival) -> Option<Option<Sighting>> {
    let packet = arrival.frame.get(14..)?;
    let (from, icmp, quoted) = match arrival.frame.get(12..14)? {
        [8, 0] if packet.get(9) == Some(&1) => (packet.get(12..16)?, 20, 28),
        [0x86, 0xdd] if packet.get(6) == Some(&58) => (packet.get(8..24)?, 40, 48),
        _ => return None,
    };
    // The kernel says so of fragments that it has waited for, long after.
    let is_late = matches!(packet.get(icmp..icmp + 2)?, [11 | 3, 1]) && arrival.from_node;
    let mut says: [u8; 8] = packet.get(icmp..icmp + 8)?.try_into().ok()?;
    // The checksum covers the quote.
    says[2..4].fill(0);
    let quote = packet.get(icmp + 8..)?;
    let quote = quote[..quote.len().min(quoted)].to_vec();
    let told = Sighting::Told { at: arrival.at, from: from.to_vec(), says, quote };
    arrival.from_node.then_some((!is_late).then_some(told))
}
