//! What services cost the packet program: flows that go on, connections that begin, and how evenly those are dealt.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use causeway_model::Family;

use super::super::finding::{Finding, OURS, Record, Target};
use super::super::samples::{RUNS, Samples};
use super::super::tsc;
use super::rig::{
    BURST, Ends, PODS, PORT, Rig, TARGET, address, cluster_ip, from_here, from_there, service, snapshot,
};

/// The name of the peer in records: the same without a service.
const DIRECT: &str = "pod to pod";
/// Backends of the service to which flows go on.
const BACKENDS: u16 = 10;
const FLOWS: [usize; 2] = [1, 1024];
/// Bursts of a run, and runs of each in turn.
const BURSTS: usize = 4096;
const TURNS: usize = 4 * RUNS;
/// Connections that begin in a run, and how many of them are remembered at most.
const BEGIN: usize = 1 << 17;
const REMEMBERED: usize = 1 << 13;
/// A burst that takes so many times what the middle one does was interrupted by somebody else.
const INTERRUPTED: f64 = 20.0;
/// Backends and connections of which the spread is told.
const SPREAD: (u16, usize) = (100, 1_000_000);
/// Ports of a pod before the next one comes.
const PORTS: usize = SPREAD.1 / PODS as usize;

/// Which way frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From a pod of this node to a backend of another.
    Ask,
    /// Back.
    Answer,
}

impl Way {
    fn word(self) -> &'static str {
        match self {
            Self::Ask => "to the backend",
            Self::Answer => "from the backend",
        }
    }
}

/// Runs all.
pub fn run() -> Result<Vec<Finding>> {
    let ticks = tsc::rate();
    let mut findings = Vec::new();
    for family in Family::BOTH {
        for flows in FLOWS {
            for way in [Way::Ask, Way::Answer] {
                findings.push(established(family, flows, way)?);
            }
        }
    }
    for backends in [1, BACKENDS, SPREAD.0] {
        findings.push(beginning(backends, ticks)?);
    }
    findings.push(spread()?);
    Ok(findings)
}

fn client(number: usize, family: Family) -> (u16, SocketAddr) {
    let (pod, port) = (number / PORTS % usize::from(PODS), number % PORTS);
    (pod as u16, SocketAddr::new(address(1, pod as u16, family), 1024 + port as u16))
}

/// Flows to a service, or to its backends themselves, that are known, and their frames of one way.
struct Flows {
    rig: Rig,
    frames: Vec<Vec<u8>>,
    way: Way,
    /// What the receiver must see.
    seen: Vec<Ends>,
}

impl Flows {
    fn new(family: Family, flows: usize, way: Way, served: bool) -> Result<Self> {
        let mut rig = Rig::new(&snapshot(service(BACKENDS)?)?)?;
        let (mut asks, mut asked) = (Vec::new(), Vec::new());
        for flow in 0..flows.max(BURST) {
            let (pod, from) = client(flow % flows, family);
            let direct = SocketAddr::new(address(2, (flow % flows) as u16 % BACKENDS, family), TARGET);
            let to = if served { SocketAddr::new(cluster_ip(family), PORT) } else { direct };
            let ends = Ends { from, to };
            asks.push(from_here(&ends.packet(false)?, pod));
            asked.push(ends);
        }
        let mut seen = Vec::new();
        for frames in asks.chunks_exact(BURST) {
            rig.pass_and(Some(0), frames, |ends| {
                seen.push(ends);
                Ok(())
            })?;
        }
        for (ends, seen) in asked.iter().zip(&seen) {
            let backend =
                (0..BACKENDS).any(|one| seen.to == SocketAddr::new(address(2, one, family), TARGET));
            ensure!(seen.from == ends.from && backend, "{ends:?} arrives as {seen:?}");
        }
        ensure!(rig.live() as usize == flows, "{} connections, not {flows}", rig.live());
        let begun = if served { flows as u64 } else { 0 };
        ensure!(rig.begun() == begun, "{} connections with services, not {begun}", rig.begun());
        let mut this = Self { rig, frames: asks, way, seen };
        if way == Way::Answer {
            let answers = this.seen.iter().enumerate();
            this.frames = answers
                .map(|(flow, seen)| from_there(&seen.turned().packet(false)?, flow))
                .collect::<Result<_>>()?;
            this.seen = asked.into_iter().map(Ends::turned).collect();
        }
        this.prove()?;
        Ok(this)
    }

    fn from(&self) -> Option<u16> {
        (self.way == Way::Ask).then_some(0)
    }

    /// Every frame arrives as it should.
    fn prove(&mut self) -> Result<()> {
        let (from, mut seen) = (self.from(), self.seen.iter());
        for frames in self.frames.chunks_exact(BURST) {
            self.rig.pass_and(from, frames, |ends| {
                let wanted = seen.next();
                ensure!(wanted == Some(&ends), "{ends:?} arrives, not {wanted:?}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Ticks a frame: of the middle burst, so that those during which others had the processor do not count.
    fn cycles(&mut self) -> Result<f64> {
        let mut all = Vec::with_capacity(BURSTS);
        let from = self.from();
        for frames in self.frames.chunks_exact(BURST).cycle().take(BURSTS) {
            all.push(self.rig.pass(from, frames)?);
        }
        all.sort_unstable();
        Ok(all[BURSTS / 2] as f64 / BURST as f64)
    }
}

fn established(family: Family, flows: usize, way: Way) -> Result<Finding> {
    let mut served = Flows::new(family, flows, way, true)?;
    let mut direct = Flows::new(family, flows, way, false)?;
    let mut samples: BTreeMap<&'static str, Samples> = BTreeMap::new();
    for _ in 0..TURNS {
        samples.entry(OURS).or_default().push(served.cycles()?);
        samples.entry(DIRECT).or_default().push(direct.cycles()?);
    }
    served.prove()?;
    direct.prove()?;
    let (ours, theirs) = (samples[OURS].median(), samples[DIRECT].median());
    eprintln!("  services: {family}, {flows} flows {}: {ours:.1} cycles, {theirs:.1} {DIRECT}", way.word());
    let case = vec![
        ("established", "through a ClusterIP".into()),
        ("family", family.to_string().into()),
        ("flows", flows.into()),
        ("way", way.word().into()),
    ];
    let record = Record::new("services", case, ("cycles", "cycles per packet"), &samples);
    Ok(Finding { record, targets: vec![Target::ShareOfPeer(1.15, DIRECT)] })
}

/// Begins so many connections, the first of them by its number, and tells each burst's ticks and each backend.
fn begin(rig: &mut Rig, (first, count): (usize, usize), mut look: impl FnMut(u64, &[Ends])) -> Result<()> {
    let mut remembered = 0;
    let to = SocketAddr::new(cluster_ip(Family::V4), PORT);
    let (mut seen, mut number) = (Vec::with_capacity(BURST), first);
    while number < first + count {
        // A burst is one pod's.
        let (pod, _) = client(number, Family::V4);
        let last = (number..first + count).take(BURST).take_while(|one| client(*one, Family::V4).0 == pod);
        let frames = last.map(|one| {
            let (_, from) = client(one, Family::V4);
            Ok(from_here(&Ends { from, to }.packet(true)?, pod))
        });
        let frames = frames.collect::<Result<Vec<_>>>()?;
        seen.clear();
        let took = rig.pass_and(Some(pod), &frames, |ends| {
            seen.push(ends);
            Ok(())
        })?;
        look(took, &seen);
        number += frames.len();
        remembered += frames.len();
        ensure!(rig.live() as usize == remembered, "{} connections, not {remembered}", rig.live());
        if remembered >= REMEMBERED {
            rig.forget();
            remembered = 0;
        }
    }
    rig.forget();
    Ok(())
}

/// How many connections with a service begin in a second.
fn beginning(backends: u16, ticks: f64) -> Result<Finding> {
    let mut rig = Rig::new(&snapshot(service(backends)?)?)?;
    let mut rates = Samples::default();
    for run in 0..RUNS {
        let mut bursts = Vec::with_capacity(BEGIN / BURST + usize::from(PODS));
        let before = rig.begun();
        begin(&mut rig, (0, BEGIN), |took, ends| bursts.push(took as f64 / ends.len() as f64))?;
        ensure!(rig.begun() - before == BEGIN as u64, "{} were begun in run {run}", rig.begun() - before);
        bursts.sort_by(f64::total_cmp);
        let most = INTERRUPTED * bursts[bursts.len() / 2];
        let kept: Vec<f64> = bursts.into_iter().filter(|burst| *burst < most).collect();
        rates.push(ticks / (kept.iter().sum::<f64>() / kept.len() as f64) / 1e6);
    }
    eprintln!("  services: {:.2} million connections begin a second, {backends} backends", rates.median());
    let case = vec![("new connections", "through a ClusterIP".into()), ("backends", backends.into())];
    let record = Record::new("services", case, ("new connections", "M/s"), &BTreeMap::from([(OURS, rates)]));
    Ok(Finding { record, targets: vec![Target::AtLeast(1.5)] })
}

/// How far from equal the worst backend's share is.
fn spread() -> Result<Finding> {
    let (backends, connections) = SPREAD;
    let mut rig = Rig::new(&snapshot(service(backends)?)?)?;
    let mut dealt: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    begin(&mut rig, (0, connections), |_, ends| {
        ends.iter().for_each(|ends| *dealt.entry(ends.to).or_default() += 1);
    })?;
    let all = dealt.values().sum::<usize>();
    ensure!(all == connections && dealt.len() == usize::from(backends), "{all} to {} backends", dealt.len());
    let equal = connections as f64 / f64::from(backends);
    let mut worst = Samples::default();
    for count in dealt.values() {
        worst.push((*count as f64 - equal).abs() / equal * 100.0);
    }
    let mut most = Samples::default();
    most.push(worst.max());
    eprintln!("  services: the worst of {backends} backends is {:.2} % off", worst.max());
    let case = vec![("spread over backends", backends.into()), ("connections", connections.into())];
    let record =
        Record::new("services", case, ("worst share off equal", "%"), &BTreeMap::from([(OURS, most)]));
    Ok(Finding { record, targets: vec![Target::AtMost(5.0)] })
}
