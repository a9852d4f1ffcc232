//! The last stage: a frame whose way is known leaves by it.

use causeway_model::{DropReason, GATEWAY_MAC};
use causeway_wire::{Ethernet, Ipv4, Ipv6};
use zerocopy::FromBytes;

use crate::burst::{Kept, Pieces};
use crate::outer::{self, MAX_INNER, Macs};
use crate::packet::Family;
use crate::world::{Templates, World};
use crate::{Buffer, Burst, Frame, Pool, Port, Worker, fragment, offload, segment};

/// What a frame's way through us counts as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hop {
    /// We are a router on the way: the hop limit goes down. Not so towards the host port, where the node's own stack is the router.
    Router,
    /// The node's own stack was the router, and the hop limit is as it should be.
    Link,
}

/// Sends every frame of a burst on its way, and tells the senders of those that cannot go.
#[inline]
pub(crate) fn send<P: Pool>(
    burst: &mut Burst<P::Buffer>,
    from: Port,
    hop: Hop,
    world: &World,
    worker: &mut Worker<P>,
    now: u64,
) {
    burst.sift(|frame, pieces| {
        let verdict = forward(frame, hop, world, &mut worker.pool, pieces);
        worker.keeps(verdict, frame, from, world, now)
    });
}

#[inline]
fn forward<P: Pool>(
    frame: &mut Frame<P::Buffer>,
    hop: Hop,
    world: &World,
    pool: &mut P,
    pieces: &mut Pieces<P::Buffer>,
) -> Result<Kept, DropReason> {
    if frame.answered {
        return Ok(Kept::Whole);
    }
    let mtu = mtu(frame, world);
    let hop = if frame.egress == Port::Host { Hop::Link } else { hop };
    if hop == Hop::Router && !may_hop(frame) {
        return Err(DropReason::HopLimit);
    }
    if packet_len(frame) > mtu || (frame.egress == Port::Uplink && frame.len() > MAX_INNER) {
        return in_pieces(frame, mtu, hop, world, pool, pieces);
    }
    if hop == Hop::Router {
        count_hop(frame);
    }
    dispatch(frame, world)?;
    Ok(Kept::Whole)
}

/// The longest packet that a frame's egress takes.
#[inline]
pub(crate) fn mtu<B: Buffer>(frame: &Frame<B>, world: &World) -> usize {
    match frame.egress {
        Port::Host => usize::MAX,
        Port::Uplink => world.pod_mtu.into(),
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

/// Rewrites the hardware addresses, or puts the tunnel's headers in front.
#[inline]
pub(crate) fn dispatch<B: Buffer>(frame: &mut Frame<B>, world: &World) -> Result<(), DropReason> {
    match frame.egress {
        Port::Host => Macs { destination: world.host_mac, source: GATEWAY_MAC }.write(frame),
        Port::Endpoint(slot) => {
            let pod = world.pod(slot).ok_or(DropReason::NoSuchEndpoint)?;
            Macs { destination: pod.mac, source: GATEWAY_MAC }.write(frame)
        }
        Port::Uplink => {
            let peer = usize::from(frame.peer);
            match &world.templates {
                Templates::V4(peers) => {
                    let template = peers.get(peer).and_then(|template| template.0.as_ref());
                    outer::encap(frame, template.ok_or(DropReason::UnresolvedNextHop)?)
                }
                Templates::V6(peers) => {
                    let template = peers.get(peer).and_then(|template| template.0.as_ref());
                    outer::encap(frame, template.ok_or(DropReason::UnresolvedNextHop)?)
                }
            }
        }
    }
}

/// Whether the packet in a frame may be forwarded once more.
#[inline]
fn may_hop<B: Buffer>(frame: &Frame<B>) -> bool {
    let head = frame.head();
    let at = if Family::of(head) == Some(Family::V4) { Ethernet::LEN + 8 } else { Ethernet::LEN + 7 };
    head.get(at).is_some_and(|limit| *limit > 1)
}

/// Takes one from the hop limit of a packet that has more than one.
#[inline]
fn count_hop<B: Buffer>(frame: &mut Frame<B>) {
    let head = frame.head_mut();
    let family = Family::of(head);
    let packet = head.get_mut(Ethernet::LEN..).unwrap_or_default();
    if family == Some(Family::V4) {
        if let Ok((ip, _)) = Ipv4::mut_from_prefix(packet) {
            ip.decrement_ttl();
        }
    } else if let Ok((ip, _)) = Ipv6::mut_from_prefix(packet) {
        ip.decrement_hop_limit();
    }
}

/// Sends a frame that is too long for its way as several that are not: a frame that stands for several packets as these, and
/// packets that may be fragmented as fragments.
#[cold]
fn in_pieces<P: Pool>(
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
        count_hop(frame);
    }
    let before = pieces.len();
    let (egress, peer) = (frame.egress, frame.peer);
    let mut leave = |mut piece: Frame<P::Buffer>| {
        (piece.egress, piece.peer) = (egress, peer);
        dispatch(&mut piece, world)?;
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
