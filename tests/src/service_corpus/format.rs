//! The file as it is written. What is not known here is an error that names it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use causeway_model::Family;
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::corpus::{Namespace, Node, Pod, Port};

/// A file of cases.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Corpus {
    pub(super) format: String,
    #[serde(default, rename = "legend")]
    _legend: Value,
    #[serde(default, rename = "reading")]
    _reading: Value,
    #[serde(default, rename = "sources")]
    _sources: Value,
    #[serde(default, rename = "note")]
    _note: Value,
    /// What every case begins with.
    pub topology: Topology,
    /// The cases.
    pub cases: Vec<Case>,
}

/// Nodes, namespaces, pods, and who is outside.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// Namespaces by name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Where services' own addresses are from.
    pub service_cidrs: Vec<IpNetwork>,
    /// The ports that services have on nodes.
    #[serde(default)]
    pub node_port_range: String,
    /// Where services' other addresses are from.
    #[serde(default)]
    pub outside_service_addresses: Vec<IpNetwork>,
    /// Pods.
    pub pods: Vec<Pod>,
    /// Hosts outside of the cluster, by name.
    #[serde(default)]
    pub outside: BTreeMap<String, Host>,
}

/// A host outside of the cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// How many more it has: "the next 23 addresses of each family are its too".
    #[serde(default)]
    pub more: Option<More>,
    /// The ports that it serves.
    #[serde(default)]
    pub ports: Vec<Port>,
}

/// So many addresses of each family after the first.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct More(pub u32);

impl TryFrom<String> for More {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        let number = text.strip_prefix("the next ").and_then(|rest| rest.split_once(' '));
        match number {
            Some((number, "addresses of each family are its too")) => {
                Ok(Self(number.parse().with_context(|| format!("the number in {text:?}"))?))
            }
            _ => bail!("{text:?} does not say how many more addresses there are"),
        }
    }
}

impl Host {
    /// Its addresses of one family, in order.
    pub fn addresses(&self, family: Family) -> Vec<IpAddr> {
        let Some(first) = of_family(&self.ips, family) else { return Vec::new() };
        let more = self.more.map_or(0, |more| more.0);
        let own = self.ips.iter().copied().filter(|ip| Family::of(*ip) == family);
        own.chain((1..=more).map(|n| after(first, n))).collect()
    }
}

/// The address so many after another.
fn after(address: IpAddr, by: u32) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4((u32::from(address) + by).into()),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) + u128::from(by)).into()),
    }
}

/// The first address of a family.
pub(super) fn of_family(ips: &[IpAddr], family: Family) -> Option<IpAddr> {
    ips.iter().copied().find(|ip| Family::of(*ip) == family)
}

/// One story.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its name.
    pub id: String,
    /// What it is about, in a word.
    pub kind: String,
    /// What it is about.
    pub title: String,
    /// Where that is written.
    #[serde(default, rename = "ref")]
    pub reference: String,
    /// How its slices came about.
    #[serde(default)]
    pub slices: String,
    /// What happens, as it is written: a case that cannot be read is one case.
    steps: Vec<Value>,
}

impl Case {
    /// What happens.
    pub fn steps(&self) -> Result<Vec<Step>> {
        let read = |(number, step): (usize, &Value)| {
            serde_json::from_value(step.clone()).with_context(|| format!("reading step {number}"))
        };
        let steps: Vec<Step> = self.steps.iter().enumerate().map(read).collect::<Result<_>>()?;
        let mut known = BTreeSet::new();
        for probe in steps.iter().flat_map(|step| &step.probes) {
            ensure!(known.insert(&probe.id), "two probes are called {}", probe.id);
            ensure!(
                !(probe.flow.is_some() && probe.resume.is_some()),
                "probe {} opens and resumes",
                probe.id
            );
        }
        Ok(steps)
    }
}

/// What is done, and what shall hold then.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What is done, in order.
    #[serde(rename = "do", default)]
    pub acts: Vec<BTreeMap<String, Value>>,
    /// What is asked then.
    #[serde(default)]
    pub probes: Vec<Probe>,
}

/// Something that is done.
#[derive(Clone, Debug)]
pub enum Act {
    /// Objects come, or change.
    Apply(Vec<Value>),
    /// Objects go.
    Delete(Vec<Name>),
    /// Pods change.
    PodState(BTreeMap<String, PodChange>),
    /// So many seconds pass.
    Wait(f64),
}

impl Step {
    /// What is done, in order.
    pub fn acts(&self) -> Result<Vec<Act>> {
        let act = |(name, value): (&String, &Value)| {
            Ok(match name.as_str() {
                "apply" => Act::Apply(typed(name, value)?),
                "delete" => Act::Delete(typed(name, value)?),
                "pod_state" => Act::PodState(typed(name, value)?),
                "wait" => Act::Wait(typed(name, value)?),
                other => bail!("unknown act {other:?}"),
            })
        };
        self.acts.iter().flatten().map(act).collect()
    }
}

fn typed<T: DeserializeOwned>(act: &str, value: &Value) -> Result<T> {
    serde_json::from_value(value.clone()).with_context(|| format!("{act}: {value}"))
}

/// An object's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Name {
    /// Its kind.
    pub kind: String,
    /// Its namespace; empty for objects of none.
    #[serde(default)]
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What becomes of a pod.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodChange {
    /// Its Ready condition.
    pub ready: Option<bool>,
    /// Its deletion is under way.
    pub terminating: Option<bool>,
    /// It is removed.
    #[serde(default)]
    pub gone: bool,
}

/// What kind of question a probe is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Connections.
    #[default]
    Connect,
    /// HTTP GET of a health check.
    Health,
    /// Echo.
    Ping,
}

/// Something that is asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Its name.
    pub id: String,
    /// `pod:NAMESPACE/NAME`, `node:NAME` or `out:NAME`.
    pub from: String,
    /// Which address is asked.
    pub to: IpAddr,
    /// TCP, UDP or SCTP.
    pub proto: Option<String>,
    /// Which port.
    pub port: Option<u16>,
    /// How many connections, or how often on one.
    #[serde(default = "one")]
    pub count: usize,
    /// What kind of address it is.
    #[serde(default)]
    pub at: String,
    /// The node through which a host outside routes the address.
    pub via: Option<String>,
    /// What is asked.
    #[serde(default)]
    pub kind: Kind,
    /// How many addresses the host asks from.
    pub clients: Option<usize>,
    /// The probe whose backend is asked for again.
    pub with: Option<String>,
    /// Keeps the connection under this name.
    pub flow: Option<String>,
    /// Asks on the connection of this name.
    pub resume: Option<String>,
    /// There are shares to look at.
    #[serde(default)]
    pub share: bool,
    /// What shall come of it.
    pub expect: Expect,
}

fn one() -> usize {
    1
}

/// What shall come of a probe.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// What becomes of it: any of these.
    pub outcome: Many<Fate>,
    /// What kube-proxy does.
    #[serde(default)]
    pub parity: String,
    /// Why nothing is asserted.
    #[serde(default)]
    pub why: String,
    /// What is allowed where nothing is asserted.
    #[serde(default)]
    pub permitted: Vec<Fate>,
    /// Who may answer, as `NAME:PORT`.
    #[serde(default)]
    pub backends: BTreeSet<String>,
    /// Who must not, by policy.
    #[serde(default)]
    pub denied: BTreeSet<String>,
    /// Whom they see.
    pub source: Option<Source>,
    /// Whom they see with kube-proxy.
    #[serde(default)]
    pub parity_source: Value,
    /// `all`: each of the backends.
    pub spread: Option<Spread>,
    /// The least and the most connections of each backend.
    pub share: Option<(usize, usize)>,
    /// One backend answers all.
    #[serde(default)]
    pub sticky: bool,
    /// One backend answers all of a client.
    #[serde(default)]
    pub sticky_per_client: bool,
    /// So many backends are seen.
    pub distinct_at_least: Option<usize>,
    /// The backend of this earlier probe answers.
    pub same_as: Option<String>,
    /// A flow goes to one of these if it may not stay.
    #[serde(default)]
    pub to: BTreeSet<String>,
    /// A flow that was on one of these still is.
    #[serde(default)]
    pub stay: BTreeSet<String>,
    /// A flow that was on one of these may still be.
    #[serde(default)]
    pub may_stay: BTreeSet<String>,
    /// The status of a health check.
    pub http: Option<u16>,
    /// The local endpoints that it tells.
    pub local: Option<u64>,
}

/// One or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Many<T> {
    /// One.
    One(T),
    /// Any of them.
    Any(Vec<T>),
}

impl<T> Many<T> {
    /// All of them.
    pub fn all(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Any(many) => many,
        }
    }
}

/// What becomes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// A backend answers.
    Served,
    /// RST, ABORT or ICMP port unreachable, at once.
    Refused,
    /// No answer.
    Dropped,
    /// Not ours: never a backend.
    Unserved,
    /// No connection, by policy.
    Denied,
    /// Translated to somebody who does not answer.
    Dead,
    /// Not asserted.
    #[serde(rename = "?")]
    Open,
}

/// How connections are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spread {
    /// Over each of the backends.
    All,
}

/// Whom backends see.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Source {
    /// All of them.
    All(Many<Seen>),
    /// Each.
    By(BTreeMap<String, Many<Seen>>),
}

/// Whom a backend sees.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Seen {
    /// The client's own address.
    Client,
    /// An address of this node.
    Node(String),
    /// Not the client itself.
    NotClient,
    /// Whomever.
    Any,
}

impl TryFrom<String> for Seen {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        Ok(match text.as_str() {
            "client" => Self::Client,
            "not_client" => Self::NotClient,
            "any" => Self::Any,
            _ => {
                Self::Node(text.strip_prefix("node:").with_context(|| format!("source {text:?}"))?.to_owned())
            }
        })
    }
}
