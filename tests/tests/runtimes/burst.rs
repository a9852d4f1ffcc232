//! As many pods as a drained node hands to its neighbour.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::ensure;
use causeway_tests::runtime::Running;

use super::stage::{Before, Stage, Story, announced};

pub const STORIES: &[(&str, Story)] = &[("forty_pods_at_once_come_and_go", forty_pods_at_once_come_and_go)];

/// How many.
const PODS: usize = 40;
/// On a busy machine, runtime included.
const PATIENCE: Duration = Duration::from_secs(60);

fn forty_pods_at_once_come_and_go(stage: &Stage) -> anyhow::Result<()> {
    let lab = stage.lab(2)?;
    let (node, far) = (lab.node("n1")?, lab.add_pod("n2", "far")?);
    let containerd = stage.containerd(&node)?;
    let before = Before::of(&node)?;
    let wanted: anyhow::Result<Vec<_>> = (0..PODS).map(|i| announced(&lab, "n1", &format!("p{i}"))).collect();
    let wanted = wanted?;
    let began = Instant::now();
    let pods: anyhow::Result<Vec<_>> = containerd.run_all(&wanted).into_iter().collect();
    let pods = pods?;
    ensure!(began.elapsed() < PATIENCE, "forty pods took {:?}", began.elapsed());
    let addresses: BTreeSet<_> = pods.iter().flat_map(|pod| &pod.addresses).collect();
    ensure!(addresses.len() == 2 * PODS, "{} addresses for {PODS} pods", addresses.len());
    for pod in &pods {
        for address in &pod.addresses {
            ensure!(far.ping(*address), "{address} of {} is not reached from the other node", pod.id);
        }
    }
    let all: Vec<&Running> = pods.iter().collect();
    let began = Instant::now();
    containerd.remove_all(&all)?;
    ensure!(began.elapsed() < PATIENCE, "to remove forty pods took {:?}", began.elapsed());
    before.is_back(&all)
}
