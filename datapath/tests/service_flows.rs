//! Whatever pods send to services and whatever becomes of those: each client keeps what it has, nobody gets what is another's.
#![expect(clippy::unwrap_used, reason = "a story that goes wrong is a panic")]

mod rig;

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_datapath::Port;
use causeway_model::service::{Answer, BackendsId};
use causeway_model::{Delta, DropReason, PortProtocol};
use proptest::prelude::*;
use rig::served::*;
use rig::*;

/// Where packets come from and go to: addresses and ports.
type Flow = (IpAddr, u16, IpAddr, u16);

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// Pod `a` sends a datagram from one of a few ports to one of a few places.
    Send(u8, usize),
    /// The other end of a known flow answers.
    Answer(prop::sample::Index),
    /// Somebody whom nobody asked sends to pod `a`.
    Unasked(u8, usize),
    /// A service's backends are these, as bits.
    Backends(u32, u8),
    /// Nobody serves a service any more.
    Refuse(usize),
    /// The process dies, and another takes its place.
    Die,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..4_u8, 0..6_usize).prop_map(|(port, to)| Step::Send(port, to)),
        8 => any::<prop::sample::Index>().prop_map(Step::Answer),
        1 => (0..4_u8, 0..3_usize).prop_map(|(port, from)| Step::Unasked(port, from)),
        2 => (0..3_u32, 1..8_u8).prop_map(|(id, bits)| Step::Backends(id, bits)),
        1 => (0..3_usize).prop_map(Step::Refuse),
        1 => Just(Step::Die),
    ];
    prop::collection::vec(step, 1..60)
}

/// Pod `a` itself, its neighbour, and a pod elsewhere.
const BACKENDS: [&str; 3] = [A[0], B[0], FAR[0]];
const VIPS: [&str; 3] = ["10.96.0.9", "10.96.0.10", "10.96.0.11"];

fn chosen(bits: u8) -> Vec<&'static str> {
    (0..3).filter(|bit| bits >> bit & 1 == 1).map(|bit| BACKENDS[bit]).collect()
}

/// The obvious memory: what the client has sent, and what became of it on the wire.
#[derive(Default)]
struct Memory {
    on_wire: BTreeMap<Flow, Flow>,
    backends: [Option<u8>; 3],
}

impl Memory {
    /// Whether a flow that is remembered may go where it goes.
    fn stays(&self, asked: &Flow) -> bool {
        let Some(wire) = self.on_wire.get(asked) else { return false };
        match VIPS.iter().position(|vip| ip(vip) == asked.2) {
            Some(service) => self.backends[service].is_some_and(|bits| {
                wire.3 == 8080 && chosen(bits).iter().any(|backend| ip(backend) == wire.2)
            }),
            None => true,
        }
    }
}

fn tell(served: &mut Served, memory: &mut Memory, id: u32, bits: u8) {
    let vip = VIPS[id as usize];
    served.change([
        Delta::Backends(BackendsId(id + 10), backends(&chosen(bits), &[], 8080)),
        Delta::Service(
            frontend(vip, PortProtocol::Udp, 80),
            Box::new(service(Answer::Backends(BackendsId(id + 10)))),
        ),
    ]);
    memory.backends[id as usize] = Some(bits);
}

fn send(served: &Served, memory: &mut Memory, port: u8, to: usize) {
    let source = 4000 + u16::from(port);
    let (address, port) = if to < 3 { (VIPS[to], 80) } else { (BACKENDS[to - 3], 8080) };
    if address == A[0] {
        // A pod that asks itself never asks its gateway.
        return;
    }
    let asked = (ip(A[0]), source, ip(address), port);
    let packet = udp(A[0], address, (source, port), 20);
    if to < 3 && memory.backends[to].is_none() {
        let told = served.refused(&packet, DropReason::ServiceRefused);
        assert_eq!(told[20..22], [3, 3]);
        memory.on_wire.remove(&asked);
        return;
    }
    let out = served.sent(&packet).unwrap();
    let wire = ends(out.packet());
    let egress = match wire.2 {
        backend if backend == ip(FAR[0]) => Port::Uplink,
        backend if backend == ip(B[0]) => served.side.port("b"),
        _ => served.side.port("a"),
    };
    assert_eq!(out.egress, egress);
    if memory.stays(&asked) {
        assert_eq!(memory.on_wire[&asked], wire, "a flow goes on where it went");
    } else {
        memory.on_wire.insert(asked, wire);
        assert!(memory.stays(&asked), "{wire:?} is not one of those that are chosen");
    }
    let same = memory.on_wire.iter().filter(|(_, other)| **other == wire);
    assert_eq!(same.count(), 1, "two flows are one on the wire: {:?}", memory.on_wire);
    assert_eq!(wire.0 == ip(STRANGER[0]), wire.2 == ip(A[0]), "only who is its own backend sees the gateway");
}

fn answer(served: &Served, memory: &Memory, which: &prop::sample::Index) {
    if memory.on_wire.is_empty() {
        return;
    }
    let (asked, wire) = memory.on_wire.iter().nth(which.index(memory.on_wire.len())).unwrap();
    let packet = udp(&wire.2.to_string(), &wire.0.to_string(), (wire.3, wire.1), 20);
    let back = match wire.2 {
        backend if backend == ip(FAR[0]) => served.arrives(&packet),
        backend if backend == ip(B[0]) => served.sent_by_b(&packet),
        _ => served.sent(&packet),
    };
    let back = back.unwrap();
    assert_eq!(back.egress, served.side.port("a"));
    assert_eq!(ends(back.packet()), (asked.2, asked.3, asked.0, asked.1), "what went out comes back");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_comes_back_is_what_went_out(steps in steps()) {
        let mut served = Served::by([&[], &[]]);
        let addresses = VIPS.map(|vip| Delta::ServiceAddress(ip(vip)));
        let refused = VIPS.map(|vip| {
            Delta::Service(frontend(vip, PortProtocol::Udp, 80), Box::new(service(Answer::Refuse)))
        });
        served.change(addresses.into_iter().chain(refused));
        let mut memory = Memory::default();
        for step in steps {
            // Errors are answered at most so often.
            served.side.now += 1_000_000_000;
            match step {
                Step::Send(port, to) => send(&served, &mut memory, port, to),
                Step::Answer(which) => answer(&served, &memory, &which),
                Step::Unasked(port, from) => {
                    // From another port than any backend's: it begins a flow of its own, as it is.
                    let packet = udp(FAR[0], A[0], (9000 + from as u16, 4000 + u16::from(port)), 20);
                    let came = served.arrives(&packet).unwrap();
                    prop_assert_eq!(ends(came.packet()), ends(&packet));
                }
                Step::Backends(id, bits) => tell(&mut served, &mut memory, id, bits),
                Step::Refuse(service_of) => {
                    let at = frontend(VIPS[service_of], PortProtocol::Udp, 80);
                    served.change([Delta::Service(at, Box::new(service(Answer::Refuse)))]);
                    memory.backends[service_of] = None;
                }
                Step::Die => {
                    let now = served.side.now;
                    served = served.again();
                    served.side.now = now;
                }
            }
        }
    }
}
