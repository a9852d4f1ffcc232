//! The topology of a file of cases in a lab: nodes with real agents, pods by real CNI calls, and hosts outside.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use causeway_model::operator::Status;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::{Namespace, Node, Pod};
use crate::lab::{self, Datapath, Lab, LabSpec, Place, PodSpec};
use crate::namespace;

/// How many labs this process has made.
static LABS: AtomicU32 = AtomicU32::new(0);

/// How long agents may take until they have taken up a state.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often they are asked meanwhile.
const LOOK: Duration = Duration::from_millis(5);

/// What a lab shall be made of.
pub(crate) struct Plan<'a> {
    pub datapath: Datapath,
    pub nodes: &'a BTreeMap<String, Node>,
    /// The prefixes of each node's pods.
    pub prefixes: BTreeMap<String, Vec<IpNetwork>>,
    /// The pods that there are at first.
    pub pods: &'a [Pod],
    /// Hosts outside and their addresses.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    /// Whether hosts outside know the way to pods.
    pub pods_are_routed: bool,
}

/// All that there is, as objects tell it.
pub(crate) struct Scene<'a> {
    pub nodes: &'a BTreeMap<String, Node>,
    pub namespaces: &'a BTreeMap<String, Namespace>,
    pub pods: &'a BTreeMap<String, Pod>,
    /// What objects say besides, by kind and name; pods by `namespace/name`.
    pub said: BTreeMap<(&'static str, String), Value>,
    /// What the Cluster's object says besides.
    pub cluster: Value,
    /// All other objects.
    pub others: Vec<Value>,
}

impl Scene<'_> {
    /// An object with what is said of it besides.
    fn besides(&self, kind: &'static str, name: &str, mut object: Value) -> Value {
        if let Some(said) = self.said.get(&(kind, name.to_owned())) {
            merge(&mut object, said);
        }
        object
    }
}

/// Nodes and hosts of a file's topology, on which its cases happen one after the other.
pub(crate) struct Ground {
    lab: Lab,
    nodes: BTreeMap<String, lab::Node>,
    prefixes: BTreeMap<String, Vec<IpNetwork>>,
    /// The path that pods ask for, where they do.
    paths: BTreeMap<String, &'static str>,
    /// What is plugged in.
    plugged: BTreeMap<String, Pod>,
    /// All objects, in one file: agents see all of a state or nothing of it.
    objects: PathBuf,
    revision: u64,
}

impl Ground {
    /// Makes nodes and hosts. Pods come with the first case.
    pub fn build(plan: &Plan<'_>, scene: &Scene<'_>) -> Result<Self> {
        let order = in_order(plan);
        let place = |name: &&str| -> Result<Place> {
            let (addresses, pod_prefixes) = (plan.nodes[*name].ips.clone(), plan.prefixes[*name].clone());
            Ok(Place { name: name.parse()?, addresses, pod_prefixes })
        };
        let lab = bare_lab(plan.datapath, order.iter().map(place).collect::<Result<_>>()?, 1)?;
        let nodes = order.iter().map(|name| Ok(((*name).to_owned(), lab.node(name)?)));
        let nodes = nodes.collect::<Result<BTreeMap<_, _>>>()?;
        let objects = lab.manifests_of(1)?.join("objects.yaml");
        let paths = if plan.datapath == Datapath::Mixed { paths(plan, &order) } else { BTreeMap::new() };
        let (prefixes, plugged, revision) = (plan.prefixes.clone(), BTreeMap::new(), 0);
        let mut ground = Self { lab, nodes, prefixes, paths, plugged, objects, revision };
        ground.lead(plan)?;
        ground.write(scene)?;
        for node in ground.nodes.values() {
            ground.lab.launch(node)?;
        }
        ground.nodes.values().try_for_each(|node| ground.lab.await_ready(node))?;
        Ok(ground)
    }

    /// Makes the hosts outside, and the ways between all that is on the wire.
    fn lead(&self, plan: &Plan<'_>) -> Result<()> {
        let mut to_nodes = String::new();
        for (name, node) in &self.nodes {
            let mut ways = String::new();
            for address in &plan.nodes[name].second_ips {
                writeln!(ways, "addr add {address} dev eth0")?;
            }
            let others = self.nodes.iter().filter(|(other, _)| *other != name);
            let others = others.flat_map(|(other, there)| {
                let known = [IpAddr::V4(there.plan.v4), IpAddr::V6(there.plan.v6)];
                known.into_iter().chain(plan.nodes[other].second_ips.iter().copied())
            });
            for address in others.chain(plan.hosts.values().flatten().copied()) {
                writeln!(ways, "route replace {address} dev eth0")?;
            }
            node.namespace().ip_batch(&ways)?;
            let (v4, v6) = (node.plan.v4, node.plan.v6);
            writeln!(to_nodes, "route replace {v4} dev eth0\nroute replace {v6} dev eth0")?;
            for address in &plan.nodes[name].second_ips {
                writeln!(to_nodes, "route replace {address} dev eth0")?;
            }
            for prefix in self.prefixes[name].iter().filter(|_| plan.pods_are_routed) {
                let via = if prefix.is_ipv4() { IpAddr::V4(v4) } else { IpAddr::V6(v6) };
                writeln!(to_nodes, "route replace {prefix} via {via} dev eth0 onlink")?;
            }
        }
        for (name, addresses) in &plan.hosts {
            let place = self.lab.add_host(&host_name(name), addresses)?;
            place.ip_batch(&to_nodes)?;
        }
        Ok(())
    }

    /// The namespace of a pod.
    pub fn pod_place(&self, pod: &Pod) -> namespace::Namespace {
        self.lab.namespace(&if pod.host_network { pod.node.clone() } else { thing(&pod.id) })
    }

    /// The namespace of a node.
    pub fn node_place(&self, name: &str) -> namespace::Namespace {
        self.lab.namespace(name)
    }

    /// The namespace of a host outside.
    pub fn host_place(&self, name: &str) -> namespace::Namespace {
        self.lab.namespace(&host_name(name))
    }

    /// Plugs in the pods that are there, and unplugs those that are not any more or not as they were; `forget` is told of the
    /// namespaces that go.
    pub fn plug(&mut self, scene: &Scene<'_>, mut forget: impl FnMut(&str)) -> Result<()> {
        let same = |one: &Pod, other: &Pod| one.node == other.node && one.ips == other.ips;
        let wanted =
            |pod: &Pod| scene.pods.get(&pod.id).is_some_and(|now| !now.host_network && same(now, pod));
        let gone: Vec<_> =
            self.plugged.values().filter(|pod| !wanted(pod)).map(|pod| pod.id.clone()).collect();
        for id in gone {
            forget(self.lab.namespace(&thing(&id)).name());
            self.lab.del_pod(&thing(&id))?;
            self.plugged.remove(&id);
        }
        let new = scene.pods.values().filter(|pod| !pod.host_network && !self.plugged.contains_key(&pod.id));
        let new: Vec<_> = new.cloned().collect();
        if !new.is_empty() {
            self.write(scene)?;
        }
        for pod in new {
            let (namespace, name) = pod.id.split_once('/').context("a pod without a namespace")?;
            let added = self.lab.add_pod(&pod.node, PodSpec::named(name).within(namespace))?;
            let got = &added.record.addresses;
            let has = |ip: &IpAddr| got.contains(ip);
            ensure!(pod.ips.iter().all(has), "pod {} has {got:?}, not {:?}", pod.id, pod.ips);
            self.plugged.insert(pod.id.clone(), pod);
        }
        Ok(())
    }

    /// Writes all objects, and waits until they are in force on every node.
    pub fn settle(&mut self, scene: &Scene<'_>) -> Result<()> {
        self.write(scene)?;
        await_revision(self.nodes.values(), self.revision)
    }

    /// What every node says of itself.
    pub fn statuses(&self) -> Result<BTreeMap<&str, Status>> {
        self.nodes.iter().map(|(name, node)| Ok((name.as_str(), status(node)?))).collect()
    }

    fn write(&mut self, scene: &Scene<'_>) -> Result<()> {
        self.revision += 1;
        let mut cluster = json!({
            "apiVersion": "causeway.dev/v1alpha1", "kind": "Cluster", "spec": {"id": 1},
            "metadata": {"name": "c1", "annotations": {"causeway.dev/revision": self.revision.to_string()}},
        });
        merge(&mut cluster, &scene.cluster);
        let mut objects = vec![cluster];
        for (name, node) in scene.nodes {
            let object = node_object(name, &node.labels, &self.prefixes[name], &node.ips);
            objects.push(scene.besides("Node", name, object));
        }
        for (name, namespace) in scene.namespaces {
            let metadata = json!({"name": name, "labels": namespace.labels});
            objects.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}));
        }
        for pod in scene.pods.values() {
            let own = if pod.host_network { &scene.nodes[&pod.node].ips } else { &pod.ips };
            let runs = pod.host_network || self.plugged.contains_key(&pod.id);
            let path = self.paths.get(&pod.id).copied();
            objects.push(scene.besides("Pod", &pod.id, pod_object(pod, own, path, runs)));
        }
        objects.extend(scene.others.iter().cloned());
        write(&self.objects, &objects)
    }
}

/// A lab with nodes at these places, dealt to so many clusters in turn. Agents and objects come later.
pub(crate) fn bare_lab(datapath: Datapath, places: Vec<Place>, clusters: usize) -> Result<Lab> {
    let number = LABS.fetch_add(1, Ordering::Relaxed);
    let mut spec = LabSpec::named(format!("c{}-{number}", std::process::id()));
    (spec.nodes, spec.clusters, spec.places, spec.datapath) = (places.len(), clusters, places, datapath);
    (spec.agents, spec.objects) = (false, false);
    // Tens of thousands of connections that nobody needs any more.
    spec.config.push("connection_timeouts: {tcp-closed: 3, udp: 10, udp-stream: 10}".into());
    Lab::up(spec).context("making the lab")
}

/// Waits until a state is in force on nodes.
pub(crate) fn await_revision<'a>(
    nodes: impl IntoIterator<Item = &'a lab::Node>,
    revision: u64,
) -> Result<()> {
    let (revision, deadline) = (revision.to_string(), Instant::now() + PATIENCE);
    for node in nodes {
        loop {
            let Status { source, waiting_for, problems, .. } = status(node)?;
            if source.revision.as_ref() == Some(&revision) {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "node {} has not taken up the objects: it waits for {waiting_for:?}; {problems:?}",
                node.name()
            );
            std::thread::sleep(LOOK);
        }
    }
    Ok(())
}

/// Writes objects to a file, if it says something else: whole, so that agents see all of a state or nothing of it.
pub(crate) fn write(file: &Path, objects: &[Value]) -> Result<()> {
    // JSON is YAML's flow style.
    let text = objects.iter().map(|object| format!("---\n{object}\n")).collect::<String>();
    if fs::read_to_string(file).is_ok_and(|before| before == text) {
        return Ok(());
    }
    let aside = file.with_file_name(".objects.aside");
    Ok(fs::write(&aside, text).and_then(|()| fs::rename(&aside, file))?)
}

/// A node as Kubernetes has it.
pub(crate) fn node_object(
    name: &str,
    labels: &BTreeMap<String, String>,
    prefixes: &[IpNetwork],
    addresses: &[IpAddr],
) -> Value {
    let addresses: Vec<_> = addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
        "spec": {"podCIDRs": prefixes}, "status": {"addresses": addresses},
    })
}

/// A pod as Kubernetes has it, with the addresses that it has or its node has, and the path that it asks for.
pub(crate) fn pod_object(pod: &Pod, ips: &[IpAddr], path: Option<&str>, runs: bool) -> Value {
    let (namespace, name) = pod.id.split_once('/').unwrap_or(("default", &pod.id));
    let mut annotations = json!({});
    if !pod.host_network {
        let addresses: Vec<_> = pod.ips.iter().map(ToString::to_string).collect();
        annotations["causeway.dev/addresses"] = addresses.join(", ").into();
    }
    if let Some(path) = path {
        annotations["causeway.dev/path"] = path.into();
    }
    let ports = pod.ports.iter();
    let ports = ports
        .map(|port| json!({"name": port.name, "containerPort": port.port, "protocol": port.protocol}))
        .collect::<Vec<_>>();
    let ips: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    let status = if runs { json!({"phase": "Running", "podIPs": ips}) } else { json!({"phase": "Pending"}) };
    json!({
        "apiVersion": "v1", "kind": "Pod", "status": status,
        "metadata": {"name": name, "namespace": namespace, "labels": pod.labels, "annotations": annotations},
        "spec": {
            "nodeName": pod.node, "hostNetwork": pod.host_network,
            "containers": [{"name": "main", "image": "registry.invalid/pause", "ports": ports}],
        },
    })
}

/// Puts what one object says over another: maps key by key, everything else whole.
fn merge(object: &mut Value, over: &Value) {
    match (object, over) {
        (Value::Object(fields), Value::Object(over)) => {
            for (key, value) in over {
                merge(fields.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        // Nothing is said.
        (_, Value::Null) => {}
        (object, over) => *object = over.clone(),
    }
}

/// What an agent says, on a machine that may do much else.
pub(crate) fn status(node: &lab::Node) -> Result<Status> {
    node.status().or_else(|_| node.status()).with_context(|| format!("node {}", node.name()))
}

/// What a pod is called in the lab.
fn thing(id: &str) -> String {
    id.replacen('/', ".", 1)
}

/// What a host outside is called in the lab.
fn host_name(name: &str) -> String {
    format!("ext:{name}")
}

/// The nodes, those that pods are on before the others: in a mixed lab the second one is a kernel node.
fn in_order<'a>(plan: &Plan<'a>) -> Vec<&'a str> {
    let of_pods = plan.pods.iter().filter(|pod| !pod.host_network).map(|pod| pod.node.as_str());
    let mut order = Vec::new();
    for name in of_pods.chain(plan.nodes.keys().map(String::as_str)) {
        if !order.contains(&name) {
            order.push(name);
        }
    }
    order
}

/// On fast nodes of a mixed lab, every other pod is on the kernel path.
fn paths(plan: &Plan<'_>, order: &[&str]) -> BTreeMap<String, &'static str> {
    let mut paths = BTreeMap::new();
    for node in order.iter().step_by(2) {
        let own = plan.pods.iter().filter(|pod| pod.node == **node && !pod.host_network);
        paths.extend(
            own.zip(["fast", "kernel"].into_iter().cycle()).map(|(pod, path)| (pod.id.clone(), path)),
        );
    }
    paths
}
