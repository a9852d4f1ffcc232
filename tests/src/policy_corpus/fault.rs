//! Wrong compiles: each bends policies on their way into the compiler, or to the nodes of a lab, so that a corpus that cannot tell is no test.

use causeway_model::PortProtocol;
use causeway_model::policy::Action;
use causeway_policy::{LabelSelector, Namespaces, Peer, Policy, PortMatch, Requirement, Rule, Tier, read};
use serde_json::Value;

use super::document::document;

/// A way to compile policies wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A policy applies to everybody of its namespaces.
    SubjectPodsIgnored,
    /// A ClusterNetworkPolicy applies to pods of all namespaces.
    SubjectNamespacesIgnored,
    /// A peer is everybody of its namespaces.
    PeerPodsIgnored,
    /// A peer is of whatever namespace.
    PeerNamespacesIgnored,
    /// A peer is right by its namespace or by its labels.
    PodsOrNamespaces,
    /// What must be there must not be there.
    ExpressionsNegated,
    /// A block has no holes.
    HolesFilled,
    /// Blocks are nobody.
    BlocksIgnored,
    /// Nodes are nobody.
    NodesIgnored,
    /// A range is its first port.
    RangeEndsIgnored,
    /// A port is one of every protocol.
    ProtocolsIgnored,
    /// A named port is every port.
    PortNamesOpenAll,
    /// All traffic is meant.
    PortsIgnored,
    /// All peers of a policy may use all of its ports.
    RulesMultiplied,
    /// A policy is for both directions.
    TypesIgnored,
    /// Ingress is egress.
    DirectionsSwapped,
    /// No rules allow everything.
    NoRulesOpenAll,
    /// Rules are asked from the last to the first.
    OrderReversed,
    /// High numbers come first.
    PrioritiesReversed,
    /// Admin is Baseline.
    TiersSwapped,
    /// Deny says nothing.
    DenyIgnored,
    /// Accept leaves it to the next tier.
    AcceptAsPass,
    /// Pass lets through.
    PassAsAccept,
    /// A rule that could not be read is left out.
    BadRulesForgotten,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 24] = [
        Self::SubjectPodsIgnored,
        Self::SubjectNamespacesIgnored,
        Self::PeerPodsIgnored,
        Self::PeerNamespacesIgnored,
        Self::PodsOrNamespaces,
        Self::ExpressionsNegated,
        Self::HolesFilled,
        Self::BlocksIgnored,
        Self::NodesIgnored,
        Self::RangeEndsIgnored,
        Self::ProtocolsIgnored,
        Self::PortNamesOpenAll,
        Self::PortsIgnored,
        Self::RulesMultiplied,
        Self::TypesIgnored,
        Self::DirectionsSwapped,
        Self::NoRulesOpenAll,
        Self::OrderReversed,
        Self::PrioritiesReversed,
        Self::TiersSwapped,
        Self::DenyIgnored,
        Self::AcceptAsPass,
        Self::PassAsAccept,
        Self::BadRulesForgotten,
    ];

    /// The object of a policy with this fault; none where it makes no difference.
    pub(super) fn bent(self, policy: &Policy) -> Option<Value> {
        let bent = self.bend(policy.clone());
        (bent != *policy).then(|| document(&bent))
    }

    /// What is compiled in a policy's place: what that object says, so that a case is as red on the engine as on nodes.
    pub(super) fn compiled(self, policy: Policy) -> Policy {
        let Some(object) = self.bent(&policy) else { return policy };
        let read = read(&object).expect("what is told again can be read");
        read.policy.expect("it says what it said, but for the fault")
    }

    fn bend(self, mut policy: Policy) -> Policy {
        let cluster = policy.tier != Tier::NetworkPolicy;
        match self {
            Self::SubjectPodsIgnored => policy.subject.pods = LabelSelector::default(),
            Self::SubjectNamespacesIgnored if cluster => policy.subject.namespaces = everywhere(),
            Self::PrioritiesReversed => policy.priority = 1000 - policy.priority,
            Self::TiersSwapped => {
                policy.tier = match policy.tier {
                    Tier::Admin => Tier::Baseline,
                    Tier::NetworkPolicy => Tier::NetworkPolicy,
                    Tier::Baseline => Tier::Admin,
                }
            }
            Self::TypesIgnored if !cluster => {
                policy.ingress.get_or_insert_default();
                policy.egress.get_or_insert_default();
            }
            Self::DirectionsSwapped => std::mem::swap(&mut policy.ingress, &mut policy.egress),
            _ => {
                for rules in [&mut policy.ingress, &mut policy.egress].into_iter().flatten() {
                    self.bend_rules(rules, cluster);
                }
            }
        }
        policy
    }

    fn bend_rules(self, rules: &mut Vec<Rule>, cluster: bool) {
        match self {
            Self::NoRulesOpenAll if rules.is_empty() => {
                rules.push(Rule { index: 0, action: Action::Accept, peers: vec![Peer::Any], ports: None });
            }
            Self::OrderReversed => rules.reverse(),
            Self::DenyIgnored => rules.retain(|rule| rule.action != Action::Deny),
            Self::BadRulesForgotten if cluster => rules.retain(|rule| !rule.peers.contains(&Peer::Any)),
            Self::RulesMultiplied if !cluster && !rules.is_empty() => {
                let peers = rules.iter().flat_map(|rule| rule.peers.clone()).collect();
                let ports = rules.iter().map(|rule| rule.ports.clone()).collect::<Option<Vec<_>>>();
                let ports = ports.map(|ports| ports.concat());
                *rules = vec![Rule { index: 0, action: Action::Accept, peers, ports }];
            }
            _ => rules.iter_mut().for_each(|rule| self.bend_rule(rule)),
        }
    }

    fn bend_rule(self, rule: &mut Rule) {
        match (self, rule.action) {
            (Self::AcceptAsPass, Action::Accept) => rule.action = Action::Pass,
            (Self::PassAsAccept, Action::Pass) => rule.action = Action::Accept,
            (Self::PortsIgnored, _) => rule.ports = None,
            _ => {}
        }
        if let Some(ports) = &mut rule.ports {
            *ports = ports.iter().flat_map(|port| self.bent_ports(port)).collect();
        }
        rule.peers = rule.peers.iter().flat_map(|peer| self.bent_peers(peer)).collect();
    }

    fn bent_ports(self, port: &PortMatch) -> Vec<PortMatch> {
        match (self, port) {
            (Self::RangeEndsIgnored, PortMatch::Range(of, range)) => {
                vec![PortMatch::Range(*of, *range.start()..=*range.start())]
            }
            (Self::ProtocolsIgnored, PortMatch::Range(_, range)) => {
                PortProtocol::ALL.map(|of| PortMatch::Range(of, range.clone())).to_vec()
            }
            (Self::PortNamesOpenAll, PortMatch::Named(of, _)) => {
                let of = of.unwrap_or(PortProtocol::Tcp);
                vec![PortMatch::Range(of, 0..=u16::MAX)]
            }
            _ => vec![port.clone()],
        }
    }

    fn bent_peers(self, peer: &Peer) -> Vec<Peer> {
        let mut peer = peer.clone();
        match (self, &mut peer) {
            (Self::BlocksIgnored, Peer::Block(_)) | (Self::NodesIgnored, Peer::Nodes(_)) => {
                return Vec::new();
            }
            (Self::HolesFilled, Peer::Block(block)) => block.except.clear(),
            (Self::PeerPodsIgnored, Peer::Pods(selector)) => selector.pods = LabelSelector::default(),
            (Self::PeerNamespacesIgnored, Peer::Pods(selector)) => selector.namespaces = everywhere(),
            (Self::PodsOrNamespaces, Peer::Pods(selector)) => {
                let mut other = selector.clone();
                selector.pods = LabelSelector::default();
                other.namespaces = everywhere();
                return vec![Peer::Pods(other), peer];
            }
            (Self::ExpressionsNegated, Peer::Pods(selector)) => {
                selector.pods = negated(&selector.pods);
                if let Namespaces::Selected(namespaces) = &mut selector.namespaces {
                    *namespaces = negated(namespaces);
                }
            }
            _ => {}
        }
        vec![peer]
    }
}

fn everywhere() -> Namespaces {
    Namespaces::Selected(LabelSelector::default())
}

fn negated(selector: &LabelSelector) -> LabelSelector {
    LabelSelector::new(selector.requirements().map(|requirement| match requirement.clone() {
        Requirement::In(key, values) => Requirement::NotIn(key, values),
        Requirement::NotIn(key, values) => Requirement::In(key, values),
        Requirement::Exists(key) => Requirement::DoesNotExist(key),
        Requirement::DoesNotExist(key) => Requirement::Exists(key),
    }))
}
