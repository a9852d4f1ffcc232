//! Runs a file of service cases: who shall be answered by whom, and is.

use std::process::ExitCode;

use causeway_tests::corpus::command;
use causeway_tests::service_corpus::Corpus;

fn main() -> ExitCode {
    command::main::<Corpus>(env!("CARGO_BIN_NAME"))
}
