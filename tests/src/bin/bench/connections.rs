//! What one worker carries when it follows connections: known flows, new ones, and a million of them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use causeway_model::fastpath::Tally;

use super::fastpath::Options;
use super::finding::{Finding, OURS, Record, Target};
use super::flows::Flows;
use super::ovs::Ovs;
use super::pipeline::{Case, MIB, OVS, TESTPMD, findings_of, measure, measure_from, passed, ports, start};
use super::samples::{Contender, interleave};
use super::scene::{Direction, Scene};
use super::scratch::Scratch;
use super::testpmd;

/// Flows of a file, and what is to be reached of OVS following connections: encap, decap.
const KNOWN: [(u32, [f64; 2]); 2] = [(1024, [3.4, 4.5]), (65_536, [4.7, 6.5])];
/// Room for all of them.
pub const ROOM: u32 = 1 << 18;
/// A million flows, and room for twice as many.
const MANY: (u32, u32) = (1 << 20, 1 << 21);
/// Until each of a million flows was seen.
const FILLS: Duration = Duration::from_secs(20);
/// Room for connections that begin, and between which numbers of them their rate is taken.
const NEW: (u32, [u32; 2]) = (1 << 22, [1 << 19, 3 << 20]);
/// New flows in a second, in millions, that are to be reached.
const NEW_FLOWS: f64 = 2.0;

/// Runs the cases with connections.
pub fn run(scratch: &Scratch, scene: &Scene, ticks: f64) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (flows, targets) in KNOWN {
        for (direction, target) in [Direction::Encap, Direction::Decap].into_iter().zip(targets) {
            let file = scratch.file("in.pcap");
            scene.write(direction, flows, &file)?;
            let rates = interleave(
                &format!("{}, {flows} connections, Mpps", direction.word()),
                &mut [
                    Contender::new(OURS, || measure(scratch, scene, direction, ROOM, &file)),
                    Contender::new(OVS, || Ovs::measure(scratch, scene, direction, true, &file)),
                    Contender::new(TESTPMD, || testpmd::measure(&file, flows)),
                ],
            )?;
            let targets = vec![Target::TimesPeer(target, OVS)];
            findings.extend(findings_of(&Case::plain(direction, flows, true), &rates, targets, ticks));
        }
    }
    for direction in [Direction::Encap, Direction::Decap] {
        let (flows, room) = MANY;
        let source = Flows::new(scratch, scene, direction, flows)?;
        let rates = interleave(
            &format!("{}, {flows} connections, Mpps", direction.word()),
            &mut [
                Contender::new(OURS, || many(scratch, scene, direction, room, &source)),
                Contender::new(TESTPMD, || testpmd::measure_flows(&source)),
            ],
        )?;
        findings.extend(findings_of(&Case::plain(direction, flows, true), &rates, Vec::new(), ticks));
        let source = Flows::new(scratch, scene, direction, NEW.0)?;
        let rates = interleave(
            &format!("{}, new connections, millions a second", direction.word()),
            &mut [Contender::new(OURS, || new_flows(scratch, scene, direction, &source))],
        )?;
        let case = vec![("direction", direction.word().into()), ("conntrack", true.into())];
        let record = Record::new("pipeline", case, ("new flows", "M/s"), &rates);
        findings.push(Finding { record, targets: vec![Target::AtLeast(NEW_FLOWS)] });
    }
    Ok(findings)
}

fn live(tally: &Tally) -> Result<u32> {
    Ok(tally.connections.as_ref().context("it remembers no connections")?.live)
}

/// Millions of packets in a second once every flow is known.
fn many(scratch: &Scratch, scene: &Scene, direction: Direction, room: u32, source: &Flows) -> Result<f64> {
    let options = Options { mib: MIB, connections: room, flows: Some(source) };
    let fast = start(scratch, scene, options)?;
    measure_from(&source.device(), fast, scene, direction)
}

/// Millions of connections that begin in a second.
fn new_flows(scratch: &Scratch, scene: &Scene, direction: Direction, source: &Flows) -> Result<f64> {
    let (room, [from, to]) = NEW;
    let options = Options { mib: MIB, connections: room, flows: Some(source) };
    let mut fast = start(scratch, scene, options)?;
    let (way_in, way_out) = ports(direction);
    fast.plug(way_out, "net_null0,no-rx=1")?;
    fast.plug(way_in, &source.device())?;
    let began = Instant::now();
    let mut look = |least: u32| -> Result<(Instant, Tally)> {
        loop {
            let tally = fast.count()?;
            if live(&tally)? >= least {
                return Ok((Instant::now(), tally));
            }
            ensure!(began.elapsed() < FILLS, "{} connections after {FILLS:?}", live(&tally)?);
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let (start, before) = look(from)?;
    let (end, after) = look(to)?;
    let begun = live(&after)? - live(&before)?;
    let sent = passed(direction, &after).1 - passed(direction, &before).1;
    let most = u64::from(begun) + u64::from(begun) / 50;
    ensure!(sent <= most, "{sent} packets began {begun} connections: some were not new");
    Ok(f64::from(begun) / (end - start).as_secs_f64() / 1e6)
}
