//! The topology of a file in a lab, its endpoints by name, and what its nodes say of policies.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::Result;
use ipnetwork::IpNetwork;

use super::format::Corpus;
use super::ranges::prefixes;
use super::world::Stage;
use crate::corpus::ground::{Ground, Plan};
use crate::corpus::sockets::End;
use crate::lab::Datapath;

/// Makes nodes and hosts. Pods come with the first case.
pub(super) fn build(corpus: &Corpus, datapath: Datapath) -> Result<Ground> {
    let (stage, _) = Stage::new(&corpus.topology)?;
    let topology = &corpus.topology;
    let plan = Plan {
        datapath,
        nodes: &topology.nodes,
        prefixes: node_prefixes(corpus)?,
        pods: &topology.pods,
        hosts: topology.externals.iter().map(|(name, host)| (name.clone(), host.ips.clone())).collect(),
        pods_are_routed: true,
    };
    Ground::build(&plan, &stage.scene(&BTreeMap::new()))
}

/// Who an endpoint of a file is: `namespace/name`, `node:NAME` or `ext:NAME`; none without an address of the family.
pub(super) fn end(ground: &Ground, stage: &Stage, endpoint: &str, family: u8) -> Option<End> {
    let address = stage.address(endpoint, family)?;
    let place = if let Some(name) = endpoint.strip_prefix("node:") {
        ground.node_place(name)
    } else if let Some(name) = endpoint.strip_prefix("ext:") {
        ground.host_place(name)
    } else {
        ground.pod_place(stage.pods().get(endpoint)?)
    };
    Some(End { place: place.name().to_owned(), address })
}

/// What the nodes say is wrong.
pub(super) fn problems(ground: &Ground) -> Result<Vec<Vec<String>>> {
    Ok(ground.statuses()?.into_values().map(|status| status.problems).collect())
}

/// How many packets rules have denied, by node and rule.
pub(super) fn denied(ground: &Ground) -> Result<BTreeMap<(String, String), u64>> {
    let mut denied = BTreeMap::new();
    for (name, status) in ground.statuses()? {
        for rule in status.rules {
            denied.insert((name.to_owned(), rule.rule.to_string()), rule.denied.packets);
        }
    }
    Ok(denied)
}

/// Prefixes for every node, from the addresses that pods have at any time.
fn node_prefixes(corpus: &Corpus) -> Result<BTreeMap<String, Vec<IpNetwork>>> {
    let topology = &corpus.topology;
    let mut pods: BTreeMap<String, BTreeSet<IpAddr>> =
        topology.nodes.keys().map(|name| (name.clone(), BTreeSet::new())).collect();
    for pod in topology.pods.iter().cloned().chain(corpus.added_pods()) {
        pods.entry(pod.node).or_default().extend(pod.ips);
    }
    let nodes = topology.nodes.values().flat_map(|node| &node.ips);
    let others = nodes.chain(topology.externals.values().flat_map(|host| &host.ips)).copied().collect();
    prefixes(&pods, &others)
}
