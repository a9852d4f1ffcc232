//! Tables of connections that releases have left, in `data/`: those of this layout are taken over as they are, others refused.
#![expect(clippy::unwrap_used, reason = "a story that goes wrong is a panic")]

mod rig;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use causeway_datapath::connection::{Connections, Timeouts};
use causeway_datapath::{Port, Tracking};
use causeway_model::service::{
    Answer, At, Backend, Backends, BackendsId, Frontend, Service, ServicePort, Services,
};
use causeway_model::{DropReason, Family, PortProtocol};
use rig::{Side, inner_to_east, plain, sent_by, snapshot, tcp, tunnelled, udp};

const CAPACITY: u32 = 8;
const A: &str = "10.70.1.10";
const FAR: &str = "10.70.2.10";
const VIP: &str = "10.96.0.10";
/// The moment of a kept table's packets, and of its records.
const NOW: u64 = 5_000_000_000;

type Words = &'static [AtomicU64];

fn memory() -> Words {
    (0..Connections::words(CAPACITY)).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak()
}

/// A node whose pod takes no new connections.
fn denying(connections: Connections, deny_new: bool) -> Side {
    let mut snapshot = snapshot(1, Family::V4);
    snapshot.services = Arc::new(services());
    snapshot.endpoints.get_mut(&rig::key("a")).unwrap().deny_new = deny_new;
    let Side { world, worker, slots, .. } = Side::of(&snapshot);
    let worker = worker.into_inner().tracking(Tracking::new(connections));
    Side { world, worker: RefCell::new(worker), slots, now: NOW }
}

fn out(side: &Side, packet: &[u8]) -> Result<(), DropReason> {
    side.one(side.port("a"), plain(&sent_by(10, packet))).map(drop)
}

fn back(side: &Side, packet: &[u8]) -> Result<(), DropReason> {
    side.one(Port::Uplink, plain(&tunnelled(&inner_to_east(packet)))).map(drop)
}

/// A segment in the middle of a connection.
fn ack(from: &str, to: &str, ports: (u16, u16), len: usize) -> Vec<u8> {
    rig::with(tcp(from, to, ports, len), 33, 0x10)
}

/// One service.
fn services() -> Services {
    let at = At::Address(VIP.parse().unwrap());
    let id = ServicePort {
        cluster: "lyon".parse().unwrap(),
        namespace: "default".into(),
        name: "dns".into(),
        port: String::new(),
    };
    let answer = Answer::Backends(BackendsId(1));
    let service = Service { id, inside: answer, outside: answer, sources: None, affinity: None };
    let chosen = vec![Backend { address: FAR.parse().unwrap(), port: 5353 }];
    Services {
        frontends: [(Frontend { at, protocol: PortProtocol::Udp, port: 53 }, service)].into(),
        backends: [(BackendsId(1), Arc::new(Backends::alike(chosen, Vec::new())))].into(),
        prefixes: vec!["10.96.0.0/12".parse().unwrap()],
        ..Services::default()
    }
}

/// What a release leaves: a flow of datagrams with an answer, one without, a connection taken up in the middle, one with a service.
fn make() -> Words {
    let words = memory();
    let side = denying(Connections::open(words, CAPACITY).unwrap(), false);
    out(&side, &udp(A, FAR, (1000, 53), 20)).unwrap();
    back(&side, &udp(FAR, A, (53, 1000), 30)).unwrap();
    out(&side, &udp(A, FAR, (1001, 53), 20)).unwrap();
    out(&side, &ack(A, FAR, (1002, 80), 100)).unwrap();
    out(&side, &udp(A, VIP, (1004, 53), 20)).unwrap();
    back(&side, &udp(FAR, A, (5353, 1004), 30)).unwrap();
    words
}

/// The words that are not zero, a line each.
fn kept(words: Words) -> String {
    let mut text = String::new();
    for (index, word) in words.iter().enumerate() {
        match word.load(Ordering::Relaxed) {
            0 => {}
            word => writeln!(text, "{index} {word:x}").unwrap(),
        }
    }
    text
}

fn restored(text: &str) -> Words {
    let words = memory();
    for line in text.lines() {
        let (index, word) = line.split_once(' ').unwrap();
        let word = u64::from_str_radix(word, 16).unwrap();
        words[index.parse::<usize>().unwrap()].store(word, Ordering::Relaxed);
    }
    words
}

fn tables() -> BTreeMap<String, String> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    files
        .map(|file| {
            (file.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(file).unwrap())
        })
        .collect()
}

/// The name of this release's layout.
fn layout() -> String {
    let words = memory();
    Connections::open(words, CAPACITY).unwrap();
    format!("{:x}", words[0].load(Ordering::Relaxed))
}

#[test]
fn a_table_of_this_layout_is_taken_over_with_everything_in_it() {
    let (tables, layout) = (tables(), layout());
    let now = kept(make());
    let Some(table) = tables.get(&layout) else {
        panic!(
            "a new layout: keep a table of it as tests/data/{layout}.table, beside those of before:\n{now}"
        )
    };
    let words = restored(table);
    let connections = Connections::open(words, CAPACITY).unwrap();
    let fresh = Connections::open(restored(&now), CAPACITY).unwrap();
    let records = |table: &Connections| table.records(NOW, &Timeouts::default()).collect::<Vec<_>>();
    assert_eq!(
        records(&connections),
        records(&fresh),
        "what lies where has changed, and the layout's number has not"
    );
    let side = denying(connections, true);
    assert_eq!(back(&side, &udp(FAR, A, (53, 1000), 20)), Ok(()), "an answered flow goes on");
    assert_eq!(
        back(&side, &ack(FAR, A, (80, 1002), 10)),
        Ok(()),
        "so does one that was taken up in the middle"
    );
    assert_eq!(out(&side, &udp(A, VIP, (1004, 53), 20)), Ok(()), "so does one with a service");
    assert_eq!(back(&side, &udp(FAR, A, (5353, 1004), 20)), Ok(()), "both ways");
    assert_eq!(
        out(&side, &udp(A, FAR, (1001, 53), 20)),
        Err(DropReason::DeniedNew),
        "nobody has answered it"
    );
    assert_eq!(back(&side, &udp(FAR, A, (53, 1003), 20)), Err(DropReason::DeniedNew), "another one is new");
}

#[test]
fn a_table_of_another_layout_is_refused_and_not_changed() {
    let own = layout();
    let mut others: Vec<_> = tables().into_iter().filter(|(layout, _)| *layout != own).collect();
    // There may be none yet: one of a release to come.
    let next = restored(&kept(make()));
    next[0].fetch_add(1, Ordering::Relaxed);
    others.push(("of a release to come".into(), kept(next)));
    for (layout, table) in others {
        let words = restored(&table);
        let refused = Connections::open(words, CAPACITY).expect_err("it was taken over");
        assert!(refused.to_string().contains(&own), "{layout}: {refused}");
        assert_eq!(kept(words), table, "{layout}");
    }
}
