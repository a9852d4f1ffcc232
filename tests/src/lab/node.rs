use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use causeway_model::connection::Listing;
use causeway_model::flow::Event;
use causeway_model::operator::{EndpointStatus, ServiceStatus, Status};
use causeway_model::why::Why;
use causeway_model::{DropReason, Family};

use super::record::NodeRecord;
use super::{Binaries, Lab, LabError, NodePlan, Role, operator};
use crate::namespace::Namespace;
use crate::process::Process;

/// How long agents may take until they know a new node.
const PATIENCE: Duration = Duration::from_secs(5);

/// A node of a lab. The value is only a name: dropping it removes nothing.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its names and addresses.
    pub plan: NodePlan,
    /// Whether it is a peer without an agent.
    pub foreign: bool,
    namespace: Namespace,
    directory: PathBuf,
}

impl Node {
    pub(super) fn of(lab: &Lab, record: &NodeRecord) -> Result<Self, LabError> {
        let plan = lab.record()?.spec.plan(record.number, record.cluster)?;
        let directory = lab.directory().join("nodes").join(&record.name);
        Ok(Self { plan, foreign: record.foreign, namespace: lab.namespace(&record.name), directory })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.plan.node.id.name.as_str()
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its directory: configuration, log, sockets, state.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its own address on the wire.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.plan.v4.into(),
            Family::V6 => self.plan.v6.into(),
        }
    }

    /// The source of its own traffic to pods of other nodes.
    pub fn overlay_host_address(&self, family: Family) -> IpAddr {
        let address = self.plan.node.overlay_host_address(family);
        address.unwrap_or_else(|| unreachable!("every node of a lab has prefixes of both families"))
    }

    /// Runs a closure on a thread inside the node.
    pub fn run<T: Send>(&self, closure: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(closure)
    }

    /// Runs a command inside the node, given as one line of words, and returns its stdout.
    pub fn exec(&self, words: &str) -> Result<String, LabError> {
        Ok(self.namespace.exec(words)?)
    }

    /// Whether an address answers a ping from here within a second.
    pub fn ping(&self, address: IpAddr) -> bool {
        super::pod::ping(&self.namespace, address)
    }

    /// The agent's configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("agent.yaml")
    }

    /// A directory of plugins that the runtime of this node finds before all others.
    pub fn plugins(&self) -> PathBuf {
        self.directory.join("plugins")
    }

    /// Where the agent's API listens.
    pub fn api_socket(&self) -> PathBuf {
        self.directory.join("run/api.sock")
    }

    /// What the agent says about itself.
    pub fn status(&self) -> Result<Status, LabError> {
        self.ask("/v1/status")
    }

    /// What the agent says about its endpoints.
    pub fn endpoints(&self) -> Result<Vec<EndpointStatus>, LabError> {
        self.ask("/v1/endpoints")
    }

    /// How many packets the node has dropped for one reason so far.
    pub fn drops(&self, reason: DropReason) -> Result<u64, LabError> {
        Ok(self.status()?.drops.get(&reason).map_or(0, |count| count.packets))
    }

    /// What the operator's command says of connections, asked with these words.
    pub fn connections(&self, words: &str) -> Result<Listing, LabError> {
        self.command("connections", words)
    }

    /// What the operator's command says of services, asked with these words.
    pub fn services(&self, words: &str) -> Result<Vec<ServiceStatus>, LabError> {
        self.command("services", words)
    }

    /// What the operator's command tells of flows, asked with these words.
    pub fn flows(&self, words: &str) -> Result<Vec<Event>, LabError> {
        let text = self.operate("flows", words)?;
        let events = text.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        events.map_err(|error| LabError::io(format!("reading the flows of {}", self.name()), error.into()))
    }

    /// The answer of one of the operator's commands.
    fn command<T: serde::de::DeserializeOwned>(&self, verb: &str, words: &str) -> Result<T, LabError> {
        let text = self.operate(verb, words)?;
        let doing = || format!("reading what {verb} {words} says on {}", self.name());
        serde_json::from_str(&text).map_err(|error| LabError::io(doing(), error.into()))
    }

    fn operate(&self, verb: &str, words: &str) -> Result<String, LabError> {
        let (program, socket) = (Binaries::find()?.get("causeway")?, self.api_socket());
        self.exec(&format!("{} {verb} --socket {} --json {words}", program.display(), socket.display()))
    }

    /// What the operator's command says of why, asked with these words.
    pub fn why(&self, words: &str) -> Result<Why, LabError> {
        self.command("why", words)
    }

    fn ask<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, LabError> {
        let doing =
            |error| LabError::io(format!("asking the agent of node {} for {path}", self.name()), error);
        let body = operator::get(&self.api_socket(), path).map_err(doing)?;
        serde_json::from_slice(&body).map_err(|error| doing(error.into()))
    }

    /// The last lines of the agent's log.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = fs::read_to_string(self.directory.join("agent.log")).unwrap_or_default();
        let all: Vec<_> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Lab {
    /// A node by name.
    pub fn node(&self, name: &str) -> Result<Node, LabError> {
        Node::of(self, self.record()?.node(name)?)
    }

    /// Every node, foreign ones included.
    pub fn nodes(&self) -> Result<Vec<Node>, LabError> {
        self.record()?.nodes.iter().map(|record| Node::of(self, record)).collect()
    }

    /// Adds a node to a cluster, by number from 1, while the others run; its agent serves when this returns.
    pub fn add_node(&self, cluster: usize) -> Result<Node, LabError> {
        let node = self.make_node(cluster, false)?;
        self.launch(&node)?;
        self.await_ready(&node)?;
        self.await_known(&node)?;
        Ok(node)
    }

    /// Waits until every other agent that runs knows a node.
    pub(super) fn await_known(&self, node: &Node) -> Result<(), LabError> {
        let deadline = Instant::now() + PATIENCE;
        for other in self.nodes()?.iter().filter(|other| other.name() != node.name()) {
            if !self.process(other.name(), Role::Agent)?.is_some_and(Process::is_alive) {
                continue;
            }
            while !other.status()?.peers.iter().any(|peer| peer.id == node.plan.node.id) {
                if Instant::now() > deadline {
                    let (other, node) = (other.name(), node.name());
                    return Err(LabError::Refused(format!(
                        "the agent of node {other} does not take up node {node}"
                    )));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// Namespace, place on the wire and Node object of a new node.
    pub(super) fn make_node(&self, cluster: usize, foreign: bool) -> Result<Node, LabError> {
        // Written down first, so that whatever happens `down` knows of it.
        let (record, plan) = self.store.update(|record| {
            let number = record.nodes.iter().map(|node| node.number).max().unwrap_or(0) + 1;
            let plan = record.spec.plan(number, cluster)?;
            let name = plan.node.id.name.to_string();
            let node = NodeRecord { name, number, cluster, foreign, agent: None, fastpath: None };
            record.nodes.push(node.clone());
            Ok((node, plan))
        })?;
        let namespace = self.namespace(&record.name);
        Namespace::create(namespace.name())
            .map_err(|error| LabError::io(format!("making namespace {}", namespace.name()), error))?;
        self.join_wire(&plan)?;
        self.manifests()?.write_node(&plan)?;
        Node::of(self, &record)
    }

    /// Removes a node: its object from every manifests directory, its agent, its pods, its namespace.
    pub fn remove_node(&self, name: &str) -> Result<(), LabError> {
        let record = self.record()?;
        let node = record.node(name)?;
        self.manifests()?.remove_node(node.cluster, name)?;
        for process in [node.agent, node.fastpath].into_iter().flatten() {
            process.kill().map_err(|error| LabError::io(format!("stopping node {name}"), error))?;
        }
        for pod in record.pods.iter().filter(|pod| pod.node == name) {
            self.manifests()?.remove_pod(node.cluster, &pod.name)?;
            self.delete_namespace(&pod.name)?;
        }
        self.leave_wire(name)?;
        self.delete_namespace(name)?;
        self.store.update(|record| {
            record.nodes.retain(|node| node.name != name);
            record.pods.retain(|pod| pod.node != name);
            Ok(())
        })
    }

    /// Takes a node's object out of every manifests directory, or puts it back; the node itself goes on.
    pub fn set_known(&self, name: &str, known: bool) -> Result<(), LabError> {
        let node = self.node(name)?;
        if known {
            self.manifests()?.write_node(&node.plan)
        } else {
            self.manifests()?.remove_node(node.plan.cluster, name)
        }
    }

    pub(super) fn delete_namespace(&self, thing: &str) -> Result<(), LabError> {
        let namespace = self.namespace(thing);
        let deleted = namespace.delete();
        deleted.map_err(|error| LabError::io(format!("deleting namespace {}", namespace.name()), error))
    }
}
