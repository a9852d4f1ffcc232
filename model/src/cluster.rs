use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::ClusterName;

/// A cluster as the others of its mesh know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its name.
    pub name: ClusterName,
    /// Its number in the mesh; zero is nobody's.
    pub id: u32,
    /// Where it stands, for preferences between clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Every pod address of this cluster lies in one of these; one that is no known endpoint is *unknown*, never *world*.
    pub pod_prefixes: Vec<IpNetwork>,
    /// Every service address of this cluster lies in one of these.
    #[serde(default)]
    pub service_prefixes: Vec<IpNetwork>,
}
