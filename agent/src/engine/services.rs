//! The services as this node has them: what the world says of them compiled, and who keeps them in the node's own stack.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use causeway_model::operator::ServicesStatus;
use causeway_model::service::Services;
use causeway_model::{Delta, Family, HostServices, NodeId, NodeName, PortProtocol};
use causeway_services::{
    Change, Compiler, Contest, Health, Moved, NodeFacts, Read, ServiceName, Slice, SliceEndpoint, SliceName,
    SlicePort, ZONE_LABEL,
};
use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use ipnetwork::IpNetwork;

use super::mesh::Meshed;
use crate::config::ServicesWish;
use crate::sources::World;

/// What load balancers are told, by service; nothing where somebody else tells them.
pub(crate) type HealthChecks = BTreeMap<ServiceName, Health>;

/// The services of this cluster.
#[derive(Default)]
pub(super) struct Served {
    /// None until this cluster's name is known.
    compiler: Option<Compiler>,
    /// The last world of which it knows.
    known: Option<Arc<World>>,
    /// What has moved since the data paths were told, or that everything may have.
    moved: Option<Moved>,
    host: HostServices,
    /// Why the host's services are whose they are.
    reason: String,
}

impl Served {
    /// Chooses who keeps services in the node's own stack; `kube_proxy` says what of it was found here.
    pub(super) fn choose(&mut self, wish: ServicesWish, kube_proxy: Option<&str>) {
        (self.host, self.reason) = match (wish, kube_proxy) {
            (ServicesWish::Own, _) => (HostServices::Own, "services: own".to_owned()),
            (ServicesWish::Defer, _) => (HostServices::Deferred, "services: defer".to_owned()),
            (ServicesWish::Auto, Some(found)) => {
                (HostServices::Deferred, format!("services: auto, and here are {found}"))
            }
            (ServicesWish::Auto, None) => {
                (HostServices::Own, "services: auto, and no rules of kube-proxy's are here".to_owned())
            }
        };
    }

    /// Who keeps services in the node's own stack.
    pub(super) fn host(&self) -> HostServices {
        self.host
    }

    /// The compiler, once this cluster is known.
    pub(super) fn compiler(&self) -> Option<&Compiler> {
        self.compiler.as_ref()
    }

    /// Takes up news of services, slices and nodes.
    pub(super) fn learn(
        &mut self,
        node: &NodeName,
        api_servers: &[SocketAddr],
        world: &Arc<World>,
        mesh: &mut Meshed,
    ) {
        let Some(cluster) = &world.cluster else { return };
        let id = NodeId { cluster: cluster.clone(), name: node.clone() };
        let new = self.compiler.as_ref().is_none_or(|compiler| compiler.world().node != id);
        if new {
            (self.compiler, self.known, self.moved) = (Some(Compiler::new(id.clone())), None, None);
        }
        let Some(compiler) = &mut self.compiler else { return };
        let mut changes = facts(compiler, world, mesh.prefixes());
        let here = world.nodes.get(&id).map(|object| &object.node);
        changes.extend(mesh.changes(compiler.world(), here, new));
        let before = self.known.as_deref().map(|known| (&known.services, &known.slices));
        let nothing = (OrdMap::new(), OrdMap::new());
        let (services, slices) = before.unwrap_or((&nothing.0, &nothing.1));
        changes.extend(moved(services, &world.services).filter_map(
            |(name, now)| match now.map(|now| &**now) {
                Some(Read::Service(_, service, _)) => Some(Change::Service(name.clone(), service.clone())),
                Some(Read::Slice(..)) => None,
                None => Some(Change::Service(name.clone(), None)),
            },
        ));
        changes.extend(moved(slices, &world.slices).filter_map(|(name, now)| match now.map(|now| &**now) {
            Some(Read::Slice(_, slice, _)) => Some(Change::Slice(name.clone(), slice.clone())),
            Some(Read::Service(..)) => None,
            None => Some(Change::Slice(name.clone(), None)),
        }));
        changes.extend(stand_in(api_servers, world));
        let moved = compiler.apply(changes);
        if let Some(all) = &mut self.moved {
            all.extend(moved);
        }
        self.known = Some(world.clone());
    }

    /// All of them.
    pub(super) fn all(&mut self) -> Arc<Services> {
        self.moved = Some(Moved::default());
        Arc::new(self.compiler.as_ref().map(|compiler| compiler.services().clone()).unwrap_or_default())
    }

    /// What data paths are to be told that were told these before.
    pub(super) fn news(&mut self, told: &Services) -> Vec<Delta> {
        let Some(compiler) = &self.compiler else { return Vec::new() };
        match self.moved.replace(Moved::default()) {
            Some(moved) => moved.deltas(compiler.services()),
            None => told.deltas_to(compiler.services()),
        }
    }

    /// What load balancers are to be told by this agent.
    pub(super) fn health_checks(&self) -> HealthChecks {
        let ours = self.compiler.iter().filter(|_| self.host == HostServices::Own);
        ours.flat_map(Compiler::health).map(|(name, health)| (name.clone(), health)).collect()
    }

    /// What is wrong with services that are good each by itself.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        self.compiler.iter().flat_map(Compiler::contests).map(|Contest { frontend, winner, losers }| {
            let losers: Vec<_> = losers.iter().map(ToString::to_string).collect();
            format!("{frontend} is Service {winner}'s, and {} has it not", losers.join(", "))
        })
    }

    pub(super) fn status(&self) -> ServicesStatus {
        let services = self.compiler.as_ref().map(Compiler::services);
        let backends: BTreeSet<_> = services
            .into_iter()
            .flat_map(|services| services.backends.values().flat_map(|backends| &backends.chosen))
            .collect();
        ServicesStatus {
            host: self.host,
            reason: self.reason.clone(),
            services: self.compiler.as_ref().map_or(0, |compiler| compiler.world().services.len()),
            frontends: services.map_or(0, |services| services.frontends.len()),
            backends: backends.len(),
        }
    }
}

/// What services depend on beside themselves.
fn facts(compiler: &Compiler, world: &World, of_imports: Vec<IpNetwork>) -> Vec<Change> {
    let cluster = &compiler.world().node.cluster;
    let nodes: BTreeMap<_, _> = world.nodes.iter().filter(|(id, _)| id.cluster == *cluster).collect();
    let gone = compiler.world().nodes.keys();
    let gone = gone.filter(|name| !nodes.keys().any(|id| id.name == **name)).cloned();
    let mut changes: Vec<_> = gone.map(|name| Change::Node(name, None)).collect();
    changes.extend(nodes.into_iter().map(|(id, object)| {
        let zone = object.labels.get(ZONE_LABEL).filter(|zone| !zone.is_empty()).cloned();
        let addresses = object.node.underlay.iter().copied().collect();
        Change::Node(id.name.clone(), Some(NodeFacts { zone, addresses }))
    }));
    let prefixes = world.clusters.get(cluster).map(|object| object.cluster.service_prefixes.clone());
    let prefixes = prefixes.unwrap_or_default().into_iter().chain(of_imports);
    changes.push(Change::Prefixes(prefixes.collect()));
    changes
}

/// The API server's service, and its port.
const API: (&str, &str, &str) = ("default", "kubernetes", "https");

/// Whoever tells of the API server's endpoints learns it from the API server: until then, those that were configured.
fn stand_in(api_servers: &[SocketAddr], world: &World) -> Vec<Change> {
    let (namespace, service, port) = API;
    let name = |family| SliceName { namespace: namespace.to_owned(), name: format!("api-servers-{family}") };
    let ours = |slice: &Read| match slice {
        Read::Slice(name, Some(slice), _) => name.namespace == namespace && slice.service == service,
        _ => false,
    };
    let told = api_servers.is_empty() || world.slices.values().any(|slice| ours(slice));
    let slice = |family| {
        let servers = api_servers.iter().filter(|server| Family::of(server.ip()) == family);
        // One slice has one number of each port: who has another is left out.
        let number = servers.clone().next()?.port();
        let endpoints = servers.filter(|server| server.port() == number).map(|server| SliceEndpoint {
            address: server.ip(),
            ready: true,
            serving: true,
            terminating: false,
            weight: 1,
            node: None,
            for_zones: BTreeSet::new(),
            for_nodes: BTreeSet::new(),
        });
        let ports = vec![SlicePort { name: port.to_owned(), protocol: PortProtocol::Tcp, port: number }];
        Some(Slice { service: service.to_owned(), family, ports, endpoints: endpoints.collect() })
    };
    let change = |family| Change::Slice(name(family), slice(family).filter(|_| !told));
    Family::BOTH.into_iter().map(change).collect()
}

/// What is new, gone or another, in order. What both share is not looked at.
pub(super) fn moved<'a, K: Ord, V: PartialEq>(
    before: &'a OrdMap<K, Arc<V>>,
    now: &'a OrdMap<K, Arc<V>>,
) -> impl Iterator<Item = (&'a K, Option<&'a Arc<V>>)> {
    before.diff(now).map(|difference| match difference {
        DiffItem::Add(name, is) | DiffItem::Update { new: (name, is), .. } => (name, Some(is)),
        DiffItem::Remove(name, _) => (name, None),
    })
}
