//! Which addresses an attachment gets: the one that has been free the longest, of each family the node has.
//!
//! Never-used addresses come first, in order, then released ones in the order of their release. Nothing here walks a
//! prefix: a cursor remembers how far a range has been used, and what was given back stands in a queue.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use causeway_model::plugin::Failure;
use causeway_model::{EndpointKey, Family, GATEWAY_MAC, IpNetwork, MacAddr, Node};
use thiserror::Error;

/// When so many addresses of a family wait in the queue, the oldest is used before another fresh one: a node with an IPv6
/// /64 would otherwise remember every address it ever gave.
const QUEUE_LIMIT: usize = 1 << 16;

/// Addresses from `first` to `last`, both included, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    first: IpAddr,
    last: IpAddr,
}

impl Range {
    /// All addresses of a prefix.
    pub fn of(prefix: IpNetwork) -> Self {
        Self { first: prefix.network(), last: prefix.broadcast() }
    }

    /// The range between two addresses of one family; none when they are not in this order.
    pub fn between(first: IpAddr, last: IpAddr) -> Option<Self> {
        (Family::of(first) == Family::of(last) && first <= last).then_some(Self { first, last })
    }

    /// Where it begins.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Where it ends.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    fn contains(&self, address: IpAddr) -> bool {
        Family::of(address) == Family::of(self.first) && self.first <= address && address <= self.last
    }

    fn at(&self, offset: u128) -> Option<IpAddr> {
        let address = match self.first {
            IpAddr::V4(first) => {
                IpAddr::V4(u32::from(first).checked_add(u32::try_from(offset).ok()?)?.into())
            }
            IpAddr::V6(first) => IpAddr::V6(u128::from(first).checked_add(offset)?.into()),
        };
        (address <= self.last).then_some(address)
    }
}

/// Where the addresses of one family come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    name: String,
    family: Family,
    ranges: Vec<Range>,
    reserved: BTreeSet<IpAddr>,
}

impl Pool {
    /// The pool of a node's prefixes of one family, if it has any: all of them less what the overlay needs (the overlay host
    /// and the probe address), each prefix's network address (IPv6: the subnet-router anycast address) and its broadcast.
    pub fn of_node(node: &Node, family: Family) -> Option<Self> {
        let prefixes: Vec<_> = node.pod_prefixes_of(family).collect();
        let mut reserved: BTreeSet<_> = prefixes.iter().map(IpNetwork::network).collect();
        reserved.extend(prefixes.iter().filter(|prefix| prefix.is_ipv4()).map(IpNetwork::broadcast));
        reserved.extend(node.overlay_host_address(family).into_iter().chain(node.probe_address(family)));
        let names: Vec<_> = prefixes.iter().map(ToString::to_string).collect();
        let ranges: Vec<_> = prefixes.into_iter().map(Range::of).collect();
        (!ranges.is_empty()).then(|| Self { name: names.join(", "), family, ranges, reserved })
    }

    /// The pools of all families a node has.
    pub fn all_of_node(node: &Node) -> Vec<Self> {
        Family::BOTH.into_iter().filter_map(|family| Self::of_node(node, family)).collect()
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }
}

/// What an attachment asks for by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Static addresses, at most one of a family.
    pub addresses: Vec<IpAddr>,
    /// A static hardware address.
    pub mac: Option<MacAddr>,
}

/// What an attachment is to get; nothing is taken until the store has written it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Its hardware address.
    pub mac: MacAddr,
    /// How far ranges are used once this is taken.
    pub(crate) cursors: Vec<(Range, u128)>,
}

/// Why there is no grant.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// No address is left.
    #[error("no free address in {pool}: {used} in use")]
    Exhausted {
        /// The pool's prefixes.
        pool: String,
        /// How many addresses of the family are leased.
        used: usize,
    },
    /// A static address that this node cannot give.
    #[error("address {address} cannot be given here: {why}")]
    NotOurs {
        /// The address.
        address: IpAddr,
        /// The reason.
        why: String,
    },
    /// A static hardware address that no pod can have.
    #[error("MAC {mac} cannot be given: {why}")]
    BadMac {
        /// The hardware address.
        mac: MacAddr,
        /// The reason.
        why: &'static str,
    },
    /// A static address that another attachment has.
    #[error("{what} is in use by {owner}")]
    Taken {
        /// The address.
        what: String,
        /// Whose it is.
        owner: EndpointKey,
    },
}

impl AddressError {
    /// The code of CNI for it: what is taken may be given back in a moment, the rest needs the operator.
    pub fn code(&self) -> u32 {
        match self {
            Self::Exhausted { .. } => Failure::RANGE_EXHAUSTED,
            Self::NotOurs { .. } | Self::BadMac { .. } => Failure::INVALID_CONFIG,
            Self::Taken { .. } => Failure::TRY_AGAIN,
        }
    }
}

/// Who has which address, what waits for its next owner, and how far ranges are used: the store's view in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leases {
    owners: HashMap<IpAddr, EndpointKey>,
    macs: HashMap<MacAddr, EndpointKey>,
    queue: BTreeMap<(Family, u64), IpAddr>,
    queued: HashMap<IpAddr, u64>,
    cursors: HashMap<Range, u128>,
    next_release: u64,
}

impl Leases {
    /// What an attachment would get: an address of each pool's family, or nothing at all.
    pub fn grant(&self, pools: &[Pool], wanted: &Wanted) -> Result<Grant, AddressError> {
        self.check_wanted(pools, wanted)?;
        let mut grant = Grant { addresses: Vec::new(), mac: MacAddr::ZERO, cursors: Vec::new() };
        for pool in pools {
            let named = wanted.addresses.iter().copied().find(|address| Family::of(*address) == pool.family);
            let address = match named {
                Some(address) => address,
                None => self.pick(pool, &mut grant.cursors)?,
            };
            grant.addresses.push(address);
        }
        grant.addresses.sort_by_key(|address| Family::of(*address));
        grant.mac = match wanted.mac {
            Some(mac) => self.static_mac(mac)?,
            None => self.derived_mac(&grant.addresses),
        };
        Ok(grant)
    }

    /// Whose an address is.
    #[cfg(test)]
    pub(crate) fn owner(&self, address: IpAddr) -> Option<&EndpointKey> {
        self.owners.get(&address)
    }

    /// How many addresses of a family are leased.
    pub fn used(&self, family: Family) -> usize {
        self.owners.keys().filter(|address| Family::of(**address) == family).count()
    }

    fn check_wanted(&self, pools: &[Pool], wanted: &Wanted) -> Result<(), AddressError> {
        for (index, &address) in wanted.addresses.iter().enumerate() {
            let not_ours = |why: String| AddressError::NotOurs { address, why };
            let family = Family::of(address);
            if wanted.addresses[..index].iter().any(|earlier| Family::of(*earlier) == family) {
                return Err(not_ours(format!("it is the second static {family} address")));
            }
            let pool = pools.iter().find(|pool| pool.family == family);
            let pool = pool.ok_or_else(|| not_ours(format!("the node has no {family} pod prefix")))?;
            if !pool.contains(address) {
                return Err(not_ours(format!("it is outside of {}", pool.name)));
            }
            if pool.reserved.contains(&address) {
                return Err(not_ours(format!("it is reserved in {}", pool.name)));
            }
            if let Some(owner) = self.owners.get(&address) {
                let what = format!("address {address}");
                return Err(AddressError::Taken { what, owner: owner.clone() });
            }
        }
        Ok(())
    }

    fn pick(&self, pool: &Pool, cursors: &mut Vec<(Range, u128)>) -> Result<IpAddr, AddressError> {
        let mut waiting = self.queue.range((pool.family, 0)..=(pool.family, u64::MAX));
        let queue_is_long = self.queued.len() >= QUEUE_LIMIT;
        let fresh = if queue_is_long { None } else { self.fresh(pool) };
        if let Some((address, cursor)) = fresh {
            cursors.push(cursor);
            return Ok(address);
        }
        let fits = |address: &IpAddr| pool.contains(*address) && !pool.reserved.contains(address);
        if let Some(address) = waiting.by_ref().map(|(_, address)| *address).find(fits) {
            return Ok(address);
        }
        let fresh = if queue_is_long { self.fresh(pool) } else { None };
        let (address, cursor) = fresh.ok_or_else(|| AddressError::Exhausted {
            pool: pool.name.clone(),
            used: self.used(pool.family),
        })?;
        cursors.push(cursor);
        Ok(address)
    }

    /// The first address of the pool that nobody ever had, and its range's cursor after it.
    fn fresh(&self, pool: &Pool) -> Option<(IpAddr, (Range, u128))> {
        pool.ranges.iter().find_map(|range| {
            let mut offset = self.cursors.get(range).copied().unwrap_or(0);
            // Ends: only what is leased, queued or reserved is passed over, and the cursor never comes back to it.
            while let Some(address) = range.at(offset) {
                offset += 1;
                let known = self.owners.contains_key(&address) || self.queued.contains_key(&address);
                if !known && !pool.reserved.contains(&address) {
                    return Some((address, (*range, offset)));
                }
            }
            None
        })
    }

    fn static_mac(&self, mac: MacAddr) -> Result<MacAddr, AddressError> {
        if mac.is_multicast() || mac == MacAddr::ZERO {
            return Err(AddressError::BadMac { mac, why: "it is not the address of one station" });
        }
        if mac == GATEWAY_MAC {
            return Err(AddressError::BadMac { mac, why: "it is the gateway's" });
        }
        match self.macs.get(&mac) {
            Some(owner) => Err(AddressError::Taken { what: format!("MAC {mac}"), owner: owner.clone() }),
            None => Ok(mac),
        }
    }

    /// A locally administered address made of the pod's first address, so that a neighbour's memory of it is right even when
    /// the address has a new owner; the next free one where a static MAC is in its way.
    fn derived_mac(&self, addresses: &[IpAddr]) -> MacAddr {
        // Neither begins like GATEWAY_MAC or a node's tunnel end, which begin with 02.
        let (kind, low) = match addresses.first() {
            Some(IpAddr::V4(address)) => (0x06, u32::from(*address)),
            Some(IpAddr::V6(address)) => {
                let bits = u128::from(*address);
                (0x0a, ((bits >> 32) as u32).rotate_left(16) ^ bits as u32)
            }
            None => (0x0e, 0),
        };
        let nth = |n: u32| {
            let [a, b, c, d] = low.wrapping_add(n).to_be_bytes();
            MacAddr([kind, 0xca, a, b, c, d])
        };
        (0..=u32::MAX)
            .map(nth)
            .find(|mac| !self.macs.contains_key(mac))
            .unwrap_or_else(|| unreachable!("a node has fewer than 2^32 endpoints"))
    }

    /// Where granted addresses wait in the queue, those that do.
    pub(crate) fn queued_as<'a>(&'a self, addresses: &'a [IpAddr]) -> impl Iterator<Item = u64> + 'a {
        addresses.iter().filter_map(|address| self.queued.get(address).copied())
    }

    /// Takes what was granted.
    pub(crate) fn take(&mut self, key: &EndpointKey, grant: &Grant) {
        for address in &grant.addresses {
            self.owners.insert(*address, key.clone());
            if let Some(number) = self.queued.remove(address) {
                self.queue.remove(&(Family::of(*address), number));
            }
        }
        self.macs.insert(grant.mac, key.clone());
        self.cursors.extend(grant.cursors.iter().copied());
    }

    /// Under which numbers addresses will wait once they are given back.
    pub(crate) fn next_numbers(&self, addresses: &[IpAddr]) -> Vec<(u64, IpAddr)> {
        (self.next_release..).zip(addresses.iter().copied()).collect()
    }

    /// Takes addresses and hardware address back from their owner and queues them.
    pub(crate) fn give_back(&mut self, numbered: &[(u64, IpAddr)], mac: MacAddr) {
        self.macs.remove(&mac);
        for &(number, address) in numbered {
            self.owners.remove(&address);
            self.enqueue(number, address);
        }
    }

    /// Puts a free address into the queue.
    pub(crate) fn enqueue(&mut self, number: u64, address: IpAddr) {
        self.queue.insert((Family::of(address), number), address);
        self.queued.insert(address, number);
        self.next_release = self.next_release.max(number + 1);
    }

    /// What waits, in the order in which it will be given.
    pub(crate) fn queue(&self) -> impl Iterator<Item = (u64, IpAddr)> + '_ {
        self.queue.iter().map(|((_, number), address)| (*number, *address))
    }

    /// How far ranges are used.
    pub(crate) fn cursors(&self) -> impl Iterator<Item = (Range, u128)> + '_ {
        self.cursors.iter().map(|(range, offset)| (*range, *offset))
    }

    /// How far a range is used, as the store has it.
    pub(crate) fn set_cursor(&mut self, range: Range, offset: u128) {
        self.cursors.insert(range, offset);
    }
}

#[cfg(test)]
mod tests;
