//! What is seen held against what is wanted. Each function says what is wrong, in sentences; nothing, if all is right.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use causeway_mesh::dns::{self, Data, Kind, Reply};
use causeway_mesh::{Candidate, Condition as Found, Exported, Import as Real, Port, ServiceName};
use causeway_model::Family;

use super::expect::{Addresses, Answer, Backends, Condition, Export, Import, NamedAnswer, Question, View};
use super::format::{Name, PortName, Want};
use super::look::Look;

/// What is known of clusters: the region of each.
pub type Regions = BTreeMap<String, String>;

/// As Kubernetes writes it.
pub fn family_text(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// A service's name, as the engine has it.
pub fn service_name(name: &Name) -> ServiceName {
    ServiceName { namespace: name.namespace.clone(), name: name.name.clone() }
}

fn port_name(port: &Port) -> PortName {
    PortName { name: port.name.clone(), protocol: port.protocol, number: port.number }
}

fn differs<T: PartialEq + Debug>(what: &str, want: &Want<T>, found: &T) -> Option<String> {
    match want {
        Want::Is(want) if want != found => Some(format!("{what}: wanted {want:?}, found {found:?}")),
        _ => None,
    }
}

/// Holds a set against what must be and what may be in it.
fn set_differs<T: Ord + Debug>(
    what: &str,
    must: &BTreeSet<T>,
    may: &BTreeSet<T>,
    found: &BTreeSet<T>,
) -> Option<String> {
    let missing: Vec<_> = must.difference(found).collect();
    let extra: Vec<_> = found.iter().filter(|it| !must.contains(it) && !may.contains(it)).collect();
    (!missing.is_empty() || !extra.is_empty())
        .then(|| format!("{what}: missing {missing:?}, not wanted {extra:?} in {found:?}"))
}

/// A condition, and the families that observers' imports list.
pub fn condition(
    kind: &str,
    want: &Want<Condition>,
    found: Option<&Found>,
    listed: &BTreeSet<String>,
) -> Vec<String> {
    let Want::Is(want) = want else { return Vec::new() };
    let status = found.map_or("absent".to_owned(), |found| found.status.to_string());
    let reasons: BTreeSet<String> =
        found.iter().flat_map(|found| found.reason.split(',')).map(str::to_owned).collect();
    let said = format!("{kind}: {status}, reasons {reasons:?}");
    let mut wrong = Vec::new();
    let forced = want.if_import_lists.as_ref().is_some_and(|families| !families.is_disjoint(listed));
    if forced {
        let there = want.then.as_ref().is_none_or(|reason| reasons.contains(reason));
        if status != "True" || !there {
            wrong.push(format!("{said}; wanted True, {:?}", want.then));
        }
        return wrong;
    }
    if let Want::Is(wanted) = &want.status
        && *wanted != status
    {
        // False with NoConflicts, or True with some of what may be.
        wrong.push(format!("{said}; wanted {wanted}"));
        return wrong;
    }
    if want.not.as_ref() == Some(&status) {
        wrong.push(format!("{said}; wanted anything else"));
    }
    if let Some(exactly) = &want.reasons {
        wrong.extend(set_differs(kind, exactly, &want.may, &reasons));
    } else if want.status == Want::Free && !want.may.is_empty() && status == "True" {
        wrong.extend(set_differs(kind, &BTreeSet::new(), &want.may, &reasons));
    }
    if let Some(one_of) = &want.one_of
        && one_of.is_disjoint(&reasons)
    {
        wrong.push(format!("{said}; wanted one of {one_of:?}"));
    }
    wrong
}

/// Whether anything of an export is asserted.
pub fn asserts(want: &Export) -> bool {
    [&want.valid, &want.ready, &want.conflict].into_iter().any(|want| matches!(want, Want::Is(_)))
}

/// What became of an export.
pub fn export(want: &Export, found: Option<&Exported>, listed: &BTreeSet<String>) -> Vec<String> {
    let conditions = [("Valid", &want.valid), ("Ready", &want.ready), ("Conflict", &want.conflict)];
    let mut wrong = Vec::new();
    for (kind, want) in conditions {
        let found = found.and_then(|found| found.conditions.iter().find(|it| it.kind == kind));
        wrong.extend(condition(kind, want, found, listed));
    }
    wrong
}

/// What is wrong with a view.
#[derive(Default)]
pub struct Viewed {
    /// With the import and its backends.
    pub wrong: Vec<String>,
    /// With each name that is asserted.
    pub names: Vec<(String, Vec<String>)>,
}

impl Viewed {
    /// How much that is altogether.
    pub fn faults(&self) -> usize {
        self.wrong.len() + self.names.iter().map(|(_, wrong)| wrong.len()).sum::<usize>()
    }
}

/// A view of a service.
pub fn view(look: &dyn Look, name: &Name, want: &View, regions: &Regions) -> Viewed {
    let found = look.import(&service_name(name));
    let mut wrong = match (&want.import, found) {
        (None, None) | (Some(Want::Free), _) => Vec::new(),
        (None, Some(_)) => vec!["there is an import".to_owned()],
        (Some(Want::Is(_)), None) => vec!["there is no import".to_owned()],
        (Some(Want::Is(want)), Some(found)) => import(look, want, found),
    };
    if let Some(found) = found {
        let may = match &want.import {
            Some(Want::Is(import)) => import.ports_may.clone(),
            _ => BTreeSet::new(),
        };
        wrong.extend(all_backends(&want.backends, &may, found, regions));
    }
    let asserted = want.dns.iter().filter(|question| matches!(question.want, Want::Is(_)));
    let names = asserted.map(|question| {
        let said = answer(look, name, question).unwrap_or_else(|error| vec![format!("{error:#}")]);
        (format!("{} {}", question.q, question.t), said)
    });
    Viewed { wrong, names: names.collect() }
}

fn import(look: &dyn Look, want: &Import, found: &Real) -> Vec<String> {
    let text = |text: &str| text.to_owned();
    let families: BTreeSet<_> = found.families.iter().map(|family| text(family_text(*family))).collect();
    let clusters: BTreeSet<_> = found.clusters.iter().map(ToString::to_string).collect();
    let mut wrong: Vec<_> = [
        differs("type", &want.type_, &text(if found.headless { "Headless" } else { "ClusterSetIP" })),
        differs(
            "sessionAffinity",
            &want.session_affinity,
            &text(if found.affinity.is_some() { "ClientIP" } else { "None" }),
        ),
        differs("affinityTimeout", &want.affinity_timeout, &found.affinity.unwrap_or(10_800)),
        differs("internalTrafficPolicy", &want.internal_traffic_policy, &text(found.traffic_policy.as_str())),
        differs(
            "trafficDistribution",
            &want.traffic_distribution,
            &found.distribution.clone().unwrap_or_else(|| text("unset")),
        ),
    ]
    .into_iter()
    .flatten()
    .collect();
    if let Some(Want::Is(ports)) = &want.ports {
        let found: BTreeSet<_> = found.ports.iter().map(port_name).collect();
        wrong.extend(set_differs("ports", ports, &want.ports_may, &found));
    }
    if let Want::Is(wanted) = &want.clusters {
        wrong.extend(set_differs("clusters", wanted, &want.clusters_may, &clusters));
    }
    if let Want::Is(wanted) = &want.ip_families {
        wrong.extend(set_differs("ipFamilies", &wanted.must, &wanted.may, &families));
        if families.is_empty() {
            wrong.push("ipFamilies: none".to_owned());
        }
    }
    wrong.extend(condition("Ready", &want.ready, Some(&found.ready), &BTreeSet::new()));
    wrong.extend(addresses(look, &want.ips, found));
    let mut texts = |what: &str, want: &Option<BTreeMap<_, _>>, found: &BTreeMap<_, _>| {
        if let Some(want) = want.as_ref().filter(|want| !found.is_empty() && *want != found) {
            wrong.push(format!("{what}: wanted {want:?}, found {found:?}"));
        }
    };
    texts("labels", &want.labels_if_supported, &found.labels);
    texts("annotations", &want.annotations_if_supported, &found.annotations);
    for (port, want) in &want.app_protocol {
        let of_port = found.ports.iter().find(|found| port_name(found) == *port);
        let spoken = of_port.and_then(|port| port.app_protocol.clone()).unwrap_or_else(|| text("unset"));
        wrong.extend(differs(&format!("appProtocol of {port}"), want, &spoken));
    }
    wrong
}

fn addresses(look: &dyn Look, want: &Want<Addresses>, found: &Real) -> Option<String> {
    let Want::Is(want) = want else { return None };
    let inside = |address: &IpAddr| look.clusterset().iter().any(|prefix| prefix.contains(*address));
    let families = found.addresses.iter().map(|address| Family::of(*address));
    let right = match want {
        Addresses::None => found.addresses.is_empty(),
        Addresses::OnePerFamily => {
            families.eq(found.families.iter().copied()) && found.addresses.iter().all(inside)
        }
    };
    (!right).then(|| format!("ips: wanted {want:?}, found {:?} for {:?}", found.addresses, found.families))
}

fn all_backends(
    want: &BTreeMap<String, BTreeMap<PortName, Backends>>,
    may: &BTreeSet<PortName>,
    found: &Real,
    regions: &Regions,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for family in found.families.iter().filter(|_| !found.headless) {
        for (port, want) in want.get(family_text(*family)).into_iter().flatten() {
            let place = found.ports.iter().position(|found| port_name(found) == *port);
            let candidates = place.and_then(|place| found.backends.get(&(*family, place)));
            match candidates {
                Some(candidates) => {
                    let said = backends(want, candidates, regions);
                    wrong.extend(said.into_iter().map(|said| format!("{port}: {said}")));
                }
                None if may.contains(port) => {}
                None => wrong.push(format!("{port}: there is no such port")),
            }
        }
    }
    wrong
}

fn backends(want: &Backends, candidates: &[Candidate], regions: &Regions) -> Vec<String> {
    let chosen = || candidates.iter().filter(|candidate| candidate.weight > 0);
    let reached: BTreeSet<_> =
        chosen().map(|it| SocketAddr::new(it.backend.address, it.backend.port)).collect();
    let mut wrong: Vec<_> = set_differs("backends", &want.must, &want.may, &reached).into_iter().collect();
    wrong.extend(differs("served", &want.served, &!reached.is_empty()));
    let total: f64 = chosen().map(|it| f64::from(it.weight)).sum();
    let share = |entry: &str| {
        let of_entry = chosen().filter(|it| {
            let cluster = it.cluster.as_str();
            match entry.split_once(':') {
                Some(("cluster", name)) => name == cluster,
                Some(("region", name)) => regions.get(cluster).is_some_and(|region| region == name),
                _ => false,
            }
        });
        of_entry.map(|it| f64::from(it.weight)).sum::<f64>() / total
    };
    let is = |shares: &BTreeMap<String, f64>| {
        shares.iter().all(|(entry, wanted)| (share(entry) - wanted).abs() <= 0.05)
    };
    if !want.shares.is_empty() && !want.shares.iter().any(is) {
        let found: Vec<_> = want.shares[0].keys().map(|entry| (entry, share(entry))).collect();
        wrong.push(format!("shares: wanted one of {:?}, found {found:?}", want.shares));
    }
    wrong
}

fn kind_of(text: &str) -> Kind {
    match text {
        "A" => Kind::A,
        "AAAA" => Kind::Aaaa,
        "SRV" => Kind::Srv,
        "TXT" => Kind::Txt,
        "PTR" => Kind::Ptr,
        _ => Kind::Other,
    }
}

/// The records of an answer as the file writes them.
fn records(reply: &Reply) -> BTreeSet<String> {
    let Reply::Answer { answers, .. } = reply else { return BTreeSet::new() };
    let text = |data: &Data| match data {
        Data::A(address) => address.to_string(),
        Data::Aaaa(address) => address.to_string(),
        Data::Srv { port, target } => format!("{port} {target}"),
        Data::Txt(text) | Data::Ptr(text) => text.clone(),
    };
    answers.iter().map(|record| text(&record.data)).collect()
}

/// Whether an answer is a wanted one; `*` in an SRV record's target stands for the rest of its first label.
fn is_record(want: &str, found: &str) -> bool {
    match want.split_once('*') {
        None => want == found,
        Some((start, end)) => {
            let rest = found.strip_prefix(start).and_then(|rest| rest.strip_suffix(end));
            rest.is_some_and(|rest| !rest.contains('.'))
        }
    }
}

fn answer(look: &dyn Look, name: &Name, question: &Question) -> Result<Vec<String>> {
    let Want::Is(want) = &question.want else { return Ok(Vec::new()) };
    let reply = look.answer(&question.q, kind_of(&question.t))?;
    let found = records(&reply);
    let import = look.import(&service_name(name));
    let lists = |family: &String| {
        import.is_some_and(|it| it.families.iter().any(|listed| family_text(*listed) == family))
    };
    let none = !matches!(reply, Reply::Answer { .. });
    let of_family: BTreeSet<_> = import
        .iter()
        .flat_map(|import| &import.addresses)
        .filter(|address| address.is_ipv4() == (question.t == "A"))
        .map(ToString::to_string)
        .collect();
    let right = match want {
        _ if question.when.as_ref().is_some_and(|family| !lists(family)) => reply == Reply::NoData,
        Answer::Records(wanted) => return all_records(look, question, wanted, &found),
        Answer::Named(NamedAnswer::NoName) => reply == Reply::NoName,
        Answer::Named(NamedAnswer::NoData) => reply == Reply::NoData,
        Answer::Named(NamedAnswer::Nothing) => none,
        Answer::Named(NamedAnswer::ClustersetIp) if of_family.is_empty() => reply == Reply::NoData,
        Answer::Named(NamedAnswer::ClustersetIp) => found == of_family,
        Answer::Named(NamedAnswer::ClustersetIpOrNothing) => none || found == of_family,
    };
    Ok((!right).then(|| format!("wanted {want:?}, found {reply:?}")).into_iter().collect())
}

fn all_records(
    look: &dyn Look,
    question: &Question,
    wanted: &BTreeSet<String>,
    found: &BTreeSet<String>,
) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let has = |want: &&String| found.iter().any(|found| is_record(want, found));
    let missing: Vec<_> = wanted.iter().filter(|want| !has(want)).collect();
    if (!question.subset && !missing.is_empty()) || (found.is_empty() && !wanted.is_empty()) {
        wrong.push(format!("missing {missing:?} in {found:?}"));
    }
    for found in found {
        let is = |want: &String| is_record(want, found);
        if !wanted.iter().any(is) && !question.may.iter().any(is) {
            wrong.push(format!("{found:?} is not wanted"));
        }
        if question.t == "SRV"
            && question.q.trim_end_matches('.') != found.split(' ').nth(1).unwrap_or_default()
        {
            wrong.extend(target(look, found)?);
        }
    }
    Ok(wrong)
}

/// An SRV record's target has an address, and one that names an address has that one.
fn target(look: &dyn Look, found: &str) -> Result<Option<String>> {
    let target = found.split(' ').nth(1).unwrap_or_default();
    let addresses = told(look, target)?;
    let label = target.split('.').next().unwrap_or_default();
    let spelled = label.replace('-', ".").parse::<IpAddr>().ok().map(|address| address.to_string());
    let right = !addresses.is_empty() && spelled.is_none_or(|spelled| addresses.contains(&spelled));
    Ok((!right).then(|| format!("target {target} has the addresses {addresses:?}")))
}

/// The addresses of a name.
fn told(look: &dyn Look, name: &str) -> Result<BTreeSet<String>> {
    let of = |kind| look.answer(name, kind).map(|reply| records(&reply));
    Ok(&of(Kind::A)? | &of(Kind::Aaaa)?)
}

/// Addresses that some connection or some name of a service may lead to.
pub fn reachable(look: &dyn Look, name: &Name) -> Result<BTreeSet<IpAddr>> {
    let Some(import) = look.import(&service_name(name)) else { return Ok(BTreeSet::new()) };
    let candidates = import.backends.values().flatten().filter(|candidate| candidate.weight > 0);
    let mut reached: BTreeSet<_> = candidates.map(|candidate| candidate.backend.address).collect();
    let base = format!("{}.{}.svc.{}", name.name, name.namespace, dns::ZONE);
    let mut names = vec![base.clone()];
    names.extend(import.pods.iter().map(|pod| format!("{}.{}.{base}", pod.hostname, pod.cluster)));
    for name in names {
        reached.extend(told(look, &name)?.iter().filter_map(|it| it.parse::<IpAddr>().ok()));
    }
    Ok(reached)
}
