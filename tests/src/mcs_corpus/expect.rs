//! What shall hold, as it is written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use serde_json::Value;

use super::format::{Name, PortName, Want};

/// What shall hold after a step.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Expect {
    /// Conditions of ServiceExports, by cluster.
    #[serde(default)]
    pub exports: BTreeMap<String, BTreeMap<Name, Want<Export>>>,
    /// What groups of observers see.
    #[serde(default)]
    pub seen: Vec<Seen>,
    /// Clusters' own Services.
    #[serde(default)]
    pub local: BTreeMap<String, BTreeMap<Name, Local>>,
    /// Whom nobody may reach by a service.
    #[serde(default)]
    pub never: Vec<Never>,
    /// Services of which every observer shows the same alternative.
    #[serde(default)]
    pub agree: Vec<Name>,
    /// Clusters that are refused, and why.
    #[serde(default)]
    pub refused: BTreeMap<String, BTreeSet<String>>,
    /// Observers whose `clusterset-cidr` is refused, and why.
    #[serde(rename = "clustersetCIDRrefused", default)]
    pub refused_prefixes: BTreeMap<String, BTreeSet<String>>,
}

/// What becomes of an export.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Export {
    /// Whether it can be exported.
    #[serde(default)]
    pub valid: Want<Condition>,
    /// Whether it is.
    #[serde(default)]
    pub ready: Want<Condition>,
    /// Whether exporters disagree.
    #[serde(default)]
    pub conflict: Want<Condition>,
}

/// A condition.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// True, False, Unknown.
    #[serde(default)]
    pub status: Want<String>,
    /// Exactly these.
    pub reasons: Option<BTreeSet<String>>,
    /// And these, if they are there.
    #[serde(default)]
    pub may: BTreeSet<String>,
    /// One of these.
    pub one_of: Option<BTreeSet<String>>,
    /// Anything but this status.
    pub not: Option<String>,
    /// When any observer's import lists one of these families, `then` holds.
    pub if_import_lists: Option<BTreeSet<String>>,
    /// A reason that must be there then, and the status True.
    pub then: Option<String>,
}

/// What a group of observers sees.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Who.
    pub from: Vec<String>,
    /// What.
    pub services: BTreeMap<Name, Alternatives>,
}

/// Views of a service, one of which must hold.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Value")]
pub struct Alternatives(pub Vec<View>);

impl TryFrom<Value> for Alternatives {
    type Error = serde_json::Error;

    fn try_from(value: Value) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Any {
            any_of: Vec<View>,
        }
        match value.get("any_of") {
            Some(_) => Any::deserialize(value).map(|any| Self(any.any_of)),
            None => View::deserialize(value).map(|view| Self(vec![view])),
        }
    }
}

/// A view of a service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct View {
    /// The ServiceImport; `None`: there is none.
    pub import: Option<Want<Import>>,
    /// Who serves, by family and port.
    #[serde(default)]
    pub backends: BTreeMap<String, BTreeMap<PortName, Backends>>,
    /// What its names are.
    #[serde(default)]
    pub dns: Vec<Question>,
}

/// A ServiceImport.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Import {
    /// ClusterSetIP or Headless.
    #[serde(rename = "type", default)]
    pub type_: Want<String>,
    /// Exactly these ports.
    pub ports: Option<Want<BTreeSet<PortName>>>,
    /// And these, if they are there.
    #[serde(default)]
    pub ports_may: BTreeSet<PortName>,
    /// None or ClientIP.
    #[serde(default)]
    pub session_affinity: Want<String>,
    /// How long a client keeps its backend.
    #[serde(default)]
    pub affinity_timeout: Want<u32>,
    /// Cluster or Local.
    #[serde(default)]
    pub internal_traffic_policy: Want<String>,
    /// `unset` for none.
    #[serde(default)]
    pub traffic_distribution: Want<String>,
    /// `status.clusters`.
    #[serde(default)]
    pub clusters: Want<BTreeSet<String>>,
    /// And these, if they are there.
    #[serde(default)]
    pub clusters_may: BTreeSet<String>,
    /// Its families.
    #[serde(default)]
    pub ip_families: Want<Families>,
    /// Whether it can be used.
    #[serde(rename = "Ready", default)]
    pub ready: Want<Condition>,
    /// `one-per-family` or `none`.
    #[serde(default)]
    pub ips: Want<Addresses>,
    /// Exactly these, if any.
    pub labels_if_supported: Option<BTreeMap<String, String>>,
    /// Exactly these, if any.
    pub annotations_if_supported: Option<BTreeMap<String, String>>,
    /// What is spoken at ports.
    #[serde(default)]
    pub app_protocol: BTreeMap<PortName, Want<String>>,
}

/// How many addresses an import has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Addresses {
    /// One for each of its families, in their order.
    OnePerFamily,
    /// None.
    None,
}

/// Families that must and that may be there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Families {
    /// Must.
    #[serde(default)]
    pub must: BTreeSet<String>,
    /// May.
    #[serde(default)]
    pub may: BTreeSet<String>,
}

/// Who serves a port.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backends {
    /// Each of these.
    #[serde(default)]
    pub must: BTreeSet<SocketAddr>,
    /// Perhaps these, and nobody else.
    #[serde(default)]
    pub may: BTreeSet<SocketAddr>,
    /// Whether anybody.
    #[serde(default)]
    pub served: Want<bool>,
    /// Parts of all connections by entry of a preference; one of these.
    #[serde(default)]
    pub shares: Vec<BTreeMap<String, f64>>,
}

/// A question to the DNS server, and its answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The name.
    pub q: String,
    /// The type.
    pub t: String,
    /// The answer.
    pub want: Want<Answer>,
    /// Further answers that may be there.
    #[serde(default)]
    pub may: BTreeSet<String>,
    /// Any part of the answers but none of them is enough.
    #[serde(default)]
    pub subset: bool,
    /// Only if the import lists this family; else there is no data.
    pub when: Option<String>,
    /// What it is founded on.
    #[serde(default)]
    pub basis: Value,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    /// These.
    Records(BTreeSet<String>),
    /// Something that has a name.
    Named(NamedAnswer),
}

/// Something that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum NamedAnswer {
    #[serde(rename = "NXDOMAIN")]
    NoName,
    #[serde(rename = "NODATA")]
    NoData,
    #[serde(rename = "none")]
    Nothing,
    #[serde(rename = "clusterset-ip")]
    ClustersetIp,
    #[serde(rename = "clusterset-ip-or-nothing")]
    ClustersetIpOrNothing,
}

/// A cluster's own Service.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Local {
    /// Its addresses.
    #[serde(rename = "clusterIPs")]
    pub addresses: Vec<IpAddr>,
    /// The only backends that they lead to, by port.
    pub only: BTreeMap<PortName, BTreeSet<SocketAddr>>,
}

/// Whom nobody may reach by a service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Never {
    /// The service.
    pub service: Name,
    /// Who.
    pub backends: BTreeSet<IpAddr>,
    /// Whose they are.
    pub of: String,
    /// Why.
    #[serde(default)]
    pub because: String,
}
