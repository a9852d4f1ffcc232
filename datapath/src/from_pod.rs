use std::net::{Ipv4Addr, Ipv6Addr};

use causeway_model::{DropReason, GATEWAY_MAC};
use causeway_wire::{EtherType, Ethernet, IpProtocol};

use crate::burst::Kept;
use crate::packet::{Addresses, Transport, examine};
use crate::send::{Hop, send};
use crate::world::{Owner, Pod, World};
use crate::{Buffer, Burst, Frame, Pool, Port, Worker, gateway};

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
    burst.sift(|frame, _| {
        let verdict = match world.pod(slot) {
            Some(pod) => admit(frame, pod, slot, world).map(|()| Kept::Whole),
            None => Err(DropReason::NoSuchPort),
        };
        worker.keeps(verdict, frame, from, world, now)
    });
    send(burst, from, Hop::Router, world, worker, now);
}

/// Lets in what the pod may send, and finds its way.
#[inline]
fn admit<B: Buffer>(frame: &mut Frame<B>, pod: &Pod, slot: u16, world: &World) -> Result<(), DropReason> {
    let (ethernet, _) = Ethernet::split(frame.head())?;
    let to_gateway = ethernet.destination() == GATEWAY_MAC;
    if ethernet.source() != pod.mac {
        return Err(DropReason::SpoofedMac);
    }
    if ethernet.ether_type() == EtherType::ARP {
        return gateway::arp(frame, pod, slot);
    }
    let addresses = examine(frame)?;
    let is_own = match addresses {
        Addresses::V4 { source, .. } => pod.v4 == Some(source),
        Addresses::V6 { source, .. } => {
            if may_be_neighbour_talk(frame.head()) && gateway::is_neighbour_talk(frame.head()) {
                return gateway::neighbour(frame, pod, slot);
            }
            pod.v6 == Some(source)
        }
    };
    if !is_own {
        return Err(DropReason::SpoofedAddress);
    }
    if !to_gateway {
        return Err(DropReason::NotForUs);
    }
    if frame.offload.checksum == crate::Checksum::Verified {
        // A pod's word for it is not enough.
        frame.offload.checksum = crate::Checksum::Whole;
    }
    route(frame, addresses, pod, slot, world)
}

/// Cheap, and true for nearly nothing that is none: ICMPv6 at once, or behind the option that reports carry.
#[inline]
fn may_be_neighbour_talk(head: &[u8]) -> bool {
    const NEXT_HEADER: usize = Ethernet::LEN + 6;
    matches!(
        head.get(NEXT_HEADER).map(|next| IpProtocol(*next)),
        Some(IpProtocol::ICMPV6 | IpProtocol::HOP_BY_HOP)
    )
}

#[inline]
fn route<B: Buffer>(
    frame: &mut Frame<B>,
    addresses: Addresses,
    pod: &Pod,
    slot: u16,
    world: &World,
) -> Result<(), DropReason> {
    let receiver = world.receiver(addresses);
    if matches!(receiver, Some(Owner::Node | Owner::PeerNode(_)))
        && is_for_port(frame.head(), world.overlay.port)?
    {
        return Err(DropReason::TunnelPortFromPod);
    }
    frame.egress = match receiver {
        Some(Owner::Endpoint(to)) => Port::Endpoint(to),
        Some(Owner::KernelPod | Owner::Node) => Port::Host,
        Some(Owner::Gateway) => return gateway::echo(frame, pod, slot),
        Some(Owner::Nobody) => return Err(DropReason::NoSuchEndpoint),
        Some(Owner::Peer(peer) | Owner::PeerNode(peer)) => {
            frame.peer = peer;
            Port::Uplink
        }
        None if is_routable(addresses) => Port::Host,
        None => return Err(DropReason::NoRoute),
    };
    Ok(())
}

/// Whether a packet is a datagram for a UDP port. A first fragment that hides its ports is refused (RFC 7112); later ones
/// are of no use without it.
#[inline]
fn is_for_port(head: &[u8], port: u16) -> Result<bool, DropReason> {
    let transport = Transport::find(head)?;
    if transport.protocol != IpProtocol::UDP || transport.inside {
        return Ok(false);
    }
    let ports = transport.ports(head).ok_or(DropReason::Malformed)?;
    Ok(ports.destination() == port)
}

/// Whether routers forward packets to an address that is none of ours.
fn is_routable(addresses: Addresses) -> bool {
    match addresses {
        Addresses::V4 { destination, .. } => {
            let to = Ipv4Addr::from(destination);
            !(to.is_multicast() || to.is_loopback() || to.octets()[0] == 0 || to.octets()[0] >= 240)
        }
        Addresses::V6 { destination, .. } => {
            let to = Ipv6Addr::from(destination);
            !(to.is_multicast() || to.is_loopback() || to.is_unspecified() || to.is_unicast_link_local())
        }
    }
}
