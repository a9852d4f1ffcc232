use std::time::Duration;

use causeway_model::EndpointKey;
use causeway_model::plugin::{Reply, Tombstone, VERSION, Verb};
use serde_json::json;

use crate::agent::{Agent, Manner, attached, failed};
use crate::runtime::{Network, Pod};

fn done() -> Manner {
    Manner::Answer(Reply::Done)
}

fn key() -> EndpointKey {
    EndpointKey { network: "pods".into(), container: "c1".into(), interface: "eth0".into() }
}

/// Exactly one deletion was left, and it can be read.
fn assert_left(network: &Network) {
    let expected = Tombstone { version: VERSION, key: key() };
    assert_eq!(network.left(), [expected.file_name()]);
    let bytes = std::fs::read(network.tombstones().join(expected.file_name())).unwrap();
    assert_eq!(serde_json::from_slice::<Tombstone>(&bytes).unwrap(), expected);
}

#[test]
fn a_deletion_passes_the_namespace_while_it_is_there() {
    let (network, pod) = (Network::new(), Pod::new());
    let agent = Agent::serve(&network, done());
    network.call("DEL").with("CNI_NETNS", &pod.path()).run().silence();
    let asked = agent.asked();
    assert_eq!((asked.request.verb, asked.request.key), (Verb::Del, key()));
    assert_eq!(asked.namespace, Some(pod.identity()));
    assert!(network.left().is_empty());
}

#[test]
fn a_deletion_goes_on_without_a_namespace() {
    let network = Network::new();
    let gone = Pod::new().path();
    let call = network.call("DEL");
    let calls = [
        call.clone().with("CNI_NETNS", &gone),
        call.clone(),
        call.clone().with("CNI_NETNS", ""),
        call.clone().with("CNI_NETNS", "/dev/null"),
        call.with("CNI_ARGS", "K8S_POD_NAME"),
    ];
    for call in calls {
        let agent = Agent::serve(&network, done());
        call.run().silence();
        assert_eq!(agent.asked().namespace, None, "{:?}", call.variables);
    }
}

#[test]
fn a_deletion_in_the_hosts_namespace_never_hands_it_over() {
    let (network, node) = (Network::new(), Pod::new());
    for host in ["/proc/1/ns/net", "/proc/self/ns/net"] {
        for interface in ["eth0", "lo"] {
            let agent = Agent::serve(&network, done());
            let call = network.call("DEL").with("CNI_NETNS", host).with("CNI_IFNAME", interface);
            call.run_on(&node).silence();
            assert_eq!(agent.asked().namespace, None);
        }
    }
}

#[test]
fn a_deletion_needs_no_previous_result() {
    let network = Network::new();
    let call = network.call("DEL");
    let calls = [
        call.clone(),
        call.clone().configured("prevResult", json!(null)),
        call.clone().configured("prevResult", json!({})),
        call.clone().configured("prevResult", json!({"ips": "nonsense"})),
        call.configured("prevResult", json!("nonsense")),
    ];
    for call in calls {
        let _agent = Agent::serve(&network, done());
        call.run().silence();
    }
}

#[test]
fn word_of_a_deletion_is_left_for_a_dead_agent() {
    let network = Network::new();
    for _ in 0..2 {
        let said = network.call("DEL").run().silence();
        assert!(said.log.contains(network.socket().to_str().unwrap()), "{}", said.log);
        assert_left(&network);
    }
    drop(std::os::unix::net::UnixListener::bind(network.socket()).unwrap());
    network.call("DEL").run().silence();
    assert_left(&network);
}

#[test]
fn word_of_a_deletion_is_left_for_an_agent_that_does_not_confirm_it() {
    let busy = failed(11, "pods/c1/eth0: the agent is busy, no answer within 9s", "");
    for manner in [Manner::Close, Manner::Garbage(b"nonsense".to_vec()), attached(), busy] {
        let network = Network::new();
        let agent = Agent::serve(&network, manner);
        network.call("DEL").run().silence();
        assert_eq!(agent.asked().request.verb, Verb::Del);
        assert_left(&network);
    }
}

#[test]
fn a_deletion_outlasts_an_agent_that_hangs() {
    let network = Network::new();
    let _agent = Agent::serve(&network, Manner::Hang);
    let said = network.call("DEL").run().silence();
    assert!((10..20).contains(&said.took.as_secs()), "{:?}", said.took);
    assert_left(&network);
}

#[test]
fn a_deletion_that_nobody_will_hear_of_is_an_error() {
    let network = Network::new();
    std::fs::write(network.tombstones(), "a file where the directory should be").unwrap();
    let said = network.call("DEL").run();
    assert!(said.took < Duration::from_secs(5), "{:?}", said.took);
    said.error(5, &[network.tombstones().to_str().unwrap()]);
}

#[test]
fn the_agents_refusal_of_a_deletion_is_printed_as_it_is() {
    let network = Network::new();
    let _agent = Agent::serve(&network, failed(102, "deleting link cwp0", ""));
    network.call("DEL").run().error(102, &["deleting link cwp0"]);
    assert!(network.left().is_empty());
}
