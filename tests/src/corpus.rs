//! What files of cases have in common, whatever they are about: topologies, labs made of them, and what became of cases.

pub mod command;
pub(crate) mod ground;
pub(crate) mod names;
pub(crate) mod policies;
pub(crate) mod prober;
mod report;
mod servers;
pub(crate) mod sockets;
mod suite;
mod topology;

use anyhow::Result;
use serde::de::DeserializeOwned;

pub use report::{Failure, Report, Tallies, Tally};
pub use suite::{Suite, is_full, sample, seed};
pub(crate) use topology::protocol;
pub use topology::{Namespace, Node, Pod, Port};

/// Reads a file's text, however long it is: it is ours.
fn read<T: DeserializeOwned>(text: &str) -> Result<T> {
    let most = text.len() + (1 << 12);
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: most,
            max_nodes: most,
            max_total_scalar_bytes: most,
        },
        // YAML 1.1 takes a pod of the name y for true.
        strict_booleans: true,
    };
    Ok(serde_saphyr::from_str_with_options(text, options)?)
}
