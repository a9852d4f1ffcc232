//! Services from manifests to the data path.

use causeway_model::operator::{BackendState, ServiceQuery};
use causeway_model::policy::Verdict;
use causeway_model::service::{Answer, At, Backend, Frontend, Services};
use causeway_model::why::{Outcome, Why, WhyQuery};
use causeway_model::{HostServices, PortProtocol};

use super::bench::{Bench, CLUSTER, WEST, pod, world};
use super::*;

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}], externalTrafficPolicy: Local, healthCheckNodePort: 32000}
";

fn slice(addresses: &[&str]) -> String {
    let endpoints: Vec<_> =
        addresses.iter().map(|address| format!("{{addresses: [{address}], nodeName: east}}")).collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{}]\n",
        endpoints.join(", ")
    )
}

fn told(bench: &Bench) -> Arc<Services> {
    bench.dataplane.log().snapshot.as_ref().expect("a state was told").services.clone()
}

/// Who gets connections from this node's pods to an address and a port.
fn backends(services: &Services, address: &str, port: u16) -> Vec<Backend> {
    let at = At::Address(address.parse().unwrap());
    match services.frontends.get(&Frontend { at, protocol: PortProtocol::Tcp, port }).map(|s| s.inside) {
        Some(Answer::Backends(id)) => services.backends[&id].chosen.clone(),
        _ => Vec::new(),
    }
}

#[test]
fn a_service_reaches_the_data_path_whole_and_its_changes_as_changes() {
    let bench = Bench::new();
    let engine = bench.start();
    engine.hear(Ok(world(&[CLUSTER, WEB, &slice(&["10.70.1.4"])])));
    let services = told(&bench);
    assert_eq!(backends(&services, "10.96.0.1", 80).len(), 1);
    assert_eq!((services.frontends.len(), services.prefixes.len()), (2, 1));
    bench.dataplane.calls();
    engine.hear(Ok(world(&[CLUSTER, WEB, &slice(&["10.70.1.4", "10.70.1.5"])])));
    assert_eq!(backends(&told(&bench), "10.96.0.1", 80).len(), 2);
    assert_eq!(bench.dataplane.calls(), ["changes"], "one change, not the whole state again");
    engine.hear(Ok(world(&[CLUSTER, WEB, &slice(&["10.70.1.4", "10.70.1.5"])])));
    assert_eq!(bench.dataplane.calls(), Vec::<String>::new(), "nothing is new");
    engine.hear(Ok(world(&[CLUSTER])));
    assert_eq!(*told(&bench), Services { prefixes: services.prefixes.clone(), ..Services::default() });
}

#[test]
fn what_a_data_path_missed_it_is_told_with_the_whole_state() {
    let bench = Bench::new();
    let engine = bench.ready();
    bench.dataplane.log().fail = Some("changes");
    engine.hear(Ok(world(&[CLUSTER, WEB, &slice(&["10.70.1.4"])])));
    assert!(told(&bench).frontends.is_empty());
    bench.dataplane.log().fail = None;
    engine.hear(Ok(world(&[CLUSTER, WEB, &slice(&["10.70.1.4"])])));
    assert_eq!(backends(&told(&bench), "10.96.0.1", 80).len(), 1);
}

#[test]
fn the_host_s_services_are_left_to_kube_proxy_where_it_is_and_taken_where_it_goes() {
    let bench = Bench::new();
    let engine = bench.ready();
    let host = || {
        let settings = bench.dataplane.log().snapshot.as_ref().map(|snapshot| snapshot.settings.clone());
        settings.expect("a state was told").host_services
    };
    assert_eq!(host(), HostServices::Own);
    let find = |found: Result<Option<String>, String>| {
        engine.lock().parts.kube_proxy = Arc::new(move || found.clone());
        engine.mend();
    };
    find(Ok(Some("kube-proxy's nftables".to_owned())));
    assert_eq!(host(), HostServices::Deferred);
    assert!(engine.report().status.services.reason.contains("here are kube-proxy's nftables"));
    find(Err("no permission".to_owned()));
    assert_eq!(host(), HostServices::Deferred, "what was seen last holds");
    assert!(engine.report().status.problems.iter().any(|problem| problem.contains("no permission")));
    find(Ok(None));
    assert_eq!(host(), HostServices::Own);
}

#[test]
fn load_balancers_are_told_how_many_backends_are_here_unless_kube_proxy_tells_them() {
    let bench = Bench::new();
    let engine = bench.ready();
    let told = engine.health_checks();
    engine.hear(Ok(world(&[CLUSTER, WEB, &slice(&["10.70.1.4", "10.70.1.5"])])));
    let health = *told.borrow().values().next().expect("the service asks for it");
    assert_eq!((health.port, health.v4, health.v6), (32000, Some(2), None));
    engine.lock().parts.kube_proxy = Arc::new(|| Ok(Some("kube-proxy".to_owned())));
    engine.mend();
    assert!(told.borrow().is_empty());
}

const API: &str = "
apiVersion: v1
kind: Service
metadata: {name: kubernetes, namespace: default}
spec: {clusterIP: 10.96.0.9, ports: [{name: https, port: 443}]}
";
const API_SLICE: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}
addressType: IPv4
ports: [{name: https, port: 6443}]
endpoints: [{addresses: [192.0.2.7]}]
";

#[test]
fn configured_api_servers_stand_in_until_a_slice_tells_of_them() {
    let bench = Bench::new();
    let engine = bench.ready();
    engine.lock().parts.config.api_servers = vec!["192.0.2.5:6443".parse().unwrap()];
    let addresses = || -> Vec<String> {
        backends(&told(&bench), "10.96.0.9", 443).iter().map(|one| one.address.to_string()).collect()
    };
    engine.hear(Ok(world(&[CLUSTER, API])));
    assert_eq!(addresses(), ["192.0.2.5"]);
    engine.hear(Ok(world(&[CLUSTER, API, API_SLICE])));
    assert_eq!(addresses(), ["192.0.2.7"]);
    engine.hear(Ok(world(&[CLUSTER, API])));
    assert_eq!(addresses(), ["192.0.2.5"]);
}

#[test]
fn what_is_wrong_with_services_is_said_and_disturbs_no_other() {
    let bench = Bench::new();
    let engine = bench.ready();
    let bad = "
apiVersion: v1
kind: Service
metadata: {name: bad, namespace: shop}
spec: {clusterIP: 10.96.0.2, ports: [{port: 0}, {port: 81}], externalIPs: [10.96.0.1]}
";
    let knative = "
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: hello, namespace: shop}
";
    let thief = bad
        .replace("name: bad", "name: thief")
        .replace("10.96.0.2", "10.96.0.3")
        .replace("port: 0", "port: 80");
    let texts = [CLUSTER, WEB, bad, knative, &thief, &slice(&["10.70.1.4"])];
    let named: Vec<_> = texts.iter().enumerate().map(|(n, text)| (format!("{n}.yaml"), *text)).collect();
    let world = World::of_files(named.iter().map(|(name, text)| (name.as_str(), *text)));
    engine.hear(Ok(Arc::new(world)));
    let problems = engine.report().status.problems;
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(
        problems[0].contains("Service/shop/bad: taken up in part")
            && problems[0].contains("spec.ports[0].port")
    );
    assert!(
        problems[2].contains("10.96.0.1:80/tcp is Service shop/web's, and shop/thief has it not"),
        "{}",
        problems[2]
    );
    assert_eq!(backends(&told(&bench), "10.96.0.1", 80).len(), 1);
    let status = engine.report().status.services;
    assert_eq!((status.services, status.backends), (3, 1));
}

fn why(engine: &Engine, from: &str, to: &str, port: u16) -> Result<Why, String> {
    let (from, to) = (from.to_owned(), to.to_owned());
    let query = WhyQuery { from, to, protocol: Some("tcp".to_owned()), port: Some(port), probe: false };
    engine.why(&query).map_err(|unanswered| match unanswered {
        Unanswered::Question(text) | Unanswered::Trouble(text) => text,
    })
}

#[test]
fn why_goes_through_a_service_to_each_of_its_backends() {
    let bench = Bench::new();
    let engine = bench.start();
    let isolated = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: alone, uid: f62e}
spec: {podSelector: {matchLabels: {app: web}}, ingress: []}
";
    let elsewhere = "
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: far}
spec: {containers: []}
status: {podIPs: [{ip: 10.70.2.9}]}
";
    let (one, client) = (pod("one", "", "app: web"), pod("client", "", ""));
    let web = slice(&["10.70.1.3", "10.70.2.9"]);
    engine.hear(Ok(world(&[CLUSTER, WEST, WEB, &web, isolated, elsewhere, &one, &client])));
    assert_eq!(
        engine.try_add_pod("c1", Some("one")).unwrap().addresses[0].address.ip().to_string(),
        "10.70.1.3"
    );
    engine.try_add_pod("c2", Some("client")).unwrap();

    for to in ["10.96.0.1", "shop/web"] {
        let answer = why(&engine, "shop/client", to, 80).unwrap();
        let through = answer.through.expect("it is a service's address");
        assert_eq!(through.service.map(|service| service.to_string()).as_deref(), Some("shop/web"));
        let behind: Vec<_> =
            through.behind.iter().map(|one| (one.to.who.as_str(), one.port, one.verdict)).collect();
        let expected = [
            ("pod shop/one", 8080, Some(Verdict::Deny)),
            ("pod shop/far of cluster lyon", 8080, Some(Verdict::Allow)),
        ];
        assert_eq!((behind, answer.verdict), (expected.to_vec(), None), "it depends on the backend");
    }
    let through = |to: &str, port| {
        why(&engine, "shop/client", to, port).unwrap().through.map(|t| (t.outcome, t.reason))
    };
    let (outcome, reason) = through("10.96.0.1", 81).unwrap();
    assert_eq!((outcome, reason.contains("no such port")), (Outcome::Refused, true), "{reason}");
    assert_eq!(through("10.96.0.99", 80).unwrap().0, Outcome::Dropped, "nobody has it");
    assert!(
        matches!(through("192.0.2.12", 30080).unwrap().0, Outcome::Served(all) if all.len() == 2),
        "a node port"
    );
    assert_eq!(through("10.70.2.9", 80), None, "a pod asked directly");
    assert_eq!(
        why(&engine, "host", "192.0.2.12", 30080).unwrap().through,
        None,
        "over the underlay to that node"
    );
    let elsewhere = why(&engine, "shop/far", "shop/web", 80).unwrap_err();
    assert!(elsewhere.contains("a pod of node lyon/west, which translates for it: ask there"), "{elsewhere}");
    let portless = WhyQuery { from: "host".into(), to: "shop/web".into(), ..WhyQuery::default() };
    assert!(matches!(engine.why(&portless), Err(Unanswered::Question(text)) if text.contains("tcp/80")));
}

#[test]
fn services_are_listed_with_backends_health_and_hits() {
    let bench = Bench::new();
    let engine = bench.start();
    let other =
        WEB.replace("name: web", "name: other").replace("10.96.0.1", "10.96.0.7").replace("30080", "30081");
    engine.hear(Ok(world(&[CLUSTER, WEB, &other, &slice(&["10.70.1.3", "10.70.1.4"])])));
    let at = At::Address("10.96.0.1".parse().unwrap());
    let frontend = Frontend { at, protocol: PortProtocol::Tcp, port: 80 };
    bench.dataplane.log().counters.services = [(frontend, 7)].into();
    let list = |namespace: Option<&str>, name: Option<&str>| {
        let query = ServiceQuery { namespace: namespace.map(Into::into), name: name.map(Into::into) };
        engine.services(&query)
    };
    let all = list(None, None);
    assert_eq!(all.iter().map(|service| service.name.as_str()).collect::<Vec<_>>(), ["other", "web"]);
    assert_eq!(all[0].frontends[0].inside, Outcome::Refused, "nobody is behind it");
    let web = &all[1];
    assert_eq!((web.hits, web.frontends[0].hits, web.health.and_then(|health| health.v4)), (7, 7, Some(2)));
    let states: Vec<_> = web.backends.iter().map(|one| (one.backend.port, one.state, one.local)).collect();
    assert_eq!(states, [(8080, BackendState::Ready, true); 2]);
    assert_eq!((list(Some("shop"), Some("web")).len(), list(Some("none"), None).len()), (1, 0));
}
