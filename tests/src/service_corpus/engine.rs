//! The service compilers of all nodes: their tables, the slow evaluator beside them, and what a data path that keeps its promises
//! makes of them.

mod calls;
mod policies;

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};
use causeway_model::service::{Answer, Backend, BackendsId, Service, Services};
use causeway_model::{NodeId, PortProtocol};
use causeway_services::{
    Change, Client, Compiler, NodeFacts, Outcome, Read, ServiceName, SliceName, World, ZONE_LABEL, ask, read,
    slow,
};

use super::fault::Fault;
use super::format::{Act, Kind, Name, Probe};
use super::judge::Connection;
use super::run::{Check, Subject};
use super::world::{Changed, Stage, own};
use crate::corpus::names::node_id;
use crate::corpus::prober::Came;
use calls::{Call, Hop};
use policies::Policies;

/// A node's compiler, and what the slow evaluator reads: without a fault the same.
struct Node {
    compiler: Compiler,
    truth: World,
}

/// A connection that was kept.
struct Flow {
    call: Call,
    /// Where it was translated, and to whom.
    through: Option<(Hop, Backend)>,
}

/// What a node makes of a call.
enum Passed {
    To(Backend),
    Refused,
    Dropped,
    NotOurs,
}

/// Whom a client was with at a frontend, by node.
type Visit = (String, IpAddr, IpAddr, PortProtocol, u16);

/// The engines of all nodes.
pub(super) struct Engine {
    nodes: BTreeMap<String, Node>,
    policies: Policies,
    fault: Option<Fault>,
    flows: BTreeMap<String, Flow>,
    /// Whom clients were with, and when they came last.
    visits: BTreeMap<Visit, (Backend, f64)>,
    complaints: Vec<String>,
    chance: fastrand::Rng,
}

impl Engine {
    /// Engines that know nothing yet. With a fault, services are compiled wrong.
    pub fn new(fault: Option<Fault>) -> Self {
        Self {
            nodes: BTreeMap::new(),
            policies: Policies::default(),
            fault,
            flows: BTreeMap::new(),
            visits: BTreeMap::new(),
            complaints: Vec::new(),
            chance: fastrand::Rng::with_seed(0x5eed),
        }
    }

    /// Tells every node of changes.
    fn tell(&mut self, changes: &[Change]) {
        for node in self.nodes.values_mut() {
            changes.iter().for_each(|change| node.truth.apply(change.clone()));
            let bent = changes.iter().cloned().filter_map(|change| match self.fault {
                Some(fault) => fault.bend(change),
                None => Some(change),
            });
            node.compiler.apply(bent.collect::<Vec<_>>());
        }
    }

    /// What the tables of a node make of a call. The slow evaluator is asked beside.
    fn pass(&mut self, stage: &Stage, call: &Call, hop: &Hop) -> Result<Passed> {
        let node = self.nodes.get(&hop.node).with_context(|| format!("no node {}", hop.node))?;
        let to = (call.target, hop.of_node);
        let services = node.compiler.services();
        let said = ask(services, (hop.client, call.source), to, call.protocol, call.port);
        if self.fault.is_none() {
            let connection = slow::Connection {
                client: hop.client,
                node: hop.node.parse()?,
                source: call.source,
                destination: call.target,
                protocol: call.protocol,
                port: call.port,
            };
            let slow = slow::judge(&node.truth, &connection);
            if slow != said {
                let complaint = format!("on {}: tables say {said:?}, the slow evaluator {slow:?}", hop.node);
                self.complaints.push(complaint);
            }
        }
        Ok(match said {
            Outcome::NotOurs => Passed::NotOurs,
            Outcome::Dropped => Passed::Dropped,
            Outcome::Refused => Passed::Refused,
            Outcome::Served(_) => {
                let (service, id) = found(services, call, hop).context("who is served has a service")?;
                let chosen = services.backends.get(&id).map(|backends| backends.chosen.clone());
                let (chosen, affinity) = (chosen.unwrap_or_default(), service.affinity);
                Passed::To(self.choose(stage, call, hop, &chosen, affinity)?)
            }
        })
    }

    /// Chooses a backend: the client's last one where it shall be, else any.
    fn choose(
        &mut self,
        stage: &Stage,
        call: &Call,
        hop: &Hop,
        chosen: &[Backend],
        affinity: Option<u32>,
    ) -> Result<Backend> {
        let any = *chosen.get(self.chance.usize(..chosen.len().max(1))).context("nobody is to be chosen")?;
        let Some(timeout) = affinity else { return Ok(any) };
        let visit = (hop.node.clone(), call.source, call.target, call.protocol, call.port);
        let last = self
            .visits
            .get(&visit)
            .filter(|(backend, at)| chosen.contains(backend) && stage.clock - at <= f64::from(timeout));
        let backend = last.map_or(any, |(backend, _)| *backend);
        self.visits.insert(visit, (backend, stage.clock));
        Ok(backend)
    }

    /// What becomes of a new connection, and through whom.
    fn begin(&mut self, stage: &Stage, call: &Call) -> Result<(Came, Option<(Hop, Backend)>)> {
        for hop in call.hops(stage) {
            match self.pass(stage, call, &hop)? {
                Passed::NotOurs => {}
                Passed::Refused => return Ok((Came::Refusal, None)),
                Passed::Dropped => return Ok((Came::Nothing, None)),
                Passed::To(backend) => {
                    let came = self.deliver(stage, call, Some(&hop), backend)?;
                    return Ok((came, Some((hop, backend))));
                }
            }
        }
        if call.is_lost(stage) {
            return Ok((Came::Nothing, None));
        }
        let target = Backend { address: call.target, port: call.port };
        Ok((self.deliver(stage, call, None, target)?, None))
    }

    /// What becomes of a connection at who shall answer it.
    fn deliver(&mut self, stage: &Stage, call: &Call, hop: Option<&Hop>, to: Backend) -> Result<Came> {
        let Some(party) = stage.owner(to.address) else {
            // Nobody listens on loopback; anybody else is not there.
            return Ok(if to.address.is_loopback() { Came::Refusal } else { Came::Nothing });
        };
        let source = call.seen_as(stage, hop, &party).context("nobody can be seen")?;
        // A pod that is its own backend is judged as who it is, and not at all when it asks for its own address.
        let own = party == call.client;
        let judged = if own { to.address } else { source };
        if !(own && hop.is_none()) && self.policies.denies(stage, call, &party, judged, to)? {
            return Ok(Came::Nothing);
        }
        let answer = stage.answers(&party, call.protocol, to.port);
        Ok(answer.map_or(Came::Refusal, |by| Came::Answer(by, source)))
    }

    /// What becomes of an echo request: whose address it is answers, and a service's is nobody's.
    fn ping(&self, stage: &Stage, probe: &Probe) -> Result<Came> {
        let client = stage.party(&probe.from)?;
        let node = stage.node_of(&client).and_then(|name| self.nodes.get(name));
        let is_service = |node: &Node| node.compiler.services().addresses.contains(&probe.to);
        Ok(match stage.owner(probe.to) {
            Some(_) if !node.is_some_and(is_service) => Came::Answer("echo".into(), probe.to),
            _ => Came::Nothing,
        })
    }

    /// What becomes of a packet of a connection that was kept: it stays with its backend while that is chosen or leaving, and with
    /// one that is neither if it is no datagram.
    fn resume(&mut self, stage: &Stage, name: &str) -> Result<Came> {
        let Flow { call, through } = self.flows.get(name).with_context(|| format!("no flow {name}"))?;
        let (call, through) = (call.clone(), through.clone());
        if let Some((hop, backend)) = &through {
            let services = self.nodes.get(&hop.node).context("a node has gone")?.compiler.services();
            let backends = found(services, &call, hop).and_then(|(_, id)| services.backends.get(&id));
            let is_known = backends
                .is_some_and(|known| known.chosen.iter().chain(&known.leaving).any(|one| one == backend));
            if is_known || call.protocol != PortProtocol::Udp {
                return self.deliver(stage, &call, Some(hop), *backend);
            }
        }
        let (came, through) = self.begin(stage, &call)?;
        self.flows.insert(name.to_owned(), Flow { call, through });
        Ok(came)
    }
}

/// The service that a call is for, and its backends.
fn found<'a>(services: &'a Services, call: &Call, hop: &Hop) -> Option<(&'a Service, BackendsId)> {
    let service = services.at(call.target, hop.of_node, call.protocol, call.port)?;
    let answer = if hop.client == Client::Outside { service.outside } else { service.inside };
    match answer {
        Answer::Backends(id) => Some((service, id)),
        Answer::Refuse | Answer::Drop => None,
    }
}

/// A node as services know it.
fn node_change(stage: &Stage, name: &str) -> Result<Change> {
    let node = stage.topology().nodes.get(name).with_context(|| format!("no node {name}"))?;
    let facts = NodeFacts { zone: node.labels.get(ZONE_LABEL).cloned(), addresses: own(node).collect() };
    Ok(Change::Node(name.parse()?, Some(facts)))
}

/// A change of an object, if it is one of services.
fn object_change(stage: &Stage, name: &Name) -> Result<Option<Change>> {
    let Name { kind, namespace, name: own } = name;
    let (namespace, own) = (namespace.clone(), own.clone());
    Ok(match (kind.as_str(), stage.object(name)) {
        ("Service" | "EndpointSlice", Some(object)) => Some(match read(object)? {
            Read::Service(name, service, _) => Change::Service(name, service),
            Read::Slice(name, slice, _) => Change::Slice(name, slice),
        }),
        ("Service", None) => Some(Change::Service(ServiceName { namespace, name: own }, None)),
        ("EndpointSlice", None) => Some(Change::Slice(SliceName { namespace, name: own }, None)),
        _ => None,
    })
}

impl Subject for Engine {
    fn begin(&mut self, stage: &Stage) -> Result<()> {
        let node = |name: &String| -> Result<_> {
            let id: NodeId = node_id(name)?;
            Ok((name.clone(), Node { compiler: Compiler::new(id.clone()), truth: World::new(id) }))
        };
        self.nodes = stage.topology().nodes.keys().map(node).collect::<Result<_>>()?;
        (self.flows, self.visits) = (BTreeMap::new(), BTreeMap::new());
        self.policies = Policies::new(stage)?;
        let nodes = stage.topology().nodes.keys().map(|name| node_change(stage, name));
        let mut changes = nodes.collect::<Result<Vec<_>>>()?;
        changes.push(Change::Prefixes(stage.topology().service_cidrs.clone()));
        self.tell(&changes);
        Ok(())
    }

    fn take(&mut self, stage: &Stage, _: &Act, changed: &[Changed]) -> Result<Vec<String>> {
        let mut changes = Vec::new();
        for one in changed {
            match one {
                Changed::Object(name) => changes.extend(object_change(stage, name)?),
                Changed::Node(name) => changes.push(node_change(stage, name)?),
                Changed::Namespace(_) | Changed::Pod(_) => {}
            }
        }
        self.tell(&changes);
        self.policies.take(stage, changed)
    }

    fn settle(&mut self, _: &Stage) -> Result<()> {
        Ok(())
    }

    fn connect(&mut self, stage: &Stage, probe: &Probe) -> Result<Vec<Connection>> {
        if probe.kind == Kind::Ping {
            return Ok(vec![Connection { client: Vec::new(), came: self.ping(stage, probe)? }]);
        }
        if let Some(flow) = &probe.resume {
            let client = self.flows.get(flow).map(|flow| vec![flow.call.source]).unwrap_or_default();
            let ask = |_| Ok(Connection { client: client.clone(), came: self.resume(stage, flow)? });
            return (0..probe.count).map(ask).collect();
        }
        let mut connections = Vec::new();
        for call in Call::all(stage, probe)? {
            let (came, through) = self.begin(stage, &call)?;
            connections.push(Connection { client: vec![call.source], came });
            if let Some(flow) = &probe.flow {
                self.flows.insert(flow.clone(), Flow { call, through });
            }
        }
        Ok(connections)
    }

    fn check(&mut self, stage: &Stage, probe: &Probe) -> Result<Result<Check, Came>> {
        let call = Call::all(stage, probe)?.into_iter().next().context("a check is a call")?;
        let Some(hop) = call.hops(stage).pop() else { return Ok(Err(Came::Nothing)) };
        let node = self.nodes.get(&hop.node).with_context(|| format!("no node {}", hop.node))?;
        let mut told = node.compiler.health().filter(|(_, health)| Some(health.port) == probe.port);
        Ok(match told.next() {
            None => Err(Came::Refusal),
            Some((_, health)) => {
                let local = health.v4.unwrap_or(0).max(health.v6.unwrap_or(0)) as u64;
                let status = if local > 0 { 200 } else { 503 };
                Ok(Check { status, local: (Some(local), Some(local)) })
            }
        })
    }

    fn complaints(&mut self) -> Result<Vec<String>> {
        Ok(std::mem::take(&mut self.complaints))
    }
}
