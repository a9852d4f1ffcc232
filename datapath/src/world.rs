use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};

use causeway_model::connection::Timeouts;
use causeway_model::policy::Direction;
use causeway_model::service::Frontend;
use causeway_model::{
    Endpoint, Family, GATEWAY_V4, GATEWAY_V6, MacAddr, Node, NodeId, Overlay, Path, Settings, Snapshot,
};
use ipnetwork::IpNetwork;

use crate::Slots;
use crate::bandwidth::Limits;
use crate::outer::{Macs, Outer, OuterV4, OuterV6};
use crate::path_mtu::Paths;
use crate::policy::{Policies, stamp};
use crate::service::{Services, Touched, strays};
use crate::table::{Prefixes, Table};

/// What the ports demand of frames that go out by them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Links {
    /// The hardware address of the host port's kernel end.
    pub host: MacAddr,
    /// The hardware address tunnel frames come from.
    pub source: MacAddr,
    /// The hardware address tunnel frames go to.
    pub next_hop: NextHop,
}

/// To which hardware address tunnel frames go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// All to one: the kernel end of a host-routed uplink, or the router behind an uplink of ours.
    Same(MacAddr),
    /// Each tunnel address to its own; to one that is not in here nothing can be sent.
    Each(BTreeMap<IpAddr, MacAddr>),
}

/// Numbers worlds, so that what waited in one is not sent by the slots and peers of another.
static WORLDS: AtomicU64 = AtomicU64::new(0);

/// A state that the tables cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorldError {
    /// More peers than a table's entry can number.
    TooManyPeers(usize),
}

impl fmt::Display for WorldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyPeers(peers) => write!(f, "{peers} peers are more than the fast path can number"),
        }
    }
}

impl Error for WorldError {}

/// Whose an address is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    /// A pod of ours on the fast path.
    Endpoint(u16),
    /// A pod of this node on the kernel path.
    KernelPod,
    /// This node's own stack.
    Node,
    /// The gateway that pods see.
    Gateway,
    /// Where this node's agent answers for names.
    Names,
    /// A service, or nobody among services.
    Service,
    /// Nobody, in a prefix of this node's pods.
    Nobody,
    /// A pod, or nobody, behind a peer.
    Peer(u16),
    /// A peer's own stack.
    PeerNode(u16),
}

impl Owner {
    /// Whether packets of this peer's tunnel may come from there.
    #[inline(always)]
    pub(crate) fn is_behind(self, tunnel: u16) -> bool {
        matches!(self, Self::Peer(peer) | Self::PeerNode(peer) if peer == tunnel)
    }
}

/// A pod of ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pod {
    pub(crate) v4: Option<u32>,
    // As bytes: whether an `Option<u128>` is there, a test of 16 bytes tells.
    pub(crate) v6: Option<[u8; 16]>,
    pub(crate) mac: MacAddr,
    pub(crate) mtu: u16,
    /// It neither begins nor takes new connections.
    pub(crate) deny_new: bool,
    /// The marks of its tables' epochs, by direction.
    pub(crate) stamps: [u32; 2],
}

/// A tunnel header in a cache line of its own; nothing while the next hop is not known.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Template<O>(pub(crate) Option<O>);

/// The tunnel headers of all peers.
#[derive(Clone, Debug)]
pub(crate) enum Templates {
    V4(Box<[Template<OuterV4>]>),
    V6(Box<[Template<OuterV6>]>),
}

/// Everything the packet program looks up: built by the control path from a snapshot, never changed, replaced whole.
#[derive(Clone, Debug)]
pub struct World {
    pub(crate) number: u64,
    pub(crate) overlay: Overlay,
    pub(crate) tunnel_address: IpAddr,
    pub(crate) pod_mtu: u16,
    pub(crate) vtep_mac: MacAddr,
    pub(crate) host_mac: MacAddr,
    /// Who speaks when this node answers as a router.
    pub(crate) router: (Ipv4Addr, Ipv6Addr),
    pub(crate) templates: Templates,
    pub(crate) paths: Paths,
    pub(crate) owners_v4: Prefixes<u32, Owner>,
    pub(crate) owners_v6: Prefixes<u128, Owner>,
    senders_v4: Table<u32, u16>,
    senders_v6: Table<u128, u16>,
    pods: Box<[Option<Pod>]>,
    /// Whether any pod refuses new connections.
    pub(crate) denies_new: bool,
    pub(crate) policies: Policies,
    pub(crate) services: Services,
    /// Which peers are of this node's cluster.
    neighbours: Box<[bool]>,
    /// None while no pod has one.
    pub(crate) limits: Option<Limits>,
    /// How long connections are remembered.
    pub timeouts: Timeouts,
    /// How many connections a pod may have at once.
    pub(crate) connections_per_pod: u64,
}

impl World {
    /// Builds the tables. Endpoints of the fast path that have no slot are left out: see [`Slots::take_up`].
    pub fn new(snapshot: &Snapshot, slots: &Slots, links: &Links) -> Result<Self, WorldError> {
        Self::with(Services::new(snapshot, slots), snapshot, slots, links)
    }

    /// The world of a state after a change: what that did not touch is shared with the world before, and what pods have used up of their
    /// limits, what was learned of paths and what was counted goes on.
    pub fn after(
        &self,
        touched: &Touched,
        snapshot: &Snapshot,
        slots: &Slots,
        links: &Links,
    ) -> Result<Self, WorldError> {
        let services = self.services.after(snapshot, slots, touched);
        if touched.is_within(&snapshot.services.prefixes) {
            return Ok(Self { services, ..self.clone() });
        }
        let mut world = Self::with(services, snapshot, slots, links)?;
        world.inherit(self);
        Ok(world)
    }

    fn with(
        mut services: Services,
        snapshot: &Snapshot,
        slots: &Slots,
        links: &Links,
    ) -> Result<Self, WorldError> {
        let settings = &snapshot.settings;
        if snapshot.peers.len() > usize::from(u16::MAX) {
            return Err(WorldError::TooManyPeers(snapshot.peers.len()));
        }
        let (owners_v4, owners_v6) = owner_tables(snapshot, slots);
        let nodes = snapshot.peers.values().chain([&settings.node]);
        services.spare(nodes.flat_map(|node| &node.pod_prefixes));
        let senders = senders(snapshot);
        let host = |family| settings.node.overlay_host_address(family);
        let router_v4 = host(Family::V4).and_then(v4).map_or(GATEWAY_V4, Ipv4Addr::from);
        let router_v6 = host(Family::V6).and_then(v6).map_or(GATEWAY_V6, Ipv6Addr::from);
        Ok(Self {
            number: WORLDS.fetch_add(1, Ordering::Relaxed),
            overlay: settings.overlay,
            tunnel_address: settings.tunnel_address,
            pod_mtu: settings.pod_mtu,
            vtep_mac: settings.node.vtep_mac,
            host_mac: links.host,
            router: (router_v4, router_v6),
            templates: templates(settings, &snapshot.peers, links),
            paths: Paths::new(
                snapshot.peers.values().map(|peer| peer.tunnel_address(settings.underlay_family())),
            ),
            owners_v4,
            owners_v6,
            senders_v4: Table::new(&whole(&of_family(&senders, v4))),
            senders_v6: Table::new(&whole(&of_family(&senders, v6))),
            pods: pods(snapshot, slots),
            denies_new: snapshot.endpoints.values().any(|endpoint| endpoint.deny_new),
            policies: Policies::new(snapshot, slots),
            services,
            neighbours: snapshot
                .peers
                .values()
                .map(|peer| peer.id.cluster == settings.node.id.cluster)
                .collect(),
            limits: Limits::new(snapshot, slots),
            timeouts: Timeouts::new(&settings.connections.timeouts),
            connections_per_pod: settings.connections.per_endpoint.map_or(u64::MAX, u64::from),
        })
    }

    /// Takes over what pods have used up of their limits in the world before, and what was learned of paths.
    pub fn inherit(&mut self, before: &World) {
        self.services.inherit(&before.services);
        self.paths.inherit(&before.paths);
        if let (Some(limits), Some(before)) = (&mut self.limits, &before.limits) {
            limits.inherit(before);
        }
    }

    /// The paths that were learned to carry less than usual: the tunnel address at their end, and the longest packet of a pod.
    pub fn narrow_paths(&self) -> impl Iterator<Item = (IpAddr, u16)> {
        self.paths.narrow().filter(|(_, mtu)| *mtu < self.pod_mtu)
    }

    /// Forgets smaller paths that were learned long ago. For one thread, now and then.
    pub fn forget_paths(&self, now: u64) {
        self.paths.forget(now);
    }

    /// How many connections were begun at each frontend of a service where any was.
    pub fn begun(&self) -> impl Iterator<Item = (Frontend, u64)> + '_ {
        self.services.begun()
    }

    /// Whether a peer is a node of this node's cluster.
    pub(crate) fn is_of_cluster(&self, peer: u16) -> bool {
        self.neighbours.get(usize::from(peer)).copied().unwrap_or_default()
    }

    /// The peer that sends tunnel frames from an underlay address.
    #[inline]
    pub(crate) fn sender(&self, address: IpAddr) -> Option<u16> {
        match address {
            IpAddr::V4(address) => self.senders_v4.get(address.into()),
            IpAddr::V6(address) => self.senders_v6.get(address.into()),
        }
    }

    /// Bytes of tunnel headers.
    #[inline]
    pub(crate) fn outer_len(&self) -> usize {
        match self.templates {
            Templates::V4(_) => OuterV4::LEN,
            Templates::V6(_) => OuterV6::LEN,
        }
    }

    /// The pod in a slot.
    #[inline]
    pub(crate) fn pod(&self, slot: u16) -> Option<&Pod> {
        self.pods.get(usize::from(slot))?.as_ref()
    }
}

fn v4(address: IpAddr) -> Option<u32> {
    match address {
        IpAddr::V4(address) => Some(address.into()),
        IpAddr::V6(_) => None,
    }
}

fn v6(address: IpAddr) -> Option<u128> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(address.into()),
    }
}

fn of_family<K, V: Copy>(entries: &[(IpNetwork, V)], family: fn(IpAddr) -> Option<K>) -> Vec<(K, u8, V)> {
    let of_one =
        |&(prefix, value): &(IpNetwork, V)| Some((family(prefix.network())?, prefix.prefix(), value));
    entries.iter().filter_map(of_one).collect()
}

fn whole<K: Copy, V: Copy>(entries: &[(K, u8, V)]) -> Vec<(K, V)> {
    entries.iter().map(|&(key, _, value)| (key, value)).collect()
}

/// Whose an address is, by family: the addresses of services that lie outside of their prefixes are theirs where they are nobody else's.
fn owner_tables(snapshot: &Snapshot, slots: &Slots) -> (Prefixes<u32, Owner>, Prefixes<u128, Owner>) {
    let mut owners = owners(snapshot, slots);
    let tables =
        |owners: &[_]| (Prefixes::new(&of_family(owners, v4)), Prefixes::new(&of_family(owners, v6)));
    let known = tables(&owners);
    let is_free = |address: &IpAddr| match *address {
        IpAddr::V4(address) => known.0.get(address.into()).is_none(),
        IpAddr::V6(address) => known.1.get(address.into()).is_none(),
    };
    let before = owners.len();
    owners.extend(
        strays(&snapshot.services).into_iter().filter(is_free).map(|a| (IpNetwork::from(a), Owner::Service)),
    );
    if owners.len() == before { known } else { tables(&owners) }
}

/// Who owns which prefix. Of two that claim the same the first is believed, so what is certain comes first.
fn owners(snapshot: &Snapshot, slots: &Slots) -> Vec<(IpNetwork, Owner)> {
    let mut owners = vec![
        (IpAddr::from(GATEWAY_V4).into(), Owner::Gateway),
        (IpAddr::from(GATEWAY_V6).into(), Owner::Gateway),
    ];
    let own = &snapshot.settings.node;
    owners.extend(snapshot.settings.names.addresses.iter().map(|address| ((*address).into(), Owner::Names)));
    owners.extend(own.stack().map(|address| (address.into(), Owner::Node)));
    for endpoint in snapshot.endpoints.values() {
        let owner = match endpoint.path {
            Path::Kernel => Some(Owner::KernelPod),
            Path::Fast => slots.of(&endpoint.key).map(Owner::Endpoint),
        };
        owners.extend(endpoint.addresses.iter().filter_map(|address| Some(((*address).into(), owner?))));
    }
    owners.extend(own.pod_prefixes.iter().map(|prefix| (*prefix, Owner::Nobody)));
    for (index, peer) in numbered(&snapshot.peers) {
        owners.extend(peer.stack().map(|address| (address.into(), Owner::PeerNode(index))));
        owners.extend(peer.pod_prefixes.iter().map(|prefix| (*prefix, Owner::Peer(index))));
    }
    owners.extend(snapshot.services.prefixes.iter().map(|prefix| (*prefix, Owner::Service)));
    owners
}

/// Who sends tunnel frames from which address.
fn senders(snapshot: &Snapshot) -> Vec<(IpNetwork, u16)> {
    let addresses = |(index, peer): (u16, &Node)| -> Vec<_> {
        peer.underlay.iter().map(|address| ((*address).into(), index)).collect()
    };
    numbered(&snapshot.peers).flat_map(addresses).collect()
}

fn numbered(peers: &BTreeMap<NodeId, Node>) -> impl Iterator<Item = (u16, &Node)> {
    (0..=u16::MAX).zip(peers.values())
}

fn pods(snapshot: &Snapshot, slots: &Slots) -> Box<[Option<Pod>]> {
    let mut pods = vec![None; usize::from(slots.capacity())];
    for endpoint in snapshot.endpoints.values().filter(|endpoint| endpoint.path == Path::Fast) {
        if let Some(slot) = slots.of(&endpoint.key) {
            pods[usize::from(slot)] = Some(pod(endpoint));
        }
    }
    pods.into()
}

fn pod(endpoint: &Endpoint) -> Pod {
    let address = |family| endpoint.address(family);
    Pod {
        v4: address(Family::V4).and_then(v4),
        v6: address(Family::V6).and_then(v6).map(u128::to_ne_bytes),
        mac: endpoint.mac,
        mtu: endpoint.mtu,
        deny_new: endpoint.deny_new,
        stamps: Direction::BOTH.map(|direction| stamp(endpoint.policy.of(direction).epoch)),
    }
}

fn templates(settings: &Settings, peers: &BTreeMap<NodeId, Node>, links: &Links) -> Templates {
    let inner = |peer: &Node| Macs { destination: peer.vtep_mac, source: settings.node.vtep_mac };
    let link = |to: IpAddr| {
        let destination = match &links.next_hop {
            NextHop::Same(mac) => Some(*mac),
            NextHop::Each(macs) => macs.get(&to).copied(),
        };
        destination.map(|destination| Macs { destination, source: links.source })
    };
    let overlay = settings.overlay;
    match settings.tunnel_address {
        IpAddr::V4(own) => {
            let template = |peer: &Node| {
                let to: Ipv4Addr = peer.tunnel_address(Family::V4).and_then(v4)?.into();
                Some(OuterV4::new(link(to.into())?, (own, to), overlay, inner(peer)))
            };
            Templates::V4(peers.values().map(|peer| Template(template(peer))).collect())
        }
        IpAddr::V6(own) => {
            let template = |peer: &Node| {
                let to: Ipv6Addr = peer.tunnel_address(Family::V6).and_then(v6)?.into();
                Some(OuterV6::new(link(to.into())?, (own, to), overlay, inner(peer)))
            };
            Templates::V6(peers.values().map(|peer| Template(template(peer))).collect())
        }
    }
}
