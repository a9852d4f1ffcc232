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
mod clusterset;
mod compilers;
mod connections;
#[cfg(test)]
mod crash_tests;
mod flows;
mod gc;
#[cfg(test)]
mod leak_tests;
mod leaks;
mod mesh;
#[cfg(test)]
mod mesh_tests;
#[cfg(test)]
mod policy_tests;
mod probe;
mod release;
mod report;
mod roster;
mod service_pages;
#[cfg(test)]
mod service_tests;
mod services;
mod status;
#[cfg(test)]
mod tests;
mod through;
mod why;

pub(crate) use connections::Unanswered;
pub(crate) use report::Report;
pub(crate) use services::HealthChecks;
pub(crate) use status::Ailment;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use causeway_kernel_fallback::{Sight, Survey};
use causeway_model::policy::RuleId;
use causeway_model::{Count, Dataplane, DataplaneError, Delta, Snapshot, Update};

use crate::config::{Config, ServicesWish};
use crate::datapath::{Driver, Drivers, PathChoice};
use crate::desired::{Desired, Given, Link, NotReady, desired};
use crate::error::{Error, chain};
use crate::machine::Machine;
use crate::names::NameMeter;
use crate::sources::World;
use crate::statuses::{MeshStatuses, Statuses};
use crate::store::Store;
use flows::FlowLog;
use leaks::Leaks;
use mesh::{Mesh, Meshed};
use roster::Roster;
use services::Served;
use tokio::sync::watch;

/// How many repairs status shows, the last one first.
const SHOWN_REPAIRS: usize = 10;

/// What troubles with repairs are kept under.
const MENDING: &str = "mending the data path";

/// Reads the interfaces of this machine.
pub(crate) type LinkReader = dyn Fn() -> Result<Vec<Link>, String> + Send + Sync;

/// Looks whether kube-proxy keeps services on this machine; what was found of it.
pub(crate) type KubeProxyFinder = dyn Fn() -> Result<Option<String>, String> + Send + Sync;

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
    /// Whether kube-proxy is here.
    pub kube_proxy: Arc<KubeProxyFinder>,
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
    flows: FlowLog,
    /// What load balancers are told.
    health_checks: watch::Sender<HealthChecks>,
    /// What was asked of the server of names.
    names: Arc<NameMeter>,
}

/// What this machine looks like, as far as others change it.
#[derive(Clone)]
struct Surroundings {
    links: Result<Vec<Link>, String>,
    kube_proxy: Result<Option<String>, String>,
}

struct Core {
    parts: Parts,
    roster: Roster,
    served: Served,
    meshed: Meshed,
    world: Option<Arc<World>>,
    read: Option<(Instant, SystemTime)>,
    /// Why there is no desired state; none when there is one.
    waiting: Option<String>,
    /// What this machine looked like last.
    seen: Option<Surroundings>,
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
    statuses: Statuses,
    mesh_statuses: MeshStatuses,
    /// What audited policies would have denied, of what was told.
    audited: BTreeMap<RuleId, Count>,
}

impl Engine {
    /// Takes up what the store remembers. What did not live through a reboot is released; the data path is not touched
    /// before the world is known.
    pub(crate) fn new(parts: Parts) -> Self {
        let roster = Roster::new(parts.store.records().values().map(|record| record.endpoint.clone()));
        let flows = FlowLog::new(parts.config.flow_file.as_ref());
        let directory = &parts.config.status;
        let (statuses, mesh_statuses) =
            (Statuses::new(directory.clone()), MeshStatuses::new(directory.clone()));
        let mut core = Core {
            waiting: Some(format!("the first reading of {}", parts.source)),
            parts,
            roster,
            served: Served::default(),
            meshed: Meshed::default(),
            world: None,
            seen: None,
            read: None,
            uplink: String::new(),
            desired: None,
            in_force: false,
            refused: Vec::new(),
            troubles: BTreeMap::new(),
            repairs: 0,
            mended: VecDeque::new(),
            leaks: Leaks::default(),
            statuses,
            mesh_statuses,
            audited: BTreeMap::new(),
        };
        core.release_the_dead();
        core.replay_tombstones();
        for (key, record) in core.parts.store.records() {
            core.parts.drivers.remember(key, &record.netns);
        }
        Self {
            core: Mutex::new(core),
            sees_runtime: AtomicBool::new(false),
            changed: Condvar::new(),
            flows,
            health_checks: watch::Sender::new(HealthChecks::new()),
            names: Arc::default(),
        }
    }

    /// Takes up news of the world, or that there is none to be had.
    pub(crate) fn hear(&self, news: Result<Arc<World>, String>) {
        // A look takes as long as there are links, and waits for whoever changes one; the mender is woken by what changes.
        let known = {
            let core = self.lock();
            core.waiting.is_none() && core.seen.as_ref().is_some_and(|seen| seen.links.is_ok())
        };
        let looked = (!known).then(|| self.look_around());
        let mut core = self.lock();
        match news {
            Ok(world) => {
                core.read = Some((Instant::now(), SystemTime::now()));
                core.note("reading the source", Ok(()));
                let Core { roster, served, meshed, parts, .. } = &mut *core;
                roster.learn(&parts.config.node, &world);
                let moved = meshed.learn(&parts.config, parts.store.mesh(), &world);
                served.learn(&parts.config.node, &parts.config.api_servers, &world, meshed);
                core.mesh_statuses.note(moved);
                core.keep_mesh();
                core.world = Some(world);
            }
            // A source that was never there may come; one that was is missed.
            Err(trouble) if core.world.is_none() => {
                core.waiting = Some(format!("{} ({trouble})", core.parts.source));
            }
            Err(trouble) => core.note("reading the source", Err(trouble)),
        }
        core.settle(looked);
        core.tell_policies();
        core.tell_mesh();
        self.tell_health(&core);
        self.changed.notify_all();
    }

    /// Looks whether everything is as it should be, and makes it so.
    pub(crate) fn mend(&self) {
        let looked = self.look_around();
        let survey = {
            let mut core = self.lock();
            core.replay_tombstones();
            core.settle(Some(looked));
            self.tell_health(&core);
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

    /// Looks at this machine, while others work.
    fn look_around(&self) -> Surroundings {
        let (links, kube_proxy, wish) = {
            let parts = &self.lock().parts;
            (Arc::clone(&parts.links), Arc::clone(&parts.kube_proxy), parts.config.services)
        };
        let kube_proxy = if wish == ServicesWish::Auto { kube_proxy() } else { Ok(None) };
        Surroundings { links: links(), kube_proxy }
    }

    /// What load balancers are told, now and whenever it changes.
    pub(crate) fn health_checks(&self) -> watch::Receiver<HealthChecks> {
        self.health_checks.subscribe()
    }

    /// What is settled between clusters, to be read beside the engine's work.
    pub(crate) fn mesh(&self) -> Mesh {
        self.lock().meshed.mesh.clone()
    }

    /// What was asked of the server of names.
    pub(crate) fn name_meter(&self) -> Arc<NameMeter> {
        self.names.clone()
    }

    fn tell_health(&self, core: &Core) {
        let now = core.served.health_checks();
        self.health_checks.send_if_modified(|told| {
            let changed = *told != now;
            *told = now;
            changed
        });
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
    /// Works out the desired state, of what was just looked at or else of what was seen last, and tells the drivers what is new in it.
    fn settle(&mut self, looked: Option<Surroundings>) {
        self.seen = looked.or_else(|| self.seen.take());
        let Some(Surroundings { links, kube_proxy }) = self.seen.clone() else { return };
        let Some(world) = self.world.clone() else { return };
        self.note("looking for kube-proxy", kube_proxy.as_ref().map(|_| ()).map_err(Clone::clone));
        // What was found last holds for as long as nothing can be told.
        if let Ok(found) = kube_proxy {
            self.served.choose(self.parts.config.services, found.as_deref());
        }
        self.note("reading the interfaces of this machine", links.as_ref().map(|_| ()).map_err(Clone::clone));
        let Ok(links) = links else { return };
        let Desired { ready, problems } = desired(&Given {
            world: &world,
            source: &self.parts.source,
            config: &self.parts.config,
            links: &links,
            tunnel: self.parts.choice.tunnel,
            host_services: self.served.host(),
            standing: self.meshed.standing(),
        });
        self.refused = problems;
        match ready {
            Ok(ready) => {
                self.waiting = None;
                self.uplink = ready.uplink;
                self.roster.learn_mesh(&ready.snapshot, &world);
                self.bring_with_endpoints(ready.snapshot);
            }
            // The mesh that was brought about before stays, and policy moves on.
            Err(NotReady::Waiting(what) | NotReady::Refused(what)) => {
                self.waiting = Some(what);
                if let Some(last) = self.desired.clone() {
                    self.bring_with_endpoints(last);
                }
            }
        }
    }

    /// Keeps what must be told again after a restart, before anybody hears of it.
    fn keep_mesh(&mut self) {
        let Self { meshed, parts, .. } = self;
        let Some(memory) = meshed.memory(parts.store.mesh()) else { return meshed.kept() };
        let kept = parts.store.keep_mesh(memory);
        if kept.is_ok() {
            meshed.kept();
        }
        self.note("keeping cluster-set addresses", kept.map_err(|error| chain(&error)));
    }

    /// Writes what became of exports and imports.
    fn tell_mesh(&mut self) {
        let Self { meshed, mesh_statuses, .. } = self;
        let Some(told) = meshed.mesh.read(|mesh| mesh_statuses.tell(mesh)) else { return };
        self.note("writing statuses of exports and imports", told.map_err(|error| chain(&error)));
    }

    /// Says what became of each policy, now that it is in force.
    fn tell_policies(&mut self) {
        // Before this cluster is known none of its policies is, which does not mean that they have gone.
        let Some(world) = self.world.clone().filter(|world| world.cluster.is_some()) else { return };
        let told = self.statuses.tell(world.policies.values().map(|read| &read.report));
        self.note("writing statuses", told.map_err(|error| chain(&error)));
    }

    /// Completes a desired state by the endpoints, and tells the drivers of it.
    fn bring_with_endpoints(&mut self, mesh: Snapshot) {
        let (endpoints, policy) = (self.roster.endpoints().clone(), Arc::new(self.roster.book()));
        let services = match &self.desired {
            Some(last) => last.services.clone(),
            None => self.served.all(),
        };
        let mut done = self.bring(Snapshot { endpoints, policy, services, ..mesh });
        let told = self.desired.as_ref().map(|desired| desired.services.clone()).unwrap_or_default();
        let news = self.served.news(&told);
        // Whoever else holds them is told by changes and changes its own: held twice they would be copied.
        drop(told);
        if !news.is_empty() {
            done = self.bring_changes(&news);
        }
        self.note("bringing the data path to its desired state", done.map_err(|error| chain(&error)));
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

    /// Tells the drivers of changes that came with one endpoint: without a look at all others, of which there may be a thousand.
    fn bring_changes(&mut self, changes: &[Delta]) -> Result<(), DataplaneError> {
        let Self { parts, desired, in_force, .. } = self;
        bring_changes(changes, desired, (&mut parts.drivers, in_force))
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

/// [`Core::bring_changes`], beside what else is done with the rest of the core.
fn bring_changes(
    changes: &[Delta],
    desired: &mut Option<Snapshot>,
    (drivers, in_force): (&mut Drivers, &mut bool),
) -> Result<(), DataplaneError> {
    let Some(desired) = desired else { return Ok(()) };
    changes.iter().cloned().for_each(|change| desired.apply(change));
    let done = match *in_force {
        true => drivers.apply(Update::Changes(changes)),
        false => drivers.apply(Update::Whole(desired)),
    };
    *in_force = done.is_ok();
    done
}
