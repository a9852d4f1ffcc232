//! Attachments whose pod has gone without a DEL: released after two looks, and never one that lives.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use causeway_model::plugin::{Reply, Request, Verb};
use nix::sched::{CloneFlags, unshare};

use super::bench::{Bench, CLUSTER, key, request, soon, world};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A namespace that nobody lives in and only this holds.
fn namespace() -> File {
    let made = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    made.join().unwrap()
}

/// A pod that was attached by a path, which can be taken away.
struct Attached {
    namespace: File,
    path: std::path::PathBuf,
}

impl Bench {
    fn attach(&self, engine: &Engine, container: &str) -> Attached {
        self.attach_in(engine, container, namespace())
    }

    fn attach_in(&self, engine: &Engine, container: &str, namespace: File) -> Attached {
        let path = self.directory.path().join(container);
        std::os::unix::fs::symlink(
            format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd()),
            &path,
        )
        .unwrap();
        let asked = Request { netns: path.display().to_string(), ..request(Verb::Add, container) };
        let descriptor = namespace.as_fd().try_clone_to_owned().unwrap();
        let reply = engine.answer(&asked, Some(descriptor), &soon());
        assert!(matches!(reply, Reply::Attached(_)), "{reply:?}");
        Attached { namespace, path }
    }
}

impl Attached {
    fn vanish(&self) {
        fs::remove_file(&self.path).unwrap();
    }

    /// A process that lives in it.
    fn inhabit(&self) -> Child {
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd());
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={path}")).args(["sleep", "60"]).stdin(Stdio::null());
        let child = command.spawn().unwrap();
        // Until it has entered.
        let name = format!("/proc/{}/comm", child.id());
        while fs::read_to_string(&name).unwrap().trim() != "sleep" {
            thread::sleep(Duration::from_millis(5));
        }
        child
    }
}

fn look(engine: &Engine, at: Instant) -> Vec<String> {
    engine.lock().collect_leaks(at);
    assert_eq!(engine.report().status.problems, Vec::<String>::new());
    engine.kept()
}

#[test]
fn a_leaked_attachment_is_released_when_it_is_missed_twice() {
    let bench = Bench::new();
    let engine = bench.ready();
    let (leaked, living) = (bench.attach(&engine, "leaked"), bench.attach(&engine, "living"));
    let start = Instant::now();
    assert_eq!(look(&engine, start), ["leaked", "living"]);
    leaked.vanish();
    assert_eq!(look(&engine, start + 5 * SECOND), ["leaked", "living"], "missed once");
    assert_eq!(look(&engine, start + 14 * SECOND), ["leaked", "living"], "the pause is not over");
    bench.dataplane.calls();
    assert_eq!(look(&engine, start + 20 * SECOND), ["living"]);
    assert_eq!(bench.dataplane.calls(), ["detach leaked", "changes -leaked"], "as a DEL would");
    let status = engine.report().status;
    assert_eq!(status.mended, ["released pods/leaked/eth0: its pod had gone without a DEL"]);
    assert!(living.path.exists());
    // Its address is one like any other.
    for container in ["a", "b"] {
        engine.add(container);
    }
    assert_eq!(engine.add("c"), "10.70.1.3");
    // The DEL that comes late after all.
    engine.del("leaked");
}

#[test]
fn a_path_that_comes_back_starts_anew() {
    let bench = Bench::new();
    let engine = bench.ready();
    let pod = bench.attach(&engine, "pod");
    let start = Instant::now();
    pod.vanish();
    look(&engine, start);
    std::os::unix::fs::symlink(
        format!("/proc/{}/fd/{}", std::process::id(), pod.namespace.as_raw_fd()),
        &pod.path,
    )
    .unwrap();
    look(&engine, start + 6 * SECOND);
    pod.vanish();
    assert_eq!(look(&engine, start + 12 * SECOND), ["pod"], "missed anew");
    assert_eq!(look(&engine, start + 18 * SECOND), ["pod"]);
    assert_eq!(look(&engine, start + 24 * SECOND), Vec::<String>::new());
}

#[test]
fn a_pod_whose_path_is_lost_lives_as_long_as_a_process_in_it() {
    let bench = Bench::new();
    let engine = bench.ready();
    let pod = bench.attach(&engine, "pod");
    let mut process = pod.inhabit();
    pod.vanish();
    let start = Instant::now();
    for round in 0..6 {
        assert_eq!(look(&engine, start + round * 6 * SECOND), ["pod"]);
    }
    process.kill().unwrap();
    process.wait().unwrap();
    assert_eq!(look(&engine, start + 40 * SECOND), ["pod"], "missed once");
    assert_eq!(look(&engine, start + 51 * SECOND), Vec::<String>::new());
}

#[test]
fn another_namespace_in_the_pods_place_is_not_the_pod() {
    let bench = Bench::new();
    let engine = bench.ready();
    let pod = bench.attach(&engine, "pod");
    pod.vanish();
    let other = namespace();
    std::os::unix::fs::symlink(format!("/proc/{}/fd/{}", std::process::id(), other.as_raw_fd()), &pod.path)
        .unwrap();
    let start = Instant::now();
    look(&engine, start);
    assert_eq!(look(&engine, start + 11 * SECOND), Vec::<String>::new());
}

#[test]
fn a_newborn_of_the_same_name_is_not_taken_for_the_one_that_was_missed() {
    let bench = Bench::new();
    let engine = bench.ready();
    let old = bench.attach(&engine, "pod");
    let start = Instant::now();
    old.vanish();
    look(&engine, start);
    engine.del("pod");
    // Its path vanishes at once, too: it is missed for the first time all the same.
    let namespace = old.namespace.try_clone().unwrap();
    bench.attach_in(&engine, "pod", namespace).vanish();
    assert_eq!(look(&engine, start + 11 * SECOND), ["pod"]);
    assert_eq!(look(&engine, start + 22 * SECOND), Vec::<String>::new());
}

#[test]
fn a_link_on_the_node_is_a_sign_of_life() {
    let bench = Bench::new();
    let engine = bench.ready();
    let pod = bench.attach(&engine, "pod");
    pod.vanish();
    let link = key("pod").link_name().to_string();
    // Seen from a node of its own, for the link's name would be in the machine's.
    let node = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let ip = |words: &[&str]| assert!(Command::new("ip").args(words).status().unwrap().success());
        ip(&["link", "add", &link, "type", "veth", "peer", "name", "x"]);
        let start = Instant::now();
        look(&engine, start);
        assert_eq!(look(&engine, start + 11 * SECOND), ["pod"]);
        ip(&["link", "del", &link]);
        look(&engine, start + 20 * SECOND);
        assert_eq!(look(&engine, start + 31 * SECOND), Vec::<String>::new());
    });
    node.join().unwrap();
}

#[test]
fn nothing_is_released_by_an_agent_that_cannot_see_the_pods_processes() {
    let bench = Bench::new();
    let engine = bench.ready();
    bench.attach(&engine, "pod").vanish();
    for caller in [None, Some(0)] {
        engine.meet(caller);
        engine.mend();
        assert!(engine.lock().leaks.is_idle(), "it looked");
    }
    engine.meet(Some(7));
    engine.mend();
    assert!(!engine.lock().leaks.is_idle());
    engine.hear(Ok(world(&[CLUSTER])));
    assert_eq!(engine.kept(), ["pod"]);
}
