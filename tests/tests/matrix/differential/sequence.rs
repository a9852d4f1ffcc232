//! What is sent: sequences of packets that a seed decides, in words of their own, so that one can be shown and shortened.

use std::collections::BTreeMap;
use std::fmt;

use causeway_model::Family;
use causeway_wire::TcpFlags;
use fastrand::Rng;

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// A pod of the first node.
    A,
    /// Another one.
    B,
    /// A pod of the first node that takes no new connections.
    Closed,
    /// A pod of the second node.
    Far,
    /// A pod of a node that is not ours: what it sends are tunnel frames, byte by byte.
    Peer,
}

impl Who {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::A, Self::B, Self::Closed, Self::Far, Self::Peer];
}

/// Pairs that talk: on one node, across nodes, with a pod that takes nothing new, with a stranger's node.
pub const PAIRS: [[Who; 2]; 9] = [
    [Who::A, Who::B],
    [Who::B, Who::A],
    [Who::A, Who::Far],
    [Who::Far, Who::A],
    [Who::A, Who::Closed],
    [Who::Closed, Who::Far],
    [Who::Peer, Who::Closed],
    [Who::Peer, Who::A],
    [Who::A, Who::Peer],
];

/// Packets between two ends, in order.
#[derive(Clone, Debug)]
pub struct Sequence {
    pub family: Family,
    pub ends: [Who; 2],
    pub steps: Vec<Step>,
}

/// One packet, or one datagram in fragments.
#[derive(Clone, Debug)]
pub struct Step {
    /// Which end sends it.
    pub from: usize,
    pub load: Load,
    pub twist: Twist,
}

/// What is in a packet. A flow's number stands for ports and identifiers that are new with every play.
#[derive(Clone, Debug)]
pub enum Load {
    Tcp(Segment),
    Udp {
        flow: u16,
        len: usize,
    },
    Echo {
        reply: bool,
        flow: u16,
        len: usize,
    },
    /// An error about a packet which that end would have sent, quoted as far as this.
    Error {
        kind: ErrorKind,
        about: Box<Load>,
        by: usize,
        quoted: usize,
    },
    /// Of a protocol without ports.
    Other {
        protocol: u8,
        len: usize,
    },
}

/// A segment; its numbers count from where its sender and the other end began.
#[derive(Clone, Debug)]
pub struct Segment {
    pub flow: u16,
    pub flags: TcpFlags,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub window: u16,
    pub scale: Option<u8>,
    pub len: usize,
}

/// What a connection has come to.
#[derive(Clone, Copy)]
enum Life {
    New,
    Began,
    Answered,
    Established,
    PickedUp,
    Ends,
}

/// Kinds of errors that exist over both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    PortUnreachable,
    HostUnreachable,
    TooBig,
    HopLimit,
    Parameter,
}

/// What is uncommon about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twist {
    None,
    Hops(u8),
    Class(u8),
    /// IPv4 options, or a destination options header, of so many times eight bytes.
    Options(u8),
    /// It says that it is from somebody else.
    From(Lie),
    /// It is to somebody else.
    To(Elsewhere),
    SourceMac,
    DestinationMac,
    IpChecksum,
    Version(u8),
    HeaderWords(u8),
    /// The IP length says so many bytes more.
    Longer(u16),
    /// The length that UDP says, more than it is; of TCP, words of header.
    TransportLength(i16),
    /// The frame ends so many bytes early.
    Cut(usize),
    /// May be cut on its way (IPv4).
    MayFragment,
    Fragments {
        step: usize,
        order: u64,
        fault: Fault,
    },
    /// Of the tunnel frame, where the sender makes it itself.
    Tunnel(TunnelLie),
}

/// Senders that a packet may claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    Neighbour,
    OtherNode,
    World,
    Receiver,
    Node,
    Loopback,
    Multicast,
    Unspecified,
}

/// Receivers that are none, or not the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    NobodyHere,
    NobodyThere,
    TunnelOfTheNode,
    Loopback,
    Multicast,
}

/// What is wrong with fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    Overlap,
    Doubled,
    UnevenLength,
}

/// What is wrong with a tunnel frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelLie {
    Network,
    NoFlag,
    Reserved,
    Stranger,
    InnerMac,
    InnerTag,
    InnerKind,
    Checksum,
    UdpLength(i16),
    Class(u8),
}

impl Sequence {
    /// The sequence of a seed.
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let family = if rng.bool() { Family::V4 } else { Family::V6 };
        let ends = PAIRS[rng.usize(..PAIRS.len())];
        let mut steps = Vec::new();
        for _ in 0..=rng.usize(..2) {
            let flow = steps.len() as u16;
            match rng.u8(..10) {
                0..4 => tcp(&mut rng, flow, &mut steps),
                4..6 => udp(&mut rng, flow, &mut steps),
                6..8 => echo(&mut rng, flow, &mut steps),
                _ => chance(&mut rng, flow, &mut steps),
            }
        }
        for step in &mut steps {
            if let Load::Udp { len, .. } = &mut step.load {
                // With whatever is put before it, it fits the wire.
                let most = if family == Family::V4 { 1430 } else { 1410 };
                *len = (*len).min(if ends[step.from] == Who::Peer { 1370 } else { most });
            }
            if rng.u8(..5) == 0 {
                step.twist = twist(&mut rng, family, ends[step.from]);
            }
            if matches!((&step.load, step.twist), (Load::Error { .. }, Twist::Fragments { .. })) {
                // The first of them may quote too little.
                step.twist = Twist::None;
            }
        }
        Self { family, ends, steps }.fair()
    }

    /// Without what each path follows in a way of its own: resets and another SYN of a connection that is not yet, or no longer,
    /// established, and what its answerer says before.
    fn fair(mut self) -> Self {
        const SYN: TcpFlags = TcpFlags::SYN;
        const ACK: TcpFlags = TcpFlags::ACK;
        // Wrong fragments come to nothing on both paths, but one has taken up what the first of them says.
        let faulty =
            |step: &Step| matches!(step.twist, Twist::Fragments { fault, .. } if fault != Fault::None);
        let end = self.steps.iter().position(faulty).map_or(self.steps.len(), |at| at + 1);
        self.steps.truncate(end);
        let denies = self.ends.contains(&Who::Closed);
        let mut flows: BTreeMap<u16, Life> = BTreeMap::new();
        self.steps.retain(|step| {
            let Load::Tcp(segment) = &step.load else { return true };
            let has = |flag| segment.flags.contains(flag);
            let first = if has(SYN) { Life::New } else { Life::PickedUp };
            let life = flows.get(&segment.flow).copied().unwrap_or(first);
            let begins_otherwise = has(SYN) && !has(ACK) && (step.from == 1 || segment.sequence != 0);
            let is_fair = match life {
                Life::New | Life::Began => !has(TcpFlags::RST) && !begins_otherwise,
                Life::Answered => !has(TcpFlags::RST) && (step.from == 0 || has(SYN) && has(ACK)),
                // With who takes nothing new nothing is established.
                Life::Established => !(denies && has(TcpFlags::RST)),
                Life::PickedUp | Life::Ends => !has(SYN) && !has(TcpFlags::RST),
            };
            if !is_fair {
                return false;
            }
            let life = match (life, segment.flags) {
                _ if has(TcpFlags::FIN) || has(TcpFlags::RST) => Life::Ends,
                (life, _) if step.twist != Twist::None => life,
                (Life::New, flags) if step.from == 0 && flags == SYN => Life::Began,
                (Life::New, flags) if flags == ACK => Life::PickedUp,
                (Life::Began, flags) if step.from == 1 && flags == SYN | ACK => Life::Answered,
                (Life::Answered, flags) if flags == ACK => Life::Established,
                (life, _) => life,
            };
            flows.insert(segment.flow, life);
            true
        });
        self
    }

    /// Whether a step has a twist of this kind.
    pub fn has(&self, is_so: impl Fn(Twist) -> bool) -> bool {
        self.steps.iter().any(|step| is_so(step.twist))
    }

    /// Without one of its steps.
    pub fn without(&self, index: usize) -> Self {
        let mut shorter = self.clone();
        if index >= shorter.steps.len() {
            return shorter;
        }
        shorter.steps.remove(index);
        shorter.fair()
    }

    /// With nothing uncommon about one of its steps.
    pub fn straightened(&self, index: usize) -> Self {
        let mut plainer = self.clone();
        if let Some(step) = plainer.steps.get_mut(index) {
            step.twist = Twist::None;
        }
        plainer.fair()
    }
}

/// A connection's life, mostly in order, with what may come between.
fn tcp(rng: &mut Rng, flow: u16, steps: &mut Vec<Step>) {
    const SYN: TcpFlags = TcpFlags::SYN;
    const ACK: TcpFlags = TcpFlags::ACK;
    let scales = [rng.bool().then(|| rng.u8(..9)), rng.bool().then(|| rng.u8(..9))];
    // Where each end is, and what it has acknowledged of the other.
    let (mut next, mut acknowledged) = ([0_u32; 2], [0_u32; 2]);
    // Taken up in the middle, now and then.
    let mut phase = if rng.u8(..6) == 0 { 3 } else { 0 };
    if phase == 3 {
        (next, acknowledged) = ([1, 1], [1, 1]);
    }
    for _ in 0..rng.usize(3..14) {
        let disturbed = rng.u8(..4) == 0;
        let from = match phase {
            0 | 2 => 0,
            1 => 1,
            _ => rng.usize(..2),
        };
        let from = if disturbed { rng.usize(..2) } else { from };
        let other = 1 - from;
        let mut segment = Segment {
            flow,
            flags: ACK,
            sequence: next[from],
            acknowledgment: next[other],
            window: rng.choice([20_000, 40_000, 65_535]).unwrap_or(20_000),
            scale: None,
            len: 0,
        };
        if disturbed {
            disturb(rng, &mut segment, next[from], phase > 2);
        } else {
            match phase {
                0 => {
                    (segment.flags, segment.acknowledgment) = (SYN, 0);
                    segment.scale = scales[from];
                    (next[from], phase) = (1, 1);
                }
                1 => {
                    (segment.flags, segment.scale) = (SYN | ACK, scales[from]);
                    (next[from], phase) = (1, 2);
                }
                2 => phase = 3,
                _ => {
                    segment.len = rng.choice([0, 1, 100, 1000]).unwrap_or(0);
                    if rng.u8(..6) == 0 {
                        segment.flags = TcpFlags::FIN | ACK;
                    }
                    let fin = u32::from(segment.flags.contains(TcpFlags::FIN));
                    next[from] = next[from].wrapping_add(segment.len as u32 + fin);
                }
            }
            acknowledged[from] = next[other];
        }
        steps.push(Step { from, load: Load::Tcp(segment), twist: Twist::None });
        if rng.u8(..12) == 0
            && let Some(error) = error_about(rng, steps)
        {
            steps.push(error);
        }
    }
}

/// Makes a segment one that does not come next: each is one that somebody sends, by mistake, late, or to do harm.
fn disturb(rng: &mut Rng, segment: &mut Segment, next: u32, established: bool) {
    const SYN: TcpFlags = TcpFlags::SYN;
    const ACK: TcpFlags = TcpFlags::ACK;
    const RST: TcpFlags = TcpFlags::RST;
    const NONSENSE: [u8; 7] = [0x00, 0x03, 0x06, 0x3f, 0x20, 0x15, 0x01];
    const FAR: u32 = 0x4000_0000;
    // A reset of what is only half open ends it in the kernel's tracking, whatever it acknowledges.
    let kinds = if established { 14 } else { 11 };
    match rng.u8(..kinds) {
        // Begins, or answers, once more.
        0 => (segment.flags, segment.sequence) = (SYN, 0),
        1 => (segment.flags, segment.sequence, segment.acknowledgment) = (SYN | ACK, 0, 1),
        // Begins anew.
        2 => (segment.flags, segment.sequence) = (SYN, next.wrapping_add(FAR)),
        3 => (segment.sequence, segment.len) = (next.wrapping_add(FAR), 10),
        4 => segment.acknowledgment = segment.acknowledgment.wrapping_add(FAR),
        5 => (segment.sequence, segment.len) = (next.wrapping_add(FAR), 0),
        // Asks whether the other end is still there.
        6 => segment.sequence = next.wrapping_sub(1),
        7 => segment.flags = TcpFlags::FIN | ACK,
        8 => segment.flags = TcpFlags(0x38),
        11 => segment.flags = RST,
        12 => segment.flags = RST | ACK,
        13 => (segment.flags, segment.sequence) = (RST, next.wrapping_add(FAR)),
        _ => segment.flags = TcpFlags(rng.choice(NONSENSE).unwrap_or(0)),
    }
}

fn udp(rng: &mut Rng, flow: u16, steps: &mut Vec<Step>) {
    for _ in 0..rng.usize(1..6) {
        let load = Load::Udp { flow, len: rng.choice([0, 1, 33, 600, 1430]).unwrap_or(0) };
        steps.push(Step { from: rng.usize(..2), load, twist: Twist::None });
        if rng.u8(..4) == 0
            && let Some(error) = error_about(rng, steps)
        {
            steps.push(error);
        }
    }
}

fn echo(rng: &mut Rng, flow: u16, steps: &mut Vec<Step>) {
    let mut reply = false;
    for _ in 0..rng.usize(1..5) {
        // An answer to nothing, now and then.
        reply ^= rng.u8(..4) == 0;
        let load = Load::Echo { reply, flow, len: rng.choice([0, 8, 56, 1200]).unwrap_or(8) };
        let from = if rng.u8(..5) == 0 { rng.usize(..2) } else { usize::from(reply) };
        steps.push(Step { from, load, twist: Twist::None });
        reply = !reply;
        if rng.u8(..5) == 0
            && let Some(error) = error_about(rng, steps)
        {
            steps.push(error);
        }
    }
}

/// What comes to mind.
fn chance(rng: &mut Rng, flow: u16, steps: &mut Vec<Step>) {
    for _ in 0..rng.usize(1..5) {
        let load = match rng.u8(..6) {
            0 => Load::Other {
                protocol: rng.choice([2, 47, 50, 89, 253]).unwrap_or(253),
                len: rng.usize(..80),
            },
            1 => {
                let about = Load::Udp { flow: flow + 9, len: 20 };
                let (by, quoted) = (rng.usize(..2), rng.usize(..64));
                Load::Error { kind: error_kind(rng), about: Box::new(about), by, quoted }
            }
            2 => Load::Echo { reply: rng.bool(), flow, len: rng.usize(..64) },
            3 => {
                let mut segment = Segment {
                    flow,
                    flags: TcpFlags::ACK,
                    sequence: 0,
                    acknowledgment: 0,
                    window: 1000,
                    scale: None,
                    len: 0,
                };
                disturb(rng, &mut segment, 0, true);
                Load::Tcp(segment)
            }
            _ => Load::Udp { flow, len: rng.usize(..1440) },
        };
        steps.push(Step { from: rng.usize(..2), load, twist: Twist::None });
    }
}

fn error_kind(rng: &mut Rng) -> ErrorKind {
    use ErrorKind::{HopLimit, HostUnreachable, Parameter, PortUnreachable, TooBig};
    rng.choice([PortUnreachable, HostUnreachable, TooBig, HopLimit, Parameter]).unwrap_or(PortUnreachable)
}

/// An error about what was sent before.
fn error_about(rng: &mut Rng, steps: &[Step]) -> Option<Step> {
    let (kind, about) = (error_kind(rng), steps.get(rng.usize(..steps.len()))?);
    if matches!(about.load, Load::Error { .. }) {
        return None;
    }
    let quoted = rng.choice([8, 8, 8, 60, 7, 3, 0]).unwrap_or(8);
    // Mostly from who has received it.
    let from = if rng.u8(..4) == 0 { about.from } else { 1 - about.from };
    let load = Load::Error { kind, about: Box::new(about.load.clone()), by: about.from, quoted };
    Some(Step { from, load, twist: Twist::None })
}

fn twist(rng: &mut Rng, family: Family, sender: Who) -> Twist {
    const LIES: [Lie; 8] = [
        Lie::Neighbour,
        Lie::OtherNode,
        Lie::World,
        Lie::Receiver,
        Lie::Node,
        Lie::Loopback,
        Lie::Multicast,
        Lie::Unspecified,
    ];
    const ELSEWHERE: [Elsewhere; 5] = [
        Elsewhere::NobodyHere,
        Elsewhere::NobodyThere,
        Elsewhere::TunnelOfTheNode,
        Elsewhere::Loopback,
        Elsewhere::Multicast,
    ];
    const FAULTS: [Fault; 7] = [
        Fault::None,
        Fault::None,
        Fault::None,
        Fault::None,
        Fault::Overlap,
        Fault::Doubled,
        Fault::UnevenLength,
    ];
    if sender == Who::Peer && rng.u8(..3) == 0 {
        return Twist::Tunnel(match rng.u8(..10) {
            0 => TunnelLie::Network,
            1 => TunnelLie::NoFlag,
            2 => TunnelLie::Reserved,
            3 => TunnelLie::Stranger,
            4 => TunnelLie::InnerMac,
            5 => TunnelLie::InnerTag,
            6 => TunnelLie::InnerKind,
            7 => TunnelLie::Checksum,
            8 => TunnelLie::UdpLength(rng.i16(-40..40)),
            _ => TunnelLie::Class(rng.u8(..)),
        });
    }
    match rng.u8(..20) {
        0 => Twist::Hops(rng.u8(..4)),
        1 => Twist::Class(rng.u8(..)),
        2 => Twist::Options(rng.u8(1..4)),
        3 | 4 => Twist::From(LIES[rng.usize(..LIES.len())]),
        5 | 6 => Twist::To(ELSEWHERE[rng.usize(..ELSEWHERE.len())]),
        7 => Twist::SourceMac,
        8 => Twist::DestinationMac,
        10 if family == Family::V4 => Twist::IpChecksum,
        11 => Twist::Version(rng.u8(..16)),
        12 if family == Family::V4 => Twist::HeaderWords(rng.u8(..16)),
        13 => Twist::Longer(rng.u16(1..30)),
        14 => Twist::TransportLength(rng.i16(-12..12)),
        15 => Twist::Cut(rng.usize(1..60)),
        16 => Twist::MayFragment,
        _ => Twist::Fragments {
            step: 8 * rng.usize(3..40),
            order: rng.u64(..),
            fault: FAULTS[rng.usize(..FAULTS.len())],
        },
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} and {:?} over {}", self.ends[0], self.ends[1], self.family)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", if self.from == 0 { "->" } else { "<-" }, self.load)?;
        if self.twist != Twist::None {
            write!(f, "  ({:?})", self.twist)?;
        }
        Ok(())
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(segment) => {
                let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG"];
                let set = names.iter().enumerate().filter(|(bit, _)| segment.flags.0 >> bit & 1 == 1);
                let set: Vec<_> = set.map(|(_, name)| *name).collect();
                let Segment { flow, sequence, acknowledgment, window, len, scale, .. } = segment;
                let flags = set.join("+");
                write!(f, "tcp {flow} [{flags}] seq {sequence} ack {acknowledgment} win {window} len {len}")?;
                scale.map_or(Ok(()), |scale| write!(f, " scale {scale}"))
            }
            Self::Udp { flow, len } => write!(f, "udp {flow} len {len}"),
            Self::Echo { reply, flow, len } => {
                write!(f, "echo {} {flow} len {len}", if *reply { "reply" } else { "request" })
            }
            Self::Error { kind, about, by, quoted } => {
                write!(f, "{kind:?} about {} {about} ({quoted} bytes)", if *by == 0 { "->" } else { "<-" })
            }
            Self::Other { protocol, len } => write!(f, "protocol {protocol} len {len}"),
        }
    }
}
