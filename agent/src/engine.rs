//! Everything that changes the node, one thing at a time: requests of the plugin, news of the world, repairs.
//!
//! The truth about endpoints is the store's, the truth about everything else the world's; [`crate::desired`] makes one desired
//! state of both, and the drivers are told what changed in it. All of it is synchronous, behind one lock.

#[cfg(test)]
mod address_tests;
mod attach;
#[cfg(test)]
pub(crate) mod bench;
#[cfg(test)]
mod capability_tests;
mod check;
mod connections;
#[cfg(test)]
mod crash_tests;
mod gc;
#[cfg(test)]
mod leak_tests;
mod leaks;
mod release;
mod report;
mod roster;
mod status;
#[cfg(test)]
mod tests;

pub(crate) use connections::Unanswered;
pub(crate) use report::Report;
pub(crate) use status::Ailment;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use causeway_kernel_fallback::{Sight, Survey};
use causeway_model::{Dataplane, DataplaneError, Delta, EndpointKey, Snapshot, Update};

use crate::config::Config;
use crate::datapath::{Driver, Drivers, PathChoice};
use crate::desired::{Desired, Given, Link, NotReady, desired};
use crate::error::{Error, chain};
use crate::machine::Machine;
use crate::sources::World;
use crate::store::Store;
use leaks::Leaks;
use roster::Roster;

/// How many repairs status shows, the last one first.
const SHOWN_REPAIRS: usize = 10;

/// What troubles with repairs are kept under.
const MENDING: &str = "mending the data path";

/// Reads the interfaces of this machine.
pub(crate) type LinkReader = dyn Fn() -> Result<Vec<Link>, String> + Send + Sync;

/// What an engine is made of.
pub(crate) struct Parts {
    /// The agent's release and commit.
    pub release: String,
    /// The configuration.
    pub config: Config,
    /// What the source of the world is, for the reader.
    pub source: String,
    /// Endpoints and leases.
    pub store: Store,
    /// The data paths.
    pub drivers: Drivers,
    /// Which of them new endpoints get.
    pub choice: PathChoice,
    /// The interfaces of this machine.
    pub links: Arc<LinkReader>,
    /// The machine itself.
    pub machine: Machine,
}

/// The engine: share it, every method takes the lock for itself.
pub(crate) struct Engine {
    core: Mutex<Core>,
    /// Whether the runtime's processes, and with them those of pods, can be seen from here.
    sees_runtime: AtomicBool,
    /// Told whenever an ADD may find what it waits for.
    changed: Condvar,
}

struct Core {
    parts: Parts,
    roster: Roster,
    world: Option<Arc<World>>,
    read: Option<(Instant, SystemTime)>,
    /// Why there is no desired state; none when there is one.
    waiting: Option<String>,
    uplink: String,
    desired: Option<Snapshot>,
    /// Whether the data paths have all of it.
    in_force: bool,
    refused: Vec<String>,
    /// What went wrong last, by what was being done.
    troubles: BTreeMap<String, String>,
    repairs: u64,
    mended: VecDeque<String>,
    leaks: Leaks,
}

impl Engine {
    /// Takes up what the store remembers. What did not live through a reboot is released; the data path is not touched
    /// before the world is known.
    pub(crate) fn new(parts: Parts) -> Self {
        let roster = Roster::new(parts.store.records().values().map(|record| record.endpoint.clone()));
        let mut core = Core {
            waiting: Some(format!("the first reading of {}", parts.source)),
            parts,
            roster,
            world: None,
            read: None,
            uplink: String::new(),
            desired: None,
            in_force: false,
            refused: Vec::new(),
            troubles: BTreeMap::new(),
            repairs: 0,
            mended: VecDeque::new(),
            leaks: Leaks::default(),
        };
        core.release_the_dead();
        core.replay_tombstones();
        for (key, record) in core.parts.store.records() {
            core.parts.drivers.remember(key, &record.netns);
        }
        Self { core: Mutex::new(core), sees_runtime: AtomicBool::new(false), changed: Condvar::new() }
    }

    /// Takes up news of the world, or that there is none to be had.
    pub(crate) fn hear(&self, news: Result<Arc<World>, String>) {
        let links = self.read_links();
        let mut core = self.lock();
        match news {
            Ok(world) => {
                core.read = Some((Instant::now(), SystemTime::now()));
                core.note("reading the source", Ok(()));
                core.roster.identify(&world);
                core.world = Some(world);
            }
            // A source that was never there may come; one that was is missed.
            Err(trouble) if core.world.is_none() => {
                core.waiting = Some(format!("{} ({trouble})", core.parts.source));
            }
            Err(trouble) => core.note("reading the source", Err(trouble)),
        }
        core.settle(links);
        self.changed.notify_all();
    }

    /// Looks whether everything is as it should be, and makes it so.
    pub(crate) fn mend(&self) {
        let links = self.read_links();
        let survey = {
            let mut core = self.lock();
            core.replay_tombstones();
            core.settle(links);
            // From a container with processes of its own, an empty namespace would look like an abandoned one.
            if self.sees_runtime.load(Relaxed) {
                core.collect_leaks(Instant::now());
            }
            core.parts.drivers.survey()
        };
        self.changed.notify_all();
        // What costs as much as there are endpoints is done while nobody waits for it.
        let sight = survey.map(Survey::look).transpose();
        let mut core = self.lock();
        if core.in_force {
            core.mend(sight.map_err(DataplaneError::from));
        }
        self.changed.notify_all();
    }

    /// Reads the interfaces of this machine, while others work.
    fn read_links(&self) -> Result<Vec<Link>, String> {
        let read = Arc::clone(&self.lock().parts.links);
        read()
    }

    /// Notes who called: the kernel gives no number to a process that is out of sight.
    pub(crate) fn meet(&self, caller: Option<i32>) {
        self.sees_runtime.store(caller.is_some_and(|pid| pid > 0), Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        // A panic in one request must not end all others; each leaves the store whole.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// Works out the desired state and tells the drivers what is new in it.
    fn settle(&mut self, links: Result<Vec<Link>, String>) {
        let Some(world) = self.world.clone() else { return };
        self.note("reading the interfaces of this machine", links.as_ref().map(|_| ()).map_err(Clone::clone));
        let Ok(links) = links else { return };
        let Desired { ready, problems } = desired(&Given {
            world: &world,
            source: &self.parts.source,
            config: &self.parts.config,
            links: &links,
            tunnel: self.parts.choice.tunnel,
            endpoints: self.roster.endpoints(),
        });
        self.refused = problems;
        match ready {
            Ok(ready) => {
                self.waiting = None;
                self.uplink = ready.uplink;
                let done = self.bring(ready.snapshot);
                self.note("bringing the data path to its desired state", done.map_err(|error| chain(&error)));
            }
            // What was brought about before stays.
            Err(NotReady::Waiting(what) | NotReady::Refused(what)) => self.waiting = Some(what),
        }
    }

    /// Tells the drivers of a new desired state: the changes alone, unless they may have missed some.
    fn bring(&mut self, next: Snapshot) -> Result<(), DataplaneError> {
        let done = match &self.desired {
            Some(last) if self.in_force => match last.deltas_to(&next) {
                none if none.is_empty() => Ok(()),
                changes => self.parts.drivers.apply(Update::Changes(&changes)),
            },
            _ => self.parts.drivers.apply(Update::Whole(&next)),
        };
        self.desired = Some(next);
        self.in_force = done.is_ok();
        done
    }

    /// Tells the drivers of one endpoint that is new or gone by the roster: without a look at all others, of which there may
    /// be a thousand.
    fn bring_endpoint(&mut self, key: &EndpointKey) -> Result<(), DataplaneError> {
        let Self { parts, roster, desired, in_force, .. } = self;
        bring_endpoint(key, roster, desired, (&mut parts.drivers, in_force))
    }

    /// Mends what was seen to be wrong.
    fn mend(&mut self, sight: Result<Option<Sight>, DataplaneError>) {
        let mended = sight.and_then(|sight| self.parts.drivers.mend_seen(sight.as_ref()));
        self.note(MENDING, mended.as_ref().map(|_| ()).map_err(|error| chain(error)));
        mended.unwrap_or_default().into_iter().for_each(|repair| self.mended(repair));
    }

    fn mended(&mut self, repair: String) {
        tracing::warn!("mended: {repair}");
        self.repairs += 1;
        self.mended.truncate(SHOWN_REPAIRS - 1);
        self.mended.push_front(repair);
    }

    /// Keeps the last trouble with one thing for status, until that thing goes well; each is logged when it is new.
    fn note(&mut self, doing: &str, done: Result<(), String>) {
        match done {
            Ok(()) => drop(self.troubles.remove(doing)),
            Err(trouble) => {
                if self.troubles.get(doing) != Some(&trouble) {
                    tracing::warn!("{doing}: {trouble}");
                }
                self.troubles.insert(doing.to_owned(), trouble);
            }
        }
    }

    /// The world must be known and in force before anything is opened.
    fn missing(&self) -> Option<String> {
        match (&self.waiting, &self.desired) {
            (_, Some(_)) => None,
            (Some(waiting), None) => Some(waiting.clone()),
            (None, None) => Some("the data path".to_owned()),
        }
    }

    /// Gives a data path that missed something its whole state again.
    fn trust(&mut self) -> Result<(), Error> {
        if !self.in_force
            && let Some(desired) = self.desired.clone()
        {
            self.bring(desired)?;
        }
        Ok(())
    }
}

/// [`Core::bring_endpoint`], beside what else is done with the rest of the core.
fn bring_endpoint(
    key: &EndpointKey,
    roster: &Roster,
    desired: &mut Option<Snapshot>,
    (drivers, in_force): (&mut Drivers, &mut bool),
) -> Result<(), DataplaneError> {
    let Some(desired) = desired else { return Ok(()) };
    let delta = match roster.endpoints().get(key) {
        Some(endpoint) => Delta::Endpoint(Box::new(endpoint.clone())),
        None => Delta::EndpointGone(key.clone()),
    };
    desired.apply(delta.clone());
    let done = match *in_force {
        true => drivers.apply(Update::Changes(&[delta])),
        false => drivers.apply(Update::Whole(desired)),
    };
    *in_force = done.is_ok();
    done
}
