//! What services, endpoints and nodes are as entries of sets. No I/O.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use causeway_model::service::{At, Backend, Backends, BackendsId, Frontend};
use causeway_model::{DropReason, Endpoint, Family, IpNetwork, Node, PortProtocol, Snapshot};

use super::program::COUNTERS;
use super::set::{Entry, Set};
use crate::desired::{addresses_of, flatten, has_veth, single};
use crate::element::{address_bytes, ends, port_bytes};
use crate::tables::words;

/// What a frontend leads to, as the kernel is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// The number of its sources, if it has any, and these.
    pub(super) sources: Option<(u32, Vec<IpNetwork>)>,
    /// Way and number of the backends, from inside and from outside.
    pub(super) answers: [(u32, u32); 2],
    /// Whose places it leads to.
    pub(super) backends: BTreeSet<BackendsId>,
    /// Clients stick to their backends.
    pub(super) sticks: bool,
}

/// A plain entry.
fn entry(set: Set, key: Vec<u8>, data: Vec<u8>) -> Entry {
    Entry { set, key, end: None, data }
}

pub(super) fn family_of(frontend: &Frontend) -> Family {
    match frontend.at {
        At::Address(address) => Family::of(address),
        At::Nodes(family) => family,
    }
}

pub(super) fn frontend_key(frontend: &Frontend) -> Vec<u8> {
    let at = match frontend.at {
        At::Address(address) => address_bytes(address),
        At::Nodes(Family::V4) => vec![0; 4],
        At::Nodes(Family::V6) => vec![0; 16],
    };
    [at, port_bytes(frontend.protocol, frontend.port)].concat()
}

/// The frontend that a key is of.
pub(super) fn frontend_of(key: &[u8]) -> Option<Frontend> {
    let (address, rest) = key.split_at_checked(key.len().checked_sub(8)?)?;
    let protocols = [PortProtocol::Tcp, PortProtocol::Udp, PortProtocol::Sctp];
    let protocol = protocols.into_iter().find(|protocol| protocol.number().0 == rest[0])?;
    let address = address_of(address)?;
    let at = if address.is_unspecified() { At::Nodes(Family::of(address)) } else { At::Address(address) };
    Some(Frontend { at, protocol, port: u16::from_be_bytes([rest[4], rest[5]]) })
}

pub(super) fn of_frontend(frontend: &Frontend, told: &Told) -> Vec<Entry> {
    let (family, key) = (family_of(frontend), frontend_key(frontend));
    let [(inside, of_inside), (outside, of_outside)] = told.answers;
    let number = told.sources.as_ref().map_or(0, |(number, _)| *number);
    let data = words([0, number, of_inside, inside, of_outside, outside]);
    let mut entries =
        vec![entry(Set::Frontends(family), key.clone(), data), entry(Set::Hits(family), key, Vec::new())];
    let sources = told.sources.iter().flat_map(|(_, sources)| flatten(sources.iter().copied()));
    let prefix = words([number]);
    entries.extend(sources.filter(|source| Family::of(source.ip()) == family).map(|source| {
        let mut interval = interval(Set::Sources, source);
        interval.key.splice(..0, prefix.iter().copied());
        interval.end = Some(match interval.end {
            Some(end) => [prefix.clone(), end].concat(),
            None => [words([number + 1]), vec![0; address_bytes(source.ip()).len()]].concat(),
        });
        interval
    }));
    entries
}

/// What a frontend's data tell, but for its sources.
pub(super) fn told_of(data: &[u8]) -> Option<Told> {
    let word = |at: usize| Some(u32::from_be_bytes(data.get(4 * at..4 * at + 4)?.try_into().ok()?));
    let answer = |at| Some((word(at + 1)?, word(at)?));
    let sources = Some(word(1)?).filter(|number| *number > 0).map(|number| (number, Vec::new()));
    Some(Told { sources, answers: [answer(2)?, answer(4)?], backends: BTreeSet::new(), sticks: false })
}

/// The backends of a number, by slot; one of greater weight has several.
pub(super) fn of_backends(number: u32, slots: &[Backend], sticks: bool) -> Vec<Entry> {
    let at = |backend: &Backend| {
        let [high, low] = backend.port.to_be_bytes();
        [address_bytes(backend.address), vec![high, low, 0, 0]].concat()
    };
    let by_slot = (0_u32..).zip(slots).map(|(slot, backend)| {
        let key = [words([number]), slot.to_ne_bytes().to_vec()].concat();
        entry(Set::Backends(Family::of(backend.address)), key, [vec![0; 4], at(backend)].concat())
    });
    let members: BTreeSet<&Backend> = slots.iter().filter(|_| sticks).collect();
    let members = members.into_iter().map(|backend| {
        let key = [words([number]), at(backend)].concat();
        entry(Set::Members(Family::of(backend.address)), key, Vec::new())
    });
    by_slot.chain(members).collect()
}

/// The number, the slot and the backend of an entry.
pub(super) fn backend_of(entry: &Entry) -> Option<(u32, u32, Backend)> {
    let (number, slot) = entry.key.split_first_chunk::<4>()?;
    let slot = u32::from_ne_bytes(slot.try_into().ok()?);
    let (address, port) = entry.data.get(4..)?.split_last_chunk::<4>()?;
    let backend = Backend { address: address_of(address)?, port: u16::from_be_bytes([port[0], port[1]]) };
    Some((u32::from_be_bytes(*number), slot, backend))
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        _ => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
    }
}

/// Slots of backends that have different weights, at the most, unless there are so many backends that four for each are more.
const SLOTS: u64 = 512;

/// Backends in slots, of which a connection takes any: who was there stays where it was, as far as the slots are one row.
pub(super) fn slots(old: &[Backend], backends: &Backends) -> Vec<Backend> {
    let mut left = shares(backends);
    let count = left.values().sum();
    let mut take = |backend: &Backend| {
        let left = left.get_mut(backend).filter(|left| **left > 0)?;
        *left -= 1;
        Some(*backend)
    };
    let mut slots: Vec<Option<Backend>> = old.iter().take(count).map(&mut take).collect();
    slots.resize(count, None);
    let mut rest = left.into_iter().flat_map(|(backend, left)| std::iter::repeat_n(backend, left));
    slots.into_iter().filter_map(|slot| slot.or_else(|| rest.next())).collect()
}

/// How many slots each of the backends of the first one's family has: one where all are alike, else as many as its weight says, where
/// there is room for that; else the next to its part of the room, and one at least.
fn shares(backends: &Backends) -> BTreeMap<Backend, usize> {
    let family = backends.chosen.first().map(|backend| Family::of(backend.address));
    let shares = backends.shares().filter(|(backend, _)| Some(Family::of(backend.address)) == family);
    let weights: BTreeMap<Backend, u64> =
        shares.map(|(backend, weight)| (backend, u64::from(weight))).collect();
    let (mut room, mut whole) = (SLOTS.max(4 * weights.len() as u64), weights.values().sum::<u64>());
    if backends.weights.is_empty() || whole <= room {
        return weights.into_iter().map(|(backend, weight)| (backend, weight as usize)).collect();
    }
    let mut lightest: Vec<_> = weights.into_iter().map(|(backend, weight)| (weight, backend)).collect();
    lightest.sort_unstable();
    // Those whose part is less than a slot have one, and the rest share what is left.
    let mut small = 0;
    while lightest.get(small).is_some_and(|(weight, _)| weight * room < whole) {
        (room, whole) = (room - 1, whole - lightest[small].0);
        small += 1;
    }
    let (ones, rest) = lightest.split_at(small);
    let mut shares: BTreeMap<_, _> = ones.iter().map(|(_, backend)| (*backend, 1)).collect();
    shares.extend(rest.iter().map(|(weight, backend)| (*backend, (weight * room / whole) as usize)));
    let over: u64 = rest.iter().map(|(weight, _)| weight * room / whole).sum();
    let mut nearest: Vec<_> = rest.iter().collect();
    nearest.sort_by_key(|(weight, _)| Reverse(weight * room % whole));
    for (_, backend) in nearest.into_iter().take((room - over) as usize) {
        shares.entry(*backend).and_modify(|slots| *slots += 1);
    }
    shares
}

pub(super) fn of_address(address: IpAddr) -> Entry {
    entry(Set::Addresses(Family::of(address)), address_bytes(address), Vec::new())
}

/// Prefixes as intervals of a set.
fn intervals(set: fn(Family) -> Set, prefixes: impl IntoIterator<Item = IpNetwork>) -> Vec<Entry> {
    flatten(prefixes).into_iter().map(|prefix| interval(set, prefix)).collect()
}

fn interval(set: fn(Family) -> Set, prefix: IpNetwork) -> Entry {
    let (first, last) = ends(prefix);
    let end = match last {
        IpAddr::V4(last) => u32::from(last).checked_add(1).map(|end| end.to_be_bytes().to_vec()),
        IpAddr::V6(last) => u128::from(last).checked_add(1).map(|end| end.to_be_bytes().to_vec()),
    };
    Entry { set: set(Family::of(first)), key: address_bytes(first), end, data: Vec::new() }
}

pub(super) fn of_prefixes(prefixes: &[IpNetwork]) -> Vec<Entry> {
    intervals(Set::Prefixes, prefixes.iter().copied())
}

/// Every node of this cluster.
pub(super) fn nodes(wanted: &Snapshot) -> impl Iterator<Item = &Node> {
    let own = &wanted.settings.node;
    let peers = wanted.peers.values().filter(|peer| peer.id.cluster == own.id.cluster);
    std::iter::once(own).chain(peers)
}

/// The cluster's nodes, and what this one has.
pub(super) fn of_nodes(wanted: &Snapshot) -> Vec<Entry> {
    let addresses: BTreeSet<IpAddr> = nodes(wanted).flat_map(addresses_of).collect();
    let of_node = |address| entry(Set::Nodes(Family::of(address)), address_bytes(address), Vec::new());
    let mut entries: Vec<Entry> = addresses.into_iter().map(of_node).collect();
    let own = &wanted.settings.node;
    entries.extend(intervals(Set::Pods, own.pod_prefixes.iter().copied()));
    let local = own.pod_prefixes.iter().copied().chain(addresses_of(own).map(single));
    entries.extend(intervals(Set::Local, local));
    entries
}

/// Who sees the own addresses of this node's pods: every pod, node and service that is known, and who is said to.
pub(super) fn of_kept(wanted: &Snapshot) -> Vec<Entry> {
    let Some(masquerade) = &wanted.settings.masquerade else { return Vec::new() };
    let all_nodes = std::iter::once(&wanted.settings.node).chain(wanted.peers.values());
    let of_nodes = all_nodes
        .flat_map(|node| node.pod_prefixes.iter().copied().chain(node.underlay.iter().copied().map(single)));
    let of_clusters = wanted
        .clusters
        .values()
        .flat_map(|cluster| cluster.pod_prefixes.iter().chain(&cluster.service_prefixes));
    let of_policy = wanted.policy.peers.clusters.iter();
    let said = masquerade.except.iter().chain(&wanted.services.prefixes);
    intervals(Set::Kept, of_nodes.chain(of_clusters.chain(of_policy).chain(said).copied()))
}

/// An address of a pod, and a reason for which something of it may be dropped.
fn dropped_key(reason: DropReason, address: IpAddr) -> Vec<u8> {
    [words([reason as u32]), address_bytes(address)].concat()
}

/// What such a key is about.
pub(super) fn dropped_of(key: &[u8]) -> Option<(IpAddr, DropReason)> {
    let (reason, address) = key.split_first_chunk::<4>()?;
    Some((address_of(address)?, *DropReason::ALL.get(u32::from_be_bytes(*reason) as usize)?))
}

/// An endpoint that the kernel leads to itself, and of which it counts what it drops.
pub(super) fn of_endpoint(endpoint: &Endpoint) -> Vec<Entry> {
    if !has_veth(endpoint) {
        return Vec::new();
    }
    let dropped = endpoint.addresses.iter().flat_map(|address| {
        let set = Set::Dropped(Family::of(*address));
        COUNTERS.map(|reason| entry(set, dropped_key(reason, *address), Vec::new()))
    });
    let pairs =
        endpoint.addresses.iter().flat_map(|one| endpoint.addresses.iter().map(move |other| (one, other)));
    let alike = pairs.filter(|(one, other)| Family::of(**one) == Family::of(**other));
    alike
        .map(|(one, other)| {
            let key = [address_bytes(*one), address_bytes(*other)].concat();
            entry(Set::Selves(Family::of(*one)), key, Vec::new())
        })
        .chain(dropped)
        .collect()
}

#[cfg(test)]
mod tests;
