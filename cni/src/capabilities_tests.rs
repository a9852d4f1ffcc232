use super::*;

fn object(value: Value) -> Map<String, Value> {
    let Value::Object(object) = value else { panic!("{value} is not an object") };
    object
}

fn capabilities(runtime: Value) -> Result<Capabilities, Error> {
    read(Some(&object(runtime)))
}

fn shown(entries: &Value) -> Vec<String> {
    let mappings = capabilities(json!({"portMappings": entries})).unwrap().port_mappings;
    mappings.iter().map(|mapping| format!("{mapping} to {}", mapping.container_port)).collect()
}

#[track_caller]
fn assert_refused(runtime: Value, code: u32, words: &[&str]) {
    let failure = capabilities(runtime).expect_err(&format!("{words:?}")).failure();
    assert_eq!(failure.code, code, "{}", failure.msg);
    for word in words {
        assert!(failure.msg.contains(word), "{} lacks {word}", failure.msg);
    }
}

#[test]
fn port_mappings_are_read_as_containerd_and_as_podman_write_them() {
    let containerd = json!([{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}]);
    assert_eq!(shown(&containerd), ["8080/tcp to 80"]);
    let podman = json!([
        {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "127.0.0.1"},
        {"hostPort": 53, "containerPort": 53, "protocol": "SCTP", "hostIP": "2001:db8::1"},
        {"hostPort": 53, "containerPort": 53},
    ]);
    let expected = ["127.0.0.1:53/udp to 5353", "[2001:db8::1]:53/sctp to 53", "53/tcp to 53"];
    assert_eq!(shown(&podman), expected);
}

#[test]
fn a_port_that_is_mapped_to_none_of_the_node_is_passed_over_and_one_told_twice_is_one() {
    let entries = json!([
        {"ContainerPort": 80, "Protocol": "tcp"},
        {"HostPort": 0, "ContainerPort": 80, "Protocol": "tcp"},
        {"HostPort": null, "ContainerPort": 80},
        {"HostPort": 81, "ContainerPort": 80},
        {"HostPort": 81, "ContainerPort": 80},
    ]);
    assert_eq!(shown(&entries), ["81/tcp to 80"]);
    assert_eq!(capabilities(json!({"portMappings": null})).unwrap(), Capabilities::default());
    assert_eq!(read(None).unwrap(), Capabilities::default());
}

#[test]
fn port_mappings_that_cannot_be_are_refused_by_entry() {
    let good = json!({"hostPort": 80, "containerPort": 80});
    for (entry, words) in [
        (json!({"hostPort": 80}), ["containerPort", "missing"]),
        (json!({"hostPort": 80, "containerPort": 0}), ["containerPort", "0"]),
        (json!({"hostPort": 65536, "containerPort": 1}), ["hostPort", "65536"]),
        (json!({"hostPort": -1, "containerPort": 1}), ["hostPort", "-1"]),
        (json!({"hostPort": "80", "containerPort": 1}), ["hostPort", "\"80\""]),
        (json!({"hostPort": 81, "containerPort": 1, "protocol": "icmp"}), ["icmp", "tcp, udp, sctp"]),
        (json!({"hostPort": 81, "containerPort": 1, "protocol": 6}), ["protocol", "6"]),
        (json!({"hostPort": 81, "containerPort": 1, "hostIP": "host"}), ["hostIP", "host"]),
        (json!({"hostPort": 81, "containerPort": 1, "hostIP": "ff02::1"}), ["hostIP", "ff02::1"]),
        (json!({"hostPort": 81, "containerPort": 1, "hostIP": "::1"}), ["hostIP", "::1"]),
        (json!({"hostPort": 80, "containerPort": 81}), ["80/tcp", "overlaps"]),
        (json!({"hostPort": 80, "containerPort": 81, "hostIP": "::"}), ["[::]:80/tcp", "overlaps"]),
        (json!("80:80"), ["80:80", "object"]),
    ] {
        let entries = json!([good, entry]);
        assert_refused(json!({"portMappings": entries}), 7, &["portMappings: entry 1", words[0], words[1]]);
    }
    assert_refused(json!({"portMappings": {}}), 7, &["portMappings", "list"]);
}

#[test]
fn bandwidth_is_bits_and_both_of_rate_and_burst() {
    let read = capabilities(json!({"bandwidth": {
        "IngressRate": 8_000_000, "IngressBurst": 4_294_967_295_u64, "EgressRate": 0, "EgressBurst": 0,
    }}));
    let bandwidth = read.unwrap().bandwidth;
    assert_eq!(bandwidth.to_pod, Some(RateLimit { rate: 8_000_000, burst: 4_294_967_295 }));
    assert_eq!(bandwidth.from_pod, None);
    let bandwidth =
        capabilities(json!({"bandwidth": {"egressRate": 8, "egressBurst": 16}})).unwrap().bandwidth;
    assert_eq!(bandwidth.from_pod.map(|limit| (limit.bytes_per_second(), limit.burst_bytes())), Some((1, 2)));
    for (wrong, words) in [
        (json!({"ingressRate": 1000}), ["ingressRate", "ingressBurst"]),
        (json!({"egressBurst": 1000}), ["egressBurst", "egressRate"]),
        (json!({"ingressRate": 7, "ingressBurst": 1000}), ["ingressRate", "8"]),
        (json!({"ingressRate": -1, "ingressBurst": 1000}), ["ingressRate", "-1"]),
        (json!({"ingressRate": "1M", "ingressBurst": 1000}), ["ingressRate", "1M"]),
        (json!({"egressRate": 8, "egressBurst": 40_000_000_000_u64}), ["egressBurst", "40000000000"]),
        (json!(["ingressRate"]), ["ingressRate", "object"]),
    ] {
        assert_refused(json!({"bandwidth": wrong}), 7, &["bandwidth", words[0], words[1]]);
    }
}

#[test]
fn a_device_is_refused_and_what_we_do_not_know_is_not_meant_for_us() {
    assert_refused(
        json!({"deviceID": "0000:01:00.1"}),
        2,
        &["deviceID", "0000:01:00.1", "virtual functions"],
    );
    let nothing = json!({
        "deviceID": "", "io.kubernetes.cri.pod-annotations": null, "infinibandGUID": "c2:11", "aliases": ["x"],
    });
    assert_eq!(capabilities(nothing).unwrap(), Capabilities::default());
}

#[test]
fn annotations_are_texts() {
    let told = json!({"io.kubernetes.cri.pod-annotations": {"causeway.dev/path": "kernel"}});
    assert_eq!(capabilities(told).unwrap().annotations["causeway.dev/path"], "kernel");
    assert_refused(json!({"io.kubernetes.cri.pod-annotations": {"a": 1}}), 7, &["pod-annotations"]);
}

#[test]
fn names_are_resolved_as_the_pod_wants_where_it_wants_something() {
    let configured = object(json!({"nameservers": ["10.0.0.1"], "domain": "x.test", "search": ["x.test"]}));
    let dns = |runtime: Value| dns(Some(&configured), Some(&object(runtime))).map(Value::Object);
    assert_eq!(dns(json!({})).unwrap(), Value::Object(configured.clone()));
    assert_eq!(
        dns(json!({"dns": {"servers": [], "searches": null}})).unwrap(),
        Value::Object(configured.clone())
    );
    assert_eq!(
        dns(json!({"dns": {"Servers": ["10.0.0.9"], "Options": ["ndots:5"]}})).unwrap(),
        json!({"nameservers": ["10.0.0.9"], "domain": "x.test", "search": ["x.test"], "options": ["ndots:5"]})
    );
    let failure = dns(json!({"dns": {"servers": "10.0.0.9"}})).unwrap_err().failure();
    assert_eq!((failure.code, failure.msg.contains("servers")), (7, true), "{}", failure.msg);
}
