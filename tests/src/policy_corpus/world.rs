//! The topology of a case as it changes, and the changes as the policy engine is told them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use causeway_policy::{Change, NodeFacts, PolicyKey, PolicyKind};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::format::Topology;
use crate::corpus::ground::Scene;
use crate::corpus::names::{namespace_id, node_id, pod_id, workload};
use crate::corpus::policies::Homes;
use crate::corpus::{Namespace, Node, Pod};

/// Everything that exists in a case right now.
pub(super) struct Stage {
    topology: Topology,
    pods: BTreeMap<String, Pod>,
    policies: BTreeSet<PolicyKey>,
}

/// What an act changes, and the policies that it was given.
#[derive(Default)]
pub(super) struct Act {
    pub changes: Vec<Change>,
    /// Policies that come, as they are written.
    pub applied: Vec<Value>,
    /// Policies that go.
    pub deleted: Vec<PolicyKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Relabel {
    #[serde(alias = "namespace", alias = "node")]
    pod: String,
    #[serde(default)]
    set: BTreeMap<String, String>,
    #[serde(default)]
    unset: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Delete {
    kind: String,
    #[serde(default)]
    namespace: Option<String>,
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AddNamespace {
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl Relabel {
    fn apply(&self, labels: &mut BTreeMap<String, String>) {
        labels.retain(|label, _| !self.unset.contains(label));
        labels.extend(self.set.clone());
    }
}

fn typed<T: DeserializeOwned>(act: &str, value: &Value) -> Result<T> {
    serde_json::from_value(value.clone()).with_context(|| format!("{act}: {value}"))
}

impl Homes for Stage {
    fn nodes(&self) -> Vec<String> {
        self.topology.nodes.keys().cloned().collect()
    }

    fn home(&self, pod: &str) -> Option<&str> {
        self.node_of_pod(pod)
    }
}

impl Stage {
    /// The bare topology, and how it came about.
    pub fn new(topology: &Topology) -> Result<(Self, Vec<Change>)> {
        let mut stage = Self { topology: topology.clone(), pods: BTreeMap::new(), policies: BTreeSet::new() };
        let mut changes = Vec::new();
        for (name, Node { ips, labels, .. }) in &topology.nodes {
            let facts = NodeFacts { labels: labels.clone(), addresses: ips.iter().copied().collect() };
            changes.push(Change::Node(node_id(name)?, Some(facts)));
        }
        for (name, Namespace { labels }) in &topology.namespaces {
            changes.push(Change::Namespace(namespace_id(name)?, Some(labels.clone())));
        }
        for pod in &topology.pods {
            changes.push(stage.put(pod.clone())?);
        }
        Ok((stage, changes))
    }

    /// All of it as objects tell it, with these policies.
    pub fn scene(&self, policies: &BTreeMap<PolicyKey, Value>) -> Scene<'_> {
        Scene {
            nodes: &self.topology.nodes,
            namespaces: &self.topology.namespaces,
            pods: &self.pods,
            said: BTreeMap::new(),
            cluster: Value::Null,
            others: policies.values().cloned().collect(),
        }
    }

    /// All pods, by `namespace/name`.
    pub fn pods(&self) -> &BTreeMap<String, Pod> {
        &self.pods
    }

    /// The node of a pod that has addresses of its own.
    pub fn node_of_pod(&self, name: &str) -> Option<&str> {
        self.pods.get(name).filter(|pod| !pod.host_network).map(|pod| pod.node.as_str())
    }

    /// The address of an endpoint: `namespace/name`, `node:NAME` or `ext:NAME`.
    pub fn address(&self, endpoint: &str, family: u8) -> Option<IpAddr> {
        let ips = if let Some(name) = endpoint.strip_prefix("node:") {
            &self.topology.nodes.get(name)?.ips
        } else if let Some(name) = endpoint.strip_prefix("ext:") {
            &self.topology.externals.get(name)?.ips
        } else {
            let pod = self.pods.get(endpoint)?;
            if pod.host_network { &self.topology.nodes.get(&pod.node)?.ips } else { &pod.ips }
        };
        ips.iter().copied().find(|ip| ip.is_ipv4() == (family == 4))
    }

    fn put(&mut self, pod: Pod) -> Result<Change> {
        let node = self.topology.nodes.get(&pod.node);
        let node = node.with_context(|| format!("pod {} is on an unknown node {}", pod.id, pod.node))?;
        let workload = workload(&pod, node)?;
        let id = pod_id(&pod.id)?;
        self.pods.insert(pod.id.clone(), pod);
        Ok(Change::Workload(id, Some(workload)))
    }

    /// One line of `do`.
    pub fn act(&mut self, line: &BTreeMap<String, Value>) -> Result<Act> {
        let mut act = Act::default();
        for (name, value) in line {
            self.perform(name, value, &mut act)?;
        }
        Ok(act)
    }

    fn perform(&mut self, name: &str, value: &Value, act: &mut Act) -> Result<()> {
        match name {
            "apply" => match value {
                Value::Array(many) => act.applied.extend(many.iter().cloned()),
                one => act.applied.push(one.clone()),
            },
            "delete" => {
                let Delete { kind, namespace, name } = typed(name, value)?;
                let kind = PolicyKind::ALL.into_iter().find(|known| known.as_str() == kind);
                let kind = kind.with_context(|| format!("delete of an unknown kind: {value}"))?;
                act.deleted.push(PolicyKey { kind, namespace: namespace.unwrap_or_default(), name });
            }
            "label_pod" => {
                let change: Relabel = typed(name, value)?;
                let pod = self.pods.get(&change.pod).with_context(|| format!("no pod {}", change.pod))?;
                let mut pod = pod.clone();
                change.apply(&mut pod.labels);
                act.changes.push(self.put(pod)?);
            }
            "label_namespace" => {
                let change: Relabel = typed(name, value)?;
                let namespace = self.topology.namespaces.entry(change.pod.clone()).or_default();
                change.apply(&mut namespace.labels);
                let labels = Some(namespace.labels.clone());
                act.changes.push(Change::Namespace(namespace_id(&change.pod)?, labels));
            }
            "label_node" => {
                let change: Relabel = typed(name, value)?;
                let node = self.topology.nodes.get_mut(&change.pod);
                let node = node.with_context(|| format!("no node {}", change.pod))?;
                change.apply(&mut node.labels);
                let addresses = node.ips.iter().copied().collect();
                let facts = NodeFacts { labels: node.labels.clone(), addresses };
                act.changes.push(Change::Node(node_id(&change.pod)?, Some(facts)));
            }
            "add_pod" => act.changes.push(self.put(typed(name, value)?)?),
            "delete_pod" => {
                let id: String = typed(name, value)?;
                self.pods.remove(&id).with_context(|| format!("no pod {id} to delete"))?;
                act.changes.push(Change::Workload(pod_id(&id)?, None));
            }
            "add_namespace" => {
                let AddNamespace { name, labels } = typed(name, value)?;
                self.topology.namespaces.insert(name.clone(), Namespace { labels: labels.clone() });
                act.changes.push(Change::Namespace(namespace_id(&name)?, Some(labels)));
            }
            "delete_namespace" => {
                let name: String = typed(name, value)?;
                let inside =
                    |id: &&String| id.split_once('/').is_some_and(|(namespace, _)| namespace == name);
                let pods: Vec<_> = self.pods.keys().filter(inside).cloned().collect();
                for id in pods {
                    self.pods.remove(&id);
                    act.changes.push(Change::Workload(pod_id(&id)?, None));
                }
                act.deleted.extend(self.policies.iter().filter(|key| key.namespace == name).cloned());
                self.topology.namespaces.remove(&name);
                act.changes.push(Change::Namespace(namespace_id(&name)?, None));
            }
            other => bail!("unknown act {other:?}"),
        }
        Ok(())
    }

    /// Notes a policy that came.
    pub fn note(&mut self, policy: &PolicyKey) {
        self.policies.insert(policy.clone());
    }
}
