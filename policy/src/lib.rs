//! Rules in, lookup tables out, and the slow obvious lookup that judges the fast one.
//!
//! Nothing here does I/O, starts a thread or reads a clock.

mod compiler;
#[cfg(test)]
mod field_log;
pub mod identity;
mod policy;
pub mod read;
mod selector;
pub mod slow;
mod world;

pub use compiler::{Compiler, Moved};
pub use policy::{Block, Peer, Policy, PolicyKey, PolicyKind, PortMatch, Rule, Tier};
pub use read::{Effect, Problem, Read, Report, Wrong, read};
pub use selector::{LabelSelector, Namespaces, PodSelector, Requirement};
pub use world::{
    CLUSTER_LABEL, Change, NAMESPACE_LABEL, NamedPort, NamespaceId, NodeFacts, Presence, Workload,
    WorkloadId, World, namespace_labels,
};
