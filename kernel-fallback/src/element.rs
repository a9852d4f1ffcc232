//! The elements of our nft sets, written as nft itself writes them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_model::{Family, IpNetwork, LinkName, MacAddr, PortProtocol};

/// One element of one set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Element {
    /// A pod's link, by which its packets come.
    PodLink(LinkName),
    /// The hardware address a pod may send from.
    PodMac(LinkName, MacAddr),
    /// An address a pod may send from.
    PodAddress(LinkName, IpAddr),
    /// An address in this node's pod prefixes that somebody has.
    Endpoint(IpAddr),
    /// An address whose pod neither begins nor takes new connections.
    DenyNew(IpAddr),
    /// An address of a node, whose tunnel port is closed to pods.
    NodeAddress(IpAddr),
    /// An address from which tunnel frames are taken.
    Sender(IpAddr),
    /// What inner packets from a sender may have as source.
    Inner(IpAddr, IpNetwork),
    /// The network identifier of somebody else's tunnel on our port.
    OtherTunnel(u32),
    /// A port of the node, at one address or at all of a family, that leads to a pod.
    HostPort {
        /// At one address only.
        at: Option<IpAddr>,
        protocol: PortProtocol,
        port: u16,
        to: IpAddr,
        to_port: u16,
    },
    /// A port of a pod to which ports of the node lead.
    Mapped { to: IpAddr, protocol: PortProtocol, to_port: u16 },
    /// A pod that can reach itself by a port of the node.
    Hairpin(IpAddr),
    /// A pod that the fast path reaches without this node's stack.
    FastPod(IpAddr),
    /// What the fast path reaches through the tunnel: another node's pods.
    Tunnelled(IpNetwork),
    /// Another node's own address, which it reaches so, too, unless it has asked this node's stack.
    Peer(IpAddr),
}

impl Element {
    /// The set it belongs to.
    pub(crate) fn set(&self) -> &'static str {
        let by_family = |address: &IpAddr, v4, v6| match Family::of(*address) {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        match self {
            Self::PodLink(_) => "pod_links",
            Self::PodMac(..) => "pod_macs",
            Self::PodAddress(_, address) => by_family(address, "pod_addresses4", "pod_addresses6"),
            Self::Endpoint(address) => by_family(address, "endpoints4", "endpoints6"),
            Self::DenyNew(address) => by_family(address, "deny_new4", "deny_new6"),
            Self::NodeAddress(address) => by_family(address, "nodes4", "nodes6"),
            Self::Sender(_) => "senders",
            Self::Inner(_, prefix) => by_family(&prefix.ip(), "inner4", "inner6"),
            Self::OtherTunnel(_) => "other_tunnels",
            Self::HostPort { at: None, to, .. } => by_family(to, "ports4", "ports6"),
            Self::HostPort { to, .. } => by_family(to, "ports_at4", "ports_at6"),
            Self::Mapped { to, .. } => by_family(to, "mapped4", "mapped6"),
            Self::Hairpin(pod) => by_family(pod, "hairpins4", "hairpins6"),
            Self::FastPod(pod) => by_family(pod, "fast_pods4", "fast_pods6"),
            Self::Tunnelled(prefix) => by_family(&prefix.ip(), "tunnelled4", "tunnelled6"),
            Self::Peer(address) => by_family(address, "peers4", "peers6"),
        }
    }

    /// The element as nft lists it.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::PodLink(link) => format!("\"{link}\""),
            Self::PodMac(link, mac) => format!("\"{link}\" . {mac}"),
            Self::PodAddress(link, address) => format!("\"{link}\" . {address}"),
            Self::Endpoint(address)
            | Self::DenyNew(address)
            | Self::NodeAddress(address)
            | Self::Sender(address) => address.to_string(),
            Self::Inner(sender, prefix) => format!("{sender} . {}", range(*prefix)),
            Self::OtherTunnel(vni) => format!("{vni:#x}"),
            Self::HostPort { at: None, protocol, port, to, to_port } => {
                format!("{protocol} . {port} : {to} . {to_port}")
            }
            Self::HostPort { at: Some(at), protocol, port, to, to_port } => {
                format!("{at} . {protocol} . {port} : {to} . {to_port}")
            }
            Self::Mapped { to, protocol, to_port } => format!("{to} . {protocol} . {to_port}"),
            Self::Hairpin(pod) => format!("{pod} . {pod}"),
            Self::FastPod(pod) => pod.to_string(),
            Self::Peer(address) => address.to_string(),
            Self::Tunnelled(prefix) if prefix.prefix() == Family::of(prefix.ip()).host_length() => {
                prefix.ip().to_string()
            }
            Self::Tunnelled(prefix) => prefix.to_string(),
        }
    }
}

impl Element {
    /// The element as the kernel has it: its key and, in a set of intervals, the key of its end. Parts of a concatenation
    /// are padded to four bytes each.
    pub(crate) fn key(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        let key = match self {
            Self::PodLink(link) => link_bytes(link).to_vec(),
            Self::PodMac(link, mac) => [&link_bytes(link)[..], &mac.0, &[0; 2]].concat(),
            Self::PodAddress(link, address) => [&link_bytes(link)[..], &address_bytes(*address)].concat(),
            Self::Endpoint(address)
            | Self::DenyNew(address)
            | Self::NodeAddress(address)
            | Self::Sender(address) => address_bytes(*address),
            Self::OtherTunnel(vni) => vni.to_be_bytes()[1..].to_vec(),
            Self::Inner(sender, prefix) => {
                let end = |address| [address_bytes(*sender), address_bytes(address)].concat();
                let (first, last) = ends(*prefix);
                return (end(first), Some(end(last)));
            }
            Self::HostPort { at, protocol, port, .. } => {
                let at = at.map(address_bytes).unwrap_or_default();
                [at, port_bytes(*protocol, *port)].concat()
            }
            Self::Mapped { to, protocol, to_port } => {
                [address_bytes(*to), port_bytes(*protocol, *to_port)].concat()
            }
            Self::Hairpin(pod) => [address_bytes(*pod), address_bytes(*pod)].concat(),
            Self::FastPod(pod) => address_bytes(*pod),
            Self::Peer(address) => address_bytes(*address),
            Self::Tunnelled(prefix) => address_bytes(ends(*prefix).0),
        };
        (key, None)
    }

    /// In a map, what the key leads to, as the kernel has it.
    pub(crate) fn data(&self) -> Option<Vec<u8>> {
        let Self::HostPort { to, to_port, .. } = self else { return None };
        let [high, low] = to_port.to_be_bytes();
        Some([address_bytes(*to), vec![high, low, 0, 0]].concat())
    }

    /// In a set of intervals of one part, the key behind the last one: an element of its own. None where nothing lies behind.
    pub(crate) fn behind(&self) -> Option<Vec<u8>> {
        let Self::Tunnelled(prefix) = self else { return None };
        match ends(*prefix).1 {
            IpAddr::V4(last) => Some(u32::from(last).checked_add(1)?.to_be_bytes().to_vec()),
            IpAddr::V6(last) => Some(u128::from(last).checked_add(1)?.to_be_bytes().to_vec()),
        }
    }
}

/// IFNAMSIZ bytes, the last ones zero.
fn link_bytes(link: &LinkName) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (byte, letter) in bytes.iter_mut().zip(link.as_str().bytes()) {
        *byte = letter;
    }
    bytes
}

/// A transport and a port of it.
pub(crate) fn port_bytes(protocol: PortProtocol, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![protocol.number().0, 0, 0, 0, high, low, 0, 0]
}

pub(crate) fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The first and the last address of a prefix.
pub(crate) fn ends(prefix: IpNetwork) -> (IpAddr, IpAddr) {
    match prefix {
        IpNetwork::V4(v4) => (IpAddr::V4(v4.network()), IpAddr::V4(v4.broadcast())),
        IpNetwork::V6(v6) => (IpAddr::V6(v6.network()), IpAddr::V6(v6.broadcast())),
    }
}

/// A prefix as the range of its addresses, read as numbers: the form that nft has for raw bytes of a packet.
fn range(prefix: IpNetwork) -> String {
    let number = |address: IpAddr| match address {
        IpAddr::V4(v4) => format!("{:#x}", u32::from(v4)),
        IpAddr::V6(v6) => format!("{:#x}", u128::from(v6)),
    };
    let (first, last) = ends(prefix);
    if first == last { number(first) } else { format!("{}-{}", number(first), number(last)) }
}

/// Elements by set, as text.
pub(crate) type BySet<'a> = BTreeMap<&'a str, Vec<String>>;

/// Sorts elements by set.
pub(crate) fn by_set<'a>(elements: impl IntoIterator<Item = &'a Element>) -> BySet<'static> {
    let mut sets = BySet::new();
    for element in elements {
        sets.entry(element.set()).or_default().push(element.text());
    }
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_become_ranges_of_numbers() {
        for (prefix, text) in [
            ("10.70.2.0/24", "0xa460200-0xa4602ff"),
            ("192.0.2.7/32", "0xc0000207"),
            ("0.0.0.0/0", "0x0-0xffffffff"),
            ("fd70:0:0:2::/64", "0xfd700000000000020000000000000000-0xfd70000000000002ffffffffffffffff"),
            ("2001:db8::1/128", "0x20010db8000000000000000000000001"),
        ] {
            assert_eq!(range(prefix.parse().unwrap()), text);
        }
    }
}
