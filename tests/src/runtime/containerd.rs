//! containerd, driven as the kubelet does it and by its own tool.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use super::cri::{Cri, Sandbox};
use super::{Home, Image, LIFE, Running, end, eventually};
use crate::command;
use crate::lab::Node;
use crate::namespace::Namespace;
use crate::process::Process;

/// A containerd in a node's network namespace.
pub struct Containerd {
    home: Home,
    timeout: Process,
    image: Image,
}

impl Containerd {
    /// Starts it with an empty directory of network configurations.
    pub fn start(node: &Node, image: &Image) -> anyhow::Result<Self> {
        let home = Home::new(node, "containerd")?;
        fs::write(home.at("config.toml"), configuration(&home.directory, image))?;
        let timeout = launch(&home)?;
        let this = Self { home, timeout, image: image.clone() };
        this.await_answer()?;
        for namespace in ["k8s.io", "default"] {
            let archive = image.archive.display().to_string();
            this.ctr(&["--namespace", namespace, "images", "import", "--snapshotter", "native", &archive])?;
        }
        Ok(this)
    }

    /// Its directories.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Why it has no network for pods, if it has none.
    pub fn network(&self) -> anyhow::Result<Result<(), String>> {
        self.cri()?.network()
    }

    /// Waits until it has a network for pods.
    pub fn await_network(&self) -> anyhow::Result<()> {
        eventually(Duration::from_secs(10), || self.network()?.map_err(anyhow::Error::msg))
    }

    /// Starts a pod.
    pub fn run(&self, pod: &Sandbox) -> anyhow::Result<Running> {
        self.run_all(std::slice::from_ref(pod)).remove(0)
    }

    /// Starts pods, all at once.
    pub fn run_all(&self, pods: &[Sandbox]) -> Vec<anyhow::Result<Running>> {
        let cri = match self.cri() {
            Ok(cri) => cri,
            Err(error) => return vec![Err(error)],
        };
        cri.run(pods).into_iter().map(|id| self.running(&cri, &id?)).collect()
    }

    fn running(&self, cri: &Cri, id: &str) -> anyhow::Result<Running> {
        let status = cri.status(id)?;
        let name = Path::new(&status.netns).file_name().context("a namespace without a name")?;
        let addresses: Result<Vec<_>, _> = status.addresses.iter().map(|address| address.parse()).collect();
        let namespace = Namespace::named(name.to_string_lossy());
        Ok(Running { id: id.to_owned(), namespace, addresses: addresses? })
    }

    /// Stops and removes pods, all at once, as the kubelet does.
    pub fn remove_all(&self, pods: &[&Running]) -> anyhow::Result<()> {
        let (cri, ids) = (self.cri()?, pods.iter().map(|pod| pod.id.as_str()).collect::<Vec<_>>());
        for verb in ["StopPodSandbox", "StopPodSandbox", "RemovePodSandbox"] {
            cri.end(verb, &ids).into_iter().collect::<anyhow::Result<()>>()?;
        }
        Ok(())
    }

    /// Stops and removes a pod.
    pub fn remove(&self, pod: &Running) -> anyhow::Result<()> {
        self.remove_all(&[pod])
    }

    /// How many pods it knows.
    pub fn count(&self) -> anyhow::Result<usize> {
        Ok(self.cri()?.list()?.len())
    }

    /// Kills it without warning; its pods live on.
    pub fn kill(&self) -> anyhow::Result<()> {
        end(self.timeout, Signal::SIGKILL)
    }

    /// Ends it and these pods as a loss of power does: nobody says goodbye, and what lived in memory is gone.
    pub fn lose_power(&self, pods: &[&Running]) -> anyhow::Result<()> {
        self.kill()?;
        self.home.still()?;
        for pod in pods {
            let inside = command::run(&format!("ip netns pids {}", pod.namespace.name()))?;
            for process in inside.split_whitespace().filter_map(|pid| Process::of(pid.parse().ok()?)) {
                process.kill()?;
            }
            pod.namespace.delete()?;
        }
        fs::remove_dir_all(self.home.at("state"))?;
        Ok(())
    }

    /// Starts it again.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        drop(fs::remove_file(self.socket()));
        self.timeout = launch(&self.home)?;
        self.await_answer()?;
        self.await_network()
    }

    /// Runs a container by containerd's own tool and its option `--cni`; the tool looks in fixed places, so it gets a view
    /// of the file system in which ours are there.
    pub fn ctr_run(&self, name: &str, words: &[&str]) -> anyhow::Result<String> {
        let view = format!(
            "mount -t tmpfs none /opt && mkdir -p /opt/cni/bin /etc/cni/net.d && mount --bind {0}/bin /opt/cni/bin && \
             mount --bind {0}/net.d /etc/cni/net.d && exec \"$@\"",
            self.home.directory.display()
        );
        let socket = self.socket().display().to_string();
        let mut all = vec!["unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", &view, "sh"];
        all.extend(["ctr", "--address", &socket, "run", "--rm", "--cni", "--snapshotter", "native"]);
        all.extend([self.image.name(), name]);
        all.extend(words);
        self.home.stdout(all)
    }

    fn ctr(&self, words: &[&str]) -> anyhow::Result<String> {
        let socket = self.socket().display().to_string();
        let mut all = vec!["ctr", "--address", &socket];
        all.extend(words);
        self.home.stdout(all)
    }

    fn socket(&self) -> PathBuf {
        self.home.at("c.sock")
    }

    fn cri(&self) -> anyhow::Result<Cri> {
        Cri::connect(&self.socket())
    }

    fn await_answer(&self) -> anyhow::Result<()> {
        let answers = eventually(Duration::from_secs(20), || {
            ensure!(self.timeout.is_alive(), "it has ended");
            self.network().map(drop)
        });
        answers.with_context(|| {
            let log = fs::read_to_string(self.home.at("log")).unwrap_or_default();
            let last: Vec<_> = log.lines().rev().take(5).collect();
            format!("containerd of node {}; its log ends: {last:?}", self.home.node.name())
        })
    }

    fn clear(&self) -> anyhow::Result<()> {
        if self.timeout.is_alive() {
            self.remove_every_pod()?;
            end(self.timeout, Signal::SIGTERM)?;
        }
        Ok(())
    }

    // A function of its own: containerd does not end while a connection is open.
    fn remove_every_pod(&self) -> anyhow::Result<()> {
        let cri = self.cri()?;
        let ids = cri.list()?;
        let ids: Vec<_> = ids.iter().map(String::as_str).collect();
        for verb in ["StopPodSandbox", "RemovePodSandbox"] {
            cri.end(verb, &ids).into_iter().collect::<anyhow::Result<()>>()?;
        }
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for cleared in [self.clear(), self.home.clear()] {
            if let Err(error) = cleared {
                eprintln!("taking down containerd of node {}: {error:#}", self.home.node.name());
            }
        }
    }
}

fn launch(home: &Home) -> anyhow::Result<Process> {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", LIFE, "containerd", "--config"]).arg(home.at("config.toml"));
    Ok(home.node.run(|| Process::start(&mut command, &home.at("log")))?)
}

/// What a containerd needs on a machine without systemd, AppArmor, the right to raise limits, or a place of its own.
fn configuration(directory: &Path, image: &Image) -> String {
    format!(
        r#"version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{directory}/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  disable_apparmor = true
  disable_hugetlb_controller = true
  disable_tcp_service = true
  restrict_oom_score_adj = true
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{directory}/bin"
    conf_dir = "{directory}/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"#,
        directory = directory.display(),
        image = image.name(),
    )
}
