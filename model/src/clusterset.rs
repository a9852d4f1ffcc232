//! What the agent shows an operator of services across clusters: `GET /v1/services/clusters`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::ClusterName;
use crate::service::{Backend, Frontend};

/// Services across clusters as this one sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clusterset {
    /// This cluster, once it is known.
    pub own: Option<ClusterName>,
    /// What is exported, by service and cluster.
    pub exports: Vec<ExportStatus>,
    /// What is imported here.
    pub imports: Vec<ImportStatus>,
    /// Clusters that have no part, and why.
    pub refused: Vec<Refused>,
    /// Clusters that are lost, and how many seconds old what was known of them was when they were marked.
    pub lost: Vec<(ClusterName, u64)>,
}

/// A cluster that has no part in the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Which.
    pub cluster: ClusterName,
    /// Why, in a word with the other cluster: `duplicate-id:lyon`.
    pub codes: Vec<String>,
    /// Why, in sentences.
    pub reasons: Vec<String>,
}

/// What became of one cluster's export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportStatus {
    /// The service's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who exports it.
    pub cluster: ClusterName,
    /// Valid, Ready, Conflict.
    pub conditions: Vec<ConditionStatus>,
}

/// A condition of an export or an import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConditionStatus {
    /// Which.
    pub kind: String,
    /// True, False, Unknown.
    pub status: String,
    /// Why, in the API's words.
    pub reason: String,
    /// Why, in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// A service that is imported here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// It has no address, its pods have names.
    pub headless: bool,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Who exports it.
    pub clusters: Vec<ClusterName>,
    /// Whether it can be used.
    pub ready: ConditionStatus,
    /// What its exporters disagree about.
    pub conflicts: Vec<ConflictStatus>,
    /// How its backends are chosen, and by whose word.
    pub choice: String,
    /// Its ports, and who serves each.
    pub ports: Vec<ImportPortStatus>,
    /// Addresses that clusters offer and that cannot be theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<(ClusterName, IpAddr)>,
    /// Connections begun at all its frontends on this node.
    pub hits: u64,
}

/// A disagreement between clusters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictStatus {
    /// About what, as the API names it.
    pub about: String,
    /// What is said and who says so; the word that holds comes first.
    pub said: Vec<(String, Vec<ClusterName>)>,
}

/// A port of an import at one of its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportPortStatus {
    /// The port's name; empty where it has none.
    pub name: String,
    /// Where it is.
    pub frontend: Frontend,
    /// Who serves it.
    pub backends: Vec<RemoteBackend>,
    /// Connections begun there on this node.
    pub hits: u64,
}

/// A backend that some cluster offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteBackend {
    /// Whose it is.
    pub cluster: ClusterName,
    /// Where it answers.
    #[serde(flatten)]
    pub backend: Backend,
    /// Whether it is ready; one that is not drains.
    pub ready: bool,
    /// The tier of the preference that it is in, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<usize>,
    /// Its part of new connections among all; zero: none.
    pub weight: u32,
}

/// An import on the way of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Across {
    /// Its name under `clusterset.local`.
    pub name: String,
    /// Who exports it.
    pub clusters: Vec<ClusterName>,
    /// How its backends are chosen, and by whose word.
    pub choice: String,
    /// Who serves the port that is asked.
    pub backends: Vec<RemoteBackend>,
}
