//! The processes of a node: configured, started, awaited, killed.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use super::{Binaries, Datapath, Lab, LabError, Node, NodeRecord};
use crate::process::Process;

/// How long an agent may take until it serves.
const PATIENCE: Duration = Duration::from_secs(15);

/// A process of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The agent.
    Agent,
    /// The DPDK process.
    Fastpath,
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "agent" => Ok(Role::Agent),
            "fastpath" => Ok(Role::Fastpath),
            _ => Err(format!("{word:?} is no process of a node; there are agent and fastpath")),
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Role::Agent => "agent",
            Role::Fastpath => "fastpath",
        })
    }
}

impl Lab {
    /// Starts whatever a new node runs, without waiting for it.
    pub fn launch(&self, node: &Node) -> Result<(), LabError> {
        self.configure(node)?;
        if self.record()?.spec.datapath_of(node.plan.number) == Datapath::Fast {
            self.spawn(node, Role::Fastpath)?;
        }
        self.spawn(node, Role::Agent)
    }

    /// Writes what the processes of a node read: the agent's configuration, the runtime's.
    pub fn configure(&self, node: &Node) -> Result<(), LabError> {
        let io = |error| LabError::io(format!("preparing node {}", node.name()), error);
        for directory in ["run", "state", "status", "net.d"] {
            fs::create_dir_all(node.directory().join(directory)).map_err(io)?;
        }
        fs::write(node.config_file(), self.agent_config(node)?).map_err(io)?;
        fs::write(self.conflist_file(node), self.conflist(node).to_string()).map_err(io)
    }

    /// The agent's configuration, as a person would write it.
    fn agent_config(&self, node: &Node) -> Result<String, LabError> {
        let spec = self.record()?.spec;
        let directory = node.directory().display();
        let mut config = String::new();
        let manifests = self.manifests_of(node.plan.cluster)?;
        let datapath = spec.datapath_of(node.plan.number);
        let mut line =
            |key: &str, value: &dyn std::fmt::Display| config.push_str(&format!("{key}: {value}\n"));
        line("node", &node.name());
        line("manifests", &manifests.display());
        line("status", &format!("{directory}/status"));
        line("state", &format!("{directory}/state"));
        line("run", &format!("{directory}/run"));
        line("uplink", &"eth0");
        line("datapath", &datapath);
        for more in spec.config {
            config.push_str(&more);
            config.push('\n');
        }
        Ok(config)
    }

    /// Starts a process of a node and waits until it serves.
    pub fn start(&self, node: &str, role: Role) -> Result<(), LabError> {
        let node = self.node(node)?;
        self.spawn(&node, role)?;
        match role {
            Role::Agent => self.await_ready(&node),
            Role::Fastpath => Ok(()),
        }
    }

    /// Starts a process of a node that does not run yet, without waiting for it.
    pub fn spawn(&self, node: &Node, role: Role) -> Result<(), LabError> {
        self.spawn_in(node, role, "")
    }

    /// The same in a mount namespace of its own, in which these commands of a shell were run before.
    pub fn spawn_in(&self, node: &Node, role: Role, before: &str) -> Result<(), LabError> {
        let name = node.name();
        if self.process(name, role)?.is_some_and(Process::is_alive) {
            return Err(LabError::Refused(format!("the {role} of node {name} runs already")));
        }
        let binaries = Binaries::find()?;
        let mut command = match role {
            Role::Agent => {
                let mut command = Command::new(binaries.get("causeway")?);
                command.arg("agent").arg("--config").arg(node.config_file());
                command
            }
            Role::Fastpath => {
                let mut command = Command::new(binaries.get("causeway-fastpath")?);
                command.arg("--agent").arg(node.directory().join("run/fastpath.sock"));
                command.arg("--connections").arg(node.directory().join("run/connections"));
                let record = self.record()?;
                if !record.spec.fastpath.iter().any(|option| option == "--cpus") {
                    command.args(["--cpus", &cpus(record.node(name)?.number)?]);
                }
                command.args(record.spec.fastpath);
                command
            }
        };
        if !before.is_empty() {
            command = within_mounts(&command, before);
        }
        let log = node.directory().join(format!("{role}.log"));
        let process = node.run(|| Process::start(&mut command, &log));
        let process =
            process.map_err(|error| LabError::io(format!("starting the {role} of node {name}"), error))?;
        self.set_process(name, role, Some(process))
    }

    /// Waits until the agent of a node serves.
    pub fn await_ready(&self, node: &Node) -> Result<(), LabError> {
        let process = self.process(node.name(), Role::Agent)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let missing = match node.status() {
                Ok(status) if status.waiting_for.is_empty() && status.source.synchronised => return Ok(()),
                Ok(status) => format!("it waits for {}", status.waiting_for.join(", ")),
                Err(error) => error.to_string(),
            };
            let alive = process.is_some_and(Process::is_alive);
            if !alive || Instant::now() > deadline {
                let what = if alive { format!("does not serve: {missing}") } else { "has died".into() };
                let (name, tail) = (node.name(), node.log_tail(20));
                return Err(LabError::Refused(format!(
                    "the agent of node {name} {what}; its log ends:\n{tail}"
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks a process of a node to end, and waits for that.
    pub fn stop(&self, node: &str, role: Role) -> Result<(), LabError> {
        let Some(process) = self.process(node, role)? else {
            return Err(LabError::Refused(format!("the {role} of node {node} does not run")));
        };
        let stopped = process.stop(PATIENCE);
        stopped.map_err(|error| LabError::io(format!("stopping the {role} of node {node}"), error))?;
        self.set_process(node, role, None)
    }

    /// Kills a process of a node without warning.
    pub fn kill(&self, node: &str, role: Role) -> Result<(), LabError> {
        let Some(process) = self.process(node, role)? else {
            return Err(LabError::Refused(format!("the {role} of node {node} does not run")));
        };
        process.kill().map_err(|error| LabError::io(format!("killing the {role} of node {node}"), error))?;
        self.set_process(node, role, None)
    }

    /// A process of a node, as long as it should run.
    pub fn process(&self, node: &str, role: Role) -> Result<Option<Process>, LabError> {
        let mut record = self.record()?.node(node)?.clone();
        Ok(*slot(&mut record, role))
    }

    fn set_process(&self, node: &str, role: Role, process: Option<Process>) -> Result<(), LabError> {
        self.store.update(|record| {
            record.node(node)?;
            for record in record.nodes.iter_mut().filter(|record| record.name == node) {
                *slot(record, role) = process;
            }
            Ok(())
        })
    }
}

/// All CPUs there are, beginning with another one for each node: nodes of a lab share a machine, and their first workers
/// shall not share a CPU.
fn cpus(node: usize) -> Result<String, LabError> {
    let set = sched_getaffinity(Pid::from_raw(0));
    let set = set.map_err(|errno| LabError::io("asking which CPUs there are", errno.into()))?;
    let all: Vec<_> = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect();
    let turned = all.iter().cycle().skip(node).take(all.len());
    Ok(turned.map(ToString::to_string).collect::<Vec<_>>().join(","))
}

/// The command behind others that change what it sees of the file system. It keeps its process number: each of them is
/// replaced by the next.
fn within_mounts(command: &Command, before: &str) -> Command {
    let mut shell = Command::new("unshare");
    // What the runtime mounts later comes in, or the program would see no pod's namespace.
    shell.args(["--mount", "--propagation", "slave", "sh", "-ec", &format!("{before}\nexec \"$0\" \"$@\"")]);
    shell.arg(command.get_program()).args(command.get_args());
    shell
}

fn slot(record: &mut NodeRecord, role: Role) -> &mut Option<Process> {
    match role {
        Role::Agent => &mut record.agent,
        Role::Fastpath => &mut record.fastpath,
    }
}
