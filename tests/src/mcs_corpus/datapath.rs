//! Cases run on real data paths: clusters of one node each in a lab, every connection a real one, statuses read where agents
//! write them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use causeway_mesh::dns::{Kind, Reply};
use causeway_mesh::{Candidate, Exported, Import, ServiceName, State};
use causeway_model::service::Backend;
use causeway_model::{ClusterName, Family, NameServer, PortProtocol};
use ipnetwork::IpNetwork;
use serde_json::Value;

use super::expect::{Backends, Expect, Local};
use super::format::{Act, Cluster, Corpus, Name, PortName};
use super::ground::{Ground, Pod, name_server, spare};
use super::invariants;
use super::judge::{family_text, service_name};
use super::look::{Look, answered_as_own};
use super::run::Subject;
use super::stage::{Done, Member, Stage};
use super::written;
use crate::corpus::prober::{Came, Prober, Question};
use crate::corpus::protocol;
use crate::lab::Datapath;
use crate::namespace::Namespace;
use crate::traffic::{Query, Resolved, Rtype, resolve};

/// How long an answer may take, on a machine that may do much else.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long is waited for what shall not come.
const PATIENCE_FOR_NOTHING: Duration = Duration::from_millis(1300);
/// Connections that are begun at once.
const AT_ONCE: usize = 400;
/// Connections by which shares are told within five points: chance alone is a point off.
const FOR_SHARES: usize = 2500;
/// Connections for each backend among several, and clients for each where clients stay with theirs: to miss one is one in a million.
const FOR_EACH: usize = 40;
const CLIENTS_FOR_EACH: usize = 14;
/// Clients that ask for names: on a node of either path one of each.
const ASKERS: [u16; 2] = [0, 1];
/// How long an answer to a forwarded question may be.
const LONGEST: u16 = 1232;

/// A lab on which cases happen one after the other.
pub(super) struct Lab {
    ground: Ground,
    prober: Prober,
    /// Who serves which ports.
    served: BTreeSet<(IpAddr, PortProtocol, u16)>,
    /// Addresses that imports had after the step before, by observer.
    before: BTreeMap<String, BTreeMap<ServiceName, Vec<IpAddr>>>,
}

/// What a cluster of the lab shows.
struct Shown {
    imports: BTreeMap<ServiceName, Import>,
    own: ClusterName,
    exports: BTreeMap<ServiceName, Exported>,
    clusterset: Vec<IpNetwork>,
    refused: BTreeMap<String, BTreeSet<String>>,
    refused_prefixes: BTreeSet<String>,
    local: BTreeMap<Name, Vec<String>>,
    /// Where its node answers for names, and the pods that ask there.
    server: SocketAddr,
    askers: Vec<Namespace>,
}

impl Look for Shown {
    fn import(&self, name: &ServiceName) -> Option<&Import> {
        self.imports.get(name)
    }

    fn export(&self, name: &ServiceName, by: &ClusterName) -> Option<&Exported> {
        self.exports.get(name).filter(|_| *by == self.own)
    }

    fn clusterset(&self) -> &[IpNetwork] {
        &self.clusterset
    }

    /// What every client is told alike.
    fn answer(&self, question: &str, kind: Kind) -> Result<Reply> {
        let ask = |asker: &Namespace| asked(asker, self.server, question, kind);
        let mut replies = self.askers.iter().map(ask).collect::<Result<Vec<_>>>()?;
        let first = replies.pop().context("nobody asks")?;
        ensure!(replies.iter().all(|reply| *reply == first), "one is told {first:?}, another {replies:?}");
        Ok(first)
    }

    fn refused(&self) -> BTreeMap<String, BTreeSet<String>> {
        self.refused.clone()
    }

    fn refused_prefixes(&self) -> BTreeSet<String> {
        self.refused_prefixes.clone()
    }

    fn addresses(&self) -> BTreeMap<ServiceName, Vec<IpAddr>> {
        self.imports.iter().map(|(name, import)| (name.clone(), import.addresses.clone())).collect()
    }

    fn wrong_of_own(&self, name: &Name, _: &Local) -> Vec<String> {
        let mut wrong = self.local.get(name).cloned().unwrap_or_default();
        wrong.extend(answered_as_own(self, name));
        wrong
    }
}

impl Lab {
    /// Makes a node for each cluster that these cases have.
    pub fn build(corpus: &Corpus, cases: &[&super::Case], datapath: Datapath) -> Result<Self> {
        let mut clusters: BTreeMap<String, Cluster> = BTreeMap::new();
        for case in cases {
            let steps = case.steps().unwrap_or_default();
            let joins = steps.iter().flat_map(|step| &step.acts).filter_map(|act| match act {
                Act::Join { cluster, .. } => Some(cluster),
                _ => None,
            });
            for name in case.clusters.iter().chain(joins) {
                let cluster = corpus.cluster(case, name)?;
                clusters.entry(name.clone()).or_insert(cluster);
            }
        }
        let ground = Ground::build(&clusters, datapath)?;
        Ok(Self { ground, prober: Prober::default(), served: BTreeSet::new(), before: BTreeMap::new() })
    }

    /// Plugs in all backends that a case ever has, and a client in each cluster.
    fn serve(&mut self, stage: &Stage<'_>) -> Result<()> {
        let mut pods = BTreeSet::new();
        let mut served = BTreeSet::new();
        for (cluster, slice) in stage.slices()? {
            let Some(member) = stage.members().iter().find(|it| it.name.as_str() == cluster) else {
                continue;
            };
            let numbers = slice["ports"].as_array().into_iter().flatten();
            let numbers: Vec<_> = numbers.map(number_of).collect::<Result<_>>()?;
            let endpoints = slice["endpoints"].as_array().into_iter().flatten();
            for address in endpoints.filter_map(|it| it["addresses"][0].as_str()?.parse::<IpAddr>().ok()) {
                if !member.cluster.pods.iter().any(|prefix| prefix.contains(address)) {
                    continue;
                }
                let pod = Pod { cluster: cluster.clone(), addresses: [address].into() };
                served
                    .extend(numbers.iter().map(|(protocol, port)| (pod.clone(), address, *protocol, *port)));
                pods.insert(pod);
            }
        }
        pods.extend(stage.members().iter().flat_map(|member| ASKERS.map(|number| client(member, number))));
        for (place, addresses) in self.ground.unplug(&pods)? {
            self.prober.forget(place.name());
            self.served.retain(|(address, ..)| !addresses.contains(address));
        }
        self.ground.plug(stage.members(), &pods)?;
        for (pod, address, protocol, port) in served {
            if self.served.insert((address, protocol, port)) {
                let place = self.ground.place(&pod);
                let id = address.to_string();
                self.prober.servers.serve(place.name(), &id, &[address], &[(protocol, port)])?;
            }
        }
        Ok(())
    }

    /// Who answers connections to an address, how often; from so many clients, in turn.
    fn ask(
        &mut self,
        stage: &Stage<'_>,
        observer: &Member,
        (target, protocol): (SocketAddr, PortProtocol),
        (tries, clients): (usize, usize),
        patience: Duration,
    ) -> Result<(BTreeMap<SocketAddr, u32>, Vec<Came>)> {
        let clients: Vec<_> = (0..clients).map(|number| client(observer, number as u16)).collect();
        self.ground.plug(stage.members(), &clients.iter().cloned().collect())?;
        let questions: Vec<_> = clients.iter().cycle().take(tries).collect();
        let (mut answered, mut others) = (BTreeMap::new(), Vec::new());
        for questions in questions.chunks(AT_ONCE) {
            let question = |pod: &&Pod| Question {
                place: self.ground.place(pod).name().to_owned(),
                source: pod.addresses.iter().copied().find(|own| own.is_ipv4() == target.is_ipv4()),
                protocol,
                target,
            };
            let questions: Vec<_> = questions.iter().map(question).collect();
            for came in self.prober.ask(&questions, patience)? {
                match &came {
                    Came::Answer(who, _) => *answered.entry(server(who)?).or_default() += 1,
                    _ => others.push(came),
                }
            }
        }
        Ok((answered, others))
    }

    /// Who serves an import at each of its ports.
    fn measure(
        &mut self,
        stage: &Stage<'_>,
        observer: &Member,
        name: &ServiceName,
        import: &mut Import,
        expect: &Expect,
    ) -> Result<()> {
        let addresses = import.addresses.clone();
        let ports = import.ports.clone();
        for address in addresses {
            let family = Family::of(address);
            if !observer.cluster.pods.iter().any(|prefix| Family::of(prefix.ip()) == family) {
                continue;
            }
            for (index, port) in ports.iter().enumerate() {
                let port_name =
                    PortName { name: port.name.clone(), protocol: port.protocol, number: port.number };
                let wanted = wanted(expect, observer.name.as_str(), name, family, &port_name);
                let several = wanted.iter().map(|it| it.must.len() + it.may.len()).max().unwrap_or(1);
                let shared = wanted.iter().any(|it| !it.shares.is_empty());
                let tries = match several {
                    0 | 1 => 8,
                    _ if shared => FOR_SHARES,
                    several => several * FOR_EACH,
                };
                let clients =
                    if import.affinity.is_some() && several > 1 { several * CLIENTS_FOR_EACH } else { 1 };
                let nobody = several == 0;
                let patience = if nobody { PATIENCE_FOR_NOTHING } else { PATIENCE };
                let target = SocketAddr::new(address, port.number);
                let asked = (target, port.protocol);
                let (answered, _) = self.ask(stage, observer, asked, (tries, clients), patience)?;
                let candidate = |(at, count): (SocketAddr, u32)| Candidate {
                    cluster: stage.holder(at.ip()).unwrap_or_else(|| observer.name.clone()),
                    backend: Backend { address: at.ip(), port: at.port() },
                    state: State::Ready,
                    tier: None,
                    weight: count,
                };
                import.backends.insert((family, index), answered.into_iter().map(candidate).collect());
            }
        }
        Ok(())
    }

    /// What is wrong with the cluster's own Service: its addresses lead to its own backends only, whatever is imported. The file
    /// leaves open who serves where none is ready; for a ClusterIP those do that drain (KEP-1669).
    fn own(&mut self, stage: &Stage<'_>, observer: &Member, local: &Local) -> Result<Vec<String>> {
        let draining = draining(observer);
        let mut wrong = Vec::new();
        for address in &local.addresses {
            let can = observer.cluster.pods.iter().any(|prefix| prefix.is_ipv4() == address.is_ipv4());
            for (port, only) in local.only.iter().filter(|_| can) {
                let only: BTreeSet<_> =
                    only.iter().filter(|at| at.is_ipv4() == address.is_ipv4()).copied().collect();
                let drains = |at: &SocketAddr| only.is_empty() && draining.contains(&at.ip());
                let patience = if only.is_empty() { PATIENCE_FOR_NOTHING } else { PATIENCE };
                let target = SocketAddr::new(*address, port.number);
                let (answered, others) =
                    self.ask(stage, observer, (target, port.protocol), (8, 1), patience)?;
                wrong.extend(
                    answered
                        .keys()
                        .filter(|at| !only.contains(at) && !drains(at))
                        .map(|at| format!("{port}: {at} answers")),
                );
                if !only.is_empty() && !others.is_empty() {
                    wrong.push(format!("{port}: {others:?}"));
                }
            }
        }
        Ok(wrong)
    }
}

/// What is wanted of who serves a port, by each alternative.
fn wanted<'a>(
    expect: &'a Expect,
    observer: &str,
    name: &ServiceName,
    family: Family,
    port: &PortName,
) -> Vec<&'a Backends> {
    let groups = expect.seen.iter().filter(|group| group.from.iter().any(|from| from == observer));
    let views = groups.flat_map(|group| &group.services).filter(|(it, _)| service_name(it) == *name);
    let views = views.flat_map(|(_, alternatives)| &alternatives.0);
    views.filter_map(|view| view.backends.get(family_text(family))?.get(port)).collect()
}

/// The addresses of a cluster that drain.
fn draining(member: &Member) -> BTreeSet<IpAddr> {
    let slices = member.objects.iter().filter(|((kind, _), _)| kind == "EndpointSlice");
    let endpoints = slices.flat_map(|(_, slice)| slice["endpoints"].as_array().into_iter().flatten());
    let conditions = |it: &&Value| {
        let is = |name: &str| it["conditions"][name].as_bool();
        is("ready") == Some(false) && is("serving") != Some(false) && is("terminating") == Some(true)
    };
    endpoints.filter(conditions).filter_map(|it| it["addresses"][0].as_str()?.parse().ok()).collect()
}

/// A pod that asks, one of several of its cluster.
fn client(member: &Member, number: u16) -> Pod {
    let mut families = BTreeSet::new();
    let prefixes = member.cluster.pods.iter().filter(|prefix| families.insert(prefix.is_ipv4()));
    let addresses = prefixes.map(|prefix| spare(prefix, number)).collect();
    Pod { cluster: member.name.to_string(), addresses }
}

/// What a pod is told of a name.
fn asked(asker: &Namespace, server: SocketAddr, question: &str, kind: Kind) -> Result<Reply> {
    let wire = match kind {
        Kind::A => Rtype::A,
        Kind::Aaaa => Rtype::AAAA,
        Kind::Srv => Rtype::SRV,
        Kind::Txt => Rtype::TXT,
        Kind::Ptr => Rtype::PTR,
        Kind::Other => Rtype::HINFO,
    };
    let query = Query::forwarded(question, wire, LONGEST);
    let resolved = resolve(asker, server, &query);
    let Resolved { code, mut answers, .. } =
        resolved.with_context(|| format!("{} asks {server} for {question} {wire}", asker.name()))?;
    // The first one is another one each time, and letters are as they were asked for.
    answers.iter_mut().for_each(|record| record.name.make_ascii_lowercase());
    answers.sort();
    match code.as_str() {
        "NOERROR" if answers.is_empty() => Ok(Reply::NoData),
        "NOERROR" => Ok(Reply::Answer { answers, additional: Vec::new() }),
        "NXDOMAIN" => Ok(Reply::NoName),
        "REFUSED" => Ok(Reply::NotOurs),
        other => bail!("{server} answers {other} to {question} {wire}"),
    }
}

fn number_of(port: &Value) -> Result<(PortProtocol, u16)> {
    let number = port["port"].as_u64().and_then(|number| u16::try_from(number).ok());
    let number = number.with_context(|| format!("no number in {port}"))?;
    Ok((protocol(port["protocol"].as_str().unwrap_or("TCP"))?, number))
}

/// Who has answered: `ADDRESS:PORT`.
fn server(who: &str) -> Result<SocketAddr> {
    let (address, port) = who.rsplit_once(':').with_context(|| format!("{who:?} is nobody"))?;
    Ok(SocketAddr::new(address.parse()?, port.parse()?))
}

impl Subject for Lab {
    fn begin(&mut self, stage: &Stage<'_>) -> Result<Option<String>> {
        self.before.clear();
        // Whoever was there before is gone when the case begins; what is configured otherwise is so when all are there.
        for alone in stage.bare() {
            if self.ground.runs(&alone) {
                self.ground.settle(&[alone])?;
            }
        }
        self.ground.write(stage.members())?;
        self.ground.configure(stage.members())?;
        self.serve(stage)?;
        self.ground.settle(stage.members())?;
        Ok(None)
    }

    fn tell(&mut self, stage: &Stage<'_>, done: &Done) -> Result<()> {
        if let Done::Joined(_) = done {
            self.ground.write(stage.members())?;
            self.ground.configure(stage.members())?;
            self.serve(stage)?;
        }
        Ok(())
    }

    fn settle(&mut self, stage: &Stage<'_>) -> Result<()> {
        self.ground.settle(stage.members())
    }

    fn look(&mut self, stage: &Stage<'_>, observer: &str, expect: &Expect) -> Result<Rc<dyn Look>> {
        let member = stage.member(observer)?.clone();
        let directory = self.ground.statuses(observer);
        let (mut imports, mut exports) = (BTreeMap::new(), BTreeMap::new());
        for file in fs::read_dir(&directory).with_context(|| format!("{}", directory.display()))? {
            let file = file?.path();
            let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let read = || fs::read(&file).with_context(|| format!("reading {}", file.display()));
            if name.starts_with("ServiceImport_") {
                let (name, import) = written::import(&read()?).with_context(|| name.clone())?;
                imports.insert(name, import);
            } else if name.starts_with("ServiceExport_") {
                let (name, export) = written::export(&read()?).with_context(|| name.clone())?;
                exports.insert(name, export);
            }
        }
        for (name, import) in &mut imports {
            self.measure(stage, &member, name, import, expect)?;
        }
        let mut local = BTreeMap::new();
        for (name, wanted) in expect.local.get(observer).into_iter().flatten() {
            local.insert(name.clone(), self.own(stage, &member, wanted)?);
        }
        let problems = self.ground.status(observer)?.problems;
        Ok(Rc::new(Shown {
            imports,
            own: member.name.clone(),
            exports,
            clusterset: member.settings.clusterset.clone().unwrap_or_default(),
            refused: written::refused(&problems),
            refused_prefixes: written::refused_prefixes(&problems),
            local,
            server: SocketAddr::new(name_server(&member), NameServer::PORT),
            askers: ASKERS.map(|number| self.ground.place(&client(&member, number))).into(),
        }))
    }

    fn again(&mut self, _: &Stage<'_>, _: &str) -> Result<Option<Rc<dyn Look>>> {
        Ok(None)
    }

    /// Addresses stay, and are nobody else's; names are of the version that is known.
    fn broken(&mut self, _: &Stage<'_>, observer: &str, look: &dyn Look) -> Result<Vec<String>> {
        let now = look.addresses();
        let before = self.before.insert(observer.to_owned(), now.clone()).unwrap_or_default();
        let mut wrong: Vec<_> = invariants::version(look).into_iter().collect();
        let mut holders = BTreeMap::new();
        for (name, addresses) in &now {
            for address in addresses {
                if let Some(other) = holders.insert(*address, name) {
                    wrong.push(format!("ip-stable: {address} is {name}'s and {other}'s"));
                }
            }
            for address in before.get(name).into_iter().flatten() {
                let now = addresses.iter().find(|now| now.is_ipv4() == address.is_ipv4());
                if now.is_some_and(|now| now != address) {
                    wrong.push(format!("ip-stable: {name} had {address} and has {now:?}"));
                }
            }
        }
        Ok(wrong)
    }
}
