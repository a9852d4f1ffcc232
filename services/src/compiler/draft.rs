//! One service's part of the tables, before its backends have numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use causeway_model::service::{Answer, At, Backend, Backends, BackendsId, Frontend, Service, ServicePort};
use causeway_model::{ClusterName, Family, PortProtocol};
use ipnetwork::IpNetwork;

use super::{Health, Rank};
use crate::endpoints::{Known, State, choose, known};
use crate::objects::{self, Port, ServiceName};
use crate::world::World;

/// Backends that frontends of a service share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Set {
    port: String,
    protocol: PortProtocol,
    family: Family,
    /// Those of this node only.
    local: bool,
}

/// What a client gets.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reply {
    Backends(Set),
    Refuse,
    Drop,
}

impl Reply {
    fn answer(&self, ids: &BTreeMap<Set, BackendsId>) -> Answer {
        match self {
            Self::Backends(set) => ids.get(set).map_or(Answer::Refuse, |id| Answer::Backends(*id)),
            Self::Refuse => Answer::Refuse,
            Self::Drop => Answer::Drop,
        }
    }
}

/// A frontend as a service wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) rank: Rank,
    port: String,
    inside: Reply,
    outside: Reply,
    sources: Option<Vec<IpNetwork>>,
    affinity: Option<u32>,
}

impl Wanted {
    /// The record, with the numbers of its backends.
    pub(super) fn service(
        &self,
        cluster: &ClusterName,
        name: &ServiceName,
        ids: &BTreeMap<Set, BackendsId>,
    ) -> Service {
        Service {
            id: ServicePort {
                cluster: cluster.clone(),
                namespace: name.namespace.clone(),
                name: name.name.clone(),
                port: self.port.clone(),
            },
            inside: self.inside.answer(ids),
            outside: self.outside.answer(ids),
            sources: self.sources.clone(),
            affinity: self.affinity,
        }
    }
}

/// A service's part of the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) frontends: BTreeMap<Frontend, Wanted>,
    pub(super) backends: BTreeMap<Set, Backends>,
    pub(super) cluster_ips: Vec<IpAddr>,
    pub(super) health: Option<Health>,
}

impl Draft {
    /// What each frontend is to the service.
    pub(super) fn ranks(&self) -> impl Iterator<Item = (Frontend, Rank)> {
        self.frontends.iter().map(|(frontend, wanted)| (*frontend, wanted.rank))
    }

    /// What a client gets of backends, of which there may be none here, or none at all.
    fn reply(&mut self, set: Set, chosen: &[(Backend, u32)], (any, serving): (bool, &[Backend])) -> Reply {
        if chosen.is_empty() {
            return if any { Reply::Drop } else { Reply::Refuse };
        }
        self.backends.entry(set.clone()).or_insert_with(|| {
            let is_chosen = |backend: &Backend| chosen.iter().any(|(one, _)| one == backend);
            let leaving = serving.iter().filter(|one| !is_chosen(one)).copied();
            Backends::weighted(chosen.iter().copied(), leaving)
        });
        Reply::Backends(set)
    }
}

/// Works out a service's part of the tables.
pub(super) fn draft(world: &World, name: &ServiceName, service: &objects::Service) -> Draft {
    let mut draft = Draft { cluster_ips: service.cluster_ips.clone(), ..Draft::default() };
    let mut here: BTreeMap<Family, BTreeSet<IpAddr>> = BTreeMap::new();
    for address in &service.cluster_ips {
        let family = Family::of(*address);
        let here = here.entry(family).or_default();
        for port in &service.ports {
            let known = known(world, name, port, family);
            let ready = known.iter().filter(|one| one.local && one.state == State::Ready);
            here.extend(ready.map(|one| one.backend.address));
            frontends(&mut draft, world, service, (*address, port), &known);
        }
    }
    let count = |family| here.get(&family).map(BTreeSet::len);
    draft.health =
        service.health_check.map(|port| Health { port, v4: count(Family::V4), v6: count(Family::V6) });
    draft
}

/// The frontends of one port and family.
fn frontends(
    draft: &mut Draft,
    world: &World,
    service: &objects::Service,
    (cluster_ip, port): (IpAddr, &Port),
    known: &[Known<'_>],
) {
    let family = Family::of(cluster_ip);
    let chosen = choose(world, known);
    let serving: Vec<_> = known.iter().filter(|one| one.endpoint.serving).map(|one| one.backend).collect();
    let any = (!chosen.cluster.is_empty(), serving.as_slice());
    let mut reply = |local: bool| {
        let set = Set { port: port.name.clone(), protocol: port.protocol, family, local };
        draft.reply(set, if local { &chosen.local } else { &chosen.cluster }, any)
    };
    let of_family = |addresses: &[IpAddr]| -> Vec<IpAddr> {
        addresses.iter().copied().filter(|address| Family::of(*address) == family).collect()
    };
    let ingress = of_family(&service.ingress);
    let external = of_family(&service.external_ips);
    let internal = reply(service.internal_local);
    let wanted = |rank, inside: &Reply, outside: &Reply, sources| Wanted {
        rank,
        port: port.name.clone(),
        inside: inside.clone(),
        outside: outside.clone(),
        sources,
        affinity: service.affinity,
    };
    let mut all = vec![(At::Address(cluster_ip), wanted(Rank::ClusterIp, &internal, &internal, None))];
    if port.node_port.is_some() || !ingress.is_empty() || !external.is_empty() {
        // Who is inside needs no load balancer to find the whole cluster's backends.
        let (inside, outside) = (reply(false), reply(service.external_local));
        let sources = service.sources.as_ref().and_then(|sources| sources.of(family));
        let sources = sources.map(|ranges| and_itself(world, ranges, &ingress));
        let at = |address: IpAddr| At::Address(address);
        all.extend(
            ingress
                .into_iter()
                .map(|address| (at(address), wanted(Rank::Other, &inside, &outside, sources.clone()))),
        );
        let open = wanted(Rank::Other, &inside, &outside, None);
        all.extend(external.into_iter().map(|address| (at(address), open.clone())));
        all.extend(port.node_port.map(|_| (At::Nodes(family), open)));
    }
    for (at, wanted) in all {
        let number = match at {
            At::Address(_) => Some(port.port),
            At::Nodes(_) => port.node_port,
        };
        let Some(number) = number else { continue };
        let frontend = Frontend { at, protocol: port.protocol, port: number };
        // An address that is two things to a service is the stricter of them, which comes first.
        draft.frontends.entry(frontend).or_insert(wanted);
    }
}

/// Where a load balancer's address is put on an interface of the node, the node comes from that address.
fn and_itself(world: &World, mut ranges: Vec<IpNetwork>, ingress: &[IpAddr]) -> Vec<IpNetwork> {
    let own = || world.own().into_iter().flat_map(|own| &own.addresses);
    if ranges.iter().any(|range| own().any(|address| range.contains(*address))) {
        ranges.extend(ingress.iter().map(|address| IpNetwork::from(*address)));
    }
    ranges
}
