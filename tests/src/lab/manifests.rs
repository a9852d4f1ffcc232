//! The manifests of a lab, written as a person would write them: one directory a cluster, with the others' view in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::LabError;
use super::plan::{NodePlan, cluster_name, cluster_prefixes, service_prefix};
use super::record::{PodRecord, write_aside};

/// The manifests of all clusters of a lab.
pub(super) struct Manifests {
    directory: PathBuf,
    clusters: usize,
    /// Whether any are written.
    written: bool,
}

impl Manifests {
    pub fn new(lab: &Path, clusters: usize, written: bool) -> Self {
        Self { directory: lab.join("manifests"), clusters, written }
    }

    /// The directory of one cluster.
    pub fn of(&self, cluster: usize) -> PathBuf {
        self.directory.join(cluster_name(cluster).as_str())
    }

    /// Makes the directories and what stands in each from the beginning.
    pub fn create(&self) -> Result<(), LabError> {
        for cluster in 1..=self.clusters {
            for directory in self.views(cluster) {
                fs::create_dir_all(&directory)
                    .map_err(|error| LabError::io(format!("making {}", directory.display()), error))?;
            }
            self.write(cluster, "cluster.yaml", &cluster_object(cluster))?;
            self.write(cluster, "namespace-default.yaml", NAMESPACE)?;
        }
        Ok(())
    }

    pub fn write_node(&self, plan: &NodePlan) -> Result<(), LabError> {
        self.write(plan.cluster, &format!("node-{}.yaml", plan.node.id.name), &node_object(plan))
    }

    pub fn remove_node(&self, cluster: usize, name: &str) -> Result<(), LabError> {
        self.remove(cluster, &format!("node-{name}.yaml"))
    }

    pub fn write_pod(&self, cluster: usize, pod: &PodRecord, host: &str) -> Result<(), LabError> {
        self.write(cluster, &format!("pod-{}.yaml", pod.name), &pod_object(pod, host))
    }

    pub fn remove_pod(&self, cluster: usize, name: &str) -> Result<(), LabError> {
        self.remove(cluster, &format!("pod-{name}.yaml"))
    }

    /// The directories in which a cluster is seen: its own, and `clusters/NAME/` in every other's.
    fn views(&self, cluster: usize) -> Vec<PathBuf> {
        let others = (1..=self.clusters).filter(|other| *other != cluster);
        let view = |other| self.of(other).join("clusters").join(cluster_name(cluster).as_str());
        std::iter::once(self.of(cluster)).chain(others.map(view)).collect()
    }

    fn write(&self, cluster: usize, file: &str, text: &str) -> Result<(), LabError> {
        if !self.written {
            return Ok(());
        }
        self.views(cluster).iter().try_for_each(|view| write_aside(&view.join(file), text.as_bytes()))
    }

    fn remove(&self, cluster: usize, file: &str) -> Result<(), LabError> {
        for view in self.views(cluster) {
            match fs::remove_file(view.join(file)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(LabError::io(format!("removing {}", view.join(file).display()), error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

const NAMESPACE: &str = "apiVersion: v1
kind: Namespace
metadata:
  name: default
  labels:
    kubernetes.io/metadata.name: default
";

/// JSON's strings, lists and maps are YAML's in flow style.
fn flow(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| unreachable!("strings have no error"))
}

fn cluster_object(cluster: usize) -> String {
    let prefixes = flow(&cluster_prefixes(cluster));
    let services = flow(&[service_prefix(cluster)]);
    format!(
        "apiVersion: causeway.dev/v1alpha1
kind: Cluster
metadata:
  name: {}
spec:
  id: {cluster}
  region: lab
  podCIDRs: {prefixes}
  serviceCIDRs: {services}
",
        cluster_name(cluster)
    )
}

fn node_object(plan: &NodePlan) -> String {
    let underlay: Vec<_> = plan.node.underlay.iter().map(ToString::to_string).collect();
    let addresses: String =
        underlay.iter().map(|a| format!("  - type: InternalIP\n    address: {}\n", flow(a))).collect();
    format!(
        "apiVersion: v1
kind: Node
metadata:
  name: {}
  annotations:
    causeway.dev/underlay: {}
spec:
  podCIDR: {}
  podCIDRs: {}
status:
  addresses:
{addresses}",
        plan.node.id.name,
        flow(&underlay.join(", ")),
        flow(&plan.node.pod_prefixes[0]),
        flow(&plan.node.pod_prefixes),
    )
}

fn pod_object(pod: &PodRecord, host: &str) -> String {
    let status = match pod.addresses.first() {
        None => "  phase: Pending\n".to_owned(),
        Some(first) => {
            let all: String = pod.addresses.iter().map(|a| format!("  - ip: {}\n", flow(a))).collect();
            format!("  phase: Running\n  hostIP: {}\n  podIP: {}\n  podIPs:\n{all}", flow(&host), flow(first))
        }
    };
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {}
  namespace: {}
  uid: {}
  labels: {}
  annotations: {}
spec:
  nodeName: {}
  containers:
  - name: main
    image: registry.invalid/pause
status:
{status}",
        // A pod may be called y or null.
        flow(&pod.object_name()),
        flow(&pod.namespace),
        flow(&pod.uid),
        flow(&pod.labels),
        flow(&pod.annotations),
        flow(&pod.node),
    )
}
