//! The packet program with a node around it: pods here, backends there, frames made by code that is not ours.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result, anyhow, bail, ensure};
use causeway_datapath::connection::{Connections, Timeouts};
use causeway_datapath::{
    Buffer, Burst, Frame, HEADROOM, Links, NextHop, Pool, Port, Slots, Tally, Tracking, Worker, World,
    from_pod, from_uplink,
};
use causeway_model::service::{
    Answer, At, Backend, Backends, BackendsId, Frontend, Service, ServicePort, Services,
};
use causeway_model::{
    Endpoint, EndpointKey, Family, GATEWAY_MAC, Identity, MacAddr, Node, NodeId, Overlay, Path, PortKind,
    PortProtocol, Settings, Snapshot, TunnelOwner, UplinkKind, VXLAN_PORT,
};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use super::super::tsc;

/// Pods of this node.
pub const PODS: u16 = 16;
/// Frames of a burst.
pub const BURST: usize = 32;
/// Where services and their backends are.
pub const PORT: u16 = 80;
pub const TARGET: u16 = 8080;
const VNI: u32 = 51_717;
const LINK: MacAddr = MacAddr([2, 0xcc, 0, 0, 0, 1]);
const ROOM: usize = HEADROOM + 2048;
/// Buffers in turn, as a receiving queue has them.
const BUFFERS: usize = 256;
/// Connections that there is room for.
const CONNECTIONS: u32 = 1 << 18;
/// Words of a cache line.
const LINE: usize = 8;
const PAYLOAD: [u8; 18] = [b'x'; 18];

/// A buffer that goes back to its pool by hand.
struct Bytes(Box<[u8; ROOM]>);

impl Buffer for Bytes {
    #[inline]
    fn head(&self) -> &[u8] {
        &self.0[..]
    }
    #[inline]
    fn head_mut(&mut self) -> &mut [u8] {
        &mut self.0[..]
    }
    #[inline]
    fn tail(&self) -> &[u8] {
        &[]
    }
}

/// No case needs a fresh buffer.
struct Dry;

impl Pool for Dry {
    type Buffer = Bytes;
    fn take(&mut self, _: usize) -> Option<Bytes> {
        None
    }
}

/// Who sends a packet to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ends {
    pub from: SocketAddr,
    pub to: SocketAddr,
}

impl Ends {
    /// The answer's.
    pub fn turned(self) -> Self {
        Self { from: self.to, to: self.from }
    }

    /// What a datagram or a connection's first segment is like.
    pub fn packet(self, tcp: bool) -> Result<Vec<u8>> {
        let builder = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64),
            _ => bail!("{self:?}: two families"),
        };
        let (from, to) = (self.from.port(), self.to.port());
        let mut packet = Vec::new();
        match tcp {
            true => builder.tcp(from, to, 1, 65_535).syn().write(&mut packet, &[])?,
            false => builder.udp(from, to).write(&mut packet, &PAYLOAD)?,
        }
        Ok(packet)
    }

    /// What an independent decoder sees in a packet.
    fn of(packet: &[u8]) -> Result<Self> {
        let sliced = SlicedPacket::from_ip(packet)?;
        let (from, to): (IpAddr, IpAddr) = match sliced.net.context("no IP")? {
            NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            NetSlice::Arp(_) => bail!("ARP"),
        };
        let (source, destination) = match sliced.transport.context("no ports")? {
            TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
            TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
            other => bail!("{other:?}"),
        };
        Ok(Self { from: SocketAddr::new(from, source), to: SocketAddr::new(to, destination) })
    }
}

/// The program, its tables, and the frames' buffers.
pub struct Rig {
    world: World,
    slots: Slots,
    worker: Worker<Dry>,
    connections: Connections,
    free: Vec<Bytes>,
    burst: Burst<Bytes>,
}

impl Rig {
    /// A node that knows this state.
    pub fn new(snapshot: &Snapshot) -> Result<Self> {
        let mut slots = Slots::new(256);
        ensure!(slots.take_up(snapshot).is_empty(), "too many pods");
        let world = World::new(snapshot, &slots, &links())?;
        let count = Connections::words(CONNECTIONS);
        // The table is the process's for ever, as that of a fast path is, and lies as a mapped file does: what is of one cache line must
        // not be of two.
        let words = (0..count + LINE).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak();
        let words = &words[words.as_ptr().align_offset(LINE * size_of::<AtomicU64>())..][..count];
        let connections = Connections::open(words, CONNECTIONS).map_err(|other| anyhow!("{other:?}"))?;
        let worker = Worker::new(Dry, Arc::new(Tally::new(256))).tracking(Tracking::new(connections));
        let free = (0..BUFFERS).map(|_| Bytes(Box::new([0; ROOM]))).collect();
        Ok(Self { world, slots, worker, connections, free, burst: Burst::new() })
    }

    /// Sends a burst of frames through the program, as a pod's or as the uplink's; returns the ticks that it took.
    pub fn pass(&mut self, from: Option<u16>, frames: &[Vec<u8>]) -> Result<u64> {
        self.pass_and(from, frames, |_| Ok(()))
    }

    /// The same, with a look at every packet that comes out.
    pub fn pass_and(
        &mut self,
        from: Option<u16>,
        frames: &[Vec<u8>],
        mut look: impl FnMut(Ends) -> Result<()>,
    ) -> Result<u64> {
        let slot = from.map(|pod| self.slots.of(&key(pod)).context("no such pod")).transpose()?;
        for frame in frames {
            let mut bytes = self.free.pop().context("no buffer")?;
            bytes.0[HEADROOM..HEADROOM + frame.len()].copy_from_slice(frame);
            let frame = Frame::new(bytes, HEADROOM, frame.len(), 0).context("no frame")?;
            ensure!(self.burst.push(frame).is_ok(), "more than a burst");
        }
        let began = tsc::now();
        match slot {
            Some(slot) => from_pod(&mut self.burst, slot, &self.world, &mut self.worker, 0),
            None => from_uplink(&mut self.burst, &self.world, &mut self.worker, 0),
        }
        let took = tsc::now() - began;
        let left = self.burst.len();
        ensure!(left == frames.len(), "{left} of {}: {:?}", frames.len(), self.worker.tally().drops());
        for frame in self.burst.drain() {
            ensure!((frame.egress == Port::Uplink) == slot.is_some(), "a frame leaves by {:?}", frame.egress);
            look(Ends::of(&frame.head()[frame.outer_len() + 14..])?)?;
            self.free.push(frame.into_buffer());
        }
        Ok(took)
    }

    /// Connections that are remembered.
    pub fn live(&self) -> u32 {
        self.connections.live_count()
    }

    /// Connections begun at services.
    pub fn begun(&self) -> u64 {
        self.world.begun().map(|(_, begun)| begun).sum()
    }

    /// Has all connections forgotten.
    pub fn forget(&self) {
        self.connections.sweep(0..u32::MAX, u32::MAX / 2 - 1, &Timeouts::default());
        self.connections.settle(self.connections.ended());
    }
}

fn links() -> Links {
    Links { host: LINK, source: LINK, next_hop: NextHop::Same(LINK) }
}

fn key(pod: u16) -> EndpointKey {
    EndpointKey { network: "pods".into(), container: format!("c{pod}"), interface: "eth0".into() }
}

fn mac(pod: u16) -> MacAddr {
    let [high, low] = pod.to_be_bytes();
    MacAddr([2, 0, 0, 7, high, low])
}

/// A pod's address: node 1 is measured.
pub fn address(node: u8, pod: u16, family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 70, node, pod as u8 + 10].into(),
        Family::V6 => [0xfd70, 0, 0, node.into(), 0, 0, 0, pod + 10].into(),
    }
}

/// The service's address.
pub fn cluster_ip(family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 96, 0, 1].into(),
        Family::V6 => [0xfd96, 0, 0, 0, 0, 0, 0, 1].into(),
    }
}

fn node(number: u8) -> Result<Node> {
    let id = NodeId { cluster: "bench".parse()?, name: format!("n{number}").parse()? };
    Ok(Node {
        vtep_mac: Node::derived_vtep_mac(&id),
        id,
        underlay: vec![[192, 0, 2, number].into()],
        pod_prefixes: vec![
            format!("10.70.{number}.0/24").parse()?,
            format!("fd70:0:0:{number:x}::/64").parse()?,
        ],
    })
}

/// Two nodes, the pods of the first, and these services.
pub fn snapshot(services: Services) -> Result<Snapshot> {
    let (own, peer) = (node(1)?, node(2)?);
    let mut snapshot = Snapshot::new(Settings {
        overlay: Overlay { vni: VNI.try_into()?, port: VXLAN_PORT },
        tunnel_address: own.underlay[0],
        node: own,
        tunnel: TunnelOwner::FastPath,
        uplink: UplinkKind::Ethdev,
        pod_mtu: 1450,
        connections: Default::default(),
        host_services: Default::default(),
        masquerade: None,
        names: Default::default(),
    });
    snapshot.peers.insert(peer.id.clone(), peer);
    snapshot.endpoints.extend((0..PODS).map(|pod| (key(pod), endpoint(pod))));
    snapshot.services = Arc::new(services);
    Ok(snapshot)
}

fn endpoint(pod: u16) -> Endpoint {
    Endpoint {
        key: key(pod),
        pod: None,
        addresses: Family::BOTH.map(|family| address(1, pod, family)).to_vec(),
        mac: mac(pod),
        mtu: 1450,
        routes: None,
        labels: BTreeMap::new(),
        identity: Identity(Identity::FIRST_INTERNED),
        path: Path::Fast,
        path_reason: "benched".to_owned(),
        port: PortKind::Tap,
        port_mappings: Vec::new(),
        bandwidth: Default::default(),
        deny_new: false,
        policy: Default::default(),
    }
}

/// One service of both families with so many backends, pods of node 2.
pub fn service(backends: u16) -> Result<Services> {
    let mut services = Services {
        prefixes: vec!["10.96.0.0/16".parse()?, "fd96::/112".parse()?],
        addresses: Family::BOTH.map(cluster_ip).into(),
        ..Services::default()
    };
    for (number, family) in (1..).zip(Family::BOTH) {
        let chosen = (0..backends).map(|one| Backend { address: address(2, one, family), port: TARGET });
        let list = Backends::alike(chosen.collect(), Vec::new());
        services.backends.insert(BackendsId(number), Arc::new(list));
        let answer = Answer::Backends(BackendsId(number));
        for protocol in [PortProtocol::Udp, PortProtocol::Tcp] {
            let id = ServicePort {
                cluster: "bench".parse()?,
                namespace: "default".into(),
                name: "web".into(),
                port: format!("{protocol:?}"),
            };
            let service = Service { id, inside: answer, outside: answer, sources: None, affinity: None };
            let at = At::Address(cluster_ip(family));
            services.frontends.insert(Frontend { at, protocol, port: PORT }, service);
        }
    }
    Ok(services)
}

/// A packet as a pod of node 1 sends it.
pub fn from_here(packet: &[u8], pod: u16) -> Vec<u8> {
    ethernet(GATEWAY_MAC, mac(pod), packet)
}

/// A packet as it comes by the tunnel from node 2.
pub fn from_there(packet: &[u8], flow: usize) -> Result<Vec<u8>> {
    let (here, there) = (node(1)?, node(2)?);
    let inner = ethernet(here.vtep_mac, there.vtep_mac, packet);
    let [_, a, b, c] = VNI.to_be_bytes();
    let payload = [&[8, 0, 0, 0, a, b, c, 0], &inner[..]].concat();
    let (IpAddr::V4(from), IpAddr::V4(to)) = (there.underlay[0], here.underlay[0]) else {
        bail!("the tunnel is not over IPv4")
    };
    let mut outer = Vec::new();
    let port = 0xc000 | (flow * 7919) as u16;
    PacketBuilder::ipv4(from.octets(), to.octets(), 64).udp(port, VXLAN_PORT).write(&mut outer, &payload)?;
    outer[26..28].fill(0);
    Ok(ethernet(LINK, LINK, &outer))
}

fn ethernet(destination: MacAddr, source: MacAddr, packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    [&destination.0[..], &source.0, &kind, packet].concat()
}
