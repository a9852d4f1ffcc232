//! Files of the format causeway-mcs-corpus/1: clusters, what they export, and what each sees of the others.

mod datapath;
mod engine;
mod expect;
pub mod fault;
mod format;
mod ground;
mod invariants;
mod judge;
mod look;
mod run;
mod stage;
mod written;

use anyhow::Result;

pub use format::{Case, Corpus, Step};
pub use run::Report;

use crate::lab::Datapath;
use fault::Fault;

/// Runs a file, or one case of it, against the mesh's engine. `flip` wants the opposite of everything asserted.
pub fn run(corpus: &Corpus, case: Option<&str>, flip: bool, fault: Option<Fault>) -> Result<Report> {
    let mut engine = engine::Engine::default();
    Ok(run::run(corpus, &run::chosen(corpus, case)?, flip, fault, &mut engine))
}

/// Runs cases of a file on one lab.
pub fn run_on(corpus: &Corpus, cases: &[&Case], datapath: Datapath, flip: bool) -> Result<Report> {
    let mut lab = datapath::Lab::build(corpus, cases, datapath)?;
    Ok(run::run(corpus, cases, flip, None, &mut lab))
}
