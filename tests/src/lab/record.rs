//! What a lab made, written down where any process finds it: /run/causeway-lab/NAME/lab.json.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{LabError, LabSpec};
use crate::process::Process;

/// Where the labs are.
pub const DIRECTORY: &str = "/run/causeway-lab";

/// The namespace of pods that are asked for without one.
pub(super) const DEFAULT: &str = "default";

/// Everything a lab made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What was asked for.
    pub spec: LabSpec,
    /// The process that will take the lab down; none when it shall stay until `lab down`.
    pub owner: Option<Process>,
    /// The user-space wire.
    pub wire: Option<Process>,
    /// Its nodes.
    pub nodes: Vec<NodeRecord>,
    /// Its pods.
    pub pods: Vec<PodRecord>,
    /// Hosts on the wire that are no nodes.
    pub hosts: Vec<String>,
    /// Whether the directory of namespaces is ours to remove.
    pub made_netns_directory: bool,
}

/// A node that was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub name: String,
    /// Its number, from 1.
    pub number: usize,
    /// Its cluster's number, from 1.
    pub cluster: usize,
    /// Whether it is a peer without an agent.
    pub foreign: bool,
    /// Its agent, while it should run.
    pub agent: Option<Process>,
    /// Its fast path, while it should run.
    pub fastpath: Option<Process>,
}

/// A pod that was added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodRecord {
    /// What it is called in the lab: its name, outside of the namespace `default` after that of its namespace and a dot.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its node.
    pub node: String,
    /// Its uid.
    pub uid: String,
    /// The container id the plugin was given.
    pub container: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Keys of its network's configuration beside those of the lab.
    pub config: Map<String, Value>,
    /// More of CNI_ARGS.
    pub args: BTreeMap<String, String>,
    /// Its addresses, as the plugin answered.
    pub addresses: Vec<IpAddr>,
    /// The plugin's answer, which DEL gets back.
    pub result: Value,
}

impl Record {
    /// The namespace of a node, a pod or the wire.
    pub fn namespace(lab: &str, thing: &str) -> String {
        format!("cwl-{lab}-{thing}")
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Result<&NodeRecord, LabError> {
        let there = || self.nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>();
        let found = self.nodes.iter().find(|node| node.name == name);
        found.ok_or_else(|| LabError::no_such("node", name, &self.spec.name, &there()))
    }

    /// A pod by name.
    pub fn pod(&self, name: &str) -> Result<&PodRecord, LabError> {
        let there = || self.pods.iter().map(|pod| pod.name.clone()).collect::<Vec<_>>();
        let found = self.pods.iter().find(|pod| pod.name == name);
        found.ok_or_else(|| LabError::no_such("pod", name, &self.spec.name, &there()))
    }

    /// Every namespace that was made.
    pub fn namespaces(&self) -> impl Iterator<Item = String> + '_ {
        let things = self.pods.iter().map(|pod| pod.name.as_str());
        let things = things.chain(self.nodes.iter().map(|node| node.name.as_str()));
        let things = things.chain(self.hosts.iter().map(String::as_str)).chain(["wire"]);
        things.map(|thing| Self::namespace(&self.spec.name, thing))
    }

    /// Every process that was started and not stopped.
    pub fn processes(&self) -> impl Iterator<Item = Process> + '_ {
        self.nodes.iter().flat_map(|node| [node.agent, node.fastpath]).chain([self.wire]).flatten()
    }
}

impl PodRecord {
    /// Its name in its namespace.
    pub fn object_name(&self) -> &str {
        let inside = self.name.strip_prefix(self.namespace.as_str()).and_then(|rest| rest.strip_prefix('.'));
        inside.filter(|_| self.namespace != DEFAULT).unwrap_or(&self.name)
    }
}

/// The directory of one lab.
#[derive(Clone, Debug)]
pub(super) struct Store {
    pub directory: PathBuf,
    name: String,
}

impl Store {
    pub fn of(name: &str) -> Self {
        Self { directory: Path::new(DIRECTORY).join(name), name: name.to_owned() }
    }

    fn file(&self) -> PathBuf {
        self.directory.join("lab.json")
    }

    /// Writes the first record of a lab that is not there yet.
    pub fn create(&self, record: &Record) -> Result<(), LabError> {
        fs::create_dir_all(DIRECTORY).map_err(|e| LabError::io(format!("making {DIRECTORY}"), e))?;
        match fs::create_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(LabError::Refused(format!("lab {} is there already: lab down --name {0}", self.name)))
            }
            // The last of the other labs has just taken the directory of all labs along.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.create(record),
            Err(error) => Err(LabError::io(format!("making {}", self.directory.display()), error)),
            Ok(()) => self.write(record),
        }
    }

    /// What is written.
    pub fn read(&self) -> Result<Record, LabError> {
        match fs::read(self.file()) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|e| LabError::io(self.file().display(), e.into()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(LabError::no_such("lab", &self.name, "", &names()))
            }
            Err(error) => Err(LabError::io(format!("reading {}", self.file().display()), error)),
        }
    }

    /// Changes what is written, while no other process does.
    pub fn update<T>(&self, change: impl FnOnce(&mut Record) -> Result<T, LabError>) -> Result<T, LabError> {
        let lock = File::open(&self.directory).and_then(|lock| lock.lock().map(|()| lock));
        let _lock = match lock {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(LabError::no_such("lab", &self.name, "", &names()));
            }
            lock => lock.map_err(|e| LabError::io(format!("locking {}", self.directory.display()), e))?,
        };
        let mut record = self.read()?;
        let made = change(&mut record)?;
        self.write(&record)?;
        Ok(made)
    }

    fn write(&self, record: &Record) -> Result<(), LabError> {
        let text =
            serde_json::to_vec_pretty(record).map_err(|e| LabError::io(self.file().display(), e.into()))?;
        write_aside(&self.file(), &text)
    }
}

/// The names of the labs that are there.
pub fn names() -> Vec<String> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Writes a file aside and renames it, so that nobody reads half of it.
pub(super) fn write_aside(file: &Path, text: &[u8]) -> Result<(), LabError> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let aside = file.with_file_name(format!(".{name}.aside"));
    fs::write(&aside, text)
        .and_then(|()| fs::rename(&aside, file))
        .map_err(|error| LabError::io(format!("writing {}", file.display()), error))
}
