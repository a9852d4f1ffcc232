//! The data path kept by the Linux kernel: veth, vxlan, routes, neighbours, nftables.
//!
//! [`KernelDataplane`] is declarative: a pure function makes the ordered set of kernel objects and nft set elements
//! of a snapshot; an update issues what differs, and `mend` compares with what is really there.
//! Everything here blocks; nothing here is asynchronous.

mod capture;
mod check;
mod connections;
mod conntrack;
mod dataplane;
mod denials;
mod desired;
mod element;
mod error;
mod flows;
mod host_ports;
mod install;
mod kube_proxy;
mod leaving;
mod mend;
mod names;
pub mod namespace;
mod netlink;
mod next_hop;
mod nfnetlink;
mod nft;
mod objects;
mod observe;
mod paths;
pub mod pod;
mod policy;
mod refused;
mod removal;
mod ruleset;
mod services;
mod shaping;
mod survey;
mod sysctl;
mod tables;
pub mod uplink;
mod veth;
pub mod watch;

pub use dataplane::{KernelDataplane, KernelOptions};
pub use error::{KernelError, Refusal};
pub use kube_proxy::kube_proxy;
pub use leaving::{Reaper, dismiss_tap};
pub use next_hop::next_hops;
pub use objects::{
    HOST_END_MTU, HOST_LINK, ROUTE_PROTOCOL, ROUTE_TABLE, RULE_PRIORITY, TUNNEL_LINK, UPLINK_LINK, UPLINK_MAC,
};
pub use shaping::without_queue;
pub use survey::{Sight, Survey};

/// Takes a link away by its name, in the network namespace of this thread; one that is not there is no failure.
pub fn delete_link(name: &str) -> Result<(), KernelError> {
    install::remove_link(&mut netlink::Netlink::route()?, name)
}
