//! Who stands behind a port of a service, and who of them gets this node's connections.

use std::collections::BTreeMap;

use causeway_model::Family;
use causeway_model::service::Backend;

use crate::objects::{Port, ServiceName, SliceEndpoint};
use crate::world::World;

/// What an endpoint is good for. The later is the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Nothing.
    Down,
    /// It answers and is not to be asked: those that are with it may stay.
    Serving,
    /// It answers and is about to end: for want of a better one it is asked.
    Leaving,
    /// It wants connections.
    Ready,
}

impl State {
    fn of(endpoint: &SliceEndpoint) -> Self {
        match (endpoint.ready, endpoint.serving, endpoint.terminating) {
            (true, ..) => Self::Ready,
            (false, true, true) => Self::Leaving,
            (false, true, false) => Self::Serving,
            (false, false, _) => Self::Down,
        }
    }
}

/// An endpoint behind a port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known<'a> {
    /// Where it answers.
    pub backend: Backend,
    /// What it is good for.
    pub state: State,
    /// It is on this node.
    pub local: bool,
    /// What its slice says of it.
    pub endpoint: &'a SliceEndpoint,
}

/// The endpoints behind a port of a service, over one family, each once: where slices speak of one twice, the better is
/// believed, and it is on this node if one of them says so.
pub fn known<'a>(world: &'a World, service: &ServiceName, port: &Port, family: Family) -> Vec<Known<'a>> {
    let mut known: BTreeMap<Backend, Known<'a>> = BTreeMap::new();
    let slices = world.slices_of.get(service).into_iter().flatten().filter_map(|name| world.slices.get(name));
    for slice in slices.filter(|slice| slice.family == family) {
        let ports = slice.ports.iter().filter(|one| one.name == port.name && one.protocol == port.protocol);
        for (port, endpoint) in ports.flat_map(|port| slice.endpoints.iter().map(move |e| (port.port, e))) {
            let backend = Backend { address: endpoint.address, port };
            let local = endpoint.node.as_deref() == Some(world.node.name.as_str());
            let new = Known { backend, state: State::of(endpoint), local, endpoint };
            let old = known.entry(backend).or_insert_with(|| new.clone());
            let local = old.local || new.local;
            if new.state > old.state {
                *old = new;
            }
            old.local = local;
        }
    }
    known.into_values().collect()
}

/// Backends, and the part of new connections that each gets.
pub(crate) type Shares = Vec<(Backend, u32)>;

/// Who of the endpoints gets connections that come to this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// Where all of the cluster's may.
    pub cluster: Shares,
    /// Where those of this node may.
    pub local: Shares,
}

/// Chooses: ready ones, else those that leave and still serve, in the cluster and on this node each for itself. Hints are for the
/// cluster's ready ones only.
pub(crate) fn choose(world: &World, known: &[Known<'_>]) -> Chosen {
    let ready: Vec<_> = known.iter().filter(|one| one.state == State::Ready).collect();
    let leaving: Vec<_> = known.iter().filter(|one| one.state == State::Leaving).collect();
    let hinted: Vec<_> = match Hint::of(world, &ready) {
        Some(hint) => ready.iter().filter(|one| hint.means(one)).copied().collect(),
        None => ready.clone(),
    };
    let share = |one: &&Known<'_>| (one.backend, one.endpoint.weight);
    let all = |of: &[&Known<'_>]| of.iter().map(share).collect::<Shares>();
    let local = |of: &[&Known<'_>]| of.iter().filter(|one| one.local).map(share).collect::<Shares>();
    let or = |first: Shares, second: Shares| if first.is_empty() { second } else { first };
    Chosen { cluster: or(all(&hinted), all(&leaving)), local: or(local(&ready), local(&leaving)) }
}

/// Whom a client's place makes us prefer.
enum Hint<'a> {
    Node(&'a str),
    Zone(&'a str),
}

impl<'a> Hint<'a> {
    /// Hints hold if every ready endpoint has one and some are for us; those of nodes before those of zones.
    fn of(world: &'a World, ready: &[&Known<'_>]) -> Option<Self> {
        let zone = world.own().and_then(|own| own.zone.as_deref());
        let hints = [Some(Self::Node(world.node.name.as_str())), zone.map(Self::Zone)];
        hints.into_iter().flatten().find(|hint| {
            ready.iter().all(|one| !hint.places(one).is_empty()) && ready.iter().any(|one| hint.means(one))
        })
    }

    fn places<'k>(&self, known: &'k Known<'_>) -> &'k std::collections::BTreeSet<String> {
        match self {
            Self::Node(_) => &known.endpoint.for_nodes,
            Self::Zone(_) => &known.endpoint.for_zones,
        }
    }

    fn means(&self, known: &Known<'_>) -> bool {
        let (Self::Node(place) | Self::Zone(place)) = self;
        self.places(known).contains(*place)
    }
}
