//! Names of files of cases in the model, and pods as policy knows them.

use anyhow::{Context, Result};
use causeway_model::{NodeId, PodName};
use causeway_policy::{NamedPort, NamespaceId, Presence, Workload, WorkloadId};

use super::{Node, Pod, protocol};

/// The cluster that all of it is in.
const CLUSTER: &str = "corpus";

/// A node's name in the model.
pub(crate) fn node_id(name: &str) -> Result<NodeId> {
    Ok(NodeId { cluster: CLUSTER.parse()?, name: name.parse()? })
}

/// A pod's name in the model.
pub(crate) fn pod_id(id: &str) -> Result<WorkloadId> {
    let (namespace, name) = id.split_once('/').with_context(|| format!("{id:?} is no NAMESPACE/NAME"))?;
    let pod = PodName { namespace: namespace.to_owned(), name: name.to_owned() };
    Ok(WorkloadId::Pod(CLUSTER.parse()?, pod))
}

/// A namespace's name in the model.
pub(crate) fn namespace_id(name: &str) -> Result<NamespaceId> {
    Ok(NamespaceId { cluster: CLUSTER.parse()?, name: name.to_owned() })
}

/// A pod as policy knows it, on its node.
pub(crate) fn workload(pod: &Pod, node: &Node) -> Result<Workload> {
    let own = if pod.host_network { &node.ips } else { &pod.ips };
    let ports = pod.ports.iter().map(|port| {
        Ok(NamedPort { name: port.name.clone(), protocol: protocol(&port.protocol)?, port: port.port })
    });
    Ok(Workload {
        labels: pod.labels.clone(),
        addresses: own.iter().copied().collect(),
        ports: ports.collect::<Result<_>>()?,
        presence: if pod.host_network { Presence::HostNetwork } else { Presence::Living },
        // Each node's engine says which are its own.
        local: false,
    })
}
