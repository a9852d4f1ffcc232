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
pub use run::{Report, Tallies};

use crate::corpus::Suite;
use crate::lab::Datapath;
use fault::Fault;

impl Suite for Corpus {
    const FORMAT: &'static str = "causeway-service-corpus/1";
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
        run::run(self, cases, flip, &mut engine::Engine::new(fault))
    }

    fn run_on(&self, cases: &[&Case], datapath: Datapath, flip: bool) -> Result<Report> {
        run::run(self, cases, flip, &mut datapath::Lab::build(self, datapath)?)
    }
}
