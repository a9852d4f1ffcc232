//! Runtimes, agents and whole nodes that die beside their pods.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use causeway_model::Family;
use causeway_tests::lab::{Lab, Node, Role};
use causeway_tests::runtime::Running;

use super::stage::{Before, Stage, Story, announced};

pub const STORIES: &[(&str, Story)] = &[
    ("a_runtime_that_died_beside_its_pods_cleans_up", a_runtime_that_died_beside_its_pods_cleans_up),
    ("pods_are_removed_while_the_agent_is_dead", pods_are_removed_while_the_agent_is_dead),
    ("an_agent_killed_under_a_burst_loses_no_address", an_agent_killed_under_a_burst_loses_no_address),
    (
        "a_node_that_lost_its_power_gives_every_address_back",
        a_node_that_lost_its_power_gives_every_address_back,
    ),
];

fn a_runtime_that_died_beside_its_pods_cleans_up(stage: &Stage) -> anyhow::Result<()> {
    let lab = stage.lab(1)?;
    let node = lab.node("n1")?;
    let mut containerd = stage.containerd(&node)?;
    let before = Before::of(&node)?;
    let pod = containerd.run(&announced(&lab, "n1", "a")?)?;
    containerd.kill()?;
    ensure!(node.ping(pod.address(Family::V4)?), "the pod's network died with the runtime");
    // Somebody tidies up behind it: DEL will come without a namespace, and more than once.
    pod.namespace.delete()?;
    containerd.restart()?;
    containerd.remove(&pod)?;
    before.is_back(&[&pod])?;
    let again = containerd.run(&announced(&lab, "n1", "b")?)?;
    ensure!(node.ping(again.address(Family::V6)?));
    containerd.remove(&again)?;
    before.is_back(&[&again])
}

fn pods_are_removed_while_the_agent_is_dead(stage: &Stage) -> anyhow::Result<()> {
    let lab = stage.lab(1)?;
    let node = lab.node("n1")?;
    let containerd = stage.containerd(&node)?;
    let before = Before::of(&node)?;
    let pod = containerd.run(&announced(&lab, "n1", "a")?)?;
    lab.kill("n1", Role::Agent)?;
    containerd.remove(&pod).context("with the agent dead")?;
    let refused = containerd.run(&announced(&lab, "n1", "b")?).err().context("a pod without an agent")?;
    ensure!(refused.to_string().contains("cni.sock"), "{refused}");
    lab.start("n1", Role::Agent)?;
    before.is_back(&[&pod])
}

/// How many pods at once.
const PODS: usize = 8;

fn an_agent_killed_under_a_burst_loses_no_address(stage: &Stage) -> anyhow::Result<()> {
    let lab = stage.lab(1)?;
    let node = lab.node("n1")?;
    let containerd = stage.containerd(&node)?;
    let before = Before::of(&node)?;
    let wanted: anyhow::Result<Vec<_>> = (0..PODS).map(|i| announced(&lab, "n1", &format!("p{i}"))).collect();
    let wanted = wanted?;
    let (tried, restarted) = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            // Some pods are done by then, some on their way, some not begun.
            std::thread::sleep(Duration::from_millis(300));
            lab.kill("n1", Role::Agent)?;
            std::thread::sleep(Duration::from_millis(500));
            lab.start("n1", Role::Agent)
        });
        let tried = containerd.run_all(&wanted);
        (tried, killer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    restarted?;
    // The kubelet tries again whatever failed.
    let again = |(tried, pod)| -> anyhow::Result<Running> { tried_again(tried, || containerd.run(pod)) };
    let pods: anyhow::Result<Vec<_>> = tried.into_iter().zip(&wanted).map(again).collect();
    let pods = pods?;
    let addresses: BTreeSet<_> = pods.iter().flat_map(|pod| &pod.addresses).collect();
    ensure!(addresses.len() == 2 * PODS, "{} addresses for {PODS} pods", addresses.len());
    ensure!(node.endpoints()?.len() == PODS, "{:?}", node.endpoints()?);
    for address in &addresses {
        ensure!(node.ping(**address), "{address} is not reached");
    }
    let all: Vec<_> = pods.iter().collect();
    containerd.remove_all(&all)?;
    before.is_back(&all)
}

fn tried_again(
    tried: anyhow::Result<Running>,
    again: impl FnOnce() -> anyhow::Result<Running>,
) -> anyhow::Result<Running> {
    match tried {
        Ok(pod) => Ok(pod),
        Err(first) => again().with_context(|| format!("again, after {first:#}")),
    }
}

fn a_node_that_lost_its_power_gives_every_address_back(stage: &Stage) -> anyhow::Result<()> {
    let lab = stage.lab(1)?;
    let node = lab.node("n1")?;
    let mut containerd = stage.containerd(&node)?;
    let before = Before::of(&node)?;
    let wanted = [announced(&lab, "n1", "old-a")?, announced(&lab, "n1", "old-b")?];
    let old: anyhow::Result<Vec<_>> = containerd.run_all(&wanted).into_iter().collect();
    let old = old?;
    let old: Vec<_> = old.iter().collect();
    containerd.lose_power(&old)?;
    lose_power(&lab, &node)?;
    containerd.restart()?;
    let new = containerd.run(&announced(&lab, "n1", "new")?).context("at once after the power is back")?;
    ensure!(old.iter().all(|old| old.addresses != new.addresses), "{new:?} has the address of {old:?}");
    // The kubelet removes what it finds dead; DELs come late, and without a namespace.
    if !stage.sabotage("late-del-lost") {
        containerd.remove_all(&old)?;
    }
    for family in Family::BOTH {
        ensure!(node.ping(new.address(family)?), "the late DELs took the new pod's {family} along");
    }
    ensure!(node.endpoints()?.len() == 1, "{:?}", node.endpoints()?);
    containerd.remove(&new)?;
    before.is_back(&old)?;
    before.is_back(&[&new])
}

/// What a node forgets: processes, sockets, and all that the kernel knew of us. Its state directory stays.
fn lose_power(lab: &Lab, node: &Node) -> anyhow::Result<()> {
    let fast = lab.process("n1", Role::Fastpath)?.is_some();
    lab.kill("n1", Role::Agent)?;
    if fast {
        lab.kill("n1", Role::Fastpath)?;
    }
    for entry in std::fs::read_dir(node.directory().join("run"))? {
        std::fs::remove_file(entry?.path())?;
    }
    for link in ["cw-vxlan", "cw-host", "cw-up"] {
        drop(node.exec(&format!("ip link del {link}")));
    }
    for words in ["nft flush ruleset", "ip route flush proto 202", "ip -6 route flush proto 202"] {
        node.exec(words)?;
    }
    for family in ["-4", "-6"] {
        while node.exec(&format!("ip {family} rule del priority 5170")).is_ok() {}
    }
    if fast {
        lab.start("n1", Role::Fastpath)?;
    }
    lab.start("n1", Role::Agent)?;
    Ok(())
}
