//! Pod prefixes for nodes, of which a file of cases says nothing: it names only the pods' addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result};
use causeway_model::Family;
use ipnetwork::IpNetwork;

/// Addresses at the beginning of a node's first prefix that are no pod's: of the network, of the host, of probes.
const RESERVED: u128 = 3;

/// Prefixes for each node that hold its pods' addresses and neither another's nor any of `others`. The first of a family has room
/// for the reserved addresses. A node without pods gets one of each family that other pods have.
pub(super) fn prefixes(
    pods: &BTreeMap<String, BTreeSet<IpAddr>>,
    others: &BTreeSet<IpAddr>,
) -> Result<BTreeMap<String, Vec<IpNetwork>>> {
    let mut found: BTreeMap<String, Vec<IpNetwork>> =
        pods.keys().map(|node| (node.clone(), Vec::new())).collect();
    for family in Family::BOTH {
        let of_family: BTreeMap<&str, BTreeSet<IpAddr>> = pods
            .iter()
            .map(|(node, all)| {
                (node.as_str(), all.iter().copied().filter(|ip| Family::of(*ip) == family).collect())
            })
            .collect();
        if of_family.values().all(BTreeSet::is_empty) {
            continue;
        }
        let usual = if family == Family::V4 { 24 } else { 64 };
        let cuts = (usual..=family.host_length()).map(|length| cut(&of_family, length));
        let fits = |cut: &BTreeMap<&str, BTreeSet<IpNetwork>>| is_good(cut, others);
        let cut = cuts.into_iter().find(fits).context("two nodes have a pod address in common")?;
        let mut taken: BTreeSet<_> = cut.values().flatten().copied().collect();
        for (node, own) in cut {
            let roomy = |range: &IpNetwork| {
                range.prefix() <= family.host_length() - 2
                    && !of_family[node].iter().any(|pod| is_reserved(*pod, range))
            };
            let first = match own.iter().next() {
                Some(first) if roomy(first) => None,
                _ => Some(free(&taken, others, usual).with_context(|| format!("no prefix for node {node}"))?),
            };
            taken.extend(first);
            found.entry(node.to_owned()).or_default().extend(first.into_iter().chain(own));
        }
    }
    Ok(found)
}

/// The prefixes of one length that hold each node's pods.
fn cut<'a>(pods: &BTreeMap<&'a str, BTreeSet<IpAddr>>, length: u8) -> BTreeMap<&'a str, BTreeSet<IpNetwork>> {
    let of = |ip: &IpAddr| network(*ip, length);
    pods.iter().map(|(node, all)| (*node, all.iter().map(of).collect())).collect()
}

fn is_good(cut: &BTreeMap<&str, BTreeSet<IpNetwork>>, others: &BTreeSet<IpAddr>) -> bool {
    let all: Vec<_> = cut.values().flatten().collect();
    let apart = all.iter().collect::<BTreeSet<_>>().len() == all.len();
    apart && !all.iter().any(|range| others.iter().any(|other| range.contains(*other)))
}

/// The first prefix behind all of these that nobody is in.
fn free(taken: &BTreeSet<IpNetwork>, others: &BTreeSet<IpAddr>, length: u8) -> Option<IpNetwork> {
    let first = taken.iter().next()?;
    let size = 1_u128 << (Family::of(first.ip()).host_length() - length);
    let mut next = *first;
    loop {
        next = network(shifted(next.network(), size)?, length);
        let inside = |ip: &IpAddr| next.contains(*ip);
        if !others.iter().any(inside) && !taken.iter().any(|range| inside(&range.network())) {
            return Some(next);
        }
    }
}

fn is_reserved(pod: IpAddr, range: &IpNetwork) -> bool {
    range.contains(pod) && number(pod) - number(range.network()) < RESERVED
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn shifted(address: IpAddr, by: u128) -> Option<IpAddr> {
    let sum = number(address).checked_add(by)?;
    Some(match address {
        IpAddr::V4(_) => IpAddr::V4(u32::try_from(sum).ok()?.into()),
        IpAddr::V6(_) => IpAddr::V6(sum.into()),
    })
}

fn network(address: IpAddr, length: u8) -> IpNetwork {
    let whole =
        IpNetwork::new(address, length).unwrap_or_else(|_| unreachable!("the length suits the family"));
    IpNetwork::new(whole.network(), length).unwrap_or_else(|_| unreachable!("the length suits the family"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(told: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<IpAddr>> {
        let addresses = |all: &[&str]| all.iter().map(|ip| ip.parse().unwrap()).collect();
        told.iter().map(|(node, all)| ((*node).to_owned(), addresses(all))).collect()
    }

    fn texts(of: &BTreeMap<String, Vec<IpNetwork>>, node: &str) -> Vec<String> {
        of[node].iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nodes_get_the_usual_prefixes_around_their_pods_and_the_next_one_without_pods() {
        let told = pods(&[("a", &["10.70.1.11", "fd70:0:0:1::11"]), ("b", &["10.70.2.12"]), ("c", &[])]);
        let found = prefixes(&told, &BTreeSet::new()).unwrap();
        assert_eq!(texts(&found, "a"), ["10.70.1.0/24", "fd70:0:0:1::/64"]);
        assert_eq!(texts(&found, "b"), ["10.70.2.0/24", "fd70:0:0:2::/64"]);
        assert_eq!(texts(&found, "c"), ["10.70.3.0/24", "fd70:0:0:3::/64"]);
    }

    #[test]
    fn pods_of_several_nodes_in_one_network_get_smaller_prefixes() {
        let told = pods(&[("a", &["10.1.0.9"]), ("b", &["10.1.0.12"])]);
        let others = BTreeSet::from(["10.1.0.1".parse().unwrap()]);
        let found = prefixes(&told, &others).unwrap();
        for (node, pod) in [("a", "10.1.0.9"), ("b", "10.1.0.12")] {
            let pod: IpAddr = pod.parse().unwrap();
            assert!(found[node].iter().any(|range| range.contains(pod)), "{found:?}");
            assert_eq!(found.values().flatten().filter(|range| range.contains(pod)).count(), 1, "{found:?}");
        }
        // The reserved addresses would be the pods'.
        assert_eq!(found["a"][0].prefix(), 24);
        assert!(prefixes(&pods(&[("a", &["10.1.0.9"]), ("b", &["10.1.0.9"])]), &others).is_err());
    }
}
