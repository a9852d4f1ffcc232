//! What stories of runtimes are told on.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use causeway_tests::lab::{Datapath, Lab, LabSpec, Node};
use causeway_tests::leftovers::{Holdings, Leftovers};
use causeway_tests::runtime::{Containerd, Image, Running, Sandbox, eventually};

/// A story: it errs when the system does not keep its promise.
pub type Story = fn(&Stage) -> anyhow::Result<()>;

/// What every story over one data path begins with.
pub struct Stage {
    /// The data path of the labs.
    pub mode: Datapath,
    fault: Option<String>,
    directory: PathBuf,
    image: OnceLock<Result<Image, String>>,
}

/// Labs have names of their own.
static COUNTER: AtomicU32 = AtomicU32::new(0);

impl Stage {
    pub fn new(mode: Datapath, fault: Option<String>) -> Self {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("causeway-image-{}-{number}", std::process::id()));
        Self { mode, fault, directory, image: OnceLock::new() }
    }

    /// A lab of so many nodes, with an agent in each.
    pub fn lab(&self, nodes: usize) -> anyhow::Result<Lab> {
        self.lab_with(|spec| spec.nodes = nodes)
    }

    /// A lab by wishes.
    pub fn lab_with(&self, wishes: impl FnOnce(&mut LabSpec)) -> anyhow::Result<Lab> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let mut spec = LabSpec::named(format!("r{}-{}-{number}", std::process::id(), self.mode));
        spec.datapath = self.mode;
        wishes(&mut spec);
        Lab::up(spec).context("making a lab")
    }

    /// The image that all containers are of.
    pub fn image(&self) -> anyhow::Result<&Image> {
        let build = || {
            fs::create_dir_all(&self.directory)?;
            Image::build(&self.directory)
        };
        let image = self.image.get_or_init(|| build().map_err(|error| format!("{error:#}")));
        image.as_ref().map_err(|error| anyhow!("the image: {error}"))
    }

    /// A containerd on a node, with the network installed.
    pub fn containerd(&self, node: &Node) -> anyhow::Result<Containerd> {
        let containerd = Containerd::start(node, self.image()?)?;
        containerd.home().install(&[])?;
        containerd.await_network()?;
        Ok(containerd)
    }

    /// Does harm when this fault was asked for: what follows must then fail.
    pub fn sabotage(&self, fault: &str) -> bool {
        self.fault.as_deref() == Some(fault)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.directory));
    }
}

/// A pod whose object is there, as the kubelet asks a runtime for it.
pub fn announced(lab: &Lab, node: &str, name: &str) -> anyhow::Result<Sandbox> {
    let pod = lab.announce_pod(node, name)?;
    let annotations = HashMap::from_iter(pod.annotations);
    Ok(Sandbox { name: pod.name, uid: pod.uid, annotations, ports: Vec::new() })
}

/// What a node has, before a runtime does something to it.
pub struct Before {
    node: Node,
    holdings: Holdings,
    endpoints: usize,
}

impl Before {
    pub fn of(node: &Node) -> anyhow::Result<Self> {
        let (holdings, endpoints) = (Holdings::of(node.namespace())?, node.endpoints()?.len());
        Ok(Self { node: node.clone(), holdings, endpoints })
    }

    /// There is something now that was not there: a look that does not see pods sees nothing.
    pub fn differs(&self) -> anyhow::Result<()> {
        ensure!(
            self.left()? != Leftovers::NONE || self.node.endpoints()?.len() != self.endpoints,
            "nothing to be seen"
        );
        Ok(())
    }

    /// Soon everything is as it was, also where the runtime keeps its own notes of these pods.
    pub fn is_back(&self, pods: &[&Running]) -> anyhow::Result<()> {
        eventually(Duration::from_secs(2), || {
            let left = self.left()?;
            ensure!(left == Leftovers::NONE, "node {}: {left}", self.node.name());
            let endpoints = self.node.endpoints()?;
            ensure!(endpoints.len() == self.endpoints, "an endpoint is left: {endpoints:?}");
            for pod in pods {
                ensure!(!pod.namespace.exists(), "namespace {} is left", pod.namespace.name());
                let notes = fs::read_dir("/var/lib/cni/results").into_iter().flatten().flatten();
                let note =
                    notes.map(|note| note.path()).find(|path| path.to_string_lossy().contains(&pod.id));
                ensure!(note.is_none(), "{note:?} is left");
            }
            Ok(())
        })
    }

    fn left(&self) -> anyhow::Result<Leftovers> {
        Ok(Holdings::of(self.node.namespace())?.since(&self.holdings))
    }
}
