//! The service corpus, on the engine and on the data paths: against what upstream says.
//!
//! Every run has about fifteen cases on each data path, other ones with each commit, and says which; CAUSEWAY_TESTS=full has all of
//! them.

use std::collections::{BTreeMap, BTreeSet};

use causeway_tests::corpus::{is_full, seed};
use causeway_tests::lab::Datapath;
use causeway_tests::service_corpus::fault::Fault;
use causeway_tests::service_corpus::{Case, Corpus, run, run_on};

const FILE: &str = include_str!("../data/services/cases.yaml");
/// More cases on the same topology.
const MORE: &str = include_str!("../data/services/more.yaml");
/// Another topology, and forms that the other files have no case of.
const ELSEWHERE: &str = include_str!("../data/services/elsewhere.yaml");

/// How many cases each data path has in every run.
const CASES: usize = 15;

fn corpus() -> Corpus {
    Corpus::read(FILE).expect("the file is of the format")
}

/// The same with more cases.
fn everything() -> Corpus {
    let (mut corpus, more) = (corpus(), Corpus::read(MORE).expect("the file is of the format"));
    corpus.cases.extend(more.cases);
    corpus
}

#[test]
fn every_case_holds_on_the_engine() {
    let report = run(&corpus(), None, false, None).unwrap();
    assert!(report.failures.is_empty(), "{:#?}", &report.failures[..report.failures.len().min(20)]);
    assert_eq!((report.passed, report.unsupported.len()), (133, 0));
    assert_eq!((report.probes.asserted, report.open), (390, 4));
    assert!(report.answered > 7000, "{} connections were answered", report.answered);
}

#[test]
fn the_opposite_of_every_probe_fails_on_the_engine() {
    let report = run(&corpus(), None, true, None).unwrap();
    assert_eq!(report.probes.failed, report.probes.asserted);
    assert_eq!(report.failures.len(), report.probes.asserted, "and nothing else does");
    assert_eq!(report.failed, 133);
}

#[test]
fn more_cases_and_those_of_another_topology_hold_on_the_engine() {
    for file in [MORE, ELSEWHERE] {
        let corpus = Corpus::read(file).unwrap();
        let report = run(&corpus, None, false, None).unwrap();
        assert!(report.failures.is_empty(), "{:#?}", report.failures);
        assert_eq!(report.passed, corpus.cases.len());
    }
}

#[test]
fn what_is_not_known_is_named() {
    for (from, to, name) in [
        ("second_ips:", "third_ips:", "third_ips"),
        ("note:", "notes:", "notes"),
        ("hostNetwork:", "hostNet:", "hostNet"),
        ("  title:", "  tital:", "tital"),
    ] {
        assert!(ELSEWHERE.contains(from), "{from}");
        let error = Corpus::read(&ELSEWHERE.replace(from, to)).expect_err(name);
        assert!(format!("{error:#}").contains(name), "{error:#}");
    }
    // Within its steps it is the case that cannot be read, not the file.
    for (from, to, name) in [
        ("pod_state:", "pod_status:", "pod_status"),
        ("spread:", "spred:", "spred"),
        ("source: client", "source: clint", "Source"),
    ] {
        assert!(ELSEWHERE.contains(from), "{from}");
        let corpus = Corpus::read(&ELSEWHERE.replace(from, to)).expect(name);
        let report = run(&corpus, None, false, None).unwrap();
        assert!(
            report.failed > 0 && report.failures.iter().any(|one| one.found.contains(name)),
            "{report:#?}"
        );
    }
}

#[test]
fn every_wrong_compile_is_seen_and_every_kind_of_case_sees_one() {
    let corpus = corpus();
    let kinds: BTreeMap<_, _> =
        corpus.cases.iter().map(|case| (case.id.as_str(), case.kind.as_str())).collect();
    let mut unseeing: BTreeSet<_> = kinds.values().copied().collect();
    for fault in Fault::ALL {
        let report = run(&corpus, None, false, Some(fault)).unwrap();
        assert!(report.probes.failed > 0, "{fault:?} is not seen");
        for failure in &report.failures {
            unseeing.remove(kinds[failure.case.as_str()]);
        }
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
    let corpus = everything();
    let cases = chosen(&corpus);
    let names: Vec<_> = cases.iter().map(|case| case.id.as_str()).collect();
    println!("{datapath}: {}", names.join(" "));
    let report = run_on(&corpus, &cases, datapath, false).expect("root, and a lab");
    println!("{datapath}: {:?}, {} answered", report.probes, report.answered);
    assert!(report.failures.is_empty(), "{:#?}", &report.failures[..report.failures.len().min(20)]);
    assert_eq!(report.passed, cases.len());
    let elsewhere = Corpus::read(ELSEWHERE).expect("the file is of the format");
    let cases: Vec<_> = elsewhere.cases.iter().collect();
    let report = run_on(&elsewhere, &cases, datapath, false).expect("root, and a lab");
    assert!(report.failures.is_empty(), "{:#?}", report.failures);
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
fn the_opposite_of_every_probe_fails_on_a_data_path() {
    let corpus = corpus();
    let cases: Vec<_> =
        corpus.cases.iter().filter(|case| ["sv-011", "sv-067"].contains(&case.id.as_str())).collect();
    let report = run_on(&corpus, &cases, Datapath::Kernel, true).unwrap();
    assert_eq!(report.probes.failed, report.probes.asserted);
    assert_eq!(report.failures.len(), report.probes.asserted);
    assert_eq!(report.failed, cases.len());
}
