use super::*;

const EXAMPLE: &str = include_str!("../../../deploy/agent.yaml");

fn refused(text: &str) -> String {
    Config::from_yaml("agent.yaml", text).expect_err(text).to_string()
}

#[test]
fn the_documented_example_is_the_configuration_of_all_defaults() {
    let example = Config::from_yaml("example", EXAMPLE).unwrap();
    assert_eq!(example, Config::from_yaml("empty", "").unwrap());
    assert_eq!(example, Config::from_yaml("comment", "# nothing\n").unwrap());
}

#[test]
fn the_documented_example_names_every_key() {
    for (key, _) in KEYS {
        let named = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key}:"));
        assert!(EXAMPLE.lines().any(named), "{key} is not in deploy/agent.yaml");
    }
}

#[test]
fn the_table_of_keys_is_the_list_of_fields() {
    let keys: Vec<_> = KEYS.iter().map(|(key, _)| *key).collect();
    let expected = format!("expected one of {}", keys.join(", "));
    assert!(refused("nod: x").ends_with(&expected), "{}", refused("nod: x"));
}

#[test]
fn every_key_is_taken_up() {
    let config = Config::from_yaml(
        "agent.yaml",
        "{node: east, manifests: /m/all, state: /s, run: /r, uplink: eth7, datapath: kernel, default_path: fast, \
         vni: 7, port: 8472, mtu: 1400, metrics: '[::1]:1', mask: [vxlan-reserved-bits, tun-udp-tunnel-gso], \
         connection_timeouts: {udp: 7, tcp-established: 3600}, connections_per_endpoint: 500, \
         services: defer, masquerade: true, masquerade_except: [10.0.0.0/8], api_servers: ['192.0.2.5:6443'], \
         clusterset_cidr: [172.30.0.0/16, 'fd30::/112'], export_namespaces: [shop], import_namespaces: [], \
         clusterset_dns: [169.254.53.53, 'fd53::53'], \
             api_socket: /a, fastpath_queues: 3, fastpath_uplink: 'net_af_packet0,iface=eth7'}",
    )
    .unwrap();
    assert_eq!(config.node.as_str(), "east");
    assert_eq!(config.status, Path::new("/m/status"), "beside the manifests");
    assert_eq!(config.cni_socket, Path::new("/r/cni.sock"), "in the run directory");
    assert_eq!(config.fastpath_socket, Path::new("/r/fastpath.sock"), "in the run directory");
    assert_eq!(config.api_socket, Path::new("/a"), "unless given");
    assert_eq!(config.tombstones, Path::new("/s/tombstones"), "in the state directory");
    assert_eq!((config.uplink.as_deref(), config.mtu), (Some("eth7"), Some(1400)));
    assert_eq!((config.datapath, config.default_path), (PathWish::Kernel, PathWish::Fast));
    assert_eq!((u32::from(config.overlay.vni), config.overlay.port), (7, 8472));
    assert_eq!(config.metrics, "[::1]:1".parse().ok());
    assert_eq!(config.connections.timeouts, [(Timeout::TcpEstablished, 3600), (Timeout::Udp, 7)].into());
    assert_eq!(config.connections.per_endpoint, Some(500));
    assert_eq!(config.mask.len(), 2);
    let except = vec!["10.0.0.0/8".parse().unwrap()];
    assert_eq!((config.services, config.masquerade), (ServicesWish::Defer, Some(Masquerade { except })));
    assert_eq!(config.api_servers, ["192.0.2.5:6443".parse().unwrap()]);
    let mesh = &config.mesh;
    assert_eq!(mesh.clusterset, ["172.30.0.0/16".parse().unwrap(), "fd30::/112".parse().unwrap()]);
    assert!(mesh.exported.allow("shop") && !mesh.exported.allow("default") && !mesh.imported.allow("shop"));
    let default = Config::from_yaml("agent.yaml", "").unwrap().mesh.imported;
    assert!(default.allow("shop") && !default.allow("kube-system"));
    assert_eq!(
        config.names.addresses,
        ["169.254.53.53", "fd53::53"].map(|address| address.parse::<IpAddr>().unwrap())
    );
    let names = |text| Config::from_yaml("agent.yaml", text).unwrap().names.addresses;
    assert_eq!(names("clusterset_cidr: [172.30.0.0/16]"), [IpAddr::from([169, 254, 53, 53])]);
    assert!(names("{clusterset_cidr: [172.30.0.0/16], clusterset_dns: []}").is_empty());
    assert_eq!(Config::from_yaml("agent.yaml", "masquerade: false").unwrap().masquerade, None);
    let fast = (config.fastpath_queues, config.fastpath_uplink.as_deref());
    assert_eq!(fast, (3, Some("net_af_packet0,iface=eth7")));
    assert_eq!(Config::from_yaml("agent.yaml", "metrics: null").unwrap().metrics, None);
}

#[test]
fn defaults_are_what_plugin_and_operator_expect() {
    let config = Config::from_yaml("empty", "").unwrap();
    assert_eq!(config.cni_socket, Path::new(causeway_model::plugin::SOCKET));
    assert_eq!(config.tombstones, Path::new(causeway_model::plugin::TOMBSTONES));
    assert_eq!(config.api_socket, Path::new(causeway_model::operator::SOCKET));
    assert_eq!(config.fastpath_socket, Path::new(causeway_model::fastpath::SOCKET));
}

#[test]
fn every_error_names_the_file_the_key_and_what_is_allowed() {
    let table = [
        ("uplnk: eth0", "agent.yaml:1:1: unknown field `uplnk`, expected one of node, manifests"),
        ("\nport: 0", "agent.yaml:2:7: port: 0 is out of range; allowed: a UDP port from 1 to 65535"),
        ("port: 70000", "port: 70000 is out of range; allowed: a UDP port"),
        ("port: -1", "port: -1 is out of range; allowed: a UDP port"),
        (
            "clusterset_dns: [192.0.2.1]",
            "clusterset_dns: 192.0.2.1 cannot be every node's own; allowed: a list of one link-local",
        ),
        ("clusterset_dns: [169.254.1.1]", "169.254.1.1 cannot be every node's own"),
        ("clusterset_dns: [169.254.2.1, 169.254.2.2]", "169.254.2.1 and 169.254.2.2 are of one family"),
        ("port: http", "agent.yaml:1:7: port: "),
        ("port: [1]", "agent.yaml:1:7: port: "),
        ("vni: 0", "vni: 0 is out of range; allowed: a number from 1 to 16777215"),
        ("vni: 16777216", "vni: 16777216 is out of range; allowed: a number from 1 to 16777215"),
        ("mtu: 500", "mtu: 500 is out of range; allowed: a number from 576"),
        ("datapath: quick", "datapath: unknown variant `quick`, expected one of auto, fast, kernel"),
        ("default_path: ''", "default_path: unknown variant ``, expected one of auto, fast, kernel"),
        ("services: us", "services: unknown variant `us`, expected one of auto, own, defer"),
        ("masquerade_except: [here]", "allowed: a list of prefixes"),
        ("api_servers: [192.0.2.5]", "allowed: a list of addresses and ports"),
        ("clusterset_cidr: [172.30.0.1/16]", "172.30.0.1/16 has host bits set"),
        (
            "clusterset_cidr: [172.30.0.0/16, 172.30.8.0/24]",
            "172.30.8.0/24 overlaps 172.30.0.0/16; allowed: a list",
        ),
        ("clusterset_cidr: ['fe80::/64']", "which is link-local"),
        ("import_namespaces: shop", "allowed: a list of namespaces"),
        ("metrics: localhost", "allowed: an address and a TCP port, as in 127.0.0.1:9717"),
        ("connection_timeouts: {udp: 0}", "0 is out of range; allowed: seconds from 1 to 1209600 by state"),
        ("connection_timeouts: {tpc: 5}", "unknown variant `tpc`, expected one of tcp-syn, tcp-syn-received"),
        (
            "connections_per_endpoint: 0",
            "connections_per_endpoint: 0 is out of range; allowed: a number from 1",
        ),
        ("mask: [all]", "agent.yaml:1:8: mask[0]: unknown variant `all`"),
        ("run: causeway", "run: \"causeway\" is not an absolute path"),
        ("node: East", "node: node name \"East\" is not a DNS-1123 subdomain"),
        ("uplink: eth0.1234567890123", "uplink: \"eth0.1234567890123\" cannot be the name of an interface"),
        ("fastpath_uplink: net_null0, no-rx", "cannot be a device's arguments; allowed: a device as DPDK"),
        ("uplink: a/b", "cannot be the name of an interface; allowed: the name of a network interface"),
        ("run: /a\nrun: /b", "agent.yaml:2:1: duplicate mapping key: run"),
        ("- 1", "agent.yaml:1:1: "),
        ("run: /a\n---\nrun: /b", "multiple YAML documents"),
        ("run: [", "agent.yaml:1:"),
    ];
    for (text, expected) in table {
        let error = refused(text);
        assert!(error.starts_with("agent.yaml:") && error.contains(expected), "{text:?}: {error}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Path::new("/nowhere/agent.yaml")).expect_err("it is not there");
    assert!(error.to_string().contains("/nowhere/agent.yaml"));
}
