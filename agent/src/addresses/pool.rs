use std::collections::BTreeSet;
use std::net::IpAddr;

use causeway_model::plugin::{AddressRange, IpamRequest};
use causeway_model::{Family, IpNetwork, Node};

use super::AddressError;

/// Addresses from `first` to `last`, both included, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    family: Family,
    first: u128,
    last: u128,
}

impl Range {
    /// The range between two addresses of one family; none when they are not in this order.
    fn between(first: IpAddr, last: IpAddr) -> Option<Self> {
        let family = Family::of(first);
        let range = Self { family, first: number(first), last: number(last) };
        (family == Family::of(last) && range.first <= range.last).then_some(range)
    }

    fn of(prefix: IpNetwork) -> Self {
        let family = Family::of(prefix.ip());
        Self { family, first: number(prefix.network()), last: number(prefix.broadcast()) }
    }

    /// The numbers of its first and last address.
    pub(super) fn bounds(&self) -> (u128, u128) {
        (self.first, self.last)
    }

    fn contains(&self, address: IpAddr) -> bool {
        Family::of(address) == self.family && (self.first..=self.last).contains(&number(address))
    }

    fn lies_in(&self, other: &Self) -> bool {
        self.family == other.family && other.first <= self.first && self.last <= other.last
    }
}

/// An address as a number in its family.
pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The address that a number is in a family.
pub(super) fn address(family: Family, number: u128) -> Option<IpAddr> {
    match family {
        Family::V4 => Some(IpAddr::V4(u32::try_from(number).ok()?.into())),
        Family::V6 => Some(IpAddr::V6(number.into())),
    }
}

/// Where the address of one family comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub(super) name: String,
    pub(super) family: Family,
    pub(super) ranges: Vec<Range>,
    /// What nobody gets: the overlay host and probe addresses; of every prefix its network address (IPv6: that of its
    /// routers), of an IPv4 one its broadcast; other people's gateways.
    reserved: BTreeSet<IpAddr>,
}

impl Pool {
    /// All of a node's prefixes of one family, if it has any.
    fn of_node(node: &Node, family: Family) -> Option<Self> {
        let prefixes: Vec<_> = node.pod_prefixes_of(family).collect();
        let mut reserved: BTreeSet<_> = prefixes.iter().copied().flat_map(edges).collect();
        reserved.extend(node.overlay_host_address(family).into_iter().chain(node.probe_address(family)));
        let name = listed(prefixes.iter());
        let ranges: Vec<_> = prefixes.into_iter().map(Range::of).collect();
        (!ranges.is_empty()).then_some(Self { name, family, ranges, reserved })
    }

    /// The pools of all families a node has.
    pub fn all_of_node(node: &Node) -> Vec<Self> {
        Family::BOTH.into_iter().filter_map(|family| Self::of_node(node, family)).collect()
    }

    /// The pools a request may have addresses of, one a family: its own sets where it has any, inside the node's prefixes.
    /// Of another plugin's addresses, those of their families.
    pub fn for_request(node: &Node, request: &IpamRequest) -> Result<Vec<Self>, AddressError> {
        if request.delegate.is_some() {
            let asked = |pool: &Self| request.addresses.iter().any(|one| Family::of(*one) == pool.family);
            return Ok(Self::all_of_node(node).into_iter().filter(asked).collect());
        }
        if request.sets.is_empty() {
            return Ok(Self::all_of_node(node));
        }
        request.sets.iter().filter(|set| !set.is_empty()).map(|set| Self::of_set(node, set)).collect()
    }

    fn of_set(node: &Node, set: &[AddressRange]) -> Result<Self, AddressError> {
        let family = set.first().map_or(Family::V4, |range| Family::of(range.first));
        let outside = |range: &AddressRange| AddressError::OutsideNode {
            range: text(range),
            prefixes: listed(node.pod_prefixes_of(family)),
        };
        let mut pool = Self {
            name: listed(set.iter().map(text)),
            family,
            ranges: Vec::new(),
            reserved: BTreeSet::new(),
        };
        let whole = Self::of_node(node, family);
        for range in set {
            let within = Range::between(range.first, range.last).filter(|within| {
                whole.iter().flat_map(|whole| &whole.ranges).any(|prefix| within.lies_in(prefix))
            });
            pool.ranges.push(within.ok_or_else(|| outside(range))?);
            pool.reserved.extend(edges(range.subnet));
            pool.reserved.extend(range.gateway);
        }
        pool.reserved.extend(whole.into_iter().flat_map(|whole| whole.reserved));
        match pool.capacity() {
            0 => Err(AddressError::NoRoom { pool: pool.name }),
            _ => Ok(pool),
        }
    }

    /// How many addresses it has for pods.
    pub fn capacity(&self) -> u128 {
        let all = self.ranges.iter().map(|range| range.last - range.first).fold(0, u128::saturating_add);
        let all = all.saturating_add(self.ranges.len() as u128);
        all.saturating_sub(self.reserved.iter().filter(|address| self.contains(**address)).count() as u128)
    }

    /// Whether an address lies in it, reserved or not.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }

    /// Whether an address is nobody's.
    pub(super) fn reserves(&self, address: IpAddr) -> bool {
        self.reserved.contains(&address)
    }
}

/// The addresses of a prefix that no host has.
fn edges(prefix: IpNetwork) -> impl Iterator<Item = IpAddr> {
    let broadcast = prefix.is_ipv4().then(|| prefix.broadcast());
    std::iter::once(prefix.network()).chain(broadcast)
}

fn listed(things: impl Iterator<Item = impl ToString>) -> String {
    things.map(|thing| thing.to_string()).collect::<Vec<_>>().join(", ")
}

fn text(range: &AddressRange) -> String {
    format!("{}-{}", range.first, range.last)
}
