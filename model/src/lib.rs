//! The nouns that every part agrees on, the promise a data path keeps, and the records that cross a socket.
//!
//! Nothing here does I/O, starts a thread or reads a clock. Prefixes are [`ipnetwork::IpNetwork`],
//! hardware addresses and network identifiers are those of [`causeway_wire`].

mod bandwidth;
mod cluster;
pub mod clusterset;
pub mod connection;
mod dataplane;
mod drop_reason;
mod endpoint;
pub mod fastpath;
pub mod flow;
mod frame;
mod hash;
mod name;
mod names;
mod node;
pub mod operator;
pub mod plugin;
pub mod policy;
mod port_mapping;
pub mod service;
mod snapshot;
pub mod why;

pub use bandwidth::{Bandwidth, RateLimit};
pub use causeway_wire::{MacAddr, Vni};
pub use cluster::Cluster;
pub use dataplane::{Count, Counters, Dataplane, DataplaneError, EndpointCounters, Update};
pub use drop_reason::DropReason;
pub use endpoint::{Endpoint, EndpointKey, Identity, LinkName, Path, PodName, PortKind};
pub use frame::{FrameError, read_frame, write_frame};
pub use ipnetwork::IpNetwork;
pub use name::{ClusterName, InvalidName, NodeName};
pub use names::NameServer;
pub use node::{Family, Node, NodeId};
pub use port_mapping::{PortMapping, PortProtocol};
pub use snapshot::{Delta, HostServices, Masquerade, Overlay, Settings, Snapshot, TunnelOwner, UplinkKind};

/// The gateway a pod sees over IPv4; link-local, answered by us on every port.
pub const GATEWAY_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 1, 1);
/// The gateway a pod sees over IPv6; link-local, answered by us on every port.
pub const GATEWAY_V6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The hardware address behind both gateways: one for all pods and both data paths, so that a pod moved from
/// one path to the other keeps its permanent neighbours. Locally administered.
pub const GATEWAY_MAC: MacAddr = MacAddr([0x02, 0xca, 0x5e, 0x00, 0x00, 0x01]);
/// The IANA port of VXLAN (RFC 7348 §8).
pub const VXLAN_PORT: u16 = 4789;
/// The network identifier used unless configured otherwise.
pub const DEFAULT_VNI: u32 = 51717;
