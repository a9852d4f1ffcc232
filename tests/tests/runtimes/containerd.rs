//! containerd, as the kubelet drives it and by its own tool.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use causeway_model::Family;
use causeway_tests::lab::{Binaries, Lab, Node, Role};
use causeway_tests::leftovers::{Holdings, Leftovers};
use causeway_tests::runtime::{Containerd, HostPort, PAGE, PORT, Running, Sandbox, eventually, page};

use super::stage::{Before, Stage, Story, announced};

pub const STORIES: &[(&str, Story)] = &[
    (
        "pods_reach_each_other_across_nodes_and_leave_nothing",
        pods_reach_each_other_across_nodes_and_leave_nothing,
    ),
    (
        "the_network_is_there_when_it_is_installed_and_gone_when_it_is_uninstalled",
        the_network_is_there_when_it_is_installed_and_gone_when_it_is_uninstalled,
    ),
    ("a_failed_add_is_told_in_words_and_leaves_nothing", a_failed_add_is_told_in_words_and_leaves_nothing),
    ("host_ports_lead_to_their_pods", host_ports_lead_to_their_pods),
    ("ctr_run_has_a_network_and_gives_it_back", ctr_run_has_a_network_and_gives_it_back),
];

fn pods_reach_each_other_across_nodes_and_leave_nothing(stage: &Stage) -> anyhow::Result<()> {
    let lab = stage.lab(2)?;
    let nodes = [lab.node("n1")?, lab.node("n2")?];
    let containerds = [stage.containerd(&nodes[0])?, stage.containerd(&nodes[1])?];
    let before = [Before::of(&nodes[0])?, Before::of(&nodes[1])?];
    let near = [announced(&lab, "n1", "a")?, announced(&lab, "n1", "b")?];
    let [a, b] = both(containerds[0].run_all(&near))?;
    let c = containerds[1].run(&announced(&lab, "n2", "c")?)?;
    for (from, to) in [(&a, &b), (&a, &c), (&c, &b)] {
        from.reaches(to)?;
    }
    before.iter().try_for_each(Before::differs)?;
    if !stage.sabotage("pod-kept") {
        containerds[0].remove_all(&[&a, &b])?;
    }
    containerds[1].remove(&c)?;
    before[0].is_back(&[&a, &b])?;
    before[1].is_back(&[&c])
}

fn both(pods: Vec<anyhow::Result<Running>>) -> anyhow::Result<[Running; 2]> {
    let pods = pods.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    pods.try_into().map_err(|pods| anyhow::anyhow!("not two pods: {pods:?}"))
}

fn the_network_is_there_when_it_is_installed_and_gone_when_it_is_uninstalled(
    stage: &Stage,
) -> anyhow::Result<()> {
    let lab = stage.lab_with(|spec| (spec.nodes, spec.agents) = (1, false))?;
    let node = lab.node("n1")?;
    let containerd = Containerd::start(&node, stage.image()?)?;
    let before = Holdings::of(node.namespace())?;
    lab.configure(&node)?;
    let early = containerd.home().install(&["--wait", "0"]).err().context("installed without an agent")?;
    ensure!(early.to_string().contains("no agent answers"), "{early}");
    ensure!(containerd.network()?.is_err(), "a network without an agent");
    lab.launch(&node)?;
    // The agent is on its way: it is waited for.
    containerd.home().install(&[])?;
    containerd.await_network()?;
    let pod = containerd.run(&announced(&lab, "n1", "a")?)?;
    ensure!(node.ping(pod.address(Family::V4)?));
    containerd.remove(&pod)?;
    lab.kill("n1", Role::Agent)?;
    if lab.process("n1", Role::Fastpath)?.is_some() {
        lab.kill("n1", Role::Fastpath)?;
    }
    let causeway = Binaries::find()?.get("causeway")?;
    node.exec(&format!(
        "{} uninstall --purge --config {}",
        causeway.display(),
        node.config_file().display()
    ))?;
    eventually(Duration::from_secs(10), || {
        ensure!(containerd.network()?.is_err(), "the network is still there");
        Ok(())
    })?;
    let left = Holdings::of(node.namespace())?.since(&before);
    ensure!(left == Leftovers::NONE, "{left}");
    let files = std::fs::read_dir(containerd.home().conf_dir())?.count();
    ensure!(files == 0, "{files} network configurations are left");
    Ok(())
}

fn a_failed_add_is_told_in_words_and_leaves_nothing(stage: &Stage) -> anyhow::Result<()> {
    let lab = stage.lab(1)?;
    let node = lab.node("n1")?;
    let containerd = stage.containerd(&node)?;
    let before = Before::of(&node)?;
    let pod = announced(&lab, "n1", "a")?;
    lab.retract_pod("a")?;
    let refused = containerd.run(&pod).err().context("a pod without an object runs")?.to_string();
    ensure!(refused.contains("causeway") && refused.contains("default/a"), "{refused}");
    ensure!(containerd.count()? == 0, "the runtime keeps a sandbox");
    before.is_back(&[])?;
    let pod = containerd.run(&announced(&lab, "n1", "a")?).context("with its object")?;
    containerd.remove(&pod)?;
    before.is_back(&[&pod])
}

fn host_ports_lead_to_their_pods(stage: &Stage) -> anyhow::Result<()> {
    let lab = stage.lab(2)?;
    let (node, other) = (lab.node("n1")?, lab.node("n2")?);
    let far = lab.add_pod("n2", "far")?;
    let containerd = stage.containerd(&node)?;
    let before = Before::of(&node)?;
    let mut ports =
        vec![HostPort { host: 18_080, container: PORT }, HostPort { host: 18_081, container: PORT + 1 }];
    if stage.sabotage("port-forgotten") {
        ports.clear();
    }
    let nobody = containerd.run(&announced(&lab, "n1", "other")?)?;
    let web = containerd.run(&Sandbox { ports: ports.clone(), ..announced(&lab, "n1", "web")? })?;
    serves(&node, &web)?;
    for family in Family::BOTH {
        let at = |port| SocketAddr::new(node.address(family), port);
        for (who, from) in [
            ("the node itself", node.namespace()),
            ("another node", other.namespace()),
            ("a pod of another node", far.namespace()),
        ] {
            let read = page(from, at(18_080)).with_context(|| format!("{who} asks {}", at(18_080)))?;
            ensure!(read == PAGE, "{who}: {read:?}");
            ensure!(page(from, at(18_081)).is_err(), "{who}: nobody listens at the pod's other port");
        }
    }
    containerd.remove_all(&[&web, &nobody])?;
    before.is_back(&[&web, &nobody])?;
    let gone = page(other.namespace(), SocketAddr::new(node.address(Family::V4), 18_080));
    ensure!(gone.is_err(), "{gone:?} after the pod has gone");
    // Whoever comes next may have it.
    let next = containerd.run(&Sandbox { ports, ..announced(&lab, "n1", "next")? })?;
    serves(&node, &next)?;
    ensure!(page(other.namespace(), SocketAddr::new(node.address(Family::V4), 18_080))? == PAGE);
    containerd.remove(&next)?;
    before.is_back(&[&next])
}

/// Its own program starts beside us.
fn serves(node: &Node, pod: &Running) -> anyhow::Result<()> {
    let at = SocketAddr::new(pod.address(Family::V4)?, PORT);
    eventually(Duration::from_secs(10), || {
        page(node.namespace(), at).map(drop).with_context(|| format!("{at} of {}", pod.id))
    })
}

fn ctr_run_has_a_network_and_gives_it_back(stage: &Stage) -> anyhow::Result<()> {
    let lab = stage.lab(2)?;
    let node = lab.node("n1")?;
    let containerd = stage.containerd(&node)?;
    let far = lab.add_pod("n2", "far")?;
    let before = Before::of(&node)?;
    for family in Family::BOTH {
        let ping = match family {
            Family::V4 => "ping",
            Family::V6 => "ping6",
        };
        let to = far.address(family).to_string();
        let said = containerd.ctr_run("tool", &[ping, "-c", "2", "-W", "2", &to])?;
        ensure!(said.contains("bytes from"), "{said}");
        before.is_back(&[])?;
    }
    leaves_no_note(&lab)
}

/// The library that runtimes share keeps a note of each attachment until DEL.
fn leaves_no_note(lab: &Lab) -> anyhow::Result<()> {
    let notes = std::fs::read_dir("/var/lib/cni/results").into_iter().flatten().flatten();
    let note =
        notes.map(|note| note.path()).find(|path| path.to_string_lossy().contains("pods-default-tool"));
    ensure!(note.is_none(), "lab {}: {note:?} is left", lab.name());
    Ok(())
}
