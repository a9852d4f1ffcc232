//! Files of the format causeway-policy-corpus/1: worlds, policies, and who shall reach whom.

mod datapath;
mod document;
pub mod fault;
mod format;
mod ground;
mod mirror;
mod prober;
mod random;
mod ranges;
mod run;
mod world;

pub use datapath::{run_on, run_wrong_on};
pub use format::{Case, Corpus, Grid, Packet, Step};
pub use run::{Outcome, Report, Seen, run};
