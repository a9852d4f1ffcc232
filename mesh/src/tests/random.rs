//! Random worlds: whatever order objects come in, every observer agrees with every other, with itself after a restart, and with the
//! slow evaluator.

use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;

use super::slow::{Facts, Verdict, judge};
use super::*;
use crate::Import;

const CLUSTERS: [&str; 4] = ["oslo", "lyon", "turin", "cadiz"];
const REGIONS: [&str; 3] = ["north", "west", "south"];
const NAMES: [&str; 2] = ["shop/web", "yard/web"];

/// Something that is done.
#[derive(Clone, Debug)]
enum Act {
    Region(usize, usize),
    Lost(usize, bool),
    Service(usize, usize, Option<Service>),
    Export(usize, usize, Option<Export>),
    Slice(usize, usize, Option<Slice>),
    Wish(usize, Option<Wish>),
    Settle,
}

fn any_port() -> impl Strategy<Value = Port> {
    (select(vec!["a", "b", "c"]), select(PortProtocol::ALL[..2].to_vec()), 80..83_u16).prop_map(
        |(name, protocol, number)| Port { name: name.to_owned(), protocol, number, app_protocol: None },
    )
}

fn any_ports() -> impl Strategy<Value = Vec<Port>> {
    prop::collection::vec(any_port(), 1..4).prop_map(|ports| {
        let mut kept: Vec<Port> = Vec::new();
        for port in ports {
            let clash = |other: &Port| {
                other.name == port.name || (other.protocol, other.number) == (port.protocol, port.number)
            };
            if !kept.iter().any(clash) {
                kept.push(port);
            }
        }
        kept
    })
}

fn any_wish() -> impl Strategy<Value = Wish> {
    let affinity = select(vec!["", "", "none", "local", "remote"]);
    let prefer = select(vec![
        "",
        "",
        "",
        "cluster:lyon; cluster:turin",
        "region:west*3,region:south,min=2; cluster:oslo",
        "cluster:lyon,region:west*2",
        "region:north,min=9; region:west,cluster:cadiz*5,min=9",
        "cluster:paris",
    ]);
    (affinity, prefer).prop_map(|(affinity, prefer)| wish(affinity, prefer))
}

fn any_service() -> impl Strategy<Value = Service> {
    let kind = select(vec![
        ServiceKind::Addressed,
        ServiceKind::Addressed,
        ServiceKind::Addressed,
        ServiceKind::Headless,
        ServiceKind::External,
    ]);
    let families = select(vec![vec![Family::V4], vec![Family::V4], vec![Family::V6], Family::BOTH.to_vec()]);
    let affinity = select(vec![None, None, Some(60), Some(90)]);
    let policy = select(vec![TrafficPolicy::Cluster, TrafficPolicy::Cluster, TrafficPolicy::Local]);
    (kind, families, any_ports(), affinity, policy, any_wish()).prop_map(
        |(kind, families, ports, affinity, traffic_policy, wish)| Service {
            kind,
            families,
            ports,
            affinity,
            traffic_policy,
            distribution: None,
            wish,
        },
    )
}

fn any_export() -> impl Strategy<Value = Export> {
    let created = select(vec![None, Some(1), Some(2), Some(2), Some(3)]);
    let label = select(vec!["gold", "gold", "tin"]);
    (created, label, any_wish()).prop_map(|(created, label, wish)| Export {
        created: created.map(time),
        labels: [("tier".to_owned(), label.to_owned())].into(),
        annotations: BTreeMap::new(),
        wish,
    })
}

/// A slice of a cluster's endpoints; the number says the cluster, so that addresses are its own.
fn any_slice(at: usize) -> impl Strategy<Value = Slice> {
    let state = select(vec![State::Ready, State::Ready, State::Draining, State::Down]);
    let endpoints = prop::collection::vec((1..5_u8, state), 0..4);
    (select(NAMES.to_vec()), any::<bool>(), any_ports(), endpoints).prop_map(
        move |(name, six, ports, endpoints)| {
            let address = |pod: u8| match six {
                true => format!("fd70:{}::{pod}", at + 1),
                false => format!("10.{}.0.{pod}", at + 1),
            };
            let addresses: Vec<_> = endpoints.iter().map(|(pod, _)| address(*pod)).collect();
            let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
            let mut slice = slice(name, &ports, &addresses);
            slice.family = if six { Family::V6 } else { Family::V4 };
            slice.endpoints.iter_mut().zip(endpoints).for_each(|(it, (_, state))| it.state = state);
            slice
        },
    )
}

fn any_act() -> impl Strategy<Value = Act> {
    let at = || 0..CLUSTERS.len();
    let name = || 0..NAMES.len();
    prop_oneof![
        1 => (at(), 0..REGIONS.len()).prop_map(|(at, region)| Act::Region(at, region)),
        1 => (1..CLUSTERS.len(), any::<bool>()).prop_map(|(at, lost)| Act::Lost(at, lost)),
        6 => (at(), name(), prop::option::weighted(0.9, any_service())).prop_map(|(at, name, it)| Act::Service(at, name, it)),
        6 => (at(), name(), prop::option::weighted(0.8, any_export())).prop_map(|(at, name, it)| Act::Export(at, name, it)),
        6 => (at(), 0..3_usize).prop_flat_map(|(at, own)| {
            prop::option::weighted(0.9, any_slice(at)).prop_map(move |it| Act::Slice(at, own, it))
        }),
        1 => (name(), prop::option::of(any_wish())).prop_map(|(name, it)| Act::Wish(name, it)),
        2 => Just(Act::Settle),
    ]
}

/// What an act is to the engine; the observer's own wishes are nobody else's.
fn change(act: &Act, observer: &str) -> Option<Change> {
    let name = |at: usize| cluster(CLUSTERS[at]);
    let slice_name = |own: &usize| ServiceName { namespace: "-".to_owned(), name: format!("slice-{own}") };
    Some(match act {
        Act::Region(at, region) => {
            let id = u32::try_from(*at + 1).unwrap();
            Change::Cluster(name(*at), Some((record(CLUSTERS[*at], id, REGIONS[*region]), None)))
        }
        Act::Lost(at, lost) => Change::Lost(name(*at), lost.then_some(Duration::from_secs(40))),
        Act::Service(at, of, it) => Change::Service(name(*at), service(NAMES[*of]), it.clone()),
        Act::Export(at, of, it) => Change::Export(name(*at), service(NAMES[*of]), it.clone()),
        Act::Slice(at, own, it) => Change::Slice(name(*at), slice_name(own), it.clone()),
        Act::Wish(of, it) if observer == "oslo" => Change::Import(service(NAMES[*of]), it.clone()),
        Act::Wish(..) | Act::Settle => return None,
    })
}

/// What every run begins with, and no act takes back.
fn ground(observer: &str) -> Vec<Change> {
    let mut changes = vec![Change::Config(config())];
    for namespace in ["shop", "yard"] {
        changes.push(Change::Namespace(cluster(observer), namespace.to_owned(), true));
    }
    let joins = (0..CLUSTERS.len()).map(|at| Act::Region(at, at % REGIONS.len()));
    changes.extend(joins.filter_map(|act| change(&act, observer)));
    changes
}

/// The engine after all acts, one by one.
fn lived(acts: &[Act], observer: &str) -> World {
    let mut world = settled(World::new(cluster(observer), Memory::default()), ground(observer));
    for act in acts {
        match change(act, observer) {
            Some(change) => world.apply(change),
            None => drop(world.settle()),
        }
    }
    world.settle();
    world
}

/// The last word on everything, in which order ever.
fn last_words(acts: &[Act], observer: &str) -> Vec<Change> {
    let key = |act: &Act| match act {
        Act::Region(at, _) => format!("region {at}"),
        Act::Lost(at, _) => format!("lost {at}"),
        Act::Service(at, of, _) => format!("service {at} {of}"),
        Act::Export(at, of, _) => format!("export {at} {of}"),
        Act::Slice(at, own, _) => format!("slice {at} {own}"),
        Act::Wish(of, _) => format!("wish {of}"),
        Act::Settle => String::new(),
    };
    let last: BTreeMap<_, _> = acts.iter().map(|act| (key(act), act)).collect();
    let regions = last.keys().filter(|key| key.starts_with("region")).cloned().collect::<Vec<_>>();
    let ground = ground(observer).into_iter().enumerate();
    // The first three are no clusters.
    let ground = ground.filter(|(at, _)| *at < 3 || !regions.contains(&format!("region {}", at - 3)));
    ground.map(|(_, change)| change).chain(last.values().filter_map(|act| change(act, observer))).collect()
}

fn facts(acts: &[Act], observer: &str) -> Facts {
    let mut facts = Facts::default();
    for change in last_words(acts, observer) {
        match change {
            Change::Cluster(name, Some((record, _))) => {
                facts.regions.insert(name, record.region.unwrap());
            }
            Change::Lost(name, Some(_)) if name != cluster(observer) => drop(facts.lost.insert(name)),
            Change::Service(at, name, Some(it)) => drop(facts.services.insert((at, name), it)),
            Change::Export(at, name, Some(it)) => drop(facts.exports.insert((at, name), it)),
            Change::Slice(at, name, Some(it)) => drop(facts.slices.insert((at, name), it)),
            Change::Import(name, Some(it)) => drop(facts.wishes.insert(name, it)),
            _ => {}
        }
    }
    facts
}

/// What the engine says, as the slow evaluator says it.
fn said(import: &Import) -> Verdict {
    let parts = import.backends.iter().map(|((family, at), candidates)| {
        let total: u64 = candidates.iter().map(|it| u64::from(it.weight)).sum();
        let parts = candidates.iter().filter(|it| it.weight > 0);
        let parts = parts.map(|it| (it.backend, 1_000_000 * u64::from(it.weight) / total));
        ((import.ports[*at].clone(), *family), parts.collect())
    });
    Verdict {
        clusters: import.clusters.iter().cloned().collect(),
        ports: import.ports.iter().cloned().collect(),
        headless: import.headless,
        conflicts: import.conflicts.iter().map(|conflict| conflict.about).collect(),
        parts: parts.collect(),
    }
}

/// Equal but for what integers cut off.
fn alike(one: &Verdict, other: &Verdict) -> bool {
    let near = |(one, other): (&BTreeMap<Backend, u64>, &BTreeMap<Backend, u64>)| {
        one.keys().eq(other.keys()) && one.values().zip(other.values()).all(|(a, b)| a.abs_diff(*b) <= 10)
    };
    let plain = |verdict: &Verdict| Verdict { parts: BTreeMap::new(), ..verdict.clone() };
    plain(one) == plain(other)
        && one.parts.keys().eq(other.parts.keys())
        && one.parts.values().zip(other.parts.values()).all(near)
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    prop::collection::vec(any_act(), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6000, max_shrink_iters: 20000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_says_what_the_slow_evaluator_says(acts in acts(), at in 0..CLUSTERS.len()) {
        let observer = CLUSTERS[at];
        let world = lived(&acts, observer);
        let facts = facts(&acts, observer);
        for name in NAMES {
            let wanted = judge(&facts, world.own(), &service(name));
            let found = world.imports().get(&service(name)).map(|import| said(import));
            match (&wanted, &found) {
                (Some(wanted), Some(found)) => prop_assert!(alike(wanted, found), "{name}: {wanted:#?}\nagainst {found:#?}"),
                _ => prop_assert_eq!(wanted, found),
            }
        }
    }

    #[test]
    fn whatever_came_first_all_is_the_same(
        acts in acts(),
        order in Just((0..200_usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let lived = lived(&acts, "oslo");
        let mut changes: Vec<_> = last_words(&acts, "oslo").into_iter().zip(order).collect();
        changes.sort_by_key(|(_, place)| *place);
        let memory = serde_json::from_str(&serde_json::to_string(&lived.memory()).unwrap()).unwrap();
        let changes = changes.into_iter().map(|(change, _)| change);
        let again = settled(World::new(cluster("oslo"), memory), changes);
        prop_assert_eq!(lived.imports(), again.imports());
        prop_assert_eq!(lived.exports(), again.exports());
    }

    #[test]
    fn observers_agree_on_all_but_addresses_and_choice(acts in acts()) {
        let acts: Vec<_> = acts.into_iter().filter(|act| !matches!(act, Act::Lost(..))).collect();
        let worlds = CLUSTERS.map(|observer| lived(&acts, observer));
        for world in &worlds[1..] {
            prop_assert_eq!(world.exports(), worlds[0].exports());
            let shared = |world: &World| -> BTreeMap<_, _> {
                let plain = |import: &Import| Import {
                    addresses: Vec::new(),
                    choice: crate::Choice::default(),
                    backends: BTreeMap::new(),
                    ..import.clone()
                };
                world.imports().iter().map(|(name, import)| (name.clone(), plain(import))).collect()
            };
            prop_assert_eq!(shared(world), shared(&worlds[0]));
        }
    }
}
