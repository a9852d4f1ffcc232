//! Which addresses an attachment gets: the one that has been free the longest, of each family the node has.
//!
//! Never-used addresses come first, in order, then released ones in the order of their release. Nothing here walks a
//! prefix: whatever was ever used is either somebody's or stands in the queue, and is passed over span by span.

mod pool;
mod spans;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use causeway_model::plugin::Failure;
use causeway_model::{EndpointKey, Family, GATEWAY_MAC, MacAddr};
use thiserror::Error;

pub use pool::Pool;
use spans::Spans;

/// When so many addresses of a family wait in the queue, the oldest is used before another fresh one: a node with an IPv6
/// /64 would otherwise remember every address it ever gave.
const QUEUE_LIMIT: usize = 1 << 16;

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
}

/// Why there is no grant.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// No address is left.
    #[error("no free address in {pool}: {used} of {capacity} in use")]
    Exhausted {
        /// The pool's prefixes or ranges.
        pool: String,
        /// How many of its addresses are leased.
        used: usize,
        /// How many it has for pods.
        capacity: u128,
    },
    /// A range that the network configuration cannot give.
    #[error("range {range} is outside of this node's pod prefixes {prefixes}", prefixes = or_none(.prefixes))]
    OutsideNode {
        /// The range.
        range: String,
        /// What the node has of its family.
        prefixes: String,
    },
    /// Ranges of reserved addresses only.
    #[error("{pool} has no address for a pod: all of it is reserved on this node")]
    NoRoom {
        /// The ranges.
        pool: String,
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
            Self::NotOurs { .. } | Self::BadMac { .. } | Self::OutsideNode { .. } | Self::NoRoom { .. } => {
                Failure::INVALID_CONFIG
            }
            Self::Taken { .. } => Failure::TRY_AGAIN,
        }
    }
}

fn or_none(prefixes: &str) -> &str {
    if prefixes.is_empty() { "(none of this family)" } else { prefixes }
}

/// Who has which address, and what waits for its next owner: the store's view in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leases {
    owners: HashMap<IpAddr, EndpointKey>,
    macs: HashMap<MacAddr, EndpointKey>,
    queue: BTreeMap<(Family, u64), IpAddr>,
    queued: HashMap<IpAddr, u64>,
    /// Whatever was ever used, by family: owned or queued.
    known: [Spans; 2],
    next_release: u64,
}

impl Leases {
    /// What an attachment would get: an address of each pool's family, or nothing at all.
    pub fn grant(&self, pools: &[Pool], wanted: &Wanted) -> Result<Grant, AddressError> {
        self.check_wanted(pools, wanted)?;
        let mut grant = Grant { addresses: Vec::new(), mac: MacAddr::ZERO };
        for pool in pools {
            let named = wanted.addresses.iter().copied().find(|address| Family::of(*address) == pool.family);
            let address = match named {
                Some(address) => address,
                None => self.pick(pool)?,
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
    pub(crate) fn owner(&self, address: IpAddr) -> Option<&EndpointKey> {
        self.owners.get(&address)
    }

    /// How many addresses of a pool are leased.
    fn used(&self, pool: &Pool) -> usize {
        self.owners.keys().filter(|address| pool.contains(**address)).count()
    }

    fn check_wanted(&self, pools: &[Pool], wanted: &Wanted) -> Result<(), AddressError> {
        for (index, &address) in wanted.addresses.iter().enumerate() {
            let not_ours = |why: String| AddressError::NotOurs { address, why };
            let family = Family::of(address);
            if wanted.addresses[..index].iter().any(|earlier| Family::of(*earlier) == family) {
                return Err(not_ours(format!("it is the second static {family} address")));
            }
            let pool = pools.iter().find(|pool| pool.family == family);
            let pool = pool.ok_or_else(|| not_ours(format!("no {family} addresses are given here")))?;
            if !pool.contains(address) {
                return Err(not_ours(format!("it is outside of {}", pool.name)));
            }
            if pool.reserves(address) {
                return Err(not_ours(format!("it is reserved in {}", pool.name)));
            }
            if let Some(owner) = self.owners.get(&address) {
                let what = format!("address {address}");
                return Err(AddressError::Taken { what, owner: owner.clone() });
            }
        }
        Ok(())
    }

    fn pick(&self, pool: &Pool) -> Result<IpAddr, AddressError> {
        let waiting = || {
            let mut line = self.queue.range((pool.family, 0)..=(pool.family, u64::MAX));
            let fits = |address: &IpAddr| pool.contains(*address) && !pool.reserves(*address);
            line.find_map(|(_, address)| Some(*address).filter(fits))
        };
        let found = match self.queued.len() >= QUEUE_LIMIT {
            true => waiting().or_else(|| self.fresh(pool)),
            false => self.fresh(pool).or_else(waiting),
        };
        found.ok_or_else(|| AddressError::Exhausted {
            pool: pool.name.clone(),
            used: self.used(pool),
            capacity: pool.capacity(),
        })
    }

    /// The first address of the pool that nobody ever had.
    fn fresh(&self, pool: &Pool) -> Option<IpAddr> {
        let known = &self.known[pool.family as usize];
        pool.ranges.iter().find_map(|range| {
            let (mut next, last) = range.bounds();
            while next <= last {
                let address = pool::address(pool.family, next)?;
                next = match known.end_of(next) {
                    None if !pool.reserves(address) => return Some(address),
                    None => next,
                    Some(end) => end,
                }
                .checked_add(1)?;
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
            self.know(*address);
            if let Some(number) = self.queued.remove(address) {
                self.queue.remove(&(Family::of(*address), number));
            }
        }
        self.macs.insert(grant.mac, key.clone());
    }

    fn know(&mut self, address: IpAddr) {
        self.known[Family::of(address) as usize].insert(pool::number(address));
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
        self.know(address);
        self.next_release = self.next_release.max(number + 1);
    }

    /// What waits, in the order in which it will be given.
    pub(crate) fn queue(&self) -> impl Iterator<Item = (u64, IpAddr)> + '_ {
        self.queue.iter().map(|((_, number), address)| (*number, *address))
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod worlds;
