//! What becomes of a service, read off the objects one sentence at a time: the judge of the merge and of the choice.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::Disagreement;
use crate::prefer::{Affinity, Entry, Preference};

/// Everything that is there, by cluster.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub regions: BTreeMap<ClusterName, String>,
    pub lost: BTreeSet<ClusterName>,
    pub services: BTreeMap<(ClusterName, ServiceName), Service>,
    pub exports: BTreeMap<(ClusterName, ServiceName), Export>,
    pub slices: BTreeMap<(ClusterName, ServiceName), Slice>,
    pub wishes: BTreeMap<ServiceName, Wish>,
}

/// What a service is to an observer.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub clusters: BTreeSet<ClusterName>,
    pub ports: BTreeSet<Port>,
    pub headless: bool,
    pub conflicts: BTreeSet<Disagreement>,
    /// By port and family, each backend's part of a million connections.
    pub parts: BTreeMap<(Port, Family), BTreeMap<Backend, u64>>,
}

struct Judge<'a> {
    facts: &'a Facts,
    own: &'a ClusterName,
    name: &'a ServiceName,
    /// From the oldest to the youngest.
    exporters: Vec<(&'a ClusterName, &'a Export, &'a Service)>,
}

/// What a service is to an observer; nothing, if nobody exports it.
pub fn judge(facts: &Facts, own: &ClusterName, name: &ServiceName) -> Option<Verdict> {
    let mut exporters = Vec::new();
    for ((cluster, of), export) in &facts.exports {
        let service = facts.services.get(&(cluster.clone(), of.clone()));
        if let Some(service) = service.filter(|it| of == name && it.kind != ServiceKind::External) {
            exporters.push((cluster, export, service));
        }
    }
    if exporters.iter().any(|(cluster, ..)| !facts.lost.contains(*cluster)) {
        exporters.retain(|(cluster, ..)| !facts.lost.contains(*cluster));
    }
    let age = |export: &Export| export.created.as_ref().map_or(i64::MAX, |time| time.0.as_second());
    exporters.sort_by_key(|(cluster, export, _)| (age(export), cluster.to_string()));
    let judge = Judge { facts, own, name, exporters };
    let (_, _, oldest) = judge.exporters.first()?;
    let headless = oldest.kind == ServiceKind::Headless;
    let ports: BTreeSet<_> =
        judge.all_ports().filter(|(at, port)| judge.is_kept(*at, port)).map(|it| it.1).collect();
    let parts = if headless { BTreeMap::new() } else { judge.parts(&ports) };
    Some(Verdict {
        clusters: judge.exporters.iter().map(|(cluster, ..)| (*cluster).clone()).collect(),
        ports,
        headless,
        conflicts: judge.conflicts(),
        parts,
    })
}

impl<'a> Judge<'a> {
    fn all_ports(&self) -> impl Iterator<Item = (usize, Port)> + '_ {
        let of = |(at, (_, _, service)): (usize, &(&ClusterName, &Export, &'a Service))| {
            service.ports.iter().map(move |port| (at, port.clone())).collect::<Vec<_>>()
        };
        self.exporters.iter().enumerate().flat_map(of)
    }

    /// A port is kept unless an older export has a kept port of its name with another number or protocol, or of its number and
    /// protocol with another name.
    fn is_kept(&self, at: usize, port: &Port) -> bool {
        let clash = |other: &Port| {
            other.identity() != port.identity()
                && (other.name == port.name || (other.protocol, other.number) == (port.protocol, port.number))
        };
        !self
            .all_ports()
            .any(|(other_at, other)| other_at < at && clash(&other) && self.is_kept(other_at, &other))
    }

    fn conflicts(&self) -> BTreeSet<Disagreement> {
        use Disagreement as D;
        let mut conflicts = BTreeSet::new();
        for (_, one_export, one) in &self.exporters {
            for (_, other_export, other) in &self.exporters {
                let set = |service: &Service| -> BTreeSet<_> {
                    service.ports.iter().map(|it| (it.name.clone(), it.protocol, it.number)).collect()
                };
                if set(one) != set(other) {
                    conflicts.insert(D::PortConflict);
                }
                if one.kind != other.kind {
                    conflicts.insert(D::TypeConflict);
                }
                if one_export.labels != other_export.labels {
                    conflicts.insert(D::LabelsConflict);
                }
                if one.kind == ServiceKind::Headless || other.kind == ServiceKind::Headless {
                    continue;
                }
                match (one.affinity, other.affinity) {
                    (Some(one), Some(other)) if one != other => {
                        conflicts.insert(D::SessionAffinityConfigConflict);
                    }
                    (Some(_), None) => drop(conflicts.insert(D::SessionAffinityConflict)),
                    _ => {}
                }
                if one.traffic_policy != other.traffic_policy {
                    conflicts.insert(D::InternalTrafficPolicyConflict);
                }
            }
        }
        let has_all = |family: &Family| self.exporters.iter().all(|(_, _, it)| it.families.contains(family));
        if !Family::BOTH.iter().any(has_all) {
            conflicts.insert(D::IPFamilyConflict);
        }
        conflicts
    }

    /// Families that all exporters have; where there are none, all that any has.
    fn families(&self) -> Vec<Family> {
        let all = |family: &Family| self.exporters.iter().all(|(_, _, it)| it.families.contains(family));
        let any = |family: &Family| self.exporters.iter().any(|(_, _, it)| it.families.contains(family));
        let common: Vec<_> = Family::BOTH.into_iter().filter(all).collect();
        if common.is_empty() { Family::BOTH.into_iter().filter(any).collect() } else { common }
    }

    fn parts(&self, ports: &BTreeSet<Port>) -> BTreeMap<(Port, Family), BTreeMap<Backend, u64>> {
        let mut parts = BTreeMap::new();
        for port in ports {
            for family in self.families() {
                let mut shares = self.shares(port, family);
                shares.retain(|_, share| *share > 0);
                parts.insert((port.clone(), family), shares);
            }
        }
        parts
    }

    fn shares(&self, port: &Port, family: Family) -> BTreeMap<Backend, u64> {
        let ready = self.healthy(port, family, State::Ready);
        let live = if ready.is_empty() { self.healthy(port, family, State::Draining) } else { ready };
        let (own, others): (Vec<_>, Vec<_>) =
            live.iter().cloned().partition(|(cluster, _)| cluster == self.own);
        let wish = |of: fn(&Wish) -> bool| self.wishes().into_iter().find(of);
        let affinity = wish(|wish| wish.affinity.is_some()).and_then(|wish| wish.affinity);
        let pool = match affinity.unwrap_or(Affinity::None) {
            Affinity::None => live,
            Affinity::Local if own.is_empty() => others,
            Affinity::Local => own,
            Affinity::Remote if others.is_empty() => own,
            Affinity::Remote => others,
        };
        let prefer = wish(|wish| wish.prefer.is_some()).and_then(|wish| wish.prefer);
        let entries = prefer.map_or(Vec::new(), |prefer| self.serving(&prefer, &pool));
        // Each entry's weight, shared by its backends; without an entry all are alike.
        let entries = if entries.is_empty() { vec![(1, pool)] } else { entries };
        let total: u64 = entries.iter().map(|(weight, _)| weight).sum();
        let mut shares = BTreeMap::new();
        for (weight, backends) in &entries {
            for (_, backend) in backends {
                shares.insert(*backend, 1_000_000 * weight / total / backends.len() as u64);
            }
        }
        shares
    }

    /// The entries that serve, with those of a pool that are in each; none if nobody of the pool is in any.
    fn serving(
        &self,
        prefer: &Preference,
        pool: &[(ClusterName, Backend)],
    ) -> Vec<(u64, Vec<(ClusterName, Backend)>)> {
        let is = |entry: &Entry, cluster: &ClusterName| {
            entry.who.is(cluster, self.facts.regions.get(cluster).map(String::as_str))
        };
        let mut all = Vec::new();
        let mut placed: BTreeSet<(ClusterName, Backend)> = BTreeSet::new();
        for tier in &prefer.tiers {
            let (mut alone, mut together) = (Vec::new(), Vec::new());
            let mut here: BTreeSet<&(ClusterName, Backend)> = BTreeSet::new();
            for entry in &tier.entries {
                let of_entry: Vec<_> =
                    pool.iter().filter(|it| is(entry, &it.0) && here.insert(*it)).cloned().collect();
                let new: Vec<_> = of_entry.iter().filter(|it| !placed.contains(*it)).cloned().collect();
                alone.push((u64::from(entry.weight), of_entry));
                together.push((u64::from(entry.weight), new));
            }
            if here.len() >= tier.min as usize {
                alone.retain(|(_, backends)| !backends.is_empty());
                return alone;
            }
            placed.extend(together.iter().flat_map(|(_, backends)| backends.clone()));
            all.extend(together);
        }
        all.retain(|(_, backends)| !backends.is_empty());
        all
    }

    /// Wishes in the order in which they count.
    fn wishes(&self) -> Vec<Wish> {
        let service = self.facts.services.get(&(self.own.clone(), self.name.clone()));
        let import = self.facts.wishes.get(self.name);
        let oldest = self.exporters.first().map(|(_, export, _)| &export.wish);
        [import, service.map(|service| &service.wish), oldest].into_iter().flatten().cloned().collect()
    }

    fn healthy(&self, port: &Port, family: Family, state: State) -> Vec<(ClusterName, Backend)> {
        let mut best: BTreeMap<(ClusterName, Backend), State> = BTreeMap::new();
        for ((cluster, _), slice) in &self.facts.slices {
            let exposes = self.exporters.iter().any(|(exporter, _, service)| {
                *exporter == cluster && service.ports.iter().any(|it| it.identity() == port.identity())
            });
            let serves = slice.ports.iter().find(|it| it.name == port.name && it.protocol == port.protocol);
            let here = slice.service == *self.name && slice.family == family;
            let Some(serves) = serves.filter(|_| here && exposes && !self.facts.lost.contains(cluster))
            else {
                continue;
            };
            for endpoint in &slice.endpoints {
                let key = (cluster.clone(), Backend { address: endpoint.addresses[0], port: serves.number });
                let state = best.get(&key).map_or(endpoint.state, |other| endpoint.state.min(*other));
                best.insert(key, state);
            }
        }
        best.into_iter().filter(|(_, it)| *it == state).map(|(key, _)| key).collect()
    }
}
