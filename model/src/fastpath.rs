//! What agent and fast path say to each other.
//!
//! The agent listens on a unix SOCK_SEQPACKET socket, the fast path connects and says [`Hello`]. From then on the agent sends
//! [`Order`]s with rising numbers and the fast path answers each with one [`Answer`] in the same order. Either side may die at any time:
//! the other goes on and meets it again with a new hello.
//!
//! A record is JSON, cut into [`chunks`] of at most 64 KiB: one datagram each, whose first byte says whether more follow.
//! The descriptors of one port ride beside the first chunk of the record that names it (SCM_RIGHTS).
//! Unknown fields are ignored and new ones have defaults, so that sides one version apart understand each other; an order that is
//! unknown as a whole is answered with a refusal ([`Heard`]). A field that closes something must not be ignored: with it
//! [`VERSION`] rises.

use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::connection::{Filter, Listing};
use crate::flow::Events;
use crate::policy::RuleId;
use crate::service::Frontend;
use crate::{Count, Delta, DropReason, EndpointCounters, EndpointKey, MacAddr, Snapshot};

/// The version of this protocol.
pub const VERSION: u32 = 5;
/// The first version whose fast path shares connections by weight; one before gives all backends the same.
pub const WEIGHS: u32 = 5;
/// Where the agent listens unless configured otherwise.
pub const SOCKET: &str = "/run/causeway/fastpath.sock";
/// The file of the fast path's connections unless told otherwise.
pub const CONNECTIONS: &str = "/run/causeway/connections";
/// The longest datagram, its first byte included.
pub const CHUNK: usize = 64 << 10;
/// The longest record; a snapshot of ten thousand endpoints has about a tenth of it.
pub const RECORD_LIMIT: usize = 64 << 20;
/// The most descriptors, one a queue, that one record carries.
pub const MAX_QUEUES: usize = 16;

/// What kind of memory the packets live in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Memory {
    /// Hugepages.
    Hugepages,
    /// Ordinary pages: works anywhere, is slow, and must be asked for.
    Slow,
}

/// The first record on a connection, from the fast path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the fast path.
    pub version: u32,
    /// Its release and commit.
    pub release: String,
    /// Its process id, for the operator.
    pub pid: u32,
    /// Its memory.
    pub memory: Memory,
    /// How many workers it runs.
    pub workers: u16,
    /// The number of the last update it took up; zero is none.
    pub epoch: u64,
    /// The ports it holds descriptors of.
    pub ports: Vec<PortName>,
    /// How many endpoints it can carry; an older one does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub places: Option<usize>,
    /// Why it cannot carry packets at all: it stays connected to say so instead of dying in a loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unable: Option<String>,
    /// What it does less well than it could, and why.
    #[serde(default)]
    pub limits: Vec<String>,
}

/// A port of the fast path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortName {
    /// `cw-host`: the node's own stack.
    Host,
    /// Where tunnel frames come and go.
    Uplink,
    /// A pod.
    Endpoint(EndpointKey),
}

/// What a port is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// A TAP whose queues' descriptors ride beside this record.
    Tap(Tap),
    /// A DPDK ethdev that the fast path opens itself.
    Ethdev {
        /// Device arguments as DPDK takes them: `net_af_packet0,iface=eth1`.
        arguments: String,
        /// How many queues to ask for; clamped to what there is.
        queues: u16,
    },
}

/// How a TAP was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tap {
    /// Its queues.
    pub queues: u16,
    /// The length of the virtio header before every frame: 10, 12, or 24 with tunnel offload.
    pub header: u8,
    /// The offloads it was given: the bits of TUNSETOFFLOAD.
    pub offloads: u32,
    /// The hardware address of its kernel end: what frames written to it must carry as destination.
    pub mac: MacAddr,
}

/// A numbered order of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Its number, which the answer repeats.
    pub number: u64,
    /// What to do.
    pub what: Task,
}

/// An order as it is heard: one that a newer agent gives and nobody here can read is known by its number, and can be answered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Loose")]
pub struct Heard {
    /// Its number.
    pub number: u64,
    /// What to do, or why that cannot be read.
    pub what: Result<Task, String>,
}

#[derive(Deserialize)]
struct Loose {
    number: u64,
    what: serde_json::Value,
}

impl From<Loose> for Heard {
    fn from(Loose { number, what }: Loose) -> Self {
        let what = Task::deserialize(what).map_err(|error| format!("unreadable order: {error}"));
        Self { number, what }
    }
}

/// What the agent can order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Take up a whole state.
    Snapshot {
        /// The state's number.
        epoch: u64,
        /// The state.
        snapshot: Box<Snapshot>,
    },
    /// Take up changes of the last state.
    Deltas {
        /// The number of the state they make.
        epoch: u64,
        /// The changes, in order.
        deltas: Vec<Delta>,
    },
    /// Serve a port. Serving a port that is served already changes nothing, and is answered as the first time.
    Plug {
        /// Which.
        port: PortName,
        /// Made of what.
        device: Device,
    },
    /// Stop serving a port and close its descriptors. Unplugging what is not there succeeds.
    Unplug {
        /// Which.
        port: PortName,
    },
    /// Send copies of a port's descriptors back, and go on serving it.
    Show {
        /// Which.
        port: PortName,
    },
    /// Send tunnel frames to these hardware addresses, by tunnel address; to others none can be sent. For an uplink that is
    /// an ethdev: behind a TAP the kernel finds the way.
    NextHops {
        /// All of them.
        macs: Vec<(IpAddr, MacAddr)>,
    },
    /// Tell what was counted.
    Count,
    /// Tell what has become of connections since the last time.
    Flows,
    /// Tell of connections.
    Connections {
        /// Which.
        filter: Filter,
        /// How many at most.
        most: usize,
    },
}

/// The answer to an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The number of the order.
    pub number: u64,
    /// What came of it.
    pub what: Outcome,
}

/// What came of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is done, by every worker.
    Done,
    /// It is not done, and nothing has changed; the text names the object.
    Failed(String),
    /// The port is served.
    Plugged {
        /// What it does less well than asked, and why.
        limits: Vec<String>,
    },
    /// The descriptors of a port, if it has any, ride beside this record.
    Shown(Device),
    /// What was counted.
    Counted(Box<Tally>),
    /// Connections.
    Connections(Listing),
    /// What has become of connections.
    Flows(Events),
}

/// What the fast path has counted since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Tunnel frames sent.
    pub tunnel_sent: Count,
    /// Tunnel frames received.
    pub tunnel_received: Count,
    /// Drops, a line for each reason and worker that has any.
    pub drops: Vec<WorkerDrops>,
    /// By endpoint.
    pub endpoints: Vec<(EndpointKey, EndpointCounters)>,
    /// Paths that were learned to carry less than usual: the tunnel address at their end, and the longest packet of a pod.
    #[serde(default)]
    pub paths: Vec<(IpAddr, u16)>,
    /// What rules have denied.
    #[serde(default)]
    pub rules: Vec<(RuleId, Count)>,
    /// Connections begun at frontends of services, for as long as each has been there.
    #[serde(default)]
    pub services: Vec<(Frontend, u64)>,
    /// Packet buffers: how many there are, and how many of them are free.
    pub buffers: (u32, u32),
    /// Frames that each worker took in, from whatever port.
    #[serde(default)]
    pub workers: Vec<u64>,
    /// The table of connections; none when none are remembered.
    #[serde(default)]
    pub connections: Option<ConnectionFigures>,
}

/// How full the table of connections is, and what lack of room has led to since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionFigures {
    /// How many it has room for.
    pub capacity: u32,
    /// How many there are.
    pub live: u32,
    /// Connections not yet established that lost their place to others.
    pub half_open_gone: u64,
    /// Idle connections that lost theirs.
    pub idle_gone: u64,
    /// Packets that would have begun one and found no place.
    pub refused: u64,
}

/// The drops of one reason on one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerDrops {
    /// The worker.
    pub worker: u16,
    /// The reason.
    pub reason: DropReason,
    /// How many.
    pub count: Count,
}

/// A record that did not come through.
#[derive(Debug, Error)]
pub enum ProtocolError {
    /// The record, or what was received of it, is longer than [`RECORD_LIMIT`].
    #[error("a record of {0} bytes or more is over the limit of {RECORD_LIMIT}")]
    TooLong(usize),
    /// A datagram without the byte that says whether more follow, or with an unknown one.
    #[error("a datagram does not begin with 0 or 1")]
    NotAChunk,
    /// The bytes are not the record we expect.
    #[error("unreadable record: {0}")]
    Json(#[from] serde_json::Error),
}

const LAST: u8 = 0;
const MORE: u8 = 1;

/// Cuts a record into the datagrams that carry it.
pub fn chunks(record: &impl Serialize) -> Result<Vec<Vec<u8>>, ProtocolError> {
    let json = serde_json::to_vec(record)?;
    if json.len() > RECORD_LIMIT {
        return Err(ProtocolError::TooLong(json.len()));
    }
    let mut pieces = json.chunks(CHUNK - 1).peekable();
    let mut datagrams = Vec::with_capacity(json.len() / (CHUNK - 1) + 1);
    while let Some(piece) = pieces.next() {
        let head = if pieces.peek().is_some() { MORE } else { LAST };
        datagrams.push([&[head], piece].concat());
    }
    Ok(datagrams)
}

/// Puts records together again from the datagrams of one connection.
#[derive(Debug, Default)]
pub struct Assembler {
    json: Vec<u8>,
}

impl Assembler {
    /// Takes one datagram; gives the record once its last one has come. After an error the connection is of no more use.
    pub fn push<T: DeserializeOwned>(&mut self, datagram: &[u8]) -> Result<Option<T>, ProtocolError> {
        let (head, piece) = datagram.split_first().ok_or(ProtocolError::NotAChunk)?;
        if self.json.len() + piece.len() > RECORD_LIMIT {
            return Err(ProtocolError::TooLong(self.json.len() + piece.len()));
        }
        self.json.extend_from_slice(piece);
        match *head {
            MORE => Ok(None),
            LAST => Ok(Some(serde_json::from_slice(&std::mem::take(&mut self.json))?)),
            _ => Err(ProtocolError::NotAChunk),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_records_come_through_in_chunks() {
        for length in [0, 1, CHUNK - 4, CHUNK - 3, CHUNK - 2, CHUNK, 3 * CHUNK + 7] {
            let record = "x".repeat(length);
            let datagrams = chunks(&record).unwrap();
            let (last, before) = datagrams.split_last().unwrap();
            let mut assembler = Assembler::default();
            for datagram in before {
                assert!(datagram.len() <= CHUNK);
                assert_eq!(assembler.push::<String>(datagram).unwrap(), None);
            }
            assert_eq!(assembler.push::<String>(last).unwrap(), Some(record));
        }
    }

    #[test]
    fn noise_is_an_error() {
        for noise in [&b""[..], b"\x02{}", b"\x00", b"\x00{", b"\x00{\"number\":-1}"] {
            assert!(Assembler::default().push::<Order>(noise).is_err(), "{noise:?}");
        }
    }

    #[test]
    fn a_hello_of_the_next_version_is_understood() {
        let text = br#"{"version":3,"release":"9","pid":1,"memory":"slow","workers":1,"epoch":0,"ports":["host"],"colour":"blue"}"#;
        let mut datagram = vec![0];
        datagram.extend(text);
        let hello: Hello = Assembler::default().push(&datagram).unwrap().unwrap();
        assert_eq!((hello.version, hello.memory, hello.ports), (3, Memory::Slow, vec![PortName::Host]));
    }
}
