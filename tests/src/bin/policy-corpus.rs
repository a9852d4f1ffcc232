//! Runs a file of policy cases: who shall reach whom, and does.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use causeway_tests::policy_corpus::{Corpus, Report, run};
use clap::Parser;

/// The most failures that are told one by one.
const TOLD: usize = 50;

/// Runs a file of the format causeway-policy-corpus/1 and tells what is not as it should be. Ends with 0 if everything is, with 1 if
/// something is not, with 2 if the file cannot be read.
#[derive(Parser)]
#[command(name = "policy-corpus", version, max_term_width = 120)]
struct Arguments {
    /// The file.
    file: PathBuf,
    /// Against the compiler, judged by the slow evaluator.
    #[arg(long, required = true)]
    engine: bool,
    /// Only this case.
    #[arg(long, value_name = "NAME")]
    case: Option<String>,
    /// Want the opposite of every cell and packet: all of them must fail then.
    #[arg(long)]
    flip: bool,
    /// Tell it as JSON, with every failure.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match told(&arguments) {
        Ok(report) if report.failed == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("policy-corpus: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn told(arguments: &Arguments) -> Result<Report> {
    let file = arguments.file.display();
    let text = std::fs::read_to_string(&arguments.file).with_context(|| format!("reading {file}"))?;
    let corpus = Corpus::read(&text).with_context(|| format!("{file}"))?;
    let report = run(&corpus, arguments.case.as_deref(), arguments.flip, None)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(report);
    }
    for failure in report.failures.iter().take(TOLD) {
        println!("{} step {}: {}: {}", failure.case, failure.step, failure.what, failure.found);
    }
    if let Some(more) = report.failures.len().checked_sub(TOLD).filter(|more| *more > 0) {
        println!("and {more} more");
    }
    let Report { passed, failed, unsupported, cells, packets, rejections, .. } = &report;
    println!(
        "cells {} of {} failed, packets {} of {}, refused objects {} of {}",
        cells.failed,
        cells.asserted,
        packets.failed,
        packets.asserted,
        rejections.failed,
        rejections.asserted
    );
    println!("not supported, {} cases: {}", unsupported.len(), unsupported.join(" "));
    println!("{passed} cases passed, {failed} failed");
    Ok(report)
}
