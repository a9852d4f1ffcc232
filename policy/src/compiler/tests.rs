//! The tables judged by the slow evaluator, on random worlds that change; and who is touched by what.

use proptest::prelude::*;

use causeway_model::policy::{Action, RuleNumber, Verdict};
use causeway_model::{ClusterName, NodeName, PodName, PortProtocol};

use super::*;
use crate::policy::{Block, Peer, PolicyKind, PortMatch, Rule, Tier};
use crate::selector::{LabelSelector, Namespaces, PodSelector, Requirement};
use crate::slow::{self, Reason};
use crate::world::{CLUSTER_LABEL, NamedPort, Presence, Workload};

const CLUSTERS: [&str; 2] = ["lyon", "paris"];
const NAMESPACES: [&str; 2] = ["shop", "bank"];
const VALUES: [&str; 2] = ["x", "y"];
/// The second one is left out of identities unless somebody asks for it.
const KEYS: [&str; 2] = ["app", "job-name"];
const PORT_NAMES: [&str; 2] = ["http", "dns"];
/// Addresses that pods may have, that nobody has, and that are no cluster's; nodes have .1 and .2 of the last.
const PODS_V4: &str = "10.0.0.";

fn node(index: usize) -> NodeId {
    let name: NodeName = ["east", "west"][index % 2].parse().unwrap();
    NodeId { cluster: CLUSTERS[0].parse().unwrap(), name }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn map(pairs: Vec<(usize, usize)>) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (KEYS[key].to_owned(), VALUES[value].to_owned())).collect()
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::vec((0usize..2, 0usize..2), 0..3).prop_map(map)
}

fn requirement() -> impl Strategy<Value = Requirement> {
    (0usize..2, 0usize..2, 0u8..4).prop_map(|(key, value, operator)| {
        let (key, values) = (KEYS[key].to_owned(), BTreeSet::from([VALUES[value].to_owned()]));
        match operator {
            0 => Requirement::In(key, values),
            1 => Requirement::NotIn(key, values),
            2 => Requirement::Exists(key),
            _ => Requirement::DoesNotExist(key),
        }
    })
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    prop::collection::vec(requirement(), 0..2).prop_map(LabelSelector::new)
}

fn pod_selector() -> impl Strategy<Value = PodSelector> {
    let abroad = || Requirement::In(CLUSTER_LABEL.to_owned(), BTreeSet::from([CLUSTERS[1].to_owned()]));
    let namespaces = prop_oneof![
        2 => (0usize..2).prop_map(|index| Namespaces::Own(NAMESPACES[index].to_owned())),
        3 => selector().prop_map(Namespaces::Selected),
        1 => Just(()).prop_map(move |()| Namespaces::Selected(LabelSelector::new([abroad()]))),
    ];
    (namespaces, selector()).prop_map(|(namespaces, pods)| PodSelector { namespaces, pods })
}

fn block() -> impl Strategy<Value = Block> {
    (0u8..16, 27u8..33, prop::option::of((0u8..16, 1u8..4))).prop_map(|(at, length, hole)| {
        let prefix = |at, length| {
            let written = ipnetwork::IpNetwork::new(IpAddr::from([10, 0, 0, at]), length).unwrap();
            ipnetwork::IpNetwork::new(written.network(), length).unwrap()
        };
        let cidr = prefix(at, length);
        let hole = hole.map(|(at, more)| prefix(at, (length + more).min(32)));
        let except = hole.filter(|hole| cidr.contains(hole.network()) && hole.prefix() > length);
        Block { cidr, except: except.into_iter().collect() }
    })
}

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        1 => Just(Peer::Any),
        6 => pod_selector().prop_map(Peer::Pods),
        3 => block().prop_map(Peer::Block),
        1 => Just(Peer::Block(Block::whole("fd00::/126".parse().unwrap()))),
        1 => selector().prop_map(Peer::Nodes),
    ]
}

fn protocol() -> impl Strategy<Value = PortProtocol> {
    prop::sample::select(PortProtocol::ALL.to_vec())
}

fn port() -> impl Strategy<Value = PortMatch> {
    prop_oneof![
        (protocol(), 80u16..84, 0u16..3)
            .prop_map(|(of, start, more)| PortMatch::Range(of, start..=start + more)),
        protocol().prop_map(|of| PortMatch::Range(of, 0..=u16::MAX)),
        (prop::option::of(protocol()), 0usize..2)
            .prop_map(|(of, name)| PortMatch::Named(of, PORT_NAMES[name].to_owned())),
    ]
}

fn rules(kind: PolicyKind) -> impl Strategy<Value = Option<Vec<Rule>>> {
    let rule =
        (0u8..3, prop::collection::vec(peer(), 1..3), prop::option::of(prop::collection::vec(port(), 1..3)));
    prop::option::of(prop::collection::vec(rule, 0..3)).prop_map(move |rules| {
        let cluster = kind == PolicyKind::ClusterNetworkPolicy;
        let rules = rules.filter(|rules| !(cluster && rules.is_empty()))?;
        let rules = (0..).zip(rules).map(|(index, (action, peers, ports))| {
            let action = match action {
                1 if cluster => Action::Deny,
                2 if cluster => Action::Pass,
                _ => Action::Accept,
            };
            Rule { index, action, peers, ports }
        });
        Some(rules.collect())
    })
}

fn policy() -> impl Strategy<Value = Change> {
    let kind = prop::sample::select(vec![PolicyKind::NetworkPolicy, PolicyKind::ClusterNetworkPolicy]);
    kind.prop_flat_map(|kind| {
        (rules(kind), rules(kind), pod_selector(), 0u8..3, 0usize..2, 0u16..2, any::<bool>(), 0u8..6)
            .prop_map(move |(ingress, egress, subject, name, namespace, priority, admin, gone)| {
                let cluster = kind == PolicyKind::ClusterNetworkPolicy;
                let namespace = if cluster { String::new() } else { NAMESPACES[namespace].to_owned() };
                let key = PolicyKey { kind, namespace: namespace.clone(), name: format!("p{name}") };
                let policy = Policy {
                    uid: key.to_string(),
                    key: key.clone(),
                    tier: match (cluster, admin) {
                        (false, _) => Tier::NetworkPolicy,
                        (true, true) => Tier::Admin,
                        (true, false) => Tier::Baseline,
                    },
                    priority: if cluster { priority } else { 0 },
                    subject: match cluster {
                        true => subject,
                        false => PodSelector { namespaces: Namespaces::Own(namespace), ..subject },
                    },
                    ingress,
                    egress,
                };
                Change::Policy(key, (gone > 0).then_some(policy))
            })
    })
}

fn workload() -> impl Strategy<Value = Change> {
    let ports = prop::collection::btree_set((0usize..2, protocol(), 80u16..83), 0..3);
    let addresses = (0u8..16, prop::option::of(0u8..3));
    (0usize..2, 0usize..2, 0u8..3, labels(), ports, addresses, 0u8..8).prop_map(
        |(cluster, namespace, name, labels, ports, (v4, v6), life)| {
            let local = cluster == 0 && name < 2;
            let cluster: ClusterName = CLUSTERS[cluster].parse().unwrap();
            let namespace = NAMESPACES[namespace].to_owned();
            let id = WorkloadId::Pod(cluster, PodName { namespace, name: format!("pod{name}") });
            let presence = match life {
                1 => Presence::Ended,
                2 => Presence::HostNetwork,
                _ => Presence::Living,
            };
            let addresses = std::iter::once(address(&format!("{PODS_V4}{v4}")))
                .chain(v6.map(|last| address(&format!("fd00::{last}"))))
                .collect();
            let ports = ports.into_iter().map(|(name, protocol, port)| NamedPort {
                name: PORT_NAMES[name].to_owned(),
                protocol,
                port,
            });
            let workload = Workload { labels, addresses, ports: ports.collect(), presence, local };
            Change::Workload(id, (life > 0).then_some(workload))
        },
    )
}

fn change() -> impl Strategy<Value = Change> {
    let namespace = (0usize..2, 0usize..2, prop::option::of(labels())).prop_map(|(cluster, name, labels)| {
        let cluster = CLUSTERS[cluster].parse().unwrap();
        Change::Namespace(NamespaceId { cluster, name: NAMESPACES[name].to_owned() }, labels)
    });
    let nodes = (0usize..2, labels(), 1u8..4).prop_map(|(index, labels, last)| {
        let addresses = BTreeSet::from([address(&format!("192.0.2.{last}"))]);
        Change::Node(node(index), Some(NodeFacts { labels, addresses }))
    });
    let clusters = any::<bool>().prop_map(|known| {
        Change::Clusters(if known { vec!["10.0.0.0/28".parse().unwrap()] } else { Vec::new() })
    });
    prop_oneof![6 => workload(), 5 => policy(), 1 => namespace, 1 => nodes, 1 => clusters]
}

/// Every peer that is worth asking for.
fn peers() -> Vec<IpAddr> {
    let pods = (0..17).map(|last| address(&format!("{PODS_V4}{last}")));
    let nodes = (1..4).map(|last| address(&format!("192.0.2.{last}")));
    let v6 = (0..5).map(|last| address(&format!("fd00::{last}")));
    pods.chain(nodes).chain(v6).chain([address("203.0.113.9")]).collect()
}

fn traffic() -> Vec<Traffic> {
    let ports = [79, 80, 82, 85, 65535];
    let of = |protocol| ports.map(|port| Traffic::To(protocol, port));
    PortProtocol::ALL.into_iter().flat_map(of).chain([Traffic::Portless]).collect()
}

fn reason(compiler: &Compiler, number: RuleNumber) -> Reason {
    match number {
        RuleNumber::DEFAULT => Reason::Default,
        RuleNumber::HOST => Reason::Host,
        number if Direction::BOTH.map(RuleNumber::unknown).contains(&number) => Reason::Unknown,
        number => Reason::Rule(compiler.book().rules[&number].clone()),
    }
}

/// Verdicts, and the rules of policies behind them: which of the other reasons it was is nothing that a flow keeps.
fn told(verdicts: &[(Verdict, Reason)]) -> Vec<(Verdict, Option<&Reason>)> {
    let rule = |reason: &'_ Reason| matches!(reason, Reason::Rule(_));
    verdicts.iter().map(|(verdict, reason)| (*verdict, Some(reason).filter(|reason| rule(reason)))).collect()
}

type Verdicts = BTreeMap<(WorkloadId, Direction), BTreeMap<IpAddr, Vec<(Verdict, Reason)>>>;

/// What the tables say of everything.
fn verdicts(compiler: &Compiler) -> Verdicts {
    let mut verdicts = Verdicts::new();
    for (id, direction) in compiler.endpoints().flat_map(|(id, _)| Direction::BOTH.map(|d| (id, d))) {
        let of = |peer| {
            let decide = |traffic| {
                let decision = compiler.decide(id, direction, peer, traffic).unwrap();
                (decision.verdict, reason(compiler, decision.rule))
            };
            (peer, traffic().into_iter().map(decide).collect())
        };
        verdicts.insert((id.clone(), direction), peers().into_iter().map(of).collect());
    }
    verdicts
}

/// What the slow evaluator says of it.
fn slow_verdicts(world: &World) -> Verdicts {
    let mut verdicts = Verdicts::new();
    for (id, direction) in world.workloads.keys().flat_map(|id| Direction::BOTH.map(|d| (id, d))) {
        let of = |peer| {
            let judge = |traffic| slow::judge(world, id, direction, peer, traffic);
            Some((peer, traffic().into_iter().map(judge).collect::<Option<Vec<_>>>()?))
        };
        if let Some(of) = peers().into_iter().map(of).collect() {
            verdicts.insert((id.clone(), direction), of);
        }
    }
    verdicts
}

fn tables_of(moved: &Moved) -> BTreeSet<(WorkloadId, Direction)> {
    moved.tables.iter().map(|(id, direction)| (WorkloadId::clone(id), *direction)).collect()
}

fn epochs(compiler: &Compiler) -> BTreeMap<(WorkloadId, Direction), u32> {
    let of = |(id, tables): (&WorkloadId, &Tables)| {
        Direction::BOTH.map(|direction| ((id.clone(), direction), tables.of(direction).epoch))
    };
    compiler.endpoints().flat_map(of).collect()
}

/// All that is known, told at once.
fn told_at_once(world: &World) -> Compiler {
    let mut compiler = Compiler::new(world.node.clone(), 0);
    let world = world.clone();
    let workloads = world.workloads.into_iter().map(|(id, value)| Change::Workload(id, Some(value)));
    let namespaces = world.namespaces.into_iter().map(|(id, value)| Change::Namespace(id, Some(value)));
    let nodes = world.nodes.into_iter().map(|(id, value)| Change::Node(id, Some(value)));
    let policies = world.policies.into_iter().map(|(key, value)| Change::Policy(key, Some(value)));
    let clusters = [Change::Clusters(world.clusters)];
    compiler.apply(workloads.chain(namespaces).chain(nodes).chain(policies).chain(clusters));
    compiler
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn tables_say_what_the_slow_evaluator_says_after_every_change(
        batches in prop::collection::vec(prop::collection::vec(change(), 1..8), 1..8),
    ) {
        let mut compiler = Compiler::new(node(0), 0);
        let mut before = (Verdicts::new(), epochs(&compiler), BTreeMap::new());
        for batch in batches {
            let moved = compiler.apply(batch);
            let moved_tables = tables_of(&moved);
            let now = verdicts(&compiler);
            prop_assert_eq!(&now, &slow_verdicts(compiler.world()));
            let fresh = told_at_once(compiler.world());
            prop_assert_eq!(&now, &verdicts(&fresh));
            prop_assert_eq!(compiler.book().stages.len(), fresh.book().stages.len(), "nothing is left over");
            prop_assert_eq!(compiler.book().rules.len(), fresh.book().rules.len(), "nothing is left over");
            let identities = compiler.book().peers.clone();
            let now_epochs = epochs(&compiler);
            for (table, epoch) in &now_epochs {
                let Some(last) = before.1.get(table) else { continue };
                prop_assert_eq!(last != epoch, moved_tables.contains(table), "what has moved is told");
                if last == epoch {
                    // Whoever is known before and after is judged as before.
                    for peer in peers() {
                        let known = |peers: &BTreeMap<IpAddr, Identity>| {
                            peers.get(&peer).is_some_and(|identity| *identity != Identity::UNKNOWN)
                        };
                        let (then, now) = (&before.0[table][&peer], &now[table][&peer]);
                        if known(&before.2) && known(&identities.addresses) {
                            prop_assert_eq!(told(then), told(now), "{:?} {}", table, peer);
                        }
                    }
                }
            }
            before = (now, now_epochs, identities.addresses);
        }
    }
}

/// Two namespaces with a server and a client each; in each the server takes `app=client` of its own namespace, and nothing
/// selects the clients.
fn two_namespaces() -> Compiler {
    let mut compiler = Compiler::new(node(0), 0);
    let mut changes = vec![Change::Clusters(vec!["10.0.0.0/16".parse().unwrap()])];
    for (place, namespace) in NAMESPACES.into_iter().enumerate() {
        changes.push(pod(namespace, "server", "server", 10 * place as u8 + 1));
        changes.push(pod(namespace, "client", "client", 10 * place as u8 + 2));
        changes.push(takes(namespace, "client", Some(80)));
    }
    compiler.apply(changes);
    compiler
}

fn pod_id(namespace: &str, name: &str) -> WorkloadId {
    let pod = PodName { namespace: namespace.to_owned(), name: name.to_owned() };
    WorkloadId::Pod(CLUSTERS[0].parse().unwrap(), pod)
}

fn pod(namespace: &str, name: &str, app: &str, last: u8) -> Change {
    let workload = Workload {
        labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
        addresses: [address(&format!("{PODS_V4}{last}"))].into(),
        ports: BTreeSet::new(),
        presence: Presence::Living,
        local: true,
    };
    Change::Workload(pod_id(namespace, name), Some(workload))
}

fn app(value: &str) -> LabelSelector {
    LabelSelector::new([Requirement::In("app".to_owned(), [value.to_owned()].into())])
}

/// The servers of a namespace take one kind of client on one port, or on all.
fn takes(namespace: &str, client: &str, port: Option<u16>) -> Change {
    let kind = PolicyKind::NetworkPolicy;
    let key = PolicyKey { kind, namespace: namespace.to_owned(), name: "takes".to_owned() };
    let of = |value| PodSelector { namespaces: Namespaces::Own(namespace.to_owned()), pods: app(value) };
    let rule = Rule {
        index: 0,
        action: Action::Accept,
        peers: vec![Peer::Pods(of(client))],
        ports: port.map(|port| vec![PortMatch::Range(PortProtocol::Tcp, port..=port)]),
    };
    let policy = Policy {
        uid: key.to_string(),
        key: key.clone(),
        tier: Tier::NetworkPolicy,
        priority: 0,
        subject: of("server"),
        ingress: Some(vec![rule]),
        egress: None,
    };
    Change::Policy(key, Some(policy))
}

#[test]
fn a_change_moves_the_tables_that_depend_on_it_and_no_others() {
    let server = |namespace: &str| (pod_id(namespace, "server"), Direction::Ingress);
    let [shop, bank] = NAMESPACES;
    let labels = |stage: &str| Some(BTreeMap::from([("stage".to_owned(), stage.to_owned())]));
    let namespace = NamespaceId { cluster: CLUSTERS[0].parse().unwrap(), name: shop.to_owned() };
    let other = |last: u8| pod(bank, "other", "other", last);
    for (what, change, tables) in [
        ("a client is one no more", pod(shop, "client", "other", 2), vec![server(shop)]),
        ("a client has gone", Change::Workload(pod_id(shop, "client"), None), vec![server(shop)]),
        ("a policy has another port", takes(bank, "client", Some(81)), vec![server(bank)]),
        ("a policy has other clients", takes(bank, "other", Some(80)), vec![server(bank)]),
        ("a policy is what it was", takes(bank, "client", Some(80)), vec![]),
        (
            "a namespace's label is one that nobody asks for",
            Change::Namespace(namespace, labels("x")),
            vec![],
        ),
        (
            "somebody comes whom no rule speaks of",
            other(30),
            Direction::BOTH.map(|d| (pod_id(bank, "other"), d)).to_vec(),
        ),
        (
            "policies go",
            Change::Policy(
                PolicyKey {
                    kind: PolicyKind::NetworkPolicy,
                    namespace: shop.to_owned(),
                    name: "takes".to_owned(),
                },
                None,
            ),
            vec![server(shop)],
        ),
    ] {
        let mut compiler = two_namespaces();
        let before = epochs(&compiler);
        let moved = compiler.apply([change]);
        assert_eq!(tables_of(&moved), tables.iter().cloned().collect(), "{what}");
        assert_eq!(moved.tables.len(), tables.len(), "{what}: each once");
        for (table, epoch) in epochs(&compiler) {
            let last = before.get(&table).copied().unwrap_or_default();
            assert_eq!(
                epoch != last,
                tables.contains(&table) && before.contains_key(&table),
                "{what}: {table:?}"
            );
        }
    }
}

/// Two that stay who they are have each other's address from one moment to the next: a flow to the address is another's now.
#[test]
fn addresses_that_change_hands_move_the_tables_that_tell_their_owners_apart() {
    let mut compiler = two_namespaces();
    let moved = compiler.apply([pod("bank", "client", "client", 2), pod("shop", "client", "client", 12)]);
    let servers = NAMESPACES.map(|namespace| (pod_id(namespace, "server"), Direction::Ingress));
    assert_eq!(tables_of(&moved), BTreeSet::from(servers));
}

#[test]
fn endpoints_to_which_the_same_applies_share_a_stage() {
    let mut compiler = two_namespaces();
    assert_eq!(compiler.book().stages.len(), 2);
    let many = (0..50).map(|index| pod("shop", &format!("server{index}"), "server", 100 + index));
    let moved = compiler.apply(many);
    assert_eq!(
        (compiler.book().stages.len(), moved.stages.len()),
        (2, 0),
        "fifty more of them change no stage"
    );
    assert_eq!(moved.tables.len(), 100);
}
