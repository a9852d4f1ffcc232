//! Agents die and others meddle.

use std::time::Duration;

use anyhow::{Context, ensure};
use causeway_model::operator::EndpointStatus;
use causeway_model::policy::Tables;
use causeway_model::{Endpoint, Family, TunnelOwner};
use causeway_tests::lab::{Lab, LabError, Role};
use causeway_tests::leftovers::{Holdings, Leftovers};
use causeway_tests::traffic::Flow;
use nix::sys::signal::Signal;

use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    ("kill_9_of_the_agent_is_not_noticed", kill_9_of_the_agent_is_not_noticed),
    ("a_restart_changes_nothing", a_restart_changes_nothing),
    ("calls_while_the_agent_is_dead", calls_while_the_agent_is_dead),
    ("what_others_break_is_mended", what_others_break_is_mended),
];

/// What a flow may stand still for on a busy machine without anybody noticing.
const UNNOTICED: Duration = Duration::from_millis(1000);

fn kill_9_of_the_agent_is_not_noticed(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let [a, b, c] = [("n1", "a"), ("n1", "b"), ("n2", "c")].map(|(node, pod)| lab.add_pod(node, pod));
    let (a, b, c) = (a?, b?, c?);
    let far = Flow::start(a.namespace(), c.namespace(), c.address(Family::V4))?;
    let near = Flow::start(b.namespace(), a.namespace(), a.address(Family::V6))?;
    for node in ["n1", "n2"] {
        lab.kill(node, Role::Agent)?;
        std::thread::sleep(Duration::from_millis(500));
        ensure!(far.moves_within(UNNOTICED) && near.moves_within(UNNOTICED), "a flow stands: {node} is dead");
        lab.start(node, Role::Agent)?;
        std::thread::sleep(Duration::from_millis(300));
    }
    for (what, flow) in [("across nodes", far), ("on the node", near)] {
        let seen = flow.finish().context(what)?;
        ensure!(seen.longest_gap < UNNOTICED, "{what}: {seen:?}");
    }
    Ok(())
}

fn a_restart_changes_nothing(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n2", "c")?);
    let n1 = lab.node("n1")?;
    // Tables begin with another epoch: flows are judged again by whoever comes.
    let without_epochs = |one: EndpointStatus| Endpoint { policy: Tables::default(), ..one.endpoint };
    let keys = || Ok::<_, LabError>(n1.endpoints()?.into_iter().map(without_epochs).collect::<Vec<_>>());
    let (before, known) = (Holdings::of(n1.namespace())?, keys()?);
    for _ in 0..2 {
        lab.kill("n1", Role::Agent)?;
        let dead = Holdings::of(n1.namespace())?.since(&before);
        ensure!(dead == Leftovers::NONE, "with the agent dead: {dead}");
        lab.start("n1", Role::Agent)?;
        let now = Holdings::of(n1.namespace())?.since(&before);
        ensure!(now == Leftovers::NONE, "with the agent back: {now}");
        ensure!(keys()? == known, "{:?}, not {known:?}", keys()?);
    }
    ensure!(a.ping(c.address(Family::V4)) && c.ping(a.address(Family::V6)));
    Ok(())
}

fn calls_while_the_agent_is_dead(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let n1 = lab.node("n1")?;
    let before = Holdings::of(n1.namespace())?;
    lab.add_pod("n1", "a")?;
    lab.kill("n1", Role::Agent)?;
    let socket = n1.directory().join("run/cni.sock").display().to_string();
    match lab.add_pod("n1", "b") {
        Err(LabError::Cni { failure, .. }) => {
            ensure!(
                failure.code == 11 && format!("{} {}", failure.msg, failure.details).contains(&socket),
                "{failure:?}"
            );
        }
        other => anyhow::bail!("ADD with a dead agent: {other:?}"),
    }
    lab.del_pod("a").context("DEL with a dead agent")?;
    let tombstones = || std::fs::read_dir(n1.directory().join("state/tombstones")).map_or(0, Iterator::count);
    ensure!(tombstones() > 0, "DEL left no word");
    lab.start("n1", Role::Agent)?;
    ensure!(within(Duration::from_secs(5), || tombstones() == 0), "word of the deletion is not taken up");
    ensure!(n1.endpoints()?.is_empty(), "{:?}", n1.endpoints()?);
    let left = Holdings::of(n1.namespace())?.since(&before);
    ensure!(left == Leftovers::NONE, "{left}");
    lab.add_pod("n1", "b").context("after all that")?;
    Ok(())
}

/// What another tool, or a person, may do to a node. `TUNNEL` is the link that leads to other nodes, `POD` the link of a pod.
const MEDDLING: &[&str] = &[
    "ip route del 10.70.2.0/24",
    "ip -6 route flush proto 202",
    "ip rule del priority 5170 proto 202",
    "ip route flush table 51717",
    "ip neigh del 10.70.2.1 dev TUNNEL",
    "ip addr flush dev TUNNEL",
    "ip link set TUNNEL address 02:00:00:00:00:99",
    "ip link set TUNNEL down",
    "ip link set TUNNEL mtu 1300",
    "ip link del TUNNEL",
    "ip link set POD mtu 1400",
    "ip link set POD down",
    "ip neigh flush dev POD nud permanent",
    "nft flush table inet causeway",
    "nft delete table inet causeway",
    "nft flush ruleset",
    "sysctl -q net.ipv4.ip_forward=0",
    "sysctl -q net.ipv6.conf.all.forwarding=0",
];

/// What else may be done to a fast node.
const MEDDLING_FAST: &[&str] = &[
    "ip addr flush dev cw-up",
    "ip link set cw-up address 02:00:00:00:00:99",
    "ip link set cw-up down",
    "ip link del cw-up",
    "nft delete table netdev causeway",
    "sysctl -q net.ipv4.conf.cw-up.accept_local=0",
];

fn what_others_break_is_mended(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n2", "c")?);
    let n1 = lab.node("n1")?;
    let before = Holdings::of(n1.namespace())?;
    let agent = lab.process("n1", Role::Agent)?.context("no agent")?;
    matrix.sabotage("agent-frozen", || agent.signal(Signal::SIGSTOP)).transpose()?;
    let fast = n1.status()?.path.tunnel == TunnelOwner::FastPath;
    let tunnel = if fast { "cw-host" } else { "cw-vxlan" };
    // A fast pod has no link on the node.
    let linked = n1.exec(&format!("ip link show {}", a.link())).is_ok();
    let more = if fast { MEDDLING_FAST } else { &[] };
    for words in MEDDLING.iter().filter(|words| linked || !words.contains("POD")).chain(more) {
        n1.exec(&words.replace("POD", a.link().as_str()).replace("TUNNEL", tunnel))?;
        let mut left = Leftovers::NONE;
        let mended = within(Duration::from_secs(10), || {
            left = Holdings::of(n1.namespace()).map_or(Leftovers::NONE, |now| now.since(&before));
            left == Leftovers::NONE
        });
        ensure!(mended, "{words}: ten seconds later:\n{left}");
        ensure!(reaches(&a, &c), "{words}: mended by its looks, but nothing gets through");
    }
    whole_again(&lab)
}

fn reaches(a: &causeway_tests::lab::Pod, c: &causeway_tests::lab::Pod) -> bool {
    Family::BOTH.iter().all(|family| a.ping(c.address(*family)) && c.ping(a.address(*family)))
}

/// After all that meddling the agent has nothing to complain about.
fn whole_again(lab: &Lab) -> anyhow::Result<()> {
    let problems = lab.node("n1")?.status()?.problems;
    ensure!(problems.is_empty(), "{problems:?}");
    Ok(())
}
