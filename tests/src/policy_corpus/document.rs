//! A policy told as an object again: what nodes are given in the place of what was written.

use causeway_model::PortProtocol;
use causeway_model::policy::{Action, Direction};
use causeway_policy::{LabelSelector, Namespaces, Peer, Policy, PortMatch, Requirement, Rule, Tier};
use serde_json::{Map, Value, json};

/// Every address, where all peers are meant.
const EVERYWHERE: [&str; 2] = ["0.0.0.0/0", "::/0"];

/// The object that says what a policy says. A rule that is for nobody is left out, since without peers it would be for everybody.
pub(super) fn document(policy: &Policy) -> Value {
    let key = &policy.key;
    let mut metadata = json!({"name": key.name, "uid": policy.uid});
    let spec = match policy.tier {
        Tier::NetworkPolicy => {
            metadata["namespace"] = json!(key.namespace);
            network_policy(policy)
        }
        Tier::Admin | Tier::Baseline => cluster_policy(policy),
    };
    json!({"apiVersion": key.kind.api_version(), "kind": key.kind.as_str(), "metadata": metadata, "spec": spec})
}

fn network_policy(policy: &Policy) -> Value {
    let mut spec = json!({"podSelector": selector(&policy.subject.pods), "policyTypes": []});
    for (direction, list, peers, kind) in
        [(Direction::Ingress, "ingress", "from", "Ingress"), (Direction::Egress, "egress", "to", "Egress")]
    {
        let Some(rules) = policy.rules(direction) else { continue };
        if let Value::Array(types) = &mut spec["policyTypes"] {
            types.push(json!(kind));
        }
        let rule = |rule: &Rule| {
            let mut written = Map::new();
            if !rule.peers.contains(&Peer::Any) {
                written.insert(peers.to_owned(), rule.peers.iter().filter_map(network_peer).collect());
            }
            if let Some(ports) = &rule.ports {
                written.insert("ports".to_owned(), ports.iter().map(network_port).collect());
            }
            Value::Object(written)
        };
        spec[list] = rules.iter().filter(|rule| is_for_anybody(rule)).map(rule).collect();
    }
    spec
}

fn is_for_anybody(rule: &Rule) -> bool {
    !rule.peers.is_empty() && rule.ports.as_ref().is_none_or(|ports| !ports.is_empty())
}

fn network_peer(peer: &Peer) -> Option<Value> {
    match peer {
        Peer::Pods(chosen) => Some(match &chosen.namespaces {
            Namespaces::Own(_) => json!({"podSelector": selector(&chosen.pods)}),
            Namespaces::Selected(namespaces) => {
                json!({"podSelector": selector(&chosen.pods), "namespaceSelector": selector(namespaces)})
            }
        }),
        Peer::Block(block) => Some(json!({"ipBlock": {"cidr": block.cidr, "except": block.except}})),
        Peer::Any | Peer::Nodes(_) => None,
    }
}

fn network_port(port: &PortMatch) -> Value {
    match port {
        PortMatch::Range(of, range) if is_every_port(*range.start(), *range.end()) => {
            json!({"protocol": protocol(*of)})
        }
        PortMatch::Range(of, range) => {
            json!({"protocol": protocol(*of), "port": range.start(), "endPort": range.end()})
        }
        PortMatch::Named(of, name) => {
            json!({"protocol": protocol(of.unwrap_or(PortProtocol::Tcp)), "port": name})
        }
    }
}

fn cluster_policy(policy: &Policy) -> Value {
    let mut spec = json!({
        "tier": if policy.tier == Tier::Admin { "Admin" } else { "Baseline" },
        "priority": policy.priority,
        "subject": {"pods": pods(&policy.subject.namespaces, &policy.subject.pods)},
    });
    for (direction, list, peers) in
        [(Direction::Ingress, "ingress", "from"), (Direction::Egress, "egress", "to")]
    {
        let Some(rules) = policy.rules(direction) else { continue };
        let rule = |rule: &Rule| {
            let action = match rule.action {
                Action::Accept => "Accept",
                Action::Deny => "Deny",
                Action::Pass => "Pass",
            };
            let of: Vec<_> = rule.peers.iter().flat_map(|peer| cluster_peers(peer, direction)).collect();
            let mut written = json!({"action": action, peers: of});
            if let Some(ports) = &rule.ports {
                written["protocols"] = ports.iter().map(cluster_port).collect();
            }
            written
        };
        spec[list] = rules.iter().filter(|rule| is_for_anybody(rule)).map(rule).collect();
    }
    spec
}

fn cluster_peers(peer: &Peer, direction: Direction) -> Vec<Value> {
    match peer {
        Peer::Pods(chosen) => vec![json!({"pods": pods(&chosen.namespaces, &chosen.pods)})],
        Peer::Nodes(nodes) => vec![json!({"nodes": selector(nodes)})],
        Peer::Block(block) => vec![json!({"networks": [block.cidr]})],
        Peer::Any if direction == Direction::Ingress => vec![json!({"namespaces": {}})],
        Peer::Any => vec![json!({"namespaces": {}}), json!({"networks": EVERYWHERE})],
    }
}

fn cluster_port(port: &PortMatch) -> Value {
    match port {
        PortMatch::Named(_, name) => json!({"destinationNamedPort": name}),
        PortMatch::Range(of, range) => {
            let ports = match (*range.start(), *range.end()) {
                (first, last) if is_every_port(first, last) => json!({}),
                (first, last) if first == last => json!({"destinationPort": {"number": first}}),
                (first, last) => json!({"destinationPort": {"range": {"start": first, "end": last}}}),
            };
            json!({protocol(*of).to_lowercase(): ports})
        }
    }
}

fn is_every_port(first: u16, last: u16) -> bool {
    first <= 1 && last == u16::MAX
}

fn protocol(protocol: PortProtocol) -> &'static str {
    match protocol {
        PortProtocol::Tcp => "TCP",
        PortProtocol::Udp => "UDP",
        PortProtocol::Sctp => "SCTP",
    }
}

fn pods(namespaces: &Namespaces, pods: &LabelSelector) -> Value {
    let namespaces = match namespaces {
        Namespaces::Selected(namespaces) => selector(namespaces),
        Namespaces::Own(name) => json!({"matchLabels": {"kubernetes.io/metadata.name": name}}),
    };
    json!({"namespaceSelector": namespaces, "podSelector": selector(pods)})
}

fn selector(selector: &LabelSelector) -> Value {
    let condition = |requirement: &Requirement| match requirement {
        Requirement::In(key, values) => json!({"key": key, "operator": "In", "values": values}),
        Requirement::NotIn(key, values) => json!({"key": key, "operator": "NotIn", "values": values}),
        Requirement::Exists(key) => json!({"key": key, "operator": "Exists"}),
        Requirement::DoesNotExist(key) => json!({"key": key, "operator": "DoesNotExist"}),
    };
    json!({"matchExpressions": selector.requirements().map(condition).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use causeway_policy::{Effect, read};

    use super::super::Corpus;
    use super::super::world::Stage;
    use super::*;
    use crate::corpus::Suite;

    #[test]
    fn what_is_told_again_is_read_as_before() {
        let corpus = Corpus::read(include_str!("../../data/policy/cases.yaml")).unwrap();
        let mut told = 0;
        for case in &corpus.cases {
            let (mut stage, _) = Stage::new(&corpus.topology).unwrap();
            let lines: Vec<_> = case.steps().unwrap().into_iter().flat_map(|step| step.acts).collect();
            for written in lines.iter().filter_map(|line| stage.act(line).ok()).flat_map(|act| act.applied) {
                let Ok(once) = read(&written) else { continue };
                let Some(policy) = once.policy.filter(|_| once.report.effect == Effect::Whole) else {
                    continue;
                };
                let again = read(&document(&policy)).unwrap();
                assert_eq!(again.report.problems, once.report.problems, "{written}");
                assert_eq!(again.policy.as_ref(), Some(&policy), "{written}\n{}", document(&policy));
                told += 1;
            }
        }
        assert!(told > 200, "{told} policies");
    }
}
