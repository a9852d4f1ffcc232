use std::net::IpAddr;

use causeway_model::DropReason;
use causeway_wire::checksum::Sum;
use causeway_wire::{Ecn, EtherType, Ethernet, IpProtocol, Ipv4, Ipv6, Udp, Upper, Vxlan};
use zerocopy::FromBytes;

use crate::burst::Kept;
use crate::packet::{Addresses, Family, examine};
use crate::send::{Hop, send};
use crate::world::{Owner, World};
use crate::{Buffer, Burst, Checksum, Frame, Pool, Port, Worker};

/// Takes what came out of the tunnel to the pods and the node's stack: only from known nodes, only from what is theirs.
/// `now` is nanoseconds of a clock that never goes back.
pub fn from_uplink<P: Pool>(burst: &mut Burst<P::Buffer>, world: &World, worker: &mut Worker<P>, now: u64) {
    let (mut packets, mut bytes) = (0, 0);
    burst.sift(|frame, _| {
        let len = frame.len() as u64;
        let verdict = open_tunnel(frame, world).and_then(|ecn| {
            (packets, bytes) = (packets + 1, bytes + len);
            admit(frame, ecn, world).map(|()| Kept::Whole)
        });
        worker.keeps(verdict, frame, Port::Uplink, world, now)
    });
    worker.tally.received(Port::Uplink, packets, bytes);
    send(burst, Port::Uplink, Hop::Router, world, worker, now);
}

/// What the outer IP header says.
struct Envelope {
    addresses: Addresses,
    ecn: Ecn,
    fragment: bool,
    /// Where the UDP header begins.
    udp: usize,
    /// Bytes of the frame that are the packet's.
    len: usize,
    /// The pseudo header, its length left out.
    pseudo: Sum,
}

/// Takes off the outer headers of a tunnel frame for us, notes whose it is, and tells its congestion bits.
#[inline]
fn open_tunnel<B: Buffer>(frame: &mut Frame<B>, world: &World) -> Result<Ecn, DropReason> {
    let envelope = envelope(frame.head(), world)?;
    let sender = world.sender(envelope.addresses);
    if envelope.fragment {
        // Where it was to cannot be told; what a stranger sends in fragments is no tunnel's.
        return Err(if sender.is_some() { DropReason::OuterFragment } else { DropReason::NotForUs });
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
    let peer = sender.ok_or(DropReason::UnknownSender)?;
    let unchecked = udp.checksum() == 0;
    frame.truncate(envelope.udp + len);
    verify(frame, &envelope, unchecked)?;
    let outer = envelope.udp + Udp::LEN + Vxlan::LEN;
    frame.pull(outer)?;
    frame.offload = frame.offload.pulled(outer);
    frame.peer = peer;
    Ok(envelope.ecn)
}

/// Reads the outer IP header, if the packet can be a tunnel's and is for us.
#[inline]
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
                addresses: Addresses::V4 { source: ip.source().into(), destination: own.into() },
                ecn: ip.ecn(),
                fragment: ip.is_fragment(),
                udp: Ethernet::LEN + ip.header_len(),
                len: Ethernet::LEN + usize::from(ip.total_length()),
                pseudo: Sum::ipv4_pseudo(ip.source(), own, IpProtocol::UDP, 0),
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
                addresses: Addresses::V6 { source: ip.source().into(), destination: own.into() },
                ecn: ip.ecn(),
                fragment: upper.is_fragment(),
                udp: Ethernet::LEN + Ipv6::LEN + upper.offset,
                len: Ethernet::LEN + Ipv6::LEN + usize::from(ip.payload_length()),
                pseudo: Sum::ipv6_pseudo(ip.source(), own, IpProtocol::UDP, 0),
            })
        }
        _ => Err(DropReason::NotForUs),
    }
}

/// Verifies the outer checksum. None is fine over IPv4 and refused over IPv6 (RFC 7348 §5, RFC 6935 §5). One that its sender left to
/// hardware, or that hardware found right, is believed: the frame never left this machine, or was looked at.
#[inline]
fn verify<B: Buffer>(frame: &Frame<B>, envelope: &Envelope, unchecked: bool) -> Result<(), DropReason> {
    if unchecked {
        let optional = matches!(envelope.addresses, Addresses::V4 { .. });
        return if optional { Ok(()) } else { Err(DropReason::OuterChecksum) };
    }
    if frame.offload.checksum != Checksum::Whole || frame.offload.gso.is_some() {
        return Ok(());
    }
    let len = (frame.len() - envelope.udp) as u16;
    match frame.add_from(envelope.udp, envelope.pseudo.word(len)).checksum() {
        0 => Ok(()),
        _ => Err(DropReason::OuterChecksum),
    }
}

/// Lets in an inner packet that its sender may send, and finds its way.
#[inline]
fn admit<B: Buffer>(frame: &mut Frame<B>, outer: Ecn, world: &World) -> Result<(), DropReason> {
    let (ethernet, _) = Ethernet::split(frame.head())?;
    match ethernet.ether_type() {
        EtherType::IPV4 | EtherType::IPV6 => {}
        other if other.is_tag() => return Err(DropReason::InnerVlan),
        _ => return Err(DropReason::InnerNotIp),
    }
    let for_us = ethernet.destination() == world.vtep_mac;
    let addresses = examine(frame)?;
    let (sender, receiver) = world.owners(addresses);
    match sender {
        Some(Owner::Peer(peer) | Owner::PeerNode(peer)) if peer == frame.peer => {}
        _ => return Err(DropReason::ForeignInnerSource),
    }
    if !for_us {
        return Err(DropReason::NotForUs);
    }
    leave_tunnel(frame, outer)?;
    frame.egress = match receiver {
        Some(Owner::Endpoint(to)) => Port::Endpoint(to),
        Some(Owner::KernelPod | Owner::Node) => Port::Host,
        Some(Owner::Nobody) => return Err(DropReason::NoSuchEndpoint),
        // What came by the tunnel leaves it here.
        Some(Owner::Peer(_) | Owner::PeerNode(_) | Owner::Gateway) | None => return Err(DropReason::NoRoute),
    };
    Ok(())
}

/// Carries the outer congestion bits over (RFC 6040 §4.2).
#[inline]
fn leave_tunnel<B: Buffer>(frame: &mut Frame<B>, outer: Ecn) -> Result<(), DropReason> {
    let head = frame.head_mut();
    let family = Family::of(head);
    let packet = head.get_mut(Ethernet::LEN..).unwrap_or_default();
    if family == Some(Family::V4) {
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
