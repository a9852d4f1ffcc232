//! What policy says of connections: asked when one begins, and again when its pods' tables have moved since.

use std::net::IpAddr;
use std::sync::Arc;

use causeway_model::policy::{Decision, Direction, RuleNumber, Rulebook, Tables, Traffic, Verdict};
use causeway_model::{DropReason, Endpoint, NameServer, PortProtocol, Snapshot};
use causeway_wire::IpProtocol;

use crate::Slots;

/// Why a packet goes no further, and the rule that says so where one does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refusal {
    pub(crate) reason: DropReason,
    pub(crate) rule: RuleNumber,
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Self {
        Self { reason, rule: RuleNumber::DEFAULT }
    }
}

impl From<causeway_wire::Malformed> for Refusal {
    fn from(malformed: causeway_wire::Malformed) -> Self {
        DropReason::from(malformed).into()
    }
}

/// A packet's two ends, the sender first: addresses and ports.
pub(crate) type Ends = [(IpAddr, u16); 2];

/// What the pods of a world may begin and take.
#[derive(Clone, Debug)]
pub(crate) struct Policies {
    book: Arc<Rulebook>,
    pods: Box<[Option<Tables>]>,
    names: NameServer,
    /// Whether any policy speaks of any pod.
    pub(crate) judges: bool,
}

impl Policies {
    pub(crate) fn new(snapshot: &Snapshot, slots: &Slots) -> Self {
        let mut pods = vec![None; usize::from(slots.capacity())];
        let mut judges = false;
        for endpoint in snapshot.endpoints.values() {
            if let Some(slot) = slots.of(&endpoint.key) {
                let Endpoint { policy, .. } = endpoint;
                judges |= Direction::BOTH.iter().any(|direction| !policy.of(*direction).stages.is_empty());
                pods[usize::from(slot)] = Some(policy.clone());
            }
        }
        Self {
            book: snapshot.policy.clone(),
            pods: pods.into(),
            names: snapshot.settings.names.clone(),
            judges,
        }
    }

    /// Judges a new connection of the pod in a slot, which begins it or is whom it is for.
    pub(crate) fn judge(
        &self,
        slot: u16,
        direction: Direction,
        ends: &Ends,
        protocol: IpProtocol,
    ) -> Result<RuleNumber, Refusal> {
        let Some(Some(tables)) = self.pods.get(usize::from(slot)) else {
            return Err(DropReason::DeniedNew.into());
        };
        let table = tables.of(direction);
        if table.stages.is_empty() {
            return Ok(RuleNumber::DEFAULT);
        }
        let peer = match direction {
            Direction::Egress => ends[1].0,
            Direction::Ingress => ends[0].0,
        };
        let transport = [PortProtocol::Tcp, PortProtocol::Udp, PortProtocol::Sctp]
            .into_iter()
            .find(|transport| transport.number() == protocol);
        let traffic = transport.map_or(Traffic::Portless, |transport| Traffic::To(transport, ends[1].1));
        if direction == Direction::Egress && self.names.hears(peer, traffic) {
            return Ok(RuleNumber::HOST);
        }
        let Decision { verdict, rule } = self.book.decide((direction, table), peer, traffic);
        match verdict {
            Verdict::Allow => Ok(rule),
            Verdict::Deny => Err(Refusal { reason: DropReason::PolicyDenied, rule }),
        }
    }
}

/// The mark of an epoch on a connection; zero is none.
pub(crate) fn stamp(epoch: u32) -> u32 {
    epoch << 1 | 1
}
