//! Tunnel frames come in: each is delivered as it must be, or reaches nobody and is counted.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use causeway_model::{DropReason, Family, GATEWAY_MAC, TunnelOwner};
use causeway_tests::lab::{Lab, Node, Pod, Underlay, foreign_pod};
use causeway_tests::packet_socket::PacketSocket;

use super::super::spoof::{Mac, mac};
use super::super::stage::{Matrix, within};
use super::packets::{Checksum, ether, forwarded, fragments, is_v4, outer, udp, with, with_class};
use super::{HEADER, configured, lose_marks};

/// The port that the pod listens on.
const PORT: u16 = 7777;
/// How long silence must last.
const SILENCE: Duration = Duration::from_millis(80);
const PATIENCE: Duration = Duration::from_secs(2);

/// What must become of a frame.
#[derive(Clone)]
enum Fate {
    /// The pod gets this packet.
    Arrives(Vec<u8>),
    /// Nobody gets it, and it is counted: under the first name on the fast path, the second on the kernel's.
    Counted(DropReason, DropReason),
    /// Nobody gets it. It is no frame of the tunnel by itself.
    Vanishes,
}

fn counted(reason: DropReason) -> Fate {
    Fate::Counted(reason, reason)
}

/// A peer that sends whatever it likes, and a pod that is looked at.
pub(super) struct Scene {
    pub(super) lab: Lab,
    pub(super) peer: Node,
    pub(super) node: Node,
    pub(super) pod: Pod,
    pub(super) wire: PacketSocket,
    ear: PacketSocket,
    pub(super) fast: bool,
    pub(super) macs: (Mac, Mac),
    _listener: UdpSocket,
}

impl Scene {
    pub(super) fn new(matrix: &Matrix, underlay: Underlay) -> anyhow::Result<Self> {
        let lab = matrix.lab(|spec| (spec.underlay, spec.config) = (underlay, configured()))?;
        let (pod, node, peer) = (lab.add_pod("n1", "a")?, lab.node("n1")?, lab.add_foreign()?);
        lose_marks(matrix, &node)?;
        Ok(Self {
            wire: peer.run(|| PacketSocket::open("eth0"))?,
            ear: pod.run(|| PacketSocket::open("eth0"))?,
            fast: node.status()?.path.tunnel == TunnelOwner::FastPath,
            macs: (mac(node.namespace(), "eth0")?, mac(peer.namespace(), "eth0")?),
            // What arrives is not answered.
            _listener: pod.run(|| UdpSocket::bind(("::", PORT)))?,
            lab,
            peer,
            node,
            pod,
        })
    }

    fn ends(&self) -> (IpAddr, IpAddr) {
        (self.peer.plan.node.underlay[0], self.node.plan.node.underlay[0])
    }

    /// A packet of the peer's pod to ours.
    fn packet(&self, family: Family) -> Vec<u8> {
        udp((foreign_pod(&self.peer, family), self.pod.address(family)), (4000, PORT), b"what the peer says")
    }

    /// The inner frame around a packet.
    pub(super) fn inner(&self, packet: &[u8]) -> Vec<u8> {
        ether(self.node.plan.node.vtep_mac.0, self.peer.plan.node.vtep_mac.0, packet)
    }

    pub(super) fn outer(&self, vxlan: [u8; 8], inner: &[u8]) -> Vec<u8> {
        outer(self.ends(), vxlan, inner, Checksum::Right)
    }

    /// Sends an outer packet and returns what the pod gets of it.
    fn arrives(&self, packet: &[u8], patience: Duration) -> anyhow::Result<Option<Vec<u8>>> {
        while self.ear.receive(Duration::ZERO)?.is_some() {}
        self.wire.send(&ether(self.macs.0, self.macs.1, packet))?;
        let deadline = Instant::now() + patience;
        while let Some(frame) = self.ear.receive(deadline.saturating_duration_since(Instant::now()))? {
            let udp = if is_v4(&frame[14..]) { frame.get(23) } else { frame.get(20) };
            if frame[6..12] == GATEWAY_MAC.0 && udp == Some(&17) {
                return Ok(Some(frame[14..].to_vec()));
            }
        }
        Ok(None)
    }

    fn judge(&self, what: &str, packet: &[u8], fate: &Fate) -> anyhow::Result<()> {
        let reason = match fate {
            Fate::Counted(fast, _) if self.fast => Some(*fast),
            Fate::Counted(_, kernel) => Some(*kernel),
            Fate::Arrives(_) | Fate::Vanishes => None,
        };
        let count = || reason.map_or(Ok(0), |reason| self.node.drops(reason));
        let before = count()?;
        let patience = if matches!(fate, Fate::Arrives(_)) { PATIENCE } else { SILENCE };
        let got = self.arrives(packet, patience).with_context(|| what.to_owned())?;
        if let Fate::Arrives(right) = fate {
            ensure!(got.as_ref() == Some(right), "{what}: the pod gets {got:02x?}, not {right:02x?}");
            return Ok(());
        }
        ensure!(got.is_none(), "{what}: the pod gets {got:02x?}");
        let Some(reason) = reason else { return Ok(()) };
        let once = within(PATIENCE, || count().is_ok_and(|now| now == before + 1));
        ensure!(once, "{what}: {reason} was {before} and is {}: {:?}", count()?, self.node.status()?.drops);
        let good = self.packet(Family::V4);
        let next = self.arrives(&self.outer(HEADER, &self.inner(&good)), PATIENCE)?;
        ensure!(next == Some(forwarded(good)), "{what}: the next good frame is lost: {next:02x?}");
        Ok(())
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
    let strict = scene.node.status()?.limits.iter().any(|limit| limit.contains("reserved bits"));
    ensure!(!strict, "this kernel does not ignore reserved bits");
    // Until everybody knows the peer.
    let good = scene.outer(HEADER, &scene.inner(&scene.packet(Family::V4)));
    let known = || scene.arrives(&good, SILENCE).is_ok_and(|got| got.is_some());
    ensure!(within(Duration::from_secs(5), known), "nothing comes through");
    for family in Family::BOTH {
        let cases = [headers(&scene, family), payloads(&scene, family), marks(&scene, family)].concat();
        for (what, packet, fate) in cases {
            scene.judge(&format!("{what}, {family} inside"), &packet, &fate)?;
        }
    }
    for (what, packet, fate) in checksums(&scene) {
        scene.judge(what, &packet, &fate)?;
    }
    // F18(d)
    scene.lab.set_known(scene.peer.name(), false)?;
    let forgotten = || scene.arrives(&good, SILENCE).is_ok_and(|got| got.is_none());
    ensure!(within(Duration::from_secs(5), forgotten), "a removed node is heard for ever");
    let unknown = scene.node.drops(DropReason::UnknownSender)?;
    ensure!(scene.arrives(&good, SILENCE)?.is_none(), "a removed node is heard");
    let risen = || scene.node.drops(DropReason::UnknownSender).is_ok_and(|now| now > unknown);
    ensure!(within(PATIENCE, risen), "a removed node is not counted as unknown-sender");
    Ok(())
}

type Case = (&'static str, Vec<u8>, Fate);

/// F17 and F18: the VXLAN header and who sends it.
fn headers(scene: &Scene, family: Family) -> Vec<Case> {
    let packet = scene.packet(family);
    let inner = scene.inner(&packet);
    let arrives = || Fate::Arrives(forwarded(packet.clone()));
    let ours = |header| scene.outer(header, &inner);
    let stranger: IpAddr = if scene.ends().0.is_ipv4() {
        [203, 0, 113, 9].into()
    } else {
        [0x2001, 0xdb8, 9, 0, 0, 0, 0, 9].into()
    };
    let strange = outer((stranger, scene.ends().1), HEADER, &inner, Checksum::Right);
    vec![
        ("F17(a) the I flag alone", ours(HEADER), arrives()),
        ("F17(b) every flag", ours([0xff, 0, 0, 0, 0, 0x10, 0, 0]), arrives()),
        ("F17(c) reserved bytes", ours([8, 0xab, 0xcd, 0xef, 0, 0x10, 0, 0x55]), arrives()),
        ("F17(d) no flag", ours([0, 0, 0, 0, 0, 0x10, 0, 0]), counted(DropReason::VxlanWithoutVni)),
        (
            "F17(e) every other flag",
            ours([0xf7, 0, 0, 0, 0, 0x10, 0, 0]),
            counted(DropReason::VxlanWithoutVni),
        ),
        ("F18(a) network 4097", ours([8, 0, 0, 0, 0, 0x10, 1, 0]), counted(DropReason::NoSuchTunnel)),
        ("F18(b) network 0", ours([8, 0, 0, 0, 0, 0, 0, 0]), counted(DropReason::NoSuchTunnel)),
        ("F18(c) a stranger", strange, counted(DropReason::UnknownSender)),
    ]
}

/// F19: what is cut short, fragmented or tagged.
fn payloads(scene: &Scene, family: Family) -> Vec<Case> {
    let packet = scene.packet(family);
    let (inner, header) = (scene.inner(&packet), if scene.ends().0.is_ipv4() { 20 } else { 40 });
    let ours = |inner: &[u8]| scene.outer(HEADER, inner);
    let udp_length = |length: u16| with(ours(&inner), header + 4, &length.to_be_bytes());
    let (at, longer) = match family {
        Family::V4 => (2, packet.len() + 8),
        Family::V6 => (4, packet.len() - 40 + 8),
    };
    let longer = u16::try_from(longer).unwrap_or_else(|_| unreachable!("a short packet"));
    let longer = with(packet.clone(), at, &longer.to_be_bytes());
    let tagged = |id: u8| [&inner[..12], &[0x81, 0, 0, id], &inner[12..]].concat();
    let pieces = fragments(&ours(&inner), 40, 0x1717);
    let stranger = ether([2, 0, 0, 0, 0, 0x77], scene.peer.plan.node.vtep_mac.0, &packet);
    use DropReason::{InnerVlan, KernelMalformed, Malformed, NotForUs, OuterFragment};
    vec![
        ("F19(a) a UDP length of 8", udp_length(8), counted(Malformed)),
        (
            "F19(b) a UDP length beyond the packet",
            udp_length(1000),
            Fate::Counted(Malformed, KernelMalformed),
        ),
        ("F19(c) thirteen bytes of inner frame", ours(&inner[..13]), counted(Malformed)),
        ("F19(d) ten bytes of inner packet", ours(&inner[..24]), counted(Malformed)),
        (
            "F19(e) an inner length beyond the bytes",
            ours(&scene.inner(&longer)),
            Fate::Counted(Malformed, KernelMalformed),
        ),
        ("F19(f) a first fragment", pieces[0].clone(), counted(OuterFragment)),
        ("F19(f) a later fragment", pieces[1].clone(), Fate::Vanishes),
        ("F19(g) an inner tag of network 5", ours(&tagged(5)), counted(InnerVlan)),
        ("F19(h) an inner tag of network 0", ours(&tagged(0)), counted(InnerVlan)),
        ("for another hardware address", ours(&stranger), counted(NotForUs)),
    ]
}

/// F20: the outer checksum.
fn checksums(scene: &Scene) -> Vec<Case> {
    let packet = scene.packet(Family::V4);
    let inner = scene.inner(&packet);
    let summed = |checksum| outer(scene.ends(), HEADER, &inner, checksum);
    let arrives = Fate::Arrives(forwarded(packet));
    let wrong = Fate::Counted(DropReason::OuterChecksum, DropReason::KernelMalformed);
    if scene.ends().0.is_ipv4() {
        vec![
            ("F20(a) no checksum", summed(Checksum::This(0)), arrives.clone()),
            ("F20(b) the right checksum", summed(Checksum::Right), arrives),
            ("F20(c) a wrong checksum", summed(Checksum::This(0xdead)), wrong),
        ]
    } else {
        vec![
            ("F20(d) no checksum over IPv6", summed(Checksum::This(0)), counted(DropReason::OuterChecksum)),
            ("F20(e) the right checksum over IPv6", summed(Checksum::Right), arrives),
            ("a wrong checksum over IPv6", summed(Checksum::This(0xdead)), wrong),
        ]
    }
}

/// F22: all pairs of congestion bits, as RFC 6040 §4.2 has them; the code point inside stays.
fn marks(scene: &Scene, family: Family) -> Vec<Case> {
    // Rows: inside Not-ECT, ECT(1), ECT(0), CE; columns: the same outside.
    const RIGHT: [[Option<u8>; 4]; 4] = [
        [Some(0), Some(0), Some(0), None],
        [Some(1), Some(1), Some(1), Some(3)],
        [Some(2), Some(1), Some(2), Some(3)],
        [Some(3), Some(3), Some(3), Some(3)],
    ];
    let case = |inside: u8, outside: u8| {
        let packet = with_class(scene.packet(family), 0xb8 | inside);
        let frame = with_class(scene.outer(HEADER, &scene.inner(&packet)), 0x40 | outside);
        let fate = match RIGHT[usize::from(inside)][usize::from(outside)] {
            Some(mark) => Fate::Arrives(forwarded(with_class(packet, 0xb8 | mark))),
            None => counted(DropReason::EcnNotCapable),
        };
        ("F22 congestion bits", frame, fate)
    };
    (0..4).flat_map(|inside| (0..4).map(move |outside| case(inside, outside))).collect()
}

/// F18(e): a second device of the host's own, on the same port.
pub fn another_tunnel_of_the_node_goes_on(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.config = configured())?;
    let (node, pod, far) = (lab.node("n1")?, lab.add_pod("n1", "a")?, lab.add_pod("n2", "c")?);
    let peer = lab.add_foreign()?;
    for (number, this, other) in [(1, &node, &peer), (2, &peer, &node)] {
        let remote = other.address(Family::V4);
        this.exec(&format!("ip link add other type vxlan id 555000 dstport 4789 remote {remote} dev eth0"))?;
        this.exec(&format!("ip addr add 172.30.0.{number}/24 dev other"))?;
        this.exec("ip link set other up")?;
    }
    ensure!(within(PATIENCE, || node.ping([172, 30, 0, 2].into())), "the host's own tunnel is dead");
    for family in Family::BOTH {
        ensure!(pod.ping(far.address(family)), "our own tunnel is dead over {family}");
    }
    Ok(())
}
