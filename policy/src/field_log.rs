//! Faults of products like ours, each cut down to what the engine must say: F27 to F30 and F32.

use std::net::IpAddr;

use causeway_model::policy::{Direction, Traffic, Verdict};
use causeway_model::{NodeId, PodName, PortProtocol};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::{
    Change, Compiler, Effect, NamespaceId, NodeFacts, PolicyKey, PolicyKind, Workload, WorkloadId, read, slow,
};
use Direction::{Egress, Ingress};
use PortProtocol::{Tcp, Udp};

/// One node's engine in a cluster of one namespace.
struct Engine(Compiler);

impl Engine {
    fn new() -> Self {
        let cluster = "lyon".parse().unwrap();
        let node = NodeId { cluster, name: "east".parse().unwrap() };
        let mut compiler = Compiler::new(node.clone(), 0);
        let addresses = ["192.0.2.1".parse().unwrap()].into();
        compiler.apply([
            Change::Node(node, Some(NodeFacts { addresses, ..NodeFacts::default() })),
            Change::Clusters(vec!["10.244.0.0/16".parse().unwrap()]),
            Change::Namespace(
                NamespaceId { cluster: "lyon".parse().unwrap(), name: "shop".into() },
                Some(Default::default()),
            ),
        ]);
        Self(compiler)
    }

    /// A pod as the API has it: `more` is merged into its spec and status.
    fn pod(&mut self, name: &str, labels: &Value, ip: &str, spec: &Value, phase: &str) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "labels": labels},
            "spec": spec,
            "status": {"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}]},
        }))
        .unwrap();
        self.0.apply([Change::Workload(id(name), Some(Workload::of_pod(&pod, true)))]);
    }

    /// A running pod without named ports.
    fn running(&mut self, name: &str, labels: &Value, ip: &str) {
        self.pod(name, labels, ip, &json!({"containers": []}), "Running");
    }

    /// A NetworkPolicy of the namespace; what is said of it.
    fn policy(&mut self, name: &str, spec: &Value) -> Effect {
        let document = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": spec,
        });
        let read = read(&document).unwrap();
        assert_eq!(read.report.effect == Effect::Whole, read.report.problems.is_empty(), "{}", read.report);
        self.0.apply([Change::Policy(read.report.policy, read.policy)]);
        read.report.effect
    }

    fn delete(&mut self, name: &str) {
        let kind = PolicyKind::NetworkPolicy;
        let key = PolicyKey { kind, namespace: "shop".to_owned(), name: name.to_owned() };
        self.0.apply([Change::Policy(key, None)]);
    }

    /// Whether a new connection is allowed, by the tables and by the slow evaluator alike.
    fn allows(&self, pod: &str, direction: Direction, peer: &str, traffic: Traffic) -> bool {
        let peer: IpAddr = peer.parse().unwrap();
        let decision = self.0.decide(&id(pod), direction, peer, traffic).unwrap();
        let (verdict, reason) = slow::judge(self.0.world(), &id(pod), direction, peer, traffic).unwrap();
        assert_eq!(decision.verdict, verdict, "{pod} {direction} {peer} {traffic:?}");
        assert!(reason.is(decision.rule, &self.0.book().rules), "{reason:?} and {:?}", decision.rule);
        verdict == Verdict::Allow
    }
}

fn id(pod: &str) -> WorkloadId {
    WorkloadId::Pod("lyon".parse().unwrap(), PodName { namespace: "shop".into(), name: pod.into() })
}

fn tcp(port: u16) -> Traffic {
    Traffic::To(Tcp, port)
}

fn udp(port: u16) -> Traffic {
    Traffic::To(Udp, port)
}

fn from_block(cidr: &str, except: &[&str]) -> Value {
    json!({"podSelector": {}, "policyTypes": ["Ingress"],
           "ingress": [{"from": [{"ipBlock": {"cidr": cidr, "except": except}}]}]})
}

#[test]
fn f27_a_hole_denies_nothing_in_whatever_order_policies_come_and_go() {
    let wide = from_block("10.0.0.0/8", &["10.0.1.0/24"]);
    let narrow = from_block("10.0.1.7/32", &[]);
    for order in [["p1", "p2"], ["p2", "p1"]] {
        let mut engine = Engine::new();
        engine.running("s", &json!({}), "10.244.2.1");
        for name in order {
            engine.policy(name, if name == "p1" { &wide } else { &narrow });
        }
        let allowed = |engine: &Engine| {
            ["10.0.2.5", "10.0.1.7", "10.0.1.8"].map(|peer| engine.allows("s", Ingress, peer, tcp(80)))
        };
        assert_eq!(allowed(&engine), [true, true, false], "{order:?}");
        engine.delete("p1");
        assert_eq!(allowed(&engine), [false, true, false], "{order:?} without the wide one");
        engine.policy("p1", &wide);
        assert_eq!(allowed(&engine), [true, true, false], "{order:?} with it again");
    }
    let mut engine = Engine::new();
    engine.running("s", &json!({}), "10.244.2.1");
    engine.policy(
        "two",
        &json!({"podSelector": {}, "ingress": [{"from": [
            {"ipBlock": {"cidr": "10.0.0.0/16", "except": ["10.0.1.0/24"]}},
            {"ipBlock": {"cidr": "10.0.0.0/20", "except": ["10.0.2.0/24"]}},
        ]}]}),
    );
    for (peer, allowed) in
        [("10.0.1.1", true), ("10.0.2.1", true), ("10.0.3.1", true), ("10.0.99.1", true), ("10.1.0.1", false)]
    {
        assert_eq!(
            engine.allows("s", Ingress, peer, tcp(80)),
            allowed,
            "{peer}: a hole belongs to its own block"
        );
    }
}

#[test]
fn f28_a_named_port_is_the_receivers() {
    let serving = |ports: &Value| json!({"containers": [{"name": "c", "ports": ports}]});
    let mut engine = Engine::new();
    let web = |port: u16| serving(&json!([{"name": "web", "containerPort": port}]));
    engine.pod("server", &json!({"app": "server"}), "10.244.2.1", &web(8080), "Running");
    engine.pod("client1", &json!({}), "10.244.2.2", &web(9999), "Running");
    engine.running("client2", &json!({}), "10.244.2.3");
    engine.policy(
        "web",
        &json!({"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"ports": [{"port": "web"}]}]}),
    );
    for client in ["10.244.2.2", "10.244.2.3", "203.0.113.7"] {
        let ports = [tcp(8080), tcp(9999), tcp(8081), udp(8080), tcp(80)];
        let allowed = ports.map(|port| engine.allows("server", Ingress, client, port));
        assert_eq!(allowed, [true, false, false, false, false], "{client}");
    }
    // Towards others each has its own.
    engine.policy(
        "out",
        &json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": "web"}]}]}),
    );
    let reaches = |peer: &str| [8080, 9999].map(|port| engine.allows("client2", Egress, peer, tcp(port)));
    assert_eq!(reaches("10.244.2.1"), [true, false]);
    assert_eq!(reaches("10.244.2.2"), [false, true]);
    assert_eq!(reaches("203.0.113.7"), [false, false], "nobody there names a port");
}

#[test]
fn f29_rules_do_not_multiply() {
    let mut engine = Engine::new();
    engine.running("s", &json!({}), "10.244.2.1");
    let rule = |address: &str, port: u16| json!({"to": [{"ipBlock": {"cidr": format!("{address}/32")}}], "ports": [{"port": port}]});
    engine.policy(
        "out",
        &json!({"podSelector": {}, "policyTypes": ["Egress"],
                "egress": [rule("10.20.0.4", 80), rule("10.20.0.5", 443)]}),
    );
    for (peer, port, allowed) in [
        ("10.20.0.4", 80, true),
        ("10.20.0.5", 443, true),
        ("10.20.0.4", 443, false),
        ("10.20.0.5", 80, false),
    ] {
        assert_eq!(engine.allows("s", Egress, peer, tcp(port)), allowed, "{peer}:{port}");
    }
}

#[test]
fn f30_finished_pods_and_pods_of_the_host_network_have_no_addresses() {
    for phase in ["Succeeded", "Failed"] {
        let mut engine = Engine::new();
        engine.policy("deny-jobs", &json!({"podSelector": {"matchLabels": {"app": "job"}}}));
        engine.policy(
            "from-jobs",
            &json!({"podSelector": {"matchLabels": {"app": "server"}},
                    "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "job"}}}]}]}),
        );
        engine.running("server", &json!({"app": "server"}), "10.244.2.9");
        engine.running("j", &json!({"app": "job"}), "10.244.2.7");
        assert!(engine.allows("server", Ingress, "10.244.2.7", tcp(80)), "while it lives");
        engine.pod("j", &json!({"app": "job"}), "10.244.2.7", &json!({"containers": []}), phase);
        assert!(!engine.allows("server", Ingress, "10.244.2.7", tcp(80)), "{phase}: the address is nobody's");
        engine.running("w", &json!({}), "10.244.2.7");
        assert!(engine.allows("w", Ingress, "10.244.2.9", tcp(80)), "{phase}: w is not isolated");
        assert!(!engine.allows("server", Ingress, "10.244.2.7", tcp(80)), "{phase}: w is no job");
        let host = json!({"containers": [], "hostNetwork": true});
        engine.pod("h", &json!({"app": "job"}), "192.0.2.77", &host, "Running");
        assert!(!engine.allows("server", Ingress, "192.0.2.77", tcp(80)), "the host's address is no job's");
    }
}

#[test]
fn f32_a_range_has_both_its_ends_and_a_bad_one_grants_nothing() {
    let mut engine = Engine::new();
    engine.running("s", &json!({}), "10.244.2.1");
    let allowing = |port: &Value| json!({"podSelector": {}, "ingress": [{"ports": [port]}]});
    let effect =
        engine.policy("range", &allowing(&json!({"protocol": "TCP", "port": 32000, "endPort": 32768})));
    assert_eq!(effect, Effect::Whole);
    let allowed = |engine: &Engine| {
        [31999, 32000, 32500, 32768, 32769].map(|port| engine.allows("s", Ingress, "203.0.113.7", tcp(port)))
    };
    assert_eq!(allowed(&engine), [false, true, true, true, false]);
    for (bad, port) in [
        ("below", json!({"port": 32000, "endPort": 31999})),
        ("named", json!({"port": "web", "endPort": 32768})),
        ("none", json!({"endPort": 32768})),
    ] {
        assert_eq!(engine.policy(bad, &allowing(&port)), Effect::IsolatesOnly, "{bad}");
        assert_eq!(allowed(&engine), [false, true, true, true, false], "{bad} disturbs no other");
        engine.delete(bad);
    }
    engine.delete("range");
    engine.policy("below", &allowing(&json!({"port": 32000, "endPort": 31999})));
    assert_eq!(allowed(&engine), [false; 5], "it grants nothing, and stays closed");
}
