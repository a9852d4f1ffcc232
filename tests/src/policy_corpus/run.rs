//! A file of cases run against the engine.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use causeway_model::policy::{Direction, Traffic, Verdict};
use causeway_policy::Effect;
use serde::Serialize;

use super::fault::Fault;
use super::format::{Case, Corpus, Flow, Packet, Step, Tuple};
use super::world::{Act, Stage};
use crate::corpus::policies::{Bend, Engine, Judged};
use crate::corpus::{self, Failure, Tally, protocol};

/// What became of one case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Everything was as it should be.
    Passed,
    /// Something was not.
    Failed,
    /// It asks for something that is not supported; only that it does no harm was looked at.
    Unsupported,
}

/// What data paths did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Connections that were answered.
    pub answered: usize,
    /// Sums of rules' denials, one a step, node and rule.
    pub denials: Tally,
    /// Connections that were tried again one by one.
    pub again: usize,
}

/// What is counted.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tallies {
    /// Cells of grids.
    pub cells: Tally,
    /// Single packets.
    pub packets: Tally,
    /// Policies that an API server refuses: reported by name, and nothing has opened.
    pub rejections: Tally,
    /// Judgements that tables and slow evaluator do not agree on.
    pub disagreements: usize,
    /// What the data paths did besides; none without them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets_seen: Option<Seen>,
}

/// What became of a file.
pub type Report = corpus::Report<Tallies>;

impl corpus::Tallies for Tallies {
    fn asserted(&self) -> Tally {
        [self.cells, self.packets].into_iter().sum()
    }
}

impl fmt::Display for Tallies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cells, packets, rejections, .. } = self;
        write!(f, "cells {} of {} failed, ", cells.failed, cells.asserted)?;
        write!(f, "packets {} of {}, ", packets.failed, packets.asserted)?;
        write!(f, "refused objects {} of {}", rejections.failed, rejections.asserted)?;
        let Some(Seen { answered, denials, again }) = &self.packets_seen else { return Ok(()) };
        write!(f, "\nanswered {answered} connections, ")?;
        write!(f, "sums of denials {} of {} wrong, tried again {again}", denials.failed, denials.asserted)
    }
}

/// Runs cases of a file. `flip` wants the opposite of every cell and packet.
pub(super) fn run(corpus: &Corpus, cases: &[&Case], flip: bool, fault: Option<Fault>) -> Result<Report> {
    let mut report = Report::default();
    for case in cases {
        let mut story = Story::new(corpus, case, flip, fault).with_context(|| case.id.clone())?;
        if let Err(error) = story.tell() {
            story.fail("the case", format!("{error:#}"));
        }
        report.take(story);
    }
    Ok(report)
}

impl Report {
    fn take(&mut self, story: Story<'_>) {
        self.tallies.disagreements += story.disagreements;
        self.add(&story.case.id, story.outcome(), story.results);
    }

    /// Counts a case.
    pub(super) fn add(&mut self, case: &str, outcome: Outcome, results: Results) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed => self.failed += 1,
            Outcome::Unsupported => self.unsupported.push(case.to_owned()),
        }
        self.failures.extend(results.failures);
        if outcome != Outcome::Unsupported {
            self.tallies.cells += results.cells;
            self.tallies.packets += results.packets;
            self.tallies.rejections += results.rejections;
        }
    }
}

/// What of one case was looked at.
#[derive(Default)]
pub(super) struct Results {
    pub cells: Tally,
    pub packets: Tally,
    pub rejections: Tally,
    pub failures: Vec<Failure>,
}

/// A case that is being told.
struct Story<'a> {
    case: &'a Case,
    endpoints: &'a [String],
    flip: bool,
    stage: Stage,
    engine: Engine,
    step: usize,
    unsupported: bool,
    disagreements: usize,
    results: Results,
}

impl<'a> Story<'a> {
    fn new(corpus: &'a Corpus, case: &'a Case, flip: bool, fault: Option<Fault>) -> Result<Self> {
        let (stage, changes) = Stage::new(&corpus.topology)?;
        let bend = fault.map(|fault| -> Bend { Box::new(move |policy| fault.compiled(policy)) });
        let mut engine = Engine::new(&stage, bend)?;
        engine.apply(&stage, &changes);
        Ok(Self {
            case,
            endpoints: case.endpoints.as_ref().unwrap_or(&corpus.default_endpoints),
            flip,
            stage,
            engine,
            step: 0,
            unsupported: false,
            disagreements: 0,
            results: Results::default(),
        })
    }

    fn outcome(&self) -> Outcome {
        match (self.unsupported, self.results.failures.is_empty()) {
            (true, _) if self.disagreements == 0 => Outcome::Unsupported,
            (_, true) => Outcome::Passed,
            (_, false) => Outcome::Failed,
        }
    }

    fn fail(&mut self, what: impl Into<String>, found: String) {
        let case = self.case.id.clone();
        self.results.failures.push(Failure { case, step: self.step, what: what.into(), found });
    }

    fn tell(&mut self) -> Result<()> {
        for (number, step) in self.case.steps()?.iter().enumerate() {
            self.step = number;
            self.perform(step)?;
            for grid in &step.expect {
                for (source, letters) in &grid.grid {
                    ensure!(
                        letters.chars().count() == self.endpoints.len(),
                        "row {source} has not one letter for each of {} destinations",
                        self.endpoints.len()
                    );
                    for (destination, letter) in self.endpoints.iter().zip(letters.chars()) {
                        for flow in &grid.flows {
                            self.cell(flow, source, destination, letter)?;
                        }
                    }
                }
            }
            step.packets.iter().try_for_each(|packet| self.packet(packet))?;
        }
        // What is not supported is not asserted, whatever came out.
        if self.unsupported && self.disagreements == 0 {
            self.results.failures.clear();
        }
        Ok(())
    }

    fn perform(&mut self, step: &Step) -> Result<()> {
        let before = if step.rejected { self.open_cells()? } else { BTreeSet::new() };
        let mut reports = Vec::new();
        for line in &step.acts {
            let Act { changes, applied, deleted } = self.stage.act(line)?;
            self.engine.apply(&self.stage, &changes);
            reports.extend(self.engine.apply_policies(&self.stage, &applied, &deleted)?);
        }
        for report in reports {
            self.stage.note(&report.policy);
            self.unsupported |= report.is_unsupported();
            if step.rejected {
                self.results.rejections.asserted += 1;
                if report.effect == Effect::Whole || report.problems.is_empty() {
                    self.results.rejections.failed += 1;
                    self.fail(
                        report.policy.to_string(),
                        "wanted a report of what is wrong, found none".into(),
                    );
                }
            }
        }
        if step.rejected {
            let opened: Vec<_> = self.open_cells()?.difference(&before).cloned().collect();
            if let Some(first) = opened.first() {
                self.results.rejections.failed += 1;
                self.fail(
                    first,
                    format!("opened by policies that an API server refuses, as {}", opened.len()),
                );
            }
        }
        Ok(())
    }

    /// Everything that is allowed among the endpoints, of three protocols and two ports.
    fn open_cells(&mut self) -> Result<BTreeSet<String>> {
        let mut open = BTreeSet::new();
        for family in [4, 6] {
            for (protocol, port) in ["TCP", "UDP", "SCTP"].into_iter().flat_map(|p| [(p, 80), (p, 81)]) {
                let flow = Flow { family, protocol: protocol.to_owned(), port };
                for source in self.endpoints {
                    for destination in self.endpoints {
                        if let Some((true, _)) = self.reaches(&flow, source, destination)? {
                            open.insert(format!("{flow} {source} -> {destination}"));
                        }
                    }
                }
            }
        }
        Ok(open)
    }

    /// Whether a new connection is allowed at both of its ends, and what each says; `None` where an end is absent.
    fn reaches(&mut self, flow: &Flow, source: &str, destination: &str) -> Result<Option<(bool, String)>> {
        let from = self.stage.address(source, flow.family);
        let to = self.stage.address(destination, flow.family);
        let (Some(from), Some(to)) = (from, to) else { return Ok(None) };
        let traffic = Traffic::To(protocol(&flow.protocol)?, flow.port);
        let mut allowed = true;
        let mut said = Vec::new();
        for (pod, direction, peer) in
            [(source, Direction::Egress, to), (destination, Direction::Ingress, from)]
        {
            // What a pod sends to its own address is nobody else's.
            if source == destination || self.stage.node_of_pod(pod).is_none() {
                continue;
            }
            let Judged { verdict, rule, otherwise } =
                self.engine.judge(&self.stage, pod, direction, peer, traffic)?;
            allowed &= verdict == Verdict::Allow;
            said.push(format!("{direction} {verdict} by {rule}"));
            if let Some(otherwise) = otherwise {
                self.disagreements += 1;
                let what = format!("{flow} {source} -> {destination} {direction}");
                self.fail(what, format!("tables: {verdict} by {rule}; slow evaluator: {otherwise}"));
            }
        }
        Ok(Some((allowed, said.join(", "))))
    }

    fn cell(&mut self, flow: &Flow, source: &str, destination: &str, letter: char) -> Result<()> {
        let want = match letter {
            '1' => true,
            '0' => false,
            '?' | '-' => return Ok(()),
            other => bail!("letter {other:?} in row {source}"),
        } != self.flip;
        self.results.cells.asserted += 1;
        let found = self.reaches(flow, source, destination)?;
        let Some((allowed, said)) = found else {
            self.results.cells.failed += 1;
            self.fail(format!("{flow} {source} -> {destination}"), "an end is absent".into());
            return Ok(());
        };
        if allowed != want {
            self.results.cells.failed += 1;
            let found = format!("wanted {}, found {said}", word(want));
            self.fail(format!("{flow} {source} -> {destination}"), found);
        }
        Ok(())
    }

    fn packet(&mut self, packet: &Packet) -> Result<()> {
        let want = match packet.want.as_str() {
            "allow" => true,
            "deny" => false,
            "any" => return Ok(()),
            other => bail!("packet {} wants {other:?}", packet.id),
        } != self.flip;
        self.results.packets.asserted += 1;
        let opened = match &packet.open {
            // The connection's other direction belongs to it, if it was let through at all.
            Some(open) if is_answer(&packet.packet, open) => self.allows(open)?,
            _ => false,
        };
        let allowed = opened || self.allows(&packet.packet)?;
        if allowed != want {
            self.results.packets.failed += 1;
            self.fail(format!("packet {}", packet.id), format!("wanted {}", word(want)));
        }
        Ok(())
    }

    fn allows(&mut self, Tuple { src, dst, proto, dport, family, .. }: &Tuple) -> Result<bool> {
        let flow = Flow { family: *family, protocol: proto.clone(), port: *dport };
        let found = self.reaches(&flow, src, dst)?;
        found
            .map(|(allowed, _)| allowed)
            .with_context(|| format!("an end of {flow} {src} -> {dst} is absent"))
    }
}

pub(super) fn is_answer(packet: &Tuple, open: &Tuple) -> bool {
    let ends = |t: &Tuple| (t.proto.clone(), (t.src.clone(), t.sport), (t.dst.clone(), t.dport));
    let ((proto, from, to), (opened, opener, answerer)) = (ends(packet), ends(open));
    proto == opened && from == answerer && to == opener && packet.family == open.family
}

pub(super) fn word(allowed: bool) -> &'static str {
    if allowed { "allow" } else { "deny" }
}
