use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::PortProtocol;
use crate::policy::Traffic;

/// Where a node's agent answers for names of the mesh: addresses of the node's own that are there for nothing else. Its pods and its
/// processes reach them, whatever policy says; nobody else does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NameServer {
    /// The addresses, one of a family at most; none where there is no mesh.
    pub addresses: Vec<IpAddr>,
}

impl NameServer {
    /// Where it answers unless told otherwise: link-local, so that every node can have it.
    pub const DEFAULT: Ipv4Addr = Ipv4Addr::new(169, 254, 53, 53);
    /// The one port that is open there, of UDP and of TCP.
    pub const PORT: u16 = 53;

    /// Whether an address is one of these.
    pub fn has(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// Whether this is a question to it, which no policy denies.
    pub fn hears(&self, address: IpAddr, traffic: Traffic) -> bool {
        let open = matches!(traffic, Traffic::To(PortProtocol::Udp | PortProtocol::Tcp, Self::PORT));
        open && self.has(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_port_of_two_protocols_is_open_and_only_at_the_address() {
        let names = NameServer { addresses: vec!["169.254.53.53".parse().unwrap()] };
        let hears = |address: &str, traffic| names.hears(address.parse().unwrap(), traffic);
        for protocol in PortProtocol::ALL {
            let open = protocol != PortProtocol::Sctp;
            assert_eq!(hears("169.254.53.53", Traffic::To(protocol, 53)), open, "{protocol}");
            assert!(!hears("169.254.53.53", Traffic::To(protocol, 54)), "{protocol}");
            assert!(!hears("169.254.53.54", Traffic::To(protocol, 53)), "{protocol}");
        }
        assert!(!hears("169.254.53.53", Traffic::Portless));
    }
}
