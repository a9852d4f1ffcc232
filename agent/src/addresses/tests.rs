use causeway_model::{Node, NodeId};

use super::*;

fn node(prefixes: &[&str]) -> Node {
    let id = NodeId { cluster: "lyon".parse().unwrap(), name: "east".parse().unwrap() };
    Node {
        vtep_mac: Node::derived_vtep_mac(&id),
        id,
        underlay: vec!["192.0.2.11".parse().unwrap()],
        pod_prefixes: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(),
    }
}

fn pools(prefixes: &[&str]) -> Vec<Pool> {
    Pool::all_of_node(&node(prefixes))
}

fn key(container: impl Copy + ToString) -> EndpointKey {
    EndpointKey { network: "pods".into(), container: container.to_string(), interface: "eth0".into() }
}

fn text(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

impl Leases {
    fn add(&mut self, container: impl Copy + ToString, pools: &[Pool]) -> Vec<String> {
        let grant = self.grant(pools, &Wanted::default()).unwrap();
        self.take(&key(container), &grant);
        text(&grant.addresses)
    }

    fn del(&mut self, address: &str) {
        let numbered = self.next_numbers(&[address.parse().unwrap()]);
        self.give_back(&numbered, MacAddr::ZERO);
    }
}

#[test]
fn a_pod_gets_an_address_of_each_family_after_the_reserved_ones() {
    let pools = pools(&["10.70.1.0/24", "fd70:0:0:1::/64"]);
    let mut leases = Leases::default();
    assert_eq!(leases.add("a", &pools), ["10.70.1.3", "fd70:0:0:1::3"]);
    assert_eq!(leases.add("b", &pools), ["10.70.1.4", "fd70:0:0:1::4"]);
}

#[test]
fn the_longest_free_address_is_given_first() {
    // Usable: .3 to .6.
    let pools = pools(&["10.70.1.0/29"]);
    let mut leases = Leases::default();
    assert_eq!(leases.add("a", &pools), ["10.70.1.3"]);
    leases.del("10.70.1.3");
    assert_eq!(leases.add("b", &pools), ["10.70.1.4"], "a released address waits while unused ones remain");
    for name in ["c", "d", "e"] {
        leases.add(name, &pools);
    }
    let full = leases.grant(&pools, &Wanted::default()).unwrap_err();
    assert_eq!(
        (full.code(), full.to_string()),
        (100, "no free address in 10.70.1.0/29: 4 of 4 in use".into())
    );
    leases.del("10.70.1.5");
    leases.del("10.70.1.3");
    assert_eq!(leases.add("y", &pools), ["10.70.1.5"]);
    assert_eq!(leases.add("z", &pools), ["10.70.1.3"]);
}

#[test]
fn a_pool_full_in_one_family_gives_nothing_of_the_other() {
    let pools = pools(&["10.70.1.0/30", "fd70::/64"]);
    let leases = Leases::default();
    let error = leases.grant(&pools, &Wanted::default()).unwrap_err();
    assert_eq!(error, AddressError::Exhausted { pool: "10.70.1.0/30".into(), used: 0, capacity: 0 });
}

#[test]
fn prefixes_too_small_for_a_pod_are_exhausted_from_the_start() {
    for prefix in ["10.0.0.0/32", "10.0.0.0/31", "10.0.0.0/30", "fd70::/128", "fd70::/127"] {
        let error = Leases::default().grant(&pools(&[prefix]), &Wanted::default()).unwrap_err();
        assert_eq!(error.code(), Failure::RANGE_EXHAUSTED, "{prefix}");
    }
    assert_eq!(Leases::default().add("a", &pools(&["fd70::/126"])), ["fd70::3"]);
    assert_eq!(Leases::default().add("a", &pools(&["255.255.255.248/29"])), ["255.255.255.251"]);
}

#[test]
fn a_second_prefix_serves_when_the_first_is_full() {
    let pools = pools(&["10.70.1.0/29", "10.70.9.0/30"]);
    let mut leases = Leases::default();
    let given: Vec<_> = (0..6).flat_map(|n| leases.add(n, &pools)).collect();
    assert_eq!(given[4..], ["10.70.9.1", "10.70.9.2"], "only the first prefix has overlay addresses");
    assert_eq!(leases.grant(&pools, &Wanted::default()).unwrap_err().code(), 100);
}

#[test]
fn static_addresses_are_given_where_they_can_be() {
    let pools = pools(&["10.70.1.0/29", "fd70::/64"]);
    let mut leases = Leases::default();
    let ask = |addresses: &[&str], mac: Option<&str>| Wanted {
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        mac: mac.map(|mac| mac.parse().unwrap()),
    };
    let wanted = ask(&["10.70.1.4"], Some("02:00:5e:00:53:01"));
    let grant = leases.grant(&pools, &wanted).unwrap();
    assert_eq!(text(&grant.addresses), ["10.70.1.4", "fd70::3"]);
    assert_eq!(grant.mac.to_string(), "02:00:5e:00:53:01");
    leases.take(&key("s"), &grant);

    let refused = |wanted: Wanted| leases.grant(&pools, &wanted).unwrap_err();
    assert_eq!(refused(wanted.clone()).code(), Failure::TRY_AGAIN, "its last owner may be on its way out");
    assert!(refused(wanted).to_string().starts_with("address 10.70.1.4 is in use by pods/s/eth0"));
    for addresses in [
        &["10.70.1.0"][..],
        &["10.70.1.1"],
        &["10.70.1.2"],
        &["10.70.1.7"],
        &["10.70.2.4"],
        &["fd70::"],
        &["fd71::9"],
        &["10.70.1.5", "10.70.1.6"],
    ] {
        assert_eq!(refused(ask(addresses, None)).code(), Failure::INVALID_CONFIG, "{addresses:?}");
    }
    for mac in ["00:00:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", &GATEWAY_MAC.to_string()] {
        assert_eq!(refused(ask(&[], Some(mac))).code(), Failure::INVALID_CONFIG, "{mac}");
    }
    assert_eq!(refused(ask(&[], Some("02:00:5e:00:53:01"))).code(), Failure::TRY_AGAIN);

    assert_eq!(leases.add("a", &pools), ["10.70.1.3", "fd70::4"]);
    assert_eq!(leases.add("b", &pools)[0], "10.70.1.5", "the cursor passes over what is taken");
    leases.del("10.70.1.4");
    assert_eq!(leases.add("c", &pools)[0], "10.70.1.6");
    assert_eq!(leases.add("d", &pools)[0], "10.70.1.4");
}

#[test]
fn derived_macs_evade_static_ones_and_never_collide() {
    let pools = pools(&["10.70.1.0/24"]);
    let mut leases = Leases::default();
    let usual = leases.grant(&pools, &Wanted::default()).unwrap();
    assert_eq!(usual.mac.to_string(), "06:ca:0a:46:01:03");
    let thief = Wanted { addresses: vec!["10.70.1.99".parse().unwrap()], mac: Some(usual.mac) };
    let grant = leases.grant(&pools, &thief).unwrap();
    leases.take(&key("thief"), &grant);
    let first = leases.grant(&pools, &Wanted::default()).unwrap();
    assert_eq!(first.addresses, usual.addresses);
    assert_ne!(first.mac, usual.mac);
    leases.take(&key("first"), &first);
    let second = leases.grant(&pools, &Wanted::default()).unwrap();
    assert_ne!(second.mac, first.mac);
}

#[test]
fn an_ipv6_prefix_remembers_a_bounded_number_of_addresses() {
    let pools = pools(&["fd70::/64"]);
    let mut leases = Leases::default();
    for number in 0..QUEUE_LIMIT + 5 {
        let given = leases.add("a", &pools);
        leases.del(&given[0]);
        if number < QUEUE_LIMIT {
            let expected = pool::address(Family::V6, pools[0].ranges[0].bounds().0 + number as u128 + 3);
            assert_eq!(given[0].parse().ok(), expected);
        }
    }
    assert_eq!(leases.queued.len(), QUEUE_LIMIT);
    assert_eq!(leases.add("a", &pools), ["fd70::8"], "after the limit the queue is used from its front");
}

#[test]
fn a_prefix_of_65536_is_filled_without_walking_it() {
    let pools = pools(&["10.70.0.0/16", "fd70::/64"]);
    let mut leases = Leases::default();
    let started = std::time::Instant::now();
    for number in 0..65_532 {
        leases.add(number, &pools);
    }
    // A walk over the prefix per address would take minutes.
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    assert_eq!(leases.grant(&pools, &Wanted::default()).unwrap_err().code(), 100);
    leases.del("10.70.200.7");
    assert_eq!(leases.add("late", &pools)[0], "10.70.200.7");
}
