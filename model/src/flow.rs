//! What becomes of connections, one by one: `GET /v1/flows`, `causeway flows` and the file of flows.
//!
//! Events are a sample: each worker of the fast path and the agent keep so many that nobody has read yet, and count what they
//! lose. What must be exact is counted: denials by rule, drops by reason, packets by connection.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::policy::{RuleId, Verdict};
use crate::{Path, PodName};

/// Somebody began a connection, or tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Nanoseconds since 1970.
    pub at: u64,
    /// The data path that saw it.
    pub path: Path,
    /// What was decided.
    pub verdict: Verdict,
    /// The transport's number (IANA protocol numbers).
    pub protocol: u8,
    /// Who begins: address and port; the identifier of an echo, zero where there is none.
    pub from: (IpAddr, u16),
    /// Whom it is for.
    pub to: (IpAddr, u16),
    /// Bytes of the packet that asked, from its IP header on; zero where the data path does not tell.
    pub bytes: u64,
    /// The rule of the egress side: that let it pass, or that denied it. None where no policy's rule did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<RuleId>,
    /// The rule of the ingress side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<RuleId>,
    /// The rule of an audited policy that would have denied it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<RuleId>,
    /// The pod that begins, where it is of this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_pod: Option<PodName>,
    /// The pod that it is for, where it is of this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_pod: Option<PodName>,
}

/// Events, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// The events.
    pub events: Vec<Event>,
    /// How many were lost before anybody read them, since the data path started.
    pub lost: u64,
}

/// What is asked of `GET /v1/flows`, as its query: all conditions must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowQuery {
    /// Events after this one; the `last` of an answer is where the next question begins. Without it, what is still known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// A pod of this node, as namespace/name, at either end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Allow or deny.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// The port it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The data path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Path>,
    /// What a rule's id begins with: a policy's uid, or a whole id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// How many at most, the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most: Option<usize>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// The events that fit, the oldest first.
    pub events: Vec<Event>,
    /// The number of the newest event that there is, fitting or not.
    pub last: u64,
    /// How many events the data paths lost since the agent started.
    pub lost: u64,
    /// How many events after the one asked for are no longer known.
    pub forgotten: u64,
}
