//! Which addresses pods get, by whose word, and when they are free again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use causeway_model::Family;
use causeway_model::plugin::Failure;
use causeway_tests::lab::{Call, Lab, LabError, Node, Pod, PodSpec, Role};
use causeway_tests::leftovers::{Holdings, Leftovers};
use causeway_tests::process::Process;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    ("static_addresses_come_by_capability_argument_and_annotation", static_addresses_come_by_every_way),
    ("a_range_bounds_its_network_and_is_used_up_with_a_name", a_range_bounds_its_network),
    (
        "a_delete_without_a_namespace_frees_the_only_address",
        a_delete_without_a_namespace_frees_the_only_address,
    ),
    ("a_second_delete_leaves_the_next_owner_alone", a_second_delete_leaves_the_next_owner_alone),
    ("a_repeated_add_takes_no_second_address", a_repeated_add_takes_no_second_address),
    ("the_next_owner_of_an_address_is_reached_at_once", the_next_owner_of_an_address_is_reached_at_once),
    ("routes_of_a_network_are_all_its_pods_have", routes_of_a_network_are_all_its_pods_have),
    ("host_local_gives_addresses_and_gets_them_back", host_local_gives_addresses_and_gets_them_back),
    ("another_plugin_hears_every_verb", another_plugin_hears_every_verb),
    ("an_add_whose_plugin_is_killed_leaves_nothing", an_add_whose_plugin_is_killed_leaves_nothing),
    ("a_reboot_frees_what_its_pods_had", a_reboot_frees_what_its_pods_had),
];

/// What takes as long as somebody's patience.
pub const PATIENT: &[(&str, Story)] = &[
    ("a_leaked_address_is_collected_and_a_living_pods_is_not", a_leaked_address_is_collected),
    ("calls_to_a_stuck_agent_return_by_themselves", calls_to_a_stuck_agent_return_by_themselves),
];

/// A network with these addresses of node n1 and no others.
pub(super) fn ranged(matrix: &Matrix, pod: &str, first: u8, last: u8) -> PodSpec {
    let range = json!([[{
        "subnet": "10.70.1.0/24", "rangeStart": format!("10.70.1.{first}"), "rangeEnd": format!("10.70.1.{last}")
    }]]);
    match matrix.sabotage("range-unsaid", || ()) {
        Some(()) => PodSpec::named(pod),
        None => PodSpec::named(pod).config("ipam", json!({"type": "causeway", "ranges": range})),
    }
}

pub(super) fn one_node(matrix: &Matrix) -> anyhow::Result<(Lab, Node)> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let node = lab.node("n1")?;
    Ok((lab, node))
}

/// An ADD that must fail with this code and these words, and leave the node as it was.
fn refused(lab: &Lab, node: &Node, spec: PodSpec, code: u32, words: &[&str]) -> anyhow::Result<()> {
    let before = Holdings::of(node.namespace())?;
    let failure = match lab.add_pod(node.name(), spec) {
        Err(LabError::Cni { failure, .. }) => failure,
        other => anyhow::bail!("{words:?}: {other:?}"),
    };
    ensure!(failure.code == code, "{failure:?}, not {code}");
    ensure!(words.iter().all(|word| failure.msg.contains(word)), "{failure:?} lacks one of {words:?}");
    let left = Holdings::of(node.namespace())?.since(&before);
    ensure!(left == Leftovers::NONE, "{left}");
    Ok(())
}

pub(super) fn last_byte(pod: &Pod) -> Option<u8> {
    match pod.address(Family::V4) {
        std::net::IpAddr::V4(address) => Some(address.octets()[3]),
        std::net::IpAddr::V6(_) => None,
    }
}

pub(super) fn call(pod: &Pod, verb: &'static str) -> Call {
    let record = &pod.record;
    Call {
        verb,
        container: record.container.clone(),
        netns: pod.namespace().path().display().to_string(),
        pod: Some((record.name.clone(), record.uid.clone())),
        configured: record.config.clone(),
        ..Call::default()
    }
}

fn static_addresses_come_by_every_way(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let n1 = lab.node("n1")?;
    let far = lab.add_pod("n2", "far")?;
    let mac = "02:00:5e:00:53:01";
    let asked = PodSpec::named("a").capability("ips", json!(["10.70.1.50/24", "fd70:0:0:1::50"]));
    let a = lab.add_pod("n1", asked.capability("mac", json!(mac)))?;
    let b = lab.add_pod("n1", PodSpec::named("b").arg("IP", "10.70.1.51").arg("MAC", "02:00:5e:00:53:02"))?;
    let told = json!({"cni": {"ips": ["10.70.1.52"]}});
    let c = lab.add_pod("n1", PodSpec::named("c").config("args", told))?;
    let noted = PodSpec::named("d").annotation("causeway.dev/addresses", "10.70.1.53, fd70:0:0:1::53");
    let d = lab.add_pod("n1", noted.annotation("causeway.dev/mac", "02:00:5e:00:53:04"))?;
    for (pod, expected) in [(&a, 50), (&b, 51), (&c, 52), (&d, 53)] {
        ensure!(last_byte(pod) == Some(expected), "{}: {:?}", pod.name(), pod.record.addresses);
        let family = if matches!(expected, 50 | 53) { Family::BOTH.as_slice() } else { &[Family::V4] };
        ensure!(family.iter().all(|family| far.ping(pod.address(*family))), "{} is not reached", pod.name());
    }
    for (pod, mac) in [(&a, mac), (&b, "02:00:5e:00:53:02"), (&d, "02:00:5e:00:53:04")] {
        ensure!(pod.exec("ip link show eth0")?.contains(mac), "{} has not {mac}", pod.name());
    }
    let holder = format!("{:.12}", a.record.container);
    let again = PodSpec::named("x").capability("ips", json!(["10.70.1.50"]));
    refused(&lab, &n1, again, Failure::TRY_AGAIN, &["10.70.1.50", &holder])?;
    let again = PodSpec::named("x").capability("mac", json!(mac));
    refused(&lab, &n1, again, Failure::TRY_AGAIN, &[mac, &holder])?;
    for (bad, why) in [
        ("10.70.1.1", "reserved"),
        ("10.70.1.2", "reserved"),
        ("10.70.1.255", "reserved"),
        ("10.70.2.9", "outside"),
    ] {
        let bad = PodSpec::named("x").capability("ips", json!([bad]));
        refused(&lab, &n1, bad, Failure::INVALID_CONFIG, &[why])?;
    }
    let torn = PodSpec::named("x").annotation("causeway.dev/addresses", "10.70.1.60").arg("IP", "10.70.1.61");
    refused(&lab, &n1, torn, Failure::INVALID_CONFIG, &["10.70.1.60", "10.70.1.61"])
}

fn a_range_bounds_its_network(matrix: &Matrix) -> anyhow::Result<()> {
    let (lab, n1) = one_node(matrix)?;
    let other = lab.add_pod("n1", "other")?;
    let add = |name: &str| lab.add_pod("n1", ranged(matrix, name, 10, 12));
    let pods = [add("a")?, add("b")?, add("c")?];
    let given: Vec<_> = pods.iter().map(last_byte).collect();
    ensure!(given == [Some(10), Some(11), Some(12)], "{given:?}");
    ensure!(pods.iter().all(|pod| pod.record.addresses.len() == 1 && pod.ping(other.address(Family::V4))));
    let full = ["10.70.1.10-10.70.1.12", "3 of 3"];
    refused(&lab, &n1, ranged(matrix, "z", 10, 12), Failure::RANGE_EXHAUSTED, &full)?;
    lab.del_pod("b")?;
    lab.del_pod("a")?;
    let again = [add("d")?, add("e")?].map(|pod| last_byte(&pod));
    ensure!(again == [Some(11), Some(10)], "{again:?}: released first, given first");
    let outside = json!({"type": "causeway", "ranges": [[{"subnet": "10.71.0.0/24"}]]});
    let outside = PodSpec::named("z").config("ipam", outside);
    refused(&lab, &n1, outside, Failure::INVALID_CONFIG, &["10.71.0.1-10.71.0.254", "10.70.1.0/24"])?;
    let small = PodSpec::named("z")
        .config("ipam", json!({"type": "causeway", "ranges": [[{"subnet": "10.70.1.8/31"}]]}));
    refused(&lab, &n1, small, Failure::INVALID_CONFIG, &["10.70.1.8/31", "too small"])
}

fn a_delete_without_a_namespace_frees_the_only_address(matrix: &Matrix) -> anyhow::Result<()> {
    let (lab, n1) = one_node(matrix)?;
    let before = Holdings::of(n1.namespace())?;
    for (number, netns) in [Some(""), None, Some("/run/netns/not-there")].into_iter().enumerate() {
        let pod = lab.add_pod("n1", ranged(matrix, &format!("pod{number}"), 10, 10))?;
        ensure!(last_byte(&pod) == Some(10), "{:?}", pod.record.addresses);
        let late = call(&pod, "DEL");
        pod.namespace().delete()?;
        // The dead path itself, where none is said.
        let netns = netns.map_or(late.netns.clone(), str::to_owned);
        lab.call_plugin(&n1, &Call { netns, ..late })?;
        let left = Holdings::of(n1.namespace())?.since(&before);
        ensure!(left == Leftovers::NONE, "{left}");
    }
    Ok(())
}

fn a_second_delete_leaves_the_next_owner_alone(matrix: &Matrix) -> anyhow::Result<()> {
    let (lab, n1) = one_node(matrix)?;
    let other = lab.add_pod("n1", "other")?;
    lab.call_plugin(&n1, &Call { verb: "DEL", container: "f".repeat(64), ..Call::default() })?;
    let first = lab.add_pod("n1", ranged(matrix, "first", 10, 10))?;
    let late = Call { netns: String::new(), ..call(&first, "DEL") };
    lab.del_pod("first")?;
    let next = lab.add_pod("n1", ranged(matrix, "next", 10, 10))?;
    ensure!(next.record.addresses == first.record.addresses, "{:?}", next.record.addresses);
    lab.call_plugin(&n1, &late)?;
    ensure!(other.ping(next.address(Family::V4)), "its next owner is cut off");
    let full = ["1 of 1 in use"];
    refused(&lab, &n1, ranged(matrix, "z", 10, 10), Failure::RANGE_EXHAUSTED, &full)
}

fn a_repeated_add_takes_no_second_address(matrix: &Matrix) -> anyhow::Result<()> {
    let (lab, n1) = one_node(matrix)?;
    let other = lab.add_pod("n1", "other")?;
    let pod = lab.add_pod("n1", ranged(matrix, "pod", 10, 11))?;
    let before = Holdings::of(n1.namespace())?;
    match lab.call_plugin(&n1, &call(&pod, "ADD")) {
        Err(LabError::Cni { failure, .. }) => ensure!(failure.code == Failure::EXISTS, "{failure:?}"),
        other => anyhow::bail!("the same ADD again: {other:?}"),
    }
    let left = Holdings::of(n1.namespace())?.since(&before);
    ensure!(left == Leftovers::NONE, "{left}");
    ensure!(other.ping(pod.address(Family::V4)), "it is cut off by it");
    let second = Call { interface: "net1".into(), ..call(&pod, "ADD") };
    let result = lab.call_plugin(&n1, &second)?;
    ensure!(result["ips"][0]["address"] == "10.70.1.11/32", "{result}");
    ensure!(n1.endpoints()?.len() == 3, "{:?}", n1.endpoints()?);
    lab.call_plugin(&n1, &Call { verb: "DEL", ..second })?;
    lab.del_pod("pod")?;
    ensure!(n1.endpoints()?.len() == 1, "{:?}", n1.endpoints()?);
    lab.add_pod("n1", ranged(matrix, "x", 10, 11))?;
    lab.add_pod("n1", ranged(matrix, "y", 10, 11)).map(drop).context("one of its addresses is still taken")
}

fn the_next_owner_of_an_address_is_reached_at_once(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let [near, far] = [lab.add_pod("n1", "near")?, lab.add_pod("n2", "far")?];
    let mut last = None;
    for (number, mac) in
        ["02:00:5e:00:53:01", "02:00:5e:00:53:02", "02:00:5e:00:53:03"].into_iter().enumerate()
    {
        let name = format!("owner{number}");
        let spec = ranged(matrix, &name, 10, 10).capability("mac", json!(mac));
        let owner = lab.add_pod("n1", spec)?;
        let address = owner.address(Family::V4);
        ensure!(last.is_none_or(|last| last == address), "{address}, not {last:?}");
        // One packet each, and no other before it.
        for (from, pod) in [("the same node", &near), ("another node", &far)] {
            ensure!(
                pod.exec(&format!("ping -n -q -c 1 -W 1 {address}")).is_ok(),
                "{mac}: the first packet from {from} is lost"
            );
        }
        last = Some(address);
        lab.del_pod(&name)?;
    }
    Ok(())
}

fn routes_of_a_network_are_all_its_pods_have(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let far = lab.add_pod("n2", "far")?;
    let ipam = json!({"type": "causeway", "routes": [{"dst": "10.70.0.0/16"}, {"dst": "fd70::/48"}]});
    let pod = lab.add_pod("n1", PodSpec::named("pod").config("ipam", ipam))?;
    for (family, route) in [("-4", "10.70.0.0/16"), ("-6", "fd70::/48")] {
        let routes = pod.exec(&format!("ip {family} route"))?;
        ensure!(routes.contains(route) && !routes.contains("default"), "{routes}");
    }
    let told: Vec<_> =
        pod.record.result["routes"].as_array().into_iter().flatten().map(|route| &route["dst"]).collect();
    ensure!(told == ["10.70.0.0/16", "fd70::/48"], "{}", pod.record.result);
    ensure!(
        Family::BOTH.iter().all(|family| pod.ping(far.address(*family)) && far.ping(pod.address(*family)))
    );
    Ok(())
}

/// A pod whose addresses host-local gives, from a directory that it keeps its books in.
fn by_host_local(name: &str, books: &Path, subnet: &str) -> PodSpec {
    let range = json!([[{"subnet": subnet, "rangeStart": subnet.replace("0/24", "40"), "rangeEnd": subnet.replace("0/24", "41")}]]);
    let ipam = json!({"type": "host-local", "dataDir": books, "ranges": range});
    // Debian's knows no newer version.
    PodSpec::named(name).config("ipam", ipam).config("cniVersion", json!("1.0.0"))
}

fn on_the_books(books: &Path) -> Vec<String> {
    let files = fs::read_dir(books.join("pods")).into_iter().flatten().flatten();
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("10.")).collect();
    names.sort();
    names
}

fn host_local_gives_addresses_and_gets_them_back(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (n1, far) = (lab.node("n1")?, lab.add_pod("n2", "far")?);
    let before = Holdings::of(n1.namespace())?;
    let books = n1.directory().join("books");
    let a = lab.add_pod("n1", by_host_local("a", &books, "10.70.1.0/24"))?;
    ensure!(last_byte(&a) == Some(40) && a.record.addresses.len() == 1, "{:?}", a.record.addresses);
    ensure!(a.ping(far.address(Family::V4)) && far.ping(a.address(Family::V4)), "its pod is not reached");
    ensure!(on_the_books(&books) == ["10.70.1.40"], "{:?}", on_the_books(&books));
    refused(
        &lab,
        &n1,
        by_host_local("x", &books, "10.70.2.0/24"),
        Failure::INVALID_CONFIG,
        &["10.70.2.40", "10.70.1.0/24"],
    )?;
    ensure!(on_the_books(&books) == ["10.70.1.40"], "the refused one is kept: {:?}", on_the_books(&books));
    // Ours stays out of its way, and it out of ours.
    let ours = PodSpec::named("x").capability("ips", json!(["10.70.1.40"]));
    refused(&lab, &n1, ours, Failure::TRY_AGAIN, &["10.70.1.40"])?;
    let c = lab.add_pod("n1", PodSpec::named("c").capability("ips", json!(["10.70.1.41"])))?;
    let holder = format!("{:.12}", c.record.container);
    refused(
        &lab,
        &n1,
        by_host_local("x", &books, "10.70.1.0/24"),
        Failure::TRY_AGAIN,
        &["10.70.1.41", &holder],
    )?;
    ensure!(on_the_books(&books) == ["10.70.1.40"], "{:?}", on_the_books(&books));
    lab.del_pod("c")?;
    lab.kill("n1", Role::Agent)?;
    lab.del_pod("a").context("DEL with a dead agent")?;
    ensure!(on_the_books(&books).is_empty(), "DEL with a dead agent keeps {:?}", on_the_books(&books));
    lab.start("n1", Role::Agent)?;
    ensure!(
        within(Duration::from_secs(5), || n1.endpoints().is_ok_and(|all| all.is_empty())),
        "{:?}",
        n1.endpoints()?
    );
    let left = Holdings::of(n1.namespace())?.since(&before);
    ensure!(left == Leftovers::NONE, "{left}");
    Ok(())
}

/// A plugin that writes down every call, and gives one address.
fn recorder(node: &Node) -> anyhow::Result<()> {
    fs::create_dir_all(node.plugins())?;
    let (program, heard) = (node.plugins().join("recorder"), node.plugins().join("heard"));
    let script = format!(
        "#!/bin/sh\necho \"$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $(cat)\" >> {}\n\
         case $CNI_COMMAND in ADD) echo '{{\"cniVersion\":\"1.1.0\",\"ips\":[{{\"address\":\"10.70.1.77/24\"}}]}}';; esac\n",
        heard.display()
    );
    fs::write(&program, script)?;
    Ok(fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?)
}

fn heard(node: &Node) -> Vec<String> {
    let text = fs::read_to_string(node.plugins().join("heard")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn another_plugin_hears_every_verb(matrix: &Matrix) -> anyhow::Result<()> {
    let (lab, n1) = one_node(matrix)?;
    recorder(&n1)?;
    let ipam = json!({"type": "recorder"});
    let pod = lab.add_pod("n1", PodSpec::named("pod").config("ipam", ipam))?;
    ensure!(last_byte(&pod) == Some(77), "{:?}", pod.record.addresses);
    let previous = Some(pod.record.result.clone());
    lab.call_plugin(&n1, &Call { previous, ..call(&pod, "CHECK") }).context("CHECK")?;
    let network = Call { configured: pod.record.config.clone(), ..Call::default() };
    lab.call_plugin(&n1, &Call { verb: "STATUS", ..network.clone() }).context("STATUS")?;
    let valid = json!([{"containerID": pod.record.container, "ifname": "eth0"}]);
    let mut configured = network.configured.clone();
    configured.insert("cni.dev/valid-attachments".into(), valid.clone());
    lab.call_plugin(&n1, &Call { verb: "GC", configured, ..network }).context("GC")?;
    ensure!(n1.endpoints()?.len() == 1, "GC took what is valid");
    lab.del_pod("pod")?;
    let calls = heard(&n1);
    let verbs: Vec<_> = calls.iter().filter_map(|line| line.split(' ').next()).collect();
    // A runtime deletes three times.
    ensure!(verbs == ["ADD", "CHECK", "STATUS", "GC", "DEL", "DEL", "DEL"], "{calls:?}");
    ensure!(calls[0].contains(&pod.record.container) && calls[1].contains("prevResult"), "{calls:?}");
    let sent: Value = serde_json::from_str(calls[3].trim_start_matches(|c| c != '{'))?;
    ensure!(sent["cni.dev/valid-attachments"] == valid, "{sent}");
    Ok(())
}

fn an_add_whose_plugin_is_killed_leaves_nothing(matrix: &Matrix) -> anyhow::Result<()> {
    let (lab, n1) = one_node(matrix)?;
    let before = Holdings::of(n1.namespace())?;
    let pod = lab.add_pod("n1", ranged(matrix, "pod", 10, 10))?;
    let add = call(&pod, "ADD");
    lab.call_plugin(&n1, &Call { verb: "DEL", ..add.clone() })?;
    let agent = lab.process("n1", Role::Agent)?.context("no agent")?;
    // The agent finds the question of one who has gone.
    stand_still(agent)?;
    let (mut command, config) = lab.plugin(&n1, &add)?;
    let asked = n1.run(|| -> anyhow::Result<()> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        std::io::Write::write_all(
            &mut child.stdin.take().context("no stdin")?,
            config.to_string().as_bytes(),
        )?;
        std::thread::sleep(Duration::from_millis(300));
        child.kill()?;
        child.wait()?;
        Ok(())
    });
    agent.signal(Signal::SIGCONT)?;
    asked?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(n1.endpoints()?.is_empty(), "done for nobody: {:?}", n1.endpoints()?);
    lab.call_plugin(&n1, &Call { verb: "DEL", ..add })?;
    ensure!(n1.endpoints()?.is_empty(), "{:?}", n1.endpoints()?);
    let left = Holdings::of(n1.namespace())?.since(&before);
    ensure!(left == Leftovers::NONE, "{left}");
    lab.add_pod("n1", ranged(matrix, "next", 10, 10)).map(drop).context("the only address is still taken")
}

/// Stops a process with all its threads: one hears of the signal first, and until it runs the others go on.
fn stand_still(process: Process) -> anyhow::Result<()> {
    process.signal(Signal::SIGSTOP)?;
    let stopped = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", process.pid)).into_iter().flatten().flatten();
        let stat = tasks.map(|task| fs::read_to_string(task.path().join("stat")).unwrap_or_default());
        stat.into_iter().all(|stat| stat.rsplit(") ").next().is_some_and(|state| state.starts_with('T')))
    };
    ensure!(within(Duration::from_secs(10), stopped), "it does not stand still");
    Ok(())
}

fn a_reboot_frees_what_its_pods_had(matrix: &Matrix) -> anyhow::Result<()> {
    let (lab, n1) = one_node(matrix)?;
    let six = |pod: &str| ranged(matrix, pod, 11, 16);
    let old: Vec<_> = ["c1", "c2", "c3", "c4", "c5"]
        .map(|name| lab.add_pod("n1", six(name)))
        .into_iter()
        .collect::<Result<_, _>>()?;
    lab.kill("n1", Role::Agent)?;
    if lab.process("n1", Role::Fastpath)?.is_some() {
        lab.kill("n1", Role::Fastpath)?;
        lab.start("n1", Role::Fastpath)?;
    }
    for pod in &old {
        pod.namespace().delete()?;
    }
    let boot = n1.directory().join("boot_id");
    fs::write(&boot, "5f9c4ab0-0000-4000-8000-000000000002\n")?;
    let boot = format!("mount --bind {} /proc/sys/kernel/random/boot_id", boot.display());
    lab.spawn_in(&n1, Role::Agent, &boot)?;
    lab.await_ready(&n1)?;
    ensure!(n1.endpoints()?.is_empty(), "{:?}", n1.endpoints()?);
    let new: Vec<_> = ["d1", "d2", "d3", "d4", "d5"]
        .map(|name| lab.add_pod("n1", six(name)))
        .into_iter()
        .collect::<Result<_, _>>()?;
    for pod in &old {
        lab.call_plugin(&n1, &call(pod, "DEL")).context("a late DEL")?;
    }
    let kept: BTreeMap<_, _> = n1
        .endpoints()?
        .into_iter()
        .map(|one| (one.endpoint.key.container.clone(), one.endpoint.addresses))
        .collect();
    ensure!(
        kept.len() == 5
            && new.iter().all(|pod| kept.get(&pod.record.container) == Some(&pod.record.addresses)),
        "{kept:?}"
    );
    let [first, .., last] = new.as_slice() else { anyhow::bail!("{new:?}") };
    ensure!(first.ping(last.address(Family::V4)), "the new pods do not reach each other");
    Ok(())
}

fn a_leaked_address_is_collected(matrix: &Matrix) -> anyhow::Result<()> {
    let (lab, n1) = one_node(matrix)?;
    let [stays, lost, leaked] = [
        lab.add_pod("n1", "stays")?,
        lab.add_pod("n1", "lost")?,
        lab.add_pod("n1", ranged(matrix, "leaked", 10, 10))?,
    ];
    let without_leaked = |n1: &Node| {
        n1.endpoints().map(|all| all.iter().map(|one| one.endpoint.key.container.clone()).collect::<Vec<_>>())
    };
    // One lives on without its path: a process of its is all that tells.
    let mut process = lost.run(|| Command::new("sleep").arg("100").stdin(Stdio::null()).spawn())?;
    lost.namespace().delete()?;
    leaked.namespace().delete()?;
    let began = Instant::now();
    let collected = within(Duration::from_secs(40), || {
        without_leaked(&n1).is_ok_and(|all| !all.contains(&leaked.record.container))
    });
    let took = began.elapsed();
    let kept = without_leaked(&n1);
    process.kill()?;
    process.wait()?;
    let kept = kept?;
    ensure!(collected, "after {took:?} it is still there: {kept:?}");
    ensure!(took > Duration::from_secs(8), "{took:?} are no two looks with a pause between");
    ensure!(
        kept.contains(&stays.record.container) && kept.contains(&lost.record.container),
        "a living pod is gone: {kept:?}"
    );
    ensure!(
        n1.status()?.mended.iter().any(|line| line.contains("without a DEL")),
        "{:?}",
        n1.status()?.mended
    );
    let next = lab.add_pod("n1", ranged(matrix, "next", 10, 10)).context("its address is still taken")?;
    ensure!(stays.ping(next.address(Family::V4)));
    // Nobody lives there any more.
    ensure!(
        within(Duration::from_secs(40), || without_leaked(&n1)
            .is_ok_and(|all| !all.contains(&lost.record.container))),
        "the other one stays for ever"
    );
    Ok(())
}

fn calls_to_a_stuck_agent_return_by_themselves(matrix: &Matrix) -> anyhow::Result<()> {
    let (lab, n1) = one_node(matrix)?;
    let pods: Vec<_> =
        ["a", "b", "c"].map(|name| lab.add_pod("n1", name)).into_iter().collect::<Result<_, _>>()?;
    let agent: Process = lab.process("n1", Role::Agent)?.context("no agent")?;
    stand_still(agent)?;
    let calls: Vec<_> = pods
        .iter()
        .flat_map(|pod| {
            [
                call(pod, "DEL"),
                Call { container: pod.record.container.replace(['0', '1', '2'], "e"), ..call(pod, "ADD") },
            ]
        })
        .collect();
    let began = Instant::now();
    let answers = std::thread::scope(|scope| {
        let (lab, n1) = (&lab, &n1);
        let ask = |call| scope.spawn(move || lab.call_plugin(n1, call));
        let asked: Vec<_> = calls.iter().map(ask).collect();
        asked
            .into_iter()
            .map(|answer| answer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Vec<_>>()
    });
    let took = began.elapsed();
    agent.signal(Signal::SIGCONT)?;
    ensure!(took < Duration::from_secs(75), "{took:?}");
    for (call, answer) in calls.iter().zip(answers) {
        match (call.verb, answer) {
            ("DEL", Ok(_)) => {}
            ("ADD", Err(LabError::Cni { failure, .. })) => {
                ensure!(failure.code == Failure::TRY_AGAIN, "{failure:?}");
            }
            (verb, other) => anyhow::bail!("{verb}: {other:?}"),
        }
    }
    // What was left as tombstones is done, what nobody waited for is not, and the next call is served.
    ensure!(
        within(Duration::from_secs(10), || n1.endpoints().is_ok_and(|all| all.is_empty())),
        "{:?}",
        n1.endpoints()?
    );
    lab.add_pod("n1", "next").map(drop).context("after all that")
}
