//! The compiled policy records: what the compiler fills and both data paths read.
//!
//! An endpoint has a [`Table`] per direction: up to three [`Stage`]s, asked one after the other until one decides. A stage is
//! shared by all endpoints to which the same rules apply, so that a node holds each rule once. Nothing nests inside a stage:
//! prefixes and port ranges are cut into pieces that do not overlap, each piece having inherited what covered it. A fast
//! path searches small sorted arrays; a kernel takes identities, pieces and verdicts as elements of maps, keyed by the
//! stage's number.

mod number;
mod peers;
mod stage;

pub use number::{InvalidRuleId, RuleId, RuleIndex, RuleNumber};
pub use peers::Peers;
pub use stage::{Action, Class, Row, RowVerdicts, Stage, StageId, StageRule};

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Identity, PortProtocol};

/// Which way a connection is begun, seen from the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Towards the endpoint.
    Ingress,
    /// By the endpoint.
    Egress,
}

impl Direction {
    /// Both of them.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// Its name in rule ids.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is let through.
    Allow,
    /// It is not.
    Deny,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

/// What a new connection is, as far as rules can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Traffic {
    /// Of a transport with ports, to this one.
    To(PortProtocol, u16),
    /// Of any other protocol, ICMP among them: only rules without ports speak of it.
    Portless,
}

/// A verdict and the rule that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Decision {
    /// The verdict.
    pub verdict: Verdict,
    /// The rule: one of a policy, or one of those that no policy can change ([`RuleNumber::DEFAULT`] and those after it).
    pub rule: RuleNumber,
}

/// What holds for one endpoint in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The stages in the order they are asked: of the Admin tier, of NetworkPolicies, of the Baseline tier; those that say
    /// nothing are left out. Without any, everything is allowed.
    pub stages: Vec<StageId>,
    /// Moves whenever a verdict for a peer that was there before may be another one: established flows of an older
    /// epoch are judged again.
    pub epoch: u32,
}

/// What holds for one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tables {
    /// For connections towards it.
    pub ingress: Table,
    /// For connections it begins.
    pub egress: Table,
}

impl Tables {
    /// The table of one direction.
    pub fn of(&self, direction: Direction) -> &Table {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// Whether nothing was ever said of the endpoint.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The table of one direction, to be changed.
    pub fn of_mut(&mut self, direction: Direction) -> &mut Table {
        match direction {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }
}

/// Everything that tables refer to on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rulebook {
    /// The stages.
    pub stages: BTreeMap<StageId, Arc<Stage>>,
    /// Who has which address.
    pub peers: Peers,
    /// The rule behind each number. Whoever counts by number begins anew when another rule gets it.
    pub rules: BTreeMap<RuleNumber, RuleId>,
}

impl Rulebook {
    /// The rule behind a number, as far as it denies: those that no policy can change have a name only there.
    pub fn id(&self, number: RuleNumber) -> Option<RuleId> {
        let unknown = Direction::BOTH.into_iter().find(|direction| number == RuleNumber::unknown(*direction));
        unknown.map(RuleId::unknown).or_else(|| self.rules.get(&number).cloned())
    }

    /// Judges a new connection between an endpoint and a peer, by the endpoint's table of that direction. One of an endpoint with
    /// itself has come through a service or a port of the node, and is judged as any other: what a pod sends to its own address
    /// never leaves it.
    pub fn decide(
        &self,
        (direction, table): (Direction, &Table),
        peer: IpAddr,
        traffic: Traffic,
    ) -> Decision {
        let allow = |rule| Decision { verdict: Verdict::Allow, rule };
        let identity = self.peers.identity(peer);
        if identity == Identity::HOST {
            return allow(RuleNumber::HOST);
        }
        if identity == Identity::UNKNOWN && !table.stages.is_empty() {
            return Decision { verdict: Verdict::Deny, rule: RuleNumber::unknown(direction) };
        }
        let stages = table.stages.iter().filter_map(|id| self.stages.get(id));
        for stage in stages {
            match stage.first(identity, peer, traffic) {
                Some(StageRule { action: Action::Accept, number }) => return allow(*number),
                Some(StageRule { action: Action::Deny, number }) => {
                    return Decision { verdict: Verdict::Deny, rule: *number };
                }
                Some(StageRule { action: Action::Pass, .. }) => {}
                None => {
                    if let Some(rule) = stage.otherwise {
                        return Decision { verdict: Verdict::Deny, rule };
                    }
                }
            }
        }
        allow(RuleNumber::DEFAULT)
    }
}
