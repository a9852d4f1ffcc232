//! Connections as both data paths tell of them, and the rules they keep for them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_wire::IpProtocol;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{Count, Path, PodName};

/// What the transport of a connection has come to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Stage {
    /// The first packet was seen and no answer: TCP's SYN, a datagram, an echo request.
    New,
    /// TCP: the other end has answered with its SYN.
    SynReceived,
    /// Both ends have spoken.
    Established,
    /// TCP: one end has said its last.
    FinWait,
    /// TCP: both ends have said their last, one of which is not acknowledged.
    LastAck,
    /// TCP: all is said and acknowledged. SCTP: the same.
    TimeWait,
    /// TCP: reset.
    Closed,
}

impl Stage {
    /// Every stage, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::New,
        Self::SynReceived,
        Self::Established,
        Self::FinWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Closed,
    ];

    /// Its name for an operator.
    pub fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::SynReceived => "syn-received",
            Self::Established => "established",
            Self::FinWait => "fin-wait",
            Self::LastAck => "last-ack",
            Self::TimeWait => "time-wait",
            Self::Closed => "closed",
        }
    }
}

// One list of name, default in seconds and meaning, so that none can be forgotten.
macro_rules! timeouts {
    ($($(#[doc = $help:literal])+ $variant:ident = $label:literal, $seconds:literal;)+) => {
        /// A state in which a connection is remembered for a time of its own.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        pub enum Timeout {
            $($(#[doc = $help])+ #[serde(rename = $label)] $variant,)+
        }

        impl Timeout {
            /// Every one, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Its name in the configuration.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// Linux's default, in seconds: both data paths forget alike.
            pub const fn default_seconds(self) -> u32 {
                match self { $(Self::$variant => $seconds,)+ }
            }
        }
    };
}

timeouts! {
    /// TCP, a SYN without an answer.
    TcpSyn = "tcp-syn", 120;
    /// TCP, a SYN with an answer that is not acknowledged.
    TcpSynReceived = "tcp-syn-received", 60;
    /// TCP, established.
    TcpEstablished = "tcp-established", 432_000;
    /// TCP, one end has said its last.
    TcpFinWait = "tcp-fin-wait", 120;
    /// TCP, both have, and one is not acknowledged.
    TcpLastAck = "tcp-last-ack", 30;
    /// TCP, all is said.
    TcpTimeWait = "tcp-time-wait", 120;
    /// TCP, reset.
    TcpClosed = "tcp-closed", 10;
    /// UDP, one end has spoken.
    Udp = "udp", 30;
    /// UDP, both have.
    UdpStream = "udp-stream", 120;
    /// An echo.
    Icmp = "icmp", 30;
    /// SCTP, not yet established or no more.
    Sctp = "sctp", 10;
    /// SCTP, established.
    SctpEstablished = "sctp-established", 210;
    /// Anything else.
    Other = "other", 600;
}

impl Timeout {
    const COUNT: usize = Self::ALL.len();

    /// The one of a connection in this stage.
    pub fn of(protocol: IpProtocol, stage: Stage) -> Self {
        match (protocol, stage) {
            (IpProtocol::TCP, Stage::New) => Self::TcpSyn,
            (IpProtocol::TCP, Stage::SynReceived) => Self::TcpSynReceived,
            (IpProtocol::TCP, Stage::Established) => Self::TcpEstablished,
            (IpProtocol::TCP, Stage::FinWait) => Self::TcpFinWait,
            (IpProtocol::TCP, Stage::LastAck) => Self::TcpLastAck,
            (IpProtocol::TCP, Stage::TimeWait) => Self::TcpTimeWait,
            (IpProtocol::TCP, Stage::Closed) => Self::TcpClosed,
            (IpProtocol::UDP, Stage::New) => Self::Udp,
            (IpProtocol::UDP, _) => Self::UdpStream,
            (IpProtocol::ICMPV4 | IpProtocol::ICMPV6, _) => Self::Icmp,
            (IpProtocol::SCTP, Stage::Established) => Self::SctpEstablished,
            (IpProtocol::SCTP, _) => Self::Sctp,
            _ => Self::Other,
        }
    }
}

/// How long connections are remembered without a packet, by state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts([u32; Timeout::COUNT]);

impl Timeouts {
    /// The longest that can be asked for, in seconds: the fast path counts milliseconds that wrap around.
    pub const LONGEST: u32 = 1_209_600;

    /// The defaults, but for these, in seconds.
    pub fn new(configured: &BTreeMap<Timeout, u32>) -> Self {
        Self(std::array::from_fn(|at| {
            let timeout = Timeout::ALL[at];
            let seconds = configured.get(&timeout).copied().unwrap_or(timeout.default_seconds());
            seconds.min(Self::LONGEST) * 1000
        }))
    }

    /// One of them, in milliseconds.
    #[inline]
    pub fn millis(&self, timeout: Timeout) -> u32 {
        self.0[timeout as usize]
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self::new(&BTreeMap::new())
    }
}

/// What is configured of how connections are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionRules {
    /// Timeouts in seconds, where they are not the defaults.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub timeouts: BTreeMap<Timeout, u32>,
    /// How many connections an endpoint may have at once: those it began, and those from elsewhere than this node's own pods of the
    /// same data path. None is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_endpoint: Option<u32>,
}

/// A connection as it is at a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The data path that keeps it. One between pods of different paths is kept by both.
    pub path: Path,
    /// The number of its transport.
    pub protocol: u8,
    /// Address and port of the end that began it; the identifier of an echo for a port, zero where there is neither.
    pub from: (IpAddr, u16),
    /// Address and port of the other, as the one who began it knows them.
    pub to: (IpAddr, u16),
    /// Who answers, where that is another: behind a port of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<(IpAddr, u16)>,
    /// The pod of this node that began it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_pod: Option<PodName>,
    /// The pod of this node that answers, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_pod: Option<PodName>,
    /// What it has come to.
    pub stage: Stage,
    /// Its beginning was not seen.
    #[serde(default)]
    pub picked_up: bool,
    /// What came from the end that began it; bytes from the IP header on.
    pub sent: Count,
    /// What came from the other.
    pub answered: Count,
    /// Packets of each that repeat what was sent before, where that is counted: TCP on the fast path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<(u32, u32)>,
    /// Milliseconds since its first packet, where they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// Milliseconds until it is forgotten unless another packet comes.
    pub left_ms: u64,
    /// Microseconds from its first packet to the answer, where there was one that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_us: Option<u64>,
}

/// Which connections are asked for: those that every given condition fits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// One end lies in one of these; empty is any.
    #[serde(default)]
    pub within: Vec<IpNetwork>,
    /// The number of the transport.
    #[serde(default)]
    pub protocol: Option<u8>,
    /// The port of one end.
    #[serde(default)]
    pub port: Option<u16>,
    /// The stage.
    #[serde(default)]
    pub stage: Option<Stage>,
    /// The data path.
    #[serde(default)]
    pub path: Option<Path>,
}

impl Filter {
    /// Whether a connection is asked for.
    pub fn fits(&self, connection: &Connection) -> bool {
        let Connection { path, protocol, from, to, answers, stage, .. } = connection;
        let ends = || [Some(*from), Some(*to), *answers].into_iter().flatten();
        let lies_in = |prefix: &IpNetwork| ends().any(|(address, _)| prefix.contains(address));
        (self.within.is_empty() || self.within.iter().any(lies_in))
            && self.protocol.is_none_or(|wanted| wanted == *protocol)
            && self.port.is_none_or(|wanted| ends().any(|(_, port)| port == wanted))
            && self.stage.is_none_or(|wanted| wanted == *stage)
            && self.path.is_none_or(|wanted| wanted == *path)
    }
}

/// The connections that fit, as many of them as were asked for, and how many more there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Some of them, in no order that means anything.
    pub connections: Vec<Connection>,
    /// How many fit and are not shown.
    pub more: u64,
}

impl Listing {
    /// Takes at most so many of these.
    pub fn of(fitting: impl Iterator<Item = Connection>, most: usize) -> Self {
        let mut fitting = fitting.fuse();
        let connections: Vec<_> = fitting.by_ref().take(most).collect();
        Self { connections, more: fitting.count() as u64 }
    }

    /// Puts two together, as one of at most so many.
    pub fn join(mut self, other: Self, most: usize) -> Self {
        self.more += other.more;
        self.connections.extend(other.connections);
        let surplus = self.connections.len().saturating_sub(most);
        self.connections.truncate(most);
        self.more += surplus as u64;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(from: &str, to: &str) -> Connection {
        let end = |text: &str| {
            let end: std::net::SocketAddr = text.parse().unwrap();
            (end.ip(), end.port())
        };
        Connection {
            path: Path::Fast,
            protocol: 6,
            from: end(from),
            to: end(to),
            answers: None,
            from_pod: None,
            to_pod: None,
            stage: Stage::Established,
            picked_up: false,
            sent: Count::default(),
            answered: Count::default(),
            retransmits: None,
            age_ms: None,
            left_ms: 0,
            handshake_us: None,
        }
    }

    #[test]
    fn every_timeout_has_a_name_a_default_and_a_place() {
        let configured = [(Timeout::UdpStream, 7)].into();
        let (timeouts, defaults) = (Timeouts::new(&configured), Timeouts::default());
        for (at, timeout) in Timeout::ALL.iter().enumerate() {
            assert_eq!(*timeout as usize, at);
            assert_eq!(serde_json::to_string(timeout).unwrap(), format!("\"{}\"", timeout.label()));
            let expected = if *timeout == Timeout::UdpStream { 7 } else { timeout.default_seconds() };
            assert_eq!(timeouts.millis(*timeout), expected * 1000);
            assert_eq!(defaults.millis(*timeout), timeout.default_seconds() * 1000);
        }
        let endless = Timeouts::new(&[(Timeout::Udp, u32::MAX)].into());
        assert!(endless.millis(Timeout::Udp) < u32::MAX / 2, "an idle time is told from one that wrapped");
    }

    #[test]
    fn stages_are_numbered_and_named_as_they_are_written() {
        for (at, stage) in Stage::ALL.iter().enumerate() {
            assert_eq!(*stage as usize, at);
            assert_eq!(serde_json::to_string(stage).unwrap(), format!("\"{}\"", stage.name()));
        }
    }

    #[test]
    fn a_filter_takes_either_end_and_all_its_conditions() {
        let flow = connection("10.70.1.5:1234", "[fd70::1]:80");
        let within = |prefix: &str| Filter { within: vec![prefix.parse().unwrap()], ..Filter::default() };
        assert!(Filter::default().fits(&flow));
        assert!(within("10.70.1.0/24").fits(&flow) && within("fd70::1/128").fits(&flow));
        assert!(!within("10.70.2.0/24").fits(&flow));
        for (port, fits) in [(1234, true), (80, true), (81, false)] {
            assert_eq!(Filter { port: Some(port), ..within("10.70.1.5/32") }.fits(&flow), fits, "{port}");
        }
        assert!(!Filter { protocol: Some(17), ..Filter::default() }.fits(&flow));
        assert!(!Filter { stage: Some(Stage::New), ..Filter::default() }.fits(&flow));
        assert!(!Filter { path: Some(Path::Kernel), ..Filter::default() }.fits(&flow));
    }

    #[test]
    fn a_listing_says_how_many_it_leaves_out() {
        let flows = |count: u16| (0..count).map(|_| connection("10.0.0.1:1", "10.0.0.2:2"));
        let listing = Listing::of(flows(5), 3);
        assert_eq!((listing.connections.len(), listing.more), (3, 2));
        let both = listing.join(Listing::of(flows(2), 3), 4);
        assert_eq!((both.connections.len(), both.more), (4, 3));
    }
}
