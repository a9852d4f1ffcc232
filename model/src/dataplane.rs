use std::collections::BTreeMap;
use std::error::Error;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::connection::{Filter, Listing};
use crate::drop_reason::by_reason;
use crate::flow::Events;
use crate::policy::RuleId;
use crate::service::Frontend;
use crate::{Delta, DropReason, Endpoint, EndpointKey, Snapshot};

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the Ethernet header on.
    pub bytes: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// What passed through one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointCounters {
    /// What the pod sent.
    pub from_pod: Count,
    /// What was delivered to the pod.
    pub to_pod: Count,
    /// What was dropped on its way from or to this pod, where the data path can tell.
    #[serde(default, deserialize_with = "by_reason")]
    pub drops: BTreeMap<DropReason, Count>,
}

/// What a data path has counted since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Tunnel frames sent.
    pub tunnel_sent: Count,
    /// Tunnel frames received.
    pub tunnel_received: Count,
    /// Drops by reason, all endpoints together.
    pub drops: BTreeMap<DropReason, Count>,
    /// By endpoint.
    pub endpoints: BTreeMap<EndpointKey, EndpointCounters>,
    /// The longest packets of pods for tunnel addresses to which the path was learned to carry less than usual.
    pub paths: BTreeMap<IpAddr, u16>,
    /// What rules have denied, for as long as each has been there.
    pub rules: BTreeMap<RuleId, Count>,
    /// Connections begun at frontends of services, for as long as each has been there.
    pub services: BTreeMap<Frontend, u64>,
}

/// A change of the desired state.
#[derive(Clone, Debug)]
pub enum Update<'a> {
    /// The whole state, at start and after a loss of trust.
    Whole(&'a Snapshot),
    /// What changed since the last update.
    Changes(&'a [Delta]),
}

/// A data path that could not do what it was asked.
#[derive(Debug, Error)]
pub enum DataplaneError {
    /// The data path is not there, or not able; the text says why.
    #[error("{0}")]
    Unavailable(String),
    /// What was asked cannot be done as asked; the text names the object.
    #[error("{0}")]
    Refused(String),
    /// An operation failed; `doing` names it and its object.
    #[error("{doing}: {source}")]
    Failed {
        /// The operation and its object, as in "adding route 10.0.0.0/24 on cw-vxlan".
        doing: String,
        /// Its cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A teardown went on past several failures.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<DataplaneError>),
}

/// What a data path promises. Implemented by the kernel's driver and by the fast path's; whatever the agent asks of one it
/// can ask of the other.
///
/// The order around an endpoint: the update that names it comes first, so that what guards it is in force before its
/// first packet; then `attach`. `detach` comes before the update that drops it.
pub trait Dataplane: Send {
    /// Takes up a new desired state. After an error the old state is in force as far as the data path could keep it, and
    /// the next `Whole` update makes it right.
    fn apply(&mut self, update: Update<'_>) -> Result<(), DataplaneError>;

    /// Plugs an endpoint of this data path into a network namespace. On failure nothing is left behind.
    fn attach(&mut self, endpoint: &Endpoint, netns: BorrowedFd<'_>) -> Result<(), DataplaneError>;

    /// Unplugs an endpoint, whether or not its namespace still exists. Unplugging what is not there succeeds.
    fn detach(&mut self, endpoint: &EndpointKey) -> Result<(), DataplaneError>;

    /// Looks whether an endpoint is as it was made: what is really there and really guards it, never what is remembered of
    /// it. Returns what is wrong, in words; nothing when nothing is. Mends nothing.
    fn check(&mut self, endpoint: &Endpoint, netns: BorrowedFd<'_>) -> Result<Vec<String>, DataplaneError>;

    /// Compares what is really there with the desired state and mends it; returns what was mended, in words.
    fn mend(&mut self) -> Result<Vec<String>, DataplaneError>;

    /// The connections of its endpoints that fit a filter, at most so many.
    fn connections(&mut self, filter: &Filter, most: usize) -> Result<Listing, DataplaneError>;

    /// What has become of connections since the last call.
    fn flows(&mut self) -> Result<Events, DataplaneError>;

    /// What was counted so far.
    fn counters(&mut self) -> Result<Counters, DataplaneError>;
}
