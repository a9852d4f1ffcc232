//! A file of cases, whatever they are about: how it is read, how cases are chosen from it, and what every kind of it must show.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::process::Command;

use anyhow::{Result, bail, ensure};
use serde::de::DeserializeOwned;

use super::{Report, Tallies, read};
use crate::lab::Datapath;

/// A file of cases of one kind.
pub trait Suite: DeserializeOwned {
    /// The format that is known here.
    const FORMAT: &'static str;
    /// One story.
    type Case;
    /// A way to have the engine wrong.
    type Fault: Copy + Debug;
    /// What is counted.
    type Tallies: Tallies;

    /// The format that the file says it has.
    fn format(&self) -> &str;
    /// The cases.
    fn cases(&self) -> &[Self::Case];
    /// A case's name, and what it is about in a word.
    fn title(case: &Self::Case) -> (&str, &str);
    /// Runs cases against the engine. `flip` wants the opposite of everything asserted.
    fn run(
        &self,
        cases: &[&Self::Case],
        flip: bool,
        fault: Option<Self::Fault>,
    ) -> Result<Report<Self::Tallies>>;
    /// Runs cases on one lab.
    fn run_on(&self, cases: &[&Self::Case], datapath: Datapath, flip: bool) -> Result<Report<Self::Tallies>>;

    /// Reads a file's text.
    fn read(text: &str) -> Result<Self> {
        let (suite, known): (Self, _) = (read(text)?, Self::FORMAT);
        ensure!(suite.format() == known, "the format is {:?}, and {known} is known here", suite.format());
        Ok(suite)
    }

    /// All cases.
    fn all(&self) -> Vec<&Self::Case> {
        self.cases().iter().collect()
    }

    /// The cases of these names, each of which must be there; all where none is named.
    fn named(&self, names: &[&str]) -> Result<Vec<&Self::Case>> {
        let mut cases = self.all();
        if let Some(none) = names.iter().find(|name| !cases.iter().any(|case| Self::title(case).0 == **name))
        {
            bail!("no case {none}");
        }
        cases.retain(|case| names.is_empty() || names.contains(&Self::title(case).0));
        ensure!(!cases.is_empty(), "no case at all");
        Ok(cases)
    }

    /// Runs all cases against the engine.
    #[track_caller]
    fn run_all(&self, flip: bool) -> Report<Self::Tallies> {
        self.run(&self.all(), flip, None).expect("cases can be told")
    }

    /// Runs cases on a data path, and says which; everything must hold.
    #[track_caller]
    fn hold_on(&self, cases: &[&Self::Case], datapath: Datapath) -> Report<Self::Tallies> {
        let names: Vec<_> = cases.iter().map(|case| Self::title(case).0).collect();
        println!("{datapath}: {}", names.join(" "));
        let report = self.run_on(cases, datapath, false).expect("root, and a lab");
        println!("{datapath}: {}", report.tallies);
        report.assert_held();
        assert_eq!(report.passed + report.unsupported.len(), cases.len());
        report
    }

    /// The kinds of cases that no fault turns red. Panics if there is a fault that no case sees.
    fn blind_kinds(&self, faults: &[Self::Fault]) -> BTreeSet<&str> {
        let mut blind: BTreeSet<_> = self.cases().iter().map(|case| Self::title(case).1).collect();
        for fault in faults {
            let mut seen = false;
            for case in self.cases() {
                let (_, kind) = Self::title(case);
                if seen && !blind.contains(kind) {
                    continue;
                }
                let report = self.run(&[case], false, Some(*fault)).expect("cases can be told");
                if report.tallies.asserted().failed > 0 {
                    seen = true;
                    blind.remove(kind);
                }
            }
            assert!(seen, "{fault:?} is not seen");
        }
        blind
    }
}

/// Whether everything is to be looked at, not a choice of it.
pub fn is_full() -> bool {
    std::env::var("CAUSEWAY_TESTS").is_ok_and(|tier| tier == "full")
}

/// Another number with each commit.
pub fn seed() -> u64 {
    let head = Command::new("git").args(["rev-parse", "HEAD"]).output();
    let head = head.map(|output| output.stdout).unwrap_or_default();
    head.iter().fold(0, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

/// As many of these as there is time for, until so much of them is together: another choice with each commit.
pub fn sample<T>(mut all: Vec<T>, enough: usize, weight: impl Fn(&T) -> usize) -> Vec<T> {
    if is_full() {
        return all;
    }
    fastrand::Rng::with_seed(seed()).shuffle(&mut all);
    let mut sum = 0;
    all.retain(|one| {
        let has_room = sum < enough;
        sum += weight(one);
        has_room
    });
    all
}
