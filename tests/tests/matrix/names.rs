//! Names of the mesh, asked of the node's own address: pods that may do nothing reach it, and nobody finds anything else there.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use causeway_model::policy::Verdict;
use causeway_model::why::{Judged, Outcome};
use causeway_model::{DropReason, Family, IpNetwork};
use causeway_tests::lab::{Lab, Node, Pod};
use causeway_tests::namespace::Namespace;
use causeway_tests::traffic::{Query, Responder, Rtype, ask_tcp, ask_udp, resolve, resolve_tcp, resolve_udp};
use serde_json::{Value, json};

use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    ("a_pod_that_may_do_nothing_resolves", a_pod_that_may_do_nothing_resolves),
    ("a_forwarder_gets_all_that_there_is", a_forwarder_gets_all_that_there_is),
    ("nothing_else_is_there", nothing_else_is_there),
    ("nobody_else_gets_there", nobody_else_gets_there),
];

/// Where every node answers.
const ADDRESSES: [&str; 2] = ["169.254.53.53", "fd53::53"];
/// A service that the lab's cluster exports, and the prefix that its address is out of.
const NAME: &str = "web.default.svc.clusterset.local";
const CLUSTERSET: &str = "172.30.0.0/16";
/// A headless service with more pods than an answer by UDP has room for.
const MANY: &str = "db.default.svc.clusterset.local";
const PODS: u8 = 100;
/// How soon a change of an object must be in force.
const SOON: Duration = Duration::from_secs(5);

fn addresses() -> anyhow::Result<[IpAddr; 2]> {
    Ok([ADDRESSES[0].parse()?, ADDRESSES[1].parse()?])
}

/// A lab whose nodes answer: pods a and b on the first, c on the second.
fn lab(matrix: &Matrix) -> anyhow::Result<(Lab, [Node; 2], [Pod; 3])> {
    let line = format!("clusterset_dns: [{}, \"{}\"]", ADDRESSES[0], ADDRESSES[1]);
    let line = matrix.sabotage("names-unsaid", String::new).unwrap_or(line);
    let lab = matrix.lab(|spec| spec.config.extend([format!("clusterset_cidr: [{CLUSTERSET}]"), line]))?;
    export(&lab)?;
    let pods = [lab.add_pod("n1", "a")?, lab.add_pod("n1", "b")?, lab.add_pod("n2", "c")?];
    let nodes = [lab.node("n1")?, lab.node("n2")?];
    Ok((lab, nodes, pods))
}

/// Nobody may begin or take anything.
fn isolate_all(lab: &Lab) -> anyhow::Result<()> {
    put(
        lab,
        &json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "nothing", "namespace": "default", "uid": "nothing"},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
        }),
    )
}

/// Offers a service that nobody serves, and a headless one.
fn export(lab: &Lab) -> anyhow::Result<()> {
    for (name, address) in [("web", "10.96.7.1"), ("db", "None")] {
        let metadata = json!({"namespace": "default", "name": name});
        let spec = json!({"clusterIP": address, "clusterIPs": [address], "ports": [{"port": 80}]});
        put(lab, &json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}))?;
        let version = "multicluster.x-k8s.io/v1beta1";
        put(lab, &json!({"apiVersion": version, "kind": "ServiceExport", "metadata": metadata}))?;
    }
    let labels = json!({"kubernetes.io/service-name": "db"});
    let endpoint =
        |last: u8| json!({"addresses": [Ipv4Addr::new(198, 51, 100, last)], "conditions": {"ready": true}});
    put(
        lab,
        &json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "default", "name": "db-1", "labels": labels},
            "ports": [{"name": "", "port": 80}],
            "endpoints": (1..=PODS).map(endpoint).collect::<Vec<_>>(),
        }),
    )
}

fn put(lab: &Lab, object: &Value) -> anyhow::Result<()> {
    let text =
        |value: &Value| value.as_str().map(str::to_owned).context("an object without a kind or a name");
    let (kind, name) = (text(&object["kind"])?, text(&object["metadata"]["name"])?);
    let file = lab.manifests_of(1)?.join(format!("names-{kind}-{name}.yaml"));
    let aside = file.with_extension("new");
    fs::write(&aside, object.to_string())?;
    Ok(fs::rename(aside, file)?)
}

/// By both transports, at both addresses, what the service has.
fn assert_resolves(who: &str, from: &Namespace) -> anyhow::Result<()> {
    let prefix: IpNetwork = CLUSTERSET.parse()?;
    for address in addresses()? {
        let server = SocketAddr::new(address, 53);
        let query = Query::plain(NAME, Rtype::A);
        for (by, answer) in
            [("UDP", resolve_udp(from, server, &query)), ("TCP", resolve_tcp(from, server, &query))]
        {
            let answer = answer.with_context(|| format!("{who} asks {address} by {by}"))?;
            let [found] = answer.addresses()[..] else { anyhow::bail!("{who} by {by}: {answer:?}") };
            ensure!(prefix.contains(found), "{who} by {by}: {answer:?}");
        }
    }
    Ok(())
}

fn a_pod_that_may_do_nothing_resolves(matrix: &Matrix) -> anyhow::Result<()> {
    let (lab, [n1, n2], pods) = lab(matrix)?;
    isolate_all(&lab)?;
    let [a, b, c] = &pods;
    for family in Family::BOTH {
        ensure!(
            within(SOON, || !a.ping(b.address(family)) && !a.ping(c.address(family))),
            "a is not isolated"
        );
    }
    for pod in &pods {
        assert_resolves(pod.name(), pod.namespace())?;
    }
    for node in [&n1, &n2] {
        assert_resolves(node.name(), node.namespace())?;
    }
    for (pod, node) in [(a, &n1), (b, &n1), (c, &n2)] {
        let why = node.why(&format!("default/{} {} udp/53", pod.name(), ADDRESSES[0]))?;
        let Judged::Here { reason, .. } = &why.sides[0].judged else { anyhow::bail!("{why:?}") };
        ensure!(why.verdict == Some(Verdict::Allow) && reason.contains("names"), "{why:?}");
    }
    let names = n1.status()?.names;
    ensure!(names.udp >= 6 && names.tcp >= 6 && names.malformed + names.dropped == 0, "{names:?}");
    // What guards the address is what the agent finds there when it looks again.
    ensure!(n1.status()?.repairs == 0, "the agent mends what it has made: {:?}", n1.status()?.mended);
    Ok(())
}

fn a_forwarder_gets_all_that_there_is(matrix: &Matrix) -> anyhow::Result<()> {
    let (lab, [n1, n2], pods) = lab(matrix)?;
    isolate_all(&lab)?;
    let all: BTreeSet<IpAddr> = (1..=PODS).map(|last| [198, 51, 100, last].into()).collect();
    let places = [n1.namespace(), n2.namespace()];
    let first = SocketAddr::new(addresses()?[0], 53);
    for node in places {
        let many = || resolve(node, first, &Query::plain(MANY, Rtype::A));
        let known = || many().is_ok_and(|said| said.addresses().len() == all.len());
        ensure!(within(SOON, known), "{} knows {:?}", node.name(), many());
    }
    for from in pods.iter().map(Pod::namespace).chain(places) {
        for server in addresses()?.map(|address| SocketAddr::new(address, 53)) {
            let who = || format!("{} asks {server}", from.name());
            // By UDP what passes every link, whatever is said to have room; by TCP the rest.
            let plain = (Query::plain(MANY, Rtype::A), 512);
            let forwarded =
                [512, 1232, 4096].map(|size| (Query::forwarded(MANY, Rtype::A, size), size.min(1232)));
            for (query, most) in [plain].into_iter().chain(forwarded) {
                let cut = resolve_udp(from, server, &query).with_context(who)?;
                let fits = cut.truncated && cut.len <= most.into() && !cut.answers.is_empty();
                ensure!(fits, "{}: {query:?} has {cut:?}", who());
                let whole = resolve(from, server, &query).with_context(who)?;
                let found: BTreeSet<_> = whole.addresses().into_iter().collect();
                ensure!(!whole.truncated && found == all, "{}: {query:?} has {whole:?}", who());
            }
            // CoreDNS takes a server for alive that says anything to this.
            let health = resolve_udp(from, server, &Query::plain(".", Rtype::NS)).with_context(who)?;
            ensure!(health.code == "REFUSED" && health.answers.is_empty(), "{}: {health:?}", who());
        }
    }
    Ok(())
}

fn nothing_else_is_there(matrix: &Matrix) -> anyhow::Result<()> {
    let (_lab, [n1, _], [a, b, _]) = lab(matrix)?;
    assert_resolves("the node", n1.namespace())?;
    // The node has it at every address of its own; for pods it is at any but this.
    let _there = Responder::start(n1.namespace(), 5353, "n1")?;
    for pod in [&a, &b] {
        for (address, family) in addresses()?.into_iter().zip(Family::BOTH) {
            let own = SocketAddr::new(n1.address(family), 5353);
            ask_tcp(pod.namespace(), own).with_context(|| format!("{} asks {own}", pod.name()))?;
            let before = n1.drops(DropReason::ServiceRefused)?;
            let target = SocketAddr::new(address, 5353);
            for (by, answer) in
                [("TCP", ask_tcp(pod.namespace(), target)), ("UDP", ask_udp(pod.namespace(), target))]
            {
                let refused =
                    answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
                ensure!(refused, "{} at {target} by {by}: {answer:?}", pod.name());
            }
            ensure!(!pod.ping(address), "{} pings {address}", pod.name());
            let counted = n1.drops(DropReason::ServiceRefused)? - before;
            ensure!(counted >= 3, "{counted} refusals were counted of {}", pod.name());
            ask_tcp(n1.namespace(), target).context("the node itself")?;
        }
        let why = n1.why(&format!("default/{} {} tcp/5353", pod.name(), ADDRESSES[0]))?;
        let refused = why.through.as_ref().is_some_and(|through| through.outcome == Outcome::Refused);
        ensure!(refused && why.verdict.is_none(), "{why:?}");
    }
    Ok(())
}

fn nobody_else_gets_there(matrix: &Matrix) -> anyhow::Result<()> {
    let (lab, [n1, _], _pods) = lab(matrix)?;
    assert_resolves("the node", n1.namespace())?;
    let outside = lab.add_host("outside", &["192.0.2.201".parse()?, "2001:db8::c9".parse()?])?;
    for (address, family) in addresses()?.into_iter().zip(Family::BOTH) {
        let node = n1.address(family);
        outside.ip(&format!("route add {node} dev eth0"))?;
        outside.ip(&format!("route add {address} via {node} dev eth0"))?;
        let before = n1.drops(DropReason::NoRoute)?;
        let answer = resolve_udp(&outside, SocketAddr::new(address, 53), &Query::plain(NAME, Rtype::A));
        ensure!(answer.is_err(), "{address} answers who is no pod of the node: {answer:?}");
        ensure!(n1.drops(DropReason::NoRoute)? > before, "{address}: nobody has come there");
    }
    Ok(())
}
