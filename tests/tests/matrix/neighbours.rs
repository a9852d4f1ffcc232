//! Who answers for whom: the gateway everybody, and nobody for a pod's own address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use causeway_model::{Family, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6};
use causeway_tests::lab::{Lab, Pod};
use causeway_tests::packet_socket::PacketSocket;
use causeway_wire::checksum::transport_v6;
use causeway_wire::{
    Arp, ArpOperation, EtherType, Ethernet, Icmpv6, Icmpv6Type, IpProtocol, Ipv6, MacAddr, NdpOption,
    NeighborAdvertisement, NeighborSolicitation,
};
use zerocopy::IntoBytes;

use super::spoof::mac;
use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    (
        "the_gateway_answers_on_a_node_without_a_default_route",
        the_gateway_answers_on_a_node_without_a_default_route,
    ),
    ("a_pod_that_probes_its_own_address_hears_nothing", a_pod_that_probes_its_own_address_hears_nothing),
    ("duplicate_address_detection_finds_no_duplicate", duplicate_address_detection_finds_no_duplicate),
];

/// How long silence must last.
const SILENCE: Duration = Duration::from_millis(300);
/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(3);

/// Two pods of one node: in a mixed lab the one is fast and the other the kernel's.
fn two_pods(matrix: &Matrix) -> anyhow::Result<(Lab, [Pod; 2])> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let pods = [lab.add_pod("n1", "a")?, lab.add_pod("n1", "b")?];
    Ok((lab, pods))
}

/// A pod's own link, to ask and to listen on.
struct Asker {
    socket: PacketSocket,
    mac: MacAddr,
    addresses: (Ipv4Addr, Ipv6Addr),
}

impl Asker {
    fn of(pod: &Pod) -> anyhow::Result<Self> {
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (pod.address(Family::V4), pod.address(Family::V6)) else {
            bail!("{} has no address of each family", pod.name());
        };
        let socket = pod.run(|| PacketSocket::open("eth0"))?;
        Ok(Self { socket, mac: MacAddr(mac(pod.namespace(), "eth0")?), addresses: (v4, v6) })
    }

    /// Asks from an address whose a target is; who answers. From the unspecified one it is a probe (RFC 5227 §2.1.1, RFC 4862
    /// §5.4).
    fn ask(&self, from: IpAddr, target: IpAddr, patience: Duration) -> anyhow::Result<Option<MacAddr>> {
        self.socket.send(&match (from, target) {
            (IpAddr::V4(from), IpAddr::V4(target)) => request(self.mac, from, target),
            (IpAddr::V6(from), IpAddr::V6(target)) => solicitation(self.mac, from, target),
            mixed => bail!("{mixed:?} are of two families"),
        })?;
        let until = Instant::now() + patience;
        while let Some(frame) = self.socket.receive(until.saturating_duration_since(Instant::now()))? {
            if let Some(answer) = answer(&frame, target) {
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }
}

fn request(mac: MacAddr, from: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let ethernet = Ethernet::new(MacAddr([0xff; 6]), mac, EtherType::ARP);
    let arp = Arp::new(ArpOperation::REQUEST, (mac, from), (MacAddr::ZERO, target));
    [ethernet.as_bytes(), arp.as_bytes()].concat()
}

fn solicitation(mac: MacAddr, from: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = target.octets();
    // The solicited-node address (RFC 4291 §2.7.1), and the group that Ethernet has for it (RFC 2464 §7).
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let mut message = NeighborSolicitation::new(target).as_bytes().to_vec();
    if !from.is_unspecified() {
        message.extend(NdpOption::link_layer(NdpOption::SOURCE_LINK_LAYER, mac));
    }
    let checksum = transport_v6(from, group, IpProtocol::ICMPV6, &message);
    if let Ok((header, _)) = Icmpv6::split_mut(&mut message) {
        header.set_checksum(checksum);
    }
    let length = u16::try_from(message.len()).unwrap_or_else(|_| unreachable!("a short message"));
    let mut ip = Ipv6::new(from, group, IpProtocol::ICMPV6, length);
    ip.set_hop_limit(255);
    let ethernet = Ethernet::new(MacAddr([0x33, 0x33, 0xff, a, b, c]), mac, EtherType::IPV6);
    [ethernet.as_bytes(), ip.as_bytes(), &message].concat()
}

/// Who says in a frame that an address is its own.
fn answer(frame: &[u8], target: IpAddr) -> Option<MacAddr> {
    let (ethernet, payload) = Ethernet::split(frame).ok()?;
    match (ethernet.ether_type(), target) {
        (EtherType::ARP, IpAddr::V4(target)) => {
            let (arp, _) = Arp::split(payload).ok()?;
            let answers = arp.operation() == ArpOperation::REPLY && arp.sender_ip() == target;
            answers.then(|| arp.sender_mac())
        }
        (EtherType::IPV6, IpAddr::V6(target)) => {
            let (ip, message) = Ipv6::split(payload).ok()?;
            let (icmp, _) = Icmpv6::split(message).ok()?;
            let kind = (ip.next_header(), icmp.kind());
            if kind != (IpProtocol::ICMPV6, Icmpv6Type::NEIGHBOR_ADVERTISEMENT) {
                return None;
            }
            let (advertisement, options) = NeighborAdvertisement::split(message).ok()?;
            let mac = options.link_layer(NdpOption::TARGET_LINK_LAYER).ok()??;
            (advertisement.target() == target).then_some(mac)
        }
        _ => None,
    }
}

fn the_gateway_answers_on_a_node_without_a_default_route(matrix: &Matrix) -> anyhow::Result<()> {
    let (lab, pods) = two_pods(matrix)?;
    let n1 = lab.node("n1")?;
    for family in ["-4", "-6"] {
        let routes = n1.exec(&format!("ip {family} route show default"))?;
        ensure!(routes.is_empty(), "the node has a way out: {routes}");
    }
    let v4 = matrix.sabotage("gateway-elsewhere", || [169, 254, 1, 9].into()).unwrap_or(GATEWAY_V4);
    for pod in &pods {
        let asker = Asker::of(pod)?;
        let (own4, own6) = asker.addresses;
        for (from, gateway) in [(own4.into(), v4.into()), (own6.into(), GATEWAY_V6.into())] {
            let answered = asker.ask(from, gateway, PATIENCE)?;
            ensure!(answered == Some(GATEWAY_MAC), "{}: {gateway} is at {answered:?}", pod.name());
        }
        // The pod's own stack asks, too, when it has to.
        for gateway in ["169.254.1.1", "fe80::1"] {
            pod.exec(&format!("ip neigh del {gateway} dev eth0"))?;
        }
        let other = pods.iter().find(|other| other.name() != pod.name());
        let reached = |family| other.is_some_and(|other| pod.ping(other.address(family)));
        ensure!(Family::BOTH.into_iter().all(reached), "{} does not find its gateway", pod.name());
    }
    Ok(())
}

fn a_pod_that_probes_its_own_address_hears_nothing(matrix: &Matrix) -> anyhow::Result<()> {
    let (_lab, pods) = two_pods(matrix)?;
    for (pod, other) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
        let asker = Asker::of(pod)?;
        let (own4, own6) = asker.addresses;
        let (any4, any6) = (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into());
        for (what, from, target) in [
            ("a probe", any4, own4.into()),
            ("an announcement", own4.into(), own4.into()),
            ("a probe", any6, own6.into()),
            // Nor does anybody answer for those that are not on its link: all of them are behind the gateway.
            ("a probe of another pod's address", any4, other.address(Family::V4)),
            ("a probe of another pod's address", any6, other.address(Family::V6)),
            ("a probe of an address that nobody has", any4, [10, 70, 1, 200].into()),
        ] {
            let answered = asker.ask(from, target, SILENCE)?;
            ensure!(answered.is_none(), "{}: {what} {target} is answered by {answered:?}", pod.name());
        }
        // The silence was not that of a dead link.
        let gateway = asker.ask(own4.into(), GATEWAY_V4.into(), PATIENCE)?;
        ensure!(gateway == Some(GATEWAY_MAC), "{}: the gateway is at {gateway:?}", pod.name());
    }
    Ok(())
}

fn duplicate_address_detection_finds_no_duplicate(matrix: &Matrix) -> anyhow::Result<()> {
    let (_lab, pods) = two_pods(matrix)?;
    for (pod, other) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
        let address = pod.address(Family::V6);
        pod.namespace().sysctl("net/ipv6/conf/eth0/accept_dad", "1")?;
        pod.exec(&format!("ip -6 addr del {address}/128 dev eth0"))?;
        pod.exec(&format!("ip -6 addr add {address}/128 dev eth0"))?;
        let shown = || pod.exec(&format!("ip -6 addr show dev eth0 to {address}"));
        ensure!(shown()?.contains("tentative"), "{}: the kernel does not look: {}", pod.name(), shown()?);
        let decided =
            within(Duration::from_secs(10), || shown().is_ok_and(|text| !text.contains("tentative")));
        let text = shown()?;
        ensure!(decided && text.contains(&address.to_string()), "{}: {text}", pod.name());
        ensure!(!text.contains("dadfailed"), "{} believes in a conflict: {text}", pod.name());
        ensure!(other.ping(address), "{} is not reached any more", pod.name());
    }
    Ok(())
}
