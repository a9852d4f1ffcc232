//! Policy in the kernel: a table of its own, whose chains never change and whose sets hold what [`causeway_model::policy`] says.
//!
//! `program` is the chains, `entry` makes a rulebook and endpoints entries of sets, `table` keeps both in the kernel.

mod entry;
mod message;
mod program;
#[cfg(test)]
mod sample;
mod set;
mod stamps;
mod table;

pub(crate) use message::TABLE;
pub(crate) use table::{Denied, Pending, PolicyTable, Thing};
