//! Random nodes, networks and pods: the allocator against the slow obvious one, which walks every address.

use std::collections::{BTreeMap, BTreeSet};

use causeway_model::plugin::{AddressRange, IpamRequest};
use causeway_model::{IpNetwork, Node, NodeId};
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// Small prefixes, so that they are soon full: two of IPv4 side by side, one of IPv6.
const PREFIXES: [&str; 3] = ["10.70.1.0/28", "10.70.1.16/29", "fd70::/124"];

fn node(prefixes: &[&str]) -> Node {
    let id = NodeId { cluster: "lyon".parse().unwrap(), name: "east".parse().unwrap() };
    Node {
        vtep_mac: Node::derived_vtep_mac(&id),
        id,
        underlay: vec!["192.0.2.11".parse().unwrap()],
        pod_prefixes: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(),
    }
}

#[derive(Clone, Debug)]
enum Event {
    /// An attachment of a network, with addresses of its own choice or without.
    Add {
        network: Index,
        named: Vec<Index>,
    },
    Del(Index),
    /// What another plugin gave.
    Delegated(Index),
}

fn event() -> impl Strategy<Value = Event> {
    let index = any::<Index>;
    prop_oneof![
        6 => index().prop_map(|network| Event::Add { network, named: vec![] }),
        2 => (index(), prop::collection::vec(index(), 1..3)).prop_map(|(network, named)| Event::Add { network, named }),
        5 => index().prop_map(Event::Del),
        1 => index().prop_map(Event::Delegated),
    ]
}

/// A range inside a prefix or across its edge, with a gateway or without.
fn range(prefix: &'static str) -> impl Strategy<Value = AddressRange> {
    let subnet: IpNetwork = prefix.parse().unwrap();
    let all: Vec<_> = subnet.iter().collect();
    (any::<Index>(), any::<Index>(), prop::option::of(any::<Index>())).prop_map(
        move |(one, other, gateway)| {
            let (one, other) = (*one.get(&all), *other.get(&all));
            let gateway = gateway.map(|gateway| *gateway.get(&all));
            AddressRange { subnet, first: one.min(other), last: one.max(other), gateway }
        },
    )
}

fn network() -> impl Strategy<Value = IpamRequest> {
    let four = prop_oneof![
        range(PREFIXES[0]).prop_map(|range| vec![range]),
        (range(PREFIXES[1]), range(PREFIXES[0])).prop_map(|(one, other)| vec![one, other]),
    ]
    .boxed();
    let six = range(PREFIXES[2]).prop_map(|range| vec![range]).boxed();
    let sets = prop_oneof![
        2 => Just(vec![]),
        2 => four.clone().prop_map(|four| vec![four]),
        2 => (four, six.clone()).prop_map(|(four, six)| vec![four, six]),
        1 => six.prop_map(|six| vec![six]),
    ];
    sets.prop_map(|sets| IpamRequest { sets, ..IpamRequest::default() })
}

/// Everything that is known of addresses, without any cleverness.
#[derive(Default)]
struct Oracle {
    pods: BTreeMap<u32, Vec<IpAddr>>,
    /// In the order of their release; an address stands here as long as it is free.
    released: Vec<IpAddr>,
    used: BTreeSet<IpAddr>,
}

impl Oracle {
    /// The addresses of a network by family, in the order of its ranges; none when it can have no pod.
    fn pools(node: &Node, network: &IpamRequest) -> Option<Vec<Vec<IpAddr>>> {
        let sets = match network.sets.as_slice() {
            [] => Family::BOTH.map(|family| node.pod_prefixes_of(family).map(Self::whole).collect()).into(),
            sets => sets.to_vec(),
        };
        let pools = sets.iter().filter(|set| !set.is_empty()).map(|set| {
            let all = set
                .iter()
                .flat_map(|range| range.subnet.iter().filter(|one| (range.first..=range.last).contains(one)));
            let edges: Vec<_> = node
                .pod_prefixes
                .iter()
                .chain(set.iter().map(|range| &range.subnet))
                .flat_map(|prefix| {
                    let six = prefix.is_ipv6();
                    [Some(prefix.network()), Some(prefix.broadcast()).filter(|_| !six)].into_iter().flatten()
                })
                .collect();
            let family = Family::of(set[0].first);
            let own = [node.overlay_host_address(family), node.probe_address(family)];
            let nobodys = |one: &IpAddr| {
                edges.contains(one)
                    || own.contains(&Some(*one))
                    || set.iter().any(|range| range.gateway == Some(*one))
            };
            all.filter(|one| !nobodys(one)).collect::<Vec<_>>()
        });
        let pools: Vec<_> = pools.collect();
        (network.sets.is_empty() || pools.iter().all(|pool| !pool.is_empty())).then_some(pools)
    }

    fn whole(prefix: IpNetwork) -> AddressRange {
        AddressRange { subnet: prefix, first: prefix.network(), last: prefix.broadcast(), gateway: None }
    }

    fn owned(&self, address: IpAddr) -> bool {
        self.pods.values().flatten().any(|one| *one == address)
    }

    /// What an attachment gets: one of each pool or nothing.
    fn give(&self, pools: &[Vec<IpAddr>], named: &[IpAddr]) -> Option<Vec<IpAddr>> {
        let known = |one: &IpAddr| pools.iter().any(|pool| pool.contains(one)) && !self.owned(*one);
        if !named.iter().all(known) {
            return None;
        }
        let one_of = |pool: &Vec<IpAddr>| {
            let mine: Vec<_> = named.iter().filter(|one| pool.contains(one)).collect();
            match mine.as_slice() {
                [one] => Some(**one),
                [] => {
                    let fresh = pool.iter().find(|one| !self.used.contains(one));
                    fresh.or_else(|| self.released.iter().find(|one| pool.contains(one))).copied()
                }
                _ => None,
            }
        };
        pools.iter().map(one_of).collect()
    }

    fn take(&mut self, pod: u32, addresses: &[IpAddr]) {
        self.used.extend(addresses);
        self.released.retain(|one| !addresses.contains(one));
        self.pods.insert(pod, addresses.to_vec());
    }
}

fn key(pod: u32) -> EndpointKey {
    EndpointKey { network: "pods".into(), container: pod.to_string(), interface: "eth0".into() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn every_grant_is_the_one_that_the_slow_allocator_gives(
        networks in prop::collection::vec(network(), 1..4),
        events in prop::collection::vec(event(), 1..80),
        single in any::<bool>(),
    ) {
        let node = node(if single { &PREFIXES[..1] } else { &PREFIXES });
        let mut everything: Vec<IpAddr> = node.pod_prefixes.iter().flat_map(IpNetwork::iter).collect();
        everything.push("10.70.9.9".parse().unwrap());
        let (mut leases, mut oracle) = (Leases::default(), Oracle::default());
        for (pod, event) in (0..).zip(events) {
            let (request, named) = match event {
                Event::Del(which) => {
                    let pods: Vec<_> = oracle.pods.keys().copied().collect();
                    if pods.is_empty() { continue }
                    let addresses = oracle.pods.remove(which.get(&pods)).unwrap();
                    leases.give_back(&leases.next_numbers(&addresses), MacAddr::ZERO);
                    oracle.released.extend(addresses);
                    continue;
                }
                Event::Add { network, named } => {
                    (network.get(&networks).clone(), named.iter().map(|one| *one.get(&everything)).collect())
                }
                Event::Delegated(which) => {
                    let given = vec![*which.get(&everything)];
                    let delegate = Some("host-local".to_owned());
                    (IpamRequest { addresses: given.clone(), delegate, ..IpamRequest::default() }, given)
                }
            };
            let wanted = Wanted { addresses: named.clone(), mac: None };
            let grant = Pool::for_request(&node, &request).and_then(|pools| leases.grant(&pools, &wanted));
            let mut expected = Oracle::pools(&node, &request);
            if request.delegate.is_some() {
                expected = expected.map(|pools| pools.into_iter().filter(|pool| pool.iter().any(|one| one.is_ipv4() == named[0].is_ipv4())).collect());
            }
            let inside = |range: &AddressRange| node.pod_prefixes.iter().any(|prefix| prefix.contains(range.first) && prefix.contains(range.last));
            let expected = expected
                .filter(|_| request.sets.iter().flatten().all(inside))
                .and_then(|pools| oracle.give(&pools, &named))
                .filter(|given| !given.is_empty());
            prop_assert_eq!(grant.as_ref().ok().map(|grant| &grant.addresses), expected.as_ref(), "{:?}", grant);
            if let Ok(grant) = grant {
                leases.take(&key(pod), &grant);
                oracle.take(pod, &grant.addresses);
            }
            let leased: BTreeSet<_> = leases.owners.keys().copied().collect();
            let owned: BTreeSet<_> = oracle.pods.values().flatten().copied().collect();
            prop_assert_eq!(leased, owned);
        }
    }
}
