//! Services: who answers for an address that is nobody's, and packets that go there and come back.

mod affinity;
mod begin;
mod choice;
mod rewrite;
mod stage;
mod table;

pub use affinity::Clients;
pub(crate) use begin::step_aside;
pub(crate) use stage::{Detour, answer, serve, stand_at_gateway, stand_at_service, turn, turn_and_send};
pub use table::Touched;
pub(crate) use table::{Services, strays};
