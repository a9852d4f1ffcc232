//! What this node's data path shall be: a function of what is known, what was configured and what the machine is like.

mod admission;
mod ranges;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_mesh::{self as mesh, Refusal};
use causeway_model::{
    ClusterName, Family, HostServices, Node, NodeId, Overlay, Settings, Snapshot, TunnelOwner, UplinkKind,
};
use ipnetwork::IpNetwork;
use thiserror::Error;

use crate::config::Config;
use crate::sources::World;
use admission::{Admitted, admit};

/// The least MTU a pod may have that has an IPv6 address (RFC 8200 §5).
const LEAST_MTU_V6: u16 = 1280;
/// The least MTU of a pod that has none: what every IPv4 host must take (RFC 791 §3.1).
const LEAST_MTU_V4: u16 = 576;

/// A network interface of this machine, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its MTU.
    pub mtu: u32,
    /// Its addresses with the lengths of their subnets.
    pub addresses: Vec<IpNetwork>,
    /// It is up, and something is at its other end.
    pub up: bool,
}

/// All that the desired state depends on.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// What is known.
    pub world: &'a World,
    /// Where from, for the reader: "manifests in /etc/causeway/manifests".
    pub source: &'a str,
    /// What was configured.
    pub config: &'a Config,
    /// The interfaces of this machine; the agent's own may be among them.
    pub links: &'a [Link],
    /// Who holds the tunnel.
    pub tunnel: TunnelOwner,
    /// Who keeps services in the node's own stack.
    pub host_services: HostServices,
    /// Which clusters have a part in the mesh.
    pub standing: &'a Standing,
}

/// What is settled between clusters of who came before whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Those that have a part, in the order in which they came: whoever comes later yields.
    pub members: Vec<ClusterName>,
    /// Those that have none, and why: all reasons.
    pub refused: BTreeMap<ClusterName, String>,
}

impl Standing {
    /// As a mesh has it.
    pub fn of(mesh: &mesh::World) -> Self {
        let reasons =
            |refusals: &[Refusal]| refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        Self {
            members: mesh.members().iter().map(|claim| claim.cluster.clone()).collect(),
            refused: mesh.refused().iter().map(|(name, why)| (name.clone(), reasons(why))).collect(),
        }
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// The desired state, or why there is none.
    pub ready: Result<Ready, NotReady>,
    /// What is wrong and not fatal: who is left out, and why. The world's own problems come first.
    pub problems: Vec<String>,
}

/// A desired state.
#[derive(Clone, Debug, PartialEq)]
pub struct Ready {
    /// The state, but for the endpoints and what policy says of them.
    pub snapshot: Snapshot,
    /// The interface that carries the tunnel.
    pub uplink: String,
}

/// Why there is no desired state. Nothing of it is applied; what was applied before stays.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotReady {
    /// Something has yet to come, which may happen without anybody's doing.
    #[error("waiting for {0}")]
    Waiting(String),
    /// What is there contradicts itself; somebody must change it.
    #[error("{0}")]
    Refused(String),
}

/// Works out the desired state.
pub fn desired(given: &Given<'_>) -> Desired {
    let mut problems = given.world.problems.clone();
    let ready = work_out(given, &mut problems);
    Desired { ready, problems }
}

fn work_out(given: &Given<'_>, problems: &mut Vec<String>) -> Result<Ready, NotReady> {
    let own = own_node(given)?;
    let (uplink, tunnel_address) = uplink(given, own)?;
    let family = Family::of(tunnel_address);
    let pod_mtu = pod_mtu(given.config, uplink, own, family)?;
    let Admitted { peers, clusters } = admit(given, own, uplink, family, problems)?;
    if let Some(first) = own.tunnel_address(family).filter(|first| *first != tunnel_address) {
        let (node, link) = (&own.id, &uplink.name);
        problems.push(format!(
            "Node {node}: other nodes send to {first}, but of its underlay addresses {link} has {tunnel_address}"
        ));
    }
    let Overlay { vni, port } = given.config.overlay;
    let settings = Settings {
        overlay: Overlay { vni, port },
        node: own.clone(),
        tunnel_address,
        tunnel: given.tunnel,
        uplink: match given.config.fastpath_uplink {
            Some(_) => UplinkKind::Ethdev,
            None => UplinkKind::HostRouted,
        },
        pod_mtu,
        connections: given.config.connections.clone(),
        host_services: given.host_services,
        masquerade: given.config.masquerade.clone(),
        names: given.config.names.clone(),
    };
    let snapshot = Snapshot { peers, clusters, ..Snapshot::new(settings) };
    Ok(Ready { snapshot, uplink: uplink.name.clone() })
}

/// This node's object, as far as it must be complete.
fn own_node<'a>(given: &Given<'a>) -> Result<&'a Node, NotReady> {
    let (name, source) = (&given.config.node, given.source);
    let Some(cluster) = &given.world.cluster else {
        return Err(NotReady::Waiting(format!("the Cluster object of this cluster ({source})")));
    };
    let id = NodeId { cluster: cluster.clone(), name: name.clone() };
    let waiting =
        |what: &str| NotReady::Waiting(format!("{what} Node {name} in cluster {cluster} ({source})"));
    let node = given.world.nodes.get(&id).map(|object| &object.node);
    match node {
        None => Err(NotReady::Waiting(format!("Node {name} in cluster {cluster} ({source})"))),
        Some(node) if node.underlay.is_empty() => Err(waiting("underlay addresses of")),
        Some(node) if node.pod_prefixes.is_empty() => Err(waiting("pod prefixes of")),
        Some(node) => Ok(node),
    }
}

/// The interface that carries the tunnel, and the node's address on it.
fn uplink<'a>(given: &Given<'a>, own: &Node) -> Result<(&'a Link, IpAddr), NotReady> {
    let on = |link: &Link| {
        let has = |address: &IpAddr| link.addresses.iter().any(|subnet| subnet.ip() == *address);
        own.underlay.iter().copied().find(has)
    };
    let listed = |addresses: &mut dyn Iterator<Item = String>| addresses.collect::<Vec<_>>().join(", ");
    let wanted = listed(&mut own.underlay.iter().map(ToString::to_string));
    let Some(name) = &given.config.uplink else {
        // An address on the loopback is carried by interfaces that only the operator can name.
        let mut links = given.links.iter().filter(|link| link.name != "lo");
        let found = links.find_map(|link| on(link).map(|address| (link, address)));
        let text = format!("an interface with an underlay address of Node {} ({wanted})", own.id);
        return found.ok_or(NotReady::Waiting(text));
    };
    let Some(link) = given.links.iter().find(|link| link.name == *name) else {
        let text = format!("the uplink {name}: this machine has no such interface");
        return Err(NotReady::Waiting(text));
    };
    let has = listed(&mut link.addresses.iter().map(ToString::to_string));
    let has = if has.is_empty() { "no address" } else { &has };
    let text =
        format!("an underlay address of Node {} ({wanted}) on the uplink {name}, which has {has}", own.id);
    on(link).map(|address| (link, address)).ok_or(NotReady::Waiting(text))
}

/// The MTU of pods: what the uplink leaves them, or less if so configured.
fn pod_mtu(config: &Config, uplink: &Link, own: &Node, family: Family) -> Result<u16, NotReady> {
    let Link { name, mtu, .. } = uplink;
    let overhead = family.tunnel_overhead();
    // No IP packet is longer than 65,535 bytes, whatever a loopback says of itself.
    let whole = u16::try_from(*mtu).unwrap_or(u16::MAX);
    let most = whole.saturating_sub(overhead);
    let left = format!("{name}'s {mtu} less {overhead} for a tunnel over {family}");
    let (pod_mtu, why) = match config.mtu {
        Some(mtu) if mtu > most => {
            return Err(NotReady::Refused(format!(
                "mtu: {mtu} is configured, but pods can have {most} at most: {left}"
            )));
        }
        Some(mtu) => (mtu, "as configured".to_owned()),
        None => (most, left),
    };
    let has_v6 = own.pod_prefixes_of(Family::V6).next().is_some();
    let (least, with) = if has_v6 { (LEAST_MTU_V6, Family::V6) } else { (LEAST_MTU_V4, Family::V4) };
    if pod_mtu < least {
        let node = &own.id;
        let text =
            format!("an MTU of {pod_mtu} ({why}) is too small for Node {node}: {with} pods need {least}");
        return Err(NotReady::Refused(text));
    }
    Ok(pod_mtu)
}
