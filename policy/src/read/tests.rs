//! What is refused, in whose name, and what is left of it.

use causeway_model::policy::{Action, Direction};
use serde_json::json;

use super::*;
use crate::policy::{Peer, PortMatch, Rule, Tier};
use crate::selector::Namespaces;

fn network_policy(spec: &Value) -> Read {
    let document = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "web", "namespace": "shop"}, "spec": spec,
    });
    read(&document).unwrap()
}

fn cluster_policy(spec: &Value) -> Read {
    let document = json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "guard", "uid": "0-1-2"}, "spec": spec,
    });
    read(&document).unwrap()
}

/// A ClusterNetworkPolicy with one rule for egress.
fn egress(rule: &Value) -> Read {
    let subject = json!({"namespaces": {}});
    cluster_policy(&json!({"tier": "Admin", "priority": 1, "subject": subject, "egress": [rule]}))
}

fn problems(read: &Read) -> Vec<String> {
    read.report.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn a_bad_network_policy_isolates_whom_it_selects_allows_nothing_and_says_why() {
    let ingress =
        |rule: Value| json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{}, rule]});
    for (rule, problem) in [
        (json!({"ports": [{"port": 80, "colour": "red"}]}), "spec.ingress[1].ports[0].colour: unknown field"),
        (json!({"form": []}), "spec.ingress[1].form: unknown field"),
        (
            json!({"ports": [{"port": 90, "endPort": 80}]}),
            "spec.ingress[1].ports[0].endPort: endPort 80 is below port 90",
        ),
        (
            json!({"ports": [{"port": "web", "endPort": 80}]}),
            "spec.ingress[1].ports[0].endPort: endPort goes with a numeric port only",
        ),
        (json!({"ports": [{"port": 0}]}), "spec.ingress[1].ports[0].port: 0 is not from 1 to 65535"),
        (
            json!({"ports": [{"port": 80, "endPort": 65536}]}),
            "spec.ingress[1].ports[0].endPort: 65536 is not from 1 to 65535",
        ),
        (json!({"ports": [{"port": "80"}]}), "spec.ingress[1].ports[0].port: \"80\" is no name of a port"),
        (
            json!({"ports": [{"port": 80, "protocol": "QUIC"}]}),
            "spec.ingress[1].ports[0].protocol: unknown protocol \"QUIC\"",
        ),
        (
            json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/24"]}}]}),
            "spec.ingress[1].from[0].ipBlock.except[0]: 11.0.0.0/24 is not inside of 10.0.0.0/8",
        ),
        (
            json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}]}),
            "spec.ingress[1].from[0].ipBlock.except[0]: 10.0.0.0/8 is not inside of 10.0.0.0/8",
        ),
        (
            json!({"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]}),
            "spec.ingress[1].from[0].ipBlock.cidr: \"10.0.0.0\" is no prefix (ADDRESS/LENGTH)",
        ),
        (
            json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}),
            "spec.ingress[1].from[0]: ipBlock stands alone in a peer",
        ),
        (json!({"from": [{}]}), "spec.ingress[1].from[0]: exactly one of its fields may be set, and 0 are"),
        (
            json!({"from": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "In"}]}}]}),
            "spec.ingress[1].from[0].podSelector.matchExpressions[0]: In needs values",
        ),
        (
            json!({"from": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "Exists", "values": ["x"]}]}}]}),
            "spec.ingress[1].from[0].podSelector.matchExpressions[0]: Exists takes no values",
        ),
        (
            json!({"from": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "Like", "values": ["x"]}]}}]}),
            "spec.ingress[1].from[0].podSelector.matchExpressions[0]: unknown operator \"Like\"",
        ),
    ] {
        let read = network_policy(&ingress(rule));
        assert_eq!(problems(&read), [problem]);
        assert_eq!(read.report.effect, Effect::IsolatesOnly, "{problem}");
        let policy = read.policy.unwrap();
        assert_eq!((policy.ingress, policy.egress), (Some(vec![]), None), "{problem}");
        assert_eq!(policy.subject.pods.keys().collect::<Vec<_>>(), ["app"], "{problem}");
    }
}

#[test]
fn what_cannot_be_read_at_all_closes_its_namespace_and_no_other() {
    for spec in [
        json!({"podSelector": {"matchLabels": ["app"]}, "policyTypes": ["Egress"]}),
        json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "Near"}]}}),
        json!(null),
        json!("all"),
    ] {
        let read = network_policy(&spec);
        assert_eq!(read.report.effect, Effect::IsolatesOnly, "{spec}");
        let policy = read.policy.unwrap();
        assert_eq!(policy.subject.pods, Default::default(), "{spec}");
        assert_eq!(policy.subject.namespaces, Namespaces::Own("shop".to_owned()));
        assert!(Direction::BOTH.into_iter().all(|d| policy.rules(d).is_none_or(<[_]>::is_empty)), "{spec}");
        assert!(policy.egress.is_some() || policy.ingress.is_some(), "{spec}");
    }
    let read = network_policy(
        &json!({"podSelector": {"matchLabels": {"app": "x"}}, "ingress": "any", "policyTypes": ["Ingress"]}),
    );
    let policy = read.policy.unwrap();
    assert_eq!(policy.subject.pods.keys().count(), 1, "the selector can be read, and is");
    assert_eq!((policy.ingress, policy.egress), (Some(vec![]), None), "and so can the types");
}

#[test]
fn types_that_are_not_said_are_ingress_and_egress_where_there_are_such_rules() {
    let directions = |spec: Value| {
        let policy = network_policy(&spec).policy.unwrap();
        [policy.ingress.is_some(), policy.egress.is_some()]
    };
    assert_eq!(directions(json!({"podSelector": {}})), [true, false]);
    assert_eq!(directions(json!({"podSelector": {}, "egress": []})), [true, false]);
    assert_eq!(directions(json!({"podSelector": {}, "egress": [{}]})), [true, true]);
    assert_eq!(
        directions(json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": [{}]})),
        [false, true]
    );
    assert_eq!(directions(json!({"podSelector": {}, "policyTypes": ["Ingress", "Sideways"]})), [true, true]);
}

#[test]
fn empty_and_missing_lists_of_peers_and_ports_are_everything() {
    for rule in [json!({}), json!({"from": [], "ports": []}), json!({"from": null, "ports": null})] {
        let rules =
            network_policy(&json!({"podSelector": null, "ingress": [rule]})).policy.unwrap().ingress.unwrap();
        assert_eq!((rules[0].peers.as_slice(), &rules[0].ports), ([Peer::Any].as_slice(), &None));
    }
    let ports = network_policy(&json!({"podSelector": {}, "ingress": [{"ports": [{}]}]})).policy.unwrap();
    let any_tcp = PortMatch::Range(causeway_model::PortProtocol::Tcp, 0..=u16::MAX);
    assert_eq!(ports.ingress.unwrap()[0].ports, Some(vec![any_tcp]));
}

#[test]
fn a_bad_rule_of_a_cluster_policy_fails_closed_by_itself() {
    let pods = json!({"namespaces": {}});
    for (rest, problem) in [
        (json!({"to": [{"serviceTokens": ["x"]}]}), "spec.egress[0].to[0].serviceTokens: unknown field"),
        (
            json!({"to": [{"namespaces": {}, "networks": ["10.0.0.0/8"]}]}),
            "exactly one of its fields may be set, and 2 are",
        ),
        (json!({"to": []}), "spec.egress[0].to: a list that is there needs at least one item"),
        (json!({}), "spec.egress[0]: missing field `to`"),
        (
            json!({"to": [pods], "protocols": [{"tcp": {}}]}),
            "spec.egress[0].protocols[0].tcp: exactly one of its fields may be set, and 0 are",
        ),
        (
            json!({"to": [pods], "protocols": [{"icmp": {}}]}),
            "spec.egress[0].protocols[0].icmp: unknown field",
        ),
        (
            json!({"to": [pods], "protocols": [{"udp": {"destinationPort": {"range": {"start": 9, "end": 9}}}}]}),
            "spec.egress[0].protocols[0].udp.destinationPort: the range's end 9 is not above its start 9",
        ),
        (
            json!({"to": [{"networks": ["10.0.0.0/8"]}], "protocols": [{"destinationNamedPort": "web"}]}),
            "spec.egress[0].to[0]: a port's name means nothing for networks and nodes",
        ),
        (
            json!({"to": [{"networks": ["10.0.0.0"]}]}),
            "spec.egress[0].to[0].networks[0]: \"10.0.0.0\" is no prefix (ADDRESS/LENGTH)",
        ),
        (json!({"to": vec![pods.clone(); 26]}), "spec.egress[0].to: 26 peers: the most are 25"),
        (json!({"to": [pods], "log": true}), "spec.egress[0].log: unknown field"),
        (
            json!({"to": [pods], "name": "x".repeat(101)}),
            "spec.egress[0].name: 101 characters: the most are 100",
        ),
        (
            json!({"to": [{"networks": ["10.0.0.0/8", "10.0.0.0/8"]}]}),
            "spec.egress[0].to[0].networks[1]: \"10.0.0.0/8\" is said twice",
        ),
        (
            json!({"to": [{"nodes": {"matchLabels": {"a b": "c"}}}]}),
            "spec.egress[0].to[0].nodes.matchLabels: \"a b\" is no key of a label",
        ),
        (
            json!({"to": [pods], "protocols": [{"destinationNamedPort": ""}]}),
            "exactly one of its fields may be set, and 0 are",
        ),
    ] {
        for action in ["Accept", "Deny", "Pass"] {
            let mut rule = rest.clone();
            rule["action"] = json!(action);
            let read = egress(&rule);
            assert!(
                problems(&read).iter().any(|told| told.ends_with(problem)),
                "{:?} lacks {problem}",
                problems(&read)
            );
            assert_eq!(read.report.effect, Effect::InPart, "{problem}");
            let rules = read.policy.unwrap().egress.unwrap();
            let closed = Rule { index: 0, action: Action::Deny, peers: vec![Peer::Any], ports: None };
            assert_eq!(rules, if action == "Accept" { vec![] } else { vec![closed] }, "{action}: {problem}");
        }
    }
    let unknown = egress(&json!({"action": "Log", "to": [pods]})).policy.unwrap().egress.unwrap();
    assert_eq!((unknown[0].action, unknown[0].peers.as_slice()), (Action::Deny, [Peer::Any].as_slice()));
}

#[test]
fn a_cluster_policy_without_its_place_is_not_taken_up() {
    let right = json!({"tier": "Admin", "priority": 1000, "subject": {"namespaces": {}},
                       "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}]});
    let read = cluster_policy(&right.clone());
    assert_eq!(read.report.effect, Effect::Whole, "{}", read.report);
    let policy = read.policy.unwrap();
    assert_eq!((policy.tier, policy.priority, policy.uid.as_str()), (Tier::Admin, 1000, "0-1-2"));
    let rule = json!({"action": "Deny", "from": [{"namespaces": {}}]});
    for (field, value, problem) in [
        ("tier", json!("Middle"), "spec.tier: unknown tier \"Middle\""),
        ("priority", json!(1001), "spec.priority: 1001 is not from 0 to 1000"),
        ("priority", json!(-1), "spec.priority: -1 is not from 0 to 1000"),
        ("subject", json!({}), "spec.subject: exactly one of its fields may be set, and 0 are"),
        ("colour", json!("red"), "spec.colour: unknown field"),
        ("ingress", json!(vec![rule; 26]), "spec.ingress: 26 rules: the most are 25"),
    ] {
        let mut spec = right.clone();
        spec[field] = value;
        let read = cluster_policy(&spec);
        assert_eq!(problems(&read), [problem]);
        assert_eq!((read.report.effect, read.policy), (Effect::None, None), "{problem}");
    }
}

#[test]
fn networks_and_nodes_are_no_peers_of_ingress() {
    for peer in [json!({"networks": ["10.0.0.0/8"]}), json!({"nodes": {}})] {
        let ingress = json!([{"action": "Deny", "from": [peer]}]);
        let read = cluster_policy(
            &json!({"tier": "Baseline", "priority": 0, "subject": {"namespaces": {}}, "ingress": ingress}),
        );
        assert_eq!(read.report.effect, Effect::InPart, "{}", read.report);
        assert_eq!(read.policy.unwrap().ingress.unwrap()[0].peers, [Peer::Any]);
    }
}

#[test]
fn domain_names_are_nobody_and_said_to_be_unsupported() {
    let to = json!([{"domainNames": ["depot.example"]}, {"networks": ["192.0.2.0/24"]}]);
    let read = egress(&json!({"action": "Accept", "to": to}));
    assert!(read.report.is_unsupported());
    assert_eq!(problems(&read), ["spec.egress[0].to[0].domainNames: domainNames is not supported"]);
    let rules = read.policy.unwrap().egress.unwrap();
    assert_eq!(rules[0].peers.len(), 1, "the other peer stands");
    let denied = egress(&json!({"action": "Deny", "to": to}));
    assert!(!denied.report.is_unsupported(), "with Deny it is wrong, and denies everything");
    assert_eq!(denied.policy.unwrap().egress.unwrap()[0].peers, [Peer::Any]);
}

#[test]
fn withdrawn_kinds_are_recognised_and_others_are_not() {
    for kind in ["AdminNetworkPolicy", "BaselineAdminNetworkPolicy"] {
        let document = json!({"apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": kind, "metadata": {"name": "a"}});
        let read = read(&document).unwrap();
        assert!(read.report.is_unsupported() && read.policy.is_none(), "{}", read.report);
    }
    let refused = |document: Value| read(&document).unwrap_err().to_string();
    let kind = json!({"apiVersion": "networking.k8s.io/v1beta1", "kind": "NetworkPolicy", "metadata": {"name": "a"}});
    assert_eq!(refused(kind), "NetworkPolicy of networking.k8s.io/v1beta1 is no policy that is known here");
    let name = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {}});
    assert_eq!(refused(name), "a NetworkPolicy without metadata.name");
}

#[test]
fn too_many_rules_are_told_and_allow_nothing() {
    let read = network_policy(&json!({"podSelector": {}, "ingress": vec![json!({}); MOST_RULES + 1]}));
    assert_eq!(problems(&read), ["spec.ingress: 65536 rules: the most are 65535"]);
    assert_eq!(read.policy.unwrap().ingress, Some(vec![]));
}
