//! Pods that a container runtime plugs in: the lab only writes their objects.

use super::pod::PodSpec;
use super::record::PodRecord;
use super::{Lab, LabError};

impl Lab {
    /// Writes the object of a pod that somebody else is about to start on a node.
    pub fn announce_pod(&self, node: &str, spec: impl Into<PodSpec>) -> Result<PodRecord, LabError> {
        let node = self.node(node)?;
        let pod = self.register_pod(&node, spec.into())?;
        self.manifests()?.write_pod(node.plan.cluster, &pod, &node.plan.node.underlay[0].to_string())?;
        Ok(pod)
    }

    /// Removes the object of a pod that was announced.
    pub fn retract_pod(&self, name: &str) -> Result<(), LabError> {
        let record = self.record()?;
        let cluster = record.node(&record.pod(name)?.node)?.cluster;
        self.manifests()?.remove_pod(cluster, name)?;
        self.store.update(|record| {
            record.pods.retain(|pod| pod.name != name);
            Ok(())
        })
    }
}
