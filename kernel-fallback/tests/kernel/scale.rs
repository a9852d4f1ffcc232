//! A thousand nodes and a thousand endpoints: changes stay small.

use std::time::{Duration, Instant};

use causeway_model::{Dataplane, Delta, Endpoint, Node, NodeId, Update};

use crate::lab::Lab;

const THOUSAND: u16 = 1000;

fn peer(number: u16) -> Node {
    let [high, low] = number.to_be_bytes();
    let id = NodeId { cluster: "paris".parse().unwrap(), name: format!("n{number}").parse().unwrap() };
    Node {
        underlay: vec![[198, 18, high, low].into(), format!("2001:db8:1::{number:x}").parse().unwrap()],
        vtep_mac: Node::derived_vtep_mac(&id),
        pod_prefixes: vec![
            format!("10.{}.{low}.0/24", 100 + high).parse().unwrap(),
            format!("fd71:0:0:{number:x}::/64").parse().unwrap(),
        ],
        id,
    }
}

fn endpoint(of: &Endpoint, number: u16) -> Endpoint {
    let mut endpoint = of.clone();
    endpoint.key.container = format!("many{number}");
    let [high, low] = number.to_be_bytes();
    endpoint.mac.0[4..].copy_from_slice(&[high + 0x10, low]);
    endpoint.addresses =
        vec![[10, 71, high, low].into(), format!("fd70:0:0:1:1::{number:x}").parse().unwrap()];
    endpoint
}

fn timed<T>(what: &str, function: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = function();
    println!("{what}: {:?}", start.elapsed());
    (result, start.elapsed())
}

#[test]
fn a_change_among_a_thousand_takes_milliseconds() {
    let mut lab = Lab::new(2, &crate::lab::UNDERLAY);
    let (a, b) = (lab.add_pod(0), lab.add_pod(1));
    let node = &mut lab.nodes[0];
    for number in 0..THOUSAND {
        let (peer, endpoint) = (peer(number), endpoint(&a.endpoint, number));
        node.snapshot.peers.insert(peer.id.clone(), peer);
        node.snapshot.endpoints.insert(endpoint.key.clone(), endpoint);
    }
    timed("the whole state, from two nodes and one endpoint on", || node.apply_whole());
    let (mended, _) = timed("nothing to mend", || node.mend());
    assert!(mended.is_empty(), "{mended:?}");
    let mut times = Vec::new();
    for number in THOUSAND..THOUSAND + 20 {
        let (peer, endpoint) = (peer(number), endpoint(&a.endpoint, number));
        for delta in [
            Delta::Peer(peer.clone()),
            Delta::Endpoint(Box::new(endpoint.clone())),
            Delta::PeerGone(peer.id),
            Delta::EndpointGone(endpoint.key),
        ] {
            let start = Instant::now();
            node.on(|dataplane| dataplane.apply(Update::Changes(&[delta]))).unwrap();
            times.push(start.elapsed());
        }
    }
    times.sort();
    let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
    println!("80 changes: half of them within {median:?}, all within {slowest:?}");
    // Several times what an idle machine needs; a change that costs what the state costs takes half a second.
    assert!(median < Duration::from_millis(100), "{times:?}");
    assert!(a.ns.ping(b.v4(), "") && a.ns.ping(b.v6(), ""));
    timed("counters", || node.on(Dataplane::counters)).0.unwrap();
    node.ns.run("nft delete table inet causeway");
    timed("the table loaded again", || node.mend());
    node.restart();
    timed("a new agent over all this", || node.apply_whole());
}
