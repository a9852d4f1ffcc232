//! What files of cases have in common, whatever they are about: topologies, labs made of them, and what became of cases.

pub mod command;
pub(crate) mod ground;
pub(crate) mod names;
pub(crate) mod policies;
pub(crate) mod prober;
mod report;
mod servers;
pub(crate) mod sockets;
mod topology;

use std::process::Command;

use anyhow::Result;
use serde::de::DeserializeOwned;

pub use report::{Failure, Tally};
pub(crate) use topology::protocol;
pub use topology::{Namespace, Node, Pod, Port};

/// Reads a file's text, however long it is: it is ours.
pub(crate) fn read<T: DeserializeOwned>(text: &str) -> Result<T> {
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

/// Whether everything is to be looked at, not a choice of it.
pub fn is_full() -> bool {
    std::env::var("CAUSEWAY_TESTS").is_ok_and(|tier| tier == "full")
}

/// Another number with each commit.
pub fn seed() -> u64 {
    let head = Command::new("git").args(["rev-parse", "HEAD"]).output();
    let head = head.map(|output| output.stdout).unwrap_or_default();
    head.iter().fold(0, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}
