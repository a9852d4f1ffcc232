//! Why a connection is allowed or denied: `GET /v1/why` and `causeway why`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::clusterset::Across;
use crate::policy::{Direction, RuleId, Traffic, Verdict};
use crate::service::{Backend, ServicePort};
use crate::{Count, DropReason, NodeId, Path};

/// What is asked, as a query.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhyQuery {
    /// Who begins: namespace/name of a pod, an address, `host` for this node, `world` for whoever is outside.
    pub from: String,
    /// Whom it is for, likewise; or namespace/name of a service, where no pod is called so, or a name under `clusterset.local`.
    pub to: String,
    /// `tcp`, `udp` or `sctp`; without it, something that has no ports, such as ICMP, or the first port of an import.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The port; required with a protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Send one packet, and tell which counters moved.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub probe: bool,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// Who begins.
    pub from: Party,
    /// Whom it is for.
    pub to: Party,
    /// What it is.
    pub traffic: Traffic,
    /// Deny if either side denies. None if neither end is judged on this node, or if it depends on a service's backend.
    pub verdict: Option<Verdict>,
    /// What each side says, in the order in which they are asked. Sides that are judged elsewhere say where.
    pub sides: Vec<Side>,
    /// The service that is asked, where the address is one's: sides are told of each of its backends then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<Box<Through>>,
    /// The import that is asked, where the address is one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub across: Option<Box<Across>>,
    /// What a packet came to, where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
}

/// A service on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Through {
    /// Which; none where the address is one for services and nobody's at this port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServicePort>,
    /// What the client gets.
    pub outcome: Outcome,
    /// Why, in words.
    pub reason: String,
    /// Whom it may come to, and what policy says of each.
    #[serde(default)]
    pub behind: Vec<Behind>,
}

/// What a client gets of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// A refusal.
    Refused,
    /// No answer.
    Dropped,
    /// One of these.
    Served(Vec<Share>),
}

/// A backend among those of which a client gets one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Who it is.
    #[serde(flatten)]
    pub backend: Backend,
    /// Its part of new connections; none where all get the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

impl Share {
    /// The shares of backends of such weights.
    pub fn of(shares: impl IntoIterator<Item = (Backend, u32)>) -> Vec<Self> {
        let shares: Vec<_> = shares.into_iter().collect();
        let alike = shares.windows(2).all(|pair| pair[0].1 == pair[1].1);
        let weight = |weight| (!alike).then_some(weight);
        shares.into_iter().map(|(backend, part)| Self { backend, weight: weight(part) }).collect()
    }
}

/// A backend that a connection may come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// Who it is.
    pub to: Party,
    /// Its port.
    pub port: u16,
    /// Its part of new connections; none where all get the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Deny if either side denies. None if neither end is judged on this node.
    pub verdict: Option<Verdict>,
    /// What each side says of it.
    pub sides: Vec<Side>,
}

/// An end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// Its address.
    pub address: IpAddr,
    /// Who that is, in words: "pod shop/web", "this node", "the world", "unknown".
    pub who: String,
}

/// One side's judgement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// Of who begins (egress), or of whom it is for (ingress).
    pub direction: Direction,
    /// The verdict and its reason, or where it is judged instead.
    #[serde(flatten)]
    pub judged: Judged,
}

/// How one side is judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "judged")]
pub enum Judged {
    /// By the tables of this node.
    Here {
        /// The endpoint's data path, which has these tables.
        path: Path,
        /// The verdict.
        verdict: Verdict,
        /// The rule that gave it, if a policy's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rule: Option<RuleId>,
        /// The rule's policy, as kind/namespace/name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        policy: Option<String>,
        /// The rule of an audited policy that would deny what is allowed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        audit: Option<RuleId>,
        /// The reason, in words.
        reason: String,
        /// What it would take to allow it, where it is denied.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        remedy: Option<String>,
    },
    /// On another node.
    Elsewhere {
        /// Which.
        node: NodeId,
    },
    /// Nowhere: no policy is about nodes' own stacks and the world.
    Nowhere,
}

/// What one packet came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What the sender saw: answered, refused, or nothing within a second.
    pub outcome: String,
    /// What rules denied meanwhile.
    pub rules: Vec<(RuleId, Count)>,
    /// What was dropped meanwhile.
    pub drops: Vec<(DropReason, Count)>,
}
