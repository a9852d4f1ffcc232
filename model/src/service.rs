//! Services as a node's data paths know them: what the compiler fills and both data paths read.
//!
//! A [`Frontend`] is where clients knock, a [`Service`] what becomes of them there, and [`Backends`] who answers. Everything
//! that Kubernetes lets differ by node (traffic policies, topology, health) is settled by the compiler: two nodes have
//! different records of one service, and a data path only looks up, chooses and translates.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{ClusterName, Family, PortProtocol};

/// A port of a service, as objects name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServicePort {
    /// Whose service it is.
    pub cluster: ClusterName,
    /// The service's namespace.
    pub namespace: String,
    /// The service's name.
    pub name: String,
    /// The port's name there; empty where a service has one port and no name for it.
    pub port: String,
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)?;
        if self.port.is_empty() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// Where clients knock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Frontend {
    /// The address.
    pub at: At,
    /// The transport.
    pub protocol: PortProtocol,
    /// Its port.
    pub port: u16,
}

/// The address of a [`Frontend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum At {
    /// This one: a ClusterIP, an external IP, an ingress address of a load balancer. Asked before [`At::Nodes`].
    Address(IpAddr),
    /// Any address of this family of any node of this cluster, loopback never: a node port.
    ///
    /// A node's own pods are served by their own node whichever node they ask. A node's processes, and clients from outside,
    /// are served by the node whose address it is.
    Nodes(Family),
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, protocol, port } = self;
        match at {
            At::Address(IpAddr::V4(address)) => write!(f, "{address}:{port}/{protocol}"),
            At::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{port}/{protocol}"),
            At::Nodes(family) => write!(f, "nodes:{port}/{protocol} ({family})"),
        }
    }
}

/// What becomes of clients at a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Whose frontend it is.
    pub id: ServicePort,
    /// What this node's pods and processes get.
    pub inside: Answer,
    /// What all others get, who come to this node from outside.
    pub outside: Answer,
    /// Whoever has no address in one of these is dropped, from inside and from outside; none is everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<IpNetwork>>,
    /// A client's next connection goes to the backend of the one before, unless that began longer ago: seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<u32>,
}

/// What a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// One of these backends.
    Backends(BackendsId),
    /// A refusal: TCP RST, SCTP ABORT, ICMP port unreachable.
    Refuse,
    /// None: others have backends, this node has not.
    Drop,
}

/// Numbers the backends that several frontends share. Means nothing beyond the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BackendsId(pub u32);

/// Who answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backends {
    /// Who gets new connections. Never empty: a service without is [`Answer::Refuse`] or [`Answer::Drop`].
    pub chosen: Vec<Backend>,
    /// The part of new connections that each of them gets, in their order and without a common divisor; empty where all get the
    /// same. [`Backends::shares`] reads it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<u32>,
    /// Who gets no new ones and may keep those it has. A datagram flow to a backend that is in neither list begins anew.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaving: Vec<Backend>,
}

impl Backends {
    /// Backends of which all that are chosen get the same.
    pub fn alike(chosen: Vec<Backend>, leaving: Vec<Backend>) -> Self {
        Self { chosen, weights: Vec::new(), leaving }
    }

    /// Backends that get new connections by weight. One of weight 0 gets none and keeps those it has.
    pub fn weighted(
        shares: impl IntoIterator<Item = (Backend, u32)>,
        leaving: impl IntoIterator<Item = Backend>,
    ) -> Self {
        let (shares, idle): (Vec<_>, Vec<_>) = shares.into_iter().partition(|(_, weight)| *weight > 0);
        let divisor = shares.iter().fold(0, |divisor, (_, weight)| gcd(divisor, u64::from(*weight)));
        let (chosen, mut weights): (Vec<_>, Vec<_>) = shares.into_iter().unzip();
        if weights.iter().all(|weight| u64::from(*weight) == divisor) {
            weights.clear();
        }
        weights.iter_mut().for_each(|weight| *weight /= divisor as u32);
        let leaving = idle.into_iter().map(|(backend, _)| backend).chain(leaving).collect();
        Self { chosen, weights, leaving }
    }

    /// Who gets new connections, each with its part of them: 1 where all get the same.
    pub fn shares(&self) -> impl Iterator<Item = (Backend, u32)> {
        let weights = self.weights.iter().copied().chain(std::iter::repeat(1));
        self.chosen.iter().copied().zip(weights.map(|weight| weight.max(1)))
    }
}

/// The greatest common divisor; of zero and a number that number.
pub fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// One who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Backend {
    /// A pod's, a node's, or anybody's address.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
}

/// Every service of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    /// Where clients knock, and what becomes of them.
    #[serde(with = "pairs")]
    pub frontends: BTreeMap<Frontend, Service>,
    /// Who answers.
    #[serde(with = "pairs")]
    pub backends: BTreeMap<BackendsId, Arc<Backends>>,
    /// Addresses that are services' and nothing else: what asks one of them at no frontend is refused.
    pub addresses: BTreeSet<IpAddr>,
    /// Where such addresses come from: nothing is sent to one that nobody has.
    pub prefixes: Vec<IpNetwork>,
}

impl Services {
    /// What becomes of a client at an address: by the address itself, else, where it is a node's, by the node ports.
    pub fn at(&self, address: IpAddr, of_node: bool, protocol: PortProtocol, port: u16) -> Option<&Service> {
        let here = |at| self.frontends.get(&Frontend { at, protocol, port });
        here(At::Address(address)).or_else(|| of_node.then(|| here(At::Nodes(Family::of(address)))).flatten())
    }
}

/// JSON has only text keys: such a map goes over the wire as a list of pairs.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(super) fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn backend(number: u8) -> Backend {
        Backend { address: [10, 70, 1, number].into(), port: 8080 }
    }

    proptest! {
        #[test]
        fn weights_keep_their_proportions_and_equal_ones_are_none(weights in prop::collection::vec(0_u32..40, 0..12), scale in 1_u32..99) {
            let shares = || (0..).map(backend).zip(&weights).map(|(backend, weight)| (backend, *weight));
            let backends = Backends::weighted(shares(), [backend(99)]);
            let scaled = shares().map(|(backend, weight)| (backend, weight * scale));
            prop_assert_eq!(&backends, &Backends::weighted(scaled, [backend(99)]));
            let wanted: Vec<_> = shares().filter(|(_, weight)| *weight > 0).collect();
            let told: Vec<_> = backends.shares().collect();
            prop_assert_eq!(told.len(), wanted.len());
            for ((one, part), (other, weight)) in told.iter().zip(&wanted) {
                prop_assert_eq!(one, other);
                prop_assert_eq!(u64::from(*part) * u64::from(wanted[0].1), u64::from(*weight) * u64::from(told[0].1));
            }
            prop_assert_eq!(backends.leaving.len(), weights.len() - wanted.len() + 1, "who gets nothing keeps what it has");
            prop_assert_eq!(backends.weights.is_empty(), wanted.iter().all(|(_, weight)| *weight == wanted[0].1));
            let json = serde_json::to_string(&backends).unwrap();
            prop_assert_eq!(json.contains("weights"), !backends.weights.is_empty());
            prop_assert_eq!(serde_json::from_str::<Backends>(&json).unwrap(), backends);
        }
    }
}
