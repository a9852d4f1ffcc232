//! Names under clusterset.local.

use super::*;
use crate::dns::{Data, Kind, Reply, answer};

/// What is answered, in short: records, or why there are none.
fn ask(world: &World, name: &str, kind: Kind) -> Vec<String> {
    let text = |data: &Data| match data {
        Data::A(address) => address.to_string(),
        Data::Aaaa(address) => address.to_string(),
        Data::Srv { port, target } => format!("{port} {target}"),
        Data::Txt(text) | Data::Ptr(text) => text.clone(),
    };
    match answer(world, name, kind) {
        Reply::Answer { answers, .. } => answers.iter().map(|record| text(&record.data)).collect(),
        Reply::NoData => vec!["no data".to_owned()],
        Reply::NoName => vec!["no name".to_owned()],
        Reply::NotOurs => vec!["not ours".to_owned()],
    }
}

#[test]
fn a_name_is_found_however_it_is_written_and_nothing_beside_it() {
    let world = settled(world(), exporting("lyon", 1, &["10.2.0.1"]));
    let address = world.imports()[&service("shop/web")].addresses[0].to_string();
    for name in ["web.shop.svc.clusterset.local", "WEB.Shop.SVC.clusterset.local."] {
        assert_eq!(ask(&world, name, Kind::A), [&*address]);
    }
    for (name, kind, found) in [
        ("web.shop.svc.clusterset.local", Kind::Aaaa, "no data"),
        ("web.shop.svc.clusterset.local", Kind::Txt, "no data"),
        ("web.shop.svc.clusterset.local", Kind::Srv, "80 web.shop.svc.clusterset.local"),
        ("_http._tcp.web.shop.svc.clusterset.local", Kind::Srv, "80 web.shop.svc.clusterset.local"),
        ("_http._tcp.web.shop.svc.clusterset.local", Kind::A, "no data"),
        ("_http._udp.web.shop.svc.clusterset.local", Kind::Srv, "no name"),
        ("_tcp.web.shop.svc.clusterset.local", Kind::Srv, "no data"),
        ("_udp.web.shop.svc.clusterset.local", Kind::Srv, "no name"),
        ("_._tcp.web.shop.svc.clusterset.local", Kind::Srv, "no name"),
        ("lyon.web.shop.svc.clusterset.local", Kind::A, "no name"),
        ("10-2-0-1.lyon.web.shop.svc.clusterset.local", Kind::A, "no name"),
        ("shop.svc.clusterset.local", Kind::A, "no data"),
        ("yard.svc.clusterset.local", Kind::A, "no name"),
        ("svc.clusterset.local", Kind::A, "no data"),
        ("clusterset.local", Kind::A, "no data"),
        ("web.shop.clusterset.local", Kind::A, "no name"),
        ("dns-version.clusterset.local", Kind::Txt, "1.0.0"),
        ("dns-version.clusterset.local", Kind::A, "no data"),
        ("web.shop.svc.cluster.local", Kind::A, "not ours"),
        ("xclusterset.local", Kind::A, "not ours"),
        ("", Kind::A, "not ours"),
        ("..", Kind::A, "not ours"),
        (".clusterset.local", Kind::A, "no name"),
    ] {
        assert_eq!(ask(&world, name, kind), [found], "{name} {kind:?}");
    }
}

#[test]
fn a_headless_service_has_names_for_its_pods_and_none_without() {
    let headless = |families: &[Family]| Service {
        kind: ServiceKind::Headless,
        families: families.to_vec(),
        ..addressed(&[port("http", 80)])
    };
    let mut world = settled(world(), exporting("lyon", 1, &["10.2.0.1", "10.2.0.2"]));
    let mut pods = slice("shop/web", &[port("http", 8080)], &["10.2.0.1", "10.2.0.2"]);
    pods.endpoints[0].hostname = Some("db-0".into());
    let mut sixes = slice("shop/web", &[port("http", 8080)], &["fd70:2::1"]);
    sixes.endpoints[0].hostname = Some("db-0".into());
    world = settled(
        world,
        [
            Change::Service(cluster("lyon"), service("shop/web"), Some(headless(&Family::BOTH))),
            Change::Slice(cluster("lyon"), service("shop/web-lyon"), Some(pods)),
            Change::Slice(cluster("lyon"), service("shop/web-6"), Some(sixes)),
        ],
    );
    let name = "web.shop.svc.clusterset.local";
    assert_eq!(ask(&world, name, Kind::A), ["10.2.0.1", "10.2.0.2"]);
    assert_eq!(ask(&world, &format!("db-0.lyon.{name}"), Kind::A), ["10.2.0.1"]);
    assert_eq!(ask(&world, &format!("db-0.lyon.{name}"), Kind::Aaaa), ["fd70:2::1"]);
    assert_eq!(ask(&world, &format!("10-2-0-2.lyon.{name}"), Kind::A), ["10.2.0.2"]);
    assert_eq!(ask(&world, &format!("10-2-0-2.lyon.{name}"), Kind::Aaaa), ["no data"]);
    assert_eq!(ask(&world, &format!("lyon.{name}"), Kind::A), ["no data"]);
    assert_eq!(ask(&world, &format!("oslo.{name}"), Kind::A), ["no name"]);
    let targets = [format!("8080 10-2-0-2.lyon.{name}"), format!("8080 db-0.lyon.{name}")];
    assert_eq!(ask(&world, &format!("_http._tcp.{name}"), Kind::Srv), targets);
    let Reply::Answer { additional, .. } = answer(&world, name, Kind::Srv) else { panic!() };
    assert_eq!(additional.len(), 3, "each pod's addresses go along");
    let gone =
        ["web-lyon", "web-6"].map(|it| Change::Slice(cluster("lyon"), service(&format!("shop/{it}")), None));
    world = settled(world, gone);
    for (name, kind) in [(name.to_owned(), Kind::A), (format!("_http._tcp.{name}"), Kind::Srv)] {
        assert_eq!(ask(&world, &name, kind), ["no name"]);
    }
    assert_eq!(ask(&world, "shop.svc.clusterset.local", Kind::A), ["no name"], "nothing is below it");
}

#[test]
fn a_cluster_set_address_has_a_name() {
    let both = Service { families: Family::BOTH.to_vec(), ..addressed(&[port("http", 80)]) };
    let mut world = settled(world(), exporting("lyon", 1, &["10.2.0.1"]));
    world = settled(world, [Change::Service(cluster("lyon"), service("shop/web"), Some(both))]);
    for address in world.imports()[&service("shop/web")].addresses.clone() {
        let name = match address {
            IpAddr::V4(it) => {
                let [a, b, c, d] = it.octets();
                format!("{d}.{c}.{b}.{a}.in-addr.arpa.")
            }
            IpAddr::V6(it) => {
                let nibbles = format!("{:032x}", it.to_bits());
                let nibbles: Vec<_> = nibbles.chars().rev().map(String::from).collect();
                format!("{}.ip6.arpa", nibbles.join("."))
            }
        };
        assert_eq!(ask(&world, &name, Kind::Ptr), ["web.shop.svc.clusterset.local"]);
    }
    assert_eq!(ask(&world, "255.255.30.172.in-addr.arpa", Kind::Ptr), ["no name"]);
    assert_eq!(ask(&world, "1.0.0.10.in-addr.arpa", Kind::Ptr), ["not ours"]);
    assert_eq!(ask(&world, "1.0.10.in-addr.arpa", Kind::Ptr), ["not ours"]);
    assert_eq!(ask(&world, "g.ip6.arpa", Kind::Ptr), ["not ours"]);
}
