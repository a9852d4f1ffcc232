//! What the kernel's connection tracking knows: read for an operator, and forgotten where it translates by a mapping that is no
//! more. Such flows would go on to a pod that has gone, or that another pod has replaced; and those that began before
//! their mapping came would go on to nowhere.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use causeway_model::connection::Stage;
use causeway_model::{Count, PortProtocol};
use causeway_wire::IpProtocol;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use crate::element::Element;
use crate::error::KernelError;
use crate::install::unless;
use crate::netlink::Netlink;
use crate::nfnetlink::{Record, ask, part};

/// NFNL_SUBSYS_CTNETLINK, the upper half of a message's kind.
const CONNTRACK: u16 = 1 << 8;
/// A flow: told of when it is let through for the first time, or changed.
pub(crate) const NEW: u16 = CONNTRACK;
const GET: u16 = CONNTRACK | 1;
const DELETE: u16 = CONNTRACK | 2;
/// Families as `struct nfgenmsg` has them.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const NESTED: u16 = 0x8000;
/// CTA_…
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOCOL_INFO: u16 = 4;
const TIMEOUT: u16 = 7;
const MARK: u16 = 8;
const COUNTERS: [u16; 2] = [9, 10];
const ID: u16 = 12;
const ZONE: u16 = 18;
const TIMESTAMP: u16 = 20;
const MARK_MASK: u16 = 21;
/// CTA_COUNTERS_…, CTA_TIMESTAMP_…
const COUNTER_PACKETS: u16 = 1;
const COUNTER_BYTES: u16 = 2;
const TIMESTAMP_START: u16 = 1;
/// CTA_PROTOINFO_TCP and …_SCTP; the state comes first in both.
const INFO_TCP: u16 = 1;
const INFO_SCTP: u16 = 3;
const INFO_STATE: u16 = 1;
/// IPS_SEEN_REPLY.
const SEEN_REPLY: u32 = 1 << 1;
/// CTA_TUPLE_…, CTA_IP_…, CTA_PROTO_…
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const SOURCES: [u16; 2] = [1, 3];
const DESTINATIONS: [u16; 2] = [2, 4];
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
/// CTA_PROTO_ICMP_ID and …_ICMPV6_ID.
const ECHO_ID: [u16; 2] = [4, 7];

/// A flow, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    /// Its transport's number.
    pub(crate) protocol: u8,
    /// Who sent its first packet.
    pub(crate) from: SocketAddr,
    /// What its first packet was sent to.
    pub(crate) to: SocketAddr,
    /// Who answers, in truth.
    pub(crate) answers: SocketAddr,
    /// Its two ends as they are known to who answers.
    pub(crate) reply_to: SocketAddr,
    /// What it has come to.
    pub(crate) stage: Stage,
    /// What passed in the direction of its first packet, and in the other; nothing where nobody counts.
    pub(crate) counts: [Count; 2],
    /// Nanoseconds since 1970 at its first packet, where the kernel keeps them.
    pub(crate) began: Option<u64>,
    /// Seconds until it is forgotten.
    pub(crate) left: u32,
    /// What others and we have noted on it.
    pub(crate) mark: u32,
    /// What the kernel knows it by.
    handle: Vec<(u16, Vec<u8>)>,
}

impl Flow {
    pub(crate) fn of(record: &Record) -> Option<Self> {
        let (mut original, mut reply, mut handle) = (None, None, Vec::new());
        let (mut status, mut state, mut left, mut began, mut mark) = (0, None, 0, None, 0);
        let mut counts = [Count::default(); 2];
        for attribute in record.attributes() {
            let (kind, value) = (attribute.kind(), attribute.value());
            match kind {
                TUPLE_ORIGINAL => original = Tuple::of(value),
                // Who answers is part of it: a client that begins again from the same port, with another backend, has mostly the same
                // number, since the kernel makes that of the old one's place in memory and of what the client sees.
                TUPLE_REPLY => {
                    reply = Tuple::of(value);
                    handle.push((kind | NESTED, value.to_vec()));
                }
                ID | ZONE => handle.push((kind, value.to_vec())),
                STATUS => status = value.try_into().map_or(0, u32::from_be_bytes),
                MARK => mark = value.try_into().map_or(0, u32::from_be_bytes),
                TIMEOUT => left = value.try_into().map_or(0, u32::from_be_bytes),
                TIMESTAMP => began = part(value, TIMESTAMP_START).and_then(number),
                PROTOCOL_INFO => {
                    let info = part(value, INFO_TCP).or_else(|| part(value, INFO_SCTP));
                    state = info.and_then(|info| part(info, INFO_STATE)?.first().copied());
                }
                _ => {
                    if let Some(direction) = COUNTERS.iter().position(|counters| *counters == kind) {
                        let of = |kind| part(value, kind).and_then(number).unwrap_or_default();
                        counts[direction] = Count { packets: of(COUNTER_PACKETS), bytes: of(COUNTER_BYTES) };
                    }
                }
            }
        }
        let (original, reply) = (original?, reply?);
        let protocol = original.protocol;
        Some(Self {
            protocol,
            from: original.source,
            to: original.destination,
            answers: reply.source,
            reply_to: reply.destination,
            stage: stage(IpProtocol(protocol), state, status & SEEN_REPLY != 0),
            counts,
            began,
            left,
            mark,
            handle,
        })
    }

    /// Every address that it knows.
    pub(crate) fn ends(&self) -> [IpAddr; 4] {
        [self.from, self.to, self.answers, self.reply_to].map(|end| end.ip())
    }

    /// Whether a mapping that has gone made it what it is.
    fn was_led_by(&self, gone: &Element) -> bool {
        let Element::HostPort { at, protocol, port, to, to_port } = gone else { return false };
        self.is_for(*protocol, *port, *at) && self.answers == SocketAddr::new(*to, *to_port)
    }

    /// Whether a mapping that has come would make it another one. A connection of TCP or SCTP belongs to who accepted it; of a
    /// UDP flow nobody knows whether it is ever answered.
    fn misses(&self, new: &Element, local: &[IpAddr]) -> bool {
        let Element::HostPort { at, protocol: PortProtocol::Udp, port, to, to_port } = new else {
            return false;
        };
        let here = self.to.ip().is_loopback() || local.contains(&self.to.ip());
        let same_family = self.to.is_ipv4() == to.is_ipv4();
        same_family
            && here
            && self.is_for(PortProtocol::Udp, *port, *at)
            && self.answers != SocketAddr::new(*to, *to_port)
    }

    fn is_for(&self, protocol: PortProtocol, port: u16, at: Option<IpAddr>) -> bool {
        self.protocol == protocol.number().0
            && self.to.port() == port
            && at.is_none_or(|address| address == self.to.ip())
    }
}

/// What the kernel's state (`enum tcp_conntrack`, `enum sctp_conntrack`) is here; without one, whether it was answered.
fn stage(protocol: IpProtocol, state: Option<u8>, answered: bool) -> Stage {
    match (protocol, state) {
        (IpProtocol::TCP, Some(2)) => Stage::SynReceived,
        (IpProtocol::TCP, Some(3)) | (IpProtocol::SCTP, Some(4)) => Stage::Established,
        (IpProtocol::TCP, Some(4 | 5)) => Stage::FinWait,
        (IpProtocol::TCP, Some(6)) => Stage::LastAck,
        (IpProtocol::TCP, Some(7)) | (IpProtocol::SCTP, Some(5..=7)) => Stage::TimeWait,
        (IpProtocol::TCP, Some(8)) | (IpProtocol::SCTP, Some(1)) => Stage::Closed,
        (IpProtocol::TCP | IpProtocol::SCTP, _) => Stage::New,
        _ if answered => Stage::Established,
        _ => Stage::New,
    }
}

/// A number of eight bytes.
fn number(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_be_bytes)
}

struct Tuple {
    source: SocketAddr,
    destination: SocketAddr,
    protocol: u8,
}

impl Tuple {
    fn of(bytes: &[u8]) -> Option<Self> {
        let (addresses, ports) = (part(bytes, TUPLE_IP)?, part(bytes, TUPLE_PROTOCOL)?);
        let address = |kinds: [u16; 2]| {
            let value = kinds.into_iter().find_map(|kind| part(addresses, kind))?;
            let v4 = || <[u8; 4]>::try_from(value).ok().map(|octets| Ipv4Addr::from(octets).into());
            let v6 = || <[u8; 16]>::try_from(value).ok().map(|octets| Ipv6Addr::from(octets).into());
            v4().or_else(v6)
        };
        let two = |kind| part(ports, kind).and_then(|value| value.try_into().ok()).map(u16::from_be_bytes);
        let id = ECHO_ID.into_iter().find_map(two);
        let port = |kind| two(kind).or(id).unwrap_or_default();
        Some(Self {
            source: SocketAddr::new(address(SOURCES)?, port(SOURCE_PORT)),
            destination: SocketAddr::new(address(DESTINATIONS)?, port(DESTINATION_PORT)),
            protocol: part(ports, PROTOCOL_NUMBER)?.first().copied()?,
        })
    }
}

/// Forgets the flows that mappings which have gone led, and those that mappings which have come should have led. What
/// cannot be forgotten dies of age, so a failure is logged and no more.
pub(crate) fn forget(gone: &[Element], new: &[Element], local: impl FnOnce() -> Vec<IpAddr>) {
    let gone: Vec<_> = gone.iter().filter(|element| matches!(element, Element::HostPort { .. })).collect();
    let udp = |element: &&Element| matches!(element, Element::HostPort { protocol: PortProtocol::Udp, .. });
    let new: Vec<_> = new.iter().filter(udp).collect();
    if gone.is_empty() && new.is_empty() {
        return;
    }
    let local = if new.is_empty() { Vec::new() } else { local() };
    forget_where(|flow| {
        gone.iter().any(|element| flow.was_led_by(element))
            || new.iter().any(|element| flow.misses(element, &local))
    });
}

/// Forgets the flows of addresses whose pods went at a time; those that began later are of whoever has the address since.
pub(crate) fn forget_pods(gone: &BTreeMap<IpAddr, SystemTime>) {
    forget_where(|flow| {
        let began = flow.began.map(|nanos| UNIX_EPOCH + Duration::from_nanos(nanos));
        let went = flow.ends().into_iter().filter_map(|end| gone.get(&end));
        went.max().is_some_and(|went| began.is_none_or(|began| began <= *went))
    });
}

/// Forgets flows by a property of theirs.
pub(crate) fn forget_where(is_stale: impl Fn(&Flow) -> bool) {
    if let Err(error) = try_forget(is_stale) {
        tracing::warn!(%error, "flows of earlier pods and port mappings may go on for a while");
    }
}

/// Takes bits off the marks of flows. A flow that goes meanwhile is not missed.
pub(crate) fn unmark(bits: impl Fn(&Flow) -> u32) -> Result<(), KernelError> {
    let mut netlink = open()?;
    for family in [AF_INET, AF_INET6] {
        for flow in dump(&mut netlink, family)?.iter().filter_map(Flow::of) {
            let mask = bits(&flow);
            if mask == 0 {
                continue;
            }
            let mask = mask.to_be_bytes();
            let mut parts: Vec<_> =
                flow.handle.iter().map(|(kind, value)| (*kind, value.as_slice())).collect();
            parts.extend([(MARK, [0; 4].as_slice()), (MARK_MASK, mask.as_slice())]);
            let doing = format!("changing the mark of the flow to {}", flow.to);
            let question = Record::question(NEW, family, &parts);
            unless(ask(&mut netlink, question, NLM_F_ACK, &doing).map(drop), &[Errno::ENOENT])?;
        }
    }
    Ok(())
}

/// Every flow of this namespace.
pub(crate) fn flows() -> Result<Vec<Flow>, KernelError> {
    let mut netlink = open()?;
    let mut all = Vec::new();
    for family in [AF_INET, AF_INET6] {
        all.extend(dump(&mut netlink, family)?.iter().filter_map(Flow::of));
    }
    Ok(all)
}

fn open() -> Result<Netlink, KernelError> {
    Netlink::open(NETLINK_NETFILTER).map_err(KernelError::io("opening a netfilter socket"))
}

fn dump(netlink: &mut Netlink, family: u8) -> Result<Vec<Record>, KernelError> {
    ask(netlink, Record::question(GET, family, &[]), NLM_F_DUMP, "listing tracked flows")
}

fn try_forget(is_stale: impl Fn(&Flow) -> bool) -> Result<(), KernelError> {
    let mut netlink = open()?;
    for family in [AF_INET, AF_INET6] {
        for flow in dump(&mut netlink, family)?.iter().filter_map(Flow::of).filter(|flow| is_stale(flow)) {
            let handle: Vec<_> = flow.handle.iter().map(|(kind, value)| (*kind, value.as_slice())).collect();
            let question = Record::question(DELETE, family, &handle);
            let doing = format!("forgetting the flow to {}", flow.to);
            unless(ask(&mut netlink, question, NLM_F_ACK, &doing).map(drop), &[Errno::ENOENT])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(protocol: u8, to: &str, answers: &str) -> Flow {
        let client = "198.51.100.7:40000".parse().unwrap();
        Flow {
            protocol,
            from: client,
            to: to.parse().unwrap(),
            answers: answers.parse().unwrap(),
            reply_to: client,
            stage: Stage::New,
            counts: [Count::default(); 2],
            began: None,
            left: 0,
            mark: 0,
            handle: Vec::new(),
        }
    }

    fn mapping(at: Option<&str>, protocol: PortProtocol) -> Element {
        let at = at.map(|address| address.parse().unwrap());
        Element::HostPort { at, protocol, port: 53, to: [10, 70, 1, 3].into(), to_port: 5353 }
    }

    #[test]
    fn a_mapping_that_goes_takes_its_own_flows_along_and_no_others() {
        let gone = mapping(None, PortProtocol::Udp);
        assert!(flow(17, "192.0.2.11:53", "10.70.1.3:5353").was_led_by(&gone));
        for other in [
            flow(6, "192.0.2.11:53", "10.70.1.3:5353"),
            flow(17, "192.0.2.11:54", "10.70.1.3:5353"),
            flow(17, "192.0.2.11:53", "10.70.1.4:5353"),
            flow(17, "192.0.2.11:53", "192.0.2.11:53"),
            flow(17, "10.70.1.3:5353", "10.70.1.3:5353"),
        ] {
            assert!(!other.was_led_by(&gone), "{other:?}");
        }
        let at_one = mapping(Some("192.0.2.12"), PortProtocol::Udp);
        assert!(!flow(17, "192.0.2.11:53", "10.70.1.3:5353").was_led_by(&at_one));
    }

    #[test]
    fn a_mapping_that_comes_takes_over_datagrams_for_this_node_alone() {
        let local = ["192.0.2.11".parse().unwrap()];
        let new = mapping(None, PortProtocol::Udp);
        for missed in ["192.0.2.11:53", "127.0.0.1:53"] {
            assert!(flow(17, missed, missed).misses(&new, &local), "{missed}");
        }
        for other in [
            flow(17, "198.51.100.1:53", "198.51.100.1:53"),
            flow(17, "192.0.2.11:53", "10.70.1.3:5353"),
            flow(6, "192.0.2.11:53", "192.0.2.11:53"),
            flow(17, "[::1]:53", "[::1]:53"),
        ] {
            assert!(!other.misses(&new, &local), "{other:?}");
        }
        let tcp = mapping(None, PortProtocol::Tcp);
        assert!(!flow(6, "192.0.2.11:53", "192.0.2.11:53").misses(&tcp, &local));
    }
}
