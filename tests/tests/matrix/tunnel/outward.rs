//! What a pod sends goes in: the outer headers, the port of each flow, what is too long.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use causeway_model::{DropReason, Family, GATEWAY_MAC};
use causeway_tests::capture::Capture;
use causeway_tests::lab::{Lab, Node, Pod, Underlay, WireKind, foreign_pod};
use causeway_tests::packet_socket::PacketSocket;
use causeway_tests::traffic::echo_sizes;

use super::super::spoof::{Mac, mac};
use super::super::stage::{Matrix, within};
use super::packets::{Seen, class, ether, forwarded, fragments, is_v4, joined, syn, udp, with, with_class};
use super::{HEADER, configured};

const PATIENCE: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_millis(100);
/// "Do not fragment", in an IPv4 header.
const DF: u16 = 0x4000;

/// A pod that sends whatever it likes, and a peer's wire that is looked at.
pub(super) struct Scene {
    pub(super) lab: Lab,
    pub(super) peer: Node,
    pub(super) node: Node,
    pub(super) pod: Pod,
    pub(super) mouth: PacketSocket,
    pub(super) wire: PacketSocket,
    mac: Mac,
}

impl Scene {
    pub(super) fn new(matrix: &Matrix, underlay: Underlay) -> anyhow::Result<Self> {
        // On this wire frames are whole and their checksums are those that a NIC would send.
        let lab = matrix.lab(|spec| {
            (spec.underlay, spec.wire, spec.config) = (underlay, WireKind::Userspace, configured());
        })?;
        let (pod, node, peer) = (lab.add_pod("n1", "a")?, lab.node("n1")?, lab.add_foreign()?);
        // A pod that believes in more than the tunnel carries.
        pod.exec("ip link set eth0 mtu 1500")?;
        let scene = Self {
            mouth: pod.run(|| PacketSocket::open("eth0"))?,
            wire: peer.run(|| PacketSocket::open("eth0"))?,
            mac: mac(pod.namespace(), "eth0")?,
            lab,
            peer,
            node,
            pod,
        };
        let first = scene.udp(Family::V4, 9, b"first");
        let known = || scene.sends(&first, 1).is_ok_and(|seen| seen.len() == 1);
        ensure!(within(Duration::from_secs(5), known), "nothing goes through");
        Ok(scene)
    }

    pub(super) fn ends(&self) -> (IpAddr, IpAddr) {
        (self.node.plan.node.underlay[0], self.peer.plan.node.underlay[0])
    }

    fn inner_ends(&self, family: Family) -> (IpAddr, IpAddr) {
        (self.pod.address(family), foreign_pod(&self.peer, family))
    }

    pub(super) fn udp(&self, family: Family, port: u16, payload: &[u8]) -> Vec<u8> {
        udp(self.inner_ends(family), (4000, port), payload)
    }

    /// Sends a packet as the pod and returns the tunnel frames that come of it: so many, or all until it is silent.
    pub(super) fn sends(&self, packet: &[u8], expected: usize) -> anyhow::Result<Vec<Seen>> {
        self.sends_frame(&ether(GATEWAY_MAC.0, self.mac, packet), expected)
    }

    fn sends_frame(&self, frame: &[u8], expected: usize) -> anyhow::Result<Vec<Seen>> {
        while self.wire.receive(Duration::ZERO)?.is_some() {}
        self.mouth.send(frame)?;
        let patience = if expected == 0 { SILENCE } else { PATIENCE };
        let (deadline, mut seen) = (Instant::now() + patience, Vec::new());
        while let Some(frame) = self.wire.receive(deadline.saturating_duration_since(Instant::now()))? {
            // What the pod's own stack says meanwhile is none of ours.
            seen.extend(Seen::of(&frame, self.ends()).filter(|seen| seen.inner.len() > 34));
            if seen.len() == expected && expected > 0 {
                break;
            }
        }
        Ok(seen)
    }

    fn one(&self, packet: &[u8]) -> anyhow::Result<Seen> {
        self.sends(packet, 1)?.pop().context("nothing came of it")
    }
}

pub fn over_ipv4(matrix: &Matrix) -> anyhow::Result<()> {
    all(matrix, Underlay::Both)
}

pub fn over_ipv6(matrix: &Matrix) -> anyhow::Result<()> {
    all(matrix, Underlay::V6)
}

fn all(matrix: &Matrix, underlay: Underlay) -> anyhow::Result<()> {
    let scene = Scene::new(matrix, underlay)?;
    for family in Family::BOTH {
        let inside = || format!("{family} inside");
        headers(&scene, family).with_context(inside)?;
        marks(&scene, family).with_context(inside)?;
        ports(&scene, family).with_context(inside)?;
        tags(&scene, family).with_context(inside)?;
        too_long(&scene, family).with_context(inside)?;
    }
    cut_inside(&scene)?;
    if underlay == Underlay::V6 {
        a_sum_of_zero(&scene)?;
    }
    left_to_hardware(&scene)
}

/// F17: I flag and identifier, all else zero; the inner packet as it was, one hop older.
fn headers(scene: &Scene, family: Family) -> anyhow::Result<()> {
    let packet = scene.udp(family, 53, b"a question");
    let seen = scene.one(&packet)?;
    ensure!(seen.vxlan == HEADER, "F17: the header is {:02x?}", seen.vxlan);
    let (own, theirs) = (scene.node.plan.node.vtep_mac.0, scene.peer.plan.node.vtep_mac.0);
    let right = ether(theirs, own, &forwarded(packet));
    ensure!(seen.inner == right, "the inner frame is {:02x?}, not {right:02x?}", seen.inner);
    if scene.ends().0.is_ipv4() {
        ensure!(seen.checksum == 0, "an outer checksum over IPv4: {:04x}", seen.checksum);
        ensure!(seen.fragment == DF, "outer flags and offset {:04x}", seen.fragment);
    } else {
        let (is, right) = (seen.checksum, seen.right_checksum);
        ensure!(is == right, "F20: the outer checksum is {is:04x}, not {right:04x}");
    }
    Ok(())
}

/// F22: code point and congestion bits are copied outward (RFC 6040 §4.1, RFC 2983 §3.1).
fn marks(scene: &Scene, family: Family) -> anyhow::Result<()> {
    for inside in [0, 0xb8, 0xb9, 0xba, 0xbb, 3] {
        let packet = with_class(scene.udp(family, 53, b"marked"), inside);
        let seen = scene.one(&packet)?;
        ensure!(seen.class == inside, "F22: outside of {inside:02x} is {:02x}", seen.class);
        ensure!(class(seen.packet()) == inside, "F22: {inside:02x} became {:02x}", class(seen.packet()));
        ensure!(seen.checksum == 0 || seen.checksum == seen.right_checksum, "F22: a wrong outer checksum");
    }
    Ok(())
}

/// F21: flows spread over outer ports, and each keeps to its own; so do the fragments of a datagram.
fn ports(scene: &Scene, family: Family) -> anyhow::Result<()> {
    let ends = scene.inner_ends(family);
    let mut many = BTreeSet::new();
    for port in 20_000..20_256 {
        many.insert(scene.one(&syn(ends, (port, 443)))?.source_port);
    }
    ensure!(many.iter().all(|port| *port >= 49_152), "F21: {many:?}");
    ensure!(many.len() >= 200, "F21: {} outer ports for 256 flows", many.len());
    let mut one = BTreeSet::new();
    for _ in 0..100 {
        one.insert(scene.one(&scene.udp(family, 443, b"of one flow"))?.source_port);
    }
    ensure!(one.len() == 1, "F21: one flow has the outer ports {one:?}");
    let whole = with_fragments_allowed(scene.udp(family, 53, &[7; 3000]));
    let mut of_fragments = BTreeSet::new();
    let pieces = fragments(&whole, 1200, 0x2121);
    while scene.wire.receive(Duration::ZERO)?.is_some() {}
    for piece in &pieces {
        scene.mouth.send(&ether(GATEWAY_MAC.0, scene.mac, piece))?;
    }
    let (deadline, mut came) = (Instant::now() + PATIENCE, 0);
    while let Some(frame) = scene.wire.receive(deadline.saturating_duration_since(Instant::now()))? {
        if let Some(seen) = Seen::of(&frame, scene.ends()).filter(|seen| seen.inner.len() > 500) {
            of_fragments.insert(seen.source_port);
            came += 1;
        }
        if came == pieces.len() {
            break;
        }
    }
    ensure!(came == pieces.len(), "F21: {came} of {} fragments go through", pieces.len());
    ensure!(
        of_fragments.len() == 1,
        "F21: the fragments of a datagram have the outer ports {of_fragments:?}"
    );
    Ok(())
}

fn with_fragments_allowed(packet: Vec<u8>) -> Vec<u8> {
    if is_v4(&packet) { with(packet, 4, &[0x21, 0x21, 0, 0]) } else { packet }
}

/// F19, the sender's side: a tag is never carried.
fn tags(scene: &Scene, family: Family) -> anyhow::Result<()> {
    let packet = scene.udp(family, 53, b"tagged, or not tagged");
    let frame = ether(GATEWAY_MAC.0, scene.mac, &packet);
    let tagged = |id: u8| [&frame[..12], &[0x81, 0, 0, id], &frame[12..]].concat();
    let bare = scene.one(&packet)?;
    let seen = scene.sends_frame(&tagged(0), 1)?.pop().context("F19: a priority tag: nothing came of it")?;
    ensure!(seen.inner == bare.inner, "F19: a priority tag is carried: {:02x?}", seen.inner);
    let before = scene.node.drops(DropReason::NotForUs)?;
    let seen = scene.sends_frame(&tagged(5), 0)?;
    ensure!(seen.is_empty(), "F19: a frame of another network goes through: {seen:02x?}");
    let counted = || scene.node.drops(DropReason::NotForUs).is_ok_and(|now| now > before);
    ensure!(within(PATIENCE, counted), "F19: it is not counted: {:?}", scene.node.status()?.drops);
    Ok(())
}

/// F23(a), (c), (d), (e): what just fits passes, and the sender of what does not is told how much would, with its packet's beginning.
fn too_long(scene: &Scene, family: Family) -> anyhow::Result<()> {
    let mtu = 1500 - usize::from(Family::of(scene.ends().0).tunnel_overhead());
    let headers = if family == Family::V4 { 28 } else { 48 };
    let seen = scene.one(&scene.udp(family, 53, &vec![1; mtu - headers]))?;
    ensure!(seen.len == 1500, "F23(d): {mtu} bytes make an outer packet of {}", seen.len);
    for length in [mtu + 1, 1500] {
        let packet = scene.udp(family, 53, &vec![1; length - headers]);
        while scene.mouth.receive(Duration::ZERO)?.is_some() {}
        let seen = scene.sends(&packet, 0)?;
        ensure!(seen.is_empty(), "F23: {length} bytes go through");
        let mut told = None;
        while let Some(frame) = scene.mouth.receive(Duration::ZERO)? {
            told = told.or_else(|| error_of(&frame, family));
        }
        let (says, quote) = told.with_context(|| format!("F23: nobody is told of {length} bytes"))?;
        ensure!(says == mtu, "F23: the sender is told {says}, not {mtu}");
        let enough = if family == Family::V4 { 28 } else { 48 };
        ensure!(quote.len() >= enough && packet.starts_with(&quote), "F23: the quote is {quote:02x?}");
    }
    Ok(())
}

/// The MTU that an error tells a pod, and the packet it is about.
pub(super) fn error_of(frame: &[u8], family: Family) -> Option<(usize, Vec<u8>)> {
    let (protocol, at, kind) = match family {
        Family::V4 => (*frame.get(23)?, 34, [3, 4]),
        Family::V6 => (*frame.get(20)?, 54, [2, 0]),
    };
    if frame[6..12] != GATEWAY_MAC.0 || !matches!(protocol, 1 | 58) || frame.get(at..at + 2)? != kind {
        return None;
    }
    let mtu = usize::from(u16::from_be_bytes([*frame.get(at + 6)?, *frame.get(at + 7)?]));
    Some((mtu, frame.get(at + 8..)?.to_vec()))
}

/// F23(b): what may be fragmented is, inside; the outer packets are whole.
fn cut_inside(scene: &Scene) -> anyhow::Result<()> {
    let packet = with(scene.udp(Family::V4, 53, &[9; 1472]), 6, &[0, 0]);
    let seen = scene.sends(&packet, 2)?;
    ensure!(seen.len() == 2, "F23(b): {} frames", seen.len());
    for one in &seen {
        ensure!(one.len <= 1500 && one.fragment & !DF == 0, "F23(b): an outer packet {one:02x?}");
    }
    let pieces: Vec<_> = seen.iter().map(Seen::packet).collect();
    ensure!(joined(&pieces)? == packet[20..], "F23(b): another payload");
    Ok(())
}

/// F20(g): without an inner checksum the outer one can be made any number by two bytes of the payload.
fn a_sum_of_zero(scene: &Scene) -> anyhow::Result<()> {
    let mut packet = with(scene.udp(Family::V4, 53, &[0; 64]), 26, &[0, 0]);
    let rest = scene.one(&packet)?.checksum;
    packet[28..30].copy_from_slice(&rest.to_be_bytes());
    let seen = scene.one(&packet)?;
    ensure!(seen.checksum == 0xffff, "F20(g): a sum of zero is sent as {:04x}", seen.checksum);
    Ok(())
}

/// F20(f): what pods leave to hardware is complete on the wire, inside and outside.
fn left_to_hardware(scene: &Scene) -> anyhow::Result<()> {
    scene.pod.exec("ip link set eth0 mtu 1400")?;
    let far = scene.lab.add_pod("n2", "c")?;
    let capture = Capture::start(scene.node.namespace(), "eth0")?;
    for family in Family::BOTH {
        let sizes = [0, 1, 2, 3, 1300];
        echo_sizes(scene.pod.namespace(), far.namespace(), far.address(family), sizes)?;
        let socket = scene.pod.run(|| UdpSocket::bind((scene.pod.address(family), 0)))?;
        socket.send_to(b"to nobody who answers", (far.address(family), 9))?;
    }
    let recording = capture.finish()?;
    let inside = recording.fields("vxlan.vni == 4096", &["frame.number"])?;
    ensure!(inside.len() > 10, "F20(f): {} tunnel frames among {}", inside.len(), recording.frames);
    let complaints = recording.complaints()?;
    ensure!(complaints.is_empty(), "F20(f): {complaints:?}");
    Ok(())
}
