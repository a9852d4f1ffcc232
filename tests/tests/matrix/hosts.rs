//! Nodes and pods talk, and no fabric sees a pod's address.

use anyhow::{Context, ensure};
use causeway_model::Family;
use causeway_tests::capture::Capture;
use causeway_tests::lab::{Lab, Node, Pod, WireKind};
use causeway_tests::traffic::{bulk, http};

use super::stage::{Matrix, Story};

pub const STORIES: &[(&str, Story)] = &[
    ("a_node_reaches_its_own_pods", a_node_reaches_its_own_pods),
    ("a_node_reaches_pods_of_another", a_node_reaches_pods_of_another),
    ("a_pod_reaches_every_node", a_pod_reaches_every_node),
    ("the_wire_sees_no_pod_address", the_wire_sees_no_pod_address),
];

fn a_node_reaches_its_own_pods(matrix: &Matrix) -> anyhow::Result<()> {
    let stage = matrix.stage()?;
    let ([n1, _], [a, b, ..]) = (&stage.nodes, &stage.pods);
    [a, b].into_iter().try_for_each(|pod| node_to_pod(n1, pod))
}

fn a_node_reaches_pods_of_another(matrix: &Matrix) -> anyhow::Result<()> {
    let stage = matrix.stage()?;
    let ([n1, _], [.., c, d]) = (&stage.nodes, &stage.pods);
    [c, d].into_iter().try_for_each(|pod| node_to_pod(n1, pod))
}

/// A node speaks to pods as its overlay host address.
fn node_to_pod(node: &Node, pod: &Pod) -> anyhow::Result<()> {
    for family in Family::BOTH {
        let (what, address) =
            (format!("{} to {} over {family}", node.name(), pod.name()), pod.address(family));
        ensure!(node.ping(address), "ping {what}");
        let (_, client) = http(node.namespace(), pod.namespace(), address).with_context(|| what.clone())?;
        ensure!(client == node.overlay_host_address(family), "{what}: the pod sees {client}");
        let sent = bulk(node.namespace(), pod.namespace(), address, 4 << 20).with_context(|| what.clone())?;
        ensure!(sent.is_intact(), "{what}: {sent:?}");
    }
    Ok(())
}

fn a_pod_reaches_every_node(matrix: &Matrix) -> anyhow::Result<()> {
    let stage = matrix.stage()?;
    for (pod, node) in stage.pods.iter().flat_map(|pod| stage.nodes.iter().map(move |node| (pod, node))) {
        for family in Family::BOTH {
            let addresses = [node.address(family), node.overlay_host_address(family)];
            for address in addresses {
                let what = format!("{} to {} at {address}", pod.name(), node.name());
                ensure!(pod.ping(address), "ping {what}");
                let (_, client) =
                    http(pod.namespace(), node.namespace(), address).with_context(|| what.clone())?;
                ensure!(client == pod.address(family), "{what}: the node sees {client}");
            }
        }
    }
    Ok(())
}

/// Stops a node's agent from mending, then breaks something.
pub(super) fn freeze(lab: &Lab, node: &str, harm: &str) -> anyhow::Result<()> {
    let agent = lab.process(node, causeway_tests::lab::Role::Agent)?.context("no agent")?;
    agent.signal(nix::sys::signal::Signal::SIGSTOP)?;
    lab.node(node)?.exec(harm)?;
    Ok(())
}

fn the_wire_sees_no_pod_address(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.wire = WireKind::Userspace)?;
    let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
    let (pod, other) = (lab.add_pod("n1", "a")?, lab.add_pod("n2", "c")?);
    // What a pod sends to a node then leaves bare, and the answer still comes: only the wire shows it.
    matrix
        .sabotage("rule-missing", || freeze(&lab, "n1", "ip rule del priority 5170 proto 202"))
        .transpose()?;
    let capture = Capture::start(n1.namespace(), "eth0")?;
    for family in Family::BOTH {
        for address in [other.address(family), n2.address(family), n2.overlay_host_address(family)] {
            ensure!(pod.ping(address), "{address}");
        }
        ensure!(n1.ping(other.address(family)) && n1.ping(n2.address(family)));
    }
    let recording = capture.finish()?;
    let inside = recording
        .fields("vxlan && (ip.addr == 10.70.0.0/16 || ipv6.addr == fd70::/32)", &["frame.number"])?;
    ensure!(!inside.is_empty(), "none of {} frames is of the tunnel", recording.frames);
    let bare = "!vxlan && !arp && (ip.addr == 10.70.0.0/16 || ipv6.addr == fd70::/32)";
    let bare = recording.fields(bare, &["frame.protocols", "ip.src", "ip.dst", "ipv6.src", "ipv6.dst"])?;
    ensure!(bare.is_empty(), "frames outside of the tunnel: {bare:?}");
    Ok(())
}
