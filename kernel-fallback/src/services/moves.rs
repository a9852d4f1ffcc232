//! Datagram flows that begin anew: those to backends that are none any more, and those that began before there was a service. A
//! connection of TCP or SCTP runs on, and ends with its backend.

use std::collections::BTreeSet;
use std::net::IpAddr;

use causeway_model::service::{Answer, At, Backend, Frontend, Service, Services};
use causeway_model::{Family, HostServices, PortProtocol, Snapshot};

use super::entry::nodes;
use crate::conntrack::{self, Flow};
use crate::desired::addresses_of;

/// Whose flows are to be looked through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    These(BTreeSet<Frontend>),
    /// The table was loaded: who knows what was there before.
    All,
}

impl Default for Moved {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl Moved {
    pub(super) fn add(&mut self, more: &BTreeSet<Frontend>) {
        if let Self::These(these) = self {
            these.extend(more.iter().filter(|frontend| frontend.protocol == PortProtocol::Udp));
        }
    }

    fn has(&self, frontend: &Frontend) -> bool {
        match self {
            Self::These(these) => these.contains(frontend),
            Self::All => true,
        }
    }
}

/// Has connection tracking forget the flows that begin anew.
pub(crate) fn forget(moved: &Moved, snapshot: &Snapshot, local: impl FnOnce() -> Vec<IpAddr>) {
    let nothing = match moved {
        Moved::These(these) => these.is_empty(),
        Moved::All => {
            !snapshot.services.frontends.keys().any(|frontend| frontend.protocol == PortProtocol::Udp)
        }
    };
    if nothing {
        return;
    }
    let node: BTreeSet<IpAddr> = local().into_iter().filter(|address| !address.is_loopback()).collect();
    let known = Known {
        all: nodes(snapshot).flat_map(addresses_of).chain(node.iter().copied()).collect(),
        pods: snapshot.endpoints.values().flat_map(|endpoint| endpoint.addresses.iter().copied()).collect(),
        node,
        own: snapshot.settings.host_services == HostServices::Own,
        services: &snapshot.services,
    };
    conntrack::forget_where(|flow| known.begins_anew(flow, moved));
}

/// What is known of flows' ends.
struct Known<'a> {
    /// The addresses of the cluster's nodes, and of this one.
    all: BTreeSet<IpAddr>,
    node: BTreeSet<IpAddr>,
    pods: BTreeSet<IpAddr>,
    own: bool,
    services: &'a Services,
}

impl Known<'_> {
    fn begins_anew(&self, flow: &Flow, moved: &Moved) -> bool {
        let of_pod = self.pods.contains(&flow.from.ip());
        if flow.protocol != PortProtocol::Udp.number().0 || !(of_pod || self.own) {
            return false;
        }
        let at = |at| Frontend { at, protocol: PortProtocol::Udp, port: flow.to.port() };
        let address = flow.to.ip();
        let by_address = at(At::Address(address));
        let by_node = at(At::Nodes(Family::of(address)));
        let nodes = if of_pod { &self.all } else { &self.node };
        let of_node = nodes.contains(&address);
        let changed = moved.has(&by_address) || of_node && moved.has(&by_node);
        if !changed {
            return false;
        }
        let Some(service) = self.services.at(address, of_node, PortProtocol::Udp, flow.to.port()) else {
            // Of a frontend that has gone: whoever was not translated asked nobody of ours.
            return matches!(moved, Moved::These(_)) && flow.answers != flow.to;
        };
        !self.serves(service, of_pod, &Backend { address: flow.answers.ip(), port: flow.answers.port() })
    }

    fn serves(&self, service: &Service, of_pod: bool, backend: &Backend) -> bool {
        let answers = [Some(service.inside), (!of_pod).then_some(service.outside)];
        answers.into_iter().flatten().any(|answer| match answer {
            Answer::Backends(id) => self.services.backends.get(&id).is_some_and(|backends| {
                backends.chosen.contains(backend) || backends.leaving.contains(backend)
            }),
            Answer::Refuse | Answer::Drop => false,
        })
    }
}
