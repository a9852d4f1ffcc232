//! The driver against a fast path that is played by the test, in a network namespace of its own.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path as FilePath;
use std::thread::{self, JoinHandle};

use causeway_model::fastpath::{Answer, Order, Outcome, VERSION};
use causeway_model::{
    Count, DropReason, Identity, MacAddr, NameServer, Node, NodeId, Overlay, PortKind, Settings,
};
use causeway_socket::Channel;
use nix::sched::{CloneFlags, unshare};

use super::*;

const SOON: Duration = Duration::from_secs(5);

/// Runs a test in a namespace of its own: a thread that never comes back from there.
fn alone(test: impl FnOnce(&FilePath) + Send + 'static) {
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root, to make a network namespace");
        let directory = tempfile::tempdir().unwrap();
        test(&directory.path().join("fastpath.sock"));
    };
    thread::spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn driver(socket: &FilePath) -> FastDataplane {
    let options = FastOptions { socket: socket.to_owned(), queues: 2, uplink: None, mask_tunnel_gso: false };
    FastDataplane::start(options, Reaper::start().unwrap()).unwrap()
}

pub(super) fn endpoint(number: u8) -> Endpoint {
    Endpoint {
        key: EndpointKey {
            network: "pods".into(),
            container: format!("c{number}"),
            interface: "eth0".into(),
        },
        pod: None,
        addresses: vec![[10, 70, 1, number].into()],
        mac: MacAddr([2, 0, 0, 0, 0, number]),
        mtu: 1450,
        labels: BTreeMap::new(),
        identity: Identity(Identity::FIRST_INTERNED),
        path: Path::Fast,
        routes: None,
        path_reason: "tried".into(),
        port: PortKind::Tap,
        port_mappings: Vec::new(),
        bandwidth: Default::default(),
        deny_new: false,
        policy: Default::default(),
    }
}

pub(super) fn snapshot() -> Snapshot {
    let id = NodeId { cluster: "lyon".parse().unwrap(), name: "east".parse().unwrap() };
    Snapshot::new(Settings {
        overlay: Overlay { vni: 51717.try_into().unwrap(), port: 4789 },
        node: Node {
            underlay: vec![[192, 0, 2, 1].into()],
            vtep_mac: Node::derived_vtep_mac(&id),
            pod_prefixes: vec!["10.70.1.0/24".parse().unwrap()],
            id,
        },
        tunnel_address: [192, 0, 2, 1].into(),
        tunnel: TunnelOwner::FastPath,
        uplink: UplinkKind::HostRouted,
        pod_mtu: 1450,
        connections: Default::default(),
        host_services: Default::default(),
        masquerade: None,
        names: NameServer::default(),
    })
}

/// What a played fast path was told: the task and how many descriptors came with it.
type Told = Vec<(Task, usize)>;

/// A fast path that holds some ports, answers everything and leaves when nothing comes for a while.
fn play(socket: &FilePath, hello: Hello, mut shown: Vec<OwnedFd>) -> JoinHandle<Told> {
    let mut channel = Channel::connect(socket).unwrap();
    thread::spawn(move || {
        channel.send(&hello, &[], SOON).unwrap();
        let mut told = Told::new();
        while let Ok((order, queues)) = channel.receive::<Order>(Some(Duration::from_millis(500))) {
            let beside: Vec<_> =
                if matches!(order.what, Task::Show { .. }) { std::mem::take(&mut shown) } else { Vec::new() };
            let what = match &order.what {
                Task::Show { .. } => Outcome::Shown(Device::Tap(causeway_model::fastpath::Tap {
                    queues: 1,
                    header: HEADER,
                    offloads: 0,
                    mac: MacAddr([2; 6]),
                })),
                Task::Plug { .. } => Outcome::Plugged { limits: Vec::new() },
                Task::Count => Outcome::Counted(Box::default()),
                _ => Outcome::Done,
            };
            let fds: Vec<_> = beside.iter().map(AsFd::as_fd).collect();
            channel.send(&Answer { number: order.number, what }, &fds, SOON).unwrap();
            told.push((order.what, queues.len()));
        }
        told
    })
}

fn hello(ports: Vec<PortName>) -> Hello {
    Hello {
        version: VERSION,
        release: "test".into(),
        pid: 7,
        memory: Memory::Hugepages,
        workers: 1,
        epoch: 0,
        ports,
        places: None,
        unable: None,
        limits: Vec::new(),
    }
}

fn plugged(told: &Told) -> Vec<(&PortName, usize)> {
    let plugs = told.iter().filter_map(|(task, queues)| match task {
        Task::Plug { port, .. } => Some((port, *queues)),
        _ => None,
    });
    plugs.collect()
}

#[test]
fn a_fast_path_that_comes_is_told_the_state_before_any_port() {
    alone(|socket| {
        let mut driver = driver(socket);
        driver.apply(Update::Whole(&snapshot())).unwrap();
        let told = play(socket, hello(vec![]), vec![]).join().unwrap();
        assert!(matches!(told[0].0, Task::Snapshot { .. }), "{told:?}");
        assert_eq!(plugged(&told), [(&PortName::Host, 2), (&PortName::Uplink, 2)], "with two queues each");
    });
}

#[test]
fn a_restarted_agent_takes_the_descriptors_back_and_opens_no_queue_beside_them() {
    alone(|socket| {
        // What an earlier agent opened and its fast path still serves.
        let shape = crate::tap::Shape { queues: 1, header: HEADER, offloads: 0 };
        let queues = crate::tap::open("cw-host", shape).unwrap();
        let mut driver = driver(socket);
        driver.apply(Update::Whole(&snapshot())).unwrap();
        assert!(FastDataplane::was_chosen());
        let told = play(socket, hello(vec![PortName::Host]), queues).join().unwrap();
        assert_eq!(told[0].0, Task::Show { port: PortName::Host });
        assert_eq!(plugged(&told), [(&PortName::Uplink, 2)], "the host port is served already");
        assert_eq!(lock(&driver.state).held[&PortName::Host].queues.len(), 1, "as many queues as there were");
    });
}

#[test]
fn a_fast_path_that_comes_back_is_told_again_what_changed_meanwhile() {
    alone(|socket| {
        let mut driver = driver(socket);
        let (mut state, endpoint) = (snapshot(), endpoint(3));
        driver.apply(Update::Whole(&state)).unwrap();
        play(socket, hello(vec![]), vec![]).join().unwrap();
        let delta = Delta::Cluster(causeway_model::Cluster {
            name: "lyon".parse().unwrap(),
            id: 1,
            region: None,
            pod_prefixes: vec![],
            service_prefixes: vec![],
        });
        driver.apply(Update::Changes(std::slice::from_ref(&delta))).unwrap();
        state.apply(delta);
        let told =
            play(socket, Hello { pid: 8, ..hello(vec![PortName::Endpoint(endpoint.key.clone())]) }, vec![]);
        let told = told.join().unwrap();
        assert_eq!(
            told[0].0,
            Task::Unplug { port: PortName::Endpoint(endpoint.key) },
            "a port that nobody wants"
        );
        assert!(matches!(&told[1].0, Task::Snapshot { snapshot, .. } if **snapshot == state), "{told:?}");
    });
}

#[test]
fn a_fast_path_that_cannot_run_is_told_nothing_and_its_reason_is_shown() {
    alone(|socket| {
        let mut driver = driver(socket);
        driver.apply(Update::Whole(&snapshot())).unwrap();
        let why = "hugepages: need 256, have 64";
        let played = play(socket, Hello { unable: Some(why.into()), ..hello(vec![]) }, vec![]);
        assert_eq!(driver.wait(SOON, true), Err(Missing::Unable(why.into())));
        assert!(driver.limits().iter().any(|limit| limit.contains(why)), "{:?}", driver.limits());
        assert_eq!(played.join().unwrap(), []);
    });
}

#[test]
fn slow_memory_is_taken_only_when_the_fast_path_was_asked_for() {
    alone(|socket| {
        let driver = driver(socket);
        let played = play(socket, Hello { memory: Memory::Slow, ..hello(vec![]) }, vec![]);
        assert!(matches!(driver.wait(SOON, false), Err(Missing::Unable(_))));
        assert_eq!(driver.wait(SOON, true), Ok(()));
        assert!(driver.limits().iter().any(|limit| limit.contains("slow memory")));
        played.join().unwrap();
    });
}

#[test]
fn what_an_older_fast_path_does_not_know_is_said() {
    for (version, said) in [(VERSION - 1, Some("knows no weights")), (VERSION, None)] {
        alone(move |socket| {
            let driver = driver(socket);
            let played = play(socket, Hello { version, ..hello(vec![]) }, vec![]);
            assert_eq!(driver.wait(SOON, true), Ok(()));
            let limits = driver.limits();
            let lacks: Vec<_> = limits.iter().filter(|limit| limit.contains("knows no")).collect();
            assert_eq!(lacks.len(), usize::from(said.is_some()), "{version}: {limits:?}");
            assert!(said.is_none_or(|said| lacks[0].contains(said)), "{version}: {lacks:?}");
            played.join().unwrap();
        });
    }
}

#[test]
fn workers_without_a_queue_are_said() {
    alone(|socket| {
        let driver = driver(socket);
        let played = play(socket, Hello { workers: 5, ..hello(vec![]) }, vec![]);
        assert_eq!(driver.wait(SOON, true), Ok(()));
        let said = "3 of the fast path's 5 workers have no queue (fastpath_queues: 2)";
        assert!(driver.limits().iter().any(|limit| limit == said), "{:?}", driver.limits());
        played.join().unwrap();
    });
}

#[test]
fn a_pod_is_not_attached_to_a_fast_path_that_is_away() {
    alone(|socket| {
        let mut driver = driver(socket);
        driver.apply(Update::Whole(&snapshot())).unwrap();
        let own = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let error = driver.attach(&endpoint(3), own.as_fd()).unwrap_err();
        assert!(matches!(error, DataplaneError::Unavailable(_)), "{error}");
        assert!(driver.limits().iter().any(|limit| limit.contains("not connected")));
        assert!(nix::net::if_::if_nametoindex("eth0").is_err(), "nothing is left behind");
    });
}

#[test]
fn counts_of_fast_paths_that_have_gone_are_kept() {
    use causeway_model::fastpath::WorkerDrops;
    let drops = |worker, packets| WorkerDrops {
        worker,
        reason: DropReason::SpoofedMac,
        count: Count { packets, bytes: packets * 60 },
    };
    let mut sum = Tally { drops: vec![drops(0, 2)], ..Tally::default() };
    add(&mut sum, &Tally { drops: vec![drops(0, 3), drops(1, 5)], ..Tally::default() });
    assert_eq!(sum.drops, [drops(0, 5), drops(1, 5)]);
    assert_eq!(counters(&sum).drops[&DropReason::SpoofedMac].packets, 10);
}

#[test]
fn a_change_of_one_endpoint_leaves_the_ports_of_all_others_alone() {
    alone(|socket| {
        let mut driver = driver(socket);
        let one = endpoint(3);
        let there = [PortName::Host, PortName::Uplink, PortName::Endpoint(one.key.clone())];
        let (queue, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let shown = vec![queue.into()];
        let fastpath = play(socket, hello(there.to_vec()), shown);
        driver.wait(SOON, false).unwrap();
        let mut state = snapshot();
        state.endpoints.insert(one.key.clone(), one.clone());
        driver.apply(Update::Whole(&state)).unwrap();
        let other = endpoint(4);
        driver.apply(Update::Changes(&[Delta::Endpoint(Box::new(other.clone()))])).unwrap();
        driver.apply(Update::Changes(&[Delta::EndpointGone(other.key)])).unwrap();
        driver.apply(Update::Changes(&[Delta::EndpointGone(one.key.clone())])).unwrap();
        drop(driver);
        let told = fastpath.join().unwrap();
        let unplugged = |task: &Task| matches!(task, Task::Unplug { .. });
        let gone = Task::Unplug { port: PortName::Endpoint(one.key) };
        let tasks: Vec<_> = told.into_iter().map(|(task, _)| task).filter(unplugged).collect();
        assert_eq!(tasks, [gone]);
    });
}

#[test]
fn a_pod_s_link_keeps_no_queues_before_its_driver() {
    alone(|_| {
        let pod = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            std::fs::File::open("/proc/thread-self/ns/net").unwrap()
        });
        let pod = pod.join().unwrap();
        let options =
            FastOptions { socket: "unused".into(), queues: 2, uplink: None, mask_tunnel_gso: false };
        let held = ports::make_pod_tap(&endpoint(3), pod.as_fd(), &options).unwrap();
        let listed = causeway_kernel_fallback::namespace::within(pod.as_fd(), || {
            std::process::Command::new("ip").args(["link", "show", "eth0"]).output().unwrap()
        });
        let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
        assert!(listed.contains(" UP ") || listed.contains(",UP"), "{listed}");
        assert!(listed.contains(" qdisc noqueue "), "{listed}");
        held.forget(&PortName::Endpoint(endpoint(3).key));
    });
}
