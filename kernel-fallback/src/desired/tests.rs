use std::collections::BTreeMap;

use causeway_model::{EndpointKey, Identity, MacAddr, NodeId, Overlay, PortMapping, PortProtocol};
use proptest::prelude::*;

use super::*;

fn node(number: u8, underlay: &[&str], prefixes: &[&str]) -> Node {
    let id = NodeId { cluster: "lyon".parse().unwrap(), name: format!("n{number}").parse().unwrap() };
    Node {
        underlay: underlay.iter().map(|address| address.parse().unwrap()).collect(),
        vtep_mac: MacAddr([2, 0, 0, 0, 0, number]),
        pod_prefixes: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(),
        id,
    }
}

pub(crate) fn state(tunnel: TunnelOwner) -> Snapshot {
    Snapshot::new(Settings {
        overlay: Overlay { vni: 51717.try_into().unwrap(), port: 4789 },
        node: node(1, &["192.0.2.1", "2001:db8::1"], &["10.70.1.0/24", "fd70:0:0:1::/64"]),
        tunnel_address: [192, 0, 2, 1].into(),
        tunnel,
        uplink: causeway_model::UplinkKind::HostRouted,
        pod_mtu: 1450,
        connections: Default::default(),
        host_services: Default::default(),
        masquerade: None,
        names: Default::default(),
    })
}

fn endpoint(number: u8, path: Path) -> Endpoint {
    Endpoint {
        key: EndpointKey {
            network: "pods".into(),
            container: format!("c{number}"),
            interface: "eth0".into(),
        },
        pod: None,
        addresses: vec![[10, 70, 1, number].into(), format!("fd70:0:0:1::{number:x}").parse().unwrap()],
        mac: MacAddr([2, 0, 0, 0, 1, number]),
        mtu: 1400,
        labels: BTreeMap::new(),
        identity: Identity(Identity::FIRST_INTERNED),
        path,
        routes: None,
        path_reason: String::new(),
        port: if path == Path::Fast { PortKind::Tap } else { PortKind::Veth },
        port_mappings: Vec::new(),
        bandwidth: Default::default(),
        deny_new: false,
        policy: Default::default(),
    }
}

fn facts(host_port: bool) -> Facts {
    Facts { host_port, lenient: true, other_tunnels: vec![7], ..Facts::default() }
}

/// The objects that one change brings, as text, without settings.
fn brought(mut desired: Desired, delta: Delta) -> Vec<String> {
    let change = desired.apply([delta]);
    assert_eq!(change.objects.gone, []);
    let objects = change.objects.new.iter().filter(|object| !matches!(object, Object::Sysctl(_)));
    objects.map(ToString::to_string).collect()
}

/// The elements that one change brings, as `set: element`.
fn admitted(mut desired: Desired, delta: Delta) -> Vec<String> {
    let elements = desired.apply([delta]).elements.new;
    elements.iter().map(|element| format!("{}: {}", element.set(), element.text())).collect()
}

fn peer() -> Delta {
    Delta::Peer(node(2, &["192.0.2.2", "2001:db8::2"], &["10.70.2.0/24", "fd70:0:0:2::/64"]))
}

#[test]
fn a_node_that_knows_nobody_has_its_tunnel_its_addresses_and_a_dead_end_for_its_prefixes() {
    let desired = Desired::new(state(TunnelOwner::Kernel), facts(false));
    let objects = desired
        .objects
        .iter()
        .filter(|object| object.link().is_none() || !matches!(object, Object::Sysctl(_)));
    let objects: Vec<_> = objects.map(ToString::to_string).collect();
    assert_eq!(
        objects,
        [
            "device cw-vxlan (vxlan 51717, port 4789, local 192.0.2.1)",
            "sysctl net/ipv4/ip_forward = 1",
            "sysctl net/ipv6/conf/all/forwarding = 1",
            "sysctl net/netfilter/nf_conntrack_acct = 1",
            "sysctl net/netfilter/nf_conntrack_timestamp = 1",
            "link cw-vxlan up, mtu 1450, 02:00:00:00:00:01",
            "address 10.70.1.1/32 on cw-vxlan",
            "address fd70:0:0:1::1/128 on cw-vxlan",
            "unreachable route 10.70.1.0/24",
            "unreachable route fd70:0:0:1::/64",
            "rule from 10.70.1.0/24 to table 51717",
            "rule from fd70:0:0:1::/64 to table 51717",
        ]
    );
}

#[test]
fn a_peer_is_reached_through_the_tunnel_at_its_own_hardware_address() {
    let desired = || Desired::new(state(TunnelOwner::Kernel), facts(false));
    assert_eq!(
        brought(desired(), peer()),
        [
            "neighbour 10.70.2.1 at 02:00:00:00:00:02 on cw-vxlan",
            "neighbour fd70:0:0:2::1 at 02:00:00:00:00:02 on cw-vxlan",
            "forwarding entry 02:00:00:00:00:02 to 192.0.2.2 on cw-vxlan",
            "route 10.70.2.0/24 via 10.70.2.1 on cw-vxlan",
            "route fd70:0:0:2::/64 via fd70:0:0:2::1 on cw-vxlan",
            "route 192.0.2.2/32 via 10.70.2.1 on cw-vxlan in table 51717",
            "route 2001:db8::2/128 via fd70:0:0:2::1 on cw-vxlan in table 51717",
        ]
    );
    assert_eq!(
        admitted(desired(), peer()),
        [
            "nodes4: 10.70.2.1",
            "nodes4: 10.70.2.2",
            "nodes4: 192.0.2.2",
            "nodes6: 2001:db8::2",
            "nodes6: fd70:0:0:2::1",
            "nodes6: fd70:0:0:2::2",
            "senders: 192.0.2.2",
            "inner4: 192.0.2.2 . 0xa460200-0xa4602ff",
            "inner4: 192.0.2.2 . 0xc0000202",
            "inner6: 192.0.2.2 . 0x20010db8000000000000000000000002",
            "inner6: 192.0.2.2 . 0xfd700000000000020000000000000000-0xfd70000000000002ffffffffffffffff",
        ]
    );
}

#[test]
fn a_narrow_path_is_the_mtu_of_every_route_to_its_node() {
    let Delta::Peer(node) = peer() else { unreachable!("a node") };
    let narrow = Facts { path_mtus: [(node.id, 1350)].into(), ..facts(false) };
    for (facts, mtu) in [(narrow, Some(1350)), (facts(false), None)] {
        let mut desired = Desired::new(state(TunnelOwner::Kernel), facts);
        let routes: Vec<_> = desired.apply([peer()]).objects.new;
        let mtus: Vec<_> = routes
            .iter()
            .filter_map(|object| if let Object::Route(route) = object { Some(route.mtu) } else { None })
            .collect();
        assert_eq!(mtus, [mtu; 4]);
    }
}

#[test]
fn a_peer_without_pods_of_a_family_is_reached_at_its_address_itself() {
    let peer = node(2, &["192.0.2.2", "2001:db8::2"], &["10.70.2.0/24", "10.70.2.128/25"]);
    assert_eq!(
        brought(Desired::new(state(TunnelOwner::Kernel), facts(false)), Delta::Peer(peer)),
        [
            "neighbour 10.70.2.1 at 02:00:00:00:00:02 on cw-vxlan",
            "neighbour 2001:db8::2 at 02:00:00:00:00:02 on cw-vxlan",
            "forwarding entry 02:00:00:00:00:02 to 192.0.2.2 on cw-vxlan",
            "route 10.70.2.0/24 via 10.70.2.1 on cw-vxlan",
            "route 192.0.2.2/32 via 10.70.2.1 on cw-vxlan in table 51717",
            "route 2001:db8::2/128 on cw-vxlan in table 51717",
        ]
    );
}

#[test]
fn on_a_fast_node_peers_are_behind_the_host_port_once_it_is_there() {
    let without = Desired::new(state(TunnelOwner::FastPath), facts(false));
    assert_eq!(brought(without.clone(), peer()), Vec::<String>::new());
    let nodes = admitted(without, peer());
    let (known, reached): (Vec<_>, Vec<_>) =
        nodes.into_iter().partition(|element| element.starts_with("nodes"));
    assert_eq!(known.len(), 6, "no tunnel to guard: {known:?}");
    assert_eq!(
        reached,
        [
            "tunnelled4: 10.70.2.0/24",
            "tunnelled6: fd70:0:0:2::/64",
            "peers4: 192.0.2.2",
            "peers6: 2001:db8::2"
        ]
    );
    let with = Desired::new(state(TunnelOwner::FastPath), facts(true));
    assert_eq!(
        brought(with, peer()),
        [
            "neighbour 10.70.2.1 at 02:ca:5e:00:00:01 on cw-host",
            "neighbour fd70:0:0:2::1 at 02:ca:5e:00:00:01 on cw-host",
            "route 10.70.2.0/24 via 10.70.2.1 on cw-host",
            "route fd70:0:0:2::/64 via fd70:0:0:2::1 on cw-host",
            "route 192.0.2.2/32 via 10.70.2.1 on cw-host in table 51717",
            "route 2001:db8::2/128 via fd70:0:0:2::1 on cw-host in table 51717",
        ]
    );
}

#[test]
fn an_endpoint_of_the_kernel_has_a_guarded_link_of_its_own() {
    let desired = || Desired::new(state(TunnelOwner::Kernel), facts(false));
    let delta = || Delta::Endpoint(Box::new(endpoint(3, Path::Kernel)));
    let link = endpoint(3, Path::Kernel).key.link_name();
    assert_eq!(
        brought(desired(), delta()),
        [
            format!("link {link} up, mtu 65535, 02:ca:5e:00:00:01"),
            format!("address 169.254.1.1/32 on {link}"),
            format!("address fe80::1/64 on {link}"),
            format!("neighbour 10.70.1.3 at 02:00:00:00:01:03 on {link}"),
            format!("neighbour fd70:0:0:1::3 at 02:00:00:00:01:03 on {link}"),
            format!("route 10.70.1.3/32 on {link}"),
            format!("route fd70:0:0:1::3/128 on {link}"),
        ]
    );
    assert_eq!(
        admitted(desired(), delta()),
        [
            format!("pod_links: \"{link}\""),
            format!("pod_macs: \"{link}\" . 02:00:00:00:01:03"),
            format!("pod_addresses4: \"{link}\" . 10.70.1.3"),
            format!("pod_addresses6: \"{link}\" . fd70:0:0:1::3"),
            "endpoints4: 10.70.1.3".into(),
            "endpoints6: fd70:0:0:1::3".into(),
        ]
    );
    let mut desired = desired();
    let routes = desired.apply([delta()]).objects.new;
    let routes: Vec<_> =
        routes.iter().filter_map(|o| if let Object::Route(route) = o { Some(route) } else { None }).collect();
    assert_eq!(routes[0].mtu, Some(1400), "its own MTU, locked");
    assert_eq!(routes[0].source, Some([10, 70, 1, 1].into()));
}

#[test]
fn an_endpoint_of_the_fast_path_is_behind_the_host_port() {
    let delta = || Delta::Endpoint(Box::new(endpoint(4, Path::Fast)));
    let with = Desired::new(state(TunnelOwner::FastPath), facts(true));
    assert_eq!(
        brought(with, delta()),
        [
            "neighbour 10.70.1.4 at 02:ca:5e:00:00:01 on cw-host",
            "neighbour fd70:0:0:1::4 at 02:ca:5e:00:00:01 on cw-host",
            "route 10.70.1.4/32 on cw-host",
            "route fd70:0:0:1::4/128 on cw-host",
        ]
    );
    let without = Desired::new(state(TunnelOwner::FastPath), facts(false));
    assert_eq!(brought(without.clone(), delta()), Vec::<String>::new());
    assert_eq!(
        admitted(without, delta()),
        [
            "endpoints4: 10.70.1.4",
            "endpoints6: fd70:0:0:1::4",
            "fast_pods4: 10.70.1.4",
            "fast_pods6: fd70:0:0:1::4"
        ]
    );
}

fn mapping(host_ip: Option<&str>, host_port: u16, protocol: PortProtocol) -> PortMapping {
    PortMapping {
        host_ip: host_ip.map(|address| address.parse().unwrap()),
        host_port: host_port.try_into().unwrap(),
        container_port: 80.try_into().unwrap(),
        protocol,
    }
}

#[test]
fn ports_of_the_node_lead_to_a_pod_over_the_families_that_both_have() {
    let mut mapped = endpoint(3, Path::Kernel);
    mapped.port_mappings = vec![
        mapping(None, 8080, PortProtocol::Tcp),
        mapping(Some("0.0.0.0"), 8081, PortProtocol::Udp),
        mapping(Some("2001:db8::1"), 8082, PortProtocol::Sctp),
    ];
    let desired = Desired::new(state(TunnelOwner::Kernel), facts(false));
    let elements = admitted(desired.clone(), Delta::Endpoint(Box::new(mapped.clone())));
    let of_ports =
        |element: &&String| ["ports", "mapped", "hairpins"].iter().any(|set| element.starts_with(set));
    assert_eq!(
        elements.iter().filter(of_ports).collect::<Vec<_>>(),
        [
            "ports4: tcp . 8080 : 10.70.1.3 . 80",
            "ports6: tcp . 8080 : fd70:0:0:1::3 . 80",
            "ports4: udp . 8081 : 10.70.1.3 . 80",
            "ports_at6: 2001:db8::1 . sctp . 8082 : fd70:0:0:1::3 . 80",
            "mapped4: 10.70.1.3 . tcp . 80",
            "mapped4: 10.70.1.3 . udp . 80",
            "mapped6: fd70:0:0:1::3 . tcp . 80",
            "mapped6: fd70:0:0:1::3 . sctp . 80",
            "hairpins4: 10.70.1.3 . 10.70.1.3",
            "hairpins6: fd70:0:0:1::3 . fd70:0:0:1::3",
        ]
    );
    let loopback = |objects: &[Object]| {
        let all = objects.iter().filter(|object| object.to_string().contains("route_localnet"));
        all.map(ToString::to_string).collect::<Vec<_>>()
    };
    let link = mapped.key.link_name();
    assert_eq!(
        loopback(&desired.objects_of(&mapped)),
        [format!("sysctl net/ipv4/conf/{link}/route_localnet = 1")]
    );
    // Not where nothing from the node's loopback is led to the pod.
    mapped.port_mappings = vec![mapping(Some("192.0.2.1"), 80, PortProtocol::Tcp)];
    assert_eq!(loopback(&desired.objects_of(&mapped)), Vec::<String>::new());
}

#[test]
fn nested_prefixes_are_one() {
    let prefixes = ["10.1.0.0/16", "10.1.2.0/24", "10.1.2.9/24", "10.0.0.1/32", "fd00::/8", "fd70::/16"];
    let flat = flatten(prefixes.map(|prefix| prefix.parse().unwrap()));
    assert_eq!(
        flat.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.1/32", "10.1.0.0/16", "fd00::/8"]
    );
}

prop_compose! {
    fn snapshot()(
        mtu in 1400_u16..1403,
        fast in any::<bool>(),
        peers in prop::collection::btree_map(2_u8..7, 0_u8..3, 0..5),
        endpoints in prop::collection::btree_map(3_u8..9, 0_u8..4, 0..6),
    ) -> Snapshot {
        let mut snapshot = state(if fast { TunnelOwner::FastPath } else { TunnelOwner::Kernel });
        snapshot.settings.pod_mtu = mtu;
        for (number, variant) in peers {
            // Two nodes may claim one address, and a node may lack a family: nothing that is shared goes with the first.
            let addresses = [format!("192.0.2.{}", 2 + variant), "2001:db8::2".to_owned()];
            let prefixes = [format!("10.70.{number}.0/24"), format!("fd70:0:0:{variant}::/64")];
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
            let take = if variant == 0 { 1 } else { 2 };
            let peer = node(number, &addresses[..take], &prefixes[..take]);
            snapshot.peers.insert(peer.id.clone(), peer);
        }
        for (number, variant) in endpoints {
            let path = if variant % 2 == 0 { Path::Fast } else { Path::Kernel };
            let mut endpoint = endpoint(number, path);
            endpoint.mac.0[1] = variant;
            if variant == 3 {
                endpoint.addresses.truncate(1);
            }
            snapshot.endpoints.insert(endpoint.key.clone(), endpoint);
        }
        snapshot
    }
}

proptest! {
    #[test]
    fn changes_lead_where_the_whole_state_leads(states in prop::collection::vec(snapshot(), 2..5), host_port: bool) {
        let mut desired = Desired::new(states[0].clone(), facts(host_port));
        for next in &states[1..] {
            let before = desired.clone();
            let deltas = desired.snapshot.deltas_to(next);
            let change = desired.apply(deltas);
            let whole = Desired::new(next.clone(), facts(host_port));
            prop_assert_eq!(&desired, &whole);
            // What is told to have changed is exactly what has.
            let gone: Vec<_> = before.objects.iter().filter(|o| !whole.objects.contains(o)).cloned().collect();
            let new: Vec<_> = whole.objects.iter().filter(|o| !before.objects.contains(o)).cloned().collect();
            prop_assert_eq!(change.objects, Difference { gone, new });
            let gone: Vec<_> = before.elements.iter().filter(|e| !whole.elements.contains(e)).cloned().collect();
            let new: Vec<_> = whole.elements.iter().filter(|e| !before.elements.contains(e)).cloned().collect();
            prop_assert_eq!(change.elements, Difference { gone, new });
            // And it can be taken back.
            let mut back = desired.clone();
            back.apply(change.inverses);
            prop_assert_eq!(&back, &before);
        }
    }
}
