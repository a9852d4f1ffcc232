//! The service corpus, on the engine and on the data paths: against what upstream says.
//!
//! Every run has about fifteen cases on each data path, other ones with each commit, and says which; CAUSEWAY_TESTS=full has all of
//! them.

use causeway_tests::corpus::{Suite, sample};
use causeway_tests::lab::Datapath;
use causeway_tests::service_corpus::Corpus;
use causeway_tests::service_corpus::fault::Fault;

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
    let report = corpus().run_all(false);
    report.assert_held();
    assert_eq!((report.passed, report.unsupported.len()), (133, 0));
    let tallies = report.tallies;
    assert_eq!((tallies.probes.asserted, tallies.open), (390, 4));
    assert!(tallies.answered > 7000, "{} connections were answered", tallies.answered);
}

#[test]
fn the_opposite_of_every_probe_fails_on_the_engine() {
    let report = corpus().run_all(true);
    report.assert_all_failed();
    assert_eq!(report.failed, 133);
}

#[test]
fn more_cases_and_those_of_another_topology_hold_on_the_engine() {
    for file in [MORE, ELSEWHERE] {
        let corpus = Corpus::read(file).unwrap();
        let report = corpus.run_all(false);
        report.assert_held();
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
        let report = corpus.run_all(false);
        assert!(
            report.failed > 0 && report.failures.iter().any(|one| one.found.contains(name)),
            "{report:#?}"
        );
    }
}

#[test]
fn every_wrong_compile_is_seen_and_every_kind_of_case_sees_one() {
    let corpus = corpus();
    let blind = corpus.blind_kinds(&Fault::ALL);
    assert!(blind.is_empty(), "no fault turns these red: {blind:?}");
}

fn hold_on(datapath: Datapath) {
    let (corpus, elsewhere) = (everything(), Corpus::read(ELSEWHERE).expect("the file is of the format"));
    for (corpus, cases) in [(&corpus, sample(corpus.all(), CASES, |_| 1)), (&elsewhere, elsewhere.all())] {
        let report = corpus.hold_on(&cases, datapath);
        assert!(report.unsupported.is_empty(), "{:?}", report.unsupported);
    }
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
    let cases = corpus.named(&["sv-011", "sv-067"]).unwrap();
    let report = corpus.run_on(&cases, Datapath::Kernel, true).unwrap();
    report.assert_all_failed();
    assert_eq!(report.failed, cases.len());
}
