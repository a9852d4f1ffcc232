//! Which clusters belong together: each has a number and prefixes of its own, and whoever claims another's later is refused.

use std::collections::BTreeMap;
use std::fmt;

use causeway_model::{Cluster, ClusterName};
use ipnetwork::IpNetwork;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

/// What a cluster has for itself alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Whose it is.
    pub cluster: ClusterName,
    /// Its number.
    pub id: u32,
    /// Its pod and service prefixes.
    pub prefixes: Vec<IpNetwork>,
}

impl Claim {
    fn of(cluster: &Cluster) -> Self {
        let prefixes = cluster.pod_prefixes.iter().chain(&cluster.service_prefixes).copied().collect();
        Self { cluster: cluster.name.clone(), id: cluster.id, prefixes }
    }

    /// Whether all of it was claimed before.
    fn is_within(&self, before: &Self) -> bool {
        let claimed = |prefix: &IpNetwork| before.prefixes.iter().any(|other| covers(other, prefix));
        self.id == before.id && self.prefixes.iter().all(claimed)
    }
}

fn covers(outer: &IpNetwork, inner: &IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

/// Whether two prefixes have an address in common.
pub(crate) fn overlap(one: &IpNetwork, other: &IpNetwork) -> bool {
    one.contains(other.network()) || other.contains(one.network())
}

/// Why a cluster has no part in the mesh.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// Its number is zero, which is nobody's.
    NoId,
    /// Its number is another's.
    DuplicateId {
        /// The number.
        id: u32,
        /// Whose it is.
        of: ClusterName,
    },
    /// One of its prefixes has addresses of another's.
    OverlappingPrefix {
        /// Its own.
        prefix: IpNetwork,
        /// The other's.
        with: IpNetwork,
        /// The other.
        of: ClusterName,
    },
    /// One of its prefixes has addresses that this cluster gives to imported services.
    OverlappingClusterset {
        /// Its own.
        prefix: IpNetwork,
        /// This cluster's `clusterset-cidr`.
        with: IpNetwork,
        /// This cluster.
        of: ClusterName,
    },
}

impl Refusal {
    /// The reason in a word, and the other cluster.
    pub fn code(&self) -> String {
        match self {
            Self::NoId => "no-id".to_owned(),
            Self::DuplicateId { of, .. } => format!("duplicate-id:{of}"),
            Self::OverlappingPrefix { of, .. } | Self::OverlappingClusterset { of, .. } => {
                format!("overlapping-cidr:{of}")
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoId => f.write_str("its id 0 is nobody's"),
            Self::DuplicateId { id, of } => write!(f, "its id {id} is that of cluster {of}"),
            Self::OverlappingPrefix { prefix, with, of } => {
                write!(f, "its prefix {prefix} overlaps {with} of cluster {of}")
            }
            Self::OverlappingClusterset { prefix, with, of } => {
                write!(f, "its prefix {prefix} overlaps clusterset-cidr {with} of cluster {of}")
            }
        }
    }
}

/// A prefix for cluster-set addresses out of which none is given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RefusedPrefix {
    /// The prefix.
    pub prefix: IpNetwork,
    /// What it overlaps.
    pub with: IpNetwork,
    /// Whose that is.
    pub of: ClusterName,
}

impl fmt::Display for RefusedPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "clusterset-cidr {} overlaps {} of cluster {}", self.prefix, self.with, self.of)
    }
}

/// Who belongs to the mesh, as one cluster sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Members {
    /// In the order in which they came, this cluster first.
    pub accepted: Vec<Claim>,
    pub refused: BTreeMap<ClusterName, Vec<Refusal>>,
    /// Prefixes that cluster-set addresses are given out of.
    pub clusterset: Vec<IpNetwork>,
    pub refused_prefixes: Vec<RefusedPrefix>,
}

/// What a cluster says of itself.
pub(crate) struct Record<'a> {
    pub cluster: &'a Cluster,
    pub created: Option<&'a Time>,
    /// Where its nodes are.
    pub nodes: &'a [IpNetwork],
}

impl Members {
    pub fn is_member(&self, cluster: &ClusterName) -> bool {
        self.accepted.iter().any(|claim| claim.cluster == *cluster)
    }

    /// Who belongs to the mesh now. Whoever was accepted before and claims no more than then stays, and so does whoever is lost,
    /// though nothing can be read of it (`lost`); everybody else comes later, in the order of their objects' age and then of
    /// their names. `clusterset` is what is configured.
    pub fn settle(
        &self,
        own: &ClusterName,
        records: &[Record<'_>],
        lost: &[&ClusterName],
        clusterset: &[IpNetwork],
    ) -> Self {
        let mut next = Self::default();
        let record = |name: &ClusterName| records.iter().find(|record| record.cluster.name == *name);
        next.accepted.extend(record(own).map(|record| Claim::of(record.cluster)));
        for before in self.accepted.iter().filter(|before| before.cluster != *own) {
            let claim = match record(&before.cluster) {
                Some(record) => Some(Claim::of(record.cluster)),
                None => lost.contains(&&before.cluster).then(|| before.clone()),
            };
            // This cluster's own claim may have grown since.
            if let Some(claim) = claim.filter(|claim| claim.is_within(before)) {
                next.admit(claim, own);
            }
        }
        let kept = |prefix: &&IpNetwork| self.clusterset.contains(prefix);
        clusterset.iter().filter(kept).for_each(|prefix| next.open(*prefix, records));
        let mut later: Vec<_> = records.iter().filter(|record| !next.knows(&record.cluster.name)).collect();
        later.sort_by_key(|record| {
            let created = record.created.map(|time| time.0);
            (created.is_none(), created, &record.cluster.name)
        });
        later.into_iter().for_each(|record| next.admit(Claim::of(record.cluster), own));
        let new = |prefix: &&IpNetwork| !self.clusterset.contains(prefix);
        clusterset.iter().filter(new).for_each(|prefix| next.open(*prefix, records));
        next
    }

    fn knows(&self, cluster: &ClusterName) -> bool {
        self.is_member(cluster) || self.refused.contains_key(cluster)
    }

    fn admit(&mut self, claim: Claim, own: &ClusterName) {
        let refusals = self.refusals(&claim, own);
        if refusals.is_empty() {
            self.accepted.push(claim);
        } else {
            self.refused.insert(claim.cluster, refusals);
        }
    }

    fn refusals(&self, claim: &Claim, own: &ClusterName) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        if claim.id == 0 {
            refusals.push(Refusal::NoId);
        }
        for other in &self.accepted {
            let of = || other.cluster.clone();
            if other.id == claim.id && claim.id != 0 {
                refusals.push(Refusal::DuplicateId { id: claim.id, of: of() });
            }
            for (prefix, with) in overlaps(&claim.prefixes, &other.prefixes) {
                refusals.push(Refusal::OverlappingPrefix { prefix, with, of: of() });
            }
        }
        for (prefix, with) in overlaps(&claim.prefixes, &self.clusterset) {
            refusals.push(Refusal::OverlappingClusterset { prefix, with, of: own.clone() });
        }
        refusals
    }

    /// Takes a prefix for cluster-set addresses, unless any known prefix or node lies in it.
    fn open(&mut self, prefix: IpNetwork, records: &[Record<'_>]) {
        let nodes = |cluster: &ClusterName| {
            let record = records.iter().find(|record| record.cluster.name == *cluster);
            record.map_or(&[][..], |record| record.nodes)
        };
        let known = self.accepted.iter().flat_map(|claim| {
            let all = claim.prefixes.iter().chain(nodes(&claim.cluster));
            all.map(|with| (*with, claim.cluster.clone()))
        });
        let clash = known.filter(|(with, _)| overlap(with, &prefix));
        let refused: Vec<_> = clash.map(|(with, of)| RefusedPrefix { prefix, with, of }).collect();
        if refused.is_empty() {
            self.clusterset.push(prefix);
        } else {
            self.refused_prefixes.extend(refused);
        }
    }
}

fn overlaps(ours: &[IpNetwork], theirs: &[IpNetwork]) -> Vec<(IpNetwork, IpNetwork)> {
    let pairs = ours.iter().flat_map(|one| theirs.iter().map(move |other| (*one, *other)));
    pairs.filter(|(one, other)| overlap(one, other)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str, id: u32, prefixes: &[&str]) -> Cluster {
        Cluster {
            name: name.parse().unwrap(),
            id,
            region: None,
            pod_prefixes: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(),
            service_prefixes: Vec::new(),
        }
    }

    fn settle(before: &Members, clusters: &[Cluster], clusterset: &[&str]) -> Members {
        let records: Vec<_> =
            clusters.iter().map(|cluster| Record { cluster, created: None, nodes: &[] }).collect();
        let clusterset: Vec<_> = clusterset.iter().map(|prefix| prefix.parse().unwrap()).collect();
        before.settle(&"oslo".parse().unwrap(), &records, &[], &clusterset)
    }

    fn names(members: &Members) -> Vec<&str> {
        members.accepted.iter().map(|claim| claim.cluster.as_str()).collect()
    }

    #[test]
    fn the_later_of_two_is_refused_and_names_both() {
        let oslo = cluster("oslo", 1, &["10.1.0.0/16"]);
        let pisa = cluster("pisa", 2, &["10.2.0.0/16"]);
        let before = settle(&Members::default(), &[oslo.clone(), pisa.clone()], &[]);
        assert_eq!(names(&before), ["oslo", "pisa"]);
        // lyon comes later, though its name would come first.
        let lyon = cluster("lyon", 2, &["10.2.4.0/24", "10.3.0.0/16"]);
        let after = settle(&before, &[lyon.clone(), oslo.clone(), pisa.clone()], &[]);
        assert_eq!(names(&after), ["oslo", "pisa"]);
        let refused: Vec<_> = after.refused[&lyon.name].iter().map(ToString::to_string).collect();
        assert_eq!(
            refused,
            [
                "its id 2 is that of cluster pisa",
                "its prefix 10.2.4.0/24 overlaps 10.2.0.0/16 of cluster pisa"
            ]
        );
        // Pisa goes, so that lyon has what it claims; pisa returns and is the later one.
        let after = settle(&after, &[lyon.clone(), oslo.clone()], &[]);
        assert_eq!(names(&after), ["oslo", "lyon"]);
        let after = settle(&after, &[lyon, oslo, pisa], &[]);
        assert_eq!(names(&after), ["oslo", "lyon"]);
    }

    #[test]
    fn whoever_claims_more_than_before_claims_it_now() {
        let oslo = cluster("oslo", 1, &["10.1.0.0/16"]);
        let lyon = cluster("lyon", 2, &["10.2.0.0/16"]);
        let pisa = cluster("pisa", 3, &["10.3.0.0/16"]);
        let before = settle(&Members::default(), &[oslo.clone(), lyon, pisa.clone()], &[]);
        let grown = cluster("lyon", 2, &["10.2.0.0/16", "10.3.9.0/24"]);
        let after = settle(&before, &[oslo.clone(), grown, pisa.clone()], &[]);
        assert_eq!(names(&after), ["oslo", "pisa"]);
        let shrunk = cluster("lyon", 2, &["10.2.7.0/24"]);
        let after = settle(&before, &[oslo, shrunk, pisa], &[]);
        assert_eq!(names(&after), ["oslo", "lyon", "pisa"]);
    }

    #[test]
    fn cluster_set_addresses_come_after_whom_they_overlap_and_before_whoever_comes_later() {
        let oslo = cluster("oslo", 1, &["10.1.0.0/16"]);
        let lyon = cluster("lyon", 2, &["10.2.0.0/16"]);
        let first =
            settle(&Members::default(), &[oslo.clone(), lyon.clone()], &["10.2.4.0/24", "172.30.0.0/16"]);
        assert_eq!(first.clusterset, ["172.30.0.0/16".parse().unwrap()]);
        assert_eq!(
            first.refused_prefixes[0].to_string(),
            "clusterset-cidr 10.2.4.0/24 overlaps 10.2.0.0/16 of cluster lyon"
        );
        let pisa = cluster("pisa", 3, &["172.30.9.0/24"]);
        let after = settle(&first, &[oslo, lyon, pisa.clone()], &["10.2.4.0/24", "172.30.0.0/16"]);
        assert_eq!(after.clusterset, first.clusterset);
        assert_eq!(after.refused[&pisa.name][0].code(), "overlapping-cidr:oslo");
    }

    #[test]
    fn who_is_lost_keeps_its_claim_though_its_object_is_gone() {
        let oslo = cluster("oslo", 1, &["10.1.0.0/16"]);
        let lyon = cluster("lyon", 2, &["10.2.0.0/16"]);
        let before = settle(&Members::default(), &[oslo.clone(), lyon.clone()], &[]);
        let pisa = cluster("pisa", 2, &["10.3.0.0/16"]);
        let records = [&oslo, &pisa].map(|cluster| Record { cluster, created: None, nodes: &[] });
        let after = before.settle(&oslo.name, &records, &[&lyon.name], &[]);
        assert_eq!(names(&after), ["oslo", "lyon"]);
        assert_eq!(after.refused[&pisa.name][0].code(), "duplicate-id:lyon");
    }

    #[test]
    fn zero_is_nobodys_number() {
        let members = settle(&Members::default(), &[cluster("lyon", 0, &[])], &[]);
        assert_eq!(members.refused.values().next().unwrap(), &[Refusal::NoId]);
    }
}
