//! The last stage: a frame whose way is known leaves by it.

use causeway_model::{DropReason, GATEWAY_MAC};
use causeway_wire::{Ethernet, Ipv4, Ipv6, TrafficClass};
use zerocopy::FromBytes;

use crate::burst::{Kept, Pieces};
use crate::outer::{self, MAX_INNER, Macs, OuterV6};
use crate::packet::{Family, Front, Ip};
use crate::world::{Templates, World};
use crate::{Buffer, Frame, Pool, Port, entropy, fragment, offload, segment};

/// What a frame's way through us counts as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hop {
    /// We are a router on the way: the hop limit goes down. Not so towards the host port, where the node's own stack is the router.
    Router,
    /// The node's own stack was the router, and the hop limit is as it should be.
    Link,
}

/// Sends a packet on the way that was found for it, the frame's egress: as one frame, or in pieces where it is too long for that.
#[inline(always)]
pub(crate) fn send<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    front: &Front<I>,
    (hop, egress): (Hop, Port),
    world: &World,
    pool: &mut P,
    pieces: &mut Pieces<P::Buffer>,
) -> Result<Kept, DropReason> {
    let hop = if egress == Port::Host { Hop::Link } else { hop };
    if hop == Hop::Router && front.hop_limit <= 1 {
        return Err(DropReason::HopLimit);
    }
    let mtu = mtu((egress, frame.peer), world);
    if packet_len(frame) > mtu || (egress == Port::Uplink && frame.len() > MAX_INNER) {
        return in_pieces::<P, I>(frame, mtu, hop, world, pool, pieces);
    }
    dispatch(frame, front, (hop, egress), world)?;
    Ok(Kept::Whole)
}

/// Why a frame would not go on its way even if its connection let it: a router looks at that first, and its sender is told.
#[cold]
pub(crate) fn impassable<B: Buffer>(frame: &Frame<B>, from: Port, world: &World) -> Option<DropReason> {
    let (hop_limit, is_fragment) = match Family::of(frame.head())? {
        Family::V4 => Ipv4::front_again(frame.head()).map(|front| (front.hop_limit, front.is_fragment())),
        Family::V6 => Ipv6::front_again(frame.head()).map(|front| (front.hop_limit, front.is_fragment())),
    }
    .ok()?;
    let is_router = from != Port::Host && frame.egress != Port::Host;
    if is_router && hop_limit <= 1 {
        return Some(DropReason::HopLimit);
    }
    // Fragments go together or not at all.
    let is_long = !is_fragment && packet_len(frame) > mtu((frame.egress, frame.peer), world);
    (is_long && !fragment::is_allowed(frame.head())).then_some(DropReason::TooBig)
}

/// The longest packet that goes out by a port, by the uplink to a peer.
#[inline(always)]
pub(crate) fn mtu((egress, peer): (Port, u16), world: &World) -> usize {
    match egress {
        Port::Host => usize::MAX,
        Port::Uplink => world.paths.mtu(peer, world.pod_mtu).into(),
        Port::Endpoint(slot) => world.pod(slot).map_or(world.pod_mtu, |pod| pod.mtu).into(),
    }
}

/// Bytes of the packet in a frame, or of the longest packet that the frame stands for.
#[inline]
fn packet_len<B: Buffer>(frame: &Frame<B>) -> usize {
    match frame.offload.gso {
        None => frame.len() - Ethernet::LEN,
        Some(gso) => usize::from(gso.headers) + usize::from(gso.size) - Ethernet::LEN,
    }
}

/// [`dispatch`] of a frame that was made here.
#[cold]
pub(crate) fn dispatch_anew<B: Buffer>(frame: &mut Frame<B>, world: &World) -> Result<(), DropReason> {
    let packet = frame.head().get(Ethernet::LEN..).unwrap_or_default();
    let way = (Hop::Link, frame.egress);
    match Family::of(frame.head()) {
        Some(Family::V4) => dispatch(frame, &Ipv4::front(packet)?, way, world),
        Some(Family::V6) => dispatch(frame, &Ipv6::front(packet)?, way, world),
        None => Err(DropReason::UnhandledEtherType),
    }
}

/// Counts the hop, and rewrites the hardware addresses or puts the tunnel's headers in their place.
#[inline(always)]
fn dispatch<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    front: &Front<I>,
    (hop, egress): (Hop, Port),
    world: &World,
) -> Result<(), DropReason> {
    let destination = match egress {
        Port::Host => world.host_mac,
        Port::Endpoint(slot) => world.pod(slot).ok_or(DropReason::NoSuchEndpoint)?.mac,
        Port::Uplink => {
            let (peer, flow) = (usize::from(frame.peer), (front.class, entropy::source_port(front)));
            return match &world.templates {
                Templates::V4(peers) => {
                    let template = peers.get(peer).and_then(|template| template.0.as_ref());
                    outer::encap::<B, I, _>(frame, flow, hop, template.ok_or(DropReason::UnresolvedNextHop)?)
                }
                Templates::V6(peers) => {
                    let template = peers.get(peer).and_then(|template| template.0.as_ref());
                    encap_v6::<B, I>(frame, flow, hop, template.ok_or(DropReason::UnresolvedNextHop)?)
                }
            };
        }
    };
    let (place, rest) = Macs::mut_from_prefix(frame.head_mut()).map_err(|_| DropReason::Malformed)?;
    (place.destination, place.source) = (destination, GATEWAY_MAC);
    if hop == Hop::Router {
        count_hop::<I>(rest);
    }
    Ok(())
}

/// Encapsulation over IPv6, compiled for itself.
#[inline(never)]
fn encap_v6<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    flow: (TrafficClass, u16),
    hop: Hop,
    template: &OuterV6,
) -> Result<(), DropReason> {
    outer::encap::<B, I, _>(frame, flow, hop, template)
}

/// Takes one from the hop limit of the packet behind an EtherType.
#[inline(always)]
pub(crate) fn count_hop<I: Ip>(typed: &mut [u8]) {
    if let Some((_, packet)) = typed.split_first_chunk_mut::<2>() {
        I::count_hop(packet);
    }
}

/// Sends a frame that is too long for its way as several that are not: a frame that stands for several packets as these, and
/// packets that may be fragmented as fragments.
#[cold]
fn in_pieces<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    mtu: usize,
    hop: Hop,
    world: &World,
    pool: &mut P,
    pieces: &mut Pieces<P::Buffer>,
) -> Result<Kept, DropReason> {
    if packet_len(frame) > mtu && !fragment::is_allowed(frame.head()) {
        return Err(DropReason::TooBig);
    }
    if hop == Hop::Router {
        I::count_hop(frame.head_mut().get_mut(Ethernet::LEN..).unwrap_or_default());
    }
    let before = pieces.len();
    let (egress, peer) = (frame.egress, frame.peer);
    let mut leave = |mut piece: Frame<P::Buffer>| {
        (piece.egress, piece.peer) = (egress, peer);
        dispatch_anew(&mut piece, world)?;
        pieces.push(piece)
    };
    let cut = if frame.offload.gso.is_some() {
        segment::segment(frame, pool, |segment, pool| match packet_len(&segment) > mtu {
            true => fragment::fragment(&segment, mtu, pool, &mut leave),
            false => leave(segment),
        })
    } else {
        offload::complete(frame).and_then(|()| fragment::fragment(frame, mtu, pool, &mut leave))
    };
    if cut.is_err() {
        // Pieces without the others are of no use to their receiver.
        pieces.truncate(before);
    }
    cut.map(|()| Kept::Replaced)
}
