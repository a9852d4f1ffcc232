//! podman with its CNI backend: pods that no object describes.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use causeway_model::Family;
use causeway_tests::runtime::{PAGE, Podman, eventually, page};

use super::stage::{Before, Stage, Story, announced};

pub const STORIES: &[(&str, Story)] = &[
    (
        "containers_reach_pods_of_other_runtimes_and_leave_nothing",
        containers_reach_pods_of_other_runtimes_and_leave_nothing,
    ),
    ("ports_of_play_kube_answer", ports_of_play_kube_answer),
];

fn containers_reach_pods_of_other_runtimes_and_leave_nothing(stage: &Stage) -> anyhow::Result<()> {
    let lab = stage.lab(2)?;
    let (near, far) = (lab.node("n1")?, lab.node("n2")?);
    let (podman, containerd) = (Podman::new(&near, stage.image()?)?, stage.containerd(&far)?);
    let before = [Before::of(&near)?, Before::of(&far)?];
    let (web, shell) = (podman.run("web", &[])?, podman.run("shell", &[])?);
    let pod = containerd.run(&announced(&lab, "n2", "pod")?)?;
    if stage.sabotage("wire-cut") {
        far.exec("ip link set eth0 down")?;
    }
    for (from, to) in [(&web, &shell), (&web, &pod), (&pod, &shell)] {
        from.reaches(to)?;
    }
    let labels: Vec<_> = near.endpoints()?.into_iter().map(|endpoint| endpoint.endpoint.pod).collect();
    ensure!(labels.iter().all(Option::is_none), "no object describes them: {labels:?}");
    before[0].differs()?;
    podman.remove("web")?;
    podman.remove("shell")?;
    containerd.remove(&pod)?;
    before[0].is_back(&[&web, &shell])?;
    before[1].is_back(&[&pod])
}

/// What a person would write: the port of the node is in the pod's manifest.
const WEB: &str = "apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  containers:
  - name: main
    image: localhost/causeway-test:1
    imagePullPolicy: Never
    ports:
    - containerPort: 8080
      hostPort: 18082
";

fn ports_of_play_kube_answer(stage: &Stage) -> anyhow::Result<()> {
    let lab = stage.lab(2)?;
    let (node, other) = (lab.node("n1")?, lab.node("n2")?);
    let podman = Podman::new(&node, stage.image()?)?;
    let before = Before::of(&node)?;
    let web = podman.play(WEB, "web")?;
    for family in Family::BOTH {
        let at = SocketAddr::new(node.address(family), 18_082);
        for from in [node.namespace(), other.namespace()] {
            // The container's own program starts beside us.
            eventually(Duration::from_secs(10), || {
                let read = page(from, at).with_context(|| format!("{} asks {at}", from.name()))?;
                ensure!(read == PAGE, "{read:?}");
                Ok(())
            })?;
        }
    }
    podman.play_down(WEB)?;
    before.is_back(&[&web])?;
    ensure!(page(other.namespace(), SocketAddr::new(node.address(Family::V4), 18_082)).is_err());
    Ok(())
}
