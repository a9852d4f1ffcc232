//! Services across clusters: one node each of two clusters, whose objects each sees.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use causeway_model::Family;
use causeway_model::policy::Verdict;
use causeway_tests::lab::{Lab, Node, Pod, PodSpec, Role};
use causeway_tests::traffic::{Responder, ask_tcp, ask_udp};
use serde_json::{Value, json};

use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    ("an_import_is_served_by_all_who_export_it", an_import_is_served_by_all_who_export_it),
    (
        "what_is_preferred_here_is_taken_from_elsewhere_while_it_is_not_there",
        what_is_preferred_here_is_taken_from_elsewhere_while_it_is_not_there,
    ),
    ("a_lost_cluster_serves_nobody_until_it_is_found", a_lost_cluster_serves_nobody_until_it_is_found),
    ("addresses_outlive_the_agent", addresses_outlive_the_agent),
    (
        "services_of_one_name_that_nobody_exports_stay_apart",
        services_of_one_name_that_nobody_exports_stay_apart,
    ),
    (
        "a_policy_that_names_a_cluster_is_about_its_backends",
        a_policy_that_names_a_cluster_is_about_its_backends,
    ),
];

/// The port that pods serve.
const PORT: u16 = 8080;
/// How long something may take at the utmost, with a question without an answer among it.
const PATIENCE: Duration = Duration::from_secs(15);
/// So many questions find each of two backends, but for one case in a million.
const ENOUGH: usize = 20;

/// Two clusters with a node each, n1 in c1 and n2 in c2.
fn lab(matrix: &Matrix) -> anyhow::Result<Lab> {
    matrix.lab(|spec| {
        spec.clusters = 2;
        spec.config.push("clusterset_cidr: [172.30.0.0/24, \"fd30::/112\"]".to_owned());
    })
}

/// The places at which objects of a cluster lie: its own, and the other's view of it.
fn places(lab: &Lab, cluster: usize) -> anyhow::Result<[PathBuf; 2]> {
    Ok([lab.manifests_of(cluster)?, view(lab, cluster)?])
}

/// Where the other cluster sees one.
fn view(lab: &Lab, cluster: usize) -> anyhow::Result<PathBuf> {
    Ok(lab.manifests_of(3 - cluster)?.join(format!("clusters/c{cluster}")))
}

fn put(lab: &Lab, cluster: usize, name: &str, object: &Value) -> anyhow::Result<()> {
    for place in places(lab, cluster)? {
        let file = place.join(format!("{name}.yaml"));
        let aside = file.with_extension("new");
        fs::write(&aside, object.to_string())?;
        fs::rename(aside, file)?;
    }
    Ok(())
}

fn delete(lab: &Lab, cluster: usize, name: &str) -> anyhow::Result<()> {
    for place in places(lab, cluster)? {
        fs::remove_file(place.join(format!("{name}.yaml")))?;
    }
    Ok(())
}

/// A cluster's service web, whose own address in that cluster is this.
fn put_service(lab: &Lab, cluster: usize, address: &str) -> anyhow::Result<()> {
    let spec = json!({
        "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4", "IPv6"],
        "ports": [{"name": "tcp", "port": 80, "protocol": "TCP"}, {"name": "udp", "port": 80, "protocol": "UDP"}],
    });
    let metadata = json!({"namespace": "default", "name": "web"});
    put(
        lab,
        cluster,
        "web",
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}),
    )
}

/// Says who is behind a cluster's service.
fn put_slices(lab: &Lab, cluster: usize, backends: &[&Pod]) -> anyhow::Result<()> {
    for (family, kind) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
        let endpoints: Vec<_> = backends
            .iter()
            .map(|pod| json!({"addresses": [pod.address(family)], "nodeName": pod.record.node}))
            .collect();
        let labels = json!({"kubernetes.io/service-name": "web"});
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
            "metadata": {"namespace": "default", "name": format!("web-{family}"), "labels": labels},
            "ports": [
                {"name": "tcp", "protocol": "TCP", "port": PORT}, {"name": "udp", "protocol": "UDP", "port": PORT}],
            "endpoints": endpoints,
        });
        put(lab, cluster, &format!("slice-{family}"), &slice)?;
    }
    Ok(())
}

fn of_mesh(kind: &str, name: &str, annotations: &Value) -> Value {
    let metadata = json!({"namespace": "default", "name": name, "annotations": annotations});
    json!({"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": kind, "metadata": metadata})
}

fn export(lab: &Lab, cluster: usize) -> anyhow::Result<()> {
    put(lab, cluster, "export", &of_mesh("ServiceExport", "web", &json!({})))
}

/// The service web of a cluster, exported, with one pod that answers with its name.
fn serve(matrix: &Matrix, lab: &Lab, cluster: usize, name: &str) -> anyhow::Result<(Pod, Responder)> {
    let pod = lab.add_pod(&format!("n{cluster}"), PodSpec::named(name).label("app", "web"))?;
    let responder = Responder::start(pod.namespace(), PORT, name)?;
    put_service(lab, cluster, &format!("10.{}.7.1", 95 + cluster))?;
    put_slices(lab, cluster, &[&pod])?;
    matrix.sabotage("export-unsaid", || ()).map_or_else(|| export(lab, cluster), |()| Ok(()))?;
    Ok((pod, responder))
}

/// Where a node's cluster has the import of a service, of both families, as its status says.
fn addresses(node: &Node, service: &str) -> Option<[SocketAddr; 2]> {
    let file = node.directory().join(format!("status/ServiceImport_default_{service}.json"));
    let object: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    let ips = object.pointer("/spec/ips")?.as_array()?.iter();
    let ips: Vec<IpAddr> = ips.filter_map(|ip| ip.as_str()?.parse().ok()).collect();
    let of = |family| ips.iter().find(|ip| Family::of(**ip) == family).map(|ip| SocketAddr::new(*ip, 80));
    Some([of(Family::V4)?, of(Family::V6)?])
}

fn imported(node: &Node, service: &str) -> anyhow::Result<[SocketAddr; 2]> {
    let mut found = None;
    within(PATIENCE, || {
        found = addresses(node, service);
        found.is_some()
    });
    found.with_context(|| format!("{} does not import {service}", node.name()))
}

/// Who answers a client at an address over both transports; nobody among them where one question has no answer.
fn asked(client: &Pod, target: SocketAddr) -> BTreeSet<String> {
    let ask = |number: usize| match number % 2 {
        0 => ask_tcp(client.namespace(), target),
        _ => ask_udp(client.namespace(), target),
    };
    let mut by = BTreeSet::new();
    for number in 0..2 * ENOUGH {
        match ask(number) {
            Ok(answer) => drop(by.insert(answer.by)),
            // The next would wait as long.
            Err(_) => {
                by.insert("nobody".to_owned());
                break;
            }
        }
    }
    by
}

/// Waits until these and no others answer a client at both addresses.
fn served(client: &Pod, targets: [SocketAddr; 2], by: &[&str]) -> anyhow::Result<()> {
    let wanted: BTreeSet<_> = by.iter().map(|name| (*name).to_owned()).collect();
    for target in targets {
        ensure!(
            within(PATIENCE, || asked(client, target) == wanted),
            "{} is answered by {:?} at {target}, not by {by:?}",
            client.name(),
            asked(client, target)
        );
    }
    Ok(())
}

fn an_import_is_served_by_all_who_export_it(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = lab(matrix)?;
    let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
    // Both pods of a mixed node: each of its paths.
    let clients = [lab.add_pod("n1", "a")?, lab.add_pod("n1", "b")?, lab.add_pod("n2", "c")?];
    let (_one, _first) = serve(matrix, &lab, 1, "one")?;
    let (_two, _second) = serve(matrix, &lab, 2, "two")?;
    let here = [imported(&n1, "web")?, imported(&n1, "web")?, imported(&n2, "web")?];
    for (client, targets) in clients.iter().zip(here) {
        served(client, targets, &["one", "two"])?;
    }
    // What nobody exports any more nobody imports.
    delete(&lab, 1, "export")?;
    for (client, targets) in clients.iter().zip(here) {
        served(client, targets, &["two"])?;
    }
    delete(&lab, 2, "export")?;
    for (client, targets) in clients.iter().zip(here) {
        served(client, targets, &["nobody"])?;
    }
    Ok(())
}

fn what_is_preferred_here_is_taken_from_elsewhere_while_it_is_not_there(
    matrix: &Matrix,
) -> anyhow::Result<()> {
    let lab = lab(matrix)?;
    let n1 = lab.node("n1")?;
    let (a, b) = (lab.add_pod("n1", "a")?, lab.add_pod("n1", "b")?);
    let wish = of_mesh("ServiceImport", "web", &json!({"causeway.dev/affinity": "local"}));
    put(&lab, 1, "import", &wish)?;
    let (_two, _second) = serve(matrix, &lab, 2, "two")?;
    let targets = imported(&n1, "web")?;
    served(&a, targets, &["two"])?;
    let (one, _first) = serve(matrix, &lab, 1, "one")?;
    for client in [&a, &b] {
        served(client, targets, &["one"])?;
    }
    put_slices(&lab, 1, &[])?;
    served(&a, targets, &["two"])?;
    put_slices(&lab, 1, &[&one])?;
    served(&a, targets, &["one"])?;
    put(
        &lab,
        1,
        "import",
        &of_mesh("ServiceImport", "web", &json!({"causeway.dev/prefer": "cluster:c2; cluster:c1"})),
    )?;
    for client in [&a, &b] {
        served(client, targets, &["two"])?;
    }
    Ok(())
}

fn a_lost_cluster_serves_nobody_until_it_is_found(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = lab(matrix)?;
    let n1 = lab.node("n1")?;
    let (a, b) = (lab.add_pod("n1", "a")?, lab.add_pod("n1", "b")?);
    let (_one, _first) = serve(matrix, &lab, 1, "one")?;
    let (_two, _second) = serve(matrix, &lab, 2, "two")?;
    let targets = imported(&n1, "web")?;
    served(&a, targets, &["one", "two"])?;
    let mark = view(&lab, 2)?.join("lost");
    for _ in 0..2 {
        if matrix.sabotage("loss-unsaid", || ()).is_none() {
            fs::write(&mark, "45s")?;
        }
        for client in [&a, &b] {
            served(client, targets, &["one"]).context("c2 is lost")?;
        }
        let problems = n1.status()?.problems;
        ensure!(
            problems.iter().any(|problem| problem.starts_with("Cluster c2 is marked lost")),
            "status says {problems:?}"
        );
        fs::remove_file(&mark)?;
        for client in [&a, &b] {
            served(client, targets, &["one", "two"])?;
        }
    }
    ensure!(imported(&n1, "web")? == targets, "its addresses have changed meanwhile");
    Ok(())
}

fn addresses_outlive_the_agent(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = lab(matrix)?;
    let n1 = lab.node("n1")?;
    let a = lab.add_pod("n1", "a")?;
    let (_two, _second) = serve(matrix, &lab, 2, "two")?;
    // One that comes and goes, so that there is more than one place to be remembered.
    put(&lab, 2, "export-other", &of_mesh("ServiceExport", "other", &json!({})))?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "other"},
        "spec": {"ports": [{"port": 80}], "ipFamilies": ["IPv4", "IPv6"]},
    });
    put(&lab, 2, "other", &service)?;
    let (web, other) = (imported(&n1, "web")?, imported(&n1, "other")?);
    served(&a, web, &["two"])?;
    delete(&lab, 2, "export-other")?;
    ensure!(within(PATIENCE, || addresses(&n1, "other").is_none()), "it is imported still");
    lab.kill("n1", Role::Agent)?;
    // What the data path has goes on.
    served(&a, web, &["two"])?;
    lab.start("n1", Role::Agent)?;
    put(&lab, 2, "export-other", &of_mesh("ServiceExport", "other", &json!({})))?;
    ensure!(imported(&n1, "web")? == web && imported(&n1, "other")? == other, "an address is another");
    served(&a, web, &["two"])
}

fn services_of_one_name_that_nobody_exports_stay_apart(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = lab(matrix)?;
    let (a, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n2", "c")?);
    let (_one, _first) = serve(matrix, &lab, 1, "one")?;
    let (_two, _second) = serve(matrix, &lab, 2, "two")?;
    let n1 = lab.node("n1")?;
    let targets = imported(&n1, "web")?;
    served(&a, targets, &["one", "two"])?;
    let own =
        |cluster: usize| -> anyhow::Result<SocketAddr> { Ok(format!("10.{}.7.1:80", 95 + cluster).parse()?) };
    // Each cluster's own address is its own affair, exported or not.
    let apart = || -> anyhow::Result<()> {
        for (client, target, by) in [(&a, own(1)?, "one"), (&c, own(2)?, "two")] {
            let found = asked(client, target);
            ensure!(found == BTreeSet::from([by.to_owned()]), "{found:?} answer at {target}");
        }
        Ok(())
    };
    apart()?;
    delete(&lab, 1, "export")?;
    served(&a, targets, &["two"])?;
    apart()?;
    delete(&lab, 2, "export")?;
    served(&a, targets, &["nobody"])?;
    apart()
}

fn a_policy_that_names_a_cluster_is_about_its_backends(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = lab(matrix)?;
    let n1 = lab.node("n1")?;
    let clients = ["a", "b"].map(|name| lab.add_pod("n1", PodSpec::named(name).label("app", "client")));
    let (_one, _first) = serve(matrix, &lab, 1, "one")?;
    let (_two, _second) = serve(matrix, &lab, 2, "two")?;
    let targets = imported(&n1, "web")?;
    let wish = |affinity: &str| of_mesh("ServiceImport", "web", &json!({"causeway.dev/affinity": affinity}));
    // A selector that names no cluster is about this one's namespaces.
    let only = |cluster: &str| {
        let named = json!({"matchLabels": {"causeway.dev/cluster": cluster}});
        let peers = json!([{"namespaceSelector": if cluster.is_empty() { json!({}) } else { named }}]);
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "default", "name": "out", "uid": "out"},
            "spec": {"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"], "egress": [{"to": peers}]},
        })
    };
    for client in clients {
        let client = client?;
        for (allowed, affinity, by) in [
            ("c2", "remote", "two"),
            ("c2", "local", "nobody"),
            ("", "local", "one"),
            ("", "remote", "nobody"),
        ] {
            put(&lab, 1, "import", &wish(affinity))?;
            put(&lab, 1, "policy", &only(allowed))?;
            served(&client, targets, &[by])
                .with_context(|| format!("{allowed:?} allowed, {affinity} asked"))?;
            let name = client.name();
            let why = n1.why(&format!("default/{name} web.default.svc.clusterset.local tcp/80"))?;
            let denied = why.verdict == Some(Verdict::Deny);
            ensure!(denied == (by == "nobody") && why.across.is_some(), "why says {why:?}");
        }
        delete(&lab, 1, "policy")?;
    }
    Ok(())
}
