//! What rules cost a worker: many on one pod, and many policies, beside few and none.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use causeway_model::policy::{Rulebook, Tables};
use causeway_model::{DropReason, Identity, NodeId, PodName};
use causeway_policy::{Change, Compiler, Effect, Presence, Workload, WorkloadId, read};
use serde_json::{Value, json};

use super::connections::ROOM;
use super::fastpath::Options;
use super::finding::{Finding, OURS, Target};
use super::ovs::Ovs;
use super::pipeline::{Case, MIB, OVS, findings_of, measure, passed, ports, start};
use super::samples::{Contender, interleave};
use super::scene::{Direction, PORT, Scene};
use super::scratch::Scratch;

const FLOWS: u32 = 1024;
/// Rules beside OVS, which has none, and what is to be reached of it: encap, decap.
const BESIDE_OVS: (u32, [f64; 2]) = (1000, [3.2, 4.2]);
const FEW: u32 = 10;
const MANY: u32 = 100_000;
const POLICIES: u32 = 1000;
/// Cycles per packet may become so many times what they were.
const MORE: f64 = 1.1;
/// Ourselves with [`FEW`] rules, and with none, among the contenders.
const WITH_FEW: &str = "causeway, 10 rules";
const WITHOUT: &str = "causeway, no policy";
/// Of a NetworkPolicy per direction there may be 65,535.
const RULES_OF_A_POLICY: u32 = 50_000;
/// Frames of the proof, and until they are through.
const SAMPLE: u32 = 256;
const THROUGH: Duration = Duration::from_millis(500);

/// What applies to the pod, and what it makes for the fast path.
#[derive(Clone)]
pub struct Ruled {
    /// Its tables.
    pub tables: Tables,
    /// What the tables refer to.
    pub book: Arc<Rulebook>,
    /// The pod's identity there.
    pub identity: Identity,
}

/// Runs the cases with rules.
pub fn run(scratch: &Scratch, scene: &Scene, ticks: f64) -> Result<Vec<Finding>> {
    let of_rules = |count| scene.ruled_by(&one_pods_rules(count));
    let (thousand, few, many) = (of_rules(BESIDE_OVS.0)?, of_rules(FEW)?, of_rules(MANY)?);
    let policies = scene.ruled_by(&many_policies(POLICIES))?;
    let mut findings = Vec::new();
    for (direction, target) in [Direction::Encap, Direction::Decap].into_iter().zip(BESIDE_OVS.1) {
        let closed = scene.ruled_by(&one_pods_rules(FEW)[..1])?;
        prove(scratch, &closed, direction).with_context(|| format!("{}: a sample", direction.word()))?;
        let file = scratch.file("in.pcap");
        scene.write(direction, FLOWS, &file)?;
        let ours = |name, scene, room| {
            let file = &file;
            Contender::new(name, move || measure(scratch, scene, direction, room, file))
        };
        let case = |tracked, rules, policies| Case { direction, flows: FLOWS, tracked, rules, policies };
        let what = |with: &str| format!("{}, {FLOWS} flows, {with}, Mpps", direction.word());
        let ovs = Contender::new(OVS, || Ovs::measure(scratch, scene, direction, true, &file));
        let rates = interleave(&what("1,000 rules"), &mut [ours(OURS, &thousand, ROOM), ovs])?;
        let targets = vec![Target::TimesPeer(target, OVS)];
        findings.extend(findings_of(&case(true, BESIDE_OVS.0, 0), &rates, targets, ticks));
        // Without connections every packet is judged anew.
        for (tracked, room) in [(true, ROOM), (false, 0)] {
            let with = if tracked { "rules" } else { "rules asked for each packet" };
            let both = &mut [ours(OURS, &many, room), ours(WITH_FEW, &few, room)];
            let rates = interleave(&what(with), both)?;
            let [mpps, mut cycles] = findings_of(&case(tracked, MANY, 0), &rates, Vec::new(), ticks);
            cycles.targets.extend(tracked.then_some(Target::ShareOfPeer(MORE, WITH_FEW)));
            findings.extend([mpps, cycles]);
        }
        let both = &mut [ours(OURS, &policies, ROOM), ours(WITHOUT, scene, ROOM)];
        let rates = interleave(&what("1,000 policies"), both)?;
        let [mpps, mut cycles] = findings_of(&case(true, 0, POLICIES), &rates, Vec::new(), ticks);
        cycles.targets.push(Target::ShareOfPeer(MORE, WITHOUT));
        findings.extend([mpps, cycles]);
    }
    Ok(findings)
}

/// With the same rules less the one that lets the flows in, each of their frames is denied.
fn prove(scratch: &Scratch, closed: &Scene, direction: Direction) -> Result<()> {
    let file = scratch.file("denied.pcap");
    closed.write(direction, SAMPLE, &file)?;
    let mut fast = start(scratch, closed, Options { mib: MIB, connections: ROOM, ..Options::default() })?;
    let (way_in, way_out) = ports(direction);
    fast.plug(way_out, "net_null0,no-rx=1")?;
    fast.plug(way_in, &format!("net_pcap0,rx_pcap={}", file.display()))?;
    std::thread::sleep(THROUGH);
    let (_, sent, drops) = passed(direction, &fast.count()?);
    let denied = drops.get(&DropReason::PolicyDenied).copied().unwrap_or(0);
    ensure!(
        sent == 0 && denied == u64::from(SAMPLE),
        "of {SAMPLE} frames {sent} went out, dropped: {drops:?}"
    );
    Ok(())
}

/// Policies of the pod that have so many rules in each direction together, of a block and a port each; the last of all, alone in
/// its policy, is the one that the flows need.
fn one_pods_rules(count: u32) -> Vec<Value> {
    let others = count - 1;
    let block = |rule: u32| {
        let [_, a, b, c] = rule.to_be_bytes();
        let peer = json!([{"ipBlock": {"cidr": format!("{}.{b}.{c}.0/24", 100 + a)}}]);
        (peer, json!([{"protocol": "UDP", "port": 1000 + rule % 50_000}]))
    };
    let begin = (0..others).step_by(RULES_OF_A_POLICY as usize);
    let mut all: Vec<_> = begin
        .enumerate()
        .map(|(index, begin)| {
            let rules = (begin..others.min(begin + RULES_OF_A_POLICY)).map(block);
            policy(&format!("blocks{index}"), &rules.collect::<Vec<_>>())
        })
        .collect();
    all.push(clients("clients"));
    all
}

/// So many policies of the pod, each for one application; the last one is for the flows' clients.
fn many_policies(count: u32) -> Vec<Value> {
    let one = |index: u32| {
        let peer = json!([{"podSelector": {"matchLabels": {"app": format!("app{index}")}}}]);
        policy(&format!("app{index:04}"), &[(peer, json!([{"protocol": "UDP", "port": 1000 + index}]))])
    };
    (0..count - 1).map(one).chain([clients("clients")]).collect()
}

fn clients(name: &str) -> Value {
    let peer = json!([{"podSelector": {"matchLabels": {"app": "client"}}}]);
    policy(name, &[(peer, json!([{"protocol": "UDP", "port": PORT}]))])
}

/// A policy of these peers and ports, both ways.
fn policy(name: &str, rules: &[(Value, Value)]) -> Value {
    let way = |peers: &str| {
        rules.iter().map(|(peer, ports)| json!({peers: peer, "ports": ports})).collect::<Vec<_>>()
    };
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
           "metadata": {"name": name, "namespace": "bench"},
           "spec": {"podSelector": {"matchLabels": {"app": "bench"}}, "policyTypes": ["Ingress", "Egress"],
                    "ingress": way("from"), "egress": way("to")}})
}

/// Compiles these policies for the pod of a scene, to which other nodes' pods are known.
pub fn compile(scene: &Scene, policies: &[Value]) -> Result<Ruled> {
    let cluster = &scene.here.id.cluster;
    let node = NodeId { cluster: cluster.clone(), name: scene.here.id.name.clone() };
    let pod = |name: String| WorkloadId::Pod(cluster.clone(), PodName { namespace: "bench".into(), name });
    let workload = |app: &str, address, local| Workload {
        labels: [("app".to_owned(), app.to_owned())].into(),
        addresses: [address].into(),
        ports: Default::default(),
        presence: Presence::Living,
        local,
    };
    let own = pod("own".to_owned());
    let prefixes = scene.here.pod_prefixes.iter().chain(&scene.there.pod_prefixes).copied();
    let mut changes = vec![
        Change::Clusters(prefixes.collect()),
        Change::Workload(own.clone(), Some(workload("bench", scene.pod.into(), true))),
    ];
    for (index, address) in Scene::remotes().enumerate() {
        let client = Some(workload("client", address.into(), false));
        changes.push(Change::Workload(pod(format!("client{index}")), client));
    }
    for document in policies {
        let read = read(document)?;
        ensure!(read.report.effect == Effect::Whole, "{}", read.report);
        changes.push(Change::Policy(read.report.policy, read.policy));
    }
    let mut compiler = Compiler::new(node, 1);
    compiler.apply(changes);
    let tables = compiler.tables(&own).context("the pod has no tables")?.clone();
    let identity = compiler.identity(&own).context("the pod has no identity")?;
    Ok(Ruled { tables, book: Arc::new(compiler.book().clone()), identity })
}
