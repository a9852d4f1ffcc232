//! What several exports of one name make together, and where they disagree: the oldest wins, and all are told.

use std::collections::BTreeMap;
use std::fmt;

use causeway_model::{ClusterName, Family};

use crate::facts::{Export, Port, Service, ServiceKind, Slice, TrafficPolicy, family_text};
use crate::prefer::OURS;

/// A cluster that exports a service.
#[derive(Clone, Debug)]
pub(crate) struct Exporter<'a> {
    pub cluster: &'a ClusterName,
    pub export: &'a Export,
    pub service: &'a Service,
    /// The families that its service has, by its own word or by its endpoints.
    pub families: Vec<Family>,
    pub slices: Vec<&'a Slice>,
}

impl Exporter<'_> {
    /// The order of seniority: the older export first; of two that are equally old, or do not say, the one whose cluster's
    /// name is the smaller. Names are unique, so that everybody agrees.
    pub fn seniority(&self) -> (bool, Option<&k8s_openapi::jiff::Timestamp>, &ClusterName) {
        let created = self.export.created.as_ref().map(|time| &time.0);
        (created.is_none(), created, self.cluster)
    }
}

/// A kind of disagreement, by the name that the API has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the API names them")]
pub enum Disagreement {
    PortConflict,
    TypeConflict,
    SessionAffinityConflict,
    SessionAffinityConfigConflict,
    InternalTrafficPolicyConflict,
    TrafficDistributionConflict,
    IPFamilyConflict,
    LabelsConflict,
    AnnotationsConflict,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PortConflict => "PortConflict",
            Self::TypeConflict => "TypeConflict",
            Self::SessionAffinityConflict => "SessionAffinityConflict",
            Self::SessionAffinityConfigConflict => "SessionAffinityConfigConflict",
            Self::InternalTrafficPolicyConflict => "InternalTrafficPolicyConflict",
            Self::TrafficDistributionConflict => "TrafficDistributionConflict",
            Self::IPFamilyConflict => "IPFamilyConflict",
            Self::LabelsConflict => "LabelsConflict",
            Self::AnnotationsConflict => "AnnotationsConflict",
        })
    }
}

/// Who disagrees, and in what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// In what.
    pub about: Disagreement,
    /// What is said, and who says so; the oldest export's word, which holds, comes first.
    pub said: Vec<(String, Vec<ClusterName>)>,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.about)?;
        for (index, (what, who)) in self.said.iter().enumerate() {
            let who: Vec<_> = who.iter().map(ClusterName::as_str).collect();
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{} says {what}", who.join(", "))?;
        }
        Ok(())
    }
}

/// What several exports make together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Merged {
    pub headless: bool,
    /// The union of all ports.
    pub ports: Vec<Port>,
    pub affinity: Option<u32>,
    pub traffic_policy: TrafficPolicy,
    pub distribution: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Families that all exporters have, in the order of the oldest.
    pub common: Vec<Family>,
    /// Families that any of them has.
    pub all: Vec<Family>,
    pub conflicts: Vec<Conflict>,
}

/// Merges exports, the oldest of which comes first. `importers` are the families of every member of the mesh: one that can
/// use no family that all exporters have is given others, which not all serve.
pub(crate) fn merge(exporters: &[Exporter<'_>], importers: &[Vec<Family>]) -> Option<Merged> {
    let oldest = exporters.first()?;
    let mut common = oldest.families.clone();
    let mut all = Vec::new();
    for exporter in exporters {
        common.retain(|family| exporter.families.contains(family));
        for family in &exporter.families {
            if !all.contains(family) {
                all.push(*family);
            }
        }
    }
    let mut conflicts = conflicts(exporters);
    let usable = |of: &[Family], by: &[Family]| of.iter().any(|family| by.contains(family));
    let partial = |by: &Vec<Family>| !usable(&common, by) && usable(&all, by);
    if common.is_empty() || importers.iter().any(partial) {
        conflicts.extend(differ(Disagreement::IPFamilyConflict, exporters, |it| families_text(&it.families)));
    }
    conflicts.sort_by_key(|conflict| conflict.about);
    Some(Merged {
        headless: oldest.service.kind == ServiceKind::Headless,
        ports: union(exporters),
        affinity: oldest.service.affinity,
        traffic_policy: oldest.service.traffic_policy,
        distribution: oldest.service.distribution.clone(),
        labels: oldest.export.labels.clone(),
        annotations: oldest.export.annotations.clone(),
        common,
        all,
        conflicts,
    })
}

/// The ports of all, merged from the oldest to the youngest: one that has the name, or protocol and number, of a port that is
/// there and differs otherwise is left out.
fn union(exporters: &[Exporter<'_>]) -> Vec<Port> {
    let mut ports: Vec<Port> = Vec::new();
    for port in exporters.iter().flat_map(|exporter| &exporter.service.ports) {
        let clashes = |other: &Port| {
            other.name == port.name || (other.protocol, other.number) == (port.protocol, port.number)
        };
        if !ports.iter().any(clashes) {
            ports.push(port.clone());
        }
    }
    ports
}

fn conflicts(exporters: &[Exporter<'_>]) -> Vec<Conflict> {
    use Disagreement as D;
    // What a headless service says of affinity and traffic means nothing.
    let addressed: Vec<_> =
        exporters.iter().filter(|it| it.service.kind == ServiceKind::Addressed).cloned().collect();
    let with_affinity: Vec<_> =
        addressed.iter().filter(|it| it.service.affinity.is_some()).cloned().collect();
    [
        differ(D::PortConflict, exporters, |it| ports_text(&it.service.ports)),
        differ(D::TypeConflict, exporters, |it| {
            if it.service.kind == ServiceKind::Headless { "Headless" } else { "ClusterSetIP" }.to_owned()
        }),
        differ(D::SessionAffinityConflict, &addressed, |it| {
            if it.service.affinity.is_some() { "ClientIP" } else { "None" }.to_owned()
        }),
        differ(D::SessionAffinityConfigConflict, &with_affinity, |it| {
            format!("{} s", it.service.affinity.unwrap_or_default())
        }),
        differ(D::InternalTrafficPolicyConflict, &addressed, |it| {
            it.service.traffic_policy.as_str().to_owned()
        }),
        differ(D::TrafficDistributionConflict, &addressed, |it| distribution_text(it.service)),
        differ(D::LabelsConflict, exporters, |it| format!("{:?}", it.export.labels)),
        differ(D::AnnotationsConflict, exporters, |it| {
            // Wishes are the importer's to grant; that they differ is no conflict.
            let others = it.export.annotations.iter().filter(|(key, _)| !key.starts_with(OURS));
            format!("{:?}", others.collect::<BTreeMap<_, _>>())
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What exporters say of something, if they do not all say the same.
fn differ(
    about: Disagreement,
    exporters: &[Exporter<'_>],
    says: impl Fn(&Exporter<'_>) -> String,
) -> Option<Conflict> {
    if exporters.len() < 2 {
        return None;
    }
    let mut said: Vec<(String, Vec<ClusterName>)> = Vec::new();
    for exporter in exporters {
        let what = says(exporter);
        match said.iter_mut().find(|(other, _)| *other == what) {
            Some((_, who)) => who.push(exporter.cluster.clone()),
            None => said.push((what, vec![exporter.cluster.clone()])),
        }
    }
    (said.len() > 1).then_some(Conflict { about, said })
}

/// The ports as a set: neither their order nor their targets are seen from outside.
fn ports_text(ports: &[Port]) -> String {
    let mut texts: Vec<_> = ports.iter().map(ToString::to_string).collect();
    texts.sort();
    if texts.is_empty() { "no ports".to_owned() } else { texts.join(" ") }
}

/// PreferClose is PreferSameZone's older name.
fn distribution_text(service: &Service) -> String {
    match service.distribution.as_deref() {
        None => "nothing",
        Some("PreferClose") => "PreferSameZone",
        Some(other) => other,
    }
    .to_owned()
}

fn families_text(families: &[Family]) -> String {
    let mut texts: Vec<_> = families.iter().map(|family| family_text(*family)).collect();
    texts.sort_unstable();
    texts.join(" ")
}

/// Which exporters have one of the merged ports.
pub(crate) fn exposes(exporter: &Exporter<'_>, port: &Port) -> bool {
    exporter.service.ports.iter().any(|other| other.identity() == port.identity())
}
