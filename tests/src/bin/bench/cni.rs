//! What a runtime waits for: ADD and DEL of our plugin beside the bridge plugin with host-local addresses, called alike.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use causeway_tests::command;
use causeway_tests::lab::{Binaries, Call, Datapath, Node, Role};
use causeway_tests::process::Process;
use serde_json::{Value, json};

use super::finding::{Finding, OURS, Record, Target};
use super::samples::{Contender, RUNS, Samples, interleave};
use super::scratch::{Place, Scratch};
use super::stand::Stand;

const BRIDGE: &str = "bridge";
/// Where Debian has plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// Calls one after the other in a run.
const IN_TURN: usize = 40;
/// Calls at once.
const AT_ONCE: usize = 200;
/// Pods on one node.
const MANY: usize = 1000;
/// Calls around the tenth and the last that are compared: one call alone says little.
const AROUND: usize = 9;
/// A prefix in which a thousand pods have room.
const ROOMY: &str = "10.70.16.0/20";

/// Runs the bench.
pub fn run() -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let places = (0..AT_ONCE).map(|i| Place::new(&format!("c{i}"))).collect::<Result<Vec<_>>>()?;
    for datapath in [Datapath::Kernel, Datapath::Fast] {
        let ours = Ours::up(datapath)?;
        let peer = Peer::new()?;
        let (ours, peer): (&dyn Caller, &dyn Caller) = (&ours, &peer);
        findings.extend(in_turn(ours, peer, &places[..2 * IN_TURN], datapath)?);
        findings.push(at_once(ours, peer, &places, datapath)?);
    }
    drop(places);
    for datapath in [Datapath::Kernel, Datapath::Fast] {
        findings.extend(many(datapath)?);
    }
    findings.push(size()?);
    Ok(findings)
}

/// Somebody who calls a plugin as a runtime does.
trait Caller: Sync {
    /// One call; what it answered.
    fn call(&self, verb: &'static str, container: usize, place: &Place) -> Result<Value>;
}

/// How long one call takes, and the addresses that it answered.
fn timed(
    caller: &dyn Caller,
    verb: &'static str,
    container: usize,
    place: &Place,
) -> Result<(f64, Vec<String>)> {
    let began = Instant::now();
    let answer = caller.call(verb, container, place).with_context(|| format!("{verb} {container}"))?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    let ips = answer["ips"].as_array().into_iter().flatten();
    Ok((took, ips.filter_map(|ip| Some(ip["address"].as_str()?.to_owned())).collect()))
}

/// Our plugin on a node with a real agent.
struct Ours {
    stand: Stand,
    node: Node,
}

impl Ours {
    fn up(datapath: Datapath) -> Result<Self> {
        let stand = Stand::up("bench-cni", datapath, |spec| {
            spec.nodes = 1;
            spec.agents = false;
        })?;
        // The node of a lab has room for 253 pods: another prefix before its agent has ever seen one.
        let manifest = stand.lab.manifests_of(1)?.join("node-n1.yaml");
        let text = fs::read_to_string(&manifest).context("reading the node's object")?;
        let wider = text.replace("10.70.1.0/24", ROOMY);
        ensure!(wider != text, "the node's object does not name its prefix: {text}");
        fs::write(&manifest, wider).context("writing the node's object")?;
        let node = stand.lab.node("n1")?;
        stand.lab.launch(&node)?;
        stand.lab.await_ready(&node)?;
        Ok(Self { stand, node })
    }

    fn agent(&self) -> Result<Process> {
        self.stand.lab.process("n1", Role::Agent)?.context("the agent does not run")
    }
}

impl Caller for Ours {
    fn call(&self, verb: &'static str, container: usize, place: &Place) -> Result<Value> {
        let netns = place.namespace.path().display().to_string();
        let container = format!("{container:064x}");
        let call = Call { verb, container, netns, ..Call::default() };
        Ok(self.stand.lab.call_plugin(&self.node, &call)?)
    }
}

/// The bridge plugin on a node of its own.
struct Peer {
    node: Place,
    config: String,
    _scratch: Scratch,
}

impl Peer {
    fn new() -> Result<Self> {
        let scratch = Scratch::new()?;
        let config = json!({
            "cniVersion": "1.0.0", "name": "peer", "type": BRIDGE, "bridge": "cb0", "isGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": scratch.file("ipam"),
                "ranges": [[{"subnet": "10.251.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}],
            },
        });
        Ok(Self { node: Place::new("bridge")?, config: config.to_string(), _scratch: scratch })
    }
}

impl Caller for Peer {
    fn call(&self, verb: &'static str, container: usize, place: &Place) -> Result<Value> {
        let mut plugin = Command::new(format!("{PLUGINS}/{BRIDGE}"));
        plugin.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", format!("{container:064x}"));
        plugin.env("CNI_NETNS", place.namespace.path()).env("CNI_IFNAME", "eth0").env("CNI_PATH", PLUGINS);
        let said = self.node.namespace.stdout(&mut plugin, self.config.as_bytes())?;
        Ok(serde_json::from_str(&said).unwrap_or(Value::Null))
    }
}

fn case(what: &str, datapath: Datapath) -> Vec<(&'static str, Value)> {
    vec![("what", what.into()), ("datapath", datapath.to_string().into())]
}

/// ADDs and DELs one after the other.
fn in_turn(
    ours: &dyn Caller,
    peer: &dyn Caller,
    places: &[Place],
    datapath: Datapath,
) -> Result<Vec<Finding>> {
    type Taken = BTreeMap<&'static str, Samples>;
    let mut figures: BTreeMap<(&'static str, &'static str), Taken> = BTreeMap::new();
    for run in 1..=RUNS {
        for verb in ["ADD", "DEL"] {
            let mut taken: Taken = BTreeMap::new();
            // Each has namespaces of its own: both call the interface eth0.
            let (own, others) = places.split_at(IN_TURN);
            for (container, (place, other)) in own.iter().zip(others).enumerate() {
                for (name, caller, place) in [(OURS, ours, place), (BRIDGE, peer, other)] {
                    taken.entry(name).or_default().push(timed(caller, verb, container, place)?.0);
                }
            }
            for (name, times) in taken {
                for (metric, share) in [("p50", 0.5), ("p99", 0.99)] {
                    let value = times.quantile(share);
                    eprintln!("  {verb}, {datapath}, {metric}: {name} {value:.2} ms ({run} of {RUNS})");
                    figures.entry((verb, metric)).or_default().entry(name).or_default().push(value);
                }
            }
        }
    }
    let finding = |((verb, metric), samples): ((&str, &'static str), Taken)| {
        let targets = match (verb, metric) {
            ("DEL", "p99") => Vec::new(),
            _ => vec![Target::ShareOfPeer(0.5, BRIDGE)],
        };
        Finding { record: Record::new("cni", case(verb, datapath), (metric, "ms"), &samples), targets }
    };
    Ok(figures.into_iter().map(finding).collect())
}

/// ADDs all at once: how long until the last has its answer.
fn at_once(ours: &dyn Caller, peer: &dyn Caller, places: &[Place], datapath: Datapath) -> Result<Finding> {
    let burst = |caller: &dyn Caller| -> Result<f64> {
        let began = Instant::now();
        let answers = all(caller, "ADD", places)?;
        let took = began.elapsed().as_secs_f64() * 1e3;
        let addresses: Vec<_> = answers.into_iter().flat_map(|(_, addresses)| addresses).collect();
        let different: BTreeSet<_> = addresses.iter().collect();
        ensure!(addresses.len() >= places.len(), "{} ADDs gave {} addresses", places.len(), addresses.len());
        ensure!(different.len() == addresses.len(), "an address was given twice: {addresses:?}");
        all(caller, "DEL", places)?;
        Ok(took)
    };
    let what = format!("{AT_ONCE} ADDs at once");
    let samples = interleave(
        &format!("{what}, {datapath}, ms"),
        &mut [Contender::new(OURS, || burst(ours)), Contender::new(BRIDGE, || burst(peer))],
    )?;
    let record = Record::new("cni", case(&what, datapath), ("wall", "ms"), &samples);
    Ok(Finding { record, targets: vec![Target::ShareOfPeer(1.0, BRIDGE)] })
}

/// Calls for every place at once.
fn all(caller: &dyn Caller, verb: &'static str, places: &[Place]) -> Result<Vec<(f64, Vec<String>)>> {
    std::thread::scope(|scope| {
        let call = |(container, place)| scope.spawn(move || timed(caller, verb, container, place));
        let calls: Vec<_> = places.iter().enumerate().map(call).collect();
        calls.into_iter().map(|call| call.join().unwrap_or_else(|_| bail!("a caller died"))).collect()
    })
}

/// A thousand pods on one node: whether the last one waits longer than the first ones, and what each takes of the agent.
fn many(datapath: Datapath) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let ours = Ours::up(datapath)?;
    let places = (0..MANY).map(|i| Place::new(&format!("m{i}"))).collect::<Result<Vec<_>>>()?;
    let (before, mut times) = (resident(ours.agent()?)?, Vec::new());
    for (container, place) in places.iter().enumerate() {
        times.push(timed(&ours, "ADD", container, place)?.0);
    }
    let after = resident(ours.agent()?)?;
    let middle = |times: &[f64]| {
        let mut samples = Samples::default();
        times.iter().for_each(|time| samples.push(*time));
        samples
    };
    let (early, late) = (middle(&times[9 - AROUND / 2..][..AROUND]), middle(&times[MANY - AROUND..]));
    eprintln!(
        "  {datapath}: ADD of the tenth pod {:.1} ms, of the thousandth {:.1} ms",
        early.median(),
        late.median()
    );
    let ratio = late.map(|time| time / early.median());
    let what = format!("ADD of pod {MANY} against pod 10");
    let one = |samples| BTreeMap::from([(OURS, samples)]);
    let record = Record::new("cni", case(&what, datapath), ("ratio", "times"), &one(ratio));
    findings.push(Finding { record, targets: vec![Target::AtMost(2.0)] });
    let per_pod = middle(&[(after - before) / MANY as f64]);
    let what = case("agent memory of one endpoint", datapath);
    let record = Record::new("cni", what, ("resident", "KiB"), &one(per_pod));
    findings.push(Finding { record, targets: Vec::new() });
    for (container, place) in places.iter().enumerate() {
        ours.call("DEL", container, place)?;
    }
    // Deleted in the background; the namespaces go after.
    std::thread::sleep(Duration::from_secs(1));
    Ok(findings)
}

/// KiB of memory that a process holds.
fn resident(process: Process) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).context("no VmRSS")
}

/// The plugin as it would be shipped.
fn size() -> Result<Finding> {
    let scratch = Scratch::new()?;
    let stripped = scratch.file("causeway-cni");
    command::stdout(
        Command::new("strip").arg("-o").arg(&stripped).arg(Binaries::find()?.get("causeway-cni")?),
        b"",
    )?;
    let bytes = fs::metadata(&stripped)?.len();
    let mut size = Samples::default();
    size.push(bytes as f64 / f64::from(1 << 20));
    let samples = BTreeMap::from([(OURS, size)]);
    let record = Record::new("cni", vec![("what", "plugin, stripped".into())], ("size", "MiB"), &samples);
    Ok(Finding { record, targets: vec![Target::AtMost(2.0)] })
}
