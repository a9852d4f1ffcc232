use causeway_model::{DropReason, GATEWAY_MAC};
use causeway_wire::{EtherType, Ethernet, Ipv4, Ipv6, Malformed};

use crate::bandwidth::limit_receivers;
use crate::burst::Kept;
use crate::datagrams::{self, Hands, Place};
use crate::packet::{Family, Front, Ip, common_front, examine, front};
use crate::send::{Hop, send};
use crate::service::turn_and_send;
use crate::track::{approach, track};
use crate::world::{Owner, World};
use crate::{Buffer, Burst, Frame, Pool, Port, Worker, gateway};

/// Takes what the node's stack hands over to where it shall go: what the node itself and its kernel pods send to fast pods and
/// through the tunnel, and what the world sends to fast pods. `now` is nanoseconds of a clock that never goes back.
pub fn from_host<P: Pool>(burst: &mut Burst<P::Buffer>, world: &World, worker: &mut Worker<P>, now: u64) {
    approach(burst, 0, worker.tracking.as_ref());
    burst.sift(|frame, pieces| {
        let verdict = match common_front(frame.head()) {
            Some(front) => forward(frame, Ok(front), world, now, Hands::of(worker, pieces)),
            None => forward_uncommon(frame, world, now, Hands::of(worker, pieces)),
        };
        worker.keeps(verdict, frame, Port::Host, world, now)
    });
    limit_receivers(burst, Port::Host, world, worker, now);
}

/// Sends on its way what is not of the commonest kind, in a function of its own: the loop has few registers.
#[inline(never)]
fn forward_uncommon<P: Pool>(
    frame: &mut Frame<P::Buffer>,
    world: &World,
    now: u64,
    hands: Hands<'_, P>,
) -> Result<Kept, DropReason> {
    match Family::of(frame.head()) {
        Some(Family::V4) => {
            let front = front::<Ipv4>(frame.head());
            forward(frame, front, world, now, hands)
        }
        Some(Family::V6) => {
            let front = front::<Ipv6>(frame.head());
            forward(frame, front, world, now, hands)
        }
        None => Err(without_packet(frame)),
    }
}

/// Sends a packet on its way, if it may come by this port.
#[inline(always)]
fn forward<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    front: Result<Front<I>, Malformed>,
    world: &World,
    now: u64,
    hands: Hands<'_, P>,
) -> Result<Kept, DropReason> {
    let (ethernet, _) = Ethernet::split(frame.head())?;
    let to_gateway = ethernet.destination() == GATEWAY_MAC;
    let front = examine(frame, front)?;
    if !to_gateway {
        let talk = gateway::is_neighbour_talk(frame, front.transport);
        return Err(if talk { DropReason::UnansweredNeighbour } else { DropReason::NotForUs });
    }
    let egress = route(frame, &front, world)?;
    if front.is_fragment() {
        let way = (Port::Host, Hop::Link, Place::Pods);
        return datagrams::pass(frame, &front, way, (world, now), hands);
    }
    match track(frame, &front, Port::Host, hands.tracking, world, now)? {
        None => send(frame, &front, (Hop::Link, egress), world, hands.pool, hands.pieces),
        Some(turn) => turn_and_send::<P, I>(frame, turn, Hop::Link, world, hands.again()),
    }
}

/// Why a frame without an IP packet is dropped.
#[cold]
fn without_packet<B: Buffer>(frame: &Frame<B>) -> DropReason {
    match Ethernet::split(frame.head()) {
        Err(malformed) => malformed.into(),
        // Every neighbour behind the host port is permanent.
        Ok((ethernet, _)) if ethernet.ether_type() == EtherType::ARP => DropReason::UnansweredNeighbour,
        Ok(_) => DropReason::UnhandledEtherType,
    }
}

/// Finds a packet's way, if its source may come by this port and go that way.
#[inline(always)]
fn route<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    front: &Front<I>,
    world: &World,
) -> Result<Port, DropReason> {
    let egress = match I::owners(world).get(front.destination) {
        Some(Owner::Endpoint(to)) => Port::Endpoint(to),
        Some(Owner::Peer(peer) | Owner::PeerNode(peer)) => {
            frame.peer = peer;
            Port::Uplink
        }
        Some(Owner::Nobody) => return Err(DropReason::NoSuchEndpoint),
        Some(Owner::KernelPod | Owner::Node | Owner::Gateway | Owner::Names | Owner::Service) | None => {
            return Err(DropReason::NoRoute);
        }
    };
    let allowed = match I::owners(world).get(front.source) {
        Some(Owner::Node | Owner::KernelPod) => true,
        // Behind the tunnel nobody would believe it.
        None | Some(Owner::Service) => matches!(egress, Port::Endpoint(_)) && I::is_routable(front.source),
        // Its answers. Nobody else asks there.
        Some(Owner::Names) => matches!(egress, Port::Endpoint(_)),
        // It asked this node for a pod, and the node's stack has led it there. The answer goes back the same way.
        Some(Owner::PeerNode(_)) => matches!(egress, Port::Endpoint(_)),
        // It would have come by its own port.
        Some(_) => false,
    };
    frame.egress = egress;
    if allowed { Ok(egress) } else { Err(DropReason::SpoofedAddress) }
}
