//! CHECK sees whatever breaks, and says what.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use causeway_model::{Family, Path, TunnelOwner};
use causeway_tests::lab::{Call, Lab, LabError, Node, Pod, PodSpec, Role};
use causeway_tests::leftovers::{Holdings, Leftovers};
use nix::sys::signal::Signal;
use serde_json::json;

use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    ("whatever_breaks_is_named", whatever_breaks_is_named),
    ("a_fast_path_that_does_not_answer_is_named", a_fast_path_that_does_not_answer_is_named),
    ("a_lost_lease_is_named", a_lost_lease_is_named),
    ("what_the_runtime_remembers_must_be_there", what_the_runtime_remembers_must_be_there),
];

/// What may happen inside any pod, and the words that tell of it. V4, V6 and MAC stand for the pod's own.
const IN_THE_POD: &[(&str, &str)] = &[
    ("ip link set eth0 down", "link eth0 is down"),
    ("ip link set eth0 name eth9", "there is no link eth0"),
    ("ip link set eth0 address 02:00:00:00:00:46", "the MAC of link eth0 is 02:00:00:00:00:46"),
    ("ip link set eth0 mtu 1300", "the MTU of link eth0 is 1300"),
    ("ip addr del V4/32 dev eth0", "address V4/32 on eth0 is missing"),
    ("ip -6 addr del V6/128 dev eth0", "address V6/128 on eth0 is missing"),
    ("ip route del default", "route 0.0.0.0/0 via 169.254.1.1 on eth0 is missing"),
    ("ip -6 route del default", "route ::/0 via fe80::1 on eth0 is missing"),
    ("ip neigh del 169.254.1.1 dev eth0", "neighbour 169.254.1.1"),
    ("ip neigh del fe80::1 dev eth0", "neighbour fe80::1"),
];

/// What inside a pod is mended, too: nothing of a pod works without its link.
const WITHOUT_ITS_LINK: (&str, &str) = ("ip link del eth0", "there is no link eth0");

/// The same on the node, of a pod with a veth there; LINK stands for its name.
const ON_THE_NODE: &[(&str, &str)] = &[
    ("ip link set LINK down", "link LINK is down"),
    ("ip link set LINK mtu 1400", "the MTU of link LINK is 1400"),
    ("ip link set LINK address 02:00:00:00:00:44", "the MAC of link LINK is 02:00:00:00:00:44"),
    ("ip addr del 169.254.1.1/32 dev LINK", "address 169.254.1.1/32 on LINK is missing"),
    ("ip -6 addr del fe80::1/64 dev LINK", "address fe80::1/64 on LINK is missing"),
    ("ip route del V4", "route V4/32 on LINK is missing"),
    ("ip -6 route del V6", "route V6/128 on LINK is missing"),
    ("ip neigh del V4 dev LINK", "neighbour V4 at MAC on LINK is missing"),
    ("ip neigh del V6 dev LINK", "neighbour V6 at MAC on LINK is missing"),
    ("nft delete element inet causeway pod_links { LINK }", "pod_links lacks"),
    ("nft delete element inet causeway pod_macs { LINK . MAC }", "pod_macs lacks"),
    ("nft delete element inet causeway pod_addresses4 { LINK . V4 }", "pod_addresses4 lacks"),
    ("nft delete element inet causeway pod_addresses6 { LINK . V6 }", "pod_addresses6 lacks"),
    ("nft flush chain inet causeway from_pod", "chains of nft table inet causeway are not ours"),
];

/// The same on the node, of a pod of the fast path.
const ON_A_FAST_NODE: &[(&str, &str)] = &[
    ("ip link set cw-host down", "link cw-host is down"),
    ("ip link set cw-host mtu 1300", "the MTU of link cw-host is 1300"),
    ("ip link set cw-host address 02:00:00:00:00:44", "the MAC of link cw-host is 02:00:00:00:00:44"),
    ("ip addr del 10.70.1.1/32 dev cw-host", "address 10.70.1.1/32 on cw-host is missing"),
    ("ip route del V4", "route V4/32 on cw-host is missing"),
    ("ip -6 route del V6", "route V6/128 on cw-host is missing"),
    ("ip neigh del V4 dev cw-host", "neighbour V4"),
    ("ip neigh del V6 dev cw-host", "neighbour V6"),
];

/// The same on any node.
const ON_ANY_NODE: &[(&str, &str)] = &[
    ("nft delete element inet causeway endpoints4 { V4 }", "endpoints4 lacks V4"),
    ("nft delete element inet causeway endpoints6 { V6 }", "endpoints6 lacks V6"),
    ("nft delete element inet causeway ports4 { tcp . 8080 }", "ports4 lacks tcp . 8080"),
    (
        "nft delete element inet causeway ports4 { tcp . 8080 } ; add element inet causeway ports4 { tcp . 8080 : V4 . 81 }",
        "ports4 leads elsewhere than tcp . 8080 : V4 . 80",
    ),
    ("nft delete element inet causeway mapped6 { V6 . tcp . 80 }", "mapped6 lacks V6 . tcp . 80"),
];

/// One call of the verb that is expected to succeed or to fail.
fn check(lab: &Lab, node: &Node, pod: &Pod) -> Result<(), LabError> {
    lab.call_plugin(node, &lab.call("CHECK", pod)).map(drop)
}

/// The words and the code of a check that fails.
fn complaint(lab: &Lab, node: &Node, pod: &Pod) -> anyhow::Result<Option<(u32, String)>> {
    match check(lab, node, pod) {
        Ok(()) => Ok(None),
        Err(LabError::Cni { failure, .. }) => Ok(Some((failure.code, failure.msg))),
        Err(error) => Err(error.into()),
    }
}

fn whatever_breaks_is_named(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let n1 = lab.node("n1")?;
    let fast = n1.status()?.path.tunnel == TunnelOwner::FastPath;
    let before = Holdings::of(n1.namespace())?;
    let paths: &[&str] = if fast { &["fast", "kernel"] } else { &["kernel"] };
    for path in paths {
        let outside = if *path == "fast" { ON_A_FAST_NODE } else { ON_THE_NODE };
        let outside = outside.iter().chain(ON_ANY_NODE).map(|case| (false, case));
        let inside = IN_THE_POD.iter().chain([&WITHOUT_ITS_LINK]).map(|case| (true, case));
        for (inside, case) in inside.chain(outside) {
            let (words, expected) = *case;
            let spec = PodSpec::named("a").annotation("causeway.dev/path", path);
            let port = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
            let pod = lab.add_pod("n1", spec.capability("portMappings", port))?;
            check(&lab, &n1, &pod).with_context(|| format!("a {path} pod that is as it was made"))?;
            named(matrix, &lab, &n1, &pod, inside, words, expected)
                .with_context(|| format!("{path}: {words}"))?;
            if !inside || *case == WITHOUT_ITS_LINK {
                let mended = within(Duration::from_secs(10), || check(&lab, &n1, &pod).is_ok());
                ensure!(mended, "{words} is not mended: {:?}", complaint(&lab, &n1, &pod)?);
                let reached = |family| pod.ping(n1.overlay_host_address(family));
                ensure!(Family::BOTH.into_iter().all(reached), "{words}: the pod reaches nobody");
            }
            lab.del_pod("a").with_context(|| format!("DEL after {words}"))?;
        }
    }
    let whole = within(Duration::from_secs(10), || {
        Holdings::of(n1.namespace()).is_ok_and(|now| now.since(&before) == Leftovers::NONE)
    });
    ensure!(whole, "{}", Holdings::of(n1.namespace())?.since(&before));
    Ok(())
}

/// Breaks one thing until a check has seen it: the agent, which mends what is on the node, may be faster the first time.
fn named(
    matrix: &Matrix,
    lab: &Lab,
    node: &Node,
    pod: &Pod,
    inside: bool,
    words: &str,
    expected: &str,
) -> anyhow::Result<()> {
    let v4 = pod.address(Family::V4).to_string();
    let mac =
        lab.node("n1")?.endpoints()?.iter().find(|e| e.endpoint.key == pod.key()).map(|e| e.endpoint.mac);
    let mac = mac.context("the agent does not know the pod")?.to_string();
    let told = |text: &str| {
        // Words of ours that look like what stands for the pod's own.
        let text = text.replace("the MAC of", "the M-A-C of").replace("LINK", pod.link().as_str());
        let text = text.replace("V4", &v4).replace("V6", &pod.address(Family::V6).to_string());
        text.replace("MAC", &mac).replace("M-A-C", "MAC")
    };
    let (words, expected) = (told(words), told(expected));
    let mut heard = String::from("nothing");
    for _ in 0..20 {
        if matrix.sabotage("nothing-broken", || ()).is_none() {
            // The second time it may be broken still.
            drop(if inside { pod.exec(&words) } else { node.exec(&words) });
        }
        if let Some((code, msg)) = complaint(lab, node, pod)? {
            heard = msg;
            if code == 103 && heard.contains(&expected) {
                return Ok(());
            }
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    anyhow::bail!("{expected:?} is not in what CHECK says: {heard}")
}

fn a_fast_path_that_does_not_answer_is_named(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let n1 = lab.node("n1")?;
    let pod = lab.add_pod("n1", "a")?;
    let fast = n1.endpoints()?.iter().any(|endpoint| endpoint.endpoint.path == Path::Fast);
    ensure!(
        fast == (n1.status()?.path.tunnel == TunnelOwner::FastPath),
        "a fast node whose first pod is not"
    );
    check(&lab, &n1, &pod)?;
    if !fast {
        // On a kernel node the same question is whether anything is at the other end of the pod's link.
        n1.exec(&format!("ip link del {}", pod.link()))?;
        let heard = complaint(&lab, &n1, &pod)?;
        let mended = || check(&lab, &n1, &pod).is_ok();
        ensure!(heard.is_none_or(|(_, msg)| msg.contains("link")), "a pod without its link");
        ensure!(within(Duration::from_secs(10), mended), "{:?}", complaint(&lab, &n1, &pod)?);
        return Ok(());
    }
    let process = lab.process("n1", Role::Fastpath)?.context("no fast path")?;
    process.signal(Signal::SIGSTOP)?;
    let stopped = complaint(&lab, &n1, &pod)?;
    process.signal(Signal::SIGCONT)?;
    let (code, msg) = stopped.context("a stopped fast path answers")?;
    ensure!(code == 103 && msg.contains("does not answer"), "stopped: {code}: {msg}");
    let well = || check(&lab, &n1, &pod).is_ok();
    ensure!(within(Duration::from_secs(10), well), "going on: {:?}", complaint(&lab, &n1, &pod)?);
    lab.kill("n1", Role::Fastpath)?;
    let (code, msg) = complaint(&lab, &n1, &pod)?.context("a dead fast path answers")?;
    ensure!(code == 103 && msg.contains("not connected"), "dead: {code}: {msg}");
    lab.start("n1", Role::Fastpath)?;
    ensure!(within(Duration::from_secs(10), well), "back: {:?}", complaint(&lab, &n1, &pod)?);
    // A link of the same kind and name that is another one: the queues lead nowhere, and it is nobody's to take away.
    let another = n1.directory().join("another-link");
    std::fs::write(&another, "link del eth0\ntuntap add eth0 mode tap\n")?;
    pod.exec(&format!("ip -batch {}", another.display()))?;
    for look in 0..2 {
        let (code, msg) = complaint(&lab, &n1, &pod)?.context("another link is taken for the pod's")?;
        let told = msg.contains("queues") || msg.contains("interface eth0 exists");
        ensure!(code == 103 && told, "another link, look {look}: {code}: {msg}");
        // By then it was tried to mend it.
        std::thread::sleep(Duration::from_secs(6));
    }
    pod.exec("ip link del eth0")?;
    ensure!(within(Duration::from_secs(10), well), "without it: {:?}", complaint(&lab, &n1, &pod)?);
    Ok(())
}

fn a_lost_lease_is_named(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let n1 = lab.node("n1")?;
    let (state, older) = (n1.directory().join("state/agent.redb"), n1.directory().join("older.redb"));
    lab.kill("n1", Role::Agent)?;
    std::fs::copy(&state, &older)?;
    lab.start("n1", Role::Agent)?;
    let pod = lab.add_pod("n1", "a")?;
    check(&lab, &n1, &pod)?;
    lab.kill("n1", Role::Agent)?;
    std::fs::copy(&older, &state)?;
    lab.start("n1", Role::Agent)?;
    let (code, msg) = complaint(&lab, &n1, &pod)?.context("an attachment without a lease is well")?;
    ensure!(code == 3 && msg.contains("lease"), "{code}: {msg}");
    Ok(())
}

fn what_the_runtime_remembers_must_be_there(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let n1 = lab.node("n1")?;
    let (a, b) = (lab.add_pod("n1", "a")?, lab.add_pod("n1", "b")?);
    let good = lab.call("CHECK", &a);
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let configured = json!({"cniVersion": version}).as_object().cloned().unwrap_or_default();
        lab.call_plugin(&n1, &Call { configured, ..good.clone() }).context(version)?;
    }
    let of = |call: Call| match lab.call_plugin(&n1, &call) {
        Err(LabError::Cni { failure, .. }) => Ok((failure.code, failure.msg)),
        other => Err(anyhow::anyhow!("{other:?}")),
    };
    let old = json!({"cniVersion": "0.3.1"}).as_object().cloned().unwrap_or_default();
    ensure!(of(Call { configured: old, ..good.clone() })?.0 == 1, "0.3.1 has no CHECK");
    ensure!(of(Call { previous: None, ..good.clone() })?.0 == 7, "no prevResult");
    // The result of another pod: the address is that of somebody else.
    let (code, msg) = of(Call { previous: Some(b.record.result.clone()), ..good.clone() })?;
    ensure!(code == 103 && msg.contains(&b.address(Family::V4).to_string()), "{code}: {msg}");
    // The namespace of another pod.
    let (code, msg) = of(Call { netns: lab.call("CHECK", &b).netns, ..good.clone() })?;
    ensure!(code == 103 && msg.contains("another namespace"), "{code}: {msg}");
    let (code, _) = of(Call { container: "f".repeat(64), ..good.clone() })?;
    ensure!(code == 3, "a stranger: {code}");
    let started = Instant::now();
    lab.call_plugin(&n1, &good)?;
    ensure!(started.elapsed() < Duration::from_secs(2), "a check takes {:?}", started.elapsed());
    Ok(())
}
