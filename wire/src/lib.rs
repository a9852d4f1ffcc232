//! Headers as they lie in a frame: Ethernet, ARP, IPv4, IPv6, ICMP, TCP, UDP, SCTP, VXLAN.

pub mod checksum;
pub mod reply;

mod arp;
mod crc32c;
mod ethernet;
mod icmpv4;
mod icmpv6;
mod ip_protocol;
mod ipv4;
mod ipv6;
mod ipv6_extensions;
mod mac;
mod malformed;
mod ndp;
mod ports;
mod sctp;
mod tcp;
mod traffic_class;
mod udp;
mod vni;
mod vxlan;

pub use arp::{Arp, ArpOperation};
pub use crc32c::crc32c;
pub use ethernet::{EtherType, Ethernet, VlanTag};
pub use icmpv4::{Icmpv4, Icmpv4Type};
pub use icmpv6::{Icmpv6, Icmpv6Type};
pub use ip_protocol::IpProtocol;
pub use ipv4::Ipv4;
pub use ipv6::Ipv6;
pub use ipv6_extensions::{Ipv6Extension, Ipv6Fragment, Upper};
pub use mac::{MacAddr, MacAddrUnreadable};
pub use malformed::Malformed;
pub use ndp::{NdpOption, NdpOptions, NeighborAdvertisement, NeighborSolicitation};
pub use ports::Ports;
pub use sctp::Sctp;
pub use tcp::{Tcp, TcpFlags};
pub use traffic_class::{Ecn, TrafficClass};
pub use udp::Udp;
pub use vni::{Vni, VniTooLarge};
pub use vxlan::Vxlan;
