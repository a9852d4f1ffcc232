//! Pods and nodes come and go while others talk.

use std::time::Duration;

use anyhow::{Context, ensure};
use causeway_model::Family;
use causeway_tests::lab::{Node, Pod};
use causeway_tests::traffic::Flow;

use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    ("pods_come_and_go_beside_a_flow", pods_come_and_go_beside_a_flow),
    ("nobody_answers_for_a_deleted_pod", nobody_answers_for_a_deleted_pod),
    ("an_address_is_reached_again_at_its_next_pod", an_address_is_reached_again_at_its_next_pod),
    ("nodes_are_added_and_removed_by_manifest", nodes_are_added_and_removed_by_manifest),
    ("clusters_of_one_mesh_reach_each_other", clusters_of_one_mesh_reach_each_other),
];

/// What a flow may stand still for while a busy machine changes something.
const UNNOTICED: Duration = Duration::from_millis(1000);

fn pods_come_and_go_beside_a_flow(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n2", "c")?);
    let flow = Flow::start(a.namespace(), c.namespace(), c.address(Family::V4))?;
    for round in 0..3 {
        let (near, far) = (format!("near{round}"), format!("far{round}"));
        let (x, y) = (lab.add_pod("n1", near.as_str())?, lab.add_pod("n2", far.as_str())?);
        ensure!(x.ping(y.address(Family::V4)) && y.ping(a.address(Family::V6)), "round {round}");
        lab.del_pod(&near)?;
        lab.del_pod(&far)?;
    }
    let seen = flow.finish()?;
    ensure!(seen.bytes > 0 && seen.longest_gap < UNNOTICED, "{seen:?}");
    Ok(())
}

fn nobody_answers_for_a_deleted_pod(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let [a, c, d] = [("n1", "a"), ("n2", "c"), ("n2", "d")].map(|(node, pod)| lab.add_pod(node, pod));
    let (a, c, d) = (a?, c?, d?);
    let [n1, n2] = [lab.node("n1")?, lab.node("n2")?];
    ensure!(Family::BOTH.iter().all(|family| a.ping(c.address(*family))), "it answers while it is there");
    if matrix.sabotage("pod-not-deleted", || ()).is_none() {
        lab.del_pod("c")?;
    }
    let before = [n1.status()?.tunnel_sent.packets, n2.status()?.tunnel_sent.packets];
    for family in Family::BOTH {
        let address = c.address(family);
        let answered = [a.ping(address), d.ping(address), n1.ping(address), n2.ping(address)];
        ensure!(answered == [false; 4], "{address} is answered to a, d, n1, n2: {answered:?}");
    }
    // Each question crosses once and comes back at most once as an error: nothing circles.
    let after = [n1.status()?.tunnel_sent.packets, n2.status()?.tunnel_sent.packets];
    ensure!(
        after[0] - before[0] <= 16 && after[1] - before[1] <= 16,
        "tunnel frames: {before:?}, then {after:?}"
    );
    Ok(())
}

fn an_address_is_reached_again_at_its_next_pod(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n2", "c")?);
    ensure!(a.ping(c.address(Family::V4)));
    lab.del_pod("c")?;
    let pinned = causeway_tests::lab::PodSpec::named("e").annotation(
        "causeway.dev/addresses",
        &format!("{}, {}", c.address(Family::V4), c.address(Family::V6)),
    );
    let e = lab.add_pod("n2", pinned)?;
    ensure!(
        e.record.addresses == c.record.addresses,
        "{:?}, not {:?}",
        e.record.addresses,
        c.record.addresses
    );
    ensure!(Family::BOTH.iter().all(|family| a.ping(e.address(*family))), "the next pod does not answer");
    Ok(())
}

fn nodes_are_added_and_removed_by_manifest(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n2", "c")?);
    let flow = Flow::start(a.namespace(), c.namespace(), c.address(Family::V6))?;
    let n3 = lab.add_node(1)?;
    let e = lab.add_pod(n3.name(), "e")?;
    let reached = |pod: &Pod| Family::BOTH.iter().all(|family| pod.ping(e.address(*family)));
    ensure!(
        within(Duration::from_secs(5), || reached(&a) && reached(&c)),
        "the new node's pod is not reached"
    );
    lab.set_known("n3", false)?;
    let forgotten = |node: &Node| node.status().is_ok_and(|status| status.peers.len() == 1);
    let [n1, n2] = [lab.node("n1")?, lab.node("n2")?];
    ensure!(within(Duration::from_secs(5), || forgotten(&n1) && forgotten(&n2)), "n3 is still a peer");
    ensure!(
        !a.ping(e.address(Family::V4)) && !c.ping(e.address(Family::V6)),
        "a forgotten node's pod is reached"
    );
    lab.set_known("n3", true)?;
    ensure!(within(Duration::from_secs(5), || reached(&a) && reached(&c)), "the node does not come back");
    let seen = flow.finish().context("the flow between the others")?;
    ensure!(seen.longest_gap < UNNOTICED, "the flow between the others: {seen:?}");
    Ok(())
}

fn clusters_of_one_mesh_reach_each_other(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.clusters = 2)?;
    let (a, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n2", "c")?);
    for family in Family::BOTH {
        ensure!(a.ping(c.address(family)) && c.ping(a.address(family)), "{family}");
    }
    let peers = lab.node("n1")?.status()?.peers;
    ensure!(peers.len() == 1 && peers[0].id.to_string() == "c2/n2", "{peers:?}");
    Ok(())
}
