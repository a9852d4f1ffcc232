//! The agent's orders, carried out one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use causeway_datapath::{Event, Links, NextHop, Port, Slots, Touched, Tracking, World};
use causeway_model::connection::{Filter, Listing};
use causeway_model::fastpath::{
    Answer, ConnectionFigures, Device, Heard, Hello, MAX_QUEUES, Memory, Outcome, PortName, Tally, Tap, Task,
    VERSION, WorkerDrops,
};
use causeway_model::flow;
use causeway_model::policy::{Direction, RuleId, RuleNumber, Rulebook};
use causeway_model::{Count, Delta, Endpoint, EndpointCounters, EndpointKey, MacAddr, Path, Snapshot};
use causeway_socket::{Channel, SocketError};
use dpdk_sys::Eal;

use crate::clock;
use crate::ethdev::EthdevPort;
use crate::packet::Buffers;
use crate::table::{SLOTS, Served, Shared, Table};
use crate::tap::TapPort;

/// How long an answer may take to be taken.
const PATIENCE: Duration = Duration::from_secs(2);
/// How soon an agent that is away is looked for again, at first and at last.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// What packets need.
pub(crate) struct Means {
    pub(crate) eal: Eal,
    pub(crate) buffers: Buffers,
    pub(crate) shared: Arc<Shared>,
    /// The connections; none when packets are left alone.
    pub(crate) tracking: Option<Tracking>,
    /// What is done less well than it could be, in words.
    pub(crate) limits: Vec<String>,
}

/// A port, and what the workers know it as.
#[derive(Debug)]
struct Plugged {
    served: Served,
    /// None while its endpoint has no place.
    number: Option<Port>,
    /// As what they are told that it has something.
    heard_as: Option<Port>,
}

impl Plugged {
    fn listen(&mut self, shared: &Shared) -> Result<(), String> {
        if let (Some(number), Served::Tap(tap)) = (self.number, &self.served) {
            self.heard_as = Some(number);
            shared.listen(number, tap).map_err(|errno| {
                self.ignore(shared);
                format!("waiting on the descriptors of a port: {errno}")
            })?;
        }
        Ok(())
    }

    fn ignore(&mut self, shared: &Shared) {
        if let (Some(_), Served::Tap(tap)) = (self.heard_as.take(), &self.served) {
            shared.ignore(tap);
        }
    }
}

/// The side of the fast path that the agent talks to.
pub(crate) struct Control {
    agent: PathBuf,
    memory: Memory,
    workers: u16,
    /// What there is, or why nothing is.
    pub(crate) means: Result<Means, String>,
    epoch: u64,
    snapshot: Option<Snapshot>,
    slots: Slots,
    ports: BTreeMap<PortName, Plugged>,
    /// The hardware addresses that tunnel frames go to over an uplink of DPDK.
    next_hops: BTreeMap<IpAddr, MacAddr>,
    /// Endpoints for which there was no place.
    refused: BTreeSet<EndpointKey>,
    /// What had been counted under the numbers of rules before they were these rules'.
    rules: BTreeMap<RuleNumber, (RuleId, Count)>,
    /// Numbers may be others' since that was noted.
    renamed: bool,
}

impl Control {
    pub(crate) fn new(agent: PathBuf, memory: Memory, workers: u16, means: Result<Means, String>) -> Self {
        let (slots, ports) = (Slots::new(SLOTS), BTreeMap::new());
        Self {
            agent,
            memory,
            workers,
            means,
            epoch: 0,
            snapshot: None,
            slots,
            ports,
            next_hops: BTreeMap::new(),
            refused: BTreeSet::new(),
            rules: BTreeMap::new(),
            renamed: false,
        }
    }

    /// Serves agents, one after the other, for ever. Between two of them packets go on as the last one said.
    pub(crate) fn serve(mut self) -> ! {
        let mut pause = RETRY.0;
        loop {
            match self.converse(&mut pause) {
                Ok(()) => {}
                Err(SocketError::Gone) => tracing::info!("the agent has gone; packets go on"),
                Err(error) => tracing::debug!(%error, "no agent"),
            }
            thread::sleep(pause);
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// One agent, from hello to its end.
    fn converse(&mut self, pause: &mut Duration) -> Result<(), SocketError> {
        let mut channel = Channel::connect(&self.agent)?;
        channel.send(&self.hello(), &[], PATIENCE)?;
        *pause = RETRY.0;
        loop {
            let (order, queues) = channel.receive::<Heard>(None)?;
            let shown = order.what.as_ref().ok().and_then(|task| self.descriptors_of(task));
            let what = order.what.and_then(|task| self.carry_out(task, queues));
            let what = what.unwrap_or_else(Outcome::Failed);
            let beside = shown.as_ref().map(|tap| tap.queues.iter().map(AsFd::as_fd).collect::<Vec<_>>());
            channel.send(&Answer { number: order.number, what }, &beside.unwrap_or_default(), PATIENCE)?;
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            version: VERSION,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            memory: self.memory,
            workers: self.workers,
            epoch: self.epoch,
            ports: self.ports.keys().cloned().collect(),
            places: Some(SLOTS.into()),
            unable: self.means.as_ref().err().cloned(),
            limits: crowded(self.workers).into_iter().chain(self.shortfalls()).collect(),
        }
    }

    /// How full the table of connections is, and what that has led to.
    fn connections(&self) -> Option<ConnectionFigures> {
        let Tracking { connections, .. } = self.tracking()?;
        let pressure = connections.pressure();
        Some(ConnectionFigures {
            capacity: connections.capacity(),
            live: connections.live_count(),
            half_open_gone: pressure.half_open,
            idle_gone: pressure.idle,
            refused: pressure.refused,
        })
    }

    /// The connections that fit a filter, at most so many.
    fn list(&self, filter: &Filter, most: usize) -> Listing {
        let (Some(Tracking { connections, .. }), Ok(means)) = (self.tracking(), &self.means) else {
            return Listing::default();
        };
        let timeouts = means.shared.world().map(|world| world.timeouts).unwrap_or_default();
        let all = connections.records(clock::now(), &timeouts);
        Listing::of(all.filter(|connection| filter.fits(connection)), most)
    }

    /// What workers have told of connections since the last time.
    fn flows(&self) -> flow::Events {
        let (Ok(means), Some(snapshot)) = (&self.means, &self.snapshot) else {
            return flow::Events::default();
        };
        let since_epoch =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let boot = since_epoch.saturating_sub(clock::now());
        let mut all = flow::Events::default();
        for worker in &means.shared.workers {
            let (events, lost) = worker.events.take();
            all.events.extend(events.iter().map(|event| told(event, boot, &snapshot.policy)));
            all.lost += lost;
        }
        all
    }

    fn shortfalls(&self) -> Vec<String> {
        self.means.as_ref().map_or_else(|_| Vec::new(), |means| means.limits.clone())
    }

    fn descriptors_of(&self, task: &Task) -> Option<Arc<TapPort>> {
        match task {
            Task::Show { port } => match &self.ports.get(port)?.served {
                Served::Tap(tap) => Some(tap.clone()),
                Served::Ethdev(_) => None,
            },
            _ => None,
        }
    }

    pub(crate) fn carry_out(&mut self, task: Task, queues: Vec<OwnedFd>) -> Result<Outcome, String> {
        if let Err(why) = &self.means {
            return Err(why.clone());
        }
        match task {
            Task::Snapshot { epoch, snapshot } => self.take_up(epoch, *snapshot)?,
            Task::Deltas { epoch, deltas } => self.change(epoch, deltas)?,
            Task::Plug { port, device } => return self.plug(&port, device, queues),
            Task::NextHops { macs } => {
                self.next_hops = macs.into_iter().collect();
                self.publish()?;
            }
            Task::Unplug { port } => {
                if self.remove(&port) {
                    self.publish_port(&port)?;
                }
            }
            Task::Show { port } => {
                let there = self.ports.get(&port).ok_or_else(|| format!("port {port:?} is not served"))?;
                return Ok(Outcome::Shown(device(&there.served)));
            }
            Task::Count => return Ok(Outcome::Counted(Box::new(self.count()?))),
            Task::Flows => return Ok(Outcome::Flows(self.flows())),
            Task::Connections { filter, most } => return Ok(Outcome::Connections(self.list(&filter, most))),
        }
        Ok(Outcome::Done)
    }

    fn take_up(&mut self, epoch: u64, snapshot: Snapshot) -> Result<(), String> {
        let (had, has) = (self.snapshot.as_ref().map(fast_addresses), fast_addresses(&snapshot));
        let old = self.snapshot.replace(snapshot);
        self.renamed = true;
        self.number_all();
        let table = self.table(None).inspect_err(|_| {
            self.snapshot = old;
            self.number_all();
        })?;
        // From here on it is the state, also when a worker is slow to take it up.
        self.epoch = epoch;
        if let (None, Some(Tracking { connections, .. })) = (&had, self.tracking()) {
            // Nobody has carried packets yet: what is there is of the process before.
            connections.adopt(|address| self.slots.of(has.get(&address)?));
        }
        self.put_in_force(table)?;
        let gone = had.into_iter().flatten().map(|(address, _)| address).filter(|a| !has.contains_key(a));
        self.end_connections_of(&gone.collect());
        Ok(())
    }

    /// Whoever has these addresses next begins anew.
    fn end_connections_of(&self, gone: &BTreeSet<IpAddr>) {
        if let (false, Some(Tracking { connections, .. })) = (gone.is_empty(), self.tracking()) {
            connections.end_of(gone);
        }
    }

    fn tracking(&self) -> Option<Tracking> {
        self.means.as_ref().ok()?.tracking
    }

    /// Costs what the tables cost, and no copy of the state.
    fn change(&mut self, epoch: u64, deltas: Vec<Delta>) -> Result<(), String> {
        let snapshot = self.snapshot.as_mut().ok_or("changes of a state that was never told")?;
        let mut inverses = Vec::with_capacity(deltas.len());
        let (mut touched, mut changed) = (BTreeSet::new(), Touched::default());
        for delta in deltas {
            changed.note(&delta);
            self.renamed |= matches!(delta, Delta::Rule(..) | Delta::RuleGone(_));
            match &delta {
                Delta::Endpoint(endpoint) => drop(touched.insert(endpoint.key.clone())),
                Delta::EndpointGone(key) => drop(touched.insert(key.clone())),
                _ => {}
            }
            inverses.push(snapshot.inverse(&delta));
            snapshot.apply(delta);
        }
        self.number_some(&touched);
        let table = self.table(Some(&changed)).inspect_err(|_| {
            if let Some(snapshot) = &mut self.snapshot {
                inverses.iter().rev().cloned().for_each(|inverse| snapshot.apply(inverse));
            }
            self.number_some(&touched);
        })?;
        self.epoch = epoch;
        self.put_in_force(table)?;
        self.end_connections_of(&self.addresses_lost(&inverses));
        Ok(())
    }

    /// The addresses that fast pods had before these changes were made, which are taken back by their inverses, and have no more.
    fn addresses_lost(&self, inverses: &[Delta]) -> BTreeSet<IpAddr> {
        let mut lost = BTreeSet::new();
        for inverse in inverses {
            let Delta::Endpoint(before) = inverse else { continue };
            let now = self.snapshot.as_ref().and_then(|snapshot| snapshot.endpoints.get(&before.key));
            let keeps = |address| now.is_some_and(|now| is_fast(now) && now.addresses.contains(address));
            lost.extend(before.addresses.iter().filter(|address| is_fast(before) && !keeps(address)));
        }
        lost
    }

    fn plug(&mut self, port: &PortName, device: Device, queues: Vec<OwnedFd>) -> Result<Outcome, String> {
        if !self.ports.contains_key(port) {
            let served = match device {
                Device::Tap(tap) => Served::Tap(Arc::new(tap_port(port, tap, queues)?)),
                Device::Ethdev { arguments, queues } => {
                    let Means { eal, buffers, .. } = self.means.as_ref().map_err(Clone::clone)?;
                    let device = EthdevPort::attach(eal, buffers, &arguments, (queues, self.workers));
                    Served::Ethdev(Arc::new(device.map_err(|error| error.to_string())?))
                }
            };
            self.insert(port, served);
            if let Err(error) = self.publish_port(port) {
                self.remove(port);
                return Err(error);
            }
        }
        let limits = match self.ports.get(port).map(|there| &there.served) {
            Some(Served::Ethdev(device)) => device.limits.clone(),
            _ => Vec::new(),
        };
        Ok(Outcome::Plugged { limits })
    }

    pub(crate) fn insert(&mut self, port: &PortName, served: Served) {
        let there = Plugged { served, number: number(&self.slots, port), heard_as: None };
        self.ports.insert(port.clone(), there);
    }

    /// Takes a port out, which workers may still send to until the next table is in force; whether there was one.
    fn remove(&mut self, port: &PortName) -> bool {
        let Some(mut there) = self.ports.remove(port) else { return false };
        if let Ok(Means { shared, .. }) = &self.means {
            there.ignore(shared);
        }
        true
    }

    /// Gives every endpoint of the fast path its place, and every port the number of its endpoint.
    fn number_all(&mut self) {
        let Some(snapshot) = &self.snapshot else { return };
        self.refused = self.slots.take_up(snapshot).into_iter().collect();
        let slots = &self.slots;
        self.ports.iter_mut().for_each(|(name, there)| there.number = number(slots, name));
    }

    /// The same for the endpoints that a change touched, unless there are some that have waited for a place.
    fn number_some(&mut self, touched: &BTreeSet<EndpointKey>) {
        if !self.refused.is_empty() {
            return self.number_all();
        }
        let Some(snapshot) = &self.snapshot else { return };
        for key in touched {
            if !self.slots.follow(key, snapshot) {
                self.refused.insert(key.clone());
            }
            if let Some(there) = self.ports.get_mut(&PortName::Endpoint(key.clone())) {
                there.number = self.slots.of(key).map(Port::Endpoint);
            }
        }
    }

    /// Puts what is known now in force.
    pub(crate) fn publish(&mut self) -> Result<(), String> {
        let table = self.table(Some(&Touched::others()))?;
        self.put_in_force(table)
    }

    /// Puts in force that a port came or went. A pod's is none that frames of others depend on: they are looked up as before.
    fn publish_port(&mut self, port: &PortName) -> Result<(), String> {
        let Means { shared, .. } = self.means.as_ref().map_err(Clone::clone)?;
        match (port, shared.world()) {
            (PortName::Endpoint(_), Some(world)) => {
                let table = self.table_of(Some(world))?;
                self.put_in_force(table)
            }
            _ => self.publish(),
        }
    }

    /// A table of what is known now; of the one before, where it is said what has changed since, the rest is kept.
    fn table(&self, changed: Option<&Touched>) -> Result<Table, String> {
        let Means { shared, .. } = self.means.as_ref().map_err(Clone::clone)?;
        let world = match &self.snapshot {
            None => None,
            Some(snapshot) => {
                let (before, links) = (shared.world(), self.links(snapshot));
                let world = match (&before, changed) {
                    (Some(before), Some(changed)) => before.after(changed, snapshot, &self.slots, &links),
                    _ => World::new(snapshot, &self.slots, &links),
                };
                let mut world = world.map_err(|error| error.to_string())?;
                if let (Some(before), None) = (before, changed) {
                    world.inherit(&before);
                }
                Some(Arc::new(world))
            }
        };
        self.table_of(world)
    }

    /// A table of these look-ups and the ports that there are.
    fn table_of(&self, world: Option<Arc<World>>) -> Result<Table, String> {
        let Means { shared, .. } = self.means.as_ref().map_err(Clone::clone)?;
        let ports = self.ports.values().filter_map(|there| Some((there.number?, there.served.clone())));
        Ok(Table::new(world, ports.collect(), shared.workers.len()))
    }

    fn put_in_force(&mut self, table: Table) -> Result<(), String> {
        let Means { shared, .. } = self.means.as_ref().map_err(Clone::clone)?;
        let last = self.snapshot.as_ref().and_then(|snapshot| snapshot.policy.rules.last_key_value());
        let last = last.map_or(RuleNumber(RuleNumber::FIRST), |(number, _)| *number);
        shared.workers.iter().for_each(|worker| worker.tally.make_room(last));
        // Nobody is told of a port by a number that it has no more, nor of one that is not in the table yet.
        for there in self.ports.values_mut().filter(|there| there.heard_as != there.number) {
            there.ignore(shared);
        }
        let published = shared.publish(table);
        for there in self.ports.values_mut().filter(|there| there.heard_as.is_none()) {
            there.listen(shared)?;
        }
        published?;
        self.rename_rules();
        let Means { shared, .. } = self.means.as_ref().map_err(Clone::clone)?;
        for slot in self.slots.settle() {
            shared.workers.iter().for_each(|worker| worker.tally.clear(slot));
        }
        if self.refused.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = self.refused.iter().map(ToString::to_string).collect();
        Err(format!("{SLOTS} endpoints are the most; without a place: {}", names.join(", ")))
    }

    /// Takes up whose the numbers of rules are now: what was counted before is others'. Call when no worker counts for these.
    fn rename_rules(&mut self) {
        let (Some(snapshot), Ok(means)) = (&self.snapshot, &self.means) else { return };
        if !std::mem::take(&mut self.renamed) {
            return;
        }
        let rules = &snapshot.policy.rules;
        self.rules.retain(|number, (id, _)| rules.get(number) == Some(id));
        for (number, id) in rules {
            if !self.rules.contains_key(number) {
                self.rules.insert(*number, (id.clone(), means.shared.denied(*number)));
            }
        }
    }

    /// What rules have denied, each since it has its number.
    fn denied(&self, shared: &Shared) -> Vec<(RuleId, Count)> {
        let unknown = Direction::BOTH
            .map(|direction| (RuleId::unknown(direction), shared.denied(RuleNumber::unknown(direction))));
        let rules = self.rules.iter().map(|(number, (id, before))| {
            let Count { packets, bytes } = shared.denied(*number);
            (id.clone(), Count { packets: packets - before.packets, bytes: bytes - before.bytes })
        });
        unknown.into_iter().chain(rules).filter(|(_, count)| count.packets > 0).collect()
    }

    /// The hardware addresses of our own ports; a port that is not there sends nothing.
    fn links(&self, snapshot: &Snapshot) -> Links {
        let vtep = snapshot.settings.node.vtep_mac;
        let served = |name| self.ports.get(&name).map(|there| &there.served);
        let host = match served(PortName::Host) {
            Some(Served::Tap(tap)) => tap.tap.mac,
            _ => vtep,
        };
        let (source, next_hop) = match served(PortName::Uplink) {
            Some(Served::Ethdev(device)) => (device.mac, NextHop::Each(self.next_hops.clone())),
            Some(Served::Tap(tap)) => (vtep, NextHop::Same(tap.tap.mac)),
            None => (vtep, NextHop::Same(MacAddr::ZERO)),
        };
        Links { host, source, next_hop }
    }

    pub(crate) fn count(&self) -> Result<Tally, String> {
        let Means { buffers, shared, .. } = self.means.as_ref().map_err(Clone::clone)?;
        let mut sum = Tally {
            buffers: buffers.figures(),
            connections: self.connections(),
            rules: self.denied(shared),
            services: shared.world().iter().flat_map(|world| world.begun().collect::<Vec<_>>()).collect(),
            paths: shared.world().iter().flat_map(|world| world.narrow_paths().collect::<Vec<_>>()).collect(),
            ..Tally::default()
        };
        let mut endpoints: BTreeMap<EndpointKey, EndpointCounters> = BTreeMap::new();
        for (number, worker) in shared.workers.iter().enumerate() {
            sum.workers.push(worker.taken_in());
            sum.tunnel_sent += worker.tally.tunnel_sent();
            sum.tunnel_received += worker.tally.tunnel_received();
            let line = |(reason, count)| WorkerDrops { worker: number as u16, reason, count };
            sum.drops.extend(worker.tally.drops().into_iter().map(line));
            for (key, slot) in self.slots.iter() {
                let passed = worker.tally.endpoint(slot);
                let entry = endpoints.entry(key.clone()).or_default();
                entry.from_pod += passed.from_pod;
                entry.to_pod += passed.to_pod;
                for (reason, count) in passed.drops {
                    *entry.drops.entry(reason).or_default() += count;
                }
            }
        }
        sum.endpoints = endpoints.into_iter().collect();
        Ok(sum)
    }
}

/// What workers know a port as.
fn number(slots: &Slots, name: &PortName) -> Option<Port> {
    Some(match name {
        PortName::Host => Port::Host,
        PortName::Uplink => Port::Uplink,
        PortName::Endpoint(key) => Port::Endpoint(slots.of(key)?),
    })
}

/// An event with names for numbers and the time of the wall.
fn told(event: &Event, boot: u64, book: &Rulebook) -> flow::Event {
    let Event { at, verdict, protocol, from, to, bytes, rules } = *event;
    // A rule that denies is of one side alone.
    let of = |direction: Direction| {
        book.id(rules[usize::from(direction == Direction::Ingress)])
            .filter(|rule| rule.direction == direction)
    };
    flow::Event {
        at: boot + at,
        path: Path::Fast,
        verdict,
        protocol: protocol.0,
        from,
        to,
        bytes,
        egress: of(Direction::Egress),
        ingress: of(Direction::Ingress),
        audit: None,
        from_pod: None,
        to_pod: None,
    }
}

fn is_fast(endpoint: &Endpoint) -> bool {
    endpoint.path == Path::Fast
}

/// Whose the addresses of this state's fast pods are.
fn fast_addresses(snapshot: &Snapshot) -> BTreeMap<IpAddr, EndpointKey> {
    let fast = snapshot.endpoints.values().filter(|endpoint| is_fast(endpoint));
    fast.flat_map(|endpoint| endpoint.addresses.iter().map(|address| (*address, endpoint.key.clone())))
        .collect()
}

/// A TAP as it came over the socket, if it is what it says it is.
fn tap_port(port: &PortName, tap: Tap, queues: Vec<OwnedFd>) -> Result<TapPort, String> {
    if queues.is_empty() || queues.len() != usize::from(tap.queues) || queues.len() > MAX_QUEUES {
        return Err(format!("port {port:?}: {} descriptors for {} queues", queues.len(), tap.queues));
    }
    if ![10, 12, 24].contains(&tap.header) {
        return Err(format!("port {port:?}: a virtio header of {} bytes", tap.header));
    }
    Ok(TapPort { queues, tap })
}

fn device(served: &Served) -> Device {
    match served {
        Served::Tap(tap) => Device::Tap(tap.tap.clone()),
        Served::Ethdev(port) => Device::Ethdev { arguments: port.arguments.clone(), queues: port.queues },
    }
}

/// Poll loops that wait for each other's CPU are slower than fewer would be.
fn crowded(workers: u16) -> Option<String> {
    let cpus = thread::available_parallelism().ok()?.get();
    (usize::from(workers) > cpus).then(|| format!("the fast path's {workers} workers share {cpus} CPUs"))
}

#[cfg(test)]
mod tests;
