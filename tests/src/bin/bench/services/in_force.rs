//! How soon a backend that changed is in force, in a big world: from the file to the first connection that the new one answers.
//! Whoever has a big world of another kind measures it by [`measure`], too.

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use causeway_model::Family;
use causeway_tests::lab::{Datapath, Lab, Pod, PodSpec};
use causeway_tests::traffic::Responder;
use serde_json::{Value, json};

use super::super::finding::{Finding, Target};
use super::super::samples::Samples;
use super::super::stand::Stand;
use super::{BACKENDS, SERVICES, finding, service, slice};

/// The service that changes.
const CLUSTER_IP: &str = "10.96.200.1";
pub const PORT: u16 = 8080;
const CHANGES: usize = 20;
/// Services in one file.
const IN_A_FILE: usize = 100;
/// How long everything may take to be read, and a change to be in force.
const READ: Duration = Duration::from_secs(300);
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two changes.
const REST: Duration = Duration::from_millis(300);

/// Measures on both data paths.
pub fn run() -> Result<Vec<Finding>> {
    let stands =
        [("fast", "bench-svc-f", Datapath::Fast, 10.0), ("kernel", "bench-svc-k", Datapath::Kernel, 50.0)];
    let mut findings = Vec::new();
    for (path, name, datapath, most) in stands {
        let stand = Stand::up(name, datapath, |spec| {
            spec.nodes = 1;
            spec.fastpath = vec!["--memory".into(), "slow".into()];
        })?;
        let (read, changed) = measure(path, &stand.lab, world(&stand.lab)?)?;
        known(&stand.lab)?;
        let mut read = finding("everything", ("from files to an answer", "s"), read, Vec::new());
        let mut middle = finding(
            "one backend",
            ("from a file to an answer", "ms"),
            changed.clone(),
            vec![Target::AtMost(most)],
        );
        let mut worst = Samples::default();
        worst.push(changed.max());
        let mut worst = finding("one backend", ("from a file to an answer, worst", "ms"), worst, Vec::new());
        for finding in [&mut read, &mut middle, &mut worst] {
            finding.record.case.push(("path", path.into()));
        }
        findings.extend([read, middle, worst]);
    }
    Ok(findings)
}

/// A big world for a lab, with a service in it that one pod serves and then another.
pub struct World<'a> {
    /// What is told of it.
    pub what: String,
    /// The files that have it, each when it is its turn to be written.
    pub files: Box<dyn Iterator<Item = (PathBuf, Vec<Value>)> + 'a>,
    /// The node of the pods that serve.
    pub node: &'static str,
    /// The file that says which of them does, and what it says.
    pub slice: PathBuf,
    pub served_by: fn(&Pod) -> Value,
    /// Where it is served, once that is known.
    pub target: Box<dyn Fn() -> Result<Option<SocketAddr>> + 'a>,
}

/// Services of one cluster.
fn world(lab: &Lab) -> Result<World<'static>> {
    let directory = lab.manifests_of(1)?;
    let slice_file = directory.join("changing-slice.yaml");
    let changing_file = directory.join("changing-service.yaml");
    let files = (0..SERVICES).step_by(IN_A_FILE).map(move |number| {
        let documents = (number..number + IN_A_FILE).flat_map(|one| [service(one, 80), slice(one, BACKENDS)]);
        (directory.join(format!("world-{number}.yaml")), documents.collect())
    });
    Ok(World {
        what: format!("{SERVICES} services"),
        files: Box::new(files.chain([(changing_file, vec![changing()])])),
        node: "n1",
        slice: slice_file,
        served_by,
        target: Box::new(|| Ok(Some(SocketAddr::new(CLUSTER_IP.parse()?, 80)))),
    })
}

/// The time until everything is served, in seconds, and until each change is in force, in milliseconds.
pub fn measure(path: &str, lab: &Lab, world: World<'_>) -> Result<(Samples, Samples)> {
    let World { what, files, node, slice, served_by, target } = world;
    let client = lab.add_pod("n1", "client")?;
    let backends = ["one", "other"].map(|name| lab.add_pod(node, PodSpec::named(name)));
    let [one, other] = backends;
    let pods = [one?, other?];
    let _servers = pods
        .iter()
        .map(|pod| Responder::start(pod.namespace(), PORT, pod.name()))
        .collect::<std::io::Result<Vec<_>>>()?;
    let began = Instant::now();
    files.into_iter().try_for_each(|(file, documents)| put(&file, documents))?;
    put(&slice, [served_by(&pods[0])])?;
    let target = loop {
        ensure!(began.elapsed() < READ, "nobody answers after {READ:?}");
        if let Some(target) = target()?
            && client.run(|| ask(target)).ok().as_deref() == Some(pods[0].name())
        {
            break target;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let (mut read, mut changed) = (Samples::default(), Samples::default());
    read.push(began.elapsed().as_secs_f64());
    eprintln!("  {path}: {what} read and served in {:.1} s", read.median());
    let busy = Busy::start(&client, target);
    for run in 1..=CHANGES {
        std::thread::sleep(REST);
        let (old, new) = (&pods[(run + 1) % 2], &pods[run % 2]);
        busy.answered_by(old)?;
        let began = Instant::now();
        put(&slice, [served_by(new)])?;
        let took = busy.first_of(new, began)?;
        changed.push(took.as_secs_f64() * 1e3);
    }
    busy.stop()?;
    eprintln!("  {path}: a backend of {what} is in force in {:.1} ms", changed.median());
    Ok((read, changed))
}

/// The agent serves everything that it was told of.
fn known(lab: &Lab) -> Result<()> {
    let status = lab.node("n1")?.status()?;
    ensure!(status.problems.is_empty(), "{:?}", status.problems);
    let known = lab.node("n1")?.services("")?.len();
    ensure!(known == SERVICES + 1, "the agent knows {known} services");
    Ok(())
}

fn put(file: &Path, documents: impl IntoIterator<Item = Value>) -> Result<()> {
    let aside = file.with_extension("new");
    let text: Vec<String> = documents.into_iter().map(|document| document.to_string()).collect();
    fs::write(&aside, text.join("\n---\n"))?;
    Ok(fs::rename(aside, file)?)
}

fn changing() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"type": "ClusterIP", "clusterIP": CLUSTER_IP, "clusterIPs": [CLUSTER_IP], "ipFamilies": ["IPv4"],
                 "ports": [{"port": 80, "targetPort": PORT, "protocol": "TCP"}]}})
}

fn served_by(pod: &Pod) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "", "port": PORT, "protocol": "TCP"}],
        "endpoints": [{"addresses": [pod.address(Family::V4)], "nodeName": "n1", "conditions": {"ready": true}}]})
}

/// Who answers a connection of this thread's namespace.
fn ask(target: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// A client that begins one connection after the other.
struct Busy {
    stop: Arc<AtomicBool>,
    heard: Receiver<(Result<String>, Instant)>,
    thread: JoinHandle<()>,
}

impl Busy {
    fn start(client: &Pod, target: SocketAddr) -> Self {
        let (stop, place) = (Arc::new(AtomicBool::new(false)), client.namespace().clone());
        let (tell, heard) = channel();
        let stops = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            place.run(|| {
                while !stops.load(Ordering::Relaxed) {
                    if tell.send((ask(target), Instant::now())).is_err() {
                        return;
                    }
                }
            });
        });
        Self { stop, heard, thread }
    }

    /// Whatever was answered since the last look was answered by this one.
    fn answered_by(&self, pod: &Pod) -> Result<()> {
        let mut all: Vec<String> = Vec::new();
        for (answer, _) in self.heard.try_iter() {
            all.push(answer.context("a request was lost")?);
        }
        let others = all.iter().filter(|name| *name != pod.name()).count();
        ensure!(
            !all.is_empty() && others == 0,
            "{others} of {} were not answered by {}",
            all.len(),
            pod.name()
        );
        Ok(())
    }

    /// How long after a moment the first answer of this one was there.
    fn first_of(&self, pod: &Pod, moment: Instant) -> Result<Duration> {
        loop {
            let (answer, ended) = self.heard.recv_timeout(PATIENCE).context("nobody answers")?;
            if answer.context("a request was lost")? == pod.name() {
                return Ok(ended.saturating_duration_since(moment));
            }
            ensure!(moment.elapsed() < PATIENCE, "not in force after {PATIENCE:?}");
        }
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the client has died"))
    }
}
