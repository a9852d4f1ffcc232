//! The file as it is written.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::corpus::{Namespace, Node, Pod};

/// A file of cases.
#[derive(Clone, Debug, Deserialize)]
pub struct Corpus {
    pub(super) format: String,
    /// What every case begins with.
    pub topology: Topology,
    /// Sources and destinations of grids, where a case names no others.
    pub default_endpoints: Vec<String>,
    /// The cases.
    pub cases: Vec<Case>,
}

/// Nodes, namespaces, pods, and who is outside.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Topology {
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// Namespaces by name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Pods.
    pub pods: Vec<Pod>,
    /// Hosts outside of the cluster, by name.
    #[serde(default)]
    pub externals: BTreeMap<String, External>,
}

/// A host outside of the cluster.
#[derive(Clone, Debug, Deserialize)]
pub struct External {
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

/// One story.
#[derive(Clone, Debug, Deserialize)]
pub struct Case {
    /// Its name.
    pub id: String,
    /// What it is about, in a word.
    pub kind: String,
    /// What it is about.
    pub title: String,
    /// Destinations of its grids in their order, where they are not the default ones.
    pub endpoints: Option<Vec<String>>,
    /// What happens, as it is written: a case that cannot be read is one case.
    steps: Vec<Value>,
}

impl Case {
    /// What happens, as it is written.
    pub(super) fn raw_steps(&self) -> &[Value] {
        &self.steps
    }

    /// The same case under another name, with other steps.
    pub(super) fn told(&self, id: String, steps: Vec<Value>) -> Self {
        Self { id, steps, ..self.clone() }
    }

    /// What happens.
    pub fn steps(&self) -> Result<Vec<Step>> {
        let read = |(number, step): (usize, &Value)| {
            serde_json::from_value(step.clone()).with_context(|| format!("reading step {number}"))
        };
        self.steps.iter().enumerate().map(read).collect()
    }
}

/// What is done, and what shall hold then.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What is done, in order, before the policy settles.
    #[serde(rename = "do", default)]
    pub acts: Vec<BTreeMap<String, Value>>,
    /// Who reaches whom.
    #[serde(default)]
    pub expect: Vec<Grid>,
    /// What becomes of single packets.
    #[serde(default)]
    pub packets: Vec<Packet>,
    /// An API server refuses these objects: nothing may open.
    #[serde(default)]
    pub rejected: bool,
    /// Which flows the step's author asked for; the grids name them.
    #[serde(default)]
    pub probe: Value,
}

/// Flows that share a grid.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// `family/protocol/port`.
    pub flows: Vec<Flow>,
    /// For each source a letter per destination: 1 allowed, 0 denied, `?` and `-` not asserted.
    pub grid: BTreeMap<String, String>,
}

/// What kind of connection it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Flow {
    /// 4 or 6.
    pub family: u8,
    /// TCP, UDP or SCTP.
    pub protocol: String,
    /// The destination's port.
    pub port: u16,
}

impl TryFrom<String> for Flow {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        let parts: Vec<_> = text.split('/').collect();
        let [family @ ("4" | "6"), protocol @ ("TCP" | "UDP" | "SCTP"), port] = parts[..] else {
            bail!("{text:?} is no FAMILY/PROTOCOL/PORT");
        };
        let family = if family == "4" { 4 } else { 6 };
        let port = port.parse().with_context(|| format!("port of {text:?}"))?;
        Ok(Self { family, protocol: protocol.to_owned(), port })
    }
}

impl std::fmt::Display for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.family, self.protocol, self.port)
    }
}

/// A packet, after a connection was opened or without.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packet {
    /// Its name.
    pub id: String,
    /// The packet.
    pub packet: Tuple,
    /// The connection that was opened before.
    pub open: Option<Tuple>,
    /// `allow`, `deny` or `any`.
    pub want: String,
}

/// The ends of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuple {
    /// The source's name.
    pub src: String,
    /// The destination's name.
    pub dst: String,
    /// TCP, UDP or SCTP.
    pub proto: String,
    /// The source's port.
    pub sport: u16,
    /// The destination's port.
    pub dport: u16,
    /// 4 or 6.
    #[serde(default = "four")]
    pub family: u8,
}

fn four() -> u8 {
    4
}

impl Corpus {
    /// The pods that come in some step of some case.
    pub(super) fn added_pods(&self) -> impl Iterator<Item = Pod> + '_ {
        let steps = self.cases.iter().filter_map(|case| case.steps().ok()).flatten();
        let acts = steps.flat_map(|step| step.acts).filter_map(|mut act| act.remove("add_pod"));
        acts.filter_map(|pod| serde_json::from_value(pod).ok())
    }
}
