//! Bad input is named, and nothing is half-applied.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use causeway_model::Family;
use causeway_tests::lab::{Binaries, Lab, Node, Role};
use causeway_tests::leftovers::{Holdings, Leftovers};
use causeway_tests::process::Process;

use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    ("an_unknown_key_is_named", an_unknown_key_is_named),
    ("a_missing_uplink_is_named", a_missing_uplink_is_named),
    ("an_mtu_too_small_is_named", an_mtu_too_small_is_named),
    ("a_pod_prefix_over_the_underlay_is_named", a_pod_prefix_over_the_underlay_is_named),
    ("a_pod_prefix_over_another_nodes_is_named", a_pod_prefix_over_another_nodes_is_named),
    ("a_taken_socket_path_is_named", a_taken_socket_path_is_named),
    ("a_second_agent_is_refused", a_second_agent_is_refused),
    (
        "a_manifest_that_does_not_parse_is_named_and_the_others_go_on",
        a_manifest_that_does_not_parse_is_named_and_the_others_go_on,
    ),
];

/// A lab whose agents are not started yet, and its first node.
fn idle(matrix: &Matrix) -> anyhow::Result<(Lab, Node)> {
    let lab = matrix.lab(|spec| spec.agents = false)?;
    let node = lab.node("n1")?;
    lab.configure(&node)?;
    Ok((lab, node))
}

/// Starts the node's agent, which must end or wait with these words, and must leave the node as it was.
fn refused(matrix: &Matrix, lab: &Lab, node: &Node, words: &[&str]) -> anyhow::Result<()> {
    matrix.sabotage("config-good", || lab.configure(node)).transpose()?;
    let before = Holdings::of(node.namespace())?;
    lab.spawn(node, Role::Agent)?;
    let mut said = String::new();
    let named = within(Duration::from_secs(5), || {
        let status = node.status().map(|status| [status.waiting_for, status.problems].concat().join("\n"));
        said = format!("{}\n{}", node.log_tail(20), status.unwrap_or_default());
        words.iter().all(|word| said.contains(word))
    });
    ensure!(named, "the agent does not speak of {words:?}: {said}");
    let serves = node.status().is_ok_and(|status| status.waiting_for.is_empty());
    ensure!(!serves, "it serves all the same: {said}");
    let left = Holdings::of(node.namespace())?.since(&before);
    ensure!(left == Leftovers::NONE, "it has half begun: {left}");
    Ok(())
}

fn edit(node: &Node, change: impl FnOnce(String) -> String) -> anyhow::Result<()> {
    let text = fs::read_to_string(node.config_file())?;
    Ok(fs::write(node.config_file(), change(text))?)
}

fn an_unknown_key_is_named(matrix: &Matrix) -> anyhow::Result<()> {
    let (lab, node) = idle(matrix)?;
    edit(&node, |text| text + "uplnk: eth0\n")?;
    refused(matrix, &lab, &node, &["uplnk", "agent.yaml"])?;
    ensure!(
        !lab.process("n1", Role::Agent)?.is_some_and(Process::is_alive),
        "it runs with a key that it does not know"
    );
    Ok(())
}

fn a_missing_uplink_is_named(matrix: &Matrix) -> anyhow::Result<()> {
    let (lab, node) = idle(matrix)?;
    edit(&node, |text| text.replace("uplink: eth0", "uplink: eth7"))?;
    refused(matrix, &lab, &node, &["eth7"])
}

fn an_mtu_too_small_is_named(matrix: &Matrix) -> anyhow::Result<()> {
    let (lab, node) = idle(matrix)?;
    // The tunnel leaves less than the 1280 bytes that IPv6 asks of every link.
    node.exec("ip link set eth0 mtu 1300")?;
    refused(matrix, &lab, &node, &["1250", "1280"])
}

fn a_pod_prefix_over_the_underlay_is_named(matrix: &Matrix) -> anyhow::Result<()> {
    let (lab, node) = idle(matrix)?;
    edit_node_object(&lab, "n1", |text| text.replace("10.70.1.0/24", "192.0.2.0/25"))?;
    refused(matrix, &lab, &node, &["192.0.2.0/25", "n1"])
}

fn a_pod_prefix_over_another_nodes_is_named(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n2", "c")?);
    let n3 = lab.add_node(1)?;
    let prefix = matrix.sabotage("config-good", || "10.70.9.0/24").unwrap_or("10.70.2.0/25");
    edit_node_object(&lab, n3.name(), |text| text.replace("10.70.3.0/24", prefix))?;
    let n1 = lab.node("n1")?;
    let mut problems = Vec::new();
    let named = within(Duration::from_secs(5), || {
        problems = n1.status().map(|status| status.problems).unwrap_or_default();
        problems.iter().any(|problem| problem.contains("10.70.2.0/25") && problem.contains("n3"))
    });
    ensure!(named, "nothing is said of n3: {problems:?}");
    ensure!(a.ping(c.address(Family::V4)) && c.ping(a.address(Family::V6)), "the others do not go on");
    Ok(())
}

/// Changes a node's object as an editor would.
fn edit_node_object(lab: &Lab, node: &str, change: impl FnOnce(String) -> String) -> anyhow::Result<()> {
    let file = lab.manifests_of(1)?.join(format!("node-{node}.yaml"));
    let text = fs::read_to_string(&file)?;
    Ok(fs::write(&file, change(text))?)
}

fn a_taken_socket_path_is_named(matrix: &Matrix) -> anyhow::Result<()> {
    let (lab, node) = idle(matrix)?;
    let path = node.directory().join("run/cni.sock");
    fs::write(&path, "somebody's file")?;
    refused(matrix, &lab, &node, &["cni.sock"])?;
    ensure!(fs::read_to_string(&path)? == "somebody's file", "the file was taken away");
    Ok(())
}

fn a_second_agent_is_refused(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n2", "c")?);
    let n1 = lab.node("n1")?;
    let first = lab.process("n1", Role::Agent)?.context("no agent")?;
    // Even with directories of its own it would meddle with the same node.
    let other = n1.directory().join("other.yaml");
    let text = fs::read_to_string(n1.config_file())?;
    fs::write(&other, text.replace("/state", "/state2").replace("/run\n", "/run2\n") + "metrics: null\n")?;
    let causeway = Binaries::find()?.get("causeway")?;
    for config in [n1.config_file(), other] {
        let again = n1.exec(&format!("timeout 5 {} agent --config {}", causeway.display(), config.display()));
        let error = again.err().context("a second agent runs")?.to_string();
        ensure!(error.contains("another agent") && !error.contains("exit status: 124"), "{error}");
    }
    ensure!(first.is_alive() && n1.status().is_ok(), "the first agent is gone");
    ensure!(a.ping(c.address(Family::V4)));
    Ok(())
}

fn a_manifest_that_does_not_parse_is_named_and_the_others_go_on(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n2", "c")?);
    let text = if matrix.sabotage("config-good", || ()).is_some() {
        ""
    } else {
        "apiVersion: v1\nkind: Node\nmetadata: {name: ["
    };
    let broken = lab.manifests_of(1)?.join("broken.yaml");
    fs::write(&broken, text)?;
    let n1 = lab.node("n1")?;
    let speaks = || n1.status().is_ok_and(|status| status.problems.iter().any(|p| p.contains("broken.yaml")));
    ensure!(within(Duration::from_secs(5), speaks), "{:?}", n1.status()?.problems);
    ensure!(a.ping(c.address(Family::V4)));
    let e = lab.add_pod("n2", "e").context("beside a broken manifest")?;
    ensure!(a.ping(e.address(Family::V6)));
    fs::remove_file(broken)?;
    ensure!(within(Duration::from_secs(5), || !speaks()), "the problem does not go with its file");
    Ok(())
}
