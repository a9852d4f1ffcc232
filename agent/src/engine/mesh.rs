//! Services across clusters as this one has them: what all clusters say of theirs, settled, and what comes of it on this node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use causeway_mesh::dns::ZONE;
use causeway_mesh::{self as mesh, Change, Import, Memory, Moved, ServiceName, TrafficPolicy};
use causeway_model::{ClusterName, Node, NodeName};
use causeway_services::{self as services, Port, Slice, SliceEndpoint, SliceName, SlicePort};
use ipnetwork::IpNetwork;

use super::services::moved;
use crate::config::Config;
use crate::desired::Standing;
use crate::sources::{Offers, World};

/// What is settled between clusters. Whoever answers questions of it has one of its own and reads it while the engine works.
#[derive(Clone, Default)]
pub(crate) struct Mesh(Arc<RwLock<Option<mesh::World>>>);

impl Mesh {
    /// Reads it; nothing is settled before this cluster is known.
    pub(crate) fn read<T>(&self, ask: impl FnOnce(&mesh::World) -> T) -> Option<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(ask)
    }
}

/// The part of the engine that settles it.
#[derive(Default)]
pub(super) struct Meshed {
    /// What is settled.
    pub(super) mesh: Mesh,
    /// The last world of which it knows.
    known: Option<Arc<World>>,
    /// Imports that are not any more what this node's tables have.
    stale: BTreeSet<ServiceName>,
    /// Where this node and its pods are, by which tables tell a backend that is here.
    place: Place,
    /// What must be told again after a restart may not be what the store has.
    unkept: bool,
    standing: Standing,
}

/// Addresses of a node and of its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    addresses: Vec<IpAddr>,
    prefixes: Vec<IpNetwork>,
}

impl Place {
    fn of(node: &Node) -> Self {
        Self { addresses: node.underlay.clone(), prefixes: node.pod_prefixes.clone() }
    }

    fn has(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || self.prefixes.iter().any(|prefix| prefix.contains(address))
    }
}

impl Meshed {
    /// Who came before whom, and who has no part.
    pub(super) fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Takes up news of all clusters; `memory` is what was to be told again. What has moved.
    pub(super) fn learn(&mut self, config: &Config, memory: &Memory, world: &Arc<World>) -> Moved {
        let Some(own) = &world.cluster else { return Moved::default() };
        let mut settled = self.mesh.0.write().unwrap_or_else(PoisonError::into_inner);
        if settled.as_ref().is_none_or(|mesh| mesh.own() != own) {
            let mut mesh = mesh::World::new(own.clone(), memory.clone());
            mesh.apply(Change::Config(config.mesh.clone()));
            (*settled, self.known) = (Some(mesh), None);
        }
        let Some(mesh) = settled.as_mut() else { unreachable!("just made") };
        news(own, self.known.as_deref(), world).into_iter().for_each(|change| mesh.apply(change));
        let moved = mesh.settle();
        let standing = Standing::of(mesh);
        self.unkept |=
            !moved.imports.is_empty() || moved.refusals || standing.members != self.standing.members;
        self.standing = standing;
        self.stale.extend(moved.imports.iter().cloned());
        self.known = Some(world.clone());
        moved
    }

    /// What the store is to keep in the place of this, if anything.
    pub(super) fn memory(&self, kept: &Memory) -> Option<Memory> {
        let memory = self.unkept.then(|| self.mesh.read(mesh::World::memory)).flatten();
        memory.filter(|memory| memory != kept)
    }

    /// The store has it.
    pub(super) fn kept(&mut self) {
        self.unkept = false;
    }

    /// Prefixes out of which imports have their addresses.
    pub(super) fn prefixes(&self) -> Vec<IpNetwork> {
        self.mesh.read(|mesh| mesh.clusterset().to_vec()).unwrap_or_default()
    }

    /// What is new of imports to the tables of a node, or all of them to new tables.
    pub(super) fn changes(
        &mut self,
        tables: &services::World,
        node: Option<&Node>,
        new: bool,
    ) -> Vec<services::Change> {
        let place = node.map(Place::of).unwrap_or_default();
        let all = new | (place != self.place);
        self.place = place;
        let stale = std::mem::take(&mut self.stale);
        let told = self.mesh.read(|mesh| {
            let names = if all { mesh.imports().keys().cloned().chain(stale).collect() } else { stale };
            let of = |name| import(mesh, &name, tables, &self.place);
            names.into_iter().flat_map(of).collect::<Vec<_>>()
        });
        told.unwrap_or_default()
    }

    /// What is wrong between clusters, but for those that are refused: their nodes are, too.
    pub(super) fn problems(&self) -> Vec<String> {
        let told = self.mesh.read(|mesh| {
            let prefixes = mesh.refused_prefixes().iter().map(ToString::to_string);
            let lost = mesh.lost().map(|(cluster, age)| match age.as_secs() {
                0 => format!("Cluster {cluster} is marked lost"),
                age => format!("Cluster {cluster} is marked lost: what was known of it was {age} s old"),
            });
            prefixes.chain(lost).collect()
        });
        told.unwrap_or_default()
    }
}

/// What is to be told of clusters, and of this one's namespaces.
fn news(own: &ClusterName, before: Option<&World>, now: &World) -> Vec<Change> {
    let nothing = World::default();
    let before = before.unwrap_or(&nothing);
    let (were, are) = (clusters(before), clusters(now));
    let mut changes: Vec<_> = were.difference(&are).map(|name| Change::Gone((*name).clone())).collect();
    let nodes = (before.nodes != now.nodes).then(|| (nodes(before), nodes(now)));
    for cluster in are {
        let record = |world: &World| {
            world.clusters.get(cluster).map(|object| (object.cluster.clone(), object.created.clone()))
        };
        if record(before) != record(now) {
            changes.push(Change::Cluster(cluster.clone(), record(now)));
        }
        if let Some((were, are)) = &nodes
            && were.get(cluster) != are.get(cluster)
        {
            let are = are.get(cluster).cloned().unwrap_or_default();
            changes.push(Change::Nodes(cluster.clone(), are));
        }
        if before.lost.get(cluster) != now.lost.get(cluster) {
            changes.push(Change::Lost(cluster.clone(), now.lost.get(cluster).copied()));
        }
        changes.extend(offered(own, cluster, before.offers.get(cluster), now.offers.get(cluster)));
    }
    if before.namespaces.keys().ne(now.namespaces.keys()) {
        let of = |world: &World| -> BTreeSet<String> {
            let own = world.namespaces.keys().filter(|(cluster, _)| cluster == own);
            own.map(|(_, namespace)| namespace.clone()).collect()
        };
        let (were, are) = (of(before), of(now));
        let change =
            |namespace: &String| Change::Namespace(own.clone(), namespace.clone(), are.contains(namespace));
        changes.extend(were.symmetric_difference(&are).map(change));
    }
    changes
}

/// The clusters of which anything is known.
fn clusters(world: &World) -> BTreeSet<&ClusterName> {
    let told = world.clusters.keys().chain(world.offers.keys()).chain(world.lost.keys());
    told.chain(world.nodes.keys().map(|id| &id.cluster)).collect()
}

fn nodes(world: &World) -> BTreeMap<&ClusterName, Vec<IpNetwork>> {
    let mut nodes: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (id, object) in &world.nodes {
        let addresses = object.node.underlay.iter().map(|address| IpNetwork::from(*address));
        nodes.entry(&id.cluster).or_default().extend(addresses);
    }
    nodes
}

/// What is to be told of a cluster's services.
fn offered(
    own: &ClusterName,
    cluster: &ClusterName,
    before: Option<&Arc<Offers>>,
    now: Option<&Arc<Offers>>,
) -> Vec<Change> {
    let nothing = Arc::default();
    let (before, now) = (before.unwrap_or(&nothing), now.unwrap_or(&nothing));
    if Arc::ptr_eq(before, now) {
        return Vec::new();
    }
    let of = || cluster.clone();
    let services = moved(&before.services, &now.services)
        .map(|(name, now)| Change::Service(of(), name.clone(), now.map(|now| (**now).clone())));
    let slices = moved(&before.slices, &now.slices)
        .map(|(name, now)| Change::Slice(of(), name.clone(), now.map(|now| (**now).clone())));
    let exports = moved(&before.exports, &now.exports)
        .map(|(name, now)| Change::Export(of(), name.clone(), now.map(|now| (**now).clone())));
    let imports = moved(&before.imports, &now.imports)
        .map(|(name, now)| Change::Import(name.clone(), now.map(|now| (**now).clone())));
    // What another cluster imports is its own business.
    let imports = imports.filter(|_| cluster == own);
    services.chain(slices).chain(exports).chain(imports).collect()
}

/// What an import is called among the services of a node: no Service has dots in its name.
pub(super) fn served_as(name: &ServiceName) -> services::ServiceName {
    let ServiceName { namespace, name } = name;
    services::ServiceName { namespace: namespace.clone(), name: format!("{name}.{ZONE}") }
}

/// An import as a service of a node, and its backends as slices of it.
fn import(
    mesh: &mesh::World,
    name: &ServiceName,
    tables: &services::World,
    place: &Place,
) -> Vec<services::Change> {
    let import = mesh.imports().get(name).filter(|import| !import.addresses.is_empty());
    let service = served_as(name);
    let slices = import.map(|import| slices(&service, import, &tables.node.name, place)).unwrap_or_default();
    let were = tables.slices_of.get(&service).into_iter().flatten();
    let gone = were.filter(|slice| !slices.contains_key(slice)).cloned();
    let mut changes: Vec<_> = gone.map(|slice| services::Change::Slice(slice, None)).collect();
    changes.extend(slices.into_iter().map(|(name, slice)| services::Change::Slice(name, Some(slice))));
    changes.push(services::Change::Service(service, import.map(|import| of_node(import))));
    changes
}

fn of_node(import: &Import) -> services::Service {
    let ports = import.ports.iter().map(|port| Port {
        name: port.name.clone(),
        protocol: port.protocol,
        port: port.number,
        node_port: None,
    });
    services::Service {
        cluster_ips: import.addresses.clone(),
        ports: ports.collect(),
        internal_local: import.traffic_policy == TrafficPolicy::Local,
        affinity: import.affinity,
        ..services::Service::default()
    }
}

/// Who serves an import, by port, family and their own numbers. Whoever is not chosen keeps the connections that it has.
fn slices(
    service: &services::ServiceName,
    import: &Import,
    node: &NodeName,
    place: &Place,
) -> BTreeMap<SliceName, Slice> {
    let mut slices = BTreeMap::new();
    for ((family, index), candidates) in &import.backends {
        let Some(port) = import.ports.get(*index) else { continue };
        for candidate in candidates {
            let number = candidate.backend.port;
            let name = format!("{}-{family}-{index}-{number}", service.name);
            let slice = slices.entry(SliceName { namespace: service.namespace.clone(), name });
            let slice = slice.or_insert_with(|| Slice {
                service: service.name.clone(),
                family: *family,
                ports: vec![SlicePort { name: port.name.clone(), protocol: port.protocol, port: number }],
                endpoints: Vec::new(),
            });
            let address = candidate.backend.address;
            slice.endpoints.push(SliceEndpoint {
                address,
                ready: candidate.weight > 0,
                serving: true,
                terminating: false,
                weight: candidate.weight,
                node: place.has(address).then(|| node.to_string()),
                for_zones: BTreeSet::new(),
                for_nodes: BTreeSet::new(),
            });
        }
    }
    slices
}
