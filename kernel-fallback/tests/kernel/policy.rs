//! Policy as packets meet it: who is let through, what becomes of flows that were, what is counted and told.

mod changes;
mod faults;
mod told;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway_model::policy::{
    Action, Direction, Row, RowVerdicts, RuleId, RuleIndex, RuleNumber, StageId, StageRule,
};
use causeway_model::{
    Count, Dataplane, Delta, DropReason, Family, Identity, Path, PortMapping, PortProtocol, TunnelOwner,
    Update,
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

use crate::lab::{Lab, LabNode, LabPod, Namespace, UNDERLAY};
use crate::sample::{Said, stage};

const TCP: PortProtocol = PortProtocol::Tcp;
const UDP: PortProtocol = PortProtocol::Udp;
const A: Identity = Identity(300);
const B: Identity = Identity(301);
const SERVER: Identity = Identity(302);

/// Whether a TCP connection comes about.
fn connects(from: &Namespace, to: IpAddr, port: u16) -> bool {
    let to = SocketAddr::new(to, port);
    from.inside(|| TcpStream::connect_timeout(&to, Duration::from_millis(500)).is_ok())
}

/// Listens on ports of a pod at both addresses for as long as it is held.
fn listen(pod: &LabPod, ports: &[u16]) -> Vec<TcpListener> {
    let bind = |(address, port)| TcpListener::bind((address, port)).unwrap();
    let ends = ports.iter().flat_map(|port| [(pod.v4(), *port), (pod.v6(), *port)]);
    pod.ns.inside(|| ends.map(bind).collect())
}

fn udp(pod: &LabPod, port: u16) -> UdpSocket {
    let socket = pod.ns.inside(|| UdpSocket::bind((pod.v4(), port))).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket
}

/// Whether a datagram arrives.
fn arrives(from: &UdpSocket, to: &UdpSocket) -> bool {
    let _ = from.send_to(b"hello", to.local_addr().unwrap());
    to.recv_from(&mut [0; 16]).is_ok()
}

fn rule(number: u32) -> RuleId {
    RuleId { policy: format!("p{number}"), direction: Direction::Ingress, index: RuleIndex::Rule(0) }
}

fn count(node: &mut LabNode, id: &RuleId) -> Count {
    let counters = node.on(Dataplane::counters).unwrap();
    counters.rules.get(id).copied().unwrap_or_default()
}

/// What a rule has denied.
fn denied(node: &mut LabNode, number: u32) -> u64 {
    count(node, &rule(number)).packets
}

/// Changes an endpoint's table of one direction, and its epoch.
fn table(node: &mut LabNode, pod: &LabPod, direction: Direction, stages: &[u32]) {
    let mut endpoint = node.snapshot.endpoints[&pod.endpoint.key].clone();
    let table = endpoint.policy.of_mut(direction);
    table.stages = stages.iter().map(|id| StageId(*id)).collect();
    table.epoch += u32::from(!faults::has("epoch-kept"));
    node.apply(Delta::Endpoint(Box::new(endpoint)));
}

fn put(node: &mut LabNode, id: u32, rules: &[Said], otherwise: Option<u32>) {
    let numbers = rules.iter().map(|said| said.number).chain(otherwise);
    let names = numbers.map(|number| Delta::Rule(RuleNumber(number), rule(number)));
    let stage = Delta::Stage(StageId(id), Arc::new(stage(&faults::bent(rules), otherwise)));
    let deltas: Vec<Delta> = names.chain([stage]).collect();
    deltas.iter().cloned().for_each(|delta| node.snapshot.apply(delta));
    node.on(|dataplane| dataplane.apply(Update::Changes(&deltas))).unwrap();
}

/// A stage without rules, which denies everything by rule 9.
const NOBODY: u32 = 9;

fn isolate(node: &mut LabNode, pod: &LabPod, direction: Direction) {
    put(node, NOBODY, &[], Some(9));
    table(node, pod, direction, &[NOBODY]);
}

/// Three pods of one node, whose addresses are known, and the node's.
fn three() -> (Lab, [LabPod; 3]) {
    let mut lab = Lab::new(1, &UNDERLAY);
    let pods = [lab.add_pod(0), lab.add_pod(0), lab.add_pod(0)];
    introduce(&mut lab.nodes[0], &[(&pods[0], A), (&pods[1], B), (&pods[2], SERVER)]);
    // The kernel opens the queue of a link a moment after its other end came up.
    for pod in &pods {
        let until = Instant::now() + Duration::from_secs(2);
        while !lab.nodes[0].ns.ping(pod.v4(), "-W 1") && Instant::now() < until {}
    }
    (lab, pods)
}

/// Says who has which address, and what the clusters' prefixes are.
fn introduce(node: &mut LabNode, pods: &[(&LabPod, Identity)]) {
    node.apply(Delta::PodPrefixes(vec!["10.70.0.0/16".parse().unwrap(), "fd70::/48".parse().unwrap()]));
    let hosts = Family::BOTH.map(|family| node.overlay(family));
    for address in node.snapshot.settings.node.underlay.clone().into_iter().chain(hosts) {
        node.apply(Delta::Identity(address, Identity::HOST));
    }
    for (pod, identity) in pods {
        for address in &pod.endpoint.addresses {
            node.apply(Delta::Identity(*address, *identity));
        }
    }
}

/// A machine outside of all clusters, from which the node forwards.
fn outsider(lab: &Lab, number: u8) -> (Namespace, IpAddr) {
    let ns = Namespace::new("outside");
    lab.switch.run(&format!("ip link add o{number} type veth peer name eth0 netns {}", ns.name));
    lab.switch.run(&format!("ip link set o{number} master br0 up"));
    ns.run(&format!("ip addr add 192.0.2.{number}/24 dev eth0"));
    ns.run("ip link set eth0 up");
    ns.run("ip route add 10.70.1.0/24 via 192.0.2.1");
    (ns, [192, 0, 2, number].into())
}

/// A flow that says something now and then, for as long as it is answered.
struct Talk {
    client: UdpSocket,
    server: UdpSocket,
}

impl Talk {
    fn new(client: &LabPod, server: &LabPod, port: u16) -> Self {
        let talk = Self { client: udp(client, port), server: udp(server, port) };
        talk.client.connect(talk.server.local_addr().unwrap()).unwrap();
        talk.server.connect(talk.client.local_addr().unwrap()).unwrap();
        talk
    }

    fn asks(&self) -> bool {
        let _ = self.client.send(b"ask");
        self.server.recv(&mut [0; 16]).is_ok()
    }

    fn answers(&self) -> bool {
        let _ = self.server.send(b"answer");
        self.client.recv(&mut [0; 16]).is_ok()
    }

    fn goes(&self) -> bool {
        self.asks() && self.answers()
    }
}

#[test]
fn rules_are_asked_in_order_and_denials_counted_by_rule_and_pod() {
    let (mut lab, [a, b, server]) = three();
    let node = &mut lab.nodes[0];
    let _open = listen(&server, &[80, 81]);
    for to in [server.v4(), server.v6()] {
        assert!(connects(&a.ns, to, 80) && connects(&b.ns, to, 80), "nothing is said yet");
    }
    let rules = [
        Said::new(Action::Deny, 16).of(B).port(TCP, 80..=80),
        Said::new(Action::Accept, 17).of(B).port(TCP, 80..=81),
        Said::new(Action::Accept, 18).of(A).port(TCP, 80..=80),
    ];
    put(node, 1, &rules, Some(19));
    table(node, &server, Direction::Ingress, &[1]);
    for to in [server.v4(), server.v6()] {
        let before = [16, 19].map(|number| denied(node, number));
        assert!(connects(&a.ns, to, 80) && connects(&b.ns, to, 81));
        assert!(!connects(&b.ns, to, 80));
        assert_eq!(denied(node, 19), before[1]);
        assert!(denied(node, 16) > before[0]);
        assert!(!connects(&a.ns, to, 81));
        assert!(!a.ns.ping(to, "-W 1"), "what has no ports is not what the rule speaks of");
        assert!(denied(node, 19) >= before[1] + 2);
    }
    let counters = node.on(Dataplane::counters).unwrap();
    let of_server = counters.endpoints[&server.endpoint.key].drops[&DropReason::PolicyDenied];
    assert_eq!(counters.drops[&DropReason::PolicyDenied], of_server);
    let by_rule: u64 = counters.rules.values().map(|count| count.packets).sum();
    assert_eq!(of_server.packets, by_rule);
    assert!(!counters.endpoints[&a.endpoint.key].drops.contains_key(&DropReason::PolicyDenied));
    assert_eq!(node.mend(), Vec::<String>::new());
    assert!(connects(&a.ns, server.v4(), 80));
}

#[test]
fn stages_are_asked_one_after_the_other_and_both_ends_must_allow() {
    let (mut lab, [a, b, server]) = three();
    let node = &mut lab.nodes[0];
    let _open = listen(&server, &[80, 81, 82]);
    let admin = [
        Said::new(Action::Pass, 16).of(A).port(TCP, 80..=80),
        Said::new(Action::Accept, 17).of(B).port(TCP, 81..=81),
        Said::new(Action::Deny, 18).block("0.0.0.0/0", &[]).port(TCP, 81..=81),
        Said::new(Action::Pass, 19).of(B).port(TCP, 82..=82),
    ];
    put(node, 1, &admin, None);
    put(node, 2, &[Said::new(Action::Accept, 20).of(A).port(TCP, 80..=80)], None);
    put(node, 3, &[Said::new(Action::Deny, 21).of(B)], None);
    table(node, &server, Direction::Ingress, &[1, 2, 3]);
    let to = server.v4();
    assert!(connects(&a.ns, to, 80), "passed by the first, allowed by the second");
    assert!(connects(&b.ns, to, 81), "by identity, before the block that has it too");
    assert!(!connects(&a.ns, to, 81), "by the block");
    assert!(!connects(&b.ns, to, 80), "by the third");
    assert!(!connects(&b.ns, to, 82), "passed by the first, denied by the third");
    assert!(connects(&a.ns, to, 82), "nobody said anything");
    assert!(denied(node, 18) > 0 && denied(node, 21) > 0);
    table(node, &a, Direction::Egress, &[3, 1]);
    assert!(connects(&a.ns, to, 80));
    isolate(node, &a, Direction::Egress);
    assert!(!connects(&a.ns, to, 80), "the other end does not allow");
    assert!(denied(node, 9) > 0);
    let counters = node.on(Dataplane::counters).unwrap();
    assert!(counters.endpoints[&a.endpoint.key].drops.contains_key(&DropReason::PolicyDenied));
}

#[test]
fn unknown_is_not_the_world_and_holes_are_not_of_their_block() {
    let (mut lab, [a, b, server]) = three();
    let (outside, _) = outsider(&lab, 77);
    let (hole, _) = outsider(&lab, 78);
    let node = &mut lab.nodes[0];
    let _open = listen(&server, &[80]);
    let rules = [Said::new(Action::Accept, 16).block("0.0.0.0/0", &["192.0.2.78/32"]).block("::/0", &[])];
    put(node, 1, &rules, Some(17));
    table(node, &server, Direction::Ingress, &[1]);
    assert!(connects(&outside, server.v4(), 80));
    assert!(!connects(&hole, server.v4(), 80));
    assert!(denied(node, 17) > 0);
    for to in [server.v4(), server.v6()] {
        assert!(connects(&a.ns, to, 80) && connects(&b.ns, to, 80), "blocks are addresses, whoever has them");
    }
    for address in &b.endpoint.addresses {
        node.apply(Delta::IdentityGone(*address));
    }
    for address in &a.endpoint.addresses {
        node.apply(Delta::Identity(*address, Identity::UNKNOWN));
    }
    for to in [server.v4(), server.v6()] {
        let before = count(node, &RuleId::unknown(Direction::Ingress));
        assert!(!connects(&a.ns, to, 80) && !connects(&b.ns, to, 80));
        assert!(count(node, &RuleId::unknown(Direction::Ingress)).packets >= before.packets + 2);
    }
    node.apply(Delta::PodPrefixes(Vec::new()));
    assert!(connects(&b.ns, server.v4(), 80), "outside of all clusters everybody is the world");
    assert!(!connects(&a.ns, server.v4(), 80), "said to be unknown");
}

#[test]
fn ranges_of_ports_are_told_apart_by_protocol_to_the_last_port() {
    let (mut lab, [a, _, server]) = three();
    let node = &mut lab.nodes[0];
    let rules = [
        Said::new(Action::Deny, 16).of(A).port(TCP, 8001..=8001),
        Said::new(Action::Accept, 17).of(A).port(TCP, 8000..=8002).port(UDP, 65_535..=65_535),
    ];
    put(node, 1, &rules, Some(18));
    table(node, &server, Direction::Ingress, &[1]);
    let _open = listen(&server, &[7999, 8000, 8001, 8002, 8003]);
    let reached = [7999, 8000, 8001, 8002, 8003].map(|port| connects(&a.ns, server.v4(), port));
    assert_eq!(reached, [false, true, false, true, false]);
    let mine = udp(&a, 5000);
    let reached = [8000, 65_534, 65_535].map(|port| arrives(&mine, &udp(&server, port)));
    assert_eq!(reached, [false, false, true]);
}

/// Sends the first packet of an association (RFC 9260 §3.3.2).
fn init(from: &LabPod, to: &LabPod, port: u16) {
    let address = |pod: &LabPod| match pod.v4() {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => panic!("{v6}"),
    };
    let mut packet = vec![0x45, 0, 0, 52, 0, 0, 0, 0, 64, 132, 0, 0];
    packet.extend(address(from).octets());
    packet.extend(address(to).octets());
    let mut sctp = vec![0x30, 0x39];
    sctp.extend(port.to_be_bytes());
    // Verification tag, checksum; INIT of 20 bytes: tag, window, streams, first TSN.
    sctp.extend([0; 8]);
    sctp.extend([1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let mut crc = u32::MAX;
    for byte in &sctp {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    sctp[8..12].copy_from_slice(&(!crc).to_le_bytes());
    packet.extend(sctp);
    from.ns.inside(|| {
        let raw =
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), Some(SockProtocol::Raw)).unwrap();
        let to = SockaddrIn::from(std::net::SocketAddrV4::new(address(to), 0));
        sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty()).unwrap();
    });
}

#[test]
fn sctp_has_ports_and_icmp_has_none() {
    let (mut lab, [a, _, server]) = three();
    let node = &mut lab.nodes[0];
    server.ns.run("nft add table inet t");
    server.ns.run("nft 'add chain inet t c { type filter hook input priority 0; }'");
    server.ns.run("nft add rule inet t c meta l4proto sctp counter");
    let heard = || {
        let said = server.ns.run("nft list table inet t");
        said.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap_or(0)
    };
    put(node, 1, &[Said::new(Action::Accept, 16).of(A).port(PortProtocol::Sctp, 3868..=3868)], Some(17));
    table(node, &server, Direction::Ingress, &[1]);
    init(&a, &server, 3869);
    assert!(!a.ns.ping(server.v4(), "-W 1"));
    assert_eq!((heard(), denied(node, 17)), (0, 2));
    init(&a, &server, 3868);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(heard(), 1_u64);
    put(node, 1, &[Said::new(Action::Accept, 16).of(A)], Some(17));
    for to in [server.v4(), server.v6()] {
        assert!(a.ns.ping(to, ""), "a rule without ports is about all traffic");
    }
}

#[test]
fn the_node_itself_is_exempt_and_what_it_forwards_is_not() {
    let (mut lab, [a, _, server]) = three();
    let (outside, _) = outsider(&lab, 77);
    let node = &mut lab.nodes[0];
    let _open = listen(&server, &[80]);
    let mut endpoint = server.endpoint.clone();
    let port = |n| std::num::NonZeroU16::new(n).unwrap();
    let (host_port, container_port) = (port(8080), port(80));
    endpoint.port_mappings.push(PortMapping { host_ip: None, host_port, container_port, protocol: TCP });
    node.apply(Delta::Endpoint(Box::new(endpoint)));
    let host = node.underlay(0);
    assert!(connects(&outside, host, 8080) && connects(&server.ns, host, 8080));
    for direction in Direction::BOTH {
        isolate(node, &server, direction);
    }
    for to in [server.v4(), server.v6()] {
        assert!(connects(&node.ns, to, 80) && node.ns.ping(to, ""), "the node to its own pod");
    }
    let node_listens = node.ns.inside(|| TcpListener::bind("0.0.0.0:9000")).unwrap();
    assert!(connects(&server.ns, host, 9000), "the pod to its own node");
    drop(node_listens);
    assert!(!connects(&outside, server.v4(), 80), "an outsider through the node");
    assert!(!connects(&outside, host, 8080), "the same by a port of the node");
    assert!(!connects(&a.ns, host, 8080), "another pod, whose connection the node turns round");
    assert!(!connects(&server.ns, host, 8080), "the pod itself, by a port of the node");
    assert!(denied(node, 9) >= 3);
    put(node, 1, &[Said::new(Action::Accept, 16).block("192.0.2.77/32", &[]).port(TCP, 80..=80)], Some(17));
    table(node, &server, Direction::Ingress, &[1]);
    assert!(connects(&outside, host, 8080), "judged by its own address and the port behind the mapping");
    assert!(!connects(&a.ns, host, 8080));
}

#[test]
fn errors_about_an_allowed_flow_pass_and_nothing_that_belongs_to_none() {
    let (mut lab, [a, _, server]) = three();
    let node = &mut lab.nodes[0];
    put(node, 1, &[Said::new(Action::Accept, 16).of(A).port(UDP, 5001..=5001)], Some(17));
    table(node, &server, Direction::Ingress, &[1]);
    isolate(node, &server, Direction::Egress);
    let client = udp(&a, 5001);
    client.connect((server.v4(), 5001)).unwrap();
    client.send(b"hello").unwrap();
    let error = client.recv(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "port unreachable, of the server");
    // What connection tracking was told to leave alone is of no connection.
    node.ns.run("nft add table inet others");
    node.ns.run("nft 'add chain inet others c { type filter hook prerouting priority -300; }'");
    node.ns.run("nft add rule inet others c udp dport 5001 notrack");
    let _ = client.send(b"hello");
    assert!(!arrives(&client, &udp(&server, 5001)));
    let drops = node.on(Dataplane::counters).unwrap().drops;
    assert!(drops.contains_key(&DropReason::InvalidConnection), "{drops:?}");
}

#[test]
fn a_number_that_gets_another_rule_begins_at_zero_and_a_reload_loses_no_counts() {
    let (mut lab, [a, _, server]) = three();
    let node = &mut lab.nodes[0];
    isolate(node, &server, Direction::Ingress);
    let (from, to) = (udp(&a, 5001), udp(&server, 5001));
    assert!(!arrives(&from, &to) && !arrives(&from, &to));
    assert_eq!(denied(node, 9), 2);
    node.ns.run("nft flush chain inet causeway-policy dropped");
    assert!(!node.mend().is_empty());
    assert_eq!(denied(node, 9), 2);
    assert!(!arrives(&from, &to));
    assert_eq!(denied(node, 9), 3);
    let drops = node.on(Dataplane::counters).unwrap().drops;
    assert_eq!(drops[&DropReason::PolicyDenied].packets, 3);
    node.apply(Delta::Rule(RuleNumber(9), rule(99)));
    assert_eq!((denied(node, 9), denied(node, 99)), (0, 0));
    assert!(!arrives(&from, &to));
    assert_eq!((denied(node, 9), denied(node, 99)), (0, 1));
    node.apply(Delta::RuleGone(RuleNumber(9)));
    assert!(node.on(Dataplane::counters).unwrap().rules.is_empty());
}

#[test]
fn what_the_node_forwards_to_a_pod_of_the_fast_path_is_judged() {
    let mut lab = Lab::bare(1, &UNDERLAY);
    let (outside, _) = outsider(&lab, 77);
    let node = &mut lab.nodes[0];
    node.snapshot.settings.tunnel = TunnelOwner::FastPath;
    // The fast path, as a namespace that has its pod's address.
    let fast = Namespace::new("fast");
    node.ns.run(&format!("ip link add cw-host type veth peer name eth0 netns {}", fast.name));
    let mut endpoint = node.new_endpoint();
    (endpoint.path, endpoint.port) = (Path::Fast, causeway_model::PortKind::Tap);
    let to = endpoint.addresses[0];
    fast.run(&format!("ip link set eth0 address {} up", causeway_model::GATEWAY_MAC));
    fast.run(&format!("ip addr add {to}/32 dev eth0"));
    fast.run("ip route add default dev eth0");
    node.snapshot.endpoints.insert(endpoint.key.clone(), endpoint.clone());
    node.apply_whole();
    let pod = node.add_pod();
    let mac = node.snapshot.settings.node.vtep_mac;
    fast.run("ip route replace default via 169.254.1.1 dev eth0 onlink");
    fast.run(&format!("ip neigh replace 169.254.1.1 lladdr {mac} dev eth0 nud permanent"));
    let _open = fast.inside(|| TcpListener::bind((to, 80))).unwrap();
    introduce(node, &[(&pod, A)]);
    assert!(connects(&outside, to, 80) && connects(&pod.ns, to, 80));
    put(node, NOBODY, &[], Some(9));
    endpoint.policy.ingress.stages = vec![StageId(NOBODY)];
    endpoint.policy.ingress.epoch += 1;
    node.apply(Delta::Endpoint(Box::new(endpoint)));
    assert!(!connects(&outside, to, 80) && !connects(&pod.ns, to, 80));
    assert!(connects(&node.ns, to, 80), "the node itself");
    assert!(denied(node, 9) >= 2);
}

#[test]
fn check_sees_what_an_endpoint_lacks_of_policy() {
    let (mut lab, [_, _, server]) = three();
    let node = &mut lab.nodes[0];
    isolate(node, &server, Direction::Ingress);
    let endpoint = node.snapshot.endpoints[&server.endpoint.key].clone();
    let check = |node: &mut LabNode| {
        use std::os::fd::AsFd;
        let netns = server.ns.open();
        node.on(|dataplane| dataplane.check(&endpoint, netns.as_fd())).unwrap()
    };
    assert_eq!(check(node), Vec::<String>::new());
    for harm in [
        "nft flush map inet causeway-policy tables4",
        "nft flush map inet causeway-policy verdicts",
        "nft flush chain inet causeway-policy forward",
        "nft delete table inet causeway-policy",
    ] {
        node.ns.run(harm);
        assert!(check(node).iter().any(|word| word.contains("causeway-policy")), "{harm}");
        node.mend();
        assert_eq!(check(node), Vec::<String>::new(), "{harm}");
    }
}

#[test]
fn a_hundred_thousand_blocks_are_taken_up_in_seconds() {
    if std::env::var("CAUSEWAY_TESTS").as_deref() != Ok("full") {
        println!("not run: CAUSEWAY_TESTS=full asks for it");
        return;
    }
    let (mut lab, [a, _, server]) = three();
    let (outside, _) = outsider(&lab, 77);
    let node = &mut lab.nodes[0];
    let _open = listen(&server, &[80]);
    let mut many = stage(&[], None);
    let outsider = u32::from(Ipv4Addr::new(192, 0, 2, 77));
    for n in 0..100_000_u32 {
        let first = if n == 99_999 { outsider } else { 0x0b00_0000 + 16 * n };
        many.rules.push(StageRule { action: Action::Deny, number: RuleNumber(100 + n) });
        many.rows.push(RowVerdicts { start: 0, otherwise: n });
        many.v4.extend([(first.into(), Row(n + 1)), ((first + 1).into(), Row::NONE)]);
    }
    let many = Arc::new(many);
    let delta = [Delta::Stage(StageId(1), many)];
    // What it costs, not what others do on this machine meanwhile.
    let busy = || {
        let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        Duration::from_nanos(schedstat.split(' ').next().unwrap().parse().unwrap())
    };
    let start = Instant::now();
    let applied = node.on(|dataplane| {
        let before = busy();
        dataplane.apply(Update::Changes(&delta)).unwrap();
        busy() - before
    });
    let elapsed = start.elapsed();
    table(node, &server, Direction::Ingress, &[1]);
    assert!(connects(&a.ns, server.v4(), 80) && !connects(&outside, server.v4(), 80));
    let start = Instant::now();
    table(node, &server, Direction::Ingress, &[1]);
    println!(
        "100,000 blocks: {applied:?} busy, {elapsed:?} in all; then another epoch: {:?}",
        start.elapsed()
    );
    // Interval sets of several keys take five times as long; this build is hardly optimised.
    assert!(applied < Duration::from_secs(6), "{applied:?}");
}
