//! The verdict read off the world and the policies, rule by rule: slow and obvious. Knows nothing of identities, numbers,
//! classes or tables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use causeway_model::NodeId;
use causeway_model::policy::{Action, Direction, RuleId, RuleIndex, RuleNumber, Traffic, Verdict};

use crate::identity::LabelSet;
use crate::policy::{Peer, Policy, PortMatch, Rule, Tier};
use crate::world::{WorkloadId, World};

/// Why a verdict is what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No policy had anything to say.
    Default,
    /// It is the endpoint's own node.
    Host,
    /// Nobody is known who has this address, and it is one of a known cluster.
    Unknown,
    /// This rule.
    Rule(RuleId),
}

impl Reason {
    /// Whether a number of a rulebook means this.
    pub fn is(&self, number: RuleNumber, rules: &BTreeMap<RuleNumber, RuleId>) -> bool {
        match self {
            Self::Default => number == RuleNumber::DEFAULT,
            Self::Host => number == RuleNumber::HOST,
            Self::Unknown => Direction::BOTH.map(RuleNumber::unknown).contains(&number),
            Self::Rule(id) => rules.get(&number) == Some(id),
        }
    }
}

/// Judges a new connection between an endpoint of this node and a peer; `None` if there is no such endpoint.
pub fn judge(
    world: &World,
    endpoint: &WorkloadId,
    direction: Direction,
    peer: IpAddr,
    traffic: Traffic,
) -> Option<(Verdict, Reason)> {
    let workload =
        world.workloads.get(endpoint).filter(|workload| workload.local && workload.is_present())?;
    let wanted = world.wanted_labels();
    let own = world.label_set(endpoint, workload, &wanted);
    let other = whose(world, peer, &wanted);
    if matches!(other, Whose::Host) {
        return Some((Verdict::Allow, Reason::Host));
    }
    let mut policies: Vec<&Policy> = world.policies.values().collect();
    policies
        .retain(|policy| policy.rules(direction).is_some() && policy.subject.matches(world.cluster(), &own));
    policies.sort_by_key(|policy| policy.rank());
    if matches!(other, Whose::Unknown) && !policies.is_empty() {
        return Some((Verdict::Deny, Reason::Unknown));
    }
    let other = match other {
        Whose::Endpoint(labels) => Some(labels),
        _ => None,
    };
    // Ports are named by whoever receives the connection.
    let receiver = match direction {
        Direction::Ingress => Some(&own),
        Direction::Egress => other.as_ref(),
    };
    let matches = |rule: &Rule| {
        rule.peers.iter().any(|chosen| is_chosen(world, chosen, peer, other.as_ref()))
            && rule
                .ports
                .as_ref()
                .is_none_or(|ports| ports.iter().any(|port| is_port(port, traffic, receiver)))
    };
    for tier in Tier::ALL {
        let of_tier = || policies.iter().filter(|policy| policy.tier == tier);
        let rules = of_tier()
            .flat_map(|policy| policy.rules(direction).into_iter().flatten().map(move |rule| (policy, rule)));
        let id =
            |policy: &Policy, index| Reason::Rule(RuleId { policy: policy.uid.clone(), direction, index });
        match rules.into_iter().find(|(_, rule)| matches(rule)) {
            Some((policy, Rule { action: Action::Accept, index, .. })) => {
                return Some((Verdict::Allow, id(policy, RuleIndex::Rule(*index))));
            }
            Some((policy, Rule { action: Action::Deny, index, .. })) => {
                return Some((Verdict::Deny, id(policy, RuleIndex::Rule(*index))));
            }
            Some((_, Rule { action: Action::Pass, .. })) => {}
            None => {
                if tier == Tier::NetworkPolicy
                    && let Some(first) = of_tier().next()
                {
                    return Some((Verdict::Deny, id(first, RuleIndex::Isolation)));
                }
            }
        }
    }
    Some((Verdict::Allow, Reason::Default))
}

/// Who has an address.
enum Whose {
    Host,
    OtherNode,
    Endpoint(LabelSet),
    Unknown,
    World,
}

fn whose(world: &World, address: IpAddr, wanted: &BTreeSet<String>) -> Whose {
    let has = |node: &NodeId| world.nodes.get(node).is_some_and(|node| node.addresses.contains(&address));
    if has(&world.node) {
        return Whose::Host;
    }
    if world.nodes.keys().any(has) {
        return Whose::OtherNode;
    }
    let claims = world.workloads.iter();
    let claims =
        claims.filter(|(_, workload)| workload.is_present() && workload.addresses.contains(&address));
    let mut claims: Vec<_> = claims.map(|(id, workload)| world.label_set(id, workload, wanted)).collect();
    claims.dedup();
    match claims.pop() {
        // Two that differ cannot both have it.
        Some(_) if !claims.is_empty() => Whose::Unknown,
        Some(labels) => Whose::Endpoint(labels),
        None if world.clusters.iter().any(|prefix| prefix.contains(address)) => Whose::Unknown,
        None => Whose::World,
    }
}

fn is_chosen(world: &World, chosen: &Peer, address: IpAddr, labels: Option<&LabelSet>) -> bool {
    match chosen {
        Peer::Any => true,
        Peer::Pods(selector) => labels.is_some_and(|labels| selector.matches(world.cluster(), labels)),
        Peer::Block(block) => block.contains(address),
        Peer::Nodes(selector) => {
            let nodes = world.nodes.iter().filter(|(id, _)| id.cluster == *world.cluster());
            nodes
                .into_iter()
                .any(|(_, node)| node.addresses.contains(&address) && selector.matches(&node.labels))
        }
    }
}

fn is_port(chosen: &PortMatch, traffic: Traffic, receiver: Option<&LabelSet>) -> bool {
    let Traffic::To(protocol, port) = traffic else { return false };
    match chosen {
        PortMatch::Range(of, range) => *of == protocol && range.contains(&port),
        PortMatch::Named(of, name) => receiver.is_some_and(|receiver| {
            receiver.ports().iter().any(|named| {
                named.name == *name
                    && named.protocol == protocol
                    && named.port == port
                    && of.is_none_or(|of| of == protocol)
            })
        }),
    }
}
