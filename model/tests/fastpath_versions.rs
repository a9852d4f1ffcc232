//! Agent and fast path one release apart understand each other: the records in data/fastpath are as the first release wrote them.
#![expect(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::fs;
use std::path::Path;

use causeway_model::fastpath::{Answer, Heard, Hello, Order, Outcome, Task};
use causeway_model::{Count, DropReason, UplinkKind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A kept record.
fn kept(name: &str) -> Value {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fastpath").join(name).with_extension("json");
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

/// All kept records whose name begins so.
fn names(prefix: &str) -> Vec<String> {
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fastpath")).unwrap();
    let names = files.map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned());
    let names: Vec<_> = names.filter(|name| name.starts_with(prefix)).collect();
    assert!(!names.is_empty(), "no record begins with {prefix}");
    names
}

/// Whether a reader of the first release finds all it needs where it looks for it; what it does not know it ignores.
fn suffices(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            theirs.iter().all(|(key, value)| ours.get(key).is_some_and(|ours| suffices(ours, value)))
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(ours, theirs)| suffices(ours, theirs))
        }
        (ours, theirs) => ours == theirs,
    }
}

/// The same record from a release to come: every structure has a field more.
fn grown(record: &Value) -> Value {
    match record {
        Value::Object(fields) => {
            let mut grown: serde_json::Map<_, _> =
                fields.iter().map(|(key, value)| (key.clone(), grown(value))).collect();
            // Of these the keys are data, and an enum has one key, which is its variant.
            let is_structure = fields.len() > 1 && !fields.contains_key("app");
            if is_structure {
                grown.insert("colour".to_owned(), json!({"of": ["blue"]}));
            }
            Value::Object(grown)
        }
        Value::Array(items) => items.iter().map(grown).collect(),
        other => other.clone(),
    }
}

fn read<T: DeserializeOwned>(record: &Value) -> T {
    serde_json::from_value(record.clone()).unwrap_or_else(|error| panic!("{error}: {record}"))
}

/// Reads a record of each release and writes it as ours.
fn assert_understood<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(prefix: &str) {
    for name in names(prefix) {
        let theirs = kept(&name);
        let read_here: T = read(&theirs);
        let ours = serde_json::to_value(&read_here).unwrap();
        assert!(suffices(&ours, &theirs), "{name}: a reader of before misses something in {ours}");
        assert_eq!(read::<T>(&grown(&theirs)), read_here, "{name} with more in it");
    }
}

#[test]
fn records_of_the_first_release_are_read_and_ours_are_read_by_it() {
    assert_understood::<Hello>("hello");
    assert_understood::<Order>("order-");
    assert_understood::<Answer>("answer-");
}

#[test]
fn what_the_first_release_did_not_say_has_its_old_meaning() {
    let hello: Hello = read(&kept("hello"));
    assert_eq!((hello.places, hello.unable, hello.ports.len()), (None, None, 3));
    let Task::Snapshot { snapshot, .. } = read::<Order>(&kept("order-snapshot")).what else {
        panic!("not a snapshot");
    };
    assert_eq!(snapshot.settings.uplink, UplinkKind::HostRouted);
    let endpoint = snapshot.endpoints.values().next().unwrap();
    assert_eq!((endpoint.routes.as_ref(), endpoint.deny_new, endpoint.port_mappings.len()), (None, false, 0));
    assert!(endpoint.bandwidth.is_none());
    let Outcome::Counted(tally) = read::<Answer>(&kept("answer-counted")).what else { panic!("not a count") };
    assert_eq!((tally.workers.len(), tally.connections), (0, None));
}

#[test]
fn an_order_that_nobody_here_can_read_is_known_by_its_number() {
    for name in names("order-") {
        let (heard, order): (Heard, Order) = (read(&kept(&name)), read(&kept(&name)));
        assert_eq!((heard.number, heard.what), (order.number, Ok(order.what)), "{name}");
    }
    for (what, word) in [
        (json!({"repaint": {"port": "host", "colour": "blue"}}), "repaint"),
        (json!("rest"), "rest"),
        (json!({"deltas": {"epoch": 3, "deltas": [{"weather": "fair"}]}}), "weather"),
        (json!({"plug": {"port": "moon", "device": {"ethdev": {"arguments": "", "queues": 1}}}}), "moon"),
    ] {
        let heard: Heard = read(&json!({"number": 7, "what": what}));
        assert_eq!(heard.number, 7);
        assert!(heard.what.as_ref().is_err_and(|why| why.contains(word)), "{heard:?}");
    }
}

#[test]
fn drops_of_reasons_to_come_are_counted_as_others() {
    let mut record = kept("answer-counted");
    let count = json!({"packets": 5, "bytes": 50});
    let tally = &mut record["what"]["counted"];
    tally["drops"] = json!([
        {"worker": 0, "reason": "blue-moon", "count": count}, {"worker": 0, "reason": "malformed", "count": count},
    ]);
    tally["endpoints"][0][1]["drops"] = json!({"blue-moon": count, "no-route": count, "red-moon": count});
    let Outcome::Counted(tally) = read::<Answer>(&record).what else { panic!("not a count") };
    let reasons: Vec<_> = tally.drops.iter().map(|line| line.reason).collect();
    assert_eq!(reasons, [DropReason::Other, DropReason::Malformed]);
    let drops = &tally.endpoints[0].1.drops;
    assert_eq!(drops[&DropReason::Other], Count { packets: 10, bytes: 100 });
    assert_eq!(drops[&DropReason::NoRoute], Count { packets: 5, bytes: 50 });
}
