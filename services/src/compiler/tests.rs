//! Random worlds: whatever changes in whatever order, the tables of every node say what the slow evaluator says.

use std::collections::BTreeSet;
use std::net::IpAddr;

use causeway_model::service::{Answer, Backends, BackendsId, Services};
use causeway_model::{Delta, Family, NodeId, NodeName, PortProtocol, Snapshot};
use ipnetwork::IpNetwork;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::Compiler;
use crate::ask::{Client, Outcome, ask};
use crate::objects::{Port, Service, ServiceName, Slice, SliceEndpoint, SliceName, SlicePort, Sources};
use crate::slow::{Connection, judge};
use crate::world::{Change, NodeFacts};

const NODES: [&str; 3] = ["east", "west", "far"];
const ZONES: [&str; 2] = ["a", "b"];
const SERVICES: [&str; 3] = ["fig", "pear", "plum"];
const SLICES: [&str; 5] = ["one", "two", "three", "four", "five"];
const PORTS: [u16; 2] = [80, 30080];
const CLUSTER_IPS: [&str; 4] = ["10.96.0.1", "10.96.0.2", "fd96::1", "fd96::2"];
/// External and ingress addresses: a node's and a ClusterIP among them.
const OTHERS: [&str; 6] = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "10.9.0.1", "10.96.0.1", "fd09::1"];
const BACKENDS: [&str; 6] = ["10.70.1.1", "10.70.2.1", "10.70.2.2", "10.9.0.1", "fd70::1", "fd70::2"];
const CLIENTS: [&str; 5] = ["10.70.1.9", "198.51.100.1", "10.9.0.1", "192.0.2.1", "2001:db8:a::1"];
const RANGES: [&str; 5] = ["198.51.100.0/25", "10.9.0.0/24", "0.0.0.0/0", "2001:db8:a::/48", "10.70.0.0/16"];

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn id(name: &str) -> NodeId {
    NodeId { cluster: "lyon".parse().unwrap(), name: node(name) }
}

fn some_of(of: &'static [&'static str]) -> impl Strategy<Value = Vec<IpAddr>> {
    subsequence(of, 0..=of.len()).prop_map(|some| some.into_iter().map(address).collect())
}

fn protocol() -> impl Strategy<Value = PortProtocol> {
    select(&PortProtocol::ALL[..2])
}

fn port() -> impl Strategy<Value = Port> {
    let name = select(vec!["", "web"]);
    (name, protocol(), select(&PORTS[..]), prop::option::of(select(&PORTS[..]))).prop_map(
        |(name, protocol, port, node_port)| Port { name: name.to_owned(), protocol, port, node_port },
    )
}

fn sources() -> impl Strategy<Value = Sources> {
    let ranges = subsequence(&RANGES[..], 0..=3);
    (ranges, any::<bool>()).prop_map(|(ranges, unreadable)| Sources {
        ranges: ranges.into_iter().map(|range| range.parse().unwrap()).collect(),
        unreadable,
    })
}

fn service() -> impl Strategy<Value = Service> {
    let addresses = (some_of(&CLUSTER_IPS), some_of(&OTHERS), some_of(&OTHERS));
    let rest = (prop::option::of(sources()), any::<(bool, bool)>(), prop::option::of(Just(4)));
    let ports = prop::collection::vec(port(), 1..3);
    (addresses, ports, rest).prop_map(|((mut cluster_ips, external_ips, ingress), mut ports, rest)| {
        let (sources, (internal_local, external_local), affinity) = rest;
        let mut families = BTreeSet::new();
        cluster_ips.retain(|address| families.insert(Family::of(*address)));
        // As the door lets them in.
        let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        ports.retain(|one| {
            !names.contains(&(one.name.clone(), one.protocol))
                && !numbers.contains(&(one.port, one.protocol))
                && names.insert((one.name.clone(), one.protocol))
                && numbers.insert((one.port, one.protocol))
        });
        Service {
            cluster_ips,
            external_ips,
            ingress,
            sources,
            ports,
            internal_local,
            external_local,
            affinity,
            health_check: external_local.then_some(32000),
        }
    })
}

fn names(of: &'static [&'static str]) -> impl Strategy<Value = BTreeSet<String>> {
    let some = subsequence(of, 1..=of.len());
    // Hints hold when all have one, which chance alone would seldom bring about.
    prop_oneof![2 => some.prop_map(|some| some.into_iter().map(str::to_owned).collect()), 1 => Just(BTreeSet::new())]
}

fn endpoint() -> impl Strategy<Value = SliceEndpoint> {
    let conditions = prop_oneof![3 => Just((true, true, false)), 2 => any::<(bool, bool, bool)>()];
    let place = prop::option::of(select(&NODES[..]));
    let weight = prop_oneof![3 => Just(1), 1 => 1_u32..5];
    (select(&BACKENDS[..]), conditions, weight, place, names(&ZONES), names(&NODES)).prop_map(
        |(backend, (ready, serving, terminating), weight, node, for_zones, for_nodes)| SliceEndpoint {
            address: address(backend),
            ready,
            serving,
            terminating,
            weight,
            node: node.map(str::to_owned),
            for_zones,
            for_nodes,
        },
    )
}

fn slice() -> impl Strategy<Value = Slice> {
    let family = select(&Family::BOTH[..]);
    let ports = (select(vec!["", "web"]), protocol(), select(vec![8080, 8081]));
    let ports = ports.prop_map(|(name, protocol, port)| SlicePort { name: name.to_owned(), protocol, port });
    let ports = prop::collection::vec(ports, 1..3);
    (select(&SERVICES[..]), family, ports, prop::collection::vec(endpoint(), 0..4)).prop_map(
        |(service, family, ports, mut endpoints)| {
            endpoints.retain(|one| Family::of(one.address) == family);
            Slice { service: service.to_owned(), family, ports, endpoints }
        },
    )
}

fn facts() -> impl Strategy<Value = NodeFacts> {
    let addresses = subsequence(&["10.9.0.1", "10.9.0.2", "fd09::1"][..], 0..=3);
    (prop::option::of(select(&ZONES[..])), addresses).prop_map(|(zone, addresses)| NodeFacts {
        zone: zone.map(str::to_owned),
        addresses: addresses.into_iter().map(address).collect(),
    })
}

fn change() -> impl Strategy<Value = Change> {
    let namespace = || select(vec!["orchard", "orchard", "harbor"]).prop_map(str::to_owned);
    let service = (namespace(), select(&SERVICES[..]), prop::option::weighted(0.8, service())).prop_map(
        |(namespace, name, service)| {
            Change::Service(ServiceName { namespace, name: name.to_owned() }, service)
        },
    );
    let slice = (namespace(), select(&SLICES[..]), prop::option::weighted(0.9, slice())).prop_map(
        |(namespace, name, slice)| Change::Slice(SliceName { namespace, name: name.to_owned() }, slice),
    );
    let node = (select(&NODES[..]), prop::option::weighted(0.9, facts()))
        .prop_map(|(name, facts)| Change::Node(node(name), facts));
    let prefixes = subsequence(&["10.96.0.0/16", "fd96::/112"][..], 0..=2).prop_map(|prefixes| {
        Change::Prefixes(prefixes.into_iter().map(|prefix| prefix.parse::<IpNetwork>().unwrap()).collect())
    });
    prop_oneof![4 => service, 6 => slice, 2 => node, 1 => prefixes]
}

/// What the tables of a node say to a connection.
fn asked(compiler: &Compiler, connection: &Connection) -> Outcome {
    let world = compiler.world();
    let Connection { client, source, destination, protocol, port, .. } = *connection;
    let mut nodes = world.nodes.iter();
    let of_node = nodes.any(|(name, facts)| {
        (client == Client::Pod || *name == world.node.name) && facts.addresses.contains(&destination)
    });
    ask(compiler.services(), (client, source), (destination, of_node), protocol, port)
}

/// Every connection worth asking about on a node.
fn connections(name: &str) -> impl Iterator<Item = Connection> {
    let destinations = CLUSTER_IPS.iter().chain(&OTHERS).chain(&["10.9.0.2", "127.0.0.1", "10.96.9.9"]);
    let to = destinations.flat_map(|to| PORTS.map(|port| (address(to), port)));
    let to = to.flat_map(|(to, port)| PortProtocol::ALL.map(|protocol| (to, port, protocol)));
    let node = node(name);
    to.flat_map(move |(destination, port, protocol)| {
        let node = node.clone();
        let who = [Client::Pod, Client::Process, Client::Outside];
        who.into_iter().flat_map(move |client| {
            let node = node.clone();
            let from = CLIENTS.iter().map(|source| address(source));
            let from = from.filter(move |source| Family::of(*source) == Family::of(destination));
            from.map(move |source| Connection {
                client,
                node: node.clone(),
                source,
                destination,
                protocol,
                port,
            })
        })
    })
}

/// Whatever a frontend refers to is there, and whatever is there is referred to.
fn is_closed(services: &Services) {
    let answers = services.frontends.values().flat_map(|service| [service.inside, service.outside]);
    let used: BTreeSet<BackendsId> = answers
        .filter_map(|answer| match answer {
            Answer::Backends(id) => Some(id),
            Answer::Refuse | Answer::Drop => None,
        })
        .collect();
    assert!(used.iter().all(|id| services.backends.contains_key(id)), "a frontend without backends");
    for Backends { chosen, leaving, .. } in services.backends.values().map(|backends| &**backends) {
        assert!(!chosen.is_empty(), "an empty set of backends");
        assert!(!leaving.iter().any(|one| chosen.contains(one)), "a backend both chosen and leaving");
        let distinct: BTreeSet<_> = chosen.iter().collect();
        assert_eq!(distinct.len(), chosen.len(), "a backend chosen twice");
    }
}

/// Takes up changes of services as a data path does: whom a frontend refers to must be there already.
fn take_up(snapshot: &mut Snapshot, deltas: Vec<Delta>) {
    for delta in deltas {
        snapshot.apply(delta);
        let services = &snapshot.services;
        for service in services.frontends.values() {
            for answer in [service.inside, service.outside] {
                if let Answer::Backends(id) = answer {
                    assert!(services.backends.contains_key(&id), "{} refers to nobody", service.id);
                }
            }
        }
    }
}

fn snapshot() -> Snapshot {
    let node = causeway_model::Node {
        id: id("east"),
        underlay: vec![address("10.9.0.1")],
        vtep_mac: causeway_model::Node::derived_vtep_mac(&id("east")),
        pod_prefixes: vec![],
    };
    Snapshot::new(causeway_model::Settings {
        overlay: causeway_model::Overlay { vni: 51717.try_into().unwrap(), port: 4789 },
        node,
        tunnel_address: address("10.9.0.1"),
        tunnel: causeway_model::TunnelOwner::Kernel,
        uplink: causeway_model::UplinkKind::HostRouted,
        pod_mtu: 1450,
        connections: Default::default(),
        host_services: Default::default(),
        masquerade: None,
        names: Default::default(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn tables_say_what_the_objects_say(batches in prop::collection::vec(prop::collection::vec(change(), 1..8), 1..6)) {
        for name in NODES {
            let mut compiler = Compiler::new(id(name));
            let mut told = snapshot();
            for batch in &batches {
                let moved = compiler.apply(batch.iter().cloned());
                take_up(&mut told, moved.deltas(compiler.services()));
                prop_assert_eq!(&*told.services, compiler.services(), "what a data path was told");
                is_closed(compiler.services());
                for connection in connections(name) {
                    let (slow, fast) = (judge(compiler.world(), &connection), asked(&compiler, &connection));
                    prop_assert_eq!(slow, fast, "{:?}", connection);
                }
            }
            // Change by change or all at once: the tables mean the same.
            let mut whole = Compiler::new(id(name));
            whole.apply(batches.iter().flatten().cloned());
            for connection in connections(name) {
                prop_assert_eq!(asked(&whole, &connection), asked(&compiler, &connection), "{:?}", connection);
            }
            prop_assert_eq!(whole.contests().collect::<Vec<_>>(), compiler.contests().collect::<Vec<_>>());
            prop_assert_eq!(whole.health().collect::<Vec<_>>(), compiler.health().collect::<Vec<_>>());
        }
    }
}

fn backend(number: u32) -> SliceEndpoint {
    SliceEndpoint {
        address: IpAddr::from((0x0a46_0000 + number).to_be_bytes()),
        ready: true,
        serving: true,
        terminating: false,
        weight: 1,
        node: Some(NODES[number as usize % 3].to_owned()),
        for_zones: BTreeSet::new(),
        for_nodes: BTreeSet::new(),
    }
}

/// A service of one port with so many backends.
fn plain(number: u32, backends: u32) -> [Change; 2] {
    let name = format!("service-{number}");
    let port = Port { name: String::new(), protocol: PortProtocol::Tcp, port: 80, node_port: None };
    let cluster_ips = vec![IpAddr::from((0x0a60_0000 + number).to_be_bytes())];
    let service = Service { cluster_ips, ports: vec![port], ..Service::default() };
    let slice = Slice {
        service: name.clone(),
        family: Family::V4,
        ports: vec![SlicePort { name: String::new(), protocol: PortProtocol::Tcp, port: 8080 }],
        endpoints: (0..backends).map(|one| backend(number * 10 + one)).collect(),
    };
    let slice_name = SliceName { namespace: "shop".to_owned(), name: name.clone() };
    let name = ServiceName { namespace: "shop".to_owned(), name };
    [Change::Service(name, Some(service)), Change::Slice(slice_name, Some(slice))]
}

#[test]
fn a_change_of_one_backend_moves_its_set_and_nothing_else() {
    let mut compiler = Compiler::new(id("east"));
    let moved = compiler.apply((0..200).flat_map(|number| plain(number, 10)));
    assert_eq!((moved.frontends.len(), moved.backends.len(), moved.addresses.len()), (200, 200, 200));
    let before = compiler.services().clone();
    let moved = compiler.apply(plain(77, 9));
    assert_eq!((moved.frontends.len(), moved.backends.len(), moved.addresses.len()), (0, 1, 0));
    let deltas = moved.deltas(compiler.services());
    assert!(
        matches!(&deltas[..], [Delta::Backends(_, backends)] if backends.chosen.len() == 9),
        "{deltas:?}"
    );
    assert_eq!(before.deltas_to(compiler.services()), deltas);
    assert_eq!(compiler.apply(plain(77, 9)), super::Moved::default(), "what holds already moves nothing");
}

#[test]
fn two_services_that_want_one_address_are_told_apart_and_told_of() {
    let mut compiler = Compiler::new(id("east"));
    let [Change::Service(name, Some(service)), slice] = plain(1, 1) else { unreachable!("as it is made") };
    let thief = Service {
        external_ips: service.cluster_ips.clone(),
        cluster_ips: vec![address("10.96.9.9")],
        ..service.clone()
    };
    let thief_name = ServiceName { namespace: "a".to_owned(), name: "thief".to_owned() };
    let theft = Change::Service(thief_name.clone(), Some(thief));
    compiler.apply([theft, Change::Service(name.clone(), Some(service)), slice]);
    let contests: Vec<_> = compiler.contests().collect();
    assert_eq!((contests[0].winner.clone(), contests[0].losers.clone()), (name.clone(), vec![thief_name]));
    compiler.apply([Change::Service(name, None)]);
    assert_eq!(compiler.contests().count(), 0);
    let frontend = contests[0].frontend;
    assert_eq!(compiler.services().frontends[&frontend].id.name, "thief", "who is left has it");
}
