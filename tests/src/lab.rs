//! Nodes as network namespaces, each with a real agent, joined by a wire; pods plugged in by real CNI calls.

mod agent;
mod announced;
mod binaries;
mod error;
mod foreign;
mod manifests;
mod node;
mod operator;
mod plan;
mod pod;
mod record;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use agent::Role;
pub use binaries::Binaries;
pub use error::LabError;
pub use foreign::foreign_pod;
pub use node::Node;
pub use operator::get;
pub use plan::{Datapath, LabSpec, NodePlan, Place, Underlay, WireKind};
pub use pod::{Call, Pod, PodSpec};
pub use record::{DIRECTORY, NodeRecord, PodRecord, Record, names};

use crate::namespace::Namespace;
use crate::process::Process;
use manifests::Manifests;
use record::Store;

/// A lab. Everything it made is written in its record, so that any process can work with it and take it down; the value
/// that made it takes it down when it is dropped, unless it is kept.
#[derive(Debug)]
pub struct Lab {
    name: String,
    store: Store,
    owned: bool,
}

impl Lab {
    /// Makes a lab: the wire, the nodes, their manifests, and an agent in each, which serve when this returns.
    pub fn up(spec: LabSpec) -> Result<Self, LabError> {
        spec.check()?;
        let binaries = Binaries::find()?;
        binaries.need_for(&spec)?;
        let (name, nodes, clusters, agents) = (spec.name.clone(), spec.nodes, spec.clusters, spec.agents);
        let store = Store::of(&name);
        store.create(&Record {
            spec,
            owner: Process::own(),
            wire: None,
            nodes: Vec::new(),
            pods: Vec::new(),
            hosts: Vec::new(),
            made_netns_directory: !Path::new(crate::namespace::DIRECTORY).exists(),
        })?;
        // From here on an error takes down what was made.
        let lab = Self { name, store, owned: true };
        lab.manifests()?.create()?;
        lab.make_wire()?;
        let made: Result<Vec<_>, _> = (0..nodes).map(|i| lab.make_node(i % clusters + 1, false)).collect();
        let made = made?;
        if agents {
            made.iter().try_for_each(|node| lab.launch(node))?;
            made.iter().try_for_each(|node| lab.await_ready(node))?;
        }
        Ok(lab)
    }

    /// A lab that is there.
    pub fn open(name: &str) -> Result<Self, LabError> {
        let lab = Self { name: name.to_owned(), store: Store::of(name), owned: false };
        lab.record().map(|_| lab)
    }

    /// Leaves the lab standing when this value is dropped, for `lab down`.
    pub fn keep(mut self) -> Result<Self, LabError> {
        self.store.update(|record| {
            record.owner = None;
            Ok(())
        })?;
        self.owned = false;
        Ok(self)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.store.directory
    }

    /// Everything it made so far.
    pub fn record(&self) -> Result<Record, LabError> {
        self.store.read()
    }

    /// The manifests directory of one of its clusters, by number from 1.
    pub fn manifests_of(&self, cluster: usize) -> Result<PathBuf, LabError> {
        Ok(self.manifests()?.of(cluster))
    }

    /// The namespace of a node, a pod or the wire.
    pub fn namespace(&self, thing: &str) -> Namespace {
        Namespace::named(Record::namespace(&self.name, thing))
    }

    fn manifests(&self) -> Result<Manifests, LabError> {
        let spec = self.record()?.spec;
        Ok(Manifests::new(self.directory(), spec.clusters, spec.objects))
    }

    /// Takes down everything and returns what could not be.
    pub fn down(mut self) -> Result<(), LabError> {
        self.owned = false;
        remove(&self.name)
    }

    /// Takes down the labs whose owner died without doing it.
    pub fn sweep() -> Result<Vec<String>, LabError> {
        let mut swept = Vec::new();
        for name in names() {
            let owner = Store::of(&name).read().ok().and_then(|record| record.owner);
            if owner.is_some_and(|owner| !owner.is_alive()) {
                remove(&name)?;
                swept.push(name);
            }
        }
        Ok(swept)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.owned
            && let Err(error) = remove(&self.name)
        {
            eprintln!("taking down lab {}: {error}", self.name);
        }
    }
}

/// Removes whatever is left of a lab: past failures, all of them reported. A lab that is not there is no error.
pub fn remove(name: &str) -> Result<(), LabError> {
    let store = Store::of(name);
    if !store.directory.exists() {
        return Ok(());
    }
    let mut problems = Vec::new();
    let record = match store.read() {
        Ok(record) => Some(record),
        // A directory without a record: an `up` that died at once. There is nothing but the directory.
        Err(LabError::NoSuch { .. }) => None,
        Err(error) => return Err(error),
    };
    if let Some(record) = &record {
        let processes: Vec<_> = record.processes().collect();
        for process in &processes {
            drop(process.signal(nix::sys::signal::Signal::SIGTERM));
        }
        for process in processes {
            let stopped = process.stop(Duration::from_secs(3));
            problems
                .extend(stopped.err().map(|e| LabError::io(format!("stopping process {}", process.pid), e)));
        }
        for namespace in record.namespaces() {
            let deleted = Namespace::named(&namespace).delete();
            problems
                .extend(deleted.err().map(|e| LabError::io(format!("deleting namespace {namespace}"), e)));
        }
    }
    if problems.is_empty() {
        let removed = fs::remove_dir_all(&store.directory);
        problems.extend(
            removed.err().map(|e| LabError::io(format!("removing {}", store.directory.display()), e)),
        );
        // The last lab takes the directories along; they stay when they are not empty.
        drop(fs::remove_dir(DIRECTORY));
        if record.is_some_and(|record| record.made_netns_directory) {
            drop(fs::remove_dir(crate::namespace::DIRECTORY));
        }
    }
    LabError::all(problems)
}
