//! Cluster-set addresses: given once, kept for as long as there is room, never shared.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use causeway_model::Family;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::facts::ServiceName;

/// How many addresses of services that are gone are kept for their return.
const MOST_GONE: usize = 4096;

/// An address and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Whose it is.
    pub service: ServiceName,
    /// The address.
    pub address: IpAddr,
    /// For a service that is gone: a number that is the higher, the later it went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<u64>,
}

/// All addresses that were given.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    leases: BTreeMap<(ServiceName, Family), (IpAddr, Option<u64>)>,
    holders: HashMap<IpAddr, (ServiceName, Family)>,
    gone: BTreeMap<u64, (ServiceName, Family)>,
}

impl Addresses {
    /// Takes up what was given before.
    pub fn new(leases: Vec<Lease>) -> Self {
        let mut addresses = Self::default();
        for Lease { service, address, gone } in leases {
            let key = (service, Family::of(address));
            if addresses.holders.contains_key(&address) || addresses.leases.contains_key(&key) {
                continue;
            }
            // Whose service is still there says so when it asks again.
            let gone = gone.unwrap_or_else(|| addresses.next());
            let gone = if addresses.gone.contains_key(&gone) { addresses.next() } else { gone };
            addresses.gone.insert(gone, key.clone());
            addresses.holders.insert(address, key.clone());
            addresses.leases.insert(key, (address, Some(gone)));
        }
        addresses
    }

    /// What is to be taken up next time.
    pub fn leases(&self) -> Vec<Lease> {
        let lease = |((service, _), (address, gone)): (&(ServiceName, Family), &(IpAddr, Option<u64>))| {
            Lease { service: service.clone(), address: *address, gone: *gone }
        };
        self.leases.iter().map(lease).collect()
    }

    /// Whose an address is.
    pub fn holder(&self, address: IpAddr) -> Option<&ServiceName> {
        let key = self.holders.get(&address)?;
        self.leases.get(key).filter(|(_, gone)| gone.is_none()).map(|_| &key.0)
    }

    /// The address of a service: the one it had, or a free one out of the prefixes; `None` when all are taken.
    pub fn lease(&mut self, service: &ServiceName, prefixes: &[IpNetwork], family: Family) -> Option<IpAddr> {
        let key = (service.clone(), family);
        if let Some((address, gone)) = self.leases.get_mut(&key) {
            if prefixes.iter().any(|prefix| prefix.contains(*address)) {
                if let Some(number) = gone.take() {
                    self.gone.remove(&number);
                }
                return Some(*address);
            }
            self.forget(&key);
        }
        let of_family = |prefix: &&IpNetwork| Family::of(prefix.network()) == family;
        let prefixes: Vec<_> = prefixes.iter().filter(of_family).copied().collect();
        let free = prefixes.iter().find_map(|prefix| self.free(&key.0, *prefix));
        let address = free.or_else(|| self.reclaimed(&prefixes))?;
        self.holders.insert(address, key.clone());
        self.leases.insert(key, (address, None));
        Some(address)
    }

    /// Notes that a service is gone. Its address stays its own until others have no room.
    pub fn release(&mut self, service: &ServiceName, family: Family) -> bool {
        let number = self.next();
        let key = (service.clone(), family);
        let Some((_, gone @ None)) = self.leases.get_mut(&key) else { return false };
        *gone = Some(number);
        self.gone.insert(number, key);
        if self.gone.len() > MOST_GONE
            && let Some((_, oldest)) = self.gone.pop_first()
        {
            self.forget(&oldest);
        }
        true
    }

    fn next(&self) -> u64 {
        self.gone.last_key_value().map_or(1, |(last, _)| last + 1)
    }

    fn forget(&mut self, key: &(ServiceName, Family)) {
        if let Some((address, gone)) = self.leases.remove(key) {
            self.holders.remove(&address);
            gone.map(|number| self.gone.remove(&number));
        }
    }

    /// An address that nobody has: sought from a place that the service's name says, so that two nodes of one cluster, and one
    /// that forgot everything, mostly find the same one.
    fn free(&self, service: &ServiceName, prefix: IpNetwork) -> Option<IpAddr> {
        let bits = u32::from(Family::of(prefix.network()).host_length() - prefix.prefix());
        // The first address of a prefix is the network's name, the last of an IPv4 one its broadcast.
        let size = 1_u64.checked_shl(bits.min(62)).unwrap_or(1);
        let reserved = if size <= 2 { 0 } else { 1 };
        let last = if size > 2 && prefix.is_ipv4() { size - 1 } else { size };
        let room = last - reserved;
        let start = place(service) % room;
        let taken = self.holders.len() as u64;
        let offsets = (0..=taken.min(room - 1)).map(|step| reserved + (start + step) % room);
        offsets.map(|offset| nth(prefix, offset)).find(|address| !self.holders.contains_key(address))
    }

    /// The address of whoever went longest ago.
    fn reclaimed(&mut self, prefixes: &[IpNetwork]) -> Option<IpAddr> {
        let inside = |address: IpAddr| prefixes.iter().any(|prefix| prefix.contains(address));
        let key = self.gone.values().find(|key| self.leases.get(*key).is_some_and(|(it, _)| inside(*it)))?;
        let key = key.clone();
        let address = self.leases.get(&key)?.0;
        self.forget(&key);
        Some(address)
    }
}

/// FNV-1a: the same in every version.
fn place(service: &ServiceName) -> u64 {
    let bytes = service.namespace.bytes().chain([b'/']).chain(service.name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn nth(prefix: IpNetwork, offset: u64) -> IpAddr {
    match prefix.network() {
        IpAddr::V4(network) => {
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            IpAddr::V4(Ipv4Addr::from_bits(network.to_bits().wrapping_add(offset)))
        }
        IpAddr::V6(network) => IpAddr::V6(Ipv6Addr::from_bits(network.to_bits() + u128::from(offset))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: usize) -> ServiceName {
        ServiceName { namespace: "shop".to_owned(), name: format!("s{name}") }
    }

    #[test]
    fn a_small_prefix_is_given_out_to_the_last_and_no_address_twice() {
        let prefixes = ["192.0.2.0/29".parse().unwrap(), "fd00::/126".parse().unwrap()];
        let mut addresses = Addresses::default();
        let v4: Vec<_> =
            (0..6).map(|n| addresses.lease(&service(n), &prefixes, Family::V4).unwrap()).collect();
        let mut sorted = v4.clone();
        sorted.sort();
        let all = |last: u8| (1..=last).map(|last| IpAddr::from([192, 0, 2, last])).collect::<Vec<_>>();
        assert_eq!(sorted, all(6));
        assert_eq!(addresses.lease(&service(6), &prefixes, Family::V4), None);
        let v6: Vec<_> = (0..3).map(|n| addresses.lease(&service(n), &prefixes, Family::V6)).collect();
        assert!(v6.iter().all(Option::is_some));
        assert_eq!(addresses.lease(&service(3), &prefixes, Family::V6), None);
        assert_eq!(addresses.lease(&service(2), &prefixes, Family::V4), Some(v4[2]));
        // Who went first gives room first, and who returns has its own again.
        assert!(addresses.release(&service(4), Family::V4));
        assert!(addresses.release(&service(1), Family::V4));
        assert!(!addresses.release(&service(1), Family::V4));
        assert_eq!(addresses.lease(&service(6), &prefixes, Family::V4), Some(v4[4]));
        assert_eq!(addresses.lease(&service(1), &prefixes, Family::V4), Some(v4[1]));
        assert_eq!(addresses.lease(&service(4), &prefixes, Family::V4), None);
    }

    #[test]
    fn what_was_given_is_given_again_after_a_restart() {
        let prefixes = ["172.30.0.0/16".parse().unwrap()];
        let mut addresses = Addresses::default();
        let before: Vec<_> = (0..500).map(|n| addresses.lease(&service(n), &prefixes, Family::V4)).collect();
        addresses.release(&service(7), Family::V4);
        let json = serde_json::to_string(&addresses.leases()).unwrap();
        let mut again = Addresses::new(serde_json::from_str(&json).unwrap());
        assert_eq!(again.holder(before[3].unwrap()), None, "nobody has asked yet");
        let after: Vec<_> = (0..500).rev().map(|n| again.lease(&service(n), &prefixes, Family::V4)).collect();
        assert!(before.iter().eq(after.iter().rev()));
        assert_eq!(again.holder(before[3].unwrap()), Some(&service(3)));
        let other = ["10.9.0.0/24".parse().unwrap()];
        let moved = again.lease(&service(3), &other, Family::V4).unwrap();
        assert!(other[0].contains(moved), "a prefix that is no longer configured gives nothing");
    }
}
