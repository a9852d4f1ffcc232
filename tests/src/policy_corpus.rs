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

use anyhow::Result;

pub use format::{Case, Corpus, Grid, Packet, Step};
pub use run::{Outcome, Report, Seen, Tallies};

use crate::corpus::Suite;
use crate::lab::Datapath;
use fault::Fault;

impl Suite for Corpus {
    const FORMAT: &'static str = "causeway-policy-corpus/1";
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
        run::run(self, cases, flip, fault)
    }

    fn run_on(&self, cases: &[&Case], datapath: Datapath, flip: bool) -> Result<Report> {
        let cases: Vec<_> = cases.iter().map(|case| (*case, None)).collect();
        datapath::run_on(self, &cases, datapath, flip)
    }
}

/// Runs cases on one lab whose nodes are given wrong policies.
pub fn run_wrong_on(corpus: &Corpus, cases: &[(&Case, Fault)], datapath: Datapath) -> Result<Report> {
    let cases: Vec<_> = cases.iter().map(|(case, fault)| (*case, Some(*fault))).collect();
    datapath::run_on(corpus, &cases, datapath, false)
}
