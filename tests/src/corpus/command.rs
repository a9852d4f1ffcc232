//! The command line that runs a file of cases.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::Failure;
use crate::lab::Datapath;

/// The most failures that are told one by one.
const TOLD: usize = 50;

/// Which file, which cases of it, and against what.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The file.
    pub file: PathBuf,
    /// Against the compiler, judged by the slow evaluator.
    #[arg(long, required_unless_present = "datapath", conflicts_with = "datapath")]
    pub engine: bool,
    /// In a lab of nodes with this data path (fast, kernel, mixed), with real packets.
    #[arg(long, value_name = "PATH")]
    pub datapath: Option<Datapath>,
    /// Only this case.
    #[arg(long, value_name = "NAME")]
    pub case: Option<String>,
    /// Want the opposite of everything that is asserted: all of it must fail then.
    #[arg(long)]
    pub flip: bool,
    /// Tell it as JSON, with every failure.
    #[arg(long)]
    pub json: bool,
}

impl Arguments {
    /// What is in the file.
    pub fn text(&self) -> Result<String> {
        std::fs::read_to_string(&self.file).with_context(|| format!("reading {}", self.file.display()))
    }
}

/// Tells failures, a line each, as many as anybody reads.
pub fn tell(failures: &[Failure]) {
    for failure in failures.iter().take(TOLD) {
        println!("{} step {}: {}: {}", failure.case, failure.step, failure.what, failure.found);
    }
    if let Some(more) = failures.len().checked_sub(TOLD).filter(|more| *more > 0) {
        println!("and {more} more");
    }
}
