//! Runs a file of policy cases: who shall reach whom, and does.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use causeway_tests::corpus::command::{Arguments, tell};
use causeway_tests::lab::Lab;
use causeway_tests::policy_corpus::{Corpus, Report, run, run_on};
use clap::Parser;

/// Runs a file of the format causeway-policy-corpus/1 and tells what is not as it should be. Ends with 0 if everything is, with 1 if
/// something is not, with 2 if the file cannot be read or the lab cannot be made.
#[derive(Parser)]
#[command(name = "policy-corpus", version, max_term_width = 120)]
struct Command {
    #[command(flatten)]
    arguments: Arguments,
}

fn main() -> ExitCode {
    let Command { arguments } = Command::parse();
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
    let corpus = Corpus::read(&arguments.text()?).with_context(|| arguments.file.display().to_string())?;
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
    tell(&report.failures);
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
    if let Some(seen) = &report.packets_seen {
        println!(
            "answered {} connections, sums of denials {} of {} wrong, tried again {}",
            seen.answered, seen.denials.failed, seen.denials.asserted, seen.again
        );
    }
    println!("not supported, {} cases: {}", unsupported.len(), unsupported.join(" "));
    println!("{passed} cases passed, {failed} failed");
    Ok(report)
}
