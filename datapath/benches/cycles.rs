//! What the packet program costs: time-stamp cycles a frame, for frames of 64 bytes' payload that are alike but for their flows.
//!
//! `cargo bench -p causeway-datapath` prints a table; words after `--` choose the cases whose names contain one of them. As with a
//! receiving queue, a frame's bytes were written into one of a few hundred warm buffers just before; that is not counted, what the
//! program does with the burst is. A run's figure is its median burst, so that bursts during which others had the CPU do not
//! count; told are the median, the least and the most of the runs.
#![expect(unsafe_code, reason = "the time-stamp counter")]
#![expect(clippy::unwrap_used, reason = "a measurement that cannot be set up shall not go on")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use causeway_datapath::connection::{Connections, Timeouts};
use causeway_datapath::{
    Buffer, Burst, Frame, HEADROOM, Links, NextHop, Pool, Port, Slots, Tally, Touched, Tracking, Worker,
    World, from_pod, from_uplink,
};
use causeway_model::service::{
    Answer, At, Backend, Backends, BackendsId, Frontend, Service, ServicePort, Services,
};
use causeway_model::{
    Delta, Endpoint, EndpointKey, Family, GATEWAY_MAC, Identity, MacAddr, NameServer, Node, NodeId, Overlay,
    Path, PortKind, PortProtocol, Settings, Snapshot, TunnelOwner, UplinkKind,
};
use etherparse::PacketBuilder;

const PEERS: u8 = 64;
const PODS: u8 = 200;
const BURSTS: usize = 4096;
const RUNS: usize = 9;
const ROOM: usize = HEADROOM + 2048;
const LINK: MacAddr = MacAddr([2, 0xcc, 0, 0, 0, 1]);

/// A buffer that goes back to the pool by hand.
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

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let tracked = |on| if on { ", connections" } else { ", stateless" };
    println!("{:<28}{:>8}  {:>24}  {:>12}", "cycles a frame", "flows", "program (min … max)", "in and out");
    let cases = [
        ("encap IPv4", 1, 2, Family::V4),
        ("encap IPv6", 1, 2, Family::V6),
        ("decap IPv4", 2, 1, Family::V4),
        ("decap IPv6", 2, 1, Family::V6),
        ("same node IPv4", 1, 1, Family::V4),
        ("same node IPv6", 1, 1, Family::V6),
    ];
    for (tracking, (name, from, to, family)) in
        [false, true].into_iter().flat_map(|on| cases.map(|case| (on, case)))
    {
        let name = format!("{name}{}", tracked(tracking));
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        for flows in [1024, 65_536] {
            measure(&name, flows, Bench::new((from, to), family, flows, tracking));
        }
    }
    let served = [
        ("service to peer IPv4", 2, Family::V4, false),
        ("service from peer IPv4", 2, Family::V4, true),
        ("service same node IPv4", 1, Family::V4, false),
        ("service to peer IPv6", 2, Family::V6, false),
        ("service from peer IPv6", 2, Family::V6, true),
    ];
    for (name, to, family, answers) in served {
        if wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str())) {
            for flows in [1024, 65_536] {
                measure(name, flows, Bench::served(to, family, flows, answers));
            }
        }
    }
    if wanted.is_empty() || wanted.iter().any(|word| "many services".contains(word.as_str())) {
        many_services();
    }
    if wanted.is_empty() || wanted.iter().any(|word| "service begins".contains(word.as_str())) {
        for backends in [1, 10, 100, 1000] {
            let name = format!("service begins, {backends} backends");
            measure(&name, BEGINNINGS, Bench::beginning(backends));
        }
    }
}

/// How long the tables of 10,000 services with 10 backends each take, whole and after a change of one backend.
fn many_services() {
    const MANY: u32 = 10_000;
    let mut snapshot = snapshot();
    let mut services = services(2, Family::V4);
    let (service, backends) = (services.frontends.values().next().unwrap().clone(), 0..10_u16);
    services.frontends.clear();
    for number in 0..MANY {
        let address = |n: u16| [10, 70, (n % 60) as u8 + 2, (number % 250) as u8].into();
        let chosen =
            backends.clone().map(|n| Backend { address: address(n + number as u16 / 250), port: 8080 });
        let list = Backends::alike(chosen.collect(), Vec::new());
        services.backends.insert(BackendsId(number), Arc::new(list));
        let at = At::Address([10, 96, (number / 250) as u8, (number % 250) as u8].into());
        let answer = Answer::Backends(BackendsId(number));
        let service = Service { inside: answer, outside: answer, ..service.clone() };
        services.frontends.insert(Frontend { at, protocol: PortProtocol::Udp, port: 80 }, service);
    }
    snapshot.services = Arc::new(services);
    let mut slots = Slots::new(256);
    assert!(slots.take_up(&snapshot).is_empty());
    let links = Links { host: LINK, source: LINK, next_hop: NextHop::Same(LINK) };
    let begun = std::time::Instant::now();
    let world = World::new(&snapshot, &slots, &links).unwrap();
    let whole = begun.elapsed();
    let fewer = Backends::alike(vec![Backend { address: [10, 70, 2, 9].into(), port: 1 }], Vec::new());
    let delta = Delta::Backends(BackendsId(77), Arc::new(fewer));
    let mut touched = Touched::default();
    touched.note(&delta);
    snapshot.apply(delta);
    let begun = std::time::Instant::now();
    let after = world.after(&touched, &snapshot, &slots, &links).unwrap();
    let changed = begun.elapsed();
    drop((world, after));
    println!("many services: the whole {whole:?}, one change {changed:?}");
}

/// Connections that are begun, and ended aside, over and over.
const BEGINNINGS: usize = 32_768;

fn measure(name: &str, flows: usize, mut bench: Bench) {
    bench.run();
    let mut runs: Vec<(f64, f64)> = (0..RUNS).map(|_| bench.run()).collect();
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (program, around) = runs[RUNS / 2];
    let spread = format!("{program:.1} ({:.1} … {:.1})", runs[0].0, runs[RUNS - 1].0);
    println!("{name:<28}{flows:>8}  {spread:>24}  {around:>12.1}");
}

/// A table of its own for each case.
fn connections() -> Tracking {
    const CAPACITY: u32 = 1 << 18;
    const LINE: usize = 8;
    let count = Connections::words(CAPACITY);
    let words = (0..count + LINE).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak();
    // As a mapped file lies: what is of one line must not be of two.
    let words = &words[words.as_ptr().align_offset(LINE * size_of::<AtomicU64>())..][..count];
    let connections = Connections::open(words, CAPACITY).unwrap();
    Tracking::new(connections)
}

struct Bench {
    frames: Vec<Vec<u8>>,
    free: Vec<Bytes>,
    burst: Burst<Bytes>,
    world: World,
    worker: Worker<Dry>,
    from: Port,
    /// The only ways out that are right.
    egress: BTreeSet<Port>,
    /// Where every connection is ended after each burst.
    begins: Option<Connections>,
    moment: u64,
}

impl Bench {
    /// Frames from a pod of node `from` to pods of node `to`, as node 1 sees them.
    fn new((from, to): (u8, u8), family: Family, flows: usize, tracking: bool) -> Self {
        let frames = (0..flows).map(|flow| frame(from, to, family, flow)).collect();
        Self::of(&snapshot(), frames, (from, to), tracking.then(connections))
    }

    /// The frames of connections with services, each with one backend: pods of node `to`. Or the answers.
    fn served(to: u8, family: Family, flows: usize, answers: bool) -> Self {
        let mut snapshot = snapshot();
        snapshot.services = Arc::new(services(to, family));
        let ends = |flow| {
            let client = (address(1, 0, family), 1024 + (flow / 2) as u16);
            (client, (vip((flow / 7) % SERVICES, family), 80))
        };
        let frames: Vec<_> = (0..flows)
            .map(|flow| {
                let (client, service) = ends(flow);
                let packet = udp((client.0, service.0), (client.1, service.1), &[b'x'; 64]);
                ethernet(GATEWAY_MAC, mac(0), &packet)
            })
            .collect();
        let tracking = connections();
        let asks = Self::of(&snapshot, frames, (1, to), Some(tracking));
        if !answers {
            return asks;
        }
        let mut asks = asks;
        let answers = asks.answers(to);
        let mut bench = Self::of(&snapshot, answers, (to, 1), Some(tracking));
        bench.world = asks.world;
        bench
    }

    /// The answers of backends to all frames.
    fn answers(&mut self, to: u8) -> Vec<Vec<u8>> {
        let slot = 0;
        let mut answers = Vec::new();
        for frames in self.frames.chunks_exact(Burst::<Bytes>::SIZE) {
            for frame in frames {
                let mut bytes = self.free.pop().unwrap();
                bytes.0[HEADROOM..HEADROOM + frame.len()].copy_from_slice(frame);
                assert!(self.burst.push(Frame::new(bytes, HEADROOM, frame.len(), 0).unwrap()).is_ok());
            }
            from_pod(&mut self.burst, slot, &self.world, &mut self.worker, 0);
            for frame in self.burst.drain() {
                let inner = frame.head()[frame.outer_len()..].to_vec();
                answers.push(answer(&inner, to));
                self.free.push(frame.into_buffer());
            }
        }
        answers
    }

    /// New connections with one service of so many backends.
    fn beginning(backends: usize) -> Self {
        let mut snapshot = snapshot();
        let mut services = services(2, Family::V4);
        let list = (0..backends).map(|n| Backend {
            address: [10, 70, 2 + (n / 200) as u8, 10 + (n % 200) as u8].into(),
            port: 8080,
        });
        let list = Backends::alike(list.collect(), Vec::new());
        services.backends.values_mut().for_each(|one| *one = Arc::new(list.clone()));
        snapshot.services = Arc::new(services);
        let frames = (0..BEGINNINGS)
            .map(|flow| {
                let to = vip(flow % SERVICES, Family::V4);
                let packet = udp((address(1, 0, Family::V4), to), (1024 + flow as u16, 80), &[b'x'; 64]);
                ethernet(GATEWAY_MAC, mac(0), &packet)
            })
            .collect();
        let tracking = connections();
        let mut bench = Self::of(&snapshot, frames, (1, 2), Some(tracking));
        bench.begins = Some(tracking.connections);
        bench
    }

    fn of(
        snapshot: &Snapshot,
        frames: Vec<Vec<u8>>,
        (from, to): (u8, u8),
        tracking: Option<Tracking>,
    ) -> Self {
        let mut slots = Slots::new(256);
        assert!(slots.take_up(snapshot).is_empty());
        let links = Links { host: LINK, source: LINK, next_hop: NextHop::Same(LINK) };
        let world = World::new(snapshot, &slots, &links).unwrap();
        let worker = Worker::new(Dry, Arc::new(Tally::new(256)));
        let pods = (0..PODS).map(|pod| Port::Endpoint(slots.of(&key(pod)).unwrap()));
        Self {
            frames,
            free: (0..256).map(|_| Bytes(Box::new([0; ROOM]))).collect(),
            burst: Burst::new(),
            world,
            worker: match tracking {
                Some(tracking) => worker.tracking(tracking),
                None => worker,
            },
            from: if from == 1 { Port::Endpoint(slots.of(&key(0)).unwrap()) } else { Port::Uplink },
            egress: if to == 1 { pods.collect() } else { BTreeSet::from([Port::Uplink]) },
            begins: None,
            moment: 0,
        }
    }

    /// Cycles a frame of the program, and of putting frames into the burst and taking them out.
    fn run(&mut self) -> (f64, f64) {
        const SIZE: usize = Burst::<Bytes>::SIZE;
        let (mut program, mut around) = (Vec::with_capacity(BURSTS), Vec::with_capacity(BURSTS));
        let bursts = self.frames.chunks_exact(SIZE).cycle().take(BURSTS);
        for (index, frames) in bursts.enumerate() {
            let mut filled = Vec::with_capacity(SIZE);
            for frame in frames {
                let mut bytes = self.free.pop().unwrap();
                bytes.0[HEADROOM..HEADROOM + frame.len()].copy_from_slice(frame);
                filled.push(bytes);
            }
            let start = now();
            for (bytes, frame) in filled.into_iter().zip(frames) {
                let frame = Frame::new(bytes, HEADROOM, frame.len(), 0).unwrap();
                assert!(self.burst.push(frame).is_ok());
            }
            let before = now();
            match self.from {
                Port::Endpoint(slot) => {
                    from_pod(&mut self.burst, slot, &self.world, &mut self.worker, self.moment);
                }
                _ => from_uplink(&mut self.burst, &self.world, &mut self.worker, 0),
            }
            let after = now();
            assert_eq!(self.burst.len(), SIZE, "{:?}", self.worker.tally().drops());
            if index % 1024 == 0 {
                assert!(self.burst.frames().iter().all(|frame| self.egress.contains(&frame.egress)));
            }
            let taken = now();
            self.free.extend(self.burst.drain().map(Frame::into_buffer));
            around.push(before - start + now() - taken);
            program.push(after - before);
            if let Some(connections) = &self.begins {
                // Nobody has them any more when the next burst begins.
                if index % 256 == 255 {
                    connections.sweep(0..u32::MAX, u32::MAX / 2 - 1, &Timeouts::default());
                    connections.settle(connections.ended());
                }
            }
        }
        let median = |mut cycles: Vec<u64>| {
            cycles.sort_unstable();
            cycles[BURSTS / 2] as f64 / SIZE as f64
        };
        (median(program), median(around))
    }
}

fn now() -> u64 {
    // SAFETY: every x86-64 has the counter, and nothing here forbids reading it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

fn key(pod: u8) -> EndpointKey {
    EndpointKey { network: "pods".into(), container: format!("c{pod}"), interface: "eth0".into() }
}

fn mac(pod: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 7, pod])
}

fn address(node: u8, pod: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 70, node, pod + 10].into(),
        Family::V6 => [0xfd70, 0, 0, node.into(), 0, 0, 0, u16::from(pod) + 10].into(),
    }
}

fn node(number: u8) -> Node {
    let id =
        NodeId { cluster: "lyon".parse().unwrap(), name: format!("node{number}").as_str().parse().unwrap() };
    Node {
        vtep_mac: Node::derived_vtep_mac(&id),
        id,
        underlay: vec![[192, 0, 2, number].into()],
        pod_prefixes: vec![
            format!("10.70.{number}.0/24").parse().unwrap(),
            format!("fd70:0:0:{number:x}::/64").parse().unwrap(),
        ],
    }
}

/// Node 1 with its pods and all its peers.
fn snapshot() -> Snapshot {
    let own = node(1);
    let mut snapshot = Snapshot::new(Settings {
        overlay: Overlay { vni: 4096.try_into().unwrap(), port: 4789 },
        tunnel_address: own.underlay[0],
        node: own,
        tunnel: TunnelOwner::FastPath,
        uplink: UplinkKind::default(),
        pod_mtu: 1450,
        connections: Default::default(),
        host_services: Default::default(),
        masquerade: None,
        names: NameServer::default(),
    });
    snapshot.peers.extend((2..=PEERS).map(node).map(|peer| (peer.id.clone(), peer)));
    snapshot.endpoints.extend((0..PODS).map(|pod| (key(pod), endpoint(pod))));
    snapshot
}

/// Services, each with a frontend and a backend.
const SERVICES: usize = 1000;

fn vip(service: usize, family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 96, (service / 250) as u8, (service % 250) as u8].into(),
        Family::V6 => [0xfd96, 0, 0, 0, 0, 0, 0, service as u16].into(),
    }
}

fn services(to: u8, family: Family) -> Services {
    let mut services = Services {
        prefixes: vec!["10.96.0.0/12".parse().unwrap(), "fd96::/112".parse().unwrap()],
        ..Services::default()
    };
    for number in 0..SERVICES {
        let id = BackendsId(number as u32);
        let other = (number % usize::from(PODS - 1)) as u8 + 1;
        let chosen = vec![Backend { address: address(to, other, family), port: 8080 }];
        services.backends.insert(id, Arc::new(Backends::alike(chosen, Vec::new())));
        let at = At::Address(vip(number, family));
        let answer = Answer::Backends(id);
        let name = ServicePort {
            cluster: "lyon".parse().unwrap(),
            namespace: "bench".into(),
            name: format!("s{number}"),
            port: String::new(),
        };
        let service = Service { id: name, inside: answer, outside: answer, sources: None, affinity: None };
        services.frontends.insert(Frontend { at, protocol: PortProtocol::Udp, port: 80 }, service);
    }
    services
}

/// The answer to the packet in a frame that a backend has got, as node 1 sees it.
fn answer(inner: &[u8], to: u8) -> Vec<u8> {
    let packet = &inner[14..];
    let (from, client, ports): (IpAddr, IpAddr, &[u8]) = if packet[0] >> 4 == 4 {
        let v4 = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).unwrap().into();
        (v4(16), v4(12), &packet[20..24])
    } else {
        let v6 = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).unwrap().into();
        (v6(24), v6(8), &packet[40..44])
    };
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    let packet = udp((from, client), (port(2), port(0)), &[b'x'; 64]);
    tunnelled(&packet, (to, 1), port(0).into())
}

fn endpoint(pod: u8) -> Endpoint {
    Endpoint {
        key: key(pod),
        pod: None,
        addresses: Family::BOTH.map(|family| address(1, pod, family)).to_vec(),
        mac: mac(pod),
        mtu: 1450,
        routes: None,
        labels: Default::default(),
        identity: Identity(300),
        path: Path::Fast,
        path_reason: String::new(),
        port: PortKind::Tap,
        port_mappings: Vec::new(),
        bandwidth: Default::default(),
        deny_new: false,
        policy: Default::default(),
    }
}

/// The frame of one flow: a pod's own, or one that comes by the tunnel from any pod of a peer.
fn frame(from: u8, to: u8, family: Family, flow: usize) -> Vec<u8> {
    let source = if from == 1 { 0 } else { (flow % usize::from(PODS)) as u8 };
    let other = (flow / 7 % usize::from(PODS - 1)) as u8 + 1;
    let packet = udp(
        (address(from, source, family), address(to, other, family)),
        (1024 + flow as u16 / 2, 80),
        &[b'x'; 64],
    );
    if from == 1 {
        return ethernet(GATEWAY_MAC, mac(0), &packet);
    }
    tunnelled(&packet, (from, to), flow)
}

fn tunnelled(packet: &[u8], (from, to): (u8, u8), flow: usize) -> Vec<u8> {
    let inner = ethernet(node(to).vtep_mac, node(from).vtep_mac, packet);
    let payload = [&[8, 0, 0, 0, 0, 0x10, 0, 0], &inner[..]].concat();
    let ends = (node(from).underlay[0], node(to).underlay[0]);
    let mut outer = udp(ends, (0xc000 | (flow * 7919) as u16, 4789), &payload);
    outer[26..28].fill(0);
    ethernet(LINK, LINK, &outer)
}

fn udp(ends: (IpAddr, IpAddr), ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let builder = match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64),
        _ => panic!("two families"),
    };
    let mut packet = Vec::new();
    builder.udp(ports.0, ports.1).write(&mut packet, payload).unwrap();
    packet
}

fn ethernet(destination: MacAddr, source: MacAddr, packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    [&destination.0[..], &source.0, &kind, packet].concat()
}
