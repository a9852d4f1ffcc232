//! Our table as nft lists it: its chains, its elements, and in what they differ from what they should be.

use std::collections::{BTreeMap, BTreeSet};

use super::list;
use crate::element::{Element, by_set};
use crate::error::KernelError;
use crate::ruleset::{FILLED, TABLE};

/// The table as nft lists it; none when there is none.
pub(super) fn listing() -> Result<Option<String>, KernelError> {
    list(&["-s", "list", "table", "inet", TABLE])
}

/// A listing without the elements of its sets.
pub(super) fn chains(listing: &str) -> String {
    let mut rest = listing;
    let mut text = String::with_capacity(listing.len());
    while let Some((before, after)) = rest.split_once("elements = {") {
        text.push_str(before);
        rest = after.split_once('}').map_or("", |(_, behind)| behind);
    }
    // nft writes an empty line less for a set without elements.
    text.push_str(rest);
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

/// The elements of a listing, by set, but for the sets that packets fill.
pub(super) fn sets(listing: &str) -> BTreeMap<&str, BTreeSet<String>> {
    let mut sets = BTreeMap::new();
    // What stands between one `set` or `map` line and its end has at most one list of elements.
    for part in ["\tset ", "\tmap "].into_iter().flat_map(|keyword| listing.split(keyword).skip(1)) {
        let Some((name, body)) = part.split_once(" {") else { continue };
        let body = body.split("\n\t}").next().unwrap_or_default();
        let elements = body.split_once("elements = {").and_then(|(_, list)| list.split_once('}'));
        let elements = elements.map(|(list, _)| list).unwrap_or_default().split(',');
        let elements = elements.map(|e| e.trim().to_owned()).filter(|element| !element.is_empty());
        if !FILLED.contains(&name) {
            sets.insert(name, elements.collect());
        }
    }
    sets
}

/// In what a listing differs from what it should be.
pub(super) fn complaints<'a>(
    listing: &str,
    desired_chains: &str,
    elements: impl Iterator<Item = &'a Element>,
) -> Vec<String> {
    let mut complaints = Vec::new();
    if chains(listing) != desired_chains {
        complaints.push(format!("the chains of nft table inet {TABLE} had changed"));
    }
    let desired = by_set(elements);
    for (set, listed) in sets(listing) {
        let wanted: BTreeSet<String> = desired.get(set).cloned().unwrap_or_default().into_iter().collect();
        let (missing, surplus) = (wanted.difference(&listed).count(), listed.difference(&wanted).count());
        if missing + surplus > 0 {
            complaints.push(format!("nft set {set} lacked {missing} elements and had {surplus} of others"));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "table inet causeway {
\tset senders {
\t\ttype ipv4_addr
\t\telements = { 192.0.2.1, 192.0.2.2,
\t\t\t     192.0.2.3 }
\t}

\tset inner4 {
\t\ttypeof ip saddr . @th,336,32
\t\tflags interval
\t}

\tchain input {
\t\tudp dport 4789 jump tunnel
\t\tip6 saddr { ::, fe80::/10 } return
\t}
}
";

    #[test]
    fn a_listing_is_read_by_set() {
        let sets = sets(LISTING);
        let names: Vec<_> = sets.keys().copied().collect();
        assert_eq!(names, ["inner4", "senders"]);
        assert_eq!(sets["senders"].len(), 3);
        assert!(sets["inner4"].is_empty(), "a chain's own braces are no elements");
    }

    #[test]
    fn elements_are_no_matter_of_chains() {
        let fewer = LISTING.replace("192.0.2.1, 192.0.2.2,\n\t\t\t     192.0.2.3", "192.0.2.9");
        assert_ne!(fewer, LISTING);
        assert_eq!(chains(&fewer), chains(LISTING));
        assert_ne!(chains(&LISTING.replace("4789", "4790")), chains(LISTING));
        assert_ne!(chains(&LISTING.replace("fe80::/10", "fe81::/10")), chains(LISTING));
    }

    #[test]
    fn differences_are_named() {
        let senders = [1, 2, 4].map(|n| Element::Sender([192, 0, 2, n].into()));
        let complaints = complaints(LISTING, &chains(LISTING), senders.iter());
        assert_eq!(complaints, ["nft set senders lacked 1 elements and had 1 of others"]);
    }
}
