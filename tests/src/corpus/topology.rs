//! Nodes, namespaces and pods as files of cases write them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};
use causeway_model::PortProtocol;
use ipnetwork::IpNetwork;
use serde::Deserialize;

/// A node.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// The addresses that it is known by.
    pub ips: Vec<IpAddr>,
    /// More addresses that it has.
    #[serde(default)]
    pub second_ips: Vec<IpAddr>,
    /// The prefixes of its pods' addresses, where the file names them.
    #[serde(default, rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNetwork>,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// Its labels; the one with its name is implied.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pod {
    /// `namespace/name`.
    pub id: String,
    /// Its node's name.
    pub node: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its addresses; none of its own with `hostNetwork`.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// It has its node's addresses.
    #[serde(default)]
    pub host_network: bool,
    /// The ports that it serves.
    #[serde(default)]
    pub ports: Vec<Port>,
}

/// A port that somebody serves.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its number.
    pub port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: String,
}

/// A protocol by its name.
pub(crate) fn protocol(name: &str) -> Result<PortProtocol> {
    let found = PortProtocol::ALL.into_iter().find(|protocol| protocol.as_str().eq_ignore_ascii_case(name));
    found.with_context(|| format!("unknown protocol {name:?}"))
}
