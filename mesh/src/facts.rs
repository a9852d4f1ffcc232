//! What clusters say of their services, as the rest of the crate has it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use causeway_model::{Family, PortProtocol};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

use crate::prefer::Wish;

/// A service's name, the same in every cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceName {
    /// The namespace.
    pub namespace: String,
    /// The name there.
    pub name: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A ServiceExport.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Export {
    /// When it was made: the oldest wins. One that does not say is the youngest.
    pub created: Option<Time>,
    /// Labels that go with it.
    pub labels: BTreeMap<String, String>,
    /// Annotations that go with it.
    pub annotations: BTreeMap<String, String>,
    /// The choice of backends that its annotations suggest.
    pub wish: Wish,
}

/// A Service, as far as others may know of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// What kind of service it is.
    pub kind: ServiceKind,
    /// The families of its addresses, the first one first; none if it does not say.
    pub families: Vec<Family>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// How many seconds a client keeps its backend; `None`: not at all.
    pub affinity: Option<u32>,
    /// `internalTrafficPolicy`.
    pub traffic_policy: TrafficPolicy,
    /// `trafficDistribution`.
    pub distribution: Option<String>,
    /// The choice of backends that its own annotations ask for, for its own cluster.
    pub wish: Wish,
}

/// What kind of service it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// It has an address: ClusterIP, NodePort, LoadBalancer.
    Addressed,
    /// It has none, its pods have names.
    Headless,
    /// It is a name for another name, which cannot be exported.
    External,
}

/// Whom clients of a service get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// All of its backends.
    Cluster,
    /// Those on their own node.
    Local,
}

impl TrafficPolicy {
    /// As the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
        }
    }
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Its name; empty where there is one port and no name for it.
    pub name: String,
    /// The transport.
    pub protocol: PortProtocol,
    /// Its number.
    pub number: u16,
    /// What is spoken there.
    pub app_protocol: Option<String>,
}

impl Port {
    /// What must be equal for two clusters to have the same port.
    pub fn identity(&self) -> (&str, PortProtocol, u16) {
        (&self.name, self.protocol, self.number)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name.is_empty() { "-" } else { &self.name };
        write!(f, "{name}/{}/{}", protocol_text(self.protocol), self.number)
    }
}

/// As Kubernetes writes it.
pub(crate) const fn protocol_text(protocol: PortProtocol) -> &'static str {
    match protocol {
        PortProtocol::Tcp => "TCP",
        PortProtocol::Udp => "UDP",
        PortProtocol::Sctp => "SCTP",
    }
}

/// As Kubernetes writes it.
pub(crate) const fn family_text(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// Whose backends it lists.
    pub service: ServiceName,
    /// The family of all its addresses.
    pub family: Family,
    /// The ports that all of its endpoints serve.
    pub ports: Vec<SlicePort>,
    /// Who serves.
    pub endpoints: Vec<Endpoint>,
}

/// A port as the backends have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the service's port.
    pub name: String,
    /// The transport.
    pub protocol: PortProtocol,
    /// The backends' number for it.
    pub number: u16,
}

/// Who serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses; all lead to the same.
    pub addresses: Vec<IpAddr>,
    /// The name it has in a headless service.
    pub hostname: Option<Arc<str>>,
    /// Whether it takes connections.
    pub state: State,
}

/// Whether a backend takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It does.
    Ready,
    /// It ends what it has, and takes new ones where nobody else does.
    Draining,
    /// It does not.
    Down,
}
