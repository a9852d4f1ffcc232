//! What a pod's gateway answers itself: who it is, and that it is there. The question's buffer carries the answer.

use causeway_model::{DropReason, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6};
use causeway_wire::reply::{
    NoReply, arp_reply, icmpv4_echo_reply, icmpv6_echo_reply, neighbor_advertisement,
};
use causeway_wire::{
    Arp, EtherType, Ethernet, IpProtocol, Ipv6, MacAddr, NeighborAdvertisement, NeighborSolicitation,
};

use crate::burst::Kept;
use crate::packet::{Family, Ip};
use crate::transport::Transport;
use crate::world::Pod;
use crate::{Buffer, Frame, Port, offload};

/// The longest echo that is answered: what fits into one frame of any pod's MTU.
const LONGEST_ECHO: usize = 1500;

/// Sends `payload` back to the pod that asked.
fn answer<B: Buffer>(
    frame: &mut Frame<B>,
    (mac, slot): (MacAddr, u16),
    ether_type: EtherType,
    payload: &[u8],
) -> Result<Kept, DropReason> {
    frame.replace(Ethernet::new(mac, GATEWAY_MAC, ether_type), payload)?;
    frame.egress = Port::Endpoint(slot);
    Ok(Kept::Whole)
}

/// Answers a pod's ARP request for its gateway; whatever else a pod says by ARP concerns nobody. A pod that probes for its own
/// address hears nothing and may keep it (RFC 5227 §2.1.1).
pub(crate) fn arp<B: Buffer>(frame: &mut Frame<B>, pod: &Pod, slot: u16) -> Result<Kept, DropReason> {
    let question = frame.head().get(Ethernet::LEN..).unwrap_or_default();
    let (arp, _) = Arp::split(question)?;
    if arp.sender_mac() != pod.mac {
        return Err(DropReason::SpoofedMac);
    }
    // A probe does not say its sender's address.
    let asker = arp.sender_ip();
    if !asker.is_unspecified() && pod.v4 != Some(asker.into()) {
        return Err(DropReason::SpoofedAddress);
    }
    if arp.target_ip() != GATEWAY_V4 {
        return Err(DropReason::UnansweredNeighbour);
    }
    let mut reply = [0; Arp::LEN];
    arp_reply(question, GATEWAY_MAC, &mut reply).map_err(|_| DropReason::UnansweredNeighbour)?;
    answer(frame, (pod.mac, slot), EtherType::ARP, &reply)
}

/// Whether a packet is one that neighbours exchange and nobody forwards: Neighbor Discovery and multicast listeners' reports
/// (RFC 4861, RFC 2710, RFC 3810).
#[inline]
pub(crate) fn is_neighbour_talk<B: Buffer>(frame: &Frame<B>, transport: Option<Transport>) -> bool {
    transport.is_some_and(|transport| {
        transport.protocol() == IpProtocol::ICMPV6
            && !transport.inside()
            && matches!(frame.head().get(transport.offset()), Some(130..=137 | 143))
    })
}

/// Answers a pod's neighbor solicitation for its gateway; whatever else neighbours say concerns nobody. A pod that probes for
/// its own address hears nothing and may keep it (RFC 4862 §5.4).
pub(crate) fn neighbour<B: Buffer>(frame: &mut Frame<B>, pod: &Pod, slot: u16) -> Result<Kept, DropReason> {
    let question = frame.head().get(Ethernet::LEN..).unwrap_or_default();
    let (ip, message) = Ipv6::split(question)?;
    let asker = ip.source();
    let is_own = Ipv6::is_own(pod, asker.into()) || asker.is_unspecified() || asker.is_unicast_link_local();
    if !is_own {
        return Err(DropReason::SpoofedAddress);
    }
    let target = NeighborSolicitation::split(message).map(|(question, _)| question.target());
    if target != Ok(GATEWAY_V6) {
        return Err(DropReason::UnansweredNeighbour);
    }
    let mut reply = [0; Ipv6::LEN + NeighborAdvertisement::LEN + 8];
    neighbor_advertisement(question, GATEWAY_MAC, true, &mut reply)
        .map_err(|_| DropReason::UnansweredNeighbour)?;
    let to = Ipv6::split(&reply)?.0.destination();
    let mac = if to.is_multicast() { MacAddr::for_multicast(to) } else { pod.mac };
    answer(frame, (mac, slot), EtherType::IPV6, &reply)
}

/// Answers a pod that pings its gateway.
#[cold]
pub(crate) fn echo<B: Buffer>(frame: &mut Frame<B>, pod: &Pod, slot: u16) -> Result<Kept, DropReason> {
    offload::complete(frame)?;
    let (ethernet, packet) = Ethernet::split(frame.head())?;
    let ether_type = ethernet.ether_type();
    let mut reply = [0; LONGEST_ECHO];
    let written = match Family::of(frame.head()) {
        Some(Family::V4) => icmpv4_echo_reply(packet, &mut reply),
        _ => icmpv6_echo_reply(packet, &mut reply),
    };
    let len = written.map_err(|no_reply| match no_reply {
        NoReply::Malformed(malformed) => malformed.into(),
        NoReply::NotRequest | NoReply::Forbidden | NoReply::NoRoom => DropReason::NoRoute,
    })?;
    answer(frame, (pod.mac, slot), ether_type, &reply[..len])
}
