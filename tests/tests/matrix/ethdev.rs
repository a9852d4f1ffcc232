//! Tunnel frames come and go by a device of DPDK instead of through the kernel: told where there is a fast path.

use std::time::Duration;

use anyhow::{Context, ensure};
use causeway_model::{DropReason, Family};
use causeway_tests::capture::Capture;
use causeway_tests::lab::{Lab, Node, Pod, PodSpec, Role, Underlay};
use causeway_tests::traffic::bulk;

use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    ("af_packet_carries_what_the_kernel_carries", af_packet_carries_what_the_kernel_carries),
    ("it_carries_them_over_ipv6_too", it_carries_them_over_ipv6_too),
    ("the_kernel_does_not_answer_beside_it", the_kernel_does_not_answer_beside_it),
    ("it_comes_back_with_the_fast_path", it_comes_back_with_the_fast_path),
    ("an_uplink_that_is_not_there_is_said", an_uplink_that_is_not_there_is_said),
];

const DEVICE: &str = "net_af_packet0,iface=eth0";
/// Time enough to resolve a neighbour anew.
const SOON: Duration = Duration::from_secs(6);

/// A lab whose fast nodes read their uplink with AF_PACKET, and a wire on which frames are what they will be on a real one:
/// AF_PACKET hands over neither the news of an open checksum nor frames longer than its slots.
fn lab(matrix: &Matrix, underlay: Underlay) -> anyhow::Result<Lab> {
    let config = vec![format!("fastpath_uplink: {DEVICE}")];
    let lab = matrix.lab(|spec| (spec.underlay, spec.config) = (underlay, config))?;
    for node in lab.nodes()? {
        plain(&node)?;
    }
    Ok(lab)
}

fn plain(node: &Node) -> anyhow::Result<()> {
    node.exec(
        "ethtool -K eth0 tx off tso off gso off gro off tx-udp_tnl-segmentation off \
         tx-udp_tnl-csum-segmentation off",
    )?;
    Ok(())
}

/// A fast pod on the first node, and one on the second, which is kernel or fast.
fn pods(lab: &Lab) -> anyhow::Result<(Pod, Pod)> {
    let a = PodSpec::named("a").annotation("causeway.dev/path", "fast");
    Ok((lab.add_pod("n1", a)?, lab.add_pod("n2", "c")?))
}

fn af_packet_carries_what_the_kernel_carries(matrix: &Matrix) -> anyhow::Result<()> {
    carries(matrix, Underlay::Both)
}

/// Next hops are neighbours of the other family, and outer checksums are ours to compute.
fn it_carries_them_over_ipv6_too(matrix: &Matrix) -> anyhow::Result<()> {
    carries(matrix, Underlay::V6)
}

fn carries(matrix: &Matrix, underlay: Underlay) -> anyhow::Result<()> {
    let bytes = if matrix.full { 64 << 20 } else { 8 << 20 };
    let lab = lab(matrix, underlay)?;
    let ((a, c), n1) = (pods(&lab)?, lab.node("n1")?);
    let status = n1.status()?;
    let said = status.limits.iter().any(|limit| limit.contains("net_af_packet0 has no descriptor"));
    ensure!(said, "status does not say how an idle worker looks: {:?}", status.limits);
    let wire = Capture::start(n1.namespace(), "eth0")?;
    for family in Family::BOTH {
        for (from, to) in [(&a, &c), (&c, &a)] {
            let what = || format!("{} to {} over {family}", from.name(), to.name());
            ensure!(within(SOON, || from.ping(to.address(family))), "{}: no ping", what());
            let sent = bulk(from.namespace(), to.namespace(), to.address(family), bytes)?;
            ensure!(sent.is_intact() && sent.bytes == bytes, "{}: {sent:?}", what());
        }
        ensure!(n1.ping(c.address(family)), "the node reaches the far pod over {family}");
    }
    let complaints = wire.finish()?.complaints()?;
    ensure!(complaints.is_empty(), "tshark finds fault: {complaints:?}");
    Ok(())
}

fn the_kernel_does_not_answer_beside_it(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = lab(matrix, Underlay::Both)?;
    let (a, c) = pods(&lab)?;
    let n1 = lab.node("n1")?;
    let wire = Capture::start(n1.namespace(), "eth0")?;
    ensure!(within(SOON, || c.ping(a.address(Family::V4))), "no ping");
    // Dead or alive, the fast path is the one that those frames are for.
    lab.kill("n1", Role::Fastpath)?;
    ensure!(!c.ping(a.address(Family::V4)), "a dead fast path answers");
    matrix
        .sabotage("answers-open", || {
            lab.kill("n1", Role::Agent)?;
            n1.exec("nft flush chain netdev causeway uplink")?;
            c.ping(a.address(Family::V4));
            lab.start("n1", Role::Agent)
        })
        .transpose()?;
    // What never reached the kernel's own tunnel port was not refused there either.
    let refused = n1.drops(DropReason::PortDown)?;
    ensure!(refused == 0, "the kernel refused {refused} tunnel frames");
    let recording = wire.finish()?;
    ensure!(!recording.fields("udp.port == 4789", &["frame.number"])?.is_empty(), "nothing was seen");
    let answers = recording.fields("icmp.type == 3 && icmp.code == 3", &["ip.src"])?;
    ensure!(answers.is_empty(), "port unreachable from {answers:?}");
    Ok(())
}

fn it_comes_back_with_the_fast_path(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = lab(matrix, Underlay::Both)?;
    let (a, c) = pods(&lab)?;
    let there = || Family::BOTH.iter().all(|family| a.ping(c.address(*family)));
    ensure!(within(SOON, there), "no ping");
    for order in [&[Role::Fastpath][..], &[Role::Agent], &[Role::Agent, Role::Fastpath]] {
        order.iter().try_for_each(|role| lab.kill("n1", *role))?;
        order.iter().try_for_each(|role| lab.start("n1", *role))?;
        ensure!(within(SOON, there), "no ping after {order:?} came back");
    }
    // Another uplink is a matter of a line and a restarted agent; the living fast path follows.
    let n1 = lab.node("n1")?;
    lab.kill("n1", Role::Agent)?;
    let config = std::fs::read_to_string(n1.config_file())?;
    std::fs::write(n1.config_file(), config.replace(&format!("fastpath_uplink: {DEVICE}\n"), ""))?;
    lab.start("n1", Role::Agent)?;
    ensure!(within(SOON, there), "no ping through the host-routed uplink");
    n1.exec("ip link show cw-up").context("the host-routed uplink is there")?;
    Ok(())
}

fn an_uplink_that_is_not_there_is_said(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| {
        spec.nodes = 1;
        spec.config = vec!["fastpath_uplink: net_af_packet0,iface=nowhere0".into()];
    })?;
    let pods = ["a", "b"]
        .map(|name| lab.add_pod("n1", PodSpec::named(name).annotation("causeway.dev/path", "fast")));
    let [a, b] = pods;
    ensure!(a?.ping(b?.address(Family::V4)), "pods of one node need no uplink");
    let limits = lab.node("n1")?.status()?.limits;
    let said = limits.iter().any(|limit| limit.contains("net_af_packet0,iface=nowhere0"));
    ensure!(said, "status does not name the device: {limits:?}");
    Ok(())
}
