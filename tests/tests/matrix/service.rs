//! Services under what happens to them: backends replaced and agents restarted under load, packets of no use, a pod that is its own
//! backend.

pub mod busy;
mod restarting;

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use causeway_model::{Family, PodName};
use causeway_tests::lab::{Lab, Pod, PodSpec};
use causeway_tests::packet_socket::PacketSocket;
use causeway_tests::traffic::{Responder, ask_tcp};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use serde_json::{Value, json};

use busy::{Busy, PATIENCE, ask};

use super::connections::segment;
use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    (
        "a_rolling_replacement_of_all_backends_loses_no_request",
        a_rolling_replacement_of_all_backends_loses_no_request,
    ),
    (
        "an_agent_that_restarts_refuses_and_misleads_nobody",
        restarting::an_agent_that_restarts_refuses_and_misleads_nobody,
    ),
    ("a_client_keeps_its_backend_over_restarts", restarting::a_client_keeps_its_backend_over_restarts),
    ("f25_a_segment_out_of_its_window_shows_no_backend", f25_a_segment_out_of_its_window_shows_no_backend),
    ("f31_a_pod_reaches_itself_through_its_service", f31_a_pod_reaches_itself_through_its_service),
];

/// Where the service is.
const CLUSTER_IP: &str = "10.96.7.1";
/// The port that pods serve.
const PORT: u16 = 8080;
/// How soon a change of an object must be in force.
const SOON: Duration = Duration::from_secs(1);

fn target() -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::new(CLUSTER_IP.parse()?, 80))
}

fn put(lab: &Lab, name: &str, object: &Value) -> anyhow::Result<()> {
    let file = lab.manifests_of(1)?.join(format!("{name}.yaml"));
    let aside = file.with_extension("new");
    fs::write(&aside, object.to_string())?;
    Ok(fs::rename(aside, file)?)
}

fn put_service(lab: &Lab) -> anyhow::Result<()> {
    let spec = json!({
        "type": "ClusterIP", "clusterIP": CLUSTER_IP, "clusterIPs": [CLUSTER_IP], "ipFamilies": ["IPv4"],
        "ports": [{"port": 80, "targetPort": PORT, "protocol": "TCP"}],
    });
    let metadata = json!({"namespace": "default", "name": "web"});
    put(lab, "service", &json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}))
}

/// Says who is behind the service, and which of them are about to end.
fn put_slice(lab: &Lab, backends: &[(&Pod, bool)]) -> anyhow::Result<()> {
    let endpoint = |(pod, leaves): &(&Pod, bool)| {
        let conditions = json!({"ready": !leaves, "serving": true, "terminating": leaves});
        json!({"addresses": [pod.address(Family::V4)], "nodeName": pod.record.node, "conditions": conditions})
    };
    put(
        lab,
        "slice",
        &json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "", "protocol": "TCP", "port": PORT}],
            "endpoints": backends.iter().map(endpoint).collect::<Vec<_>>(),
        }),
    )
}

/// A pod that answers with its name.
fn backend(lab: &Lab, node: &str, name: &str) -> anyhow::Result<(Pod, Responder)> {
    let pod = lab.add_pod(node, PodSpec::named(name).label("app", "web"))?;
    let responder = Responder::start(pod.namespace(), PORT, name)?;
    Ok((pod, responder))
}

fn a_rolling_replacement_of_all_backends_loses_no_request(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let clients = [lab.add_pod("n1", "ask-1")?, lab.add_pod("n1", "ask-2")?, lab.add_pod("n2", "ask-3")?];
    for client in &clients {
        // Ports come round soon: what is left of earlier connections, to whoever, is met all the time.
        client.run(|| fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40999"))?;
    }
    let mut serving = Vec::new();
    for (node, name) in [("n1", "old-1"), ("n2", "old-2"), ("n2", "old-3")] {
        serving.push(backend(&lab, node, name)?);
    }
    put_service(&lab)?;
    let all: Vec<_> = serving.iter().map(|(pod, _)| (pod, false)).collect();
    put_slice(&lab, &all)?;
    let target = target()?;
    let places = [clients[0].namespace(), clients[1].namespace(), clients[2].namespace()];
    let nodes = [lab.node("n1")?, lab.node("n2")?];
    for node in &nodes {
        // What a node has no way to it does not even try to reach.
        node.exec("ip route add default dev eth0")?;
    }
    let places: Vec<_> =
        places.into_iter().chain(nodes.iter().map(causeway_tests::lab::Node::namespace)).collect();
    for place in &places {
        ensure!(within(PATIENCE, || place.run(|| ask(target)).is_ok()), "{} is not served", place.name());
    }
    let busy = places.iter().map(|place| Busy::start(place, target)).collect::<anyhow::Result<Vec<_>>>()?;
    for (number, node) in ["n1", "n2", "n1"].into_iter().enumerate() {
        let new = backend(&lab, node, &format!("new-{number}"))?;
        let (old, server) = serving.remove(0);
        serving.push(new);
        let stay: Vec<_> = serving.iter().map(|(pod, _)| (pod, false)).collect();
        let leaves: Vec<_> = stay.iter().copied().chain([(&old, true)]).collect();
        // Nobody is told of who goes.
        if matrix.sabotage("roll-unsaid", || ()).is_none() {
            put_slice(&lab, &leaves)?;
        }
        std::thread::sleep(2 * SOON);
        drop(server);
        lab.del_pod(old.name())?;
        put_slice(&lab, &stay)?;
    }
    std::thread::sleep(SOON);
    for (busy, place) in busy.into_iter().zip(&places) {
        let asked = busy.finish()?;
        let name = place.name();
        asked.lost_none().context(name.to_owned())?;
        ensure!(asked.by.len() >= 5, "{name} was answered by {:?} only", asked.by);
    }
    Ok(())
}

/// What came to an interface over TCP: from whom, and whether it was a reset.
struct Watch {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<(SocketAddr, bool)>>>,
    thread: JoinHandle<()>,
}

impl Watch {
    fn start(pod: &Pod) -> anyhow::Result<Self> {
        let socket = pod.run(|| PacketSocket::open("eth0"))?;
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let thread = std::thread::spawn({
            let (stop, seen) = (stop.clone(), seen.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let Ok(Some(frame)) = socket.receive(Duration::from_millis(50)) else { continue };
                    if let (Some(found), Ok(mut seen)) = (sender(&frame), seen.lock()) {
                        seen.push(found);
                    }
                }
            }
        });
        Ok(Self { stop, seen, thread })
    }

    fn finish(self) -> anyhow::Result<Vec<(SocketAddr, bool)>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("who watched has died"))?;
        let seen = self.seen.lock().map_err(|_| anyhow!("who watched has died"))?;
        Ok(seen.clone())
    }
}

/// Whose segment a frame is, and whether it is a reset.
fn sender(frame: &[u8]) -> Option<(SocketAddr, bool)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let source = match packet.net? {
        NetSlice::Ipv4(ip) => IpAddr::V4(ip.header().source_addr()),
        NetSlice::Ipv6(ip) => IpAddr::V6(ip.header().source_addr()),
        NetSlice::Arp(_) => return None,
    };
    match packet.transport? {
        TransportSlice::Tcp(tcp) => Some((SocketAddr::new(source, tcp.source_port()), tcp.rst())),
        _ => None,
    }
}

fn f25_a_segment_out_of_its_window_shows_no_backend(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n2", "c")?);
    put_service(&lab)?;
    put_slice(&lab, &[(&c, false)])?;
    let target = target()?;
    let listener = c.run(|| TcpListener::bind(SocketAddr::new(c.address(Family::V4), PORT)))?;
    let mut client = None;
    ensure!(
        within(PATIENCE, || {
            client = a.run(|| TcpStream::connect_timeout(&target, PATIENCE)).ok();
            client.is_some()
        }),
        "the service is not there"
    );
    let mut client = client.context("a connection")?;
    let (mut server, _) = listener.accept()?;
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    }
    let (at_client, at_server) = (Watch::start(&a)?, Watch::start(&c)?);
    let ends = (server.local_addr()?, server.peer_addr()?);
    let wire = c.run(|| PacketSocket::open("eth0"))?;
    // Numbers half of all apart: one of them lies ahead of the window, one behind it.
    for (sequence, reset) in
        [(0x1000_0000, false), (0x9000_0000, false), (0x1000_0000, true), (0x9000_0000, true)]
    {
        wire.send(&segment(&c, ends, sequence, 0x6000_0000, reset)?)?;
    }
    std::thread::sleep(SOON / 2);
    let mut heard = [0; 10];
    server.write_all(b"still here")?;
    client.read_exact(&mut heard).context("the connection is broken towards the client")?;
    client.write_all(b"still here")?;
    server.read_exact(&mut heard).context("the connection is broken towards the backend")?;
    let own = c.address(Family::V4);
    let bare = at_client.finish()?.into_iter().find(|(from, _)| from.ip() == own);
    ensure!(bare.is_none(), "the client saw its backend: {bare:?}");
    let client = a.address(Family::V4);
    let reset = at_server.finish()?.into_iter().find(|(from, reset)| from.ip() == client && *reset);
    ensure!(reset.is_none(), "the client has reset the connection");
    Ok(())
}

/// Whether a pod reaches its own address, and itself through its service.
fn reaches_itself(pod: &Pod) -> anyhow::Result<(bool, bool)> {
    let own = SocketAddr::new(pod.address(Family::V4), PORT);
    let asked = |target| ask_tcp(pod.namespace(), target).is_ok_and(|answer| answer.by == pod.name());
    Ok((asked(own), asked(target()?)))
}

/// Whether whoever asked a pod was told of as that pod itself.
fn told_as_itself(lab: &Lab, name: &str) -> anyhow::Result<bool> {
    let events = lab.node("n1")?.flows(&format!("--pod default/{name} --port {PORT}"))?;
    let own = |pod: &Option<PodName>| pod.as_ref().is_some_and(|pod| pod.name == name);
    let asked: Vec<_> = events.iter().filter(|event| own(&event.to_pod)).collect();
    // What goes to its own address never leaves the pod.
    Ok(!asked.is_empty() && asked.iter().all(|event| own(&event.from_pod)))
}

fn policy(kind: &str, spec: &Value) -> Value {
    let (version, metadata) = match kind {
        "NetworkPolicy" => ("networking.k8s.io/v1", json!({"namespace": "default", "name": "self"})),
        _ => ("policy.networking.k8s.io/v1alpha2", json!({"name": "self"})),
    };
    json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec})
}

fn f31_a_pod_reaches_itself_through_its_service(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let selected = json!({"matchLabels": {"app": "web"}});
    let ingress = |rules: Value| {
        let spec = json!({"podSelector": selected, "policyTypes": ["Ingress"], "ingress": rules});
        policy("NetworkPolicy", &spec)
    };
    let denied = policy(
        "ClusterNetworkPolicy",
        &json!({
            "tier": "Admin", "priority": 1,
            "subject": {"pods": {"namespaceSelector": {}, "podSelector": selected}},
            "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}],
        }),
    );
    let (one, _first) = backend(&lab, "n1", "self-1")?;
    let (two, _second) = backend(&lab, "n1", "self-2")?;
    put_service(&lab)?;
    // Both pods of a mixed node: each of its paths.
    for pod in [&one, &two] {
        put_slice(&lab, &[(pod, false)])?;
        drop(fs::remove_file(lab.manifests_of(1)?.join("policy.yaml")));
        let name = pod.name();
        ensure!(
            within(PATIENCE, || reaches_itself(pod).is_ok_and(|both| both == (true, true))),
            "{name} without policies: {:?}",
            reaches_itself(pod)?
        );
        ensure!(
            within(PATIENCE, || told_as_itself(&lab, name).unwrap_or(false)),
            "{name} is told of as another"
        );
        // Through a service it is judged as any pod of its labels; its own address nothing takes from it.
        for (what, policy, through) in [
            ("its namespace allowed", ingress(json!([{"from": [{"podSelector": {}}]}])), true),
            ("nobody allowed", ingress(json!([])), false),
            ("everybody denied", denied.clone(), false),
        ] {
            put(&lab, "policy", &policy)?;
            std::thread::sleep(SOON);
            let found = reaches_itself(pod)?;
            ensure!(found == (true, through), "{name}, {what}: {found:?} of its address and its service");
        }
    }
    Ok(())
}
