//! The process without its socket: orders in, frames through devices of DPDK, counts out. The lab shows the rest.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use causeway_model::fastpath::Memory as MemoryMode;
use causeway_model::{
    DropReason, Endpoint, GATEWAY_MAC, Identity, NameServer, Node, NodeId, Overlay, Path, PortKind, Settings,
    TunnelOwner, UplinkKind,
};
use dpdk_sys::{Burst, EalConfig, Memory, RingEnd, RingPort};
use etherparse::PacketBuilder;

use super::*;
use crate::{memory, worker};

const VNI: [u8; 3] = [0, 0xca, 0x05];
const POD: ([u8; 6], [u8; 4]) = ([2, 0, 0, 0, 0, 10], [10, 70, 1, 10]);
const FAR: [u8; 4] = [10, 70, 2, 10];
const EAST: [u8; 4] = [192, 0, 2, 11];
const WEST: ([u8; 6], [u8; 4]) = ([2, 0, 0, 0, 9, 9], [192, 0, 2, 12]);
const WORKERS: u16 = 2;

/// One process has one EAL, and the workers live as long as it does: stories come one after the other.
static PROCESS: LazyLock<Mutex<Control>> = LazyLock::new(|| {
    let eal = Eal::start(&EalConfig::new(Memory::Slow { mib: 192 })).expect("the EAL starts in slow memory");
    let buffers = Buffers::new(&eal).expect("there is memory for the pools");
    let shared = Arc::new(Shared::new(WORKERS).expect("eventfds"));
    let directory = tempfile::tempdir().expect("a directory");
    let opened = memory::open(&directory.path().join("connections"), 1024).expect("a table is made");
    let tracking = Tracking::new(opened.0);
    for number in 0..WORKERS {
        worker::spawn(number, (None, Duration::ZERO), (&eal, &buffers, Some(tracking)), &shared)
            .expect("a worker starts");
    }
    let means = Means { eal, buffers, shared, tracking: Some(tracking), limits: Vec::new() };
    Mutex::new(Control::new("/nowhere".into(), MemoryMode::Slow, WORKERS, Ok(means)))
});

/// The process with node east, its pod and its way to node west, and no ports.
fn process() -> MutexGuard<'static, Control> {
    let mut control = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    for port in [pod_port(), PortName::Uplink] {
        done(&mut control, Task::Unplug { port });
    }
    done(&mut control, Task::Snapshot { epoch: 1, snapshot: Box::new(state(&[])) });
    // What earlier stories counted for the pod goes with it.
    done(&mut control, Task::Snapshot { epoch: 2, snapshot: Box::new(state(&[pod()])) });
    let macs = vec![(WEST.1.into(), MacAddr(WEST.0))];
    done(&mut control, Task::NextHops { macs });
    control
}

fn done(control: &mut Control, task: Task) {
    assert_eq!(control.carry_out(task, Vec::new()), Ok(Outcome::Done));
}

fn key() -> EndpointKey {
    EndpointKey { network: "pods".into(), container: "a".into(), interface: "eth0".into() }
}

fn pod_port() -> PortName {
    PortName::Endpoint(key())
}

fn pod() -> Endpoint {
    Endpoint {
        key: key(),
        pod: None,
        addresses: vec![POD.1.into()],
        routes: None,
        mac: MacAddr(POD.0),
        mtu: 1450,
        labels: BTreeMap::new(),
        identity: Identity(Identity::FIRST_INTERNED),
        path: Path::Fast,
        path_reason: "tried".into(),
        port: PortKind::Tap,
        port_mappings: Vec::new(),
        bandwidth: Default::default(),
        deny_new: false,
        policy: Default::default(),
    }
}

fn node(name: &str, underlay: [u8; 4], prefix: &str) -> Node {
    let id = NodeId { cluster: "lyon".parse().expect("a name"), name: name.parse().expect("a name") };
    Node {
        vtep_mac: Node::derived_vtep_mac(&id),
        id,
        underlay: vec![underlay.into()],
        pod_prefixes: vec![prefix.parse().expect("a prefix")],
    }
}

fn state(endpoints: &[Endpoint]) -> Snapshot {
    let mut snapshot = Snapshot::new(Settings {
        overlay: Overlay { vni: 51717.try_into().expect("a VNI"), port: 4789 },
        node: node("east", EAST, "10.70.1.0/24"),
        tunnel_address: EAST.into(),
        tunnel: TunnelOwner::FastPath,
        uplink: UplinkKind::Ethdev,
        pod_mtu: 1450,
        connections: Default::default(),
        host_services: Default::default(),
        masquerade: None,
        names: NameServer::default(),
    });
    let west = node("west", WEST.1, "10.70.2.0/24");
    snapshot.peers.insert(west.id.clone(), west);
    snapshot.endpoints.extend(endpoints.iter().map(|endpoint| (endpoint.key.clone(), endpoint.clone())));
    snapshot
}

/// A frame as the pod sends it to the far pod, with a number in it.
fn from_pod(source: [u8; 4], number: u64) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(POD.0, GATEWAY_MAC.0).ipv4(source, FAR, 64).udp(1000, 2000);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, &number.to_be_bytes()).expect("a vector takes everything");
    bytes
}

/// The answer of the far pod as node west sends it.
fn from_west(number: u64) -> Vec<u8> {
    let [west, east] = [("west", WEST.1, "10.70.2.0/24"), ("east", EAST, "10.70.1.0/24")]
        .map(|(name, underlay, prefix)| node(name, underlay, prefix).vtep_mac.0);
    let inner = PacketBuilder::ethernet2(west, east).ipv4(FAR, POD.1, 64).udp(2000, 1000);
    let mut bytes = vec![8, 0, 0, 0, VNI[0], VNI[1], VNI[2], 0];
    inner.write(&mut bytes, &number.to_be_bytes()).expect("a vector takes everything");
    let outer = PacketBuilder::ethernet2(WEST.0, [0; 6]).ipv4(WEST.1, EAST, 64).udp(50_000, 4789);
    let mut frame = Vec::new();
    outer.write(&mut frame, &bytes).expect("a vector takes everything");
    frame
}

/// The number that a frame ends in.
fn number(frame: &[u8]) -> u64 {
    u64::from_be_bytes(frame[frame.len() - 8..].try_into().expect("eight bytes"))
}

fn serve(control: &mut Control, port: &PortName, name: &str) -> Vec<RingEnd> {
    let Means { eal, buffers, .. } = control.means.as_ref().expect("there are means");
    let ring = RingPort::new(eal, name, WORKERS, 1024).expect("rings are made");
    let device = EthdevPort::start(ring.port, buffers, name, (4, WORKERS)).expect("a ring port starts");
    assert!(device.limits.iter().any(|limit| limit.contains("4 queues were asked for, 2 are there")));
    control.insert(port, Served::Ethdev(Arc::new(device)));
    control.publish().expect("a table is put in force");
    ring.ends
}

/// Sends numbered frames into one ring and expects them, in order, from another.
struct Direction {
    make: fn(u64) -> Vec<u8>,
    sent: u64,
    seen: u64,
    burst: Burst,
}

impl Direction {
    const EACH: u64 = 500_000;
    /// As many may be under way: no ring ever fills.
    const AHEAD: u64 = 512;

    fn turn(&mut self, buffers: &Buffers, into: &mut RingEnd, out: &mut RingEnd) {
        while self.sent < Self::EACH && self.sent - self.seen < Self::AHEAD && self.burst.room() > 0 {
            let mut mbuf = buffers.for_mtu(1500).alloc().expect("a buffer is free");
            mbuf.append(&(self.make)(self.sent)).expect("a small frame fits");
            self.burst.push(mbuf).expect("there is room");
            self.sent += 1;
        }
        into.put(&mut self.burst);
        let mut came = Burst::new();
        out.take(&mut came, 32);
        for frame in came.drain() {
            assert_eq!(number(frame.data()), self.seen, "frames of a flow come in order, each once");
            self.seen += 1;
        }
    }
}

#[test]
fn a_flow_whose_directions_are_on_two_workers_loses_no_buffer_in_a_million_frames() {
    let mut control = process();
    let (mut pod_ends, mut up_ends) =
        (serve(&mut control, &pod_port(), "pod"), serve(&mut control, &PortName::Uplink, "up"));
    let before = control.count().expect("counts");
    let Means { buffers, shared, .. } = control.means.as_ref().expect("there are means");
    // The pod's frames enter queue 0, which is worker 0's; those of the far pod queue 1, which is worker 1's.
    let mut there = Direction { make: |n| from_pod(POD.1, n), sent: 0, seen: 0, burst: Burst::new() };
    let mut back = Direction { make: from_west, sent: 0, seen: 0, burst: Burst::new() };
    let until = Instant::now() + Duration::from_secs(240);
    while there.seen + back.seen < 2 * Direction::EACH {
        there.turn(buffers, &mut pod_ends[0], &mut up_ends[0]);
        back.turn(buffers, &mut up_ends[1], &mut pod_ends[1]);
        assert!(Instant::now() < until, "{} there, {} back", there.seen, back.seen);
    }
    let [first, second] = [0, 1].map(|worker| &shared.workers[worker].tally);
    let packets = |worker: &causeway_datapath::Tally| {
        (worker.endpoint(0).from_pod.packets, worker.endpoint(0).to_pod.packets)
    };
    assert_eq!(packets(first), (Direction::EACH, 0), "the way there is worker 0's alone");
    assert_eq!(packets(second), (0, Direction::EACH), "the way back is worker 1's alone");
    let after = control.count().expect("counts");
    assert_eq!(after.drops, before.drops, "nothing was dropped");
    assert_eq!(after.buffers.0, after.buffers.1, "every buffer is free again: none is under way");
}

#[test]
fn what_pcap_reads_leaves_as_tunnel_frames_or_is_a_named_drop() {
    let mut control = process();
    let directory = tempfile::tempdir().expect("a directory");
    let [input, output] = ["in.pcap", "out.pcap"].map(|name| directory.path().join(name));
    let frames = [from_pod(POD.1, 1), from_pod(FAR, 2), vec![0; 14], from_pod(POD.1, 3)];
    fs::write(&input, pcap(&frames)).expect("a file is written");
    let before = control.count().expect("counts");
    let device = |arguments: String| Device::Ethdev { arguments, queues: 1 };
    for (port, arguments) in [
        (PortName::Uplink, format!("net_pcap_up,tx_pcap={}", output.display())),
        (pod_port(), format!("net_pcap_pod,rx_pcap={},tx_pcap=/dev/null", input.display())),
    ] {
        let plug = || Task::Plug { port: port.clone(), device: device(arguments.clone()) };
        let first = control.carry_out(plug(), Vec::new());
        assert!(matches!(&first, Ok(Outcome::Plugged { limits }) if !limits.is_empty()), "{first:?}");
        assert_eq!(control.carry_out(plug(), Vec::new()), first, "a second time it is answered alike");
        let shown = control.carry_out(Task::Show { port: port.clone() }, Vec::new());
        assert_eq!(shown, Ok(Outcome::Shown(device(arguments))));
    }
    let dropped = |tally: &Tally| tally.drops.iter().map(|line| line.count.packets).sum::<u64>();
    let until = Instant::now() + Duration::from_secs(10);
    let after = loop {
        let after = control.count().expect("counts");
        if after.tunnel_sent.packets - before.tunnel_sent.packets + dropped(&after) - dropped(&before) == 4 {
            break after;
        }
        assert!(Instant::now() < until, "frames out and named drops are the frames in: {after:?}");
    };
    let named: Vec<_> = after.endpoints[0].1.drops.keys().copied().collect();
    assert_eq!(named, [DropReason::SpoofedMac, DropReason::SpoofedAddress]);
    done(&mut control, Task::Unplug { port: PortName::Uplink });
    let sent = unpcap(&fs::read(&output).expect("the device wrote a file"));
    assert_eq!(sent.iter().map(|frame| number(frame)).collect::<Vec<_>>(), [1, 3]);
    for frame in &sent {
        assert_eq!(frame[..6], WEST.0, "to the next hop that was told");
        assert_eq!((&frame[26..30], &frame[30..34], &frame[46..49]), (&EAST[..], &WEST.1[..], &VNI[..]));
    }
}

#[test]
fn a_device_that_makes_noise_costs_no_buffer() {
    let mut control = process();
    let device = Device::Ethdev { arguments: "net_null_pod,size=60".into(), queues: 1 };
    let plugged = control.carry_out(Task::Plug { port: pod_port(), device }, Vec::new());
    assert!(matches!(plugged, Ok(Outcome::Plugged { .. })), "{plugged:?}");
    let until = Instant::now() + Duration::from_secs(10);
    let noise = |control: &Control| {
        let tally = control.count().expect("counts");
        tally.endpoints[0].1.drops.get(&DropReason::SpoofedMac).map_or(0, |count| count.packets)
    };
    while noise(&control) < 100_000 {
        assert!(Instant::now() < until, "{} frames of noise", noise(&control));
    }
    done(&mut control, Task::Unplug { port: pod_port() });
    let (all, free) = control.count().expect("counts").buffers;
    assert_eq!(free, all);
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let mut control = process();
    for arguments in
        ["net_nonsense0", "net_pcap_x,rx_pcap=/nowhere/in.pcap", "net_af_packet_x,iface=nowhere0"]
    {
        let device = Device::Ethdev { arguments: arguments.into(), queues: 1 };
        let refused = control.carry_out(Task::Plug { port: PortName::Uplink, device }, Vec::new());
        assert!(refused.as_ref().is_err_and(|why| why.contains(arguments)), "{refused:?}");
        let shown = control.carry_out(Task::Show { port: PortName::Uplink }, Vec::new());
        assert!(shown.is_err(), "nothing is left of it: {shown:?}");
    }
}

#[test]
fn a_port_is_heard_again_when_its_endpoint_comes_back() {
    let mut control = process();
    let (queues, mut pods): (Vec<_>, Vec<_>) = (0..WORKERS)
        .map(|_| {
            let (queue, pod) = UnixDatagram::pair().expect("a pair of sockets");
            queue.set_nonblocking(true).expect("a queue does not block");
            (OwnedFd::from(queue), pod)
        })
        .unzip();
    let sender = pods.remove(0);
    let tap = Tap { queues: WORKERS, header: 10, offloads: 0, mac: MacAddr(POD.0) };
    let plugged = control.carry_out(Task::Plug { port: pod_port(), device: Device::Tap(tap) }, queues);
    assert!(matches!(plugged, Ok(Outcome::Plugged { .. })), "{plugged:?}");
    let frame = [&[0; 10][..], &from_pod(FAR, 1)].concat();
    let refused = |control: &Control| {
        let tally = control.count().expect("counts");
        let of_pod =
            tally.endpoints.first().and_then(|(_, of_pod)| of_pod.drops.get(&DropReason::SpoofedAddress));
        of_pod.map_or(0, |count| count.packets)
    };
    let await_refused = |control: &Control, wanted: u64| {
        let until = Instant::now() + Duration::from_secs(10);
        while refused(control) != wanted {
            assert!(Instant::now() < until, "{} of {wanted}", refused(control));
        }
    };
    sender.send(&frame).expect("a frame is sent");
    await_refused(&control, 1);
    let change = |delta| Task::Deltas { epoch: 3, deltas: vec![delta] };
    // Another endpoint takes its number meanwhile.
    let mut other = pod();
    other.key.container = "b".into();
    done(&mut control, change(Delta::EndpointGone(key())));
    done(&mut control, change(Delta::Endpoint(Box::new(other.clone()))));
    sender.send(&frame).expect("a frame is sent");
    thread::sleep(Duration::from_millis(50));
    assert_eq!(refused(&control), 0, "it is nobody's, least of all the other's");
    done(&mut control, change(Delta::EndpointGone(other.key)));
    done(&mut control, change(Delta::Endpoint(Box::new(pod()))));
    await_refused(&control, 1);
    done(&mut control, Task::Unplug { port: pod_port() });
}

/// A capture file of Ethernet frames (the pcap format, version 2.4).
fn pcap(frames: &[Vec<u8>]) -> Vec<u8> {
    let header = [0xa1b2_c3d4_u32, 4 << 16 | 2, 0, 0, 65_535, 1];
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
    for frame in frames {
        let len = frame.len() as u32;
        bytes.extend([0, 0, len, len].iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(frame);
    }
    bytes
}

fn unpcap(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    bytes = &bytes[24..];
    while !bytes.is_empty() {
        let len = u32::from_ne_bytes(bytes[8..12].try_into().expect("four bytes")) as usize;
        frames.push(bytes[16..16 + len].to_vec());
        bytes = &bytes[16 + len..];
    }
    frames
}
