//! What plugin and agent say to each other: one [`Request`] and one [`Reply`] a connection, framed by [`crate::write_frame`].
//!
//! The descriptor of the pod's network namespace rides beside the first byte of the request (SCM_RIGHTS). Unknown fields
//! are ignored and new ones have defaults, so that a plugin and an agent one version apart understand each other.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Bandwidth, EndpointKey, MacAddr, Path, PodName, PortMapping};

/// The version of this protocol.
pub const VERSION: u32 = 1;
/// Where the agent listens unless the network configuration says otherwise.
pub const SOCKET: &str = "/run/causeway/cni.sock";
/// Where the plugin leaves word of deletions while the agent is dead, unless the network configuration says otherwise.
pub const TOMBSTONES: &str = "/var/lib/causeway/tombstones";

/// What the runtime wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verb {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Look whether an attachment is as it was made.
    Check,
    /// Detach whatever a list does not name.
    Gc,
    /// Say whether ADD can be served.
    Status,
}

/// One CNI call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`] of the plugin.
    pub version: u32,
    /// What to do.
    pub verb: Verb,
    /// To what; GC and STATUS are about a network, and name neither container nor interface.
    pub key: EndpointKey,
    /// The path of the network namespace as the runtime gave it; empty when it gave none.
    #[serde(default)]
    pub netns: String,
    /// The pod, where CNI_ARGS named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodName>,
    /// CNI_ARGS, all of them.
    #[serde(default)]
    pub args: BTreeMap<String, String>,
    /// The network configuration as it came on stdin.
    #[serde(default)]
    pub config: Map<String, Value>,
    /// Which addresses it shall have.
    #[serde(default)]
    pub ipam: IpamRequest,
    /// CHECK: what the runtime remembers of the interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remembered: Option<Remembered>,
    /// GC: the attachments of the network that stay. None is no list at all, and never an empty one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<Vec<ValidAttachment>>,
    /// What the runtime asks for beyond an attachment.
    #[serde(default)]
    pub capabilities: Capabilities,
}

/// Addresses of one family that an attachment may get, as the network configuration or the runtime bounds them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRange {
    /// The prefix they lie in; its network and broadcast addresses are nobody's.
    pub subnet: IpNetwork,
    /// The first of them.
    pub first: IpAddr,
    /// The last of them.
    pub last: IpAddr,
    /// An address that no pod gets: somebody else's gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// What a call asks of addresses; the default asks for any of each family that the node has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamRequest {
    /// Where they may come from, at most one set a family; an attachment gets one address of each set. Without any set, all
    /// of the node's prefixes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<Vec<AddressRange>>,
    /// Static addresses, at most one of each family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// A static hardware address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Where the pod shall have routes to, instead of to everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<IpNetwork>>,
    /// The IPAM plugin that gave the addresses above; then the attachment gets these and no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegate: Option<String>,
}

/// What the result of an ADD said of a pod's interface, whatever version it was written in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Its hardware address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Its MTU, which results tell from 1.1.0 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Its addresses.
    #[serde(default)]
    pub addresses: Vec<IpNetwork>,
}

/// An attachment of a network that is still wanted (CNI 1.1.0 §2, "GC").
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ValidAttachment {
    /// Its container.
    #[serde(rename = "containerID")]
    pub container: String,
    /// Its interface.
    #[serde(rename = "ifname")]
    pub interface: String,
}

/// What a runtime asks for by way of `runtimeConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// `portMappings`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// `bandwidth`.
    #[serde(default, skip_serializing_if = "Bandwidth::is_none")]
    pub bandwidth: Bandwidth,
    /// `io.kubernetes.cri.pod-annotations`: they count where no object tells of the pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Word of a deletion that the agent has not heard of: a file named by the attachment, so that writing it twice is writing it once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// [`VERSION`] of the plugin.
    pub version: u32,
    /// The attachment that is gone.
    pub key: EndpointKey,
}

impl Tombstone {
    /// The name of its file.
    pub fn file_name(&self) -> String {
        format!("{}.json", self.key.link_name())
    }
}

/// An address as a pod has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodAddress {
    /// The address, with the full length of its family.
    pub address: IpNetwork,
    /// Its gateway.
    pub gateway: IpAddr,
}

/// What an attachment looks like once it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The link's name on the node; a TAP of the fast path has none there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_interface: Option<String>,
    /// The hardware address of the gateway behind that link.
    pub host_mac: MacAddr,
    /// That link's MTU: not the pod's, since the node's end takes longer packets in order to answer them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_mtu: Option<u16>,
    /// The pod's hardware address.
    pub mac: MacAddr,
    /// The pod's MTU.
    pub mtu: u16,
    /// The pod's addresses, IPv4 first.
    pub addresses: Vec<PodAddress>,
    /// Where its routes lead, where that is not everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<IpNetwork>>,
    /// Which data path carries it.
    pub path: Path,
}

/// An error as the runtime shall see it (CNI 1.1.0 §5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The specification's code, or one of our own from 100 on.
    pub code: u32,
    /// One sentence with the object in it.
    pub msg: String,
    /// More, where there is more.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Failure {
    /// The specification's code for an invalid environment variable.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// The specification's code for failed I/O.
    pub const IO: u32 = 5;
    /// The specification's code for content that cannot be decoded.
    pub const DECODING: u32 = 6;
    /// The specification's code for an invalid network configuration.
    pub const INVALID_CONFIG: u32 = 7;
    /// The specification's code for "try again later".
    pub const TRY_AGAIN: u32 = 11;
    /// The specification's code for an incompatible version.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// The specification's code for an unsupported field.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The specification's code for an unknown container.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// The specification's code for a plugin that cannot serve ADD (CNI 1.1.0 §2, "STATUS").
    pub const NOT_AVAILABLE: u32 = 50;
    /// The specification's code for one that cannot, and whose attachments may suffer, too.
    pub const LIMITED: u32 = 51;
    /// Ours: the range of addresses is used up.
    pub const RANGE_EXHAUSTED: u32 = 100;
    /// Ours: the attachment exists already.
    pub const EXISTS: u32 = 101;
    /// Ours: the data path could not do it.
    pub const DATAPATH: u32 = 102;
    /// Ours: the attachment is not as it was made.
    pub const NOT_AS_MADE: u32 = 103;
    /// Ours: another attachment has the port of the node.
    pub const HOST_PORT_TAKEN: u32 = 110;

    /// A failure without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }
}

/// The agent's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// ADD: it is done, and looks like this.
    Attached(Attachment),
    /// It is done, and there is nothing to show.
    Done,
    /// It is not done, and nothing is left of the attempt.
    Failed(Failure),
}
