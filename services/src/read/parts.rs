//! What services and slices write alike.

use std::net::IpAddr;

use causeway_model::PortProtocol;

use super::Wrong;

/// A transport; TCP where none is named.
pub(super) fn protocol(written: Option<&str>) -> Result<PortProtocol, Wrong> {
    match written {
        None | Some("TCP") => Ok(PortProtocol::Tcp),
        Some("UDP") => Ok(PortProtocol::Udp),
        Some("SCTP") => Ok(PortProtocol::Sctp),
        Some(other) => Err(Wrong::Unknown { what: "protocol", value: other.to_owned() }),
    }
}

/// The number of a port.
pub(super) fn port(written: i32) -> Result<u16, Wrong> {
    u16::try_from(written).ok().filter(|port| *port != 0).ok_or(Wrong::NoPort(written.into()))
}

/// An address.
pub(super) fn address(written: &str) -> Result<IpAddr, Wrong> {
    written.parse().map_err(|_| Wrong::NoAddress(written.to_owned()))
}

/// An address that means one and the same thing wherever it is used.
pub(super) fn somewhere(address: IpAddr) -> Result<IpAddr, Wrong> {
    let nowhere = match address {
        IpAddr::V4(v4) => v4.is_unspecified() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast(),
        IpAddr::V6(v6) => {
            v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
                || v6.to_ipv4_mapped().is_some()
        }
    };
    if nowhere { Err(Wrong::Nowhere(address)) } else { Ok(address) }
}
