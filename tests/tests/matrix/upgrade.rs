//! Another release of the fast path takes over from the one before: its connections, or none of them and says so.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use causeway_model::Family;
use causeway_model::connection::Connection;
use causeway_tests::lab::{Binaries, Lab, Node, Pod, PodSpec, Role};
use causeway_tests::traffic::{Flow, tcp_reaches};

use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    ("the_next_release_takes_the_connections_over", the_next_release_takes_the_connections_over),
    ("a_table_of_another_layout_is_refused_and_said", a_table_of_another_layout_is_refused_and_said),
];

/// How long a connection may take to go on: TCP's own timer doubles while nobody carries it.
const GOES_ON: Duration = Duration::from_secs(8);
const PATIENCE: Duration = Duration::from_secs(5);
const STOPS: Duration = Duration::from_secs(3);

/// A fast pod that takes no new connections, with one each way that it had before.
struct Scene {
    lab: Lab,
    node: Node,
    near: Pod,
    far: Pod,
    flows: [Flow; 2],
}

impl Scene {
    fn new(matrix: &Matrix) -> anyhow::Result<Self> {
        let lab = matrix.lab(|_| {})?;
        let near = lab.add_pod("n1", PodSpec::named("a").annotation("causeway.dev/path", "fast"))?;
        let (far, node) = (lab.add_pod("n2", "c")?, lab.node("n1")?);
        let flows = [
            Flow::start(far.namespace(), near.namespace(), near.address(Family::V4))?,
            Flow::start(near.namespace(), far.namespace(), far.address(Family::V6))?,
        ];
        lab.annotate(near.name(), "causeway.dev/deny-new", "true")?;
        let scene = Self { lab, node, near, far, flows };
        ensure!(within(PATIENCE, || !scene.is_reached()), "deny-new is not in force");
        Ok(scene)
    }

    /// Whether somebody new gets in.
    fn is_reached(&self) -> bool {
        tcp_reaches(self.far.namespace(), self.near.namespace(), self.near.address(Family::V4))
    }

    /// The longest-lived connections of the pod, one each way.
    fn connections(&self) -> anyhow::Result<Vec<Connection>> {
        let words = format!("--pod default/{} --protocol tcp --stage established", self.near.name());
        let mut listed = self.node.connections(&words)?.connections;
        listed.sort_by_key(|connection| connection.from);
        Ok(listed)
    }

    /// Stops the fast path as whoever runs the node would.
    fn stop(&self) -> anyhow::Result<()> {
        let process = self.lab.process("n1", Role::Fastpath)?.context("no fast path")?;
        Ok(process.stop(STOPS)?)
    }

    fn refusal(&self) -> anyhow::Result<Option<String>> {
        let limits = self.node.status()?.limits;
        Ok(limits.into_iter().find(|limit| limit.contains("not taken over")))
    }

    /// Waits for the fast path to be here.
    fn is_back(&self) -> anyhow::Result<()> {
        let pid = u32::try_from(self.lab.process("n1", Role::Fastpath)?.context("no fast path")?.pid)?;
        let here =
            || self.node.status().is_ok_and(|status| status.fastpath.is_some_and(|fast| fast.pid == pid));
        ensure!(within(PATIENCE, here), "the fast path that was started is not back");
        Ok(())
    }
}

fn the_next_release_takes_the_connections_over(matrix: &Matrix) -> anyhow::Result<()> {
    let scene = Scene::new(matrix)?;
    let program = Binaries::find()?.get("causeway-fastpath")?;
    // Another file, at another time, in the place of the first.
    let next = scene.node.directory().join("causeway-fastpath-next");
    fs::copy(&program, &next)?;
    let table = scene.node.directory().join("run/connections");
    for (release, before) in [
        (&next, format!("mount --bind {} {}", next.display(), program.display())),
        // And back, as when the next one does not please.
        (&program, String::new()),
    ] {
        let had = scene.connections()?;
        ensure!(had.len() == 2, "the pod has {had:?}");
        scene.stop()?;
        matrix.sabotage("table-lost", || fs::remove_file(&table)).transpose()?;
        scene.lab.spawn_in(&scene.node, Role::Fastpath, &before)?;
        scene.is_back()?;
        let what = release.display();
        runs(&scene, release).with_context(|| format!("{what}"))?;
        for flow in &scene.flows {
            ensure!(flow.moves_within(GOES_ON), "{what}: a flow stands");
        }
        ensure!(!scene.is_reached(), "{what}: somebody new gets in");
        let has = scene.connections()?;
        ensure!(has.len() == had.len(), "{what}: of {had:?} it has {has:?}");
        for (had, has) in had.iter().zip(&has) {
            ensure!(
                (had.from, had.to, had.picked_up) == (has.from, has.to, has.picked_up),
                "{had:?} is {has:?}"
            );
            let grows = had.sent.packets < has.sent.packets && had.answered.packets < has.answered.packets;
            ensure!(grows && had.age_ms < has.age_ms, "{what}: its figures began anew: {had:?}, {has:?}");
        }
        ensure!(scene.refusal()?.is_none(), "{what}: {:?}", scene.refusal()?);
    }
    for flow in scene.flows {
        flow.finish()?;
    }
    Ok(())
}

/// Fails unless the fast path is this file.
fn runs(scene: &Scene, program: &PathBuf) -> anyhow::Result<()> {
    let pid = scene.lab.process("n1", Role::Fastpath)?.context("no fast path")?.pid;
    let runs = fs::metadata(format!("/proc/{pid}/exe"))?.ino();
    ensure!(runs == fs::metadata(program)?.ino(), "another file runs");
    Ok(())
}

fn a_table_of_another_layout_is_refused_and_said(matrix: &Matrix) -> anyhow::Result<()> {
    let scene = Scene::new(matrix)?;
    scene.stop()?;
    // As a release would leave it whose entries lie otherwise.
    let table =
        fs::OpenOptions::new().read(true).write(true).open(scene.node.directory().join("run/connections"))?;
    let mut layout = [0; 8];
    table.read_exact_at(&mut layout, 0)?;
    let other = u64::from_ne_bytes(layout) + 1;
    table.write_all_at(&other.to_ne_bytes(), 0)?;
    scene.lab.spawn(&scene.node, Role::Fastpath)?;
    scene.is_back()?;
    let why = scene.refusal()?.context("status does not say that the connections are gone")?;
    ensure!(why.contains(&format!("layout {other:x}")) && why.contains("is expected"), "{why}");
    // Nothing is known to belong to anything, so nothing passes: not even what was established.
    ensure!(!scene.is_reached(), "somebody new gets in");
    ensure!(scene.connections()?.is_empty(), "{:?}", scene.connections()?);
    scene.lab.annotate(scene.near.name(), "causeway.dev/deny-new", "false")?;
    ensure!(within(PATIENCE, || scene.is_reached()), "nobody gets in any more");
    for flow in scene.flows {
        ensure!(flow.moves_within(GOES_ON), "a flow that may be taken up in the middle stands");
        flow.finish()?;
    }
    Ok(())
}
