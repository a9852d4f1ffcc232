//! A look at one endpoint names whatever is broken of it.

use std::os::fd::AsFd;

use causeway_kernel_fallback::pod;
use causeway_model::{Dataplane, PortMapping, PortProtocol};

use crate::lab::{Lab, LabNode, LabPod, Namespace, UNDERLAY};

fn check(node: &mut LabNode, pod: &LabPod) -> Vec<String> {
    let netns = pod.ns.open();
    node.on(|dataplane| dataplane.check(&pod.endpoint, netns.as_fd())).unwrap()
}

/// What is done to the node, and the words that tell of it. LINK, V4 and MAC stand for those of the pod.
const ON_THE_NODE: &[(&str, &str)] = &[
    ("ip link set LINK down", "link LINK is down"),
    ("ip link set LINK down", "link eth0 has no carrier"),
    ("ip link set LINK mtu 1400", "the MTU of link LINK is 1400"),
    ("ip link set LINK address 02:00:00:00:00:44", "the MAC of link LINK is 02:00:00:00:00:44"),
    ("ip link del LINK", "link LINK is missing"),
    ("ip route del V4", "route V4/32 on LINK is missing"),
    ("ip neigh del V4 dev LINK", "neighbour V4 at MAC on LINK is missing"),
    (
        "ip neigh replace V4 lladdr 02:00:00:00:00:45 dev LINK",
        "neighbour V4 at 02:00:00:00:00:45 on LINK stands",
    ),
    ("ip link set cw-vxlan down", "link cw-vxlan is down"),
    ("nft delete element inet causeway pod_links '{ \"LINK\" }'", "pod_links lacks \"LINK\""),
    ("nft delete element inet causeway pod_macs '{ \"LINK\" . MAC }'", "pod_macs lacks \"LINK\" . MAC"),
    ("nft delete element inet causeway pod_addresses4 '{ \"LINK\" . V4 }'", "pod_addresses4 lacks"),
    ("nft delete element inet causeway endpoints4 '{ V4 }'", "endpoints4 lacks V4"),
    ("nft flush chain inet causeway from_pod", "the chains of nft table inet causeway are not ours"),
    ("nft delete table inet causeway", "nft table inet causeway is missing"),
];

/// The same inside the pod.
const IN_THE_POD: &[(&str, &str)] = &[
    ("ip link set eth0 down", "in the pod link eth0 is down"),
    ("ip link set eth0 mtu 1300", "in the pod the MTU of link eth0 is 1300"),
    ("ip link set eth0 address 02:00:00:00:00:46", "in the pod the MAC of link eth0 is 02:00:00:00:00:46"),
    ("ip addr del V4/32 dev eth0", "in the pod address V4/32 on eth0 is missing"),
    ("ip route del default", "in the pod route 0.0.0.0/0 via 169.254.1.1 on eth0 is missing"),
    ("ip neigh del 169.254.1.1 dev eth0", "in the pod neighbour 169.254.1.1"),
    ("ip link del eth0", "in the pod there is no link eth0"),
];

#[test]
fn whatever_is_broken_is_named_and_left_as_it_is() {
    let mut lab = Lab::new(2, &UNDERLAY);
    let a = lab.add_pod(0);
    let link = a.endpoint.key.link_name();
    let told = |text: &str| {
        let text = text.replace("LINK", link.as_str()).replace("V4", &a.v4().to_string());
        text.replace("MAC", &a.endpoint.mac.to_string())
    };
    let node = &mut lab.nodes[0];
    assert_eq!(check(node, &a), Vec::<String>::new());
    let places =
        ON_THE_NODE.iter().map(|case| (false, case)).chain(IN_THE_POD.iter().map(|case| (true, case)));
    for (inside, (tampering, words)) in places {
        // "the MAC of" is a word of ours, not the pod's address.
        let words = told(&words.replace("the MAC of", "the M-A-C of")).replace("M-A-C", "MAC");
        if inside {
            a.ns.run(&told(tampering))
        } else {
            node.ns.run(&told(tampering))
        };
        for look in ["first", "second"] {
            let found = check(node, &a).join("; ");
            assert!(found.contains(&words), "{tampering}, {look} look: {words:?} is not in {found:?}");
        }
        for _ in 0..2 {
            node.mend();
            pod::configure(a.ns.open().as_fd(), "eth0", &a.endpoint).unwrap();
        }
        assert_eq!(check(node, &a), Vec::<String>::new(), "after {tampering} was mended");
    }
}

#[test]
fn a_link_of_the_right_name_that_leads_elsewhere_is_told_from_ours() {
    let mut lab = Lab::new(1, &UNDERLAY);
    let a = lab.add_pod(0);
    a.ns.run("ip link set eth0 name old");
    a.ns.run("ip link add eth0 type veth peer name other");
    a.ns.run("ip link set other up");
    pod::configure(a.ns.open().as_fd(), "eth0", &a.endpoint).unwrap();
    let found = check(&mut lab.nodes[0], &a).join("; ");
    assert!(found.contains("is not the other end of"), "{found}");
}

#[test]
fn a_port_of_the_node_that_leads_elsewhere_is_told_from_one_that_leads_nowhere() {
    let mut lab = Lab::new(1, &UNDERLAY);
    let node = &mut lab.nodes[0];
    let mut endpoint = node.new_endpoint();
    let port = |number: u16| number.try_into().unwrap();
    let mapping = |protocol, host_ip: Option<&str>, host_port| PortMapping {
        host_ip: host_ip.map(|address| address.parse().unwrap()),
        host_port: port(host_port),
        container_port: port(80),
        protocol,
    };
    endpoint.port_mappings = vec![
        mapping(PortProtocol::Tcp, None, 8080),
        mapping(PortProtocol::Sctp, Some("192.0.2.1"), 8081),
        mapping(PortProtocol::Udp, Some("2001:db8::1"), 8082),
    ];
    let ns = Namespace::new("pod");
    node.plug(&endpoint, &ns);
    let pod = LabPod { ns, endpoint };
    let (v4, v6) = (pod.v4(), pod.v6());
    for (map, key, to, other) in [
        ("ports4", "tcp . 8080", format!("{v4} . 80"), format!("{v4} . 81")),
        ("ports6", "tcp . 8080", format!("{v6} . 80"), "fd70:0:0:1::77 . 80".to_owned()),
        ("ports_at4", "192.0.2.1 . sctp . 8081", format!("{v4} . 80"), "10.70.1.77 . 80".to_owned()),
        ("ports_at6", "2001:db8::1 . udp . 8082", format!("{v6} . 80"), format!("{v6} . 65535")),
    ] {
        assert_eq!(check(node, &pod), Vec::<String>::new(), "before {map} is broken");
        let gone = format!("delete element inet causeway {map} {{ {key} }}");
        node.ns.run(&format!("nft '{gone}; add element inet causeway {map} {{ {key} : {other} }}'"));
        let found = check(node, &pod).join("; ");
        let words = format!("nft map {map} leads elsewhere than {key} : {to}");
        assert!(found.contains(&words), "{words:?} is not in {found:?}");
        node.ns.run(&format!("nft '{gone}'"));
        let found = check(node, &pod).join("; ");
        assert!(found.contains(&format!("nft set {map} lacks {key}")), "{found:?}");
        node.mend();
    }
    assert_eq!(check(node, &pod), Vec::<String>::new());
}
