//! The policy engine of every node of a case: its tables, and the slow evaluator beside them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};
use causeway_model::policy::{Direction, Traffic, Verdict};
use causeway_policy::{Change, Compiler, Policy, PolicyKey, Report, World, read, slow};
use serde_json::Value;

use super::fault::Fault;
use super::world::{Stage, node_id, pod_id};

/// The engines of all nodes. Each has the whole world, and the pods of its node as its own.
pub struct Engine {
    nodes: BTreeMap<String, Node>,
    fault: Option<Fault>,
}

struct Node {
    compiler: Compiler,
    /// What the slow evaluator reads: without a fault the same as the compiler's.
    truth: World,
}

/// What became of a connection on one side.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The verdict of the tables.
    pub verdict: Verdict,
    /// The rule that gave it.
    pub rule: String,
    /// What the slow evaluator says, if it is something else.
    pub otherwise: Option<String>,
}

impl Engine {
    /// Engines that know nothing yet. With a fault, policies are compiled wrong.
    pub(super) fn new(stage: &Stage, fault: Option<Fault>) -> Result<Self> {
        let node = |name: &str| {
            let id = node_id(name)?;
            let node = Node { compiler: Compiler::new(id.clone()), truth: World::new(id) };
            Ok((name.to_owned(), node))
        };
        Ok(Self { nodes: stage.nodes().map(node).collect::<Result<_>>()?, fault })
    }

    /// Tells all engines what has changed.
    pub(super) fn apply(&mut self, stage: &Stage, changes: &[Change]) {
        self.tell(stage, changes, changes);
    }

    /// Tells them of policies that came, as they are written, and that went; what they say of them.
    pub(super) fn apply_policies(
        &mut self,
        stage: &Stage,
        applied: &[Value],
        deleted: &[PolicyKey],
    ) -> Result<Vec<Report>> {
        let change = |key: PolicyKey, policy: Option<Policy>| Change::Policy(key, policy);
        let gone: Vec<_> = deleted.iter().map(|key| change(key.clone(), None)).collect();
        let (mut compiled, mut truth, mut reports) = (gone.clone(), gone, Vec::new());
        for document in applied {
            let right = read(document)?;
            let key = right.report.policy.clone();
            let bent = right.policy.clone().map(|policy| match self.fault {
                Some(fault) => fault.bend(policy),
                None => policy,
            });
            compiled.push(change(key.clone(), bent));
            truth.push(change(key, right.policy));
            reports.push(right.report);
        }
        self.tell(stage, &compiled, &truth);
        Ok(reports)
    }

    fn tell(&mut self, stage: &Stage, compiled: &[Change], truth: &[Change]) {
        for (name, node) in &mut self.nodes {
            let own = |change: &Change| {
                let mut change = change.clone();
                if let Change::Workload(id, Some(workload)) = &mut change {
                    workload.local = stage.is_on(id, name);
                }
                change
            };
            node.compiler.apply(compiled.iter().map(own));
            truth.iter().map(own).for_each(|change| node.truth.apply(change));
        }
    }

    /// Judges a new connection where it leaves or reaches a pod.
    pub(super) fn judge(
        &self,
        stage: &Stage,
        pod: &str,
        direction: Direction,
        peer: IpAddr,
        traffic: Traffic,
    ) -> Result<Judged> {
        let node = stage.node_of_pod(pod).and_then(|name| self.nodes.get(name));
        let node = node.with_context(|| format!("no node has pod {pod}"))?;
        let id = pod_id(pod)?;
        let decision = node.compiler.decide(&id, direction, peer, traffic);
        let decision = decision.with_context(|| format!("{pod} is no endpoint of its node"))?;
        let rules = &node.compiler.book().rules;
        let rule =
            rules.get(&decision.rule).map_or_else(|| format!("{:?}", decision.rule), ToString::to_string);
        let mut otherwise = None;
        if self.fault.is_none() {
            let slow = slow::judge(&node.truth, &id, direction, peer, traffic);
            let (verdict, reason) =
                slow.with_context(|| format!("{pod} is no endpoint to the slow evaluator"))?;
            let same = verdict == decision.verdict && reason.is(decision.rule, rules);
            otherwise = (!same).then(|| format!("{verdict} by {reason:?}"));
        }
        Ok(Judged { verdict: decision.verdict, rule, otherwise })
    }
}
