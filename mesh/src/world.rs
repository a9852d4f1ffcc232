//! Everything that is known of a mesh, changed one by one, and what one cluster makes of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use causeway_model::{Cluster, ClusterName, Family};
use ipnetwork::IpNetwork;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

use crate::addresses::{Addresses, Lease};
use crate::evaluate::{Judged, Member, View};
use crate::facts::{Export, Service, ServiceName, Slice};
use crate::members::{Claim, Members, Record, Refusal, RefusedPrefix};
use crate::outcome::{Condition, Exported, Import, Status};
use crate::prefer::Wish;

/// The namespace that is neither exported nor imported unless it is named.
pub const NEVER_BY_DEFAULT: &str = "kube-system";

/// Which namespaces take part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Namespaces {
    /// All but [`NEVER_BY_DEFAULT`].
    #[default]
    Default,
    /// These.
    Only(BTreeSet<String>),
}

impl Namespaces {
    /// Whether a namespace takes part.
    pub fn allow(&self, namespace: &str) -> bool {
        match self {
            Self::Default => namespace != NEVER_BY_DEFAULT,
            Self::Only(names) => names.contains(namespace),
        }
    }
}

/// What is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Prefixes that cluster-set addresses are given out of.
    pub clusterset: Vec<IpNetwork>,
    /// Namespaces whose exports of this cluster hold.
    pub exported: Namespaces,
    /// Namespaces into which anything is imported.
    pub imported: Namespaces,
}

/// Something that became different.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// What is configured.
    Config(Config),
    /// A cluster's object and when it was made; `None`: it has none.
    Cluster(ClusterName, Option<(Cluster, Option<Time>)>),
    /// Where a cluster's nodes are.
    Nodes(ClusterName, Vec<IpNetwork>),
    /// A cluster is marked lost, and how old what is known of it is; `None`: it is not.
    Lost(ClusterName, Option<Duration>),
    /// A cluster is gone with all its objects.
    Gone(ClusterName),
    /// A namespace is there or not.
    Namespace(ClusterName, String, bool),
    /// A Service.
    Service(ClusterName, ServiceName, Option<Service>),
    /// An EndpointSlice, by its own name.
    Slice(ClusterName, ServiceName, Option<Slice>),
    /// A ServiceExport.
    Export(ClusterName, ServiceName, Option<Export>),
    /// A ServiceImport that somebody wrote here.
    Import(ServiceName, Option<Wish>),
}

/// What must be told again after a restart, so that nothing moves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Addresses that were given.
    #[serde(default)]
    pub leases: Vec<Lease>,
    /// Who was accepted, in order.
    #[serde(default)]
    pub members: Vec<Claim>,
    /// Prefixes that addresses were given out of.
    #[serde(default)]
    pub clusterset: Vec<IpNetwork>,
}

/// What changed for the users of a [`World`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Imports that are new, different or gone.
    pub imports: BTreeSet<ServiceName>,
    /// Services of whose exports one is new, different or gone.
    pub exports: BTreeSet<ServiceName>,
    /// Whether other clusters, or other prefixes, are refused than before.
    pub refusals: bool,
}

/// What one cluster says of one service.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Part {
    pub service: Option<Service>,
    pub export: Option<Export>,
    pub slices: BTreeMap<String, Slice>,
    /// What is asked for here by a ServiceImport; this cluster's part only.
    pub import: Option<Wish>,
}

impl Part {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Debug, Default)]
struct Known {
    record: Option<(Cluster, Option<Time>)>,
    nodes: Vec<IpNetwork>,
    lost: Option<Duration>,
    namespaces: BTreeSet<String>,
}

/// Everything that is known of a mesh, as one of its clusters sees it.
#[derive(Clone, Debug)]
pub struct World {
    own: ClusterName,
    config: Config,
    clusters: BTreeMap<ClusterName, Known>,
    services: BTreeMap<ServiceName, BTreeMap<ClusterName, Part>>,
    /// Whose service each slice belongs to.
    slices: HashMap<(ClusterName, ServiceName), ServiceName>,
    members: Members,
    addresses: Addresses,
    exports: BTreeMap<ServiceName, BTreeMap<ClusterName, Exported>>,
    imports: BTreeMap<ServiceName, Arc<Import>>,
    /// Imports that have not got their addresses.
    waiting: BTreeSet<ServiceName>,
    /// Services that must be judged again.
    stale: BTreeSet<ServiceName>,
    clusters_changed: bool,
}

impl World {
    /// What a cluster knows before it knows anything.
    pub fn new(own: ClusterName, memory: Memory) -> Self {
        let Memory { leases, members, clusterset } = memory;
        Self {
            own,
            config: Config::default(),
            clusters: BTreeMap::new(),
            services: BTreeMap::new(),
            slices: HashMap::new(),
            members: Members { accepted: members, clusterset, ..Members::default() },
            addresses: Addresses::new(leases),
            exports: BTreeMap::new(),
            imports: BTreeMap::new(),
            waiting: BTreeSet::new(),
            stale: BTreeSet::new(),
            clusters_changed: true,
        }
    }

    /// What must be told again after a restart.
    pub fn memory(&self) -> Memory {
        Memory {
            leases: self.addresses.leases(),
            members: self.members.accepted.clone(),
            clusterset: self.members.clusterset.clone(),
        }
    }

    /// Whose view this is.
    pub fn own(&self) -> &ClusterName {
        &self.own
    }

    /// Takes up a change. It counts once it is settled.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Config(config) => {
                self.clusters_changed = true;
                self.stale_all();
                self.config = config;
            }
            Change::Cluster(name, record) => {
                self.clusters_changed = true;
                self.known(name).record = record;
            }
            Change::Nodes(name, nodes) => {
                self.clusters_changed = true;
                self.known(name).nodes = nodes;
            }
            Change::Lost(name, lost) => {
                self.clusters_changed |= self.clusters.get(&name).is_none_or(|known| known.record.is_none());
                self.stale_of(&name);
                self.known(name).lost = lost;
            }
            Change::Gone(name) => {
                self.clusters_changed = true;
                self.stale_of(&name);
                self.clusters.remove(&name);
                self.slices.retain(|(cluster, _), _| *cluster != name);
                self.services.values_mut().for_each(|parts| drop(parts.remove(&name)));
            }
            Change::Namespace(cluster, namespace, there) => {
                if cluster == self.own {
                    let inside = |name: &&ServiceName| name.namespace == namespace;
                    let stale: Vec<_> = self.services.keys().filter(inside).cloned().collect();
                    self.stale.extend(stale);
                }
                let namespaces = &mut self.known(cluster).namespaces;
                if there {
                    namespaces.insert(namespace)
                } else {
                    namespaces.remove(&namespace)
                };
            }
            Change::Service(cluster, name, service) => {
                self.part(&cluster, name, |part| part.service = service);
            }
            Change::Export(cluster, name, export) => {
                self.part(&cluster, name, |part| part.export = export);
            }
            Change::Import(name, wish) => {
                let own = self.own.clone();
                self.part(&own, name, |part| part.import = wish);
            }
            Change::Slice(cluster, slice, says) => self.slice(&cluster, slice, says),
        }
    }

    fn known(&mut self, cluster: ClusterName) -> &mut Known {
        self.clusters.entry(cluster).or_default()
    }

    fn part(&mut self, cluster: &ClusterName, name: ServiceName, change: impl FnOnce(&mut Part)) {
        let parts = self.services.entry(name.clone()).or_default();
        let part = parts.entry(cluster.clone()).or_default();
        change(part);
        if part.is_empty() {
            parts.remove(cluster);
        }
        self.stale.insert(name);
    }

    fn slice(&mut self, cluster: &ClusterName, slice: ServiceName, says: Option<Slice>) {
        let place = (cluster.clone(), slice.clone());
        let to = says.as_ref().map(|says| says.service.clone());
        let from = match to.clone() {
            Some(service) => self.slices.insert(place, service),
            None => self.slices.remove(&place),
        };
        if let Some(from) = from.filter(|from| Some(from) != to.as_ref()) {
            self.part(cluster, from, |part| drop(part.slices.remove(&slice.name)));
        }
        if let Some(says) = says {
            self.part(cluster, says.service.clone(), |part| drop(part.slices.insert(slice.name, says)));
        }
    }

    fn stale_of(&mut self, cluster: &ClusterName) {
        let has = |(_, parts): &(&ServiceName, &BTreeMap<_, _>)| parts.contains_key(cluster);
        let stale: Vec<_> = self.services.iter().filter(has).map(|(name, _)| name.clone()).collect();
        self.stale.extend(stale);
    }

    fn stale_all(&mut self) {
        self.stale.extend(self.services.keys().cloned());
    }

    /// Makes all changes count, and says what became different.
    pub fn settle(&mut self) -> Moved {
        let mut moved = Moved::default();
        if std::mem::take(&mut self.clusters_changed) {
            let next = self.next_members();
            moved.refusals = (&next.refused, &next.refused_prefixes)
                != (&self.members.refused, &self.members.refused_prefixes);
            self.members = next;
            // Regions, families and prefixes go into every choice.
            self.stale_all();
        }
        let mut room = false;
        for name in std::mem::take(&mut self.stale) {
            room |= self.judge(&name, &mut moved);
        }
        if room {
            for name in std::mem::take(&mut self.waiting) {
                self.judge(&name, &mut moved);
            }
        }
        moved
    }

    fn next_members(&self) -> Members {
        let records = self.clusters.values().filter_map(|known| {
            let (cluster, created) = known.record.as_ref()?;
            Some(Record { cluster, created: created.as_ref(), nodes: &known.nodes })
        });
        let unread = self.clusters.iter().filter(|(_, known)| known.lost.is_some() && known.record.is_none());
        let lost: Vec<_> = unread.map(|(name, _)| name).collect();
        let records: Vec<_> = records.collect();
        self.members.settle(&self.own, &records, &lost, &self.config.clusterset)
    }

    /// Judges one service again; whether an address became free.
    fn judge(&mut self, name: &ServiceName, moved: &mut Moved) -> bool {
        let judged = match self.services.get(name) {
            Some(parts) if !parts.is_empty() => self.view().judge(name, parts),
            _ => {
                self.services.remove(name);
                Judged::default()
            }
        };
        let Judged { exports, import } = judged;
        let before = if exports.is_empty() {
            self.exports.remove(name).unwrap_or_default()
        } else {
            self.exports.insert(name.clone(), exports.clone()).unwrap_or_default()
        };
        if before != exports {
            moved.exports.insert(name.clone());
        }
        let (import, room) = self.addressed(name, import);
        let before = match import.clone() {
            Some(import) => self.imports.insert(name.clone(), import),
            None => self.imports.remove(name),
        };
        if before != import {
            moved.imports.insert(name.clone());
        }
        room
    }

    /// Gives an import its addresses, and takes back those that it does not need.
    fn addressed(&mut self, name: &ServiceName, import: Option<Import>) -> (Option<Arc<Import>>, bool) {
        let mut room = false;
        let needed = import.as_ref().filter(|import| !import.headless);
        let needed = needed.map_or(Vec::new(), |import| import.families.clone());
        for family in Family::BOTH.iter().filter(|family| !needed.contains(family)) {
            room |= self.addresses.release(name, *family);
        }
        self.waiting.remove(name);
        let Some(mut import) = import else { return (None, room) };
        let prefixes = &self.members.clusterset;
        let given: Vec<_> = needed
            .iter()
            .filter_map(|family| Some((*family, self.addresses.lease(name, prefixes, *family)?)))
            .collect();
        if given.len() < needed.len() {
            self.waiting.insert(name.clone());
            let why = "every address of the clusterset-cidr is taken";
            import.ready = Condition::new("Ready", Status::False, "Pending", why);
            import.families.retain(|family| given.iter().any(|(given, _)| given == family));
            import.backends.retain(|(family, _), _| given.iter().any(|(given, _)| given == family));
        }
        import.addresses = given.into_iter().map(|(_, address)| address).collect();
        (Some(Arc::new(import)), room)
    }

    fn view(&self) -> View<'_> {
        static NONE: BTreeSet<String> = BTreeSet::new();
        let claims = self.members.accepted.iter();
        let mut members: BTreeMap<_, _> =
            claims.map(|claim| (&claim.cluster, self.member(&claim.cluster, &claim.prefixes))).collect();
        // Whoever looks is there, whether or not its object is.
        members.entry(&self.own).or_insert_with(|| self.member(&self.own, &[]));
        let refused: Vec<_> = self.members.refused_prefixes.iter().map(ToString::to_string).collect();
        View {
            own: &self.own,
            config: &self.config,
            namespaces: self.clusters.get(&self.own).map_or(&NONE, |known| &known.namespaces),
            members,
            clusterset: &self.members.clusterset,
            refused_prefixes: refused.join("; "),
        }
    }

    fn member<'a>(&'a self, cluster: &ClusterName, prefixes: &'a [IpNetwork]) -> Member<'a> {
        let known = self.clusters.get(cluster);
        let record = known.and_then(|known| known.record.as_ref()).map(|(record, _)| record);
        let mut families = Vec::new();
        for prefix in record.iter().flat_map(|record| &record.pod_prefixes) {
            let family = Family::of(prefix.network());
            if !families.contains(&family) {
                families.push(family);
            }
        }
        if families.is_empty() {
            families = Family::BOTH.to_vec();
        }
        Member {
            region: record.and_then(|record| record.region.as_deref()),
            families,
            lost: *cluster != self.own && known.is_some_and(|known| known.lost.is_some()),
            prefixes,
        }
    }

    /// All imports.
    pub fn imports(&self) -> &BTreeMap<ServiceName, Arc<Import>> {
        &self.imports
    }

    /// What became of all exports, by service and cluster.
    pub fn exports(&self) -> &BTreeMap<ServiceName, BTreeMap<ClusterName, Exported>> {
        &self.exports
    }

    /// Whose cluster-set address it is.
    pub fn holder(&self, address: IpAddr) -> Option<&ServiceName> {
        self.addresses.holder(address)
    }

    /// Clusters that have no part in the mesh, and why.
    pub fn refused(&self) -> &BTreeMap<ClusterName, Vec<Refusal>> {
        &self.members.refused
    }

    /// Configured prefixes out of which no address is given, and why.
    pub fn refused_prefixes(&self) -> &[RefusedPrefix] {
        &self.members.refused_prefixes
    }

    /// Prefixes out of which addresses are given.
    pub fn clusterset(&self) -> &[IpNetwork] {
        &self.members.clusterset
    }

    /// Clusters that are lost, and how old what is known of them is.
    pub fn lost(&self) -> impl Iterator<Item = (&ClusterName, Duration)> {
        self.clusters.iter().filter_map(|(name, known)| Some((name, known.lost?)))
    }

    /// Who belongs to the mesh, in the order in which they came.
    pub fn members(&self) -> &[Claim] {
        &self.members.accepted
    }
}
