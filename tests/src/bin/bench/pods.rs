//! What pods get: streams, questions and datagrams between two of them, on one node and across two, beside the kernel's ways.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use causeway_model::Family;
use causeway_tests::capture::Capture;
use causeway_tests::lab::{Datapath, LabSpec, Pod};
use causeway_tests::namespace::Namespace;
use causeway_tests::traffic::{Datagrams, bulk, datagrams, requests, throughput};

use super::finding::{Finding, OURS, Record, Target};
use super::plain::Plain;
use super::samples::{Contender, interleave};
use super::stand::Stand;

/// The kernel's VXLAN set up by hand, and our own kernel path.
const KERNEL: &str = "kernel";
const OUR_KERNEL: &str = "causeway-kernel";
const SPAN: Duration = Duration::from_secs(3);
/// What one step of the search for the lossless point takes.
const STEP: Duration = Duration::from_millis(500);
/// Steps of the search: the last one halves a sixty-fourth.
const STEPS: u32 = 6;
/// What the search takes for no loss: one in ten thousand.
const LOSSLESS: f64 = 1e-4;
/// How long a change of the table may take to show.
const SOON: Duration = Duration::from_secs(10);
/// The bytes whose digests are compared.
const PROOF: u64 = 64 << 20;

/// From where to where.
#[derive(Clone)]
struct Way {
    from: Namespace,
    to: Namespace,
    address: IpAddr,
}

/// A way between nodes and one on a node.
struct Ways {
    two: Way,
    one: Way,
}

impl Ways {
    /// Those between a first pod, one on another node and one on the same.
    fn between(pods: &[Pod]) -> Result<Self> {
        let [first, far, near] = pods else { anyhow::bail!("three pods are needed") };
        let way = |to: &Pod| Way {
            from: first.namespace().clone(),
            to: to.namespace().clone(),
            address: to.address(Family::V4),
        };
        Ok(Self { two: way(far), one: way(near) })
    }

    fn of_plain(plain: &Plain) -> Result<Self> {
        let [first, far, near] = &plain.pods;
        let way = |(place, address): &(super::scratch::Place, String)| -> Result<Way> {
            let (from, to) = (first.0.namespace.clone(), place.namespace.clone());
            Ok(Way { from, to, address: address.parse()? })
        };
        Ok(Self { two: way(far)?, one: way(near)? })
    }

    fn on(&self, nodes: &str) -> &Way {
        if nodes == "two" { &self.two } else { &self.one }
    }
}

/// Where the three pods of a stand are.
const PLACES: [&str; 3] = ["n1", "n2", "n1"];

/// Runs the bench.
pub fn run() -> Result<Vec<Finding>> {
    let plain = Plain::up()?;
    let (kernel, fast) = (
        Stand::up("bench-kernel", Datapath::Kernel, |_| {})?,
        Stand::up("bench-fast", Datapath::Fast, |_| {})?,
    );
    let (of_kernel, of_fast) = (kernel.pods(&PLACES)?, fast.pods(&PLACES)?);
    prove(&fast, &of_fast, true).context("host-routed uplink")?;
    let ways = [
        (OURS, Ways::between(&of_fast)?),
        (KERNEL, Ways::of_plain(&plain)?),
        (OUR_KERNEL, Ways::between(&of_kernel)?),
    ];
    let mut findings = Vec::new();
    let veth = ["host-routed", "veth, tunnel GSO"];
    for (streams, nodes, least) in [(1, "two", 0.7), (4, "two", 0.7), (1, "one", 0.4)] {
        findings.push(streams_of(&ways, streams, nodes, veth, Some(least))?);
    }
    for nodes in ["two", "one"] {
        findings.push(questions(&ways, nodes, veth)?);
    }
    for size in [64, 1400] {
        findings.extend(datagrams_of(&ways, size, veth)?);
    }
    drop((fast, kernel));
    let [_, plain_way, _] = ways;
    findings.push(masked(&plain_way.1, [veth[0], "veth, tunnel GSO masked"])?);
    plain.without_offloads()?;
    findings.push(af_packet(&plain_way.1)?);
    Ok(findings)
}

fn case(what: String, nodes: &str, [uplink, wire]: [&str; 2]) -> Vec<(&'static str, serde_json::Value)> {
    let uplink = if nodes == "one" { "none" } else { uplink };
    vec![("what", what.into()), ("nodes", nodes.into()), ("uplink", uplink.into()), ("wire", wire.into())]
}

/// Measures all ways in turn and makes a finding of it.
fn compare(
    case: Vec<(&'static str, serde_json::Value)>,
    metric: (&'static str, &'static str),
    ways: &[(&'static str, Ways)],
    targets: Vec<Target>,
    run: impl Fn(&Way) -> Result<f64>,
) -> Result<Finding> {
    let said = |key| case.iter().find(|(name, _)| *name == key).and_then(|(_, value)| value.as_str());
    let (what, nodes) = (said("what").unwrap_or_default(), said("nodes").unwrap_or_default());
    let title = format!("{what}, {nodes} node(s), {}, {}", metric.0, metric.1);
    let run = &run;
    let mut contenders: Vec<_> = ways
        .iter()
        .map(|(name, ways)| {
            let way = ways.on(nodes);
            Contender::new(name, move || run(way))
        })
        .collect();
    let samples = interleave(&title, &mut contenders)?;
    drop(contenders);
    Ok(Finding { record: Record::new("pods", case, metric, &samples), targets })
}

fn streams_of(
    ways: &[(&'static str, Ways)],
    streams: usize,
    nodes: &str,
    wire: [&str; 2],
    least: Option<f64>,
) -> Result<Finding> {
    let targets = least.map(|least| Target::TimesPeer(least, KERNEL)).into_iter().collect();
    let case = case(format!("tcp-{streams}"), nodes, wire);
    compare(case, ("throughput", "Gbit/s"), ways, targets, |way| {
        Ok(throughput(&way.from, &way.to, way.address, streams, SPAN)? / 1e9)
    })
}

fn questions(ways: &[(&'static str, Ways)], nodes: &str, wire: [&str; 2]) -> Result<Finding> {
    let targets = vec![Target::TimesPeer(0.7, KERNEL)];
    compare(case("tcp-rr-1".into(), nodes, wire), ("transactions", "1/s"), ways, targets, |way| {
        Ok(requests(&way.from, &way.to, way.address, SPAN)?)
    })
}

/// What arrives of all that can be sent, and the most of which nothing is lost.
fn datagrams_of(ways: &[(&'static str, Ways)], size: usize, wire: [&str; 2]) -> Result<[Finding; 2]> {
    let case = case(format!("udp-{size}"), "two", wire);
    let send = move |way: &Way, rate, span| -> Result<Datagrams> {
        let came = datagrams((&way.from, &way.to, way.address), size, rate, span)?;
        ensure!(came.received <= came.sent, "more arrived than was sent: {came:?}");
        if came.late > 0 {
            eprintln!("  {} of {} datagrams came after a later one", came.late, came.received);
        }
        Ok(came)
    };
    let delivered = compare(case.clone(), ("delivered", "kpps"), ways, Vec::new(), |way| {
        Ok(send(way, None, SPAN)?.delivered() / 1e3)
    })?;
    let lossless = compare(case, ("lossless", "kpps"), ways, Vec::new(), |way| {
        let all = send(way, None, STEP)?;
        if all.loss() <= LOSSLESS {
            return Ok(all.delivered() / 1e3);
        }
        let (mut low, mut high) = (0.0, all.offered());
        for _ in 0..STEPS {
            let middle = (low + high) / 2.0;
            let came = send(way, Some(middle), STEP)?;
            if came.loss() <= LOSSLESS { low = came.delivered().max(low) } else { high = middle }
        }
        Ok(low / 1e3)
    })?;
    Ok([delivered, lossless])
}

/// The same between fast nodes of some kind, one stream; the peer is the one that stands already.
fn one_more(
    plain: &Ways,
    name: &'static str,
    wire: [&str; 2],
    change: impl FnOnce(&mut LabSpec),
    prepare: impl FnOnce(&Stand) -> Result<()>,
) -> Result<Finding> {
    let stand = Stand::up(name, Datapath::Fast, change)?;
    prepare(&stand)?;
    let pods = stand.pods(&PLACES)?;
    prove(&stand, &pods, false).context(name)?;
    let plain = Ways { two: plain.two.clone(), one: plain.one.clone() };
    streams_of(&[(OURS, Ways::between(&pods)?), (KERNEL, plain)], 1, "two", wire, None)
}

fn masked(plain: &Ways, wire: [&str; 2]) -> Result<Finding> {
    let mask = |spec: &mut LabSpec| spec.config.push("mask: [tun-udp-tunnel-gso]".into());
    one_more(plain, "bench-masked", wire, mask, |_| Ok(()))
}

fn af_packet(plain: &Ways) -> Result<Finding> {
    let uplink = |spec: &mut LabSpec| spec.config.push("fastpath_uplink: net_af_packet0,iface=eth0".into());
    let wire = ["af_packet", "veth, no offloads"];
    one_more(plain, "bench-af-packet", wire, uplink, Stand::without_offloads)
}

/// Looks whether a stand does what is measured on it.
fn prove(stand: &Stand, pods: &[Pod], whole: bool) -> Result<()> {
    let (n1, n2) = (stand.lab.node("n1")?, stand.lab.node("n2")?);
    let (first, far) = (&pods[0], &pods[1]);
    let answers = || first.ping(far.address(Family::V4));
    within(SOON, answers).context("the far pod does not answer")?;
    let limits = n1.status()?.limits;
    limits.iter().for_each(|limit| eprintln!("  {}: {limit}", stand.lab.name()));
    // Where they arrive: what af_packet sends passes by whoever listens at its own end (PACKET_QDISC_BYPASS).
    let wire = Capture::start(n2.namespace(), "eth0")?;
    let before = (n1.status()?, n2.status()?);
    for to in &pods[1..] {
        let sent = bulk(first.namespace(), to.namespace(), to.address(Family::V4), PROOF)?;
        ensure!(sent.is_intact() && sent.bytes == PROOF, "other bytes arrived than were sent: {sent:?}");
    }
    let after = (n1.status()?, n2.status()?);
    let recording = wire.finish()?;
    let (sent, received) = (
        after.0.tunnel_sent.packets - before.0.tunnel_sent.packets,
        after.1.tunnel_received.packets - before.1.tunnel_received.packets,
    );
    ensure!(sent > 0, "nothing went through the tunnel");
    let drops = |status: &causeway_model::operator::Status| {
        status.drops.values().map(|count| count.packets).sum::<u64>()
    };
    let dropped = drops(&after.0) + drops(&after.1) - drops(&before.0) - drops(&before.1);
    eprintln!("  {}: {sent} tunnel frames sent, {received} received, {dropped} dropped", stand.lab.name());
    // Where frames are whole, nothing between the nodes puts them together or apart.
    ensure!(
        !whole || sent <= received + dropped,
        "{sent} frames were sent, {received} received, {dropped} dropped"
    );
    let filter = format!("vxlan.vni == {}", causeway_model::DEFAULT_VNI);
    let seen = recording.fields(&filter, &["ip.src", "ip.dst"])?;
    let ends = |node: &causeway_tests::lab::Node, pod: &Pod| {
        format!("{},{}", node.address(Family::V4), pod.address(Family::V4))
    };
    let expected = format!("{}\t{}", ends(&n1, first), ends(&n2, far));
    ensure!(seen.contains(&expected), "no frame on the wire is {expected:?}; the first: {:?}", seen.first());
    stand.lab.set_known("n2", false)?;
    within(SOON, || !answers()).context("packets go on to a node that is in no table")?;
    stand.lab.set_known("n2", true)?;
    within(SOON, answers).context("packets do not go on to a node that is in the table again")
}

fn within(patience: Duration, look: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !look() {
        ensure!(Instant::now() < deadline, "not within {patience:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
