//! Whole frames and several workers: no checksum is wrong on any wire, memory is bounded, one flow keeps one order.

use std::time::Duration;

use anyhow::{Context, ensure};
use causeway_model::operator::{FastpathStatus, Status};
use causeway_model::{DropReason, Family};
use causeway_tests::capture::{Capture, Recording};
use causeway_tests::lab::{Datapath, Lab, LabSpec, Node, Pod, PodSpec, Underlay, WireKind};
use causeway_tests::namespace::Namespace;
use causeway_tests::packet_socket::PacketSocket;
use causeway_tests::traffic::{Order, bulk, order, udp_segments};

use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    ("frames_arrive_whole_and_with_right_checksums", frames_arrive_whole_and_with_right_checksums),
    ("frames_are_cut_where_nobody_else_does", frames_are_cut_where_nobody_else_does),
    ("memory_is_bounded_and_comes_back", memory_is_bounded_and_comes_back),
    ("one_flow_keeps_one_order", one_flow_keeps_one_order),
];

/// Bytes of one TCP transfer that is looked at.
const BYTES: u64 = 2 << 20;
/// The longest frame of a wire with an MTU of 1500.
const WIRE: usize = 1514;
/// The longest that a pod sends or gets, the tunnel's headers over IPv4 or IPv6 taken off.
const POD: usize = WIRE - 50;
/// What whole frames are of, as tshark names the layers within the last Ethernet header.
const KINDS: [&str; 4] = ["ip:tcp", "ipv6:tcp", "ip:udp", "ipv6:udp"];

/// Pods a and b on node n1, c on node n2; a and b on the fast path.
struct Scene {
    lab: Lab,
    nodes: [Node; 2],
    pods: [Pod; 3],
}

impl Scene {
    fn of(matrix: &Matrix, wishes: impl FnOnce(&mut LabSpec)) -> anyhow::Result<Self> {
        let lab = matrix.lab(wishes)?;
        let fast = |name| lab.add_pod("n1", PodSpec::named(name).annotation("causeway.dev/path", "fast"));
        let pods = [fast("a")?, fast("b")?, lab.add_pod("n2", "c")?];
        let nodes = [lab.node("n1")?, lab.node("n2")?];
        Ok(Self { lab, nodes, pods })
    }

    /// Turns what links leave to others on or off: on the pods' interfaces, and on both ends of the wire.
    fn set_offloads(&self, pods: bool, wire: bool) -> anyhow::Result<()> {
        let word = |on| if on { "on" } else { "off" };
        let plain = |on| ["tx", "tso", "gso", "gro"].map(|name| format!("{name} {}", word(on))).join(" ");
        for pod in &self.pods {
            pod.exec(&format!("ethtool -K eth0 {}", plain(pods)))?;
        }
        let tunnel = format!("tx-udp_tnl-segmentation {0} tx-udp_tnl-csum-segmentation {0}", word(wire));
        for node in &self.nodes {
            node.exec(&format!("ethtool -K eth0 {} {tunnel}", plain(wire)))?;
        }
        Ok(())
    }

    /// TCP and UDP over both families, near and far, with everything that pods and wire saw.
    fn record(&self, matrix: &Matrix) -> anyhow::Result<Seen> {
        let [a, b, c] = &self.pods;
        let [n1, n2] = &self.nodes;
        let mtu = n1.status()?.node.context("node n1 is not known to its agent")?.pod_mtu;
        let captures = [b.namespace(), c.namespace(), n2.namespace()].map(|at| Capture::start(at, "eth0"));
        matrix.sabotage("checksum-wrong", || send_nonsense(n1.namespace())).transpose()?;
        for (to, family) in [b, c].into_iter().flat_map(|to| Family::BOTH.map(|family| (to, family))) {
            let what = format!("{} to {} over {family}", a.name(), to.name());
            let (here, there, address) = (a.namespace(), to.namespace(), to.address(family));
            let sent = bulk(here, there, address, BYTES).with_context(|| what.clone())?;
            ensure!(sent.is_intact() && sent.bytes == BYTES, "{what}: {sent:?}");
            let headers = if family == Family::V4 { 28 } else { 48 };
            udp_segments(here, there, address, mtu - headers, 8).context(what)?;
        }
        let [near, far, wire] = captures;
        Ok(Seen { near: near?.finish()?, far: far?.finish()?, wire: wire?.finish()? })
    }
}

/// A datagram whose checksum nobody could make.
fn send_nonsense(node: &Namespace) -> anyhow::Result<()> {
    let mut frame = [[0xff; 6], [2; 6]].concat();
    frame.extend([0x08, 0x00, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0xf6, 0xb5]);
    frame.extend([192, 0, 2, 11, 192, 0, 2, 12, 0x30, 0x39, 0x30, 0x39, 0, 12, 0xba, 0xad, 1, 2, 3, 4]);
    Ok(node.run(|| PacketSocket::open("eth0").and_then(|socket| socket.send(&frame)))?)
}

/// What was on the links while pods talked.
struct Seen {
    /// At the pod of the same node.
    near: Recording,
    /// At the pod of the other node.
    far: Recording,
    /// Where the wire reaches the other node.
    wire: Recording,
}

impl Seen {
    fn has_right_checksums(&self, what: &str) -> anyhow::Result<()> {
        for (place, recording) in [("near", &self.near), ("far", &self.far), ("wire", &self.wire)] {
            let complaints = recording.complaints()?;
            ensure!(recording.frames > 0, "{what}, {place}: nothing was seen");
            ensure!(
                complaints.is_empty(),
                "{what}, {place}: of {} frames {} are wrong: {:?}",
                recording.frames,
                complaints.len(),
                &complaints[..complaints.len().min(3)]
            );
        }
        Ok(())
    }
}

/// Whether frames longer than that came of every kind, or of none.
fn whole(recording: &Recording, longest: usize, expected: bool, what: &str) -> anyhow::Result<()> {
    let long = recording.fields(&format!("frame.len > {longest}"), &["frame.protocols"])?;
    let of = |kind: &&str| long.iter().any(|layers| layers.contains(&format!("eth:ethertype:{kind}")));
    let kinds: Vec<_> = KINDS.into_iter().filter(of).collect();
    let wanted: &[&str] = if expected { &KINDS } else { &[] };
    ensure!(
        kinds == wanted && (expected || long.is_empty()),
        "{what}: of {} frames {} are longer than {longest}: {kinds:?}, not {wanted:?}",
        recording.frames,
        long.len()
    );
    Ok(())
}

fn frames_arrive_whole_and_with_right_checksums(matrix: &Matrix) -> anyhow::Result<()> {
    let scene = Scene::of(matrix, |_| {})?;
    for (pods, wire) in [(true, true), (false, true), (true, false), (false, false)] {
        scene.set_offloads(pods, wire)?;
        matrix
            .sabotage("frames-cut", || scene.pods[0].exec("ethtool -K eth0 tso off gso off"))
            .transpose()?;
        let what = format!("offloads of pods {pods}, of the wire {wire}");
        let seen = scene.record(matrix)?;
        seen.has_right_checksums(&what)?;
        whole(&seen.near, POD, pods, &format!("{what}, near"))?;
        whole(&seen.wire, WIRE, pods && wire, &format!("{what}, on the wire"))?;
        ensure!(wire || seen.wire.partial == 0, "{what}: {} frames are incomplete", seen.wire.partial);
        ensure!(pods || seen.near.partial == 0, "{what}: {} frames are incomplete", seen.near.partial);
        if pods && wire {
            whole(&seen.far, POD, true, &format!("{what}, far"))?;
        }
    }
    Ok(())
}

/// Without tunnel GSO, and over IPv6, where every outer datagram has a checksum, too.
fn frames_are_cut_where_nobody_else_does(matrix: &Matrix) -> anyhow::Result<()> {
    for (underlay, mask) in [(Underlay::Both, true), (Underlay::V6, false), (Underlay::V6, true)] {
        let scene = Scene::of(matrix, |spec| {
            spec.underlay = underlay;
            spec.config.extend(mask.then(|| "mask: [tun-udp-tunnel-gso]".to_owned()));
        })?;
        // Over IPv6 a whole tunnel frame has no outer checksum yet that anybody could judge: the wire cuts it.
        scene.set_offloads(true, underlay == Underlay::Both)?;
        let what = format!("underlay {underlay}, masked {mask}");
        let seen = scene.record(matrix)?;
        seen.has_right_checksums(&what)?;
        whole(&seen.near, POD, true, &format!("{what}, near"))?;
        whole(&seen.wire, WIRE, false, &format!("{what}, on the wire"))?;
        // What the kernel of the other node leaves to a wire that takes it is no doing of ours.
        let kernel = underlay == Underlay::Both && matrix.mode == Datapath::Mixed;
        ensure!(kernel || seen.wire.partial == 0, "{what}: {} frames are incomplete", seen.wire.partial);
    }
    Ok(())
}

fn process(status: Status) -> anyhow::Result<FastpathStatus> {
    status.fastpath.context("no fast path in status")
}

fn memory_is_bounded_and_comes_back(matrix: &Matrix) -> anyhow::Result<()> {
    const EACH: u64 = 24 << 20;
    // Half of the streams stay whole, half are cut by us.
    let scene = Scene::of(matrix, |spec| {
        spec.fastpath = ["--memory", "slow", "--memory-mib", "256"].map(str::to_owned).into();
        spec.config.push("mask: [tun-udp-tunnel-gso]".into());
    })?;
    let ([a, b, c], n1) = (&scene.pods, &scene.nodes[0]);
    let idle = process(n1.status()?)?;
    let streams =
        [b, c].into_iter().cycle().zip(Family::BOTH.into_iter().flat_map(|f| [f, f]).cycle()).take(8);
    let mut least = idle.buffers_free;
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let carry =
            |(to, family): (&Pod, Family)| bulk(a.namespace(), to.namespace(), to.address(family), EACH);
        let running: Vec<_> = streams.map(|stream| scope.spawn(move || carry(stream))).collect();
        while running.iter().any(|stream| !stream.is_finished()) {
            least = least.min(process(n1.status()?)?.buffers_free);
            std::thread::sleep(Duration::from_millis(20));
        }
        for stream in running {
            let sent = stream.join().map_err(|_| anyhow::anyhow!("a stream died"))??;
            ensure!(sent.is_intact() && sent.bytes == EACH, "{sent:?}");
        }
        Ok(())
    })?;
    ensure!(
        n1.drops(DropReason::NoBuffer)? == 0,
        "{} times no buffer was free",
        n1.drops(DropReason::NoBuffer)?
    );
    // A worker keeps one of each kind at hand.
    let all_back = |status| process(status).is_ok_and(|now| now.buffers - now.buffers_free <= 2);
    let back = within(Duration::from_secs(3), || n1.status().is_ok_and(all_back));
    ensure!(back, "{:?}", process(n1.status()?)?);
    ensure!(least > idle.buffers / 2, "of {} buffers {least} were free at worst", idle.buffers);
    Ok(())
}

fn one_flow_keeps_one_order(matrix: &Matrix) -> anyhow::Result<()> {
    const FLOWS: usize = 12;
    let datagrams = if matrix.full { 40_000 } else { 3_000 };
    let scene = Scene::of(matrix, |spec| {
        spec.fastpath.extend(["--workers", "2"].map(str::to_owned));
        spec.config.push("fastpath_queues: 2".into());
        if matrix.sabotage("flows-shuffled", || ()).is_some() {
            spec.wire = WireKind::Userspace;
        }
    })?;
    matrix.sabotage("flows-shuffled", || scene.lab.wire(&["delay=1ms", "reorder=5%"])).transpose()?;
    let ([a, b, c], n1) = (&scene.pods, &scene.nodes[0]);
    for (from, to) in [(a, b), (a, c), (c, a)] {
        for family in Family::BOTH {
            let before = process(n1.status()?)?.workers;
            let seen = order(from.namespace(), to.namespace(), to.address(family), FLOWS, datagrams)?;
            let after = process(n1.status()?)?.workers;
            let what = format!("{} to {} over {family}: {seen:?}", from.name(), to.name());
            let Order { sent, received, late, answers, .. } = seen;
            ensure!(late == 0, "{what}");
            ensure!(received > sent * 9 / 10 && answers > 0, "{what}");
            let shares: Vec<_> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
            ensure!(
                shares.len() == 2 && shares.iter().all(|share| *share > received / 50),
                "{what}: the workers took in {shares:?} frames"
            );
        }
    }
    Ok(())
}
