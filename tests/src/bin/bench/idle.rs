//! What two nodes cost whose four pods have nothing to say: processor time of agent and fast path.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use causeway_model::Family;
use causeway_tests::lab::{Datapath, Lab, Role};

use super::finding::{Finding, OURS, Record, Target};
use super::samples::{RUNS, Samples};
use super::stand::Stand;

/// Until those that were awake have gone to sleep.
const CALM: Duration = Duration::from_secs(3);
const SPAN: Duration = Duration::from_secs(10);

/// Runs the bench.
pub fn run() -> Result<Vec<Finding>> {
    let stand = Stand::up("bench-idle", Datapath::Fast, |_| {})?;
    let pods = stand.pods(&["n1", "n1", "n2", "n2"])?;
    let everybody_answers = || {
        for (from, to) in [(0, 1), (0, 2), (3, 1), (3, 2)] {
            ensure!(pods[from].ping(pods[to].address(Family::V4)), "pod {from} does not reach pod {to}");
        }
        Ok(())
    };
    everybody_answers()?;
    std::thread::sleep(CALM);
    let mut shares = Samples::default();
    for run in 1..=RUNS {
        let before = used(&stand.lab)?;
        std::thread::sleep(SPAN);
        let after = used(&stand.lab)?;
        let each = before.iter().zip(&after).map(|(before, after)| after - before);
        let share = each.fold(0.0, f64::max) * 100.0 / SPAN.as_secs_f64();
        eprintln!("  idle: {share:.2} % of a core ({run} of {RUNS})");
        shares.push(share);
    }
    // What sleeps is not dead.
    everybody_answers()?;
    let case = vec![("nodes", 2.into()), ("pods", 4.into()), ("datapath", "fast".into())];
    let samples = BTreeMap::from([(OURS, shares)]);
    let record = Record::new("idle", case, ("busier node", "% of a core"), &samples);
    Ok(vec![Finding { record, targets: vec![Target::AtMost(2.0)] }])
}

/// The seconds of processor time that each node's agent and fast path have used so far.
fn used(lab: &Lab) -> Result<Vec<f64>> {
    let of = |node: &str| {
        let role = |role| {
            let process =
                lab.process(node, role)?.with_context(|| format!("the {role} of {node} does not run"))?;
            process.cpu_seconds().with_context(|| format!("the {role} of {node} has gone"))
        };
        Ok(role(Role::Agent)? + role(Role::Fastpath)?)
    };
    ["n1", "n2"].into_iter().map(of).collect()
}
