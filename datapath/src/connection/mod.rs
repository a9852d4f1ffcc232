//! Connections: which packets belong together, and which belong to nothing.
//!
//! The table is shared by all workers and lives in memory that outlives the process: words that are only ever read and written
//! atomically, no pointers. A connection is found by one key for both of its directions, a translated one by
//! one for each, made by whichever worker sees
//! its first packet, and ended by a sweep, by pressure, or by its own packets.

mod entry;
mod follow;
mod index;
mod key;
mod list;
mod prefetch;
mod sctp;
mod table;
mod tcp;

pub use causeway_model::connection::{Stage, Timeouts};
pub use follow::Moment;
pub(crate) use follow::{Anew, Class, Gate, How, Packet, Standing, Turn, classify, ends};
pub(crate) use index::{Found, Keys};
pub use key::{End, Key};
pub use table::{Connections, Ended, OWNERS, OtherLayout, Place, Pressure};
