//! How long after an object has changed packets are judged by it, on a node with many pods.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use causeway_model::Family;
use causeway_tests::lab::{Datapath, PodSpec};
use serde_json::json;

use super::finding::{Finding, OURS, Record, Target};
use super::samples::Samples;
use super::stand::Stand;

/// Pods of the node, the one that is spoken to among them.
const PODS: usize = 100;
/// How often a policy comes, and goes.
const CHANGES: usize = 25;
/// Time between two datagrams: a change is seen to this much.
const PACE: Duration = Duration::from_millis(1);
/// A connection that is silent for so long is cut, and one that is not heard for so long stays so.
const SILENCE: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(5);

/// Measures on both data paths: an established flow between two nodes is denied, and allowed again.
pub fn run() -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let stands = [("fast", "bench-force-f", Datapath::Fast), ("kernel", "bench-force-k", Datapath::Kernel)];
    for (path, name, datapath) in stands {
        let stand = Stand::up(name, datapath, |_| {})?;
        let far = stand.lab.add_pod("n2", "far")?;
        let near = stand.lab.add_pod("n1", PodSpec::named("near").label("app", "near"))?;
        for number in 1..PODS {
            stand.lab.add_pod("n1", PodSpec::named(format!("pod{number}")).label("app", "other"))?;
        }
        let source = far.run(|| UdpSocket::bind(SocketAddr::new(far.address(Family::V4), 0)))?;
        let sink = near.run(|| UdpSocket::bind(SocketAddr::new(near.address(Family::V4), 0)))?;
        source.connect(sink.local_addr()?)?;
        let heard = listen(sink, source)?;
        let file = stand.lab.manifests_of(1)?.join("policy-near.yaml");
        let (mut denied, mut allowed) = (Samples::default(), Samples::default());
        for change in 1..=CHANGES {
            let began = Instant::now();
            isolate(&file)?;
            let cut = last(&heard, began)?;
            let began = Instant::now();
            fs::remove_file(&file)?;
            let back = heard.recv_timeout(PATIENCE).context("nothing comes once the policy is gone")? - began;
            eprintln!(
                "  policy in force: {path}: denied in {cut:.1?}, allowed in {back:.1?} ({change} of {CHANGES})"
            );
            denied.push(cut.as_secs_f64() * 1e3);
            allowed.push(back.as_secs_f64() * 1e3);
            // The next change is another one, not part of this.
            std::thread::sleep(SILENCE);
        }
        for (what, samples) in [("denied", denied), ("allowed", allowed)] {
            let mut worst = Samples::default();
            worst.push(samples.quantile(0.99));
            let case = || {
                vec![
                    ("change", format!("a flow is {what}").into()),
                    ("path", path.into()),
                    ("pods", PODS.into()),
                ]
            };
            let of = |samples: Samples| BTreeMap::from([(OURS, samples)]);
            let middle = Record::new("policy", case(), ("in force, median", "ms"), &of(samples));
            let worst = Record::new("policy", case(), ("in force, p99", "ms"), &of(worst));
            findings.push(Finding { record: middle, targets: Vec::new() });
            findings.push(Finding { record: worst, targets: vec![Target::AtMost(50.0)] });
        }
    }
    Ok(findings)
}

/// Sends for as long as anybody listens, and tells when what is sent is heard.
fn listen(sink: UdpSocket, source: UdpSocket) -> Result<Receiver<Instant>> {
    sink.set_read_timeout(Some(PATIENCE))?;
    let (tell, heard) = channel();
    let listens = Arc::new(());
    let listened = Arc::downgrade(&listens);
    std::thread::spawn(move || {
        // While it is denied nothing comes.
        while sink.recv(&mut [0; 8]).is_err() || tell.send(Instant::now()).is_ok() {}
        drop(listens);
    });
    std::thread::spawn(move || {
        while listened.strong_count() > 0 {
            // What is not sent is not heard.
            let _ = source.send(b"tick");
            std::thread::sleep(PACE);
        }
    });
    heard.recv_timeout(PATIENCE).context("nothing is heard at first")?;
    Ok(heard)
}

/// How long after a moment the last datagram came before a silence.
fn last(heard: &Receiver<Instant>, began: Instant) -> Result<Duration> {
    let mut last = began;
    while let Ok(at) = heard.recv_timeout(SILENCE) {
        last = last.max(at);
        ensure!(at - began.min(at) < PATIENCE, "the flow goes on after {PATIENCE:?}");
    }
    Ok(last - began)
}

fn isolate(file: &Path) -> Result<()> {
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "near", "namespace": "default", "uid": "near"},
        "spec": {"podSelector": {"matchLabels": {"app": "near"}}, "policyTypes": ["Ingress"]}
    });
    let aside = file.with_extension("new");
    fs::write(&aside, policy.to_string())?;
    Ok(fs::rename(aside, file)?)
}
