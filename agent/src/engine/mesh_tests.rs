use causeway_model::PortProtocol;
use causeway_model::service::{Answer, At, Backend, Frontend, Services};
use causeway_model::why::WhyQuery;
use serde_json::{Value, json};

use super::bench::{Bench, CLUSTER};
use super::*;

/// The namespace into which things are imported.
const SHOP: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n---\n";
const EXPORT: &str = "\
---
{apiVersion: multicluster.x-k8s.io/v1beta1, kind: ServiceExport, metadata: {name: web, namespace: shop}}
---
";

/// Another cluster, with a node.
fn cluster(name: &str, id: u32, net: u8) -> String {
    format!(
        "{{apiVersion: causeway.dev/v1alpha1, kind: Cluster, metadata: {{name: {name}}}, spec: {{id: {id}, podCIDRs: [10.{net}.0.0/16], serviceCIDRs: [10.1{net}.0.0/16]}}}}\n\
         ---\n{{apiVersion: v1, kind: Node, metadata: {{name: n1, annotations: {{causeway.dev/underlay: 192.0.2.{net}}}}}, spec: {{podCIDRs: [10.{net}.1.0/24]}}}}\n---\n"
    )
}

/// A service and its backends.
fn web(more: &str, addresses: &[&str]) -> String {
    let endpoints: Vec<_> = addresses.iter().map(|address| format!("{{addresses: [{address}]}}")).collect();
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: shop}}, spec: {{ports: [{{name: http, port: 80}}]{more}}}}}\n---\n\
         {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}, \
         addressType: IPv4, ports: [{{name: http, port: 8080}}], endpoints: [{}]}}\n",
        endpoints.join(", ")
    )
}

fn world(files: &[(&str, &str)]) -> Arc<World> {
    Arc::new(World::of_files([("cluster.yaml", CLUSTER), ("shop.yaml", SHOP)].iter().chain(files).copied()))
}

fn bench() -> Bench {
    Bench { config: "clusterset_cidr: [172.30.0.0/24]\n", ..Bench::new() }
}

fn told(bench: &Bench) -> Arc<Services> {
    bench.dataplane.log().snapshot.as_ref().expect("a state was told").services.clone()
}

/// The one frontend of imports.
fn frontend(services: &Services) -> Option<Frontend> {
    let prefix: ipnetwork::IpNetwork = "172.30.0.0/24".parse().unwrap();
    let mut found = services.frontends.keys().filter(|frontend| match frontend.at {
        At::Address(address) => prefix.contains(address),
        At::Nodes(_) => false,
    });
    let frontend = found.next().copied();
    assert_eq!(found.next(), None);
    frontend
}

/// Who gets connections there.
fn chosen(services: &Services) -> Vec<String> {
    let backends = frontend(services).map(|frontend| services.frontends[&frontend].inside);
    let of = |Backend { address, port }: &Backend| format!("{address}:{port}");
    match backends {
        Some(Answer::Backends(id)) => services.backends[&id].chosen.iter().map(of).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn an_import_is_a_frontend_with_the_backends_of_all_clusters() {
    let bench = bench();
    let engine = bench.start();
    let here = web(", clusterIP: 10.96.0.7", &["10.70.1.4"]);
    let paris = cluster("paris", 2, 80) + &web(", sessionAffinity: ClientIP", &["10.80.1.4"]);
    engine.hear(Ok(world(&[("web.yaml", &here), ("clusters/paris/all.yaml", &paris)])));
    assert_eq!(frontend(&told(&bench)), None, "nobody exports it");
    let exported = paris.clone() + EXPORT;
    engine.hear(Ok(world(&[("web.yaml", &here), ("clusters/paris/all.yaml", &exported)])));
    let services = told(&bench);
    let at = frontend(&services).expect("it is imported");
    assert_eq!((at.protocol, at.port), (PortProtocol::Tcp, 80));
    assert_eq!(chosen(&services), ["10.80.1.4:8080"], "this cluster's own is not exported");
    assert_eq!(services.frontends[&at].affinity, Some(10_800));
    assert_eq!(services.frontends[&at].id.to_string(), "shop/web.clusterset.local:http");
    assert!(services.prefixes.contains(&"172.30.0.0/24".parse().unwrap()));
    bench.dataplane.calls();
    let both = here.clone() + EXPORT;
    engine.hear(Ok(world(&[("web.yaml", &both), ("clusters/paris/all.yaml", &exported)])));
    assert_eq!(bench.dataplane.calls(), ["changes"]);
    assert_eq!(chosen(&told(&bench)), ["10.70.1.4:8080", "10.80.1.4:8080"]);
    assert_eq!(frontend(&told(&bench)), Some(at), "its address stays");
    engine.hear(Ok(world(&[("web.yaml", &here), ("clusters/paris/all.yaml", &paris)])));
    assert_eq!(frontend(&told(&bench)), None, "nobody exports it any more");
    let own = Frontend { at: At::Address("10.96.0.7".parse().unwrap()), ..at };
    assert!(told(&bench).frontends.contains_key(&own), "the service itself is another matter");
}

#[test]
fn a_preference_by_weight_reaches_the_data_path_and_is_told_of() {
    let bench = bench();
    let engine = bench.start();
    let wish = "---\n{apiVersion: multicluster.x-k8s.io/v1beta1, kind: ServiceImport, \
                metadata: {name: web, namespace: shop, annotations: {causeway.dev/prefer: 'cluster:paris*3,cluster:lyon'}}}\n";
    let here = web(", clusterIP: 10.96.0.7", &["10.70.1.4"]) + EXPORT;
    let paris = cluster("paris", 2, 80) + &web("", &["10.80.1.4", "10.80.1.5"]) + EXPORT;
    let hear = |here: &str| {
        engine.hear(Ok(world(&[("web.yaml", here), ("clusters/paris/all.yaml", &paris)])));
        let services = told(&bench);
        let at = frontend(&services).expect("it is imported");
        let Answer::Backends(id) = services.frontends[&at].inside else { panic!("it is served") };
        (at, services.backends[&id].weights.clone())
    };
    let (at, weights) = hear(&(here.clone() + wish));
    assert_eq!(chosen(&told(&bench)), ["10.70.1.4:8080", "10.80.1.4:8080", "10.80.1.5:8080"]);
    assert_eq!(weights, [2, 3, 3], "a quarter is left for one here");
    let At::Address(address) = at.at else { panic!("{at}") };
    let query = WhyQuery {
        from: "host".to_owned(),
        to: address.to_string(),
        protocol: Some("tcp".to_owned()),
        port: Some(80),
        probe: false,
    };
    let through = engine.why(&query).ok().and_then(|why| why.through).expect("it is a service's address");
    assert!(through.reason.contains("one of 3 backends, by weight"), "{}", through.reason);
    let parts: Vec<_> = through.behind.iter().map(|one| one.weight).collect();
    assert_eq!(parts, [Some(2), Some(3), Some(3)]);
    assert_eq!(hear(&here).1, [0; 0], "without a wish all get the same");
}

#[test]
fn a_lost_cluster_has_no_backends_until_it_is_found() {
    let bench = bench();
    let engine = bench.start();
    let paris = cluster("paris", 2, 80) + &web("", &["10.80.1.4"]) + EXPORT;
    let rome = cluster("rome", 3, 81) + &web("", &["10.81.1.4"]) + EXPORT;
    let mut files = vec![("clusters/paris/all.yaml", paris.as_str()), ("clusters/rome/all.yaml", &rome)];
    engine.hear(Ok(world(&files)));
    let at = frontend(&told(&bench));
    files.push(("clusters/paris/lost", "45s"));
    engine.hear(Ok(world(&files)));
    assert_eq!((chosen(&told(&bench)), frontend(&told(&bench))), (vec!["10.81.1.4:8080".to_owned()], at));
    let lost = "Cluster paris is marked lost: what was known of it was 45 s old";
    assert!(engine.report().status.problems.iter().any(|problem| problem == lost));
    files.pop();
    engine.hear(Ok(world(&files)));
    assert_eq!(chosen(&told(&bench)), ["10.80.1.4:8080", "10.81.1.4:8080"]);
    files.push(("clusters/rome/lost", ""));
    files.push(("clusters/paris/lost", ""));
    engine.hear(Ok(world(&files)));
    let services = told(&bench);
    assert_eq!(frontend(&services), at, "it is imported still");
    assert_eq!(services.frontends[&at.unwrap()].inside, Answer::Refuse);
}

#[test]
fn addresses_and_who_was_first_outlive_the_agent() {
    let bench = bench();
    let paris = cluster("paris", 2, 80) + &web("", &["10.80.1.4"]) + EXPORT;
    let claims = |name, net| cluster(name, 2, net) + &web("", &[&format!("10.{net}.1.4")]) + EXPORT;
    // By its name it would be before the other.
    let oslo = claims("oslo", 81);
    let before = {
        let engine = bench.start();
        engine.hear(Ok(world(&[("clusters/paris/all.yaml", &paris)])));
        frontend(&told(&bench)).expect("it is imported")
    };
    let engine = bench.start();
    engine.hear(Ok(world(&[("clusters/oslo/all.yaml", &oslo), ("clusters/paris/all.yaml", &paris)])));
    assert_eq!(frontend(&told(&bench)), Some(before));
    assert_eq!(chosen(&told(&bench)), ["10.80.1.4:8080"]);
    let refused = "Cluster oslo is left out with all its nodes: its id 2 is that of cluster paris";
    let problems = engine.report().status.problems;
    assert!(problems.iter().any(|problem| problem == refused), "{problems:?}");
    let peers: Vec<_> = bench.dataplane.log().snapshot.as_ref().unwrap().peers.keys().cloned().collect();
    assert_eq!(peers.iter().map(ToString::to_string).collect::<Vec<_>>(), ["paris/n1"], "what runs goes on");
    engine.hear(Ok(world(&[("clusters/oslo/all.yaml", &oslo)])));
    assert_eq!(chosen(&told(&bench)), ["10.81.1.4:8080"], "once who was first is gone");
}

#[test]
fn a_prefix_of_addresses_and_a_cluster_that_comes_later_do_not_share_any() {
    let bench = Bench { config: "clusterset_cidr: [10.70.4.0/24, 172.30.0.0/24]\n", ..Bench::new() };
    let engine = bench.start();
    let paris = cluster("paris", 2, 80) + &web("", &["10.80.1.4"]) + EXPORT;
    let rome = "{apiVersion: causeway.dev/v1alpha1, kind: Cluster, metadata: {name: rome}, spec: {id: 3, podCIDRs: [172.30.0.0/16]}}";
    engine.hear(Ok(world(&[("clusters/paris/all.yaml", &paris)])));
    engine.hear(Ok(world(&[("clusters/paris/all.yaml", &paris), ("clusters/rome/all.yaml", rome)])));
    let problems = engine.report().status.problems;
    for expected in [
        "clusterset-cidr 10.70.4.0/24 overlaps 10.70.0.0/16 of cluster lyon",
        "Cluster rome is left out with all its nodes: its prefix 172.30.0.0/16 overlaps clusterset-cidr 172.30.0.0/24 of cluster lyon",
    ] {
        assert!(problems.iter().any(|problem| problem == expected), "{expected:?} in {problems:?}");
    }
    assert!(frontend(&told(&bench)).is_some());
}

#[test]
fn a_service_for_clients_of_their_own_node_is_served_there_alone() {
    let bench = bench();
    let engine = bench.start();
    let more = ", internalTrafficPolicy: Local";
    let both = |own: &[&str]| {
        let here = web(more, own) + EXPORT;
        let paris = cluster("paris", 2, 80) + &web(more, &["10.80.1.4"]) + EXPORT;
        engine.hear(Ok(world(&[("web.yaml", &here), ("clusters/paris/all.yaml", &paris)])));
        let services = told(&bench);
        (chosen(&services), services.frontends[&frontend(&services).unwrap()].inside)
    };
    assert_eq!(both(&["10.70.1.4", "10.70.2.4"]).0, ["10.70.1.4:8080"]);
    assert_eq!(both(&["10.70.2.4"]).1, Answer::Drop);
}

#[test]
fn exports_and_imports_have_their_statuses_in_files() {
    let bench = bench();
    let directory = bench.directory.path().join("status");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("ServiceImport_shop_old.json"), "{}").unwrap();
    std::fs::write(directory.join("ServiceImport.txt"), "mine").unwrap();
    let read = |file: &str| -> Value {
        serde_json::from_slice(&std::fs::read(directory.join(file)).unwrap()).unwrap()
    };
    let condition = |object: &Value, kind: &str| {
        let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|condition| condition["type"] == kind).expect("it is there")
    };
    let here = web("", &["10.70.1.4"]) + EXPORT;
    let paris = cluster("paris", 2, 80) + &web(", sessionAffinity: ClientIP", &["10.80.1.4"]) + EXPORT;
    let engine = bench.start();
    engine.hear(Ok(world(&[("web.yaml", &here), ("clusters/paris/all.yaml", &paris)])));
    let names = || {
        let files = std::fs::read_dir(&directory).unwrap();
        let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let (export, import) = ("ServiceExport_shop_web.json", "ServiceImport_shop_web.json");
    assert_eq!(names(), [export, "ServiceImport.txt", import]);
    let conflict = condition(&read(export), "Conflict");
    assert_eq!(
        (&conflict["status"], &conflict["reason"]),
        (&json!("True"), &json!("SessionAffinityConflict"))
    );
    let object = read(import);
    assert_eq!(object["spec"]["ips"].as_array().map(Vec::len), Some(1));
    assert_eq!(object["status"]["clusters"], json!([{"cluster": "lyon"}, {"cluster": "paris"}]));
    let since = condition(&object, "Ready")["lastTransitionTime"].clone();
    drop(engine);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    // A restart and another port later it has been ready all the time.
    let engine = bench.start();
    let more = here.replace("port: 80}", "port: 80}, {name: more, port: 81}");
    engine.hear(Ok(world(&[("web.yaml", &more)])));
    let object = read(import);
    assert_eq!(condition(&object, "Ready")["lastTransitionTime"], since);
    assert_eq!(object["spec"]["ports"].as_array().map(Vec::len), Some(2));
    assert_eq!(condition(&read(export), "Conflict")["status"], "False");
    engine.hear(Ok(world(&[])));
    assert_eq!(names(), ["ServiceImport.txt"]);
}

fn why(engine: &Engine, to: &str, port: Option<u16>) -> Result<causeway_model::why::Why, String> {
    let query = WhyQuery {
        from: "shop/client".into(),
        to: to.into(),
        protocol: port.map(|_| "tcp".into()),
        port,
        probe: false,
    };
    engine.why(&query).map_err(|unanswered| match unanswered {
        Unanswered::Question(why) | Unanswered::Trouble(why) => why,
    })
}

#[test]
fn why_walks_from_a_name_to_its_backends_and_stops_at_what_is_missing() {
    let bench = bench();
    let engine = bench.start();
    let client = bench::pod("client", "", "");
    let paris = cluster("paris", 2, 80) + &web("", &["10.80.1.4"]);
    let files = |paris: &str| world(&[("client.yaml", client.as_str()), ("clusters/paris/all.yaml", paris)]);
    const NAME: &str = "web.shop.svc.clusterset.local";
    engine.hear(Ok(files(&paris)));
    engine.try_add_pod("c1", Some("client")).unwrap();
    let no = |name: &str| why(&engine, name, None).expect_err("it has no answer");
    assert_eq!(no(NAME), format!("to: {NAME}: no cluster exports shop/web"));
    let unread = paris.clone() + &EXPORT.replace("name: web", "name: other");
    engine.hear(Ok(files(&unread)));
    assert_eq!(
        no("other.shop.svc.clusterset.local"),
        "to: other.shop.svc.clusterset.local: paris's export: Valid False: there is no Service of this name that can be read"
    );
    let away = (paris.clone() + EXPORT).replace("namespace: shop", "namespace: away");
    engine.hear(Ok(files(&away)));
    assert_eq!(
        no("web.away.svc.clusterset.local"),
        "to: web.away.svc.clusterset.local: away/web is exported, and namespace away is not imported here or not there"
    );
    engine.hear(Ok(files(&(paris.clone() + EXPORT))));
    assert_eq!(
        no("one.paris.web.shop.svc.clusterset.local").split(": ").nth(2),
        Some("shop/web is imported, and has no such name below it")
    );
    assert_eq!(
        no("web.clusterset.local").split(": ").nth(2),
        Some("names are NAME.NAMESPACE.svc.clusterset.local")
    );
    for port in [None, Some(80)] {
        let found = why(&engine, NAME, port).unwrap();
        let across = found.across.expect("it is an import's");
        assert_eq!((across.name.as_str(), across.choice.as_str()), (NAME, "all alike"));
        assert_eq!(across.backends.iter().map(|one| one.cluster.as_str()).collect::<Vec<_>>(), ["paris"]);
        let through = found.through.expect("it is a service's");
        assert_eq!(
            through.behind.iter().map(|one| one.to.address.to_string()).collect::<Vec<_>>(),
            ["10.80.1.4"]
        );
        let ends = &through.behind[0].sides;
        assert!(matches!(ends[0].judged, causeway_model::why::Judged::Here { .. }), "at the pod");
        assert!(
            matches!(&ends[1].judged, causeway_model::why::Judged::Elsewhere { node } if node.to_string() == "paris/n1")
        );
    }
    let closed = why(&engine, NAME, Some(81)).unwrap();
    assert_eq!(closed.through.map(|through| through.outcome), Some(causeway_model::why::Outcome::Refused));
}

#[test]
fn the_page_of_clusters_shows_exports_imports_and_who_is_refused() {
    let bench = bench();
    let engine = bench.start();
    let paris = cluster("paris", 2, 80) + &web("", &["10.80.1.4", "127.0.0.9"]) + EXPORT;
    let here = web(", sessionAffinity: ClientIP", &["10.70.1.4"])
        + EXPORT
        + "{apiVersion: multicluster.x-k8s.io/v1beta1, kind: ServiceImport, metadata: {name: web, namespace: shop, annotations: {causeway.dev/prefer: 'cluster:paris;cluster:lyon'}}}\n";
    let rome = cluster("rome", 2, 81);
    engine.hear(Ok(world(&[("clusters/paris/all.yaml", &paris)])));
    engine.hear(Ok(world(&[
        ("web.yaml", &here),
        ("clusters/paris/all.yaml", &paris),
        ("clusters/rome/all.yaml", &rome),
    ])));
    let at = frontend(&told(&bench)).unwrap();
    bench.dataplane.log().counters.services.insert(at, 7);
    let page = engine.clusterset(&Default::default());
    assert_eq!(page.exports.len(), 2);
    let import = &page.imports[0];
    assert_eq!((import.hits, import.conflicts.len()), (7, 1));
    assert_eq!(import.conflicts[0].about, "SessionAffinityConflict");
    assert!(import.choice.starts_with("prefer cluster:paris"), "{}", import.choice);
    let backends = import.ports[0].backends.iter().map(|one| (one.cluster.as_str(), one.tier, one.weight));
    assert_eq!(backends.collect::<Vec<_>>(), [("lyon", Some(2), 0), ("paris", Some(1), 1)]);
    assert_eq!(import.left_out.len(), 1);
    assert_eq!(page.refused[0].codes, ["duplicate-id:paris"]);
    let other = causeway_model::operator::ServiceQuery { name: Some("db".into()), ..Default::default() };
    assert!(engine.clusterset(&other).imports.is_empty());
}
