//! Paths to other nodes that carry less than their first link. The kernel learns of them by the tunnel device's socket and keeps
//! to it for what it sends itself; what it forwards for pods goes by the MTU of the route alone. So the routes get it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use causeway_model::{Family, Node, NodeId, Settings, Snapshot};
use netlink_packet_core::NLM_F_REQUEST;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error::KernelError;
use crate::install::{family, route_address};
use crate::netlink::Netlink;

/// No path is believed to carry less inside the tunnel: what IPv6 asks of every link (RFC 8200 §5).
const LEAST: u16 = 1280;

/// The longest inner packets for the peers to which it is less than usual. Only of those for which the kernel remembers a smaller path, and
/// of those that were known before, is more asked.
pub(crate) fn learned(
    snapshot: &Snapshot,
    before: &BTreeMap<NodeId, u16>,
) -> Result<BTreeMap<NodeId, u16>, KernelError> {
    let mut netlink = Netlink::route()?;
    let narrow = exceptions(&mut netlink)?;
    let settings = &snapshot.settings;
    let is_suspect = |peer: &Node| {
        before.contains_key(&peer.id)
            || narrow.iter().any(|address| {
                peer.underlay.contains(address)
                    || peer.pod_prefixes.iter().any(|prefix| prefix.contains(*address))
            })
    };
    let mut learned = BTreeMap::new();
    if narrow.is_empty() && before.is_empty() {
        return Ok(learned);
    }
    for peer in snapshot.peers.values().filter(|peer| is_suspect(peer)) {
        let mtu = peer.tunnel_address(settings.underlay_family()).and_then(|to| path(&mut netlink, to));
        learned.extend(mtu.and_then(|mtu| inside(settings, mtu)).map(|mtu| (peer.id.clone(), mtu)));
    }
    Ok(learned)
}

/// What fits into a path, if that is less than usual.
fn inside(settings: &Settings, path: u32) -> Option<u16> {
    let inside = path.saturating_sub(settings.underlay_family().tunnel_overhead().into());
    let inside = u16::try_from(inside).unwrap_or(u16::MAX).max(LEAST);
    (inside < settings.pod_mtu).then_some(inside)
}

/// The destinations for which the kernel remembers something else than their routes say.
fn exceptions(netlink: &mut Netlink) -> Result<BTreeSet<IpAddr>, KernelError> {
    let mut found = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        question.header.flags = RouteFlags::Cloned;
        for record in netlink.dump(&RouteNetlinkMessage::GetRoute(question), "what was learned of routes")? {
            if let RouteNetlinkMessage::NewRoute(message) = record
                && message.header.flags.contains(RouteFlags::Cloned)
                && mtu(&message).is_some()
            {
                found.extend(message.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(to)) => Some(IpAddr::V4(*to)),
                    RouteAttribute::Destination(RouteAddress::Inet6(to)) => Some(IpAddr::V6(*to)),
                    _ => None,
                }));
            }
        }
    }
    Ok(found)
}

/// The MTU that the kernel would keep to on the way to an address, if it is not simply the link's.
fn path(netlink: &mut Netlink, to: IpAddr) -> Option<u32> {
    let mut question = RouteMessage::default();
    question.header.address_family = family(to);
    question.header.destination_prefix_length = match Family::of(to) {
        Family::V4 => 32,
        Family::V6 => 128,
    };
    question.attributes.push(RouteAttribute::Destination(route_address(to)));
    let answer = netlink.exchange(RouteNetlinkMessage::GetRoute(question), NLM_F_REQUEST).ok()?;
    answer.records.iter().find_map(|record| match record {
        RouteNetlinkMessage::NewRoute(message) => mtu(message),
        _ => None,
    })
}

fn mtu(message: &RouteMessage) -> Option<u32> {
    let metrics = message.attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => Some(metrics),
        _ => None,
    });
    metrics.flatten().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
        _ => None,
    })
}
