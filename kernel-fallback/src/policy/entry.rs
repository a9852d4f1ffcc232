//! What a rulebook and endpoints are as entries of sets. No I/O.
//!
//! The kernel can look a key up, and no more: it cannot tell the smaller of two numbers, nor try again with another key inside one
//! rule. So whatever is asked of a stage is made complete (intervals cover the whole space, so that nothing found means that
//! something is amiss, and the packet is dropped), and which of two rules is the earlier is looked up, too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use causeway_model::policy::{Action, Direction, Row, Stage, StageId, Table};
use causeway_model::{Endpoint, Family, Identity, IpNetwork, PortProtocol};

use super::set::{Entry, LAST, NOBODY, PLACES, Set};
use super::stamps::{Stamp, Stamps};
use crate::desired::flatten;
use crate::element::{address_bytes, ends};
use crate::tables::words;

/// What a rule says of a connection, as the kernel has it.
pub(super) const ACCEPT: u32 = 0;
pub(super) const DENY: u32 = 1;
pub(super) const PASS: u32 = 2;
/// The stage that no table has: what asks for it is denied.
const NO_STAGE: u32 = u32::MAX;
/// Orders are compared up to a power of two, at least this one.
const LEAST_ORDERS: u32 = 16;

/// The number of a direction in keys.
pub(super) fn number_of(direction: Direction) -> u32 {
    match direction {
        Direction::Egress => 0,
        Direction::Ingress => 1,
    }
}

/// The number of a place in a table.
pub(super) fn place(direction: Direction, place: u32) -> u32 {
    number_of(direction) * PLACES + place
}

/// What the kernel is told of a rule: where it stands in the order, what it does and, where it denies, by which number.
type Told = [u32; 3];

/// The rules of a stage as they are told.
struct Rules {
    told: Vec<Told>,
    none: Told,
}

impl Rules {
    /// Compared is only ever a rule by identity with one by address. So those by identity have an order of their own each, the odd
    /// ones, and all others between two of them have one together.
    fn of(stage: &Stage) -> Self {
        let by_identity = by_identity(stage);
        let mut passed = 0;
        let mut told = Vec::with_capacity(stage.rules.len());
        for (place, rule) in stage.rules.iter().enumerate() {
            let its_own = by_identity.get(passed).is_some_and(|own| *own as usize == place);
            let order = 2 * passed as u32 + u32::from(its_own);
            passed += usize::from(its_own);
            told.push(match rule.action {
                Action::Accept => [order, ACCEPT, 0],
                Action::Deny => [order, DENY, rule.number.0],
                Action::Pass => [order, PASS, 0],
            });
        }
        let none = stage.otherwise.map_or([LAST, PASS, 0], |number| [LAST, DENY, number.0]);
        Self { told, none }
    }

    /// What is told of a place among the rules.
    fn at(&self, place: u32) -> Told {
        self.told.get(place as usize).copied().unwrap_or(self.none)
    }
}

/// The places of the rules that can be met by identity.
fn by_identity(stage: &Stage) -> Vec<u32> {
    let rows: BTreeSet<Row> = stage.identities.iter().map(|(_, row)| *row).collect();
    let of_row = |row: &Row| {
        let verdicts = stage.rows.get(row.0 as usize)?;
        let own = stage.verdicts_of(*row).iter().map(|(_, place)| *place);
        Some(own.chain([verdicts.otherwise]))
    };
    let all = rows.iter().chain([&Row::NONE]).filter_map(of_row).flatten();
    let places: BTreeSet<u32> = all.filter(|place| *place != Stage::NO_RULE).collect();
    places.into_iter().collect()
}

/// How many orders a stage tells apart.
pub(super) fn orders(stage: &Stage) -> u32 {
    2 * by_identity(stage).len() as u32 + 1
}

/// Up to which order all are compared, if the most that any stage has is this.
pub(super) fn compared(most: u32) -> u32 {
    most.max(LEAST_ORDERS).next_power_of_two()
}

/// What compares orders from one on, up to another.
pub(super) fn earlier(from: u32, to: u32) -> Vec<Entry> {
    let interval = |order: u32| Entry {
        set: Set::Earlier,
        key: words([0, order, order]),
        end: Some(words([0, order + 1, 0])),
        data: Vec::new(),
    };
    (from..to).map(interval).collect()
}

/// The comparison of none with none, which is always there.
pub(super) fn none_with_none() -> Entry {
    Entry { set: Set::Earlier, key: words([0, LAST, LAST]), end: None, data: Vec::new() }
}

/// Which verdicts a row has: for each class from which on it is another one.
type Column = Vec<(u32, Told)>;

fn column(stage: &Stage, rules: &Rules, row: usize) -> Column {
    let otherwise = stage.rows.get(row).map_or(rules.none, |verdicts| rules.at(verdicts.otherwise));
    let mut column = vec![(0, otherwise)];
    let mut turn = |class: u32, told: Told| {
        if let Some(last) = column.last_mut().filter(|(from, _)| *from == class) {
            last.1 = told;
        } else {
            column.push((class, told));
        }
    };
    if row < stage.rows.len() {
        for (class, place) in stage.verdicts_of(Row(row as u32)) {
            turn(class.0, rules.at(*place));
            turn(class.0 + 1, otherwise);
        }
    }
    column.dedup_by_key(|(_, told)| *told);
    column
}

/// Everything of one stage, sorted.
pub(super) fn of_stage(id: StageId, stage: &Stage) -> Vec<Entry> {
    let (id, rules) = (id.0, Rules::of(stage));
    let mut entries = Vec::new();
    // Rows of one content are one.
    let mut columns: BTreeMap<Column, u32> = BTreeMap::from([(column(stage, &rules, 0), Row::NONE.0)]);
    let mut rows = Vec::with_capacity(stage.rows.len());
    for row in 0..stage.rows.len() {
        rows.push(*columns.entry(column(stage, &rules, row)).or_insert(row as u32));
    }
    let row_of = |row: Row| rows.get(row.0 as usize).copied().unwrap_or(Row::NONE.0);
    for (column, row) in &columns {
        let keys = column.iter().map(|(class, told)| (words([0, id, *row, *class]), *told));
        intervals(Set::Verdicts, keys, words([0, id, row + 1, 0]), &mut entries);
    }
    for (identity, row) in &stage.identities {
        let of_identity = |number| Entry {
            set: Set::Rows,
            key: words([0, id, number]),
            end: None,
            data: words([row_of(*row)]),
        };
        let numbers = [Some(identity.0), (*identity == Identity::WORLD).then_some(NOBODY)];
        entries
            .extend(numbers.into_iter().flatten().filter(|_| row_of(*row) != Row::NONE.0).map(of_identity));
    }
    let key = |address: IpAddr| [words([0, id]), address_bytes(address)].concat();
    let v4 = stage.v4.iter().map(|(from, row)| (key((*from).into()), [row_of(*row)]));
    let v6 = stage.v6.iter().map(|(from, row)| (key((*from).into()), [row_of(*row)]));
    let first = |address: IpAddr| (key(address), [Row::NONE.0]);
    let behind = |length: usize| [words([0, id + 1]), vec![0; length]].concat();
    let v4 = [first([0; 4].into())].into_iter().filter(|_| stage.v4.is_empty()).chain(v4);
    let v6 = [first([0; 16].into())].into_iter().filter(|_| stage.v6.is_empty()).chain(v6);
    intervals(Set::Pieces(Family::V4), v4, behind(4), &mut entries);
    intervals(Set::Pieces(Family::V6), v6, behind(16), &mut entries);
    intervals(Set::Classes, classes(id, stage), behind(8), &mut entries);
    entries.sort_unstable();
    entries
}

/// The classes of a stage: of every protocol number and every port, those without ports included.
fn classes(id: u32, stage: &Stage) -> impl Iterator<Item = (Vec<u8>, [u32; 1])> {
    // A byte and two bytes, each loaded into a register of four.
    let key = move |protocol: u8, port: u16| {
        let [high, low] = port.to_be_bytes();
        [words([0, id]), vec![protocol, 0, 0, 0, high, low, 0, 0]].concat()
    };
    let mut protocols = [PortProtocol::Tcp, PortProtocol::Udp, PortProtocol::Sctp];
    protocols.sort_by_key(|protocol| protocol.number().0);
    let pieces = protocols.into_iter().flat_map(move |protocol| {
        let number = protocol.number().0;
        let own = stage.ports_of(protocol).iter().map(move |(port, class)| (key(number, *port), [class.0]));
        own.chain([(key(number + 1, 0), [0])])
    });
    [(key(0, 0), [0])].into_iter().chain(pieces)
}

/// Consecutive intervals, each up to where the next one begins; neighbours that lead to the same are one.
fn intervals<const N: usize>(
    set: Set,
    starts: impl Iterator<Item = (Vec<u8>, [u32; N])>,
    behind: Vec<u8>,
    entries: &mut Vec<Entry>,
) {
    let mut open: Option<(Vec<u8>, [u32; N])> = None;
    for (start, data) in starts {
        match &mut open {
            // An empty one.
            Some((from, old)) if *from == start => *old = data,
            Some((_, old)) if *old == data => {}
            _ => {
                if let Some((key, old)) = open.take() {
                    entries.push(Entry { set, key, end: Some(start.clone()), data: words(old) });
                }
                open = Some((start, data));
            }
        }
    }
    if let Some((key, data)) = open {
        entries.push(Entry { set, key, end: Some(behind), data: words(data) });
    }
}

/// Who has an address.
pub(super) fn of_peer(address: IpAddr, identity: Identity) -> Entry {
    let set = Set::Peers(Family::of(address));
    Entry { set, key: address_bytes(address), end: None, data: words([identity.0]) }
}

/// The prefixes of all clusters.
pub(super) fn of_clusters(prefixes: &[IpNetwork]) -> Vec<Entry> {
    let interval = |prefix: IpNetwork| {
        let (first, last) = ends(prefix);
        let end = match last {
            IpAddr::V4(last) => u32::from(last).checked_add(1).map(|end| end.to_be_bytes().to_vec()),
            IpAddr::V6(last) => u128::from(last).checked_add(1).map(|end| end.to_be_bytes().to_vec()),
        };
        Entry { set: Set::Clusters(Family::of(first)), key: address_bytes(first), end, data: Vec::new() }
    };
    let mut entries: Vec<Entry> = flatten(prefixes.iter().copied()).into_iter().map(interval).collect();
    entries.sort_unstable();
    entries
}

/// What is asked of an endpoint of this node, and what its flows bear that have been judged.
pub(super) fn of_endpoint(endpoint: &Endpoint, stamps: &Stamps) -> Vec<Entry> {
    let mut entries = Vec::new();
    for address in &endpoint.addresses {
        let (family, bytes) = (Family::of(*address), address_bytes(*address));
        for direction in Direction::BOTH {
            let key = |number| [bytes.clone(), words([number])].concat();
            let of_place = |(number, stage)| Entry {
                set: Set::Tables(family),
                key: key(place(direction, number)),
                end: None,
                data: words([stage]),
            };
            entries.extend(places(endpoint.policy.of(direction)).map(of_place));
            let Some(stamp) = stamps.of(*address, direction) else { continue };
            entries.push(Entry {
                set: Set::Stamps(family),
                key: key(number_of(direction)),
                end: None,
                data: words([stamp.0.into()]),
            });
            entries.push(of_judged(family, &bytes, direction, stamp));
        }
    }
    entries.sort_unstable();
    entries
}

/// A flow that has been judged under the table that holds.
fn of_judged(family: Family, address: &[u8], direction: Direction, stamp: Stamp) -> Entry {
    // A mark is a number in the machine's own order.
    let key = [address, &stamp.as_mark(direction).to_ne_bytes()].concat();
    Entry { set: Set::Current(family), key, end: None, data: Vec::new() }
}

/// The stages of a table. Of one that has more than can be asked, the last place leads to nothing, and that is denied.
fn places(table: &Table) -> impl Iterator<Item = (u32, u32)> + '_ {
    let too_many = table.stages.len() > PLACES as usize;
    let numbers = (0..PLACES).zip(&table.stages);
    numbers
        .map(move |(place, stage)| (place, if too_many && place == PLACES - 1 { NO_STAGE } else { stage.0 }))
}

#[cfg(test)]
mod tests;
