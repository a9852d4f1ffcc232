//! What becomes of a connection, read off the world, object by object: slow and obvious. Knows nothing of frontends, numbers
//! or tables. The comments name where Kubernetes says so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use causeway_model::service::Backend;
use causeway_model::{Family, NodeName, PortProtocol};

use crate::ask::{Client, Outcome};
use crate::objects::{Port, Service, ServiceName, SliceEndpoint};
use crate::world::World;

/// A new connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Who begins it.
    pub client: Client,
    /// The client's node; of an outside client, the node that it came to.
    pub node: NodeName,
    /// The client's address.
    pub source: IpAddr,
    /// Whom it is for.
    pub destination: IpAddr,
    /// The transport.
    pub protocol: PortProtocol,
    /// The port.
    pub port: u16,
}

/// How a service was found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    ClusterIp,
    Ingress,
    ExternalIp,
    NodePort,
}

/// Judges a new connection.
pub fn judge(world: &World, connection: &Connection) -> Outcome {
    let Connection { destination, .. } = *connection;
    let Some((name, service, port, by)) = find(world, connection) else {
        return match () {
            () if world.services.values().any(|service| service.cluster_ips.contains(&destination)) => {
                Outcome::Refused
            }
            () if world.prefixes.iter().any(|prefix| prefix.contains(destination)) => Outcome::Dropped,
            () => Outcome::NotOurs,
        };
    };
    if by == By::Ingress && !may_come(world, connection, service) {
        return Outcome::Dropped;
    }
    let endpoints = endpoints(world, &connection.node, name, port, Family::of(destination));
    // Virtual IPs and service proxies, "Traffic policies": a ClusterIP obeys the internal one; all else the external one, which
    // does not concern who is inside of the cluster.
    let local = match by {
        By::ClusterIp => service.internal_local,
        _ => service.external_local && connection.client == Client::Outside,
    };
    let cluster = of_cluster(world, &connection.node, &endpoints);
    let backends = if local { of_node(&endpoints) } else { cluster.clone() };
    match () {
        () if !backends.is_empty() => Outcome::Served(shares(&endpoints, &backends)),
        () if !cluster.is_empty() => Outcome::Dropped,
        () => Outcome::Refused,
    }
}

/// The service that a connection is for. Who has an address for its ClusterIP goes before who only names it; then names decide.
fn find<'a>(
    world: &'a World,
    connection: &Connection,
) -> Option<(&'a ServiceName, &'a Service, &'a Port, By)> {
    let Connection { client, ref node, destination, protocol, port, .. } = *connection;
    let has = |node: &NodeName| world.nodes.get(node).is_some_and(|n| n.addresses.contains(&destination));
    // A pod's own node answers for every node's node ports; all others ask the node whose address it is.
    let at_a_node = match client {
        Client::Pod => world.nodes.keys().any(has),
        Client::Process | Client::Outside => has(node),
    };
    let family = Family::of(destination);
    let all = || {
        let there = world.services.iter().filter(|(_, service)| service.cluster_ip(family).is_some());
        there.flat_map(|(name, service)| service.ports.iter().map(move |port| (name, service, port)))
    };
    let all = || all().filter(|(.., one)| one.protocol == protocol);
    let cluster_ip = || {
        let mut all = all();
        all.find(|(_, service, one)| one.port == port && service.cluster_ip(family) == Some(destination))
    };
    let named = || {
        let mut all = all().filter(|(.., one)| one.port == port).filter_map(|found| match found.1 {
            service if service.ingress.contains(&destination) => Some((found, By::Ingress)),
            service if service.external_ips.contains(&destination) => Some((found, By::ExternalIp)),
            _ => None,
        });
        all.next()
    };
    let node_port = || {
        let mut all = all();
        all.find(|(.., one)| at_a_node && !destination.is_loopback() && one.node_port == Some(port))
    };
    let found = cluster_ip().map(|found| (found, By::ClusterIp));
    let found = found.or_else(named).or_else(|| node_port().map(|found| (found, By::NodePort)));
    found.map(|((name, service, port), by)| (name, service, port, by))
}

/// Whether a client may come to a load balancer's address (API: `loadBalancerSourceRanges`). Ranges of the other family say
/// nothing; what could not be read lets nobody in.
fn may_come(world: &World, connection: &Connection, service: &Service) -> bool {
    let Some(sources) = &service.sources else { return true };
    let family = Family::of(connection.destination);
    let mut ranges = sources.ranges.iter().filter(|range| Family::of(range.ip()) == family).peekable();
    if ranges.peek().is_none() {
        return !sources.unreadable;
    }
    let ranges: Vec<_> = ranges.collect();
    let within = |address: IpAddr| ranges.iter().any(|range| range.contains(address));
    let own = world.nodes.get(&connection.node).map(|node| &node.addresses);
    let node_may = own.is_some_and(|own| own.iter().any(|address| within(*address)));
    let anybody = ranges.iter().any(|range| range.prefix() == 0);
    // A node that has the address on an interface comes from it.
    anybody || within(connection.source) || node_may && service.ingress.contains(&connection.source)
}

/// An endpoint, with all that any slice says of it.
struct Endpoint<'a> {
    backend: Backend,
    said: Vec<&'a SliceEndpoint>,
    on_node: bool,
}

impl<'a> Endpoint<'a> {
    fn is_ready(&self) -> bool {
        self.said.iter().any(|one| one.ready)
    }

    /// KEP-1669: one that terminates and serves.
    fn drains(&self) -> bool {
        !self.is_ready() && self.said.iter().any(|one| one.serving && one.terminating)
    }

    /// What the first says that calls it what it is.
    fn weight(&self) -> u32 {
        let drains = |one: &&&SliceEndpoint| one.serving && one.terminating;
        let said = self.hints().or_else(|| self.said.iter().find(drains).copied());
        said.map_or(1, |said| said.weight)
    }

    /// What the first who calls it ready says.
    fn hints(&self) -> Option<&'a SliceEndpoint> {
        self.said.iter().find(|one| one.ready).copied()
    }
}

/// EndpointSlices: all slices of the service together, by port name and protocol; an endpoint in several counts once.
fn endpoints<'a>(
    world: &'a World,
    node: &NodeName,
    service: &ServiceName,
    port: &Port,
    family: Family,
) -> Vec<Endpoint<'a>> {
    let mut endpoints: Vec<Endpoint<'a>> = Vec::new();
    for (name, slice) in &world.slices {
        if name.namespace != service.namespace || slice.service != service.name || slice.family != family {
            continue;
        }
        for at in slice.ports.iter().filter(|at| at.name == port.name && at.protocol == port.protocol) {
            for said in &slice.endpoints {
                let backend = Backend { address: said.address, port: at.port };
                let on_node = said.node.as_deref() == Some(node.as_str());
                match endpoints.iter_mut().find(|one| one.backend == backend) {
                    Some(one) => {
                        one.said.push(said);
                        one.on_node |= on_node;
                    }
                    None => endpoints.push(Endpoint { backend, said: vec![said], on_node }),
                }
            }
        }
    }
    endpoints
}

/// The backends' parts of connections, without a common divisor.
fn shares(endpoints: &[Endpoint<'_>], backends: &BTreeSet<Backend>) -> BTreeMap<Backend, u32> {
    let chosen = endpoints.iter().filter(|one| backends.contains(&one.backend));
    let weights: Vec<_> = chosen.map(|one| (one.backend, one.weight())).collect();
    let greatest = weights.iter().map(|(_, weight)| *weight).max().unwrap_or(1);
    let divides = |number: &u32| weights.iter().all(|(_, weight)| weight % number == 0);
    let divisor = (1..=greatest).rev().find(divides).unwrap_or(1);
    weights.into_iter().map(|(backend, weight)| (backend, weight / divisor)).collect()
}

/// KEP-1669: on a node, the ready ones, else those that drain.
fn of_node(endpoints: &[Endpoint<'_>]) -> BTreeSet<Backend> {
    let here = || endpoints.iter().filter(|one| one.on_node);
    let ready: BTreeSet<_> = here().filter(|one| one.is_ready()).map(|one| one.backend).collect();
    if !ready.is_empty() {
        return ready;
    }
    here().filter(|one| one.drains()).map(|one| one.backend).collect()
}

/// In the cluster, the ready ones that hints leave, else those that drain.
fn of_cluster(world: &World, node: &NodeName, endpoints: &[Endpoint<'_>]) -> BTreeSet<Backend> {
    let ready: Vec<_> = endpoints.iter().filter(|one| one.is_ready()).collect();
    if ready.is_empty() {
        return endpoints.iter().filter(|one| one.drains()).map(|one| one.backend).collect();
    }
    let all = || ready.iter().filter_map(|one| Some((one.backend, one.hints()?)));
    // KEP-3015: node hints if every ready endpoint has some and one is for this node.
    let mine = |hints: &SliceEndpoint| hints.for_nodes.contains(node.as_str());
    if all().all(|(_, hints)| !hints.for_nodes.is_empty()) && all().any(|(_, hints)| mine(hints)) {
        return all().filter(|(_, hints)| mine(hints)).map(|(backend, _)| backend).collect();
    }
    // Topology aware routing, "Safeguards": likewise the zone's; a node without a zone takes no notice.
    let zone = world.nodes.get(node).and_then(|node| node.zone.as_deref());
    let mine = |hints: &SliceEndpoint| zone.is_some_and(|zone| hints.for_zones.contains(zone));
    if all().all(|(_, hints)| !hints.for_zones.is_empty()) && all().any(|(_, hints)| mine(hints)) {
        return all().filter(|(_, hints)| mine(hints)).map(|(backend, _)| backend).collect();
    }
    all().map(|(backend, _)| backend).collect()
}
