//! Objects as they are written, and the one door through which they become nouns.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use causeway_mesh::api;
use causeway_model::{Cluster, ClusterName, MacAddr, NodeId, NodeName, PodName};
use causeway_policy::{PolicyKind, Read};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use super::offers::Offer;
use super::world::PodObject;
use crate::config::PathWish;

/// A kind of object that is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Cluster,
    Node,
    Namespace,
    Pod,
    Policy(PolicyKind),
    Service,
    EndpointSlice,
    ServiceExport,
    ServiceImport,
}

impl Kind {
    /// Every kind.
    pub fn all() -> impl Iterator<Item = Kind> {
        let own = [Kind::Cluster, Kind::Node, Kind::Namespace, Kind::Pod, Kind::Service, Kind::EndpointSlice];
        own.into_iter()
            .chain([Kind::ServiceExport, Kind::ServiceImport])
            .chain(PolicyKind::ALL.map(Kind::Policy))
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Cluster => "Cluster",
            Kind::Node => "Node",
            Kind::Namespace => "Namespace",
            Kind::Pod => "Pod",
            Kind::Policy(kind) => kind.as_str(),
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::ServiceExport => api::SERVICE_EXPORT,
            Kind::ServiceImport => api::SERVICE_IMPORT,
        }
    }

    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Cluster => "causeway.dev/v1alpha1",
            Kind::Node | Kind::Namespace | Kind::Pod | Kind::Service => "v1",
            Kind::EndpointSlice => "discovery.k8s.io/v1",
            Kind::ServiceExport | Kind::ServiceImport => api::API_VERSION,
            Kind::Policy(kind) => kind.api_version(),
        }
    }
}

/// What an object is known by within its cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ObjectKey {
    pub kind: Kind,
    /// Empty for kinds that have none.
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind.as_str(), self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind.as_str(), self.name),
        }
    }
}

/// An object that went through the door; whose cluster it is, its place tells.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Object {
    Cluster {
        cluster: Cluster,
        created: Option<Time>,
        revision: Option<String>,
    },
    Node(WrittenNode),
    Namespace {
        labels: BTreeMap<String, String>,
    },
    Pod(PodObject),
    Policy(Arc<Read>),
    /// What a node makes of a service, and what other clusters do.
    Served(Arc<causeway_services::Read>, Offer),
    Offer(Offer),
}

/// A Node object without its cluster.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WrittenNode {
    pub name: NodeName,
    pub underlay: Vec<IpAddr>,
    pub pod_prefixes: Vec<IpNetwork>,
    pub labels: BTreeMap<String, String>,
    pub created: Option<Time>,
}

impl WrittenNode {
    pub fn id_in(&self, cluster: &ClusterName) -> NodeId {
        NodeId { cluster: cluster.clone(), name: self.name.clone() }
    }
}

/// Leads a document of a known kind through the door.
pub(super) fn read(kind: Kind, value: Value) -> Result<Object, String> {
    match kind {
        Kind::Cluster => read_cluster(typed(value)?),
        Kind::Node => read_node(typed(value)?).map(Object::Node),
        Kind::Namespace => {
            let namespace: Namespace = typed(value)?;
            Ok(Object::Namespace { labels: namespace.metadata.labels.unwrap_or_default() })
        }
        Kind::Pod => typed::<Pod>(value).map(|pod| Object::Pod(PodObject::new(Arc::new(pod)))),
        Kind::Policy(_) => match causeway_policy::read(&value) {
            Ok(read) => Ok(Object::Policy(Arc::new(read))),
            Err(error) => Err(error.to_string()),
        },
        Kind::Service | Kind::EndpointSlice => match causeway_services::read(&value) {
            Ok(read) => Ok(Object::Served(Arc::new(read), Offer::of_service(kind, value))),
            Err(error) => Err(error.to_string()),
        },
        Kind::ServiceExport | Kind::ServiceImport => Offer::of_mesh(&value).map(Object::Offer),
    }
}

/// A document as a type; the error names the field.
pub(super) fn typed<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| match error.path().to_string().as_str() {
        "." => error.inner().to_string(),
        path => format!("{path}: {}", error.inner()),
    })
}

#[derive(Deserialize)]
struct WrittenCluster {
    metadata: ObjectMeta,
    spec: ClusterSpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterSpec {
    id: u32,
    region: Option<String>,
    #[serde(rename = "podCIDRs", default)]
    pod_prefixes: Vec<String>,
    #[serde(rename = "serviceCIDRs", default)]
    service_prefixes: Vec<String>,
}

fn read_cluster(written: WrittenCluster) -> Result<Object, String> {
    let name = written.metadata.name.unwrap_or_default();
    let cluster = Cluster {
        name: ClusterName::try_from(name).map_err(|error| error.to_string())?,
        id: written.spec.id,
        region: written.spec.region,
        pod_prefixes: prefixes("spec.podCIDRs", &written.spec.pod_prefixes)?,
        service_prefixes: prefixes("spec.serviceCIDRs", &written.spec.service_prefixes)?,
    };
    let annotations = written.metadata.annotations.unwrap_or_default();
    let revision = annotations.get("causeway.dev/revision").cloned();
    Ok(Object::Cluster { cluster, created: written.metadata.creation_timestamp, revision })
}

fn read_node(node: Node) -> Result<WrittenNode, String> {
    let name = node.metadata.name.clone().unwrap_or_default();
    let spec = node.spec.clone().unwrap_or_default();
    let pod_prefixes = match spec.pod_cidrs {
        Some(many) if !many.is_empty() => prefixes("spec.podCIDRs", &many)?,
        _ => prefixes("spec.podCIDR", spec.pod_cidr.as_slice())?,
    };
    Ok(WrittenNode {
        name: NodeName::try_from(name).map_err(|error| error.to_string())?,
        underlay: underlay(&node)?,
        pod_prefixes,
        labels: node.metadata.labels.clone().unwrap_or_default(),
        created: node.metadata.creation_timestamp,
    })
}

/// A node's own addresses: what our annotation says, else its InternalIPs.
fn underlay(node: &Node) -> Result<Vec<IpAddr>, String> {
    const ANNOTATION: &str = "causeway.dev/underlay";
    let annotation = node.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION));
    let (place, texts): (_, Vec<&str>) = match annotation {
        Some(list) => (format!("annotation {ANNOTATION}"), list.split(',').map(str::trim).collect()),
        None => {
            let addresses =
                node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
            let internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
            ("status.addresses".to_owned(), internal.map(|address| address.address.as_str()).collect())
        }
    };
    let mut found = Vec::new();
    for text in texts {
        let address = unicast(text).map_err(|error| format!("{place}: {error}"))?;
        if !found.contains(&address) {
            found.push(address);
        }
    }
    Ok(found)
}

/// An address that a machine can be reached at from another.
fn unicast(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is not an IP address"))?;
    match never_routed().into_iter().find(|(range, _)| range.contains(address)) {
        Some((range, what)) => Err(format!("{address} is {what} ({range})")),
        None => Ok(address),
    }
}

/// Ranges that no pod and no node can be reached at. Gateways of ours are among them.
fn never_routed() -> [(IpNetwork, &'static str); 8] {
    let range = |address: IpAddr, length| {
        IpNetwork::new(address, length)
            .unwrap_or_else(|_| unreachable!("the lengths are within their families"))
    };
    [
        (range(IpAddr::from([0, 0, 0, 0]), 8), "of \"this network\""),
        (range(IpAddr::from([127, 0, 0, 0]), 8), "loopback"),
        (range(IpAddr::from([169, 254, 0, 0]), 16), "link-local"),
        (range(IpAddr::from([224, 0, 0, 0]), 3), "multicast or reserved"),
        (range(IpAddr::from([0u16; 8]), 96), "unspecified, loopback or of the old transition"),
        (range(IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0, 0]), 96), "IPv4 in IPv6's clothes"),
        (range(IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 0]), 10), "link-local"),
        (range(IpAddr::from([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8), "multicast"),
    ]
}

fn prefixes(place: &str, texts: &[String]) -> Result<Vec<IpNetwork>, String> {
    texts.iter().map(|text| prefix(text).map_err(|error| format!("{place}: {error}"))).collect()
}

/// A prefix of addresses that can be routed, written with its length and without host bits.
pub(crate) fn prefix(text: &str) -> Result<IpNetwork, String> {
    let parsed = text.split_once('/').and_then(|(address, length)| {
        let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
        let address: IpAddr = address.parse().ok()?;
        digits.then(|| IpNetwork::new(address, length.parse().ok()?).ok()).flatten()
    });
    let prefix =
        parsed.ok_or_else(|| format!("{text:?} is not a prefix such as 10.70.1.0/24 or fd70:0:0:1::/64"))?;
    let network = prefix.network();
    if prefix.ip() != network {
        return Err(format!(
            "{text} has host bits set (the prefix of that address is {network}/{})",
            prefix.prefix()
        ));
    }
    let overlaps = |range: &IpNetwork| range.contains(network) || prefix.contains(range.network());
    match never_routed().into_iter().find(|(range, _)| overlaps(range)) {
        Some((range, what)) => Err(format!("{prefix} overlaps {range}, which is {what}")),
        None => Ok(prefix),
    }
}

/// A pod's annotation that cannot be honoured. The pod itself is known all the same.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("annotation {annotation}: {reason}")]
pub struct InvalidPod {
    annotation: &'static str,
    reason: String,
}

impl PodObject {
    /// Which data path the pod asks for, if it does (`causeway.dev/path`).
    pub fn path_wish(&self) -> Result<Option<PathWish>, InvalidPod> {
        self.annotated("causeway.dev/path", |text| {
            text.parse().map_err(|e: crate::config::NoSuchPath| e.to_string())
        })
    }

    /// Whether the pod shall neither begin nor take new connections (`causeway.dev/deny-new`).
    pub fn denies_new(&self) -> Result<bool, InvalidPod> {
        let denies = self.annotated("causeway.dev/deny-new", |text| {
            text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
        })?;
        Ok(denies.unwrap_or(false))
    }

    /// The addresses the pod asks for (`causeway.dev/addresses`): at most one of a family, IPv4 first; empty when it asks for none.
    pub fn wanted_addresses(&self) -> Result<Vec<IpAddr>, InvalidPod> {
        let addresses = self.annotated("causeway.dev/addresses", |text| {
            let mut addresses =
                text.split(',').map(|one| unicast(one.trim())).collect::<Result<Vec<_>, _>>()?;
            addresses.sort();
            match addresses.windows(2).find(|two| two[0].is_ipv4() == two[1].is_ipv4()) {
                Some(two) => Err(format!("{} and {} are of one family", two[0], two[1])),
                None => Ok(addresses),
            }
        })?;
        Ok(addresses.unwrap_or_default())
    }

    /// The hardware address the pod asks for, if it does (`causeway.dev/mac`).
    pub fn wanted_mac(&self) -> Result<Option<MacAddr>, InvalidPod> {
        self.annotated("causeway.dev/mac", |text| {
            let mac: MacAddr = text.parse().map_err(|_| format!("{text:?} is not a hardware address"))?;
            if mac.is_multicast() || mac == MacAddr::ZERO {
                Err(format!("{mac} is not the address of one host"))
            } else {
                Ok(mac)
            }
        })
    }

    fn annotated<T>(
        &self,
        annotation: &'static str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, InvalidPod> {
        let text = self.object().metadata.annotations.as_ref().and_then(|all| all.get(annotation));
        text.map(|text| read(text.trim())).transpose().map_err(|reason| InvalidPod { annotation, reason })
    }

    /// Every annotation that cannot be honoured.
    pub(super) fn refusals(&self) -> Vec<InvalidPod> {
        [self.path_wish().err(), self.wanted_addresses().err(), self.wanted_mac().err()]
            .into_iter()
            .flatten()
            .collect()
    }

    /// Namespace and name.
    pub fn name(&self) -> PodName {
        let metadata = &self.object().metadata;
        let namespace = metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
        PodName { namespace, name: metadata.name.clone().unwrap_or_default() }
    }
}
