//! The world compiled into tables, change by change: a change touches the services that it is about, and no others.

mod draft;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use causeway_model::service::{Backends, BackendsId, Frontend, Services};
use causeway_model::{Delta, NodeId};

use crate::objects::ServiceName;
use crate::world::{Change, World, service_of};
use draft::{Draft, Set, draft};

/// What a batch of changes has moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// The frontends that are new, gone or not what they were.
    pub frontends: BTreeSet<Frontend>,
    /// The backends that are new, gone or not what they were.
    pub backends: BTreeSet<BackendsId>,
    /// The addresses that are a service's now, or no more.
    pub addresses: BTreeSet<IpAddr>,
    /// The prefixes that addresses come from are others.
    pub prefixes: bool,
}

impl Moved {
    /// What has moved later, too.
    pub fn extend(&mut self, later: Self) {
        self.frontends.extend(later.frontends);
        self.backends.extend(later.backends);
        self.addresses.extend(later.addresses);
        self.prefixes |= later.prefixes;
    }

    /// What a data path is to be told: whom a frontend refers to is there before it and gone after it.
    pub fn deltas(&self, services: &Services) -> Vec<Delta> {
        let prefixes = self.prefixes.then(|| Delta::ServicePrefixes(services.prefixes.clone()));
        let addresses = self.addresses.iter().map(|address| services.address(*address));
        let (there, gone): (Vec<BackendsId>, Vec<_>) =
            self.backends.iter().partition(|id| services.backends.contains_key(id));
        let frontends = self.frontends.iter().map(|frontend| services.service(*frontend));
        let backends = |ids: Vec<BackendsId>| ids.into_iter().map(|id| services.backends_of(id));
        let before = prefixes.into_iter().chain(addresses).chain(backends(there));
        before.chain(frontends).chain(backends(gone)).collect()
    }
}

/// What a load balancer is told of a service's backends on this node: by family, as far as the service is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// The port at which it asks.
    pub port: u16,
    /// How many ready ones are here, at IPv4 addresses.
    pub v4: Option<usize>,
    /// How many ready ones are here, at IPv6 addresses.
    pub v6: Option<usize>,
}

/// A frontend that several services want: the first has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contest {
    /// What they want.
    pub frontend: Frontend,
    /// Who has it.
    pub winner: ServiceName,
    /// Who has not.
    pub losers: Vec<ServiceName>,
}

/// Who wants a frontend. A ClusterIP is its service's, whoever else names that address; then names decide.
type Claim = (Rank, ServiceName);

/// What a frontend is to the service that wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    ClusterIp,
    Other,
}

/// Compiles what one node knows of services.
#[derive(Debug)]
pub struct Compiler {
    world: World,
    drafts: BTreeMap<ServiceName, Numbered>,
    claims: BTreeMap<Frontend, BTreeSet<Claim>>,
    /// The frontends that more than one wants.
    contested: BTreeSet<Frontend>,
    /// How many services have an address for their ClusterIP.
    owners: BTreeMap<IpAddr, usize>,
    services: Services,
    next: u32,
}

/// A service's part of the tables, and the numbers of its backends.
#[derive(Debug, Default)]
struct Numbered {
    draft: Draft,
    ids: BTreeMap<Set, BackendsId>,
}

impl Compiler {
    /// The compiler of a node that knows nothing yet.
    pub fn new(node: NodeId) -> Self {
        Self {
            world: World::new(node),
            drafts: BTreeMap::new(),
            claims: BTreeMap::new(),
            contested: BTreeSet::new(),
            owners: BTreeMap::new(),
            services: Services::default(),
            next: 0,
        }
    }

    /// What is known.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The tables.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// What load balancers are told, of the services whose nodes they ask.
    pub fn health(&self) -> impl Iterator<Item = (&ServiceName, Health)> {
        self.drafts.iter().filter_map(|(name, numbered)| Some((name, numbered.draft.health?)))
    }

    /// What load balancers are told of a service.
    pub fn health_of(&self, service: &ServiceName) -> Option<Health> {
        self.drafts.get(service)?.draft.health
    }

    /// The frontends that a service wants. It has them unless another has one first.
    pub fn frontends(&self, service: &ServiceName) -> impl Iterator<Item = Frontend> {
        self.drafts.get(service).into_iter().flat_map(|numbered| numbered.draft.frontends.keys().copied())
    }

    /// The frontends that several services want.
    pub fn contests(&self) -> impl Iterator<Item = Contest> {
        self.contested.iter().filter_map(|frontend| {
            let mut claims = self.claims.get(frontend)?.iter().map(|(_, name)| name.clone());
            Some(Contest { frontend: *frontend, winner: claims.next()?, losers: claims.collect() })
        })
    }

    /// Takes up changes, all at once: nothing in between is ever compiled.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Moved {
        let mut moved = Moved::default();
        let mut touched = BTreeSet::new();
        changes.into_iter().for_each(|change| self.take(change, &mut touched, &mut moved));
        touched.into_iter().for_each(|name| self.settle(&name, &mut moved));
        moved
    }

    /// Notes a change and which services it touches.
    fn take(&mut self, change: Change, touched: &mut BTreeSet<ServiceName>, moved: &mut Moved) {
        match &change {
            Change::Service(name, new) => {
                if self.world.services.get(name) == new.as_ref() {
                    return;
                }
                touched.insert(name.clone());
            }
            Change::Slice(name, new) => {
                let old = self.world.slices.get(name);
                if old == new.as_ref() {
                    return;
                }
                touched
                    .extend([old, new.as_ref()].into_iter().flatten().map(|slice| service_of(name, slice)));
            }
            Change::Node(name, new) => {
                if self.world.nodes.get(name) == new.as_ref() {
                    return;
                }
                // What services are here depends on this node's place and addresses alone.
                if *name == self.world.node.name {
                    touched.extend(self.world.services.keys().cloned());
                }
            }
            Change::Prefixes(prefixes) => {
                if self.world.prefixes == *prefixes {
                    return;
                }
                self.services.prefixes.clone_from(prefixes);
                moved.prefixes = true;
            }
        }
        self.world.apply(change);
    }

    /// Works out a service's part of the tables anew, and puts it in the place of the old one.
    fn settle(&mut self, name: &ServiceName, moved: &mut Moved) {
        let draft = self.world.services.get(name).map(|service| draft(&self.world, name, service));
        let before = self.drafts.remove(name).unwrap_or_default();
        let now =
            Numbered { ids: self.number(draft.as_ref(), &before.ids), draft: draft.unwrap_or_default() };
        for (frontend, rank) in before.draft.ranks() {
            if now.draft.frontends.get(&frontend).map(|wanted| wanted.rank) != Some(rank) {
                self.claim(frontend, (rank, name.clone()), false);
            }
        }
        now.draft.ranks().for_each(|(frontend, rank)| self.claim(frontend, (rank, name.clone()), true));
        before.draft.cluster_ips.iter().for_each(|address| self.own(*address, false, moved));
        now.draft.cluster_ips.iter().for_each(|address| self.own(*address, true, moved));
        for (set, id) in &now.ids {
            self.put_backends(*id, now.draft.backends.get(set), moved);
        }
        for (set, id) in &before.ids {
            if !now.ids.contains_key(set) {
                self.put_backends(*id, None, moved);
            }
        }
        let frontends: BTreeSet<_> =
            before.draft.frontends.keys().chain(now.draft.frontends.keys()).copied().collect();
        if self.world.services.contains_key(name) {
            self.drafts.insert(name.clone(), now);
        }
        frontends.into_iter().for_each(|frontend| self.decide(frontend, moved));
    }

    /// Gives the sets of backends of a draft their numbers: those that they had, or new ones.
    fn number(
        &mut self,
        draft: Option<&Draft>,
        before: &BTreeMap<Set, BackendsId>,
    ) -> BTreeMap<Set, BackendsId> {
        let sets = draft.into_iter().flat_map(|draft| draft.backends.keys());
        sets.map(|set| {
            let id = before.get(set).copied().unwrap_or_else(|| {
                self.next += 1;
                BackendsId(self.next)
            });
            (set.clone(), id)
        })
        .collect()
    }

    fn claim(&mut self, frontend: Frontend, claim: Claim, holds: bool) {
        let claims = self.claims.entry(frontend).or_default();
        match holds {
            true => claims.insert(claim),
            false => claims.remove(&claim),
        };
        match claims.len() {
            0 => drop(self.claims.remove(&frontend)),
            1 => drop(self.contested.remove(&frontend)),
            _ => drop(self.contested.insert(frontend)),
        }
    }

    fn own(&mut self, address: IpAddr, holds: bool, moved: &mut Moved) {
        let owners = self.owners.entry(address).or_default();
        *owners = if holds { *owners + 1 } else { owners.saturating_sub(1) };
        let owned = *owners > 0;
        if !owned {
            self.owners.remove(&address);
        }
        let changed = match owned {
            true => self.services.addresses.insert(address),
            false => self.services.addresses.remove(&address),
        };
        // What a service gives up and takes again at once has not moved.
        if changed && !moved.addresses.remove(&address) {
            moved.addresses.insert(address);
        }
    }

    fn put_backends(&mut self, id: BackendsId, backends: Option<&Backends>, moved: &mut Moved) {
        let known = &mut self.services.backends;
        if known.get(&id).map(|known| &**known) == backends {
            return;
        }
        match backends {
            Some(backends) => drop(known.insert(id, Arc::new(backends.clone()))),
            None => drop(known.remove(&id)),
        }
        moved.backends.insert(id);
    }

    /// Gives a frontend to the first who wants it.
    fn decide(&mut self, frontend: Frontend, moved: &mut Moved) {
        let winner = self.claims.get(&frontend).and_then(BTreeSet::first);
        let service = winner.and_then(|(_, name)| {
            let numbered = self.drafts.get(name)?;
            Some(numbered.draft.frontends.get(&frontend)?.service(
                &self.world.node.cluster,
                name,
                &numbered.ids,
            ))
        });
        if self.services.frontends.get(&frontend) == service.as_ref() {
            return;
        }
        match service {
            Some(service) => drop(self.services.frontends.insert(frontend, service)),
            None => drop(self.services.frontends.remove(&frontend)),
        }
        moved.frontends.insert(frontend);
    }
}
