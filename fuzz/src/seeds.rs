//! What the corpus begins with: good inputs of every kind, and some of each kind of fault.

use causeway_model::{GATEWAY_MAC, MacAddr};
use serde_json::{Value, json};

use crate::rig::{
    ether, fragmentable, inner_to_east, mac, ping, sent_by, tcp, tunnelled, tunnelled_from, udp, vtep,
};
use crate::{program, protocol, stdin};

/// The seeds of a target, by name.
pub fn of(target: &str) -> Vec<(&'static str, Vec<u8>)> {
    match target {
        "wire" => wire(),
        "program" => programs(),
        "protocol" => protocols(),
        "stdin" => stdins(),
        other => unreachable!("no target is called {other}"),
    }
}

const A: &str = "10.70.1.10";
const B: &str = "10.70.1.11";
const FAR: &str = "10.70.2.10";
const OUTSIDE: &str = "203.0.113.5";
const A6: &str = "fd70:0:0:1::10";
const FAR6: &str = "fd70:0:0:2::10";
const HOST: u8 = 0;
const UPLINK: u8 = 1;
const POD: u8 = 2;
const OTHER: u8 = 3;

/// A packet behind an IPv6 extension header.
fn extended(packet: &[u8], kind: u8, header: [u8; 8]) -> Vec<u8> {
    let mut out = packet.to_vec();
    let next = std::mem::replace(&mut out[6], kind);
    let length = u16::from_be_bytes([out[4], out[5]]) + 8;
    out[4..6].copy_from_slice(&length.to_be_bytes());
    let mut header = header;
    header[0] = next;
    out.splice(40..40, header);
    out
}

fn arp(operation: u8, sender: (MacAddr, [u8; 4]), target: [u8; 4]) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    [&[0xff; 6], &sender.0.0[..], &[8, 6], &head, &sender.0.0, &sender.1, &[0; 6], &target].concat()
}

fn wire() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("udp4", udp(A, FAR, (1000, 53), 20)),
        ("udp6", udp(A6, FAR6, (1000, 53), 20)),
        ("tcp4-with-options", tcp(A, FAR, (1000, 80), 11)),
        ("tcp6", tcp(A6, FAR6, (1000, 80), 0)),
        ("echo4", ping(A, FAR, 32)),
        ("echo6", ping(A6, FAR6, 32)),
        ("ethernet", sent_by(10, &udp(A, FAR, (1, 2), 3))),
        ("arp", arp(1, (mac(10), [10, 70, 1, 10]), [169, 254, 1, 1])[14..].to_vec()),
        ("hop-by-hop", extended(&udp(A6, FAR6, (1, 2), 3), 0, [0, 0, 1, 4, 0, 0, 0, 0])),
        ("fragment6", extended(&udp(A6, FAR6, (1, 2), 30), 44, [0, 0, 0, 1, 0, 0, 0, 7])),
        ("vxlan", [&[8, 0, 0, 0, 0, 0x10, 0, 0][..], &inner_to_east(&ping(FAR, A, 8))].concat()),
        ("nothing", Vec::new()),
    ]
}

fn programs() -> Vec<(&'static str, Vec<u8>)> {
    let out = |packet: &[u8]| (POD, sent_by(10, packet));
    let back = |packet: &[u8]| (UPLINK, tunnelled(&inner_to_east(packet)));
    let back6 = |packet: &[u8]| {
        (
            UPLINK,
            tunnelled_from("2001:db8::2", "2001:db8::1", [8, 0, 0, 0, 0, 0x10, 0, 0], &inner_to_east(packet)),
        )
    };
    let mut odd_flags = tunnelled(&inner_to_east(&udp(FAR, A, (53, 9), 5)));
    let vxlan = 14 + 20 + 8;
    odd_flags[vxlan..vxlan + 8].copy_from_slice(&[0xff, 1, 2, 3, 0, 0x10, 0, 9]);
    let mut marked = tunnelled(&inner_to_east(&udp(FAR, A, (53, 9), 5)));
    marked[15] = 3;
    let vlan = {
        let mut inner = inner_to_east(&udp(FAR, A, (1, 2), 3));
        inner.splice(12..12, [0x81, 0, 0, 5]);
        tunnelled(&inner)
    };
    let first = {
        let mut packet = fragmentable(udp(A, FAR, (7, 8), 64));
        packet[6] |= 0x20;
        crate::rig::seal_v4(&mut packet);
        packet
    };
    let later = {
        let mut packet = fragmentable(udp(A, FAR, (7, 8), 64));
        packet[7] = 9;
        crate::rig::seal_v4(&mut packet);
        packet
    };
    let (vip, vip6, gateway) = (crate::rig::served::VIP[0], crate::rig::served::VIP[1], "169.254.1.1");
    let asked: Vec<_> = (1000..1012).map(|port| out(&udp(A, vip, (port, 80), 20))).collect();
    let answered = (1000..1012).flat_map(|port| {
        let from_b = (OTHER, sent_by(11, &udp(B, A, (8080, port), 20)));
        [back(&udp(FAR, A, (8080, port), 20)), from_b, out(&udp(A, gateway, (8080, port), 20))]
    });
    vec![
        ("services", program::input(16, &asked.iter().cloned().chain(answered).collect::<Vec<_>>())),
        (
            "services-over-ipv6",
            program::input(
                16 | 32,
                &[out(&udp(A6, vip6, (1000, 80), 20)), out(&udp(A6, "fd70:0:0:1::1", (8080, 1000), 20))],
            ),
        ),
        (
            "services-refuse",
            program::input(
                16,
                &[
                    out(&tcp(A, vip, (1000, 81), 10)),
                    out(&udp(A6, vip6, (1000, 81), 10)),
                    out(&ping(A, vip, 10)),
                    out(&udp(A, "10.96.0.77", (1000, 80), 10)),
                ],
            ),
        ),
        (
            "a-datagram-and-its-answer",
            program::input(0, &[out(&udp(A, FAR, (1000, 53), 20)), back(&udp(FAR, A, (53, 1000), 30))]),
        ),
        (
            "over-ipv6-too",
            program::input(1, &[out(&udp(A6, FAR6, (1000, 53), 20)), back6(&udp(FAR6, A6, (53, 1000), 30))]),
        ),
        (
            "tcp-both-ways",
            program::input(0, &[out(&tcp(A, FAR, (1000, 80), 10)), back(&tcp(FAR, A, (80, 1000), 10))]),
        ),
        ("pod-to-pod", program::input(0, &[out(&ping(A, B, 8)), (OTHER, sent_by(11, &ping(B, A, 8)))])),
        (
            "denied",
            program::input(2, &[out(&udp(A, B, (1, 2), 3)), (OTHER, sent_by(11, &udp(B, A, (2, 1), 3)))]),
        ),
        (
            "the-gateway",
            program::input(
                0,
                &[
                    out(&ping(A, "169.254.1.1", 8)),
                    (POD, arp(1, (mac(10), [10, 70, 1, 10]), [169, 254, 1, 1])),
                ],
            ),
        ),
        (
            "too-big",
            program::input(
                0,
                &[
                    out(&udp(A, FAR, (1, 2), 1480)),
                    out(&udp(A6, FAR6, (1, 2), 1480)),
                    out(&fragmentable(udp(A, FAR, (1, 2), 1480))),
                ],
            ),
        ),
        (
            "few-buffers",
            program::input(
                4,
                &[out(&fragmentable(udp(A, FAR, (1, 2), 6000))), out(&udp(A, FAR, (1, 2), 1480))],
            ),
        ),
        (
            "from-the-host",
            program::input(
                0,
                &[
                    (
                        HOST,
                        ether(MacAddr([2, 0xcc, 0, 0, 0, 1]), GATEWAY_MAC, &udp("10.70.1.1", A, (1, 2), 3)),
                    ),
                    (HOST, ether(vtep(1), mac(20), &udp("10.70.1.20", FAR, (5, 6), 20))),
                ],
            ),
        ),
        (
            "lies",
            program::input(
                0,
                &[
                    out(&udp(B, FAR, (1, 2), 3)),
                    (POD, sent_by(11, &udp(A, FAR, (1, 2), 3))),
                    back(&udp(OUTSIDE, A, (1, 2), 3)),
                ],
            ),
        ),
        ("odd-tunnels", program::input(0, &[(UPLINK, odd_flags), (UPLINK, marked), (UPLINK, vlan)])),
        ("fragments", program::input(0, &[out(&first), out(&later), back(&later), out(&later)])),
        (
            "in-two-segments",
            program::input(
                0,
                &[
                    (POD | 0x80 | 20, sent_by(10, &tcp(A, FAR, (9, 80), 600))),
                    (UPLINK | 0x80 | 40, tunnelled(&inner_to_east(&tcp(FAR, A, (80, 9), 600)))),
                ],
            ),
        ),
        (
            "without-connections",
            program::input(8, &[out(&udp(A, FAR, (1000, 53), 20)), back(&udp(FAR, A, (53, 1000), 30))]),
        ),
        (
            "out-of-hops",
            program::input(
                0,
                &[out(&crate::rig::with(udp(A, FAR, (1, 2), 3), 8, 1)), out(&ping(A, OUTSIDE, 3))],
            ),
        ),
    ]
}

/// The records that the protocol's own test keeps.
fn record(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| unreachable!("a kept record: {error}"))
}

macro_rules! kept_records {
    ($($name:literal),+) => {
        &[$(($name, include_str!(concat!("../../model/tests/data/fastpath/", $name, ".json")))),+]
    };
}

const RECORDS: &[(&str, &str)] = kept_records!(
    "hello",
    "order-snapshot",
    "order-deltas",
    "order-plug-tap",
    "order-plug-ethdev",
    "order-unplug",
    "order-show",
    "order-count",
    "answer-done",
    "answer-failed",
    "answer-shown",
    "answer-counted"
);

fn protocols() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds: Vec<_> =
        RECORDS.iter().map(|(name, text)| (*name, protocol::input(&[record(text)]))).collect();
    let all = |prefix: &str| -> Vec<Value> {
        RECORDS.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, text)| record(text)).collect()
    };
    seeds.push(("a-conversation", protocol::input(&all("order-"))));
    seeds.push(("its-answers", protocol::input(&all("answer-"))));
    seeds.push((
        "unknown-order",
        protocol::input(&[json!({"number": 9, "what": {"repaint": {"colour": "blue"}}})]),
    ));
    seeds.push(("empty-datagrams", vec![0, 0, 0, 1, 0, 0, 1, 1, 0, 1, 2]));
    seeds
}

fn stdins() -> Vec<(&'static str, Vec<u8>)> {
    let config = |more: Value| {
        let mut config = json!({"cniVersion": "1.1.0", "name": "pods", "type": "causeway-cni"});
        if let (Value::Object(config), Value::Object(more)) = (&mut config, more) {
            config.extend(more);
        }
        config.to_string().into_bytes()
    };
    let result = json!({
        "cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "mac": "02:ca:5e:00:00:03", "sandbox": "/run/netns/p", "mtu": 1450}],
        "ips": [{"address": "10.70.1.3/32", "gateway": "169.254.1.1", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}], "dns": {"nameservers": ["10.96.0.10"]},
    });
    let ranges = json!({"type": "causeway", "ranges": [[{"subnet": "10.70.1.0/24", "rangeStart": "10.70.1.10", "rangeEnd": "10.70.1.20", "gateway": "10.70.1.15"}], [{"subnet": "fd70:0:0:1::/64"}]], "routes": [{"dst": "10.70.0.0/16"}]});
    let asked = json!({
        "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}], "ips": ["10.70.1.50/24"], "mac": "02:00:5e:00:53:01",
        "bandwidth": {"ingressRate": 8000, "ingressBurst": 80000, "egressRate": 8000, "egressBurst": 80000},
        "ipRanges": [[{"subnet": "10.70.1.0/24"}]], "dns": {"servers": ["10.96.0.10"], "searches": ["a.b"]}, "io.kubernetes.cri.pod-annotations": {"a": "b"}
    });
    vec![
        ("add", stdin::input("ADD", &config(json!({})))),
        ("add-after-others", stdin::input("ADD", &config(json!({"prevResult": result})))),
        ("add-from-ranges", stdin::input("ADD", &config(json!({"ipam": ranges})))),
        (
            "add-with-everything",
            stdin::input(
                "ADD",
                &config(
                    json!({"runtimeConfig": asked, "capabilities": {"portMappings": true}, "args": {"cni": {"ips": ["10.70.1.52"]}}, "dns": {"nameservers": ["192.0.2.53"]}, "causeway": {"labels": {"app": "web"}}}),
                ),
            ),
        ),
        (
            "add-delegated",
            stdin::input(
                "ADD",
                &config(json!({"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.70.1.0/24"}]]}})),
            ),
        ),
        ("add-0.4.0", stdin::input("ADD", br#"{"cniVersion":"0.4.0","name":"pods","type":"causeway-cni"}"#)),
        ("add-1.0.1", stdin::input("ADD", br#"{"cniVersion":"1.0.1","name":"pods","type":"causeway-cni"}"#)),
        ("del", stdin::input("DEL", &config(json!({"prevResult": null})))),
        ("del-left", {
            let mut input = stdin::input("DEL", &config(json!({"name": "../../pods"})));
            input[0] |= stdin::LEFT;
            input
        }),
        ("check", stdin::input("CHECK", &config(json!({"prevResult": result})))),
        (
            "gc",
            stdin::input(
                "GC",
                &config(
                    json!({"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}], "cni.dev/attachments": []}),
                ),
            ),
        ),
        ("status", stdin::input("STATUS", &config(json!({"ipam": ranges})))),
        ("version", stdin::input("VERSION", br#"{"cniVersion":"9.9.9"}"#)),
        ("cut-short", stdin::input("ADD", br#"{"cniVersion":"1.1.0","name":"#)),
        ("no-object", stdin::input("DEL", b"[1, 2]")),
    ]
}
