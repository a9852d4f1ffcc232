//! What kill -9 leaves, at every step and at any moment: nothing that the next start does not know.

use std::env;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use causeway_model::plugin::{Failure, Reply, Request, Verb};

use super::bench::{Bench, CLUSTER, key, request, world};
use super::*;
use crate::addresses::Grant;

const DIRECTORY: &str = "CAUSEWAY_VICTIM_DIRECTORY";
const STEP: &str = "CAUSEWAY_VICTIM_STEP";

/// Runs this very program as the agent that will be killed.
fn victim(directory: &Path, step: &str) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "--ignored", "engine::crash_tests::an_agent_that_is_killed"]);
    command.env(DIRECTORY, directory).env(STEP, step);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// An ADD from a namespace whose path leads nowhere by the time anybody looks.
fn add(engine: &Engine, container: &str) -> Reply {
    engine.ask(&Request { netns: format!("/nowhere/{container}"), ..request(Verb::Add, container) })
}

#[test]
#[ignore = "it is killed on purpose, by the tests that look at what it leaves"]
fn an_agent_that_is_killed() {
    let directory = env::var(DIRECTORY).unwrap();
    let step = env::var(STEP).unwrap();
    let bench = Bench::new();
    let engine = bench.start_in(Path::new(&directory));
    engine.hear(Ok(world(&[CLUSTER])));
    let die = |at: &'static str| bench.dataplane.log().die = Some(at);
    match step.as_str() {
        "guarding" => die("changes"),
        "plugging" => die("attach"),
        "any" => loop {
            for container in ["c1", "c2", "c3"] {
                add(&engine, container);
            }
            for container in ["c3", "c1", "c2"] {
                engine.del(container);
            }
        },
        _ => {}
    }
    add(&engine, "c1");
    match step.as_str() {
        "unplugging" => die("detach"),
        "unguarding" => die("changes"),
        other => panic!("{other} did not kill it"),
    }
    engine.del("c1");
    panic!("{step} did not kill it");
}

/// A stage on which an agent died at a step.
fn killed_at(step: &str) -> Bench {
    let bench = Bench::new();
    let died = victim(bench.directory.path(), step).wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&died), Some(9), "{step}: {died}");
    bench
}

/// Every address can be had, and no more.
fn assert_all_free(engine: &Engine) {
    assert_eq!(engine.kept(), Vec::<String>::new());
    engine.hear(Ok(world(&[CLUSTER])));
    let mut given: Vec<_> = ["w", "x", "y", "z"].map(|container| engine.add(container)).into();
    given.sort();
    assert_eq!(given, ["10.70.1.3", "10.70.1.4", "10.70.1.5", "10.70.1.6"]);
    assert_eq!(engine.try_add("more").unwrap_err().code, Failure::RANGE_EXHAUSTED);
}

/// While it is guarded it is written down, so that it may be there or not; from then on it is, until all the rest is gone.
const STEPS: [&str; 4] = ["guarding", "plugging", "unplugging", "unguarding"];
const WRITTEN: [&str; 3] = ["plugging", "unplugging", "unguarding"];

#[test]
fn a_delete_after_a_crash_at_any_step_leaves_nothing() {
    for step in STEPS {
        let bench = killed_at(step);
        let engine = bench.start();
        if WRITTEN.contains(&step) {
            assert_eq!(engine.kept(), ["c1"], "{step}: the record is written before and is removed last");
        }
        engine.del("c1");
        assert_all_free(&engine);
    }
}

#[test]
fn a_reboot_after_a_crash_at_any_step_leaves_nothing() {
    for step in STEPS {
        let mut bench = killed_at(step);
        bench.boot = "second boot";
        assert_all_free(&bench.start());
    }
}

#[test]
fn a_crash_without_any_delete_is_collected() {
    for step in WRITTEN {
        let bench = killed_at(step);
        let engine = bench.start();
        // The namespace it names is this test's own, which lives; as if it did not.
        let record = engine.lock().parts.store.remove(&key("c1")).unwrap();
        let mut record = record.expect("it was written before and is removed last");
        record.netns.inode = 1;
        let (addresses, mac) = (record.endpoint.addresses.clone(), record.endpoint.mac);
        engine.lock().parts.store.insert(record, &Grant { addresses, mac }).unwrap();
        let now = Instant::now();
        engine.lock().collect_leaks(now);
        assert_eq!(engine.kept(), ["c1"], "{step}");
        engine.lock().collect_leaks(now + Duration::from_secs(11));
        assert_all_free(&engine);
    }
}

#[test]
fn a_crash_at_any_moment_leaves_a_store_that_is_whole() {
    let bench = Bench::new();
    for round in 0..12_u64 {
        let mut process = victim(bench.directory.path(), "any");
        // Its own start takes a part of it.
        thread::sleep(Duration::from_millis(150 + 37 * round % 90));
        process.kill().unwrap();
        process.wait().unwrap();
        let engine = bench.start();
        for container in ["c1", "c2", "c3"] {
            engine.del(container);
        }
        assert_eq!(engine.kept(), Vec::<String>::new(), "round {round}");
    }
    assert_all_free(&bench.start());
}
