//! Limits of bandwidth are made once, stay what they are, come back when another hand takes them, and go with their pod.

use std::time::{Duration, Instant};

use causeway_model::{Bandwidth, RateLimit};

use crate::lab::{Lab, Namespace, UNDERLAY, ruleset};

fn disciplines(ns: &Namespace) -> Vec<String> {
    let said = ns.run("tc qdisc show");
    said.lines().filter(|line| line.contains("tbf")).map(str::to_owned).collect()
}

#[test]
fn limits_are_right_as_they_are_made_and_put_right_when_they_are_not() {
    let mut lab = Lab::new(1, &UNDERLAY);
    let node = &mut lab.nodes[0];
    let before = (node.ns.run("ip -br link"), ruleset(&node.ns));
    let mut endpoint = node.new_endpoint();
    // Beyond what 32 bits hold, and less than one frame.
    let (wide, narrow) =
        (RateLimit { rate: 40_000_000_000, burst: 4_294_967_295 }, RateLimit { rate: 8_000_000, burst: 8 });
    endpoint.bandwidth = Bandwidth { to_pod: Some(wide), from_pod: Some(narrow) };
    let pod = Namespace::new("pod");
    node.plug(&endpoint, &pod);
    assert_eq!(node.mend(), Vec::<String>::new());
    let (link, device) = (endpoint.key.link_name(), endpoint.key.limit_name());
    let made = disciplines(&node.ns);
    let has = |name: &str, rate: &str| made.iter().any(|line| line.contains(name) && line.contains(rate));
    assert!(
        made.len() == 2 && has(link.as_str(), "rate 40Gbit") && has(device.as_str(), "rate 8Mbit"),
        "{made:?}"
    );
    for harm in [
        format!("tc qdisc del dev {link} root"),
        format!("tc qdisc replace dev {device} root tbf rate 1gbit burst 100k limit 100k"),
        format!("tc qdisc change dev {device} root tbf rate 8mbit burst 100k limit 65536"),
        format!("ip link del {device}"),
        format!("nft flush chain netdev causeway-limits {link}"),
        "nft delete table netdev causeway-limits".to_owned(),
        format!("ip link set {device} down"),
    ] {
        node.ns.run(&harm);
        let mended = node.mend();
        assert!(!mended.is_empty(), "{harm}: nothing was mended");
        assert_eq!(disciplines(&node.ns).len(), 2, "{harm}: {mended:?}");
        assert_eq!(node.mend(), Vec::<String>::new(), "{harm}");
    }
    node.unplug(&endpoint);
    node.mend();
    // The pod's link is out of the way at once, and gone within a second.
    let deadline = Instant::now() + Duration::from_secs(1);
    while node.ns.run("ip -br link").contains("cwx") && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!((node.ns.run("ip -br link"), ruleset(&node.ns)), before);
}

#[test]
fn a_link_is_gone_within_a_second_though_others_are_made_all_the_while() {
    let mut lab = Lab::new(1, &UNDERLAY);
    let pod = lab.add_pod(0);
    let node = &mut lab.nodes[0];
    node.unplug(&pod.endpoint);
    let began = Instant::now();
    let mut pods = Vec::new();
    let mut seen = Duration::ZERO;
    while began.elapsed() < Duration::from_millis(1500) {
        pods.push(node.add_pod());
        if node.ns.run("ip -br link").contains("cwx") {
            seen = began.elapsed();
        }
    }
    assert!(seen < Duration::from_secs(1), "it is there still after {seen:?}");
}
