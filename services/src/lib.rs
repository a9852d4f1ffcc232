//! Services and endpoint slices in, tables of frontends and backends out, and the slow obvious look-up that judges them.
//!
//! Nothing here does I/O, starts a thread or reads a clock.

mod ask;
mod compiler;
mod endpoints;
mod objects;
pub mod read;
pub mod slow;
mod world;

pub use ask::{Client, Outcome, ask};
pub use compiler::{Compiler, Contest, Health, Moved};
pub use endpoints::{Known, State, known};
pub use objects::{Port, Service, ServiceName, Slice, SliceEndpoint, SliceName, SlicePort, Sources};
pub use read::{Effect, Object, Problem, Read, Report, Wrong, read};
pub use world::{Change, NodeFacts, World, ZONE_LABEL};
