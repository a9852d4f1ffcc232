//! The door through which policy objects come: what is wrong with one is said by name, grants nothing and disturbs no other.

mod cluster_network_policy;
mod network_policy;
mod parts;
#[cfg(test)]
mod tests;

use std::fmt;

use ipnetwork::IpNetwork;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use crate::policy::{Policy, PolicyKey, PolicyKind};

/// The annotation that asks for an audit.
const AUDIT: &str = "causeway.dev/audit";

/// The most rules of one direction that a NetworkPolicy may have: their places are 16 bits.
pub const MOST_RULES: usize = u16::MAX as usize;

/// What is wrong with a part of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "each is its sentence")]
pub enum Wrong {
    #[error("unknown field")]
    UnknownField,
    #[error("{0}")]
    Unreadable(String),
    #[error("missing")]
    Missing,
    #[error("{0} is not supported")]
    NotSupported(&'static str),
    #[error("unknown {what} {value:?}")]
    Unknown { what: &'static str, value: String },
    #[error("{has} {what}: the most are {most}")]
    TooMany { what: &'static str, has: usize, most: usize },
    #[error("a list that is there needs at least one item")]
    Empty,
    #[error("exactly one of its fields may be set, and {0} are")]
    NotOne(usize),
    #[error("{0} is not from 1 to 65535")]
    NoPort(i64),
    #[error("{0:?} is no name of a port")]
    NoPortName(String),
    #[error("endPort {end} is below port {port}")]
    EndBelowStart { port: u16, end: i32 },
    #[error("the range's end {end} is not above its start {start}")]
    NoRange { start: u16, end: u16 },
    #[error("endPort goes with a numeric port only")]
    EndWithoutNumber,
    #[error("a port's name means nothing for networks and nodes")]
    NameWithoutPod,
    #[error("{0:?} is no prefix (ADDRESS/LENGTH)")]
    NoPrefix(String),
    #[error("{hole} is not inside of {cidr}")]
    HoleOutside { hole: IpNetwork, cidr: IpNetwork },
    #[error("ipBlock stands alone in a peer")]
    BlockWithSelector,
    #[error("{0:?} is said twice")]
    Twice(String),
    #[error("{0:?} is no key of a label")]
    NoLabelKey(String),
    #[error("{0:?} is no value of a label")]
    NoLabelValue(String),
    #[error("{0} needs values")]
    NoValues(String),
    #[error("{0} takes no values")]
    Values(String),
    #[error("{0} is not from 0 to 1000")]
    NoPriority(i64),
}

/// What is wrong with a policy, and where: `spec.ingress[0].ports[1].endPort`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field.
    pub at: String,
    /// What is wrong with it.
    pub wrong: Wrong,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.wrong)
    }
}

/// What a policy's problems make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// There are none: it is taken up as it is written.
    Whole,
    /// Some rules of a ClusterNetworkPolicy are not taken up as written: an Accept matches nothing, a Deny or Pass denies
    /// everything, and a peer that is not supported is nobody.
    InPart,
    /// A NetworkPolicy isolates those it selects, and allows nothing.
    IsolatesOnly,
    /// Nothing of it is taken up.
    None,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Whole => "taken up as written",
            Self::InPart => {
                "taken up in part: the rules named here accept nothing, and deny everything if they are Deny or Pass"
            }
            Self::IsolatesOnly => "isolates those it selects and allows nothing",
            Self::None => "not taken up",
        })
    }
}

/// What is to be told of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whose problems they are.
    pub policy: PolicyKey,
    /// What they make of it.
    pub effect: Effect,
    /// All of them.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Whether something is asked for that is not supported.
    pub fn is_unsupported(&self) -> bool {
        self.problems.iter().any(|problem| matches!(problem.wrong, Wrong::NotSupported(_)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.policy, self.effect)?;
        self.problems.iter().try_for_each(|problem| write!(f, "; {problem}"))
    }
}

/// A policy object that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// As much of it as holds; `None` with [`Effect::None`].
    pub policy: Option<Policy>,
    /// It is to be recorded and not enforced (annotation `causeway.dev/audit`).
    pub audit: bool,
    /// What is to be told of it.
    pub report: Report,
}

/// Something that cannot be told which policy it is.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoPolicy {
    /// It is of no kind that is known here.
    #[error("{kind} of {api_version} is no policy that is known here")]
    Kind {
        /// Its group and version.
        api_version: String,
        /// Its kind.
        kind: String,
    },
    /// It has no name.
    #[error("a {0} without metadata.name")]
    Name(&'static str),
}

/// Reads a policy object.
pub fn read(document: &Value) -> Result<Read, NoPolicy> {
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
    let api_version = text(document, "apiVersion").unwrap_or_default();
    let kind = text(document, "kind").unwrap_or_default();
    let known = PolicyKind::ALL.into_iter().find(|known| known.as_str() == kind);
    let Some(kind) = known.filter(|known| known.api_version() == api_version) else {
        return Err(NoPolicy::Kind { api_version, kind });
    };
    let metadata = document.get("metadata").unwrap_or(&Value::Null);
    let name = text(metadata, "name").filter(|name| !name.is_empty());
    let name = name.ok_or(NoPolicy::Name(kind.as_str()))?;
    let namespace = match kind {
        PolicyKind::NetworkPolicy => text(metadata, "namespace").unwrap_or_else(|| "default".to_owned()),
        _ => String::new(),
    };
    let key = PolicyKey { kind, namespace, name };
    let uid = text(metadata, "uid").filter(|uid| !uid.is_empty()).unwrap_or_else(|| key.to_string());
    let spec = document.get("spec").unwrap_or(&Value::Null);
    let mut problems = Problems::default();
    let (policy, effect) = match kind {
        PolicyKind::NetworkPolicy => network_policy::read(key.clone(), uid, spec, &mut problems),
        PolicyKind::ClusterNetworkPolicy => {
            cluster_network_policy::read(key.clone(), uid, spec, &mut problems)
        }
        PolicyKind::AdminNetworkPolicy | PolicyKind::BaselineAdminNetworkPolicy => {
            problems.add("kind", Wrong::NotSupported("a kind that upstream has withdrawn"));
            (None, Effect::None)
        }
    };
    let audit = match metadata.get("annotations").and_then(|all| all.get(AUDIT)) {
        None => false,
        Some(Value::String(text)) if text == "true" => true,
        Some(Value::String(text)) if text == "false" => false,
        // Who wrote something else may have meant to enforce it.
        Some(other) => {
            let value = other.as_str().map_or_else(|| other.to_string(), str::to_owned);
            problems.add(format!("metadata.annotations[{AUDIT}]"), Wrong::Unknown { what: "value", value });
            false
        }
    };
    Ok(Read { policy, audit, report: Report { policy: key, effect, problems: problems.0 } })
}

/// What was found wrong so far.
#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, at: impl Into<String>, wrong: Wrong) {
        self.0.push(Problem { at: at.into(), wrong });
    }

    /// What a part is, unless something is wrong with it.
    fn take<T>(&mut self, at: &str, part: Result<T, Wrong>) -> Option<T> {
        part.map_err(|wrong| self.add(at, wrong)).ok()
    }

    /// Says of each field that it is unknown which is in a document but not in what was read of it. What is null is not
    /// there.
    fn unknown_fields(&mut self, at: &str, written: &Value, read: &Value) {
        match (written, read) {
            (Value::Object(written), Value::Object(read)) => {
                for (field, value) in written.iter().filter(|(_, value)| !value.is_null()) {
                    let at = format!("{at}.{field}");
                    match read.get(field) {
                        Some(read) => self.unknown_fields(&at, value, read),
                        None => self.add(at, Wrong::UnknownField),
                    }
                }
            }
            (Value::Array(written), Value::Array(read)) => {
                for (index, (written, read)) in written.iter().zip(read).enumerate() {
                    self.unknown_fields(&format!("{at}[{index}]"), written, read);
                }
            }
            _ => {}
        }
    }

    /// A document as a type that knows all its fields.
    fn typed<T: DeserializeOwned + serde::Serialize>(&mut self, at: &str, document: &Value) -> Option<T> {
        match serde_path_to_error::deserialize::<_, T>(document) {
            Ok(read) => {
                let again = serde_json::to_value(&read).unwrap_or(Value::Null);
                self.unknown_fields(at, document, &again);
                Some(read)
            }
            Err(error) => {
                let path = error.path().to_string();
                let at = if path == "." { at.to_owned() } else { format!("{at}.{path}") };
                self.add(at, Wrong::Unreadable(error.inner().to_string()));
                None
            }
        }
    }
}
