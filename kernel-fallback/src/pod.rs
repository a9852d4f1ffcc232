//! What is inside a pod's network namespace: addresses, routes, neighbours, settings of its interface.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use causeway_model::{Endpoint, Family, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, IpNetwork};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteMessage, RouteType};

use crate::desired::single;
use crate::error::KernelError;
use crate::install::{family, install_all};
use crate::namespace::within;
use crate::netlink::Netlink;
use crate::objects::{LinkState, MAIN_TABLE, Object, Route, Sysctl, Way};
use crate::{check, observe};

/// Gives a pod's interface everything it needs to talk, and brings it up. What is right already is left alone, so that a
/// pod can be configured again at any time. A default route through another interface of the pod is kept.
pub fn configure(netns: BorrowedFd<'_>, interface: &str, endpoint: &Endpoint) -> Result<(), KernelError> {
    within(netns, || {
        let mut netlink = Netlink::route()?;
        let objects = objects(&mut netlink, interface, endpoint)?;
        install_all(&mut netlink, &objects)
    })?
}

/// In what a pod's interface differs from what [`configure`] makes of it, in words; empty when in nothing. Whatever else a
/// later plugin made in the pod is none of this.
pub fn check(
    netns: BorrowedFd<'_>,
    interface: &str,
    endpoint: &Endpoint,
) -> Result<Vec<String>, KernelError> {
    within(netns, || {
        let mut netlink = Netlink::route()?;
        let links = observe::links(&mut netlink)?;
        let Some(link) = links.get(interface) else {
            return Ok(vec![format!("in the pod there is no link {interface}")]);
        };
        let found = observe::objects(&mut netlink, &links, |name| name == interface)?;
        let mut wrong = Vec::new();
        let objects = objects(&mut netlink, interface, endpoint)?;
        // Settings are the pod's own to change, as long as it keeps what they were for.
        for object in objects.into_iter().filter(|object| !matches!(object, Object::Sysctl(_))) {
            wrong.extend(check::complaint(&mut netlink, &object, &found, &links)?);
        }
        if link.up && !link.carrier {
            wrong.push(format!("link {interface} has no carrier: nothing is at its other end"));
        }
        Ok(wrong.into_iter().map(|what| format!("in the pod {what}")).collect())
    })?
}

/// The index of a link inside a pod and that of its other end.
pub(crate) fn ends(netns: BorrowedFd<'_>, interface: &str) -> Result<Option<(u32, u32)>, KernelError> {
    within(netns, || {
        let links = observe::links(&mut Netlink::route()?)?;
        Ok(links.get(interface).and_then(|link| Some((link.index, link.peer?))))
    })?
}

/// Everything inside the pod, in the order of making.
fn objects(netlink: &mut Netlink, interface: &str, endpoint: &Endpoint) -> Result<Vec<Object>, KernelError> {
    let link = || interface.to_owned();
    let mut objects = Vec::new();
    if endpoint.address(Family::V6).is_some() {
        // No duplicate address detection: an address is the pod's because we say so, and it must speak at once.
        for (name, value) in
            [("disable_ipv6", "0"), ("accept_dad", "0"), ("accept_ra", "0"), ("autoconf", "0")]
        {
            let path = format!("net/ipv6/conf/{interface}/{name}");
            objects.push(Object::Sysctl(Sysctl { link: Some(link()), path, value: value.into() }));
        }
    }
    objects.push(Object::Link(LinkState { name: link(), mac: Some(endpoint.mac), mtu: endpoint.mtu }));
    for address in endpoint.addresses.iter().copied() {
        let gateway = match Family::of(address) {
            Family::V4 => IpAddr::V4(GATEWAY_V4),
            Family::V6 => IpAddr::V6(GATEWAY_V6),
        };
        objects.push(Object::Address { link: link(), address: single(address) });
        objects.push(Object::Neighbour { link: link(), address: gateway, mac: GATEWAY_MAC });
        let others = destinations_of_others(netlink, interface, address)?;
        if gateway.is_ipv4() && !others.contains(&single(gateway)) {
            objects.push(route(interface, single(gateway), None));
        }
        for to in destinations(endpoint, gateway) {
            if to.prefix() > 0 || !others.contains(&to) {
                objects.push(route(interface, to, Some(gateway)));
            }
        }
    }
    Ok(objects)
}

/// Where a pod's routes over a gateway lead: everywhere, unless its network says where.
fn destinations(endpoint: &Endpoint, gateway: IpAddr) -> Vec<IpNetwork> {
    match &endpoint.routes {
        None => vec![default(gateway)],
        Some(routes) => {
            routes.iter().copied().filter(|to| Family::of(to.ip()) == Family::of(gateway)).collect()
        }
    }
}

fn route(interface: &str, to: IpNetwork, via: Option<IpAddr>) -> Object {
    let way = Way::Link { link: interface.to_owned(), via };
    Object::Route(Route {
        table: MAIN_TABLE,
        to,
        metric: Route::default_metric(to),
        way,
        source: None,
        mtu: None,
    })
}

fn default(of: IpAddr) -> IpNetwork {
    let any: IpNetwork = match of {
        IpAddr::V4(_) => single([0; 4].into()),
        IpAddr::V6(_) => single([0; 16].into()),
    };
    IpNetwork::new(any.ip(), 0).unwrap_or(any)
}

/// Where routes through other interfaces of the pod lead. A pod with several networks keeps its first default route, and its
/// first way to the gateway: taken over by a later interface, it would go with that one.
fn destinations_of_others(
    netlink: &mut Netlink,
    interface: &str,
    address: IpAddr,
) -> Result<Vec<IpNetwork>, KernelError> {
    let own = crate::install::index(interface)?.to_string();
    let mut question = RouteMessage::default();
    question.header.address_family = family(address);
    let records = netlink.dump(&RouteNetlinkMessage::GetRoute(question), "the pod's routes")?;
    let destination = |record| match record {
        RouteNetlinkMessage::NewRoute(message) if message.header.kind == RouteType::Unicast => {
            let route = observe::route(&message, |index| Some(index.to_string()))?;
            let other = matches!(&route.way, Way::Link { link, .. } if *link != own);
            (other && route.table == MAIN_TABLE).then_some(route.to)
        }
        _ => None,
    };
    Ok(records.into_iter().filter_map(destination).collect())
}
