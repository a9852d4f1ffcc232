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
pub use run::{Report, Tallies};

use crate::corpus::Suite;
use crate::lab::Datapath;
use fault::Fault;

impl Suite for Corpus {
    const FORMAT: &'static str = "causeway-mcs-corpus/1";
    type Case = Case;
    type Fault = Fault;
    type Tallies = Tallies;

    fn format(&self) -> &str {
        &self.format
    }

    fn cases(&self) -> &[Case] {
        &self.cases
    }

    fn title(case: &Case) -> (&str, &str) {
        (&case.id, &case.kind)
    }

    fn run(&self, cases: &[&Case], flip: bool, fault: Option<Fault>) -> Result<Report> {
        Ok(run::run(self, cases, flip, fault, &mut engine::Engine::default()))
    }

    fn run_on(&self, cases: &[&Case], datapath: Datapath, flip: bool) -> Result<Report> {
        Ok(run::run(self, cases, flip, None, &mut datapath::Lab::build(self, cases, datapath)?))
    }
}
