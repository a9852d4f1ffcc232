use std::thread;

use causeway_wire::IpProtocol;

use super::super::key::Key;
use super::*;

fn memory(capacity: u32) -> &'static [AtomicU64] {
    (0..Connections::words(capacity)).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak()
}

fn key(number: u32) -> (Key, End) {
    Key::v4((number, 1), (9, 2), IpProtocol::UDP)
}

fn plain(key: Key) -> Keys {
    Keys { wire: (key, key.hash()), client: None }
}

fn insert(table: &Connections, number: u32, now: u32) -> Result<(Place, State, bool), NoPlace> {
    let (key, end) = key(number);
    let fill = |entry: Entry<'_>| entry.fill(&key, now, 0, 0);
    table.insert(&plain(key), beginning(end, Stage::New), fill, now, &Timeouts::default())
}

fn is_there(table: &Connections, number: u32) -> bool {
    let (key, from) = key(number);
    table.find(&key, key.hash(), from).is_some()
}

#[test]
fn what_was_inserted_is_found_until_it_is_released() {
    let table = Connections::open(memory(64), 64).unwrap();
    for number in 0..60 {
        let (place, ..) = insert(&table, number, 0).unwrap();
        assert!(is_there(&table, number), "{number}");
        let again = insert(&table, number, 0).unwrap().0;
        assert!(again.index <= place.index, "the lower place stays");
        table.settle(table.ended());
    }
    assert_eq!(table.live().count(), 60, "each once");
    let (key, from) = key(7);
    let place = table.find(&key, key.hash(), from).unwrap().place();
    assert!(table.release(place) && !table.release(place), "once");
    assert!(!is_there(&table, 7) && is_there(&table, 8));
}

#[test]
fn another_process_finds_what_was_there_and_nothing_half_done() {
    let memory = memory(128);
    let table = Connections::open(memory, 128).unwrap();
    for number in 0..100 {
        insert(&table, number, 0).unwrap();
    }
    // As after a kill: a place was claimed and not filled.
    table.claim(0, &Timeouts::default()).unwrap();
    let again = Connections::open(memory, 128).unwrap();
    assert!((0..100).all(|number| is_there(&again, number)));
    assert_eq!((again.live().count(), again.live_count()), (100, 100));
    for number in 100..128 {
        insert(&again, number, 0).unwrap();
    }
    assert_eq!(again.pressure(), Pressure::default(), "no place was lost");
    let other = Connections::open(memory, 64).expect_err("another size");
    assert_eq!(
        other.to_string(),
        format!("layout {LAYOUT:x} with 128 entries, where {LAYOUT:x} with 64 is expected")
    );
}

#[test]
fn a_full_table_lets_go_of_half_open_connections_first() {
    let table = Connections::open(memory(32), 32).unwrap();
    for number in 0..32 {
        let (place, state, _) = insert(&table, number, number).unwrap();
        if number % 2 == 0 {
            let entry = table.entry(place.index);
            entry.change(state, State { stage: Stage::Established, ..state }).unwrap();
        }
    }
    for number in 100..116 {
        insert(&table, number, 500).unwrap();
    }
    assert!((0..32).step_by(2).all(|number| is_there(&table, number)), "established ones stay");
    assert!(
        (1..32).step_by(2).all(|number| !is_there(&table, number)),
        "half-open ones went, old ones first"
    );
    assert_eq!(table.pressure(), Pressure { half_open: 16, idle: 0, refused: 0 });
}

#[test]
fn what_is_in_use_keeps_its_place_and_what_is_idle_does_not() {
    let table = Connections::open(memory(32), 32).unwrap();
    for number in 0..32 {
        let (place, state, _) = insert(&table, number, 0).unwrap();
        table.entry(place.index).change(state, State { stage: Stage::Established, ..state }).unwrap();
    }
    assert_eq!(insert(&table, 100, 10).err(), Some(NoPlace::Full));
    assert_eq!(table.pressure().refused, 1);
    insert(&table, 100, IDLE).unwrap();
    assert_eq!(table.pressure(), Pressure { half_open: 0, idle: 1, refused: 1 });
}

#[test]
fn time_ends_connections_and_their_places_come_back_after_a_grace() {
    let table = Connections::open(memory(32), 32).unwrap();
    (0..32).for_each(|number| assert!(insert(&table, number, number).is_ok()));
    let timeouts = Timeouts::default();
    let udp = timeouts.millis(Timeout::Udp);
    assert_eq!(table.sweep(0..32, udp + 9, &timeouts), 10);
    assert!(!is_there(&table, 9) && is_there(&table, 10));
    assert_eq!(table.pop(AT_FREE), None, "not before a grace");
    let ended = table.ended();
    assert!(!ended.is_empty() && table.ended().is_empty(), "taken once");
    table.settle(ended);
    let free: BTreeSet<_> = std::iter::from_fn(|| table.pop(AT_FREE)).collect();
    assert_eq!(free.len(), 10);
    assert_eq!(table.sweep(0..32, 15, &timeouts), 0, "what was seen after the clock was read is not over");
}

#[test]
fn owners_are_counted_and_known_again_by_their_addresses() {
    let memory = memory(64);
    let table = Connections::open(memory, 64).unwrap();
    let counts = |table: &Connections| [0, 3, 5].map(|owner| table.count_of(owner));
    for number in 0..20 {
        let (key, end) = key(number);
        let fill = |entry: Entry<'_>| entry.fill(&key, 0, if number < 15 { 3 } else { 5 }, 0);
        let begun = beginning(end, Stage::New);
        table.insert(&plain(key), begun, fill, 0, &Timeouts::default()).unwrap();
    }
    assert_eq!(counts(&table), [0, 15, 5]);
    let again = Connections::open(memory, 64).unwrap();
    assert_eq!(counts(&again), [0, 15, 5], "as they were left");
    // The pods have other numbers now, and one of them has gone.
    let first = |address| {
        u32::from(match address {
            IpAddr::V4(address) => address,
            IpAddr::V6(_) => unreachable!("a connection over IPv4"),
        })
    };
    again.adopt(|address| (first(address) != 9).then_some(5).filter(|_| first(address) < 12));
    assert_eq!(counts(&again), [0, 0, 11]);
    assert_eq!(again.live_count(), 11);
    let gone = [2_u32, 4, 77].map(|address| IpAddr::from(std::net::Ipv4Addr::from(address)));
    assert_eq!(again.end_of(&gone.into()), 2);
    assert_eq!((counts(&again), again.live_count()), ([0, 0, 9], 9));
    assert!(is_there(&again, 3) && !is_there(&again, 4));
}

#[test]
fn two_workers_with_the_same_new_flow_agree_on_one_connection() {
    const FLOWS: u32 = 20_000;
    let table = Connections::open(memory(1 << 16), 1 << 16).unwrap();
    let made: Vec<Vec<bool>> = thread::scope(|scope| {
        let run = || (0..FLOWS).map(|number| insert(&table, number, 0).unwrap().2).collect::<Vec<_>>();
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(run)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let keys: BTreeSet<_> = table.live().map(|(_, _, entry)| entry.key().0).collect();
    assert_eq!((keys.len(), table.live().count()), (FLOWS as usize, FLOWS as usize), "none twice, none lost");
    assert!((0..FLOWS as usize).all(|flow| made.iter().any(|made| made[flow])), "somebody made each");
    table.settle(table.ended());
    assert_eq!(table.live_count(), FLOWS);
    assert_eq!(table.live().count() + count_free(&table), 1 << 16, "no place is lost");
}

fn count_free(table: &Connections) -> usize {
    std::iter::from_fn(|| table.pop(AT_FREE)).count()
}

/// A connection of a client with a service, and its backend, and the keys of a packet of either: as the client has them, and as they
/// are on the wire.
fn served(client: u16, port: u16) -> (Keys, End, [(Key, End); 2]) {
    let (wire, from) = Key::v4((5, port), (9, 8080), IpProtocol::UDP);
    let (own, end) = Key::v4((5, client), (3, 80), IpProtocol::UDP);
    let answers =
        [Key::v4((3, 80), (5, client), IpProtocol::UDP), Key::v4((9, 8080), (5, port), IpProtocol::UDP)];
    assert_eq!(answers[0].0, own);
    (Keys { wire: (wire, wire.hash()), client: Some((own, own.hash(), end)) }, from, answers)
}

fn serve(table: &Connections, keys: &Keys, from: End) -> Result<(Place, State, bool), NoPlace> {
    let fill = |entry: Entry<'_>| entry.fill(&keys.wire.0, 0, 0, 0);
    table.insert(keys, beginning(from, Stage::New), fill, 0, &Timeouts::default())
}

#[test]
fn a_translated_connection_is_found_by_what_its_client_sends_and_by_what_answers_on_the_wire() {
    let memory = memory(64);
    let table = Connections::open(memory, 64).unwrap();
    let (keys, from, [unasked, answer]) = served(1000, 1000);
    let (place, ..) = serve(&table, &keys, from).unwrap();
    for table in [table, Connections::open(memory, 64).unwrap()] {
        let (client, hash, end) = keys.client.unwrap();
        let sent = table.find(&client, hash, end).unwrap();
        assert_eq!((sent.place(), sent.for_client, sent.is_onward()), (place, true, true));
        let back = table.find(&answer.0, answer.0.hash(), answer.1).unwrap();
        assert_eq!((back.place(), back.for_client, back.is_onward()), (place, false, false));
        let found = table.find(&unasked.0, unasked.0.hash(), unasked.1);
        assert!(found.is_none(), "nobody but we say it is the service");
        let found = table.find(&keys.wire.0, keys.wire.1, from);
        assert!(found.is_none(), "the client asks the backend itself");
        assert_eq!((sent.from, back.from), (from, from.other()));
    }
    let (client, hash, end) = keys.client.unwrap();
    assert!(table.release(place));
    assert_eq!(table.find(&client, hash, end).map(|found| found.place()), None);
    assert!(table.buckets.iter().flatten().all(|word| word.load(Relaxed) == 0), "both keys are out");
}

#[test]
fn two_connections_have_no_key_in_common() {
    let table = Connections::open(memory(64), 64).unwrap();
    let (keys, from, _) = served(1000, 1000);
    let (place, ..) = serve(&table, &keys, from).unwrap();
    let (other, ..) = served(1001, 1000);
    assert_eq!(serve(&table, &other, from).err(), Some(NoPlace::Clash), "of another client's port");
    let direct = plain(keys.wire.0);
    assert_eq!(
        serve(&table, &direct, from).err(),
        Some(NoPlace::Clash),
        "of the same one, without a service"
    );
    let (again, _, is_new) = serve(&table, &keys, from).unwrap();
    assert!(again.index <= place.index && (is_new || again == place), "the same one is one");
    let (elsewhere, from, _) = served(1001, 1024);
    assert!(serve(&table, &elsewhere, from).is_ok());
    assert_eq!(table.live().count(), 2);
}
