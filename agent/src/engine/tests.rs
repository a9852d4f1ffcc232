use std::fs;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use causeway_model::plugin::{self, Failure, Reply, Verb};
use causeway_model::policy::Tables;
use causeway_model::{Endpoint, Identity, Path};
use serde_json::json;

use super::bench::{Bench, CLUSTER, WEST, key, netns, pod, request, soon, world};
use super::*;
use crate::caller::Caller;

#[test]
fn an_endpoint_is_guarded_before_it_is_plugged_in_and_unplugged_before_it_is_not() {
    let bench = Bench::new();
    let engine = bench.ready();
    let attachment = engine.try_add("c1").unwrap();
    assert_eq!(bench.dataplane.calls(), ["changes +c1", "attach c1"]);
    let given: Vec<_> = attachment.addresses.iter().map(|one| one.address.to_string()).collect();
    assert_eq!(given, ["10.70.1.3/32", "fd70:0:0:1::3/128"]);
    assert_eq!(attachment.host_interface.unwrap(), key("c1").link_name().to_string());
    assert_eq!((attachment.mtu, attachment.host_mtu), (1450, Some(65535)));
    assert_eq!(attachment.path, Path::Kernel);
    engine.del("c1");
    assert_eq!(bench.dataplane.calls(), ["detach c1", "changes -c1"]);
    assert_eq!(engine.kept(), Vec::<String>::new());
}

#[test]
fn a_repeated_add_is_an_error_that_changes_nothing() {
    let bench = Bench::new();
    let engine = bench.ready();
    engine.add("c1");
    let before = (engine.endpoint("c1"), engine.lock().parts.store.leases().clone());
    bench.dataplane.calls();
    let failure = engine.try_add("c1").unwrap_err();
    assert_eq!((failure.code, failure.msg.as_str()), (Failure::EXISTS, "pods/c1/eth0 is attached already"));
    assert_eq!(bench.dataplane.calls(), Vec::<String>::new());
    assert_eq!((engine.endpoint("c1"), engine.lock().parts.store.leases().clone()), before);
}

#[test]
fn deleting_twice_or_a_stranger_succeeds_and_hurts_nobody() {
    let bench = Bench::new();
    let engine = bench.ready();
    engine.del("zz");
    engine.add("c1");
    engine.del("c1");
    for other in ["c2", "c3", "c4"] {
        engine.add(other);
    }
    assert_eq!(engine.add("c5"), "10.70.1.3", "c1's address, after all unused ones");
    engine.del("c1");
    assert_eq!(engine.endpoint("c5").addresses[0].to_string(), "10.70.1.3");
    assert_eq!(engine.kept(), ["c2", "c3", "c4", "c5"]);
    assert!(bench.dataplane.log().attached.contains(&key("c5")));
}

#[test]
fn a_failure_at_any_step_leaves_nothing() {
    for step in ["changes", "attach"] {
        let bench = Bench::new();
        let engine = bench.ready();
        bench.dataplane.log().fail = Some(step);
        let failure = engine.try_add("c1").unwrap_err();
        assert_eq!(failure.code, Failure::DATAPATH, "{step}");
        assert!(failure.msg.contains(&format!("{step} was told to fail")), "{}", failure.msg);
        bench.dataplane.log().fail = None;
        assert_eq!(engine.kept(), Vec::<String>::new(), "{step}");
        engine.mend();
        {
            let log = bench.dataplane.log();
            assert!(log.attached.is_empty() && log.snapshot.as_ref().unwrap().endpoints.is_empty(), "{step}");
        }
        // The whole range can be used, and the same attachment be made.
        for container in ["c1", "c2", "c3", "c4"] {
            engine.add(container);
        }
        assert_eq!(engine.try_add("c5").unwrap_err().code, Failure::RANGE_EXHAUSTED);
    }
}

#[test]
fn a_full_range_names_the_pool_and_takes_nothing_of_the_other_family() {
    let bench = Bench::new();
    let engine = bench.ready();
    for container in ["c1", "c2", "c3", "c4"] {
        engine.add(container);
    }
    bench.dataplane.calls();
    let failure = engine.try_add("z").unwrap_err();
    assert_eq!(failure.msg, "no free address in 10.70.1.0/29: 4 of 4 in use");
    assert_eq!(bench.dataplane.calls(), Vec::<String>::new());
    engine.del("c2");
    let attachment = engine.try_add("y").unwrap();
    assert_eq!(attachment.addresses[0].address.ip().to_string(), "10.70.1.4");
    assert_eq!(attachment.addresses[1].address.ip().to_string(), "fd70:0:0:1::7", "z took none");
}

#[test]
fn a_delete_goes_on_past_failures_and_can_be_repeated() {
    let bench = Bench::new();
    let engine = bench.ready();
    engine.add("c1");
    bench.dataplane.log().fail = Some("detach");
    let Reply::Failed(failure) = engine.answer(&request(Verb::Del, "c1"), None, &soon()) else { panic!() };
    assert!(failure.msg.contains("detach was told to fail"), "{}", failure.msg);
    assert_eq!(engine.kept(), Vec::<String>::new(), "the lease is given back all the same");
    bench.dataplane.log().fail = None;
    bench.dataplane.calls();
    engine.del("c1");
    assert_eq!(bench.dataplane.calls(), ["detach c1"], "what was left is tried again");
}

#[test]
fn tombstones_are_replayed_at_start_and_before_an_add() {
    let bench = Bench::new();
    let engine = bench.ready();
    for container in ["c1", "c2", "c3", "c4"] {
        engine.add(container);
    }
    drop(engine);
    let file = bench.bury("c1");
    let engine = bench.start();
    assert_eq!(engine.kept(), ["c2", "c3", "c4"]);
    assert!(!file.exists());
    engine.hear(Ok(world(&[CLUSTER])));
    engine.add("c5");
    let file = bench.bury("c2");
    engine.add("c6");
    assert!(!file.exists());
    assert_eq!(engine.kept(), ["c3", "c4", "c5", "c6"]);
    // One for the very attachment that is asked for again.
    bench.bury("c3");
    engine.add("c3");
    assert_eq!(engine.kept(), ["c3", "c4", "c5", "c6"]);
}

#[test]
fn a_tombstone_that_cannot_be_read_is_reported_and_stops_nothing() {
    let bench = Bench::new();
    let engine = bench.ready();
    engine.add("c1");
    let bad = bench.directory.path().join("tombstones/bad.json");
    fs::write(&bad, "{").unwrap();
    let good = bench.bury("c1");
    engine.add("c2");
    assert!(bad.exists() && !good.exists());
    assert_eq!(engine.kept(), ["c2"]);
    let problems = engine.report().status.problems;
    assert!(problems.iter().any(|problem| problem.contains("bad.json")), "{problems:?}");
    fs::remove_file(bad).unwrap();
    engine.mend();
    assert_eq!(engine.report().status.problems, Vec::<String>::new());
}

#[test]
fn an_add_waits_for_its_pods_object() {
    let bench = Bench::new();
    let engine = bench.ready();
    thread::scope(|scope| {
        let add = scope.spawn(|| engine.try_add_pod("c1", Some("web")));
        thread::sleep(Duration::from_millis(300));
        // Others are served meanwhile.
        engine.add("c2");
        engine.hear(Ok(world(&[CLUSTER, &pod("web", "", "app: web, pod-template-hash: a1")])));
        add.join().unwrap().unwrap();
    });
    let web = engine.endpoint("c1");
    let labels: Vec<_> = web.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(labels, ["app=web", "pod-template-hash=a1"]);
    assert_ne!(web.identity, engine.endpoint("c2").identity);

    let started = Instant::now();
    let failure = engine.try_add_pod("c3", Some("late")).unwrap_err();
    assert_eq!(failure.code, Failure::TRY_AGAIN);
    assert!(failure.msg.contains("pod shop/late"), "{}", failure.msg);
    let waited = started.elapsed();
    assert!((Duration::from_millis(1900)..Duration::from_secs(4)).contains(&waited), "{waited:?}");
    assert_eq!(engine.kept(), ["c1", "c2"]);
}

#[test]
fn nothing_is_opened_before_the_world_is_known() {
    let bench = Bench::new();
    let engine = bench.start();
    let failure = engine.try_add("c1").unwrap_err();
    assert_eq!(failure.code, Failure::TRY_AGAIN);
    assert!(failure.msg.contains("the first reading of manifests in a test"), "{}", failure.msg);
    engine.hear(Err("reading the directory of manifests /x: not there".into()));
    assert_eq!(
        engine.waiting_for(),
        ["manifests in a test (reading the directory of manifests /x: not there)"]
    );
    assert_eq!(engine.report().status.problems, Vec::<String>::new());
    let node_only = world(&[WEST]);
    engine.hear(Ok(node_only));
    let failure = engine.try_add("c1").unwrap_err();
    assert!(failure.msg.contains("Cluster object"), "{}", failure.msg);
    assert_eq!(bench.dataplane.calls(), Vec::<String>::new());
    let status = engine.report().status;
    assert!(status.node.is_none() && status.waiting_for.len() == 1, "{status:?}");
}

#[test]
fn the_nodes_own_namespace_is_refused_before_any_work() {
    let bench = Bench::new();
    let engine = bench.ready();
    engine.lock().parts.machine = Machine::look().unwrap();
    let Reply::Failed(failure) = engine.ask(&request(Verb::Add, "c1")) else { panic!("accepted") };
    assert_eq!(failure.code, Failure::INVALID_ENVIRONMENT);
    assert!(failure.msg.contains("CNI_NETNS") && failure.msg.contains("node's own"), "{}", failure.msg);
    let file = Some(OwnedFd::from(tempfile::tempfile().unwrap()));
    let Reply::Failed(failure) = engine.answer(&request(Verb::Add, "c1"), file, &soon()) else { panic!() };
    assert!(failure.msg.contains("not a network namespace"), "{}", failure.msg);
    let Reply::Failed(failure) = engine.answer(&request(Verb::Add, "c1"), None, &soon()) else { panic!() };
    assert_eq!(failure.code, Failure::INVALID_ENVIRONMENT);
    assert_eq!(bench.dataplane.calls(), Vec::<String>::new());
    assert_eq!(engine.kept(), Vec::<String>::new());
}

#[test]
fn what_nobody_waits_for_any_more_is_not_begun() {
    let bench = Bench::new();
    let engine = bench.ready();
    for verb in [Verb::Add, Verb::Del] {
        let late = Caller::new(None, None, Duration::ZERO);
        let Reply::Failed(failure) = engine.answer(&request(verb, "c1"), netns(), &late) else { panic!() };
        assert_eq!(failure.code, Failure::TRY_AGAIN);
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let gone = Caller::new(Some(ours.into()), None, Duration::from_secs(20));
        drop(theirs);
        let Reply::Failed(failure) = engine.answer(&request(verb, "c1"), netns(), &gone) else { panic!() };
        assert!(failure.msg.contains("has gone"), "{}", failure.msg);
    }
    assert_eq!(bench.dataplane.calls(), Vec::<String>::new());
}

#[test]
fn a_plugin_of_a_far_release_is_told_so() {
    let bench = Bench::new();
    let engine = bench.ready();
    let mut request = request(Verb::Add, "c1");
    request.version = plugin::VERSION + 1;
    assert!(matches!(engine.ask(&request), Reply::Attached(_)));
    request.version = plugin::VERSION + 2;
    let Reply::Failed(failure) = engine.ask(&request) else { panic!() };
    assert_eq!(failure.code, Failure::INCOMPATIBLE_VERSION);
}

#[test]
fn a_restart_takes_up_everything_in_its_first_whole_state() {
    let bench = Bench::new();
    let engine = bench.ready();
    engine.hear(Ok(world(&[CLUSTER, &pod("web", "", "app: web")])));
    engine.add("c1");
    engine.try_add_pod("c2", Some("web")).unwrap();
    let apart_from_policy = |engine: &Engine| {
        ["c1", "c2"].map(|name| Endpoint { policy: Tables::default(), ..engine.endpoint(name) })
    };
    let (before, epoch) = (apart_from_policy(&engine), engine.endpoint("c2").policy.ingress.epoch);
    // Epochs go by 64ths of a second.
    thread::sleep(Duration::from_millis(20));
    drop(engine);
    bench.dataplane.calls();

    let engine = bench.start();
    assert_eq!(
        bench.dataplane.calls(),
        Vec::<String>::new(),
        "nothing is disturbed before the world is known"
    );
    engine.hear(Ok(world(&[CLUSTER, &pod("web", "", "app: web")])));
    assert_eq!(bench.dataplane.calls(), ["whole 2"]);
    assert_eq!(apart_from_policy(&engine), before);
    assert_ne!(engine.endpoint("c2").policy.ingress.epoch, epoch, "no mark on a flow is taken for a new one");
    assert_eq!(engine.try_add("c1").unwrap_err().code, Failure::EXISTS);
}

#[test]
fn pods_that_a_reboot_took_are_released_at_start() {
    let mut bench = Bench::new();
    let engine = bench.ready();
    for container in ["c1", "c2", "c3"] {
        engine.add(container);
    }
    // One that is still where it was although the boot is another: somebody keeps it, so do we.
    {
        let mut core = engine.lock();
        for gone in ["c1", "c2"] {
            let mut record = core.parts.store.remove(&key(gone)).unwrap().unwrap();
            record.netns.inode += 1;
            let address = record.endpoint.addresses.clone();
            let wanted = crate::addresses::Wanted { addresses: address, mac: None };
            let node = core.desired.as_ref().unwrap().settings.node.clone();
            let grant = core.parts.store.leases().grant(&crate::addresses::Pool::all_of_node(&node), &wanted);
            core.parts.store.insert(record, &grant.unwrap()).unwrap();
        }
    }
    drop(engine);
    let engine = bench.start();
    assert_eq!(
        engine.kept(),
        ["c1", "c2", "c3"],
        "of this boot, only the runtime may say that a pod is gone"
    );
    drop(engine);
    bench.boot = "second boot";
    let engine = bench.start();
    assert_eq!(engine.kept(), ["c3"]);
    engine.hear(Ok(world(&[CLUSTER])));
    for container in ["n1", "n2", "n3"] {
        engine.add(container);
    }
    for late in ["c1", "c2"] {
        engine.del(late);
    }
    assert_eq!(engine.kept(), ["c3", "n1", "n2", "n3"]);
}

#[test]
fn news_of_the_world_reaches_the_data_path_as_changes() {
    let bench = Bench::new();
    let engine = bench.ready();
    engine.hear(Ok(world(&[CLUSTER])));
    assert_eq!(bench.dataplane.calls(), Vec::<String>::new(), "no news");
    engine.hear(Ok(world(&[CLUSTER, WEST])));
    assert_eq!(bench.dataplane.calls(), ["changes +node west"]);
    assert_eq!(engine.report().status.peers.len(), 1);
    engine.hear(Ok(world(&[CLUSTER])));
    assert_eq!(bench.dataplane.calls(), ["changes -node west"]);
    // The own node's object is gone: what is in force stays, and says that it waits.
    engine.hear(Ok(world(&[WEST])));
    assert_eq!(bench.dataplane.calls(), Vec::<String>::new());
    assert_eq!(engine.waiting_for().len(), 1);
    engine.hear(Ok(world(&[CLUSTER])));
    assert_eq!(engine.waiting_for(), Vec::<String>::new());
    // The source is gone: the same, and a problem until it is back.
    engine.hear(Err("no such directory".into()));
    assert_eq!(engine.report().status.problems, ["reading the source: no such directory"]);
    engine.hear(Ok(world(&[CLUSTER])));
    assert_eq!(engine.report().status.problems, Vec::<String>::new());
    assert_eq!(bench.dataplane.calls(), Vec::<String>::new());
}

#[test]
fn a_data_path_that_missed_changes_is_told_everything() {
    let bench = Bench::new();
    let engine = bench.ready();
    bench.dataplane.log().fail = Some("changes");
    engine.hear(Ok(world(&[CLUSTER, WEST])));
    assert_eq!(engine.waiting_for(), ["the data path to reach its desired state"]);
    assert!(engine.report().status.problems[0].contains("changes was told to fail"));
    bench.dataplane.log().fail = None;
    bench.dataplane.calls();
    engine.add("c1");
    assert_eq!(bench.dataplane.calls(), ["whole 0", "changes +c1", "attach c1"]);
    engine.mend();
    assert_eq!(bench.dataplane.calls(), ["mend"]);
    let status = engine.report().status;
    assert_eq!((status.repairs, status.mended), (1, vec!["cw-vxlan was gone".to_owned()]));
    assert_eq!(engine.report().status.problems, Vec::<String>::new());
}

#[test]
fn labels_follow_the_pods_object_and_outlive_it() {
    let bench = Bench::new();
    let engine = bench.ready();
    engine.hear(Ok(world(&[CLUSTER, &pod("web", "", "app: web")])));
    engine.try_add_pod("c1", Some("web")).unwrap();
    let first = engine.endpoint("c1").identity;
    assert!(first.0 >= Identity::FIRST_INTERNED);
    bench.dataplane.calls();
    engine.hear(Ok(world(&[CLUSTER, &pod("web", "", "app: web, tier: front")])));
    assert_eq!(bench.dataplane.calls(), ["changes +c1"]);
    let second = engine.endpoint("c1");
    assert_eq!(second.labels.len(), 2);
    assert_eq!(second.identity, first, "all who had it have the new labels: it goes on under them");
    engine.hear(Ok(world(&[CLUSTER])));
    assert_eq!(engine.endpoint("c1"), second, "the object goes before the pod does");
}

#[test]
fn labels_of_the_network_configuration_are_those_of_pods_without_an_object() {
    let bench = Bench::new();
    let engine = bench.ready();
    let mut add = request(Verb::Add, "c1");
    add.config.insert("causeway".into(), json!({"labels": {"app": "db"}}));
    assert!(matches!(engine.ask(&add), Reply::Attached(_)));
    assert_eq!(engine.endpoint("c1").labels["app"], "db");
    let mut bad = request(Verb::Add, "c2");
    bad.config.insert("causeway".into(), json!({"labels": ["app"]}));
    let Reply::Failed(failure) = engine.ask(&bad) else { panic!() };
    assert_eq!(failure.code, Failure::INVALID_CONFIG);
    assert!(failure.msg.contains("causeway.labels"), "{}", failure.msg);
    assert_eq!(engine.kept(), ["c1"]);
}

#[test]
fn annotations_give_address_mac_and_path() {
    let bench = Bench::new();
    let engine = bench.ready();
    let fixed =
        "causeway.dev/addresses: 10.70.1.5, causeway.dev/mac: \"02:00:5e:00:53:01\", causeway.dev/path: fast";
    let outside = "causeway.dev/addresses: 10.70.2.5";
    let broken = "causeway.dev/mac: \"02:00\"";
    let odd = "causeway.dev/path: fats";
    let pods: Vec<_> =
        [("fixed", fixed), ("outside", outside), ("broken", broken), ("odd", odd), ("again", fixed)]
            .map(|(name, annotations)| pod(name, annotations, ""))
            .into();
    let files: Vec<_> = std::iter::once(CLUSTER).chain(pods.iter().map(String::as_str)).collect();
    let named: Vec<_> = files.iter().enumerate().map(|(n, text)| (format!("{n}.yaml"), *text)).collect();
    engine.hear(Ok(Arc::new(World::of_files(named.iter().map(|(name, text)| (name.as_str(), *text))))));

    let attachment = engine.try_add_pod("c1", Some("fixed")).unwrap();
    assert_eq!(attachment.addresses[0].address.to_string(), "10.70.1.5/32");
    assert_eq!(attachment.mac.to_string(), "02:00:5e:00:53:01");
    assert_eq!(attachment.path, Path::Kernel);
    let reason = engine.endpoint("c1").path_reason;
    assert_eq!(reason, "annotation causeway.dev/path: fast, but no fast path: this is a test");
    let code =
        |container, name| engine.try_add_pod(container, Some(name)).map(|_| 0).unwrap_or_else(|f| f.code);
    assert_eq!(code("c2", "outside"), Failure::INVALID_CONFIG);
    assert_eq!(code("c3", "broken"), Failure::INVALID_CONFIG);
    assert_eq!(code("c4", "again"), Failure::TRY_AGAIN, "taken, but perhaps not for long");
    assert_eq!(code("c5", "odd"), 0);
    assert!(engine.endpoint("c5").path_reason.contains("fats"), "{}", engine.endpoint("c5").path_reason);
    assert_eq!(engine.kept(), ["c1", "c5"]);
}

#[test]
fn many_adds_at_once_get_different_addresses() {
    let bench = Bench::new();
    let engine = bench.start();
    engine.hear(Ok(world(&[&CLUSTER.replace("10.70.1.0/29", "10.70.1.0/24")])));
    let mut given: Vec<_> = thread::scope(|scope| {
        let adds: Vec<_> = (0..100)
            .map(|n| {
                scope.spawn({
                    let engine = &engine;
                    move || engine.add(&format!("c{n}"))
                })
            })
            .collect();
        adds.into_iter().map(|add| add.join().unwrap()).collect()
    });
    given.sort();
    given.dedup();
    assert_eq!(given.len(), 100);
}
