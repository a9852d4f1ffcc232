//! Denied packets as they are told of, one by one.

use causeway_model::flow::{Event, Events};
use causeway_model::policy::Verdict;

use super::*;

fn flows(node: &mut LabNode) -> Events {
    // The kernel gathers what it tells for a tenth of a second.
    std::thread::sleep(Duration::from_millis(250));
    node.on(Dataplane::flows).unwrap()
}

fn denials(node: &mut LabNode) -> Vec<Event> {
    flows(node).events.into_iter().filter(|event| event.verdict == Verdict::Deny).collect()
}

/// One datagram from a port of its own.
fn datagram(from: &LabPod, to: SocketAddr) -> SocketAddr {
    let own = from.endpoint.addresses.iter().find(|address| address.is_ipv4() == to.is_ipv4()).unwrap();
    let socket = from.ns.inside(|| UdpSocket::bind((*own, 0))).unwrap();
    socket.send_to(b"hello", to).unwrap();
    socket.local_addr().unwrap()
}

#[test]
fn each_denial_is_told_of_with_its_rule_and_its_ends() {
    let (mut lab, [a, b, server]) = three();
    let node = &mut lab.nodes[0];
    put(node, 1, &[Said::new(Action::Deny, 16).of(A), Said::new(Action::Accept, 17).of(B)], Some(18));
    let talk = Talk::new(&server, &b, 5001);
    assert!(talk.goes());
    table(node, &server, Direction::Ingress, &[1]);
    flows(node);
    for to in [server.v4(), server.v6()] {
        let before = now();
        let to = SocketAddr::new(to, 5000);
        let from = datagram(&a, to);
        let [event] = &denials(node)[..] else { panic!("one datagram, one denial") };
        assert_eq!((event.path, event.protocol), (Path::Kernel, 17));
        assert_eq!((event.from, event.to), ((from.ip(), from.port()), (to.ip(), to.port())));
        assert_eq!(event.bytes, if to.is_ipv4() { 20 } else { 40 } + 8 + 5);
        assert_eq!((&event.ingress, &event.egress), (&Some(rule(16)), &None));
        assert!((before..now()).contains(&event.at), "{event:?}");
        assert!(!a.ns.ping(to.ip(), "-W 1 -e 77"));
        let [event] = &denials(node)[..] else { panic!("one echo, one denial") };
        assert_eq!((event.from.1, event.to, &event.ingress), (77, (to.ip(), 77), &Some(rule(16))));
    }
    // An answer is of the connection that the other end began.
    isolate(node, &server, Direction::Egress);
    assert!(!talk.answers());
    let answers = denials(node);
    let ends = [&talk.client, &talk.server].map(|end| end.local_addr().unwrap());
    let ends = ends.map(|end| (end.ip(), end.port()));
    assert_eq!(answers.iter().map(|event| [event.from, event.to]).collect::<Vec<_>>(), [ends]);
    assert_eq!(answers[0].ingress, Some(rule(9)), "the rule says of which side it is");
    node.apply(Delta::IdentityGone(a.v4()));
    datagram(&a, SocketAddr::new(server.v4(), 5000));
    let [event] = &denials(node)[..] else { panic!("one datagram, one denial") };
    assert_eq!(event.ingress, Some(RuleId::unknown(Direction::Ingress)));
    assert_eq!(flows(node).lost, 0);
}

#[test]
fn a_denial_is_of_the_rule_that_had_the_number_then() {
    let (mut lab, [a, _, server]) = three();
    let node = &mut lab.nodes[0];
    isolate(node, &server, Direction::Ingress);
    let to = SocketAddr::new(server.v4(), 5000);
    datagram(&a, to);
    node.apply(Delta::Rule(RuleNumber(9), rule(99)));
    datagram(&a, to);
    let told: Vec<_> = denials(node).into_iter().map(|event| event.ingress).collect();
    assert_eq!(told, [Some(rule(9)), Some(rule(99))]);
    datagram(&a, to);
    node.apply_whole();
    let told: Vec<_> = denials(node).into_iter().map(|event| event.ingress).collect();
    assert_eq!(told, [Some(rule(99))]);
}

#[test]
fn what_nobody_reads_in_time_is_counted_to_the_packet() {
    const MANY: u64 = 30_000;
    let (mut lab, [a, _, server]) = three();
    let node = &mut lab.nodes[0];
    isolate(node, &server, Direction::Ingress);
    flows(node);
    let from = udp(&a, 5001);
    let to = SocketAddr::new(server.v4(), 5000);
    for _ in 0..MANY {
        from.send_to(b"hello", to).unwrap();
    }
    let told = denials(node).len() as u64;
    assert!((8_000..MANY).contains(&told), "{told} are told of");
    // How many were lost is known by the next one's number.
    from.send_to(b"hello", to).unwrap();
    let Events { events, lost } = flows(node);
    assert_eq!(events.len(), 1);
    assert_eq!(told + lost + 1, denied(node, 9), "{told} are told of, {lost} lost");
    // The next process listens as soon as this one has ended.
    node.restart();
    node.apply_whole();
    flows(node);
    from.send_to(b"hello", to).unwrap();
    let Events { events, lost } = flows(node);
    assert_eq!((events.len(), lost), (1, 0));
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
}
