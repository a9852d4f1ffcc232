//! F23 beyond the first link: a path that carries less is learned, and pods are told.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use causeway_model::Family;
use causeway_tests::lab::Underlay;
use causeway_wire::IpProtocol;
use causeway_wire::checksum::{internet, transport_v6};
use etherparse::PacketBuilder;

use super::super::spoof::mac;
use super::super::stage::{Matrix, within};
use super::outward::{Scene, error_of};
use super::packets::{Seen, ether, is_v4, joined, with};

/// Inside, the narrow path carries so much.
const NARROW: usize = 1350;
/// How long a kernel node may take: its agent looks every few seconds.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn over_ipv4(matrix: &Matrix) -> anyhow::Result<()> {
    all(matrix, Underlay::Both)
}

pub fn over_ipv6(matrix: &Matrix) -> anyhow::Result<()> {
    all(matrix, Underlay::V6)
}

/// A packet of the pod of so many bytes, that may not be cut.
fn long(scene: &Scene, family: Family, bytes: usize) -> Vec<u8> {
    scene.udp(family, 53, &vec![1; bytes - if family == Family::V4 { 28 } else { 48 }])
}

/// What a router between the nodes says of an outer packet.
fn says(ends: (IpAddr, IpAddr), outer: &[u8], mtu: usize) -> anyhow::Result<Vec<u8>> {
    let quote = &outer[..outer.len().min(500)];
    let mtu = u16::try_from(mtu)?.to_be_bytes();
    let mut bytes = Vec::new();
    match ends.0 {
        IpAddr::V4(own) => {
            let message = [&[3, 4, 0, 0, 0, 0, mtu[0], mtu[1]][..], quote].concat();
            let mut message = message;
            let sum = internet(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            let router = [192, 0, 2, 250];
            PacketBuilder::ipv4(router, own.octets(), 64).write(
                &mut bytes,
                etherparse::IpNumber::ICMP,
                &message,
            )?;
        }
        IpAddr::V6(own) => {
            let mut message = [&[2, 0, 0, 0, 0, 0, mtu[0], mtu[1]][..], quote].concat();
            let router: std::net::Ipv6Addr = "2001:db8::fa".parse()?;
            let sum = transport_v6(router, own, IpProtocol::ICMPV6, &message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            let ip = PacketBuilder::ipv6(router.octets(), own.octets(), 64);
            ip.write(&mut bytes, etherparse::IpNumber::IPV6_ICMP, &message)?;
        }
    }
    Ok(bytes)
}

/// Sends a packet until its sender is told of a smaller MTU; which one.
fn told(scene: &Scene, packet: &[u8], patience: Duration) -> anyhow::Result<Option<usize>> {
    let family = if is_v4(packet) { Family::V4 } else { Family::V6 };
    let deadline = Instant::now() + patience;
    loop {
        while scene.mouth.receive(Duration::ZERO)?.is_some() {}
        scene.sends(packet, 0)?;
        while let Some(frame) = scene.mouth.receive(Duration::ZERO)? {
            if let Some((mtu, quote)) = error_of(&frame, family) {
                ensure!(quote.len() >= 28, "a quote of {} bytes", quote.len());
                return Ok(Some(mtu));
            }
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
    }
}

fn all(matrix: &Matrix, underlay: Underlay) -> anyhow::Result<()> {
    let scene = Scene::new(matrix, underlay)?;
    let far = scene.lab.add_pod("n2", "c")?;
    let overhead = usize::from(Family::of(scene.ends().0).tunnel_overhead());
    for family in Family::BOTH {
        let what = || format!("{family} inside");
        // A router on the way.
        let packet = long(&scene, family, 1400);
        let outer = whole(&scene, &packet).with_context(what)?;
        let router = says(scene.ends(), &outer, NARROW + overhead)?;
        let macs = (mac(scene.node.namespace(), "eth0")?, mac(scene.peer.namespace(), "eth0")?);
        if matrix.sabotage("narrow-unsaid", || ()).is_none() {
            scene.wire.send(&ether(macs.0, macs.1, &router))?;
        }
        learned(&scene, family, overhead).with_context(what)?;
        // Other nodes' paths are others.
        let wide = format!(
            "ping -n -c 1 -W 2 -M do -s {} {}",
            1400 - if family == Family::V4 { 28 } else { 48 },
            far.address(family)
        );
        ensure!(scene.pod.exec(&wide).is_ok(), "{}: the path to another node has become narrow, too", what());
        if family == Family::V4 {
            // For the next family nothing is known any more.
            forget(&scene)?;
        }
    }
    Ok(())
}

/// The outer packet that a packet of the pod becomes.
fn whole(scene: &Scene, packet: &[u8]) -> anyhow::Result<Vec<u8>> {
    let seen = scene.sends(packet, 1)?.pop().context("nothing comes of it")?;
    Ok(seen.outer)
}

/// The pod is told, what fits passes, what may be cut is, inside.
fn learned(scene: &Scene, family: Family, overhead: usize) -> anyhow::Result<()> {
    let says = told(scene, &long(scene, family, 1400), PATIENCE)?;
    ensure!(says == Some(NARROW), "the pod is told {says:?}");
    let shown = || -> anyhow::Result<Vec<u16>> {
        Ok(scene.node.status()?.peers.iter().filter_map(|peer| peer.path_mtu).collect())
    };
    ensure!(
        within(PATIENCE, || shown().is_ok_and(|shown| shown == [NARROW as u16])),
        "status shows {:?}",
        shown()?
    );
    let seen = scene.sends(&long(scene, family, NARROW), 1)?;
    ensure!(seen.len() == 1 && seen[0].len == NARROW + overhead, "what just fits: {} frames", seen.len());
    if family == Family::V4 {
        let packet = with(long(scene, family, 1400), 6, &[0, 0]);
        let seen = scene.sends(&packet, 2)?;
        ensure!(seen.len() == 2 && seen.iter().all(|seen| seen.len <= NARROW + overhead), "{seen:02x?}");
        let pieces: Vec<_> = seen.iter().map(Seen::packet).collect();
        ensure!(joined(&pieces)? == packet[20..], "another payload");
    }
    Ok(())
}

/// Makes the node forget: a fast path by dying, the kernel by being told to.
fn forget(scene: &Scene) -> anyhow::Result<()> {
    use causeway_tests::lab::Role::Fastpath;
    if scene.lab.process(scene.node.name(), Fastpath)?.is_some() {
        scene.lab.kill(scene.node.name(), Fastpath)?;
        scene.lab.start(scene.node.name(), Fastpath)?;
    }
    scene.node.exec("ip -4 route flush cache")?;
    scene.node.exec("ip -6 route flush cache")?;
    let packet = long(scene, Family::V4, 1400);
    let wide = within(PATIENCE, || scene.sends(&packet, 1).is_ok_and(|seen| seen.len() == 1));
    ensure!(wide, "a path stays narrow although nobody says so any more");
    Ok(())
}

/// The node's own route is the narrow place.
pub fn a_narrow_route_of_the_node_is_learned(matrix: &Matrix) -> anyhow::Result<()> {
    for underlay in [Underlay::Both, Underlay::V6] {
        let scene = Scene::new(matrix, underlay)?;
        let overhead = usize::from(Family::of(scene.ends().0).tunnel_overhead());
        let (to, mtu) = (scene.ends().1, NARROW + overhead);
        let length = if to.is_ipv4() { 32 } else { 128 };
        scene.node.exec(&format!("ip route add {to}/{length} dev eth0 mtu {mtu}"))?;
        for family in Family::BOTH {
            learned(&scene, family, overhead)
                .with_context(|| format!("{family} inside, underlay {underlay}"))?;
        }
    }
    Ok(())
}
