//! What nftables is asked over netlink rather than by nft, because it is asked often.

use std::io;

use causeway_model::{Count, DropReason};
use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
    NlaBuffer, NlasIterator,
};

use crate::error::KernelError;
use crate::netlink::{Failure, Netlink};
use crate::ruleset::TABLE;

/// NFNL_SUBSYS_NFTABLES, the upper half of a message's kind; the lower is the message of nftables.
const NFTABLES: u16 = 10 << 8;
const GET_GENERATION: u16 = NFTABLES | 16;
const GET_OBJECT: u16 = NFTABLES | 19;
/// `struct nfgenmsg`: family, version, resource.
const HEADER: usize = 4;
const FAMILY_INET: u8 = 1;
const GENERATION_ID: u16 = 1;
const OBJECT_TABLE: u16 = 1;
const OBJECT_NAME: u16 = 2;
const OBJECT_TYPE: u16 = 3;
const OBJECT_DATA: u16 = 4;
const OBJECT_IS_COUNTER: u32 = 1;
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;

/// A record of nfnetlink, unread.
#[derive(Debug)]
struct Record {
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
    /// A question with attributes.
    fn question(kind: u16, attributes: &[(u16, &[u8])]) -> Self {
        let mut body = vec![FAMILY_INET, 0, 0, 0];
        for (kind, value) in attributes {
            let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
            body.extend(length.to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        Self { kind, body }
    }

    fn attributes(&self) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
        attributes(self.body.get(HEADER..).unwrap_or_default())
    }
}

fn attributes(bytes: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(bytes).map_while(Result::ok)
}

fn ask(netlink: &mut Netlink, question: Record, flags: u16, doing: &str) -> Result<Vec<Record>, KernelError> {
    let answer = netlink.exchange(question, NLM_F_REQUEST | flags).map_err(|failure| match failure {
        Failure::Refused(source) => KernelError::Netlink { doing: doing.into(), source },
        Failure::Io(source) => KernelError::Io { doing: doing.into(), source },
    })?;
    Ok(answer.records)
}

/// The number of the last transaction of this namespace's nftables, whoever made it.
pub(crate) fn generation(netlink: &mut Netlink) -> Result<u32, KernelError> {
    let doing = "asking for the generation of nftables";
    let records = ask(netlink, Record::question(GET_GENERATION, &[]), 0, doing)?;
    let id = records.iter().flat_map(Record::attributes).find(|attribute| attribute.kind() == GENERATION_ID);
    id.and_then(|id| id.value().try_into().ok().map(u32::from_be_bytes)).ok_or_else(|| KernelError::Io {
        doing: doing.into(),
        source: io::Error::from(io::ErrorKind::InvalidData),
    })
}

/// The counters of our table that are named by a reason; none when there is no table.
pub(crate) fn counters(netlink: &mut Netlink) -> Result<Vec<(DropReason, Count)>, KernelError> {
    let table = format!("{TABLE}\0");
    let kind = OBJECT_IS_COUNTER.to_be_bytes();
    let question = Record::question(GET_OBJECT, &[(OBJECT_TABLE, table.as_bytes()), (OBJECT_TYPE, &kind)]);
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
            OBJECT_DATA => {
                for part in attributes(attribute.value()) {
                    let number = u64::from_be_bytes(part.value().try_into().ok()?);
                    match part.kind() {
                        COUNTER_BYTES => count.bytes = number,
                        COUNTER_PACKETS => count.packets = number,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some((reason?, count))
}
