//! podman with its CNI backend: pods that no object describes.

use anyhow::ensure;
use causeway_tests::runtime::Podman;

use super::stage::{Before, Stage, Story, announced};

pub const STORIES: &[(&str, Story)] = &[(
    "containers_reach_pods_of_other_runtimes_and_leave_nothing",
    containers_reach_pods_of_other_runtimes_and_leave_nothing,
)];

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
