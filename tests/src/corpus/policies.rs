//! The policy engine of every node of a case: its tables, and the slow evaluator beside them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};
use causeway_model::PodName;
use causeway_model::policy::{Direction, Traffic, Verdict};
use causeway_policy::{Change, Compiler, Policy, PolicyKey, Report, WorkloadId, World, read, slow};
use serde_json::Value;

use super::names::{node_id, pod_id};

/// Where pods are that have addresses of their own.
pub(crate) trait Homes {
    /// The names of all nodes.
    fn nodes(&self) -> Vec<String>;
    /// The node of a pod, by `namespace/name`.
    fn home(&self, pod: &str) -> Option<&str>;
}

/// A wrong way to compile a policy.
pub(crate) type Bend = Box<dyn Fn(Policy) -> Policy>;

/// The engines of all nodes. Each has the whole world, and the pods of its node as its own.
pub(crate) struct Engine {
    nodes: BTreeMap<String, Node>,
    bend: Option<Bend>,
}

struct Node {
    compiler: Compiler,
    /// What the slow evaluator reads: without a fault the same as the compiler's.
    truth: World,
}

/// What became of a connection on one side.
#[derive(Clone, Debug)]
pub(crate) struct Judged {
    /// The verdict of the tables.
    pub verdict: Verdict,
    /// The rule that gave it.
    pub rule: String,
    /// What the slow evaluator says, if it is something else.
    pub otherwise: Option<String>,
}

impl Engine {
    /// Engines that know nothing yet. With a bend, policies are compiled wrong.
    pub fn new(homes: &dyn Homes, bend: Option<Bend>) -> Result<Self> {
        let node = |name: String| {
            let id = node_id(&name)?;
            let node = Node { compiler: Compiler::new(id.clone(), 0), truth: World::new(id) };
            Ok((name, node))
        };
        Ok(Self { nodes: homes.nodes().into_iter().map(node).collect::<Result<_>>()?, bend })
    }

    /// Tells all engines what has changed.
    pub fn apply(&mut self, homes: &dyn Homes, changes: &[Change]) {
        self.tell(homes, changes, changes);
    }

    /// Tells them of policies that came, as they are written, and that went; what they say of them.
    pub fn apply_policies(
        &mut self,
        homes: &dyn Homes,
        applied: &[Value],
        deleted: &[PolicyKey],
    ) -> Result<Vec<Report>> {
        let change = |key: PolicyKey, policy: Option<Policy>| Change::Policy(key, policy);
        let gone: Vec<_> = deleted.iter().map(|key| change(key.clone(), None)).collect();
        let (mut compiled, mut truth, mut reports) = (gone.clone(), gone, Vec::new());
        for document in applied {
            let right = read(document)?;
            let key = right.report.policy.clone();
            let bent = right.policy.clone().map(|policy| match &self.bend {
                Some(bend) => bend(policy),
                None => policy,
            });
            compiled.push(change(key.clone(), bent));
            truth.push(change(key, right.policy));
            reports.push(right.report);
        }
        self.tell(homes, &compiled, &truth);
        Ok(reports)
    }

    fn tell(&mut self, homes: &dyn Homes, compiled: &[Change], truth: &[Change]) {
        for (name, node) in &mut self.nodes {
            let own = |change: &Change| {
                let mut change = change.clone();
                if let Change::Workload(id, Some(workload)) = &mut change {
                    workload.local = is_on(homes, id, name);
                }
                change
            };
            node.compiler.apply(compiled.iter().map(own));
            truth.iter().map(own).for_each(|change| node.truth.apply(change));
        }
    }

    /// Judges a new connection where it leaves or reaches a pod.
    pub fn judge(
        &self,
        homes: &dyn Homes,
        pod: &str,
        direction: Direction,
        peer: IpAddr,
        traffic: Traffic,
    ) -> Result<Judged> {
        let node = homes.home(pod).and_then(|name| self.nodes.get(name));
        let node = node.with_context(|| format!("no node has pod {pod}"))?;
        let id = pod_id(pod)?;
        let decision = node.compiler.decide(&id, direction, peer, traffic);
        let decision = decision.with_context(|| format!("{pod} is no endpoint of its node"))?;
        let book = node.compiler.book();
        let rules = &book.rules;
        let rule = book.id(decision.rule);
        let rule = rule.map_or_else(|| format!("{:?}", decision.rule), |rule| rule.to_string());
        let mut otherwise = None;
        if self.bend.is_none() {
            let slow = slow::judge(&node.truth, &id, direction, peer, traffic);
            let (verdict, reason) =
                slow.with_context(|| format!("{pod} is no endpoint to the slow evaluator"))?;
            let same = verdict == decision.verdict && reason.is(decision.rule, rules);
            otherwise = (!same).then(|| format!("{verdict} by {reason:?}"));
        }
        Ok(Judged { verdict: decision.verdict, rule, otherwise })
    }
}

/// Whether a workload is a pod of a node, with addresses of its own.
fn is_on(homes: &dyn Homes, id: &WorkloadId, node: &str) -> bool {
    let WorkloadId::Pod(_, PodName { namespace, name }) = id else { return false };
    homes.home(&format!("{namespace}/{name}")) == Some(node)
}
