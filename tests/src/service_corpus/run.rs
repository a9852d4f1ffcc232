//! A file of cases run, whatever it is run against.

use std::fmt;

use anyhow::{Context, Result};
use serde::Serialize;

use super::format::{Act, Case, Corpus, Fate, Kind, Probe, Step};
use super::judge::{Connection, Past, is_asserted, judge, summary};
use super::world::{Changed, Stage};
use crate::corpus::prober::Came;
use crate::corpus::{self, Failure, Tally};

/// What is counted.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tallies {
    /// Probes of which something is asserted.
    pub probes: Tally,
    /// Probes of which nothing is.
    pub open: usize,
    /// Connections that were answered.
    pub answered: usize,
}

/// What became of a file.
pub type Report = corpus::Report<Tallies>;

impl corpus::Tallies for Tallies {
    fn asserted(&self) -> Tally {
        self.probes
    }
}

impl fmt::Display for Tallies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { probes: Tally { asserted, failed }, open, answered } = self;
        write!(
            f,
            "probes {failed} of {asserted} failed, {open} not asserted; {answered} connections answered"
        )
    }
}

/// What a health check has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    /// The status.
    pub status: u16,
    /// The local endpoints that it tells, and the weight in its header.
    pub local: (Option<u64>, Option<u64>),
}

/// What cases are run against.
pub(super) trait Subject {
    /// Begins a case, with nothing of the one before left.
    fn begin(&mut self, stage: &Stage) -> Result<()>;
    /// Takes up what was done; what of it is not supported.
    fn take(&mut self, stage: &Stage, act: &Act, changed: &[Changed]) -> Result<Vec<String>>;
    /// Waits until all that was done is in force.
    fn settle(&mut self, stage: &Stage) -> Result<()>;
    /// What becomes of a probe's connections, or of its echo requests.
    fn connect(&mut self, stage: &Stage, probe: &Probe) -> Result<Vec<Connection>>;
    /// What a health check says, or what becomes of its connection.
    fn check(&mut self, stage: &Stage, probe: &Probe) -> Result<Result<Check, Came>>;
    /// What was seen since the last time that must never be, whoever asks.
    fn complaints(&mut self) -> Result<Vec<String>>;
}

/// Runs cases of a file against something. `flip` wants the opposite of every asserted probe.
pub(super) fn run(corpus: &Corpus, cases: &[&Case], flip: bool, subject: &mut dyn Subject) -> Result<Report> {
    let mut report = Report::default();
    for case in cases {
        let stage = Stage::new(&corpus.topology)?;
        let mut story = Story {
            case,
            flip,
            stage,
            step: 0,
            past: Past::default(),
            unsupported: false,
            report: &mut report,
        };
        let (before, asserted) = (story.report.failures.len(), story.report.tallies.probes);
        if let Err(error) = story.tell(subject) {
            story.fail("the case", format!("{error:#}"));
        }
        if story.unsupported {
            // What is not supported is not asserted, whatever came out.
            report.failures.truncate(before);
            report.tallies.probes = asserted;
            report.unsupported.push(case.id.clone());
        } else if report.failures.len() == before {
            report.passed += 1;
        } else {
            report.failed += 1;
        }
    }
    Ok(report)
}

/// A case that is being told.
struct Story<'a> {
    case: &'a Case,
    flip: bool,
    stage: Stage,
    step: usize,
    past: Past,
    unsupported: bool,
    report: &'a mut Report,
}

impl Story<'_> {
    fn fail(&mut self, what: impl Into<String>, found: String) {
        let case = self.case.id.clone();
        self.report.failures.push(Failure { case, step: self.step, what: what.into(), found });
    }

    fn tell(&mut self, subject: &mut dyn Subject) -> Result<()> {
        subject.begin(&self.stage).context("beginning with the bare topology")?;
        for (number, step) in self.case.steps()?.iter().enumerate() {
            self.step = number;
            self.perform(step, subject)?;
            if self.unsupported {
                return Ok(());
            }
            for probe in &step.probes {
                let found = self.probe(probe, subject).with_context(|| format!("probe {}", probe.id))?;
                let what = format!("{} {} -> {}", probe.id, probe.from, probe.to);
                for complaint in subject.complaints()? {
                    self.fail(&what, complaint);
                }
                let Some(found) = found else {
                    self.report.tallies.open += 1;
                    continue;
                };
                self.report.tallies.probes.asserted += 1;
                let complaint = match (found, self.flip) {
                    (Ok(_), false) | (Err(_), true) => continue,
                    (Err(complaint), false) => complaint,
                    (Ok(found), true) => format!("wanted the opposite; found {found}"),
                };
                self.report.tallies.probes.failed += 1;
                self.fail(what, complaint);
            }
        }
        Ok(())
    }

    fn perform(&mut self, step: &Step, subject: &mut dyn Subject) -> Result<()> {
        for act in step.acts()? {
            let changed = self.stage.act(&act)?;
            self.unsupported |= !subject.take(&self.stage, &act, &changed)?.is_empty();
        }
        subject.settle(&self.stage)
    }

    /// Whether what becomes of a probe is what shall, and what it is; none if nothing is asserted.
    fn probe(&mut self, probe: &Probe, subject: &mut dyn Subject) -> Result<Option<Result<String, String>>> {
        let (verdict, found) = if probe.kind == Kind::Health {
            let check = subject.check(&self.stage, probe)?;
            (judge_check(probe, &check), format!("{check:?}"))
        } else {
            let connections = subject.connect(&self.stage, probe)?;
            let answered = connections.iter().filter(|one| matches!(one.came, Came::Answer(..))).count();
            self.report.tallies.answered += answered;
            let verdict = judge(&self.stage, probe, &connections, &self.past);
            self.past.note(probe, &connections);
            (verdict, summary(&connections))
        };
        Ok(is_asserted(probe).then_some(verdict.map(|()| found)))
    }
}

/// Why what a health check said is not what it shall.
fn judge_check(probe: &Probe, found: &Result<Check, Came>) -> Result<(), String> {
    let fits = |fate: &Fate| match (fate, found) {
        (Fate::Served, Ok(Check { status, local: (told, weight) })) => {
            let right = |local: &Option<u64>| probe.expect.local.is_none_or(|wanted| *local == Some(wanted));
            // The header is told of those who are there to be told.
            probe.expect.http.is_none_or(|wanted| wanted == *status)
                && right(told)
                && (weight.is_none() || right(weight))
        }
        (Fate::Refused, Err(came)) => *came == Came::Refusal,
        (Fate::Dropped, Err(came)) => *came == Came::Nothing,
        (Fate::Unserved | Fate::Denied | Fate::Dead, found) => found.is_err(),
        (Fate::Open, _) => true,
        _ => false,
    };
    let expect = &probe.expect;
    let wanted = || format!("{:?}, HTTP {:?}, local {:?}", expect.outcome, expect.http, expect.local);
    if expect.outcome.all().iter().any(fits) {
        Ok(())
    } else {
        Err(format!("wanted {}; found {found:?}", wanted()))
    }
}
