use std::os::unix::net::UnixListener;
use std::process::Command;

use serde_json::{Value, json};

use crate::runtime::{Network, Pod};

/// What the host's network looks like; the parts that count packets left out.
fn host() -> Vec<Value> {
    let show = |what: &[&str]| {
        let output = Command::new("ip").arg("-j").args(what).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    vec![show(&["addr"]), show(&["route"]), show(&["-6", "route"])]
}

#[test]
fn a_name_that_nobody_can_use_is_refused_before_anything_is_asked() {
    let (network, pod) = (Network::new(), Pod::new());
    let listener = UnixListener::bind(network.socket()).unwrap();
    listener.set_nonblocking(true).unwrap();
    let good = network.call("ADD").with("CNI_NETNS", &pod.path());
    for bad in ["eth0123456789abc", "a/b", "a:b", "a b", ".", "..", ""] {
        good.clone().with("CNI_IFNAME", bad).run().error(4, &["CNI_IFNAME"]);
        good.clone().with("CNI_COMMAND", "DEL").with("CNI_IFNAME", bad).run().error(4, &["CNI_IFNAME"]);
    }
    for bad in ["", "-x", "a%b", "../../etc/x"] {
        good.clone().with("CNI_CONTAINERID", bad).run().error(4, &["CNI_CONTAINERID"]);
        good.clone()
            .with("CNI_COMMAND", "DEL")
            .with("CNI_CONTAINERID", bad)
            .run()
            .error(4, &["CNI_CONTAINERID"]);
    }
    assert!(listener.accept().is_err(), "the agent was asked");
    assert!(network.left().is_empty());
}

#[test]
fn the_longest_name_is_good() {
    let (network, pod) = (Network::new(), Pod::new());
    let agent = crate::agent::Agent::serve(&network, crate::agent::attached());
    let name = "eth0123456789ab";
    let result = network.call("ADD").with("CNI_NETNS", &pod.path()).with("CNI_IFNAME", name).run().result();
    assert_eq!(result["interfaces"][1]["name"], name);
    assert_eq!(agent.asked().request.key.interface, name);
}

#[test]
fn the_hosts_namespace_is_nobodys_pod() {
    let network = Network::new();
    let listener = UnixListener::bind(network.socket()).unwrap();
    listener.set_nonblocking(true).unwrap();
    let before = host();
    let node = Pod::new();
    for interface in ["eth0", "lo"] {
        let call = network.call("ADD").with("CNI_IFNAME", interface);
        for path in ["/proc/1/ns/net", "/proc/self/ns/net"] {
            let call = call.clone().with("CNI_NETNS", path);
            // Not even root may look at the first process everywhere.
            call.run().error(4, &["CNI_NETNS", path]);
            call.run_on(&node).error(4, &["CNI_NETNS", path, "host"]);
        }
        call.clone().with("CNI_NETNS", &node.path()).run_on(&node).error(4, &["CNI_NETNS", "host"]);
        call.with("CNI_NETNS", "/proc/self/ns/net").run().error(4, &["CNI_NETNS", "host"]);
    }
    assert!(listener.accept().is_err(), "the agent was asked");
    assert_eq!(host(), before);
}

#[test]
fn a_namespace_must_be_one() {
    let network = Network::new();
    let gone = Pod::new().path();
    for path in ["", "/dev/null", "/nowhere", &gone] {
        network.call("ADD").with("CNI_NETNS", path).run().error(4, &["CNI_NETNS", path]);
    }
    network.call("ADD").run().error(4, &["CNI_NETNS"]);
}

#[test]
fn a_command_must_be_known() {
    let network = Network::new();
    for bad in ["", "add", "UPDATE"] {
        network.call(bad).run().error(4, &["CNI_COMMAND", bad]);
    }
    let error = network.call("ADD").without("CNI_COMMAND").run().error(4, &["CNI_COMMAND"]);
    assert_eq!(error["cniVersion"], "1.1.0");
    let old = network.call("UPDATE").configured("cniVersion", json!("0.4.0"));
    assert_eq!(old.run().error(4, &[])["cniVersion"], "0.4.0", "the protocol in use is the configuration's");
}

#[test]
fn a_configuration_must_be_one() {
    let (network, pod) = (Network::new(), Pod::new());
    for command in ["ADD", "DEL", "STATUS"] {
        let call = network.call(command).with("CNI_NETNS", &pod.path());
        for bad in ["", "garbage", "[]", "null", "{\"cniVersion\":\"1.1.0\"", "{} {}"] {
            call.clone().stdin(bad).run().error(6, &["stdin"]);
        }
        for key in ["name", "type"] {
            call.clone().configured(key, json!(null)).run().error(7, &[key]);
            call.clone().configured(key, json!("../x")).run().error(7, &[key]);
        }
        call.clone().configured("causeway", json!({"sockt": "/x"})).run().error(7, &["sockt"]);
    }
    assert!(network.left().is_empty());
}

#[test]
fn what_we_cannot_do_is_not_passed_over() {
    let (network, pod) = (Network::new(), Pod::new());
    let call = network.call("ADD").with("CNI_NETNS", &pod.path());
    let device = json!({"deviceID": "0000:01:00.1"});
    call.clone().configured("runtimeConfig", device).run().error(2, &["runtimeConfig.deviceID", "01:00.1"]);
    let mapped = json!({"portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "icmp"}]});
    call.clone().configured("runtimeConfig", mapped).run().error(7, &["runtimeConfig.portMappings", "icmp"]);
    call.configured("ipMasq", json!(true)).run().error(2, &["ipMasq"]);
}
