//! The table as an operator sees it.

use causeway_model::connection::{Connection, Timeout, Timeouts};
use causeway_model::{Count, Path};
use causeway_wire::IpProtocol;

use super::entry::{Entry, State};
use super::table::Connections;

impl Connections {
    /// Every connection, at this moment in nanoseconds.
    pub fn records(&self, now: u64, timeouts: &Timeouts) -> impl Iterator<Item = Connection> {
        self.live().map(move |(_, state, entry)| record(state, entry, now, timeouts))
    }
}

fn record(state: State, entry: Entry<'_>, now: u64, timeouts: &Timeouts) -> Connection {
    let millis = (now / 1_000_000) as u32;
    let (key, from) = match state.client {
        Some(client) => (entry.client_key(), client),
        None => (entry.key(), state.originator),
    };
    let protocol = key.protocol();
    let idle = millis.wrapping_sub(entry.last_seen());
    // A packet may have come since `now` was taken.
    let idle = if idle > u32::MAX / 2 { 0 } else { idle };
    let left = timeouts.millis(Timeout::of(protocol, state.stage)).saturating_sub(idle);
    let counted = |end| {
        let (packets, bytes) = entry.counted(end);
        Count { packets, bytes }
    };
    let again = |end| entry.retransmits(end);
    let (asker, mut answerer) = (key.end(from), key.end(from.other()));
    let (from, wire) = (state.originator, entry.key());
    if matches!(protocol, IpProtocol::ICMPV4 | IpProtocol::ICMPV6) {
        // One identifier for both.
        answerer.1 = asker.1;
    }
    Connection {
        path: Path::Fast,
        protocol: protocol.0,
        from: asker,
        to: answerer,
        answers: state.client.map(|_| wire.end(from.other())),
        from_pod: None,
        to_pod: None,
        stage: state.stage,
        picked_up: state.picked_up,
        sent: counted(from),
        answered: counted(from.other()),
        retransmits: (protocol == IpProtocol::TCP).then(|| (again(from), again(from.other()))),
        age_ms: Some(now.saturating_sub(entry.began()) / 1_000_000),
        left_ms: left.into(),
        handshake_us: Some(entry.handshake()).filter(|micros| *micros > 0),
    }
}
