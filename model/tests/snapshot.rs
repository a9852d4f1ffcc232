//! A snapshot and the changes that lead to it say the same.
#![expect(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::collections::BTreeMap;
use std::sync::Arc;

use causeway_model::policy::{
    Action, Direction, Row, RowVerdicts, RuleId, RuleIndex, RuleNumber, Rulebook, Stage, StageId, StageRule,
    Table, Tables,
};
use causeway_model::service::{
    Answer, At, Backend, Backends, BackendsId, Frontend, Service, ServicePort, Services,
};
use causeway_model::{
    Cluster, Endpoint, EndpointKey, Family, Identity, MacAddr, NameServer, Node, NodeId, Overlay, Path,
    PortKind, PortProtocol, Settings, Snapshot, TunnelOwner,
};
use proptest::prelude::*;

fn node(number: u8, variant: u8) -> Node {
    let id = NodeId { cluster: "lyon".parse().unwrap(), name: format!("n{number}").parse().unwrap() };
    Node {
        underlay: vec![[192, 0, 2, variant].into()],
        vtep_mac: Node::derived_vtep_mac(&id),
        pod_prefixes: vec![format!("10.70.{number}.0/24").parse().unwrap()],
        id,
    }
}

fn endpoint(number: u8, variant: u8) -> Endpoint {
    Endpoint {
        key: EndpointKey {
            network: "pods".into(),
            container: format!("c{number}"),
            interface: "eth0".into(),
        },
        pod: None,
        addresses: vec![[10, 70, 1, number].into()],
        mac: MacAddr([2, 0, 0, 0, 0, number]),
        mtu: 1450,
        labels: BTreeMap::from([("app".into(), format!("v{variant}"))]),
        identity: Identity(Identity::FIRST_INTERNED + u32::from(variant)),
        path: if variant.is_multiple_of(2) { Path::Fast } else { Path::Kernel },
        routes: None,
        path_reason: "drawn".into(),
        port: PortKind::Veth,
        port_mappings: Vec::new(),
        bandwidth: Default::default(),
        deny_new: false,
        policy: Tables {
            ingress: Table { stages: vec![StageId(variant.into())], epoch: number.into() },
            egress: Table::default(),
        },
    }
}

fn rulebook(stages: BTreeMap<u32, u32>, addresses: BTreeMap<u8, u32>) -> Rulebook {
    let stage = |rule: u32| Stage {
        rules: vec![StageRule { action: Action::Accept, number: RuleNumber(rule) }],
        otherwise: Some(RuleNumber(rule + 1)),
        identities: vec![(Identity(256 + rule), Row(1))],
        v4: Vec::new(),
        v6: Vec::new(),
        ports: Default::default(),
        rows: vec![RowVerdicts { start: 0, otherwise: 0 }],
        verdicts: Vec::new(),
    };
    let rule = |(number, of): (&u32, &u32)| {
        let index = RuleIndex::Rule(*of as u16);
        let id = RuleId { policy: "f62eef76".into(), direction: Direction::Ingress, index };
        (RuleNumber(*number), id)
    };
    let mut book = Rulebook { rules: stages.iter().map(rule).collect(), ..Rulebook::default() };
    book.stages = stages.into_iter().map(|(id, rule)| (StageId(id), Arc::new(stage(rule)))).collect();
    let identity = |(last, of)| ([10, 70, 1, last].into(), Identity(256 + of));
    book.peers.clusters = addresses
        .first_key_value()
        .map(|(n, _)| [10, n % 2, 0, 0].into())
        .map(|a: std::net::IpAddr| a.into())
        .into_iter()
        .collect();
    book.peers.addresses = addresses.into_iter().map(identity).collect();
    book
}

fn services(backends: BTreeMap<u32, u16>, frontends: &BTreeMap<u16, u32>) -> Services {
    let address = |port: u16| [10, 96, 0, port as u8].into();
    let at =
        |port: u16| if port.is_multiple_of(2) { At::Address(address(port)) } else { At::Nodes(Family::V4) };
    let frontend = |(port, of): (&u16, &u32)| {
        let id = ServicePort {
            cluster: "lyon".parse().unwrap(),
            namespace: "shop".into(),
            name: format!("s{port}"),
            port: "web".into(),
        };
        let inside = Answer::Backends(BackendsId(*of));
        let service = Service { id, inside, outside: Answer::Refuse, sources: None, affinity: Some(*of) };
        (Frontend { at: at(*port), protocol: PortProtocol::Tcp, port: *port }, service)
    };
    let answers = |(id, port)| {
        let chosen = vec![Backend { address: [10, 70, 1, 3].into(), port }];
        (BackendsId(id), Arc::new(Backends::alike(chosen, Vec::new())))
    };
    Services {
        addresses: frontends.keys().map(|port| address(*port)).collect(),
        prefixes: frontends.keys().next().map(|_| "10.96.0.0/16".parse().unwrap()).into_iter().collect(),
        frontends: frontends.iter().map(frontend).collect(),
        backends: backends.into_iter().map(answers).collect(),
    }
}

fn cluster(number: u8, variant: u8) -> Cluster {
    Cluster {
        name: format!("c{number}").parse().unwrap(),
        id: u32::from(number) + 1,
        region: variant.is_multiple_of(2).then(|| "west".into()),
        pod_prefixes: vec![format!("10.{number}.0.0/16").parse().unwrap()],
        service_prefixes: vec![],
    }
}

prop_compose! {
    fn snapshot()(
        mtu in 1280_u16..1290,
        fast in any::<bool>(),
        peers in prop::collection::btree_map(2_u8..8, 0_u8..3, 0..6),
        endpoints in prop::collection::btree_map(3_u8..12, 0_u8..3, 0..8),
        clusters in prop::collection::btree_map(0_u8..4, 0_u8..2, 0..4),
        stages in prop::collection::btree_map(0_u32..6, 0_u32..3, 0..5),
        addresses in prop::collection::btree_map(3_u8..9, 0_u32..3, 0..5),
        backends in prop::collection::btree_map(0_u32..4, 1_u16..3, 0..4),
        frontends in prop::collection::btree_map(80_u16..90, 0_u32..4, 0..5),
    ) -> Snapshot {
        let mut snapshot = Snapshot::new(Settings {
            overlay: Overlay { vni: 51717.try_into().unwrap(), port: 4789 },
            node: node(1, 1),
            tunnel_address: [192, 0, 2, 1].into(),
            tunnel: if fast { TunnelOwner::FastPath } else { TunnelOwner::Kernel },
            uplink: causeway_model::UplinkKind::HostRouted,
            pod_mtu: mtu,
            connections: Default::default(),
            host_services: Default::default(),
            masquerade: None,
            names: NameServer::default(),
        });
        snapshot.peers = peers.into_iter().map(|(n, v)| node(n, v)).map(|n| (n.id.clone(), n)).collect();
        snapshot.endpoints = endpoints.into_iter().map(|(n, v)| endpoint(n, v)).map(|e| (e.key.clone(), e)).collect();
        snapshot.clusters = clusters.into_iter().map(|(n, v)| cluster(n, v)).map(|c| (c.name.clone(), c)).collect();
        snapshot.policy = Arc::new(rulebook(stages, addresses));
        snapshot.services = Arc::new(services(backends, &frontends));
        snapshot
    }
}

proptest! {
    #[test]
    fn deltas_lead_from_any_state_to_any_other(old in snapshot(), new in snapshot()) {
        let mut state = old.clone();
        for delta in old.deltas_to(&new) {
            state.apply(delta);
        }
        prop_assert_eq!(&state, &new);
        prop_assert!(new.deltas_to(&state).is_empty(), "nothing is sent for what has not changed");
    }

    #[test]
    fn changes_are_taken_back_by_their_inverses_in_reverse(old in snapshot(), new in snapshot()) {
        let (mut state, mut inverses) = (old.clone(), Vec::new());
        for delta in old.deltas_to(&new) {
            inverses.push(state.inverse(&delta));
            state.apply(delta);
        }
        inverses.into_iter().rev().for_each(|inverse| state.apply(inverse));
        prop_assert_eq!(state, old);
    }

    #[test]
    fn a_delta_taken_twice_is_taken_once(old in snapshot(), new in snapshot()) {
        let mut state = old.clone();
        for delta in old.deltas_to(&new) {
            state.apply(delta.clone());
            state.apply(delta);
        }
        prop_assert_eq!(state, new);
    }

    #[test]
    fn a_snapshot_crosses_a_socket_whole(snapshot in snapshot()) {
        let json = serde_json::to_vec(&snapshot).unwrap();
        prop_assert_eq!(serde_json::from_slice::<Snapshot>(&json).unwrap(), snapshot);
    }
}
