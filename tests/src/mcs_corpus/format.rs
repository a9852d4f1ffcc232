//! The file as it is written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::Result;
use causeway_model::PortProtocol;
use ipnetwork::IpNetwork;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::expect::Expect;

/// A file of cases.
#[derive(Clone, Debug, Deserialize)]
pub struct Corpus {
    pub(super) format: String,
    /// What every case begins with.
    pub topology: Topology,
    /// The cases.
    pub cases: Vec<Case>,
}

/// All clusters that a case may have.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// By name.
    pub clusters: BTreeMap<String, Value>,
}

/// A cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cluster {
    /// Its number.
    pub id: u32,
    /// Where it stands.
    pub region: Option<String>,
    /// Where its pods are.
    #[serde(rename = "podCIDRs")]
    pub pods: Vec<IpNetwork>,
    /// Where its services are.
    #[serde(rename = "serviceCIDRs", default)]
    pub services: Vec<IpNetwork>,
    /// Where its nodes are.
    #[serde(rename = "nodeCIDRs", default)]
    pub nodes: Vec<IpNetwork>,
}

/// One story.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its name.
    pub id: String,
    /// What it is about, in a word.
    pub kind: String,
    /// What its expectations are founded on.
    #[serde(default)]
    pub basis: Value,
    /// What no text settles.
    #[serde(default)]
    pub undefined: Value,
    /// Its members, but for those that join.
    pub clusters: Vec<String>,
    /// Who looks; absent: every member.
    pub observers: Option<Vec<String>>,
    /// Fields of clusters that are others in this case.
    #[serde(rename = "override", default)]
    pub overridden: BTreeMap<String, BTreeMap<String, Value>>,
    /// What is configured: `all`, and what a cluster has otherwise.
    #[serde(default)]
    pub config: BTreeMap<String, Settings>,
    /// Objects, by cluster.
    #[serde(default)]
    pub objects: BTreeMap<String, Vec<Value>>,
    /// What happens, as it is written: a case that cannot be read is one case.
    steps: Vec<Value>,
}

impl Case {
    /// What happens.
    pub fn steps(&self) -> Result<Vec<Step>> {
        use anyhow::Context;
        let read = |(number, step): (usize, &Value)| {
            Step::deserialize(step).with_context(|| format!("reading step {number}"))
        };
        self.steps.iter().enumerate().map(read).collect()
    }
}

/// What is configured in a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// Prefixes of cluster-set addresses.
    #[serde(rename = "clustersetCIDR")]
    pub clusterset: Option<Vec<IpNetwork>>,
    /// Whose exports hold.
    pub export_namespaces: Option<BTreeSet<String>>,
    /// Into which is imported.
    pub import_namespaces: Option<BTreeSet<String>>,
}

/// What is done, and what shall hold then.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What it is about.
    #[serde(default)]
    pub say: String,
    /// What is done, in order.
    #[serde(rename = "do", default)]
    pub acts: Vec<Act>,
    /// What shall hold.
    pub expect: Expect,
}

/// Something that is done.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
pub enum Act {
    Put {
        cluster: String,
        object: Value,
    },
    Delete {
        cluster: String,
        kind: String,
        #[serde(rename = "ref")]
        name: Name,
    },
    Export {
        cluster: String,
        object: Value,
    },
    Unexport {
        cluster: String,
        #[serde(rename = "ref")]
        name: Name,
    },
    Lose {
        cluster: String,
        age: Option<Age>,
    },
    Back {
        cluster: String,
    },
    Join {
        cluster: String,
        #[serde(default)]
        objects: Vec<Value>,
    },
    Leave {
        cluster: String,
    },
}

/// `namespace/name`; without a namespace `/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Name {
    /// The namespace; empty for an object that is in none.
    pub namespace: String,
    /// The name there.
    pub name: String,
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("{text:?} is no NAMESPACE/NAME")),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// How old what is known of a cluster is: `40s`, `2m`, `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Age(pub std::time::Duration);

impl TryFrom<String> for Age {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let invalid = || format!("{text:?} is no age");
        let unit = text.chars().next_back().ok_or_else(invalid)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            _ => return Err(invalid()),
        };
        let number: u64 = text[..text.len() - 1].parse().map_err(|_| invalid())?;
        Ok(Self(std::time::Duration::from_secs(number * seconds)))
    }
}

/// `name/PROTOCOL/number`; `-` for a port without a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct PortName {
    /// Its name; empty if it has none.
    pub name: String,
    /// The transport.
    pub protocol: PortProtocol,
    /// Its number.
    pub number: u16,
}

impl TryFrom<String> for PortName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let invalid = || format!("{text:?} is no NAME/PROTOCOL/NUMBER");
        let [name, protocol, number] = text.split('/').collect::<Vec<_>>()[..] else { return Err(invalid()) };
        let known = PortProtocol::ALL.into_iter().find(|it| it.as_str().to_uppercase() == protocol);
        Ok(Self {
            name: if name == "-" { String::new() } else { name.to_owned() },
            protocol: known.ok_or_else(invalid)?,
            number: number.parse().map_err(|_| invalid())?,
        })
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name.is_empty() { "-" } else { &self.name };
        write!(f, "{name}/{}/{}", self.protocol.as_str().to_uppercase(), self.number)
    }
}

/// Something that is asserted, or `?`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Want<T> {
    /// It may be anything.
    #[default]
    Free,
    /// It must be this.
    Is(T),
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Want<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) if text == "?" => Ok(Self::Free),
            value => serde_json::from_value(value).map(Self::Is).map_err(D::Error::custom),
        }
    }
}

impl Corpus {
    /// A cluster as it is in a case.
    pub fn cluster(&self, case: &Case, name: &str) -> Result<Cluster> {
        use anyhow::Context;
        let written = self.topology.clusters.get(name).with_context(|| format!("no cluster {name}"))?;
        let mut fields = written.as_object().with_context(|| format!("cluster {name} is no map"))?.clone();
        for (field, value) in case.overridden.get(name).into_iter().flatten() {
            fields.insert(field.clone(), value.clone());
        }
        Cluster::deserialize(Value::Object(fields)).with_context(|| format!("cluster {name}"))
    }
}
