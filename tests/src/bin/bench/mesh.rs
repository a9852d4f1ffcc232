//! What services across clusters cost: a big mesh settled at once, one backend of it changed, and how soon that is in force.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use causeway_mesh::read::{self, Written};
use causeway_mesh::{Change, Config, Memory, ServiceName, World};
use causeway_model::{Cluster, ClusterName, Family};
use causeway_tests::lab::{Datapath, Lab, Pod};
use serde_json::{Value, json};

use super::finding::{Finding, OURS, Record, Target};
use super::samples::{RUNS, Samples};
use super::services::in_force::{self, PORT, measure};
use super::stand::Stand;

const CLUSTERS: u8 = 10;
const IMPORTS: usize = 1_000;
/// Of each import in each cluster.
const BACKENDS: usize = 3;
/// Services of a cluster in one file.
const IN_A_FILE: usize = 100;
const NAMESPACE: &str = "bench";
const CLUSTERSET: &str = "172.30.0.0/16";

/// Runs the bench.
pub fn run() -> Result<Vec<Finding>> {
    let mut findings = settled()?;
    let stands =
        [("fast", "bench-mesh-f", Datapath::Fast, 10.0), ("kernel", "bench-mesh-k", Datapath::Kernel, 50.0)];
    for (path, name, datapath, most) in stands {
        let stand = Stand::up(name, datapath, |spec| {
            spec.clusters = 2;
            spec.fastpath = vec!["--memory".into(), "slow".into()];
            spec.config.push(format!("clusterset_cidr: [{CLUSTERSET}]"));
        })?;
        let (read, changed) = measure(path, &stand.lab, world(&stand.lab)?)?;
        known(&stand.lab)?;
        let mut worst = Samples::default();
        worst.push(changed.max());
        let everything = finding("everything", ("from files to an answer", "s"), read, None);
        let middle = finding("one backend", ("from a file to an answer", "ms"), changed, Some(most));
        let worst = finding("one backend", ("from a file to an answer, worst", "ms"), worst, None);
        findings.extend([everything, middle, worst].map(|mut finding| {
            finding.record.case.push(("path", path.into()));
            finding
        }));
    }
    Ok(findings)
}

/// The engine alone: everything, and one backend of it.
fn settled() -> Result<Vec<Finding>> {
    let (mut door, mut whole, mut one) = (Samples::default(), Samples::default(), Samples::default());
    let documents: Vec<_> =
        (1..=CLUSTERS).flat_map(|id| (0..IMPORTS).map(move |number| (id, objects(id, number)))).collect();
    let mut last = None;
    for run in 1..=RUNS {
        drop(last.take());
        let began = Instant::now();
        let mut changes = vec![
            Change::Config(Config { clusterset: vec![CLUSTERSET.parse()?], ..Config::default() }),
            Change::Namespace(cluster_name(1)?, NAMESPACE.to_owned(), true),
        ];
        for id in 1..=CLUSTERS {
            changes.push(Change::Cluster(cluster_name(id)?, Some((cluster(id)?, None))));
        }
        for (id, objects) in &documents {
            for object in objects {
                changes.push(change(*id, object)?);
            }
        }
        door.push(began.elapsed().as_secs_f64());
        let mut world = World::new(cluster_name(1)?, Memory::default());
        let began = Instant::now();
        changes.into_iter().for_each(|change| world.apply(change));
        let moved = world.settle();
        whole.push(began.elapsed().as_secs_f64());
        ensure!(moved.imports.len() == IMPORTS, "{} imports", moved.imports.len());
        eprintln!("  mesh: everything settled in {:.3} s ({run} of {RUNS})", whole.median());
        last = Some(world);
    }
    let mut world = last.context("no run")?;
    prove(&world)?;
    for run in 0..4 * RUNS {
        let change = change(7, &slice(7, 500, BACKENDS - 1 - run % 2))?;
        let began = Instant::now();
        world.apply(change);
        let moved = world.settle();
        one.push(began.elapsed().as_secs_f64() * 1e3);
        ensure!(moved.imports.len() == 1, "{} imports have moved", moved.imports.len());
    }
    eprintln!("  mesh: one backend settled in {:.3} ms", one.median());
    Ok(vec![
        finding("everything", ("through the door", "s"), door, None),
        finding("everything", ("settled", "s"), whole, Some(1.0)),
        finding("one backend", ("settled", "ms"), one, None),
    ])
}

/// Every import has an address of its own, and all its backends.
fn prove(world: &World) -> Result<()> {
    let addresses: BTreeSet<_> = world.imports().values().flat_map(|import| &import.addresses).collect();
    ensure!(addresses.len() == IMPORTS, "{} addresses", addresses.len());
    for (name, import) in world.imports() {
        let backends = import.backends.get(&(Family::V4, 0)).map_or(0, Vec::len);
        ensure!(backends == usize::from(CLUSTERS) * BACKENDS, "{name} has {backends} backends");
    }
    Ok(())
}

fn finding(what: &str, metric: (&'static str, &'static str), samples: Samples, most: Option<f64>) -> Finding {
    let samples = BTreeMap::from([(OURS, samples)]);
    let case = vec![
        ("change", what.into()),
        ("imports", IMPORTS.into()),
        ("clusters", CLUSTERS.into()),
        ("backends of each", (usize::from(CLUSTERS) * BACKENDS).into()),
    ];
    let targets = most.map(Target::AtMost).into_iter().collect();
    Finding { record: Record::new("mesh", case, metric, &samples), targets }
}

/// All clusters as the first node's directory has them: the node's own on top, the others below. What changes is the second's, whose
/// node is there.
fn world(lab: &Lab) -> Result<in_force::World<'static>> {
    let top = lab.manifests_of(1)?;
    let status = lab.node("n1")?.directory().join("status/ServiceImport_default_web.json");
    let directory = move |id: u8| match id {
        1 => top.clone(),
        _ => top.join(format!("clusters/c{id}")),
    };
    let second = directory(2);
    for id in 3..=CLUSTERS {
        fs::create_dir_all(directory(id))?;
    }
    let changing = vec![service("default", "web", [10, 97, 7, 1].into()), export("default", "web")];
    let mut files = vec![(second.join("changing.yaml"), changing)];
    for id in 1..=CLUSTERS {
        // Those that the lab has are described by it.
        if id > 2 {
            files.push((directory(id).join("cluster.yaml"), vec![cluster_object(id)]));
        }
        files.push((
            directory(id).join("namespace-bench.yaml"),
            vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})],
        ));
    }
    let all = (1..=CLUSTERS).flat_map(|id| (0..IMPORTS).step_by(IN_A_FILE).map(move |number| (id, number)));
    let services = all.map(move |(id, number)| {
        let documents = (number..number + IN_A_FILE).flat_map(|number| objects(id, number));
        (directory(id).join(format!("world-{number}.yaml")), documents.collect())
    });
    Ok(in_force::World {
        what: format!("{IMPORTS} imports of {CLUSTERS} clusters"),
        files: Box::new(files.into_iter().chain(services)),
        node: "n2",
        slice: second.join("changing-slice.yaml"),
        served_by,
        target: Box::new(move || {
            let Ok(text) = fs::read(&status) else { return Ok(None) };
            let import: Value = serde_json::from_slice(&text)?;
            let address = import.pointer("/spec/ips/0").and_then(Value::as_str);
            address.map(|address| Ok(SocketAddr::new(address.parse()?, 80))).transpose()
        }),
    })
}

/// The agent has every import, and nothing to complain about.
fn known(lab: &Lab) -> Result<()> {
    let node = lab.node("n1")?;
    let status = node.status()?;
    ensure!(status.problems.is_empty(), "{:?}", status.problems);
    // Those of the node's own cluster are there at their own addresses, too.
    let (known, wanted) = (node.services("")?.len(), 2 * IMPORTS + 1);
    ensure!(known == wanted, "the agent knows {known} services, not {wanted}");
    Ok(())
}

fn cluster_name(id: u8) -> Result<ClusterName> {
    Ok(format!("c{id}").parse()?)
}

/// As the lab has its own.
fn cluster_object(id: u8) -> Value {
    json!({"apiVersion": "causeway.dev/v1alpha1", "kind": "Cluster", "metadata": {"name": format!("c{id}")},
        "spec": {"id": id, "podCIDRs": [format!("10.{}.0.0/16", 69 + id)], "serviceCIDRs": [format!("10.{}.0.0/16", 95 + id)]}})
}

fn cluster(id: u8) -> Result<Cluster> {
    let prefix = |net: u8| Ok::<_, anyhow::Error>(vec![format!("10.{net}.0.0/16").parse()?]);
    let (pod_prefixes, service_prefixes) = (prefix(69 + id)?, prefix(95 + id)?);
    Ok(Cluster { name: cluster_name(id)?, id: id.into(), region: None, pod_prefixes, service_prefixes })
}

/// A service that a cluster exports, and who serves it there.
fn objects(id: u8, number: usize) -> [Value; 3] {
    let name = format!("s{number}");
    let [high, low] = (number as u16).to_be_bytes();
    [
        service(NAMESPACE, &name, [10, 95 + id, 128 + high, low].into()),
        slice(id, number, BACKENDS),
        export(NAMESPACE, &name),
    ]
}

fn service(namespace: &str, name: &str, address: Ipv4Addr) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
                 "ports": [{"name": "http", "port": 80, "targetPort": PORT, "protocol": "TCP"}]}})
}

fn export(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport", "metadata": {"name": name, "namespace": namespace}})
}

fn slice(id: u8, number: usize, backends: usize) -> Value {
    let place = |one: usize| {
        let [high, low] = ((number * BACKENDS + one) as u16).to_be_bytes();
        Ipv4Addr::new(10, 69 + id, 128 + high, low)
    };
    let endpoints: Vec<_> = (0..backends).map(|one| endpoint(place(one).into(), "elsewhere")).collect();
    slice_of((NAMESPACE, &format!("s{number}")), &endpoints)
}

fn served_by(pod: &Pod) -> Value {
    slice_of(("default", "web"), &[endpoint(pod.address(Family::V4), &pod.record.node)])
}

fn endpoint(address: IpAddr, node: &str) -> Value {
    json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true, "serving": true, "terminating": false}})
}

fn slice_of((namespace, service): (&str, &str), endpoints: &[Value]) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{service}-1"), "namespace": namespace, "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"name": "http", "port": PORT, "protocol": "TCP"}], "endpoints": endpoints})
}

/// An object as the engine hears of it.
fn change(id: u8, object: &Value) -> Result<Change> {
    let cluster = cluster_name(id)?;
    let of = |metadata: &Value| -> Result<ServiceName> {
        let text = |field: &str| metadata[field].as_str().map(str::to_owned).context("no name");
        Ok(ServiceName { namespace: text("namespace")?, name: text("name")? })
    };
    let name = of(&object["metadata"])?;
    Ok(match object["kind"].as_str() {
        Some("Service") => {
            Change::Service(cluster, name, read::service(&serde_json::from_value(object.clone())?).object)
        }
        Some("EndpointSlice") => {
            let slice = read::slice(&serde_json::from_value(object.clone())?).context("nobody's slice")?;
            Change::Slice(cluster, name, slice.object)
        }
        _ => match read::read(object)? {
            Written::Export(export) => Change::Export(cluster, name, export.object),
            other => bail!("{other:?}"),
        },
    })
}
