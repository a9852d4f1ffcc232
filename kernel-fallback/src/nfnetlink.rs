//! What nftables is asked over netlink rather than by nft, because it is asked often.

use std::collections::BTreeMap;
use std::io;

use causeway_model::{Count, DropReason};
use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkSerializable, NlaBuffer, NlasIterator,
};
use nix::errno::Errno;

use crate::element::Element;
use crate::error::KernelError;
use crate::netlink::{Failure, Netlink};
use crate::ruleset::{DROPS, TABLE};

/// NFNL_SUBSYS_NFTABLES, the upper half of a message's kind; the lower is the message of nftables.
pub(crate) const NFTABLES: u16 = 10 << 8;
pub(crate) const NEW_ELEMENTS: u16 = NFTABLES | 12;
pub(crate) const GET_ELEMENTS: u16 = NFTABLES | 13;
pub(crate) const DELETE_ELEMENTS: u16 = NFTABLES | 14;
const GET_GENERATION: u16 = NFTABLES | 16;
const GET_OBJECT: u16 = NFTABLES | 19;
/// `struct nfgenmsg`: family, version, resource.
const HEADER: usize = 4;
pub(crate) const FAMILY_INET: u8 = 1;
const GENERATION_ID: u16 = 1;
/// NFNL_MSG_BATCH_BEGIN and …_END: what stands between them is one transaction.
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
/// NLA_F_NESTED.
pub(crate) const NESTED: u16 = 0x8000;
pub(crate) const ELEMENTS_TABLE: u16 = 1;
pub(crate) const ELEMENTS_SET: u16 = 2;
pub(crate) const ELEMENTS: u16 = 3 | NESTED;
pub(crate) const ELEMENT: u16 = 1 | NESTED;
pub(crate) const ELEMENT_KEY: u16 = 1 | NESTED;
pub(crate) const ELEMENT_DATA: u16 = 2 | NESTED;
pub(crate) const ELEMENT_FLAGS: u16 = 3;
pub(crate) const ELEMENT_TIMEOUT: u16 = 4;
pub(crate) const ELEMENT_EXPIRATION: u16 = 5;
pub(crate) const INTERVAL_END: u32 = 1;
const ELEMENT_KEY_END: u16 = 10 | NESTED;
pub(crate) const ELEMENT_EXPRESSION: u16 = 7;
pub(crate) const EXPRESSION_DATA: u16 = 2;
pub(crate) const DATA_VALUE: u16 = 1;
/// Elements in one message: what is nested has 16 bits for its length.
pub(crate) const PIECE: usize = 400;
pub(crate) const OBJECT_TABLE: u16 = 1;
pub(crate) const OBJECT_NAME: u16 = 2;
pub(crate) const OBJECT_TYPE: u16 = 3;
const OBJECT_DATA: u16 = 4;
pub(crate) const OBJECT_IS_COUNTER: u32 = 1;
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;

/// A record of nfnetlink, unread.
#[derive(Debug, Hash)]
pub(crate) struct Record {
    kind: u16,
    body: Vec<u8>,
}

impl NetlinkSerializable for Record {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..self.body.len()].copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Record {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self { kind: header.message_type, body: payload.to_vec() })
    }
}

impl Record {
    /// One that somebody else has read.
    pub(crate) fn of(kind: u16, body: &[u8]) -> Self {
        Self { kind, body: body.to_vec() }
    }

    /// A question about a family with attributes.
    pub(crate) fn question(kind: u16, family: u8, attributes: &[(u16, &[u8])]) -> Self {
        let mut body = vec![family, 0, 0, 0];
        for (kind, value) in attributes {
            body.extend(attribute(*kind, value));
        }
        Self { kind, body }
    }

    /// A question about a resource, which has no family.
    pub(crate) fn about(kind: u16, resource: u16, attributes: &[(u16, &[u8])]) -> Self {
        let mut record = Self::question(kind, 0, attributes);
        record.body[2..HEADER].copy_from_slice(&resource.to_be_bytes());
        record
    }

    /// The beginning or the end of a transaction; it names the subsystem where others have their resource.
    fn mark(kind: u16) -> Self {
        Self { kind, body: vec![0, 0, 0, (NFTABLES >> 8) as u8] }
    }

    /// Elements of one set of our table.
    fn elements(kind: u16, set: &str, elements: &[&Element]) -> Self {
        let (table, set) = (format!("{TABLE}\0"), format!("{set}\0"));
        let list: Vec<u8> = elements.iter().flat_map(|element| nested(element)).collect();
        let attributes =
            [(ELEMENTS_TABLE, table.as_bytes()), (ELEMENTS_SET, set.as_bytes()), (ELEMENTS, &list)];
        Self::question(kind, FAMILY_INET, &attributes)
    }

    pub(crate) fn attributes(&self) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
        attributes(self.body.get(HEADER..).unwrap_or_default())
    }
}

/// One attribute, padded.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn nested(element: &Element) -> Vec<u8> {
    let (key, end) = element.key();
    let mut parts = attribute(ELEMENT_KEY, &attribute(DATA_VALUE, &key));
    if let Some(end) = end {
        parts.extend(attribute(ELEMENT_KEY_END, &attribute(DATA_VALUE, &end)));
    }
    if let Some(data) = element.data() {
        parts.extend(attribute(ELEMENT_DATA, &attribute(DATA_VALUE, &data)));
    }
    let mut bytes = attribute(ELEMENT, &parts);
    if let Some(behind) = element.behind() {
        let mut parts = attribute(ELEMENT_KEY, &attribute(DATA_VALUE, &behind));
        parts.extend(attribute(ELEMENT_FLAGS, &INTERVAL_END.to_be_bytes()));
        bytes.extend(attribute(ELEMENT, &parts));
    }
    bytes
}

/// The attributes that bytes hold, as far as they can be read.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(bytes).map_while(Result::ok)
}

/// Asks one question of nfnetlink.
pub(crate) fn ask(
    netlink: &mut Netlink,
    question: Record,
    flags: u16,
    doing: &str,
) -> Result<Vec<Record>, KernelError> {
    let answer = netlink.exchange(question, NLM_F_REQUEST | flags);
    Ok(answer.map_err(|failure| failed(failure, doing))?.records)
}

pub(crate) fn failed(failure: Failure, doing: &str) -> KernelError {
    match failure {
        Failure::Refused(source) => KernelError::Netlink { doing: doing.into(), source },
        Failure::Io(source) => KernelError::Io { doing: doing.into(), source },
    }
}

/// The number of the last transaction of this namespace's nftables, whoever made it.
pub(crate) fn generation(netlink: &mut Netlink) -> Result<u32, KernelError> {
    let doing = "asking for the generation of nftables";
    let records = ask(netlink, Record::question(GET_GENERATION, FAMILY_INET, &[]), 0, doing)?;
    let id = records.iter().flat_map(Record::attributes).find(|attribute| attribute.kind() == GENERATION_ID);
    id.and_then(|id| id.value().try_into().ok().map(u32::from_be_bytes)).ok_or_else(|| KernelError::Io {
        doing: doing.into(),
        source: io::Error::from(io::ErrorKind::InvalidData),
    })
}

/// The messages that take elements of our table's sets away and bring others.
pub(crate) fn elements(gone: &[Element], new: &[Element]) -> Vec<(Record, u16)> {
    let mut messages = Vec::new();
    for (kind, flags, elements) in [(DELETE_ELEMENTS, 0, gone), (NEW_ELEMENTS, NLM_F_CREATE, new)] {
        let mut sets: BTreeMap<&str, Vec<&Element>> = BTreeMap::new();
        elements.iter().for_each(|element| sets.entry(element.set()).or_default().push(element));
        for (set, elements) in sets {
            let pieces = elements.chunks(PIECE);
            messages.extend(pieces.map(|piece| (Record::elements(kind, set, piece), flags)));
        }
    }
    messages
}

/// Sends messages as one transaction: all or nothing.
pub(crate) fn transact(
    netlink: &mut Netlink,
    mut messages: Vec<(Record, u16)>,
    doing: &str,
) -> Result<(), KernelError> {
    // Whatever is refused is answered. One answer tells that nothing was; one for each of thousands would not fit the socket.
    if let Some((_, flags)) = messages.last_mut() {
        *flags |= NLM_F_ACK;
    }
    messages.insert(0, (Record::mark(BEGIN), 0));
    messages.push((Record::mark(END), 0));
    netlink.transact(messages).map_err(|failure| failed(failure, doing))
}

/// What a set has at the place of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The element.
    It,
    /// In a map, its key, and the key leads elsewhere.
    OtherData,
    /// Nothing.
    Nothing,
}

/// Looks for an element: for its key and, in a map, for what that leads to.
pub(crate) fn find_element(netlink: &mut Netlink, element: &Element) -> Result<Found, KernelError> {
    let question = Record::elements(GET_ELEMENTS, element.set(), &[element]);
    match netlink.exchange(question, NLM_F_REQUEST) {
        Ok(answer) if answer.records.is_empty() => Ok(Found::Nothing),
        Ok(answer) => {
            let wanted = element.data();
            let right =
                wanted.is_none_or(|wanted| answer.records.iter().any(|record| leads_to(record, &wanted)));
            Ok(if right { Found::It } else { Found::OtherData })
        }
        Err(Failure::Refused(refusal)) if refusal.errno == Errno::ENOENT as i32 => Ok(Found::Nothing),
        Err(failure) => Err(failed(failure, "looking for an element of an nft set")),
    }
}

/// Whether a record of elements has one with this data.
fn leads_to(record: &Record, data: &[u8]) -> bool {
    let kind = |wanted: u16| move |part: &NlaBuffer<&[u8]>| part.kind() == wanted & !NESTED;
    record.attributes().filter(kind(ELEMENTS)).any(|list| {
        attributes(list.value()).any(|element| {
            attributes(element.value()).filter(kind(ELEMENT_DATA)).any(|value| {
                attributes(value.value()).any(|part| part.kind() == DATA_VALUE && part.value() == data)
            })
        })
    })
}

/// The counters of a table of ours that are named by a reason; none when there is no table.
pub(crate) fn counters(netlink: &mut Netlink, table: &str) -> Result<Vec<(DropReason, Count)>, KernelError> {
    let table = format!("{table}\0");
    let kind = OBJECT_IS_COUNTER.to_be_bytes();
    let question =
        Record::question(GET_OBJECT, FAMILY_INET, &[(OBJECT_TABLE, table.as_bytes()), (OBJECT_TYPE, &kind)]);
    let records = ask(netlink, question, NLM_F_DUMP, "listing the counters of drops")?;
    Ok(records.iter().filter_map(counter).collect())
}

fn counter(record: &Record) -> Option<(DropReason, Count)> {
    let mut reason = None;
    let mut count = Count::default();
    for attribute in record.attributes() {
        match attribute.kind() {
            OBJECT_NAME => {
                let name = attribute.value().strip_suffix(&[0])?;
                reason = DropReason::ALL.iter().copied().find(|reason| reason.label().as_bytes() == name);
            }
            OBJECT_DATA => count = count_of(attribute.value())?,
            _ => {}
        }
    }
    Some((reason?, count))
}

/// What a counter says.
pub(crate) fn count_of(counter: &[u8]) -> Option<Count> {
    let number = |kind| part(counter, kind)?.try_into().ok().map(u64::from_be_bytes);
    Some(Count { packets: number(COUNTER_PACKETS)?, bytes: number(COUNTER_BYTES)? })
}

/// What was dropped by pod's link and reason; none when there is no table.
pub(crate) fn pod_drops(netlink: &mut Netlink) -> Result<Vec<(String, DropReason, Count)>, KernelError> {
    let (table, set) = (format!("{TABLE}\0"), format!("{DROPS}\0"));
    let attributes = [(ELEMENTS_TABLE, table.as_bytes()), (ELEMENTS_SET, set.as_bytes())];
    let question = Record::question(GET_ELEMENTS, FAMILY_INET, &attributes);
    let records = match netlink.exchange(question, NLM_F_REQUEST | NLM_F_DUMP) {
        Ok(answer) => answer.records,
        Err(Failure::Refused(refusal)) if refusal.errno == Errno::ENOENT as i32 => Vec::new(),
        Err(failure) => return Err(failed(failure, "listing what was dropped of pods")),
    };
    let lists = records.iter().flat_map(Record::attributes).filter(|list| list.kind() == ELEMENTS & !NESTED);
    Ok(lists.flat_map(|list| attributes_of(list.value(), pod_drop)).collect())
}

fn attributes_of<T>(bytes: &[u8], read: impl Fn(&[u8]) -> Option<T>) -> Vec<T> {
    attributes(bytes).filter_map(|attribute| read(attribute.value())).collect()
}

/// An element of the set of drops: the link's name in sixteen bytes, the reason's number in four.
fn pod_drop(element: &[u8]) -> Option<(String, DropReason, Count)> {
    let key = part(part(element, ELEMENT_KEY & !NESTED)?, DATA_VALUE)?;
    let (link, number) = key.split_first_chunk::<16>()?;
    let link = link.split(|byte| *byte == 0).next().and_then(|name| std::str::from_utf8(name).ok())?;
    let reason = DropReason::ALL.get(u32::from_ne_bytes(number.try_into().ok()?) as usize)?;
    let counter = part(part(element, ELEMENT_EXPRESSION)?, EXPRESSION_DATA)?;
    Some((link.to_owned(), *reason, count_of(counter)?))
}

/// The value of one attribute among those that bytes hold.
pub(crate) fn part(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    let found = attributes(bytes).find(|part| part.kind() == wanted)?;
    let end = usize::from(found.length());
    found.into_inner().get(4..end)
}
