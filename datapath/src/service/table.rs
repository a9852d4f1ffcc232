//! Where clients knock and who answers, as a world holds it: parts that did not change are shared with the world before.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

use causeway_model::service::{Answer, At, Backend, BackendsId, Frontend, Service, Services as Told};
use causeway_model::{Delta, Family, Path, PortProtocol, Snapshot};
use causeway_wire::IpProtocol;
use ipnetwork::IpNetwork;

use super::choice::{Set, digest};
use crate::Slots;
use crate::entropy::mix;
use crate::table::Address;

/// Parts of a table: when something changes, one is made anew.
const PARTS: usize = 1024;

/// Marks services, so that what was decided under others can be told from what was decided under these.
static STAMPS: AtomicU32 = AtomicU32::new(1);

fn next_stamp() -> u32 {
    // Zero is the mark of no services.
    STAMPS.fetch_add(1, Relaxed).max(1)
}

/// An address, a transport and a port; without the last two an address that is a service's and nothing else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Spot {
    address: IpAddr,
    protocol: IpProtocol,
    port: u16,
}

impl Spot {
    fn of(frontend: &Frontend) -> Self {
        let address = match frontend.at {
            At::Address(address) => address,
            At::Nodes(family) => nodes(family),
        };
        Self { address, protocol: frontend.protocol.number(), port: frontend.port }
    }

    fn whole(address: IpAddr) -> Self {
        Self { address, protocol: IpProtocol(0), port: 0 }
    }

    fn digest(&self) -> u64 {
        mix(digest(self.address, self.port) ^ u64::from(self.protocol.0))
    }

    fn part(&self) -> usize {
        (self.digest() >> 54) as usize % PARTS
    }
}

/// What stands for every address of every node.
fn nodes(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// What becomes of pods that knock somewhere.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) frontend: Frontend,
    pub(crate) answer: Answer,
    sources: Option<Box<[IpNetwork]>>,
    /// How long a client keeps its backend, in nanoseconds.
    pub(crate) affinity: Option<u64>,
    /// What it is known by among others.
    pub(crate) digest: u64,
    /// Connections begun here, on all workers; lasts from one world to the next.
    begun: Arc<AtomicU64>,
}

impl Record {
    fn new(frontend: &Frontend, service: &Service, before: Option<&Self>) -> Self {
        Self {
            frontend: *frontend,
            answer: service.inside,
            sources: service.sources.as_ref().map(|sources| sources.as_slice().into()),
            affinity: service.affinity.map(|seconds| u64::from(seconds) * 1_000_000_000),
            digest: Spot::of(frontend).digest(),
            begun: before.map(|before| Arc::clone(&before.begun)).unwrap_or_default(),
        }
    }

    /// Whether it serves a client.
    pub(crate) fn serves(&self, client: IpAddr) -> bool {
        self.sources.as_ref().is_none_or(|sources| sources.iter().any(|prefix| prefix.contains(client)))
    }

    /// Counts a connection that begins.
    pub(crate) fn count(&self) {
        self.begun.fetch_add(1, Relaxed);
    }
}

/// Sorted by their keys: a few dozen are found in a few steps.
type Part<K, V> = Arc<Vec<(K, V)>>;

/// A table in parts.
#[derive(Clone, Debug)]
struct Parted<K, V>(Box<[Part<K, V>]>);

impl<K: Ord + Copy, V: Clone> Parted<K, V> {
    fn new(entries: impl Iterator<Item = (usize, K, V)>) -> Self {
        let mut parts = vec![Vec::new(); PARTS];
        for (part, key, value) in entries {
            parts[part].push((key, value));
        }
        let sorted = |mut part: Vec<(K, V)>| {
            part.sort_by_key(|(key, _)| *key);
            Arc::new(part)
        };
        Self(parts.into_iter().map(sorted).collect())
    }

    #[inline]
    fn get(&self, part: usize, key: K) -> Option<&V> {
        let part = self.0.get(part)?;
        let at = part.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        part.get(at).map(|(_, value)| value)
    }

    fn set(&mut self, part: usize, key: K, value: Option<V>) {
        let part = Arc::make_mut(&mut self.0[part]);
        match (part.binary_search_by_key(&key, |(key, _)| *key), value) {
            (Ok(at), Some(value)) => part[at].1 = value,
            (Ok(at), None) => drop(part.remove(at)),
            (Err(at), Some(value)) => part.insert(at, (key, value)),
            (Err(_), None) => {}
        }
    }
}

/// What of services a change has touched.
#[derive(Clone, Debug, Default)]
pub struct Touched {
    frontends: BTreeSet<Frontend>,
    backends: BTreeSet<BackendsId>,
    addresses: BTreeSet<IpAddr>,
    prefixes: bool,
    others: bool,
}

impl Touched {
    /// Something else than services, a port or a link.
    pub fn others() -> Self {
        Self { others: true, ..Self::default() }
    }

    /// Notes a change.
    pub fn note(&mut self, delta: &Delta) {
        match delta {
            Delta::Service(frontend, _) | Delta::ServiceGone(frontend) => {
                self.frontends.insert(*frontend);
            }
            Delta::Backends(id, _) | Delta::BackendsGone(id) => drop(self.backends.insert(*id)),
            Delta::ServiceAddress(address) | Delta::ServiceAddressGone(address) => {
                self.addresses.insert(*address);
            }
            Delta::ServicePrefixes(_) => self.prefixes = true,
            _ => self.others = true,
        }
    }

    /// Whether it has touched services and nothing else, and none of their addresses that lie outside of these prefixes.
    pub(crate) fn is_within(&self, prefixes: &[IpNetwork]) -> bool {
        let within = |address: &IpAddr| prefixes.iter().any(|prefix| prefix.contains(*address));
        let knocked = self.frontends.iter().filter_map(|frontend| match frontend.at {
            At::Address(address) => Some(address),
            At::Nodes(_) => None,
        });
        !self.others && !self.prefixes && knocked.chain(self.addresses.iter().copied()).all(|a| within(&a))
    }

    fn of_services(&self) -> bool {
        self.prefixes || !(self.frontends.is_empty() && self.backends.is_empty() && self.addresses.is_empty())
    }
}

/// A port of the node that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostPort {
    protocol: PortProtocol,
    port: NonZeroU16,
    /// At which address of the node; at all of its family where there is none.
    only_at: Option<IpAddr>,
    to: Backend,
}

impl HostPort {
    /// By what it is found.
    fn place(&self) -> (u16, u8, Family) {
        (self.port.get(), self.protocol.number().0, Family::of(self.to.address))
    }
}

/// A prefix that is asked for at every packet of a pod; one that there is not has nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Among<A> {
    mask: A,
    network: A,
}

impl<A: Address + PartialEq> Among<A> {
    #[inline(always)]
    pub(crate) fn has(&self, address: A) -> bool {
        address.and(self.mask) == self.network
    }
}

impl Among<u32> {
    fn v4(prefixes: &[IpNetwork]) -> Self {
        let first = prefixes.iter().find_map(|prefix| match prefix {
            IpNetwork::V4(prefix) => Some((u32::mask(prefix.prefix()), u32::from(prefix.network()))),
            IpNetwork::V6(_) => None,
        });
        let (mask, network) = first.unwrap_or((0, 1));
        Self { mask, network }
    }
}

impl Among<u128> {
    fn v6(prefixes: &[IpNetwork]) -> Self {
        let first = prefixes.iter().find_map(|prefix| match prefix {
            IpNetwork::V6(prefix) => Some((u128::mask(prefix.prefix()), u128::from(prefix.network()))),
            IpNetwork::V4(_) => None,
        });
        let (mask, network) = first.unwrap_or((0, 1));
        Self { mask, network }
    }
}

/// The services of a world.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    /// Differs whenever anything else does.
    pub(crate) stamp: u32,
    frontends: Parted<Spot, Option<Arc<Record>>>,
    sets: Parted<BackendsId, Arc<Set>>,
    prefixes: Box<[IpNetwork]>,
    /// The first prefix of each family in which nobody else is.
    pub(crate) among_v4: Among<u32>,
    pub(crate) among_v6: Among<u128>,
    host_ports: Arc<[HostPort]>,
}

fn part_of(id: BackendsId) -> usize {
    id.0 as usize % PARTS
}

impl Services {
    /// Whole, from a state.
    pub(crate) fn new(snapshot: &Snapshot, slots: &Slots) -> Self {
        let told = &snapshot.services;
        let frontends = told.frontends.iter().map(|(frontend, service)| {
            let spot = Spot::of(frontend);
            (spot.part(), spot, Some(Arc::new(Record::new(frontend, service, None))))
        });
        let addresses = told.addresses.iter().map(|address| {
            let spot = Spot::whole(*address);
            (spot.part(), spot, None)
        });
        let sets =
            told.backends.iter().map(|(id, backends)| (part_of(*id), *id, Arc::new(Set::new(backends))));
        let host_ports = host_ports(snapshot, slots);
        let nothing = told.frontends.is_empty()
            && told.addresses.is_empty()
            && told.prefixes.is_empty()
            && host_ports.is_empty();
        Self {
            stamp: if nothing { 0 } else { next_stamp() },
            frontends: Parted::new(frontends.chain(addresses)),
            sets: Parted::new(sets),
            prefixes: told.prefixes.as_slice().into(),
            among_v4: Among::v4(&[]),
            among_v6: Among::v6(&[]),
            host_ports,
        }
    }

    /// As they are after a change of this state.
    pub(crate) fn after(&self, snapshot: &Snapshot, slots: &Slots, touched: &Touched) -> Self {
        let mut services = self.clone();
        if touched.others {
            services.host_ports = host_ports(snapshot, slots);
        }
        if !touched.of_services() && services.host_ports == self.host_ports {
            return services;
        }
        services.stamp = next_stamp();
        services.take_up(&snapshot.services, touched);
        services
    }

    fn take_up(&mut self, told: &Told, touched: &Touched) {
        for id in &touched.backends {
            let set = told.backends.get(id).map(|backends| Arc::new(Set::new(backends)));
            self.sets.set(part_of(*id), *id, set);
        }
        for frontend in &touched.frontends {
            let spot = Spot::of(frontend);
            let part = spot.part();
            let before = self.frontends.get(part, spot).and_then(Option::as_deref);
            let service = told.frontends.get(frontend);
            let record = service.map(|service| Some(Arc::new(Record::new(frontend, service, before))));
            self.frontends.set(part, spot, record);
        }
        for address in &touched.addresses {
            let spot = Spot::whole(*address);
            self.frontends.set(spot.part(), spot, told.addresses.contains(address).then_some(None));
        }
        if touched.prefixes {
            self.prefixes = told.prefixes.as_slice().into();
        }
    }

    /// Has nobody's prefix taken for one of services, whatever those say of theirs.
    pub(crate) fn spare<'a>(&mut self, others: impl Iterator<Item = &'a IpNetwork>) {
        let overlap = |one: &IpNetwork, other: &IpNetwork| {
            one.contains(other.network()) || other.contains(one.network())
        };
        let spared: Vec<_> = others.collect();
        let free = self.prefixes.iter().filter(|own| !spared.iter().any(|other| overlap(own, other)));
        let free: Vec<_> = free.copied().collect();
        (self.among_v4, self.among_v6) = (Among::v4(&free), Among::v6(&free));
    }

    /// Goes on with what was counted in an earlier world.
    pub(crate) fn inherit(&mut self, before: &Self) {
        for (part, old) in self.frontends.0.iter_mut().zip(&before.frontends.0) {
            if Arc::ptr_eq(part, old) {
                continue;
            }
            let begun = |spot: &Spot| {
                let at = old.binary_search_by_key(spot, |(spot, _)| *spot).ok()?;
                old[at].1.as_ref().map(|record| Arc::clone(&record.begun))
            };
            for (spot, record) in Arc::make_mut(part) {
                if let (Some(record), Some(begun)) = (record, begun(spot))
                    && !Arc::ptr_eq(&record.begun, &begun)
                {
                    Arc::make_mut(record).begun = begun;
                }
            }
        }
    }

    fn at(&self, address: IpAddr, protocol: IpProtocol, port: u16) -> Option<&Record> {
        let spot = Spot { address, protocol, port };
        self.frontends.get(spot.part(), spot)?.as_deref()
    }

    /// What becomes of a client at an address, which may be a node's of this cluster.
    pub(crate) fn record(
        &self,
        (address, of_node): (IpAddr, bool),
        protocol: IpProtocol,
        port: u16,
    ) -> Option<&Record> {
        let node_port = || self.at(nodes(Family::of(address)), protocol, port);
        self.at(address, protocol, port).or_else(|| of_node.then(node_port).flatten())
    }

    /// The pod behind a port of this node.
    pub(crate) fn host_port(&self, address: IpAddr, protocol: IpProtocol, port: u16) -> Option<&Backend> {
        let wanted = (port, protocol.0, Family::of(address));
        let first = self.host_ports.partition_point(|mapping| mapping.place() < wanted);
        let here = self
            .host_ports
            .get(first..)
            .unwrap_or_default()
            .iter()
            .take_while(|mapping| mapping.place() == wanted);
        let mut ours = here.filter(|mapping| mapping.only_at.is_none_or(|only| only == address));
        ours.next().map(|mapping| &mapping.to)
    }

    /// Those from whom an answer comes.
    pub(crate) fn set(&self, id: BackendsId) -> Option<&Set> {
        self.sets.get(part_of(id), id).map(|set| &**set)
    }

    /// Whether an address is a service's and nothing else.
    pub(crate) fn is_address(&self, address: IpAddr) -> bool {
        let spot = Spot::whole(address);
        self.frontends.get(spot.part(), spot).is_some()
    }

    /// Whether an address can be a service's only.
    pub(crate) fn covers(&self, address: IpAddr) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(address))
    }

    /// How many connections were begun at each frontend where any was.
    pub(crate) fn begun(&self) -> impl Iterator<Item = (Frontend, u64)> + '_ {
        let records = self.frontends.0.iter().flat_map(|part| part.iter());
        records
            .filter_map(|(_, record)| record.as_ref())
            .map(|record| (record.frontend, record.begun.load(Relaxed)))
            .filter(|(_, begun)| *begun > 0)
    }
}

/// The ports of this node that lead to its fast pods, in the order of their places.
fn host_ports(snapshot: &Snapshot, slots: &Slots) -> Arc<[HostPort]> {
    let fast = snapshot.endpoints.values().filter(|endpoint| endpoint.path == Path::Fast);
    let ready = fast.filter(|endpoint| slots.of(&endpoint.key).is_some());
    let mappings = ready.flat_map(|endpoint| {
        endpoint.port_mappings.iter().flat_map(|mapping| {
            let over = endpoint.addresses.iter().filter(|a| mapping.answers_over(Family::of(**a)));
            over.map(|address| HostPort {
                protocol: mapping.protocol,
                port: mapping.host_port,
                only_at: mapping.only_at(),
                to: Backend { address: *address, port: mapping.container_port.get() },
            })
        })
    });
    let mut mappings: Vec<HostPort> = mappings.collect();
    mappings.sort_by_key(HostPort::place);
    mappings.into()
}

/// The addresses of services outside of their prefixes.
pub(crate) fn strays(told: &Told) -> BTreeSet<IpAddr> {
    let within = |address: &IpAddr| told.prefixes.iter().any(|prefix| prefix.contains(*address));
    let knocked = told.frontends.keys().filter_map(|frontend| match frontend.at {
        At::Address(address) => Some(address),
        At::Nodes(_) => None,
    });
    knocked.chain(told.addresses.iter().copied()).filter(|address| !within(address)).collect()
}
