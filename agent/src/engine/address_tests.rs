//! Which addresses attachments get of the engine, and when they are free again.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use causeway_model::plugin::{AddressRange, Attachment, Failure, IpamRequest, Reply, Request, Verb};
use causeway_model::{IpNetwork, PodName};
use nix::time::{ClockId, clock_gettime};

use super::bench::{Bench, CLUSTER, pod, request, world};
use super::*;

/// A node with room.
fn roomy(bench: &Bench, more: &[String]) -> Engine {
    let engine = bench.start();
    let cluster = CLUSTER.replace("10.70.1.0/29", "10.70.1.0/24");
    let files: Vec<_> = std::iter::once(cluster.as_str()).chain(more.iter().map(String::as_str)).collect();
    engine.hear(Ok(world(&files)));
    bench.dataplane.calls();
    engine
}

fn range(subnet: &str, first: &str, last: &str) -> AddressRange {
    let subnet: IpNetwork = subnet.parse().unwrap();
    AddressRange { subnet, first: first.parse().unwrap(), last: last.parse().unwrap(), gateway: None }
}

fn ranges(ranges: &[(&str, &str, &str)]) -> IpamRequest {
    let set = ranges.iter().map(|(subnet, first, last)| range(subnet, first, last)).collect();
    IpamRequest { sets: vec![set], ..IpamRequest::default() }
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn fixed(texts: &[&str]) -> IpamRequest {
    IpamRequest { addresses: addresses(texts), ..IpamRequest::default() }
}

fn delegated(texts: &[&str]) -> IpamRequest {
    IpamRequest { delegate: Some("host-local".into()), ..fixed(texts) }
}

impl Engine {
    fn add_with(
        &self,
        container: &str,
        pod: Option<&str>,
        ipam: &IpamRequest,
    ) -> Result<Attachment, Failure> {
        let pod = pod.map(|name| PodName { namespace: "shop".into(), name: name.into() });
        match self.ask(&Request { pod, ipam: ipam.clone(), ..request(Verb::Add, container) }) {
            Reply::Attached(attachment) => Ok(attachment),
            Reply::Failed(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    fn given(&self, container: &str, ipam: &IpamRequest) -> Vec<String> {
        let attachment = self.add_with(container, None, ipam).unwrap();
        attachment.addresses.iter().map(|one| one.address.ip().to_string()).collect()
    }

    fn refused(&self, container: &str, ipam: &IpamRequest, code: u32, words: &[&str]) {
        let failure = self.add_with(container, None, ipam).expect_err(&format!("{words:?}"));
        assert_eq!(failure.code, code, "{}", failure.msg);
        for word in words {
            assert!(failure.msg.contains(word), "{} lacks {word}", failure.msg);
        }
    }
}

#[test]
fn a_range_is_used_up_then_reused_longest_free_first() {
    let bench = Bench::new();
    let engine = roomy(&bench, &[]);
    let five = ranges(&[("10.70.1.0/24", "10.70.1.10", "10.70.1.14")]);
    assert_eq!(engine.given("a", &five), ["10.70.1.10"], "an address of each set, and of nothing else");
    engine.del("a");
    assert_eq!(engine.given("b", &five), ["10.70.1.11"], "not a's while unused ones remain");
    for (container, expected) in
        [("c", "10.70.1.12"), ("d", "10.70.1.13"), ("e", "10.70.1.14"), ("f", "10.70.1.10")]
    {
        assert_eq!(engine.given(container, &five), [expected]);
    }
    bench.dataplane.calls();
    let full = ["10.70.1.10-10.70.1.14", "5 of 5 in use"];
    engine.refused("z", &five, Failure::RANGE_EXHAUSTED, &full);
    assert_eq!(bench.dataplane.calls(), Vec::<String>::new());
    assert_eq!(engine.kept(), ["b", "c", "d", "e", "f"], "nothing of z");
    engine.del("d");
    engine.del("b");
    assert_eq!(engine.given("y", &five), ["10.70.1.13"], "released first");
    assert_eq!(engine.given("x", &five), ["10.70.1.11"]);
}

#[test]
fn edges_gateways_and_the_nodes_own_addresses_are_nobodys() {
    let bench = Bench::new();
    let engine = roomy(&bench, &[]);
    let small = ranges(&[("10.70.1.100/30", "10.70.1.101", "10.70.1.102")]);
    assert_eq!(engine.given("a", &small), ["10.70.1.101"]);
    assert_eq!(engine.given("b", &small), ["10.70.1.102"]);
    engine.refused("c", &small, Failure::RANGE_EXHAUSTED, &["10.70.1.101-10.70.1.102", "2 of 2"]);
    let mut guarded = ranges(&[("10.70.1.104/30", "10.70.1.104", "10.70.1.107")]);
    guarded.sets[0][0].gateway = "10.70.1.105".parse().ok();
    assert_eq!(engine.given("d", &guarded), ["10.70.1.106"], "neither .104 nor the gateway nor .107");
    engine.refused("e", &guarded, Failure::RANGE_EXHAUSTED, &["1 of 1"]);
    // The overlay host and the probe are the node's, whatever a network says.
    let low = ranges(&[("10.70.1.0/29", "10.70.1.1", "10.70.1.3")]);
    assert_eq!(engine.given("f", &low), ["10.70.1.3"]);
    let reserved = ranges(&[("10.70.1.0/30", "10.70.1.1", "10.70.1.2")]);
    engine.refused("g", &reserved, Failure::INVALID_CONFIG, &["10.70.1.1-10.70.1.2", "reserved"]);
    let outside = ranges(&[("10.70.0.0/16", "10.70.1.250", "10.70.2.5")]);
    engine.refused("h", &outside, Failure::INVALID_CONFIG, &["10.70.1.250-10.70.2.5", "10.70.1.0/24"]);
    let foreign = ranges(&[("192.0.2.0/24", "192.0.2.1", "192.0.2.9")]);
    engine.refused("h", &foreign, Failure::INVALID_CONFIG, &["192.0.2.1-192.0.2.9", "10.70.1.0/24"]);
    let last = ranges(&[("10.70.0.0/16", "10.70.1.254", "10.70.1.255")]);
    assert_eq!(engine.given("i", &last), ["10.70.1.254"], "the node's broadcast is not the subnet's");
}

#[test]
fn networks_that_share_a_prefix_share_its_addresses() {
    let bench = Bench::new();
    let engine = roomy(&bench, &[]);
    let two = ranges(&[("10.70.1.0/24", "10.70.1.4", "10.70.1.5")]);
    assert_eq!(engine.given("a", &two), ["10.70.1.4"]);
    let whole = IpamRequest::default();
    assert_eq!(engine.given("b", &whole), ["10.70.1.3", "fd70:0:0:1::3"]);
    assert_eq!(engine.given("c", &whole)[0], "10.70.1.5");
    engine.refused("d", &two, Failure::RANGE_EXHAUSTED, &["2 of 2 in use"]);
    engine.del("c");
    // Free again in the one as in the other.
    assert_eq!(engine.given("d", &two), ["10.70.1.5"]);
    // A gateway that is one no longer is an address like any other.
    let mut guarded = ranges(&[("10.70.1.8/29", "10.70.1.9", "10.70.1.10")]);
    guarded.sets[0][0].gateway = "10.70.1.9".parse().ok();
    assert_eq!(engine.given("e", &guarded), ["10.70.1.10"]);
    guarded.sets[0][0].gateway = None;
    assert_eq!(engine.given("f", &guarded), ["10.70.1.9"]);
}

#[test]
fn static_wishes_are_kept_or_refused_with_the_holders_name() {
    let bench = Bench::new();
    let annotations =
        "causeway.dev/addresses: \"10.70.1.9, fd70:0:0:1::9\", causeway.dev/mac: \"02:00:5e:00:53:01\"";
    let engine = roomy(&bench, &[pod("web", annotations, ""), pod("plain", "", "")]);
    let six = engine.add_with("a", Some("web"), &fixed(&["fd70:0:0:1::9"])).unwrap();
    let text: Vec<_> = six.addresses.iter().map(|one| one.address.to_string()).collect();
    assert_eq!(
        text,
        ["10.70.1.9/32", "fd70:0:0:1::9/128"],
        "the pod says one, the runtime the same and no more"
    );
    assert_eq!(six.mac.to_string(), "02:00:5e:00:53:01");
    let taken = ["10.70.1.9", "pods/a/eth0"];
    engine.refused("b", &fixed(&["10.70.1.9"]), Failure::TRY_AGAIN, &taken);
    let mac = IpamRequest { mac: "02:00:5e:00:53:01".parse().ok(), ..IpamRequest::default() };
    engine.refused("b", &mac, Failure::TRY_AGAIN, &["02:00:5e:00:53:01", "pods/a/eth0"]);
    let failure = engine.add_with("b", Some("web"), &fixed(&["10.70.1.8"])).unwrap_err();
    assert_eq!(failure.code, Failure::INVALID_CONFIG);
    for word in ["shop/web", "causeway.dev/addresses", "10.70.1.9", "the runtime 10.70.1.8"] {
        assert!(failure.msg.contains(word), "{}", failure.msg);
    }
    let other = IpamRequest { mac: "02:00:5e:00:53:02".parse().ok(), ..IpamRequest::default() };
    let failure = engine.add_with("b", Some("web"), &other).unwrap_err();
    assert!(
        failure.msg.contains("53:01") && failure.msg.contains("the runtime 02:00:5e:00:53:02"),
        "{}",
        failure.msg
    );
    // Where a network has ranges, static addresses are of them, too.
    let narrow = IpamRequest {
        addresses: addresses(&["10.70.1.20"]),
        ..ranges(&[("10.70.1.0/24", "10.70.1.10", "10.70.1.14")])
    };
    engine.refused(
        "b",
        &narrow,
        Failure::INVALID_CONFIG,
        &["10.70.1.20", "outside of 10.70.1.10-10.70.1.14"],
    );
    assert_eq!(engine.kept(), ["a"]);
    let plain = engine.add_with("c", Some("plain"), &fixed(&["10.70.1.8"])).unwrap();
    assert_eq!(plain.addresses[0].address.ip().to_string(), "10.70.1.8");
    engine.del("a");
    assert_eq!(engine.given("b", &fixed(&["10.70.1.9"]))[0], "10.70.1.9");
}

#[test]
fn another_plugins_addresses_are_taken_when_they_are_this_nodes_to_give() {
    let bench = Bench::new();
    let pinned = pod("web", "causeway.dev/addresses: \"10.70.1.9\"", "");
    let engine = roomy(&bench, &[pinned]);
    assert_eq!(engine.given("a", &delegated(&["10.70.1.20"])), ["10.70.1.20"], "one family, as it was given");
    for (bad, words) in [
        ("10.70.2.20", ["10.70.2.20", "outside of 10.70.1.0/24"]),
        ("10.70.1.1", ["10.70.1.1", "reserved"]),
        ("10.70.1.2", ["10.70.1.2", "reserved"]),
        ("10.70.1.255", ["10.70.1.255", "reserved"]),
    ] {
        engine.refused("b", &delegated(&[bad]), Failure::INVALID_CONFIG, &words);
    }
    engine.refused("b", &delegated(&["10.70.1.20"]), Failure::TRY_AGAIN, &["10.70.1.20", "pods/a/eth0"]);
    let failure = engine.add_with("b", Some("web"), &delegated(&["10.70.1.21"])).unwrap_err();
    assert_eq!(failure.code, Failure::INVALID_CONFIG);
    assert!(
        failure.msg.contains("10.70.1.9") && failure.msg.contains("IPAM plugin host-local 10.70.1.21"),
        "{}",
        failure.msg
    );
    let failure = engine.add_with("b", Some("web"), &delegated(&["fd70:0:0:1::9"])).unwrap_err();
    assert!(failure.msg.contains("host-local gave no IPv4 address"), "{}", failure.msg);
    assert_eq!(engine.kept(), ["a"]);
    // Nobody else gets what another plugin gave.
    assert_eq!(engine.given("c", &ranges(&[("10.70.1.0/24", "10.70.1.20", "10.70.1.21")])), ["10.70.1.21"]);
}

#[test]
fn routes_of_a_network_come_to_its_endpoints() {
    let bench = Bench::new();
    let engine = roomy(&bench, &[]);
    let routes: Option<Vec<IpNetwork>> = Some(vec!["10.0.0.0/8".parse().unwrap()]);
    let asked = IpamRequest { routes: routes.clone(), ..IpamRequest::default() };
    assert_eq!(engine.add_with("a", None, &asked).unwrap().routes, routes);
    assert_eq!(engine.endpoint("a").routes, routes);
    drop(engine);
    let engine = bench.start();
    assert_eq!(engine.endpoint("a").routes, routes, "after a restart, too");
}

#[test]
fn two_hundred_parallel_adds_get_two_hundred_addresses() {
    let bench = Bench::new();
    let engine = roomy(&bench, &[]);
    let narrow = ranges(&[
        ("10.70.1.0/24", "10.70.1.11", "10.70.1.110"),
        ("10.70.1.0/24", "10.70.1.131", "10.70.1.230"),
    ]);
    let results: Vec<_> = thread::scope(|scope| {
        let add = |n| {
            let (engine, narrow) = (&engine, &narrow);
            scope.spawn(move || engine.add_with(&format!("c{n}"), None, narrow))
        };
        let adds: Vec<_> = (0..201).map(add).collect();
        adds.into_iter().map(|add| add.join().unwrap()).collect()
    });
    let given = results.iter().flatten().map(|attachment| attachment.addresses[0].address.ip());
    let distinct: std::collections::BTreeSet<_> = given.collect();
    assert_eq!(distinct.len(), 200);
    let refused: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].code, Failure::RANGE_EXHAUSTED);
}

#[test]
fn addresses_of_a_boot_before_are_free_and_late_deletes_harm_nobody() {
    let mut bench = Bench::new();
    let engine = roomy(&bench, &[]);
    let six = ranges(&[("10.70.1.0/24", "10.70.1.11", "10.70.1.16")]);
    let gone = |container: &str| Request {
        netns: bench.directory.path().join(container).display().to_string(),
        ipam: six.clone(),
        ..request(Verb::Add, container)
    };
    for container in ["c1", "c2", "c3", "c4", "c5"] {
        assert!(matches!(engine.ask(&gone(container)), Reply::Attached(_)));
    }
    drop(engine);
    bench.boot = "second boot";
    let engine = roomy(&bench, &[]);
    assert_eq!(engine.kept(), Vec::<String>::new());
    let new: Vec<_> = ["n1", "n2", "n3", "n4", "n5"].map(|container| engine.given(container, &six)).concat();
    assert_eq!(new[0], "10.70.1.16", "the only one that nobody had");
    for late in ["c1", "c2", "c3", "c4", "c5"] {
        engine.del(late);
    }
    assert_eq!(engine.kept(), ["n1", "n2", "n3", "n4", "n5"]);
    let held: Vec<_> =
        ["n1", "n2", "n3", "n4", "n5"].map(|name| engine.endpoint(name).addresses[0].to_string()).into();
    assert_eq!(held, new);
}

/// What this thread has worked: whatever else the machine does takes none of it.
fn worked() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap())
}

#[test]
fn a_thousandth_add_is_no_more_work_than_twice_the_tenth() {
    let bench = Bench::new();
    let engine = bench.start();
    engine.hear(Ok(world(&[&CLUSTER.replace("10.70.1.0/29", "10.70.0.0/20")])));
    let mut took = Vec::new();
    for n in 0..1010 {
        let before = worked();
        engine.add(&format!("c{n}"));
        took.push(worked().saturating_sub(before));
        bench.dataplane.calls();
    }
    let median = |at: usize| {
        let mut around = took[at - 10..at + 10].to_vec();
        around.sort();
        around[10]
    };
    let (tenth, thousandth) = (median(10), median(1000));
    assert!(thousandth <= 2 * tenth, "{tenth:?}, then {thousandth:?}");
}
