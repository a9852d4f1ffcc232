//! The interface that leads to the other nodes.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;

use crate::error::KernelError;
use crate::netlink::Netlink;
use crate::observe;

/// An interface of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Its MTU.
    pub mtu: u32,
    /// Its addresses with the lengths of their subnets.
    pub addresses: Vec<IpNetwork>,
    /// It is up, and something is at its other end.
    pub up: bool,
}

/// The interface that has an address; none when none has it.
pub fn find(address: IpAddr) -> Result<Option<Uplink>, KernelError> {
    Ok(all()?.into_iter().find(|uplink| uplink.addresses.iter().any(|subnet| subnet.ip() == address)))
}

/// The interface of a name; none when there is none.
pub fn by_name(name: &str) -> Result<Option<Uplink>, KernelError> {
    Ok(all()?.into_iter().find(|uplink| uplink.name == name))
}

/// Every interface.
pub fn all() -> Result<Vec<Uplink>, KernelError> {
    let mut netlink = Netlink::route()?;
    let links = observe::links(&mut netlink)?;
    let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let addresses: Vec<(u32, IpNetwork)> = netlink
        .dump(&question, "addresses")?
        .into_iter()
        .filter_map(|record| match record {
            RouteNetlinkMessage::NewAddress(message) => {
                observe::address(&message).map(|address| (message.header.index, address))
            }
            _ => None,
        })
        .collect();
    let uplink = |link: observe::Link| Uplink {
        addresses: addresses.iter().filter(|(index, _)| *index == link.index).map(|(_, a)| *a).collect(),
        name: link.name,
        mtu: link.mtu,
        up: link.up && link.carrier,
    };
    Ok(links.into_values().map(uplink).collect())
}
