//! What there is in a case: clusters and their objects, changed by what is done, and told as each cluster may see it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use causeway_mesh::read::{self, Written};
use causeway_mesh::{Change, Config, Namespaces, ServiceName};
use causeway_model::ClusterName;
use serde_json::Value;

use super::fault::Fault;
use super::format::{Act, Case, Cluster, Corpus, Name, Settings};

/// The kinds of objects that a case may have.
const KINDS: [&str; 5] = ["Namespace", "Service", "EndpointSlice", "ServiceExport", "ServiceImport"];

/// An object's kind and name.
pub type Key = (String, Name);

/// Clusters and their objects.
pub struct Stage<'a> {
    corpus: &'a Corpus,
    case: &'a Case,
    /// All members that are there, in the order in which they came.
    members: Vec<Member>,
    fault: Option<Fault>,
}

/// A cluster that is there.
#[derive(Clone, Debug)]
pub struct Member {
    pub name: ClusterName,
    pub cluster: Cluster,
    pub settings: Settings,
    pub objects: BTreeMap<Key, Value>,
    pub lost: Option<Duration>,
}

/// Something that was done.
#[derive(Clone, Debug)]
pub enum Done {
    /// Objects of a cluster are new or others.
    Objects(ClusterName, Vec<Key>),
    /// A cluster is marked lost, or is not any more.
    Lost(ClusterName),
    /// A cluster came.
    Joined(ClusterName),
    /// A cluster went.
    Left(ClusterName),
}

impl<'a> Stage<'a> {
    /// What a case begins with.
    pub fn new(corpus: &'a Corpus, case: &'a Case, fault: Option<Fault>) -> Result<Self> {
        let mut stage = Self { corpus, case, members: Vec::new(), fault };
        for name in &case.clusters {
            let objects = case.objects.get(name).map_or(&[][..], Vec::as_slice);
            stage.join(name, objects)?;
        }
        let unknown = case.objects.keys().find(|name| !case.clusters.contains(name));
        ensure!(unknown.is_none(), "objects of {unknown:?}, which is no member");
        Ok(stage)
    }

    /// All members that are there.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// A member that is there.
    pub fn member(&self, name: &str) -> Result<&Member> {
        let found = self.members.iter().find(|member| member.name.as_str() == name);
        found.with_context(|| format!("cluster {name} is not there"))
    }

    fn member_mut(&mut self, name: &str) -> Result<&mut Member> {
        let found = self.members.iter_mut().find(|member| member.name.as_str() == name);
        found.with_context(|| format!("cluster {name} is not there"))
    }

    /// Does something.
    pub fn act(&mut self, act: &Act) -> Result<Done> {
        match act {
            Act::Put { cluster, object } | Act::Export { cluster, object } => {
                let key = key(object)?;
                let member = self.member_mut(cluster)?;
                member.objects.insert(key.clone(), object.clone());
                Ok(Done::Objects(member.name.clone(), vec![key]))
            }
            Act::Delete { cluster, kind, name } => self.remove(cluster, kind, name),
            Act::Unexport { cluster, name } => self.remove(cluster, "ServiceExport", name),
            Act::Lose { cluster, age } => {
                let age = age.map_or(Duration::from_secs(60), |age| age.0);
                let member = self.member_mut(cluster)?;
                member.lost = Some(age);
                Ok(Done::Lost(member.name.clone()))
            }
            Act::Back { cluster } => {
                let member = self.member_mut(cluster)?;
                member.lost = None;
                Ok(Done::Lost(member.name.clone()))
            }
            Act::Join { cluster, objects } => self.join(cluster, objects).map(Done::Joined),
            Act::Leave { cluster } => {
                let name = self.member(cluster)?.name.clone();
                self.members.retain(|member| member.name != name);
                Ok(Done::Left(name))
            }
        }
    }

    fn remove(&mut self, cluster: &str, kind: &str, name: &Name) -> Result<Done> {
        let member = self.member_mut(cluster)?;
        let key = (kind.to_owned(), name.clone());
        member.objects.remove(&key).with_context(|| format!("{cluster} has no {kind} {name}"))?;
        Ok(Done::Objects(member.name.clone(), vec![key]))
    }

    fn join(&mut self, name: &str, objects: &[Value]) -> Result<ClusterName> {
        let cluster = self.corpus.cluster(self.case, name)?;
        let name = name.parse::<ClusterName>()?;
        ensure!(self.members.iter().all(|member| member.name != name), "cluster {name} is there already");
        let objects = objects.iter().map(|object| Ok((key(object)?, object.clone())));
        let all = self.case.config.get("all").cloned().unwrap_or_default();
        let own = self.case.config.get(name.as_str()).cloned().unwrap_or_default();
        let settings = Settings {
            clusterset: own.clusterset.or(all.clusterset),
            export_namespaces: own.export_namespaces.or(all.export_namespaces),
            import_namespaces: own.import_namespaces.or(all.import_namespaces),
        };
        let objects = objects.collect::<Result<_>>()?;
        self.members.push(Member { name: name.clone(), cluster, settings, objects, lost: None });
        Ok(name)
    }

    /// The same members with no objects, as if each were alone.
    pub fn bare(&self) -> Vec<Member> {
        let alone = |member: &Member| Member { objects: BTreeMap::new(), lost: None, ..member.clone() };
        self.members.iter().map(alone).collect()
    }

    /// Every slice that a cluster has at any time, with the cluster.
    pub fn slices(&self) -> Result<Vec<(String, Value)>> {
        let first = self.case.objects.iter().flat_map(|(of, objects)| objects.iter().map(move |it| (of, it)));
        let mut all: Vec<_> = first.map(|(of, object)| (of.clone(), object.clone())).collect();
        for step in self.case.steps()? {
            for act in step.acts {
                match act {
                    Act::Put { cluster, object } | Act::Export { cluster, object } => {
                        all.push((cluster, object));
                    }
                    Act::Join { cluster, objects } => {
                        all.extend(objects.into_iter().map(|object| (cluster.clone(), object)));
                    }
                    _ => {}
                }
            }
        }
        all.retain(|(_, object)| object["kind"] == "EndpointSlice");
        Ok(all)
    }

    /// Whose an address of a pod is.
    pub fn holder(&self, address: IpAddr) -> Option<ClusterName> {
        let has = |member: &&Member| member.cluster.pods.iter().any(|prefix| prefix.contains(address));
        self.members.iter().find(has).map(|member| member.name.clone())
    }

    /// What is configured in a cluster.
    pub fn config(&self, member: &Member) -> Change {
        let Settings { clusterset, export_namespaces, import_namespaces } = member.settings.clone();
        let only = |names: Option<_>| names.map_or(Namespaces::Default, Namespaces::Only);
        let config = Config {
            clusterset: clusterset.unwrap_or_default(),
            exported: only(export_namespaces),
            imported: only(import_namespaces),
        };
        Change::Config(self.fault.map_or(config.clone(), |fault| fault.bend_config(config)))
    }

    /// All that one cluster says, as another sees it, or it itself.
    pub fn whole(&self, of: &Member, observer: &ClusterName) -> Result<Vec<Change>> {
        let name = of.name.clone();
        let mut cluster = causeway_model::Cluster {
            name: name.clone(),
            id: of.cluster.id,
            region: of.cluster.region.clone(),
            pod_prefixes: of.cluster.pods.clone(),
            service_prefixes: of.cluster.services.clone(),
        };
        if let Some(fault) = self.fault {
            fault.bend_cluster(&mut cluster);
        }
        let mut changes = vec![
            Change::Cluster(name.clone(), Some((cluster, None))),
            Change::Nodes(name.clone(), of.cluster.nodes.clone()),
        ];
        changes.extend(self.lost(of));
        let seeming = self.fault.map_or_else(Vec::new, |fault| fault.implied(of));
        let mut of = of.clone();
        for object in seeming {
            of.objects.entry(key(&object)?).or_insert(object);
        }
        let of = &of;
        for key in of.objects.keys() {
            changes.extend(self.object(of, key, observer)?);
        }
        Ok(changes)
    }

    /// Whether a cluster is marked lost.
    pub fn lost(&self, of: &Member) -> Vec<Change> {
        let lost = of.lost.filter(|_| self.fault != Some(Fault::LossIgnored));
        vec![Change::Lost(of.name.clone(), lost)]
    }

    /// An object as another cluster sees it, or its own: what is there now, or that nothing is.
    pub fn object(&self, of: &Member, key: &Key, observer: &ClusterName) -> Result<Vec<Change>> {
        let (kind, name) = key;
        let cluster = of.name.clone();
        let service = ServiceName { namespace: name.namespace.clone(), name: name.name.clone() };
        let mut document = of.objects.get(key).cloned();
        if let (Some(fault), Some(document)) = (self.fault, &mut document) {
            fault.bend(of, kind, name, document);
        }
        Ok(match kind.as_str() {
            "Namespace" => vec![Change::Namespace(cluster, name.name.clone(), document.is_some())],
            "Service" => {
                let read = document.map(serde_json::from_value).transpose().context("reading a Service")?;
                let read = read.and_then(|written| read::service(&written).object);
                vec![Change::Service(cluster, service, read)]
            }
            "EndpointSlice" => {
                let read = document.map(serde_json::from_value).transpose().context("reading a slice")?;
                let read = read.and_then(|written| read::slice(&written)?.object);
                vec![Change::Slice(cluster, service, read)]
            }
            "ServiceExport" => {
                // A cluster tells others nothing of what its own list forbids.
                let list = &of.settings.export_namespaces;
                let only = list.clone().map_or(Namespaces::Default, Namespaces::Only);
                if cluster != *observer
                    && !only.allow(&name.namespace)
                    && self.fault != Some(Fault::ListsIgnored)
                {
                    return Ok(Vec::new());
                }
                let export = match document.as_ref().map(read::read).transpose()? {
                    Some(Written::Export(read)) => read.object,
                    _ => None,
                };
                vec![Change::Export(cluster, service, export)]
            }
            "ServiceImport" if cluster == *observer => {
                let wish = match document.as_ref().map(read::read).transpose()? {
                    Some(Written::Import(read)) => read.object,
                    _ => None,
                };
                vec![Change::Import(service, wish)]
            }
            "ServiceImport" => Vec::new(),
            other => bail!("an object of kind {other:?}"),
        })
    }
}

fn key(object: &Value) -> Result<Key> {
    let kind = object.get("kind").and_then(Value::as_str).with_context(|| format!("no kind in {object}"))?;
    ensure!(KINDS.contains(&kind), "an object of kind {kind:?}");
    let metadata = object.get("metadata").unwrap_or(&Value::Null);
    let text = |field: &str| metadata.get(field).and_then(Value::as_str).map(str::to_owned);
    let name = text("name").with_context(|| format!("no name in {object}"))?;
    let namespace = text("namespace").unwrap_or_default();
    Ok((kind.to_owned(), Name { namespace, name }))
}
