use causeway_model::plugin::PodAddress;
use causeway_model::{MacAddr, Path};

use super::*;

const NETNS: &str = "/run/netns/c1";

fn attachment() -> Attachment {
    Attachment {
        host_interface: Some("cwp0123456789ab".into()),
        host_mac: MacAddr([0x02, 0xca, 0x5e, 0, 0, 1]),
        host_mtu: Some(65535),
        routes: None,
        mac: MacAddr([0x02, 0, 0x0a, 0x46, 0x01, 0x05]),
        mtu: 1450,
        addresses: vec![
            PodAddress { address: "10.70.1.5/32".parse().unwrap(), gateway: "169.254.1.1".parse().unwrap() },
            PodAddress { address: "fd70:0:0:1::5/128".parse().unwrap(), gateway: "fe80::1".parse().unwrap() },
        ],
        path: Path::Kernel,
    }
}

fn result(version: SpecVersion, previous: Value, attachment: &Attachment, dns: Option<&Value>) -> Value {
    let Value::Object(previous) = previous else { panic!("{previous} is not an object") };
    let mut outcome = Outcome::from_previous(version, previous).unwrap();
    outcome.attach(attachment, "eth0", NETNS);
    outcome.resolve_by(dns.and_then(Value::as_object));
    outcome.into_document()
}

fn fresh(version: SpecVersion) -> Value {
    result(version, json!({}), &attachment(), None)
}

/// SPEC.md 0.3.1 and 0.4.0, "Result": a version in each ip, no MTU anywhere.
#[test]
fn results_before_1_0_0_tell_the_family_of_each_address() {
    for version in [SpecVersion::V0_3_1, SpecVersion::V0_4_0] {
        let expected = json!({
            "cniVersion": version.as_str(),
            "interfaces": [
                {"name": "cwp0123456789ab", "mac": "02:ca:5e:00:00:01"},
                {"name": "eth0", "mac": "02:00:0a:46:01:05", "sandbox": "/run/netns/c1"}
            ],
            "ips": [
                {"version": "4", "address": "10.70.1.5/32", "gateway": "169.254.1.1", "interface": 1},
                {"version": "6", "address": "fd70:0:0:1::5/128", "gateway": "fe80::1", "interface": 1}
            ],
            "routes": [
                {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
                {"dst": "::/0", "gw": "fe80::1"}
            ]
        });
        assert_eq!(fresh(version), expected);
    }
}

/// SPEC.md 1.0.0 §5, "Success": the family is in the address, still no MTU.
#[test]
fn results_of_1_0_0_have_neither_family_nor_mtu() {
    let expected = json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "cwp0123456789ab", "mac": "02:ca:5e:00:00:01"},
            {"name": "eth0", "mac": "02:00:0a:46:01:05", "sandbox": "/run/netns/c1"}
        ],
        "ips": [
            {"address": "10.70.1.5/32", "gateway": "169.254.1.1", "interface": 1},
            {"address": "fd70:0:0:1::5/128", "gateway": "fe80::1", "interface": 1}
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
            {"dst": "::/0", "gw": "fe80::1"}
        ]
    });
    assert_eq!(fresh(SpecVersion::V1_0_0), expected);
}

/// SPEC.md 1.1.0 §5, "ADD Success": MTUs of interfaces and routes.
#[test]
fn results_of_1_1_0_tell_each_mtu() {
    let expected = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "cwp0123456789ab", "mac": "02:ca:5e:00:00:01", "mtu": 65535},
            {"name": "eth0", "mac": "02:00:0a:46:01:05", "mtu": 1450, "sandbox": "/run/netns/c1"}
        ],
        "ips": [
            {"address": "10.70.1.5/32", "gateway": "169.254.1.1", "interface": 1},
            {"address": "fd70:0:0:1::5/128", "gateway": "fe80::1", "interface": 1}
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "169.254.1.1", "mtu": 1450},
            {"dst": "::/0", "gw": "fe80::1", "mtu": 1450}
        ]
    });
    assert_eq!(fresh(SpecVersion::V1_1_0), expected);
}

#[test]
fn a_pod_on_the_fast_path_has_no_link_on_the_node() {
    let mut fast = attachment();
    fast.host_interface = None;
    fast.host_mtu = None;
    fast.addresses.truncate(1);
    let expected = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "mac": "02:00:0a:46:01:05", "mtu": 1450, "sandbox": "/run/netns/c1"}],
        "ips": [{"address": "10.70.1.5/32", "gateway": "169.254.1.1", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1", "mtu": 1450}]
    });
    assert_eq!(result(SpecVersion::V1_1_0, json!({}), &fast, None), expected);
}

#[test]
fn what_came_in_goes_out_with_its_indexes() {
    let previous = json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "other0", "mac": "02:11:22:33:44:55", "socketPath": "/run/x"},
            {"name": "net1", "sandbox": NETNS}
        ],
        "ips": [{"address": "192.0.2.7/24", "gateway": "192.0.2.1", "interface": 1}],
        "routes": [{"dst": "198.51.100.0/24", "gw": "192.0.2.1", "priority": 7}],
        "dns": {"nameservers": ["192.0.2.53"], "domain": "there.example"},
        "extra": {"kept": true}
    });
    let dns =
        json!({"nameservers": ["192.0.2.53", "2001:db8::53"], "domain": "ours.example", "search": ["a"]});
    let result = result(SpecVersion::V1_1_0, previous.clone(), &attachment(), Some(&dns));

    assert_eq!(result["cniVersion"], "1.1.0");
    for key in ["interfaces", "ips", "routes"] {
        let (came, goes) = (previous[key].as_array().unwrap(), result[key].as_array().unwrap());
        assert_eq!(&goes[..came.len()], &came[..], "{key}");
        assert_eq!(goes.len(), came.len() + 2, "{key}");
    }
    for ip in &result["ips"].as_array().unwrap()[1..] {
        assert_eq!(result["interfaces"][ip["interface"].as_u64().unwrap() as usize]["name"], "eth0");
    }
    let merged = json!({
        "nameservers": ["192.0.2.53", "2001:db8::53"], "domain": "there.example", "search": ["a"]
    });
    assert_eq!(result["dns"], merged);
    assert_eq!(result["extra"], json!({"kept": true}));
}

#[test]
fn name_resolution_comes_from_the_configuration() {
    let dns = json!({"nameservers": ["192.0.2.53"], "options": ["ndots:5"]});
    for previous in [json!({}), json!({"dns": null}), json!({"dns": {}})] {
        let result = result(SpecVersion::V1_0_0, previous, &attachment(), Some(&dns));
        assert_eq!(result["dns"], dns);
    }
    assert_eq!(fresh(SpecVersion::V1_0_0).get("dns"), None);
}

#[test]
fn lists_that_are_null_are_empty_and_other_values_are_errors() {
    let previous = json!({"interfaces": null, "ips": null, "routes": null});
    assert_eq!(result(SpecVersion::V1_1_0, previous, &attachment(), None), fresh(SpecVersion::V1_1_0));
    for bad in [json!({"ips": {}}), json!({"interfaces": "x"}), json!({"routes": 1})] {
        let tried = Outcome::from_previous(SpecVersion::V1_1_0, bad.as_object().unwrap().clone());
        let failure = tried.err().expect("an error").failure();
        assert_eq!(failure.code, 7);
        assert!(failure.msg.contains("prevResult"), "{}", failure.msg);
    }
}
