use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_model::connection::{Filter, Listing};
use causeway_model::operator::{ConnectionQuery, MOST_CONNECTIONS};
use causeway_model::{Dataplane, IpNetwork, PodName};

use super::{Core, Engine};
use crate::error::chain;

/// How many connections are told of when nobody says.
const USUAL: usize = 1000;
/// Transports by name (the IANA's protocol numbers).
const PROTOCOLS: [(&str, u8); 5] = [("tcp", 6), ("udp", 17), ("sctp", 132), ("icmp", 1), ("icmpv6", 58)];

/// A question about connections without an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// It asks for what cannot be.
    Question(String),
    /// A data path could not tell.
    Trouble(String),
}

impl Engine {
    /// The connections that are asked for, with the pods of this node at their ends.
    pub(crate) fn connections(&self, query: &ConnectionQuery) -> Result<Listing, Unanswered> {
        let mut core = self.lock();
        let filter = core.filter(query).map_err(Unanswered::Question)?;
        let most = query.most.unwrap_or(USUAL).min(MOST_CONNECTIONS);
        let listing = core.parts.drivers.connections(&filter, most);
        let mut listing = listing.map_err(|error| Unanswered::Trouble(chain(&error)))?;
        let pods = core.pods();
        for connection in &mut listing.connections {
            let (to, _) = connection.answers.unwrap_or(connection.to);
            connection.from_pod = pods.get(&connection.from.0).cloned();
            connection.to_pod = pods.get(&to).cloned();
        }
        Ok(listing)
    }
}

impl Core {
    fn filter(&self, query: &ConnectionQuery) -> Result<Filter, String> {
        let ConnectionQuery { pod, within, protocol, port, stage, path, most: _ } = query;
        if pod.is_some() && within.is_some() {
            return Err("pod and within: one of both is enough".to_owned());
        }
        let of_pod = pod.as_ref().map(|name| self.addresses_of(name)).transpose()?;
        Ok(Filter {
            within: of_pod.unwrap_or_else(|| within.iter().copied().collect()),
            protocol: protocol.as_deref().map(protocol_number).transpose()?,
            port: *port,
            stage: *stage,
            path: *path,
        })
    }

    fn addresses_of(&self, name: &str) -> Result<Vec<IpNetwork>, String> {
        let endpoints = self.roster.endpoints().values();
        let named =
            endpoints.filter(|endpoint| endpoint.pod.as_ref().is_some_and(|pod| pod.to_string() == name));
        let addresses: Vec<_> =
            named.flat_map(|pod| pod.addresses.iter().copied().map(IpNetwork::from)).collect();
        match addresses.is_empty() {
            true => Err(format!("pod {name:?} is not on this node (a pod is named namespace/name)")),
            false => Ok(addresses),
        }
    }

    pub(super) fn pods(&self) -> BTreeMap<IpAddr, PodName> {
        let named =
            self.roster.endpoints().values().filter_map(|endpoint| Some((endpoint, endpoint.pod.clone()?)));
        named.flat_map(|(endpoint, pod)| endpoint.addresses.iter().map(move |a| (*a, pod.clone()))).collect()
    }
}

fn protocol_number(name: &str) -> Result<u8, String> {
    let known = PROTOCOLS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    known.or_else(|| name.parse().ok()).ok_or_else(|| {
        let names: Vec<_> = PROTOCOLS.iter().map(|(name, _)| *name).collect();
        format!("protocol {name:?} is none of {} and no number up to 255", names.join(", "))
    })
}
