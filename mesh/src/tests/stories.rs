//! What happens, told one by one.

use std::time::Duration;

use causeway_model::Family;
use nix::time::{ClockId, clock_gettime};

use super::*;
use crate::Status;

fn ready(world: &World, name: &str) -> (Status, String) {
    let ready = &world.imports()[&service(name)].ready;
    (ready.status, format!("{}: {}", ready.reason, ready.message))
}

#[test]
fn the_local_word_wins_over_a_suggestion_and_the_import_over_the_service() {
    let all = [
        exporting("oslo", 1, &["10.1.0.1"]),
        exporting("lyon", 2, &["10.2.0.1"]),
        exporting("turin", 3, &["10.3.0.1"]),
    ];
    let mut world = settled(world(), all.concat());
    assert_eq!(reached(&world, "shop/web").len(), 3);
    let suggestion = Export { wish: wish("local", ""), ..export(1) };
    world = settled(world, [Change::Export(cluster("oslo"), service("shop/web"), Some(suggestion))]);
    assert_eq!(reached(&world, "shop/web"), [("10.1.0.1".to_owned(), 1)]);
    let own = Service { wish: wish("remote", ""), ..addressed(&[port("http", 80)]) };
    world = settled(world, [Change::Service(cluster("oslo"), service("shop/web"), Some(own))]);
    assert_eq!(reached(&world, "shop/web"), [("10.2.0.1".to_owned(), 1), ("10.3.0.1".to_owned(), 1)]);
    world = settled(world, [Change::Import(service("shop/web"), Some(wish("", "cluster:turin*3")))]);
    assert_eq!(reached(&world, "shop/web"), [("10.3.0.1".to_owned(), 1)]);
    let choice = &world.imports()[&service("shop/web")].choice;
    assert_eq!(choice.affinity_by.as_ref().unwrap().to_string(), "the Service here");
    assert_eq!(choice.prefer_by.as_ref().unwrap().to_string(), "the ServiceImport here");
}

#[test]
fn a_preference_is_tiers_with_weights_and_a_least_number() {
    let all = [
        exporting("oslo", 1, &["10.1.0.1"]),
        exporting("lyon", 2, &["10.2.0.1", "10.2.0.2"]),
        exporting("turin", 3, &["10.3.0.1"]),
    ];
    let prefer = |text: &str| [Change::Import(service("shop/web"), Some(wish("", text)))];
    let mut world = settled(world(), all.concat());
    world = settled(world, prefer("cluster:lyon*3,region:south; cluster:oslo"));
    let parts = |world: &World| reached(world, "shop/web").iter().map(|(_, part)| *part).collect::<Vec<_>>();
    assert_eq!(parts(&world), [3, 3, 2], "three to one by entry; lyon's two share lyon's");
    world = settled(world, prefer("cluster:turin,min=2; cluster:lyon,min=2"));
    assert_eq!(reached(&world, "shop/web").len(), 2, "the second tier has enough");
    world = settled(world, prefer("cluster:turin,min=2; cluster:lyon,min=3"));
    assert_eq!(reached(&world, "shop/web").len(), 3, "all tiers together, oslo in none");
    world = settled(world, prefer("cluster:paris; region:east"));
    assert_eq!(reached(&world, "shop/web").len(), 4, "nobody is in a tier");
    let tier = |world: &World| {
        let import = world.imports()[&service("shop/web")].clone();
        import.backends[&(Family::V4, 0)].iter().map(|it| it.tier).collect::<Vec<_>>()
    };
    world = settled(world, prefer("cluster:turin; cluster:lyon"));
    assert_eq!(tier(&world), [Some(1), Some(1), None, Some(0)]);
}

#[test]
fn a_lost_cluster_has_no_backends_and_no_say_and_returns_without_doubles() {
    let all = [exporting("oslo", 2, &["10.1.0.1"]), exporting("lyon", 1, &["10.2.0.1"])];
    let mut world = settled(world(), all.concat());
    let lose = |age| [Change::Lost(cluster("lyon"), age)];
    world = settled(world, lose(Some(Duration::from_secs(40))));
    assert_eq!(reached(&world, "shop/web"), [("10.1.0.1".to_owned(), 1)]);
    assert_eq!(world.lost().next(), Some((&cluster("lyon"), Duration::from_secs(40))));
    let address = world.imports()[&service("shop/web")].addresses.clone();
    // The last one left keeps the import, and its address, alive; nobody serves.
    world = settled(world, [Change::Export(cluster("oslo"), service("shop/web"), None)]);
    assert_eq!(reached(&world, "shop/web"), []);
    assert_eq!(world.imports()[&service("shop/web")].addresses, address);
    world = settled(world, lose(None));
    assert_eq!(reached(&world, "shop/web"), [("10.2.0.1".to_owned(), 1)]);
    assert_eq!(world.imports()[&service("shop/web")].addresses, address);
}

#[test]
fn backends_that_drain_serve_where_nobody_else_does() {
    let mut world = settled(world(), exporting("lyon", 1, &["10.2.0.1", "10.2.0.2"]));
    let put = |first, second| {
        let mut slice = slice("shop/web", &[port("http", 80)], &["10.2.0.1", "10.2.0.2"]);
        slice.endpoints[0].state = first;
        slice.endpoints[1].state = second;
        [Change::Slice(cluster("lyon"), service("shop/web-lyon"), Some(slice))]
    };
    world = settled(world, put(State::Draining, State::Ready));
    assert_eq!(reached(&world, "shop/web"), [("10.2.0.2".to_owned(), 1)]);
    world = settled(world, put(State::Draining, State::Down));
    assert_eq!(reached(&world, "shop/web"), [("10.2.0.1".to_owned(), 1)]);
}

#[test]
fn nobody_offers_what_is_anothers() {
    let foreign = ["10.2.0.1", "10.3.0.1", "127.0.0.1", "169.254.1.1", "224.0.0.1", "198.51.100.7"];
    let world = settled(world(), exporting("lyon", 1, &foreign));
    let reached: Vec<_> = reached(&world, "shop/web").into_iter().map(|(address, _)| address).collect();
    assert_eq!(reached, ["10.2.0.1", "198.51.100.7"], "its own, and what is nobody's");
    assert_eq!(world.imports()[&service("shop/web")].left_out.len(), 4, "and it can be told");
}

#[test]
fn every_exporter_that_is_seen_is_told_who_disagrees_in_what() {
    let all = [exporting("oslo", 1, &["10.1.0.1"]), exporting("lyon", 2, &["10.2.0.1"])];
    let mut world = settled(world(), all.concat());
    let other = Service { affinity: Some(60), ..addressed(&[port("http", 8080), port("metrics", 9090)]) };
    world = settled(world, [Change::Service(cluster("lyon"), service("shop/web"), Some(other))]);
    for name in ["oslo", "lyon"] {
        let conditions = &world.exports()[&service("shop/web")][&cluster(name)].conditions;
        let conflict = conditions.iter().find(|condition| condition.kind == "Conflict").unwrap();
        assert_eq!(conflict.reason, "PortConflict,SessionAffinityConflict");
        assert_eq!(
            conflict.message,
            "PortConflict: oslo says http/TCP/80; lyon says http/TCP/8080 metrics/TCP/9090. \
             SessionAffinityConflict: oslo says None; lyon says ClientIP"
        );
    }
    world = settled(world, [Change::Export(cluster("oslo"), service("shop/web"), None)]);
    let import = &world.imports()[&service("shop/web")];
    assert_eq!(import.ports, [port("http", 8080), port("metrics", 9090)], "the import is made anew");
    assert!(import.conflicts.is_empty());
}

#[test]
fn what_cannot_be_used_here_says_why() {
    let small = Config { clusterset: vec!["172.30.0.0/30".parse().unwrap()], ..Config::default() };
    let mut world = settled(world(), exporting("lyon", 1, &["10.2.0.1"]));
    let six = Service { families: vec![Family::V6], ..addressed(&[port("http", 80)]) };
    world = settled(world, [Change::Config(small)]);
    assert_eq!(ready(&world, "shop/web"), (Status::True, "Ready: ".to_owned()));
    world = settled(world, [Change::Service(cluster("lyon"), service("shop/web"), Some(six))]);
    let (status, why) = ready(&world, "shop/web");
    assert_eq!(status, Status::False);
    assert_eq!(why, "IPFamilyNotSupported: it has IPv6, of which there is no clusterset-cidr");
    let mut four = record("oslo", 1, "north");
    four.pod_prefixes.truncate(1);
    world = settled(world, [Change::Cluster(cluster("oslo"), Some((four, None)))]);
    assert_eq!(ready(&world, "shop/web").1, "IPFamilyNotSupported: it has IPv6, pods here have IPv4");
    // Two addresses for three services: the third waits until one goes.
    for name in ["shop/a", "shop/b", "shop/c"] {
        world.apply(Change::Service(cluster("lyon"), service(name), Some(addressed(&[port("", 80)]))));
        world.apply(Change::Export(cluster("lyon"), service(name), Some(export(1))));
    }
    world.settle();
    assert_eq!(ready(&world, "shop/c").1, "Pending: every address of the clusterset-cidr is taken");
    world = settled(world, [Change::Export(cluster("lyon"), service("shop/a"), None)]);
    assert_eq!(ready(&world, "shop/c"), (Status::True, "Ready: ".to_owned()));
    world = settled(world, [Change::Config(Config::default())]);
    assert_eq!(ready(&world, "shop/c").1, "Pending: no clusterset-cidr is configured");
}

#[test]
fn addresses_outlive_a_restart_in_which_a_cluster_is_read_late() {
    let all = [exporting("lyon", 1, &["10.2.0.1"])].concat();
    let before = settled(world(), all.clone());
    let address = before.imports()[&service("shop/web")].addresses.clone();
    let mut again = World::new(cluster("oslo"), before.memory());
    everybody().into_iter().for_each(|change| again.apply(change));
    again.settle();
    assert!(again.imports().is_empty());
    let again = settled(again, all);
    assert_eq!(again.imports()[&service("shop/web")].addresses, address);
}

#[test]
fn a_change_moves_only_what_it_is_about() {
    let mut world = settled(world(), exporting("lyon", 1, &["10.2.0.1"]));
    assert_eq!(world.settle(), crate::Moved::default(), "nothing happened");
    world.apply(Change::Slice(
        cluster("lyon"),
        service("shop/web-lyon"),
        Some(slice("shop/web", &[port("http", 80)], &["10.2.0.9"])),
    ));
    let moved = world.settle();
    assert_eq!(moved.imports.iter().collect::<Vec<_>>(), [&service("shop/web")]);
    assert!(moved.exports.is_empty(), "its conditions are as before");
    // A slice that is another service's from now on.
    let other = slice("shop/other", &[port("http", 80)], &["10.2.0.9"]);
    world = settled(world, [Change::Slice(cluster("lyon"), service("shop/web-lyon"), Some(other))]);
    assert_eq!(reached(&world, "shop/web"), []);
    world = settled(world, [Change::Gone(cluster("lyon"))]);
    assert!(world.imports().is_empty() && world.exports().is_empty());
}

/// Ten clusters that export a thousand services each, with three backends.
fn crowded() -> World {
    let mut world = World::new(cluster("c1"), Memory::default());
    let ports = [port("http", 80), port("metrics", 9090)];
    world.apply(Change::Config(config()));
    world.apply(Change::Namespace(cluster("c1"), "shop".to_owned(), true));
    for id in 1..=10_u32 {
        let name = cluster(&format!("c{id}"));
        world.apply(Change::Cluster(name.clone(), Some((record(name.as_str(), id, "north"), None))));
        for number in 0..1000_u32 {
            let own = format!("shop/s{number}");
            let address = |pod| format!("10.{id}.{}.{}", number / 80, number % 80 * 3 + pod);
            let addresses: Vec<_> = (0..3).map(address).collect();
            let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
            world.apply(Change::Service(name.clone(), service(&own), Some(addressed(&ports))));
            world.apply(Change::Export(name.clone(), service(&own), Some(export(i64::from(id)))));
            world.apply(Change::Slice(name.clone(), service(&own), Some(slice(&own, &ports, &addresses))));
        }
    }
    assert_eq!(world.settle().imports.len(), 1000);
    world
}

/// The processor's time that this thread has had.
fn spent() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// What the shortest of some runs takes of the processor.
fn shortest<T>(runs: usize, mut run: impl FnMut(usize) -> T) -> (Duration, T) {
    let timed = |number| {
        let begun = spent();
        let result = run(number);
        (spent() - begun, result)
    };
    (0..runs).map(timed).min_by_key(|(took, _)| *took).expect("a run")
}

#[test]
fn a_thousand_imports_of_ten_clusters_are_there_in_a_second_and_a_backend_at_once() {
    let (loaded, mut world) = shortest(5, |_| crowded());
    let (changed, moved) = shortest(20, |number| {
        let address = format!("10.7.200.{}", number + 1);
        let slice = slice("shop/s500", &[port("http", 80), port("metrics", 9090)], &[&address]);
        world.apply(Change::Slice(cluster("c7"), service("shop/s500"), Some(slice)));
        world.settle()
    });
    assert_eq!(moved.imports.len(), 1);
    println!("loaded in {loaded:?}, a backend's change in {changed:?}");
    assert!(loaded < Duration::from_secs(1), "{loaded:?}");
    assert!(changed < Duration::from_millis(2), "{changed:?}");
}
