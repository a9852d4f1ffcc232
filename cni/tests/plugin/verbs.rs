//! CHECK, GC and STATUS as the runtime sees them.

use std::os::unix::net::UnixListener;

use causeway_model::plugin::{Reply, ValidAttachment, Verb};
use serde_json::{Value, json};

use crate::agent::{Agent, Manner, attached, failed};
use crate::runtime::{Call, Network, Pod};

fn done() -> Manner {
    Manner::Answer(Reply::Done)
}

fn previous() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "mac": "06:ca:0a:46:01:05", "mtu": 1450, "sandbox": "/run/netns/c1"}],
        "ips": [{"address": "10.70.1.5/32", "interface": 0}]
    })
}

fn check(network: &Network, pod: &Pod) -> Call {
    network.call("CHECK").with("CNI_NETNS", &pod.path()).configured("prevResult", previous())
}

fn gc(network: &Network, list: Value) -> Call {
    let call = network.call("GC").without("CNI_CONTAINERID").without("CNI_IFNAME");
    call.configured("cni.dev/valid-attachments", list)
}

#[test]
fn a_check_asks_with_the_namespace_and_what_the_runtime_remembers() {
    let (network, pod) = (Network::new(), Pod::new());
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let agent = Agent::serve(&network, done());
        check(&network, &pod).configured("cniVersion", json!(version)).run().silence();
        let asked = agent.asked();
        assert_eq!((asked.request.verb, asked.namespace), (Verb::Check, Some(pod.identity())));
        let remembered = asked.request.remembered.unwrap();
        assert_eq!(remembered.mac.unwrap().to_string(), "06:ca:0a:46:01:05");
        assert_eq!((remembered.mtu, remembered.addresses.len()), (Some(1450), 1));
    }
}

#[test]
fn a_check_that_finds_something_is_an_error_in_the_agents_words() {
    let (network, pod) = (Network::new(), Pod::new());
    let _agent = Agent::serve(&network, failed(103, "in the pod link eth0 is down", ""));
    check(&network, &pod).run().error(103, &["eth0 is down"]);
}

#[test]
fn a_check_cannot_do_without_a_result_that_has_its_interface() {
    let (network, pod) = (Network::new(), Pod::new());
    for none in [json!(null), json!({})] {
        check(&network, &pod).configured("prevResult", none).run().error(7, &["prevResult"]);
    }
    let other = json!({"interfaces": [{"name": "net1", "sandbox": "/x"}]});
    check(&network, &pod).configured("prevResult", other).run().error(7, &["prevResult", "eth0"]);
}

#[test]
fn a_check_of_the_hosts_namespace_or_of_none_asks_nobody() {
    let (network, pod) = (Network::new(), Pod::new());
    let listener = UnixListener::bind(network.socket()).unwrap();
    listener.set_nonblocking(true).unwrap();
    check(&network, &pod).with("CNI_NETNS", "/proc/self/ns/net").run().error(4, &["CNI_NETNS", "host"]);
    check(&network, &pod).with("CNI_NETNS", "").run().error(4, &["CNI_NETNS"]);
    assert!(listener.accept().is_err(), "the agent was asked");
}

#[test]
fn a_check_with_a_dead_agent_is_to_be_tried_again() {
    let (network, pod) = (Network::new(), Pod::new());
    check(&network, &pod).run().error(11, &[network.socket().to_str().unwrap()]);
    let _agent = Agent::serve(&network, attached());
    check(&network, &pod).run().error(6, &["another question"]);
}

#[test]
fn a_collection_hands_on_the_list_and_nothing_else() {
    let network = Network::new();
    let agent = Agent::serve(&network, done());
    gc(&network, json!([{"containerID": "c1", "ifname": "eth0"}])).run().silence();
    let asked = agent.asked();
    assert_eq!((asked.request.verb, asked.namespace), (Verb::Gc, None));
    assert_eq!(asked.request.key.network, "pods");
    let one = ValidAttachment { container: "c1".into(), interface: "eth0".into() };
    assert_eq!(asked.request.valid, Some(vec![one]));
}

#[test]
fn a_collection_without_a_list_releases_nothing() {
    let network = Network::new();
    let listener = UnixListener::bind(network.socket()).unwrap();
    listener.set_nonblocking(true).unwrap();
    for none in [json!(null), json!("x"), json!([{"containerID": "c1"}])] {
        gc(&network, none).run().error(7, &["cni.dev/valid-attachments"]);
    }
    assert!(listener.accept().is_err(), "the agent was asked");
}

#[test]
fn a_collection_with_a_dead_agent_is_to_be_tried_again() {
    let network = Network::new();
    gc(&network, json!([])).run().error(11, &["cni.sock"]);
    assert!(network.left().is_empty(), "a list is no deletion");
}

#[test]
fn status_is_the_agents_to_tell() {
    let network = Network::new();
    let call = network.call("STATUS").without("CNI_CONTAINERID").without("CNI_IFNAME");
    let socket = network.socket();
    call.run().error(50, &[socket.to_str().unwrap()]);
    {
        let agent = Agent::serve(&network, done());
        call.run().silence();
        assert_eq!(agent.asked().request.verb, Verb::Status);
    }
    for code in [50, 51] {
        let _agent = Agent::serve(&network, failed(code, "the uplink eth0 is down", ""));
        call.run().error(code, &["the uplink eth0 is down"]);
    }
    {
        let _agent = Agent::serve(&network, failed(11, "the agent is busy", ""));
        call.run().error(50, &["busy"]);
    }
    {
        let _agent = Agent::serve(&network, Manner::Close);
        call.run().error(50, &[socket.to_str().unwrap()]);
    }
    call.configured("ipMasq", json!(true)).run().error(2, &["ipMasq"]);
}
