//! Where desired state comes from, and what it says: a [`World`], read from a directory of manifests.

mod documents;
mod manifests;
mod objects;
mod offers;
#[cfg(test)]
mod tests;
mod watch;
mod world;
pub(crate) mod yaml;

pub use manifests::{ManifestSource, News, SourceError};
pub use objects::InvalidPod;
pub(crate) use objects::prefix;
pub use offers::Offers;
pub use watch::ManifestWatch;
pub use world::{ClusterObject, NodeObject, PodId, PodObject, World};
