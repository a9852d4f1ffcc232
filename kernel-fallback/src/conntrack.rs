//! Flows that connection tracking translates by a mapping that is no more: they would go on to a pod that has gone, or that
//! another pod has replaced; and those that began before their mapping came would go on to nowhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use causeway_model::PortProtocol;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use crate::element::Element;
use crate::error::KernelError;
use crate::install::unless;
use crate::netlink::Netlink;
use crate::nfnetlink::{Record, ask, attributes};

/// NFNL_SUBSYS_CTNETLINK, the upper half of a message's kind.
const CONNTRACK: u16 = 1 << 8;
const GET: u16 = CONNTRACK | 1;
const DELETE: u16 = CONNTRACK | 2;
/// Families as `struct nfgenmsg` has them.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const NESTED: u16 = 0x8000;
/// CTA_…
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
/// CTA_TUPLE_…, CTA_IP_…, CTA_PROTO_…
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const SOURCES: [u16; 2] = [1, 3];
const DESTINATIONS: [u16; 2] = [2, 4];
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;

/// A flow, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    /// Its transport's number.
    pub(crate) protocol: u8,
    /// What its first packet was sent to.
    pub(crate) to: SocketAddr,
    /// Who answers, in truth.
    pub(crate) answers: SocketAddr,
    /// What the kernel knows it by.
    handle: Vec<(u16, Vec<u8>)>,
}

impl Flow {
    fn of(record: &Record) -> Option<Self> {
        let (mut original, mut reply, mut handle) = (None, None, Vec::new());
        for attribute in record.attributes() {
            let (kind, value) = (attribute.kind(), attribute.value());
            match kind {
                TUPLE_ORIGINAL => {
                    original = Tuple::of(value);
                    handle.push((kind | NESTED, value.to_vec()));
                }
                TUPLE_REPLY => reply = Tuple::of(value),
                ID | ZONE => handle.push((kind, value.to_vec())),
                _ => {}
            }
        }
        let (original, reply) = (original?, reply?);
        Some(Self { protocol: original.protocol, to: original.destination, answers: reply.source, handle })
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

struct Tuple {
    source: SocketAddr,
    destination: SocketAddr,
    protocol: u8,
}

impl Tuple {
    fn of(bytes: &[u8]) -> Option<Self> {
        let part =
            |wanted| attributes(bytes).find(|part| part.kind() == wanted).map(|part| part.value().to_vec());
        let (addresses, ports) = (part(TUPLE_IP)?, part(TUPLE_PROTOCOL)?);
        let address = |kinds: [u16; 2]| {
            let found = attributes(&addresses).find(|attribute| kinds.contains(&attribute.kind()))?;
            let value = found.value();
            let v4 = || <[u8; 4]>::try_from(value).ok().map(|octets| Ipv4Addr::from(octets).into());
            let v6 = || <[u8; 16]>::try_from(value).ok().map(|octets| Ipv6Addr::from(octets).into());
            v4().or_else(v6)
        };
        let number =
            |kind| attributes(&ports).find(|attribute| attribute.kind() == kind).map(|a| a.value().to_vec());
        let port = |kind| number(kind).and_then(|value| value.try_into().ok()).map(u16::from_be_bytes);
        Some(Self {
            source: SocketAddr::new(address(SOURCES)?, port(SOURCE_PORT)?),
            destination: SocketAddr::new(address(DESTINATIONS)?, port(DESTINATION_PORT)?),
            protocol: number(PROTOCOL_NUMBER)?.first().copied()?,
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

/// Forgets flows by a property of theirs.
pub(crate) fn forget_where(is_stale: impl Fn(&Flow) -> bool) {
    if let Err(error) = try_forget(is_stale) {
        tracing::warn!(%error, "flows of earlier port mappings may go on for a while");
    }
}

fn try_forget(is_stale: impl Fn(&Flow) -> bool) -> Result<(), KernelError> {
    let mut netlink =
        Netlink::open(NETLINK_NETFILTER).map_err(KernelError::io("opening a netfilter socket"))?;
    for family in [AF_INET, AF_INET6] {
        let question = Record::question(GET, family, &[]);
        let records = ask(&mut netlink, question, NLM_F_DUMP, "listing tracked flows")?;
        for flow in records.iter().filter_map(Flow::of).filter(|flow| is_stale(flow)) {
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
        Flow { protocol, to: to.parse().unwrap(), answers: answers.parse().unwrap(), handle: Vec::new() }
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
