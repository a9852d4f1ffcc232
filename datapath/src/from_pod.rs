use causeway_model::{DropReason, GATEWAY_MAC, NameServer};
use causeway_wire::{EtherType, Ethernet, IpProtocol, Ipv4, Ipv6, Malformed, VlanTag};

use crate::bandwidth::{limit_receivers, limit_sender};
use crate::burst::Kept;
use crate::connection::Turn;
use crate::datagrams::{self, Hands, Place};
use crate::packet::{Common, Family, Front, Ip, examine, front};
use crate::send::{Hop, send};
use crate::service::{answer, serve, stand_at_gateway, step_aside, turn_and_send};
use crate::track::{Hint, Stood, approach, track};
use crate::transport::Transport;
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
    let mut hints = approach(burst, 0, worker.tracking.as_ref());
    burst.sift(|frame, pieces| {
        let hint = hints.next();
        let plain = pod.and_then(|pod| Some((pod, plain_front(frame, pod)?)));
        let verdict = match plain {
            Some((pod, front)) => {
                pass(frame, (front, hint), (pod, slot), world, now, Hands::of(worker, pieces))
            }
            None => forward_other(frame, hint, (pod, slot), world, now, Hands::of(worker, pieces)),
        };
        worker.keeps(verdict, frame, from, world, now)
    });
    limit_receivers(burst, from, world, worker, now);
}

/// What the front of a packet says that is of the commonest kind and as it should be: its pod's own, for the router, in a frame of its
/// length with nothing left to do. What is wrong with others, [`forward`] finds out.
#[inline(always)]
fn plain_front<B: Buffer>(frame: &Frame<B>, pod: &Pod) -> Option<Front<Ipv4>> {
    let common = Common::of(frame.head())?;
    let front = common.front();
    let is_plain = common.ethernet.destination() == GATEWAY_MAC
        && common.ethernet.source() == pod.mac
        && pod.v4 == Some(front.source)
        && Ethernet::LEN + front.len == frame.len()
        && frame.offload.is_none();
    is_plain.then_some(front)
}

/// Sends on its way what is not plain, in a function of its own: the loop has few registers.
#[inline(never)]
fn forward_other<P: Pool>(
    frame: &mut Frame<P::Buffer>,
    hint: Hint,
    (pod, slot): (Option<&Pod>, u16),
    world: &World,
    now: u64,
    hands: Hands<'_, P>,
) -> Result<Kept, DropReason> {
    let pod = pod.ok_or(DropReason::NoSuchPort)?;
    match Family::of(frame.head()).or_else(|| untag(frame)) {
        Some(Family::V4) => {
            let front = front::<Ipv4>(frame.head());
            forward(frame, (front, hint), (pod, slot), world, now, hands)
        }
        Some(Family::V6) => {
            let front = front::<Ipv6>(frame.head());
            forward(frame, (front, hint), (pod, slot), world, now, hands)
        }
        None => without_packet(frame, pod, slot),
    }
}

/// Sends a packet on its way, if the pod may send it.
#[inline(always)]
fn forward<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    (front, hint): (Result<Front<I>, Malformed>, Hint),
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
    pass::<P, I>(frame, (front, hint), (pod, slot), world, now, hands)
}

/// Sends a packet on its way that the pod may send.
#[inline(always)]
fn pass<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    (front, hint): (Front<I>, Hint),
    (pod, slot): (&Pod, u16),
    world: &World,
    now: u64,
    mut hands: Hands<'_, P>,
) -> Result<Kept, DropReason> {
    let from = Port::Endpoint(slot);
    let front = front.with(hint);
    if hint.is_answer
        && let Some(sent) = answer::<P, I>(frame, from, front.hash, world, now, &mut hands.lend())
    {
        return sent;
    }
    if I::is_among_services(world, front.destination) && !front.is_fragment() {
        return serve::<P, I>(frame, (slot, Owner::Service), front.hash, world, now, hands.again());
    }
    match I::owners(world).get_afar(front.destination) {
        // The commonest ways, compiled for themselves.
        Some(Owner::Peer(peer)) if !front.is_fragment() => {
            (frame.egress, frame.peer) = (Port::Uplink, peer);
            match track(frame, &front, from, hands.tracking, world, now) {
                Ok(None) => send(frame, &front, (Hop::Router, Port::Uplink), world, hands.pool, hands.pieces),
                tracked => turned::<P, I>(frame, (slot, tracked), world, now, hands.again()),
            }
        }
        Some(Owner::Endpoint(to)) if !front.is_fragment() => {
            frame.egress = Port::Endpoint(to);
            match track(frame, &front, from, hands.tracking, world, now) {
                Ok(None) => {
                    let way = (Hop::Router, Port::Endpoint(to));
                    send(frame, &front, way, world, hands.pool, hands.pieces)
                }
                tracked => turned::<P, I>(frame, (slot, tracked), world, now, hands.again()),
            }
        }
        Some(owner @ (Owner::Service | Owner::Node | Owner::PeerNode(_))) if !front.is_fragment() => {
            serve::<P, I>(frame, (slot, owner), front.hash, world, now, hands.again())
        }
        Some(Owner::Gateway) => answer_gateway::<P, I>(frame, (pod, slot), world, now, hands.again()),
        receiver => forward_elsewhere::<P, I>(frame, (slot, receiver), world, now, hands.again()),
    }
}

/// Goes on with what is not simply sent: a packet of a translated connection, or one that must not begin one as it is.
#[inline(never)]
fn turned<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    (slot, tracked): (u16, Result<Option<Turn>, DropReason>),
    world: &World,
    now: u64,
    hands: Hands<'_, P>,
) -> Result<Kept, DropReason> {
    match tracked {
        Ok(Some(turn)) => turn_and_send::<P, I>(frame, turn, Hop::Router, world, hands),
        Err(DropReason::NoPortLeft) => step_aside::<P, I>(frame, slot, world, now, hands),
        Err(reason) => Err(reason),
        Ok(None) => unreachable!("that is sent at once"),
    }
}

/// Takes what a pod sends to its gateway: mostly it asks whether that is there.
#[cold]
fn answer_gateway<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    (pod, slot): (&Pod, u16),
    world: &World,
    now: u64,
    hands: Hands<'_, P>,
) -> Result<Kept, DropReason> {
    let front = front::<I>(frame.head())?;
    if front.is_fragment() {
        frame.egress = Port::Endpoint(slot);
        let way = (Port::Endpoint(slot), Hop::Router, Place::Gateway);
        return datagrams::pass(frame, &front, way, (world, now), hands);
    }
    match stand_at_gateway(frame, &front, slot, hands.tracking, world, now)?.and_then(Stood::turn) {
        Some(turn) => turn_and_send::<P, I>(frame, turn, Hop::Router, world, hands),
        None => gateway::echo(frame, pod, slot),
    }
}

/// Sends what is a fragment, or for the node's other pods or the world, on its way.
#[inline(never)]
fn forward_elsewhere<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    (slot, receiver): (u16, Option<Owner>),
    world: &World,
    now: u64,
    hands: Hands<'_, P>,
) -> Result<Kept, DropReason> {
    // Read once more: what a call is handed cannot stay in registers.
    let front = front::<I>(frame.head())?;
    let from = Port::Endpoint(slot);
    if let Some(owner @ (Owner::Service | Owner::Node | Owner::PeerNode(_))) = receiver {
        // A fragment: the others were served.
        if owner != Owner::Service {
            route(frame, &front, receiver, world)?;
        }
        let way = (from, Hop::Router, Place::Service(owner));
        return datagrams::pass(frame, &front, way, (world, now), hands);
    }
    let egress = route(frame, &front, receiver, world)?;
    if front.is_fragment() {
        return datagrams::pass(frame, &front, (from, Hop::Router, Place::Pods), (world, now), hands);
    }
    match track(frame, &front, from, hands.tracking, world, now) {
        Ok(None) => send(frame, &front, (Hop::Router, egress), world, hands.pool, hands.pieces),
        tracked => turned::<P, I>(frame, (slot, tracked), world, now, hands),
    }
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
pub(crate) fn route<B: Buffer, I: Ip>(
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
        Some(Owner::Names) if is_question(front.transport) => Port::Host,
        Some(Owner::Names) => return Err(DropReason::ServiceRefused),
        Some(Owner::Peer(peer) | Owner::PeerNode(peer)) => {
            frame.peer = peer;
            Port::Uplink
        }
        Some(Owner::Nobody) => return Err(DropReason::NoSuchEndpoint),
        None if I::is_routable(front.destination) => Port::Host,
        Some(Owner::Gateway | Owner::Service) | None => return Err(DropReason::NoRoute),
    };
    frame.egress = egress;
    Ok(egress)
}

/// Whether a packet is for the one port that is open where names are answered. What later fragments are, their first one tells.
#[cold]
fn is_question(transport: Option<Transport>) -> bool {
    transport.is_some_and(|transport| {
        let open = matches!(transport.protocol(), IpProtocol::UDP | IpProtocol::TCP);
        let asks = transport.has_ports() && transport.ports()[1] == NameServer::PORT;
        open && (transport.inside() || asks)
    })
}

/// Whether a packet is a datagram for a UDP port. A first fragment that hides its ports is refused (RFC 7112); later ones
/// are of no use without it.
fn is_for_port(transport: Option<Transport>, port: u16) -> Result<bool, DropReason> {
    let transport = transport.ok_or(DropReason::Malformed)?;
    if transport.protocol() != IpProtocol::UDP || transport.inside() {
        return Ok(false);
    }
    if transport.has_ports() { Ok(transport.ports()[1] == port) } else { Err(DropReason::Malformed) }
}
