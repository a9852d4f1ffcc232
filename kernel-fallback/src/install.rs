//! Objects as netlink requests.

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_model::{Family, IpNetwork, MacAddr};
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, VxlanDf,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use crate::error::KernelError;
use crate::netlink::Netlink;
use crate::objects::{
    LinkState, Object, ROUTE_PROTOCOL, ROUTE_TABLE, RULE_PRIORITY, Route, TUNNEL_LINK, Vxlan, Way,
};
use crate::{shaping, sysctl};

/// RTAX_MTU as a bit of RTAX_LOCK.
const LOCK_MTU: u32 = 1 << 2;
/// The range that RFC 7348 §5 recommends for outer source ports.
const SOURCE_PORTS: (u16, u16) = (49152, 65535);
/// TOS 1 means "as inside" to the vxlan device.
const TOS_INHERIT: u8 = 1;
const TUNNEL_TTL: u8 = 64;

/// What the kernel says of an object that has gone already, with its link or by another hand.
pub(crate) const GONE: [Errno; 5] =
    [Errno::ENOENT, Errno::ESRCH, Errno::ENODEV, Errno::EADDRNOTAVAIL, Errno::ENXIO];

/// Makes an object, or makes it right.
pub(crate) fn install(netlink: &mut Netlink, object: &Object) -> Result<(), KernelError> {
    let doing = || format!("making {object}");
    match object {
        Object::Sysctl(sysctl) => netlink.sysctls().write(&sysctl.path, &sysctl.value),
        Object::Vxlan(vxlan) => create_vxlan(netlink, vxlan, object),
        Object::Intermediate(name) => unless(create_intermediate(netlink, name, object), &[Errno::EEXIST]),
        Object::Bucket(bucket) => shaping::install_bucket(netlink, bucket),
        Object::Redirect { link, to } => shaping::install_redirect(link, to),
        Object::Rule { from } => {
            let message = rule_message(*from);
            let made =
                netlink.request(RouteNetlinkMessage::NewRule(message), NLM_F_CREATE | NLM_F_EXCL, doing);
            unless(made, &[Errno::EEXIST])
        }
        _ => {
            let index = object.link().map(index).transpose()?.unwrap_or_default();
            let (message, flags) = request_on(index, object);
            netlink.request(message, flags, doing)
        }
    }
}

/// Makes objects in their order, with as few system calls as it takes: requests about links go in one datagram.
pub(crate) fn install_all(netlink: &mut Netlink, objects: &[Object]) -> Result<(), KernelError> {
    let mut indexes: BTreeMap<&str, u32> = BTreeMap::new();
    let mut waiting: Vec<&Object> = Vec::new();
    let mut requests = Vec::new();
    for object in objects {
        if is_of_its_own(object) {
            send(netlink, std::mem::take(&mut requests), &std::mem::take(&mut waiting))?;
            install(netlink, object)?;
            continue;
        }
        let known = object.link().map(|link| indexes.get(link).copied().map_or_else(|| index(link), Ok));
        let number = known.transpose()?.unwrap_or_default();
        indexes.extend(object.link().map(|link| (link, number)));
        let (message, flags) = request_on(number, object);
        requests.push((message, flags | NLM_F_ACK));
        waiting.push(object);
    }
    send(netlink, requests, &waiting)
}

/// Whether an object is more than one request about a link.
fn is_of_its_own(object: &Object) -> bool {
    match object {
        Object::Sysctl(_) | Object::Vxlan(_) | Object::Rule { .. } => true,
        Object::Intermediate(_) | Object::Bucket(_) | Object::Redirect { .. } => true,
        Object::Link(_) | Object::Address { .. } | Object::Neighbour { .. } => false,
        Object::Forwarding { .. } | Object::Route(_) => false,
    }
}

/// Sends requests; after a refusal each by itself, so that what is refused is told by its name. Doing one twice is doing it
/// once.
fn send(
    netlink: &mut Netlink,
    requests: Vec<(RouteNetlinkMessage, u16)>,
    objects: &[&Object],
) -> Result<(), KernelError> {
    if requests.is_empty() || netlink.transact(requests).is_ok() {
        return Ok(());
    }
    objects.iter().try_for_each(|object| install(netlink, object))
}

/// The request that makes an object on a link.
fn request_on(index: u32, object: &Object) -> (RouteNetlinkMessage, u16) {
    let mend = NLM_F_CREATE | NLM_F_REPLACE;
    match object {
        Object::Link(link) => (RouteNetlinkMessage::SetLink(link_state(index, link)), 0),
        Object::Address { address, .. } => {
            (RouteNetlinkMessage::NewAddress(address_message(index, *address)), mend)
        }
        Object::Neighbour { address, mac, .. } => {
            (RouteNetlinkMessage::NewNeighbour(neighbour_message(index, *address, *mac)), mend)
        }
        Object::Forwarding { mac, to, .. } => {
            (RouteNetlinkMessage::NewNeighbour(forwarding_message(index, *mac, *to)), mend)
        }
        Object::Route(route) => (RouteNetlinkMessage::NewRoute(route_message(index, route)), mend),
        _ => unreachable!("it is no request about a link"),
    }
}

/// Takes an object away. One that has gone already is no failure.
pub(crate) fn remove(netlink: &mut Netlink, object: &Object) -> Result<(), KernelError> {
    let doing = || format!("removing {object}");
    let message = match object {
        // The host port outlives the endpoints for whose sake it has this.
        Object::Sysctl(setting) if setting.path.ends_with(sysctl::ROUTE_LOCALNET) => {
            return netlink.sysctls().write(&setting.path, "0");
        }
        // Any other setting goes with its link, one of the whole namespace stays until everything of ours goes,
        // and a link's state is nothing that could be taken away.
        Object::Sysctl(_) | Object::Link(_) => return Ok(()),
        Object::Vxlan(_) => return remove_link(netlink, TUNNEL_LINK),
        Object::Intermediate(name) => return remove_link(netlink, name),
        // It goes with its link, and never before.
        Object::Bucket(_) => return Ok(()),
        Object::Redirect { link, .. } => return shaping::remove_redirect(link),
        Object::Rule { from } => RouteNetlinkMessage::DelRule(rule_message(*from)),
        Object::Route(route) => match object.link().map(index).transpose() {
            Ok(index) => RouteNetlinkMessage::DelRoute(route_message(index.unwrap_or_default(), route)),
            Err(KernelError::NoLink(_)) => return Ok(()),
            Err(error) => return Err(error),
        },
        Object::Address { link, .. } | Object::Neighbour { link, .. } | Object::Forwarding { link, .. } => {
            let Ok(index) = index(link) else { return Ok(()) };
            match object {
                Object::Address { address, .. } => {
                    RouteNetlinkMessage::DelAddress(address_message(index, *address))
                }
                Object::Neighbour { address, mac, .. } => {
                    RouteNetlinkMessage::DelNeighbour(neighbour_message(index, *address, *mac))
                }
                Object::Forwarding { mac, to, .. } => {
                    RouteNetlinkMessage::DelNeighbour(forwarding_message(index, *mac, *to))
                }
                _ => unreachable!("only these three are left"),
            }
        }
    };
    unless(netlink.request(message, 0, doing), &GONE)
}

/// Takes a link away by its name; one that is not there is no failure.
pub(crate) fn remove_link(netlink: &mut Netlink, name: &str) -> Result<(), KernelError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let removed =
        netlink.request(RouteNetlinkMessage::DelLink(message), 0, || format!("removing link {name}"));
    unless(removed, &GONE)
}

/// The index of a link by its name, in the namespace of this thread.
pub(crate) fn index(name: &str) -> Result<u32, KernelError> {
    if_nametoindex(name).map_err(|_| KernelError::NoLink(name.to_owned()))
}

/// Success also where the refusal says that nothing was to be done.
pub(crate) fn unless(result: Result<(), KernelError>, harmless: &[Errno]) -> Result<(), KernelError> {
    match result {
        Err(error) if error.errno().is_some_and(|e| harmless.contains(&Errno::from_raw(e))) => Ok(()),
        result => result,
    }
}

fn create_intermediate(netlink: &mut Netlink, name: &str, object: &Object) -> Result<(), KernelError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]));
    let message = RouteNetlinkMessage::NewLink(message);
    netlink.request(message, NLM_F_CREATE | NLM_F_EXCL, || format!("making {object}"))
}

fn create_vxlan(netlink: &mut Netlink, vxlan: &Vxlan, object: &Object) -> Result<(), KernelError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(TUNNEL_LINK.to_owned()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vxlan),
        LinkInfo::Data(InfoData::Vxlan(vxlan_attributes(vxlan))),
    ]));
    let made = netlink.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, || {
        format!("making {object}")
    });
    match made {
        Err(error) if error.errno() == Some(Errno::EEXIST as i32) && index(TUNNEL_LINK).is_err() => {
            let name = crate::observe::tunnel_with(netlink, vxlan.vni, vxlan.port)?;
            let name = name.unwrap_or_else(|| "moved to another network namespace".to_owned());
            Err(KernelError::TunnelTaken { vni: vxlan.vni, port: vxlan.port, name })
        }
        made => made,
    }
}

/// Every property on which a healthy tunnel device agrees with its desired form.
pub(crate) fn vxlan_attributes(vxlan: &Vxlan) -> Vec<InfoVxlan> {
    let over_ipv4 = vxlan.local.is_ipv4();
    let mut attributes = vec![
        InfoVxlan::Id(vxlan.vni),
        InfoVxlan::Port(vxlan.port),
        InfoVxlan::PortRange(SOURCE_PORTS),
        match vxlan.local {
            IpAddr::V4(local) => InfoVxlan::Local(local),
            IpAddr::V6(local) => InfoVxlan::Local6(local),
        },
        InfoVxlan::Learning(false),
        InfoVxlan::Tos(TOS_INHERIT),
        InfoVxlan::Ttl(TUNNEL_TTL),
        // Over IPv4 zero, which RFC 7348 §5 recommends; over IPv6 computed and asked for (RFC 8200 §8.1).
        InfoVxlan::UDPCsum(!over_ipv4),
        InfoVxlan::UDPZeroCsumTX(false),
        InfoVxlan::UDPZeroCsumRX(false),
    ];
    if over_ipv4 {
        attributes.push(InfoVxlan::Df(VxlanDf::Set));
    }
    if vxlan.lenient {
        attributes.push(InfoVxlan::ReservedBits(0));
    }
    attributes
}

fn link_state(index: u32, link: &LinkState) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::Mtu(link.mtu.into()));
    if let Some(mac) = link.mac {
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    }
    message
}

pub(crate) fn address_message(index: u32, address: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.ip());
    message.header.index = index;
    message.header.prefix_len = address.prefix();
    message.header.scope = scope(address.ip());
    message.attributes.push(AddressAttribute::Address(address.ip()));
    message.attributes.push(AddressAttribute::Local(address.ip()));
    if address.is_ipv6() {
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}

/// Link-local addresses have the scope of their link, which keeps them from being chosen as a source beyond it.
pub(crate) fn scope(address: IpAddr) -> AddressScope {
    match address {
        IpAddr::V4(v4) if v4.is_link_local() => AddressScope::Link,
        IpAddr::V6(v6) if v6.is_unicast_link_local() => AddressScope::Link,
        _ => AddressScope::Universe,
    }
}

pub(crate) fn neighbour_message(index: u32, address: IpAddr, mac: MacAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

fn forwarding_message(index: u32, mac: MacAddr, to: IpAddr) -> NeighbourMessage {
    let mut message = neighbour_message(index, to, mac);
    message.header.family = AddressFamily::Bridge;
    message.header.flags = NeighbourFlags::Own;
    message.attributes[0] = NeighbourAttribute::Destination(match to {
        IpAddr::V4(to) => NeighbourAddress::Inet(to),
        IpAddr::V6(to) => NeighbourAddress::Inet6(to),
    });
    message
}

fn route_message(index: u32, route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.to.ip());
    message.header.destination_prefix_length = route.to.prefix();
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.attributes.push(RouteAttribute::Table(route.table));
    if route.to.prefix() != 0 {
        message.attributes.push(RouteAttribute::Destination(route_address(route.to.ip())));
    }
    if route.metric != 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    match &route.way {
        Way::Unreachable => message.header.kind = RouteType::Unreachable,
        Way::Link { via, .. } => {
            message.header.kind = RouteType::Unicast;
            message.attributes.push(RouteAttribute::Oif(index));
            if let Some(via) = via {
                message.header.flags = RouteFlags::Onlink;
                message.attributes.push(RouteAttribute::Gateway(route_address(*via)));
            } else if route.to.is_ipv4() {
                message.header.scope = RouteScope::Link;
            }
        }
    }
    if let Some(source) = route.source {
        message.attributes.push(RouteAttribute::PrefSource(route_address(source)));
    }
    if let Some(mtu) = route.mtu {
        let metrics = vec![RouteMetric::Lock(LOCK_MTU), RouteMetric::Mtu(mtu.into())];
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

fn rule_message(from: IpNetwork) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(from.ip());
    message.header.src_len = from.prefix();
    message.header.action = RuleAction::ToTable;
    message.attributes.push(RuleAttribute::Source(from.ip()));
    message.attributes.push(RuleAttribute::Priority(RULE_PRIORITY));
    message.attributes.push(RuleAttribute::Table(ROUTE_TABLE));
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)));
    message
}

pub(crate) fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

pub(crate) fn family(address: IpAddr) -> AddressFamily {
    match Family::of(address) {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}
