//! The table as messages of a transaction, and what it has counted.

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_model::service::Frontend;
use causeway_model::{Count, DropReason, Family};

use super::choice::{Choice, choosing};
use super::entry::{dropped_of, frontend_of};
use super::program::{COUNTERS, Program};
use super::set::{Set, filled, way};
use crate::error::KernelError;
use crate::netlink::Netlink;
use crate::nfnetlink::{ELEMENT_EXPRESSION, EXPRESSION_DATA, count_of, counters, part};
use crate::tables::{Definition, Message, Named, Table, Verdict, key_of};

/// Our table for services. It stands apart: it is large, and nothing that loads another one touches it.
pub(crate) const TABLE: &str = "causeway-services";
pub(super) const OURS: Table = Table(TABLE);

/// The whole table in the place of whatever is there, without its entries and choices.
pub(super) fn whole(program: &Program) -> Vec<Message> {
    let (chains, ways) = (program.chains(), Program::ways());
    let mut messages = OURS.anew();
    messages.extend(COUNTERS.map(|reason| OURS.counter(reason)));
    messages.extend(chains.iter().map(|chain| OURS.chain(chain)));
    let mut id = 0_u32;
    let mut set = |name: &str, definition: &Definition| {
        id += 1;
        OURS.set(name, definition, id)
    };
    messages.extend(Set::all().map(|own| set(own.name(), &own.definition())));
    messages.extend(filled().map(|(name, definition)| set(name, &definition)));
    messages.extend(ways.iter().map(|way| set(&way.name, &way.definition)));
    messages.extend(ways.iter().map(|way| OURS.leads(&way.name, &way.leads)));
    messages.extend(chains.iter().flat_map(|chain| OURS.rules(chain)));
    messages
}

/// The chains of a choice, and the ways to them.
pub(super) fn choice(choice: Choice, number: u32) -> Vec<Message> {
    let mut messages = Vec::new();
    for (map, chain) in choosing(choice) {
        messages.push(OURS.chain(&chain));
        messages.extend(OURS.rules(&chain));
        messages.push(OURS.leads(map, &[(way(number), Verdict::Goto(chain.name))]));
    }
    messages
}

/// The chains of a choice go, and the ways to them.
pub(super) fn without(choice: Choice, number: u32) -> Vec<Message> {
    let chains = choosing(choice);
    let ways = chains.iter().map(|(map, _)| OURS.leads_no_more(map, &way(number)));
    ways.chain(chains.iter().map(|(_, chain)| OURS.no_chain(chain))).collect()
}

/// What the table has counted since it was loaded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counted {
    pub(crate) by_reason: BTreeMap<DropReason, Count>,
    /// The same of what pods of this node have sent, by their addresses.
    pub(crate) of_pods: BTreeMap<(IpAddr, DropReason), Count>,
    /// Connections begun.
    pub(crate) hits: BTreeMap<Frontend, u64>,
}

pub(super) fn counted(netlink: &mut Netlink) -> Result<Counted, KernelError> {
    let mut counted =
        Counted { by_reason: counters(netlink, TABLE)?.into_iter().collect(), ..Counted::default() };
    for family in Family::BOTH {
        for (key, count) in counting(netlink, Set::Hits(family))? {
            counted.hits.extend(frontend_of(&key).map(|frontend| (frontend, count.packets)));
        }
        for (key, count) in counting(netlink, Set::Dropped(family))? {
            counted.of_pods.extend(dropped_of(&key).map(|whose| (whose, count)));
        }
    }
    Ok(counted)
}

/// What the elements of a set have counted.
fn counting(netlink: &mut Netlink, set: Set) -> Result<Vec<(Vec<u8>, Count)>, KernelError> {
    let of = |element: &Vec<u8>| {
        let counter = part(element, ELEMENT_EXPRESSION).and_then(|counter| part(counter, EXPRESSION_DATA));
        Some((key_of(element)?, count_of(counter?)?))
    };
    Ok(OURS.elements(netlink, set.name())?.iter().filter_map(of).collect())
}

/// To whom clients stick, for the table that is next.
pub(super) fn sticking(netlink: &mut Netlink) -> Result<Vec<Message>, KernelError> {
    let mut messages = Vec::new();
    for (map, _) in filled() {
        messages.extend(OURS.again(map, &OURS.elements(netlink, map)?));
    }
    Ok(messages)
}
