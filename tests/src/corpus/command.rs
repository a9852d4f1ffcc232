//! The command line that runs a file of cases.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, FromArgMatches, Parser};

use super::{Report, Suite};
use crate::lab::{Datapath, Lab};

/// The most failures that are told one by one.
const TOLD: usize = 50;

/// Which file, which cases of it, and against what.
#[derive(Parser, Debug)]
#[command(version, max_term_width = 120)]
struct Arguments {
    /// The file.
    file: PathBuf,
    /// Against the engine; so it is without --datapath, too.
    #[arg(long, conflicts_with = "datapath")]
    engine: bool,
    /// In a lab with this data path (fast, kernel, mixed), with real connections.
    #[arg(long, value_name = "PATH")]
    datapath: Option<Datapath>,
    /// Only this case.
    #[arg(long, value_name = "NAME")]
    case: Option<String>,
    /// Want the opposite of everything that is asserted: all of it must fail then.
    #[arg(long)]
    flip: bool,
    /// Tell it as JSON, with every failure.
    #[arg(long)]
    json: bool,
}

/// The whole command.
pub fn main<S: Suite>(name: &'static str) -> ExitCode {
    let about = format!(
        "Runs a file of the format {} and tells what is not as it should be. Ends with 0 if everything is, with 1 if something \
         is not, with 2 if the file cannot be read or the lab cannot be made.",
        S::FORMAT
    );
    let matches = Arguments::command().name(name).about(about).get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match run::<S>(&arguments) {
        Ok(failed) => ExitCode::from(u8::from(failed > 0)),
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs what is asked for and tells it; how many cases failed.
fn run<S: Suite>(arguments: &Arguments) -> Result<usize> {
    let file = arguments.file.display();
    let text = std::fs::read_to_string(&arguments.file).with_context(|| format!("reading {file}"))?;
    let suite = S::read(&text).with_context(|| file.to_string())?;
    let cases = suite.named(arguments.case.as_deref().as_slice())?;
    let report = match arguments.datapath {
        None => suite.run(&cases, arguments.flip, None)?,
        Some(datapath) => {
            Lab::sweep()?;
            suite.run_on(&cases, datapath, arguments.flip)?
        }
    };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(report.failed);
    }
    let Report { passed, failed, unsupported, tallies, failures } = report;
    for failure in failures.iter().take(TOLD) {
        println!("{} step {}: {}: {}", failure.case, failure.step, failure.what, failure.found);
    }
    if let Some(more) = failures.len().checked_sub(TOLD).filter(|more| *more > 0) {
        println!("and {more} more");
    }
    println!("{tallies}");
    if !unsupported.is_empty() {
        println!("not supported, {} cases: {}", unsupported.len(), unsupported.join(" "));
    }
    println!("{passed} cases passed, {failed} failed");
    Ok(failed)
}
