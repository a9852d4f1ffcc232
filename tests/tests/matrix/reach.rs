//! Pods talk to pods, on one node and across nodes.

use anyhow::{Context, ensure};
use causeway_model::{Family, TunnelOwner};
use causeway_tests::traffic::{bulk, http};

use super::stage::{Matrix, Story};

pub const STORIES: &[(&str, Story)] = &[
    ("every_pod_pings_every_pod", every_pod_pings_every_pod),
    ("tcp_carries_what_was_sent", tcp_carries_what_was_sent),
    ("a_web_server_sees_the_pod_that_asks", a_web_server_sees_the_pod_that_asks),
    ("what_a_node_tunnels_is_no_connection_of_its_own", what_a_node_tunnels_is_no_connection_of_its_own),
    ("what_older_kernels_lack_is_done_without_and_said", what_older_kernels_lack_is_done_without_and_said),
];

fn every_pod_pings_every_pod(matrix: &Matrix) -> anyhow::Result<()> {
    let stage = matrix.stage()?;
    // Half of the other node's pods: a route that is not ours to mend.
    matrix
        .sabotage("route-missing", || stage.nodes[0].exec("ip route add blackhole 10.70.2.0/25"))
        .transpose()?;
    for (from, to) in stage.pairs() {
        for family in Family::BOTH {
            let address = to.address(family);
            ensure!(from.ping(address), "{} to {} at {address}", from.name(), to.name());
        }
    }
    Ok(())
}

fn tcp_carries_what_was_sent(matrix: &Matrix) -> anyhow::Result<()> {
    let (stage, bytes) = (matrix.stage()?, if matrix.full { 256 << 20 } else { 32 << 20 });
    for (from, to) in stage.near_and_far() {
        for family in Family::BOTH {
            let what = || format!("{} to {} over {family}", from.name(), to.name());
            let sent =
                bulk(from.namespace(), to.namespace(), to.address(family), bytes).with_context(what)?;
            ensure!(sent.is_intact() && sent.bytes == bytes, "{}: {sent:?}", what());
        }
    }
    Ok(())
}

fn a_web_server_sees_the_pod_that_asks(matrix: &Matrix) -> anyhow::Result<()> {
    let stage = matrix.stage()?;
    for (from, to) in stage.near_and_far() {
        for family in Family::BOTH {
            let (_, client) = http(from.namespace(), to.namespace(), to.address(family))?;
            ensure!(client == from.address(family), "{} sees {client}, not {}", to.name(), from.name());
        }
    }
    Ok(())
}

/// Each flow inside has an outer port of its own: pods would fill the node's table of connections.
fn what_a_node_tunnels_is_no_connection_of_its_own(matrix: &Matrix) -> anyhow::Result<()> {
    let stage = matrix.stage()?;
    let [_, (from, to)] = stage.near_and_far();
    ensure!(from.ping(to.address(Family::V4)), "{} does not reach {}", from.name(), to.name());
    for node in &stage.nodes {
        let own = node.address(Family::V4);
        let connections = node.exec("cat /proc/net/nf_conntrack")?;
        let begun =
            |line: &&str| line.split("src=").nth(1).is_some_and(|by| by.starts_with(&format!("{own} ")));
        let tunnel = connections.lines().filter(begun).find(|line| line.contains("dport=4789"));
        ensure!(tunnel.is_none(), "{} follows {tunnel:?}", node.name());
    }
    Ok(())
}

/// A stock Debian 12 kernel knows neither; the agent does without them when it is told to.
fn what_older_kernels_lack_is_done_without_and_said(matrix: &Matrix) -> anyhow::Result<()> {
    const BYTES: u64 = 8 << 20;
    let masked =
        matrix.lab(|spec| spec.config = vec!["mask: [vxlan-reserved-bits, tun-udp-tunnel-gso]".into()])?;
    let (a, c) = (masked.add_pod("n1", "a")?, masked.add_pod("n2", "c")?);
    for node in masked.nodes()? {
        let status = node.status()?;
        let word = match status.path.tunnel {
            TunnelOwner::Kernel => "strict reserved bits",
            TunnelOwner::FastPath => "no tunnel GSO",
        };
        let said = status.limits.iter().any(|limit| limit.contains(word) && limit.contains("masked"));
        ensure!(said, "{} does not say {word:?}: {:?}", node.name(), status.limits);
    }
    for family in Family::BOTH {
        for (from, to) in [(&a, &c), (&c, &a)] {
            let sent = bulk(from.namespace(), to.namespace(), to.address(family), BYTES)?;
            ensure!(sent.is_intact() && sent.bytes == BYTES, "{} to {}: {sent:?}", from.name(), to.name());
        }
    }
    Ok(())
}
