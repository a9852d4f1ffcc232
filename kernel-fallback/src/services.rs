//! Services in the kernel: a table of its own, whose maps say what [`causeway_model::service`] says.
//!
//! `program` and `choice` are the chains, `entry` makes services and nodes entries of maps and sets, `table` keeps both in the kernel, `moves` has
//! connection tracking forget the datagram flows that begin anew.

mod choice;
mod entry;
mod lookup;
mod message;
mod moves;
mod program;
mod set;
mod table;

pub(crate) use message::{Counted, TABLE};
pub(crate) use moves::{Moved, forget};
pub(crate) use program::Program;
pub(crate) use table::{Pending, ServicesTable, Thing};
