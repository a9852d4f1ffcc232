//! What policy says reaches the data path with the endpoint, and moves with the world.

use std::net::IpAddr;

use causeway_model::flow::{Event, FlowQuery};
use causeway_model::policy::{Direction, RuleId, Traffic, Verdict};
use causeway_model::{PortProtocol, Snapshot};

use causeway_model::why::{Judged, Why, WhyQuery};

use super::bench::{Bench, CLUSTER, WEST, key, pod, world};
use super::{Engine, Unanswered};

/// Who lives elsewhere: a client in the same namespace.
const CLIENT: &str = "
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: client, labels: {app: client}}
spec: {containers: []}
status: {podIPs: [{ip: 10.70.2.9}]}
";
const CLIENT_ADDRESS: &str = "10.70.2.9";

fn isolate(allowed: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: shop, name: web, uid: f62e}}\n\
         spec: {{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {allowed}}}}}}}], ports: [{{port: 80}}]}}]}}\n"
    )
}

/// Whether the state that the data path has lets a peer reach an endpoint, and by which rule it does not.
fn judge(snapshot: &Snapshot, container: &str, peer: &str, port: u16) -> Result<(), Option<RuleId>> {
    let endpoint = &snapshot.endpoints[&key(container)];
    let (direction, table) = (Direction::Ingress, &endpoint.policy.ingress);
    let (peer, traffic): (IpAddr, _) = (peer.parse().unwrap(), Traffic::To(PortProtocol::Tcp, port));
    let decision = snapshot.policy.decide((direction, table), peer, traffic);
    match decision.verdict {
        Verdict::Allow => Ok(()),
        Verdict::Deny => Err(snapshot.policy.id(decision.rule)),
    }
}

fn rule(text: &str) -> Result<(), Option<RuleId>> {
    Err(Some(text.parse().unwrap()))
}

#[test]
fn what_policy_says_of_a_pod_goes_with_it_and_moves_with_the_world() {
    let (bench, web) = (Bench::new(), pod("web", "", "app: web"));
    let engine = bench.start();
    let told = || bench.dataplane.log().snapshot.clone().unwrap();
    engine.hear(Ok(world(&[CLUSTER, WEST, &web, CLIENT, &isolate("client")])));
    engine.try_add_pod("c1", Some("web")).unwrap();
    assert_eq!(judge(&told(), "c1", CLIENT_ADDRESS, 80), Ok(()));
    assert_eq!(judge(&told(), "c1", CLIENT_ADDRESS, 81), rule("f62e/ingress/isolation"));
    assert_eq!(judge(&told(), "c1", "10.70.2.10", 80), rule("unknown/ingress/isolation"));
    assert_eq!(judge(&told(), "c1", "192.0.2.11", 81), Ok(()), "its own node");
    assert_eq!(judge(&told(), "c1", "192.0.2.12", 80), rule("f62e/ingress/isolation"));

    let epoch = told().endpoints[&key("c1")].policy.ingress.epoch;
    engine.hear(Ok(world(&[CLUSTER, WEST, &web, CLIENT, &isolate("nobody")])));
    assert_eq!(judge(&told(), "c1", CLIENT_ADDRESS, 80), rule("f62e/ingress/isolation"));
    assert_ne!(
        told().endpoints[&key("c1")].policy.ingress.epoch,
        epoch,
        "established flows are judged again"
    );

    engine.hear(Ok(world(&[CLUSTER, WEST, &web, CLIENT])));
    assert_eq!(judge(&told(), "c1", "10.70.2.10", 81), Ok(()), "without any policy");
    engine.del("c1");
    assert_eq!(told().policy.peers.addresses.get(&"10.70.1.3".parse().unwrap()), None, "nobody's any more");
}

#[test]
fn a_pod_of_this_node_is_known_to_the_others_from_its_add_to_its_end() {
    let (bench, web) = (Bench::new(), pod("web", "", "app: web"));
    let engine = bench.start();
    let told = || bench.dataplane.log().snapshot.clone().unwrap();
    engine.hear(Ok(world(&[CLUSTER, &web, &pod("client", "", "app: client"), &isolate("client")])));
    engine.try_add_pod("c1", Some("web")).unwrap();
    assert_eq!(judge(&told(), "c1", "10.70.1.4", 80), rule("unknown/ingress/isolation"));
    let client = engine.try_add_pod("c2", Some("client")).unwrap();
    assert_eq!(client.addresses[0].address.ip().to_string(), "10.70.1.4");
    assert_eq!(judge(&told(), "c1", "10.70.1.4", 80), Ok(()));
    engine.del("c2");
    assert_eq!(judge(&told(), "c1", "10.70.1.4", 80), rule("unknown/ingress/isolation"));
}

#[test]
fn the_state_that_changes_lead_to_is_the_one_that_the_agent_has() {
    let (bench, web) = (Bench::new(), pod("web", "", "app: web"));
    let engine = bench.start();
    for round in 0..3 {
        engine.hear(Ok(world(&[CLUSTER, WEST, &web, CLIENT, &isolate("client")])));
        engine.try_add_pod(&format!("c{round}"), Some("web")).unwrap();
        engine.add(&format!("d{round}"));
        engine.hear(Ok(world(&[CLUSTER, &web, &isolate("nobody")])));
        engine.del(&format!("d{round}"));
        let (told, core) = (bench.dataplane.log().snapshot.clone(), engine.lock());
        assert_eq!(told, core.desired, "round {round}");
        assert_eq!(*told.unwrap().policy, core.roster.book(), "round {round}");
    }
}

#[test]
fn policy_moves_on_while_the_node_itself_is_missing() {
    let (bench, web) = (Bench::new(), pod("web", "", "app: web"));
    let engine = bench.start();
    engine.hear(Ok(world(&[CLUSTER, WEST, &web, CLIENT])));
    engine.try_add_pod("c1", Some("web")).unwrap();
    let cluster = CLUSTER.split("---").next().unwrap();
    engine.hear(Ok(world(&[cluster, WEST, &web, CLIENT, &isolate("nobody")])));
    let told = bench.dataplane.log().snapshot.clone().unwrap();
    assert_eq!(judge(&told, "c1", CLIENT_ADDRESS, 80), rule("f62e/ingress/isolation"));
}

fn ask(engine: &Engine, from: &str, to: &str, port: Option<u16>) -> Result<Why, Unanswered> {
    let protocol = port.map(|_| "tcp".to_owned());
    engine.why(&WhyQuery { from: from.into(), to: to.into(), protocol, port, probe: false })
}

/// What the ingress side of web says: verdict, rule and policy, and the words.
fn ingress(why: &Why) -> (Verdict, String, String, Option<String>) {
    match why.sides[1].judged.clone() {
        Judged::Here { verdict, rule, policy, reason, remedy, .. } => {
            let rule = rule.map_or_else(String::new, |rule| rule.to_string());
            assert_eq!(policy.is_some(), !rule.is_empty());
            (verdict, rule, reason, remedy)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn why_answers_by_the_tables_in_force_and_names_rule_policy_and_remedy() {
    let (bench, web) = (Bench::new(), pod("web", "", "app: web"));
    let engine = bench.start();
    engine.hear(Ok(world(&[CLUSTER, WEST, &web, CLIENT, &isolate("client")])));
    engine.try_add_pod("c1", Some("web")).unwrap();
    let why = ask(&engine, "shop/client", "shop/web", Some(80)).unwrap();
    assert_eq!(
        (why.from.who.as_str(), why.to.who.as_str()),
        ("pod shop/client of cluster lyon", "pod shop/web")
    );
    assert!(
        matches!(&why.sides[0].judged, Judged::Elsewhere { node } if node.name.as_str() == "west"),
        "{why:?}"
    );
    let accepts = "ingress rule 0 of NetworkPolicy/shop/web accepts it".to_owned();
    assert_eq!(ingress(&why), (Verdict::Allow, "f62e/ingress/0".to_owned(), accepts, None));
    assert_eq!(why.verdict, Some(Verdict::Allow));

    let why = ask(&engine, CLIENT_ADDRESS, "10.70.1.3", Some(81)).unwrap();
    let isolates = "NetworkPolicy/shop/web isolates the pod, and no NetworkPolicy allows this".to_owned();
    let remedy = "a NetworkPolicy that selects the pod and allows ingress from pod shop/client of cluster lyon on TCP/81";
    assert_eq!(
        ingress(&why),
        (Verdict::Deny, "f62e/ingress/isolation".to_owned(), isolates.clone(), Some(remedy.to_owned()))
    );
    assert_eq!(why.verdict, Some(Verdict::Deny));

    for (from, who, verdict, reason) in [
        ("world", "the world", Verdict::Deny, isolates.as_str()),
        ("192.0.2.12", "node lyon/west", Verdict::Deny, isolates.as_str()),
        ("host", "this node", Verdict::Allow, "a node always reaches its pods, and they it"),
        ("shop/web", "pod shop/web", Verdict::Allow, "a pod always reaches itself"),
        ("10.70.2.77", "unknown", Verdict::Deny, "policies apply, and nobody known has the peer's address"),
    ] {
        let why = ask(&engine, from, "shop/web", None).unwrap();
        assert!(why.from.who.starts_with(who), "{from}: {}", why.from.who);
        let (found, _, why, _) = ingress(&why);
        assert_eq!((found, why.as_str()), (verdict, reason), "{from}");
    }
    let out = ask(&engine, "shop/web", "world", Some(443)).unwrap();
    assert!(
        matches!(&out.sides[0].judged, Judged::Here { reason, .. } if reason == "no policy speaks of the pod's egress")
    );
    assert!(matches!(out.sides[1].judged, Judged::Nowhere));
}

#[test]
fn why_refuses_what_it_cannot_find_by_name() {
    let bench = Bench::new();
    let engine = bench.ready();
    for (from, to, port, words) in [
        ("shop/ghost", "host", None, "from: pod shop/ghost has no address"),
        ("host", "nowhere", None, "to: \"nowhere\" is no address"),
        ("10.70.1.3", "fd70::9", None, "no family of addresses in common"),
    ] {
        match ask(&engine, from, to, port) {
            Err(Unanswered::Question(text)) => assert!(text.contains(words), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    let query = |protocol: Option<&str>, port| WhyQuery {
        from: "host".into(),
        to: "world".into(),
        protocol: protocol.map(str::to_owned),
        port,
        probe: false,
    };
    for (query, words) in [
        (query(Some("tpc"), Some(80)), "protocol \"tpc\" is none of tcp, udp, sctp"),
        (query(Some("tcp"), None), "tcp without a port"),
        (query(None, Some(80)), "port 80 without a protocol"),
    ] {
        assert_eq!(engine.why(&query), Err(Unanswered::Question(words.to_owned())));
    }
}

#[test]
fn a_revision_is_told_once_it_is_in_force() {
    let bench = Bench::new();
    let engine = bench.ready();
    let told = || engine.report().status.source.revision;
    let revised = |revision: &str| {
        let annotated = format!("{{name: lyon, annotations: {{causeway.dev/revision: \"{revision}\"}}}}");
        CLUSTER.replacen("{name: lyon}", &annotated, 1)
    };
    assert_eq!(told(), None);
    engine.hear(Ok(world(&[&revised("7")])));
    assert_eq!(told().as_deref(), Some("7"));
    bench.dataplane.log().fail = Some("changes");
    engine.hear(Ok(world(&[&revised("8"), WEST])));
    assert_eq!(told(), None, "the data path has refused it");
    engine.hear(Ok(world(&[&revised("9"), WEST])));
    assert_eq!(told().as_deref(), Some("9"), "the whole state goes through");
}

#[test]
fn an_audited_policy_denies_nothing_and_what_it_would_deny_is_told() {
    let (bench, web) = (Bench::new(), pod("web", "", "app: web"));
    let engine = bench.start();
    let audited =
        isolate("nobody").replace("uid: f62e", "uid: f62e, annotations: {causeway.dev/audit: 'true'}");
    engine.hear(Ok(world(&[CLUSTER, WEST, &web, CLIENT, &audited])));
    engine.try_add_pod("c1", Some("web")).unwrap();
    let told = bench.dataplane.log().snapshot.clone().unwrap();
    assert_eq!(judge(&told, "c1", CLIENT_ADDRESS, 80), Ok(()));
    assert_eq!(told.policy.rules.len(), 0, "no data path hears of it");
    let why = ask(&engine, "shop/client", "shop/web", Some(80)).unwrap();
    let would = |why: &Why| match &why.sides[1].judged {
        Judged::Here { audit, verdict: Verdict::Allow, .. } => audit.as_ref().map(ToString::to_string),
        other => panic!("{other:?}"),
    };
    assert_eq!(would(&why).as_deref(), Some("f62e/ingress/isolation"));

    let event = |port| Event {
        at: 1,
        path: causeway_model::Path::Kernel,
        verdict: Verdict::Allow,
        protocol: 6,
        from: (CLIENT_ADDRESS.parse().unwrap(), 40_000),
        to: ("10.70.1.3".parse().unwrap(), port),
        bytes: 60,
        egress: None,
        ingress: None,
        audit: None,
        from_pod: None,
        to_pod: None,
    };
    bench.dataplane.log().flows.events = vec![event(80), event(81)];
    engine.gather_flows();
    let flows = engine.flows(&FlowQuery::default()).events;
    let audits: Vec<_> =
        flows.iter().filter_map(|event| event.audit.as_ref()).map(ToString::to_string).collect();
    assert_eq!(audits, ["f62e/ingress/isolation"; 2]);
    let status = engine.report().status;
    let counted: Vec<_> =
        status.audited.iter().map(|rule| (rule.policy.as_deref(), rule.denied.packets)).collect();
    assert_eq!((counted, status.rules.len()), (vec![(Some("NetworkPolicy/shop/web"), 2)], 0));

    engine.hear(Ok(world(&[CLUSTER, WEST, &web, CLIENT, &isolate("nobody")])));
    let told = bench.dataplane.log().snapshot.clone().unwrap();
    assert_eq!(judge(&told, "c1", CLIENT_ADDRESS, 80), rule("f62e/ingress/isolation"), "the audit is over");
    assert_eq!(would(&ask(&engine, "host", "shop/web", None).unwrap()), None);
}

#[test]
fn a_policys_status_outlives_a_missing_cluster_object() {
    let (bench, policy) = (Bench::new(), isolate("client"));
    let engine = bench.start();
    let file = bench.directory.path().join("status/NetworkPolicy_shop_web.json");
    engine.hear(Ok(world(&[CLUSTER, &policy])));
    assert!(file.exists());
    let node = CLUSTER.split("---").nth(1).unwrap();
    engine.hear(Ok(world(&[node, &policy])));
    assert!(file.exists(), "nobody has taken it away");
    engine.hear(Ok(world(&[CLUSTER])));
    assert!(!file.exists());
}
