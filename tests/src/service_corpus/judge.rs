//! What became of a probe's connections against what shall become of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Result, ensure};

use super::format::{Expect, Fate, Kind, Many, Probe, Seen, Source};
use super::world::{Party, Stage};
use crate::corpus::prober::Came;

/// A connection, and what became of it.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// The addresses that its client has, or the one that it began from.
    pub client: Vec<IpAddr>,
    /// What became of it.
    pub came: Came,
}

/// What earlier probes of a case have come to.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// Who answered, by probe.
    pub by_probe: BTreeMap<String, String>,
    /// Who answered last, by flow.
    pub by_flow: BTreeMap<String, String>,
}

impl Past {
    /// Notes what became of a probe.
    pub fn note(&mut self, probe: &Probe, connections: &[Connection]) {
        let last = connections.iter().rev().find_map(|connection| match &connection.came {
            Came::Answer(by, _) => Some(by.clone()),
            _ => None,
        });
        let Some(last) = last else { return };
        if let Some(flow) = probe.flow.as_ref().or(probe.resume.as_ref()) {
            self.by_flow.insert(flow.clone(), last.clone());
        }
        self.by_probe.insert(probe.id.clone(), last);
    }
}

/// Whether anything is asserted of a probe.
pub(super) fn is_asserted(probe: &Probe) -> bool {
    !probe.expect.outcome.all().contains(&Fate::Open)
}

/// Why what became of a probe's connections is not what shall.
pub(super) fn judge(
    stage: &Stage,
    probe: &Probe,
    connections: &[Connection],
    past: &Past,
) -> Result<(), String> {
    let why_not = |fate: &Fate| fits(stage, probe, *fate, connections, past).err();
    let complaints: Vec<_> = probe.expect.outcome.all().iter().map(why_not).collect();
    if complaints.iter().any(Option::is_none) {
        return Ok(());
    }
    let complaints: BTreeSet<_> =
        complaints.into_iter().flatten().map(|error| format!("{error:#}")).collect();
    let complaints: Vec<_> = complaints.into_iter().collect();
    Err(format!("{}; found {}", complaints.join(", or "), summary(connections)))
}

fn fits(stage: &Stage, probe: &Probe, fate: Fate, connections: &[Connection], past: &Past) -> Result<()> {
    ensure!(!connections.is_empty(), "no connection was begun");
    let each = |wanted: &str, is: fn(&Came) -> bool| {
        ensure!(connections.iter().all(|connection| is(&connection.came)), "wanted {wanted}");
        Ok(())
    };
    match fate {
        Fate::Open => Ok(()),
        Fate::Served if probe.kind == Kind::Ping => {
            each("an echo reply", |came| matches!(came, Came::Answer(..)))
        }
        Fate::Served => served(stage, probe, connections, past),
        Fate::Refused => each("refusals at once", |came| *came == Came::Refusal),
        Fate::Dropped => each("no answer", |came| *came == Came::Nothing),
        Fate::Unserved | Fate::Dead => each("no answer of anybody", |came| !matches!(came, Came::Answer(..))),
        Fate::Denied => each("no connection", |came| matches!(came, Came::Refusal | Came::Nothing)),
    }
}

fn served(stage: &Stage, probe: &Probe, connections: &[Connection], past: &Past) -> Result<()> {
    let Expect { backends, denied, source, .. } = &probe.expect;
    let mut answers = Vec::new();
    let mut failed = 0;
    for Connection { client, came } in connections {
        match came {
            Came::Answer(by, saw) => answers.push((client, by, *saw)),
            // Which of those it fell on who are closed, nobody can tell.
            Came::Refusal | Came::Nothing if !denied.is_empty() => failed += 1,
            _ => {}
        }
    }
    ensure!(answers.len() + failed == connections.len(), "wanted an answer to each");
    ensure!(!answers.is_empty(), "wanted answers");
    ensure!(denied.is_empty() || failed > 0, "wanted connections that {denied:?} do not take");
    let allowed = allowed(probe, past);
    for (client, by, saw) in &answers {
        ensure!(allowed.contains(*by), "wanted {allowed:?}");
        ensure!(!denied.contains(*by), "{by} is closed");
        if let Some(source) = source {
            let wanted = of_backend(source, by);
            let fits = wanted
                .is_none_or(|wanted| wanted.all().iter().any(|one| is_seen(stage, one, by, client, *saw)));
            ensure!(fits, "{by} saw {saw}, wanted {}", words(wanted));
        }
    }
    let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, by, _) in &answers {
        *shares.entry(by).or_default() += 1;
    }
    spread(probe, &shares, backends)?;
    sticky(probe, &answers, past)
}

/// Who may answer.
fn allowed(probe: &Probe, past: &Past) -> BTreeSet<String> {
    let Expect { backends, to, stay, may_stay, .. } = &probe.expect;
    let Some(flow) = &probe.resume else { return backends.clone() };
    let on = past.by_flow.get(flow);
    if let Some(on) = on.filter(|on| stay.contains(*on)) {
        return BTreeSet::from([on.clone()]);
    }
    let others = if to.is_empty() { backends } else { to };
    others.iter().chain(on.filter(|on| may_stay.contains(*on))).cloned().collect()
}

fn spread(probe: &Probe, shares: &BTreeMap<&str, usize>, backends: &BTreeSet<String>) -> Result<()> {
    if probe.expect.spread.is_some() {
        let missing = backends.iter().find(|one| !shares.contains_key(one.as_str()));
        ensure!(missing.is_none(), "{} gets nothing", missing.map_or("", |one| one));
    }
    if let Some((least, most)) = probe.expect.share {
        for backend in backends {
            let share = shares.get(backend.as_str()).copied().unwrap_or(0);
            ensure!((least..=most).contains(&share), "{backend} gets {share}, wanted {least} to {most}");
        }
    }
    if let Some(least) = probe.expect.distinct_at_least {
        ensure!(shares.len() >= least, "wanted {least} backends or more");
    }
    Ok(())
}

fn sticky(probe: &Probe, answers: &[(&Vec<IpAddr>, &String, IpAddr)], past: &Past) -> Result<()> {
    let distinct = answers.iter().map(|(_, by, _)| *by).collect::<BTreeSet<_>>();
    ensure!(!probe.expect.sticky || distinct.len() == 1, "wanted one backend");
    if probe.expect.sticky_per_client {
        let mut of_client = BTreeMap::new();
        for (client, by, _) in answers {
            let first = of_client.entry(*client).or_insert(*by);
            ensure!(first == by, "{client:?} is with {first} and {by}");
        }
    }
    if let Some(before) =
        probe.expect.same_as.as_ref().or(probe.with.as_ref()).filter(|_| probe.expect.sticky)
    {
        let before = past.by_probe.get(before);
        ensure!(before.is_some_and(|before| distinct.contains(before)), "wanted {before:?} again");
    }
    Ok(())
}

/// Whom a backend shall see; nothing is said of those that a map does not name.
fn of_backend<'a>(source: &'a Source, by: &str) -> Option<&'a Many<Seen>> {
    match source {
        Source::All(all) => Some(all),
        Source::By(map) => map.get(by),
    }
}

fn is_seen(stage: &Stage, wanted: &Seen, by: &str, client: &[IpAddr], saw: IpAddr) -> bool {
    match wanted {
        Seen::Any => true,
        Seen::Client => client.contains(&saw),
        Seen::NotClient => !client.contains(&saw),
        Seen::Node(name) => {
            let backend = backend(stage, by);
            stage.is_of_node(saw, name, backend.as_ref())
        }
    }
}

/// Who a `NAME:PORT` is.
fn backend(stage: &Stage, by: &str) -> Option<Party> {
    let (id, _) = by.rsplit_once(':')?;
    let pod = stage.party(&format!("pod:{id}"));
    pod.or_else(|_| stage.party(id)).ok()
}

fn words(wanted: Option<&Many<Seen>>) -> String {
    let word = |seen: &Seen| match seen {
        Seen::Client => "the client".to_owned(),
        Seen::NotClient => "not the client".to_owned(),
        Seen::Any => "anybody".to_owned(),
        Seen::Node(name) => format!("node {name}"),
    };
    wanted.map_or_else(String::new, |wanted| wanted.all().iter().map(word).collect::<Vec<_>>().join(" or "))
}

/// What became of connections, in short.
pub(super) fn summary(connections: &[Connection]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for Connection { came, .. } in connections {
        let what = match came {
            Came::Answer(by, saw) => format!("{by} that saw {saw}"),
            Came::Refusal => "refused".to_owned(),
            Came::Nothing => "no answer".to_owned(),
            Came::Other(what) => what.clone(),
        };
        *counts.entry(what).or_default() += 1;
    }
    let counts = counts.iter().map(|(what, count)| format!("{count} × {what}"));
    counts.collect::<Vec<_>>().join(", ")
}
