//! The policy corpus, on the engine and on the data paths: against what upstream says.
//!
//! Every run has about twenty-five steps on each data path, other ones with each commit, and says which; CAUSEWAY_TESTS=full has
//! all of them.

use std::collections::BTreeSet;

use causeway_tests::corpus::{Suite, is_full, sample, seed};
use causeway_tests::lab::Datapath;
use causeway_tests::policy_corpus::fault::Fault;
use causeway_tests::policy_corpus::{Case, Corpus, run_wrong_on};

const FILE: &str = include_str!("../data/policy/cases.yaml");

/// Kinds whose cases no wrong compile of ours can turn red: an API server refuses the objects, we do not support them, or no
/// rule is needed for what they show.
const BEYOND_FAULTS: [&str; 4] = ["invalid", "cnp-invalid", "anp", "cnp-domains"];

fn corpus() -> Corpus {
    Corpus::read(FILE).expect("the file is of the format")
}

#[test]
fn every_case_holds_on_the_engine() {
    let report = corpus().run_all(false);
    report.assert_held();
    let unsupported =
        ["cnp-066", "cnp-067", "cnp-069", "cnp-071", "anp-001", "anp-002", "anp-004", "anp-007", "anp-008"];
    assert_eq!(report.unsupported, unsupported);
    assert_eq!(report.passed + unsupported.len(), 202);
    let tallies = report.tallies;
    assert!(tallies.cells.asserted > 70_000, "{:?}", tallies.cells);
    assert_eq!((tallies.packets.asserted, tallies.rejections.asserted), (15, 9));
}

/// How many steps of cases each data path has in every run.
const STEPS: usize = 25;

/// The file's cases and its twenty mirrored ones, as many as there is time for.
fn hold_on(datapath: Datapath) {
    let corpus = corpus();
    let mirrored = corpus.mirrored(MIRRORED).expect("cases can be told");
    let cases = corpus.cases.iter().chain(&mirrored).collect();
    let steps = |case: &&Case| case.steps().map_or(1, |steps| steps.len());
    corpus.hold_on(&sample(cases, STEPS, steps), datapath);
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
fn random_worlds_are_judged_alike_by_every_data_path_and_the_slow_evaluator() {
    let (mut corpus, seed) = (corpus(), seed());
    println!("seed {seed}");
    // 2,592 connections each.
    corpus.cases = corpus.random(seed, if is_full() { 6 } else { 1 }).expect("cases can be drawn");
    for datapath in [Datapath::Fast, Datapath::Kernel, Datapath::Mixed] {
        corpus.hold_on(&corpus.all(), datapath);
    }
}

#[test]
fn the_opposite_of_every_connection_fails() {
    let corpus = corpus();
    let cases = corpus.named(&["np-001", "np-144"]).unwrap();
    let report = corpus.run_on(&cases, Datapath::Fast, true).unwrap();
    report.assert_all_failed();
    assert_eq!(report.failed, cases.len());
}

/// How many cases are told over IPv6, too.
const MIRRORED: usize = 20;

#[test]
fn cases_over_ipv4_hold_over_ipv6() {
    let mut corpus = corpus();
    corpus.cases = corpus.mirrored(MIRRORED).unwrap();
    assert_eq!(corpus.cases.len(), MIRRORED);
    let report = corpus.run_all(false);
    report.assert_held();
    assert_eq!((report.passed, report.unsupported.len()), (MIRRORED, 0));
    assert!(report.tallies.cells.asserted > 4000, "{:?}", report.tallies.cells);
}

#[test]
fn the_opposite_of_every_cell_fails() {
    let report = corpus().run_all(true);
    report.assert_all_failed();
    assert_eq!(report.tallies.rejections.failed, 0, "these are not flipped");
}

#[test]
fn every_wrong_compile_is_seen_and_every_kind_of_case_sees_one() {
    let corpus = corpus();
    let blind = corpus.blind_kinds(&Fault::ALL);
    assert_eq!(blind, BTreeSet::from(BEYOND_FAULTS), "no fault turns these red");
}

/// How many wrong compiles each data path is given in every run.
const WRONG: usize = 2;
/// A case in which so few connections go wrong is soon told.
const FEW: usize = 12;

/// A case that sees a fault on the engine, with few wrong connections if there is one.
fn sees(corpus: &Corpus, fault: Fault) -> &Case {
    let mut best = None;
    for case in &corpus.cases {
        let report = corpus.run(&[case], false, Some(fault)).expect("it can be told");
        let failed = report.tallies.cells.failed;
        if failed > 0 && best.is_none_or(|(least, _)| failed < least) {
            best = Some((failed, case));
        }
        if best.is_some_and(|(least, _)| least <= FEW) {
            break;
        }
    }
    best.unwrap_or_else(|| panic!("{fault:?} is not seen")).1
}

#[test]
fn wrong_policies_on_the_nodes_turn_their_cases_red_on_every_data_path() {
    let corpus = corpus();
    let mut faults = Fault::ALL.to_vec();
    for (index, datapath) in [Datapath::Fast, Datapath::Kernel].into_iter().enumerate() {
        fastrand::Rng::with_seed(seed() + index as u64).shuffle(&mut faults);
        let some = if is_full() { &faults[..] } else { &faults[..WRONG] };
        let cases: Vec<_> = some.iter().map(|fault| (sees(&corpus, *fault), *fault)).collect();
        let told: Vec<_> = cases.iter().map(|(case, fault)| format!("{fault:?} {}", case.id)).collect();
        println!("{datapath}: {}", told.join(", "));
        let report = run_wrong_on(&corpus, &cases, datapath).expect("root, and a lab");
        let red: BTreeSet<_> = report.failures.iter().map(|failure| failure.case.as_str()).collect();
        assert_eq!((report.passed, report.failed), (0, cases.len()), "{datapath}: only {red:?} see theirs");
    }
}
