//! One service judged: what becomes of each cluster's export, and what this cluster imports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use causeway_model::service::Backend;
use causeway_model::{ClusterName, Family};
use ipnetwork::IpNetwork;

use crate::choice::{Candidate, Chooser};
use crate::facts::{Port, Service, ServiceKind, ServiceName, Slice, State, family_text};
use crate::merge::{self, Conflict, Exporter, Merged, exposes};
use crate::outcome::{Choice, Condition, Exported, Import, Pod, Status, Word};
use crate::prefer::Wish;
use crate::world::{Config, Part};

/// What is known of all clusters, for the time of judging.
pub(crate) struct View<'a> {
    pub own: &'a ClusterName,
    pub config: &'a Config,
    /// Namespaces that this cluster has.
    pub namespaces: &'a BTreeSet<String>,
    /// Who belongs to the mesh, this cluster included.
    pub members: BTreeMap<&'a ClusterName, Member<'a>>,
    /// Prefixes that cluster-set addresses are given out of.
    pub clusterset: &'a [IpNetwork],
    /// Why some are not.
    pub refused_prefixes: String,
}

/// A cluster that belongs to the mesh.
pub(crate) struct Member<'a> {
    pub region: Option<&'a str>,
    /// The families that its pods have.
    pub families: Vec<Family>,
    pub lost: bool,
    /// Addresses that are its own and nobody else's.
    pub prefixes: &'a [IpNetwork],
}

/// What becomes of one service.
#[derive(Default)]
pub(crate) struct Judged {
    pub exports: BTreeMap<ClusterName, Exported>,
    /// Without its addresses.
    pub import: Option<Import>,
}

impl View<'_> {
    /// Judges one service.
    pub fn judge(&self, name: &ServiceName, parts: &BTreeMap<ClusterName, Part>) -> Judged {
        let mut exporters: Vec<_> = parts.iter().filter_map(|it| self.exporter(name, it)).collect();
        // A cluster that is lost has a say only where nobody else is left.
        if exporters.iter().any(|it| !self.is_lost(it.cluster)) {
            exporters.retain(|it| !self.is_lost(it.cluster));
        }
        exporters.sort_by(|one, other| one.seniority().cmp(&other.seniority()));
        let importers: Vec<_> = self.members.values().map(|member| member.families.clone()).collect();
        let merged = merge::merge(&exporters, &importers);
        let conflicts = merged.as_ref().map_or(&[][..], |merged| &merged.conflicts);
        let of_mesh = parts.iter().filter(|(_, part)| part.export.is_some());
        let exports =
            of_mesh.map(|(cluster, part)| (cluster.clone(), self.exported(name, cluster, part, conflicts)));
        let exports = exports.collect();
        let import = merged.filter(|_| self.imports(name));
        let import = import.map(|merged| self.import(merged, &exporters, parts.get(self.own)));
        Judged { exports, import }
    }

    fn imports(&self, name: &ServiceName) -> bool {
        self.config.imported.allow(&name.namespace) && self.namespaces.contains(&name.namespace)
    }

    fn is_lost(&self, cluster: &ClusterName) -> bool {
        self.members.get(cluster).is_some_and(|member| member.lost)
    }

    fn may_export(&self, name: &ServiceName, cluster: &ClusterName) -> bool {
        cluster != self.own || self.config.exported.allow(&name.namespace)
    }

    fn exporter<'a>(
        &self,
        name: &ServiceName,
        (cluster, part): (&'a ClusterName, &'a Part),
    ) -> Option<Exporter<'a>> {
        let (export, service) = (part.export.as_ref()?, part.service.as_ref()?);
        let member = self.members.get(cluster)?;
        if service.kind == ServiceKind::External || !self.may_export(name, cluster) {
            return None;
        }
        let slices: Vec<_> = part.slices.values().collect();
        let families = families(service, &slices, &member.families);
        Some(Exporter { cluster, export, service, families, slices })
    }

    fn exported(
        &self,
        name: &ServiceName,
        cluster: &ClusterName,
        part: &Part,
        conflicts: &[Conflict],
    ) -> Exported {
        let no = |reason, why: &str| (Status::False, reason, why.to_owned());
        let valid = match &part.service {
            None => no("NoService", "there is no Service of this name that can be read"),
            Some(service) if service.kind == ServiceKind::External => {
                no("InvalidServiceType", "an ExternalName cannot be exported")
            }
            Some(_) => (Status::True, "Valid", String::new()),
        };
        let ready = if valid.0 != Status::True {
            no("Failed", "it is not valid")
        } else if !self.may_export(name, cluster) {
            no("Failed", "this cluster's configuration does not export the namespace")
        } else if !self.members.contains_key(cluster) {
            no("Failed", "its cluster has no part in the mesh")
        } else if self.is_lost(cluster) {
            (Status::Unknown, "Pending", "its cluster is lost".to_owned())
        } else {
            (Status::True, "Exported", String::new())
        };
        let conflicts = if ready.0 == Status::True { conflicts } else { &[] };
        let reasons: Vec<_> = conflicts.iter().map(|conflict| conflict.about.to_string()).collect();
        let told: Vec<_> = conflicts.iter().map(ToString::to_string).collect();
        let conflict = match conflicts {
            [] => (Status::False, "NoConflicts".to_owned(), String::new()),
            _ => (Status::True, reasons.join(","), told.join(". ")),
        };
        Exported {
            conditions: vec![
                Condition::new("Valid", valid.0, valid.1, valid.2),
                Condition::new("Ready", ready.0, ready.1, ready.2),
                Condition::new("Conflict", conflict.0, &conflict.1, conflict.2),
            ],
            conflicts: conflicts.to_vec(),
        }
    }

    fn import(&self, merged: Merged, exporters: &[Exporter<'_>], own: Option<&Part>) -> Import {
        let (families, ready) = self.usable(&merged);
        let oldest = exporters.first().map(|oldest| (oldest.cluster, &oldest.export.wish));
        let choice = choice(own, oldest);
        let mut clusters: Vec<_> = exporters.iter().map(|it| it.cluster.clone()).collect();
        clusters.sort();
        let mut import = Import {
            headless: merged.headless,
            ports: merged.ports,
            families,
            addresses: Vec::new(),
            affinity: merged.affinity.filter(|_| !merged.headless),
            traffic_policy: merged.traffic_policy,
            distribution: merged.distribution,
            labels: merged.labels,
            annotations: merged.annotations,
            clusters,
            ready,
            conflicts: merged.conflicts,
            choice,
            backends: BTreeMap::new(),
            pods: Vec::new(),
            left_out: self.left_out(exporters),
        };
        if import.headless {
            import.pods = self.pods(&import, exporters);
        } else {
            import.backends = self.backends(&import, exporters);
        }
        import
    }

    /// The families that this cluster can use the service in: those that all exporters have, else those that any has; of these
    /// the ones that its own pods have and that there are addresses for.
    fn usable(&self, merged: &Merged) -> (Vec<Family>, Condition) {
        let own = self.members.get(self.own).map_or(&Family::BOTH[..], |member| &member.families);
        let of = |families: &[Family], by: &dyn Fn(Family) -> bool| {
            families.iter().copied().filter(|family| by(*family)).collect::<Vec<_>>()
        };
        let text = |families: &[Family]| of_text(families);
        let ready = |status, reason: &str, message: String| Condition::new("Ready", status, reason, message);
        let has = |family: Family| own.contains(&family);
        let mut families = of(&merged.common, &has);
        if families.is_empty() {
            families = of(&merged.all, &has);
        }
        if families.is_empty() {
            let why = format!("it has {}, pods here have {}", text(&merged.all), text(own));
            return (families, ready(Status::False, "IPFamilyNotSupported", why));
        }
        if merged.headless {
            return (families, ready(Status::True, "Ready", String::new()));
        }
        if self.clusterset.is_empty() {
            let why = match self.refused_prefixes.as_str() {
                "" => "no clusterset-cidr is configured".to_owned(),
                refused => refused.to_owned(),
            };
            return (Vec::new(), ready(Status::False, "Pending", why));
        }
        let available = |family| self.clusterset.iter().any(|it| Family::of(it.network()) == family);
        let served = of(&families, &available);
        if served.is_empty() {
            let why = format!("it has {}, of which there is no clusterset-cidr", text(&families));
            return (served, ready(Status::False, "IPFamilyNotSupported", why));
        }
        (served, ready(Status::True, "Ready", String::new()))
    }

    fn backends(
        &self,
        import: &Import,
        exporters: &[Exporter<'_>],
    ) -> BTreeMap<(Family, usize), Vec<Candidate>> {
        let chooser = Chooser {
            own: self.own,
            affinity: import.choice.affinity,
            prefer: import.choice.prefer.as_deref(),
            region: &|cluster| self.members.get(cluster)?.region,
        };
        let mut backends = BTreeMap::new();
        for family in &import.families {
            for (index, port) in import.ports.iter().enumerate() {
                let mut candidates = self.candidates(*family, port, exporters);
                chooser.choose(&mut candidates);
                backends.insert((*family, index), candidates);
            }
        }
        backends
    }

    fn left_out(&self, exporters: &[Exporter<'_>]) -> BTreeSet<(ClusterName, IpAddr)> {
        let mut left_out = BTreeSet::new();
        for exporter in exporters {
            let endpoints = exporter.slices.iter().flat_map(|slice| &slice.endpoints);
            let addresses = endpoints.flat_map(|endpoint| &endpoint.addresses);
            let foreign = addresses.filter(|address| self.is_foreign(exporter.cluster, **address));
            left_out.extend(foreign.map(|address| (exporter.cluster.clone(), *address)));
        }
        left_out
    }

    /// Whoever serves a port in a family, each once.
    fn candidates(&self, family: Family, port: &Port, exporters: &[Exporter<'_>]) -> Vec<Candidate> {
        let mut found: BTreeMap<(&ClusterName, Backend), State> = BTreeMap::new();
        let serving = exporters.iter().filter(|it| exposes(it, port) && !self.is_lost(it.cluster));
        for exporter in serving {
            for slice in exporter.slices.iter().filter(|slice| slice.family == family) {
                let matches =
                    slice.ports.iter().find(|it| it.name == port.name && it.protocol == port.protocol);
                let Some(number) = matches.map(|it| it.number) else { continue };
                for endpoint in &slice.endpoints {
                    // All addresses of an endpoint lead to the same.
                    let Some(address) = endpoint.addresses.first() else { continue };
                    if self.is_foreign(exporter.cluster, *address) {
                        continue;
                    }
                    let backend = Backend { address: *address, port: number };
                    let state = found.entry((exporter.cluster, backend)).or_insert(endpoint.state);
                    *state = (*state).min(endpoint.state);
                }
            }
        }
        let candidate = |((cluster, backend), state): ((&ClusterName, Backend), State)| Candidate {
            cluster: cluster.clone(),
            backend,
            state,
            tier: None,
            weight: 0,
        };
        found.into_iter().filter(|(_, state)| *state != State::Down).map(candidate).collect()
    }

    /// Whether an address cannot be a cluster's to offer: it lies in another's prefix, or leads nowhere.
    fn is_foreign(&self, cluster: &ClusterName, address: IpAddr) -> bool {
        let nowhere = match address {
            IpAddr::V4(it) => it.is_link_local(),
            IpAddr::V6(it) => it.is_unicast_link_local(),
        };
        let theirs = |(other, member): (&&ClusterName, &Member<'_>)| {
            *other != cluster && member.prefixes.iter().any(|prefix| prefix.contains(address))
        };
        nowhere
            || address.is_loopback()
            || address.is_multicast()
            || address.is_unspecified()
            || self.members.iter().any(theirs)
    }

    /// Whoever has a name in a headless service, by cluster, name and address.
    fn pods(&self, import: &Import, exporters: &[Exporter<'_>]) -> Vec<Pod> {
        let mut pods: BTreeMap<_, BTreeSet<(usize, u16)>> = BTreeMap::new();
        for exporter in exporters.iter().filter(|it| !self.is_lost(it.cluster)) {
            for slice in exporter.slices.iter().filter(|slice| import.families.contains(&slice.family)) {
                let ports = served_ports(import, exporter, slice);
                for endpoint in slice.endpoints.iter().filter(|it| it.state == State::Ready) {
                    for address in &endpoint.addresses {
                        if self.is_foreign(exporter.cluster, *address) {
                            continue;
                        }
                        let hostname = endpoint.hostname.clone().unwrap_or_else(|| given_name(*address));
                        let pod = pods.entry((exporter.cluster.clone(), hostname, *address)).or_default();
                        pod.extend(&ports);
                    }
                }
            }
        }
        let pod = |((cluster, hostname, address), ports): (_, BTreeSet<_>)| Pod {
            cluster,
            hostname,
            address,
            ports: ports.into_iter().collect(),
        };
        pods.into_iter().map(pod).collect()
    }
}

/// The import's ports that a slice serves, by their places, and its numbers for them.
fn served_ports(import: &Import, exporter: &Exporter<'_>, slice: &Slice) -> Vec<(usize, u16)> {
    let mut served = Vec::new();
    for (index, port) in import.ports.iter().enumerate().filter(|(_, port)| exposes(exporter, port)) {
        let matches = slice.ports.iter().find(|it| it.name == port.name && it.protocol == port.protocol);
        served.extend(matches.map(|it| (index, it.number)));
    }
    served
}

/// The name of a pod that has none: its address, so that it is a DNS label.
fn given_name(address: IpAddr) -> Arc<str> {
    let name = address.to_string().replace(['.', ':'], "-");
    let start = if name.starts_with('-') { "0" } else { "" };
    let end = if name.ends_with('-') { "0" } else { "" };
    format!("{start}{name}{end}").into()
}

/// The families of a service: what it says; else, of a headless one, those of its endpoints; else its cluster's first.
fn families(service: &Service, slices: &[&Slice], of_cluster: &[Family]) -> Vec<Family> {
    if !service.families.is_empty() {
        return service.families.clone();
    }
    let has = |family: &Family| slices.iter().any(|slice| slice.family == *family);
    let families: Vec<_> = Family::BOTH.into_iter().filter(has).collect();
    if families.is_empty() { of_cluster.first().copied().into_iter().collect() } else { families }
}

/// Whose word on the choice of backends holds: the local import's, the local service's, the oldest export's.
fn choice(own: Option<&Part>, oldest: Option<(&ClusterName, &Wish)>) -> Choice {
    let import = own.and_then(|part| part.import.as_ref()).map(|wish| (Word::Import, wish));
    let service = own.and_then(|part| part.service.as_ref()).map(|service| (Word::Service, &service.wish));
    let oldest = oldest.map(|(cluster, wish)| (Word::Suggestion(cluster.clone()), wish));
    let words: Vec<_> = [import, service, oldest].into_iter().flatten().collect();
    let affinity = words.iter().find_map(|(word, wish)| Some((word.clone(), wish.affinity?)));
    let prefer = words.iter().find_map(|(word, wish)| Some((word.clone(), wish.prefer.clone()?)));
    let (affinity_by, affinity) = affinity.unzip();
    let (prefer_by, prefer) = prefer.unzip();
    Choice { affinity: affinity.unwrap_or_default(), affinity_by, prefer, prefer_by }
}

fn of_text(families: &[Family]) -> String {
    let texts: Vec<_> = families.iter().map(|family| family_text(*family)).collect();
    if texts.is_empty() { "no family".to_owned() } else { texts.join(" and ") }
}
