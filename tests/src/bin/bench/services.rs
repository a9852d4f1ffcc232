//! What services cost: the compiler and the data paths' tables of a big world, a small change of it until it is in force, and packets.

pub mod in_force;
mod program;
mod rig;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use anyhow::{Result, ensure};
use causeway_model::{NodeId, PortProtocol};
use causeway_services::{Change, Client, Compiler, NodeFacts, Outcome, Read, ask, read, slow};
use serde_json::{Value, json};

use super::finding::{Finding, OURS, Record, Target};
use super::samples::{RUNS, Samples};
use super::scratch::resident;

const SERVICES: usize = 10_000;
/// Endpoints of each, on as many nodes.
const BACKENDS: usize = 10;
const NODES: usize = 100;
const ZONES: usize = 3;
/// Connections that tables and slow evaluator must agree on before anything is measured.
const PROBES: usize = 200;

/// Runs the bench.
pub fn run() -> Result<Vec<Finding>> {
    let mut findings = program::run()?;
    let (compiled, compiler) = compile()?;
    findings.extend(compiled);
    findings.extend(tables::run(compiler)?);
    findings.extend(in_force::run()?);
    Ok(findings)
}

/// The compiler alone, which has the big world then.
fn compile() -> Result<(Vec<Finding>, Compiler)> {
    let documents: Vec<Value> =
        (0..SERVICES).flat_map(|number| [service(number, 80), slice(number, BACKENDS)]).collect();
    let (mut door, mut full, mut memory) = (Samples::default(), Samples::default(), Samples::default());
    let mut compiler = Compiler::new(node(0)?);
    for run in 1..=RUNS {
        drop(std::mem::replace(&mut compiler, Compiler::new(node(0)?)));
        let before = own_memory()?;
        let began = Instant::now();
        let mut changes = nodes(0)?;
        for document in &documents {
            changes.push(change(document)?);
        }
        door.push(began.elapsed().as_secs_f64());
        let began = Instant::now();
        let moved = compiler.apply(changes);
        full.push(began.elapsed().as_secs_f64());
        ensure!(moved.backends.len() >= SERVICES, "{} sets of backends", moved.backends.len());
        eprintln!("  services: full compile {:.3} s ({run} of {RUNS})", full.median());
        // Later runs take the memory that the first one has given back.
        if run == 1 {
            memory.push(own_memory()? - before);
        }
    }
    prove(&compiler)?;
    let mut findings = vec![
        finding("everything", ("through the door", "s"), door, Vec::new()),
        finding("everything", ("full compile", "s"), full, vec![Target::AtMost(1.0)]),
        finding("everything", ("memory held after it", "MiB"), memory, Vec::new()),
    ];
    for (what, step, most) in steps() {
        let mut samples = Samples::default();
        for run in 0..2 * RUNS {
            let changes = step(run)?;
            let began = Instant::now();
            let moved = compiler.apply(changes);
            let deltas = moved.deltas(compiler.services());
            samples.push(began.elapsed().as_secs_f64() * 1e3);
            ensure!(!deltas.is_empty(), "{what}: nothing has moved");
        }
        eprintln!("  services: {what} {:.3} ms", samples.median());
        findings.push(finding(
            what,
            ("to what is told", "ms"),
            samples,
            most.map(Target::AtMost).into_iter().collect(),
        ));
    }
    prove(&compiler)?;
    Ok((findings, compiler))
}

fn finding(
    what: &str,
    metric: (&'static str, &'static str),
    samples: Samples,
    targets: Vec<Target>,
) -> Finding {
    let samples = BTreeMap::from([(OURS, samples)]);
    let case =
        vec![("change", what.into()), ("services", SERVICES.into()), ("backends of each", BACKENDS.into())];
    Finding { record: Record::new("services", case, metric, &samples), targets }
}

/// The memory that this process holds, in MiB.
fn own_memory() -> Result<f64> {
    resident(i32::try_from(std::process::id())?)
}

/// Tables and slow evaluator agree, and connections are served.
fn prove(compiler: &Compiler) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut served = 0;
    let own = node(0)?.name;
    for _ in 0..PROBES {
        let number = random.usize(..SERVICES);
        let nodes_port = random.bool();
        let destination = if nodes_port { underlay(0) } else { cluster_ip(number) };
        let port = if nodes_port { 30_000 + random.u16(..2_000) } else { 80 + random.u16(..2) };
        let client = [Client::Pod, Client::Process, Client::Outside][random.usize(..3)];
        let source = IpAddr::from([198, 51, 100, 1]);
        let protocol = PortProtocol::Tcp;
        let connection = slow::Connection { client, node: own.clone(), source, destination, protocol, port };
        let slow = slow::judge(compiler.world(), &connection);
        let fast = ask(compiler.services(), (client, source), (destination, nodes_port), protocol, port);
        ensure!(fast == slow, "{connection:?}: {fast:?}, but {slow:?}");
        served += usize::from(matches!(fast, Outcome::Served(_)));
    }
    ensure!(served > PROBES / 4 && served < PROBES, "{served} of {PROBES} served");
    Ok(())
}

fn node(number: usize) -> Result<NodeId> {
    Ok(NodeId { cluster: "bench".parse()?, name: format!("n{number}").parse()? })
}

fn underlay(number: usize) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, number as u8).into()
}

fn cluster_ip(number: usize) -> IpAddr {
    Ipv4Addr::from(0x0a60_0000 + number as u32).into()
}

/// All nodes; they move by one zone each time.
fn nodes(run: usize) -> Result<Vec<Change>> {
    let fact = |number: usize| {
        let addresses = BTreeSet::from([underlay(number)]);
        let zone = Some(format!("z{}", (number + run) % ZONES));
        Ok(Change::Node(node(number)?.name, Some(NodeFacts { zone, addresses })))
    };
    (0..NODES).map(fact).collect()
}

/// Every fifth has a node port, every tenth serves only what its own nodes have.
fn service(number: usize, port: usize) -> Value {
    let node_port = number.is_multiple_of(5).then_some(30_000 + number / 5);
    let kind = if node_port.is_some() { "NodePort" } else { "ClusterIP" };
    let policy = if number.is_multiple_of(10) { "Local" } else { "Cluster" };
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{number}"), "namespace": format!("ns{}", number % 200)},
        "spec": {"type": kind, "clusterIP": cluster_ip(number), "externalTrafficPolicy": policy,
                 "ports": [{"name": "http", "port": port, "nodePort": node_port}]}})
}

/// Every third has hints of zones.
fn slice(number: usize, backends: usize) -> Value {
    let endpoint = |one: usize| {
        let place = (number + one) % NODES;
        let zones = json!({"forZones": [{"name": format!("z{}", place % ZONES)}]});
        json!({"addresses": [Ipv4Addr::from(0x0a80_0000 + (number * BACKENDS + one) as u32)], "nodeName": format!("n{place}"),
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "hints": if number.is_multiple_of(3) { zones } else { Value::Null }})
    };
    let name = format!("s{number}");
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": format!("ns{}", number % 200), "labels": {"kubernetes.io/service-name": name}},
        "ports": [{"name": "http", "port": 8080}], "endpoints": (0..backends).map(endpoint).collect::<Vec<_>>()})
}

fn change(document: &Value) -> Result<Change> {
    let read = read(document)?;
    ensure!(read.report().problems.is_empty(), "{}", read.report());
    Ok(match read {
        Read::Service(name, service, _) => Change::Service(name, service),
        Read::Slice(name, slice, _) => Change::Slice(name, slice),
    })
}

type Step = fn(usize) -> Result<Vec<Change>>;

/// The small changes, each another one every time, and what each may take: the last is one of everything.
fn steps() -> Vec<(&'static str, Step, Option<f64>)> {
    vec![
        ("one backend", |run| Ok(vec![change(&slice(77, BACKENDS - 1 - run % 2))?]), Some(1.0)),
        ("all backends of a service", |run| Ok(vec![change(&slice(78, run % 2 * BACKENDS))?]), Some(1.0)),
        ("port of a service", |run| Ok(vec![change(&service(79, 81 + run % 2))?]), Some(1.0)),
        (
            "service and slice that are new",
            |run| Ok(vec![change(&service(SERVICES + run, 80))?, change(&slice(SERVICES + run, BACKENDS))?]),
            Some(1.0),
        ),
        ("zone of this node", |run| nodes(run + 1), None),
    ]
}
