use std::net::{IpAddr, Ipv4Addr};

use causeway_model::DropReason;
use causeway_wire::checksum::Sum;
use causeway_wire::{Ecn, Ethernet, IpProtocol, Ipv4, Ipv6, Malformed, Udp, Upper, Vxlan};
use zerocopy::FromBytes;

use crate::bandwidth::limit_receivers;
use crate::burst::Kept;
use crate::datagrams::{self, Hands, Place};
use crate::outer::{Outer, OuterV4};
use crate::packet::{Common, Family, Front, Ip, examine, front};
use crate::send::{Hop, send};
use crate::service::{answer, turn_and_send};
use crate::track::{Hint, approach, track};
use crate::world::{Owner, World};
use crate::{Buffer, Burst, Checksum, Frame, Pool, Port, Worker, path_mtu};

/// Takes what came out of the tunnel to the pods and the node's stack: only from known nodes, only from what is theirs.
/// `now` is nanoseconds of a clock that never goes back.
pub fn from_uplink<P: Pool>(burst: &mut Burst<P::Buffer>, world: &World, worker: &mut Worker<P>, now: u64) {
    let (mut packets, mut bytes) = (0, 0);
    let own = match world.tunnel_address {
        IpAddr::V4(own) => Some(own),
        IpAddr::V6(_) => None,
    };
    let mut hints = approach(burst, world.outer_len(), worker.tracking.as_ref());
    burst.sift(|frame, pieces| {
        let (len, hint) = (frame.len() as u64, hints.next());
        let verdict = match unwrap_plain(frame, own, world) {
            Some((front, ecn)) => {
                (packets, bytes) = (packets + 1, bytes + len);
                pass(frame, (front, hint), ecn, world, now, Hands::of(worker, pieces))
            }
            None => match open_tunnel(frame, world) {
                Ok((outer, ecn)) => {
                    (packets, bytes) = (packets + 1, bytes + len);
                    let hint = if outer == world.outer_len() { hint } else { Hint::NONE };
                    deliver_other(frame, hint, ecn, world, now, Hands::of(worker, pieces))
                }
                // No tunnel frame; but it may be about one.
                Err(DropReason::NotForUs) => {
                    path_mtu::hear(frame, world, (worker.tracking.as_ref(), now), &mut worker.limits)
                }
                Err(reason) => Err(reason),
            },
        };
        worker.keeps(verdict, frame, Port::Uplink, world, now)
    });
    worker.tally.received(Port::Uplink, packets, bytes);
    limit_receivers(burst, Port::Uplink, world, worker, now);
}

/// Takes the outer headers off a frame that is of the commonest kind and as it should be: of a peer, from an address that is the peer's,
/// without checksum and padding, and with nothing left to do. What is wrong with others, [`open_tunnel`] and [`deliver`] find out.
#[inline(always)]
fn unwrap_plain<B: Buffer>(
    frame: &mut Frame<B>,
    own: Option<Ipv4Addr>,
    world: &World,
) -> Option<(Front<Ipv4>, Ecn)> {
    let (outer, _) = OuterV4::ref_from_prefix(frame.head()).ok()?;
    let len = frame.len();
    if !outer.is_plain(len, own?, world.overlay) || !frame.offload.is_none() {
        return None;
    }
    let common = Common::of(frame.head().get(OuterV4::LEN..)?)?;
    let (front, ecn) = (common.front(), outer.ip.ecn());
    let peer = world.sender(outer.ip.source().into())?;
    let is_plain = common.ethernet.destination() == world.vtep_mac
        && OuterV4::LEN + Ethernet::LEN + front.len == len
        && Ipv4::owners(world).get_afar(front.source).is_some_and(|owner| owner.is_behind(peer));
    if !is_plain {
        return None;
    }
    frame.pull(OuterV4::LEN).ok()?;
    frame.peer = peer;
    Some((front, ecn))
}

/// What the outer IP header says.
#[derive(Clone, Copy)]
struct Envelope {
    /// The peer that sends from its source address.
    sender: Option<u16>,
    ecn: Ecn,
    fragment: bool,
    /// Where the UDP header begins.
    udp: usize,
    /// Bytes of the frame that are the packet's.
    len: usize,
}

/// Takes off the outer headers of a tunnel frame for us, notes whose it is, and tells how long they are and their congestion bits.
#[inline(never)]
fn open_tunnel<B: Buffer>(frame: &mut Frame<B>, world: &World) -> Result<(usize, Ecn), DropReason> {
    let envelope = envelope(frame.head(), world)?;
    if envelope.fragment {
        // Where it was to cannot be told; what a stranger sends in fragments is no tunnel's.
        return Err(if envelope.sender.is_some() { DropReason::OuterFragment } else { DropReason::NotForUs });
    }
    let (udp, payload) = Udp::split_partial(frame.head().get(envelope.udp..).unwrap_or_default())?;
    if udp.destination() != world.overlay.port {
        return Err(DropReason::NotForUs);
    }
    let len = usize::from(udp.length());
    if envelope.len > frame.len() || envelope.udp + len > envelope.len || len < Udp::LEN + Vxlan::LEN {
        return Err(DropReason::Malformed);
    }
    let (vxlan, _) = Vxlan::split(payload)?;
    if vxlan.vni() != world.overlay.vni {
        return Err(DropReason::NoSuchTunnel);
    }
    let peer = envelope.sender.ok_or(DropReason::UnknownSender)?;
    let (checksum, is_v4) = (udp.checksum(), world.tunnel_address.is_ipv4());
    if frame.len() != envelope.udp + len {
        frame.truncate(envelope.udp + len);
    }
    // No checksum is fine over IPv4 and refused over IPv6 (RFC 7348 §5, RFC 6935 §5).
    if checksum != 0 || !is_v4 {
        verify(frame, envelope.udp, checksum)?;
    }
    let outer = envelope.udp + Udp::LEN + Vxlan::LEN;
    frame.pull(outer)?;
    if !frame.offload.is_none() {
        frame.offload = frame.offload.moved_up(outer);
    }
    frame.peer = peer;
    Ok((outer, envelope.ecn))
}

/// Reads the outer IP header, if the packet can be a tunnel's and is for us.
fn envelope(head: &[u8], world: &World) -> Result<Envelope, DropReason> {
    let packet = head.get(Ethernet::LEN..).ok_or(DropReason::Malformed)?;
    match (Family::of(head), world.tunnel_address) {
        (Some(Family::V4), IpAddr::V4(own)) => {
            let (ip, _) = Ipv4::split_partial(packet)?;
            if ip.destination() != own || ip.protocol() != IpProtocol::UDP {
                return Err(DropReason::NotForUs);
            }
            Ipv4::verify(packet)?;
            Ok(Envelope {
                sender: world.sender(ip.source().into()),
                ecn: ip.ecn(),
                fragment: ip.is_fragment(),
                udp: Ethernet::LEN + ip.header_len(),
                len: Ethernet::LEN + usize::from(ip.total_length()),
            })
        }
        (Some(Family::V6), IpAddr::V6(own)) => {
            let (ip, payload) = Ipv6::split_partial(packet)?;
            if ip.destination() != own {
                return Err(DropReason::NotForUs);
            }
            let upper = Upper::find(ip.next_header(), payload)?;
            if upper.protocol != IpProtocol::UDP {
                return Err(DropReason::NotForUs);
            }
            Ok(Envelope {
                sender: world.sender(ip.source().into()),
                ecn: ip.ecn(),
                fragment: upper.is_fragment(),
                udp: Ethernet::LEN + Ipv6::LEN + upper.offset,
                len: Ethernet::LEN + Ipv6::LEN + usize::from(ip.payload_length()),
            })
        }
        _ => Err(DropReason::NotForUs),
    }
}

/// Verifies the outer checksum of a datagram that begins at `udp`. One that its sender left to hardware, or that hardware found
/// right, is believed: the frame never left this machine, or was looked at.
fn verify<B: Buffer>(frame: &Frame<B>, udp: usize, checksum: u16) -> Result<(), DropReason> {
    if checksum == 0 {
        return Err(DropReason::OuterChecksum);
    }
    if frame.offload.checksum != Checksum::Whole || frame.offload.gso.is_some() {
        return Ok(());
    }
    let packet = frame.head().get(Ethernet::LEN..).unwrap_or_default();
    let len = (frame.len() - udp) as u16;
    let pseudo = if Family::of(frame.head()) == Some(Family::V4) {
        let (ip, _) = Ipv4::split_partial(packet)?;
        Sum::ipv4_pseudo(ip.source(), ip.destination(), IpProtocol::UDP, len)
    } else {
        let (ip, _) = Ipv6::split_partial(packet)?;
        Sum::ipv6_pseudo(ip.source(), ip.destination(), IpProtocol::UDP, len.into())
    };
    match frame.add_from(udp, pseudo).checksum() {
        0 => Ok(()),
        _ => Err(DropReason::OuterChecksum),
    }
}

/// Lets in an inner packet that its sender may send, and sends it on its way.
#[inline(always)]
fn deliver<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    (front, hint): (Result<Front<I>, Malformed>, Hint),
    outer: Ecn,
    world: &World,
    now: u64,
    hands: Hands<'_, P>,
) -> Result<Kept, DropReason> {
    let (ethernet, _) = Ethernet::split(frame.head())?;
    let for_us = ethernet.destination() == world.vtep_mac;
    let front = examine(frame, front)?;
    match I::owners(world).get_afar(front.source) {
        Some(owner) if owner.is_behind(frame.peer) => {}
        _ => return Err(DropReason::ForeignInnerSource),
    }
    if !for_us {
        return Err(DropReason::NotForUs);
    }
    pass::<P, I>(frame, (front, hint), outer, world, now, hands)
}

/// Sends an inner packet on its way that its sender may send.
#[inline(always)]
fn pass<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    (front, hint): (Front<I>, Hint),
    outer: Ecn,
    world: &World,
    now: u64,
    mut hands: Hands<'_, P>,
) -> Result<Kept, DropReason> {
    if outer != Ecn::NotEct {
        leave_tunnel(frame, I::FAMILY, outer)?;
    }
    let front = front.with(hint);
    if hint.is_answer
        && let Some(sent) = answer::<P, I>(frame, Port::Uplink, front.hash, world, now, &mut hands.lend())
    {
        return sent;
    }
    match I::owners(world).get(front.destination) {
        // The commonest way, compiled for itself.
        Some(Owner::Endpoint(to)) if !front.is_fragment() => {
            frame.egress = Port::Endpoint(to);
            match track(frame, &front, Port::Uplink, hands.tracking, world, now)? {
                None => {
                    let way = (Hop::Router, Port::Endpoint(to));
                    send(frame, &front, way, world, hands.pool, hands.pieces)
                }
                Some(turn) => turn_and_send::<P, I>(frame, turn, Hop::Router, world, hands.again()),
            }
        }
        owner => deliver_elsewhere::<P, I>(frame, owner, world, now, hands.again()),
    }
}

/// Sends what is a fragment, or for no pod of the fast path, on its way.
#[inline(never)]
fn deliver_elsewhere<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    owner: Option<Owner>,
    world: &World,
    now: u64,
    hands: Hands<'_, P>,
) -> Result<Kept, DropReason> {
    // Read once more: what a call is handed cannot stay in registers.
    let front = front::<I>(frame.head())?;
    let egress = route(owner)?;
    frame.egress = egress;
    if front.is_fragment() {
        let way = (Port::Uplink, Hop::Router, Place::Pods);
        return datagrams::pass(frame, &front, way, (world, now), hands);
    }
    match track(frame, &front, Port::Uplink, hands.tracking, world, now)? {
        None => send(frame, &front, (Hop::Router, egress), world, hands.pool, hands.pieces),
        Some(turn) => turn_and_send::<P, I>(frame, turn, Hop::Router, world, hands),
    }
}

/// The same of what is not plain, in a function of its own: the loop has few registers.
#[inline(never)]
fn deliver_other<P: Pool>(
    frame: &mut Frame<P::Buffer>,
    hint: Hint,
    outer: Ecn,
    world: &World,
    now: u64,
    hands: Hands<'_, P>,
) -> Result<Kept, DropReason> {
    match Family::of(frame.head()) {
        Some(Family::V4) => {
            let front = front::<Ipv4>(frame.head());
            deliver(frame, (front, hint), outer, world, now, hands)
        }
        Some(Family::V6) => {
            let front = front::<Ipv6>(frame.head());
            deliver(frame, (front, hint), outer, world, now, hands)
        }
        None => Err(without_packet(frame)),
    }
}

/// Why an inner frame without an IP packet is dropped.
#[cold]
fn without_packet<B: Buffer>(frame: &Frame<B>) -> DropReason {
    match Ethernet::split(frame.head()) {
        Err(malformed) => malformed.into(),
        Ok((ethernet, _)) if ethernet.ether_type().is_tag() => DropReason::InnerVlan,
        Ok(_) => DropReason::InnerNotIp,
    }
}

/// The way to an owner. What came by the tunnel leaves it here.
fn route(owner: Option<Owner>) -> Result<Port, DropReason> {
    match owner {
        Some(Owner::Endpoint(to)) => Ok(Port::Endpoint(to)),
        Some(Owner::KernelPod | Owner::Node) => Ok(Port::Host),
        Some(Owner::Nobody) => Err(DropReason::NoSuchEndpoint),
        Some(Owner::Peer(_) | Owner::PeerNode(_) | Owner::Gateway | Owner::Names | Owner::Service) | None => {
            Err(DropReason::NoRoute)
        }
    }
}

/// Carries the outer congestion bits over (RFC 6040 §4.2); without any there is nothing to carry.
fn leave_tunnel<B: Buffer>(frame: &mut Frame<B>, family: Family, outer: Ecn) -> Result<(), DropReason> {
    let packet = frame.head_mut().get_mut(Ethernet::LEN..).unwrap_or_default();
    if family == Family::V4 {
        let (ip, _) = Ipv4::mut_from_prefix(packet).map_err(|_| DropReason::Malformed)?;
        let ecn = ip.ecn().leaving_tunnel(outer).ok_or(DropReason::EcnNotCapable)?;
        if ecn != ip.ecn() {
            ip.remark(ecn);
        }
    } else {
        let (ip, _) = Ipv6::mut_from_prefix(packet).map_err(|_| DropReason::Malformed)?;
        let ecn = ip.ecn().leaving_tunnel(outer).ok_or(DropReason::EcnNotCapable)?;
        if ecn != ip.ecn() {
            ip.remark(ecn);
        }
    }
    Ok(())
}
