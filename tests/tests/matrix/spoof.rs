//! Frames that lie reach nobody and are counted by reason.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};
use causeway_model::{DropReason, Family, GATEWAY_MAC};
use causeway_tests::lab::{Lab, Node, Pod, Underlay, foreign_pod};
use causeway_tests::namespace::Namespace;
use causeway_tests::packet_socket::PacketSocket;
use etherparse::PacketBuilder;

use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    ("tunnel_frames_that_lie_reach_nobody", tunnel_frames_that_lie_reach_nobody),
    ("over_ipv6_neither", over_ipv6_neither),
    ("pods_that_lie_reach_nobody", pods_that_lie_reach_nobody),
    ("nothing_opens_while_the_agent_is_dead", nothing_opens_while_the_agent_is_dead),
];

/// The port that a pod listens on.
const PORT: u16 = 7777;
/// Our network identifier.
const VNI: u32 = 51717;
/// How long silence must last.
const SILENCE: Duration = Duration::from_millis(100);

pub(super) type Mac = [u8; 6];

/// A frame with a UDP datagram in it.
fn udp(macs: (Mac, Mac), addresses: (IpAddr, IpAddr), port: u16, payload: &[u8]) -> Vec<u8> {
    let frame = PacketBuilder::ethernet2(macs.0, macs.1);
    let packet = match addresses {
        (IpAddr::V4(from), IpAddr::V4(to)) => frame.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => frame.ipv6(from.octets(), to.octets(), 64),
        mixed => unreachable!("{mixed:?} are of two families"),
    };
    let mut bytes = Vec::new();
    packet
        .udp(50_000, port)
        .write(&mut bytes, payload)
        .unwrap_or_else(|error| unreachable!("into memory: {error}"));
    bytes
}

/// A VXLAN datagram's payload.
fn vxlan(flags: u8, reserved: u8, vni: u32, inner: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = vni.to_be_bytes();
    [&[flags, 0, reserved, 0, a, b, c, 0], inner].concat()
}

/// The hardware address of a link, as `ip` shows it.
pub(super) fn mac(namespace: &Namespace, link: &str) -> anyhow::Result<Mac> {
    let shown = namespace.ip(&format!("-o link show {link}"))?;
    let text =
        shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).context("no address")?;
    let octets: Result<Vec<_>, _> = text.split(':').map(|octet| u8::from_str_radix(octet, 16)).collect();
    octets?.try_into().map_err(|_| anyhow::anyhow!("{text} has not six octets"))
}

/// A liar and its victim.
struct Scene {
    socket: PacketSocket,
    listener: UdpSocket,
    /// Who counts.
    node: Node,
}

impl Scene {
    fn new(liar: &Namespace, victim: &Pod, node: Node) -> anyhow::Result<Self> {
        let listener = victim.run(|| UdpSocket::bind(("::", PORT)))?;
        Ok(Self { socket: liar.run(|| PacketSocket::open("eth0"))?, listener, node })
    }

    /// A frame arrives, or nobody hears it and it is counted for this reason.
    fn judge(&self, what: &str, frame: &[u8], reason: Option<DropReason>) -> anyhow::Result<()> {
        let count = |reason| self.node.drops(reason).unwrap_or_default();
        let before = reason.map(count);
        self.socket.send(frame).with_context(|| what.to_owned())?;
        self.listener.set_read_timeout(Some(if reason.is_none() { 10 * SILENCE } else { SILENCE }))?;
        let heard = self.listener.recv(&mut [0; 64]).is_ok();
        ensure!(heard == reason.is_none(), "{what}: the pod hears {}", if heard { "it" } else { "nothing" });
        let Some((reason, before)) = reason.zip(before) else { return Ok(()) };
        let counted = within(Duration::from_secs(3), || count(reason) == before + 1);
        ensure!(
            counted,
            "{what}: {reason} was {before} and is {}: {:?}",
            count(reason),
            self.node.status()?.drops
        );
        Ok(())
    }
}

fn tunnel_frames_that_lie_reach_nobody(matrix: &Matrix) -> anyhow::Result<()> {
    tunnel(matrix, &matrix.lab(|_| {})?)
}

fn over_ipv6_neither(matrix: &Matrix) -> anyhow::Result<()> {
    tunnel(matrix, &matrix.lab(|spec| spec.underlay = Underlay::V6)?)
}

fn tunnel(matrix: &Matrix, lab: &Lab) -> anyhow::Result<()> {
    let (pod, n1, n2) = (lab.add_pod("n1", "a")?, lab.node("n1")?, lab.node("n2")?);
    let peer = lab.add_foreign()?;
    ensure!(within(Duration::from_secs(5), || peer.ping(pod.address(Family::V4))), "the peer is not known");
    let scene = Scene::new(peer.namespace(), &pod, lab.node("n1")?)?;
    let outer_macs = (mac(peer.namespace(), "eth0")?, mac(n1.namespace(), "eth0")?);
    let end = |node: &Node| node.plan.node.underlay[0];
    let stranger: IpAddr = match end(&n1) {
        IpAddr::V4(_) => "192.0.2.99".parse()?,
        IpAddr::V6(_) => "2001:db8::99".parse()?,
    };
    let stranger = matrix.sabotage("stranger-known", || end(&peer)).unwrap_or(stranger);
    let send = |from: IpAddr, payload: &[u8]| udp(outer_macs, (from, end(&n1)), 4789, payload);
    for family in Family::BOTH {
        let to = pod.address(family);
        let inner_macs = (peer.plan.node.vtep_mac.0, n1.plan.node.vtep_mac.0);
        let inner = |from: IpAddr| udp(inner_macs, (from, to), PORT, b"lie");
        let honest = inner(foreign_pod(&peer, family));
        let world: IpAddr =
            if family == Family::V4 { "198.51.100.7".parse()? } else { "2001:db8:9::7".parse()? };
        let others_pod = foreign_pod(&n2, family);
        let mut tagged = honest.clone();
        tagged.splice(12..12, [0x81, 0x00, 0x00, 0x07]);
        let mut arp = honest.clone();
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        use DropReason::{
            ForeignInnerSource, InnerNotIp, InnerVlan, NoSuchTunnel, UnknownSender, VxlanWithoutVni,
        };
        let table: Vec<(&str, Vec<u8>, Option<DropReason>)> = vec![
            ("an honest frame", send(end(&peer), &vxlan(8, 0, VNI, &honest)), None),
            ("from an unknown node", send(stranger, &vxlan(8, 0, VNI, &honest)), Some(UnknownSender)),
            ("with a foreign VNI", send(end(&peer), &vxlan(8, 0, 4096, &honest)), Some(NoSuchTunnel)),
            ("without the I flag", send(end(&peer), &vxlan(0, 0, VNI, &honest)), Some(VxlanWithoutVni)),
            (
                "with another node's pod inside",
                send(end(&peer), &vxlan(8, 0, VNI, &inner(others_pod))),
                Some(ForeignInnerSource),
            ),
            (
                "with the victim's own address inside",
                send(end(&peer), &vxlan(8, 0, VNI, &inner(to))),
                Some(ForeignInnerSource),
            ),
            (
                "with the world inside",
                send(end(&peer), &vxlan(8, 0, VNI, &inner(world))),
                Some(ForeignInnerSource),
            ),
            ("with a tagged frame inside", send(end(&peer), &vxlan(8, 0, VNI, &tagged)), Some(InnerVlan)),
            ("with ARP inside", send(end(&peer), &vxlan(8, 0, VNI, &arp)), Some(InnerNotIp)),
            (
                "with a node's own address inside",
                send(end(&peer), &vxlan(8, 0, VNI, &inner(peer.address(family)))),
                None,
            ),
        ];
        for (what, frame, reason) in &table {
            let outcome = match what {
                // A node may be known by fewer addresses than it has.
                &"with a node's own address inside"
                    if !peer.plan.node.underlay.contains(&peer.address(family)) =>
                {
                    Some(ForeignInnerSource)
                }
                _ => *reason,
            };
            scene.judge(&format!("{what}, {family} inside"), frame, outcome)?;
        }
        reserved_bits(&scene, &send(end(&peer), &vxlan(8, 0x10, VNI, &honest)), family)?;
    }
    Ok(())
}

/// Reserved bits are ignored on receipt, unless status says that this kernel cannot.
fn reserved_bits(scene: &Scene, frame: &[u8], family: Family) -> anyhow::Result<()> {
    let strict = scene.node.status()?.limits.iter().any(|limit| limit.contains("reserved"));
    scene.socket.send(frame)?;
    scene.listener.set_read_timeout(Some(10 * SILENCE))?;
    let heard = scene.listener.recv(&mut [0; 64]).is_ok();
    ensure!(
        heard != strict,
        "reserved bits, {family} inside: heard {heard}, while status says strict {strict}"
    );
    Ok(())
}

fn pods_that_lie_reach_nobody(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    lies_of_a_pod(&lab)
}

fn nothing_opens_while_the_agent_is_dead(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let [a, b, c] = [("n1", "a"), ("n1", "b"), ("n2", "c")].map(|(node, pod)| lab.add_pod(node, pod));
    let (a, b, c) = (a?, b?, c?);
    let scene = Scene::new(a.namespace(), &c, lab.node("n1")?)?;
    lab.kill("n1", causeway_tests::lab::Role::Agent)?;
    let own = mac(a.namespace(), "eth0")?;
    for family in Family::BOTH {
        let honest = udp((own, GATEWAY_MAC.0), (a.address(family), c.address(family)), PORT, b"truth");
        scene.judge("an honest frame", &honest, None)?;
        let lie = udp((own, GATEWAY_MAC.0), (b.address(family), c.address(family)), PORT, b"lie");
        scene.socket.send(&lie)?;
        scene.listener.set_read_timeout(Some(SILENCE))?;
        ensure!(scene.listener.recv(&mut [0; 64]).is_err(), "a lie over {family} is heard");
    }
    Ok(())
}

fn lies_of_a_pod(lab: &Lab) -> anyhow::Result<()> {
    let [a, b, c] = [("n1", "a"), ("n1", "b"), ("n2", "c")].map(|(node, pod)| lab.add_pod(node, pod));
    let (a, b, c) = (a?, b?, c?);
    let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
    let scene = Scene::new(a.namespace(), &c, lab.node("n1")?)?;
    let own = mac(a.namespace(), "eth0")?;
    let frame = |source: Mac, from: IpAddr, to: IpAddr, port: u16| {
        udp((source, GATEWAY_MAC.0), (from, to), port, b"lie")
    };
    for family in Family::BOTH {
        let (from, to) = (a.address(family), c.address(family));
        let world: IpAddr =
            if family == Family::V4 { "198.51.100.7".parse()? } else { "2001:db8:9::7".parse()? };
        let stranger = [0x02, 0, 0, 0, 0, 0x99];
        use DropReason::{SpoofedAddress, SpoofedMac, TunnelPortFromPod};
        let table = [
            ("an honest frame", frame(own, from, to, PORT), None),
            ("as a pod of the node", frame(own, b.address(family), to, PORT), Some(SpoofedAddress)),
            (
                "as a pod of another node",
                frame(own, foreign_pod(&n2, family), to, PORT),
                Some(SpoofedAddress),
            ),
            ("as the node", frame(own, n1.address(family), to, PORT), Some(SpoofedAddress)),
            ("as the world", frame(own, world, to, PORT), Some(SpoofedAddress)),
            ("with another's MAC", frame(stranger, from, to, PORT), Some(SpoofedMac)),
            ("to its node's tunnel", frame(own, from, n1.address(family), 4789), Some(TunnelPortFromPod)),
            ("to another node's tunnel", frame(own, from, n2.address(family), 4789), Some(TunnelPortFromPod)),
            (
                "to its gateway's tunnel",
                frame(own, from, n1.overlay_host_address(family), 4789),
                Some(TunnelPortFromPod),
            ),
            (
                "to another gateway's tunnel",
                frame(own, from, n2.overlay_host_address(family), 4789),
                Some(TunnelPortFromPod),
            ),
            ("an honest frame again", frame(own, from, to, PORT), None),
        ];
        for (what, frame, reason) in &table {
            scene.judge(&format!("{what}, {family}"), frame, *reason)?;
        }
    }
    // Nobody else has lied: what the node counts is the pod's.
    let of_node = n1.status()?.drops;
    let of_pod = n1.endpoints()?.into_iter().find(|status| status.endpoint.key == a.key());
    let of_pod = of_pod.context("a is no endpoint")?.counters.drops;
    for reason in [DropReason::SpoofedAddress, DropReason::SpoofedMac, DropReason::TunnelPortFromPod] {
        let (node, pod) = (of_node.get(&reason), of_pod.get(&reason));
        ensure!(node.is_some() && node == pod, "{reason}: {node:?} of the node, {pod:?} of the pod");
    }
    Ok(())
}
