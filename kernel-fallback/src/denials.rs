//! Single packets that a rule of a policy denied: the table for policy logs each to a group of nflog, and they are read here.
//!
//! A packet's mark is the number of its rule by then, since nobody else sees it any more; the prefix says which way it went. The
//! kernel numbers what it logs, so that what the socket had no room for is known to the packet.

use std::io;
use std::net::IpAddr;

use causeway_model::Path;
use causeway_model::flow::Event;
use causeway_model::policy::{Direction, RuleId, RuleNumber, Verdict};
use causeway_wire::{Icmpv4, Icmpv4Type, Icmpv6, Icmpv6Type, IpProtocol, Ipv4, Ipv6, Ports, Upper};
use netlink_packet_core::NLM_F_ACK;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use crate::error::KernelError;
use crate::netlink::Netlink;
use crate::nfnetlink::{Record, ask};
use crate::watch::records;

/// The group of nflog that the table logs to.
pub(crate) const GROUP: u16 = 51_717;
/// The prefix of what went the way of its connection's first packet …
pub(crate) const ASKS: &str = "asks";
/// … and of what went the other way.
pub(crate) const ANSWERS: &str = "answers";
/// NFNL_SUBSYS_ULOG, the upper half of a message's kind.
const ULOG: u16 = 4 << 8;
const PACKET: u16 = ULOG;
const CONFIG: u16 = ULOG | 1;
/// NFULA_CFG_…
const CFG_COMMAND: u16 = 1;
const CFG_MODE: u16 = 2;
const CFG_BUFFER: u16 = 3;
const CFG_TIMEOUT: u16 = 4;
const CFG_THRESHOLD: u16 = 5;
const CFG_FLAGS: u16 = 6;
/// NFULNL_CFG_CMD_BIND, NFULNL_COPY_PACKET, NFULNL_CFG_F_SEQ.
const BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const NUMBERED: u16 = 1;
/// NFULA_…
const MARK: u16 = 2;
const TIMESTAMP: u16 = 3;
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;
const SEQUENCE: u16 = 12;
/// So much of a packet is told: its headers.
const FRONT: u32 = 128;
/// So many are told together, in a buffer of this size, or as many as came in this many hundredths of a second.
const TOGETHER: u32 = 64;
const BUFFER: u32 = 16 << 10;
const HUNDREDTHS: u32 = 10;
/// The room for those that nobody has read, which the kernel doubles: about 8,192.
const ROOM: usize = 1 << 20;
const DATAGRAM: usize = 64 << 10;

/// Ears on the group, in the network namespace of the thread that made them.
#[derive(Debug)]
pub(crate) struct Denials {
    socket: Socket,
    /// The number of the next one.
    next: u32,
    lost: u64,
}

/// A packet that was denied.
#[derive(Debug)]
struct Denial {
    number: RuleNumber,
    /// Nanoseconds since 1970.
    at: Option<u64>,
    answers: bool,
    /// Its first bytes, from the IP header on.
    front: Vec<u8>,
}

impl Denials {
    /// Only one can listen at a time.
    pub(crate) fn new() -> Result<Self, KernelError> {
        let doing = "listening for denied packets";
        let mut netlink = Netlink::open(NETLINK_NETFILTER).map_err(KernelError::io(doing))?;
        let mode = [FRONT.to_be_bytes().as_slice(), &[COPY_PACKET, 0]].concat();
        let parts: [(u16, &[u8]); 6] = [
            (CFG_COMMAND, &[BIND]),
            (CFG_MODE, &mode),
            (CFG_BUFFER, &BUFFER.to_be_bytes()),
            (CFG_TIMEOUT, &HUNDREDTHS.to_be_bytes()),
            (CFG_THRESHOLD, &TOGETHER.to_be_bytes()),
            (CFG_FLAGS, &NUMBERED.to_be_bytes()),
        ];
        ask(&mut netlink, Record::about(CONFIG, GROUP, &parts), NLM_F_ACK, doing)?;
        let socket = netlink.into_listener().map_err(KernelError::io(doing))?;
        setsockopt(&socket, sockopt::RcvBufForce, &ROOM)
            .map_err(io::Error::from)
            .map_err(KernelError::io(doing))?;
        Ok(Self { socket, next: 0, lost: 0 })
    }

    /// How many were lost before anybody read them.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// The packets denied since the last call. `rule` says whose number one was at a time.
    pub(crate) fn take(
        &mut self,
        now: u64,
        rule: impl Fn(RuleNumber, u64) -> Option<RuleId>,
    ) -> Result<Vec<Event>, KernelError> {
        let mut events = Vec::new();
        let mut buffer = Vec::with_capacity(DATAGRAM);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => {
                    for (kind, body) in records(&buffer).filter(|(kind, _)| *kind == PACKET) {
                        let denial = self.denial(&Record::of(kind, body));
                        events.extend(denial.and_then(|denial| denial.event(now, &rule)));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(events),
                // How many, the next one's number tells.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {}
                Err(error) => return Err(KernelError::io("hearing of denied packets")(error)),
            }
        }
    }

    fn denial(&mut self, record: &Record) -> Option<Denial> {
        let (mut mark, mut at, mut prefix, mut front) = (0, None, Vec::new(), Vec::new());
        for part in record.attributes() {
            match part.kind() {
                SEQUENCE => {
                    let number = u32::from_be_bytes(part.value().try_into().ok()?);
                    self.lost += u64::from(number.wrapping_sub(self.next));
                    self.next = number.wrapping_add(1);
                }
                MARK => mark = u32::from_be_bytes(part.value().try_into().ok()?),
                TIMESTAMP => at = nanoseconds(part.value()),
                PREFIX => prefix = part.value().to_vec(),
                PAYLOAD => front = part.value().to_vec(),
                _ => {}
            }
        }
        let answers = match prefix.strip_suffix(&[0])? {
            prefix if prefix == ASKS.as_bytes() => false,
            prefix if prefix == ANSWERS.as_bytes() => true,
            // Another hand's.
            _ => return None,
        };
        // Registers hold the number's highest byte first; a mark is in the machine's own order.
        let number = RuleNumber(u32::from_be_bytes(mark.to_ne_bytes()));
        Some(Denial { number, at, answers, front })
    }
}

fn nanoseconds(timestamp: &[u8]) -> Option<u64> {
    let (seconds, micros) = timestamp.split_first_chunk::<8>()?;
    let micros = u64::from_be_bytes(micros.try_into().ok()?);
    u64::from_be_bytes(*seconds).checked_mul(1_000_000_000)?.checked_add(micros.checked_mul(1000)?)
}

impl Denial {
    fn event(self, now: u64, rule: impl Fn(RuleNumber, u64) -> Option<RuleId>) -> Option<Event> {
        let Asked { protocol, source, destination, bytes } = Asked::of(&self.front)?;
        let at = self.at.unwrap_or(now);
        let rule = rule(self.number, at);
        let of = |direction| rule.clone().filter(|rule| rule.direction == direction);
        let (from, to) = if self.answers { (destination, source) } else { (source, destination) };
        Some(Event {
            at,
            path: Path::Kernel,
            verdict: Verdict::Deny,
            protocol: protocol.0,
            from,
            to,
            bytes,
            egress: of(Direction::Egress),
            ingress: of(Direction::Ingress),
            audit: None,
            from_pod: None,
            to_pod: None,
        })
    }
}

/// What a packet is about.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    protocol: IpProtocol,
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
    bytes: u64,
}

impl Asked {
    fn of(packet: &[u8]) -> Option<Self> {
        if packet.first()? >> 4 == 4 {
            let (header, payload) = Ipv4::split_partial(packet).ok()?;
            let protocol = header.protocol();
            let (source, destination) = ports(protocol, payload);
            return Some(Self {
                protocol,
                source: (header.source().into(), source),
                destination: (header.destination().into(), destination),
                bytes: header.total_length().into(),
            });
        }
        let (header, payload) = Ipv6::split_partial(packet).ok()?;
        let upper = Upper::find(header.next_header(), payload).ok()?;
        let (source, destination) = ports(upper.protocol, upper.payload);
        Some(Self {
            protocol: upper.protocol,
            source: (header.source().into(), source),
            destination: (header.destination().into(), destination),
            bytes: Ipv6::LEN as u64 + u64::from(header.payload_length()),
        })
    }
}

/// The ports of a packet; an echo's identifier is at both ends, as connection tracking has it.
fn ports(protocol: IpProtocol, payload: &[u8]) -> (u16, u16) {
    let echo = match protocol {
        IpProtocol::ICMPV4 => Icmpv4::split(payload).ok().and_then(|(icmp, _)| {
            [Icmpv4Type::ECHO_REQUEST, Icmpv4Type::ECHO_REPLY]
                .contains(&icmp.kind())
                .then(|| icmp.identifier())
        }),
        IpProtocol::ICMPV6 => Icmpv6::split(payload).ok().and_then(|(icmp, _)| {
            [Icmpv6Type::ECHO_REQUEST, Icmpv6Type::ECHO_REPLY]
                .contains(&icmp.kind())
                .then(|| icmp.identifier())
        }),
        protocol if protocol.has_ports() => {
            return Ports::split(payload).map_or((0, 0), |(ports, _)| (ports.source(), ports.destination()));
        }
        _ => None,
    };
    let echo = echo.unwrap_or_default();
    (echo, echo)
}
