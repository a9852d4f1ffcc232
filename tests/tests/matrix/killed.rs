//! Whoever is killed amid an attachment, a delete of it leaves nothing, and its address is the next one's.

use std::io::Write;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use causeway_tests::lab::{Call, Lab, Node, Role};
use causeway_tests::leftovers::{Holdings, Leftovers};

use super::addresses::{call, last_byte, one_node, ranged};
use super::stage::{Matrix, Story, within};

pub const STORIES: &[(&str, Story)] = &[
    ("a_plugin_killed_amid_an_add_costs_no_address", a_plugin_killed_amid_an_add_costs_no_address),
    ("an_agent_killed_amid_an_add_costs_no_address", an_agent_killed_amid_an_add_costs_no_address),
];

/// A node with a pod that was there and is not, the call that would add it again to a range of one address, and how long
/// that takes.
struct Scene<'a> {
    matrix: &'a Matrix,
    lab: Lab,
    node: Node,
    add: Call,
    took: Duration,
    before: Holdings,
}

impl<'a> Scene<'a> {
    fn of(matrix: &'a Matrix) -> anyhow::Result<Self> {
        let (lab, node) = one_node(matrix)?;
        let pod = lab.add_pod("n1", ranged(matrix, "pod", 10, 10))?;
        let add = call(&pod, "ADD");
        lab.call_plugin(&node, &Call { verb: "DEL", ..add.clone() })?;
        let before = Holdings::of(node.namespace())?;
        let began = Instant::now();
        lab.call_plugin(&node, &add)?;
        let took = began.elapsed();
        let scene = Self { matrix, lab, node, add, took, before };
        scene.delete()?;
        Ok(scene)
    }

    /// The plugin, begun and not waited for.
    fn begin(&self) -> anyhow::Result<Child> {
        let (mut command, config) = self.lab.plugin(&self.node, &self.add)?;
        self.node.run(|| -> anyhow::Result<Child> {
            let mut child =
                command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
            child.stdin.take().context("no stdin")?.write_all(config.to_string().as_bytes())?;
            Ok(child)
        })
    }

    fn delete(&self) -> anyhow::Result<()> {
        if self.matrix.sabotage("delete-forgotten", || ()).is_none() {
            self.lab.call_plugin(&self.node, &Call { verb: "DEL", ..self.add.clone() })?;
        }
        Ok(())
    }

    /// Nothing is left, and the one address is there for somebody else.
    fn is_as_before(&self) -> anyhow::Result<()> {
        let endpoints = self.node.endpoints()?;
        ensure!(endpoints.is_empty(), "{endpoints:?}");
        let left = || Holdings::of(self.node.namespace()).map(|now| now.since(&self.before));
        let gone = within(Duration::from_secs(5), || left().is_ok_and(|left| left == Leftovers::NONE));
        ensure!(gone, "{}", left()?);
        let next = self.lab.add_pod("n1", ranged(self.matrix, "next", 10, 10));
        let next = next.context("the only address is still taken")?;
        ensure!(last_byte(&next) == Some(10), "{:?}", next.record.addresses);
        Ok(self.lab.del_pod("next")?)
    }
}

fn a_plugin_killed_amid_an_add_costs_no_address(matrix: &Matrix) -> anyhow::Result<()> {
    let scene = Scene::of(matrix)?;
    const MOMENTS: u32 = 8;
    for moment in 1..=MOMENTS {
        let mut plugin = scene.begin()?;
        std::thread::sleep(scene.took * moment / MOMENTS);
        plugin.kill()?;
        plugin.wait()?;
        scene.delete()?;
        scene.is_as_before().with_context(|| format!("killed after {moment} of {MOMENTS} parts"))?;
    }
    Ok(())
}

fn an_agent_killed_amid_an_add_costs_no_address(matrix: &Matrix) -> anyhow::Result<()> {
    let scene = Scene::of(matrix)?;
    const MOMENTS: u32 = 4;
    for moment in 1..=MOMENTS {
        let mut plugin = scene.begin()?;
        std::thread::sleep(scene.took * moment / MOMENTS);
        scene.lab.kill("n1", Role::Agent)?;
        plugin.wait()?;
        // The runtime's delete comes before the agent is back, or after.
        let dead = moment % 2 == 0;
        if dead {
            scene.delete()?;
        }
        scene.lab.start("n1", Role::Agent)?;
        if !dead {
            scene.delete()?;
        }
        let replayed = || scene.node.endpoints().is_ok_and(|all| all.is_empty());
        within(Duration::from_secs(5), replayed);
        scene.is_as_before().with_context(|| format!("killed after {moment} of {MOMENTS} parts"))?;
    }
    Ok(())
}
