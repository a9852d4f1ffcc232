//! What one worker carries from queue to queue: the program, not a NIC. Frames come from a file, over and over, and go nowhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use causeway_model::fastpath::{PortName, Tally};
use causeway_model::{DropReason, Snapshot};
use causeway_tests::capture::Recording;

use super::chart;
use super::fastpath::{FastPath, Options};
use super::finding::{Finding, OURS, Record, Target};
use super::hugepages::Hugepages;
use super::ovs::{self, Ovs};
use super::samples::{Contender, Samples, interleave};
use super::scene::{Direction, Scene};
use super::scratch::Scratch;
use super::undo::Undo;
use super::{connections, rules, testpmd, tsc};

/// The name of one peer in records.
pub const OVS: &str = "ovs-dpdk";
/// And of another.
pub const TESTPMD: &str = "testpmd-mac";
const FLOWS: [u32; 4] = [64, 1024, 8192, 65_536];
/// The number of flows that targets are for.
const OF_TARGETS: u32 = 1024;
/// Memory of the fast path in MiB: buffers for every frame of the largest file.
pub const MIB: u64 = 512;
/// Until caches are warm.
const WARM: Duration = Duration::from_millis(500);
const SPAN: Duration = Duration::from_secs(3);
/// Long enough for a worker to have seen that there is nothing more.
const QUIET: Duration = Duration::from_millis(100);
/// The frames of the sample that is decoded, and how many of them nobody may receive.
const SAMPLE: (u32, u32) = (256, 16);

/// Runs the bench and draws its picture.
pub fn run(picture: &Path) -> Result<Vec<Finding>> {
    let (scene, scratch) = (Scene::new()?, Scratch::new()?);
    let _pages = Hugepages::reserve(ovs::MIB + MIB)?;
    // DPDK leaves the directories of its processes behind.
    let _runtime = Undo::with(|| drop(fs::remove_dir_all(format!("/run/dpdk/{}", testpmd::prefix()))));
    for direction in [Direction::Encap, Direction::Decap] {
        prove(&scratch, &scene, direction).with_context(|| format!("{}: a sample", direction.word()))?;
    }
    let (mut findings, ticks) = (Vec::new(), tsc::rate());
    eprintln!("  the time stamp counter runs at {:.1} MHz", ticks / 1e6);
    let tracked = connections::run(&scratch, &scene, ticks)?;
    let ruled = rules::run(&scratch, &scene, ticks)?;
    for flows in FLOWS {
        for direction in [Direction::Encap, Direction::Decap] {
            let file = scratch.file("in.pcap");
            scene.write(direction, flows, &file)?;
            let rates = interleave(
                &format!("{}, {flows} flows, Mpps", direction.word()),
                &mut [
                    Contender::new(OURS, || measure(&scratch, &scene, direction, 0, &file)),
                    Contender::new(OVS, || Ovs::measure(&scratch, &scene, direction, false, &file)),
                    Contender::new(TESTPMD, || testpmd::measure(&file, flows)),
                ],
            )?;
            let targets = match direction {
                _ if flows != OF_TARGETS => Vec::new(),
                Direction::Encap => vec![Target::TimesPeer(2.0, OVS), Target::TimesPeer(0.6, TESTPMD)],
                Direction::Decap => vec![Target::TimesPeer(3.5, OVS), Target::TimesPeer(0.5, TESTPMD)],
            };
            findings.extend(findings_of(&Case::plain(direction, flows, false), &rates, targets, ticks));
        }
    }
    chart::draw(picture, &findings)?;
    findings.extend(tracked.into_iter().chain(ruled));
    Ok(findings)
}

/// What is carried.
pub struct Case {
    /// Which way.
    pub direction: Direction,
    /// Of so many flows.
    pub flows: u32,
    /// Whether connections are followed.
    pub tracked: bool,
    /// Rules of the pod in each direction, if they are what is counted.
    pub rules: u32,
    /// Policies of the pod, if they are.
    pub policies: u32,
}

impl Case {
    /// A case without rules.
    pub fn plain(direction: Direction, flows: u32, tracked: bool) -> Self {
        Self { direction, flows, tracked, rules: 0, policies: 0 }
    }
}

/// What the rates of one case say.
pub fn findings_of(
    case: &Case,
    rates: &BTreeMap<&'static str, Samples>,
    targets: Vec<Target>,
    ticks: f64,
) -> [Finding; 2] {
    let policies = (case.policies > 0).then_some(("policies", case.policies.into()));
    let rules = ("rules", case.rules.into());
    let case = vec![
        ("direction", case.direction.word().into()),
        ("flows", case.flows.into()),
        ("conntrack", case.tracked.into()),
        policies.unwrap_or(rules),
    ];
    let cycles = rates.iter().map(|(name, rates)| (*name, rates.map(|rate| ticks / (rate * 1e6)))).collect();
    let record = |metric, samples| Record::new("pipeline", case.clone(), metric, samples);
    [
        Finding { record: record(("mpps", "Mpps"), rates), targets },
        Finding { record: record(("cycles", "cycles per packet"), &cycles), targets: Vec::new() },
    ]
}

/// The ports of one direction: where frames come in and where they go out.
pub fn ports(direction: Direction) -> (PortName, PortName) {
    let (pod, uplink) = (PortName::Endpoint(Scene::key()), PortName::Uplink);
    match direction {
        Direction::Encap => (pod, uplink),
        Direction::Decap => (uplink, pod),
    }
}

/// What came in and what went out so far, and what was dropped in between.
pub fn passed(direction: Direction, tally: &Tally) -> (u64, u64, BTreeMap<DropReason, u64>) {
    let pod = tally.endpoints.iter().find(|(key, _)| *key == Scene::key());
    let (from, to) = pod.map_or((0, 0), |(_, pod)| (pod.from_pod.packets, pod.to_pod.packets));
    let drops = tally.drops.iter().map(|line| (line.reason, line.count.packets)).collect();
    match direction {
        Direction::Encap => (from, tally.tunnel_sent.packets, drops),
        Direction::Decap => (tally.tunnel_received.packets, to, drops),
    }
}

/// A fast path that knows the scene and where its tunnel frames go.
pub fn start(scratch: &Scratch, scene: &Scene, options: Options<'_>) -> Result<FastPath> {
    let mut fast = FastPath::start(scratch, options, scene.snapshot()?)?;
    fast.next_hop(Scene::tunnel_address(&scene.there)?.into(), Scene::peer_mac())?;
    Ok(fast)
}

/// Millions of packets in a second that one worker carries, remembering so many connections, with the proof that it carried them.
pub fn measure(
    scratch: &Scratch,
    scene: &Scene,
    direction: Direction,
    connections: u32,
    file: &Path,
) -> Result<f64> {
    let options = Options { mib: MIB, connections, flows: None };
    let source = format!("net_pcap0,rx_pcap={},infinite_rx=1", file.display());
    measure_from(&source, start(scratch, scene, options)?, scene, direction)
}

/// The same from a device.
pub fn measure_from(source: &str, mut fast: FastPath, scene: &Scene, direction: Direction) -> Result<f64> {
    let (way_in, way_out) = ports(direction);
    fast.plug(way_out, "net_null0,no-rx=1")?;
    fast.plug(way_in.clone(), source)?;
    std::thread::sleep(WARM);
    let (began, before) = (Instant::now(), fast.count()?);
    std::thread::sleep(SPAN);
    let (took, after) = (began.elapsed(), fast.count()?);
    let sent = passed(direction, &after).1 - passed(direction, &before).1;
    ensure!(sent > 0, "nothing was sent: {after:?}");
    nothing_matches(&mut fast, scene, direction)?;
    fast.unplug(way_in)?;
    std::thread::sleep(QUIET);
    let tally = fast.count()?;
    let (received, sent_in_all, drops) = passed(direction, &tally);
    // A frame that is no tunnel's of ours is dropped before it counts as received by the tunnel.
    let strangers = match direction {
        Direction::Encap => 0,
        Direction::Decap => drops.get(&DropReason::UnknownSender).copied().unwrap_or(0),
    };
    let dropped: u64 = drops.values().sum();
    ensure!(
        received + strangers == sent_in_all + dropped,
        "{received} + {strangers} came in, {sent_in_all} went out and {dropped} were dropped: {tally:?}"
    );
    Ok(sent as f64 / took.as_secs_f64() / 1e6)
}

/// Takes the other node out of the table: from then on every frame is a named drop and none goes out. Puts it back.
fn nothing_matches(fast: &mut FastPath, scene: &Scene, direction: Direction) -> Result<()> {
    let whole = scene.snapshot()?;
    fast.tell(Snapshot { peers: BTreeMap::new(), ..whole.clone() })?;
    let (_, before, drops_before) = passed(direction, &fast.count()?);
    std::thread::sleep(QUIET);
    let (_, after, drops) = passed(direction, &fast.count()?);
    ensure!(after == before, "{} frames went out although nothing matched", after - before);
    let dropped = drops.values().sum::<u64>() - drops_before.values().sum::<u64>();
    ensure!(dropped > 0, "no frame was dropped although nothing matched");
    fast.tell(whole)?;
    std::thread::sleep(QUIET);
    ensure!(
        passed(direction, &fast.count()?).1 > after,
        "nothing goes out although everything matches again"
    );
    Ok(())
}

/// Sends a file of frames through once, into another file: all that should arrive do, as an independent decoder sees them.
fn prove(scratch: &Scratch, scene: &Scene, direction: Direction) -> Result<()> {
    let (frames, strangers) = SAMPLE;
    let (input, output) = (scratch.file("sample.pcap"), scratch.file("output.pcap"));
    scene.write_sample(direction, frames, strangers, &input)?;
    let options = Options { mib: MIB, ..Options::default() };
    let mut fast = start(scratch, scene, options)?;
    let (way_in, way_out) = ports(direction);
    fast.plug(way_out.clone(), &format!("net_pcap1,tx_pcap={}", output.display()))?;
    fast.plug(way_in, &format!("net_pcap0,rx_pcap={}", input.display()))?;
    std::thread::sleep(WARM);
    let (_, sent, drops) = passed(direction, &fast.count()?);
    let expected = BTreeMap::from([(Scene::stranger(direction), u64::from(strangers))]);
    let good = u64::from(frames - strangers);
    ensure!(sent == good && drops == expected, "of {frames} frames {sent} went out, dropped: {drops:?}");
    // The file is whole when the device is closed.
    fast.unplug(way_out)?;
    drop(fast);
    let recording = Recording::of_file(output)?;
    ensure!(recording.frames as u64 == good, "{} frames are in the file, not {good}", recording.frames);
    let complaints = recording.complaints()?;
    ensure!(complaints.is_empty(), "tshark complains: {}", complaints.join("; "));
    let seen = recording.fields("udp.dstport == 80", &["ip.src", "ip.dst", "vxlan.vni", "eth.dst"])?;
    for line in &seen {
        ensure!(scene.is_as_it_should_be(direction, line)?, "a frame is not as it should be: {line:?}");
    }
    ensure!(seen.len() as u64 == good, "{} of {good} frames are of our flows", seen.len());
    eprintln!(
        "  {}: a sample of {good} frames is as it should be, {strangers} were dropped by name",
        direction.word()
    );
    Ok(())
}
