use std::net::{Ipv4Addr, Ipv6Addr};

use causeway_model::{DropReason, GATEWAY_MAC};
use causeway_wire::{EtherType, Ethernet};

use crate::burst::Kept;
use crate::packet::{Addresses, examine};
use crate::send::{Hop, send};
use crate::world::{Owner, World};
use crate::{Buffer, Burst, Frame, Pool, Port, Worker, gateway};

/// Takes what the node's stack hands over to where it shall go: what the node itself and its kernel pods send to fast pods and
/// through the tunnel, and what the world sends to fast pods. `now` is nanoseconds of a clock that never goes back.
pub fn from_host<P: Pool>(burst: &mut Burst<P::Buffer>, world: &World, worker: &mut Worker<P>, now: u64) {
    burst.sift(|frame, _| {
        let verdict = admit(frame, world).map(|()| Kept::Whole);
        worker.keeps(verdict, frame, Port::Host, world, now)
    });
    send(burst, Port::Host, Hop::Link, world, worker, now);
}

#[inline]
fn admit<B: Buffer>(frame: &mut Frame<B>, world: &World) -> Result<(), DropReason> {
    let (ethernet, _) = Ethernet::split(frame.head())?;
    let to_gateway = ethernet.destination() == GATEWAY_MAC;
    if ethernet.ether_type() == EtherType::ARP {
        // Every neighbour behind the host port is permanent.
        return Err(DropReason::UnansweredNeighbour);
    }
    let addresses = examine(frame)?;
    if !to_gateway {
        let talk = gateway::is_neighbour_talk(frame.head());
        return Err(if talk { DropReason::UnansweredNeighbour } else { DropReason::NotForUs });
    }
    let (sender, receiver) = world.owners(addresses);
    frame.egress = match receiver {
        Some(Owner::Endpoint(to)) => Port::Endpoint(to),
        Some(Owner::Peer(peer) | Owner::PeerNode(peer)) => {
            frame.peer = peer;
            Port::Uplink
        }
        Some(Owner::Nobody) => return Err(DropReason::NoSuchEndpoint),
        Some(Owner::KernelPod | Owner::Node | Owner::Gateway) | None => return Err(DropReason::NoRoute),
    };
    let allowed = match sender {
        Some(Owner::Node | Owner::KernelPod) => true,
        // Behind the tunnel nobody would believe it.
        None => matches!(frame.egress, Port::Endpoint(_)) && is_one_host(addresses),
        // It would have come by its own port.
        Some(_) => false,
    };
    if allowed { Ok(()) } else { Err(DropReason::SpoofedAddress) }
}

/// Whether a source from outside of all clusters can be somebody's.
fn is_one_host(addresses: Addresses) -> bool {
    match addresses {
        Addresses::V4 { source, .. } => {
            let from = Ipv4Addr::from(source);
            !(from.is_multicast() || from.is_loopback() || from.octets()[0] == 0 || from.octets()[0] >= 240)
        }
        Addresses::V6 { source, .. } => {
            let from = Ipv6Addr::from(source);
            !(from.is_multicast()
                || from.is_loopback()
                || from.is_unspecified()
                || from.is_unicast_link_local())
        }
    }
}
