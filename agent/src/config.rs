//! The agent's one configuration file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use causeway_mesh::Namespaces;
use causeway_model::connection::{ConnectionRules, Timeout, Timeouts};
use causeway_model::{
    DEFAULT_VNI, GATEWAY_V4, IpNetwork, Masquerade, NameServer, NodeName, Overlay, VXLAN_PORT, Vni,
};
use serde::Deserialize;
use thiserror::Error;

use crate::sources::{self, yaml};

/// What may be asked for where a data path is chosen: for the node, for new endpoints, for one pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathWish {
    /// The fast path where it can be had, else the kernel.
    #[default]
    Auto,
    /// The fast path.
    Fast,
    /// The kernel.
    Kernel,
}

impl fmt::Display for PathWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PathWish::Auto => "auto",
            PathWish::Fast => "fast",
            PathWish::Kernel => "kernel",
        })
    }
}

/// A word that is no data path.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no data path; allowed: auto, fast, kernel")]
pub struct NoSuchPath(String);

impl FromStr for PathWish {
    type Err = NoSuchPath;

    fn from_str(word: &str) -> Result<Self, NoSuchPath> {
        let all = [PathWish::Auto, PathWish::Fast, PathWish::Kernel];
        all.into_iter().find(|wish| wish.to_string() == word).ok_or_else(|| NoSuchPath(word.to_owned()))
    }
}

/// Who shall keep services in the node's own stack: for its processes, and for clients from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServicesWish {
    /// We, unless kube-proxy does.
    #[default]
    Auto,
    /// We.
    Own,
    /// Somebody else.
    Defer,
}

impl fmt::Display for ServicesWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ServicesWish::Auto => "auto",
            ServicesWish::Own => "own",
            ServicesWish::Defer => "defer",
        })
    }
}

/// A feature of the kernel that the agent uses where it is there, and does without where it is not or is masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelFeature {
    /// `IFLA_VXLAN_RESERVED_BITS`: reserved bits of received VXLAN headers are ignored (Linux 6.14).
    VxlanReservedBits,
    /// `TUN_F_UDP_TUNNEL_GSO`: tunnel frames of up to 64 KiB through a TAP (Linux 6.17).
    TunUdpTunnelGso,
}

/// What the agent was told, with every default filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node's name.
    pub node: NodeName,
    /// The directory of manifests.
    pub manifests: PathBuf,
    /// The directory statuses are written to.
    pub status: PathBuf,
    /// The directory of what survives a reboot.
    pub state: PathBuf,
    /// The directory of what does not.
    pub run: PathBuf,
    /// Where the plugin asks.
    pub cni_socket: PathBuf,
    /// Where the operator asks.
    pub api_socket: PathBuf,
    /// Where the fast path is met.
    pub fastpath_socket: PathBuf,
    /// Queues of every TAP of the fast path.
    pub fastpath_queues: u16,
    /// The device of DPDK that the fast path takes tunnel frames from and sends them by; without it the kernel routes them.
    pub fastpath_uplink: Option<String>,
    /// Where the plugin leaves word of deletions while the agent is dead.
    pub tombstones: PathBuf,
    /// The interface that carries the tunnel; without it, the one that has the node's address.
    pub uplink: Option<String>,
    /// The data path of this node.
    pub datapath: PathWish,
    /// What pods get that do not say.
    pub default_path: PathWish,
    /// Network identifier and port, equal across a mesh.
    pub overlay: Overlay,
    /// The MTU of pods; without it, the uplink's less the tunnel's overhead.
    pub mtu: Option<u16>,
    /// Where the metrics page is served; nowhere when `null`.
    pub metrics: Option<SocketAddr>,
    /// How connections are kept, where it is not as everywhere.
    pub connections: ConnectionRules,
    /// Where flows are written.
    pub flow_file: Option<FlowFile>,
    /// Who keeps services in the node's own stack.
    pub services: ServicesWish,
    /// Which packets of pods leave the node with an address of the node's; none: no packets.
    pub masquerade: Option<Masquerade>,
    /// Where names of the mesh are answered.
    pub names: NameServer,
    /// Where the API server answers, for as long as no slice says so.
    pub api_servers: Vec<SocketAddr>,
    /// Services across clusters.
    pub mesh: causeway_mesh::Config,
    /// Kernel features to do without.
    pub mask: BTreeSet<KernelFeature>,
}

/// A file of flows, and one that was full before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowFile {
    /// The file; the one before it ends in `.1.jsonl`.
    pub path: PathBuf,
    /// How many bytes it may have.
    pub most: u64,
}

/// A configuration that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("reading configuration {}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Its cause.
        #[source]
        source: std::io::Error,
    },
    /// The text names file, place, key, and what is allowed there.
    #[error("{0}")]
    Invalid(String),
    /// The machine's name is of no use and no other is given.
    #[error("{file}: node: not given, and the machine's name does not do: {reason}")]
    NoNodeName {
        /// The file.
        file: String,
        /// What is wrong with the machine's name.
        reason: String,
    },
}

/// The keys of the file and what each may hold.
const KEYS: &[(&str, &str)] = &[
    ("node", "the name of this node's Node object"),
    ("manifests", "an absolute path"),
    ("status", "an absolute path"),
    ("state", "an absolute path"),
    ("run", "an absolute path"),
    ("cni_socket", "an absolute path"),
    ("api_socket", "an absolute path"),
    ("fastpath_socket", "an absolute path"),
    ("fastpath_queues", "a number from 1 to 16"),
    ("fastpath_uplink", "a device as DPDK takes it, as in net_af_packet0,iface=eth1"),
    ("tombstones", "an absolute path"),
    ("uplink", "the name of a network interface, 1 to 15 characters"),
    ("datapath", "auto, fast, kernel"),
    ("default_path", "auto, fast, kernel"),
    ("vni", "a number from 1 to 16777215"),
    ("port", "a UDP port from 1 to 65535"),
    ("mtu", "a number from 576 to 65535"),
    ("metrics", "an address and a TCP port, as in 127.0.0.1:9717, or null for no metrics page"),
    ("connection_timeouts", "seconds from 1 to 1209600 by state, as in {tcp-established: 86400, udp: 30}"),
    ("connections_per_endpoint", "a number from 1 to 16777216"),
    ("flow_file", "an absolute path"),
    ("flow_file_mib", "a number from 1 to 65535"),
    ("services", "auto, own, defer"),
    ("masquerade", "true, false"),
    ("masquerade_except", "a list of prefixes, as in [10.0.0.0/8, \"fd00::/8\"]"),
    ("api_servers", "a list of addresses and ports, as in [192.0.2.5:6443]"),
    ("clusterset_cidr", "a list of prefixes that do not overlap, as in [172.30.0.0/16, \"fd30::/112\"]"),
    ("export_namespaces", "a list of namespaces, as in [shop]; without it all but kube-system"),
    ("import_namespaces", "a list of namespaces, as in [shop]; without it all but kube-system"),
    (
        "clusterset_dns",
        "a list of one link-local IPv4 address, one unique local IPv6 address (fc00::/7), or both, as in [169.254.53.53]",
    ),
    ("mask", "a list of vxlan-reserved-bits, tun-udp-tunnel-gso"),
];

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    node: Option<NodeName>,
    manifests: Option<AbsolutePath>,
    status: Option<AbsolutePath>,
    state: Option<AbsolutePath>,
    run: Option<AbsolutePath>,
    cni_socket: Option<AbsolutePath>,
    api_socket: Option<AbsolutePath>,
    fastpath_socket: Option<AbsolutePath>,
    fastpath_queues: Option<Within<1, 16>>,
    fastpath_uplink: Option<DeviceArguments>,
    tombstones: Option<AbsolutePath>,
    uplink: Option<InterfaceName>,
    #[serde(default)]
    datapath: PathWish,
    #[serde(default)]
    default_path: PathWish,
    vni: Option<Within<1, { (1 << 24) - 1 }>>,
    port: Option<Within<1, 65_535>>,
    mtu: Option<Within<576, 65_535>>,
    #[serde(default = "metrics_default")]
    metrics: Option<SocketAddr>,
    #[serde(default)]
    connection_timeouts: BTreeMap<Timeout, Within<1, { Timeouts::LONGEST }>>,
    connections_per_endpoint: Option<Within<1, { 1 << 24 }>>,
    flow_file: Option<AbsolutePath>,
    flow_file_mib: Option<Within<1, 65_535>>,
    #[serde(default)]
    services: ServicesWish,
    masquerade: Option<bool>,
    #[serde(default)]
    masquerade_except: Vec<IpNetwork>,
    #[serde(default)]
    api_servers: Vec<SocketAddr>,
    #[serde(default)]
    clusterset_cidr: ClustersetPrefixes,
    export_namespaces: Option<BTreeSet<String>>,
    import_namespaces: Option<BTreeSet<String>>,
    clusterset_dns: Option<NameAddresses>,
    #[serde(default)]
    mask: BTreeSet<KernelFeature>,
}

fn metrics_default() -> Option<SocketAddr> {
    Some(SocketAddr::from(([127, 0, 0, 1], 9717)))
}

#[derive(Deserialize)]
#[serde(try_from = "PathBuf")]
struct AbsolutePath(PathBuf);

impl TryFrom<PathBuf> for AbsolutePath {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<Self, String> {
        if path.is_absolute() { Ok(Self(path)) } else { Err(format!("{path:?} is not an absolute path")) }
    }
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct DeviceArguments(String);

impl TryFrom<String> for DeviceArguments {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let good = !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
        if good { Ok(Self(text)) } else { Err(format!("{text:?} cannot be a device's arguments")) }
    }
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct InterfaceName(String);

impl TryFrom<String> for InterfaceName {
    type Error = String;

    // What the kernel's dev_valid_name() takes.
    fn try_from(name: String) -> Result<Self, String> {
        let odd = |c: char| c == '/' || c == ':' || c.is_ascii_whitespace();
        let good = (1..=15).contains(&name.len()) && name != "." && name != ".." && !name.contains(odd);
        if good { Ok(Self(name)) } else { Err(format!("{name:?} cannot be the name of an interface")) }
    }
}

/// Prefixes of addresses that can be routed, none of which has an address of another.
#[derive(Default, Deserialize)]
#[serde(try_from = "Vec<String>")]
struct ClustersetPrefixes(Vec<IpNetwork>);

impl TryFrom<Vec<String>> for ClustersetPrefixes {
    type Error = String;

    fn try_from(texts: Vec<String>) -> Result<Self, String> {
        let mut prefixes: Vec<IpNetwork> = Vec::new();
        for text in texts {
            let prefix = sources::prefix(&text)?;
            let overlaps =
                |other: &&IpNetwork| other.contains(prefix.network()) || prefix.contains(other.network());
            if let Some(other) = prefixes.iter().find(overlaps) {
                return Err(format!("{prefix} overlaps {other}"));
            }
            prefixes.push(prefix);
        }
        Ok(Self(prefixes))
    }
}

/// Addresses that are nobody's but this node's.
#[derive(Deserialize)]
#[serde(try_from = "Vec<IpAddr>")]
struct NameAddresses(Vec<IpAddr>);

impl TryFrom<Vec<IpAddr>> for NameAddresses {
    type Error = String;

    fn try_from(addresses: Vec<IpAddr>) -> Result<Self, String> {
        let is_good = |address: &IpAddr| match address {
            IpAddr::V4(address) => address.is_link_local() && *address != GATEWAY_V4,
            IpAddr::V6(address) => address.is_unique_local(),
        };
        if let Some(bad) = addresses.iter().find(|address| !is_good(address)) {
            return Err(format!("{bad} cannot be every node's own"));
        }
        match &addresses[..] {
            [a, b] if a.is_ipv4() == b.is_ipv4() => Err(format!("{a} and {b} are of one family")),
            [_, _, _, ..] => Err(format!("{} addresses are too many", addresses.len())),
            _ => Ok(Self(addresses)),
        }
    }
}

/// A number from `LEAST` to `MOST`.
#[derive(Deserialize)]
#[serde(try_from = "i64")]
struct Within<const LEAST: u32, const MOST: u32>(u32);

impl<const LEAST: u32, const MOST: u32> TryFrom<i64> for Within<LEAST, MOST> {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        let within = u32::try_from(number).ok().filter(|n| (LEAST..=MOST).contains(n));
        within.map(Self).ok_or_else(|| format!("{number} is out of range"))
    }
}

impl Config {
    /// Reads a configuration file.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| ConfigError::Unreadable { file: file.to_owned(), source })?;
        Self::from_yaml(&file.display().to_string(), &text)
    }

    /// Reads a configuration from text; `file` is what errors call it. An empty text is the configuration of all defaults.
    pub fn from_yaml(file: &str, text: &str) -> Result<Self, ConfigError> {
        let mut track = serde_path_to_error::Track::new();
        let written = serde_saphyr::with_deserializer_from_str(text, |deserializer| {
            Written::deserialize(serde_path_to_error::Deserializer::new(deserializer, &mut track))
        });
        let written = written.map_err(|error| invalid(file, &track.path().to_string(), &error))?;
        written.resolve(file)
    }
}

/// An error in the words of whoever wrote the file.
fn invalid(file: &str, key: &str, error: &serde_saphyr::Error) -> ConfigError {
    let (position, message) = yaml::split(error);
    let name = key.split(['[', '.']).next().unwrap_or_default();
    let text = match KEYS.iter().find(|(known, _)| *known == name) {
        Some((_, allowed)) => format!("{file}{position}: {key}: {message}; allowed: {allowed}"),
        None => format!("{file}{position}: {message}"),
    };
    ConfigError::Invalid(text)
}

impl Written {
    /// Fills in what was left out.
    fn resolve(self, file: &str) -> Result<Config, ConfigError> {
        let given = |path: Option<AbsolutePath>, default: PathBuf| path.map_or(default, |path| path.0);
        let manifests = given(self.manifests, "/etc/causeway/manifests".into());
        let state = given(self.state, "/var/lib/causeway".into());
        let run = given(self.run, "/run/causeway".into());
        Ok(Config {
            node: self.node.map_or_else(|| machine_name(file), Ok)?,
            // Beside the manifests, never among them.
            status: given(self.status, manifests.with_file_name("status")),
            cni_socket: given(self.cni_socket, run.join("cni.sock")),
            api_socket: given(self.api_socket, run.join("api.sock")),
            fastpath_socket: given(self.fastpath_socket, run.join("fastpath.sock")),
            fastpath_queues: self.fastpath_queues.map_or(1, |n| as_u16(n.0)),
            fastpath_uplink: self.fastpath_uplink.map(|device| device.0),
            tombstones: given(self.tombstones, state.join("tombstones")),
            manifests,
            state,
            run,
            uplink: self.uplink.map(|name| name.0),
            datapath: self.datapath,
            default_path: self.default_path,
            overlay: Overlay {
                vni: Vni::try_from(self.vni.map_or(DEFAULT_VNI, |n| n.0))
                    .unwrap_or_else(|_| unreachable!("checked when it was read")),
                port: self.port.map_or(VXLAN_PORT, |n| as_u16(n.0)),
            },
            mtu: self.mtu.map(|n| as_u16(n.0)),
            metrics: self.metrics,
            connections: ConnectionRules {
                timeouts: self.connection_timeouts.into_iter().map(|(name, n)| (name, n.0)).collect(),
                per_endpoint: self.connections_per_endpoint.map(|n| n.0),
            },
            flow_file: self.flow_file.map(|path| FlowFile {
                path: path.0,
                most: u64::from(self.flow_file_mib.map_or(64, |n| n.0)) << 20,
            }),
            services: self.services,
            masquerade: self
                .masquerade
                .unwrap_or(true)
                .then_some(Masquerade { except: self.masquerade_except }),
            names: NameServer {
                addresses: match self.clusterset_dns {
                    Some(addresses) => addresses.0,
                    None if self.clusterset_cidr.0.is_empty() => Vec::new(),
                    None => vec![NameServer::DEFAULT.into()],
                },
            },
            api_servers: self.api_servers,
            mesh: causeway_mesh::Config {
                clusterset: self.clusterset_cidr.0,
                exported: namespaces(self.export_namespaces),
                imported: namespaces(self.import_namespaces),
            },
            mask: self.mask,
        })
    }
}

fn namespaces(listed: Option<BTreeSet<String>>) -> Namespaces {
    listed.map_or(Namespaces::Default, Namespaces::Only)
}

fn as_u16(number: u32) -> u16 {
    u16::try_from(number).unwrap_or_else(|_| unreachable!("checked when it was read"))
}

/// The machine's name as the kubelet would register it.
fn machine_name(file: &str) -> Result<NodeName, ConfigError> {
    let refused = |reason: String| ConfigError::NoNodeName { file: file.to_owned(), reason };
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").map_err(|e| refused(e.to_string()))?;
    name.trim().to_lowercase().parse().map_err(|e: causeway_model::InvalidName| refused(e.to_string()))
}

#[cfg(test)]
mod tests;
