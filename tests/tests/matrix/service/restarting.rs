//! Whoever serves services restarts: connections begin all the time, and clients keep their backends.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use causeway_model::Family;
use causeway_tests::lab::{Lab, Node, Role};
use causeway_tests::namespace::Namespace;
use serde_json::json;

use super::busy::{Busy, PATIENCE, ask};
use super::{CLUSTER_IP, PORT, backend, put, put_slice};
use crate::matrix::stage::{Matrix, within};

/// Where else the service is.
const INGRESS: &str = "203.0.113.7";
const NODE_PORT: u16 = 29_070;
/// How long the agent is away, and how long it is there again.
const AWAY: Duration = Duration::from_millis(300);
const BACK: Duration = Duration::from_millis(700);
/// Connections of a client that all go to one of three backends by chance once in 6,561 times.
const CONNECTIONS: usize = 8;
/// How long somebody waits who shall not be answered.
const SILENCE: Duration = Duration::from_millis(150);

/// The service at its ClusterIP, at every node's port, and at an ingress address for some.
fn put_service(lab: &Lab, sources: &[IpAddr]) -> anyhow::Result<()> {
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": CLUSTER_IP, "clusterIPs": [CLUSTER_IP], "ipFamilies": ["IPv4"],
        "loadBalancerSourceRanges": sources.iter().map(|source| format!("{source}/32")).collect::<Vec<_>>(),
        "ports": [{"port": 80, "targetPort": PORT, "nodePort": NODE_PORT, "protocol": "TCP"}],
    });
    let metadata = json!({"namespace": "default", "name": "web"});
    let status = json!({"loadBalancer": {"ingress": [{"ip": INGRESS}]}});
    put(
        lab,
        "service",
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status}),
    )
}

/// A machine on the nodes' network that is none, and reaches the service by one of them.
fn outside(lab: &Lab, node: &Node, number: u8) -> anyhow::Result<(Namespace, IpAddr)> {
    let IpAddr::V4(of_node) = node.address(Family::V4) else { return Err(anyhow!("no IPv4 address")) };
    let [a, b, c, _] = of_node.octets();
    let own = IpAddr::from([a, b, c, 190 + number]);
    let place = lab.add_host(&format!("outside{number}"), &[own])?;
    place.ip(&format!("route add {a}.{b}.{c}.0/24 dev eth0"))?;
    place.ip(&format!("route add {INGRESS}/32 via {of_node}"))?;
    asks_from(&place, u16::from(number))?;
    Ok((place, own))
}

/// Gives a client ports of its own. Backends see several clients as one and the same node, and whoever has closed a connection takes what
/// comes from the same port a moment later for a part of that.
fn asks_from(place: &Namespace, number: u16) -> anyhow::Result<()> {
    let first = 10_000 * (number + 3);
    Ok(place.sysctl("net/ipv4/ip_local_port_range", &format!("{first} {}", first + 9_999))?)
}

/// Asks again and again where nobody shall answer, until it is over; tells what else than silence was met.
fn never_answered(from: &Namespace, target: SocketAddr, over: &AtomicBool) -> anyhow::Result<()> {
    from.run(|| {
        let mut asked = 0;
        while !over.load(Ordering::Relaxed) {
            match TcpStream::connect_timeout(&target, SILENCE) {
                Err(error) if error.kind() == ErrorKind::TimedOut => asked += 1,
                met => {
                    return Err(anyhow!("who is in none of its ranges met {met:?}, after {asked} silences"));
                }
            }
        }
        ensure!(asked > 0, "nothing was asked");
        Ok(())
    })
}

pub fn an_agent_that_restarts_refuses_and_misleads_nobody(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (pod, stranger) = (lab.add_pod("n1", "ask")?, lab.add_pod("n1", "stranger")?);
    let (near, _near) = backend(&lab, "n1", "near")?;
    let (far, _far) = backend(&lab, "n2", "far")?;
    let n1 = lab.node("n1")?;
    n1.exec("ip route add default dev eth0")?;
    asks_from(n1.namespace(), 0)?;
    let (host, of_host) = outside(&lab, &n1, 1)?;
    let (other, of_other) = outside(&lab, &n1, 2)?;
    let of_pod = pod.address(Family::V4);
    put_service(&lab, &[of_pod, of_other])?;
    put_slice(&lab, &[(&near, false), (&far, false)])?;
    let cluster_ip = SocketAddr::new(CLUSTER_IP.parse()?, 80);
    let node_port = SocketAddr::new(n1.address(Family::V4), NODE_PORT);
    let ingress = SocketAddr::new(INGRESS.parse()?, 80);
    // A backend of another node sees the node by which somebody from outside came.
    let of_node = n1.overlay_host_address(Family::V4);
    let clients = [
        ("a pod at the ClusterIP", pod.namespace(), cluster_ip, vec![of_pod]),
        ("a pod at the node port", pod.namespace(), node_port, vec![of_pod]),
        ("a pod at the ingress address", pod.namespace(), ingress, vec![of_pod]),
        ("a process at the ClusterIP", n1.namespace(), cluster_ip, vec![of_node, n1.address(Family::V4)]),
        ("outside at the node port", &host, node_port, vec![of_host, of_node]),
        ("outside at the ingress address", &other, ingress, vec![of_other, of_node]),
    ];
    for (what, place, target, _) in &clients {
        ensure!(within(PATIENCE, || place.run(|| ask(*target)).is_ok()), "{what} is not served");
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let silent = scope.spawn(|| never_answered(stranger.namespace(), ingress, &over));
        let told = told(matrix, &lab, &clients);
        over.store(true, Ordering::Relaxed);
        let silent = silent.join().map_err(|_| anyhow!("who shall not be answered has died"))?;
        told.and(silent)
    })
}

type Client<'a> = (&'static str, &'a Namespace, SocketAddr, Vec<IpAddr>);

/// The agent restarts under the clients' eyes.
fn told(matrix: &Matrix, lab: &Lab, clients: &[Client<'_>]) -> anyhow::Result<()> {
    let busy = clients.iter().map(|(_, place, target, _)| Busy::start(place, *target));
    let busy = busy.collect::<anyhow::Result<Vec<_>>>()?;
    for asked in [false, true, false, true] {
        std::thread::sleep(BACK);
        let end = if asked { Lab::stop } else { Lab::kill };
        end(lab, "n1", Role::Agent)?;
        let forgets = || lab.node("n1")?.exec("nft delete table inet causeway-services");
        matrix.sabotage("services-forgotten", forgets).transpose()?;
        std::thread::sleep(AWAY);
        lab.start("n1", Role::Agent)?;
    }
    std::thread::sleep(BACK);
    for (busy, (what, _, _, may_see)) in busy.into_iter().zip(clients) {
        let told = busy.finish()?;
        told.lost_none().context(*what)?;
        ensure!(told.by.len() == 2, "{what} was answered by {:?} only", told.by);
        let misled = told.seen.iter().find(|seen| !may_see.contains(seen));
        ensure!(misled.is_none(), "{what} was seen as {misled:?} and not as {may_see:?}");
    }
    Ok(())
}

pub fn a_client_keeps_its_backend_over_restarts(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let client = lab.add_pod("n1", "ask")?;
    let mut backends = Vec::new();
    for (node, name) in [("n1", "one"), ("n2", "two"), ("n2", "three")] {
        backends.push(backend(&lab, node, name)?);
    }
    let spec = json!({
        "type": "ClusterIP", "clusterIP": CLUSTER_IP, "clusterIPs": [CLUSTER_IP], "ipFamilies": ["IPv4"],
        "sessionAffinity": "ClientIP",
        "ports": [{"port": 80, "targetPort": PORT, "protocol": "TCP"}],
    });
    let metadata = json!({"namespace": "default", "name": "web"});
    put(
        &lab,
        "service",
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}),
    )?;
    let all: Vec<_> = backends.iter().map(|(pod, _)| (pod, false)).collect();
    put_slice(&lab, &all)?;
    let target = SocketAddr::new(CLUSTER_IP.parse()?, 80);
    let asks = || client.run(|| ask(target));
    ensure!(within(PATIENCE, || asks().is_ok()), "nobody answers");
    let first = asks()?;
    for victims in [&[][..], &[Role::Agent], &[Role::Fastpath], &[Role::Fastpath, Role::Agent]] {
        let runs = |role: &&Role| matches!(lab.process("n1", **role), Ok(Some(_)));
        let there: Vec<Role> = victims.iter().filter(runs).copied().collect();
        there.iter().try_for_each(|role| lab.kill("n1", *role))?;
        there.iter().try_for_each(|role| lab.start("n1", *role))?;
        ensure!(within(PATIENCE, || asks().is_ok()), "nobody answers once {victims:?} are back");
        for _ in 0..CONNECTIONS {
            let now = asks()?;
            ensure!(now == first, "{now} and no longer {first} once {victims:?} are back");
        }
    }
    Ok(())
}
