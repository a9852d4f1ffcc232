//! What stories are told on.

use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use causeway_tests::lab::{Datapath, Lab, LabSpec, Node, Pod};

/// A story: it errs when the system does not keep its promise.
pub type Story = fn(&Matrix) -> anyhow::Result<()>;

/// All stories over one data path.
pub struct Matrix {
    /// The data path of the labs.
    pub mode: Datapath,
    /// Whether there is time.
    pub full: bool,
    fault: Option<String>,
    stage: OnceLock<Result<Stage, String>>,
    counter: Mutex<u32>,
}

/// The lab that stories share which change nothing: pods a and b on node n1, c and d on node n2.
pub struct Stage {
    /// Its nodes.
    pub nodes: [Node; 2],
    /// Its pods.
    pub pods: [Pod; 4],
    /// Goes down when the stage does.
    _lab: Lab,
}

impl Matrix {
    /// Nothing is up yet.
    pub fn new(mode: Datapath, full: bool, fault: Option<String>) -> Self {
        Self { mode, full, fault, stage: OnceLock::new(), counter: Mutex::new(0) }
    }

    /// The shared lab, made when the first story asks.
    pub fn stage(&self) -> anyhow::Result<&Stage> {
        let made = self.stage.get_or_init(|| self.make_stage().map_err(|error| format!("{error:#}")));
        made.as_ref().map_err(|error| anyhow!("the shared lab: {error}"))
    }

    fn make_stage(&self) -> anyhow::Result<Stage> {
        let lab = self.lab(|_| {})?;
        let pods =
            [("n1", "a"), ("n1", "b"), ("n2", "c"), ("n2", "d")].map(|(node, pod)| lab.add_pod(node, pod));
        let [a, b, c, d] = pods;
        let nodes = [lab.node("n1")?, lab.node("n2")?];
        Ok(Stage { pods: [a?, b?, c?, d?], nodes, _lab: lab })
    }

    /// A lab of a story's own, of two nodes unless the story has other wishes.
    pub fn lab(&self, wishes: impl FnOnce(&mut LabSpec)) -> anyhow::Result<Lab> {
        let number = {
            let mut counter =
                self.counter.lock().map_err(|_| anyhow!("another story died while it named its lab"))?;
            *counter += 1;
            *counter
        };
        let mut spec = LabSpec::named(format!("t{}-{}-{number}", std::process::id(), self.mode));
        spec.datapath = self.mode;
        wishes(&mut spec);
        Lab::up(spec).context("making a lab")
    }

    /// Does harm when this fault was asked for: what follows must then fail.
    pub fn sabotage<T>(&self, fault: &str, harm: impl FnOnce() -> T) -> Option<T> {
        debug_assert!(
            super::fault::FAULTS.iter().any(|(known, _)| *known == fault),
            "{fault} is not in the list"
        );
        (self.fault.as_deref() == Some(fault)).then(harm)
    }
}

impl Stage {
    /// Every pod with every other, one direction each.
    pub fn pairs(&self) -> impl Iterator<Item = (&Pod, &Pod)> {
        let pairs = self.pods.iter().flat_map(|from| self.pods.iter().map(move |to| (from, to)));
        pairs.filter(|(from, to)| from.name() != to.name())
    }

    /// One pair on a node, and one across.
    pub fn near_and_far(&self) -> [(&Pod, &Pod); 2] {
        let [a, b, c, _] = &self.pods;
        [(a, b), (a, c)]
    }
}

/// Whether something comes true in time.
pub fn within(patience: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
