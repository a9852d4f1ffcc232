//! Files of the format causeway-service-corpus/1: worlds, services, and who is answered by whom.

mod datapath;
mod engine;
pub mod fault;
mod format;
mod judge;
mod run;
mod world;

use anyhow::Result;

pub use format::{Case, Corpus, Step};
pub use run::Report;

use crate::lab::Datapath;
use fault::Fault;

/// Runs a file, or one case of it, against the compilers. `flip` wants the opposite of every asserted probe.
pub fn run(corpus: &Corpus, case: Option<&str>, flip: bool, fault: Option<Fault>) -> Result<Report> {
    run::run(corpus, &run::chosen(corpus, case)?, flip, &mut engine::Engine::new(fault))
}

/// Runs cases of a file on one lab.
pub fn run_on(corpus: &Corpus, cases: &[&Case], datapath: Datapath, flip: bool) -> Result<Report> {
    run::run(corpus, cases, flip, &mut datapath::Lab::build(corpus, datapath)?)
}
