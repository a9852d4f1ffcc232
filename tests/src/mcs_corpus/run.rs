//! A file of cases run, whatever it is run against.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;

use anyhow::{Context, Result};
use serde::Serialize;

use super::expect::{Expect, Never};
use super::fault::Fault;
use super::format::{Case, Corpus, Name, Step, Want};
use super::judge::{self, Regions, Viewed, family_text, service_name};
use super::look::Look;
use super::stage::{Done, Stage};
use crate::corpus::{self, Failure, Tally};

/// What is counted.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tallies {
    /// Exports with their conditions.
    pub exports: Tally,
    /// Views of services: import and backends together.
    pub views: Tally,
    /// Their names.
    pub names: Tally,
    /// Clusters' own services.
    pub local: Tally,
    /// Backends that nobody may reach.
    pub never: Tally,
    /// Services of which all observers show one alternative.
    pub agreements: Tally,
    /// Refusals of clusters and of prefixes.
    pub refusals: Tally,
    /// Observers after steps, whose invariants hold; never flipped.
    pub invariants: Tally,
}

/// What became of a file.
pub type Report = corpus::Report<Tallies>;

impl corpus::Tallies for Tallies {
    fn asserted(&self) -> Tally {
        let all =
            [self.exports, self.views, self.names, self.local, self.never, self.agreements, self.refusals];
        all.into_iter().sum()
    }
}

impl fmt::Display for Tallies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tallies = [
            ("exports", self.exports),
            ("views", self.views),
            ("names", self.names),
            ("own services", self.local),
            ("never reached", self.never),
            ("agreements", self.agreements),
            ("refusals", self.refusals),
            ("invariants", self.invariants),
        ];
        let told = tallies.map(|(what, Tally { asserted, failed })| format!("{what} {failed} of {asserted}"));
        write!(f, "failed: {}", told.join(", "))
    }
}

/// What cases are run against.
pub(super) trait Subject {
    /// Begins a case, with nothing of the one before left. What of it is not supported is told: then it is not run.
    fn begin(&mut self, stage: &Stage<'_>) -> Result<Option<String>>;
    /// Takes up what was done.
    fn tell(&mut self, stage: &Stage<'_>, done: &Done) -> Result<()>;
    /// Waits until all that was done is in force.
    fn settle(&mut self, stage: &Stage<'_>) -> Result<()>;
    /// Looks at a cluster, as closely as what is expected needs it.
    fn look(&mut self, stage: &Stage<'_>, observer: &str, expect: &Expect) -> Result<Rc<dyn Look>>;
    /// A cluster as whoever reads everything from the last object to the first shows it; none where nobody does.
    fn again(&mut self, stage: &Stage<'_>, observer: &str) -> Result<Option<Rc<dyn Look>>>;
    /// What of the invariants does not hold in a cluster.
    fn broken(&mut self, stage: &Stage<'_>, observer: &str, look: &dyn Look) -> Result<Vec<String>>;
}

/// Runs cases of a file against something. `flip` wants the opposite of everything asserted.
pub(super) fn run(
    corpus: &Corpus,
    cases: &[&Case],
    flip: bool,
    fault: Option<Fault>,
    subject: &mut dyn Subject,
) -> Report {
    let mut report = Report::default();
    for case in cases {
        let failures = report.failures.len();
        let mut story = Story { case, flip, step: 0, report: &mut report };
        let told = story.tell(corpus, fault, subject);
        if let Err(error) = &told {
            story.fail("the case", format!("{error:#}"));
        }
        match told {
            Ok(false) => report.unsupported.push(case.id.clone()),
            _ if report.failures.len() == failures => report.passed += 1,
            _ => report.failed += 1,
        }
    }
    report
}

/// A case that is being told.
struct Story<'a> {
    case: &'a Case,
    flip: bool,
    step: usize,
    report: &'a mut Report,
}

/// All who look, and what they see.
type Seen = BTreeMap<String, Rc<dyn Look>>;

/// What kind of assertion it is.
type Kinds = fn(&mut Tallies) -> &mut Tally;

impl Story<'_> {
    fn fail(&mut self, what: impl Into<String>, found: String) {
        let case = self.case.id.clone();
        self.report.failures.push(Failure { case, step: self.step, what: what.into(), found });
    }

    /// Counts an assertion, and tells it if it does not hold, or holds and must not.
    fn count(&mut self, kind: Kinds, what: String, wrong: &[String]) {
        let failed = wrong.is_empty() == self.flip;
        let tally = kind(&mut self.report.tallies);
        tally.asserted += 1;
        tally.failed += usize::from(failed);
        if failed {
            let found = if self.flip { "wanted the opposite".to_owned() } else { wrong.join("; ") };
            self.fail(what, found);
        }
    }

    /// Tells it; false if it asks for what is not supported.
    fn tell(&mut self, corpus: &Corpus, fault: Option<Fault>, subject: &mut dyn Subject) -> Result<bool> {
        let mut stage = Stage::new(corpus, self.case, fault)?;
        if subject.begin(&stage)?.is_some() {
            return Ok(false);
        }
        for (number, Step { acts, expect, .. }) in self.case.steps()?.iter().enumerate() {
            self.step = number;
            for act in acts {
                let done = stage.act(act).with_context(|| format!("step {number}"))?;
                subject.tell(&stage, &done)?;
            }
            subject.settle(&stage)?;
            let observers = self.observers(&stage, expect);
            let mut seen = Seen::new();
            for observer in &observers {
                seen.insert(observer.clone(), subject.look(&stage, observer, expect)?);
            }
            let mut exporters = seen.clone();
            for cluster in expect.exports.keys().filter(|name| !expect.refused.contains_key(*name)) {
                let lost = stage.member(cluster)?.lost.is_some();
                if !lost && !exporters.contains_key(cluster) {
                    exporters.insert(cluster.clone(), subject.look(&stage, cluster, &Expect::default())?);
                }
            }
            self.exports(&stage, &seen, &exporters, expect)?;
            let regions: Regions = stage
                .members()
                .iter()
                .filter_map(|member| Some((member.name.to_string(), member.cluster.region.clone()?)))
                .collect();
            self.views(&stage, subject, &seen, expect, &regions)?;
            for (observer, look) in &seen {
                self.refusals(observer, &**look, expect);
                expect.never.iter().for_each(|never| self.never(observer, &**look, never));
                for (name, local) in expect.local.get(observer).into_iter().flatten() {
                    let wrong = look.wrong_of_own(name, local);
                    self.count(|tallies| &mut tallies.local, format!("{name} of {observer}"), &wrong);
                }
                let broken = subject.broken(&stage, observer, &**look)?;
                self.report.tallies.invariants.asserted += 1;
                if !broken.is_empty() {
                    self.report.tallies.invariants.failed += 1;
                    self.fail(format!("invariants of {observer}"), broken.join("; "));
                }
            }
        }
        Ok(true)
    }

    /// Who looks: those whom the case names, else every member; nobody who is lost or refused.
    fn observers(&self, stage: &Stage<'_>, expect: &Expect) -> Vec<String> {
        let looks = |name: &String| self.case.observers.as_ref().is_none_or(|named| named.contains(name));
        let there = stage.members().iter().filter(|member| member.lost.is_none());
        let names = there.map(|member| member.name.to_string());
        names.filter(|name| looks(name) && !expect.refused.contains_key(name)).collect()
    }

    fn exports(&mut self, stage: &Stage<'_>, seen: &Seen, exporters: &Seen, expect: &Expect) -> Result<()> {
        for (cluster, exports) in &expect.exports {
            let member = stage.member(cluster)?;
            let Some(own) = exporters.get(cluster) else { continue };
            if member.lost.is_some() || expect.refused.contains_key(cluster) {
                continue;
            }
            for (name, want) in exports {
                let Want::Is(want) = want else { continue };
                if !judge::asserts(want) {
                    continue;
                }
                let name_there = service_name(name);
                let families = seen.values().filter_map(|look| look.import(&name_there));
                let families = families.flat_map(|import| &import.families);
                let listed = families.map(|family| family_text(*family).to_owned()).collect();
                let own = own.export(&name_there, &member.name);
                let mut wrong = judge::export(want, own, &listed);
                // Whoever sees the export sees the same of it.
                for (observer, look) in seen {
                    let theirs = look.export(&name_there, &member.name);
                    if theirs.is_some() && theirs != own {
                        wrong.push(format!("{observer} sees {theirs:?}"));
                    }
                }
                self.count(|tallies| &mut tallies.exports, format!("export of {name} by {cluster}"), &wrong);
            }
        }
        Ok(())
    }

    fn views(
        &mut self,
        stage: &Stage<'_>,
        subject: &mut dyn Subject,
        seen: &Seen,
        expect: &Expect,
        regions: &Regions,
    ) -> Result<()> {
        let mut shown: BTreeMap<&Name, BTreeSet<usize>> = BTreeMap::new();
        for group in &expect.seen {
            for from in &group.from {
                let Some(look) = seen.get(from) else { continue };
                let again = subject.again(stage, from)?;
                for (name, alternatives) in &group.services {
                    let viewed = |look: &dyn Look| -> Vec<_> {
                        alternatives.0.iter().map(|view| judge::view(look, name, view, regions)).collect()
                    };
                    let holds = |viewed: &[Viewed]| -> BTreeSet<usize> {
                        (0..viewed.len()).filter(|number| viewed[*number].faults() == 0).collect()
                    };
                    let found = viewed(&**look);
                    let mut both = holds(&found);
                    if let Some(again) = &again {
                        both = both.intersection(&holds(&viewed(&**again))).copied().collect();
                    }
                    match shown.get_mut(name) {
                        Some(shown) => shown.retain(|number| both.contains(number)),
                        None => drop(shown.insert(name, both)),
                    }
                    let best = found.into_iter().min_by_key(Viewed::faults).unwrap_or_default();
                    self.count(|tallies| &mut tallies.views, format!("{from} sees {name}"), &best.wrong);
                    for (question, wrong) in best.names {
                        self.count(|tallies| &mut tallies.names, format!("{from} asks {question}"), &wrong);
                    }
                }
            }
        }
        for name in &expect.agree {
            let agreed = shown.get(name).is_some_and(|numbers| !numbers.is_empty());
            let wrong = if agreed { Vec::new() } else { vec!["observers show different views".to_owned()] };
            self.count(|tallies| &mut tallies.agreements, format!("agreement on {name}"), &wrong);
        }
        Ok(())
    }

    fn refusals(&mut self, observer: &str, look: &dyn Look, expect: &Expect) {
        let all = look.refused();
        for (cluster, want) in &expect.refused {
            let found = all.get(cluster).cloned().unwrap_or_default();
            let wrong: Vec<_> =
                (found != *want).then(|| format!("wanted {want:?}, found {found:?}")).into_iter().collect();
            self.count(|tallies| &mut tallies.refusals, format!("{observer} refuses {cluster}"), &wrong);
        }
        if let Some(want) = expect.refused_prefixes.get(observer) {
            let found = look.refused_prefixes();
            let wrong: Vec<_> =
                (found != *want).then(|| format!("wanted {want:?}, found {found:?}")).into_iter().collect();
            self.count(|tallies| &mut tallies.refusals, format!("clusterset-cidr of {observer}"), &wrong);
        }
    }

    fn never(&mut self, observer: &str, look: &dyn Look, never: &Never) {
        let Never { service, backends, of, because } = never;
        let wrong: Vec<_> = match judge::reachable(look, service) {
            Ok(reached) => reached.intersection(backends).map(|it| format!("{it} is reached")).collect(),
            Err(error) => vec![format!("{error:#}")],
        };
        let what = format!("{observer} never reaches {service} of {of}: {because}");
        self.count(|tallies| &mut tallies.never, what, &wrong);
    }
}
