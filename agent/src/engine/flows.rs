//! What became of connections: gathered from the data paths, kept for a while, written to a file where that is wanted.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use causeway_model::flow::{Event, FlowQuery, Flows};
use causeway_model::policy::{Direction, Traffic, Verdict};
use causeway_model::{Count, Dataplane, PodName, PortProtocol};

use super::{Core, Engine};
use crate::config::FlowFile;
use crate::error::{Error, chain};

/// How many events are kept for those who ask.
const KEPT: usize = 16_384;
/// How many are told of when nobody says.
const USUAL: usize = 1000;

/// Events with their numbers, the newest last.
#[derive(Debug, Default)]
pub(super) struct FlowLog(Mutex<Log>);

#[derive(Debug, Default)]
struct Log {
    events: VecDeque<Event>,
    /// The number of the newest one.
    last: u64,
    lost: u64,
    file: Option<Rotated>,
}

/// A file of one event a line, in JSON; a full one is set aside.
#[derive(Debug)]
struct Rotated {
    path: PathBuf,
    most: u64,
    open: Option<(File, u64)>,
}

impl FlowLog {
    pub(super) fn new(file: Option<&FlowFile>) -> Self {
        let file = file.map(|file| Rotated { path: file.path.clone(), most: file.most, open: None });
        Self(Mutex::new(Log { file, ..Log::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Takes what the data paths have to tell.
    pub(crate) fn gather_flows(&self) {
        let (told, pods) = {
            let mut core = self.lock();
            if core.desired.is_none() {
                return;
            }
            let told = core.parts.drivers.flows().map(|mut told| {
                told.events.iter_mut().for_each(|event| core.audit(event));
                told
            });
            match told {
                // Mostly there is nothing to name.
                Ok(told) if told.events.is_empty() => (told, BTreeMap::new()),
                Ok(told) => (told, core.pods()),
                // The data path that cannot tell is a trouble of its own.
                Err(error) => return tracing::debug!("gathering flows: {}", chain(&error)),
            }
        };
        let written = self.flows.lock().take(told.events, told.lost, &pods);
        self.lock().note("writing flows", written.map_err(|error| chain(&error)));
    }

    /// The events that are asked for.
    pub(crate) fn flows(&self, query: &FlowQuery) -> Flows {
        self.flows.lock().answer(query)
    }
}

impl Core {
    /// Notes what audited policies would have denied.
    fn audit(&mut self, event: &mut Event) {
        if event.verdict == Verdict::Deny || !self.roster.audits() {
            return;
        }
        let (from, (to, port)) = (event.from.0, event.to);
        let transport = PortProtocol::ALL.into_iter().find(|known| known.number().0 == event.protocol);
        let traffic = transport.map_or(Traffic::Portless, |transport| Traffic::To(transport, port));
        let egress = self.roster.audit(from, Direction::Egress, to, traffic);
        event.audit = egress.or_else(|| self.roster.audit(to, Direction::Ingress, from, traffic));
        if let Some(rule) = &event.audit {
            *self.audited.entry(rule.clone()).or_default() += Count { packets: 1, bytes: event.bytes };
        }
    }
}

impl Log {
    fn take(&mut self, events: Vec<Event>, lost: u64, pods: &BTreeMap<IpAddr, PodName>) -> Result<(), Error> {
        self.lost = lost;
        let mut written = Ok(());
        for mut event in events {
            event.from_pod = pods.get(&event.from.0).cloned();
            event.to_pod = pods.get(&event.to.0).cloned();
            if let (Some(file), Ok(())) = (&mut self.file, &written) {
                written = file.write(&event);
            }
            self.last += 1;
            if self.events.len() == KEPT {
                self.events.pop_front();
            }
            self.events.push_back(event);
        }
        written
    }

    fn answer(&self, query: &FlowQuery) -> Flows {
        let first = self.last - self.events.len() as u64;
        let after = query.after.unwrap_or(first);
        let skip = usize::try_from(after.saturating_sub(first)).unwrap_or(usize::MAX);
        let fitting: Vec<_> = self.events.iter().skip(skip).filter(|event| fits(event, query)).collect();
        let most = query.most.unwrap_or(USUAL).min(KEPT);
        let newest = fitting.iter().skip(fitting.len().saturating_sub(most)).copied().cloned();
        let forgotten = first.saturating_sub(after);
        Flows { events: newest.collect(), last: self.last, lost: self.lost, forgotten }
    }
}

fn fits(event: &Event, query: &FlowQuery) -> bool {
    let FlowQuery { after: _, pod, verdict, port, path, rule, most: _ } = query;
    let is =
        |name: &Option<PodName>, wanted: &str| name.as_ref().is_some_and(|pod| pod.to_string() == wanted);
    let rules = || [&event.egress, &event.ingress].into_iter().flatten().map(ToString::to_string);
    pod.as_ref().is_none_or(|pod| is(&event.from_pod, pod) || is(&event.to_pod, pod))
        && verdict.is_none_or(|verdict| event.verdict == verdict)
        && port.is_none_or(|port| event.to.1 == port)
        && path.is_none_or(|path| event.path == path)
        && rule.as_ref().is_none_or(|wanted| rules().any(|rule| rule.starts_with(wanted)))
}

impl Rotated {
    fn write(&mut self, event: &Event) -> Result<(), Error> {
        let line = serde_json::to_vec(event).map_err(io::Error::from);
        let written = line.and_then(|mut line| {
            line.push(b'\n');
            self.append(&line)
        });
        written.map_err(|error| {
            // The next line is another try.
            self.open = None;
            Error::io(format!("writing flows to {}", self.path.display()))(error)
        })
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.open.as_ref().is_some_and(|(_, length)| length + line.len() as u64 > self.most) {
            self.open = None;
            std::fs::rename(&self.path, self.path.with_extension("1.jsonl"))?;
        }
        let (file, length) = match &mut self.open {
            Some(open) => open,
            None => {
                let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
                let length = file.metadata()?.len();
                self.open.insert((file, length))
            }
        };
        file.write_all(line)?;
        *length += line.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use causeway_model::Path;

    use super::*;

    fn event(port: u16, verdict: Verdict) -> Event {
        Event {
            at: 1_000_000_000 + u64::from(port),
            path: Path::Fast,
            verdict,
            protocol: 6,
            from: ([10, 70, 1, 3].into(), 40_000),
            to: ([10, 70, 2, 9].into(), port),
            bytes: 60,
            egress: (verdict == Verdict::Deny).then(|| "f62e/egress/isolation".parse().unwrap()),
            ingress: None,
            audit: None,
            from_pod: None,
            to_pod: None,
        }
    }

    fn ports(flows: &Flows) -> Vec<u16> {
        flows.events.iter().map(|event| event.to.1).collect()
    }

    #[test]
    fn a_reader_goes_on_where_it_was_and_is_told_what_it_missed() {
        let log = FlowLog::new(None);
        let pods = BTreeMap::from([(
            [10, 70, 1, 3].into(),
            PodName { namespace: "shop".into(), name: "web".into() },
        )]);
        let take = |ports: std::ops::Range<u16>, lost| {
            let events =
                ports.map(|port| event(port, if port % 2 == 0 { Verdict::Allow } else { Verdict::Deny }));
            log.lock().take(events.collect(), lost, &pods).unwrap();
        };
        take(1..5, 0);
        let first = log.lock().answer(&FlowQuery::default());
        assert_eq!((ports(&first), first.last, first.forgotten), (vec![1, 2, 3, 4], 4, 0));
        assert_eq!(first.events[0].from_pod, pods.values().next().cloned());
        take(5..8, 3);
        let after = |after| FlowQuery { after: Some(after), ..FlowQuery::default() };
        let next = log.lock().answer(&after(first.last));
        assert_eq!((ports(&next), next.lost), (vec![5, 6, 7], 3));
        take(8..20_008, 3);
        let late = log.lock().answer(&after(next.last));
        assert_eq!(late.forgotten, 20_000 - KEPT as u64);
        for (query, fit) in [
            (FlowQuery { verdict: Some(Verdict::Deny), ..after(20_003) }, vec![20_005, 20_007]),
            (FlowQuery { port: Some(20_004), ..after(20_000) }, vec![20_004]),
            (FlowQuery { rule: Some("f62e/".into()), ..after(20_004) }, vec![20_005, 20_007]),
            (FlowQuery { rule: Some("aaaa".into()), ..after(20_004) }, vec![]),
            (FlowQuery { pod: Some("shop/web".into()), most: Some(2), ..after(0) }, vec![20_006, 20_007]),
            (FlowQuery { pod: Some("shop/api".into()), ..after(0) }, vec![]),
            (FlowQuery { path: Some(Path::Kernel), ..after(0) }, vec![]),
        ] {
            assert_eq!(ports(&log.lock().answer(&query)), fit, "{query:?}");
        }
    }

    #[test]
    fn the_file_is_set_aside_when_it_is_full_and_every_line_is_an_event() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flows.jsonl");
        let log = FlowLog::new(Some(&FlowFile { path: path.clone(), most: 1000 }));
        for port in 1..20 {
            log.lock().take(vec![event(port, Verdict::Deny)], 0, &BTreeMap::new()).unwrap();
        }
        let aside = directory.path().join("flows.1.jsonl");
        for file in [&path, &aside] {
            let text = std::fs::read_to_string(file).unwrap();
            assert!(text.len() <= 1000, "{}", text.len());
            assert!(text.lines().all(|line| serde_json::from_str::<Event>(line).is_ok()), "{text}");
        }
        assert!(
            std::fs::read_to_string(&path).unwrap().contains("[\"10.70.2.9\",19]"),
            "the newest is in the file itself"
        );
    }
}
