//! A snapshot and the changes that lead to it say the same.
#![expect(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::collections::BTreeMap;

use causeway_model::{
    Cluster, Endpoint, EndpointKey, Identity, MacAddr, Node, NodeId, Overlay, Path, PortKind, Settings,
    Snapshot, TunnelOwner,
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
    ) -> Snapshot {
        let mut snapshot = Snapshot::new(Settings {
            overlay: Overlay { vni: 51717.try_into().unwrap(), port: 4789 },
            node: node(1, 1),
            tunnel_address: [192, 0, 2, 1].into(),
            tunnel: if fast { TunnelOwner::FastPath } else { TunnelOwner::Kernel },
            uplink: causeway_model::UplinkKind::HostRouted,
            pod_mtu: mtu,
            connections: Default::default(),
        });
        snapshot.peers = peers.into_iter().map(|(n, v)| node(n, v)).map(|n| (n.id.clone(), n)).collect();
        snapshot.endpoints = endpoints.into_iter().map(|(n, v)| endpoint(n, v)).map(|e| (e.key.clone(), e)).collect();
        snapshot.clusters = clusters.into_iter().map(|(n, v)| cluster(n, v)).map(|c| (c.name.clone(), c)).collect();
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
