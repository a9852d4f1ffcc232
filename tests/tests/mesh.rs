//! The corpus of services across clusters, on the mesh's engine and on the data paths: against what upstream and our design say.
//!
//! Every run has a few cases on each data path, other ones with each commit, and says which; CAUSEWAY_TESTS=full has all of them.

use std::process::Command;

use causeway_tests::corpus::{Suite, sample};
use causeway_tests::lab::Datapath;
use causeway_tests::mcs_corpus::Corpus;
use causeway_tests::mcs_corpus::fault::Fault;

/// How many cases each data path has in every run.
const CASES: usize = 6;
const FILE: &str = include_str!("../data/mcs/cases.yaml");

fn corpus() -> Corpus {
    Corpus::read(FILE).expect("the file is of the format")
}

#[test]
fn every_case_holds_on_the_engine() {
    let report = corpus().run_all(false);
    report.assert_held();
    assert_eq!((report.passed, report.failed), (69, 0));
    let tallies = report.tallies;
    let asserted = (tallies.exports.asserted, tallies.views.asserted, tallies.names.asserted);
    assert_eq!(asserted, (255, 332, 2351));
    assert_eq!(tallies.local.asserted, 230);
    let asserted = (tallies.never.asserted, tallies.agreements.asserted, tallies.refusals.asserted);
    assert_eq!(asserted, (94, 1, 6));
    assert_eq!(tallies.invariants.asserted, 326);
}

#[test]
fn the_opposite_of_everything_fails() {
    corpus().run_all(true).assert_all_failed();
}

#[test]
fn every_fault_is_seen_and_every_kind_of_case_sees_one() {
    let corpus = corpus();
    let blind = corpus.blind_kinds(&Fault::ALL);
    assert!(blind.is_empty(), "no fault turns these red: {blind:?}");
}

fn hold_on(datapath: Datapath) {
    let corpus = corpus();
    corpus.hold_on(&sample(corpus.all(), CASES, |_| 1), datapath);
}

#[test]
fn the_cases_of_this_commit_hold_on_the_fast_path() {
    hold_on(Datapath::Fast);
}

#[test]
fn the_cases_of_this_commit_hold_on_the_kernel_path() {
    hold_on(Datapath::Kernel);
}

#[test]
fn the_cases_of_this_commit_hold_on_nodes_of_either_path_and_both() {
    hold_on(Datapath::Mixed);
}

#[test]
fn the_opposite_of_everything_fails_on_a_data_path() {
    let corpus = corpus();
    let cases = corpus.named(&["lost-and-back"]).unwrap();
    let report = corpus.run_on(&cases, Datapath::Kernel, true).unwrap();
    assert!(report.tallies.names.asserted > 0, "names are asked of the nodes");
    report.assert_all_failed();
}

/// What the runner ends with.
fn runner(arguments: &[&str]) -> (Option<i32>, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_mcs-corpus")).args(arguments).output().expect("the runner is built");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn the_runner_reads_a_file_it_has_never_seen_and_says_what_it_cannot_do() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/data/mcs/cases.yaml");
    let (code, said) = runner(&[file, "--engine", "--case", "lost-and-back"]);
    assert_eq!((code, said.contains("1 cases passed, 0 failed")), (Some(0), true), "{said}");
    let (code, said) = runner(&[file, "--case", "lost-and-back", "--flip", "--json"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("\"wanted the opposite\""));
    let (code, said) = runner(&[file, "--datapath", "slow"]);
    assert_eq!((code, said.contains("no data path")), (Some(2), true), "{said}");
    let (code, said) = runner(&[file, "--case", "nobody"]);
    assert_eq!((code, said.contains("no case nobody")), (Some(2), true));

    let directory = tempfile::tempdir().unwrap();
    let of = |text: &str| {
        let file = directory.path().join("cases.yaml");
        std::fs::write(&file, text).unwrap();
        runner(&[file.to_str().unwrap()])
    };
    let (code, said) = of("{format: causeway-mcs-corpus/2, topology: {clusters: {}}, cases: []}");
    assert_eq!((code, said.contains("the format is \"causeway-mcs-corpus/2\"")), (Some(2), true), "{said}");
    let cases = "topology: {clusters: {a: {id: 1, podCIDRs: [10.1.0.0/16]}}}\ncases: [{id: x, kind: x, clusters: [a], steps: ";
    let (code, said) = of(&format!("format: causeway-mcs-corpus/1\n{cases}[{{expect: {{sean: []}}}}]}}]"));
    assert_eq!(code, Some(1));
    assert!(said.contains("x step 0: the case: reading step 0: unknown field `sean`"), "{said}");
}
