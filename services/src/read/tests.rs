use serde_json::json;

use super::*;
use crate::objects::{Port, SliceEndpoint, Sources};

fn service(document: &Value) -> (Option<Service>, Report) {
    match read(document).unwrap() {
        Read::Service(_, service, report) => (service, report),
        other => panic!("{other:?}"),
    }
}

fn slice(document: &Value) -> (Option<Slice>, Report) {
    match read(document).unwrap() {
        Read::Slice(_, slice, report) => (slice, report),
        other => panic!("{other:?}"),
    }
}

fn of(spec: &Value, status: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"}, "spec": spec, "status": status})
}

#[test]
fn a_service_is_read_with_every_default_filled_in() {
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}], "selector": {"app": "web"}});
    let (service, report) = service(&of(&spec, &Value::Null));
    let port =
        Port { name: String::new(), protocol: causeway_model::PortProtocol::Tcp, port: 80, node_port: None };
    let expected =
        Service { cluster_ips: vec!["10.96.0.1".parse().unwrap()], ports: vec![port], ..Service::default() };
    assert_eq!((service, report.problems), (Some(expected), vec![]));
}

#[test]
fn a_service_is_read_whole() {
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd96::1"], "ipFamilies": ["IPv4", "IPv6"],
        "externalIPs": ["192.0.2.1"], "loadBalancerSourceRanges": [" 10.0.0.0/8 "], "externalTrafficPolicy": "Local",
        "internalTrafficPolicy": "Local", "healthCheckNodePort": 32000, "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 4}},
        "ports": [{"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053, "targetPort": "dns"}]
    });
    let status = json!({"loadBalancer": {"ingress": [
        {"ip": "192.0.2.9"}, {"ip": "192.0.2.10", "ipMode": "Proxy"}, {"hostname": "lb.example"}, {"ip": "2001:db8::9", "ipMode": "VIP"}]}});
    let (service, report) = service(&of(&spec, &status));
    let service = service.unwrap();
    assert_eq!(report.problems, vec![]);
    assert_eq!(service.cluster_ips.len(), 2);
    assert_eq!(service.ingress, ["192.0.2.9", "2001:db8::9"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    let ranges = vec!["10.0.0.0/8".parse().unwrap()];
    assert_eq!(service.sources, Some(Sources { ranges, unreadable: false }));
    assert_eq!((service.internal_local, service.external_local, service.affinity), (true, true, Some(4)));
    assert_eq!((service.health_check, service.ports[0].node_port), (Some(32000), Some(30053)));
}

#[test]
fn what_has_nothing_for_a_proxy_to_do_is_nothing_and_no_problem() {
    for spec in [
        json!({"clusterIP": "None", "ports": [{"port": 80}]}),
        json!({"ports": [{"port": 80}]}),
        json!({"type": "ExternalName", "externalName": "depot.example", "clusterIP": "10.96.3.4"}),
    ] {
        let (service, report) = service(&of(&spec, &Value::Null));
        assert_eq!((service, report.problems), (None, vec![]), "{spec}");
    }
    for label in [PROXY_NAME, HEADLESS] {
        let mut document = of(&json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}), &Value::Null);
        document["metadata"]["labels"] = json!({label: ""});
        assert_eq!(service(&document).0, None, "{label}");
    }
}

#[test]
fn what_is_wrong_with_a_service_is_said_by_field() {
    let spec = |field: &str, value: Value| {
        let mut spec = json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
        spec[field] = value;
        spec
    };
    let cases = [
        (spec("ports", json!([{"port": 0}])), "spec.ports[0].port: 0 is not from 1 to 65535", Effect::InPart),
        (
            spec("ports", json!([{"port": 80, "protocol": "QUIC"}])),
            "spec.ports[0].protocol: unknown protocol \"QUIC\"",
            Effect::InPart,
        ),
        (
            spec("ports", json!([{"port": 80}, {"port": 80}])),
            "spec.ports[1]: \"tcp 80\" is said twice",
            Effect::InPart,
        ),
        (
            spec("ports", json!([{"port": 80, "nodePort": 70000}])),
            "spec.ports[0].nodePort: 70000 is not from 1 to 65535",
            Effect::InPart,
        ),
        (
            spec("ports", json!([{"port": "x"}])),
            "spec.ports[0].port: invalid type: string \"x\", expected i32",
            Effect::None,
        ),
        (
            spec("ports", json!([{"port": 80, "nodeprot": 1}])),
            "spec.ports[0].nodeprot: unknown field",
            Effect::Whole,
        ),
        (spec("externalIPs", json!(["here"])), "spec.externalIPs[0]: \"here\" is no address", Effect::InPart),
        (
            spec("externalIPs", json!(["127.0.0.1"])),
            "spec.externalIPs[0]: 127.0.0.1 is no address of an endpoint: it would lead somewhere else on each node",
            Effect::InPart,
        ),
        (
            spec("loadBalancerSourceRanges", json!(["10.0.0.0"])),
            "spec.loadBalancerSourceRanges[0]: \"10.0.0.0\" is no prefix (ADDRESS/LENGTH)",
            Effect::InPart,
        ),
        (
            spec("externalTrafficPolicy", json!("local")),
            "spec.externalTrafficPolicy: unknown policy \"local\"",
            Effect::None,
        ),
        (
            spec("sessionAffinity", json!("Cookie")),
            "spec.sessionAffinity: unknown affinity \"Cookie\"",
            Effect::None,
        ),
        (spec("type", json!("Tunnel")), "spec.type: unknown type \"Tunnel\"", Effect::None),
        (
            spec("clusterIPs", json!(["10.96.0.1", "10.96.0.2"])),
            "spec.clusterIPs[1]: \"IPv4\" is said twice",
            Effect::InPart,
        ),
    ];
    for (spec, message, effect) in cases {
        let (service, report) = service(&of(&spec, &Value::Null));
        let problems: Vec<_> = report.problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems, [message], "{spec}");
        assert_eq!((report.effect, service.is_none()), (effect, effect == Effect::None), "{spec}");
    }
}

#[test]
fn a_range_that_cannot_be_read_lets_nobody_in() {
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}], "loadBalancerSourceRanges": ["all"]});
    let sources = service(&of(&spec, &Value::Null)).0.unwrap().sources.unwrap();
    assert_eq!((sources.of(Family::V4), sources.of(Family::V6)), (Some(vec![]), Some(vec![])));
    let good = Sources { ranges: vec!["10.0.0.0/8".parse().unwrap()], unreadable: false };
    assert_eq!(good.of(Family::V6), None, "ranges of the other family say nothing");
}

fn slice_of(endpoints: &Value, ports: &Value) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints, "ports": ports,
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {SERVICE_NAME: "web"}}})
}

#[test]
fn a_slice_is_read_with_every_default_filled_in() {
    let endpoints = json!([{"addresses": ["10.70.1.1", "10.70.1.2"]}]);
    let (slice, report) = slice(&slice_of(&endpoints, &json!([{"port": 8080}])));
    let slice = slice.unwrap();
    assert_eq!(report.problems, vec![]);
    assert_eq!((slice.service.as_str(), slice.ports.len()), ("web", 1));
    let [SliceEndpoint { address, ready: true, serving: true, terminating: false, .. }] =
        &slice.endpoints[..]
    else {
        panic!("{slice:?}");
    };
    assert_eq!(*address, "10.70.1.1".parse::<IpAddr>().unwrap(), "the first address only");
}

#[test]
fn what_is_wrong_with_a_slice_is_said_by_field() {
    let cases = [
        (json!([{"addresses": []}]), "endpoints[0].addresses[0]: missing"),
        (json!([{"addresses": ["fd70::1"]}]), "endpoints[0].addresses[0]: fd70::1 is not of IPv4"),
        (
            json!([{"addresses": ["127.0.0.1"]}]),
            "endpoints[0].addresses[0]: 127.0.0.1 is no address of an endpoint: it would lead somewhere else on each node",
        ),
        (
            json!([{"addresses": ["10.70.1.1"], "conditions": {"redy": true}}]),
            "endpoints[0].conditions.redy: unknown field",
        ),
    ];
    for (endpoints, message) in cases {
        let (_, report) = slice(&slice_of(&endpoints, &json!([{"port": 8080}])));
        let problems: Vec<_> = report.problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems, [message]);
    }
    let (read, report) = slice(&slice_of(&json!([]), &json!([{"name": "web"}])));
    assert_eq!(report.problems[0].to_string(), "ports[0].port: every port is not supported");
    assert_eq!(read.unwrap().ports, []);
    let mut other = slice_of(&json!([]), &Value::Null);
    other["addressType"] = json!("FQDN");
    assert_eq!(slice(&other).1.effect, Effect::None);
    other["metadata"]["labels"] = json!({});
    assert_eq!(
        slice(&other),
        (None, Report { object: slice(&other).1.object, effect: Effect::Whole, problems: vec![] })
    );
}

#[test]
fn what_is_no_object_is_said() {
    let error = read(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}})).unwrap_err();
    assert_eq!(error.to_string(), "Pod of v1 is no kind that is known here");
    let error = read(&json!({"apiVersion": "v1", "kind": "Service"})).unwrap_err();
    assert_eq!(error.to_string(), "a Service without metadata.name");
}
