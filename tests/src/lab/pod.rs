//! Pods: a Kubernetes object, a namespace, and the plugin called exactly as containerd calls it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;

use causeway_model::plugin::Failure;
use causeway_model::{EndpointKey, Family, LinkName};
use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};

use super::record::{DEFAULT, PodRecord};
use super::{Binaries, Datapath, Lab, LabError, Node};
use crate::command;
use crate::namespace::Namespace;

/// The name of the network in every lab's configuration.
const NETWORK: &str = "pods";
/// Where Debian has the plugins of containernetworking.
const PLUGINS: &str = "/usr/lib/cni";

/// A pod as it is asked for.
#[derive(Clone, Debug, Default)]
pub struct PodSpec {
    name: String,
    namespace: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    config: Map<String, Value>,
    args: BTreeMap<String, String>,
}

impl PodSpec {
    /// A pod without labels.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// In another namespace than `default`.
    pub fn within(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// With a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With a key of its network's configuration, as `ipam`.
    pub fn config(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.to_owned(), value);
        self
    }

    /// With one more of the runtime's arguments (CNI_ARGS).
    pub fn arg(mut self, key: &str, value: &str) -> Self {
        self.args.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With a capability that the runtime asks for.
    pub fn capability(mut self, name: &str, value: Value) -> Self {
        let asked = self.config.entry("runtimeConfig").or_insert_with(|| json!({}));
        asked[name] = value;
        self
    }
}

impl From<&str> for PodSpec {
    fn from(name: &str) -> Self {
        Self::named(name)
    }
}

/// A pod of a lab. The value is only a name: dropping it removes nothing.
#[derive(Clone, Debug)]
pub struct Pod {
    /// What was written down about it.
    pub record: PodRecord,
    namespace: Namespace,
}

impl Pod {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its address of one family.
    ///
    /// # Panics
    /// When it has none.
    pub fn address(&self, family: Family) -> IpAddr {
        let found = self.record.addresses.iter().copied().find(|address| Family::of(*address) == family);
        found.unwrap_or_else(|| {
            panic!("pod {} has no {family} address: {:?}", self.name(), self.record.addresses)
        })
    }

    /// What its attachment is known by.
    pub fn key(&self) -> EndpointKey {
        let (network, interface) = (NETWORK.to_owned(), "eth0".to_owned());
        EndpointKey { network, container: self.record.container.clone(), interface }
    }

    /// The name of its link on the node, where it has one.
    pub fn link(&self) -> LinkName {
        self.key().link_name()
    }

    /// Runs a closure on a thread inside the pod: its sockets live there.
    pub fn run<T: Send>(&self, closure: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(closure)
    }

    /// Runs a command inside the pod, given as one line of words, and returns its stdout.
    pub fn exec(&self, words: &str) -> Result<String, LabError> {
        Ok(self.namespace.exec(words)?)
    }

    /// Whether an address answers a ping from here within a second.
    pub fn ping(&self, address: IpAddr) -> bool {
        ping(&self.namespace, address)
    }
}

/// Whether an address answers one of two pings, each within a second.
pub(super) fn ping(from: &Namespace, to: IpAddr) -> bool {
    // On a busy machine one packet more or less says nothing; a way that carries nothing carries neither.
    (0..2).any(|_| from.exec(&format!("ping -n -q -c 1 -W 1 {to}")).is_ok())
}

/// One call of the plugin.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// Any of the specification's.
    pub verb: &'static str,
    /// The container's id.
    pub container: String,
    /// The path of its namespace; containerd says "" when it has gone.
    pub netns: String,
    /// The pod's name in its namespace, and its uid.
    pub pod: Option<(String, String)>,
    /// Its namespace; `default` where it is empty.
    pub namespace: String,
    /// What the ADD returned.
    pub previous: Option<Value>,
    /// The interface's name in the pod; `eth0` where it is empty.
    pub interface: String,
    /// Keys of the network configuration that are not as always, whatever the container's pod has there.
    pub configured: Map<String, Value>,
    /// More of CNI_ARGS.
    pub args: BTreeMap<String, String>,
}

impl Lab {
    /// Adds a pod to a node: its object, its namespace, ADD.
    pub fn add_pod(&self, node: &str, spec: impl Into<PodSpec>) -> Result<Pod, LabError> {
        let node = self.node(node)?;
        let mut pod = self.register_pod(&node, spec.into())?;
        let added = self.plug_in(&node, &mut pod);
        if let Err(error) = added {
            // What containerd does after a failed ADD.
            let unplugged = self.unplug(&node, &pod).err();
            return Err(unplugged.map_or(error, |more| LabError::Several(vec![more])));
        }
        Ok(Pod { namespace: self.namespace(&pod.name), record: pod })
    }

    /// Writes down a new pod, its labels and what a mixed lab makes of it.
    pub(super) fn register_pod(&self, node: &Node, spec: PodSpec) -> Result<PodRecord, LabError> {
        let PodSpec { name, namespace, labels, mut annotations, config, args } = spec;
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let longest = if namespace.is_some() { 63 } else { 40 };
        let dotted = |c: char| good(c) || namespace.is_some() && c == '.';
        if name.is_empty() || name.len() > longest || name == "wire" || !name.chars().all(dotted) {
            return Err(LabError::Refused(format!(
                "pod {name:?}: small letters, digits and '-', 1 to {longest}, not \"wire\""
            )));
        }
        let name = namespace.as_ref().map_or(name.clone(), |namespace| format!("{namespace}.{name}"));
        let namespace = namespace.unwrap_or_else(|| DEFAULT.to_owned());
        self.store.update(|record| {
            if record.pod(&name).is_ok() || record.node(&name).is_ok() {
                let lab = &record.spec.name;
                return Err(LabError::Refused(format!(
                    "pod {name}: lab {lab} has a pod or node of this name"
                )));
            }
            let mixed = record.spec.datapath == Datapath::Mixed;
            if mixed && record.spec.datapath_of(node.plan.number) == Datapath::Fast {
                let before = record.pods.iter().filter(|pod| pod.node == node.name()).count();
                let path = if before.is_multiple_of(2) { "fast" } else { "kernel" };
                annotations.entry("causeway.dev/path".into()).or_insert_with(|| path.into());
            }
            let pod = PodRecord {
                name: name.clone(),
                namespace: namespace.clone(),
                node: node.name().to_owned(),
                uid: uuid(),
                container: hex(64),
                labels,
                annotations,
                config: config.clone(),
                args: args.clone(),
                addresses: Vec::new(),
                result: Value::Null,
            };
            record.pods.push(pod.clone());
            Ok(pod)
        })
    }

    fn plug_in(&self, node: &Node, pod: &mut PodRecord) -> Result<(), LabError> {
        let (manifests, host) = (self.manifests()?, node.plan.node.underlay[0].to_string());
        manifests.write_pod(node.plan.cluster, pod, &host)?;
        let namespace = self.namespace(&pod.name);
        Namespace::create(namespace.name())
            .map_err(|error| LabError::io(format!("making namespace {}", namespace.name()), error))?;
        let result = self.call_plugin(node, &add_call(self, pod))?;
        let addresses =
            result["ips"].as_array().into_iter().flatten().filter_map(|ip| ip["address"].as_str());
        pod.addresses =
            addresses.filter_map(|text| text.parse::<IpNetwork>().ok()).map(|ip| ip.ip()).collect();
        pod.result = result;
        self.store.update(|record| {
            record.pods.retain(|other| other.name != pod.name);
            record.pods.push(pod.clone());
            Ok(())
        })?;
        // What the kubelet does when the sandbox stands.
        manifests.write_pod(node.plan.cluster, pod, &host)
    }

    /// Removes a pod as kubelet and containerd do: DEL with the namespace, the namespace, DEL twice without, the object.
    pub fn del_pod(&self, name: &str) -> Result<(), LabError> {
        let record = self.record()?;
        let pod = record.pod(name)?;
        self.unplug(&self.node(&pod.node)?, pod)
    }

    fn unplug(&self, node: &Node, pod: &PodRecord) -> Result<(), LabError> {
        let previous = (!pod.result.is_null()).then(|| pod.result.clone());
        let first = Call { verb: "DEL", previous, ..add_call(self, pod) };
        self.call_plugin(node, &first)?;
        self.delete_namespace(&pod.name)?;
        let again = Call { netns: String::new(), previous: None, ..first };
        self.call_plugin(node, &again)?;
        self.call_plugin(node, &again)?;
        self.manifests()?.remove_pod(node.plan.cluster, &pod.name)?;
        self.store.update(|record| {
            record.pods.retain(|other| other.name != pod.name);
            Ok(())
        })
    }

    /// The call that adds a pod, to be changed by a story.
    pub fn call(&self, verb: &'static str, pod: &Pod) -> Call {
        let previous = (verb != "ADD").then(|| pod.record.result.clone());
        Call { verb, previous, ..add_call(self, &pod.record) }
    }

    /// Changes an annotation of a pod's object.
    pub fn annotate(&self, pod: &str, key: &str, value: &str) -> Result<(), LabError> {
        self.store.update(|record| {
            record.pod(pod)?;
            for pod in record.pods.iter_mut().filter(|record| record.name == pod) {
                pod.annotations.insert(key.to_owned(), value.to_owned());
            }
            Ok(())
        })?;
        let record = self.record()?;
        let pod = record.pod(pod)?;
        let node = self.node(&pod.node)?;
        self.manifests()?.write_pod(node.plan.cluster, pod, &node.plan.node.underlay[0].to_string())
    }

    /// A pod by name.
    pub fn pod(&self, name: &str) -> Result<Pod, LabError> {
        let record = self.record()?.pod(name)?.clone();
        Ok(Pod { namespace: self.namespace(name), record })
    }

    /// The plugin as containerd would execute it inside a node, and what it gets on stdin.
    pub fn plugin(&self, node: &Node, call: &Call) -> Result<(Command, Value), LabError> {
        let binaries = Binaries::find()?;
        let mut command = Command::new(binaries.get("causeway-cni")?);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("CNI_COMMAND", call.verb).env("CNI_CONTAINERID", &call.container);
        let path = format!("{}:{}:{PLUGINS}", node.plugins().display(), binaries.directory().display());
        let interface = if call.interface.is_empty() { "eth0" } else { &call.interface };
        command.env("CNI_NETNS", &call.netns).env("CNI_IFNAME", interface).env("CNI_PATH", path);
        if let Some((name, uid)) = &call.pod {
            command.env("CNI_ARGS", cni_args(name, uid, call));
        }
        let mut config = plugin_config(node);
        // A runtime says the same on every call.
        let said = self.record()?.pods.into_iter().find(|pod| pod.container == call.container);
        let said = said.map(|pod| pod.config).unwrap_or_default();
        for (key, value) in said {
            config[key] = value;
        }
        if let Some(previous) = &call.previous {
            config["prevResult"] = previous.clone();
        }
        for (key, value) in &call.configured {
            config[key] = value.clone();
        }
        Ok((command, config))
    }

    /// Calls the plugin as containerd would, inside the node, and returns its result.
    pub fn call_plugin(&self, node: &Node, call: &Call) -> Result<Value, LabError> {
        let (mut command, config) = self.plugin(node, call)?;
        let output = node.run(|| command::output(&mut command, config.to_string().as_bytes()))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            // DEL has nothing to say.
            return Ok(serde_json::from_str(&said).unwrap_or(Value::Null));
        }
        let pod = call.pod.as_ref().map_or_else(String::new, |(name, _)| name.clone());
        let failure = serde_json::from_str(&said).unwrap_or_else(|_| {
            let complaint = String::from_utf8_lossy(&output.stderr);
            Failure::new(0, format!("no CNI error on stdout but {said:?}; stderr: {complaint}"))
        });
        Err(LabError::Cni { verb: call.verb, pod, failure })
    }

    /// Where a node's network configuration is.
    pub fn conflist_file(&self, node: &Node) -> std::path::PathBuf {
        node.directory().join("net.d/10-causeway.conflist")
    }

    /// A node's network configuration, as a runtime reads it.
    pub(super) fn conflist(&self, node: &Node) -> Value {
        json!({"cniVersion": "1.1.0", "name": NETWORK, "plugins": [plugin_entry(node)]})
    }
}

fn plugin_entry(node: &Node) -> Value {
    let socket = node.directory().join("run/cni.sock");
    let tombstones = node.directory().join("state/tombstones");
    json!({"type": "causeway-cni", "causeway": {"socket": socket, "tombstones": tombstones}})
}

/// What a runtime makes of a conflist for one plugin.
fn plugin_config(node: &Node) -> Value {
    let mut config = plugin_entry(node);
    config["cniVersion"] = "1.1.0".into();
    config["name"] = NETWORK.into();
    config
}

fn add_call(lab: &Lab, pod: &PodRecord) -> Call {
    Call {
        verb: "ADD",
        container: pod.container.clone(),
        netns: format!("/var{}", lab.namespace(&pod.name).path().display()),
        pod: Some((pod.object_name().to_owned(), pod.uid.clone())),
        namespace: pod.namespace.clone(),
        args: pod.args.clone(),
        ..Call::default()
    }
}

/// CNI_ARGS as containerd 1.6 and 2.3 write them: in another order on each call.
fn cni_args(name: &str, uid: &str, call: &Call) -> String {
    let namespace = if call.namespace.is_empty() { DEFAULT } else { &call.namespace };
    let mut args = vec![
        "IgnoreUnknown=1".to_owned(),
        format!("K8S_POD_NAMESPACE={namespace}"),
        format!("K8S_POD_NAME={name}"),
        format!("K8S_POD_INFRA_CONTAINER_ID={}", call.container),
        format!("K8S_POD_UID={uid}"),
    ];
    args.extend(call.args.iter().map(|(key, value)| format!("{key}={value}")));
    fastrand::shuffle(&mut args);
    args.join(";")
}

fn hex(digits: usize) -> String {
    std::iter::repeat_with(|| fastrand::digit(16)).take(digits).collect()
}

fn uuid() -> String {
    [8, 4, 4, 4, 12].map(hex).join("-")
}
