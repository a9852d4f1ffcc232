//! A file of cases run on real data paths: every asserted cell is a connection.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use causeway_model::PortProtocol;
use causeway_model::policy::{Direction, Traffic, Verdict};
use causeway_policy::{PolicyKey, read};
use serde_json::Value;

use super::fault::Fault;
use super::format::{Case, Corpus, Flow, Packet, Step};
use super::ground;
use super::prober::{Fate, Prober, Question};
use super::run::{Outcome, Report, Results, Seen, is_answer, word};
use super::world::{Act, Stage};
use crate::corpus::ground::Ground;
use crate::corpus::policies::Engine;
use crate::corpus::sockets::End;
use crate::corpus::{Failure, protocol};
use crate::lab::Datapath;

/// How long a volley may take until all is answered that should be, and all is counted.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a single connection may.
const PATIENCE_FOR_ONE: Duration = Duration::from_millis(2500);
/// How soon TCP asks again.
const ASKS_AGAIN: Duration = Duration::from_millis(900);
/// How often counters are read meanwhile.
const LOOK: Duration = Duration::from_millis(25);

/// Packets that rules have denied, by node and rule.
type Denied = BTreeMap<(String, String), u64>;

/// Runs cases of a file on one lab; with a fault, nodes are given wrong policies. `flip` wants the opposite of every cell and packet.
pub(super) fn run_on(
    corpus: &Corpus,
    cases: &[(&Case, Option<Fault>)],
    datapath: Datapath,
    flip: bool,
) -> Result<Report> {
    let (mut ground, mut prober) = (ground::build(corpus, datapath)?, Prober::default());
    let mut report = Report::default();
    report.tallies.packets_seen = Some(Seen::default());
    for (case, fault) in cases {
        let story = Story::new(corpus, case, (flip, *fault), (&mut ground, &mut prober));
        let mut story = story.with_context(|| case.id.clone())?;
        if let Err(error) = story.tell() {
            story.fail("the case", format!("{error:#}"));
        }
        let outcome = story.outcome();
        let (results, seen) = (story.results, story.seen);
        report.add(&case.id, outcome, results);
        if let Some(sum) = &mut report.tallies.packets_seen {
            sum.answered += seen.answered;
            sum.denials += seen.denials;
            sum.again += seen.again;
        }
    }
    let dead = report.tallies.packets_seen.is_some_and(|seen| seen.answered == 0);
    if dead && report.tallies.cells.asserted > 0 {
        let (case, what) = ("all".to_owned(), "the run".to_owned());
        report.failures.push(Failure { case, step: 0, what, found: "nothing was ever answered".into() });
        report.failed += 1;
    }
    Ok(report)
}

/// A connection that is looked at, and what shall become of it.
struct Cell {
    what: String,
    /// None where an engine's verdict is all that is wanted.
    want: bool,
    question: Question,
    /// The node and rule that deny it, as the engine says; none if it is allowed.
    denied: Option<(String, String)>,
}

impl Cell {
    /// Whether what became of it is what the engine says.
    fn is_as_predicted(&self, fate: Fate) -> bool {
        match self.denied {
            Some(_) => fate == Fate::default(),
            None => fate.answered,
        }
    }
}

/// A case that is being told.
struct Story<'a> {
    case: &'a Case,
    endpoints: &'a [String],
    flip: bool,
    /// How what the nodes are given differs from what the engine has.
    fault: Option<Fault>,
    stage: Stage,
    engine: Engine,
    ground: &'a mut Ground,
    prober: &'a mut Prober,
    policies: BTreeMap<PolicyKey, Value>,
    step: usize,
    unsupported: bool,
    results: Results,
    seen: Seen,
}

impl<'a> Story<'a> {
    fn new(
        corpus: &'a Corpus,
        case: &'a Case,
        (flip, fault): (bool, Option<Fault>),
        (ground, prober): (&'a mut Ground, &'a mut Prober),
    ) -> Result<Self> {
        let (stage, changes) = Stage::new(&corpus.topology)?;
        let mut engine = Engine::new(&stage, None)?;
        engine.apply(&stage, &changes);
        let policies = BTreeMap::new();
        // What the case before has left goes with what this one begins with.
        ground.plug(&stage.scene(&policies), |place| prober.forget(place))?;
        Ok(Self {
            case,
            endpoints: case.endpoints.as_ref().unwrap_or(&corpus.default_endpoints),
            flip,
            fault,
            stage,
            engine,
            ground,
            prober,
            policies,
            step: 0,
            unsupported: false,
            results: Results::default(),
            seen: Seen::default(),
        })
    }

    fn outcome(&self) -> Outcome {
        match (self.unsupported, self.results.failures.is_empty()) {
            (true, _) => Outcome::Unsupported,
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
            // What is not supported is not asserted.
            if self.unsupported {
                continue;
            }
            let cells = self.cells(step)?;
            self.results.cells.asserted += cells.len();
            self.results.cells.failed += self.look(&cells)?;
            for packet in in_order(&step.packets) {
                self.packet(packet)?;
            }
        }
        Ok(())
    }

    fn perform(&mut self, step: &Step) -> Result<()> {
        let mut refused = Vec::new();
        for line in &step.acts {
            let Act { changes, applied, deleted } = self.stage.act(line)?;
            self.engine.apply(&self.stage, &changes);
            for report in self.engine.apply_policies(&self.stage, &applied, &deleted)? {
                self.stage.note(&report.policy);
                self.unsupported |= report.is_unsupported();
                refused.push(report.policy);
            }
            for key in &deleted {
                self.policies.remove(key);
            }
            for document in applied {
                let read = read(&document)?;
                let bent = self.fault.zip(read.policy).and_then(|(fault, policy)| fault.bent(&policy));
                self.policies.insert(read.report.policy, bent.unwrap_or(document));
            }
            let scene = self.stage.scene(&self.policies);
            self.ground.plug(&scene, |place| self.prober.forget(place))?;
        }
        self.ground.settle(&self.stage.scene(&self.policies))?;
        if step.rejected && !self.unsupported {
            self.reject(&refused)?;
        }
        Ok(())
    }

    /// What an API server refuses is named by every node, and opens nothing beyond what the engine says.
    fn reject(&mut self, refused: &[PolicyKey]) -> Result<()> {
        for policy in refused {
            self.results.rejections.asserted += 1;
            let named = |problems: &Vec<String>| problems.iter().any(|one| one.contains(&policy.to_string()));
            if !ground::problems(self.ground)?.iter().all(named) {
                self.results.rejections.failed += 1;
                self.fail(policy.to_string(), "wanted a report of what is wrong, found none".into());
            }
        }
        let flows = ["4/TCP/80", "4/UDP/81", "4/SCTP/80", "6/TCP/81"];
        let mut cells = Vec::new();
        for flow in flows.into_iter().map(|flow| Flow::try_from(flow.to_owned())) {
            let flow = flow?;
            for (source, destination) in self.pairs() {
                let regular = |end: &str| self.stage.node_of_pod(end).is_some();
                if regular(&source) || regular(&destination) {
                    cells.extend(self.cell(&flow, &source, &destination, None)?);
                }
            }
        }
        self.results.rejections.failed += self.look(&cells)?;
        Ok(())
    }

    fn pairs(&self) -> Vec<(String, String)> {
        let of = |source: &String| {
            self.endpoints.iter().map(|to| (source.clone(), to.clone())).collect::<Vec<_>>()
        };
        self.endpoints.iter().flat_map(of).collect()
    }

    /// The cells of a step's grids.
    fn cells(&mut self, step: &Step) -> Result<Vec<Cell>> {
        let mut cells = Vec::new();
        for grid in &step.expect {
            for (source, letters) in &grid.grid {
                ensure!(
                    letters.chars().count() == self.endpoints.len(),
                    "row {source} has not one letter for each of {} destinations",
                    self.endpoints.len()
                );
                for (destination, letter) in self.endpoints.iter().zip(letters.chars()) {
                    let want = match letter {
                        '1' => true,
                        '0' => false,
                        '?' | '-' => continue,
                        other => bail!("letter {other:?} in row {source}"),
                    } != self.flip;
                    for flow in &grid.flows {
                        match self.cell(flow, source, destination, Some(want))? {
                            Some(cell) => cells.push(cell),
                            None => {
                                self.results.cells.asserted += 1;
                                self.results.cells.failed += 1;
                                self.fail(
                                    format!("{flow} {source} -> {destination}"),
                                    "an end is absent".into(),
                                );
                            }
                        }
                    }
                }
            }
        }
        Ok(cells)
    }

    /// A connection between two endpoints; without a wish, what the engine says shall become of it.
    fn cell(&self, flow: &Flow, source: &str, destination: &str, want: Option<bool>) -> Result<Option<Cell>> {
        let ends = (self.end(source, flow), self.end(destination, flow));
        let (Some(from), Some(to)) = ends else { return Ok(None) };
        let protocol = protocol(&flow.protocol)?;
        let traffic = Traffic::To(protocol, flow.port);
        let mut denied = None;
        for (pod, direction, peer) in
            [(source, Direction::Egress, to.address), (destination, Direction::Ingress, from.address)]
        {
            // What a pod sends to its own address is nobody else's.
            let Some(node) = self.stage.node_of_pod(pod).filter(|_| source != destination) else { continue };
            let judged = self.engine.judge(&self.stage, pod, direction, peer, traffic)?;
            if judged.verdict == Verdict::Deny {
                denied = Some((node.to_owned(), judged.rule));
                break;
            }
        }
        let question = Question { from, from_port: None, to, protocol, port: flow.port };
        let want = want.unwrap_or(denied.is_none());
        Ok(Some(Cell { what: format!("{flow} {source} -> {destination}"), want, question, denied }))
    }

    fn end(&self, endpoint: &str, flow: &Flow) -> Option<End> {
        ground::end(self.ground, &self.stage, endpoint, flow.family)
    }

    /// Begins all of these connections at once, and those again one by one of which it is not as the engine says. Returns how many
    /// are not as they shall be.
    fn look(&mut self, cells: &[Cell]) -> Result<usize> {
        let before = ground::denied(self.ground)?;
        let mut expected = before.clone();
        for rule in cells.iter().filter_map(|cell| cell.denied.clone()) {
            *expected.entry(rule).or_default() += 1;
        }
        let moved: Vec<_> = expected.iter().filter(|(rule, count)| before.get(rule) != Some(count)).collect();
        let questions: Vec<_> = cells.iter().map(|cell| cell.question.clone()).collect();
        let (ground, mut last) = (&*self.ground, Instant::now());
        let (mut denied, none): (_, Denied) = (None, Denied::new());
        let counted = |denied: &Option<Denied>| {
            let denied = denied.as_ref().unwrap_or(&none);
            moved.iter().all(|(rule, count)| denied.get(rule).is_some_and(|found| found >= count))
        };
        let fates = self.prober.ask(&questions, PATIENCE, |fates| {
            let answered = |(cell, fate): (&Cell, &Fate)| cell.denied.is_some() || fate.answered;
            if !cells.iter().zip(fates).all(answered) {
                return Ok(false);
            }
            if !moved.is_empty() && last.elapsed() > LOOK {
                denied = Some(ground::denied(ground)?);
                last = Instant::now();
            }
            Ok(counted(&denied))
        })?;
        let after = ground::denied(self.ground)?;
        let wrong_sums: Vec<_> = moved
            .iter()
            .filter(|(rule, count)| after.get(rule) != Some(count))
            .map(|(rule, _)| *rule)
            .collect();
        self.seen.denials.asserted += moved.len();
        let mut failed = 0;
        for (cell, fate) in cells.iter().zip(fates) {
            self.seen.answered += usize::from(fate.answered);
            let miscounted = cell.denied.as_ref().is_some_and(|rule| wrong_sums.contains(&rule));
            let (fate, found) = match cell.is_as_predicted(fate) && !miscounted {
                true => (fate, None),
                // Nothing that got through can be taken back.
                false if fate.arrived && cell.denied.is_some() => (fate, None),
                false => self.look_again(cell)?,
            };
            if let Some(found) = found {
                self.seen.denials.failed += 1;
                self.fail(&cell.what, found);
            }
            let came = if fate.answered { Some(true) } else { (!fate.arrived).then_some(false) };
            if came != Some(cell.want) {
                failed += 1;
                self.fail(&cell.what, told(cell, fate));
            }
        }
        Ok(failed)
    }

    /// Begins one connection, and tells what is wrong with the counters of what denies it.
    fn look_again(&mut self, cell: &Cell) -> Result<(Fate, Option<String>)> {
        self.seen.again += 1;
        let (before, began) = (ground::denied(self.ground)?, Instant::now());
        let ground = &*self.ground;
        let rule = cell.denied.as_ref();
        let moved = |now: &Denied| {
            rule.map_or(0, |rule| now.get(rule).unwrap_or(&0) - before.get(rule).unwrap_or(&0))
        };
        let fates = self.prober.ask(std::slice::from_ref(&cell.question), PATIENCE_FOR_ONE, |fates| {
            let fate = fates.first().copied().unwrap_or_default();
            Ok(fate.answered || rule.is_some() && moved(&ground::denied(ground)?) > 0)
        })?;
        let now = ground::denied(self.ground)?;
        // TCP asks again by itself if it takes that long.
        let most =
            if cell.question.protocol == PortProtocol::Tcp && began.elapsed() > ASKS_AGAIN { 3 } else { 1 };
        let found = (rule.is_some() && !(1..=most).contains(&moved(&now))).then(|| {
            let others = now.iter().filter(|(rule, count)| before.get(rule) != Some(count));
            let others: Vec<_> = others.map(|((node, rule), _)| format!("{rule} on {node}")).collect();
            format!("{} packets are counted for {rule:?}; what moved: {}", moved(&now), others.join(", "))
        });
        Ok((fates.first().copied().unwrap_or_default(), found))
    }

    fn packet(&mut self, packet: &Packet) -> Result<()> {
        let want = match packet.want.as_str() {
            "allow" => true,
            "deny" => false,
            "any" => return Ok(()),
            other => bail!("packet {} wants {other:?}", packet.id),
        } != self.flip;
        self.results.packets.asserted += 1;
        // An answer that comes is the connection's other direction; one that nobody waits for is a connection of its own.
        let opened = match &packet.open {
            Some(open) => self.passes(open)? && is_answer(&packet.packet, open),
            None => false,
        };
        if (opened || self.passes(&packet.packet)?) != want {
            self.results.packets.failed += 1;
            self.fail(format!("packet {}", packet.id), format!("wanted {}", word(want)));
        }
        Ok(())
    }

    /// Whether a connection from this very port is answered.
    fn passes(&mut self, tuple: &super::format::Tuple) -> Result<bool> {
        let flow = Flow { family: tuple.family, protocol: tuple.proto.clone(), port: tuple.dport };
        let cell = self.cell(&flow, &tuple.src, &tuple.dst, None)?;
        let mut cell =
            cell.with_context(|| format!("an end of {flow} {} -> {} is absent", tuple.src, tuple.dst))?;
        cell.question.from_port = Some(tuple.sport);
        Ok(self.look_again(&cell)?.0.answered)
    }
}

/// Those first that stand for themselves: what others open would let them through.
fn in_order(packets: &[Packet]) -> impl Iterator<Item = &Packet> {
    let alone = packets.iter().filter(|packet| packet.open.is_none());
    alone.chain(packets.iter().filter(|packet| packet.open.is_some()))
}

fn told(cell: &Cell, fate: Fate) -> String {
    let found = match fate {
        Fate { answered: true, .. } => "it is answered",
        Fate { arrived: true, .. } => "it arrives and is not answered",
        _ => "nothing arrives",
    };
    let said = match &cell.denied {
        None => "allow".to_owned(),
        Some((node, rule)) => format!("deny by {rule} on {node}"),
    };
    format!("wanted {}, found that {found}; the engine says {said}", word(cell.want))
}
