use proptest::prelude::*;

use super::ranges::overlap;
use super::*;

const LYON: &str = "
apiVersion: causeway.dev/v1alpha1
kind: Cluster
metadata: {name: lyon}
spec: {id: 1, region: eu-west, podCIDRs: [10.70.0.0/16, 'fd70::/32'], serviceCIDRs: [10.96.0.0/16]}
";
const PARIS: &str = "
apiVersion: causeway.dev/v1alpha1
kind: Cluster
metadata: {name: paris}
spec: {id: 2, podCIDRs: [10.80.0.0/16, 'fd80::/32'], serviceCIDRs: [10.97.0.0/16]}
";

fn node(name: &str, underlay: &str, prefixes: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, annotations: {{causeway.dev/underlay: '{underlay}'}}}}\n\
         spec: {{podCIDRs: [{prefixes}]}}\n"
    )
}

fn east() -> String {
    node("east", "192.0.2.11", "10.70.1.0/24, 'fd70:0:0:1::/64'")
}

fn link(name: &str, mtu: u32, addresses: &[&str]) -> Link {
    Link {
        name: name.to_owned(),
        mtu,
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        up: true,
    }
}

/// What node east of cluster lyon makes of this cluster's manifests, of those of cluster paris, and of a line of configuration.
struct Case<'a> {
    here: &'a str,
    paris: &'a str,
    config: &'a str,
    links: Vec<Link>,
}

impl Default for Case<'_> {
    fn default() -> Self {
        let links = vec![
            link("lo", 65536, &["127.0.0.1/8", "::1/128"]),
            link("eth0", 1500, &["192.0.2.11/24", "2001:db8::11/64", "fe80::1/64"]),
        ];
        Case { here: "", paris: "", config: "", links }
    }
}

/// What a mesh makes of all clusters at once.
fn standing(world: &World) -> Standing {
    let mut mesh = mesh::World::new(world.cluster.clone().unwrap(), mesh::Memory::default());
    for (name, object) in &world.clusters {
        let record = (object.cluster.clone(), object.created.clone());
        mesh.apply(mesh::Change::Cluster(name.clone(), Some(record)));
    }
    mesh.settle();
    Standing::of(&mesh)
}

impl Case<'_> {
    fn desired(&self) -> Desired {
        let here = format!("{LYON}{}", self.here);
        let world = World::of_files([("here.yaml", &*here), ("clusters/paris/all.yaml", self.paris)]);
        let config = Config::from_yaml("agent.yaml", &format!("node: east\n{}", self.config)).unwrap();
        desired(&Given {
            world: &world,
            source: "manifests in /m",
            config: &config,
            links: &self.links,
            tunnel: TunnelOwner::Kernel,
            host_services: HostServices::Own,
            standing: &standing(&world),
        })
    }

    fn ready(&self) -> (Ready, Vec<String>) {
        let desired = self.desired();
        (desired.ready.unwrap(), desired.problems)
    }

    fn refused(&self) -> String {
        self.desired().ready.unwrap_err().to_string()
    }
}

fn peers(ready: &Ready) -> Vec<String> {
    ready.snapshot.peers.keys().map(ToString::to_string).collect()
}

#[test]
fn nodes_of_all_clusters_make_one_mesh() {
    let here = east() + &node("west", "192.0.2.12", "10.70.2.0/24");
    let paris = format!("{PARIS}{}", node("east", "198.51.100.1, 2001:db8:1::1", "10.80.1.0/24"));
    let (ready, problems) = Case { here: &here, paris: &paris, ..Case::default() }.ready();
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(peers(&ready), ["lyon/west", "paris/east"]);
    assert_eq!(ready.uplink, "eth0");
    let Settings { node, tunnel_address, pod_mtu, tunnel, .. } = &ready.snapshot.settings;
    assert_eq!(node.id.to_string(), "lyon/east");
    assert_eq!(node.vtep_mac, Node::derived_vtep_mac(&node.id));
    assert_eq!(
        (tunnel_address.to_string().as_str(), *pod_mtu, *tunnel),
        ("192.0.2.11", 1450, TunnelOwner::Kernel)
    );
    let regions: Vec<_> = ready.snapshot.clusters.values().map(|c| (c.id, c.region.as_deref())).collect();
    assert_eq!(regions, [(1, Some("eu-west")), (2, None)]);
}

#[test]
fn what_is_missing_is_waited_for_by_name() {
    let east = east();
    let addressless = Case::default().links.into_iter().take(1).collect::<Vec<_>>();
    let table = [
        (Case::default(), "waiting for Node east in cluster lyon (manifests in /m)"),
        (
            Case { here: &node("east", "192.0.2.11", ""), ..Case::default() },
            "waiting for pod prefixes of Node east",
        ),
        (
            Case {
                here: "---\napiVersion: v1\nkind: Node\nmetadata: {name: east}\nspec: {podCIDR: 10.70.1.0/24}\n",
                ..Case::default()
            },
            "waiting for underlay addresses of Node east in cluster lyon",
        ),
        (
            Case { here: &east, config: "uplink: eth7", ..Case::default() },
            "waiting for the uplink eth7: this machine has no such interface",
        ),
        (
            Case { here: &east, config: "uplink: lo", ..Case::default() },
            "an underlay address of Node lyon/east (192.0.2.11) on the uplink lo, which has 127.0.0.1/8, ::1/128",
        ),
        (
            Case { here: &east, links: addressless, ..Case::default() },
            "waiting for an interface with an underlay address of Node lyon/east (192.0.2.11)",
        ),
    ];
    for (case, expected) in table {
        let error = case.refused();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        assert!(matches!(case.desired().ready, Err(NotReady::Waiting(_))), "{error}");
    }
    let config = Config::from_yaml("agent.yaml", "node: east").unwrap();
    let world = World::default();
    let (links, source, tunnel) = (&[][..], "manifests in /m", TunnelOwner::Kernel);
    let given = Given {
        world: &world,
        source,
        config: &config,
        links,
        tunnel,
        host_services: HostServices::Own,
        standing: &Standing::default(),
    };
    let expected = NotReady::Waiting("the Cluster object of this cluster (manifests in /m)".to_owned());
    assert_eq!(desired(&given).ready, Err(expected));
}

#[test]
fn the_tunnel_ends_at_the_first_address_that_is_really_there() {
    let here = node("east", "192.0.2.99, 2001:db8::11, 192.0.2.11", "10.70.1.0/24");
    let (ready, problems) = Case { here: &here, ..Case::default() }.ready();
    assert_eq!(ready.snapshot.settings.tunnel_address.to_string(), "2001:db8::11");
    assert_eq!(ready.snapshot.settings.pod_mtu, 1430);
    assert!(problems.is_empty(), "{problems:?}");

    let here = node("east", "192.0.2.99, 192.0.2.11", "10.70.1.0/24");
    let (ready, problems) = Case { here: &here, ..Case::default() }.ready();
    assert_eq!(ready.snapshot.settings.tunnel_address.to_string(), "192.0.2.11");
    assert_eq!(
        problems,
        ["Node lyon/east: other nodes send to 192.0.2.99, but of its underlay addresses eth0 has 192.0.2.11"]
    );
}

#[test]
fn an_address_on_the_loopback_needs_a_named_uplink() {
    let here = node("east", "203.0.113.1", "10.70.1.0/24");
    let links = vec![link("lo", 65536, &["127.0.0.1/8", "203.0.113.1/32"])];
    let mut case = Case { here: &here, links, ..Case::default() };
    assert!(case.refused().contains("waiting for an interface with"), "{}", case.refused());
    case.config = "uplink: lo\nmtu: 1450";
    assert_eq!(case.ready().0.snapshot.settings.pod_mtu, 1450);
}

#[test]
fn the_mtu_is_the_uplinks_less_the_tunnel_or_less() {
    let (dual, v4) = (east(), node("east", "192.0.2.11", "10.70.1.0/24"));
    let v6_underlay = node("east", "2001:db8::11", "10.70.1.0/24");
    let on = |mtu| vec![link("eth0", mtu, &["192.0.2.11/24", "2001:db8::11/64"])];
    for (here, uplink, config, expected) in [
        (&dual, 1500, "", Ok(1450)),
        (&v6_underlay, 1500, "", Ok(1430)),
        (&dual, 9000, "mtu: 1450", Ok(1450)),
        (&dual, 1330, "", Ok(1280)),
        (&v4, 626, "", Ok(576)),
        (&v4, 65536, "", Ok(65485)),
        (
            &dual,
            1500,
            "mtu: 1451",
            Err("mtu: 1451 is configured, but pods can have 1450 at most: eth0's 1500 less 50"),
        ),
        (
            &dual,
            1329,
            "",
            Err(
                "an MTU of 1279 (eth0's 1329 less 50 for a tunnel over IPv4) is too small for Node lyon/east: IPv6 pods need 1280",
            ),
        ),
        (
            &dual,
            1500,
            "mtu: 1279",
            Err("an MTU of 1279 (as configured) is too small for Node lyon/east: IPv6 pods need 1280"),
        ),
        (&v4, 625, "", Err("is too small for Node lyon/east: IPv4 pods need 576")),
        (&v4, 40, "", Err("an MTU of 0 ")),
    ] {
        let case = Case { here, config, links: on(uplink), ..Case::default() };
        match (case.desired().ready, expected) {
            (Ok(ready), Ok(mtu)) => assert_eq!(ready.snapshot.settings.pod_mtu, mtu),
            (Err(NotReady::Refused(error)), Err(expected)) => assert!(error.contains(expected), "{error}"),
            (other, expected) => panic!("{other:?}, not {expected:?}"),
        }
    }
}

#[test]
fn a_node_that_contradicts_an_earlier_one_is_left_out_by_name() {
    let table = [
        (
            "192.0.2.12",
            "10.70.1.0/25",
            "its pod prefix 10.70.1.0/25 overlaps pod prefix 10.70.1.0/24 of Node lyon/east",
        ),
        (
            "192.0.2.12",
            "10.70.0.0/23",
            "its pod prefix 10.70.0.0/23 overlaps pod prefix 10.70.1.0/24 of Node lyon/east",
        ),
        (
            "192.0.2.12",
            "10.70.9.0/24, 'fd70:0:0:1:8000::/65'",
            "overlaps pod prefix fd70:0:0:1::/64 of Node lyon/east",
        ),
        (
            "192.0.2.11",
            "10.70.2.0/24",
            "its underlay address 192.0.2.11 overlaps underlay address 192.0.2.11 of Node lyon/east",
        ),
        (
            "10.70.1.7",
            "10.70.2.0/24",
            "its underlay address 10.70.1.7 overlaps pod prefix 10.70.1.0/24 of Node lyon/east",
        ),
        (
            "10.70.2.7, 192.0.2.12",
            "10.70.2.0/24",
            "its pod prefix 10.70.2.0/24 overlaps its underlay address 10.70.2.7",
        ),
        (
            "192.0.2.12",
            "10.70.2.0/24, 10.70.2.128/25",
            "its pod prefix 10.70.2.128/25 overlaps its pod prefix 10.70.2.0/24",
        ),
        ("2001:db8::12", "10.70.2.0/24", "it has no IPv4 address for the tunnel"),
        ("192.0.2.12", "", "it has no pod prefixes (yet)"),
        (
            "192.0.2.12",
            "10.70.2.0/31",
            "its pod prefix 10.70.2.0/31 has no room for the two addresses reserved in it",
        ),
        (
            "192.0.2.12",
            "10.71.2.0/24",
            "its pod prefix 10.71.2.0/24 is outside its cluster's podCIDRs 10.70.0.0/16, fd70::/32",
        ),
        ("192.0.2.12", "10.64.0.0/10", "its pod prefix 10.64.0.0/10 is outside its cluster's podCIDRs"),
    ];
    for (underlay, prefixes, expected) in table {
        let here = east() + &node("west", underlay, prefixes);
        let (ready, problems) = Case { here: &here, ..Case::default() }.ready();
        assert_eq!(peers(&ready), Vec::<String>::new(), "{underlay} {prefixes}");
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("Node lyon/west is left out: "), "{problems:?}");
        assert!(problems[0].contains(expected), "{problems:?} does not say {expected:?}");
    }
}

#[test]
fn a_node_of_a_cluster_without_prefixes_is_held_to_those_of_others_and_to_the_underlay() {
    let paris = "apiVersion: causeway.dev/v1alpha1\nkind: Cluster\nmetadata: {name: paris}\nspec: {id: 2}\n";
    for (prefix, expected) in [
        ("10.70.9.0/24", "its pod prefix 10.70.9.0/24 overlaps pod prefix 10.70.0.0/16 of cluster lyon"),
        ("10.96.0.0/12", "its pod prefix 10.96.0.0/12 overlaps service prefix 10.96.0.0/16 of cluster lyon"),
        ("192.0.0.0/16", "its pod prefix 192.0.0.0/16 overlaps 192.0.2.0/24, the underlay on eth0"),
        ("'2001:db8::/80'", "its pod prefix 2001:db8::/80 overlaps 2001:db8::/64, the underlay on eth0"),
        ("10.81.0.0/24", ""),
    ] {
        let paris = format!("{paris}{}", node("p1", "198.51.100.1", prefix));
        let (ready, problems) = Case { here: &east(), paris: &paris, ..Case::default() }.ready();
        assert_eq!(peers(&ready).len(), usize::from(expected.is_empty()));
        assert_eq!(problems.len(), usize::from(!expected.is_empty()), "{problems:?}");
        assert!(problems.iter().all(|problem| problem.contains(expected)), "{problems:?}");
    }
}

#[test]
fn our_own_node_wins_and_older_nodes_before_younger_ones() {
    let made = |name: &str, year: u32, underlay: &str, prefix: &str| {
        node(name, underlay, prefix)
            .replace("annotations", &format!("creationTimestamp: '{year}-01-01T00:00:00Z', annotations"))
    };
    // a-first is older and earlier in the alphabet than our own node, and yet yields to it; of the others the older wins.
    let here = east()
        + &made("a-first", 2001, "192.0.2.20", "10.70.1.0/24")
        + &made("b", 2003, "192.0.2.21", "10.70.3.0/24")
        + &made("c", 2002, "192.0.2.22", "10.70.3.0/24")
        + &node("a-timeless", "192.0.2.23", "10.70.3.0/24");
    let (ready, problems) = Case { here: &here, ..Case::default() }.ready();
    assert_eq!(peers(&ready), ["lyon/c"]);
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(
        problems[1].contains("Node lyon/b is left out") && problems[1].contains("of Node lyon/c"),
        "{problems:?}"
    );
}

#[test]
fn our_own_node_against_the_underlay_is_no_data_path_at_all() {
    for (prefix, expected) in [
        ("192.0.2.0/25", "Node lyon/east: its pod prefix 192.0.2.0/25 "),
        ("192.0.0.0/16", "Node lyon/east: its pod prefix 192.0.0.0/16 "),
        ("10.99.0.0/24", "is outside its cluster's podCIDRs"),
        ("10.70.1.0/32", "has no room"),
    ] {
        let case = Case { here: &node("east", "192.0.2.11", prefix), ..Case::default() };
        let error = case.refused();
        assert!(error.contains(expected), "{error}");
        assert!(matches!(case.desired().ready, Err(NotReady::Refused(_))), "{error}");
    }
    let open = LYON.replace("podCIDRs: [10.70.0.0/16, 'fd70::/32'], ", "")
        + &node("east", "192.0.2.11", "192.0.2.0/24");
    let world = World::of_files([("all.yaml", open.as_str())]);
    let case = Case::default();
    let config = Config::from_yaml("agent.yaml", "node: east").unwrap();
    let tunnel = TunnelOwner::Kernel;
    let given = Given {
        world: &world,
        source: "m",
        config: &config,
        links: &case.links,
        tunnel,
        host_services: HostServices::Own,
        standing: &standing(&world),
    };
    let expected = "Node lyon/east: its pod prefix 192.0.2.0/24 overlaps 192.0.2.0/24, the underlay on eth0";
    assert_eq!(desired(&given).ready, Err(NotReady::Refused(expected.to_owned())));
}

#[test]
fn a_cluster_that_contradicts_an_earlier_one_is_left_out_with_its_nodes() {
    let table = [
        ("id: 2", "id: 0", "Cluster paris is left out with all its nodes: its id 0 is nobody's"),
        ("id: 2", "id: 1", "Cluster paris is left out with all its nodes: its id 1 is that of cluster lyon"),
        ("10.80.0.0/16", "10.64.0.0/10", "its prefix 10.64.0.0/10 overlaps 10.70.0.0/16 of cluster lyon"),
        ("10.80.0.0/16", "10.96.1.0/24", "its prefix 10.96.1.0/24 overlaps 10.96.0.0/16 of cluster lyon"),
        ("10.97.0.0/16", "10.70.1.0/24", "its prefix 10.70.1.0/24 overlaps 10.70.0.0/16 of cluster lyon"),
        (
            "id: 2, podCIDRs: [10.80.0.0/16",
            "id: 1, podCIDRs: [10.70.4.0/24",
            "its id 1 is that of cluster lyon; its prefix 10.70.4.0/24 overlaps 10.70.0.0/16 of cluster lyon",
        ),
        (
            "causeway.dev/v1alpha1",
            "else.where/v1",
            "cluster paris has no Cluster object: its nodes are left out",
        ),
    ];
    for (from, to, expected) in table {
        let paris = PARIS.replace(from, to)
            + &node("p1", "198.51.100.1", "10.80.1.0/24")
            + &node("p2", "198.51.100.2", "10.80.2.0/24");
        let mut case = Case { here: &east(), paris: &paris, ..Case::default() };
        let (ready, problems) = case.ready();
        assert_eq!((peers(&ready).len(), ready.snapshot.clusters.len()), (0, 1), "{to}");
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains(expected), "{problems:?}");
        let good = PARIS.to_owned() + &node("p1", "198.51.100.1", "10.80.1.0/24");
        case.paris = &good;
        assert_eq!(peers(&case.ready().0), ["paris/p1"], "and is back when it is right");
    }
}

proptest! {
    /// Whatever is written, those admitted never share an address, and our own node is always among them.
    #[test]
    fn the_admitted_never_overlap(nodes in prop::collection::vec((0u8..20, 0u8..40, 22u8..=30, any::<bool>()), 0..20)) {
        let mut here = node("east", "192.0.2.11", "10.70.1.0/24");
        let mut paris = PARIS.to_owned();
        for (index, (underlay, third, length, foreign)) in nodes.into_iter().enumerate() {
            let net = u32::from_be_bytes([10, if foreign { 80 } else { 70 }, third / 4, third << 6]);
            let prefix = IpNetwork::new(IpAddr::from((net >> (32 - length) << (32 - length)).to_be_bytes()), length).unwrap();
            let written = node(&format!("n{index}"), &format!("192.0.2.{}", underlay + 5), &prefix.to_string());
            if foreign { paris += &written } else { here += &written }
        }
        let (ready, problems) = Case { here: &here, paris: &paris, ..Case::default() }.ready();
        let all: Vec<_> = ready.snapshot.peers.values().chain([&ready.snapshot.settings.node]).collect();
        let ranges: Vec<_> = all
            .iter()
            .flat_map(|node| node.underlay.iter().map(|a| IpNetwork::from(*a)).chain(node.pod_prefixes.iter().copied()))
            .collect();
        for (index, range) in ranges.iter().enumerate() {
            prop_assert!(ranges[..index].iter().all(|other| !overlap(*range, *other)), "{range} twice");
        }
        let nodes = here.matches("kind: Node").count() + paris.matches("kind: Node").count();
        prop_assert_eq!(all.len() + problems.len(), nodes, "everybody is in or is named: {:?}", problems);
    }
}
