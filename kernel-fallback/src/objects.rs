//! The kernel objects that make up the data path, in the order in which they can be made.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use causeway_model::{Family, IpNetwork, LinkName, MacAddr};

use crate::leaving::is_leaving;
use crate::shaping::Bucket;

/// The kernel's tunnel device, where the kernel holds the tunnel.
pub const TUNNEL_LINK: &str = "cw-vxlan";
/// The node's own port of the fast path, where the fast path holds the tunnel.
pub const HOST_LINK: &str = "cw-host";
/// The TAP behind the host-routed uplink of the fast path.
pub const UPLINK_LINK: &str = "cw-up";
/// The hardware address of that TAP: frames written to it carry it, and it goes no further.
pub const UPLINK_MAC: MacAddr = MacAddr([0x02, 0xca, 0x5e, 0x00, 0x00, 0x02]);
/// The MTU of that TAP: whole tunnel frames of up to 64 KiB pass it.
pub(crate) const UPLINK_MTU: u16 = 65_000;
/// What marks routes and rules as ours, in tables that we share with others.
pub const ROUTE_PROTOCOL: u8 = 202;
/// The routing table that leads packets from pods to other nodes' addresses into the tunnel.
pub const ROUTE_TABLE: u32 = 51717;
/// The priority of the rule that leads into that table.
pub const RULE_PRIORITY: u32 = 5170;
/// The MTU of the node's end of a pod's veth: more than any pod sends, so that a packet too big for the next link
/// reaches the routing that answers it instead of vanishing.
pub const HOST_END_MTU: u16 = u16::MAX;
/// The kernel's main routing table.
pub(crate) const MAIN_TABLE: u32 = 254;

/// True for a link of ours in the node's namespace.
pub(crate) fn is_our_link(name: &str) -> bool {
    matches!(name, TUNNEL_LINK | HOST_LINK | UPLINK_LINK)
        || is_pod_link(name)
        || is_limit_link(name)
        || is_leaving(name)
}

/// True for a link whose state, addresses and neighbours are all made here: not for one on its way out.
pub(crate) fn is_governed(name: &str) -> bool {
    is_our_link(name) && !is_leaving(name)
}

/// True for the node's end of a pod's veth.
pub(crate) fn is_pod_link(name: &str) -> bool {
    name.starts_with(LinkName::POD_PREFIX)
}

/// True for a device in which packets from a pod are held back.
pub(crate) fn is_limit_link(name: &str) -> bool {
    name.starts_with(LinkName::LIMIT_PREFIX)
}

/// One object of the kernel. The order of the variants is the order of making; the reverse is that of taking away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Object {
    Vxlan(Vxlan),
    /// An intermediate device (ifb): what is led into it goes through its queue and then on as if nothing had been.
    Intermediate(String),
    Sysctl(Sysctl),
    Link(LinkState),
    Address {
        link: String,
        address: IpNetwork,
    },
    Neighbour {
        link: String,
        address: IpAddr,
        mac: MacAddr,
    },
    Forwarding {
        link: String,
        mac: MacAddr,
        to: IpAddr,
    },
    Route(Route),
    Rule {
        from: IpNetwork,
    },
    Bucket(Bucket),
    /// What comes from a link goes into an intermediate device.
    Redirect {
        link: String,
        to: String,
    },
}

/// The tunnel device, as it was created: what of this differs makes it another device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Vxlan {
    pub(crate) vni: u32,
    pub(crate) port: u16,
    pub(crate) local: IpAddr,
    /// Reserved bits of the header are ignored, as RFC 7348 §5 wants; false where this kernel cannot.
    pub(crate) lenient: bool,
}

/// A kernel setting: a path below /proc/sys and its value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Sysctl {
    /// The link that the setting belongs to and vanishes with; none for a setting of the whole namespace.
    pub(crate) link: Option<String>,
    pub(crate) path: String,
    pub(crate) value: Cow<'static, str>,
}

/// A link that is up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LinkState {
    pub(crate) name: String,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) mtu: u16,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Way {
    /// Out of a link, through a next hop that is taken to be on it.
    Link { link: String, via: Option<IpAddr> },
    /// Nowhere: the sender is told.
    Unreachable,
}

/// A route of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Route {
    pub(crate) table: u32,
    pub(crate) to: IpNetwork,
    pub(crate) metric: u32,
    pub(crate) way: Way,
    pub(crate) source: Option<IpAddr>,
    /// An MTU that path MTU discovery must not change.
    pub(crate) mtu: Option<u16>,
}

/// What the kernel tells an object by: of two objects with one identity only one can be there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ObjectId<'a> {
    Vxlan,
    Intermediate(&'a str),
    Bucket(&'a str),
    Redirect(&'a str),
    Sysctl(&'a str),
    Link(&'a str),
    Address(&'a str, IpNetwork),
    Neighbour(&'a str, IpAddr),
    Forwarding(&'a str, MacAddr),
    Route(u32, IpNetwork, u32),
    Rule(IpNetwork),
}

impl Object {
    pub(crate) fn id(&self) -> ObjectId<'_> {
        match self {
            Self::Vxlan(_) => ObjectId::Vxlan,
            Self::Intermediate(name) => ObjectId::Intermediate(name),
            Self::Bucket(bucket) => ObjectId::Bucket(&bucket.link),
            Self::Redirect { link, .. } => ObjectId::Redirect(link),
            Self::Sysctl(sysctl) => ObjectId::Sysctl(&sysctl.path),
            Self::Link(link) => ObjectId::Link(&link.name),
            Self::Address { link, address } => ObjectId::Address(link, *address),
            Self::Neighbour { link, address, .. } => ObjectId::Neighbour(link, *address),
            Self::Forwarding { link, mac, .. } => ObjectId::Forwarding(link, *mac),
            Self::Route(route) => ObjectId::Route(route.table, route.to, route.metric),
            Self::Rule { from } => ObjectId::Rule(*from),
        }
    }

    /// The link without which the object cannot be.
    pub(crate) fn link(&self) -> Option<&str> {
        match self {
            Self::Vxlan(_) | Self::Rule { .. } | Self::Intermediate(_) => None,
            Self::Bucket(bucket) => Some(&bucket.link),
            Self::Redirect { link, .. } => Some(link),
            Self::Sysctl(sysctl) => sysctl.link.as_deref(),
            Self::Link(link) => Some(&link.name),
            Self::Address { link, .. } | Self::Neighbour { link, .. } | Self::Forwarding { link, .. } => {
                Some(link)
            }
            Self::Route(Route { way: Way::Link { link, .. }, .. }) => Some(link),
            Self::Route(Route { way: Way::Unreachable, .. }) => None,
        }
    }
}

impl Object {
    /// Whether this, being there, must go before `wanted` can come in its place: a next hop is refused while
    /// the old route to it leads out of another link.
    pub(crate) fn blocks(&self, wanted: &Object) -> bool {
        match (self, wanted) {
            (Self::Route(_), Self::Route(_)) => self.link() != wanted.link(),
            _ => false,
        }
    }
}

impl Route {
    /// The metric that the kernel gives a route that asks for none.
    pub(crate) fn default_metric(to: IpNetwork) -> u32 {
        match Family::of(to.ip()) {
            Family::V4 => 0,
            Family::V6 => 1024,
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vxlan(Vxlan { vni, port, local, .. }) => {
                write!(f, "device {TUNNEL_LINK} (vxlan {vni}, port {port}, local {local})")
            }
            Self::Intermediate(name) => write!(f, "intermediate device {name}"),
            Self::Bucket(Bucket { link, rate, burst }) => {
                write!(f, "limit of {rate} bytes a second, bursts of {burst}, on {link}")
            }
            Self::Redirect { link, to } => write!(f, "way from {link} through {to}"),
            Self::Sysctl(sysctl) => write!(f, "sysctl {} = {}", sysctl.path, sysctl.value),
            Self::Link(LinkState { name, mac: Some(mac), mtu }) => {
                write!(f, "link {name} up, mtu {mtu}, {mac}")
            }
            Self::Link(LinkState { name, mac: None, mtu }) => write!(f, "link {name} up, mtu {mtu}"),
            Self::Address { link, address } => write!(f, "address {address} on {link}"),
            Self::Neighbour { link, address, mac } => write!(f, "neighbour {address} at {mac} on {link}"),
            Self::Forwarding { link, mac, to } => write!(f, "forwarding entry {mac} to {to} on {link}"),
            Self::Route(route) => route.fmt(f),
            Self::Rule { from } => write!(f, "rule from {from} to table {ROUTE_TABLE}"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.way {
            Way::Link { link, via: Some(via) } => write!(f, "route {} via {via} on {link}", self.to)?,
            Way::Link { link, via: None } => write!(f, "route {} on {link}", self.to)?,
            Way::Unreachable => write!(f, "unreachable route {}", self.to)?,
        }
        if self.table == MAIN_TABLE { Ok(()) } else { write!(f, " in table {}", self.table) }
    }
}
