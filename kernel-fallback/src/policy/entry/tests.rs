//! The entries of a stage, read as the chains read them, say what the stage says.

use std::net::Ipv4Addr;

use causeway_model::policy::{RuleNumber, Traffic};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::policy::sample::{Said, stage};
use crate::policy::set::Set;
use crate::tables::difference;

const IDENTITIES: [u32; 4] = [3, 256, 257, 258];
const V4: [&str; 7] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.70.0.0/16",
    "10.70.1.0/24",
    "10.70.1.3/32",
    "255.255.255.255/32",
    "11.0.0.0/9",
];
const V6: [&str; 4] = ["::/0", "fd70::/48", "fd70:0:0:1::3/128", "ffff::/16"];

fn rule() -> impl Strategy<Value = Said> {
    let action = prop_oneof![Just(Action::Accept), Just(Action::Deny), Just(Action::Pass)];
    let block = prop_oneof![prop::sample::select(&V4[..]), prop::sample::select(&V6[..])];
    let hole = block.clone();
    let protocol = prop::sample::select(&[PortProtocol::Tcp, PortProtocol::Udp, PortProtocol::Sctp][..]);
    let edge = prop::sample::select(&[0_u16, 1, 80, 81, 8000, 65_535][..]);
    let port = (protocol, edge.clone(), edge).prop_map(|(p, a, b)| (p, a.min(b)..=a.max(b)));
    (
        action,
        16_u32..24,
        vec(prop::sample::select(&IDENTITIES[..]), 0..3),
        vec((block, vec(hole, 0..2)), 0..3),
        prop::option::of(vec(port, 1..3)),
    )
        .prop_map(|(action, number, identities, blocks, ports)| {
            let mut said = Said::new(action, number);
            said = identities.into_iter().map(Identity).fold(said, Said::of);
            said = blocks.iter().fold(said, |said, (block, holes)| said.block(block, holes));
            ports.into_iter().flatten().fold(said, |said, (protocol, ports)| said.port(protocol, ports))
        })
}

fn any_stage() -> impl Strategy<Value = Stage> {
    (vec(rule(), 0..8), prop::option::of(16_u32..24)).prop_map(|(rules, otherwise)| stage(&rules, otherwise))
}

/// Entries as the kernel has them: looked up, and no more.
struct Kernel(BTreeMap<(Set, Vec<u8>), Entry>);

impl Kernel {
    fn new(entries: impl IntoIterator<Item = Entry>) -> Self {
        Self(entries.into_iter().map(|entry| ((entry.set, entry.key.clone()), entry)).collect())
    }

    fn look_up(&self, set: Set, key: Vec<u8>) -> Option<Vec<u32>> {
        let entry = if set.is_interval() {
            let (_, entry) = self.0.range(..=(set, key.clone())).next_back()?;
            entry.end.as_ref().is_none_or(|end| key < *end).then_some(entry).filter(|e| e.set == set)
        } else {
            self.0.get(&(set, key))
        };
        let otherwise = set.otherwise().map(|number| vec![number]);
        entry
            .map(|e| e.data.chunks(4).map(|n| u32::from_be_bytes(n.try_into().unwrap())).collect())
            .or(otherwise)
    }

    /// What the chains of one place do.
    fn ask(&self, id: u32, identity: u32, address: IpAddr, (protocol, port): (u8, u16)) -> Vec<(u32, u32)> {
        let one = |set, key| self.look_up(set, key).map(|data| data[0]);
        let row = one(Set::Rows, words([0, id, identity])).unwrap();
        let pieces = Set::Pieces(Family::of(address));
        let by_address = one(pieces, [words([0, id]), address_bytes(address)].concat()).expect("a piece");
        let [high, low] = port.to_be_bytes();
        let key = [words([0, id]), vec![protocol, 0, 0, 0, high, low, 0, 0]].concat();
        let class = one(Set::Classes, key).expect("a class");
        let told = |row| self.look_up(Set::Verdicts, words([0, id, row, class])).expect("a verdict");
        let (mine, its) = (told(row), told(by_address));
        let both = [(&mine, &its), (&its, &mine)].into_iter();
        let decided =
            both.filter(|(one, other)| self.look_up(Set::Earlier, words([0, one[0], other[0]])).is_some());
        decided.map(|(one, _)| (one[1], one[2])).collect()
    }
}

fn said(stage: &Stage, identity: u32, address: IpAddr, traffic: Traffic) -> (u32, u32) {
    match stage.first(Identity(identity), address, traffic) {
        Some(rule) if rule.action == Action::Accept => (ACCEPT, 0),
        Some(rule) if rule.action == Action::Deny => (DENY, rule.number.0),
        Some(_) => (PASS, 0),
        None => stage.otherwise.map_or((PASS, 0), |RuleNumber(number)| (DENY, number)),
    }
}

fn addresses() -> Vec<IpAddr> {
    let near = |text: &&str| {
        let prefix: IpNetwork = text.parse().unwrap();
        let (first, last) = ends(prefix);
        let around = |address: IpAddr, step: i8| match address {
            IpAddr::V4(a) => IpAddr::V4(Ipv4Addr::from(u32::from(a).wrapping_add_signed(step.into()))),
            IpAddr::V6(a) => IpAddr::V6(u128::from(a).wrapping_add_signed(step.into()).into()),
        };
        [first, last, around(first, -1), around(last, 1)]
    };
    V4.iter().chain(&V6).flat_map(near).collect()
}

/// A peer's identity and address, a protocol's number, a port.
fn probe() -> impl Strategy<Value = (u32, IpAddr, u8, u16)> {
    let identity = prop::sample::select(&[3, 256, 257, 258, 300, NOBODY][..]);
    let protocol = prop_oneof![prop::sample::select(&[6_u8, 17, 132][..]), any::<u8>()];
    let port = prop::sample::select(&[0_u16, 1, 2, 79, 80, 81, 82, 7999, 8000, 8001, 65_534, 65_535][..]);
    (identity, prop::sample::select(addresses()), protocol, port)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_stage_is_asked_as_it_is_read(
        one in any_stage(),
        other in any_stage(),
        probes in vec(probe(), 150),
    ) {
        let most = compared(orders(&one).max(orders(&other)));
        let comparison = earlier(0, most).into_iter().chain([none_with_none()]);
        let both = [(7, &one), (8, &other)];
        let entries = both.iter().flat_map(|(id, stage)| of_stage(StageId(*id), stage));
        let kernel = Kernel::new(entries.chain(comparison));
        for (id, stage) in both {
            for (identity, address, number, port) in &probes {
                // Nobody outside of all clusters is the world.
                let known = if *identity == NOBODY { Identity::WORLD.0 } else { *identity };
                let named = [PortProtocol::Tcp, PortProtocol::Udp, PortProtocol::Sctp];
                let protocol = named.into_iter().find(|protocol| protocol.number().0 == *number);
                let traffic = protocol.map_or(Traffic::Portless, |protocol| Traffic::To(protocol, *port));
                let right = said(stage, known, *address, traffic);
                let answers = kernel.ask(id, *identity, *address, (*number, *port));
                prop_assert!(
                    !answers.is_empty() && answers.iter().all(|answer| *answer == right),
                    "{identity} {address} {traffic:?}: {answers:?}, not {right:?}"
                );
            }
        }
    }

    #[test]
    fn a_difference_makes_the_one_the_other(one in any_stage(), other in any_stage()) {
        let (old, new) = (of_stage(StageId(7), &one), of_stage(StageId(7), &other));
        let (gone, come) = difference(old.clone(), new.clone());
        let kept: Vec<Entry> = old.into_iter().filter(|entry| !gone.contains(entry)).collect();
        prop_assert!(come.iter().all(|entry| !kept.contains(entry)));
        let mut all = [kept, come].concat();
        all.sort();
        prop_assert_eq!(all, new);
    }
}

#[test]
fn a_hundred_thousand_blocks_that_are_allowed_are_one_row() {
    let mut rules: Vec<Said> = Vec::new();
    for n in 0..1000_u32 {
        let address = Ipv4Addr::from(0x0a00_0000 + 7 * n);
        rules.push(Said::new(Action::Accept, 16 + n).block(&format!("{address}/32"), &[]));
    }
    let entries = of_stage(StageId(1), &stage(&rules, Some(9)));
    let of = |set| entries.iter().filter(|entry| entry.set == set).count();
    assert_eq!(of(Set::Verdicts), 2);
    assert_eq!(of(Set::Pieces(Family::V4)), 2001);
}

#[test]
fn more_stages_than_can_be_asked_are_denied() {
    let of = |count| {
        let table = Table { stages: (1..=count).map(StageId).collect(), epoch: 0 };
        places(&table).map(|(_, stage)| stage).collect::<Vec<_>>()
    };
    assert_eq!(of(3), [1, 2, 3]);
    assert_eq!(of(4), [1, 2, NO_STAGE]);
}
