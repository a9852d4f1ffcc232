use std::net::IpAddr;

use causeway_model::NodeId;
use causeway_model::policy::{Direction, RuleId, Traffic, Verdict};
use causeway_policy::{Change, Compiler, Moved, Read, WorkloadId};

use crate::sources::World;

/// The compiler of what is enforced and, where a policy is audited, one of everything: what it would deny is recorded.
pub(super) struct Compilers {
    enforced: Compiler,
    audited: Option<Compiler>,
}

impl Compilers {
    pub(super) fn new(node: NodeId, epoch: u32) -> Self {
        Self { enforced: Compiler::new(node, epoch), audited: None }
    }

    /// What is enforced.
    pub(super) fn enforced(&self) -> &Compiler {
        &self.enforced
    }

    /// Takes up changes of everything but policies; what of the enforced has moved.
    pub(super) fn apply(&mut self, changes: Vec<Change>) -> Moved {
        if let Some(audited) = &mut self.audited {
            audited.apply(changes.clone());
        }
        self.enforced.apply(changes)
    }

    /// Takes up changes and, with them, what policies there are now.
    pub(super) fn learn(&mut self, mut changes: Vec<Change>, world: &World) {
        if world.policies.values().any(|read| read.audit) {
            let audited = self.audited.get_or_insert_with(|| copy(&self.enforced));
            let of_all = policies(audited, world, |_| true);
            audited.apply(changes.iter().cloned().chain(of_all));
        } else {
            self.audited = None;
        }
        changes.extend(policies(&self.enforced, world, |read| !read.audit));
        self.enforced.apply(changes);
    }

    /// Whether any policy is audited.
    pub(super) fn audits(&self) -> bool {
        self.audited.is_some()
    }

    /// The rule of an audited policy that would deny a connection which nothing denies.
    pub(super) fn audit(
        &self,
        id: &WorkloadId,
        direction: Direction,
        peer: IpAddr,
        traffic: Traffic,
    ) -> Option<RuleId> {
        let audited = self.audited.as_ref()?;
        let decision = audited.decide(id, direction, peer, traffic)?;
        (decision.verdict == Verdict::Deny).then(|| audited.book().id(decision.rule)).flatten()
    }
}

/// A compiler that knows the same, but for policies.
fn copy(compiler: &Compiler) -> Compiler {
    let world = compiler.world();
    let mut copy = Compiler::new(world.node.clone(), 0);
    let nodes = world.nodes.iter().map(|(id, node)| Change::Node(id.clone(), Some(node.clone())));
    let namespaces =
        world.namespaces.iter().map(|(id, labels)| Change::Namespace(id.clone(), Some(labels.clone())));
    let workloads = world.workloads.iter().map(|(id, one)| Change::Workload(id.clone(), Some(one.clone())));
    let prefixes = std::iter::once(Change::Clusters(world.clusters.clone()));
    copy.apply(prefixes.chain(nodes).chain(namespaces).chain(workloads));
    copy
}

/// The policies that are new, gone or not what they were, of those that a compiler shall have.
fn policies(compiler: &Compiler, world: &World, wanted: impl Fn(&Read) -> bool) -> Vec<Change> {
    let known = &compiler.world().policies;
    let now = |key| world.policies.get(key).filter(|read| wanted(read)).and_then(|read| read.policy.as_ref());
    let gone = known.keys().filter(|key| now(key).is_none());
    let gone = gone.map(|key| Change::Policy(key.clone(), None));
    let changed = world.policies.keys().filter_map(|key| Some((key, now(key)?)));
    let changed = changed.filter(|(key, policy)| known.get(key) != Some(policy));
    gone.chain(changed.map(|(key, policy)| Change::Policy(key.clone(), Some(policy.clone())))).collect()
}
