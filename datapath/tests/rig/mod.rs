//! Two nodes and their pods as the packet program sees them, frames written by another library, and sums added up the slow way.
#![expect(dead_code, reason = "each test binary uses its own part of the rig")]
#![expect(clippy::unwrap_used, reason = "a rig that cannot be built fails its test")]

pub mod served;

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;

use causeway_datapath::{
    Buffer, Burst, Frame, HEADROOM, Links, NextHop, Offload, Pool, Port, Slots, Tally, Worker, World,
    from_host, from_pod, from_uplink,
};
use causeway_model::{
    DropReason, Endpoint, EndpointKey, Family, GATEWAY_MAC, Identity, MacAddr, NameServer, Node, NodeId,
    Overlay, Path, PortKind, Settings, Snapshot, TunnelOwner,
};
use etherparse::PacketBuilder;

pub const VNI: u32 = 4096;
pub const PORT: u16 = 4789;
pub const HOST_MAC: MacAddr = MacAddr([2, 0xcc, 0, 0, 0, 1]);
pub const UPLINK_MAC: MacAddr = MacAddr([2, 0xcc, 0, 0, 0, 9]);
pub const NEXT_HOP: MacAddr = MacAddr([2, 0xcc, 0, 0, 0, 2]);

/// A frame's memory: a first segment with room around the frame, and perhaps a second.
#[derive(Debug)]
pub struct Bytes {
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Bytes {
    /// One segment of these bytes.
    pub fn of(head: &[u8]) -> Self {
        Self { head: head.to_vec(), tail: Vec::new() }
    }
}

impl Buffer for Bytes {
    fn head(&self) -> &[u8] {
        &self.head
    }
    fn head_mut(&mut self) -> &mut [u8] {
        &mut self.head
    }
    fn tail(&self) -> &[u8] {
        &self.tail
    }
}

/// A pool that can run dry.
#[derive(Debug)]
pub struct Heap {
    pub left: usize,
}

impl Pool for Heap {
    type Buffer = Bytes;
    fn take(&mut self, len: usize) -> Option<Bytes> {
        self.left = self.left.checked_sub(1)?;
        // What a fresh buffer holds is not zero.
        Some(Bytes { head: vec![0xa5; HEADROOM + len], tail: Vec::new() })
    }
}

/// A frame with headroom, its bytes behind `split` in a second segment.
pub fn frame_in_two(bytes: &[u8], split: usize, offload: Offload) -> Frame<Bytes> {
    let split = split.min(bytes.len());
    let mut head = vec![0x5a; HEADROOM];
    head.extend_from_slice(&bytes[..split]);
    let mut frame =
        Frame::new(Bytes { head, tail: bytes[split..].to_vec() }, HEADROOM, split, bytes.len() - split)
            .unwrap();
    frame.offload = offload;
    frame
}

pub fn plain(bytes: &[u8]) -> Frame<Bytes> {
    frame_in_two(bytes, bytes.len(), Offload::NONE)
}

/// A frame that a pipeline let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Out {
    pub egress: Port,
    pub bytes: Vec<u8>,
    pub offload: Offload,
    pub outer: usize,
}

impl Out {
    pub fn of(frame: &Frame<Bytes>) -> Self {
        let bytes = [frame.head(), frame.tail()].concat();
        assert_eq!(bytes.len(), frame.len());
        Self { egress: frame.egress, bytes, offload: frame.offload, outer: frame.outer_len() }
    }
    /// The packet in the frame; of a tunnel frame the inner one.
    pub fn packet(&self) -> &[u8] {
        &self.bytes[self.outer + 14..]
    }
    pub fn inner(&self) -> &[u8] {
        &self.bytes[self.outer..]
    }
    pub fn macs(&self) -> (MacAddr, MacAddr) {
        (MacAddr(self.bytes[..6].try_into().unwrap()), MacAddr(self.bytes[6..12].try_into().unwrap()))
    }
}

/// One node's packet program.
pub struct Side {
    pub world: World,
    pub worker: RefCell<Worker<Heap>>,
    pub slots: Slots,
    pub now: u64,
}

impl Side {
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut slots = Slots::new(8);
        assert!(slots.take_up(snapshot).is_empty());
        let links = Links { host: HOST_MAC, source: UPLINK_MAC, next_hop: NextHop::Same(NEXT_HOP) };
        let world = World::new(snapshot, &slots, &links).unwrap();
        let worker = Worker::new(Heap { left: 4096 }, Arc::new(Tally::new(slots.capacity())));
        Self { world, worker: RefCell::new(worker), slots, now: 1_000_000_000 }
    }
    pub fn slot(&self, pod: &str) -> u16 {
        self.slots.of(&key(pod)).unwrap()
    }
    pub fn port(&self, pod: &str) -> Port {
        Port::Endpoint(self.slot(pod))
    }
    pub fn run(&self, from: Port, frames: impl IntoIterator<Item = Frame<Bytes>>) -> Vec<Out> {
        self.run_frames(from, frames).iter().map(Out::of).collect()
    }
    pub fn run_frames(
        &self,
        from: Port,
        frames: impl IntoIterator<Item = Frame<Bytes>>,
    ) -> Vec<Frame<Bytes>> {
        let mut burst = Burst::new();
        for frame in frames {
            burst.push(frame).unwrap();
        }
        let worker = &mut *self.worker.borrow_mut();
        match from {
            Port::Host => from_host(&mut burst, &self.world, worker, self.now),
            Port::Uplink => from_uplink(&mut burst, &self.world, worker, self.now),
            Port::Endpoint(slot) => from_pod(&mut burst, slot, &self.world, worker, self.now),
        }
        burst.drain().collect()
    }
    /// One frame in, and the one that comes out or the reason why none does.
    pub fn one(&self, from: Port, frame: Frame<Bytes>) -> Result<Out, DropReason> {
        let before = self.drops();
        let mut out = self.run(from, [frame]);
        let news: Vec<_> = self.drops().into_iter().zip(before).filter(|(new, old)| new.1 != old.1).collect();
        match (out.len(), news.as_slice()) {
            (1, []) => Ok(out.remove(0)),
            (0, [((reason, now), (_, was))]) if *now == was + 1 => Err(*reason),
            other => panic!("{other:?}: {out:?}"),
        }
    }
    /// What was dropped of each reason.
    pub fn drops(&self) -> Vec<(DropReason, u64)> {
        let drops = self.worker.borrow().tally().drops();
        DropReason::ALL.iter().map(|r| (*r, drops.get(r).map_or(0, |count| count.packets))).collect()
    }
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops()[reason.index()].1
    }
}

pub fn key(pod: &str) -> EndpointKey {
    EndpointKey { network: "pods".into(), container: pod.into(), interface: "eth0".into() }
}

pub fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 7, last])
}

fn node(name: &str, number: u8) -> Node {
    let id = NodeId { cluster: "lyon".parse().unwrap(), name: name.parse().unwrap() };
    Node {
        vtep_mac: Node::derived_vtep_mac(&id),
        id,
        underlay: vec![ip(&format!("192.0.2.{number}")), ip(&format!("2001:db8::{number}"))],
        pod_prefixes: vec![
            format!("10.70.{number}.0/24").parse().unwrap(),
            format!("fd70:0:0:{number}::/64").parse().unwrap(),
        ],
    }
}

fn endpoint(name: &str, node: u8, number: u8, path: Path, mtu: u16) -> Endpoint {
    Endpoint {
        key: key(name),
        pod: None,
        addresses: vec![ip(&format!("10.70.{node}.{number}")), ip(&format!("fd70:0:0:{node}::{number}"))],
        mac: mac(number),
        mtu,
        labels: Default::default(),
        identity: Identity(300),
        path,
        routes: None,
        path_reason: String::new(),
        port: if path == Path::Fast { PortKind::Tap } else { PortKind::Veth },
        port_mappings: Vec::new(),
        bandwidth: Default::default(),
        deny_new: false,
        policy: Default::default(),
    }
}

/// Node 1 ("east") or node 2 ("west") of three, with an underlay of this family. Each has the fast pods `a` and `b` at .10 and .11
/// and the kernel pod `k` at .20 of its prefix.
pub fn snapshot(number: u8, underlay: Family) -> Snapshot {
    let mut nodes = vec![node("east", 1), node("west", 2), node("north", 3)];
    let own = nodes.remove(usize::from(number) - 1);
    let pod_mtu = 1500 - underlay.tunnel_overhead();
    let mut snapshot = Snapshot::new(Settings {
        overlay: Overlay { vni: VNI.try_into().unwrap(), port: PORT },
        tunnel_address: own.tunnel_address(underlay).unwrap(),
        node: own,
        tunnel: TunnelOwner::FastPath,
        uplink: causeway_model::UplinkKind::HostRouted,
        pod_mtu,
        connections: Default::default(),
        host_services: Default::default(),
        masquerade: None,
        names: NameServer::default(),
    });
    snapshot.peers.extend(nodes.into_iter().map(|peer| (peer.id.clone(), peer)));
    for (name, last, path) in [("a", 10, Path::Fast), ("b", 11, Path::Fast), ("k", 20, Path::Kernel)] {
        snapshot.endpoints.insert(key(name), endpoint(name, number, last, path, pod_mtu));
    }
    snapshot
}

pub fn east() -> Side {
    Side::of(&snapshot(1, Family::V4))
}

pub fn west() -> Side {
    Side::of(&snapshot(2, Family::V4))
}

pub fn vtep(number: u8) -> MacAddr {
    node(["east", "west"][usize::from(number) - 1], number).vtep_mac
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An Ethernet frame around a packet, whose first nibble tells its type.
pub fn ether(destination: MacAddr, source: MacAddr, packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    [&destination.0[..], &source.0, &kind, packet].concat()
}

fn written(builder: etherparse::PacketBuilderStep<etherparse::UdpHeader>, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    builder.write(&mut out, payload).unwrap();
    out
}

pub fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

/// A UDP packet. With DF set over IPv4, as etherparse does it.
pub fn udp(from: &str, to: &str, ports: (u16, u16), len: usize) -> Vec<u8> {
    match (ip(from), ip(to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            written(PacketBuilder::ipv4(from.octets(), to.octets(), 64).udp(ports.0, ports.1), &payload(len))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            written(PacketBuilder::ipv6(from.octets(), to.octets(), 64).udp(ports.0, ports.1), &payload(len))
        }
        _ => panic!("two families"),
    }
}

pub fn tcp(from: &str, to: &str, ports: (u16, u16), len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    match (ip(from), ip(to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64)
            .tcp(ports.0, ports.1, 0xffff_fa00, 4000)
            .ack(77)
            .psh()
            .fin()
            .cwr()
            .options_raw(&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8])
            .unwrap()
            .write(&mut out, &payload(len))
            .unwrap(),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64)
            .tcp(ports.0, ports.1, 0xffff_fa00, 4000)
            .ack(77)
            .psh()
            .fin()
            .cwr()
            .write(&mut out, &payload(len))
            .unwrap(),
        _ => panic!("two families"),
    }
    out
}

/// An echo request.
pub fn ping(from: &str, to: &str, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    match (ip(from), ip(to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64)
            .icmpv4_echo_request(7, 1)
            .write(&mut out, &payload(len))
            .unwrap(),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64)
            .icmpv6_echo_request(7, 1)
            .write(&mut out, &payload(len))
            .unwrap(),
        _ => panic!("two families"),
    }
    out
}

/// An IPv4 packet that routers may fragment.
pub fn fragmentable(mut packet: Vec<u8>) -> Vec<u8> {
    assert_eq!(packet[0] >> 4, 4);
    packet[4..6].copy_from_slice(&[0xbe, 0xef]);
    packet[6] &= !0x40;
    seal_v4(&mut packet);
    packet
}

/// Recomputes the checksum of an IPv4 header.
pub fn seal_v4(packet: &mut [u8]) {
    let len = usize::from(packet[0] & 15) * 4;
    packet[10..12].fill(0);
    let sum = !slow_sum(&[&packet[..len]]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Sets the byte at `at` of an IPv4 header and its checksum.
pub fn with(mut packet: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    packet[at] = value;
    if packet[0] >> 4 == 4 {
        seal_v4(&mut packet);
    }
    packet
}

/// Any frame of a pod: to the gateway.
pub fn sent_by(last: u8, packet: &[u8]) -> Vec<u8> {
    ether(GATEWAY_MAC, mac(last), packet)
}

/// A tunnel frame from node 2 to node 1 around an inner frame.
pub fn tunnelled(inner: &[u8]) -> Vec<u8> {
    tunnelled_from("192.0.2.2", "192.0.2.1", [8, 0, 0, 0, 0, 0x10, 0, 0], inner)
}

pub fn tunnelled_from(from: &str, to: &str, vxlan: [u8; 8], inner: &[u8]) -> Vec<u8> {
    let payload = [&vxlan[..], inner].concat();
    let mut packet = match (ip(from), ip(to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            written(PacketBuilder::ipv4(from.octets(), to.octets(), 64).udp(50_000, PORT), &payload)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            written(PacketBuilder::ipv6(from.octets(), to.octets(), 64).udp(50_000, PORT), &payload)
        }
        _ => panic!("two families"),
    };
    if packet[0] >> 4 == 4 {
        packet[26..28].fill(0);
    }
    ether(UPLINK_MAC, NEXT_HOP, &packet)
}

/// The inner frame of node 2's pods to node 1.
pub fn inner_to_east(packet: &[u8]) -> Vec<u8> {
    ether(vtep(1), vtep(2), packet)
}

/// The Internet sum, a word at a time.
pub fn slow_sum(pieces: &[&[u8]]) -> u16 {
    let bytes = pieces.concat();
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    sum as u16
}

/// Panics unless all lengths and checksums of an IP packet are right, up to its transport.
pub fn assert_right(packet: &[u8]) {
    let (pseudo, protocol, segment) = if packet[0] >> 4 == 4 {
        let header = usize::from(packet[0] & 15) * 4;
        assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len(), "total length");
        assert_eq!(slow_sum(&[&packet[..header]]), 0xffff, "IPv4 header checksum");
        if packet[6] & 0x3f != 0 || packet[7] != 0 {
            return;
        }
        let len = ((packet.len() - header) as u16).to_be_bytes();
        ([&packet[12..20], &[0, packet[9]], &len].concat(), packet[9], &packet[header..])
    } else {
        assert_eq!(
            usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40,
            packet.len(),
            "payload length"
        );
        let len = ((packet.len() - 40) as u32).to_be_bytes();
        ([&packet[8..40], &len, &[0, 0, 0, packet[6]]].concat(), packet[6], &packet[40..])
    };
    match protocol {
        1 => assert_eq!(slow_sum(&[segment]), 0xffff, "ICMP checksum"),
        17 if segment[6..8] == [0, 0] => assert_eq!(packet[0] >> 4, 4, "a UDP checksum of zero over IPv6"),
        6 | 17 | 58 => assert_eq!(slow_sum(&[&pseudo, segment]), 0xffff, "transport checksum of {protocol}"),
        _ => {}
    }
    if protocol == 17 {
        assert_eq!(usize::from(u16::from_be_bytes([segment[4], segment[5]])), segment.len(), "UDP length");
    }
}

/// [`assert_right`], for a frame and for what is in its tunnel.
pub fn assert_all_right(out: &Out) {
    assert_eq!(out.offload, Offload::NONE);
    assert_right(&out.bytes[14..]);
    assert_right(out.packet());
}
