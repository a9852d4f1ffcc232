//! What the agent shows an operator: the JSON of its HTTP API and of `causeway … --json`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::connection::Stage;
use crate::drop_reason::by_reason;
use crate::fastpath::{ConnectionFigures, Memory};
use crate::policy::RuleId;
use crate::service::{Backend, Frontend};
use crate::why::Outcome;
use crate::{
    ClusterName, Count, DropReason, Endpoint, EndpointCounters, HostServices, MacAddr, NodeId, Path,
    TunnelOwner, Vni,
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
    /// What rules have denied, most packets first; [`MOST_RULES`] of them.
    #[serde(default)]
    pub rules: Vec<RuleStatus>,
    /// What rules of audited policies would have denied, as far as flows told of it, likewise.
    #[serde(default)]
    pub audited: Vec<RuleStatus>,
    /// Where desired state comes from, and how fresh it is.
    pub source: SourceStatus,
    /// Whatever is wrong and not fatal: manifests that do not parse, refused nodes, failed repairs.
    pub problems: Vec<String>,
    /// What this node does less well than it could, and why: features the kernel lacks or that are masked.
    pub limits: Vec<String>,
    /// Services, and who keeps them in the node's own stack.
    #[serde(default)]
    pub services: ServicesStatus,
    /// Names of the mesh, as they are answered on this node.
    #[serde(default)]
    pub names: NamesStatus,
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

/// The most rules that status tells of.
pub const MOST_RULES: usize = 1000;

/// A rule that has denied something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleStatus {
    /// The rule.
    pub rule: RuleId,
    /// Its policy, as kind/namespace/name; none where no policy has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// What it has denied for as long as it has been there.
    pub denied: Count,
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

/// Services as this node has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicesStatus {
    /// Who keeps them in the node's own stack.
    pub host: HostServices,
    /// Why.
    pub reason: String,
    /// How many there are that have an address.
    pub services: usize,
    /// How many addresses and ports lead to them.
    pub frontends: usize,
    /// How many backends get connections here.
    pub backends: usize,
}

/// What was asked of a node's server of names, and where it answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesStatus {
    /// Where it answers; nowhere without a mesh.
    pub servers: Vec<NameServerStatus>,
    /// Questions by UDP.
    pub udp: u64,
    /// Questions by TCP.
    pub tcp: u64,
    /// Answers by their codes' names, as in NXDOMAIN.
    pub answers: BTreeMap<String, u64>,
    /// Answers that lacked something, so that the client asks again by TCP.
    pub truncated: u64,
    /// What could not be read as a question.
    pub malformed: u64,
    /// What got no answer: answers sent as questions, connections beyond the limit, answers that no socket took.
    pub dropped: u64,
}

/// An address at which names are answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameServerStatus {
    /// The address.
    pub address: IpAddr,
    /// Why nobody answers there, where nobody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// What is asked of `GET /v1/services`, as its query: all conditions must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceQuery {
    /// Of this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// One service as this node has it: `GET /v1/services` gives a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where it is reached.
    pub frontends: Vec<FrontendStatus>,
    /// Who is behind it, whatever state they are in.
    pub backends: Vec<BackendStatus>,
    /// For how many seconds a client stays with its backend, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<u32>,
    /// What load balancers are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthStatus>,
    /// Connections begun at all its frontends on this node.
    pub hits: u64,
}

/// A frontend of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendStatus {
    /// Where it is.
    #[serde(flatten)]
    pub frontend: Frontend,
    /// The name of the service's port; empty where it has none.
    pub port_name: String,
    /// What this node's pods and processes get.
    pub inside: Outcome,
    /// What others get who come to this node.
    pub outside: Outcome,
    /// Who may come at all; none is everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<IpNetwork>>,
    /// Connections begun there on this node.
    pub hits: u64,
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Where it answers.
    #[serde(flatten)]
    pub backend: Backend,
    /// The name of the service's port that it is behind; empty where it has none.
    pub port_name: String,
    /// Whether it is asked.
    pub state: BackendState,
    /// The node it is on, if on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// It is on this node.
    pub local: bool,
}

/// What a backend is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendState {
    /// It gets connections.
    Ready,
    /// It is about to end: it gets connections where there is none better.
    Leaving,
    /// It keeps those it has.
    Serving,
    /// None.
    Down,
}

/// What load balancers are told of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthStatus {
    /// Where they ask.
    pub port: u16,
    /// How many ready backends are here, at IPv4 addresses; none where the service has no such address.
    pub v4: Option<usize>,
    /// Likewise at IPv6 addresses.
    pub v6: Option<usize>,
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
    /// The longest packet of a pod that the path to it carries, where that was learned to be less than pods may send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_mtu: Option<u16>,
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
    /// What its writer calls the state of it that is in force on this node (`causeway.dev/revision` on the Cluster object).
    #[serde(default)]
    pub revision: Option<String>,
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
