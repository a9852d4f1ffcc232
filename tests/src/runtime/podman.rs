//! podman with its CNI backend.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::{Home, Image, Running};
use crate::lab::Node;
use crate::namespace::Namespace;

/// podman in a node's network namespace.
pub struct Podman {
    home: Home,
    image: Image,
}

impl Podman {
    /// Makes its directories and loads the image. It wants a network before it does anything else.
    pub fn new(node: &Node, image: &Image) -> anyhow::Result<Self> {
        let home = Home::new(node, "podman")?;
        let directory = home.directory.display();
        fs::write(home.at("containers.conf"), configuration(&home.directory, image))?;
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{directory}/root\"\nrunroot = \"{directory}/run\"\n"
        );
        fs::write(home.at("storage.conf"), storage)?;
        fs::write(home.at("policy.json"), r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
        let this = Self { home, image: image.clone() };
        this.home.install(&[])?;
        let (archive, policy) =
            (image.archive.display().to_string(), this.home.at("policy.json").display().to_string());
        this.podman(&["load", "--quiet", "--signature-policy", &policy, "--input", &archive])?;
        Ok(this)
    }

    /// Its directories.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Runs a container.
    pub fn run(&self, name: &str, words: &[&str]) -> anyhow::Result<Running> {
        let mut all = vec!["run", "--detach", "--name", name, "--network", "pods"];
        all.extend(words);
        all.push(self.image.name());
        self.podman(&all)?;
        self.running(name)
    }

    /// Runs what a manifest says; its pod is called `pod`, in which the infrastructure's container has the network.
    pub fn play(&self, manifest: &str, pod: &str) -> anyhow::Result<Running> {
        self.podman_with(&["play", "kube", "--network", "pods", "-"], manifest.as_bytes())?;
        let infra = self.podman(&["pod", "inspect", pod, "--format", "{{.InfraContainerID}}"])?;
        self.running(infra.trim())
    }

    /// Takes down what a manifest says.
    pub fn play_down(&self, manifest: &str) -> anyhow::Result<()> {
        self.podman_with(&["play", "kube", "--down", "-"], manifest.as_bytes()).map(drop)
    }

    /// Runs a command in a container.
    pub fn exec(&self, name: &str, words: &[&str]) -> anyhow::Result<String> {
        let mut all = vec!["exec", name];
        all.extend(words);
        self.podman(&all)
    }

    /// Removes a container.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        self.podman(&["rm", "--force", "--time", "0", name]).map(drop)
    }

    fn running(&self, name: &str) -> anyhow::Result<Running> {
        let text = self.podman(&["inspect", name])?;
        let inspected: Value = serde_json::from_str(&text)?;
        let settings = &inspected[0]["NetworkSettings"];
        let netns = settings["SandboxKey"].as_str().unwrap_or_default();
        let namespace =
            Path::new(netns).file_name().with_context(|| format!("{name} has no namespace: {settings}"))?;
        let network = &settings["Networks"]["pods"];
        let keys = ["IPAddress", "GlobalIPv6Address"];
        let addresses = keys.iter().filter_map(|key| network[key].as_str()).filter(|text| !text.is_empty());
        let addresses: Result<Vec<_>, _> = addresses.map(str::parse).collect();
        let addresses = addresses?;
        ensure!(!addresses.is_empty(), "{name} has no address: {settings}");
        Ok(Running {
            id: name.to_owned(),
            namespace: Namespace::named(namespace.to_string_lossy()),
            addresses,
        })
    }

    fn podman(&self, words: &[&str]) -> anyhow::Result<String> {
        self.podman_with(words, b"")
    }

    fn podman_with(&self, words: &[&str], stdin: &[u8]) -> anyhow::Result<String> {
        let of = |variable: &str, file: &str| format!("{variable}={}", self.home.at(file).display());
        let environment =
            [of("CONTAINERS_CONF", "containers.conf"), of("CONTAINERS_STORAGE_CONF", "storage.conf")];
        let [conf, storage] = &environment;
        let mut all = vec!["env", conf, storage, "podman"];
        all.extend(words);
        self.home.stdout_with(all, stdin)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let pods = self.podman(&["pod", "rm", "--all", "--force", "--time", "0"]);
        let containers = self.podman(&["rm", "--all", "--force", "--time", "0"]);
        for cleared in [pods.map(drop), containers.map(drop), self.home.clear()] {
            if let Err(error) = cleared {
                eprintln!("taking down podman of node {}: {error:#}", self.home.node.name());
            }
        }
    }
}

/// What podman needs on a machine without systemd, AppArmor, or the right to raise limits.
fn configuration(directory: &Path, image: &Image) -> String {
    format!(
        r#"[containers]
apparmor_profile = "unconfined"
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
infra_image = "{image}"
infra_command = "/bin/sleep 100000"
tmp_dir = "{directory}/tmp"
volume_path = "{directory}/volumes"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{directory}/bin"]
network_config_dir = "{directory}/net.d"
default_network = "pods"
"#,
        directory = directory.display(),
        image = image.name(),
    )
}
