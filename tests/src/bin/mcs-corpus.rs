//! Runs a file of cases of services across clusters: what each exports, and what each sees of the others.

use std::process::ExitCode;

use causeway_tests::corpus::command;
use causeway_tests::mcs_corpus::Corpus;

fn main() -> ExitCode {
    command::main::<Corpus>(env!("CARGO_BIN_NAME"))
}
