//! F24: later fragments have no ports; they go where the first of their datagram goes, in whatever order they come.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::ensure;
use causeway_model::{DropReason, Family};
use causeway_tests::lab::{Underlay, foreign_pod};
use etherparse::PacketBuilder;

use super::super::stage::{Matrix, within};
use super::HEADER;
use super::inward::Scene;
use super::packets::{ether, fragment, fragments, is_v4, udp};

/// The port that may be spoken to, and one that may not; the port that speaks.
const OPEN: u16 = 53;
const CLOSED: u16 = 54;
const THEIRS: u16 = 4000;
const SILENCE: Duration = Duration::from_millis(150);
const PATIENCE: Duration = Duration::from_secs(2);
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// A pod with two ears, and a peer that sends fragments.
struct Ears {
    scene: Scene,
    open: UdpSocket,
    closed: UdpSocket,
    identification: u16,
}

impl Ears {
    fn new(matrix: &Matrix) -> anyhow::Result<Self> {
        let scene = Scene::new(matrix, Underlay::Both)?;
        // So that the kernel, too, gives up while somebody watches; only on a kernel node it is the one who waits.
        for (path, seconds) in
            [("net/ipv4/ipfrag_time", "2"), ("net/netfilter/nf_conntrack_frag6_timeout", "2")]
        {
            scene.node.namespace().sysctl(path, seconds)?;
        }
        let ear = |port: u16| -> anyhow::Result<UdpSocket> {
            let socket = scene.pod.run(|| UdpSocket::bind(("::", port)))?;
            socket.set_read_timeout(Some(SILENCE))?;
            Ok(socket)
        };
        let (open, closed) = (ear(OPEN)?, ear(CLOSED)?);
        let mut ears = Self { scene, open, closed, identification: 100 };
        // Until everybody knows the peer.
        let known = within(Duration::from_secs(5), || ears.hears(Family::V4, [0, 1, 2]).unwrap_or(false));
        ensure!(known, "nothing comes through");
        Ok(ears)
    }

    /// A datagram of 3,000 bytes to a port, which is cut after 1,200.
    fn datagram(&self, family: Family, port: u16) -> Vec<u8> {
        let ends = (foreign_pod(&self.scene.peer, family), self.scene.pod.address(family));
        let mut payload: Vec<u8> = (0..3000_u32).map(|n| (n * 7 + n / 251).to_le_bytes()[0]).collect();
        // Where the second of its fragments begins stands what would be a header of another one.
        payload[1192..1196].copy_from_slice(&[0x0f, 0xa0, 0, 53]);
        udp(ends, (THEIRS, port), &payload)
    }

    fn next(&mut self) -> u16 {
        self.identification += 1;
        self.identification
    }

    fn send(&self, packet: &[u8]) -> anyhow::Result<()> {
        let outer = self.scene.outer(HEADER, &self.scene.inner(packet));
        Ok(self.scene.wire.send(&ether(self.scene.macs.0, self.scene.macs.1, &outer))?)
    }

    /// Whether a datagram to the open port arrives whole when its fragments come in this order.
    fn hears(&mut self, family: Family, order: [usize; 3]) -> anyhow::Result<bool> {
        let datagram = self.datagram(family, OPEN);
        let pieces = fragments(&datagram, 1200, self.next());
        order.iter().try_for_each(|which| self.send(&pieces[*which]))?;
        let mut heard = [0; 4000];
        let payload = &datagram[if is_v4(&datagram) { 28 } else { 48 }..];
        self.open.set_read_timeout(Some(PATIENCE))?;
        let got = self.open.recv(&mut heard).map_or(&[][..], |length| &heard[..length]);
        self.open.set_read_timeout(Some(SILENCE))?;
        Ok(got == payload)
    }

    /// Sends packets that nobody may hear, and expects them to be counted for this reason, if it is one that this path can tell.
    fn silence(&self, what: &str, packets: &[Vec<u8>], reason: Option<DropReason>) -> anyhow::Result<()> {
        let count = || reason.map_or(Ok(0), |reason| self.scene.node.drops(reason));
        let before = count()?;
        packets.iter().try_for_each(|packet| self.send(packet))?;
        for ear in [&self.open, &self.closed] {
            let heard = ear.recv(&mut [0; 4000]);
            ensure!(heard.is_err(), "{what}: {heard:?} bytes are heard at {:?}", ear.local_addr());
        }
        let counted =
            reason.is_none() || within(Duration::from_secs(6), || count().is_ok_and(|now| now > before));
        ensure!(
            counted,
            "{what}: {reason:?} was {before} and is {}: {:?}",
            count()?,
            self.scene.node.status()?.drops
        );
        Ok(())
    }
}

pub fn fragments_go_where_their_first_goes(matrix: &Matrix) -> anyhow::Result<()> {
    let mut ears = Ears::new(matrix)?;
    for family in Family::BOTH {
        for order in ORDERS {
            ensure!(ears.hears(family, order)?, "before anything is denied, {order:?}, {family}");
        }
        // The last of three fragments has four bytes.
        let headers = if family == Family::V4 { 20 } else { 48 };
        let size = 2 * ((1450 - headers) / 8 * 8) + 4 - 8;
        let far = ears.scene.lab.pod("far").or_else(|_| ears.scene.lab.add_pod("n2", "far"))?;
        let ping = format!("ping -n -c 1 -W 2 -M dont -s {size} {}", far.address(family));
        ensure!(ears.scene.pod.exec(&ping).is_ok(), "an echo of {size} bytes over {family}");
    }
    // The pod speaks from its open port, and takes nothing new from then on.
    for family in Family::BOTH {
        let target = SocketAddr::new(foreign_pod(&ears.scene.peer, family), THEIRS);
        ears.open.send_to(b"speak", target)?;
    }
    matrix.sabotage("deny-new-missing", || ()).map_or_else(
        || ears.scene.lab.annotate(ears.scene.pod.name(), "causeway.dev/deny-new", "true"),
        |()| Ok(()),
    )?;
    let ends = (foreign_pod(&ears.scene.peer, Family::V4), ears.scene.pod.address(Family::V4));
    let before = ears.scene.node.drops(DropReason::DeniedNew)?;
    let in_force = within(Duration::from_secs(3), || {
        // Another flow each time: one that began before goes on.
        let _ = ears.send(&udp(ends, (ears.identification, 9), b"?"));
        ears.identification += 1;
        ears.scene.node.drops(DropReason::DeniedNew).is_ok_and(|now| now > before)
    });
    ensure!(in_force, "deny-new is not in force");
    for (family, order) in Family::BOTH.into_iter().flat_map(|family| ORDERS.map(|order| (family, order))) {
        ensure!(ears.hears(family, order)?, "of a connection that is there, {order:?}, {family}");
        // To the closed port; the second fragment reads like a datagram to the open one.
        let pieces = fragments(&ears.datagram(family, CLOSED), 1200, ears.next());
        let packets: Vec<_> = order.iter().map(|which| pieces[*which].clone()).collect();
        ears.silence(&format!("denied, {order:?}, {family}"), &packets, Some(DropReason::DeniedNew))?;
    }
    Ok(())
}

pub fn fragments_that_lie_reach_nobody(matrix: &Matrix) -> anyhow::Result<()> {
    let mut ears = Ears::new(matrix)?;
    for family in Family::BOTH {
        let datagram = ears.datagram(family, OPEN);
        let header = if is_v4(&datagram) { 20 } else { 40 };
        let pieces = fragments(&datagram, 1200, ears.next());
        ears.silence(&format!("a lone fragment, {family}"), &pieces[1..2], Some(DropReason::LoneFragment))?;
        let identification = ears.next();
        let pieces = fragments(&datagram, 1200, identification);
        let overlapping =
            fragment(&datagram, (800, &datagram[header + 800..header + 2000]), true, identification);
        let packets = [pieces[0].clone(), overlapping, pieces[1].clone(), pieces[2].clone()];
        // The kernel does not count this over IPv6.
        let told = ears.scene.fast || family == Family::V4;
        ears.silence(
            &format!("overlapping fragments, {family}"),
            &packets,
            told.then_some(DropReason::BadFragment),
        )?;
        let segment = segment(&ears, family)?;
        let identification = ears.next();
        let tiny = fragments(&segment, 8, identification);
        ears.silence(
            &format!("a TCP header in pieces, {family}"),
            &tiny[..1],
            Some(DropReason::BadFragment),
        )?;
        ears.silence(
            &format!("a TCP header's second piece, {family}"),
            &tiny[1..2],
            Some(DropReason::BadFragment),
        )?;
        ensure!(ears.hears(family, [2, 1, 0])?, "a good datagram after all that, {family}");
    }
    Ok(())
}

/// A segment that would begin a connection with the pod.
fn segment(ears: &Ears, family: Family) -> anyhow::Result<Vec<u8>> {
    use std::net::IpAddr::{V4, V6};
    let mut bytes = Vec::new();
    match (foreign_pod(&ears.scene.peer, family), ears.scene.pod.address(family)) {
        (V4(from), V4(to)) => {
            let ip = PacketBuilder::ipv4(from.octets(), to.octets(), 64);
            ip.tcp(THEIRS, OPEN, 1, 1000).syn().write(&mut bytes, &[1; 40])?;
        }
        (V6(from), V6(to)) => {
            let ip = PacketBuilder::ipv6(from.octets(), to.octets(), 64);
            ip.tcp(THEIRS, OPEN, 1, 1000).syn().write(&mut bytes, &[1; 40])?;
        }
        mixed => anyhow::bail!("{mixed:?} are of two families"),
    }
    Ok(bytes)
}
