//! The table as an operator sees it.

use std::net::IpAddr;

use causeway_wire::IpProtocol;

use super::entry::Stage;
use super::table::Connections;
use super::timeouts::Timeouts;

/// A connection as it is at a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// The transport protocol.
    pub protocol: IpProtocol,
    /// Address and port of the end that began it.
    pub from: (IpAddr, u16),
    /// Address and port of the other.
    pub to: (IpAddr, u16),
    /// What it has come to.
    pub stage: Stage,
    /// Its beginning was not seen.
    pub picked_up: bool,
    /// Packets and bytes from the end that began it, and from the other.
    pub counts: [(u64, u64); 2],
    /// Packets of each that repeat what was sent before.
    pub retransmits: [u32; 2],
    /// Milliseconds since its first packet.
    pub age: u64,
    /// Milliseconds since its last.
    pub idle: u32,
    /// Milliseconds until it is forgotten.
    pub left: u32,
    /// Microseconds from its first packet to the answer; zero without one.
    pub handshake: u64,
    /// The slot of the pod it is counted for.
    pub owner: u16,
}

impl Connections {
    /// Every connection, at this moment in nanoseconds.
    pub fn records(&self, now: u64, timeouts: &Timeouts) -> impl Iterator<Item = Record> {
        let millis = (now / 1_000_000) as u32;
        self.live().map(move |(_, state, entry)| {
            let (key, from) = (entry.key(), state.originator);
            let idle = millis.wrapping_sub(entry.last_seen());
            let idle = if idle > u32::MAX / 2 { 0 } else { idle };
            Record {
                protocol: key.protocol(),
                from: key.end(from),
                to: key.end(from.other()),
                stage: state.stage,
                picked_up: state.picked_up,
                counts: [entry.counted(from), entry.counted(from.other())],
                retransmits: [entry.retransmits(from), entry.retransmits(from.other())],
                age: now.saturating_sub(entry.began()) / 1_000_000,
                idle,
                left: timeouts.of(key.protocol(), state).saturating_sub(idle),
                handshake: entry.handshake(),
                owner: entry.owner(),
            }
        })
    }
}
