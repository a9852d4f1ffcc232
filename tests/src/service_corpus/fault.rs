//! Wrong compiles: each bends objects on their way into the compiler, so that a corpus that cannot tell is no test.

use std::net::IpAddr;

use causeway_model::PortProtocol;
use causeway_services::{Change, Service, Slice};

/// A way to compile services wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Every protocol is TCP.
    ProtocolsIgnored,
    /// A slice's port is for whichever port of the service: names say nothing.
    PortNamesIgnored,
    /// Who serves at a port of another number is asked at the service's.
    TargetPortsIgnored,
    /// Slices lead nowhere.
    SlicesForgotten,
    /// Of a slice only the first endpoint is known.
    OneEndpoint,
    /// No node has node ports.
    NodePortsForgotten,
    /// External IPs are nobody's.
    ExternalIpsForgotten,
    /// Load balancers' addresses are nobody's.
    IngressForgotten,
    /// Everybody may come.
    SourcesIgnored,
    /// Who comes from outside gets whichever backend.
    ExternalLocalIgnored,
    /// Who asks from inside gets whichever backend.
    InternalLocalIgnored,
    /// Nobody asks for health.
    HealthForgotten,
    /// Every endpoint is a healthy one.
    HealthIgnored,
    /// Clients come and go.
    AffinityIgnored,
    /// Who is not ready is not there, and who ends is.
    ReadyIgnored,
    /// Hints are for nobody.
    HintsIgnored,
    /// Every service is an IPv4 one.
    SixthFamilyForgotten,
    /// What goes stays.
    DeletionsIgnored,
    /// ClusterIPs are one off.
    AddressesShifted,
    /// Nobody is on any node.
    NodesIgnored,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::ProtocolsIgnored,
        Self::PortNamesIgnored,
        Self::TargetPortsIgnored,
        Self::SlicesForgotten,
        Self::OneEndpoint,
        Self::NodePortsForgotten,
        Self::ExternalIpsForgotten,
        Self::IngressForgotten,
        Self::SourcesIgnored,
        Self::ExternalLocalIgnored,
        Self::InternalLocalIgnored,
        Self::HealthForgotten,
        Self::HealthIgnored,
        Self::AffinityIgnored,
        Self::ReadyIgnored,
        Self::HintsIgnored,
        Self::SixthFamilyForgotten,
        Self::DeletionsIgnored,
        Self::AddressesShifted,
        Self::NodesIgnored,
    ];

    /// A change as it is compiled with this fault; none if it is not.
    pub(super) fn bend(self, mut change: Change) -> Option<Change> {
        match &mut change {
            Change::Service(_, None) | Change::Slice(_, None) if self == Self::DeletionsIgnored => {
                return None;
            }
            Change::Service(_, Some(service)) => self.bend_service(service),
            Change::Slice(..) if self == Self::SlicesForgotten => return None,
            Change::Slice(_, Some(slice)) => self.bend_slice(slice),
            _ => {}
        }
        Some(change)
    }

    fn bend_service(self, service: &mut Service) {
        match self {
            Self::ExternalIpsForgotten => service.external_ips.clear(),
            Self::IngressForgotten => service.ingress.clear(),
            Self::SourcesIgnored => service.sources = None,
            Self::ExternalLocalIgnored => service.external_local = false,
            Self::InternalLocalIgnored => service.internal_local = false,
            Self::HealthForgotten => service.health_check = None,
            Self::AffinityIgnored => service.affinity = None,
            Self::SixthFamilyForgotten => service.cluster_ips.retain(IpAddr::is_ipv4),
            Self::AddressesShifted => service.cluster_ips.iter_mut().for_each(|address| {
                *address = match *address {
                    IpAddr::V4(address) => IpAddr::V4((u32::from(address) ^ 1 << 12).into()),
                    IpAddr::V6(address) => IpAddr::V6((u128::from(address) ^ 1 << 12).into()),
                };
            }),
            Self::NodePortsForgotten => service.ports.iter_mut().for_each(|port| port.node_port = None),
            Self::ProtocolsIgnored => {
                service.ports.iter_mut().for_each(|port| port.protocol = PortProtocol::Tcp);
            }
            Self::PortNamesIgnored => service.ports.iter_mut().for_each(|port| port.name.clear()),
            _ => {}
        }
    }

    fn bend_slice(self, slice: &mut Slice) {
        match self {
            Self::OneEndpoint => slice.endpoints.truncate(1),
            Self::ProtocolsIgnored => {
                slice.ports.iter_mut().for_each(|port| port.protocol = PortProtocol::Tcp);
            }
            Self::PortNamesIgnored => slice.ports.iter_mut().for_each(|port| port.name.clear()),
            Self::TargetPortsIgnored => slice.ports.iter_mut().for_each(|port| port.port = 80),
            _ => slice.endpoints.iter_mut().for_each(|endpoint| match self {
                Self::HealthIgnored => {
                    (endpoint.ready, endpoint.serving, endpoint.terminating) = (true, true, false);
                }
                Self::ReadyIgnored => endpoint.ready = endpoint.terminating,
                Self::HintsIgnored => {
                    endpoint.for_zones.clear();
                    endpoint.for_nodes.clear();
                }
                Self::NodesIgnored => endpoint.node = None,
                _ => {}
            }),
        }
    }
}
