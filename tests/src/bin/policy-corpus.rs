//! Runs a file of policy cases: who shall reach whom, and does.

use std::process::ExitCode;

use causeway_tests::corpus::command;
use causeway_tests::policy_corpus::Corpus;

fn main() -> ExitCode {
    command::main::<Corpus>(env!("CARGO_BIN_NAME"))
}
