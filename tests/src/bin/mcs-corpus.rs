//! Runs a file of cases of services across clusters: what each exports, and what each sees of the others.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use causeway_tests::corpus::command;
use causeway_tests::lab::{Datapath, Lab};
use causeway_tests::mcs_corpus::{Corpus, Report, run, run_on};
use clap::Parser;

/// Runs a file of the format causeway-mcs-corpus/1 and tells what is not as it should be. Ends with 0 if everything is, with 1 if
/// something is not, with 2 if the file cannot be read or the run is not possible.
#[derive(Parser)]
#[command(name = "mcs-corpus", version, max_term_width = 120)]
struct Arguments {
    /// The file.
    file: PathBuf,
    /// Against the mesh's engine, one for each cluster; so it is without --datapath, too.
    #[arg(long, conflicts_with = "datapath")]
    engine: bool,
    /// In a lab of clusters with this data path (fast, kernel, mixed), with real connections and questions.
    #[arg(long, value_name = "PATH")]
    datapath: Option<Datapath>,
    /// Only this case.
    #[arg(long, value_name = "NAME")]
    case: Option<String>,
    /// Want the opposite of everything asserted, invariants excepted: all of it must fail then.
    #[arg(long)]
    flip: bool,
    /// Tell it as JSON, with every failure.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match told(&Arguments::parse()) {
        Ok(report) if report.failed == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mcs-corpus: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn told(arguments: &Arguments) -> Result<Report> {
    let file = arguments.file.display();
    let text = std::fs::read_to_string(&arguments.file).with_context(|| format!("reading {file}"))?;
    let corpus = Corpus::read(&text).with_context(|| format!("{file}"))?;
    let case = arguments.case.as_deref();
    let report = match arguments.datapath {
        None => run(&corpus, case, arguments.flip, None)?,
        Some(datapath) => {
            Lab::sweep()?;
            let cases: Vec<_> =
                corpus.cases.iter().filter(|this| case.is_none_or(|id| this.id == id)).collect();
            ensure!(!cases.is_empty(), "no case {}", case.unwrap_or("at all"));
            run_on(&corpus, &cases, datapath, arguments.flip)?
        }
    };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(report);
    }
    command::tell(&report.failures);
    let tallies = [
        ("exports", report.exports),
        ("views", report.views),
        ("names", report.names),
        ("own services", report.local),
        ("never reached", report.never),
        ("agreements", report.agreements),
        ("refusals", report.refusals),
        ("invariants", report.invariants),
    ];
    let told: Vec<_> = tallies
        .iter()
        .map(|(what, tally)| format!("{what} {} of {}", tally.failed, tally.asserted))
        .collect();
    println!("failed: {}", told.join(", "));
    if !report.unsupported.is_empty() {
        println!("not supported: {}", report.unsupported.join(" "));
    }
    println!("{} cases passed, {} failed", report.passed, report.failed);
    Ok(report)
}
