use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use causeway_cni::{Limits, answer};
use causeway_model::plugin::{Reply, VERSION, Verb};
use causeway_model::{EndpointKey, PodName};
use serde_json::json;

use crate::agent::{Agent, Manner, attached, failed};
use crate::runtime::{Call, Network, Pod};

fn add(network: &Network, pod: &Pod) -> Call {
    network.call("ADD").with("CNI_NETNS", &pod.path())
}

#[test]
fn the_agent_gets_the_namespace_itself_and_all_that_the_runtime_said() {
    let (network, pod) = (Network::new(), Pod::new());
    let agent = Agent::serve(&network, attached());
    let args = "K8S_POD_NAME=web;IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_UID=7";
    let call = add(&network, &pod).with("CNI_ARGS", args);
    let result = call.run().result();

    let asked = agent.asked();
    assert_eq!(asked.namespace, Some(pod.identity()));
    let request = asked.request;
    assert_eq!((request.version, request.verb), (VERSION, Verb::Add));
    let key = EndpointKey { network: "pods".into(), container: "c1".into(), interface: "eth0".into() };
    assert_eq!(request.key, key);
    assert_eq!(request.netns, pod.path());
    assert_eq!(request.pod, Some(PodName { namespace: "shop".into(), name: "web".into() }));
    assert_eq!(request.args.len(), 4);
    assert_eq!(json!(request.config), network.config());

    assert_eq!(result["cniVersion"], "1.1.0");
    assert_eq!(
        result["interfaces"][0],
        json!({
            "name": "cwp0123456789ab", "mac": "02:ca:5e:00:00:01", "mtu": 65535
        })
    );
    assert_eq!(
        result["interfaces"][1],
        json!({
            "name": "eth0", "mac": "02:00:0a:46:01:05", "mtu": 1450, "sandbox": pod.path()
        })
    );
    assert_eq!(
        result["ips"][1],
        json!({
            "address": "fd70:0:0:1::5/128", "gateway": "fe80::1", "interface": 1
        })
    );
    assert_eq!(result["routes"][0], json!({"dst": "0.0.0.0/0", "gw": "169.254.1.1", "mtu": 1450}));
}

#[test]
fn a_configuration_larger_than_the_sockets_buffer_arrives_whole() {
    let (network, pod) = (Network::new(), Pod::new());
    let agent = Agent::serve(&network, attached());
    let filler = "x".repeat(900_000);
    add(&network, &pod).configured("filler", json!(filler)).run().result();
    let asked = agent.asked();
    assert_eq!(asked.request.config["filler"], filler);
    assert_eq!(asked.namespace, Some(pod.identity()));
}

#[test]
fn what_earlier_plugins_reported_is_passed_through() {
    let (network, pod) = (Network::new(), Pod::new());
    let _agent = Agent::serve(&network, attached());
    let previous = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "net1", "sandbox": pod.path()}],
        "ips": [{"address": "192.0.2.7/24", "interface": 0}],
        "routes": [{"dst": "198.51.100.0/24"}],
        "dns": {"nameservers": ["192.0.2.53"]}
    });
    let result = add(&network, &pod)
        .configured("prevResult", previous.clone())
        .configured("dns", json!({"search": ["svc.example"]}))
        .run()
        .result();
    for key in ["interfaces", "ips", "routes"] {
        assert_eq!(result[key][0], previous[key][0], "{key}");
    }
    assert_eq!(result["ips"][1]["interface"], 2);
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    assert_eq!(result["dns"], json!({"nameservers": ["192.0.2.53"], "search": ["svc.example"]}));
}

#[test]
fn what_the_runtime_asks_for_reaches_the_agent_and_dns_the_result() {
    let (network, pod) = (Network::new(), Pod::new());
    let agent = Agent::serve(&network, attached());
    let runtime = json!({
        "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "udp", "HostIP": "192.0.2.1"}],
        "bandwidth": {"ingressRate": 8000, "ingressBurst": 16000},
        "io.kubernetes.cri.pod-annotations": {"causeway.dev/path": "kernel"},
        "dns": {"servers": ["192.0.2.53"]},
        "somethingElse": {"of": "another plugin"},
    });
    let result = add(&network, &pod).configured("runtimeConfig", runtime).run().result();
    assert_eq!(result["dns"], json!({"nameservers": ["192.0.2.53"]}));
    let told = agent.asked().request.capabilities;
    assert_eq!(told.port_mappings.len(), 1);
    assert_eq!(told.port_mappings[0].to_string(), "192.0.2.1:8080/udp");
    assert_eq!(told.bandwidth.to_pod.map(|limit| (limit.rate, limit.burst)), Some((8000, 16000)));
    assert_eq!(told.annotations["causeway.dev/path"], "kernel");
}

#[test]
fn every_kind_of_arguments_has_its_answer() {
    let (network, pod) = (Network::new(), Pod::new());
    let kubelet = "IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=c1";
    let known = "K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=c1;FOO=BAR";
    for good in [kubelet, known, "", "FOO=BAR;"] {
        let _agent = Agent::serve(&network, attached());
        add(&network, &pod).with("CNI_ARGS", good).run().result();
    }
    for bad in ["IgnoreUnknown=1;K8S_POD_NAME", "A=B=C"] {
        add(&network, &pod).with("CNI_ARGS", bad).run().error(4, &["CNI_ARGS"]);
    }
}

#[test]
fn a_dead_agent_is_named_by_its_socket() {
    let (network, pod) = (Network::new(), Pod::new());
    let socket = network.socket();
    let name = socket.to_str().unwrap();
    add(&network, &pod).run().error(11, &[name]);
    drop(UnixListener::bind(&socket).unwrap());
    add(&network, &pod).run().error(11, &[name, "refused"]);
    assert!(network.left().is_empty(), "ADD leaves no tombstone");
}

#[test]
fn an_agent_that_never_takes_the_connection_is_given_up_within_seconds() {
    let (network, pod) = (Network::new(), Pod::new());
    let _listener = UnixListener::bind(network.socket()).unwrap();
    // Fills the backlog; the kernel holds up whoever comes next.
    let socket = nix::sys::socket::UnixAddr::new(&network.socket()).unwrap();
    let mut waiting = Vec::new();
    loop {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, connect};
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let stream = nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        if connect(std::os::fd::AsRawFd::as_raw_fd(&stream), &socket).is_err() {
            break;
        }
        waiting.push(stream);
    }
    let said = add(&network, &pod).run();
    assert!(said.took < Duration::from_secs(5), "{:?}", said.took);
    said.error(11, &[network.socket().to_str().unwrap()]);
}

#[test]
fn an_agent_that_closes_or_babbles_is_an_error() {
    let (network, pod) = (Network::new(), Pod::new());
    let socket = network.socket();
    let name = socket.to_str().unwrap();
    let no_json = [&9u32.to_be_bytes()[..], b"not JSON!"].concat();
    let no_answer = [&2u32.to_be_bytes()[..], b"{}"].concat();
    for (manner, code) in [
        (Manner::Close, 11),
        (Manner::Garbage(b"\0\0".to_vec()), 11),
        (Manner::Garbage(b"HTTP/1.1 400 Bad Request\r\n".to_vec()), 6),
        (Manner::Garbage(no_json), 6),
        (Manner::Garbage(no_answer), 6),
        (Manner::Answer(Reply::Done), 6),
    ] {
        let _agent = Agent::serve(&network, manner);
        add(&network, &pod).run().error(code, &[name]);
    }
}

#[test]
fn an_agent_that_keeps_silent_is_given_up() {
    let (network, pod) = (Network::new(), Pod::new());
    let _agent = Agent::serve(&network, Manner::Hang);
    // The plugin's own patience is a minute; here it is the library with less of it.
    let limits = Limits { add: Duration::from_millis(300), ..Limits::default() };
    let call = add(&network, &pod);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stdin");
    std::fs::write(&file, &call.stdin).unwrap();
    let since = Instant::now();
    let stdin = File::open(&file).unwrap();
    let answer = answer(&|name| call.variables.get(name).map(Into::into), stdin.as_fd(), &limits);
    assert!((300..5000).contains(&since.elapsed().as_millis()), "{:?}", since.elapsed());
    assert!(answer.failed);
    let document = answer.document.unwrap();
    assert_eq!(document["code"], 11);
    assert!(document["msg"].as_str().unwrap().contains(network.socket().to_str().unwrap()), "{document}");
}

#[test]
fn the_agents_refusal_is_printed_as_it_is() {
    let (network, pod) = (Network::new(), Pod::new());
    let agent = Agent::serve(&network, failed(100, "10.70.1.0/24 is used up", "254 of 254"));
    let error = add(&network, &pod).configured("cniVersion", json!("0.4.0")).run().error(100, &[]);
    let expected = json!({
        "cniVersion": "0.4.0", "code": 100, "msg": "10.70.1.0/24 is used up", "details": "254 of 254"
    });
    assert_eq!(json!(error), expected);

    // Its socket goes with it: the next one listens there.
    drop(agent);
    let _agent = Agent::serve(&network, failed(101, "eth0 exists", ""));
    assert_eq!(add(&network, &pod).run().error(101, &["eth0"]).get("details"), None);
}

#[test]
fn the_configuration_we_ship_is_one_we_take() {
    let (network, pod) = (Network::new(), Pod::new());
    let text = include_str!("../../../deploy/10-causeway.conflist");
    let list: serde_json::Value = serde_json::from_str(text).unwrap();
    // CNI 1.1.0 §3, "Deriving request configuration from plugin configuration".
    let mut config = list["plugins"][0].clone();
    for key in ["cniVersion", "name"] {
        config[key] = list[key].clone();
    }
    assert_eq!(config["causeway"]["socket"], causeway_model::plugin::SOCKET);
    assert_eq!(config["causeway"]["tombstones"], causeway_model::plugin::TOMBSTONES);
    config["causeway"]["socket"] = json!(network.socket());
    let agent = Agent::serve(&network, attached());
    let result = add(&network, &pod).stdin(&config).run().result();
    assert_eq!(result["cniVersion"], list["cniVersion"]);
    assert_eq!(agent.asked().request.key.network, "causeway");
}
