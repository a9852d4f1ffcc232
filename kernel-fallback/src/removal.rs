//! Taking everything of ours away, by what it is marked with and without any record.

use std::path::Path;

use netlink_packet_route::RouteNetlinkMessage;

use crate::error::KernelError;
use crate::install::{remove, remove_link};
use crate::netlink::Netlink;
use crate::objects::{Object, is_our_link};
use crate::sysctl::Before;
use crate::{capture, nft, observe, shaping};

/// Takes every object of ours away from this namespace and restores its settings. Goes on past failures.
pub(crate) fn remove_all(state: &Path) -> Result<(), KernelError> {
    let mut errors = Vec::new();
    match Netlink::route() {
        Ok(mut netlink) => {
            // Links first, and the table that guards them last.
            errors.extend(remove_links(&mut netlink));
            errors.extend(remove_marked(&mut netlink));
        }
        Err(error) => errors.push(error),
    }
    errors.extend(capture::remove().err());
    errors.extend(shaping::remove_all().err());
    errors.extend(nft::remove(&state.with_extension("nft")));
    errors.extend(Before::new(state.to_owned()).restore());
    KernelError::all(errors)
}

fn remove_links(netlink: &mut Netlink) -> Vec<KernelError> {
    let links = match observe::links(netlink) {
        Ok(links) => links,
        Err(error) => return vec![error],
    };
    links
        .keys()
        .filter(|name| is_our_link(name))
        .filter_map(|name| remove_link(netlink, name).err())
        .collect()
}

fn remove_marked(netlink: &mut Netlink) -> Vec<KernelError> {
    let mut errors = Vec::new();
    match observe::links(netlink).and_then(|links| observe::objects(netlink, &links, is_our_link)) {
        Ok(objects) => {
            let marked = objects.iter().rev().filter(|object| matches!(object, Object::Route(_)));
            errors.extend(marked.filter_map(|object| remove(netlink, object).err()));
        }
        Err(error) => errors.push(error),
    }
    match observe::our_rules(netlink) {
        Ok(rules) => {
            for rule in rules {
                let removed =
                    netlink.request(RouteNetlinkMessage::DelRule(rule), 0, || "removing a rule".into());
                errors.extend(removed.err());
            }
        }
        Err(error) => errors.push(error),
    }
    errors
}
