//! The corpus of services across clusters, on the mesh's engine and on the data paths: against what upstream and our design say.
//!
//! Every run has a few cases on each data path, other ones with each commit, and says which; CAUSEWAY_TESTS=full has all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use causeway_tests::corpus::{is_full, seed};
use causeway_tests::lab::Datapath;
use causeway_tests::mcs_corpus::fault::Fault;
use causeway_tests::mcs_corpus::{Case, Corpus, run, run_on};

/// How many cases each data path has in every run.
const CASES: usize = 6;
const FILE: &str = include_str!("../data/mcs/cases.yaml");

fn corpus() -> Corpus {
    Corpus::read(FILE).expect("the file is of the format")
}

#[test]
fn every_case_holds_on_the_engine() {
    let report = run(&corpus(), None, false, None).unwrap();
    assert!(report.failures.is_empty(), "{:#?}", &report.failures[..report.failures.len().min(20)]);
    assert_eq!((report.passed, report.failed), (69, 0));
    let asserted = (report.exports.asserted, report.views.asserted, report.names.asserted);
    assert_eq!(asserted, (255, 332, 2351));
    assert_eq!(report.local.asserted, 230);
    let asserted = (report.never.asserted, report.agreements.asserted, report.refusals.asserted);
    assert_eq!(asserted, (94, 1, 6));
    assert_eq!(report.invariants.asserted, 326);
}

#[test]
fn the_opposite_of_everything_fails() {
    let report = run(&corpus(), None, true, None).unwrap();
    let asserted = report.asserted();
    assert_eq!(asserted.failed, asserted.asserted);
    assert_eq!(report.failures.len(), asserted.failed, "invariants are not flipped");
}

#[test]
fn every_fault_is_seen_and_every_kind_of_case_sees_one() {
    let corpus = corpus();
    let kinds: BTreeMap<_, _> =
        corpus.cases.iter().map(|case| (case.id.as_str(), case.kind.as_str())).collect();
    let mut unseeing: BTreeSet<_> = kinds.values().copied().collect();
    for fault in Fault::ALL {
        let mut seen = false;
        for (case, kind) in &kinds {
            if seen && !unseeing.contains(kind) {
                continue;
            }
            let report = run(&corpus, Some(case), false, Some(fault)).unwrap();
            if report.asserted().failed > 0 {
                seen = true;
                unseeing.remove(kind);
            }
        }
        assert!(seen, "{fault:?} is not seen");
    }
    assert!(unseeing.is_empty(), "no fault turns these red: {unseeing:?}");
}

/// The file's cases, as many as there is time for: another choice with each commit.
fn chosen(corpus: &Corpus) -> Vec<&Case> {
    let mut cases: Vec<_> = corpus.cases.iter().collect();
    if !is_full() {
        fastrand::Rng::with_seed(seed()).shuffle(&mut cases);
        cases.truncate(CASES);
    }
    cases
}

fn hold_on(datapath: Datapath) {
    let corpus = corpus();
    let cases = chosen(&corpus);
    let names: Vec<_> = cases.iter().map(|case| case.id.as_str()).collect();
    println!("{datapath}: {}", names.join(" "));
    let report = run_on(&corpus, &cases, datapath, false).expect("root, and a lab");
    assert!(report.failures.is_empty(), "{:#?}", &report.failures[..report.failures.len().min(20)]);
    assert_eq!(report.passed + report.unsupported.len(), cases.len());
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
    let cases: Vec<_> = corpus.cases.iter().filter(|case| case.id == "lost-and-back").collect();
    let report = run_on(&corpus, &cases, Datapath::Kernel, true).unwrap();
    let asserted = report.asserted();
    assert!(report.names.asserted > 0, "names are asked of the nodes");
    assert_eq!((asserted.failed, report.failures.len()), (asserted.asserted, asserted.asserted));
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
