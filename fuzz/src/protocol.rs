//! Datagrams of the socket between agent and fast path.
//!
//! An input is datagrams, each with two bytes of length before it.

use std::fmt::Debug;

use causeway_datapath::{Links, NextHop, Slots, World};
use causeway_model::fastpath::{Answer, Assembler, Heard, Hello, Order, Task, chunks};
use causeway_model::{MacAddr, Snapshot};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The datagrams of an input.
fn datagrams(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut datagrams = Vec::new();
    while let Some((&[high, low], rest)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        datagrams.push(&rest[..length]);
        bytes = &rest[length..];
    }
    datagrams
}

/// An input of the datagrams of these records.
pub(crate) fn input(records: &[serde_json::Value]) -> Vec<u8> {
    let datagrams = records
        .iter()
        .flat_map(|record| chunks(record).unwrap_or_else(|error| unreachable!("a record of ours: {error}")));
    datagrams.flat_map(|datagram| [&(datagram.len() as u16).to_be_bytes()[..], &datagram].concat()).collect()
}

/// The records of one direction, to the first that cannot be read; each is written and read again alike.
fn records<T: DeserializeOwned>(bytes: &[u8]) -> Vec<T> {
    let mut assembler = Assembler::default();
    let mut records = Vec::new();
    for datagram in datagrams(bytes) {
        match assembler.push(datagram) {
            Ok(record) => records.extend(record),
            Err(_) => break,
        }
    }
    records
}

fn comes_through<T: Serialize + DeserializeOwned + PartialEq + Debug>(record: &T) {
    let datagrams = chunks(record).unwrap_or_else(|error| panic!("{record:?}: {error}"));
    let mut assembler = Assembler::default();
    let mut read = None;
    for datagram in &datagrams {
        assert!(read.is_none(), "a record ends before its last datagram");
        read = assembler.push::<T>(datagram).unwrap_or_else(|error| panic!("{record:?}: {error}"));
    }
    assert_eq!(read.as_ref(), Some(record));
}

/// Reads the datagrams as either side would, and does with what it reads what the fast path does.
pub fn run(bytes: &[u8]) {
    records::<Hello>(bytes).iter().for_each(comes_through);
    records::<Answer>(bytes).iter().for_each(comes_through);
    records::<Order>(bytes).iter().for_each(comes_through);
    let mut state: Option<Snapshot> = None;
    for heard in records::<Heard>(bytes) {
        match heard.what {
            Ok(Task::Snapshot { snapshot, .. }) => state = Some(*snapshot),
            Ok(Task::Deltas { deltas, .. }) => {
                let Some(state) = &mut state else { continue };
                let before = state.clone();
                deltas.into_iter().for_each(|delta| state.apply(delta));
                let mut again = before.clone();
                before.deltas_to(state).into_iter().for_each(|delta| again.apply(delta));
                assert_eq!(again, *state, "changes that do not lead where they shall");
            }
            _ => {}
        }
        if let Some(state) = &state {
            carry(state);
        }
    }
}

/// A state becomes tables, or is refused.
fn carry(state: &Snapshot) {
    let mut slots = Slots::new(4);
    slots.take_up(state);
    let mac = MacAddr([2, 0, 0, 0, 0, 1]);
    let links = Links { host: mac, source: mac, next_hop: NextHop::Same(mac) };
    drop(World::new(state, &slots, &links));
    slots.settle();
}
