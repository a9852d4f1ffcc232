//! What is really there: dumps of the kernel's tables as objects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use causeway_model::{IpNetwork, MacAddr};
use netlink_packet_core::NLM_F_REQUEST;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, Inet6DevConf, InetDevConf, InfoData, InfoKind, InfoVxlan,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage, Stats64,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteType,
};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use crate::error::KernelError;
use crate::install::vxlan_attributes;
use crate::netlink::{Failure, Netlink};
use crate::objects::{LinkState, Object, ROUTE_PROTOCOL, ROUTE_TABLE, RULE_PRIORITY, Route, Vxlan, Way};
use crate::sysctl;

/// A network interface.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    /// Somebody is at its other end.
    pub(crate) carrier: bool,
    /// What is sent by it is sent.
    pub(crate) running: bool,
    /// The index of its other end, in the namespace where that is.
    pub(crate) peer: Option<u32>,
    pub(crate) stats: Stats64,
    kind: Option<InfoKind>,
    vxlan: Vec<InfoVxlan>,
    ipv4: Option<InetDevConf>,
    ipv6: Option<Inet6DevConf>,
}

impl Link {
    fn of(message: LinkMessage) -> Option<Self> {
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            carrier: message.header.flags.contains(LinkFlags::LowerUp),
            running: message.header.flags.contains(LinkFlags::Running),
            peer: None,
            stats: Stats64::default(),
            kind: None,
            vxlan: Vec::new(),
            ipv4: None,
            ipv6: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac.try_into().ok().map(MacAddr),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Link(index) => link.peer = Some(index),
                LinkAttribute::Stats64(stats) => link.stats = stats,
                LinkAttribute::LinkInfo(infos) => link.learn(infos),
                LinkAttribute::AfSpecUnspec(families) => link.learn_settings(families),
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }

    fn learn(&mut self, infos: Vec<LinkInfo>) {
        for info in infos {
            match info {
                LinkInfo::Kind(kind) => self.kind = Some(kind),
                LinkInfo::Data(InfoData::Vxlan(vxlan)) => self.vxlan = vxlan,
                _ => {}
            }
        }
    }

    fn learn_settings(&mut self, families: Vec<AfSpecUnspec>) {
        for family in families {
            match family {
                AfSpecUnspec::Inet(parts) => {
                    self.ipv4 = parts.into_iter().find_map(|part| match part {
                        AfSpecInet::DevConf(settings) => Some(settings),
                        _ => None,
                    });
                }
                AfSpecUnspec::Inet6(parts) => {
                    self.ipv6 = parts.into_iter().find_map(|part| match part {
                        AfSpecInet6::DevConf(settings) => Some(settings),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
    }

    /// The value of a setting by its path below /proc/sys, of those that we make: the kernel tells them with the link.
    pub(crate) fn setting(&self, path: &str) -> Option<i32> {
        let (family, of_link) = path.strip_prefix("net/")?.split_once("/conf/")?;
        let name = of_link.strip_prefix(self.name.as_str())?.strip_prefix('/')?;
        match family {
            "ipv4" => self.ipv4.and_then(|ipv4| match name {
                "forwarding" => Some(ipv4.forwarding),
                "rp_filter" => Some(ipv4.rp_filter),
                "arp_ignore" => Some(ipv4.arp_ignore),
                "accept_local" => Some(ipv4.accept_local),
                sysctl::ROUTE_LOCALNET => Some(ipv4.route_localnet),
                _ => None,
            }),
            "ipv6" => self.ipv6.and_then(|ipv6| match name {
                "forwarding" => Some(ipv6.forwarding),
                "disable_ipv6" => Some(ipv6.disable_ipv6),
                "addr_gen_mode" => Some(ipv6.addr_gen_mode),
                "accept_ra" => Some(ipv6.accept_ra),
                "accept_dad" => Some(ipv6.accept_dad),
                _ => None,
            }),
            _ => None,
        }
    }

    /// Whether its other end is a process.
    pub(crate) fn is_tap(&self) -> bool {
        self.kind == Some(InfoKind::Tun)
    }

    /// The network identifier and port of a tunnel device.
    pub(crate) fn tunnel(&self) -> Option<(u32, u16)> {
        let vni =
            self.vxlan.iter().find_map(|a| if let InfoVxlan::Id(vni) = a { Some(*vni) } else { None })?;
        let port =
            self.vxlan.iter().find_map(|a| if let InfoVxlan::Port(port) = a { Some(*port) } else { None })?;
        Some((vni, port))
    }

    /// Whether this is the tunnel device as `vxlan` wants it, and nothing that it does not want.
    pub(crate) fn is_tunnel(&self, vxlan: &Vxlan) -> bool {
        let unwanted = |attribute: &InfoVxlan| {
            matches!(attribute, InfoVxlan::Gbp | InfoVxlan::Gpe | InfoVxlan::Group(_) | InfoVxlan::Group6(_))
                || matches!(attribute, InfoVxlan::CollectMetadata(true) | InfoVxlan::Vnifilter(true))
                || (!vxlan.lenient && *attribute == InfoVxlan::ReservedBits(0))
        };
        self.kind == Some(InfoKind::Vxlan)
            && vxlan_attributes(vxlan).iter().all(|attribute| self.vxlan.contains(attribute))
            && !self.vxlan.iter().any(unwanted)
    }
}

/// Every interface of the namespace, by name.
pub(crate) fn links(netlink: &mut Netlink) -> Result<BTreeMap<String, Link>, KernelError> {
    // Statistics are left out of no dump: they are what a fifth of the callers wants, and cost little.
    let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let records = netlink.dump(&message, "links")?;
    let links = records.into_iter().filter_map(|record| match record {
        RouteNetlinkMessage::NewLink(message) => Link::of(message),
        _ => None,
    });
    Ok(links.map(|link| (link.name.clone(), link)).collect())
}

/// One interface by its name, if it is there.
pub(crate) fn link(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, KernelError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    match netlink.exchange(RouteNetlinkMessage::GetLink(message), NLM_F_REQUEST) {
        Ok(answer) => Ok(answer.records.into_iter().find_map(|record| match record {
            RouteNetlinkMessage::NewLink(message) => Link::of(message),
            _ => None,
        })),
        Err(Failure::Refused(refusal)) if refusal.errno == Errno::ENODEV as i32 => Ok(None),
        Err(Failure::Refused(source)) => {
            Err(KernelError::Netlink { doing: format!("looking for link {name}"), source })
        }
        Err(Failure::Io(source)) => {
            Err(KernelError::Io { doing: format!("looking for link {name}"), source })
        }
    }
}

/// The name of the device that has a tunnel's identifier and port.
pub(crate) fn tunnel_with(netlink: &mut Netlink, vni: u32, port: u16) -> Result<Option<String>, KernelError> {
    Ok(links(netlink)?.into_values().find(|link| link.tunnel() == Some((vni, port))).map(|link| link.name))
}

/// Every object that carries our mark, whoever made it: on our links, with our protocol, in our table.
pub(crate) fn objects(
    netlink: &mut Netlink,
    links: &BTreeMap<String, Link>,
    is_ours: impl Fn(&str) -> bool,
) -> Result<BTreeSet<Object>, KernelError> {
    let names: BTreeMap<u32, &str> = links.values().map(|link| (link.index, link.name.as_str())).collect();
    let ours = |index: u32| names.get(&index).copied().filter(|name| is_ours(name));
    let mut objects: BTreeSet<Object> =
        links.values().filter(|link| is_ours(&link.name)).filter_map(state).collect();
    for record in netlink.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()), "addresses")? {
        if let RouteNetlinkMessage::NewAddress(message) = record
            && let Some(link) = ours(message.header.index)
        {
            objects
                .extend(address(&message).map(|address| Object::Address { link: link.to_owned(), address }));
        }
    }
    objects.extend(neighbours(netlink, ours)?);
    objects.extend(routes(netlink, |index| names.get(&index).map(|name| (*name).to_owned()))?);
    objects.extend(rules(netlink)?);
    Ok(objects)
}

/// A link that is down or has an MTU of its own is none that could be desired.
fn state(link: &Link) -> Option<Object> {
    let mtu = u16::try_from(link.mtu).ok().filter(|_| link.up)?;
    Some(Object::Link(LinkState { name: link.name.clone(), mac: link.mac, mtu }))
}

pub(crate) fn address(message: &AddressMessage) -> Option<IpNetwork> {
    // The local end where there is one: over IPv4 `Address` would be the far end of a point-to-point link.
    let local = message
        .attributes
        .iter()
        .find_map(|a| if let AddressAttribute::Local(a) = a { Some(*a) } else { None });
    let address = message
        .attributes
        .iter()
        .find_map(|a| if let AddressAttribute::Address(a) = a { Some(*a) } else { None });
    IpNetwork::new(local.or(address)?, message.header.prefix_len).ok()
}

fn neighbours<'a>(
    netlink: &mut Netlink,
    ours: impl Fn(u32) -> Option<&'a str>,
) -> Result<Vec<Object>, KernelError> {
    let mut found = Vec::new();
    for (family, what) in
        [(AddressFamily::Unspec, "neighbours"), (AddressFamily::Bridge, "forwarding entries")]
    {
        let mut question = NeighbourMessage::default();
        question.header.family = family;
        for record in netlink.dump(&RouteNetlinkMessage::GetNeighbour(question), what)? {
            if let RouteNetlinkMessage::NewNeighbour(message) = record
                && let Some(link) = ours(message.header.ifindex)
            {
                found.extend(neighbour(link, &message));
            }
        }
    }
    Ok(found)
}

/// A permanent entry; others are the kernel's own and come and go.
fn neighbour(link: &str, message: &NeighbourMessage) -> Option<Object> {
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => address = Some(IpAddr::V4(*a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => address = Some(IpAddr::V6(*a)),
            // In the bridge family the library does not know whose address it is.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => address = from_bytes(bytes),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.clone().try_into().ok().map(MacAddr),
            _ => {}
        }
    }
    let (address, mac, link) = (address?, mac?, link.to_owned());
    match (message.header.family, message.header.state) {
        (_, state) if u16::from(state) & u16::from(NeighbourState::Permanent) == 0 => None,
        (AddressFamily::Bridge, _) => Some(Object::Forwarding { link, mac, to: address }),
        _ => Some(Object::Neighbour { link, address, mac }),
    }
}

fn from_bytes(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from).ok();
    v4.or_else(|| <[u8; 16]>::try_from(bytes).map(IpAddr::from).ok())
}

/// The routes of our protocol, in every table.
pub(crate) fn routes(
    netlink: &mut Netlink,
    name: impl Fn(u32) -> Option<String>,
) -> Result<Vec<Object>, KernelError> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        question.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
        for record in netlink.dump(&RouteNetlinkMessage::GetRoute(question), "routes")? {
            if let RouteNetlinkMessage::NewRoute(message) = record
                && message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
            {
                found.extend(route(&message, &name).map(Object::Route));
            }
        }
    }
    Ok(found)
}

pub(crate) fn route(message: &RouteMessage, name: impl Fn(u32) -> Option<String>) -> Option<Route> {
    let ipv4 = message.header.address_family == AddressFamily::Inet;
    let any = if ipv4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let (mut to, mut table, mut metric, mut source) = (any, u32::from(message.header.table), 0, None);
    let (mut link, mut via, mut mtu, mut locked) = (None, None, None, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address)?,
            RouteAttribute::Table(t) => table = *t,
            RouteAttribute::Priority(p) => metric = *p,
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Oif(index) => link = name(*index),
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(value) => mtu = u16::try_from(*value).ok(),
                        RouteMetric::Lock(bits) => locked = bits & 1 << 2 != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let way = match message.header.kind {
        RouteType::Unicast => Way::Link { link: link?, via },
        RouteType::Unreachable => Way::Unreachable,
        _ => return None,
    };
    let to = IpNetwork::new(to, message.header.destination_prefix_length).ok()?;
    Some(Route { table, to, metric, way, source, mtu: mtu.filter(|_| locked) })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

/// The rules at our priority that lead into our table.
fn rules(netlink: &mut Netlink) -> Result<Vec<Object>, KernelError> {
    let messages = our_rules(netlink)?;
    let rules = messages.iter().filter_map(|message| {
        let from = message
            .attributes
            .iter()
            .find_map(|a| if let RuleAttribute::Source(a) = a { Some(*a) } else { None })?;
        IpNetwork::new(from, message.header.src_len).ok().map(|from| Object::Rule { from })
    });
    Ok(rules.collect())
}

/// The rules of our protocol that lead into our table, as they are.
pub(crate) fn our_rules(netlink: &mut Netlink) -> Result<Vec<RuleMessage>, KernelError> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RuleMessage::default();
        question.header.family = family;
        for record in netlink.dump(&RouteNetlinkMessage::GetRule(question), "rules")? {
            if let RouteNetlinkMessage::NewRule(message) = record
                && message.attributes.contains(&RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)))
                && message.attributes.contains(&RuleAttribute::Table(ROUTE_TABLE))
                && message.attributes.contains(&RuleAttribute::Priority(RULE_PRIORITY))
            {
                found.push(message);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::desired::link_sysctls;

    /// Else a look reads a file for each of them, of every pod.
    #[test]
    fn every_setting_that_we_make_is_told_with_its_link() {
        let more = [("ipv4", "rp_filter", "2"), ("ipv4", "arp_ignore", "1"), ("ipv4", "accept_local", "1")];
        let loopback = [("ipv4", sysctl::ROUTE_LOCALNET, "1")];
        let look = move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
            let words = ["link", "add", "cwp0", "type", "veth", "peer", "name", "eth0"];
            assert!(Command::new("ip").args(words).status().unwrap().success());
            let mut netlink = Netlink::route().unwrap();
            for object in link_sysctls("cwp0", &[&more[..], &loopback[..]].concat()) {
                let Object::Sysctl(setting) = object else { continue };
                // One that it does not have by itself.
                let other = match setting.path.rsplit('/').next() {
                    Some("accept_dad" | "accept_ra") => "2",
                    Some("addr_gen_mode") => "3",
                    _ => "1",
                };
                netlink.sysctls().write(&setting.path, other).unwrap();
                let listed = links(&mut netlink).unwrap()["cwp0"].setting(&setting.path);
                assert_eq!(listed.map(|value| value.to_string()).as_deref(), Some(other), "{}", setting.path);
            }
        };
        thread::spawn(look).join().unwrap();
    }
}
