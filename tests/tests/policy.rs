//! The policy corpus on the engine: compiler and slow evaluator against what upstream says.

use std::collections::{BTreeMap, BTreeSet};

use causeway_tests::policy_corpus::fault::Fault;
use causeway_tests::policy_corpus::{Corpus, run};

const FILE: &str = include_str!("../data/policy/cases.yaml");

/// Kinds whose cases no wrong compile of ours can turn red: an API server refuses the objects, we do not support them, or no
/// rule is needed for what they show.
const BEYOND_FAULTS: [&str; 4] = ["invalid", "cnp-invalid", "anp", "cnp-domains"];

fn corpus() -> Corpus {
    Corpus::read(FILE).expect("the file is of the format")
}

#[test]
fn every_case_holds_on_the_engine() {
    let report = run(&corpus(), None, false, None).unwrap();
    assert!(report.failures.is_empty(), "{:#?}", &report.failures[..report.failures.len().min(20)]);
    let unsupported =
        ["cnp-066", "cnp-067", "cnp-069", "cnp-071", "anp-001", "anp-002", "anp-004", "anp-007", "anp-008"];
    assert_eq!(report.unsupported, unsupported);
    assert_eq!(report.passed + unsupported.len(), 202);
    assert!(report.cells.asserted > 70_000, "{:?}", report.cells);
    assert_eq!((report.packets.asserted, report.rejections.asserted), (15, 9));
}

#[test]
fn the_opposite_of_every_cell_fails() {
    let report = run(&corpus(), None, true, None).unwrap();
    assert_eq!(report.cells.failed, report.cells.asserted);
    assert_eq!(report.packets.failed, report.packets.asserted);
    assert_eq!(report.rejections.failed, 0, "these are not flipped");
    assert_eq!(report.failures.len(), report.cells.failed + report.packets.failed);
}

#[test]
fn every_wrong_compile_is_seen_and_every_kind_of_case_sees_one() {
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
            if report.cells.failed > 0 {
                seen = true;
                unseeing.remove(kind);
            }
        }
        assert!(seen, "{fault:?} is not seen");
    }
    assert_eq!(unseeing, BTreeSet::from(BEYOND_FAULTS), "no fault turns these red");
}
