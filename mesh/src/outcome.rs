//! What becomes of exports and imports.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use causeway_model::{ClusterName, Family};

use crate::choice::Candidate;
use crate::facts::{Port, TrafficPolicy};
use crate::merge::Conflict;
use crate::prefer::{Affinity, Preference};

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It does.
    True,
    /// It does not.
    False,
    /// Nobody can tell.
    Unknown,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        })
    }
}

/// A condition of an object, as the API names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `Valid`, `Ready`, `Conflict`.
    pub kind: &'static str,
    /// Whether it holds.
    pub status: Status,
    /// Why, in the API's words; several are joined by commas.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
}

impl Condition {
    pub(crate) fn new(kind: &'static str, status: Status, reason: &str, message: impl Into<String>) -> Self {
        Self { kind, status, reason: reason.to_owned(), message: message.into() }
    }
}

/// What became of one cluster's export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Valid, Ready and Conflict.
    pub conditions: Vec<Condition>,
    /// What it, or others with it, disagree about.
    pub conflicts: Vec<Conflict>,
}

/// A service of all clusters, as this one has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Import {
    /// It has no address, its pods have names.
    pub headless: bool,
    /// Its ports.
    pub ports: Vec<Port>,
    /// The families in which it can be used, in order.
    pub families: Vec<Family>,
    /// Its addresses, one for each of the families and in their order; none of a headless one, and none where none can be
    /// given.
    pub addresses: Vec<IpAddr>,
    /// How many seconds a client keeps its backend.
    pub affinity: Option<u32>,
    /// `internalTrafficPolicy`.
    pub traffic_policy: TrafficPolicy,
    /// `trafficDistribution`.
    pub distribution: Option<String>,
    /// Labels that the oldest export gives it.
    pub labels: BTreeMap<String, String>,
    /// Annotations that the oldest export gives it.
    pub annotations: BTreeMap<String, String>,
    /// Who exports it, by name.
    pub clusters: Vec<ClusterName>,
    /// Whether it can be used.
    pub ready: Condition,
    /// What its exporters disagree about.
    pub conflicts: Vec<Conflict>,
    /// How its backends are chosen.
    pub choice: Choice,
    /// Who serves a port, by the port's place in `ports`; nothing of a headless one.
    pub backends: BTreeMap<(Family, usize), Vec<Candidate>>,
    /// Who has a name in a headless one.
    pub pods: Vec<Pod>,
    /// Endpoints that are left out: a cluster offers an address that lies in another's prefix, or leads nowhere.
    pub left_out: BTreeSet<(ClusterName, IpAddr)>,
}

/// How backends are chosen, and by whose word.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// Whether own backends are wanted.
    pub affinity: Affinity,
    /// Who says so; `None`: nobody.
    pub affinity_by: Option<Word>,
    /// Which clusters are wanted before others.
    pub prefer: Option<Arc<Preference>>,
    /// Who says so.
    pub prefer_by: Option<Word>,
}

/// Whose annotation it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// This cluster's ServiceImport.
    Import,
    /// This cluster's Service.
    Service,
    /// A suggestion of the oldest export.
    Suggestion(ClusterName),
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Import => f.pad("the ServiceImport here"),
            Self::Service => f.pad("the Service here"),
            Self::Suggestion(cluster) => write!(f, "suggested by {cluster}"),
        }
    }
}

/// A pod of a headless service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pod {
    /// Whose it is.
    pub cluster: ClusterName,
    /// Its name there.
    pub hostname: Arc<str>,
    /// Its address.
    pub address: IpAddr,
    /// The number it has for each of the import's ports that it serves, by the port's place.
    pub ports: Vec<(usize, u16)>,
}
