//! What a pod sends to a service goes to a backend, and what comes back comes from the service.

mod rig;

use causeway_datapath::connection::Timeouts;
use causeway_datapath::{Checksum, Gso, Offload, Port, Segments};
use causeway_model::service::{Answer, BackendsId, Service};
use causeway_model::{Delta, DropReason, PortMapping, PortProtocol};
use rig::served::*;
use rig::*;

#[test]
fn a_client_reaches_a_backend_wherever_that_is_and_hears_the_service() {
    for family in [0, 1] {
        for (backend, way) in [(FAR[family], "tunnel"), (B[family], "pod")] {
            for (first, answer) in [("udp", "udp"), ("syn", "syn-ack"), ("sctp", "init-ack")] {
                let mut chosen: [&[&str]; 2] = [&[], &[]];
                let only = [backend];
                chosen[family] = &only;
                let served = Served::by(chosen);
                let sent = served.sent(&packet(first, (A[family], 4000), (VIP[family], 80))).unwrap();
                let told = format!("{first} to {backend}");
                assert_eq!(ends(sent.packet()), as_ends((A[family], 4000), (backend, 8080)), "{told}");
                let out = if way == "tunnel" { Port::Uplink } else { served.side.port("b") };
                assert_eq!(sent.egress, out, "{told}");
                let back = packet(answer, (backend, 8080), (A[family], 4000));
                let back = if way == "tunnel" { served.arrives(&back) } else { served.sent_by_b(&back) };
                let back = back.unwrap();
                assert_eq!(ends(back.packet()), as_ends((VIP[family], 80), (A[family], 4000)), "{told}");
                assert_eq!(back.egress, served.side.port("a"), "{told}");
                let again = served.sent(&packet(first, (A[family], 4000), (VIP[family], 80))).unwrap();
                assert_eq!(ends(again.packet()), ends(sent.packet()), "{told}: the next one");
                assert_eq!((served.tracking.connections.live_count(), served.hits()), (1, 1), "{told}");
                let record = served
                    .tracking
                    .connections
                    .records(served.side.now, &Timeouts::default())
                    .next()
                    .unwrap();
                assert_eq!(record.from, (ip(A[family]), 4000));
                assert_eq!(record.to, (ip(VIP[family]), 80));
                assert_eq!(record.answers, Some((ip(backend), 8080)));
            }
        }
    }
}

#[test]
fn a_checksum_that_was_wrong_stays_wrong_and_none_stays_none() {
    let served = Served::by([&[FAR[0]], &[]]);
    let mut wrong = udp(A[0], VIP[0], (4000, 80), 40);
    let word = u16::from_be_bytes([wrong[26], wrong[27]]);
    wrong[26..28].copy_from_slice(&(word ^ 0x0100).to_be_bytes());
    let sent = served.sent(&wrong).unwrap();
    assert_ne!(pseudo_sum(sent.packet(), 20), 0xffff);
    let mut none = udp(A[0], VIP[0], (4000, 80), 40);
    none[26..28].fill(0);
    assert_eq!(served.sent(&none).unwrap().packet()[26..28], [0, 0]);
}

#[test]
fn what_the_sender_left_to_hardware_is_still_right_when_that_has_done_it() {
    let served = Served::by([&[B[0]], &[]]);
    let mut bytes = sent_by(10, &flagged(tcp(A[0], VIP[0], (4000, 80), 3000), 0x18, 0xffff_fa01));
    served.sent(&packet("syn", (A[0], 4000), (VIP[0], 80))).unwrap();
    served.sent_by_b(&packet("syn-ack", (B[0], 8080), (A[0], 4000))).unwrap();
    let packet = &mut bytes[14..];
    packet[36..38].fill(0);
    let len = ((packet.len() - 20) as u16).to_be_bytes();
    let partial = slow_sum(&[&packet[12..20], &[0, 6], &len]);
    packet[36..38].copy_from_slice(&partial.to_be_bytes());
    let gso = Gso { kind: Segments::Tcp4, ecn: false, size: 1000, headers: 0 };
    let offload = Offload { checksum: Checksum::Partial { start: 34, offset: 16 }, gso: Some(gso) };
    let sent = served.side.run(served.side.port("a"), [frame_in_two(&bytes, 200, offload)]);
    let sent = &sent[0];
    let mut whole = sent.packet().to_vec();
    let sum = !slow_sum(&[&whole[20..]]);
    whole[36..38].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(ends(&whole), as_ends((A[0], 4000), (B[0], 8080)));
    assert!(sent.offload.gso.is_some());
}

#[test]
fn whoever_is_its_own_backend_sees_the_gateway_and_hears_the_service() {
    for family in [0, 1] {
        let mut chosen: [&[&str]; 2] = [&[], &[]];
        let own = [A[family]];
        chosen[family] = &own;
        let served = Served::by(chosen);
        let sent = served.sent(&packet("udp", (A[family], 4000), (VIP[family], 80))).unwrap();
        assert_eq!(ends(sent.packet()), as_ends((STRANGER[family], 4000), (A[family], 8080)));
        assert_eq!(sent.egress, served.side.port("a"));
        let back = served.sent(&packet("udp", (A[family], 8080), (STRANGER[family], 4000))).unwrap();
        assert_eq!(ends(back.packet()), as_ends((VIP[family], 80), (A[family], 4000)));
        assert_eq!(back.egress, served.side.port("a"));
        let about = error(A[family], STRANGER[family], sent.packet(), [[3, 3], [1, 4]][family]);
        let told = served.sent(&about).unwrap();
        assert_eq!(told.egress, served.side.port("a"), "its own refusal");
        assert_eq!((ends(told.packet()).0, ends(told.packet()).2), (ip(VIP[family]), ip(A[family])));
        assert_eq!(served.tracking.connections.live_count(), 1);
        let gateway = ["169.254.1.1", "fe80::1"][family];
        let ping = served.sent(&ping(A[family], gateway, 40)).unwrap();
        assert_eq!(ping.egress, served.side.port("a"), "the gateway still answers");
    }
}

#[test]
fn a_service_without_backends_refuses_at_once_in_the_words_of_the_transport() {
    for family in [0, 1] {
        let mut served = Served::by([&[FAR[0]], &[FAR[1]]]);
        served.change(PortProtocol::ALL.map(|protocol| {
            Delta::Service(frontend(VIP[family], protocol, 80), Box::new(service(Answer::Refuse)))
        }));
        let at = [20, 40][family];
        for (port, what) in [(80, "no backend"), (81, "no such port of a service's address")] {
            let reset = served
                .refused(&packet("syn", (A[family], 4000), (VIP[family], port)), DropReason::ServiceRefused);
            assert_eq!(ends(&reset), as_ends((VIP[family], port), (A[family], 4000)), "{what}");
            assert_eq!(reset[at + 13], 0x14, "{what}: RST, ACK");
            let abort = served
                .refused(&packet("sctp", (A[family], 4000), (VIP[family], port)), DropReason::ServiceRefused);
            assert_eq!(
                (abort[at + 12], ends(&abort)),
                (6, as_ends((VIP[family], port), (A[family], 4000))),
                "{what}"
            );
            let asked = packet("udp", (A[family], 4000), (VIP[family], port));
            let error = served.refused(&asked, DropReason::ServiceRefused);
            assert_eq!(error[at..at + 2], [[3, 3], [1, 4]][family], "{what}: port unreachable");
            let quoted = at + 8 + at;
            assert_eq!(error[quoted..quoted + 8], asked[at..at + 8], "{what}: of the packet that was sent");
        }
        let reset = flagged(tcp(A[family], VIP[family], (4000, 80), 0), 0x04, 0);
        assert_eq!(served.sent(&reset), Err(DropReason::ServiceRefused), "a reset is not answered");
        assert_eq!(served.tracking.connections.live_count(), 0);
    }
}

#[test]
fn what_nobody_serves_is_dropped_by_name() {
    let mut served = Served::by([&[FAR[0]], &[FAR[1]]]);
    assert_eq!(served.sent(&udp(A[0], "10.96.0.77", (4000, 80), 20)), Err(DropReason::NoSuchService));
    assert_eq!(served.sent(&ping(A[1], "fd96::77", 20)), Err(DropReason::NoSuchService));
    served.change([Delta::Service(frontend(VIP[0], PortProtocol::Udp, 80), Box::new(service(Answer::Drop)))]);
    assert_eq!(served.sent(&udp(A[0], VIP[0], (4000, 80), 20)), Err(DropReason::NoLocalBackend));
    let only = |prefix: &str| Service {
        sources: Some(vec![prefix.parse().unwrap()]),
        ..service(Answer::Backends(BackendsId(0)))
    };
    let udp80 = frontend(VIP[0], PortProtocol::Udp, 80);
    served.change([Delta::Service(udp80, Box::new(only("198.51.100.0/24")))]);
    assert_eq!(served.sent(&udp(A[0], VIP[0], (4000, 80), 20)), Err(DropReason::ServiceSource));
    served.change([Delta::Service(udp80, Box::new(only("10.70.1.0/28")))]);
    assert!(served.sent(&udp(A[0], VIP[0], (4000, 80), 20)).is_ok());
}

#[test]
fn node_ports_are_at_every_nodes_addresses_and_external_addresses_are_the_worlds_but_for_their_ports() {
    let mut served = Served::by([&[FAR[0]], &[FAR[1]]]);
    served.change([
        Delta::Service(
            frontend("nodes", PortProtocol::Udp, 30_080),
            Box::new(service(Answer::Backends(BackendsId(0)))),
        ),
        Delta::Service(
            frontend("nodes6", PortProtocol::Udp, 30_080),
            Box::new(service(Answer::Backends(BackendsId(1)))),
        ),
        Delta::Service(
            frontend(EXTERNAL, PortProtocol::Udp, 80),
            Box::new(service(Answer::Backends(BackendsId(0)))),
        ),
    ]);
    for asked in [NODE[0], PEER, "10.70.1.1", EXTERNAL] {
        let port = if asked == EXTERNAL { 80 } else { 30_080 };
        let sent = served.sent(&udp(A[0], asked, (4000, port), 20)).unwrap();
        assert_eq!(ends(sent.packet()).2, ip(FAR[0]), "{asked}");
        let back = served.arrives(&udp(FAR[0], A[0], (8080, ends(sent.packet()).1), 20)).unwrap();
        assert_eq!(ends(back.packet()), as_ends((asked, port), (A[0], 4000)));
    }
    assert_eq!(ends(served.sent(&udp(A[1], NODE[1], (4000, 30_080), 20)).unwrap().packet()).2, ip(FAR[1]));
    let plain = [(NODE[0], 80, Port::Host), (PEER, 80, Port::Uplink), (EXTERNAL, 81, Port::Host)];
    for (asked, port, egress) in plain {
        let sent = served.sent(&udp(A[0], asked, (4001, port), 20)).unwrap();
        assert_eq!((sent.egress, ends(sent.packet()).2), (egress, ip(asked)), "{asked}:{port}");
    }
    let tunnel = served.sent(&udp(A[0], PEER, (4001, PORT), 20));
    assert_eq!(tunnel, Err(DropReason::TunnelPortFromPod), "as before");
}

#[test]
fn an_answer_to_another_node_goes_back_to_the_stack_that_led_it_to_the_pod() {
    let served = Served::by([&[FAR[0]], &[FAR[1]]]);
    for kind in ["udp", "syn"] {
        let answer = if kind == "udp" { "udp" } else { "syn-ack" };
        let led = served.arrives_at_host(&packet(kind, (PEER, 5000), (A[0], 8080))).unwrap();
        assert_eq!(led.egress, served.side.port("a"));
        let back = served.sent(&packet(answer, (A[0], 8080), (PEER, 5000))).unwrap();
        assert_eq!((back.egress, ends(back.packet())), (Port::Host, as_ends((A[0], 8080), (PEER, 5000))));
    }
    // Whether the process died meanwhile or not.
    let back = served.again().sent(&udp(A[0], PEER, (8080, 5000), 20)).unwrap();
    assert_eq!(back.egress, Port::Host);
    // One that came through the tunnel, and one that the pod began, go there.
    served.arrives(&udp(PEER, A[0], (5001, 8080), 20)).unwrap();
    for port in [5001, 5002] {
        assert_eq!(served.sent(&udp(A[0], PEER, (8080, port), 20)).unwrap().egress, Port::Uplink, "{port}");
    }
    // An error about what the other node has sent goes where that has come from.
    let about = udp(PEER, A[0], (5000, 8080), 20);
    let told = served.sent(&error(A[0], PEER, &about, [3, 3])).unwrap();
    assert_eq!(told.egress, Port::Host);
}

/// An error of somebody about a packet.
fn error(from: &str, to: &str, about: &[u8], kind: [u8; 2]) -> Vec<u8> {
    let quoted = &about[..about.len().min(60)];
    let mut packet = ping(from, to, 0);
    let at = if packet[0] >> 4 == 4 { 20 } else { 40 };
    packet.truncate(at);
    packet.extend([kind[0], kind[1], 0, 0, 0, 0, 0, 0]);
    packet.extend_from_slice(quoted);
    let len = packet.len() as u16;
    if at == 20 {
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        let sum = !slow_sum(&[&packet[20..]]);
        packet[22..24].copy_from_slice(&sum.to_be_bytes());
        seal_v4(&mut packet);
    } else {
        packet[4..6].copy_from_slice(&(len - 40).to_be_bytes());
        seal_transport(&mut packet, 40, 2);
    }
    packet
}

#[test]
fn errors_speak_of_the_packet_that_their_receiver_has_sent() {
    for family in [0, 1] {
        let at = [20, 40][family];
        let kinds = [[3, 3], [1, 4]][family];
        let mut chosen: [&[&str]; 2] = [&[], &[]];
        let only = [FAR[family]];
        chosen[family] = &only;
        let served = Served::by(chosen);
        let asked = packet("udp", (A[family], 4000), (VIP[family], 80));
        let sent = served.sent(&asked).unwrap();
        // The backend refuses.
        let told = served.arrives(&error(FAR[family], A[family], sent.packet(), kinds)).unwrap();
        let told = told.packet();
        assert_right(told);
        assert_eq!((ends(told).0, ends(told).2), (ip(VIP[family]), ip(A[family])));
        let quoted = &told[at + 8..];
        assert_eq!(quoted[at..at + 8], asked[at..at + 8], "ports and checksum are those that were sent");
        let (from, to) = if family == 0 { (12..16, 16..20) } else { (8..24, 24..40) };
        assert_eq!((&quoted[from.clone()], &quoted[to.clone()]), (&asked[from], &asked[to]));
        // A node on the way says that it is too big: it is not the service.
        let router = ["10.70.2.1", "fd70:0:0:2::1"][family];
        let told =
            served.arrives(&error(router, A[family], sent.packet(), [[3, 4], [2, 0]][family])).unwrap();
        assert_eq!(ends(told.packet()).0, ip(router));
        // The client says that nobody waits for the answer.
        let back = served.arrives(&packet("udp", (FAR[family], 8080), (A[family], 4000))).unwrap();
        let told = served.sent(&error(A[family], VIP[family], back.packet(), kinds)).unwrap();
        assert_eq!(told.egress, Port::Uplink);
        assert_right(told.packet());
        assert_eq!(ends(told.packet()).2, ip(FAR[family]));
        let answer = packet("udp", (FAR[family], 8080), (A[family], 4000));
        assert_eq!(told.packet()[at + 8 + at..at + 8 + at + 8], answer[at..at + 8]);
        let another =
            error(A[family], VIP[family], &packet("udp", (VIP[family], 80), (A[family], 4001)), kinds);
        assert_eq!(served.sent(&another), Err(DropReason::ServiceRefused), "of no packet of ours");
    }
}

#[test]
fn a_packet_that_is_too_long_is_told_of_as_it_was_sent() {
    let served = Served::by([&[FAR[0]], &[]]);
    let asked = udp(A[0], VIP[0], (4000, 80), 1470);
    let error = served.refused(&asked, DropReason::TooBig);
    assert_eq!(error[28 + 12..28 + 28], asked[12..28], "addresses and ports");
}

#[test]
fn all_fragments_of_a_datagram_go_to_one_backend_in_whatever_order() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let served = Served::by([&[FAR[0]], &[]]);
        let pieces = cut(&fragmentable(udp(A[0], VIP[0], (4000, 80), 2000)));
        let frames = order.map(|at: usize| plain(&sent_by(10, &pieces[at])));
        let out = served.side.run(served.side.port("a"), frames);
        assert_eq!(out.len(), 3, "{order:?}: {:?}", served.side.drops());
        for piece in &out {
            assert_eq!(piece.egress, Port::Uplink);
            assert_eq!(piece.packet()[12..20], [10, 70, 1, 10, 10, 70, 2, 10]);
            assert_right(piece.packet());
        }
        let whole = join(out.iter().map(Out::packet));
        assert_eq!(ends(&whole), as_ends((A[0], 4000), (FAR[0], 8080)));
        // And back.
        let pieces = cut(&fragmentable(udp(FAR[0], A[0], (8080, 4000), 2000)));
        let frames = order.map(|at: usize| plain(&tunnelled(&inner_to_east(&pieces[at]))));
        let out = served.side.run(Port::Uplink, frames);
        let whole = join(out.iter().map(Out::packet));
        assert_eq!(ends(&whole), as_ends((VIP[0], 80), (A[0], 4000)));
    }
}

/// Three fragments of a packet.
fn cut(packet: &[u8]) -> Vec<Vec<u8>> {
    let (header, payload) = packet.split_at(20);
    let pieces = payload.chunks(800);
    pieces
        .enumerate()
        .map(|(index, piece)| {
            let mut bytes = [header, piece].concat();
            let more = if index < 2 { 0x2000 } else { 0 };
            let offset = (index * 100) as u16 | more;
            let len = bytes.len() as u16;
            bytes[2..4].copy_from_slice(&len.to_be_bytes());
            bytes[6..8].copy_from_slice(&offset.to_be_bytes());
            seal_v4(&mut bytes);
            bytes
        })
        .collect()
}

/// The packet that fragments are of.
fn join<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut pieces: Vec<_> = pieces.collect();
    pieces.sort_by_key(|piece| u16::from_be_bytes([piece[6], piece[7]]) & 0x1fff);
    let mut whole = pieces[0].to_vec();
    pieces[1..].iter().for_each(|piece| whole.extend_from_slice(&piece[20..]));
    let len = whole.len() as u16;
    whole[2..4].copy_from_slice(&len.to_be_bytes());
    whole[6..8].fill(0);
    seal_v4(&mut whole);
    whole
}

#[test]
fn a_port_of_the_node_that_leads_to_a_fast_pod_does_so_for_its_pods() {
    let mut served = Served::by([&[], &[]]);
    let mut endpoint = served.snapshot.endpoints[&key("b")].clone();
    let mapping = |host_ip: Option<&str>, host_port: u16| PortMapping {
        host_ip: host_ip.map(ip),
        host_port: host_port.try_into().unwrap(),
        container_port: 8080.try_into().unwrap(),
        protocol: PortProtocol::Tcp,
    };
    endpoint.port_mappings = vec![mapping(None, 8000), mapping(Some("192.0.2.1"), 8001)];
    served.change([Delta::Endpoint(Box::new(endpoint))]);
    let way = |served: &Served, by_b: bool, to: &str, port| {
        let from = if by_b { B } else { A }[usize::from(to.contains(':'))];
        let asked = packet("syn", (from, 4000), (to, port));
        let sent = if by_b { served.sent_by_b(&asked) } else { served.sent(&asked) }.unwrap();
        (sent.egress, ends(sent.packet()))
    };
    let (b, host) = (served.side.port("b"), Port::Host);
    assert_eq!(way(&served, false, NODE[0], 8000), (b, as_ends((A[0], 4000), (B[0], 8080))));
    assert_eq!(way(&served, false, NODE[1], 8000), (b, as_ends((A[1], 4000), (B[1], 8080))));
    assert_eq!(way(&served, false, NODE[0], 8001).0, b);
    assert_eq!(way(&served, false, "10.70.1.1", 8001).0, host, "not at that address");
    assert_eq!(way(&served, false, PEER, 8000).0, Port::Uplink, "another node's is its own");
    assert_eq!(way(&served, true, NODE[0], 8000), (b, as_ends((STRANGER[0], 4000), (B[0], 8080))), "hairpin");
    let back = served.sent_by_b(&packet("syn-ack", (B[0], 8080), (STRANGER[0], 4000))).unwrap();
    assert_eq!((back.egress, ends(back.packet())), (b, as_ends((NODE[0], 8000), (B[0], 4000))));
}

#[test]
fn a_backend_may_be_anybody() {
    let host = [NODE[0], PEER, WORLD, "10.70.1.20"];
    for (backend, egress) in host.iter().zip([Port::Host, Port::Uplink, Port::Host, Port::Host]) {
        let served = Served::by([&[backend], &[]]);
        let sent = served.sent(&packet("syn", (A[0], 4000), (VIP[0], 80))).unwrap();
        assert_eq!((sent.egress, ends(sent.packet())), (egress, as_ends((A[0], 4000), (backend, 8080))));
        let back = packet("syn-ack", (backend, 8080), (A[0], 4000));
        let back = if egress == Port::Host { served.arrives_at_host(&back) } else { served.arrives(&back) };
        assert_eq!(ends(back.unwrap().packet()), as_ends((VIP[0], 80), (A[0], 4000)), "{backend}");
    }
}

#[test]
fn without_connections_no_service_is_served() {
    let mut snapshot = Served::by([&[FAR[0]], &[]]).snapshot;
    snapshot.endpoints.values_mut().for_each(|endpoint| endpoint.deny_new = false);
    let side = Side::of(&snapshot);
    let asked = |to| side.one(side.port("a"), plain(&sent_by(10, &udp(A[0], to, (4000, 80), 20)))).map(drop);
    assert_eq!(asked(VIP[0]), Err(DropReason::ConnectionsFull));
    assert_eq!(asked(FAR[0]), Ok(()));
}

/// The backend of another node, in one family alone.
const FAR_OF: [[&[&str]; 2]; 2] = [[&[FAR[0]], &[]], [&[], &[FAR[1]]]];

#[test]
fn a_datagram_that_says_another_length_belongs_to_no_connection() {
    for family in [0, 1] {
        let served = Served::by(FAR_OF[family]);
        let ask = udp(A[family], VIP[family], (4000, 80), 40);
        let answer = udp(FAR[family], A[family], (8080, 4000), 40);
        let length = if family == 0 { 25 } else { 45 };
        // As one of a connection that nobody has answered, and of one that was.
        for _ in 0..2 {
            for wrong in [7, 49, 255] {
                let sent = served.sent(&with(ask.clone(), length, wrong));
                assert_eq!(sent.map(drop), Err(DropReason::InvalidConnection), "{wrong} of 48");
            }
            assert!(served.sent(&ask).is_ok() && served.arrives(&answer).is_ok());
            for wrong in [7, 49, 255] {
                let back = served.arrives(&with(answer.clone(), length, wrong));
                assert_eq!(back.map(drop), Err(DropReason::InvalidConnection), "{wrong} of 48");
            }
        }
    }
}

#[test]
fn an_answer_is_of_its_connection_whatever_is_around_it() {
    for family in [0, 1] {
        let served = Served::by(FAR_OF[family]);
        served.sent(&udp(A[family], VIP[family], (4000, 80), 40)).unwrap();
        let answer = udp(FAR[family], A[family], (8080, 4000), 40);
        let plain_frame = tunnelled(&inner_to_east(&answer));
        // Options in the outer header, so that all else lies elsewhere; and padding behind the packet.
        let mut with_options = plain_frame.clone();
        with_options.splice(34..34, [1; 8]);
        with_options[14] = 0x47;
        let total = u16::from_be_bytes([with_options[16], with_options[17]]) + 8;
        with_options[16..18].copy_from_slice(&total.to_be_bytes());
        seal_v4(&mut with_options[14..]);
        let padded = [&plain_frame[..], &[0; 9]].concat();
        for frame in [&with_options, &padded, &plain_frame] {
            let back = served.side.one(Port::Uplink, plain(frame)).unwrap();
            assert_eq!(ends(back.packet()), as_ends((VIP[family], 80), (A[family], 4000)));
            assert_eq!(served.tracking.connections.live_count(), 1);
        }
    }
}
