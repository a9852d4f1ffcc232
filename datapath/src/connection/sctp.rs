//! What SCTP packets may do to a connection (RFC 9260): verification tags and the life of an association.

use causeway_wire::Sctp;

use super::entry::State;
use super::key::End;
use causeway_model::connection::Stage;

/// Chunk types (RFC 9260 §3.2).
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;
/// The T bit: the tag is the other direction's, since the sender does not know its own (RFC 9260 §8.5.1).
const TAG_REFLECTED: u8 = 1;

/// The first chunk: its type, its flags, and the tag that it announces.
struct Chunk {
    kind: u8,
    flags: u8,
    initiate_tag: u32,
}

fn first_chunk(packet: &[u8]) -> Option<Chunk> {
    let chunk = packet.get(Sctp::LEN..)?;
    let tag = chunk.get(4..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes);
    let &[kind, flags, _, _] = chunk.first_chunk()?;
    Some(Chunk { kind, flags, initiate_tag: tag })
}

/// The tags that each end's packets must carry after a first packet; none when it cannot be one: only INIT, alone and with tag zero.
pub(super) fn begin(packet: &[u8], from: End) -> Option<[u32; 2]> {
    let (header, _) = Sctp::split(packet).ok()?;
    let chunk = first_chunk(packet)?;
    if chunk.kind != INIT || header.verification_tag() != 0 || chunk.initiate_tag == 0 {
        return None;
    }
    let mut tags = [0; 2];
    tags[from.other().index()] = chunk.initiate_tag;
    Some(tags)
}

/// The stage and the tags after a packet of a connection; none when it does not belong to it.
pub(super) fn judge(state: State, mut tags: [u32; 2], from: End, packet: &[u8]) -> Option<(Stage, [u32; 2])> {
    let (header, _) = Sctp::split(packet).ok()?;
    let chunk = first_chunk(packet)?;
    let (own, other) = (tags[from.index()], tags[from.other().index()]);
    let tag = header.verification_tag();
    if chunk.kind == INIT {
        // Again, or a restart of one end: the other answers with a cookie, and nothing is decided yet (RFC 9260 §5.2.2).
        return (tag == 0).then(|| {
            if state.stage == Stage::New && from == state.originator {
                tags[from.other().index()] = chunk.initiate_tag;
            }
            (state.stage, tags)
        });
    }
    let reflected = matches!(chunk.kind, ABORT | SHUTDOWN_COMPLETE) && chunk.flags & TAG_REFLECTED != 0;
    if tag != if reflected { other } else { own } {
        return None;
    }
    let stage = match (state.stage, chunk.kind) {
        (_, ABORT) => Stage::Closed,
        (Stage::New, INIT_ACK) if from != state.originator && chunk.initiate_tag != 0 => {
            tags[from.other().index()] = chunk.initiate_tag;
            Stage::SynReceived
        }
        // Before the answer nothing else can be said.
        (Stage::New, _) => return None,
        (Stage::SynReceived, COOKIE_ACK) if from != state.originator => Stage::Established,
        (stage @ Stage::SynReceived, _) => stage,
        (Stage::Closed | Stage::TimeWait, COOKIE_ECHO) => Stage::SynReceived,
        (_, SHUTDOWN) => Stage::FinWait,
        (_, SHUTDOWN_ACK) => Stage::LastAck,
        (_, SHUTDOWN_COMPLETE) => Stage::TimeWait,
        (stage, _) => stage,
    };
    Some((stage, tags))
}

#[cfg(test)]
mod tests {
    use super::super::table::beginning;
    use super::*;

    fn packet(tag: u32, kind: u8, flags: u8, initiate: u32) -> Vec<u8> {
        let mut bytes = vec![0, 7, 0, 9];
        bytes.extend(tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([kind, flags, 0, 20]);
        bytes.extend(initiate.to_be_bytes());
        bytes.extend([0; 12]);
        bytes
    }

    /// From an end, its packet, and the stage that follows; none where it is refused.
    type Step = (End, Vec<u8>, Option<Stage>);

    fn tell(steps: &[Step]) {
        let (first, rest) = steps.split_first().unwrap();
        let mut tags = begin(&first.1, first.0).unwrap();
        let mut state = beginning(first.0, Stage::New);
        for (number, (from, packet, expected)) in rest.iter().enumerate() {
            let after = judge(state, tags, *from, packet);
            assert_eq!(after.map(|(stage, _)| stage), *expected, "step {}", number + 1);
            if let Some((stage, new)) = after {
                (state.stage, tags) = (stage, new);
            }
        }
    }

    #[test]
    fn an_association_lives_and_ends() {
        use End::{High, Low};
        tell(&[
            (Low, packet(0, INIT, 0, 11), None),
            (High, packet(12, INIT_ACK, 0, 22), None),
            (High, packet(11, INIT_ACK, 0, 22), Some(Stage::SynReceived)),
            (Low, packet(21, COOKIE_ECHO, 0, 0), None),
            (Low, packet(22, COOKIE_ECHO, 0, 0), Some(Stage::SynReceived)),
            (High, packet(11, COOKIE_ACK, 0, 0), Some(Stage::Established)),
            (Low, packet(22, 0, 3, 0), Some(Stage::Established)),
            (High, packet(22, 0, 3, 0), None),
            (High, packet(11, ABORT, TAG_REFLECTED, 0), None),
            (Low, packet(22, SHUTDOWN, 0, 0), Some(Stage::FinWait)),
            (High, packet(11, SHUTDOWN_ACK, 0, 0), Some(Stage::LastAck)),
            (Low, packet(22, SHUTDOWN_COMPLETE, 0, 0), Some(Stage::TimeWait)),
        ]);
        tell(&[
            (High, packet(0, INIT, 0, 11), None),
            (Low, packet(22, ABORT, 0, 0), None),
            (Low, packet(11, ABORT, 0, 0), Some(Stage::Closed)),
        ]);
    }

    #[test]
    fn only_an_init_begins() {
        for bytes in
            [packet(5, INIT, 0, 11), packet(0, INIT, 0, 0), packet(0, COOKIE_ECHO, 0, 1), vec![0; 12], vec![]]
        {
            assert_eq!(begin(&bytes, End::Low), None, "{bytes:?}");
        }
    }
}
