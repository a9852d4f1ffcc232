//! What policies say of connections, after services have had their say.

use std::net::IpAddr;

use anyhow::{Context, Result};
use causeway_model::policy::{Direction, Traffic, Verdict};
use causeway_model::service::Backend;
use causeway_policy::{Change, NodeFacts, PolicyKey, PolicyKind};

use super::super::world::{Changed, Party, Stage, own};
use super::calls::Call;
use crate::corpus::names::{namespace_id, node_id, pod_id, workload};
use crate::corpus::policies::{Engine, Homes};

/// The policy engines of all nodes; none before the first case.
#[derive(Default)]
pub(super) struct Policies {
    engine: Option<Engine>,
}

impl Homes for Stage {
    fn nodes(&self) -> Vec<String> {
        self.topology().nodes.keys().cloned().collect()
    }

    fn home(&self, pod: &str) -> Option<&str> {
        self.pods().get(pod).filter(|pod| !pod.host_network).map(|pod| pod.node.as_str())
    }
}

impl Policies {
    /// What nodes know of a case that begins.
    pub fn new(stage: &Stage) -> Result<Self> {
        let topology = stage.topology();
        let nodes = topology.nodes.keys().map(|name| Changed::Node(name.clone()));
        let namespaces = topology.namespaces.keys().map(|name| Changed::Namespace(name.clone()));
        let pods = stage.pods().keys().map(|id| Changed::Pod(id.clone()));
        let all: Vec<_> = nodes.chain(namespaces).chain(pods).collect();
        let mut policies = Self { engine: Some(Engine::new(stage, None)?) };
        policies.take(stage, &all)?;
        Ok(policies)
    }

    /// Takes up what has changed; the policies of it that are not supported.
    pub fn take(&mut self, stage: &Stage, changed: &[Changed]) -> Result<Vec<String>> {
        let engine = self.engine.as_mut().context("no case has begun")?;
        let (mut changes, mut applied, mut deleted) = (Vec::new(), Vec::new(), Vec::new());
        for one in changed {
            match one {
                Changed::Node(name) => changes.push(node_change(stage, name)?),
                Changed::Namespace(name) => {
                    let labels = stage.topology().namespaces.get(name).map(|one| one.labels.clone());
                    changes.push(Change::Namespace(namespace_id(name)?, labels));
                }
                Changed::Pod(id) => {
                    let node = |pod: &str| stage.topology().nodes.get(pod);
                    let pod = stage.pods().get(id).and_then(|pod| Some((pod, node(&pod.node)?)));
                    let workload = pod.map(|(pod, node)| workload(pod, node)).transpose()?;
                    changes.push(Change::Workload(pod_id(id)?, workload));
                }
                Changed::Object(name) => {
                    let kind = PolicyKind::ALL.into_iter().find(|kind| kind.as_str() == name.kind);
                    match (kind, stage.object(name)) {
                        (Some(_), Some(object)) => applied.push(object.clone()),
                        (Some(kind), None) => {
                            let (namespace, name) = (name.namespace.clone(), name.name.clone());
                            deleted.push(PolicyKey { kind, namespace, name });
                        }
                        (None, _) => {}
                    }
                }
            }
        }
        engine.apply(stage, &changes);
        let reports = engine.apply_policies(stage, &applied, &deleted)?;
        Ok(reports.iter().filter(|report| report.is_unsupported()).map(|r| r.policy.to_string()).collect())
    }

    /// Whether the client or the one who is asked must not, as they are after translation.
    pub fn denies(
        &self,
        stage: &Stage,
        call: &Call,
        asked: &Party,
        source: IpAddr,
        to: Backend,
    ) -> Result<bool> {
        let engine = self.engine.as_ref().context("no case has begun")?;
        let traffic = Traffic::To(call.protocol, to.port);
        let ends = [(&call.client, Direction::Egress, to.address), (asked, Direction::Ingress, source)];
        for (end, direction, peer) in ends {
            let Party::Pod(id) = end else { continue };
            if self.is_own_node(stage, call, end, direction, source) {
                continue;
            }
            if engine.judge(stage, id, direction, peer, traffic)?.verdict == Verdict::Deny {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a pod is asked by its own node: what that made itself always comes in.
    fn is_own_node(
        &self,
        stage: &Stage,
        call: &Call,
        pod: &Party,
        direction: Direction,
        source: IpAddr,
    ) -> bool {
        let home = stage.node_of(pod);
        let own_process = matches!(&call.client, Party::Node(name) if Some(name.as_str()) == home);
        direction == Direction::Ingress && own_process && Some(source) == Some(call.source)
    }
}

fn node_change(stage: &Stage, name: &str) -> Result<Change> {
    let node = stage.topology().nodes.get(name).with_context(|| format!("no node {name}"))?;
    let facts = NodeFacts { labels: node.labels.clone(), addresses: own(node).collect() };
    Ok(Change::Node(node_id(name)?, Some(facts)))
}
