//! What the agent shows an operator: the JSON of its HTTP API and of `causeway … --json`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::connection::Stage;
use crate::drop_reason::by_reason;
use crate::fastpath::{ConnectionFigures, Memory};
use crate::{
    ClusterName, Count, DropReason, Endpoint, EndpointCounters, MacAddr, NodeId, Path, TunnelOwner, Vni,
};

/// The version of this API.
pub const VERSION: u32 = 1;
/// Where the agent's API listens unless configured otherwise.
pub const SOCKET: &str = "/run/causeway/api.sock";

/// One page about a node: `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`VERSION`] of the agent that answers.
    pub version: u32,
    /// The agent's release and commit.
    pub release: String,
    /// The node, once its object is known.
    pub node: Option<NodeStatus>,
    /// What the agent waits for before it can serve; empty when it serves.
    pub waiting_for: Vec<String>,
    /// Which data path new endpoints get, and why.
    pub path: PathStatus,
    /// Nodes of all clusters, this one left out.
    pub peers: Vec<PeerStatus>,
    /// How many endpoints hang on each path.
    pub endpoints: BTreeMap<Path, usize>,
    /// Tunnel frames sent.
    pub tunnel_sent: Count,
    /// Tunnel frames received.
    pub tunnel_received: Count,
    /// Drops by reason; reasons that never occurred are left out.
    #[serde(deserialize_with = "by_reason")]
    pub drops: BTreeMap<DropReason, Count>,
    /// Where desired state comes from, and how fresh it is.
    pub source: SourceStatus,
    /// Whatever is wrong and not fatal: manifests that do not parse, refused nodes, failed repairs.
    pub problems: Vec<String>,
    /// What this node does less well than it could, and why: features the kernel lacks or that are masked.
    pub limits: Vec<String>,
    /// The fast path of this node, while one is connected.
    #[serde(default)]
    pub fastpath: Option<FastpathStatus>,
    /// How often what others had changed on this node was mended since the agent started.
    #[serde(default)]
    pub repairs: u64,
    /// The last of these repairs, in words.
    #[serde(default)]
    pub mended: Vec<String>,
}

/// This node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Cluster and name.
    pub id: NodeId,
    /// Where its tunnel ends.
    pub tunnel_address: IpAddr,
    /// The interface that has that address.
    pub uplink: String,
    /// Its tunnel's hardware address.
    pub vtep_mac: MacAddr,
    /// Its pod prefixes.
    pub pod_prefixes: Vec<IpNetwork>,
    /// The network identifier.
    pub vni: Vni,
    /// The tunnel's UDP port.
    pub port: u16,
    /// The MTU of pods.
    pub pod_mtu: u16,
}

/// The choice of data path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStatus {
    /// What was asked for: auto, fast or kernel.
    pub asked: String,
    /// What new endpoints get unless their pod says otherwise.
    pub path: Path,
    /// Why.
    pub reason: String,
    /// Who holds the tunnel.
    pub tunnel: TunnelOwner,
}

/// A fast path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FastpathStatus {
    /// Its release.
    pub release: String,
    /// Its process id.
    pub pid: u32,
    /// Its memory.
    pub memory: Memory,
    /// Frames that each of its workers took in, from whatever port.
    pub workers: Vec<u64>,
    /// Packet buffers: how many it has.
    pub buffers: u32,
    /// How many of them are free. Workers keep a few at hand.
    pub buffers_free: u32,
    /// Its table of connections; none when it remembers none.
    #[serde(default)]
    pub connections: Option<ConnectionFigures>,
}

/// What is asked of `GET /v1/connections`, as its query: all conditions must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionQuery {
    /// A pod of this node, as namespace/name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// A prefix, or an address, that one end lies in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<IpNetwork>,
    /// The transport: tcp, udp, sctp, icmp, icmpv6 or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The port of one end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// The data path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Path>,
    /// How many at most; [`MOST_CONNECTIONS`] at the utmost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most: Option<usize>,
}

/// The most connections that one answer tells of.
pub const MOST_CONNECTIONS: usize = 100_000;

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Cluster and name.
    pub id: NodeId,
    /// Where its tunnel ends.
    pub tunnel_address: IpAddr,
    /// Its pod prefixes.
    pub pod_prefixes: Vec<IpNetwork>,
}

/// A source of desired state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// What it is: "manifests in /etc/causeway/manifests".
    pub what: String,
    /// Whether it has been read whole at least once.
    pub synchronised: bool,
    /// Seconds since it was last read.
    pub age_seconds: Option<u64>,
}

/// One endpoint and its counters: `GET /v1/endpoints` gives a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// The endpoint.
    #[serde(flatten)]
    pub endpoint: Endpoint,
    /// Its cluster.
    pub cluster: Option<ClusterName>,
    /// What passed.
    pub counters: EndpointCounters,
}
