//! Messages that make a table and change it, and what is there as the kernel lists it.

use std::collections::{BTreeMap, BTreeSet};

use causeway_model::DropReason;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP};
use nix::errno::Errno;

use super::{Definition, Entry, Named, Rule, Verdict, words};
use crate::error::KernelError;
use crate::netlink::Netlink;
use crate::nfnetlink::{
    DATA_VALUE, DELETE_ELEMENTS, ELEMENT, ELEMENT_DATA, ELEMENT_EXPIRATION, ELEMENT_FLAGS, ELEMENT_KEY,
    ELEMENT_TIMEOUT, ELEMENTS, ELEMENTS_SET, ELEMENTS_TABLE, FAMILY_INET, GET_ELEMENTS, INTERVAL_END, NESTED,
    NEW_ELEMENTS, NFTABLES, OBJECT_IS_COUNTER, OBJECT_NAME, OBJECT_TABLE, OBJECT_TYPE, PIECE, Record, ask,
    attribute, attributes, part,
};

const NEW_TABLE: u16 = NFTABLES;
const DELETE_TABLE: u16 = NFTABLES | 2;
const NEW_CHAIN: u16 = NFTABLES | 3;
const GET_CHAIN: u16 = NFTABLES | 4;
const DELETE_CHAIN: u16 = NFTABLES | 5;
const NEW_RULE: u16 = NFTABLES | 6;
const GET_RULE: u16 = NFTABLES | 7;
const NEW_SET: u16 = NFTABLES | 9;
const GET_SET: u16 = NFTABLES | 10;
const NEW_OBJECT: u16 = NFTABLES | 18;
/// NFTA_CHAIN_…
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
/// NF_ACCEPT.
const ACCEPTED: u32 = 1;
/// NFTA_RULE_…
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
/// NFTA_SET_…
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LENGTH: u16 = 7;
const SET_DESCRIPTION: u16 = 9;
const SET_ID: u16 = 10;
const SET_USER_DATA: u16 = 13;
const SET_EXPRESSION: u16 = 17 | NESTED;
const DESCRIPTION_SIZE: u16 = 1;
/// NFT_SET_ELEM_CATCHALL.
const CATCH_ALL: u32 = 2;
/// Keys are numbers with the highest byte first (NFTNL_UDATA_SET_KEYBYTEORDER): for whoever lists the table.
const BIG_ENDIAN: [u8; 6] = {
    let [a, b, c, d] = 2_u32.to_ne_bytes();
    [0, 4, a, b, c, d]
};

/// A message and its flags.
pub(crate) type Message = (Record, u16);

/// Where packets come to a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    /// `filter` or `nat`.
    pub(crate) kind: &'static str,
    /// NF_INET_…
    pub(crate) number: u32,
    pub(crate) priority: i32,
}

/// A chain and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: String,
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<Rule>,
}

/// A map that leads to chains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) name: String,
    pub(crate) definition: Definition,
    pub(crate) leads: Vec<(Vec<u8>, Verdict)>,
}

/// A table of ours, by its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table(pub(crate) &'static str);

fn name(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn new(kind: u16, parts: &[(u16, &[u8])]) -> Message {
    (Record::question(kind, FAMILY_INET, parts), NLM_F_CREATE)
}

impl Table {
    /// An empty one in the place of whatever is there.
    pub(crate) fn anew(self) -> Vec<Message> {
        let table = name(self.0);
        vec![
            new(NEW_TABLE, &[(1, &table)]),
            (Record::question(DELETE_TABLE, FAMILY_INET, &[(1, &table)]), 0),
            new(NEW_TABLE, &[(1, &table)]),
        ]
    }

    pub(crate) fn counter(self, reason: DropReason) -> Message {
        let kind = OBJECT_IS_COUNTER.to_be_bytes();
        let parts: [(u16, &[u8]); 4] = [
            (OBJECT_TABLE, &name(self.0)),
            (OBJECT_NAME, &name(reason.label())),
            (OBJECT_TYPE, &kind),
            (4 | NESTED, &[]),
        ];
        new(NEW_OBJECT, &parts)
    }

    /// A chain without its rules, which may refer to any other chain.
    pub(crate) fn chain(self, chain: &Chain) -> Message {
        let (table, own) = (name(self.0), name(&chain.name));
        let mut parts: Vec<(u16, &[u8])> = vec![(CHAIN_TABLE, &table), (CHAIN_NAME, &own)];
        let Some(Hook { kind, number, priority }) = chain.hook else { return new(NEW_CHAIN, &parts) };
        let (kind, policy) = (name(kind), ACCEPTED.to_be_bytes());
        let hook = [attribute(1, &number.to_be_bytes()), attribute(2, &priority.to_be_bytes())].concat();
        parts.extend([
            (CHAIN_HOOK | NESTED, hook.as_slice()),
            (CHAIN_POLICY, policy.as_slice()),
            (CHAIN_TYPE, kind.as_slice()),
        ]);
        new(NEW_CHAIN, &parts)
    }

    /// A chain goes with its rules; nothing may lead to it any more.
    pub(crate) fn no_chain(self, chain: &Chain) -> Message {
        let (table, own) = (name(self.0), name(&chain.name));
        (Record::question(DELETE_CHAIN, FAMILY_INET, &[(CHAIN_TABLE, &table), (CHAIN_NAME, &own)]), 0)
    }

    /// The rules of a chain.
    pub(crate) fn rules(self, chain: &Chain) -> impl Iterator<Item = Message> + '_ {
        let (table, own) = (name(self.0), name(&chain.name));
        chain.rules.iter().map(move |rule| {
            let parts: [(u16, &[u8]); 3] =
                [(RULE_TABLE, &table), (RULE_CHAIN, &own), (RULE_EXPRESSIONS | NESTED, &rule.0)];
            (Record::question(NEW_RULE, FAMILY_INET, &parts), NLM_F_CREATE | NLM_F_APPEND)
        })
    }

    /// A set; each of one transaction has a number of its own.
    pub(crate) fn set(self, set: &str, definition: &Definition, id: u32) -> Message {
        let be = u32::to_be_bytes;
        let (table, own) = (name(self.0), name(set));
        let (flags, id) = (be(definition.flags), be(id));
        let (kind, length) = (be(definition.key.0), be(definition.key.1));
        let mut parts: Vec<(u16, &[u8])> = vec![
            (SET_TABLE, &table),
            (SET_NAME, &own),
            (SET_FLAGS, &flags),
            (SET_KEY_TYPE, &kind),
            (SET_KEY_LENGTH, &length),
            (SET_ID, &id),
            (SET_USER_DATA, &BIG_ENDIAN),
        ];
        let (kind, length) = definition.data.unwrap_or_default();
        let (kind, length) = (be(kind), be(length));
        if definition.data.is_some() {
            parts.extend([(SET_DATA_TYPE, kind.as_slice()), (SET_DATA_LENGTH, length.as_slice())]);
        }
        let size = definition.size.map(|size| attribute(DESCRIPTION_SIZE, &be(size)));
        parts.extend(size.iter().map(|size| (SET_DESCRIPTION | NESTED, size.as_slice())));
        let counter = Rule::counter();
        if definition.counted {
            parts.push((SET_EXPRESSION, &counter));
        }
        new(NEW_SET, &parts)
    }

    /// Where a map leads.
    pub(crate) fn leads(self, way: &str, leads: &[(Vec<u8>, Verdict)]) -> Message {
        let element = |(key, to): &(Vec<u8>, Verdict)| element(Some(key), Some(&to.bytes()), 0);
        let leads: Vec<u8> = leads.iter().flat_map(element).collect();
        self.list(NEW_ELEMENTS, way, &leads)
    }

    /// A map leads nowhere for a key.
    pub(crate) fn leads_no_more(self, way: &str, key: &[u8]) -> Message {
        self.list(DELETE_ELEMENTS, way, &element(Some(key), None, 0))
    }

    /// What a map has for all keys that it does not have.
    pub(crate) fn otherwise(self, set: &str, number: u32) -> Message {
        let data = attribute(DATA_VALUE, &words([number]));
        self.list(NEW_ELEMENTS, set, &element(None, Some(&data), CATCH_ALL))
    }

    fn list(self, kind: u16, set: &str, elements: &[u8]) -> Message {
        let (table, set) = (name(self.0), name(set));
        let parts = [(ELEMENTS_TABLE, table.as_slice()), (ELEMENTS_SET, &set), (ELEMENTS, elements)];
        let flags = if kind == NEW_ELEMENTS { NLM_F_CREATE } else { 0 };
        (Record::question(kind, FAMILY_INET, &parts), flags)
    }

    /// Sorted entries that go, or that come.
    pub(crate) fn entries<S: Named>(self, coming: bool, all: &[Entry<S>]) -> Vec<Message> {
        let kind = if coming { NEW_ELEMENTS } else { DELETE_ELEMENTS };
        let of_one_set = all.chunk_by(|one, next| one.set == next.set);
        // An interval is two elements.
        let pieces = of_one_set.flat_map(|entries| entries.chunks(PIECE / 2));
        let message = |piece: &[Entry<S>]| {
            let bytes: Vec<u8> = piece.iter().flat_map(elements).collect();
            self.list(kind, piece[0].set.name(), &bytes)
        };
        pieces.map(message).collect()
    }

    /// Has elements of a map that packets filled again, with the time that was left to each.
    pub(crate) fn again(self, map: &str, elements: &[Vec<u8>]) -> Vec<Message> {
        let kept = [ELEMENT_KEY & !NESTED, ELEMENT_DATA & !NESTED, ELEMENT_TIMEOUT, ELEMENT_EXPIRATION];
        let again = |bytes: &Vec<u8>| {
            let parts = kept.iter().filter_map(|kind| Some((*kind, part(bytes, *kind)?)));
            let nested = |kind| {
                if kind == ELEMENT_TIMEOUT || kind == ELEMENT_EXPIRATION { kind } else { kind | NESTED }
            };
            let parts: Vec<u8> = parts.flat_map(|(kind, value)| attribute(nested(kind), value)).collect();
            attribute(ELEMENT, &parts)
        };
        let pieces = elements.chunks(PIECE / 2);
        pieces
            .map(|piece| self.list(NEW_ELEMENTS, map, &piece.iter().flat_map(again).collect::<Vec<u8>>()))
            .collect()
    }

    /// Every element of a set but what it has for all other keys; none where there is no such set.
    pub(crate) fn found<S: Named>(self, netlink: &mut Netlink, set: S) -> Result<Vec<Found<S>>, KernelError> {
        let element = |bytes: &[u8]| {
            let flags = part(bytes, ELEMENT_FLAGS).and_then(|flags| flags.try_into().ok());
            let flags = flags.map_or(0, u32::from_be_bytes);
            if flags & CATCH_ALL != 0 {
                return None;
            }
            let data = part(bytes, ELEMENT_DATA & !NESTED).and_then(|data| part(data, DATA_VALUE));
            Some(((set, key_of(bytes)?, flags & INTERVAL_END != 0), data.unwrap_or_default().to_vec()))
        };
        Ok(self.elements(netlink, set.name())?.iter().filter_map(|bytes| element(bytes)).collect())
    }

    /// The elements of a set, unread; none where there is no such set.
    pub(crate) fn elements(self, netlink: &mut Netlink, set: &str) -> Result<Vec<Vec<u8>>, KernelError> {
        let (table, own) = (name(self.0), name(set));
        let parts = [(ELEMENTS_TABLE, table.as_slice()), (ELEMENTS_SET, own.as_slice())];
        let question = Record::question(GET_ELEMENTS, FAMILY_INET, &parts);
        let doing = format!("listing set {set} of nft table inet {}", self.0);
        let records = match ask(netlink, question, NLM_F_DUMP, &doing) {
            Err(error) if error.errno() == Some(Errno::ENOENT as i32) => return Ok(Vec::new()),
            answer => answer?,
        };
        let lists =
            records.iter().flat_map(Record::attributes).filter(|list| list.kind() == ELEMENTS & !NESTED);
        Ok(lists
            .flat_map(|list| attributes(list.value()).map(|e| e.value().to_vec()).collect::<Vec<_>>())
            .collect())
    }

    /// Whether an entry of a set without intervals is there, with what it leads to.
    pub(crate) fn is_there<S: Named>(
        self,
        netlink: &mut Netlink,
        entry: &Entry<S>,
    ) -> Result<bool, KernelError> {
        let (question, _) = self.list(GET_ELEMENTS, entry.set.name(), &element(Some(&entry.key), None, 0));
        let doing = "looking for an element of an nft set";
        match ask(netlink, question, 0, doing) {
            Ok(records) => Ok(records.iter().flat_map(Record::attributes).any(|list| {
                list.kind() == ELEMENTS & !NESTED
                    && attributes(list.value()).any(|found| {
                        let data = part(found.value(), ELEMENT_DATA & !NESTED);
                        data.and_then(|data| part(data, DATA_VALUE)).unwrap_or_default() == entry.data
                    })
            })),
            Err(error) if error.errno() == Some(Errno::ENOENT as i32) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Compares what is there with what was loaded: what is [fixed](Self::fixed), and the entries of these sets. Returns what
    /// differs, in words.
    pub(crate) fn compare<S: Named>(
        self,
        netlink: &mut Netlink,
        fixed: &BTreeSet<Vec<u8>>,
        entries: &[Entry<S>],
        sets: impl Iterator<Item = S>,
    ) -> Result<Vec<String>, KernelError> {
        let table = self.0;
        let there = self.fixed(netlink)?;
        if there.is_empty() {
            return Ok(vec![format!("nft table inet {table} was gone")]);
        }
        if there != *fixed {
            return Ok(vec![format!("the chains of nft table inet {table} had changed")]);
        }
        let wanted: BTreeMap<_, _> = entries.iter().flat_map(as_found).collect();
        let mut complaints = Vec::new();
        for set in sets {
            let found: Vec<Found<S>> = self.found(netlink, set)?;
            let surplus = found.iter().filter(|(key, data)| wanted.get(key) != Some(data)).count();
            let found: BTreeSet<_> = found.into_iter().map(|(key, _)| key).collect();
            let missing = wanted.keys().filter(|key| key.0 == set && !found.contains(*key)).count();
            if missing + surplus > 0 {
                let name = set.name();
                complaints.push(format!(
                    "nft set {name} of {table} lacked {missing} elements and had {surplus} of others"
                ));
            }
        }
        Ok(complaints)
    }

    /// What never changes in the table that is there: its chains, rules and sets as the kernel tells of them, less what it numbers
    /// and counts. Empty if there is no table.
    pub(crate) fn fixed(self, netlink: &mut Netlink) -> Result<BTreeSet<Vec<u8>>, KernelError> {
        let chain = [CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE];
        let rule = [RULE_CHAIN, RULE_EXPRESSIONS];
        let set = [SET_NAME, SET_FLAGS, SET_KEY_TYPE, SET_KEY_LENGTH, SET_DATA_TYPE, SET_DATA_LENGTH];
        let kinds: [(u16, &[u16]); 3] = [(GET_CHAIN, &chain), (GET_RULE, &rule), (GET_SET, &set)];
        let mut all = BTreeSet::new();
        let table = name(self.0);
        for (kind, kept) in kinds {
            // The name of the table is the first attribute of each of them.
            let question = Record::question(kind, FAMILY_INET, &[(1, &table)]);
            let doing = format!("listing nft table inet {}", self.0);
            let records = match ask(netlink, question, NLM_F_DUMP, &doing) {
                Err(error) if error.errno() == Some(Errno::ENOENT as i32) => Vec::new(),
                answer => answer?,
            };
            // The order of rules tells, that of others does not.
            let mut places: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
            for record in records {
                let own = record.attributes().any(|part| part.kind() == 1 && part.value() == table);
                let parts = record.attributes().filter(|part| kept.contains(&part.kind()));
                let parts: Vec<(u16, Vec<u8>)> =
                    parts.map(|part| (part.kind(), part.value().to_vec())).collect();
                let Some((_, first)) = parts.first().filter(|_| own) else { continue };
                let place = places.entry(first.clone()).or_default();
                let head = [kind.to_be_bytes().to_vec(), place.to_be_bytes().to_vec()].concat();
                *place += 1;
                let rest = parts.iter().flat_map(|(kind, value)| attribute(*kind, value));
                all.insert(head.into_iter().chain(rest).collect());
            }
        }
        Ok(all)
    }
}

/// An element: its key, its data as attributes, its flags.
fn element(key: Option<&[u8]>, data: Option<&[u8]>, flags: u32) -> Vec<u8> {
    let mut parts = Vec::new();
    if let Some(key) = key {
        parts.extend(attribute(ELEMENT_KEY, &attribute(DATA_VALUE, key)));
    }
    if let Some(data) = data {
        parts.extend(attribute(ELEMENT_DATA, data));
    }
    if flags != 0 {
        parts.extend(attribute(ELEMENT_FLAGS, &flags.to_be_bytes()));
    }
    attribute(ELEMENT, &parts)
}

/// An entry as elements: in a set of intervals its beginning and its end.
fn elements<S>(entry: &Entry<S>) -> Vec<u8> {
    let data = (!entry.data.is_empty()).then(|| attribute(DATA_VALUE, &entry.data));
    let mut bytes = element(Some(&entry.key), data.as_deref(), 0);
    if let Some(end) = &entry.end {
        bytes.extend(element(Some(end), None, INTERVAL_END));
    }
    bytes
}

/// The key of an element.
pub(crate) fn key_of(element: &[u8]) -> Option<Vec<u8>> {
    part(part(element, ELEMENT_KEY & !NESTED)?, DATA_VALUE).map(<[u8]>::to_vec)
}

/// An element as the kernel has it: its set, its key, whether it ends an interval, and its data.
pub(crate) type Found<S> = ((S, Vec<u8>, bool), Vec<u8>);

/// What elements of one set are as entries: of a set of intervals, each beginning with the end behind it.
pub(crate) fn entries_found<S: Named>(mut found: Vec<Found<S>>) -> Vec<Entry<S>> {
    // Where one interval ends another may begin.
    found.sort_unstable_by(|((_, one, ends), _), ((_, other, other_ends), _)| {
        one.cmp(other).then(other_ends.cmp(ends))
    });
    let mut entries: Vec<Entry<S>> = Vec::with_capacity(found.len());
    for ((set, key, ends), data) in found {
        match entries.last_mut().filter(|_| ends) {
            Some(begun) => begun.end = Some(key),
            None => entries.push(Entry { set, key, end: None, data }),
        }
    }
    entries
}

/// What entries are in the kernel.
fn as_found<S: Named>(entry: &Entry<S>) -> impl Iterator<Item = Found<S>> {
    let set = entry.set;
    let end = entry.end.clone().map(|end| ((set, end, true), Vec::new()));
    [((set, entry.key.clone(), false), entry.data.clone())].into_iter().chain(end)
}
