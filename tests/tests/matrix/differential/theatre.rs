//! Where sequences are played: a lab of one data path, and everything that is seen and counted in it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use causeway_model::{DropReason, Family};
use causeway_tests::lab::{Datapath, Lab, Node, PodSpec, foreign_pod};
use causeway_tests::packet_socket::PacketSocket;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::super::spoof::{Mac, mac};
use super::super::stage::{Matrix, within};
use super::super::tunnel::configured;
use super::super::tunnel::packets::Seen;
use super::craft::{Cast, Play};
use super::sequence::{PAIRS, Sequence, Who};

/// How long anything may be on its way.
const PATIENCE: Duration = Duration::from_secs(3);
/// Sentinels are repeated after this: one that is lost on a busy machine says nothing.
const AGAIN: Duration = Duration::from_millis(300);

/// A lab, and everybody who plays in it.
pub struct Theatre {
    pub datapath: Datapath,
    pub lab: Lab,
    pub cast: Cast,
    nodes: [Node; 2],
    sockets: Vec<PacketSocket>,
    sentinels: AtomicU32,
}

/// A frame that came to somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub at: Who,
    /// As the pod gets it; of the peer, what was in the tunnel.
    pub frame: Vec<u8>,
    /// Whether it is from nobody who plays here: a node says something.
    pub from_node: bool,
    /// What of the outer headers both paths must agree on.
    pub outer: Option<String>,
}

/// What became of a sequence.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// By step, in order.
    pub arrivals: Vec<Vec<Arrival>>,
    /// What each node has counted.
    pub drops: Drops,
    /// What each node has counted by step, when it was asked after each.
    pub drops_by_step: Vec<Drops>,
}

pub type Drops = BTreeMap<(usize, DropReason), u64>;

impl Theatre {
    pub fn new(matrix: &Matrix, datapath: Datapath) -> anyhow::Result<Self> {
        let lab = matrix.lab(|spec| {
            spec.datapath = datapath;
            spec.config = configured();
            // Sentinels are of connections that go on for ever.
            spec.config.push("connection_timeouts: {udp: 3600, udp-stream: 3600}".into());
        })?;
        let peer = lab.add_foreign()?;
        let nodes = [lab.node("n1")?, lab.node("n2")?];
        let mut addresses = [[IpAddr::from([0; 4]); 2]; Who::ALL.len()];
        let (mut macs, mut sockets) = ([[0; 6]; Who::ALL.len()], Vec::new());
        for (number, who) in Who::ALL.into_iter().enumerate() {
            if who == Who::Peer {
                addresses[number] = Family::BOTH.map(|family| foreign_pod(&peer, family));
                sockets.push(peer.run(|| PacketSocket::open("eth0"))?);
                continue;
            }
            let (node, last) = (if who == Who::Far { 2 } else { 1 }, number + 20);
            let own = [format!("10.70.{node}.{last}"), format!("fd70:0:0:{node}::{last:x}")];
            let spec = PodSpec::named(format!("{who:?}").to_lowercase())
                .annotation("causeway.dev/addresses", &own.join(", "))
                .annotation("causeway.dev/mac", &format!("02:00:00:00:05:{number:02x}"));
            let pod = lab.add_pod(&format!("n{node}"), spec)?;
            addresses[number] = Family::BOTH.map(|family| pod.address(family));
            macs[number] = mac(pod.namespace(), "eth0")?;
            // Its own stack neither answers nor begins anything, and sends what is too long.
            pod.namespace().sysctl("net/ipv6/conf/eth0/router_solicitations", "0")?;
            pod.exec("ip link set eth0 mtu 1500")?;
            let deaf = "table netdev deaf { chain in { type filter hook ingress device \"eth0\" priority 0; policy drop; }\n}\n";
            pod.namespace().stdout(&mut causeway_tests::command::parse("nft -f -"), deaf.as_bytes())?;
            sockets.push(pod.run(|| PacketSocket::open("eth0"))?);
        }
        for node in &nodes {
            // Otherwise what a node says of one packet depends on how many came before.
            node.namespace().sysctl("net/ipv4/icmp_ratelimit", "0")?;
            node.namespace().sysctl("net/ipv6/icmp/ratelimit", "0")?;
        }
        let cast = Cast {
            addresses,
            macs,
            node: Family::BOTH.map(|family| nodes[0].address(family)),
            underlay: [nodes[0].plan.node.underlay[0], peer.plan.node.underlay[0]],
            outer_macs: outer_macs(&nodes[0], &peer)?,
            vtep_macs: [nodes[0].plan.node.vtep_mac.0, peer.plan.node.vtep_mac.0],
        };
        let theatre = Self { datapath, lab, cast, nodes, sockets, sentinels: AtomicU32::new(0) };
        theatre.rehearse()?;
        Ok(theatre)
    }

    /// Everybody speaks to everybody, and from then on one takes nothing new.
    fn rehearse(&self) -> anyhow::Result<()> {
        for (family, ends) in Family::BOTH.into_iter().flat_map(|family| PAIRS.map(|ends| (family, ends))) {
            let sequence = Sequence { family, ends, steps: vec![] };
            self.round(&Play { cast: &self.cast, sequence: &sequence, number: 0 }, 0)?;
        }
        self.lab.annotate("closed", "causeway.dev/deny-new", "true")?;
        let denied = || self.nodes[0].drops(DropReason::DeniedNew);
        let before = denied()?;
        let sequence = Sequence { family: Family::V4, ends: [Who::B, Who::Closed], steps: vec![] };
        let play = Play { cast: &self.cast, sequence: &sequence, number: 0 };
        let in_force = || {
            let _ = self.send(Who::B, &play.sentinel(0, 0));
            denied().is_ok_and(|now| now > before)
        };
        ensure!(within(PATIENCE, in_force), "deny-new is not in force");
        Ok(())
    }

    fn send(&self, from: Who, frame: &[u8]) -> anyhow::Result<()> {
        Ok(self.sockets[from as usize].send(frame)?)
    }

    /// Plays a sequence; asked to count by step, it takes longer.
    pub fn play(&self, sequence: &Sequence, number: u16, by_step: bool) -> anyhow::Result<Outcome> {
        pin()?;
        let play = Play { cast: &self.cast, sequence, number };
        // Who takes nothing new speaks first.
        let first = usize::from(sequence.ends[1] == Who::Closed);
        self.round(&play, first)?;
        for who in Who::ALL {
            while self.sockets[who as usize].receive(Duration::ZERO)?.is_some() {}
        }
        let before = self.drops()?;
        let (mut arrivals, mut drops_by_step, mut last) = (Vec::new(), Vec::new(), before.clone());
        for (index, step) in sequence.steps.iter().enumerate() {
            for frame in play.frames(index) {
                self.send(sequence.ends[step.from], &frame)?;
            }
            arrivals.push(self.round(&play, step.from)?);
            if by_step {
                let now = self.drops()?;
                drops_by_step.push(difference(&last, &now));
                last = now;
            }
        }
        for who in Who::ALL.into_iter().filter(|who| !sequence.ends.contains(who)) {
            while let Some(frame) = self.sockets[who as usize].receive(Duration::ZERO)? {
                let seen = self.arrival(who, frame);
                arrivals.last_mut().into_iter().for_each(|last| last.extend(seen.clone()));
            }
        }
        let drops = difference(&before, &self.drops()?);
        Ok(Outcome { arrivals, drops, drops_by_step })
    }

    /// What each node has counted so far.
    pub fn drops(&self) -> anyhow::Result<Drops> {
        let mut drops = Drops::new();
        for (number, node) in self.nodes.iter().enumerate() {
            for (reason, count) in node.status()?.drops {
                drops.insert((number + 1, reason), count.packets);
            }
        }
        Ok(drops)
    }

    /// Sends a sentinel one way, then one the other, and returns all that came before them.
    fn round(&self, play: &Play<'_>, first: usize) -> anyhow::Result<Vec<Arrival>> {
        let mut arrivals = Vec::new();
        for from in [first, 1 - first] {
            let number = self.sentinels.fetch_add(1, Ordering::Relaxed) + 1;
            let (sentinel, ends) = (play.sentinel(from, number), play.sequence.ends);
            let deadline = Instant::now() + PATIENCE;
            let mut came = false;
            while !came {
                ensure!(
                    Instant::now() < deadline,
                    "{}: what {:?} sends does not come to {:?} any more: {:?}",
                    self.datapath,
                    ends[from],
                    ends[1 - from],
                    self.drops()?
                );
                self.send(ends[from], &sentinel)?;
                came = self.collect(play, 1 - from, number, &mut arrivals)?;
            }
            // What was said to the sender itself, and lies there already.
            while let Some(frame) = self.sockets[ends[from] as usize].receive(Duration::ZERO)? {
                self.note(play, ends[from], frame, &mut arrivals);
            }
        }
        Ok(arrivals)
    }

    /// Notes what comes to an end until this sentinel does; false when it does not.
    fn collect(
        &self,
        play: &Play<'_>,
        end: usize,
        number: u32,
        arrivals: &mut Vec<Arrival>,
    ) -> anyhow::Result<bool> {
        let (who, deadline) = (play.sequence.ends[end], Instant::now() + AGAIN);
        let socket = &self.sockets[who as usize];
        while let Some(frame) = socket.receive(deadline.saturating_duration_since(Instant::now()))? {
            if self.note(play, who, frame, arrivals) == Some(number) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn note(&self, play: &Play<'_>, who: Who, frame: Vec<u8>, arrivals: &mut Vec<Arrival>) -> Option<u32> {
        let arrival = self.arrival(who, frame)?;
        let sentinel = play.sentinel_in(&arrival.frame);
        if sentinel.is_none() {
            arrivals.push(arrival);
        }
        sentinel
    }

    /// What a frame is to whom it came to; nothing when it is the chatter of a link.
    fn arrival(&self, at: Who, frame: Vec<u8>) -> Option<Arrival> {
        if at != Who::Peer {
            let from_node = self.is_from_node(&frame);
            return (!is_chatter(&frame)).then_some(Arrival { at, frame, from_node, outer: None });
        }
        let [node, peer] = self.cast.underlay;
        let seen = Seen::of(&frame, (node, peer))?;
        let sum = if seen.checksum == 0 {
            "none"
        } else if seen.checksum == seen.right_checksum {
            "right"
        } else {
            "wrong"
        };
        let outer = format!(
            "class {:02x}, flags {:04x}, checksum {sum}, vxlan {:02x?}",
            seen.class, seen.fragment, seen.vxlan
        );
        let from_node = self.is_from_node(&seen.inner);
        (!is_chatter(&seen.inner)).then_some(Arrival { at, frame: seen.inner, from_node, outer: Some(outer) })
    }

    fn is_from_node(&self, frame: &[u8]) -> bool {
        let source = match frame.get(12..14) {
            Some([8, 0]) => frame.get(26..30).and_then(|a| <[u8; 4]>::try_from(a).ok()).map(IpAddr::from),
            _ => frame.get(22..38).and_then(|a| <[u8; 16]>::try_from(a).ok()).map(IpAddr::from),
        };
        source.is_some_and(|source| !self.cast.addresses.iter().flatten().any(|address| *address == source))
    }
}

/// ARP, and the neighbours' and listeners' messages of IPv6 (RFC 4861, RFC 3810).
fn is_chatter(frame: &[u8]) -> bool {
    let word = |at: usize| frame.get(at..at + 2).unwrap_or_default();
    let is_v6 = word(12) == [0x86, 0xdd];
    let neighbours = |at: usize| frame.get(at).is_some_and(|kind| (130..=143).contains(kind));
    word(12) == [8, 6]
        || is_v6 && frame.get(20) == Some(&58) && neighbours(54)
        || is_v6 && frame.get(20) == Some(&0) && neighbours(62)
}

fn outer_macs(node: &Node, peer: &Node) -> anyhow::Result<[Mac; 2]> {
    Ok([mac(node.namespace(), "eth0")?, mac(peer.namespace(), "eth0")?])
}

fn difference(before: &Drops, after: &Drops) -> Drops {
    let since = |(key, now): (&(usize, DropReason), &u64)| {
        let more = now - before.get(key).copied().unwrap_or_default();
        (more > 0).then_some((*key, more))
    };
    after.iter().filter_map(since).collect()
}

/// Keeps this thread on one CPU: what it sends from another may overtake what still waits on the first.
fn pin() -> anyhow::Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let mut one = CpuSet::new();
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    one.set(first.context("no CPU is allowed")?)?;
    Ok(sched_setaffinity(this, &one)?)
}
