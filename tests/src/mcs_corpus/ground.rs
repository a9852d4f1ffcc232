//! Clusters of a file in a lab: a node each, whose agent reads its own cluster at the top of its directory and all others below it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use causeway_mesh::Namespaces;
use causeway_model::operator::Status;
use causeway_model::{Family, NameServer};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::format::{Cluster, Settings};
use super::stage::Member;
use crate::corpus;
use crate::corpus::ground::{await_revision, bare_lab, node_object, pod_object, status, write};
use crate::lab::{self, Datapath, Lab, Place, PodSpec, Role};
use crate::namespace::Namespace;

/// The namespace of the pods that the lab plugs in.
const PODS: &str = "lab";
/// Where names are answered for pods that have no IPv4 address.
const NAMES_V6: Ipv6Addr = Ipv6Addr::new(0xfd53, 0, 0, 0, 0, 0, 0, 0x53);

/// A pod: its cluster and its addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pod {
    pub cluster: String,
    pub addresses: BTreeSet<IpAddr>,
}

impl Pod {
    /// What it is called: by its first address.
    fn name(&self) -> String {
        let first = self.addresses.first().map(ToString::to_string).unwrap_or_default();
        format!("{}-{}", self.cluster, first.replace(['.', ':'], "-"))
    }

    /// The pod as files tell it.
    fn on(&self, node: &str) -> corpus::Pod {
        let (id, ips) = (format!("{PODS}/{}", self.name()), self.addresses.iter().copied().collect());
        corpus::Pod { id, node: node.to_owned(), ips, ..corpus::Pod::default() }
    }
}

/// A cluster in the lab.
struct Site {
    /// Its number there, from 1.
    number: usize,
    node: lab::Node,
    /// What its agent is configured with besides what every node is; none while it does not run.
    config: Option<String>,
}

/// All clusters of a file.
pub(super) struct Ground {
    lab: Lab,
    sites: BTreeMap<String, Site>,
    plugged: BTreeSet<Pod>,
    datapath: Datapath,
    revision: u64,
}

impl Ground {
    /// Makes a node for each of these clusters. Agents come with the first case.
    pub fn build(clusters: &BTreeMap<String, Cluster>, datapath: Datapath) -> Result<Self> {
        let place = |(name, cluster): (&String, &Cluster)| -> Result<Place> {
            let addresses = cluster.nodes.iter().filter_map(|prefix| prefix.iter().nth(1)).collect();
            Ok(Place { name: node_name(name).parse()?, addresses, pod_prefixes: cluster.pods.clone() })
        };
        let lab = bare_lab(datapath, clusters.iter().map(place).collect::<Result<_>>()?, clusters.len())?;
        let site = |(index, name): (usize, &String)| -> Result<_> {
            let node = lab.node(&node_name(name))?;
            Ok((name.clone(), Site { number: index + 1, node, config: None }))
        };
        let sites = clusters.keys().enumerate().map(site).collect::<Result<BTreeMap<_, _>>>()?;
        let ground = Self { lab, sites, plugged: BTreeSet::new(), datapath, revision: 0 };
        ground.lead()?;
        Ok(ground)
    }

    /// Nodes find each other on the wire.
    fn lead(&self) -> Result<()> {
        for (name, site) in &self.sites {
            let others = self.sites.iter().filter(|(other, _)| *other != name);
            let mut ways = String::new();
            for (_, other) in others {
                for family in Family::BOTH {
                    writeln!(ways, "route replace {} dev eth0", other.node.address(family))?;
                }
            }
            site.node.namespace().ip_batch(&ways)?;
        }
        Ok(())
    }

    /// Has every member's agent run with the case's configuration.
    pub fn configure(&mut self, members: &[Member]) -> Result<()> {
        let mut started = Vec::new();
        for member in members {
            let site = self.sites.get_mut(member.name.as_str()).context("a cluster without a node")?;
            let config = config(member)?;
            if site.config.as_ref() == Some(&config) {
                continue;
            }
            if site.config.is_some() {
                self.lab.kill(site.node.name(), Role::Agent)?;
            }
            self.lab.configure(&site.node)?;
            let text = fs::read_to_string(site.node.config_file())? + &config;
            fs::write(site.node.config_file(), text)?;
            let is_fast = match self.datapath {
                Datapath::Fast => true,
                Datapath::Kernel => false,
                Datapath::Mixed => site.number % 2 == 1,
            };
            if is_fast && site.config.is_none() {
                self.lab.spawn(&site.node, Role::Fastpath)?;
            }
            self.lab.spawn(&site.node, Role::Agent)?;
            site.config = Some(config);
            started.push(site.node.clone());
        }
        started.iter().try_for_each(|node| Ok(self.lab.await_ready(node)?))
    }

    /// Whether a cluster's agent runs.
    pub fn runs(&self, member: &Member) -> bool {
        self.sites.get(member.name.as_str()).is_some_and(|site| site.config.is_some())
    }

    /// Takes out pods that have an address of one of these and are another: whose they were, and their addresses.
    pub fn unplug(&mut self, pods: &BTreeSet<Pod>) -> Result<Vec<(Namespace, BTreeSet<IpAddr>)>> {
        let wanted: BTreeSet<_> = pods.iter().flat_map(|pod| &pod.addresses).collect();
        let other = |pod: &&Pod| !pods.contains(pod) && pod.addresses.iter().any(|own| wanted.contains(own));
        let gone: Vec<_> = self.plugged.iter().filter(other).cloned().collect();
        let mut places = Vec::new();
        for pod in gone {
            places.push((self.place(&pod), pod.addresses.clone()));
            self.lab.del_pod(&format!("{PODS}.{}", pod.name()))?;
            self.plugged.remove(&pod);
        }
        Ok(places)
    }

    /// Plugs in pods that are not there yet; whoever is stays.
    pub fn plug(&mut self, members: &[Member], pods: &BTreeSet<Pod>) -> Result<()> {
        let new: Vec<_> = pods.difference(&self.plugged).cloned().collect();
        self.plugged.extend(new.iter().cloned());
        if !new.is_empty() {
            self.write(members)?;
        }
        for pod in new {
            let node = self.sites[&pod.cluster].node.name().to_owned();
            let added = self.lab.add_pod(&node, PodSpec::named(pod.name()).within(PODS))?;
            let got: BTreeSet<_> = added.record.addresses.iter().copied().collect();
            ensure!(pod.addresses.is_subset(&got), "pod {} has {got:?}", pod.name());
        }
        Ok(())
    }

    /// The namespace of a pod.
    pub fn place(&self, pod: &Pod) -> Namespace {
        self.lab.namespace(&format!("{PODS}.{}", pod.name()))
    }

    /// The directory of a cluster's statuses.
    pub fn statuses(&self, cluster: &str) -> PathBuf {
        self.sites[cluster].node.directory().join("status")
    }

    /// What a cluster's agent says of itself.
    pub fn status(&self, cluster: &str) -> Result<Status> {
        status(&self.sites[cluster].node)
    }

    /// Writes all objects for all members, and waits until they are in force with each. A state that says a second time that it is
    /// another one was read whole after the first.
    pub fn settle(&mut self, members: &[Member]) -> Result<()> {
        for _ in 0..2 {
            self.write(members)?;
            let nodes = members.iter().map(|member| &self.sites[member.name.as_str()].node);
            await_revision(nodes, self.revision)?;
        }
        Ok(())
    }

    /// Writes all objects for all of these, as if nobody else was there.
    pub fn write(&mut self, members: &[Member]) -> Result<()> {
        self.revision += 1;
        for observer in members {
            let top = self.lab.manifests_of(self.sites[observer.name.as_str()].number)?;
            let below = top.join("clusters");
            for found in fs::read_dir(&below).into_iter().flatten() {
                let found = found?.path();
                let is_there = members.iter().any(|it| found.ends_with(it.name.as_str()));
                if !is_there {
                    fs::remove_dir_all(&found)?;
                }
            }
            for other in members.iter().filter(|other| other.name != observer.name) {
                let directory = below.join(other.name.as_str());
                fs::create_dir_all(&directory)?;
                write(&directory.join("objects.yaml"), &self.objects(other, false))?;
                match other.lost {
                    Some(age) => fs::write(directory.join("lost"), format!("{}s", age.as_secs()))?,
                    None if directory.join("lost").exists() => fs::remove_file(directory.join("lost"))?,
                    None => {}
                }
            }
            write(&top.join("objects.yaml"), &self.objects(observer, true))?;
        }
        Ok(())
    }

    /// The path that a pod asks for: on a fast node of a mixed lab either, by its address.
    fn path(&self, pod: &Pod) -> Option<&'static str> {
        let is_either = self.datapath == Datapath::Mixed && self.sites[&pod.cluster].number % 2 == 1;
        let last = |address: &IpAddr| match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        let odd = pod.addresses.first().is_some_and(|address| last(address) % 2 == 1);
        is_either.then_some(if odd { "fast" } else { "kernel" })
    }

    /// What is written of a cluster, for itself or for others.
    fn objects(&self, of: &Member, own: bool) -> Vec<Value> {
        let Cluster { id, region, pods, services, .. } = &of.cluster;
        let mut cluster = json!({
            "apiVersion": "causeway.dev/v1alpha1", "kind": "Cluster", "metadata": {"name": of.name},
            "spec": {"id": id, "region": region, "podCIDRs": pods, "serviceCIDRs": services},
        });
        if own {
            cluster["metadata"]["annotations"] = json!({"causeway.dev/revision": self.revision.to_string()});
        }
        let node = &self.sites[of.name.as_str()].node;
        let mut objects = vec![
            cluster,
            node_object(node.name(), &BTreeMap::new(), pods, &node.plan.node.underlay),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PODS}}),
        ];
        let here = self.plugged.iter().filter(|pod| pod.cluster == of.name.as_str());
        objects.extend(here.map(|pod| {
            let told = pod.on(node.name());
            pod_object(&told, &told.ips, self.path(pod), true)
        }));
        let list = of.settings.export_namespaces.clone();
        let list = list.map_or(Namespaces::Default, Namespaces::Only);
        let told = of
            .objects
            .iter()
            .filter(|((kind, name), _)| own || kind != "ServiceExport" || list.allow(&name.namespace));
        objects.extend(told.map(|(_, object)| object.clone()));
        objects
    }
}

/// Lines of an agent's configuration.
fn config(member: &Member) -> Result<String> {
    let Settings { clusterset, export_namespaces, import_namespaces } = &member.settings;
    let mut lines = String::new();
    if let Some(prefixes) = clusterset {
        writeln!(lines, "clusterset_cidr: {}", json!(prefixes))?;
    }
    for (key, list) in [("export_namespaces", export_namespaces), ("import_namespaces", import_namespaces)] {
        if let Some(list) = list {
            writeln!(lines, "{key}: {}", json!(list))?;
        }
    }
    let names = name_server(member);
    if clusterset.as_ref().is_none_or(Vec::is_empty) || names != NameServer::DEFAULT {
        writeln!(lines, "clusterset_dns: [\"{names}\"]")?;
    }
    Ok(lines)
}

/// Where a cluster's nodes answer for names: at an address that its pods can send to.
pub(super) fn name_server(member: &Member) -> IpAddr {
    match member.cluster.pods.iter().any(IpNetwork::is_ipv4) {
        true => NameServer::DEFAULT.into(),
        false => NAMES_V6.into(),
    }
}

/// The node of a cluster.
fn node_name(cluster: &str) -> String {
    format!("{cluster}-n1")
}

/// An address of a cluster's pods that no case gives to anybody.
pub(super) fn spare(prefix: &IpNetwork, number: u16) -> IpAddr {
    match prefix {
        IpNetwork::V4(prefix) => {
            IpAddr::V4((u32::from(prefix.network()) + 0xfe00 + u32::from(number)).into())
        }
        IpNetwork::V6(prefix) => {
            IpAddr::V6((u128::from(prefix.network()) + 0xfe00 + u128::from(number)).into())
        }
    }
}
