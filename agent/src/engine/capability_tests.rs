use causeway_model::plugin::{Capabilities, Failure, Reply, Request, Verb};
use causeway_model::{Bandwidth, Path, PortMapping, PortProtocol, RateLimit};

use super::Engine;
use super::bench::{Bench, CLUSTER, key, pod, request, world};

fn mapping(host_ip: &str, host_port: u16, protocol: PortProtocol) -> PortMapping {
    PortMapping {
        host_ip: (!host_ip.is_empty()).then(|| host_ip.parse().unwrap()),
        host_port: host_port.try_into().unwrap(),
        container_port: 80.try_into().unwrap(),
        protocol,
    }
}

fn add(engine: &Engine, container: &str, mapping: PortMapping) -> Result<(), Failure> {
    let capabilities = Capabilities { port_mappings: vec![mapping], ..Capabilities::default() };
    match engine.ask(&Request { capabilities, ..request(Verb::Add, container) }) {
        Reply::Failed(failure) => Err(failure),
        _ => Ok(()),
    }
}

#[test]
fn a_port_of_the_node_leads_to_one_endpoint_until_that_is_deleted() {
    let bench = Bench::new();
    let engine = bench.ready();
    add(&engine, "c1", mapping("", 8080, PortProtocol::Tcp)).unwrap();
    let failure = add(&engine, "c2", mapping("192.0.2.11", 8080, PortProtocol::Tcp)).unwrap_err();
    assert_eq!(
        (failure.code, failure.msg.as_str()),
        (
            Failure::HOST_PORT_TAKEN,
            "portMappings: port 192.0.2.11:8080/tcp of this node is held by pods/c1/eth0"
        )
    );
    assert_eq!(engine.kept(), ["c1"], "nothing is left of the attempt");
    add(&engine, "c2", mapping("192.0.2.11", 8080, PortProtocol::Udp)).unwrap();
    engine.del("c1");
    add(&engine, "c3", mapping("192.0.2.11", 8080, PortProtocol::Tcp)).unwrap();
}

#[test]
fn the_port_of_the_tunnel_is_nobodys() {
    let bench = Bench::new();
    let engine = bench.ready();
    let failure = add(&engine, "c1", mapping("", 4789, PortProtocol::Udp)).unwrap_err();
    assert_eq!(failure.code, Failure::INVALID_CONFIG);
    assert!(failure.msg.contains("4789/udp"), "{}", failure.msg);
    add(&engine, "c1", mapping("", 4789, PortProtocol::Tcp)).unwrap();
}

#[test]
fn mappings_and_limits_live_through_a_restart() {
    let bench = Bench::new();
    let limit = RateLimit { rate: 8_000_000, burst: 800_000 };
    let capabilities = Capabilities {
        port_mappings: vec![mapping("127.0.0.1", 8080, PortProtocol::Sctp)],
        bandwidth: Bandwidth { to_pod: Some(limit), from_pod: None },
        ..Capabilities::default()
    };
    let wanted = Request { capabilities: capabilities.clone(), ..request(Verb::Add, "c1") };
    assert!(matches!(bench.ready().ask(&wanted), Reply::Attached(_)));
    let engine = bench.ready();
    let endpoint = bench.dataplane.log().snapshot.as_ref().unwrap().endpoints[&key("c1")].clone();
    assert_eq!(endpoint.port_mappings, capabilities.port_mappings);
    assert_eq!(endpoint.bandwidth, capabilities.bandwidth);
    let failure = add(&engine, "c2", mapping("", 8080, PortProtocol::Sctp)).unwrap_err();
    assert_eq!(failure.code, Failure::HOST_PORT_TAKEN);
}

#[test]
fn annotations_that_the_runtime_passes_on_count_where_no_object_tells_of_the_pod() {
    let bench = Bench::new();
    let engine = bench.ready();
    let told = |container: &str, mac: &str| {
        let annotations = [("causeway.dev/mac", mac), ("causeway.dev/path", "kernel")];
        let annotations = annotations.map(|(key, text)| (key.to_owned(), text.to_owned())).into();
        let capabilities = Capabilities { annotations, ..Capabilities::default() };
        Request { capabilities, ..request(Verb::Add, container) }
    };
    assert!(matches!(engine.ask(&told("c1", "02:00:00:00:00:77")), Reply::Attached(_)));
    let endpoint = engine.endpoint("c1");
    assert_eq!(endpoint.mac.to_string(), "02:00:00:00:00:77");
    assert_eq!(
        (endpoint.path, endpoint.path_reason.as_str()),
        (Path::Kernel, "annotation causeway.dev/path: kernel")
    );
    let Reply::Failed(failure) = engine.ask(&told("c2", "none")) else { panic!("no such address") };
    assert_eq!(failure.code, Failure::INVALID_CONFIG);
    assert!(failure.msg.contains("pods/c2/eth0: annotation causeway.dev/mac"), "{}", failure.msg);
    // Where an object tells of the pod, it alone does.
    engine.hear(Ok(world(&[CLUSTER, &pod("web", "causeway.dev/mac: \"02:00:00:00:00:78\"", "")])));
    let of_web = Some(causeway_model::PodName { namespace: "shop".into(), name: "web".into() });
    let reply = engine.ask(&Request { pod: of_web, ..told("c3", "02:00:00:00:00:79") });
    assert!(matches!(reply, Reply::Attached(_)), "{reply:?}");
    assert_eq!(engine.endpoint("c3").mac.to_string(), "02:00:00:00:00:78");
}
