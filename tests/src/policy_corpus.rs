//! Files of the format causeway-policy-corpus/1: worlds, policies, and who shall reach whom.

pub mod engine;
pub mod fault;
mod format;
mod run;
mod world;

pub use format::{Case, Corpus, Grid, Packet, Step};
pub use run::{Failure, Outcome, Report, run};
