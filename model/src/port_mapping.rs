use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use causeway_wire::IpProtocol;
use serde::{Deserialize, Serialize};

use crate::Family;

/// A transport whose ports can be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl PortProtocol {
    /// Every one of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Its name in network configurations and in nft.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// Its number in IP headers.
    pub const fn number(self) -> IpProtocol {
        match self {
            Self::Tcp => IpProtocol::TCP,
            Self::Udp => IpProtocol::UDP,
            Self::Sctp => IpProtocol::SCTP,
        }
    }
}

impl fmt::Display for PortProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A port of the node that leads to a port of an endpoint (the CNI capability `portMappings`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// The address of the node at which it answers: all of a family when it is that family's unspecified one, all of
    /// both when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// The port of the node.
    pub host_port: NonZeroU16,
    /// The port of the endpoint.
    pub container_port: NonZeroU16,
    /// Of which transport.
    pub protocol: PortProtocol,
}

impl PortMapping {
    /// The one address of the node at which it answers; none when at all of them.
    pub fn only_at(&self) -> Option<IpAddr> {
        self.host_ip.filter(|address| !address.is_unspecified())
    }

    /// Whether it answers at addresses of a family.
    pub fn answers_over(&self, family: Family) -> bool {
        self.host_ip.is_none_or(|address| Family::of(address) == family)
    }

    /// Whether one packet could be meant for either of two.
    pub fn overlaps(&self, other: &Self) -> bool {
        let same_port = (self.protocol, self.host_port) == (other.protocol, other.host_port);
        let same_address = match (self.only_at(), other.only_at()) {
            (Some(one), Some(two)) => one == two,
            _ => Family::BOTH.iter().any(|family| self.answers_over(*family) && other.answers_over(*family)),
        };
        same_port && same_address
    }
}

/// The node's side of it, as in "127.0.0.1:8080/tcp".
impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            None => write!(f, "{}/{}", self.host_port, self.protocol),
            Some(IpAddr::V4(address)) => write!(f, "{address}:{}/{}", self.host_port, self.protocol),
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:{}/{}", self.host_port, self.protocol),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_ip: &str, host_port: u16, protocol: PortProtocol) -> PortMapping {
        PortMapping {
            host_ip: (!host_ip.is_empty()).then(|| host_ip.parse().unwrap()),
            host_port: host_port.try_into().unwrap(),
            container_port: NonZeroU16::MIN,
            protocol,
        }
    }

    #[test]
    fn two_mappings_overlap_where_a_packet_could_be_meant_for_either() {
        use PortProtocol::{Tcp, Udp};
        for (one, two, overlap) in [
            (("", 80, Tcp), ("", 80, Tcp), true),
            (("", 80, Tcp), ("", 80, Udp), false),
            (("", 80, Tcp), ("", 81, Tcp), false),
            (("", 80, Tcp), ("192.0.2.1", 80, Tcp), true),
            (("0.0.0.0", 80, Tcp), ("192.0.2.1", 80, Tcp), true),
            (("0.0.0.0", 80, Tcp), ("2001:db8::1", 80, Tcp), false),
            (("0.0.0.0", 80, Tcp), ("::", 80, Tcp), false),
            (("::", 80, Tcp), ("", 80, Tcp), true),
            (("192.0.2.1", 80, Tcp), ("192.0.2.1", 80, Tcp), true),
            (("192.0.2.1", 80, Tcp), ("127.0.0.1", 80, Tcp), false),
        ] {
            let [one, two] = [one, two].map(|(ip, port, protocol)| mapping(ip, port, protocol));
            assert_eq!((one.overlaps(&two), two.overlaps(&one)), (overlap, overlap), "{one} and {two}");
        }
    }

    #[test]
    fn a_mapping_is_shown_as_an_operator_writes_it() {
        assert_eq!(mapping("", 80, PortProtocol::Tcp).to_string(), "80/tcp");
        assert_eq!(mapping("127.0.0.1", 80, PortProtocol::Udp).to_string(), "127.0.0.1:80/udp");
        assert_eq!(mapping("::1", 80, PortProtocol::Sctp).to_string(), "[::1]:80/sctp");
    }
}
