//! What clusters tell each other: state machines without sockets or clocks.
//!
//! Services that one cluster exports and another imports, from whatever is known of all of them: a [`World`] is changed one by
//! one, and says what becomes of each export, what this cluster imports under which address, who serves it, and what its names
//! are. Nothing here does I/O, starts a thread or reads a clock.

mod addresses;
pub mod api;
mod choice;
pub mod dns;
mod evaluate;
mod facts;
mod members;
mod merge;
mod outcome;
pub mod prefer;
pub mod read;
mod status;
#[cfg(test)]
mod tests;
mod world;

pub use addresses::Lease;
pub use choice::Candidate;
pub use facts::{
    Endpoint, Export, Port, Service, ServiceKind, ServiceName, Slice, SlicePort, State, TrafficPolicy,
};
pub use members::{Claim, Refusal, RefusedPrefix};
pub use merge::{Conflict, Disagreement};
pub use outcome::{Choice, Condition, Exported, Import, Pod, Status, Word};
pub use status::{export_object, import_object};
pub use world::{Change, Config, Memory, Moved, NEVER_BY_DEFAULT, Namespaces, World};
