use std::time::Duration;

use serde_json::{Value, json};

use crate::agent::{Agent, attached};
use crate::runtime::{Network, Pod, Said};

const SUPPORTED: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn assert_version(said: Said, asked: &str) {
    assert!(said.took < Duration::from_secs(1), "{:?}", said.took);
    assert_eq!(said.result(), json!({"cniVersion": asked, "supportedVersions": SUPPORTED}));
}

#[test]
fn version_is_answered_whatever_is_asked() {
    let call = Network::new().call("VERSION");
    // podman 4.3 asks like this.
    let podman = ["CNI_NETNS", "CNI_IFNAME", "CNI_PATH"];
    let podman = podman.iter().fold(call.clone(), |call, name| call.with(name, "dummy"));
    assert_version(podman.stdin(&json!({"cniVersion": "1.0.0"})).run(), "1.0.0");
    assert_version(call.clone().stdin(&json!({"cniVersion": "9.9.9"})).run(), "9.9.9");
    assert_version(call.clone().stdin("").run(), "1.1.0");
    assert_version(call.clone().stdin("garbage").run(), "1.1.0");
    assert_version(call.without("CNI_CONTAINERID").without("CNI_IFNAME").stdin("").run(), "1.1.0");
}

#[test]
fn version_does_not_wait_for_stdin() {
    let call = Network::new().call("VERSION");
    assert_version(call.clone().stdin("").run_with_open_stdin(), "1.1.0");
    assert_version(call.clone().stdin("{").run_with_open_stdin(), "1.1.0");
    assert_version(call.stdin(&json!({"cniVersion": "0.4.0"})).run_with_open_stdin(), "0.4.0");
}

#[test]
fn a_version_we_do_not_speak_is_refused_with_those_we_do() {
    let (network, pod) = (Network::new(), Pod::new());
    for command in ["ADD", "DEL"] {
        let call = network.call(command).with("CNI_NETNS", &pod.path());
        for asked in ["9.9.9", "1.0.1", "0.2.0"] {
            let error = call.clone().configured("cniVersion", json!(asked)).run().error(1, &[asked]);
            for supported in SUPPORTED {
                assert!(error["details"].as_str().unwrap().contains(supported), "{error:?}");
            }
        }
        let mut silent = network.config();
        silent.as_object_mut().unwrap().remove("cniVersion");
        call.clone().stdin(&silent).run().error(1, &["0.1.0"]);
        call.configured("cniVersion", json!(1)).run().error(6, &["cniVersion"]);
    }
    assert!(network.left().is_empty());
}

#[test]
fn each_version_gets_its_own_shape() {
    let (network, pod) = (Network::new(), Pod::new());
    for version in SUPPORTED {
        let _agent = Agent::serve(&network, attached());
        let call = network.call("ADD").with("CNI_NETNS", &pod.path());
        let result = call.configured("cniVersion", json!(version)).run().result();
        assert_eq!(result["cniVersion"], version);
        let families = [&result["ips"][0]["version"], &result["ips"][1]["version"]];
        let expected =
            if version.starts_with('0') { [json!("4"), json!("6")] } else { [json!(null), json!(null)] };
        assert_eq!(families, [&expected[0], &expected[1]]);
        let mtu = result["interfaces"][1].get("mtu").or(result["routes"][0].get("mtu"));
        assert_eq!(mtu.and_then(Value::as_u64), (version == "1.1.0").then_some(1450));
    }
}

#[test]
fn verbs_are_refused_to_versions_that_do_not_have_them() {
    let (network, pod) = (Network::new(), Pod::new());
    for (command, version, first) in
        [("CHECK", "0.3.1", "0.4.0"), ("GC", "1.0.0", "1.1.0"), ("STATUS", "1.0.0", "1.1.0")]
    {
        let call = network.call(command).with("CNI_NETNS", &pod.path());
        let error = call.configured("cniVersion", json!(version)).run().error(1, &[command, first]);
        assert_eq!(error["cniVersion"], version);
    }
}
