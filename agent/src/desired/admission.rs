//! Who may be part of the mesh: clusters and nodes that contradict nobody before them.

use std::collections::BTreeMap;

use causeway_model::{Cluster, ClusterName, Family, MacAddr, Node, NodeId};
use ipnetwork::IpNetwork;

use super::ranges::{Ranges, overlap, single};
use super::{Given, Link, NotReady};
use crate::sources::World;

/// Those who are.
pub(super) struct Admitted {
    /// Every node but our own.
    pub peers: BTreeMap<NodeId, Node>,
    /// Every cluster.
    pub clusters: BTreeMap<ClusterName, Cluster>,
}

/// Admits clusters, then nodes, our own first: whoever comes later yields, so that neither a foreign cluster nor a new node can
/// push out one that was there. Whoever is left out becomes a problem; when it is ourselves, there is no data path.
pub(super) fn admit(
    given: &Given<'_>,
    own: &Node,
    uplink: &Link,
    underlay: Family,
    problems: &mut Vec<String>,
) -> Result<Admitted, NotReady> {
    let world = given.world;
    let clusters = admit_clusters(given, &own.id.cluster, problems)?;
    let mut register = Register::new(&clusters, uplink, underlay);
    register.admit(own).map_err(|reason| NotReady::Refused(format!("Node {}: {reason}", own.id)))?;
    let mut peers = BTreeMap::new();
    for node in candidates(world, own) {
        if !clusters.contains_key(&node.id.cluster) {
            continue;
        }
        match register.admit(node) {
            Ok(()) => drop(peers.insert(node.id.clone(), node.clone())),
            Err(reason) => problems.push(format!("Node {} is left out: {reason}", node.id)),
        }
    }
    Ok(Admitted { peers, clusters })
}

/// The other nodes in the order of their claims: this cluster's before others', older before younger.
fn candidates<'a>(world: &'a World, own: &Node) -> Vec<&'a Node> {
    let mut candidates: Vec<_> = world.nodes.values().filter(|object| object.node.id != own.id).collect();
    candidates.sort_by_key(|object| {
        let foreign = object.node.id.cluster != own.id.cluster;
        (foreign, object.created.is_none(), &object.created, &object.node.id)
    });
    candidates.into_iter().map(|object| &object.node).collect()
}

/// The clusters that have a part in the mesh; whoever has none is named with all reasons for it.
fn admit_clusters(
    Given { world, standing, .. }: &Given<'_>,
    own: &ClusterName,
    problems: &mut Vec<String>,
) -> Result<BTreeMap<ClusterName, Cluster>, NotReady> {
    let mut clusters = BTreeMap::new();
    for cluster in world.clusters.values().map(|object| &object.cluster) {
        let name = &cluster.name;
        if name == own && cluster.id == 0 {
            let why = "id 0 is no cluster's; give it one from 1 to 4294967295";
            return Err(NotReady::Refused(format!("Cluster {name}: {why}")));
        }
        if standing.members.contains(name) {
            clusters.insert(name.clone(), cluster.clone());
        }
    }
    let refused = standing.refused.iter();
    problems
        .extend(refused.map(|(name, why)| format!("Cluster {name} is left out with all its nodes: {why}")));
    let unknown = |node: &&NodeId| !world.clusters.contains_key(&node.cluster);
    let mut nameless: Vec<_> = world.nodes.keys().filter(unknown).map(|node| &node.cluster).collect();
    nameless.dedup();
    problems.extend(
        nameless
            .into_iter()
            .map(|name| format!("cluster {name} has no Cluster object: its nodes are left out")),
    );
    Ok(clusters)
}

const UNDERLAY: &str = "underlay address";

/// Whose an address is already.
struct Claim {
    what: &'static str,
    node: NodeId,
}

/// What the admitted nodes hold.
struct Register<'a> {
    clusters: &'a BTreeMap<ClusterName, Cluster>,
    uplink: &'a Link,
    underlay: Family,
    claims: Ranges<Claim>,
    vtep_macs: BTreeMap<MacAddr, NodeId>,
}

impl<'a> Register<'a> {
    fn new(clusters: &'a BTreeMap<ClusterName, Cluster>, uplink: &'a Link, underlay: Family) -> Self {
        Self { clusters, uplink, underlay, claims: Ranges::new(), vtep_macs: BTreeMap::new() }
    }

    /// Takes up a node that contradicts nobody.
    fn admit(&mut self, node: &Node) -> Result<(), String> {
        self.judge_shape(node)?;
        for prefix in &node.pod_prefixes {
            self.judge_prefix(&node.id.cluster, *prefix)?;
        }
        let claims = claims_of(node);
        judge_against_itself(&claims)?;
        for (what, range) in &claims {
            if let Some((hit, claim)) = self.claims.overlap(*range) {
                let (theirs, other) = (text(claim.what, *hit), &claim.node);
                return Err(format!("its {} overlaps {theirs} of Node {other}", text(what, *range)));
            }
        }
        if let Some(other) = self.vtep_macs.get(&node.vtep_mac) {
            return Err(format!(
                "its tunnel's hardware address {} is also that of Node {other}",
                node.vtep_mac
            ));
        }
        self.vtep_macs.insert(node.vtep_mac, node.id.clone());
        for (what, range) in claims {
            self.claims.insert(range, Claim { what, node: node.id.clone() });
        }
        Ok(())
    }

    /// What a node must have.
    fn judge_shape(&self, node: &Node) -> Result<(), String> {
        if node.tunnel_address(self.underlay).is_none() {
            return Err(format!(
                "it has no {} address for the tunnel, as the underlay has here",
                self.underlay
            ));
        }
        if node.pod_prefixes.is_empty() {
            return Err("it has no pod prefixes (yet)".to_owned());
        }
        for family in Family::BOTH {
            if let Some(first) = node.pod_prefixes_of(family).next()
                && node.probe_address(family).is_none()
            {
                return Err(format!(
                    "its pod prefix {first} has no room for the two addresses reserved in it"
                ));
            }
        }
        Ok(())
    }

    /// Whether a pod prefix is its cluster's to give, and leaves this node's own network alone.
    fn judge_prefix(&self, own: &ClusterName, prefix: IpNetwork) -> Result<(), String> {
        for Cluster { name, pod_prefixes, service_prefixes, .. } in self.clusters.values() {
            let inside = |range: &IpNetwork| range.prefix() <= prefix.prefix() && overlap(*range, prefix);
            if name == own && !pod_prefixes.is_empty() && !pod_prefixes.iter().any(inside) {
                let listed = pod_prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                return Err(format!("its pod prefix {prefix} is outside its cluster's podCIDRs {listed}"));
            }
            let others = pod_prefixes.iter().filter(|_| name != own).map(|range| ("pod", range));
            let mut not_its_own = others.chain(service_prefixes.iter().map(|range| ("service", range)));
            if let Some((kind, hit)) = not_its_own.find(|(_, range)| overlap(**range, prefix)) {
                return Err(format!(
                    "its pod prefix {prefix} overlaps {kind} prefix {hit} of cluster {name}"
                ));
            }
        }
        match self.uplink.addresses.iter().find(|subnet| overlap(**subnet, prefix)) {
            Some(subnet) => {
                let (network, length, link) = (subnet.network(), subnet.prefix(), &self.uplink.name);
                Err(format!("its pod prefix {prefix} overlaps {network}/{length}, the underlay on {link}"))
            }
            None => Ok(()),
        }
    }
}

fn claims_of(node: &Node) -> Vec<(&'static str, IpNetwork)> {
    let addresses = node.underlay.iter().map(|address| (UNDERLAY, single(*address)));
    addresses.chain(node.pod_prefixes.iter().map(|prefix| ("pod prefix", *prefix))).collect()
}

fn judge_against_itself(claims: &[(&'static str, IpNetwork)]) -> Result<(), String> {
    for (index, (what, range)) in claims.iter().enumerate() {
        if let Some((other, hit)) = claims[..index].iter().find(|(_, hit)| overlap(*hit, *range)) {
            return Err(format!("its {} overlaps its {}", text(what, *range), text(other, *hit)));
        }
    }
    Ok(())
}

fn text(what: &str, range: IpNetwork) -> String {
    if what == UNDERLAY { format!("{what} {}", range.ip()) } else { format!("{what} {range}") }
}
