//! The fast path as the agent drives it: it opens the TAPs, holds their descriptors and hands them over, and tells a
//! fast path that comes, or comes back, everything again.

mod check;
mod counting;
mod ports;
mod session;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use causeway_kernel_fallback::Reaper;
use causeway_kernel_fallback::next_hops;
use causeway_model::connection::{Filter, Listing};
use causeway_model::fastpath::{Device, Hello, Memory, PortName, Tally, Task, WEIGHS};
use causeway_model::flow::Events;
use causeway_model::operator::FastpathStatus;
use causeway_model::{
    Counters, Dataplane, DataplaneError, Delta, Endpoint, EndpointKey, MacAddr, Path, Snapshot, TunnelOwner,
    Update, UplinkKind,
};
use causeway_socket::{Listener, SocketError};
use thiserror::Error;
use tracing::{info, warn};

use crate::error::chain;
use crate::store::Netns;
use crate::tap::HEADER;

use counting::{add, counters};
use ports::Held;
pub(crate) use ports::delete_pod_tap;
use session::{OrderError, Session};

/// How long an attachment waits for a fast path that is away: about twice the time between two of its attempts.
const COMING_BACK: Duration = Duration::from_secs(2);

/// How the fast path of this node is driven.
#[derive(Clone, Debug)]
pub struct FastOptions {
    /// Where the agent listens for it.
    pub socket: PathBuf,
    /// Queues of every TAP.
    pub queues: u16,
    /// The device of DPDK that tunnel frames come and go by; without it, a TAP whose other end the kernel routes.
    pub uplink: Option<String>,
    /// Do without tunnel GSO, although the kernel has it.
    pub mask_tunnel_gso: bool,
}

/// Why there is no fast path.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Missing {
    /// One is there and says why it cannot run, or runs in a way that was not asked for.
    #[error("{0}")]
    Unable(String),
    /// None said hello.
    #[error("no fast path connected within {0:?}")]
    Silent(Duration),
}

/// The driver of the fast path.
#[derive(Debug)]
pub struct FastDataplane {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    options: FastOptions,
    desired: Option<Snapshot>,
    epoch: u64,
    held: BTreeMap<PortName, Held>,
    namespaces: BTreeMap<EndpointKey, Netns>,
    /// Links of pods that are not plugged in yet, and go with this process.
    prepared: BTreeMap<EndpointKey, Held>,
    session: Option<Session>,
    reaper: Reaper,
    /// What could not be done for single ports, in words; the next mending tries again.
    trouble: BTreeMap<PortName, String>,
    /// What ports do less well than asked, in the fast path's words.
    shortfalls: BTreeMap<PortName, Vec<String>>,
    /// Where tunnel frames go over an uplink of DPDK, as last told.
    next_hops: BTreeMap<IpAddr, MacAddr>,
    /// The counters of fast paths that have gone.
    past: Tally,
    last: Tally,
}

impl FastDataplane {
    /// Listens for the fast path from now on.
    pub fn start(options: FastOptions, reaper: Reaper) -> Result<Self, SocketError> {
        let listener = Listener::bind(&options.socket)?;
        let state = Arc::new(Mutex::new(State {
            options,
            desired: None,
            epoch: 0,
            held: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            prepared: BTreeMap::new(),
            session: None,
            reaper,
            trouble: BTreeMap::new(),
            shortfalls: BTreeMap::new(),
            next_hops: BTreeMap::new(),
            past: Tally::default(),
            last: Tally::default(),
        }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            while let Some(session) = next_session(&listener) {
                lock(&shared).take_up(session);
            }
        });
        Ok(Self { state })
    }

    /// What the living fast path said of itself; none while there is none.
    pub fn hello(&self) -> Option<Hello> {
        let state = lock(&self.state);
        state.session.as_ref().filter(|session| session.is_open()).map(|session| session.hello().clone())
    }

    /// Notes where a pod's namespace is, so that its TAP can be opened again after a restart of both sides. A path pins nothing.
    pub fn remember(&self, key: EndpointKey, namespace: Netns) {
        lock(&self.state).namespaces.insert(key, namespace);
    }

    /// What the fast path cannot do at the moment or does less well than it could, in words.
    pub fn limits(&self) -> Vec<String> {
        let state = lock(&self.state);
        let mut limits: Vec<_> = state.trouble.values().cloned().collect();
        match state.session.as_ref().filter(|session| session.is_open()).map(Session::hello) {
            None => limits.push("the fast path is not connected: its pods stand still".into()),
            Some(hello) => {
                limits.extend(hello.unable.iter().map(|why| format!("the fast path cannot run: {why}")));
                if hello.memory == Memory::Slow {
                    limits.push("the fast path runs in slow memory: no hugepages".into());
                }
                if hello.version < WEIGHS {
                    let release = &hello.release;
                    limits.push(format!(
                        "fast path {release} knows no weights: backends share connections alike"
                    ));
                }
                limits.extend(hello.limits.iter().cloned());
                limits.extend(state.shortfalls.values().flatten().cloned());
                let (workers, queues) = (hello.workers, state.options.queues);
                if workers > queues {
                    limits.push(format!(
                        "{} of the fast path's {workers} workers have no queue (fastpath_queues: {queues})",
                        workers - queues
                    ));
                }
            }
        }
        let plain = |held: &Held| matches!(&held.device, Device::Tap(tap) if tap.header == HEADER);
        if state.held.get(&PortName::Uplink).is_some_and(plain) {
            let why =
                if state.options.mask_tunnel_gso { "masked by configuration" } else { "needs Linux 6.17" };
            limits.push(format!(
                "no tunnel GSO on {}: every frame to other nodes is segmented ({why})",
                ports::UPLINK
            ));
        }
        limits
    }

    /// The living fast path and what it counted when it was last asked.
    pub fn process(&self) -> Option<FastpathStatus> {
        let hello = self.hello()?;
        let Tally { workers, buffers: (buffers, buffers_free), connections, .. } =
            lock(&self.state).last.clone();
        let Hello { release, pid, memory, .. } = hello;
        Some(FastpathStatus { release, pid, memory, workers, buffers, buffers_free, connections })
    }

    /// Waits for a fast path that can carry packets; the error says why there is none. `slow` takes one without hugepages, too.
    pub fn wait(&self, patience: Duration, slow: bool) -> Result<(), Missing> {
        let until = Instant::now() + patience;
        loop {
            match self.hello() {
                Some(Hello { unable: Some(why), .. }) => return Err(Missing::Unable(why)),
                Some(Hello { memory: Memory::Slow, .. }) if !slow => {
                    return Err(Missing::Unable("it runs in slow memory, without hugepages".into()));
                }
                Some(_) => return Ok(()),
                None if Instant::now() >= until => return Err(Missing::Silent(patience)),
                None => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Makes the link of a pod that is about to be attached. Nobody serves it, and it goes with this process, until `attach`.
    pub fn prepare(&self, endpoint: &Endpoint, netns: BorrowedFd<'_>) -> Result<(), DataplaneError> {
        // One that has just been left by an earlier agent is on its way back.
        let missing = self.wait(COMING_BACK, true);
        let mut state = lock(&self.state);
        if !state.is_able() {
            let why = missing.err().map_or_else(|| "it has gone".to_owned(), |missing| missing.to_string());
            return Err(DataplaneError::Unavailable(format!("the fast path is not there: {why}")));
        }
        let held = ports::make_pod_tap(endpoint, netns, &state.options)?;
        state.prepared.insert(endpoint.key.clone(), held);
        Ok(())
    }

    /// Whether an earlier agent chose the fast path for this node since it booted: its host port is there.
    pub fn was_chosen() -> bool {
        ports::exists(&PortName::Host)
    }
}

/// The next fast path that says a good hello; none when the listener is broken for good.
fn next_session(listener: &Listener) -> Option<Session> {
    loop {
        let channel = match listener.accept() {
            Ok(channel) => channel,
            Err(SocketError::Io { source, .. }) if source.raw_os_error() == Some(nix::libc::EINVAL) => {
                return None;
            }
            Err(error) => {
                warn!(%error, "a fast path could not connect");
                continue;
            }
        };
        match Session::greet(channel) {
            Ok(session) => return Some(session),
            Err(error) => warn!(%error, "a fast path said no good hello"),
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A panic elsewhere leaves the state as it was between two orders: it can be used.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Whether there is somebody to serve ports.
    fn is_able(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.is_open() && session.hello().unable.is_none())
    }

    fn take_up(&mut self, session: Session) {
        let hello = session.hello();
        // Two processes on the same queues would each get half of the frames.
        if let Some(old) = self.session.as_ref().filter(|old| old.is_open() && old.hello().pid != hello.pid) {
            warn!(old = old.hello().pid, new = hello.pid, "a second fast path is turned away");
            return;
        }
        info!(pid = hello.pid, workers = hello.workers, memory = ?hello.memory, "the fast path is here");
        if self.session.as_ref().is_none_or(|old| old.hello().pid != hello.pid) {
            add(&mut self.past, &std::mem::take(&mut self.last));
        }
        self.session = Some(session);
        // What it refuses is known to it and to the log; the next whole state is another try.
        drop(self.resume());
    }

    /// Brings a fast path from whatever it holds to the desired state. Does nothing while there is no desired state or nobody
    /// to tell.
    fn resume(&mut self) -> Result<(), DataplaneError> {
        let result = self.tell_everything();
        self.taken("taking up the desired state", result)
    }

    /// What an order came to for whoever keeps the desired state: one that was refused is told; one that was lost with
    /// its fast path is told again to the next.
    fn taken(&mut self, doing: &str, result: Result<(), OrderError>) -> Result<(), DataplaneError> {
        let refused = match &result {
            Err(OrderError::Refused(text)) => {
                Some(DataplaneError::Refused(format!("the fast path, {doing}: {text}")))
            }
            _ => None,
        };
        self.settle(doing, result);
        refused.map_or(Ok(()), Err)
    }

    /// Loses the session where an error means that; what an error means for the caller is the caller's.
    fn settle<T>(&mut self, doing: &str, result: Result<T, OrderError>) -> Option<T> {
        match result {
            Ok(value) => return Some(value),
            Err(OrderError::Lost(error)) => {
                warn!(%error, doing, "the fast path is lost");
                self.session = None;
            }
            Err(OrderError::Refused(text)) => warn!(text, doing, "the fast path refused"),
        }
        None
    }

    fn tell_everything(&mut self) -> Result<(), OrderError> {
        let (Some(session), Some(desired)) = (self.session.as_mut(), self.desired.as_ref()) else {
            return Ok(());
        };
        if session.hello().unable.is_some() {
            return Ok(());
        }
        let mut there: BTreeSet<PortName> = session.hello().ports.iter().cloned().collect();
        let wanted = wanted(desired);
        // A port that a fast path serves already is taken back, never opened a second time beside it.
        for port in wanted.iter().filter(|port| there.contains(port)) {
            if !self.held.contains_key(port) {
                let (device, queues) = session.show(port.clone())?;
                self.held.insert(port.clone(), Held { device, queues });
            }
        }
        // Another uplink was configured meanwhile.
        if self.held.get(&PortName::Uplink).is_some_and(|held| !held.suits(&self.options)) {
            session.order(Task::Unplug { port: PortName::Uplink })?;
            there.remove(&PortName::Uplink);
            if let Some(held) = self.held.remove(&PortName::Uplink) {
                held.forget(&PortName::Uplink);
            }
        }
        for port in there.iter().filter(|port| !wanted.contains(port)) {
            session.order(Task::Unplug { port: port.clone() })?;
        }
        // The state before any port: what guards an endpoint is in force before its first packet.
        self.epoch += 1;
        let snapshot = Box::new(desired.clone());
        session.order(Task::Snapshot { epoch: self.epoch, snapshot })?;
        self.next_hops.clear();
        for port in wanted.difference(&there) {
            self.plug(port)?;
        }
        self.resolve()
    }

    /// Opens a port where it is not open and has it served. What fails for one port is noted and stops no other.
    fn plug(&mut self, port: &PortName) -> Result<(), OrderError> {
        self.trouble.remove(port);
        if !self.held.contains_key(port) {
            match self.open(port) {
                Ok(held) => drop(self.held.insert(port.clone(), held)),
                Err(error) => drop(self.trouble.insert(port.clone(), error.to_string())),
            }
        }
        let (Some(held), Some(session)) = (self.held.get(port), self.session.as_mut()) else { return Ok(()) };
        match session.plug(port.clone(), held) {
            Ok(limits) => drop(self.shortfalls.insert(port.clone(), limits)),
            Err(OrderError::Refused(text)) => drop(self.trouble.insert(port.clone(), text)),
            Err(lost) => return Err(lost),
        }
        Ok(())
    }

    /// Tells an uplink of DPDK where its frames go, as far as the kernel knows and as far as that is new.
    fn resolve(&mut self) -> Result<(), OrderError> {
        let (Some(session), Some(desired)) = (self.session.as_mut(), self.desired.as_ref()) else {
            return Ok(());
        };
        if desired.settings.uplink == UplinkKind::HostRouted || session.hello().unable.is_some() {
            return Ok(());
        }
        let family = desired.settings.underlay_family();
        let peers: Vec<_> = desired.peers.values().filter_map(|peer| peer.tunnel_address(family)).collect();
        let mut macs = match next_hops(&peers) {
            Ok(macs) => macs,
            Err(error) => {
                warn!(error = chain(&error), "asking the kernel for the nodes' hardware addresses");
                return Ok(());
            }
        };
        // What was known stays good until something better is: the kernel forgets neighbours that it does not talk to.
        for peer in &peers {
            if let (false, Some(mac)) = (macs.contains_key(peer), self.next_hops.get(peer)) {
                macs.insert(*peer, *mac);
            }
        }
        if macs != self.next_hops {
            session.order(Task::NextHops { macs: macs.iter().map(|(to, mac)| (*to, *mac)).collect() })?;
            self.next_hops = macs;
        }
        Ok(())
    }

    fn tell(&mut self, task: Task) -> Result<(), DataplaneError> {
        let Some(session) = self.session.as_mut().filter(|session| session.hello().unable.is_none()) else {
            return Ok(());
        };
        let result = session.order(task);
        self.taken("taking up changes", result)
    }

    /// Gives up those of these ports that the desired state has no more, and opens the node's own that it has.
    fn align_ports(&mut self, touched: Vec<PortName>) {
        let Some(desired) = &self.desired else { return };
        let gone: Vec<_> = touched.into_iter().filter(|port| !wants(desired, port)).collect();
        for port in gone {
            if self.held.contains_key(&port) {
                self.unplug(&port);
            }
        }
        // Endpoints are plugged by `attach` and by `resume`; the node's own ports as soon as they are wanted.
        for port in [PortName::Host, PortName::Uplink] {
            // A device that is there already has a living fast path on its queues, or one to come: its hello will tell.
            let ours_to_open = self.session.is_some() || !ports::exists(&port);
            let wanted = self.desired.as_ref().is_some_and(|desired| wants(desired, &port));
            if wanted && !self.held.contains_key(&port) && ours_to_open {
                let result = self.plug(&port);
                self.settle("serving the node's own ports", result);
            }
        }
    }

    /// Puts another device in the place of one that somebody deleted; says so in words when it is done. What cannot be made
    /// is a trouble, and tried again by the next look.
    fn replace(&mut self, port: &PortName) -> Option<String> {
        let PortName::Endpoint(key) = port else {
            self.unplug(port);
            return Some(format!("{port:?}: its TAP had gone"));
        };
        // Its dead queues would wake the workers for ever.
        if let Some(session) = &mut self.session {
            let result = session.order(Task::Unplug { port: port.clone() });
            self.settle("giving up a port", result);
        }
        match self.open_again(key) {
            Ok(None) => None,
            Ok(Some(held)) => {
                self.held.insert(port.clone(), held);
                let result = self.plug(port);
                self.settle("serving a port again", result);
                Some(format!("plugged {key} in again: its link had gone"))
            }
            Err(error) => {
                self.trouble.insert(port.clone(), error.to_string());
                None
            }
        }
    }

    fn unplug(&mut self, port: &PortName) {
        if let Some(held) = self.give_up(port) {
            held.forget(port);
        }
    }

    /// Has a port served no more; what the agent holds of it is the caller's.
    fn give_up(&mut self, port: &PortName) -> Option<Held> {
        self.trouble.remove(port);
        self.shortfalls.remove(port);
        if let Some(session) = &mut self.session {
            let result = session.order(Task::Unplug { port: port.clone() });
            self.settle("giving up a port", result);
        }
        self.held.remove(port)
    }
}

/// Whether a state wants a port served by the fast path.
fn wants(desired: &Snapshot, port: &PortName) -> bool {
    let is_fast = |endpoint: &Endpoint| endpoint.path == Path::Fast;
    desired.settings.tunnel == TunnelOwner::FastPath
        && match port {
            PortName::Host | PortName::Uplink => true,
            PortName::Endpoint(key) => desired.endpoints.get(key).is_some_and(is_fast),
        }
}

/// The ports that changes may bring or take away; none where that may be any.
fn touched(deltas: &[Delta]) -> Option<Vec<PortName>> {
    let mut ports = Vec::new();
    for delta in deltas {
        match delta {
            Delta::Settings(_) => return None,
            Delta::Endpoint(endpoint) => ports.push(PortName::Endpoint(endpoint.key.clone())),
            Delta::EndpointGone(key) => ports.push(PortName::Endpoint(key.clone())),
            _ => {}
        }
    }
    Some(ports)
}

/// The ports that a state wants served by the fast path.
fn wanted(desired: &Snapshot) -> BTreeSet<PortName> {
    if desired.settings.tunnel != TunnelOwner::FastPath {
        return BTreeSet::new();
    }
    let endpoints = desired.endpoints.values().filter(|endpoint| endpoint.path == Path::Fast);
    endpoints
        .map(|endpoint| PortName::Endpoint(endpoint.key.clone()))
        .chain([PortName::Host, PortName::Uplink])
        .collect()
}

impl Dataplane for FastDataplane {
    fn apply(&mut self, update: Update<'_>) -> Result<(), DataplaneError> {
        let mut state = lock(&self.state);
        // Of a thousand ports a change touches one.
        let touched = match update {
            Update::Whole(_) => None,
            Update::Changes(deltas) => touched(deltas),
        };
        match update {
            Update::Whole(snapshot) => {
                state.desired = Some(snapshot.clone());
                state.resume()?;
            }
            Update::Changes(deltas) => {
                let Some(desired) = &mut state.desired else {
                    return Err(DataplaneError::Refused("changes of a state that was never told".into()));
                };
                deltas.iter().cloned().for_each(|delta| desired.apply(delta));
                state.epoch += 1;
                let epoch = state.epoch;
                if state.tell(Task::Deltas { epoch, deltas: deltas.to_vec() }).is_err() {
                    // Changes of a state that it does not have would go wrong from now on: the whole one instead.
                    state.resume()?;
                }
            }
        }
        // A fast path that is away is told everything when it is back: nothing is lost.
        let touched = touched.unwrap_or_else(|| state.held.keys().cloned().collect());
        state.align_ports(touched);
        let result = state.resolve();
        state.settle("telling where the nodes are", result);
        Ok(())
    }

    fn attach(&mut self, endpoint: &Endpoint, netns: BorrowedFd<'_>) -> Result<(), DataplaneError> {
        if !lock(&self.state).prepared.contains_key(&endpoint.key) {
            self.prepare(endpoint, netns)?;
        }
        let mut state = lock(&self.state);
        let port = PortName::Endpoint(endpoint.key.clone());
        if let Some(held) = state.prepared.remove(&endpoint.key) {
            let held = held.keep(&port)?;
            state.held.insert(port.clone(), held);
        }
        let result = state.plug(&port);
        let refused = state.trouble.remove(&port);
        let plugged = state.settle("serving a pod", result);
        if plugged.is_some() && refused.is_none() && state.is_able() {
            return Ok(());
        }
        let left = netns.try_clone_to_owned().ok();
        if let Err(error) = state.take_away(&endpoint.key, left) {
            warn!(%error, "a half-made pod link is left behind");
        }
        Err(DataplaneError::Unavailable(refused.unwrap_or_else(|| "the fast path went away".into())))
    }

    fn detach(&mut self, endpoint: &EndpointKey) -> Result<(), DataplaneError> {
        let mut state = lock(&self.state);
        let netns = state.namespaces.remove(endpoint).and_then(|place| ports::open_namespace(&place));
        state.take_away(endpoint, netns.map(OwnedFd::from))
    }

    fn check(&mut self, endpoint: &Endpoint, netns: BorrowedFd<'_>) -> Result<Vec<String>, DataplaneError> {
        self.examine(endpoint, netns)
    }

    fn mend(&mut self) -> Result<Vec<String>, DataplaneError> {
        let mut state = lock(&self.state);
        let mut mended = Vec::new();
        let lost: BTreeSet<_> = state
            .held
            .iter()
            .filter(|(port, held)| held.is_gone(port))
            .map(|(port, _)| port.clone())
            .collect();
        for port in &lost {
            mended.extend(state.replace(port));
        }
        let Some(desired) = &state.desired else { return Ok(mended) };
        let missing: Vec<_> = wanted(desired)
            .into_iter()
            .filter(|port| !state.held.contains_key(port) || state.trouble.contains_key(port))
            .filter(|port| !lost.contains(port) || !state.held.contains_key(port))
            .collect();
        if state.session.is_some() {
            for port in missing {
                let result = state.plug(&port);
                state.settle("serving a port again", result);
            }
        }
        let result = state.resolve();
        state.settle("telling where the nodes are", result);
        Ok(mended)
    }

    fn connections(&mut self, filter: &Filter, most: usize) -> Result<Listing, DataplaneError> {
        let mut state = lock(&self.state);
        let result = match state.session.as_mut().filter(|session| session.hello().unable.is_none()) {
            Some(session) => session.connections(filter, most),
            None => return Err(DataplaneError::Unavailable("the fast path is not connected".into())),
        };
        let why = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let listing = state.settle("listing connections", result);
        listing
            .ok_or_else(|| DataplaneError::Unavailable(format!("the fast path, listing connections: {why}")))
    }

    fn flows(&mut self) -> Result<Events, DataplaneError> {
        let mut state = lock(&self.state);
        let able = |session: &&mut Session| session.hello().unable.is_none();
        // One that is away has nothing to tell: it tells when it is back.
        let Some(session) = state.session.as_mut().filter(able) else { return Ok(Events::default()) };
        let result = session.flows();
        Ok(state.settle("gathering flows", result).unwrap_or_default())
    }

    fn counters(&mut self) -> Result<Counters, DataplaneError> {
        let mut state = lock(&self.state);
        if let Some(session) = state.session.as_mut().filter(|session| session.hello().unable.is_none()) {
            let result = session.count();
            if let Some(tally) = state.settle("counting", result) {
                state.last = tally;
            }
        }
        let mut sum = state.past.clone();
        add(&mut sum, &state.last);
        Ok(counters(&sum))
    }
}
