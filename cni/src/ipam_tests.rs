use serde_json::json;

use super::*;

fn read(config: Value, args: &[(&str, &str)]) -> Result<IpamRequest, Error> {
    let Value::Object(mut config) = config else { panic!("{config} is not an object") };
    config.insert("type".into(), "causeway-cni".into());
    let args = args.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    request(&config, &args)
}

fn assert_refused(tried: Result<IpamRequest, Error>, code: u32, words: &[&str]) {
    let failure = tried.expect_err(&format!("{words:?}")).failure();
    assert_eq!(failure.code, code, "{}", failure.msg);
    for word in words {
        assert!(failure.msg.contains(word), "{} lacks {word}", failure.msg);
    }
}

fn ranges(range: &Value) -> Value {
    json!({"ipam": {"type": "causeway", "ranges": [[range]]}})
}

fn bounds(request: &IpamRequest) -> Vec<Vec<String>> {
    let text = |range: &AddressRange| format!("{}-{}", range.first, range.last);
    request.sets.iter().map(|set| set.iter().map(text).collect()).collect()
}

#[test]
fn without_a_word_any_address_of_the_node_will_do() {
    for silent in
        [json!({}), json!({"ipam": null}), json!({"ipam": {}}), json!({"ipam": {"type": "causeway"}})]
    {
        assert_eq!(read(silent, &[]).unwrap(), IpamRequest::default());
    }
}

#[test]
fn ranges_in_host_locals_shape_begin_after_the_network_and_end_before_the_broadcast() {
    for (range, expected) in [
        (json!({"subnet": "10.244.4.100/30"}), "10.244.4.101-10.244.4.102"),
        (json!({"subnet": "10.244.4.100/30", "gateway": "10.244.4.101"}), "10.244.4.101-10.244.4.102"),
        (
            json!({"subnet": "10.1.0.0/16", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.20"}),
            "10.1.2.9-10.1.2.20",
        ),
        (json!({"subnet": "10.1.0.0/16", "rangeStart": "", "rangeEnd": null}), "10.1.0.1-10.1.255.254"),
        (json!({"subnet": "fd70::/126"}), "fd70::1-fd70::3"),
        (json!({"subnet": "fd70::/64", "rangeStart": "fd70::a"}), "fd70::a-fd70::ffff:ffff:ffff:ffff"),
    ] {
        assert_eq!(bounds(&read(ranges(&range), &[]).unwrap()), [[expected]], "{range}");
    }
    let gateway = ranges(&json!({"subnet": "10.244.4.100/30", "gateway": "10.244.4.101"}));
    assert_eq!(read(gateway, &[]).unwrap().sets[0][0].gateway, "10.244.4.101".parse().ok());
}

#[test]
fn sets_are_one_a_family_and_may_have_several_ranges() {
    let both = json!({"ipam": {"type": "causeway", "ranges": [
        [{"subnet": "fd70::/64"}],
        [{"subnet": "10.1.1.0/24"}, {"subnet": "10.1.2.0/24", "rangeEnd": "10.1.2.9"}]
    ]}});
    let expected =
        [vec!["10.1.1.1-10.1.1.254", "10.1.2.1-10.1.2.9"], vec!["fd70::1-fd70::ffff:ffff:ffff:ffff"]];
    assert_eq!(bounds(&read(both.clone(), &[]).unwrap()), expected, "IPv4 first");
    // What the runtime says of a family is said instead.
    let mut asked = both;
    asked["runtimeConfig"] = json!({"ipRanges": [[{"subnet": "10.1.9.0/24"}]]});
    let read = read(asked, &[]).unwrap();
    assert_eq!(bounds(&read)[0], ["10.1.9.1-10.1.9.254"]);
    assert_eq!(read.sets.len(), 2);
}

#[test]
fn range_edges_are_named_with_code_7() {
    for (range, words) in [
        (json!({"subnet": "10.244.4.0/31"}), ["10.244.4.0/31", "too small"]),
        (json!({"subnet": "10.244.4.1/32"}), ["10.244.4.1/32", "too small"]),
        (json!({"subnet": "fd70::/127"}), ["fd70::/127", "too small"]),
        (json!({"subnet": "10.244.4.101/30"}), ["host bits", "10.244.4.100/30"]),
        (json!({"subnet": "fd70::1/64"}), ["host bits", "fd70::/64"]),
        (json!({"subnet": "10.244.4.0/24", "rangeEnd": "10.244.5.9"}), ["rangeEnd 10.244.5.9", "outside"]),
        (json!({"subnet": "10.244.4.0/24", "rangeStart": "fd70::1"}), ["rangeStart fd70::1", "outside"]),
        (json!({"subnet": "10.244.4.0/24", "gateway": "10.244.5.1"}), ["gateway 10.244.5.1", "outside"]),
        (
            json!({"subnet": "10.244.4.0/24", "rangeStart": "10.244.4.9", "rangeEnd": "10.244.4.8"}),
            ["10.244.4.9", "after"],
        ),
        (json!({"subnet": "10.244.4.0"}), ["10.244.4.0", "LENGTH"]),
        (json!({"subnet": "10.244.4.0/33"}), ["10.244.4.0/33", "[0][0]"]),
        (json!({"subnet": "10.244.4.0/24", "rangeStart": "x"}), ["rangeStart", "\"x\""]),
        (json!({"subnet": "10.244.4.0/24", "rangestart": "x"}), ["rangestart", "ipam.ranges"]),
        (json!({"rangeStart": "10.244.4.9"}), ["subnet", "ipam.ranges"]),
    ] {
        assert_refused(read(ranges(&range), &[]), 7, &words);
    }
}

#[test]
fn sets_that_cannot_be_are_named() {
    let sets = |sets: Value| read(json!({"ipam": {"type": "causeway", "ranges": sets}}), &[]);
    let (four, six) = (json!({"subnet": "10.1.0.0/24"}), json!({"subnet": "fd70::/64"}));
    assert_refused(sets(json!([[four, six]])), 7, &["[0][1] fd70::/64", "another family"]);
    assert_refused(sets(json!([[four], [four]])), 7, &["[1]", "second set of IPv4"]);
    assert_refused(sets(json!([[four, {"subnet": "10.1.0.128/25"}]])), 7, &["10.1.0.128/25", "overlaps"]);
    assert_refused(sets(json!([[four], []])), 7, &["[1]", "empty"]);
    assert_refused(sets(json!([four])), 7, &["ipam.ranges"]);
    assert_refused(sets(json!("10.1.0.0/24")), 7, &["ipam.ranges"]);
    let asked = json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.1.0.0/31"}]]}});
    assert_refused(read(asked, &[]), 7, &["runtimeConfig.ipRanges"]);
    assert_refused(read(json!({"ipam": {"type": "causeway", "dataDir": "/x"}}), &[]), 2, &["ipam.dataDir"]);
    assert_refused(read(json!({"ipam": {"ranges": [[four]]}}), &[]), 7, &["ipam.type", "missing"]);
    assert_refused(read(json!({"ipam": "x"}), &[]), 7, &["ipam"]);
}

#[test]
fn static_addresses_come_by_capability_and_by_arguments() {
    let both = json!({"runtimeConfig": {"ips": ["fd70::9/64", "10.1.0.9"], "mac": "02:00:5e:00:53:01"}});
    let wanted = read(both, &[("IP", "10.1.0.9"), ("MAC", "02:00:5E:00:53:01")]).unwrap();
    let text: Vec<_> = wanted.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(text, ["10.1.0.9", "fd70::9"]);
    assert_eq!(wanted.mac.unwrap().to_string(), "02:00:5e:00:53:01");
    let told = read(json!({"args": {"cni": {"ips": ["10.1.0.7/24"], "labels": []}}}), &[]).unwrap();
    assert_eq!(told.addresses[0].to_string(), "10.1.0.7");
    assert_eq!(read(json!({}), &[("IP", "10.1.0.9, fd70::9")]).unwrap().addresses.len(), 2);
    assert_eq!(
        read(json!({"runtimeConfig": {"ips": [], "mac": ""}}), &[("IP", "")]).unwrap(),
        IpamRequest::default()
    );
}

#[test]
fn static_wishes_that_contradict_each_other_name_both_places() {
    let nine = json!({"runtimeConfig": {"ips": ["10.1.0.9"]}});
    assert_refused(
        read(nine.clone(), &[("IP", "10.1.0.8")]),
        4,
        &["CNI_ARGS", "10.1.0.8", "runtimeConfig.ips", "10.1.0.9"],
    );
    let mut told = nine;
    told["args"] = json!({"cni": {"ips": ["10.1.0.8"]}});
    assert_refused(read(told, &[]), 7, &["args.cni.ips", "10.1.0.8", "10.1.0.9"]);
    let two = json!({"runtimeConfig": {"ips": ["10.1.0.9", "10.1.0.8"]}});
    assert_refused(read(two, &[]), 7, &["10.1.0.8", "one IPv4 address"]);
    let mac = json!({"runtimeConfig": {"mac": "02:00:5e:00:53:01"}});
    assert_refused(
        read(mac, &[("MAC", "02:00:5e:00:53:02")]),
        4,
        &["CNI_ARGS", "53:02", "runtimeConfig.mac", "53:01"],
    );
    assert_refused(
        read(json!({"runtimeConfig": {"ips": ["10.1.0"]}}), &[]),
        7,
        &["runtimeConfig.ips", "10.1.0"],
    );
    assert_refused(read(json!({"runtimeConfig": {"ips": "10.1.0.1"}}), &[]), 7, &["runtimeConfig.ips"]);
    assert_refused(read(json!({"runtimeConfig": {"mac": 7}}), &[]), 7, &["runtimeConfig.mac"]);
    assert_refused(read(json!({}), &[("MAC", "x")]), 4, &["CNI_ARGS", "x"]);
}

#[test]
fn routes_lead_over_our_gateway_or_nowhere() {
    let with = |routes: Value| read(json!({"ipam": {"type": "causeway", "routes": routes}}), &[]);
    let good =
        json!([{"dst": "10.9.0.1/16"}, {"dst": "::/0", "gw": "fe80::1"}, {"dst": "10.8.0.0/16", "gw": ""}]);
    let routes: Vec<_> = with(good).unwrap().routes.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(routes, ["10.8.0.0/16", "10.9.0.0/16", "::/0"]);
    assert_eq!(with(json!([])).unwrap().routes, None);
    assert_refused(
        with(json!([{"dst": "10.9.0.0/16", "gw": "10.1.0.1"}])),
        7,
        &["ipam.routes", "10.1.0.1", "169.254.1.1"],
    );
    assert_refused(with(json!([{"dst": "10.9.0.0/16", "mtu": 1400}])), 7, &["ipam.routes", "mtu"]);
    assert_refused(with(json!([{"dst": "10.9.0.0"}])), 7, &["ipam.routes", "10.9.0.0"]);
    assert_refused(with(json!([{"gw": "fe80::1"}])), 7, &["ipam.routes", "dst"]);
    assert_refused(with(json!({"dst": "::/0"})), 7, &["ipam.routes"]);
}

#[test]
fn another_plugin_is_named_and_reads_its_own_part_by_itself() {
    let config = json!({
        "ipam": {"type": "host-local", "ranges": "whatever", "dataDir": "/x"},
        "runtimeConfig": {"ips": ["also its own"], "mac": "02:00:5e:00:53:01"}
    });
    let Value::Object(document) = config.clone() else { unreachable!() };
    assert_eq!(delegate(&document).unwrap(), Some("host-local"));
    let wanted = read(config, &[("IP", "its own, too")]).unwrap();
    assert!(wanted.addresses.is_empty() && wanted.sets.is_empty() && wanted.mac.is_some());
    for bad in [json!("../x"), json!(""), json!(7), json!("causeway-cni")] {
        assert_refused(read(json!({"ipam": {"type": bad, "x": "y"}}), &[]), 7, &["ipam.type"]);
    }
}
