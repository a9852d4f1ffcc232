//! The table as messages of a transaction, and what it has counted.

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_model::policy::{Direction, RuleNumber};
use causeway_model::{Count, DropReason, Family};

use super::entry::number_of;
use super::program::{COUNTERS, DENIED, Program, denied_of, filled};
use super::set::Set;
use super::stamps::{Judge, Stamp};
use crate::error::KernelError;
use crate::netlink::Netlink;
use crate::nfnetlink::{ELEMENT_EXPRESSION, EXPRESSION_DATA, count_of, part};
use crate::tables::{Message, Named, Table, key_of, words};

/// Our table for policy. It stands apart, so that nothing that loads the other one leaves packets unjudged.
pub(crate) const TABLE: &str = "causeway-policy";
pub(super) const OURS: Table = Table(TABLE);

/// The whole table in the place of whatever is there, without its entries.
pub(super) fn whole(program: &Program) -> Vec<Message> {
    let mut messages = OURS.anew();
    messages.extend(COUNTERS.map(|reason| OURS.counter(reason)));
    messages.extend(program.chains.iter().map(|chain| OURS.chain(chain)));
    let mut id = 0_u32;
    let mut next = || {
        id += 1;
        id
    };
    messages.extend(Set::all().map(|set| OURS.set(set.name(), &set.definition(), next())));
    messages.extend(filled().map(|(set, definition)| OURS.set(set, &definition, next())));
    messages.extend(program.ways.iter().map(|way| OURS.set(&way.name, &way.definition, next())));
    messages.extend(program.ways.iter().map(|way| OURS.leads(&way.name, &way.leads)));
    let otherwise = Set::all().filter_map(|set| Some(OURS.otherwise(set.name(), set.otherwise()?)));
    messages.extend(otherwise);
    messages.extend(program.chains.iter().flat_map(|chain| OURS.rules(chain)));
    messages
}

/// The stamps that the table has which is there.
pub(super) fn stamps(netlink: &mut Netlink) -> Result<Vec<(Judge, Stamp)>, KernelError> {
    let mut all = Vec::new();
    for family in Family::BOTH {
        for ((_, key, _), data) in OURS.found(netlink, Set::Stamps(family))? {
            let (address, number) = key.split_at(key.len().saturating_sub(4));
            let direction = Direction::BOTH.into_iter().find(|d| words([number_of(*d)]) == number);
            let stamp = data.last().copied().filter(|stamp| *stamp != 0).map(Stamp);
            if let (Some(address), Some(direction), Some(stamp)) = (address_of(address), direction, stamp) {
                all.push(((address, direction), stamp));
            }
        }
    }
    Ok(all)
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

/// What the table has counted since it was loaded.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted {
    pub(super) by_reason: BTreeMap<DropReason, Count>,
    pub(super) by_rule: BTreeMap<RuleNumber, Count>,
    pub(super) by_address: BTreeMap<IpAddr, Count>,
}

pub(super) fn counted(netlink: &mut Netlink) -> Result<Counted, KernelError> {
    let mut counted = Counted {
        by_reason: crate::nfnetlink::counters(netlink, TABLE)?.into_iter().collect(),
        ..Counted::default()
    };
    let read = |bytes: &[u8]| {
        Some((key_of(bytes)?, count_of(part(part(bytes, ELEMENT_EXPRESSION)?, EXPRESSION_DATA)?)?))
    };
    for element in OURS.elements(netlink, DENIED)? {
        let Some((key, count)) = read(&element) else { continue };
        let number = key.last_chunk().map(|number| RuleNumber(u32::from_be_bytes(*number)));
        counted.by_rule.extend(number.map(|number| (number, count)));
    }
    for family in Family::BOTH {
        for element in OURS.elements(netlink, denied_of(family))? {
            let Some((key, count)) = read(&element) else { continue };
            counted.by_address.extend(address_of(&key).map(|address| (address, count)));
        }
    }
    Ok(counted)
}
