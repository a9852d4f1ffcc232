//! The hardware addresses behind which the kernel knows other nodes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use causeway_model::MacAddr;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};

use crate::error::KernelError;
use crate::install::{family, route_address};
use crate::netlink::Netlink;

/// How often and how long resolution is waited for: one round trip on a link that works.
const LOOKS: usize = 5;
const BETWEEN: Duration = Duration::from_millis(10);

/// A next hop: an interface and the address that is resolved there.
type Hop = (u32, IpAddr);

/// The next hop's hardware address for each destination that has a route. The kernel is asked to resolve what it does
/// not know; what it cannot within a moment is left out.
pub fn next_hops(destinations: &[IpAddr]) -> Result<BTreeMap<IpAddr, MacAddr>, KernelError> {
    let mut netlink = Netlink::route()?;
    let hops: Vec<(IpAddr, Hop)> =
        destinations.iter().filter_map(|to| Some((*to, hop(&mut netlink, *to)?))).collect();
    for look in 0..LOOKS {
        let known = neighbours(&mut netlink)?;
        let fresh = |hop: &Hop| known.get(hop).is_some_and(|(_, fresh)| *fresh);
        if look == 0 {
            for (_, hop) in hops.iter().filter(|(_, hop)| !fresh(hop)) {
                resolve(&mut netlink, *hop)?;
            }
        }
        if look + 1 == LOOKS || hops.iter().all(|(_, hop)| known.contains_key(hop)) {
            return Ok(hops.iter().filter_map(|(to, hop)| Some((*to, known.get(hop)?.0))).collect());
        }
        thread::sleep(BETWEEN);
    }
    unreachable!("the last look returns")
}

/// What the kernel would do with a packet; nothing when there is no route.
fn hop(netlink: &mut Netlink, to: IpAddr) -> Option<Hop> {
    let mut question = RouteMessage::default();
    question.header.address_family = family(to);
    question.header.destination_prefix_length = if to.is_ipv4() { 32 } else { 128 };
    question.attributes.push(RouteAttribute::Destination(route_address(to)));
    let answer = netlink.exchange(RouteNetlinkMessage::GetRoute(question), NLM_F_REQUEST).ok()?;
    let route = answer.records.into_iter().find_map(|record| match record {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    })?;
    let link = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Oif(link) => Some(*link),
        _ => None,
    })?;
    let gateway = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(IpAddr::V4(*gateway)),
        RouteAttribute::Gateway(RouteAddress::Inet6(gateway)) => Some(IpAddr::V6(*gateway)),
        _ => None,
    });
    Some((link, gateway.unwrap_or(to)))
}

/// Every neighbour that has a hardware address, and whether that is known to be right.
fn neighbours(netlink: &mut Netlink) -> Result<BTreeMap<Hop, (MacAddr, bool)>, KernelError> {
    let question = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let entry = |record| match record {
        RouteNetlinkMessage::NewNeighbour(message) => neighbour(&message),
        _ => None,
    };
    Ok(netlink.dump(&question, "neighbours")?.into_iter().filter_map(entry).collect())
}

fn neighbour(message: &NeighbourMessage) -> Option<(Hop, (MacAddr, bool))> {
    let fresh = match message.header.state {
        NeighbourState::Reachable | NeighbourState::Permanent => true,
        NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe => false,
        _ => return None,
    };
    let address = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })?;
    let mac = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.clone().try_into().ok().map(MacAddr),
        _ => None,
    })?;
    Some(((message.header.ifindex, address), (mac, fresh)))
}

/// Has the kernel ask for a neighbour as if it had a packet for it.
fn resolve(netlink: &mut Netlink, (link, address): Hop) -> Result<(), KernelError> {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = link;
    message.header.flags = NeighbourFlags::Use;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    netlink.request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE, || {
        format!("resolving {address} on interface {link}")
    })
}
