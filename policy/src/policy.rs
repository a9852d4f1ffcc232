//! A policy as the compiler and the slow evaluator have it: every default filled in, every range checked.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use causeway_model::PortProtocol;
use causeway_model::policy::{Action, Direction};
use ipnetwork::IpNetwork;

use crate::selector::{LabelSelector, PodSelector};

/// A kind of policy object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// `networking.k8s.io/v1`.
    NetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2`.
    ClusterNetworkPolicy,
    /// Withdrawn (`policy.networking.k8s.io/v1alpha1`): recognised and not supported.
    AdminNetworkPolicy,
    /// Withdrawn (`policy.networking.k8s.io/v1alpha1`): recognised and not supported.
    BaselineAdminNetworkPolicy,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::NetworkPolicy,
        Self::ClusterNetworkPolicy,
        Self::AdminNetworkPolicy,
        Self::BaselineAdminNetworkPolicy,
    ];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
        }
    }

    /// Group and version.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "networking.k8s.io/v1",
            Self::ClusterNetworkPolicy => "policy.networking.k8s.io/v1alpha2",
            Self::AdminNetworkPolicy | Self::BaselineAdminNetworkPolicy => {
                "policy.networking.k8s.io/v1alpha1"
            }
        }
    }
}

/// What a policy is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    /// Its kind.
    pub kind: PolicyKind,
    /// Its namespace; empty where the kind has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{}/{}", self.kind.as_str(), self.name),
            namespace => write!(f, "{}/{namespace}/{}", self.kind.as_str(), self.name),
        }
    }
}

/// Which of the three lists a policy stands in; they are asked in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// What namespaces cannot overrule.
    Admin,
    /// The namespaces' own: what is selected and not allowed is denied.
    NetworkPolicy,
    /// What holds where no NetworkPolicy selects.
    Baseline,
}

impl Tier {
    /// In the order they are asked.
    pub const ALL: [Self; 3] = [Self::Admin, Self::NetworkPolicy, Self::Baseline];
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What it is known by.
    pub key: PolicyKey,
    /// What its rule ids begin with.
    pub uid: String,
    /// Its tier.
    pub tier: Tier,
    /// Lower ones come first within the tier, equal ones in the order of their names.
    pub priority: u16,
    /// To whom it applies.
    pub subject: PodSelector,
    /// Its rules for connections towards them; `None` where it says nothing of these.
    pub ingress: Option<Vec<Rule>>,
    /// Its rules for connections that they begin.
    pub egress: Option<Vec<Rule>>,
}

impl Policy {
    /// Its rules of one direction.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// Where it stands among others.
    pub fn rank(&self) -> (Tier, u16, &PolicyKey) {
        (self.tier, self.priority, &self.key)
    }

    /// The pod labels that its selectors speak of.
    pub(crate) fn pod_labels(&self) -> impl Iterator<Item = &str> {
        let rules = [&self.ingress, &self.egress].into_iter().flatten().flatten();
        let peers = rules.flat_map(|rule| &rule.peers).filter_map(|peer| match peer {
            Peer::Pods(selector) => Some(selector),
            Peer::Any | Peer::Block(_) | Peer::Nodes(_) => None,
        });
        peers.chain([&self.subject]).flat_map(|selector| selector.pods.keys())
    }
}

/// A rule: what one of its peers sends or receives on one of its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its place in the list as written.
    pub index: u16,
    /// What it does.
    pub action: Action,
    /// Any of them.
    pub peers: Vec<Peer>,
    /// Any of them; `None` is all traffic, that without ports included.
    pub ports: Option<Vec<PortMatch>>,
}

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// Everybody.
    Any,
    /// Chosen pods.
    Pods(PodSelector),
    /// Addresses, whoever has them.
    Block(Block),
    /// The addresses of chosen nodes of the own cluster.
    Nodes(LabelSelector),
}

/// A prefix with holes. A hole denies nothing; it is merely not part of the block.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// The prefix, without host bits.
    pub cidr: IpNetwork,
    /// The holes, each inside of it.
    pub except: BTreeSet<IpNetwork>,
}

impl Block {
    /// A prefix without holes.
    pub fn whole(cidr: IpNetwork) -> Self {
        Self { cidr, except: BTreeSet::new() }
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(address) && !self.except.iter().any(|hole| hole.contains(address))
    }
}

/// Destination ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortMatch {
    /// These of a protocol.
    Range(PortProtocol, RangeInclusive<u16>),
    /// Those that the receiving pod names so; of one protocol, or of any.
    Named(Option<PortProtocol>, String),
}
