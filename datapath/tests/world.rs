//! Endpoints come, go and change their path; what is looked up follows, and numbers stay where they are.

mod rig;

use causeway_datapath::{Port, Slots};
use causeway_model::{DropReason, Family, Path};
use rig::*;

#[test]
fn slots_stay_with_their_endpoints_and_rest_before_they_are_given_again() {
    let mut snapshot = snapshot(1, Family::V4);
    let mut slots = Slots::new(2);
    assert!(slots.take_up(&snapshot).is_empty());
    let (a, b) = (slots.of(&key("a")).unwrap(), slots.of(&key("b")).unwrap());
    assert_ne!(a, b);
    assert_eq!(slots.of(&key("k")), None, "the kernel's endpoints have none");

    let new = snapshot.endpoints.remove(&key("a")).unwrap();
    snapshot.endpoints.insert(key("0"), causeway_model::Endpoint { key: key("0"), ..new });
    assert_eq!(slots.take_up(&snapshot), [key("0")], "the old slot may still be in use");
    assert_eq!((slots.of(&key("a")), slots.of(&key("b"))), (None, Some(b)));
    assert_eq!(slots.settle(), [a]);
    assert!(slots.take_up(&snapshot).is_empty());
    assert_eq!((slots.of(&key("0")), slots.of(&key("b"))), (Some(a), Some(b)));
    assert_eq!(
        slots.iter().map(|(key, slot)| (key.container.as_str(), slot)).collect::<Vec<_>>(),
        [("0", a), ("b", b)]
    );
}

#[test]
fn one_endpoint_is_followed_as_all_are_taken_up() {
    let mut snapshot = snapshot(1, Family::V4);
    let mut slots = Slots::new(2);
    for name in ["a", "k", "b"] {
        assert!(slots.follow(&key(name), &snapshot));
        assert!(slots.follow(&key(name), &snapshot), "a second time nothing changes");
    }
    let (a, b) = (slots.of(&key("a")), slots.of(&key("b")));
    assert!(a.is_some() && b.is_some() && a != b);
    assert_eq!(slots.of(&key("k")), None, "the kernel's endpoints have none");
    assert!(slots.take_up(&snapshot).is_empty());
    assert_eq!((slots.of(&key("a")), slots.of(&key("b"))), (a, b));

    let new = snapshot.endpoints.remove(&key("a")).unwrap();
    snapshot.endpoints.insert(key("0"), causeway_model::Endpoint { key: key("0"), ..new });
    assert!(slots.follow(&key("a"), &snapshot));
    assert_eq!(slots.of(&key("a")), None);
    assert!(!slots.follow(&key("0"), &snapshot), "the old slot may still be in use");
    assert_eq!(slots.settle(), a.into_iter().collect::<Vec<_>>());
    assert!(slots.follow(&key("0"), &snapshot));
    assert_eq!(slots.of(&key("0")), a);
}

#[test]
fn f26_an_address_that_another_pod_has_now_leads_to_that_pod() {
    let mut state = snapshot(1, Family::V4);
    let mut gone = state.endpoints.remove(&key("b")).unwrap();
    (gone.key, gone.mac) = (key("new"), mac(77));
    state.endpoints.insert(gone.key.clone(), gone);
    let east = Side::of(&state);
    let out =
        east.one(east.port("a"), plain(&sent_by(10, &udp("10.70.1.10", "10.70.1.11", (1, 2), 9)))).unwrap();
    assert_eq!((out.egress, out.macs().0), (east.port("new"), mac(77)));
}

#[test]
fn a_pod_that_moved_to_the_kernel_path_is_behind_the_host_port() {
    let mut state = snapshot(1, Family::V4);
    state.endpoints.get_mut(&key("b")).unwrap().path = Path::Kernel;
    let east = Side::of(&state);
    let packet = udp("10.70.1.10", "10.70.1.11", (1, 2), 9);
    assert_eq!(east.one(east.port("a"), plain(&sent_by(10, &packet))).unwrap().egress, Port::Host);
    let from_it = ether(causeway_model::GATEWAY_MAC, HOST_MAC, &udp("10.70.1.11", "10.70.1.10", (1, 2), 9));
    assert_eq!(east.one(Port::Host, plain(&from_it)).unwrap().egress, east.port("a"));
}

#[test]
fn what_a_port_has_sent_and_what_was_dropped_is_counted_until_the_slot_begins_anew() {
    let east = east();
    let (a, b) = (east.slot("a"), east.slot("b"));
    let bytes = sent_by(10, &udp("10.70.1.10", "10.70.1.11", (1, 2), 58));
    let frame = east.run_frames(east.port("a"), [plain(&bytes), plain(&bytes[..20])]).remove(0);
    let worker = east.worker.borrow();
    worker.tally().sent(frame.egress, 1, frame.len() as u64);
    worker.tally().dropped(DropReason::PortFull, 100, Port::Endpoint(b));
    worker.tally().sent(Port::Uplink, 3, 450);
    let (from, to) = (worker.tally().endpoint(a), worker.tally().endpoint(b));
    assert_eq!((from.from_pod.packets, from.from_pod.bytes, from.to_pod.packets), (2, 120, 0));
    assert_eq!(from.drops[&DropReason::Malformed].bytes, 20);
    assert_eq!((to.to_pod.packets, to.to_pod.bytes, to.drops[&DropReason::PortFull].bytes), (1, 100, 100));
    assert_eq!((worker.tally().tunnel_sent().packets, worker.tally().tunnel_sent().bytes), (3, 450));
    assert_eq!(worker.tally().drops().len(), 2);
    worker.tally().clear(b);
    assert_eq!(worker.tally().endpoint(b), Default::default());
    assert_eq!(worker.tally().drops().len(), 2, "the worker's own sums go on");
}
