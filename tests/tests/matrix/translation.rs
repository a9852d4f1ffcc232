//! Services of pods on the fast path, over both families: near and far, and through a death of the fast path.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};
use causeway_model::Family;
use causeway_tests::lab::{Lab, Pod, PodSpec, Role};
use causeway_tests::traffic::{Responder, UdpQuestioner, ask_tcp, ask_udp};
use serde_json::{Value, json};

use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    ("a_client_reaches_its_backend_wherever_that_is", a_client_reaches_its_backend_wherever_that_is),
    ("a_killed_fast_path_loses_no_translation", a_killed_fast_path_loses_no_translation),
];

const PORT: u16 = 80;
const TARGET: u16 = 8080;
/// How soon a change of an object must be in force.
const SOON: Duration = Duration::from_secs(2);
/// How long a connection may take to go on.
const GOES_ON: Duration = Duration::from_secs(8);

/// A service's addresses in the lab's first cluster.
fn vip(number: u8) -> [IpAddr; 2] {
    [[10, 96, 0, number].into(), [0xfd96, 0, 0, 0, 0, 0, 0, number.into()].into()]
}

/// Writes a service whose backends these pods are.
fn serve(lab: &Lab, name: &str, number: u8, backends: &[&Pod]) -> anyhow::Result<()> {
    let ports = |at: &str, port: u16| -> Vec<Value> {
        let of = |protocol: &str| json!({"name": protocol.to_lowercase(), "protocol": protocol, at: port});
        ["TCP", "UDP"].map(of).to_vec()
    };
    let addresses = vip(number).map(|address| address.to_string());
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {
            "type": "ClusterIP", "clusterIP": addresses[0], "clusterIPs": addresses,
            "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
            "ports": ports("port", PORT)
        }
    })];
    for (family, kind) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
        let endpoint = |pod: &&Pod| json!({"addresses": [pod.address(family)], "conditions": {"ready": true, "serving": true}});
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
            "metadata": {
                "name": format!("{name}-{}", kind.to_lowercase()), "namespace": "default",
                "labels": {"kubernetes.io/service-name": name}
            },
            "endpoints": backends.iter().map(endpoint).collect::<Vec<_>>(), "ports": ports("port", TARGET)
        }));
    }
    let text: Vec<_> = objects.iter().map(Value::to_string).collect();
    let file = lab.manifests_of(1)?.join(format!("service-{name}.yaml"));
    let aside = file.with_extension("new");
    fs::write(&aside, text.join("\n---\n"))?;
    Ok(fs::rename(aside, file)?)
}

fn pod(name: &str) -> PodSpec {
    PodSpec::named(name).label("app", name)
}

fn a_client_reaches_its_backend_wherever_that_is(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, b, c) =
        (lab.add_pod("n1", pod("a"))?, lab.add_pod("n1", pod("b"))?, lab.add_pod("n2", pod("c"))?);
    let servers = [&b, &c].map(|pod| Responder::start(pod.namespace(), TARGET, pod.name()));
    for server in &servers {
        ensure!(server.is_ok(), "{server:?}");
    }
    let far = matrix.sabotage("backend-elsewhere", || &b).unwrap_or(&c);
    for (name, number, backend) in [("near", 1, &b), ("far", 2, far)] {
        serve(&lab, name, number, &[backend])?;
    }
    for (number, backend) in [(1, "b"), (2, "c")] {
        for (at, family) in Family::BOTH.into_iter().enumerate() {
            let target = SocketAddr::new(vip(number)[at], PORT);
            ensure!(within(SOON, || ask_tcp(a.namespace(), target).is_ok()), "{target} does not answer");
            let seen = a.address(family);
            let asked = [ask_tcp(a.namespace(), target), ask_udp(a.namespace(), target)];
            for answered in asked {
                let answered = answered.with_context(|| format!("asking {target}"))?;
                ensure!(
                    (answered.by.as_str(), answered.to) == (backend, seen),
                    "{target}: {} answers, and saw {}",
                    answered.by,
                    answered.to
                );
            }
        }
    }
    let listing = lab.node("n1")?.connections("")?;
    let translated = listing.connections.iter().filter(|connection| connection.answers.is_some()).count();
    ensure!(translated > 0, "{listing:?}");
    Ok(())
}

fn a_killed_fast_path_loses_no_translation(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, c) = (lab.add_pod("n1", pod("a"))?, lab.add_pod("n2", pod("c"))?);
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "only-c", "namespace": "default", "uid": "only-c"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Ingress", "Egress"],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "c"}}}]}]
        }
    });
    fs::write(lab.manifests_of(1)?.join("policy-only-c.yaml"), policy.to_string())?;
    serve(&lab, "far", 2, &[&c])?;
    let target = SocketAddr::new(vip(2)[0], PORT);
    let listener = c.run(|| TcpListener::bind((c.address(Family::V4), TARGET)))?;
    let echo = std::thread::spawn(move || -> io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut word = [0; 4];
        while stream.read_exact(&mut word).is_ok() {
            stream.write_all(&word)?;
        }
        Ok(())
    });
    let mut stream = None;
    ensure!(
        within(SOON, || {
            stream = a.run(|| TcpStream::connect_timeout(&target, Duration::from_millis(300))).ok();
            stream.is_some()
        }),
        "{target} does not answer"
    );
    let mut stream = stream.context("no stream")?;
    stream.set_read_timeout(Some(GOES_ON))?;
    let mut says = |word: &[u8; 4]| -> io::Result<bool> {
        let mut back = [0; 4];
        stream.write_all(word)?;
        stream.read_exact(&mut back)?;
        Ok(back == *word)
    };
    ensure!(says(b"one ")?);
    let _answers = Responder::start(c.namespace(), TARGET + 1, "c").ok();
    lab.kill("n1", Role::Fastpath)?;
    lab.start("n1", Role::Fastpath)?;
    ensure!(says(b"two ")?, "what was begun goes on");
    lab.kill("n1", Role::Fastpath)?;
    lab.kill("n1", Role::Agent)?;
    lab.start("n1", Role::Agent)?;
    lab.start("n1", Role::Fastpath)?;
    ensure!(says(b"thre")?, "when both die, too");
    drop(stream);
    drop(echo.join());
    let asked = UdpQuestioner::open(a.namespace(), SocketAddr::new(c.address(Family::V4), TARGET + 1))?;
    ensure!(within(SOON, || asked.ask().is_ok()), "what the policy allows is allowed");
    Ok(())
}
