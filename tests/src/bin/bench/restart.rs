//! How long packets stand still when a process of a node is killed and started again at once, as a supervisor would.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use causeway_model::Family;
use causeway_tests::lab::{Datapath, Pod, Role};

use super::finding::{Finding, OURS, Record, Target};
use super::samples::Samples;
use super::stand::Stand;

/// How often each is killed.
const KILLS: usize = 20;
/// Time between two datagrams: a gap is known to this much.
const PACE: Duration = Duration::from_millis(1);
/// How long a flow is watched after what was killed is back.
const AFTER: Duration = Duration::from_millis(1500);
/// What is killed, and in which order.
const VICTIMS: [(&str, &[Role]); 3] = [
    ("fast path", &[Role::Fastpath]),
    ("agent", &[Role::Agent]),
    ("fast path and agent", &[Role::Fastpath, Role::Agent]),
];

/// Runs the bench: datagrams both ways between two nodes whose pods take no new connections, while processes of one are killed.
pub fn run() -> Result<Vec<Finding>> {
    let stand = Stand::up("bench-restart", Datapath::Fast, |_| {})?;
    let pods = stand.pods(&["n1", "n2"])?;
    let (near, far) = (&pods[0], &pods[1]);
    let node = stand.lab.node("n1")?;
    let mut findings = Vec::new();
    for (victim, order) in VICTIMS {
        let mut gaps = Samples::default();
        for kill in 1..=KILLS {
            // One connection, answered both ways, before anything is denied.
            let (here, there) = connected(near, far)?;
            let flows = [Flow::start(&here, &there)?, Flow::start(&there, &here)?];
            std::thread::sleep(Duration::from_millis(100));
            // What goes on is what was there before: nothing new may begin meanwhile.
            stand.lab.annotate(near.name(), "causeway.dev/deny-new", "true")?;
            std::thread::sleep(Duration::from_millis(300));
            let ours = format!("--protocol udp --port {}", here.local_addr()?.port());
            let before = node.connections(&ours)?.connections.len();
            order.iter().try_for_each(|role| stand.lab.kill("n1", *role))?;
            order.iter().try_for_each(|role| stand.lab.start("n1", *role))?;
            std::thread::sleep(AFTER);
            let after = node.connections(&ours)?.connections.len();
            ensure!(
                (before, after) == (1, 1),
                "{before} connections before {victim} was killed, {after} after"
            );
            let [out, back] = flows.map(Flow::stop);
            let gap = out?.max(back?).as_secs_f64() * 1000.0;
            eprintln!("  restart: {victim}: {gap:.0} ms ({kill} of {KILLS})");
            gaps.push(gap);
            stand.lab.annotate(near.name(), "causeway.dev/deny-new", "false")?;
            std::thread::sleep(Duration::from_millis(300));
        }
        let case =
            || vec![("killed", victim.into()), ("kills", KILLS.into()), ("memory", "hugepages".into())];
        let mut worst = Samples::default();
        worst.push(gaps.quantile(0.99));
        let of = |samples: Samples| BTreeMap::from([(OURS, samples)]);
        let middle = Record::new("restart", case(), ("gap, median", "ms"), &of(gaps));
        let worst = Record::new("restart", case(), ("gap, p99", "ms"), &of(worst));
        findings.push(Finding { record: middle, targets: Vec::new() });
        findings.push(Finding { record: worst, targets: vec![Target::AtMost(1000.0)] });
    }
    Ok(findings)
}

/// Two sockets in two pods that know each other.
fn connected(one: &Pod, other: &Pod) -> Result<(UdpSocket, UdpSocket)> {
    let bind = |pod: &Pod| pod.run(|| UdpSocket::bind(SocketAddr::new(pod.address(Family::V4), 0)));
    let (one, other) = (bind(one)?, bind(other)?);
    one.connect(other.local_addr()?)?;
    other.connect(one.local_addr()?)?;
    Ok((one, other))
}

/// Datagrams at a steady pace, and who notes when they come.
struct Flow {
    heard: Arc<AtomicBool>,
    sent: Arc<AtomicBool>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<Result<Duration>>,
}

impl Flow {
    fn start(source: &UdpSocket, sink: &UdpSocket) -> Result<Self> {
        let (source, sink) = (source.try_clone()?, sink.try_clone()?);
        sink.set_read_timeout(Some(Duration::from_millis(100)))?;
        let (heard, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (hears, sends) = (Arc::clone(&heard), Arc::clone(&sent));
        let sender = std::thread::spawn(move || {
            while !sends.load(Ordering::Relaxed) {
                // While nobody carries it, it is lost: that is what is measured.
                let _ = source.send(b"tick");
                std::thread::sleep(PACE);
            }
        });
        let receiver = std::thread::spawn(move || {
            let (mut last, mut longest) = (None::<Instant>, Duration::ZERO);
            while !hears.load(Ordering::Relaxed) {
                if sink.recv(&mut [0; 8]).is_ok() {
                    let now = Instant::now();
                    longest = longest.max(last.map_or(Duration::ZERO, |last| now - last));
                    last = Some(now);
                }
            }
            // A flow that stands at the end has stood since its last datagram.
            Ok(longest.max(last.context("not one datagram came")?.elapsed()))
        });
        Ok(Self { heard, sent, sender, receiver })
    }

    /// The longest time between two datagrams.
    fn stop(self) -> Result<Duration> {
        // Who listens ends first: a silence after the last datagram was sent is no gap.
        self.heard.store(true, Ordering::Relaxed);
        let longest = self.receiver.join().map_err(|_| anyhow!("who listens has died"))?;
        self.sent.store(true, Ordering::Relaxed);
        self.sender.join().map_err(|_| anyhow!("who sends has died"))?;
        longest
    }
}
