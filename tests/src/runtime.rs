//! Container runtimes of the distribution inside a node of a lab: they call the plugin as they call any other.
//!
//! Each has all it writes in a directory of its own, which it shares with nobody, and takes it along when it is dropped.

mod containerd;
mod cri;
mod image;
mod podman;

use std::ffi::OsStr;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use causeway_model::Family;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::command;
use crate::lab::{Binaries, Node};
use crate::namespace::Namespace;
use crate::process::Process;

pub use containerd::Containerd;
pub use cri::{HostPort, Sandbox};
pub use image::{Image, PAGE, PORT, page};
pub use podman::Podman;

/// No command of a runtime takes longer than this, or it hangs.
const PATIENCE: &str = "90";
/// No runtime outlives the longest of tests.
const LIFE: &str = "1800";

/// A pod that a runtime runs.
#[derive(Clone, Debug)]
pub struct Running {
    /// What the runtime calls it.
    pub id: String,
    /// Its network namespace.
    pub namespace: Namespace,
    /// Its addresses, as the runtime knows them.
    pub addresses: Vec<IpAddr>,
}

impl Running {
    /// Its address of one family.
    pub fn address(&self, family: Family) -> anyhow::Result<IpAddr> {
        let found = self.addresses.iter().copied().find(|address| Family::of(*address) == family);
        found.with_context(|| format!("{} has no {family} address: {:?}", self.id, self.addresses))
    }

    /// Whether another answers a ping from here, over both families.
    pub fn reaches(&self, other: &Running) -> anyhow::Result<()> {
        for family in Family::BOTH {
            let to = other.address(family)?;
            // On a busy machine one packet more or less says nothing.
            let answered = (0..3).any(|_| self.namespace.exec(&format!("ping -n -q -c 1 -W 1 {to}")).is_ok());
            ensure!(answered, "{} does not reach {to} of {}", self.id, other.id);
        }
        Ok(())
    }
}

/// Where a runtime of a node looks for plugins and network configurations.
#[derive(Clone, Debug)]
pub struct Home {
    node: Node,
    directory: PathBuf,
}

impl Home {
    fn new(node: &Node, runtime: &str) -> anyhow::Result<Self> {
        let directory = node.directory().join(runtime);
        for part in ["bin", "net.d"] {
            fs::create_dir_all(directory.join(part))?;
        }
        // containerd calls it for each pod's own loopback.
        fs::copy("/usr/lib/cni/loopback", directory.join("bin/loopback")).context("the loopback plugin")?;
        Ok(Self { node: node.clone(), directory })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The network configurations.
    pub fn conf_dir(&self) -> PathBuf {
        self.at("net.d")
    }

    /// Installs as an operator does.
    pub fn install(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(Binaries::find()?.get("causeway")?);
        command.arg("install").arg("--config").arg(self.node.config_file()).args(["--network", "pods"]);
        command.arg("--bin-dir").arg(self.at("bin")).arg("--conf-dir").arg(self.conf_dir()).args(words);
        Ok(self.node.run(|| command::stdout(&mut command, b""))?)
    }

    /// Runs a command in the node, no longer than a patient person would wait.
    fn stdout<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> anyhow::Result<String> {
        self.stdout_with(words, b"")
    }

    fn stdout_with<S: AsRef<OsStr>>(
        &self,
        words: impl IntoIterator<Item = S>,
        stdin: &[u8],
    ) -> anyhow::Result<String> {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", PATIENCE]).args(words);
        Ok(self.node.run(|| command::stdout(&mut command, stdin))?)
    }

    /// Processes that were started by a program of this home and would outlive it.
    fn children(&self) -> Vec<Process> {
        let place = self.directory.display().to_string();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let ours = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(&place))
                && *pid != std::process::id().cast_signed()
        };
        pids.filter(ours).filter_map(Process::of).collect()
    }

    /// Ends what is left, and takes mounts away.
    fn still(&self) -> anyhow::Result<()> {
        for process in self.children() {
            process.kill().with_context(|| format!("killing process {}", process.pid))?;
        }
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
        let inside: Vec<_> = points.filter(|point| point.starts_with(&self.directory)).collect();
        for point in inside.iter().rev() {
            umount2(*point, MntFlags::MNT_DETACH)
                .with_context(|| format!("unmounting {}", point.display()))?;
        }
        Ok(())
    }

    /// Leaves nothing.
    fn clear(&self) -> anyhow::Result<()> {
        self.still()?;
        fs::remove_dir_all(&self.directory).with_context(|| format!("removing {}", self.directory.display()))
    }
}

/// The process that `timeout` watches over.
fn watched(timeout: Process) -> Option<Process> {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", timeout.pid)).ok()?;
    Process::of(children.split_whitespace().next()?.parse().ok()?)
}

/// Ends a program and the `timeout` it runs under.
fn end(timeout: Process, signal: Signal) -> anyhow::Result<()> {
    if let Some(program) = watched(timeout) {
        program.signal(signal)?;
    }
    ensure!(timeout.ends_within(Duration::from_secs(10)), "process {} does not end", timeout.pid);
    Ok(())
}

/// Waits until something holds; its last complaint is the error.
pub fn eventually(patience: Duration, holds: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match holds() {
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("after {patience:?}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
            Ok(()) => return Ok(()),
        }
    }
}
