//! What shall be there: a snapshot as kernel objects and set elements. No I/O.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use causeway_model::{
    Delta, Endpoint, Family, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, IpNetwork, Node, NodeId, Path, PortKind,
    Settings, Snapshot, TunnelOwner,
};

use crate::capture::Uplink;
use crate::connections;
use crate::element::Element;
use crate::host_ports;
use crate::objects::{
    HOST_END_MTU, HOST_LINK, LinkState, MAIN_TABLE, Object, ROUTE_TABLE, Route, Sysctl, TUNNEL_LINK,
    UPLINK_LINK, UPLINK_MAC, UPLINK_MTU, Vxlan, Way,
};
use crate::shaping;
use crate::sysctl::{self, IPV4_FORWARDING, IPV6_FORWARDING};

/// The metric of the unreachable route for a pod prefix: behind anything that leads somewhere.
const LAST_METRIC: u32 = 51717;

/// What of the node is not in the snapshot and changes what can be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// `cw-host` exists.
    pub(crate) host_port: bool,
    /// `cw-up` exists.
    pub(crate) uplink_port: bool,
    /// Where tunnel frames arrive that are not for the kernel.
    pub(crate) uplink: Option<Uplink>,
    /// The kernel's tunnel device can ignore reserved bits.
    pub(crate) lenient: bool,
    /// Network identifiers of other tunnel devices of this node on our port.
    pub(crate) other_tunnels: Vec<u32>,
    /// The longest packets for nodes whose paths carry less than usual, where the kernel has the tunnel.
    pub(crate) path_mtus: BTreeMap<NodeId, u16>,
}

/// What one part of a snapshot asks for.
#[derive(Debug, Default)]
struct Wishes {
    objects: Vec<Object>,
    elements: Vec<Element>,
}

/// Things that are wanted, each by so many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted<T: Ord>(BTreeMap<T, u32>);

impl<T: Ord> Default for Wanted<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Ord + Clone> Wanted<T> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.keys()
    }

    pub(crate) fn contains(&self, thing: &T) -> bool {
        self.0.contains_key(thing)
    }

    fn add(&mut self, thing: T) {
        *self.0.entry(thing).or_default() += 1;
    }

    fn remove(&mut self, thing: &T) {
        if let Some(count) = self.0.get_mut(thing) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(thing);
            }
        }
    }
}

/// What an update takes away and brings.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Difference<T> {
    pub(crate) gone: Vec<T>,
    pub(crate) new: Vec<T>,
}

impl<T> Default for Difference<T> {
    fn default() -> Self {
        Self { gone: Vec::new(), new: Vec::new() }
    }
}

/// What came of changes.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) objects: Difference<Object>,
    pub(crate) elements: Difference<Element>,
    /// The changes that take them back, in order.
    pub(crate) inverses: Vec<Delta>,
}

/// A snapshot and everything that follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Desired {
    pub(crate) snapshot: Snapshot,
    pub(crate) facts: Facts,
    /// Shared with whoever looks at the node meanwhile.
    pub(crate) objects: Arc<Wanted<Object>>,
    pub(crate) elements: Wanted<Element>,
}

impl Desired {
    pub(crate) fn new(snapshot: Snapshot, facts: Facts) -> Self {
        let mut desired = Self { snapshot, facts, objects: Arc::default(), elements: Wanted::default() };
        desired.rebuild();
        desired
    }

    /// Takes up changes; returns what they change. Costs what the changes cost, not what the state costs,
    /// unless the settings are among them.
    pub(crate) fn apply(&mut self, deltas: impl IntoIterator<Item = Delta>) -> Change {
        let mut touched = (BTreeMap::new(), BTreeMap::new());
        let mut inverses = Vec::new();
        for delta in deltas {
            inverses.push(self.snapshot.inverse(&delta));
            if matches!(delta, Delta::Settings(_)) {
                self.touch_all(true, &mut touched);
                self.snapshot.apply(delta);
                self.rebuild();
                self.touch_all(false, &mut touched);
                continue;
            }
            let before = self.wishes_about(&delta);
            self.touch(&before, &mut touched);
            for object in &before.objects {
                Arc::make_mut(&mut self.objects).remove(object);
            }
            for element in &before.elements {
                self.elements.remove(element);
            }
            self.snapshot.apply(delta.clone());
            let after = self.wishes_about(&delta);
            self.touch(&after, &mut touched);
            self.take_up(after);
        }
        inverses.reverse();
        let (objects, elements) = touched;
        Change {
            objects: difference(objects, &self.objects),
            elements: difference(elements, &self.elements),
            inverses,
        }
    }

    /// The objects of one endpoint alone, in the order of making.
    pub(crate) fn objects_of(&self, endpoint: &Endpoint) -> Vec<Object> {
        let context = Context { settings: &self.snapshot.settings, facts: &self.facts };
        let mut objects = context.of_endpoint(endpoint).objects;
        objects.sort();
        objects
    }

    /// What one endpoint alone asks for.
    pub(crate) fn wishes_of(&self, endpoint: &Endpoint) -> (Vec<Object>, Vec<Element>) {
        let context = Context { settings: &self.snapshot.settings, facts: &self.facts };
        let wishes = context.of_endpoint(endpoint);
        (wishes.objects, wishes.elements)
    }

    /// The objects of the node itself, without which no endpoint reaches anything.
    pub(crate) fn objects_of_node(&self) -> Vec<Object> {
        Context { settings: &self.snapshot.settings, facts: &self.facts }.of_node().objects
    }

    /// The endpoints that have a veth of ours.
    pub(crate) fn veths(&self) -> impl Iterator<Item = &Endpoint> {
        self.snapshot.endpoints.values().filter(|endpoint| has_veth(endpoint))
    }

    fn rebuild(&mut self) {
        self.objects = Arc::default();
        self.elements = Wanted::default();
        let context = Context { settings: &self.snapshot.settings, facts: &self.facts };
        let mut all = vec![context.of_node()];
        all.extend(self.snapshot.peers.values().map(|peer| context.of_peer(peer)));
        all.extend(self.snapshot.endpoints.values().map(|endpoint| context.of_endpoint(endpoint)));
        for wishes in all {
            self.take_up(wishes);
        }
    }

    fn take_up(&mut self, wishes: Wishes) {
        let objects = Arc::make_mut(&mut self.objects);
        wishes.objects.into_iter().for_each(|object| objects.add(object));
        wishes.elements.into_iter().for_each(|element| self.elements.add(element));
    }

    /// What the thing that a change names asks for at the moment.
    fn wishes_about(&self, delta: &Delta) -> Wishes {
        let Snapshot { settings, peers, endpoints, .. } = &self.snapshot;
        let context = Context { settings, facts: &self.facts };
        let peer = |id| peers.get(id).map(|peer| context.of_peer(peer));
        let endpoint = |key| endpoints.get(key).map(|endpoint| context.of_endpoint(endpoint));
        match delta {
            Delta::Peer(node) => peer(&node.id),
            Delta::PeerGone(id) => peer(id),
            Delta::Endpoint(new) => endpoint(&new.key),
            Delta::EndpointGone(key) => endpoint(key),
            _ => None,
        }
        .unwrap_or_default()
    }

    /// Notes whether things were wanted before the first change that names them.
    fn touch(&self, wishes: &Wishes, touched: &mut Touched) {
        for object in &wishes.objects {
            touched.0.entry(object.clone()).or_insert_with(|| self.objects.contains(object));
        }
        for element in &wishes.elements {
            touched.1.entry(element.clone()).or_insert_with(|| self.elements.contains(element));
        }
    }

    /// Notes everything that is wanted now and was not noted before.
    fn touch_all(&self, before: bool, touched: &mut Touched) {
        for object in self.objects.iter() {
            touched.0.entry(object.clone()).or_insert(before);
        }
        for element in self.elements.iter() {
            touched.1.entry(element.clone()).or_insert(before);
        }
    }
}

type Touched = (BTreeMap<Object, bool>, BTreeMap<Element, bool>);

fn difference<T: Ord + Clone>(touched: BTreeMap<T, bool>, now: &Wanted<T>) -> Difference<T> {
    let mut difference = Difference { gone: Vec::new(), new: Vec::new() };
    for (thing, before) in touched {
        match (before, now.contains(&thing)) {
            (true, false) => difference.gone.push(thing),
            (false, true) => difference.new.push(thing),
            _ => {}
        }
    }
    difference
}

pub(crate) fn has_veth(endpoint: &Endpoint) -> bool {
    endpoint.path == Path::Kernel && endpoint.port == PortKind::Veth
}

/// A prefix of one address.
pub(crate) fn single(address: IpAddr) -> IpNetwork {
    // The full length of a family is never refused.
    IpNetwork::from(address)
}

/// Prefixes by their first address, without those that lie in another one: a set of intervals takes no nested ones.
pub(crate) fn flatten(prefixes: impl IntoIterator<Item = IpNetwork>) -> Vec<IpNetwork> {
    let mut all: Vec<IpNetwork> = prefixes
        .into_iter()
        .filter_map(|prefix| IpNetwork::new(prefix.network(), prefix.prefix()).ok())
        .collect();
    all.sort_by_key(|prefix| (prefix.prefix(), prefix.ip()));
    let mut kept: Vec<IpNetwork> = Vec::with_capacity(all.len());
    for prefix in all {
        if !kept.iter().any(|wider| wider.contains(prefix.ip())) {
            kept.push(prefix);
        }
    }
    kept.sort();
    kept
}

/// Every address that a node's own stack answers at: no pod may send to the tunnel's port there.
pub(crate) fn addresses_of(node: &Node) -> impl Iterator<Item = IpAddr> + '_ {
    let reserved = |family| [node.overlay_host_address(family), node.probe_address(family)];
    node.underlay.iter().copied().chain(Family::BOTH.into_iter().flat_map(reserved).flatten())
}

/// What every part is seen against.
struct Context<'a> {
    settings: &'a Settings,
    facts: &'a Facts,
}

impl Context<'_> {
    fn kernel_tunnel(&self) -> bool {
        self.settings.tunnel == TunnelOwner::Kernel
    }

    /// The link that leads to other nodes; none while the fast path's host port does not exist.
    fn tunnel_link(&self) -> Option<&'static str> {
        match self.settings.tunnel {
            TunnelOwner::Kernel => Some(TUNNEL_LINK),
            TunnelOwner::FastPath => self.facts.host_port.then_some(HOST_LINK),
        }
    }

    /// The source of packets from the node to pods; none while the link that has the address does not exist.
    fn source(&self, family: Family) -> Option<IpAddr> {
        self.tunnel_link().and_then(|_| self.settings.node.overlay_host_address(family))
    }

    /// The node itself: its tunnel or host port, its addresses, its prefixes.
    fn of_node(&self) -> Wishes {
        let Settings { overlay, node, tunnel_address, pod_mtu, names, .. } = self.settings;
        let mut wishes = Wishes::default();
        for (family, path) in [(Family::V4, IPV4_FORWARDING), (Family::V6, IPV6_FORWARDING)] {
            if node.pod_prefixes_of(family).next().is_none() {
                continue;
            }
            wishes.objects.push(Object::Sysctl(Sysctl { link: None, path: path.into(), value: "1".into() }));
        }
        wishes.objects.extend(connections::sysctls(&self.settings.connections));
        if self.kernel_tunnel() {
            wishes.objects.push(Object::Vxlan(Vxlan {
                vni: overlay.vni.into(),
                port: overlay.port,
                local: *tunnel_address,
                lenient: self.facts.lenient,
            }));
        }
        if let Some(link) = self.tunnel_link() {
            // A packet from another node's own address comes through the tunnel and would be answered by the underlay:
            // the strict reverse-path check refuses that.
            wishes.objects.extend(link_sysctls(link, &[("ipv4", "rp_filter", "2")]));
            let mac = Some(node.vtep_mac);
            wishes.objects.push(Object::Link(LinkState { name: link.into(), mac, mtu: *pod_mtu }));
            let own = Family::BOTH.into_iter().filter_map(|family| node.overlay_host_address(family));
            let addresses = own.chain(names.addresses.iter().copied());
            wishes.objects.extend(
                addresses.map(|address| Object::Address { link: link.into(), address: single(address) }),
            );
        }
        if !self.kernel_tunnel() && self.facts.uplink_port {
            // What the fast path sends has this node's own source address and is routed out as if it came from outside.
            let more = [("ipv4", "accept_local", "1"), ("ipv4", "rp_filter", "2")];
            wishes.objects.extend(link_sysctls(UPLINK_LINK, &more));
            let (name, mac) = (UPLINK_LINK.into(), Some(UPLINK_MAC));
            wishes.objects.push(Object::Link(LinkState { name, mac, mtu: UPLINK_MTU }));
            // The loose reverse-path check refuses everything on a link that has no address at all.
            let address = single(GATEWAY_V4.into());
            wishes.objects.push(Object::Address { link: UPLINK_LINK.into(), address });
        }
        for prefix in flatten(node.pod_prefixes.iter().copied()) {
            wishes.objects.push(Object::Rule { from: prefix });
            wishes.objects.push(Object::Route(Route {
                table: MAIN_TABLE,
                to: prefix,
                metric: LAST_METRIC,
                way: Way::Unreachable,
                source: None,
                mtu: None,
            }));
        }
        wishes.elements.extend(addresses_of(node).map(Element::NodeAddress));
        let own = Family::BOTH.into_iter().filter_map(|family| node.overlay_host_address(family));
        wishes.elements.extend(own.map(Element::Endpoint));
        wishes.elements.extend(self.facts.other_tunnels.iter().copied().map(Element::OtherTunnel));
        wishes
    }

    /// Another node: the way to its pods and, for our pods, to its own addresses.
    fn of_peer(&self, peer: &Node) -> Wishes {
        let mut wishes = Wishes::default();
        wishes.elements.extend(addresses_of(peer).map(Element::NodeAddress));
        if self.kernel_tunnel() {
            self.admit(peer, &mut wishes);
        } else {
            let pods = flatten(peer.pod_prefixes.iter().copied());
            wishes.elements.extend(pods.into_iter().map(Element::Tunnelled));
            wishes.elements.extend(peer.underlay.iter().copied().map(Element::Peer));
        }
        let Some(link) = self.tunnel_link() else { return wishes };
        let mac = if self.kernel_tunnel() { peer.vtep_mac } else { GATEWAY_MAC };
        let neighbour = |address| Object::Neighbour { link: link.into(), address, mac };
        if self.kernel_tunnel()
            && let Some(to) = peer.tunnel_address(self.settings.underlay_family())
        {
            wishes.objects.push(Object::Forwarding { link: link.into(), mac, to });
        }
        let mtu = self.facts.path_mtus.get(&peer.id).copied();
        for family in Family::BOTH {
            let host = peer.overlay_host_address(family);
            wishes.objects.extend(host.map(neighbour));
            for prefix in flatten(peer.pod_prefixes_of(family)) {
                if host.is_none() && prefix.prefix() == family.host_length() {
                    wishes.objects.push(neighbour(prefix.ip()));
                } else if host.is_none() {
                    continue;
                }
                wishes.objects.push(self.route(MAIN_TABLE, prefix, link, host, self.source(family), mtu));
            }
            for address in peer.underlay.iter().copied().filter(|a| Family::of(*a) == family) {
                // A node that has no pods of this family has no next hop of it either: then the address is its own.
                if host.is_none() {
                    wishes.objects.push(neighbour(address));
                }
                wishes.objects.push(self.route(ROUTE_TABLE, single(address), link, host, None, mtu));
            }
        }
        wishes
    }

    /// What the tunnel lets in from another node.
    fn admit(&self, peer: &Node, wishes: &mut Wishes) {
        let own = peer.underlay.iter().copied().map(single);
        let inner = flatten(peer.pod_prefixes.iter().copied().chain(own));
        let family = self.settings.underlay_family();
        for sender in peer.underlay.iter().copied().filter(|a| Family::of(*a) == family) {
            wishes.elements.push(Element::Sender(sender));
            wishes.elements.extend(inner.iter().map(|prefix| Element::Inner(sender, *prefix)));
        }
    }

    /// An endpoint of this node: what guards it, and the way to it.
    fn of_endpoint(&self, endpoint: &Endpoint) -> Wishes {
        let mut wishes = Wishes::default();
        wishes.elements.extend(endpoint.addresses.iter().copied().map(Element::Endpoint));
        wishes.elements.extend(host_ports::elements(endpoint));
        if !self.kernel_tunnel() {
            wishes.elements.extend(host_ports::fast_pod(endpoint));
        }
        let name = endpoint.key.link_name();
        let (link, mac) = if has_veth(endpoint) {
            wishes.elements.push(Element::PodLink(name.clone()));
            wishes.elements.push(Element::PodMac(name.clone(), endpoint.mac));
            let refusing = endpoint.addresses.iter().copied().filter(|_| endpoint.deny_new);
            wishes.elements.extend(refusing.map(Element::DenyNew));
            let guarded =
                endpoint.addresses.iter().map(|address| Element::PodAddress(name.clone(), *address));
            wishes.elements.extend(guarded);
            wishes.objects.extend(host_end(name.as_str(), endpoint));
            wishes.objects.extend(shaping::objects(endpoint));
            (name.as_str(), endpoint.mac)
        } else if let (Path::Fast, Some(HOST_LINK)) = (endpoint.path, self.tunnel_link()) {
            (HOST_LINK, GATEWAY_MAC)
        } else {
            return wishes;
        };
        if host_ports::wants_loopback(endpoint) {
            let path = format!("net/ipv4/conf/{link}/{}", sysctl::ROUTE_LOCALNET);
            wishes.objects.push(Object::Sysctl(Sysctl { link: Some(link.into()), path, value: "1".into() }));
        }
        for address in endpoint.addresses.iter().copied() {
            wishes.objects.push(Object::Neighbour { link: link.into(), address, mac });
            let source = self.source(Family::of(address));
            wishes.objects.push(self.route(
                MAIN_TABLE,
                single(address),
                link,
                None,
                source,
                Some(endpoint.mtu),
            ));
        }
        wishes
    }

    #[expect(clippy::unused_self, reason = "reads as one sentence beside the other wishes")]
    fn route(
        &self,
        table: u32,
        to: IpNetwork,
        link: &str,
        via: Option<IpAddr>,
        source: Option<IpAddr>,
        mtu: Option<u16>,
    ) -> Object {
        let way = Way::Link { link: link.into(), via };
        Object::Route(Route { table, to, metric: Route::default_metric(to), way, source, mtu })
    }
}

/// The node's end of a pod's veth.
fn host_end<'a>(link: &'a str, endpoint: &'a Endpoint) -> impl Iterator<Item = Object> + 'a {
    // Asked for an address that is not on this very link, the node is silent: a pod that probes its own address, or another
    // pod's, gets no answer (RFC 5227 §2.1.1).
    let sysctls = link_sysctls(link, &[("ipv4", "arp_ignore", "1")]);
    let state = LinkState { name: link.into(), mac: Some(GATEWAY_MAC), mtu: HOST_END_MTU };
    let gateways = endpoint
        .addresses
        .iter()
        .map(move |address| Object::Address { link: link.into(), address: gateway(Family::of(*address)) });
    sysctls.into_iter().chain([Object::Link(state)]).chain(gateways)
}

/// The gateway's address as the node's end has it.
fn gateway(family: Family) -> IpNetwork {
    match family {
        Family::V4 => single(GATEWAY_V4.into()),
        // The link-local prefix, so that packets to the pod's own link-local address find their link.
        Family::V6 => IpNetwork::new(GATEWAY_V6.into(), 64).unwrap_or(single(GATEWAY_V6.into())),
    }
}

/// The settings of a link of ours. Those that keep the kernel from making up addresses come before the link goes up.
pub(crate) fn link_sysctls(link: &str, more: &[(&str, &str, &'static str)]) -> Vec<Object> {
    let common = [
        ("ipv4", "forwarding", "1"),
        ("ipv6", "disable_ipv6", "0"),
        ("ipv6", "addr_gen_mode", "1"),
        ("ipv6", "accept_ra", "0"),
        ("ipv6", "accept_dad", "0"),
        ("ipv6", "forwarding", "1"),
    ];
    let settings = common.iter().chain(more);
    let sysctl = |(family, name, value): &(&str, &str, &'static str)| {
        let path = format!("net/{family}/conf/{link}/{name}");
        Object::Sysctl(Sysctl { link: Some(link.into()), path, value: (*value).into() })
    };
    settings.map(sysctl).collect()
}

#[cfg(test)]
pub(crate) mod tests;
