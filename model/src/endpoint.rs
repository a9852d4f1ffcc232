use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::hash::fnv1a;
use crate::policy::Tables;
use crate::{Bandwidth, Family, MacAddr, PortMapping};

/// What an attachment is known by (CNI 1.1.0 §2): never a pod name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EndpointKey {
    /// The network configuration's name.
    pub network: String,
    /// The container id the runtime gave.
    pub container: String,
    /// The interface's name inside the container.
    pub interface: String,
}

impl EndpointKey {
    /// The name of this attachment's link on the node: `cwp` and 48 bits of hash. Recomputed, never stored, so that a node
    /// can be cleaned without any record.
    pub fn link_name(&self) -> LinkName {
        self.derived(LinkName::POD_PREFIX)
    }

    /// The name of the device in which the kernel holds back what this attachment sends too fast; the digits are those of
    /// its link.
    pub fn limit_name(&self) -> LinkName {
        self.derived(LinkName::LIMIT_PREFIX)
    }

    fn derived(&self, prefix: &str) -> LinkName {
        let hash = fnv1a([self.network.as_str(), &self.container, &self.interface]);
        LinkName(format!("{prefix}{:012x}", (hash ^ (hash >> 48)) & 0xffff_ffff_ffff))
    }
}

impl fmt::Display for EndpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Twelve digits tell containers apart for a reader, as `crictl` and `podman` print them.
        write!(f, "{}/{:.12}/{}", self.network, self.container, self.interface)
    }
}

/// The name of a network interface of ours on the node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LinkName(String);

impl LinkName {
    /// What the names of all pod links begin with; a packet from such a link without an endpoint is refused.
    pub const POD_PREFIX: &'static str = "cwp";
    /// What the names of all devices begin with in which packets from pods are held back.
    pub const LIMIT_PREFIX: &'static str = "cwb";

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A pod's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodName {
    /// The Kubernetes namespace.
    pub namespace: String,
    /// The pod's name there.
    pub name: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which data path carries an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// The DPDK process.
    Fast,
    /// The Linux kernel.
    Kernel,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Path::Fast => "fast",
            Path::Kernel => "kernel",
        })
    }
}

/// What an endpoint hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortKind {
    /// A TAP in the pod whose other side is the fast path.
    Tap,
    /// A veth pair whose other end is in the node's namespace.
    Veth,
}

impl fmt::Display for PortKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PortKind::Tap => "tap",
            PortKind::Veth => "veth",
        })
    }
}

/// An interned set of labels of one cluster. The number is local to a node and never on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Identity(pub u32);

impl Identity {
    /// This node's own stack.
    pub const HOST: Identity = Identity(1);
    /// Another node's own stack.
    pub const REMOTE_HOST: Identity = Identity(2);
    /// Anything outside all known clusters.
    pub const WORLD: Identity = Identity(3);
    /// Inside a known cluster's prefix, but no known endpoint: never taken for the world.
    pub const UNKNOWN: Identity = Identity(4);
    /// The first number that labels may be given.
    pub const FIRST_INTERNED: u32 = 256;
}

/// One attachment of one container to one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// What it is known by.
    pub key: EndpointKey,
    /// The pod it belongs to, where the runtime said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodName>,
    /// Its addresses, at most one of each family, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Where its routes lead, all of them over our gateway; everywhere when it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<IpNetwork>>,
    /// Its hardware address.
    pub mac: MacAddr,
    /// The MTU of its interface.
    pub mtu: u16,
    /// The labels selectors see.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What its labels were interned as.
    pub identity: Identity,
    /// The data path that carries it.
    pub path: Path,
    /// Why that one.
    pub path_reason: String,
    /// What it hangs on.
    pub port: PortKind,
    /// The ports of the node that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// How fast it may be.
    #[serde(default, skip_serializing_if = "Bandwidth::is_none")]
    pub bandwidth: Bandwidth,
    /// It neither begins nor takes new connections; those that it has go on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deny_new: bool,
    /// What policy lets it begin and take.
    #[serde(default, skip_serializing_if = "Tables::is_default")]
    pub policy: Tables,
}

impl Endpoint {
    /// Its address of one family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| Family::of(*address) == family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(container: &str, interface: &str) -> EndpointKey {
        EndpointKey { network: "pods".into(), container: container.into(), interface: interface.into() }
    }

    #[test]
    fn link_names_fit_the_kernel_and_tell_attachments_apart() {
        let name = key(&"a".repeat(64), "eth0").link_name();
        assert_eq!(name.as_str().len(), 15, "IFNAMSIZ less the final zero");
        assert_ne!(name, key(&"a".repeat(64), "net1").link_name());
        assert_ne!(key("ab", "c").link_name(), key("a", "bc").link_name());
    }
}
