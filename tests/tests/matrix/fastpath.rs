//! The fast path dies, stands still and idles: told where there is one.

use std::time::Duration;

use anyhow::{Context, ensure};
use causeway_model::Family;
use causeway_tests::capture::Capture;
use causeway_tests::lab::{Lab, Pod, PodSpec, Role};
use causeway_tests::traffic::Flow;
use nix::sys::signal::Signal;

use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    ("a_connection_outlives_every_process", a_connection_outlives_every_process),
    ("a_stopped_fast_path_stops_only_its_own_pods", a_stopped_fast_path_stops_only_its_own_pods),
    ("nothing_opens_while_it_is_dead", nothing_opens_while_it_is_dead),
    ("idle_nodes_cost_nothing", idle_nodes_cost_nothing),
];

/// How long a connection may take to go on: TCP's own timer doubles while nobody carries it.
const GOES_ON: Duration = Duration::from_secs(8);

fn pod(lab: &Lab, name: &str, path: &str) -> anyhow::Result<Pod> {
    Ok(lab.add_pod("n1", PodSpec::named(name).annotation("causeway.dev/path", path))?)
}

fn a_connection_outlives_every_process(matrix: &Matrix) -> anyhow::Result<()> {
    use Role::{Agent, Fastpath};
    let lab = matrix.lab(|_| {})?;
    let (a, c) = (pod(&lab, "a", "fast")?, lab.add_pod("n2", "c")?);
    let push = Flow::start(c.namespace(), a.namespace(), a.address(Family::V4))?;
    let pull = Flow::start(a.namespace(), c.namespace(), c.address(Family::V6))?;
    for order in [&[Fastpath][..], &[Agent], &[Fastpath, Agent], &[Agent, Fastpath]] {
        for role in order {
            lab.kill("n1", *role)?;
            a.exec("ip link show eth0").context("the pod's interface outlives its fast path")?;
        }
        matrix.sabotage("fastpath-stays-dead", || ()).map_or_else(
            || order.iter().try_for_each(|role| lab.start("n1", *role)),
            |()| order.iter().filter(|role| **role == Agent).try_for_each(|role| lab.start("n1", *role)),
        )?;
        ensure!(push.moves_within(GOES_ON), "a flow to the pod stands after {order:?}");
        ensure!(pull.moves_within(GOES_ON), "a flow from the pod stands after {order:?}");
    }
    for (what, flow) in [("to the pod", push), ("from the pod", pull)] {
        flow.finish().context(what)?;
    }
    Ok(())
}

fn a_stopped_fast_path_stops_only_its_own_pods(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, b, d) = (pod(&lab, "a", "fast")?, pod(&lab, "b", "kernel")?, pod(&lab, "d", "kernel")?);
    let n1 = lab.node("n1")?;
    let fastpath = lab.process("n1", Role::Fastpath)?.context("no fast path")?;
    ensure!(n1.ping(a.address(Family::V4)), "before");
    fastpath.signal(Signal::SIGSTOP)?;
    // A process stops when each of its threads has come by.
    let silent = || !n1.ping(a.address(Family::V4));
    ensure!(within(Duration::from_secs(1), silent), "the fast path does not stop");
    for family in Family::BOTH {
        ensure!(!n1.ping(a.address(family)), "a pod of a stopped fast path answers over {family}");
        ensure!(b.ping(d.address(family)), "kernel pods of the node do not reach each other over {family}");
        ensure!(n1.ping(b.address(family)), "the node does not reach its kernel pod over {family}");
    }
    fastpath.signal(Signal::SIGCONT)?;
    let back = || Family::BOTH.iter().all(|family| n1.ping(a.address(*family)));
    ensure!(within(Duration::from_secs(5), back), "five seconds later the fast pod does not answer");
    Ok(())
}

fn nothing_opens_while_it_is_dead(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    let (a, c) = (pod(&lab, "a", "fast")?, lab.add_pod("n2", "c")?);
    let liar = "10.70.1.200";
    a.exec(&format!("ip addr add {liar}/32 dev eth0"))?;
    let target = c.address(Family::V4);
    let lie = format!("ping -n -q -c 3 -i 0.1 -W 1 -I {liar} {target}");
    let heard = Capture::start(c.namespace(), "eth0")?;
    lab.kill("n1", Role::Fastpath)?;
    ensure!(a.exec(&lie).is_err(), "a lie is answered by a dead fast path");
    lab.start("n1", Role::Fastpath)?;
    ensure!(within(Duration::from_secs(5), || a.ping(target)), "the fast path is not back");
    let drops = || lab.node("n1").and_then(|n1| n1.drops(causeway_model::DropReason::SpoofedAddress));
    let counted = drops()?;
    ensure!(a.exec(&lie).is_err(), "a lie is answered");
    let lies = heard.finish()?.fields(&format!("ip.src == {liar}"), &["frame.number"])?;
    ensure!(lies.is_empty(), "{} lies got through", lies.len());
    ensure!(drops()? >= counted + 3, "a lie is not counted: {counted}, then {}", drops()?);
    Ok(())
}

fn idle_nodes_cost_nothing(matrix: &Matrix) -> anyhow::Result<()> {
    const WATCHED: Duration = Duration::from_secs(10);
    let lab = matrix.lab(|_| {})?;
    for (node, name) in [("n1", "a"), ("n1", "b"), ("n2", "c"), ("n2", "d")] {
        lab.add_pod(node, name)?;
    }
    std::thread::sleep(Duration::from_secs(2));
    let mut processes = Vec::new();
    for node in ["n1", "n2"] {
        for role in [Role::Agent, Role::Fastpath] {
            processes.extend(lab.process(node, role)?.map(|process| (node, role, process)));
        }
    }
    let used = || processes.iter().map(|(.., process)| process.cpu_seconds()).collect::<Option<Vec<_>>>();
    let before = used().context("a process has gone")?;
    std::thread::sleep(WATCHED);
    let after = used().context("a process has gone")?;
    for ((node, role, _), (before, after)) in processes.iter().zip(before.into_iter().zip(after)) {
        let share = (after - before) / WATCHED.as_secs_f64();
        ensure!(share < 0.05, "the idle {role} of {node} takes {:.1} % of a core", share * 100.0);
    }
    Ok(())
}
