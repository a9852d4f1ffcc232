//! Cases run on real data paths: pods, nodes and hosts outside in a lab, every connection a real one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use causeway_model::{Family, PortProtocol};
use serde_json::Value;

use super::format::{Act, Corpus, Fate, Kind, Probe, Topology};
use super::judge::Connection;
use super::run::{Check, Subject};
use super::world::{Changed, Party, Stage};
use crate::corpus::ground::{Ground, Plan};
use crate::corpus::prober::{Came, Prober, Question};
use crate::corpus::protocol;
use crate::lab::Datapath;
use crate::namespace::Namespace;

/// How long an answer may take, on a machine that may do much else.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long is waited for what shall not come: long enough for TCP to have asked twice.
const PATIENCE_FOR_NOTHING: Duration = Duration::from_millis(1300);
/// The host that has all ways that nodes do not: what comes to it went where it has no business.
const FABRIC: &str = "_fabric";
/// Its addresses.
const GATEWAYS: [&str; 2] = ["192.0.0.8", "100::8"];

/// A lab on which cases happen one after the other.
pub(super) struct Lab {
    ground: Ground,
    prober: Prober,
    /// Whose servers run.
    served: BTreeMap<String, Namespace>,
    /// Ways that hosts outside were told.
    ways: Vec<(Namespace, IpAddr)>,
    /// Packets for services that have left a node unanswered.
    strayed: u64,
}

impl Lab {
    /// Makes nodes and hosts. Pods come with the first case.
    pub fn build(corpus: &Corpus, datapath: Datapath) -> Result<Self> {
        let topology = &corpus.topology;
        let stage = Stage::new(topology)?;
        let mut hosts: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for (name, host) in &topology.outside {
            let both = Family::BOTH.into_iter().flat_map(|family| host.addresses(family));
            hosts.insert(name.clone(), both.collect());
        }
        let gateways = GATEWAYS.iter().map(|address| address.parse()).collect::<Result<Vec<_>, _>>()?;
        hosts.insert(FABRIC.into(), gateways);
        let plan = Plan {
            datapath,
            nodes: &topology.nodes,
            prefixes: topology
                .nodes
                .iter()
                .map(|(name, node)| (name.clone(), node.pod_cidrs.clone()))
                .collect(),
            pods: &topology.pods,
            hosts,
            pods_are_routed: false,
        };
        let ground = Ground::build(&plan, &stage.scene())?;
        let (prober, served, ways) = (Prober::default(), BTreeMap::new(), Vec::new());
        let lab = Self { ground, prober, served, ways, strayed: 0 };
        lab.lead(topology)?;
        Ok(lab)
    }

    /// Gives nodes a way to everybody else, at whose end nothing is but a count of what came for services.
    fn lead(&self, topology: &Topology) -> Result<()> {
        for name in topology.nodes.keys() {
            let mut ways = String::new();
            for gateway in GATEWAYS {
                writeln!(ways, "route replace default via {gateway} dev eth0 onlink")?;
            }
            self.ground.node_place(name).ip_batch(&ways)?;
        }
        let mut table =
            "table inet fabric {\nchain stray {\ntype filter hook prerouting priority raw\n".to_owned();
        for prefix in &topology.service_cidrs {
            let family = if prefix.is_ipv4() { "ip" } else { "ip6" };
            writeln!(table, "{family} daddr {prefix} counter drop")?;
        }
        table += "}\n}\n";
        let fabric = self.ground.host_place(FABRIC);
        fabric.stdout(&mut crate::command::parse("nft -f -"), table.as_bytes())?;
        Ok(())
    }

    /// How many packets for addresses of services have come to the fabric.
    fn strays(&self) -> Result<u64> {
        let listed = self.ground.host_place(FABRIC).exec("nft -j list table inet fabric")?;
        let listed: Value = serde_json::from_str(&listed)?;
        let rules = listed["nftables"].as_array().into_iter().flatten();
        let counts = rules.flat_map(|rule| rule["rule"]["expr"].as_array().into_iter().flatten());
        Ok(counts.filter_map(|part| part["counter"]["packets"].as_u64()).sum())
    }

    /// Plugs in the pods that are there, and has everybody serve who does.
    fn serve(&mut self, stage: &Stage) -> Result<()> {
        let Self { ground, prober, served, .. } = self;
        ground.plug(&stage.scene(), |place| {
            prober.forget(place);
            served.retain(|_, namespace| namespace.name() != place);
        })?;
        for party in stage.parties() {
            let name = format!("{party:?}");
            if served.contains_key(&name) {
                continue;
            }
            let place = place(ground, stage, &party)?;
            let both = Family::BOTH.into_iter().flat_map(|family| stage.addresses(&party, family));
            let addresses: Vec<_> = both.collect();
            for (id, ports) in stage.servers(&party) {
                let ports = ports.iter().map(|port| Ok((protocol(&port.protocol)?, port.port)));
                let ports = ports.collect::<Result<Vec<_>>>()?;
                prober.servers.serve(place.name(), &id, &addresses, &ports)?;
            }
            served.insert(name, place);
        }
        Ok(())
    }

    /// Has a host outside route an address through a node.
    fn route(&mut self, stage: &Stage, probe: &Probe) -> Result<()> {
        let (Some(via), party) = (&probe.via, stage.party(&probe.from)?) else { return Ok(()) };
        let node = stage.addresses(&Party::Node(via.clone()), Family::of(probe.to));
        let node = node.first().with_context(|| format!("{via} has no address for {}", probe.to))?;
        let place = place(&self.ground, stage, &party)?;
        place.ip(&format!("route replace {} via {node} dev eth0 onlink", probe.to))?;
        self.ways.push((place, probe.to));
        Ok(())
    }

    fn question(&self, stage: &Stage, probe: &Probe, number: usize) -> Result<(Question, Vec<IpAddr>)> {
        let party = stage.party(&probe.from)?;
        let all = stage.addresses(&party, Family::of(probe.to));
        let clients = probe.clients.unwrap_or(1).max(1);
        let missing = || format!("{} has not {clients} addresses to ask {} from", probe.from, probe.to);
        let own = *all.get(number % clients).with_context(missing)?;
        let protocol = protocol(probe.proto.as_deref().context("a probe without a protocol")?)?;
        // A node's own processes leave it to the kernel; over SCTP there is none that does it.
        let left = matches!(party, Party::Node(_)) && protocol != PortProtocol::Sctp;
        let question = Question {
            place: place(&self.ground, stage, &party)?.name().to_owned(),
            source: (!left).then_some(own),
            protocol,
            target: SocketAddr::new(probe.to, probe.port.context("a probe without a port")?),
        };
        Ok((question, if left { all } else { vec![own] }))
    }
}

/// The namespace of somebody.
fn place(ground: &Ground, stage: &Stage, party: &Party) -> Result<Namespace> {
    Ok(match party {
        Party::Pod(id) => ground.pod_place(stage.pods().get(id).with_context(|| format!("no pod {id}"))?),
        Party::Node(name) => ground.node_place(name),
        Party::Out(name) => ground.host_place(name),
    })
}

/// How long a probe's connections may take: where nothing shall come, as long as it takes to see that.
fn patience(probe: &Probe) -> Duration {
    let served = probe.expect.outcome.all().contains(&Fate::Served);
    if served && probe.expect.denied.is_empty() { PATIENCE } else { PATIENCE_FOR_NOTHING }
}

impl Subject for Lab {
    fn begin(&mut self, stage: &Stage) -> Result<()> {
        self.prober.end_flows();
        for (place, address) in std::mem::take(&mut self.ways) {
            drop(place.ip(&format!("route del {address}")));
        }
        self.serve(stage)?;
        self.settle(stage)
    }

    fn take(&mut self, stage: &Stage, act: &Act, _: &[Changed]) -> Result<Vec<String>> {
        match act {
            Act::PodState(_) => self.serve(stage)?,
            Act::Wait(seconds) => std::thread::sleep(Duration::from_secs_f64(*seconds)),
            Act::Apply(_) | Act::Delete(_) => {}
        }
        Ok(Vec::new())
    }

    fn settle(&mut self, stage: &Stage) -> Result<()> {
        self.ground.settle(&stage.scene())
    }

    fn connect(&mut self, stage: &Stage, probe: &Probe) -> Result<Vec<Connection>> {
        self.route(stage, probe)?;
        if probe.kind == Kind::Ping {
            let from = place(&self.ground, stage, &stage.party(&probe.from)?)?;
            let came = match from.exec(&format!("ping -n -c 1 -W 1 {}", probe.to)) {
                Ok(_) => Came::Answer("echo".into(), probe.to),
                Err(error) if error.to_string().contains("Port Unreachable") => Came::Refusal,
                Err(error) if error.to_string().contains("Port unreachable") => Came::Refusal,
                Err(_) => Came::Nothing,
            };
            return Ok(vec![Connection { client: Vec::new(), came }]);
        }
        let patience = patience(probe);
        if let Some(flow) = &probe.resume {
            let (_, client) = self.question(stage, probe, 0)?;
            let came = self.prober.resume(flow, probe.count, patience)?;
            return Ok(came.into_iter().map(|came| Connection { client: client.clone(), came }).collect());
        }
        let asked = (0..probe.count).map(|number| self.question(stage, probe, number));
        let (questions, clients): (Vec<_>, Vec<_>) = asked.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let came = match (&probe.flow, questions.first()) {
            (Some(flow), Some(question)) => vec![self.prober.open(flow, question, patience)?],
            _ => self.prober.ask(&questions, patience)?,
        };
        Ok(clients.into_iter().zip(came).map(|(client, came)| Connection { client, came }).collect())
    }

    fn check(&mut self, stage: &Stage, probe: &Probe) -> Result<Result<Check, Came>> {
        self.route(stage, probe)?;
        let from = place(&self.ground, stage, &stage.party(&probe.from)?)?;
        let target = SocketAddr::new(probe.to, probe.port.context("a check without a port")?);
        from.run(|| get(target))
    }

    fn complaints(&mut self) -> Result<Vec<String>> {
        let strays = self.strays()?;
        let new = strays - std::mem::replace(&mut self.strayed, strays);
        Ok((new > 0).then(|| format!("{new} packets for services have left a node")).into_iter().collect())
    }
}

/// Asks for health.
fn get(target: SocketAddr) -> Result<Result<Check, Came>> {
    let mut stream = match TcpStream::connect_timeout(&target, PATIENCE_FOR_NOTHING) {
        Ok(stream) => stream,
        Err(error) => {
            return Ok(Err(match error.kind() {
                std::io::ErrorKind::ConnectionRefused => Came::Refusal,
                std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock => Came::Nothing,
                _ => Came::Other(error.to_string()),
            }));
        }
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n")?;
    let (mut text, deadline) = (String::new(), Instant::now() + PATIENCE);
    stream.read_to_string(&mut text).with_context(|| format!("after {:?}", deadline.elapsed()))?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no HTTP: {text:?}"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let header = head.lines().filter_map(|line| line.split_once(':'));
    let mut weight = header.filter(|(name, _)| name.eq_ignore_ascii_case("x-load-balancing-endpoint-weight"));
    let weight = weight.next().and_then(|(_, value)| value.trim().parse().ok());
    let told: Value = serde_json::from_str(body.trim()).with_context(|| format!("no JSON: {body:?}"))?;
    let status = status.with_context(|| format!("no status: {head:?}"))?;
    Ok(Ok(Check { status, local: (told["localEndpoints"].as_u64(), weight) }))
}
