//! What goes leaves nothing, judged by looks that the stories take themselves.

use anyhow::{Context, ensure};
use causeway_model::Family;
use causeway_tests::lab::{Binaries, Call, Role};
use causeway_tests::leftovers::{Holdings, Leftovers};

use super::stage::{Matrix, Story};

pub const STORIES: &[(&str, Story)] = &[
    ("del_leaves_nothing", del_leaves_nothing),
    ("a_failed_add_leaves_nothing", a_failed_add_leaves_nothing),
    (
        "del_of_nothing_succeeds_and_del_without_a_namespace_cleans",
        del_of_nothing_succeeds_and_del_without_a_namespace_cleans,
    ),
    ("uninstall_leaves_nothing", uninstall_leaves_nothing),
    ("a_lab_leaves_nothing_on_the_machine", a_lab_leaves_nothing_on_the_machine),
];

fn del_leaves_nothing(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|_| {})?;
    lab.add_pod("n1", "stays")?;
    let n1 = lab.node("n1")?;
    let (before, known) = (Holdings::of(n1.namespace())?, n1.endpoints()?.len());
    for pod in ["x", "y"] {
        let pod = lab.add_pod("n1", pod)?;
        ensure!(pod.ping(n1.address(Family::V4)));
    }
    let during = Holdings::of(n1.namespace())?.since(&before);
    ensure!(during != Leftovers::NONE, "a look that does not see two pods sees nothing");
    lab.del_pod("x")?;
    lab.del_pod("y")?;
    matrix.sabotage("litter", || n1.exec("ip route add unreachable 198.51.100.0/24")).transpose()?;
    let left = Holdings::of(n1.namespace())?.since(&before);
    ensure!(left == Leftovers::NONE, "{left}");
    ensure!(n1.endpoints()?.len() == known, "an endpoint is left: {:?}", n1.endpoints()?);
    Ok(())
}

fn a_failed_add_leaves_nothing(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    lab.add_pod("n1", "stays")?;
    let n1 = lab.node("n1")?;
    let before = Holdings::of(n1.namespace())?;
    let taken = causeway_tests::lab::PodSpec::named("x").annotation("causeway.dev/addresses", "192.0.2.77");
    let refused = lab.add_pod("n1", taken).err().context("an address of another network was granted")?;
    ensure!(refused.to_string().contains("192.0.2.77"), "{refused}");
    let left = Holdings::of(n1.namespace())?.since(&before);
    ensure!(left == Leftovers::NONE, "{left}");
    ensure!(n1.endpoints()?.len() == 1, "{:?}", n1.endpoints()?);
    Ok(())
}

fn del_of_nothing_succeeds_and_del_without_a_namespace_cleans(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.nodes = 1)?;
    let n1 = lab.node("n1")?;
    let before = Holdings::of(n1.namespace())?;
    let nothing = Call { verb: "DEL", container: "f".repeat(64), ..Call::default() };
    lab.call_plugin(&n1, &nothing)?;
    // As after a reboot of the runtime: the namespace went first.
    let pod = lab.add_pod("n1", "x")?;
    pod.namespace().delete()?;
    lab.call_plugin(&n1, &Call { container: pod.record.container.clone(), ..nothing })?;
    let left = Holdings::of(n1.namespace())?.since(&before);
    ensure!(left == Leftovers::NONE, "{left}");
    Ok(())
}

fn uninstall_leaves_nothing(matrix: &Matrix) -> anyhow::Result<()> {
    let lab = matrix.lab(|spec| spec.agents = false)?;
    let nodes = lab.nodes()?;
    let before: Result<Vec<_>, _> = nodes.iter().map(|node| Holdings::of(node.namespace())).collect();
    for node in &nodes {
        lab.launch(node)?;
    }
    for node in &nodes {
        lab.await_ready(node)?;
    }
    let (a, c) = (lab.add_pod("n1", "a")?, lab.add_pod("n2", "c")?);
    ensure!(a.ping(c.address(Family::V4)));
    for (node, before) in nodes.iter().zip(before?) {
        lab.kill(node.name(), Role::Agent)?;
        if lab.process(node.name(), Role::Fastpath)?.is_some() {
            lab.kill(node.name(), Role::Fastpath)?;
        }
        let causeway = Binaries::find()?.get("causeway")?;
        // One pod is still there: it goes as well.
        node.exec(&format!("{} uninstall --config {}", causeway.display(), node.config_file().display()))?;
        let left = Holdings::of(node.namespace())?.since(&before);
        ensure!(left == Leftovers::NONE, "{}: {left}", node.name());
    }
    for pod in [&a, &c] {
        ensure!(pod.exec("ip link show eth0").is_err(), "{} still has its interface", pod.name());
    }
    Ok(())
}

fn a_lab_leaves_nothing_on_the_machine(matrix: &Matrix) -> anyhow::Result<()> {
    let before = Holdings::of_machine()?;
    let lab = matrix.lab(|spec| spec.clusters = 2)?;
    let name = lab.name().to_owned();
    lab.add_pod("n1", "a")?;
    let during = Holdings::of_machine()?.since(&before).about(&[&name]);
    ensure!(during != Leftovers::NONE, "a look that does not see a lab sees nothing");
    lab.down()?;
    // Other labs come and go beside this one; its own network is nobody's but the machine's.
    let now = Holdings::of_machine()?;
    let left = now.since(&before).without_other_labs(&name).about(&[
        &name,
        "causeway-fast",
        "nft: ",
        "links: ",
        "addresses: ",
        "routes: ",
        "rules: ",
        "sysctls: ",
    ]);
    ensure!(left == Leftovers::NONE, "{left}");
    Ok(())
}
