use causeway_model::{DropReason, GATEWAY_MAC};
use causeway_wire::{EtherType, Ethernet, IpProtocol, Ipv4, Ipv6, Malformed, VlanTag};

use crate::bandwidth::{limit_receivers, limit_sender};
use crate::burst::Kept;
use crate::datagrams::{self, Hands};
use crate::packet::{Family, Front, Ip, Transport, common_front, examine, front};
use crate::send::{Hop, send};
use crate::track::{approach, track};
use crate::world::{Owner, Pod, World};
use crate::{Buffer, Burst, Checksum, Frame, Pool, Port, Worker, gateway};

/// Takes what one pod has sent to where it shall go: nothing that the pod may not send, the gateway's answers back to it, and all
/// else towards pods, nodes and the world. `now` is nanoseconds of a clock that never goes back.
pub fn from_pod<P: Pool>(
    burst: &mut Burst<P::Buffer>,
    slot: u16,
    world: &World,
    worker: &mut Worker<P>,
    now: u64,
) {
    let from = Port::Endpoint(slot);
    worker.tally.received(from, burst.len() as u64, burst.bytes());
    limit_sender(burst, slot, world, worker, now);
    let pod = world.pod(slot);
    approach(burst, 0, worker.tracking.as_ref());
    burst.sift(|frame, pieces| {
        let verdict = match (pod, common_front(frame.head())) {
            (None, _) => Err(DropReason::NoSuchPort),
            (Some(pod), Some(front)) => {
                forward(frame, front, (pod, slot), world, now, Hands::of(worker, pieces))
            }
            (Some(pod), None) => forward_uncommon(frame, (pod, slot), world, now, Hands::of(worker, pieces)),
        };
        worker.keeps(verdict, frame, from, world, now)
    });
    limit_receivers(burst, from, world, worker, now);
}

/// Sends on its way what is not of the commonest kind, in a function of its own: the loop has few registers.
#[inline(never)]
fn forward_uncommon<P: Pool>(
    frame: &mut Frame<P::Buffer>,
    (pod, slot): (&Pod, u16),
    world: &World,
    now: u64,
    hands: Hands<'_, P>,
) -> Result<Kept, DropReason> {
    match Family::of(frame.head()).or_else(|| untag(frame)) {
        Some(Family::V4) => {
            let front = front::<Ipv4>(frame.head());
            forward(frame, front, (pod, slot), world, now, hands)
        }
        Some(Family::V6) => {
            let front = front::<Ipv6>(frame.head());
            forward(frame, front, (pod, slot), world, now, hands)
        }
        None => without_packet(frame, pod, slot),
    }
}

/// Sends a packet on its way, if the pod may send it.
#[inline(always)]
fn forward<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    front: Result<Front<I>, Malformed>,
    (pod, slot): (&Pod, u16),
    world: &World,
    now: u64,
    hands: Hands<'_, P>,
) -> Result<Kept, DropReason> {
    let to_gateway = check_macs(frame, pod)?;
    let front = examine(frame, front)?;
    if I::FAMILY == Family::V6 && gateway::is_neighbour_talk(frame, front.transport) {
        return gateway::neighbour(frame, pod, slot);
    }
    if !I::is_own(pod, front.source) {
        return Err(DropReason::SpoofedAddress);
    }
    if !to_gateway {
        return Err(DropReason::NotForUs);
    }
    if frame.offload.checksum == Checksum::Verified {
        // A pod's word for it is not enough.
        frame.offload.checksum = Checksum::Whole;
    }
    let from = Port::Endpoint(slot);
    match I::owners(world).get_afar(front.destination) {
        // The commonest ways, compiled for themselves.
        Some(Owner::Peer(peer)) if !front.is_fragment() => {
            (frame.egress, frame.peer) = (Port::Uplink, peer);
            track(frame, &front, from, hands.tracking, world, now)?;
            send(frame, &front, (Hop::Router, Port::Uplink), world, hands.pool, hands.pieces)
        }
        Some(Owner::Endpoint(to)) if !front.is_fragment() => {
            frame.egress = Port::Endpoint(to);
            track(frame, &front, from, hands.tracking, world, now)?;
            send(frame, &front, (Hop::Router, Port::Endpoint(to)), world, hands.pool, hands.pieces)
        }
        Some(Owner::Gateway) => gateway::echo(frame, pod, slot),
        receiver => {
            let Hands { pool, datagrams, pieces, tracking, tally } = hands;
            let hands = Hands { pool, datagrams, pieces, tracking, tally };
            forward_elsewhere::<P, I>(frame, (from, receiver), world, now, hands)
        }
    }
}

/// Sends what is a fragment, or for a node, its other pods or the world, on its way.
#[inline(never)]
fn forward_elsewhere<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    (from, receiver): (Port, Option<Owner>),
    world: &World,
    now: u64,
    hands: Hands<'_, P>,
) -> Result<Kept, DropReason> {
    // Read once more: what a call is handed cannot stay in registers.
    let front = front::<I>(frame.head())?;
    let egress = route(frame, &front, receiver, world)?;
    if front.is_fragment() {
        return datagrams::pass(frame, &front, (from, Hop::Router), (world, now), hands);
    }
    track(frame, &front, from, hands.tracking, world, now)?;
    send(frame, &front, (Hop::Router, egress), world, hands.pool, hands.pieces)
}

/// Whether a frame of the pod's own is for its gateway.
#[inline(always)]
fn check_macs<B: Buffer>(frame: &Frame<B>, pod: &Pod) -> Result<bool, DropReason> {
    let (ethernet, _) = Ethernet::split(frame.head())?;
    if ethernet.source() != pod.mac {
        return Err(DropReason::SpoofedMac);
    }
    Ok(ethernet.destination() == GATEWAY_MAC)
}

/// Takes a tag of no network off a frame: it asks for priority only (IEEE 802.1Q §6.9), and the tunnel carries none (RFC 7348 §6.1).
#[cold]
fn untag<B: Buffer>(frame: &mut Frame<B>) -> Option<Family> {
    let (ethernet, rest) = Ethernet::split(frame.head()).ok()?;
    let (tag, _) =
        VlanTag::split(rest).ok().filter(|(tag, _)| ethernet.ether_type().is_tag() && tag.id() == 0)?;
    let untagged = Ethernet::new(ethernet.destination(), ethernet.source(), tag.ether_type());
    frame.pull(VlanTag::LEN).ok()?;
    if !frame.offload.is_none() {
        frame.offload = frame.offload.moved_up(VlanTag::LEN);
    }
    let (place, _) = Ethernet::split_mut(frame.head_mut()).ok()?;
    *place = untagged;
    Family::of(frame.head())
}

/// Answers a frame without an IP packet, where there is an answer.
#[cold]
fn without_packet<B: Buffer>(frame: &mut Frame<B>, pod: &Pod, slot: u16) -> Result<Kept, DropReason> {
    check_macs(frame, pod)?;
    let (ethernet, _) = Ethernet::split(frame.head())?;
    match ethernet.ether_type() {
        EtherType::ARP => gateway::arp(frame, pod, slot),
        // Of a network that we are not on.
        ether_type if ether_type.is_tag() => Err(DropReason::NotForUs),
        _ => Err(DropReason::UnhandledEtherType),
    }
}

/// Finds a packet's way.
#[inline(always)]
fn route<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    front: &Front<I>,
    receiver: Option<Owner>,
    world: &World,
) -> Result<Port, DropReason> {
    if matches!(receiver, Some(Owner::Node | Owner::PeerNode(_)))
        && is_for_port(front.transport, world.overlay.port)?
    {
        return Err(DropReason::TunnelPortFromPod);
    }
    let egress = match receiver {
        Some(Owner::Endpoint(to)) => Port::Endpoint(to),
        Some(Owner::KernelPod | Owner::Node) => Port::Host,
        Some(Owner::Peer(peer) | Owner::PeerNode(peer)) => {
            frame.peer = peer;
            Port::Uplink
        }
        Some(Owner::Nobody) => return Err(DropReason::NoSuchEndpoint),
        None if I::is_routable(front.destination) => Port::Host,
        Some(Owner::Gateway) | None => return Err(DropReason::NoRoute),
    };
    frame.egress = egress;
    Ok(egress)
}

/// Whether a packet is a datagram for a UDP port. A first fragment that hides its ports is refused (RFC 7112); later ones
/// are of no use without it.
fn is_for_port(transport: Option<Transport>, port: u16) -> Result<bool, DropReason> {
    let transport = transport.ok_or(DropReason::Malformed)?;
    if transport.protocol != IpProtocol::UDP || transport.inside {
        return Ok(false);
    }
    if transport.has_ports { Ok(transport.ports[1] == port) } else { Err(DropReason::Malformed) }
}
