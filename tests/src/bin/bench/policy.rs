//! What the policy compiler takes for a big world, and for a small change of it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use causeway_model::policy::{Direction, Traffic, Verdict};
use causeway_model::{NodeId, PodName, PortProtocol};
use causeway_policy::{
    Change, Compiler, Effect, NamedPort, NamespaceId, NodeFacts, PolicyKey, Presence, Workload, WorkloadId,
    read, slow,
};
use serde_json::{Value, json};

use super::finding::{Finding, OURS, Record, Target};
use super::in_force;
use super::samples::{RUNS, Samples};

const NAMESPACES: usize = 200;
/// Pods of a namespace: five replicas each of ten applications.
const PODS: usize = 50;
const APPS: usize = 10;
/// NetworkPolicies of a namespace.
const POLICIES: usize = 5;
const CLUSTER_POLICIES: usize = 100;
const TEAMS: usize = 20;
const NODES: usize = 100;
/// Connections that tables and slow evaluator must agree on before anything is measured.
const PROBES: usize = 400;

/// Runs the bench.
pub fn run() -> Result<Vec<Finding>> {
    let world = World::new()?;
    let mut full = Samples::default();
    let mut memory = Samples::default();
    let mut compiler = Compiler::new(node(0)?, 0);
    for run in 1..=RUNS {
        drop(std::mem::replace(&mut compiler, Compiler::new(node(0)?, 0)));
        let changes = world.changes.clone();
        let before = resident()?;
        let began = Instant::now();
        compiler.apply(changes);
        let took = began.elapsed().as_secs_f64();
        eprintln!("  policy: full compile {took:.3} s ({run} of {RUNS})");
        full.push(took);
        // Later runs take the memory that the first one has given back.
        if run == 1 {
            memory.push((resident()? - before) / f64::from(1 << 20));
        }
    }
    prove(&compiler)?;
    let stages = compiler.book().stages.len();
    eprintln!("  policy: {stages} stages, {} rules", compiler.book().rules.len());
    let mut findings = vec![
        finding("everything", ("full compile", "s"), full, Target::AtMost(1.0)),
        finding("everything", ("memory held after it", "MiB"), memory, Target::AtMost(200.0)),
    ];
    for (what, mut step) in world.steps()? {
        let (mut samples, mut moves) = (Samples::default(), 0);
        for run in 0..2 * RUNS {
            let change = step(run)?;
            let began = Instant::now();
            let moved = compiler.apply(change);
            samples.push(began.elapsed().as_secs_f64() * 1e3);
            moves += usize::from(moved != Default::default());
        }
        // No policy may tell one label from the next.
        ensure!(moves > 0, "{what}: nothing has moved");
        eprintln!("  policy: {what} {:.3} ms", samples.median());
        findings.push(finding(what, ("to new tables", "ms"), samples, Target::AtMost(5.0)));
    }
    prove(&compiler)?;
    findings.extend(in_force::run()?);
    Ok(findings)
}

fn finding(what: &str, metric: (&'static str, &'static str), samples: Samples, target: Target) -> Finding {
    let samples = BTreeMap::from([(OURS, samples)]);
    let case = vec![
        ("change", what.into()),
        ("endpoints", (NAMESPACES * PODS).into()),
        ("policies", (NAMESPACES * POLICIES).into()),
        ("cluster policies", CLUSTER_POLICIES.into()),
    ];
    Finding { record: Record::new("policy", case, metric, &samples), targets: vec![target] }
}

/// The memory that this process holds, in bytes.
fn resident() -> Result<f64> {
    let text = fs::read_to_string("/proc/self/statm").context("reading /proc/self/statm")?;
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok());
    Ok(pages.context("no resident pages in /proc/self/statm")? * 4096.0)
}

/// Tables and slow evaluator agree, and both let through and deny.
fn prove(compiler: &Compiler) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut denied = 0;
    for _ in 0..PROBES {
        let (pod, peer) = (random.usize(..NAMESPACES * PODS), random.usize(..NAMESPACES * PODS));
        let direction = Direction::BOTH[random.usize(..2)];
        let port = [80, 81, 443, 8080, 9100, 5353][random.usize(..6)];
        let traffic = Traffic::To(PortProtocol::ALL[random.usize(..3)], port);
        let peer = if random.u8(..5) == 0 { Ipv4Addr::new(203, 0, 113, 9).into() } else { address(peer) };
        let id = pod_id(pod)?;
        let fast = compiler.decide(&id, direction, peer, traffic).context("no such endpoint")?;
        let (verdict, reason) =
            slow::judge(compiler.world(), &id, direction, peer, traffic).context("no such endpoint")?;
        ensure!(
            fast.verdict == verdict && reason.is(fast.rule, &compiler.book().rules),
            "{id:?} {direction} {peer} {traffic:?}: {fast:?}, but {verdict} by {reason:?}"
        );
        denied += usize::from(verdict == Verdict::Deny);
    }
    ensure!(denied > PROBES / 10 && denied < PROBES, "{denied} of {PROBES} denied: a world without policy");
    Ok(())
}

fn node(index: usize) -> Result<NodeId> {
    Ok(NodeId { cluster: "bench".parse()?, name: format!("n{index}").parse()? })
}

fn address(pod: usize) -> IpAddr {
    Ipv4Addr::new(10, 70 + (pod >> 16) as u8, (pod >> 8) as u8, pod as u8).into()
}

fn namespace_of(pod: usize) -> usize {
    pod / PODS
}

fn pod_id(pod: usize) -> Result<WorkloadId> {
    let name = PodName { namespace: format!("ns{}", namespace_of(pod)), name: format!("pod{pod}") };
    Ok(WorkloadId::Pod("bench".parse()?, name))
}

fn workload(pod: usize, app: &str) -> Workload {
    let ports = [("http", 8080), ("metrics", 9100)];
    let ports =
        ports.map(|(name, port)| NamedPort { name: name.to_owned(), protocol: PortProtocol::Tcp, port });
    let labels =
        [("app", app.to_owned()), ("tier", format!("t{}", pod % 3)), ("rel", format!("r{}", pod % 2))];
    Workload {
        labels: labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        addresses: [address(pod)].into(),
        ports: ports.into(),
        presence: Presence::Living,
        local: true,
    }
}

fn labels_of_namespace(namespace: usize, team: usize) -> BTreeMap<String, String> {
    let labels = [("team", format!("team{}", team % TEAMS)), ("stage", format!("s{}", namespace % 3))];
    labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn app(pod: usize) -> String {
    format!("app{}", pod % APPS)
}

/// Everything at once.
struct World {
    changes: Vec<Change>,
}

type Step = Box<dyn FnMut(usize) -> Result<Vec<Change>>>;

impl World {
    fn new() -> Result<Self> {
        let mut changes = vec![Change::Clusters(vec!["10.64.0.0/10".parse()?])];
        for index in 0..NODES {
            let labels = [("zone".to_owned(), format!("z{}", index % 3))].into();
            let addresses = [Ipv4Addr::new(192, 0, 2, index as u8).into()].into();
            changes.push(Change::Node(node(index)?, Some(NodeFacts { labels, addresses })));
        }
        for index in 0..NAMESPACES {
            let id = NamespaceId { cluster: "bench".parse()?, name: format!("ns{index}") };
            changes.push(Change::Namespace(id, Some(labels_of_namespace(index, index))));
        }
        for pod in 0..NAMESPACES * PODS {
            changes.push(Change::Workload(pod_id(pod)?, Some(workload(pod, &app(pod)))));
        }
        for namespace in 0..NAMESPACES {
            for index in 0..POLICIES {
                changes.push(policy(&network_policy(namespace, index, 0))?);
            }
        }
        for index in 0..CLUSTER_POLICIES {
            changes.push(policy(&cluster_policy(index, 0))?);
        }
        Ok(Self { changes })
    }

    /// The small changes; each is another one every time.
    fn steps(&self) -> Result<Vec<(&'static str, Step)>> {
        let new = |run: usize| NAMESPACES * PODS + run;
        let one = |pod: usize, workload| Ok(vec![Change::Workload(pod_id(pod)?, Some(workload))]);
        let added = move |run: usize| {
            let name = PodName { namespace: "ns7".to_owned(), name: format!("new{run}") };
            let id = WorkloadId::Pod("bench".parse()?, name);
            Ok(vec![Change::Workload(id, Some(workload(new(run), "app3")))])
        };
        let unlike = move |run: usize| {
            let name = PodName { namespace: "ns8".to_owned(), name: format!("new{run}") };
            let id = WorkloadId::Pod("bench".parse()?, name);
            Ok(vec![Change::Workload(id, Some(workload(new(run + 1000), &format!("new{run}"))))])
        };
        let relabelled = move |run: usize| one(77, workload(77, &format!("app{}", 1 + run % 9)));
        let namespace = |run: usize| {
            let id = NamespaceId { cluster: "bench".parse()?, name: "ns9".to_owned() };
            Ok(vec![Change::Namespace(id, Some(labels_of_namespace(9, run)))])
        };
        let changed = |run: usize| Ok(vec![policy(&network_policy(10, 1, run + 1))?]);
        let cluster = |run: usize| Ok(vec![policy(&cluster_policy(11, run + 1))?]);
        Ok(vec![
            ("pod like others", Box::new(added)),
            ("pod like none", Box::new(unlike)),
            ("label of a pod", Box::new(relabelled)),
            ("label of a namespace", Box::new(namespace)),
            ("NetworkPolicy", Box::new(changed)),
            ("ClusterNetworkPolicy", Box::new(cluster)),
        ])
    }
}

fn policy(document: &Value) -> Result<Change> {
    let read = read(document)?;
    ensure!(read.report.effect == Effect::Whole, "{}", read.report);
    let key: PolicyKey = read.report.policy;
    Ok(Change::Policy(key, read.policy))
}

/// Five kinds of policy that namespaces have; `version` changes a port of it.
fn network_policy(namespace: usize, index: usize, version: usize) -> Value {
    let app = |index: usize| json!({"matchLabels": {"app": format!("app{}", (namespace + index) % APPS)}});
    let spec = match index {
        0 => json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
        1 => json!({"podSelector": app(0), "ingress": [
            {"from": [{"podSelector": app(1)}, {"podSelector": app(2)}], "ports": [{"port": "http"}]},
            {"from": [{"namespaceSelector": {"matchLabels": {"team": format!("team{}", (namespace + 3) % TEAMS)}},
                       "podSelector": app(4)}], "ports": [{"port": 8000 + version, "endPort": 8100 + version}]}]}),
        2 => {
            json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["app1", "app2", "app3"]}]},
                    "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"stage": format!("s{}", namespace % 3)}}}],
                                 "ports": [{"port": 80}, {"port": 443}]}]})
        }
        3 => json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
            {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ns0"}}}],
             "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53}]},
            {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "192.168.0.0/16"]}}]}]}),
        _ => json!({"podSelector": app(5), "policyTypes": ["Ingress", "Egress"],
                    "ingress": [{"from": [{"ipBlock": {"cidr": format!("10.{}.0.0/16", namespace), "except": [format!("10.{namespace}.7.0/24")]}}]}],
                    "egress": [{"to": [{"podSelector": {}}]}]}),
    };
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
           "metadata": {"name": format!("p{index}"), "namespace": format!("ns{namespace}")}, "spec": spec})
}

/// Half of them Admin, half Baseline; every fourth is for the whole cluster, the others for a team.
fn cluster_policy(index: usize, version: usize) -> Value {
    let team = |index: usize| json!({"matchLabels": {"team": format!("team{}", index % TEAMS)}});
    let subject = if index.is_multiple_of(4) { json!({}) } else { team(index) };
    let pods = json!({"namespaceSelector": team(index + 1), "podSelector": {"matchLabels": {"app": format!("app{}", index % APPS)}}});
    let spec = json!({
        "tier": if index.is_multiple_of(2) { "Admin" } else { "Baseline" },
        "priority": index * 10,
        "subject": {"namespaces": subject},
        "ingress": [
            {"action": "Accept", "from": [{"pods": pods}], "protocols": [{"tcp": {"destinationPort": {"number": 9000 + version}}}]},
            {"action": "Pass", "from": [{"namespaces": team(index + 2)}], "protocols": [{"tcp": {"destinationPort": {"number": 80}}}]},
            {"action": "Deny", "from": [{"namespaces": team(index + 3)}], "protocols": [{"udp": {"destinationPort": {"range": {"start": 5000 + index, "end": 6000}}}}]}],
        "egress": [
            {"action": "Deny", "to": [{"networks": [format!("169.254.{index}.0/24")]}]},
            {"action": "Deny", "to": [{"nodes": {"matchLabels": {"zone": format!("z{}", index % 3)}}}],
             "protocols": [{"tcp": {"destinationPort": {"number": 10250 + version}}}]}],
    });
    json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
           "metadata": {"name": format!("c{index:03}")}, "spec": spec})
}
