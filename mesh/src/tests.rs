//! Stories over whole worlds, random worlds, and a slow evaluator that judges what becomes of them.

mod names;
mod random;
mod slow;
mod stories;

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_model::service::Backend;
use causeway_model::{Cluster, ClusterName, Family, PortProtocol};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::prefer::Wish;
use crate::{
    Change, Config, Endpoint, Export, Memory, Port, Service, ServiceKind, ServiceName, Slice, SlicePort,
    State, TrafficPolicy, World,
};

fn cluster(name: &str) -> ClusterName {
    name.parse().unwrap()
}

fn service(name: &str) -> ServiceName {
    let (namespace, name) = name.split_once('/').unwrap();
    ServiceName { namespace: namespace.to_owned(), name: name.to_owned() }
}

/// A cluster whose pods are in `10.ID.0.0/16` and `fd70:ID::/48`.
fn record(name: &str, id: u32, region: &str) -> Cluster {
    Cluster {
        name: cluster(name),
        id,
        region: Some(region.to_owned()),
        pod_prefixes: vec![
            format!("10.{id}.0.0/16").parse().unwrap(),
            format!("fd70:{id}::/48").parse().unwrap(),
        ],
        service_prefixes: Vec::new(),
    }
}

fn time(seconds: i64) -> Time {
    Time(Timestamp::from_second(seconds).unwrap())
}

fn port(name: &str, number: u16) -> Port {
    Port { name: name.to_owned(), protocol: PortProtocol::Tcp, number, app_protocol: None }
}

fn addressed(ports: &[Port]) -> Service {
    Service {
        kind: ServiceKind::Addressed,
        families: vec![Family::V4],
        ports: ports.to_vec(),
        affinity: None,
        traffic_policy: TrafficPolicy::Cluster,
        distribution: None,
        wish: Wish::default(),
    }
}

fn export(created: i64) -> Export {
    Export { created: Some(time(created)), ..Export::default() }
}

fn wish(affinity: &str, prefer: &str) -> Wish {
    let both = [(crate::prefer::AFFINITY, affinity), (crate::prefer::PREFER, prefer)];
    let said = both.into_iter().filter(|(_, text)| !text.is_empty());
    let annotations: BTreeMap<_, _> = said.map(|(key, text)| (key.to_owned(), text.to_owned())).collect();
    let (wish, problems) = Wish::read("metadata.annotations", &annotations);
    assert!(problems.is_empty(), "{problems:?}");
    wish
}

/// A slice of ready endpoints, for a service's ports under the same numbers.
fn slice(name: &str, ports: &[Port], addresses: &[&str]) -> Slice {
    let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    let ready =
        |address: &IpAddr| Endpoint { addresses: vec![*address], hostname: None, state: State::Ready };
    let port =
        |port: &Port| SlicePort { name: port.name.clone(), protocol: port.protocol, number: port.number };
    Slice {
        service: service(name),
        family: addresses.first().map_or(Family::V4, |address| Family::of(*address)),
        ports: ports.iter().map(port).collect(),
        endpoints: addresses.iter().map(ready).collect(),
    }
}

fn config() -> Config {
    let clusterset = ["172.30.0.0/16", "fd99::/64"];
    Config { clusterset: clusterset.map(|prefix| prefix.parse().unwrap()).to_vec(), ..Config::default() }
}

/// The world of oslo, in which lyon (west) and turin (south) are, too, and all have namespace shop.
fn world() -> World {
    let mut world = World::new(cluster("oslo"), Memory::default());
    everybody().into_iter().for_each(|change| world.apply(change));
    world
}

fn everybody() -> Vec<Change> {
    let mut changes = vec![Change::Config(config())];
    for (name, id, region) in [("oslo", 1, "north"), ("lyon", 2, "west"), ("turin", 3, "south")] {
        changes.push(Change::Cluster(cluster(name), Some((record(name, id, region), None))));
        changes.push(Change::Namespace(cluster(name), "shop".to_owned(), true));
    }
    changes
}

/// A cluster that exports shop/web on port 80, with these backends.
fn exporting(name: &str, created: i64, addresses: &[&str]) -> Vec<Change> {
    let ports = [port("http", 80)];
    let own = service(&format!("shop/web-{name}"));
    vec![
        Change::Service(cluster(name), service("shop/web"), Some(addressed(&ports))),
        Change::Export(cluster(name), service("shop/web"), Some(export(created))),
        Change::Slice(cluster(name), own, Some(slice("shop/web", &ports, addresses))),
    ]
}

fn settled(mut world: World, changes: impl IntoIterator<Item = Change>) -> World {
    changes.into_iter().for_each(|change| world.apply(change));
    world.settle();
    world
}

/// Who gets connections to the first port over IPv4, by address, and their parts.
fn reached(world: &World, name: &str) -> Vec<(String, u32)> {
    let import = world.imports().get(&service(name)).expect("an import");
    let chosen = import.backends[&(Family::V4, 0)].iter().filter(|candidate| candidate.weight > 0);
    chosen.map(|candidate| (candidate.backend.address.to_string(), candidate.weight)).collect()
}
