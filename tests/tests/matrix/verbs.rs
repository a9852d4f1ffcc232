//! What a runtime does to attachments, and what is left of it.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use causeway_model::{Family, TunnelOwner};
use causeway_tests::lab::{Call, Lab, LabError, Node, Pod, Role};
use causeway_tests::leftovers::{Holdings, Leftovers};
use serde_json::{Map, Value, json};

use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    ("gc_releases_what_the_list_does_not_name", gc_releases_what_the_list_does_not_name),
    ("status_says_why_no_pod_can_come", status_says_why_no_pod_can_come),
    ("a_deleted_name_is_free_at_once_and_its_link_gone_in_a_second", a_deleted_name_is_free_at_once),
    ("twenty_pods_go_at_once_and_leave_nothing", twenty_pods_go_at_once_and_leave_nothing),
    ("a_repeated_add_changes_nothing", a_repeated_add_changes_nothing),
    ("a_stranger_is_deleted_and_hurts_nobody", a_stranger_is_deleted_and_hurts_nobody),
    ("an_address_comes_back_however_its_namespace_went", an_address_comes_back_however_its_namespace_went),
    ("an_interface_that_is_there_costs_no_address", an_interface_that_is_there_costs_no_address),
    ("the_nodes_own_namespace_is_nobodys_pod", the_nodes_own_namespace_is_nobodys_pod),
    ("a_pod_without_an_object_is_waited_for_two_seconds", a_pod_without_an_object_is_waited_for),
    ("a_new_pod_of_an_old_address_is_reached_at_once", a_new_pod_of_an_old_address_is_reached_at_once),
];

fn configured(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(keys) => keys,
        _ => Map::new(),
    }
}

/// A range of so many addresses from 10.70.1.50 on.
fn range(addresses: u8) -> Map<String, Value> {
    let (first, last) = ("10.70.1.50", format!("10.70.1.{}", 49 + addresses));
    let range = json!({"subnet": "10.70.1.0/24", "rangeStart": first, "rangeEnd": last});
    configured(json!({"ipam": {"type": "causeway", "ranges": [[range]]}}))
}

fn code_of<T: std::fmt::Debug>(done: Result<T, LabError>) -> anyhow::Result<(u32, String)> {
    match done {
        Err(LabError::Cni { failure, .. }) => {
            Ok((failure.code, format!("{} {}", failure.msg, failure.details)))
        }
        other => anyhow::bail!("no error of the plugin but {other:?}"),
    }
}

fn reaches(from: &Pod, to: &Pod) -> bool {
    Family::BOTH.iter().all(|family| from.ping(to.address(*family)))
}

fn gc(lab: &Lab, node: &Node, keys: &Value) -> Result<Value, LabError> {
    lab.call_plugin(node, &Call { verb: "GC", configured: configured(keys.clone()), ..Call::default() })
}

fn gc_releases_what_the_list_does_not_name(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let n1 = lab.node("n1")?;
    let (c1, c2) = (lab.add_pod("n1", "c1")?, lab.add_pod("n1", "c2")?);
    let kept = Holdings::of(n1.namespace())?;
    let inside = Holdings::of(c1.namespace())?;
    let second = Call { interface: "net1".into(), ..lab.call("ADD", &c1) };
    lab.call_plugin(&n1, &second).context("a second interface")?;
    let c3 = lab.add_pod("n1", "c3")?;
    ensure!(
        Holdings::of(n1.namespace())?.since(&kept) != Leftovers::NONE,
        "a look that does not see two attachments"
    );
    let valid = |pod: &str| json!({"containerID": pod, "ifname": "eth0"});
    let list = json!([valid(&c1.record.container), valid(&c2.record.container), valid("ghost")]);
    let all = n1.endpoints()?.len();
    for (keys, code) in [
        (json!({"cniVersion": "1.0.0", "cni.dev/valid-attachments": list}), 1),
        (json!({}), 7),
        (json!({"cni.dev/valid-attachments": null}), 7),
    ] {
        ensure!(code_of(gc(&lab, &n1, &keys))?.0 == code, "{keys}");
    }
    gc(&lab, &n1, &json!({"name": "storage", "cni.dev/valid-attachments": []}))?;
    ensure!(n1.endpoints()?.len() == all, "something was released: {:?}", n1.endpoints()?);
    if matrix.sabotage("gc-not-called", || ()).is_none() {
        gc(&lab, &n1, &json!({"cni.dev/valid-attachments": list, "cni.dev/attachments": list}))?;
    }
    let left = Holdings::of(n1.namespace())?.since(&kept);
    ensure!(left == Leftovers::NONE, "{left}");
    let left = Holdings::of(c1.namespace())?.since(&inside);
    ensure!(left == Leftovers::NONE, "in c1: {left}");
    ensure!(
        within(Duration::from_secs(1), || c3.exec("ip link show eth0").is_err()),
        "c3 has its interface still"
    );
    ensure!(reaches(&c1, &c2) && reaches(&c2, &c1), "the rest is not untouched");
    gc(&lab, &n1, &json!({"cni.dev/attachments": []})).context("the list by its older name")?;
    ensure!(n1.endpoints()?.is_empty(), "{:?}", n1.endpoints()?);
    Ok(())
}

fn status(lab: &Lab, node: &Node, configured: Map<String, Value>) -> Result<Value, LabError> {
    lab.call_plugin(node, &Call { verb: "STATUS", configured, ..Call::default() })
}

fn status_says_why_no_pod_can_come(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let n1 = lab.node("n1")?;
    let well = || status(&lab, &n1, Map::new()).is_ok();
    status(&lab, &n1, Map::new()).context("nothing is wrong")?;
    let a = lab.add_pod("n1", "a")?;
    // A full range: of the network that has it, and of no other.
    for number in 0..2 {
        status(&lab, &n1, range(2)).with_context(|| format!("{number} of 2 addresses are taken"))?;
        let call = Call { interface: format!("net{number}"), configured: range(2), ..lab.call("ADD", &a) };
        lab.call_plugin(&n1, &call)?;
    }
    let (code, why) = code_of(status(&lab, &n1, range(2)))?;
    ensure!(code == 50 && why.contains("10.70.1."), "a full range: {code}: {why}");
    ensure!(well(), "the whole prefix is not full");
    // The uplink.
    if matrix.sabotage("uplink-stays-up", || ()).is_none() {
        n1.exec("ip link set eth0 down")?;
    }
    let (code, why) = code_of(status(&lab, &n1, Map::new()))?;
    ensure!(code == 51 && why.contains("eth0"), "the uplink is down: {code}: {why}");
    n1.exec("ip link set eth0 up")?;
    n1.exec(&format!("ip addr replace {}/64 dev eth0 nodad", n1.address(Family::V6)))?;
    ensure!(within(Duration::from_secs(10), well), "{:?}", status(&lab, &n1, Map::new()));
    // The fast path.
    if n1.status()?.path.tunnel == TunnelOwner::FastPath {
        lab.kill("n1", Role::Fastpath)?;
        let (code, why) = code_of(status(&lab, &n1, Map::new()))?;
        ensure!(code == 51 && why.contains("not connected"), "no fast path: {code}: {why}");
        lab.start("n1", Role::Fastpath)?;
        ensure!(within(Duration::from_secs(10), well), "{:?}", status(&lab, &n1, Map::new()));
    }
    lab.kill("n1", Role::Agent)?;
    let (code, why) = code_of(status(&lab, &n1, Map::new()))?;
    ensure!(code == 50 && why.contains("cni.sock"), "no agent: {code}: {why}");
    lab.start("n1", Role::Agent)?;
    ensure!(within(Duration::from_secs(10), well), "{:?}", status(&lab, &n1, Map::new()));
    Ok(())
}

fn a_deleted_name_is_free_at_once(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let n1 = lab.node("n1")?;
    let other = lab.add_pod("n1", "other")?;
    let before = Holdings::of(n1.namespace())?;
    let a = lab.add_pod("n1", "a")?;
    for round in 0..5 {
        lab.call_plugin(&n1, &lab.call("DEL", &a))?;
        ensure!(a.exec("ip link show eth0").is_err(), "round {round}: the name is not free");
        let result = lab.call_plugin(&n1, &lab.call("ADD", &a)).with_context(|| format!("round {round}"))?;
        let ips: Vec<_> = result["ips"].as_array().into_iter().flatten().collect();
        let v4 = ips.first().and_then(|ip| ip["address"].as_str()).context("no address")?;
        let v4 = v4.split('/').next().unwrap_or_default().parse()?;
        ensure!(other.ping(v4), "round {round}: the new attachment at {v4} is not reached");
    }
    lab.call_plugin(&n1, &lab.call("DEL", &a))?;
    let deleted = Instant::now();
    let gone = || a.exec("ip -br link").is_ok_and(|links| links.lines().count() == 1);
    let gone_there = || n1.exec("ip -br link").is_ok_and(|links| !links.contains("cwx"));
    ensure!(
        within(Duration::from_secs(1), || gone() && gone_there()),
        "after {:?}: {}",
        deleted.elapsed(),
        a.exec("ip -br link")?
    );
    let left = Holdings::of(n1.namespace())?.since(&before);
    ensure!(left == Leftovers::NONE, "{left}");
    Ok(())
}

fn twenty_pods_go_at_once_and_leave_nothing(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let n1 = lab.node("n1")?;
    let before = Holdings::of(n1.namespace())?;
    let pods: Vec<_> =
        (0..20).map(|n| lab.add_pod("n1", format!("p{n}").as_str())).collect::<Result<_, _>>()?;
    let results: Vec<_> = std::thread::scope(|scope| {
        let deletions: Vec<_> =
            pods.iter().map(|pod| scope.spawn(|| lab.call_plugin(&n1, &lab.call("DEL", pod)))).collect();
        deletions.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    for result in results {
        result.map_err(|_| anyhow::anyhow!("a call panicked"))??;
    }
    let left = Holdings::of(n1.namespace())?.since(&before);
    ensure!(left == Leftovers::NONE, "{left}");
    let clean = |pod: &Pod| pod.exec("ip -br link").is_ok_and(|links| links.lines().count() == 1);
    ensure!(within(Duration::from_secs(1), || pods.iter().all(clean)), "a link is left in a pod");
    Ok(())
}

fn a_repeated_add_changes_nothing(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let n1 = lab.node("n1")?;
    let (a, other) = (lab.add_pod("n1", "a")?, lab.add_pod("n1", "other")?);
    let (node, pod) = (Holdings::of(n1.namespace())?, Holdings::of(a.namespace())?);
    let (code, why) = code_of(lab.call_plugin(&n1, &lab.call("ADD", &a)))?;
    ensure!(code == 101 && why.contains("attached already"), "{code}: {why}");
    for (was, namespace) in [(&node, n1.namespace()), (&pod, a.namespace())] {
        let left = Holdings::of(namespace)?.since(was);
        ensure!(left == Leftovers::NONE, "{left}");
    }
    ensure!(reaches(&a, &other) && n1.endpoints()?.len() == 2);
    // Another interface of the same container is another attachment.
    let second = Call { interface: "net1".into(), ..lab.call("ADD", &a) };
    lab.call_plugin(&n1, &second)?;
    lab.call_plugin(&n1, &Call { verb: "DEL", ..second })?;
    let left = Holdings::of(a.namespace())?.since(&pod);
    ensure!(left == Leftovers::NONE, "{left}");
    ensure!(reaches(&a, &other), "the first interface went with the second");
    lab.del_pod("a")?;
    ensure!(n1.endpoints()?.len() == 1);
    Ok(())
}

fn a_stranger_is_deleted_and_hurts_nobody(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let n1 = lab.node("n1")?;
    let other = lab.add_pod("n1", "other")?;
    let one = |verb, pod: &Pod| Call { configured: range(1), ..lab.call(verb, pod) };
    let (a, b) = (lab.add_pod("n1", "a")?, lab.add_pod("n1", "b")?);
    for pod in [&a, &b] {
        lab.call_plugin(&n1, &lab.call("DEL", pod))?;
    }
    lab.call_plugin(&n1, &Call { container: "f".repeat(64), ..one("DEL", &a) }).context("a stranger")?;
    lab.call_plugin(&n1, &one("ADD", &a))?;
    lab.call_plugin(&n1, &one("DEL", &a))?;
    lab.call_plugin(&n1, &one("ADD", &b)).context("the only address is free again")?;
    let before = Holdings::of(n1.namespace())?;
    for netns in [lab.call("DEL", &a).netns, String::new()] {
        lab.call_plugin(&n1, &Call { netns, ..one("DEL", &a) }).context("deleted twice")?;
    }
    let left = Holdings::of(n1.namespace())?.since(&before);
    ensure!(left == Leftovers::NONE, "{left}");
    ensure!(other.ping([10, 70, 1, 50].into()), "b does not have the address that it was given");
    Ok(())
}

fn an_address_comes_back_however_its_namespace_went(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let n1 = lab.node("n1")?;
    let before = Holdings::of(n1.namespace())?;
    for (round, way) in ["a dead path", "an empty one"].into_iter().enumerate() {
        let pod = lab.add_pod("n1", format!("p{round}").as_str())?;
        lab.call_plugin(&n1, &lab.call("DEL", &pod))?;
        lab.call_plugin(&n1, &Call { configured: range(1), ..lab.call("ADD", &pod) }).context(way)?;
        pod.namespace().delete()?;
        let mut del = Call { configured: range(1), previous: None, ..lab.call("DEL", &pod) };
        if round == 1 {
            del.netns.clear();
        }
        lab.call_plugin(&n1, &del).context(way)?;
        let left = Holdings::of(n1.namespace())?.since(&before);
        ensure!(left == Leftovers::NONE, "{way}: {left}");
        ensure!(n1.endpoints()?.is_empty(), "{way}: {:?}", n1.endpoints()?);
    }
    Ok(())
}

fn an_interface_that_is_there_costs_no_address(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let n1 = lab.node("n1")?;
    let a = lab.add_pod("n1", "a")?;
    lab.call_plugin(&n1, &lab.call("DEL", &a))?;
    let before = Holdings::of(n1.namespace())?;
    a.exec("ip link add eth0 type veth peer name other")?;
    let inside = Holdings::of(a.namespace())?;
    let add = Call { configured: range(1), ..lab.call("ADD", &a) };
    let (code, why) = code_of(lab.call_plugin(&n1, &add))?;
    ensure!(code == 102 && why.contains("eth0"), "{code}: {why}");
    ensure!(n1.endpoints()?.is_empty(), "{:?}", n1.endpoints()?);
    for (was, namespace) in [(&before, n1.namespace()), (&inside, a.namespace())] {
        let left = Holdings::of(namespace)?.since(was);
        ensure!(left == Leftovers::NONE, "{left}");
    }
    // DEL of what was never made leaves the stranger's interface alone, too.
    lab.call_plugin(&n1, &Call { verb: "DEL", ..add.clone() })?;
    let left = Holdings::of(a.namespace())?.since(&inside);
    ensure!(left == Leftovers::NONE, "{left}");
    a.exec("ip link del eth0")?;
    lab.call_plugin(&n1, &add).context("the only address was not given back")?;
    Ok(())
}

fn the_nodes_own_namespace_is_nobodys_pod(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let n1 = lab.node("n1")?;
    let a = lab.add_pod("n1", "a")?;
    let before = Holdings::of(n1.namespace())?;
    for netns in
        [n1.namespace().path().display().to_string(), "/proc/self/ns/net".into(), "/proc/1/ns/net".into()]
    {
        for interface in ["eth0", "lo"] {
            let container = "e".repeat(64);
            let add =
                Call { container, netns: netns.clone(), interface: interface.into(), ..lab.call("ADD", &a) };
            let (code, why) = code_of(lab.call_plugin(&n1, &add))?;
            ensure!(code == 4 && why.contains("CNI_NETNS"), "{netns}: {code}: {why}");
            lab.call_plugin(&n1, &Call { verb: "DEL", ..add })?;
        }
        // The pod's own DEL with a path that has become the node's.
        let left = Holdings::of(n1.namespace())?.since(&before);
        ensure!(left == Leftovers::NONE, "{netns}: {left}");
    }
    let netns = n1.namespace().path().display().to_string();
    lab.call_plugin(&n1, &Call { netns, ..lab.call("DEL", &a) })?;
    n1.exec("ip link show eth0").context("the node lost its uplink")?;
    ensure!(n1.endpoints()?.is_empty(), "the attachment is released all the same");
    Ok(())
}

fn a_pod_without_an_object_is_waited_for(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let n1 = lab.node("n1")?;
    let a = lab.add_pod("n1", "a")?;
    lab.call_plugin(&n1, &lab.call("DEL", &a))?;
    let before = Holdings::of(n1.namespace())?;
    let stranger = Call { pod: Some(("nobody".into(), "0".into())), ..lab.call("ADD", &a) };
    let started = Instant::now();
    let (code, why) = code_of(lab.call_plugin(&n1, &stranger))?;
    let took = started.elapsed();
    ensure!(code == 11 && why.contains("default/nobody"), "{code}: {why}");
    ensure!((1900..5000).contains(&took.as_millis()), "it took {took:?}");
    let left = Holdings::of(n1.namespace())?.since(&before);
    ensure!(left == Leftovers::NONE, "{left}");
    Ok(())
}

fn a_new_pod_of_an_old_address_is_reached_at_once(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let n1 = lab.node("n1")?;
    let (asker, old, new) =
        (lab.add_pod("n1", "asker")?, lab.add_pod("n1", "old")?, lab.add_pod("n1", "new")?);
    for pod in [&old, &new] {
        lab.call_plugin(&n1, &lab.call("DEL", pod))?;
    }
    let first: std::net::IpAddr = [10, 70, 1, 50].into();
    let mac = |last: u8| format!("02:00:5e:00:53:{last:02x}");
    let one = |verb, pod: &Pod, last| {
        let mut configured = range(1);
        configured.insert("runtimeConfig".into(), json!({"mac": mac(last)}));
        Call { configured, ..lab.call(verb, pod) }
    };
    lab.call_plugin(&n1, &one("ADD", &old, 1))?;
    ensure!(asker.ping(first), "before");
    lab.call_plugin(&n1, &one("DEL", &old, 1))?;
    lab.call_plugin(&n1, &one("ADD", &new, 2))?;
    // One packet, no second try: whatever knew the old hardware address knows the new one by now.
    asker
        .exec(&format!("ping -n -q -c 1 -W 1 {first}"))
        .context("the first packet to the new pod is lost")?;
    let link = new.exec("ip -br link show eth0")?;
    ensure!(link.contains(&mac(2)), "{link}");
    Ok(())
}
