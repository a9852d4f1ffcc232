//! Where desired state comes from, and what it says: a [`World`], read from a directory of manifests.

mod documents;
mod manifests;
mod objects;
#[cfg(test)]
mod tests;
mod watch;
mod world;
pub(crate) mod yaml;

pub use manifests::{ManifestSource, SourceError};
pub use objects::InvalidPod;
pub use watch::ManifestWatch;
pub use world::{ClusterObject, NodeObject, PodId, PodObject, World};
