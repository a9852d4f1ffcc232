//! Paths that carry less than their first link: learned of what routers say of our tunnel frames, and told to the pods whose packets
//! those were (RFC 1191, RFC 8201, RFC 2003 §5.1).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use causeway_model::{DropReason, GATEWAY_MAC};
use causeway_wire::reply::{
    ICMPV4_ERROR_LIMIT, ICMPV6_ERROR_LIMIT, Icmpv4Error, Icmpv6Error, icmpv4_error, icmpv6_error,
};
use causeway_wire::{
    EtherType, Ethernet, Icmpv4, Icmpv4Type, Icmpv6, Icmpv6Type, IpProtocol, Ipv4, Ipv6, Udp, Upper, Vxlan,
};

use crate::burst::Kept;
use crate::limit::ErrorLimits;
use crate::packet::{Family, Front, Ip};
use crate::send::dispatch_anew;
use crate::track::{Tracking, track};
use crate::world::{Owner, World};
use crate::{Buffer, Checksum, Frame, Port, fragment, service};

/// No path is believed to carry less inside the tunnel: what IPv6 asks of every link (RFC 8200 §5).
const LEAST: u16 = 1280;
/// How long a smaller path is remembered, in seconds (RFC 1191 §6.3, RFC 8201 §4).
const LIFETIME: u64 = 600;
const SECOND: u64 = 1_000_000_000;
/// The lowest of the ports that tunnel frames of ours come from.
const FIRST_PORT: u16 = 49_152;
const LONGEST: usize =
    if ICMPV4_ERROR_LIMIT > ICMPV6_ERROR_LIMIT { ICMPV4_ERROR_LIMIT } else { ICMPV6_ERROR_LIMIT };

/// What the paths to all peers carry.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    /// Whether any carries less than its link. Shared by all worlds, as are the words.
    any: Arc<AtomicBool>,
    /// The tunnel address of each, and a word: the second at which it is forgotten, and behind it the longest inner packet in 16 bits.
    peers: Box<[(Option<IpAddr>, Arc<AtomicU64>)]>,
}

impl Paths {
    /// Nothing is known of the paths to these.
    pub(crate) fn new(peers: impl Iterator<Item = Option<IpAddr>>) -> Self {
        let peers = peers.map(|peer| (peer, Arc::default())).collect();
        Self { any: Arc::default(), peers }
    }

    /// Goes on with what was learned in an earlier world, and what is still learned there: a router may say a thing but once.
    pub(crate) fn inherit(&mut self, before: &Self) {
        self.any = Arc::clone(&before.any);
        let at = |number: usize, address: IpAddr| {
            before.peers.get(number).filter(|(known, _)| *known == Some(address)).map(|(_, word)| word)
        };
        let mut moved = None;
        for (number, (address, word)) in self.peers.iter_mut().enumerate() {
            let Some(address) = *address else { continue };
            // Numbers change only where nodes come and go.
            let same = at(number, address).or_else(|| {
                let numbers = moved.get_or_insert_with(|| {
                    let numbered = before.peers.iter().enumerate();
                    numbered
                        .filter_map(|(number, (address, _))| Some(((*address)?, number)))
                        .collect::<HashMap<_, _>>()
                });
                at(*numbers.get(&address)?, address)
            });
            if let Some(same) = same {
                *word = Arc::clone(same);
            }
        }
    }

    /// The longest packet for a peer, where no link carries more than `most`.
    #[inline(always)]
    pub(crate) fn mtu(&self, peer: u16, most: u16) -> u16 {
        if self.any.load(Ordering::Relaxed) {
            self.learned(peer).map_or(most, |mtu| mtu.min(most))
        } else {
            most
        }
    }

    /// The paths that carry less than their first link, by tunnel address.
    pub(crate) fn narrow(&self) -> impl Iterator<Item = (IpAddr, u16)> {
        let learned = |(number, (address, _)): (usize, &(Option<IpAddr>, _))| {
            Some(((*address)?, self.learned(u16::try_from(number).ok()?)?))
        };
        self.peers.iter().enumerate().filter_map(learned)
    }

    #[cold]
    fn learned(&self, peer: u16) -> Option<u16> {
        let word = self.peers.get(usize::from(peer))?.1.load(SeqCst);
        (word != 0).then_some(word as u16)
    }

    /// Takes up that a path carries so much and no more. A path is not believed to carry more than was said before, until that
    /// is forgotten.
    fn learn(&self, peer: u16, mtu: u16, now: u64) {
        if self.learned(peer).is_none_or(|known| mtu <= known)
            && let Some((_, word)) = self.peers.get(usize::from(peer))
        {
            word.store((now / SECOND + LIFETIME) << 16 | u64::from(mtu), SeqCst);
            self.any.store(true, SeqCst);
        }
    }

    /// Forgets what is old.
    pub(crate) fn forget(&self, now: u64) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        self.any.store(false, SeqCst);
        for (_, word) in &self.peers {
            let seen = word.load(SeqCst);
            let old = seen >> 16 <= now / SECOND;
            if old && seen != 0 {
                // One that was learned anew meanwhile stays.
                let _ = word.compare_exchange(seen, 0, SeqCst, SeqCst);
            }
            if word.load(SeqCst) != 0 {
                self.any.store(true, SeqCst);
            }
        }
    }
}

/// What a router says of a frame of ours.
struct Told<'a> {
    peer: u16,
    /// The longest outer packet that the next link carries; zero when it does not say.
    mtu: u32,
    /// Of the inner frame what is quoted.
    inner: &'a [u8],
}

/// Hears what is said of our tunnel frames. What is not is not for us.
#[cold]
pub(crate) fn hear<B: Buffer>(
    frame: &mut Frame<B>,
    world: &World,
    (tracking, now): (Option<&Tracking>, u64),
    limits: &mut ErrorLimits,
) -> Result<Kept, DropReason> {
    let verified = frame.offload.checksum != Checksum::Whole;
    let told = read(frame.head(), verified, world).ok_or(DropReason::NotForUs)?;
    let inside = (told.mtu as usize).saturating_sub(world.outer_len());
    let mtu = u16::try_from(inside).unwrap_or(u16::MAX).max(LEAST);
    if mtu >= world.pod_mtu {
        return Ok(Kept::Replaced);
    }
    world.paths.learn(told.peer, mtu, now);
    let mut answer = [0; LONGEST];
    let about = match Family::of(told.inner) {
        Some(Family::V4) => tell::<Ipv4>(&told, mtu, world, &mut answer),
        Some(Family::V6) => tell::<Ipv6>(&told, mtu, world, &mut answer),
        None => None,
    };
    let Some((egress, ether_type, len)) = about.filter(|_| limits.too_big.take(now)) else {
        return Ok(Kept::Replaced);
    };
    frame.replace(Ethernet::new(GATEWAY_MAC, GATEWAY_MAC, ether_type), &answer[..len])?;
    frame.egress = egress;
    let packet = frame.head().get(Ethernet::LEN..).unwrap_or_default();
    if ether_type == EtherType::IPV4 {
        let front = Ipv4::front(packet)?;
        heard(frame, &front, (tracking, now), world)?;
    } else {
        let front = Ipv6::front(packet)?;
        heard(frame, &front, (tracking, now), world)?;
    }
    dispatch_anew(frame, world)?;
    Ok(Kept::Whole)
}

/// Lets a pod hear of its connections only, and of services as it knows them.
fn heard<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    front: &Front<I>,
    (tracking, now): (Option<&Tracking>, u64),
    world: &World,
) -> Result<(), DropReason> {
    let turn = track(frame, front, Port::Uplink, tracking, world, now)?;
    if let (Some(turn), Some(Tracking { connections, .. })) = (turn, tracking) {
        service::turn(frame, front, turn, connections)?;
    }
    Ok(())
}

/// Reads an error about a tunnel frame that we have sent to a peer.
fn read<'a>(head: &'a [u8], verified: bool, world: &World) -> Option<Told<'a>> {
    let packet = head.get(Ethernet::LEN..)?;
    let (mtu, quoted) = match (Family::of(head)?, world.tunnel_address) {
        (Family::V4, IpAddr::V4(own)) => {
            let (ip, message) = Ipv4::split_verified(packet).ok()?;
            let message = message.get(..usize::from(ip.total_length()) - ip.header_len())?;
            let (icmp, quoted) = Icmpv4::split(message).ok()?;
            let is_it = icmp.kind() == Icmpv4Type::DESTINATION_UNREACHABLE
                && icmp.code() == Icmpv4::FRAGMENTATION_NEEDED;
            let ours = ip.destination() == own && ip.protocol() == IpProtocol::ICMPV4 && !ip.is_fragment();
            let right = verified || Icmpv4::verify(message).is_ok();
            (is_it && ours && right).then_some((u32::from(icmp.next_hop_mtu()), quoted))?
        }
        (Family::V6, IpAddr::V6(own)) => {
            let (ip, message) = Ipv6::split(packet).ok()?;
            let (icmp, quoted) = Icmpv6::split(message).ok()?;
            let is_it = icmp.kind() == Icmpv6Type::PACKET_TOO_BIG;
            let ours = ip.destination() == own && ip.next_header() == IpProtocol::ICMPV6;
            let right = verified || Icmpv6::verify(ip.source(), own, message).is_ok();
            (is_it && ours && right).then_some((icmp.mtu(), quoted))?
        }
        _ => return None,
    };
    let (ends, datagram) = outer(quoted)?;
    let peer = world.sender(ends.1).filter(|_| ends.0 == world.tunnel_address)?;
    let (udp, payload) = Udp::split_partial(datagram).ok()?;
    if udp.destination() != world.overlay.port || udp.source() < FIRST_PORT {
        return None;
    }
    // Of the payload nothing need be quoted; what is must be ours.
    let (vxlan, inner) = match Vxlan::split(payload) {
        Ok((vxlan, inner)) => (Some(vxlan), inner),
        Err(_) => (None, &[][..]),
    };
    let ours = vxlan.map_or(payload.len() < Vxlan::LEN, |vxlan| vxlan.vni() == world.overlay.vni);
    ours.then_some(Told { peer, mtu, inner })
}

/// The ends of a quoted outer packet, and its datagram.
fn outer(quoted: &[u8]) -> Option<((IpAddr, IpAddr), &[u8])> {
    match quoted.first()? >> 4 {
        4 => {
            let (ip, datagram) = Ipv4::split_partial(quoted).ok()?;
            let whole = ip.protocol() == IpProtocol::UDP && !ip.is_fragment();
            whole.then_some(((ip.source().into(), ip.destination().into()), datagram))
        }
        6 => {
            let (ip, payload) = Ipv6::split_partial(quoted).ok()?;
            let upper = Upper::find(ip.next_header(), payload).ok()?;
            let whole = upper.protocol == IpProtocol::UDP && !upper.is_fragment();
            whole.then_some(((ip.source().into(), ip.destination().into()), upper.payload))
        }
        _ => None,
    }
}

/// Writes the error about an inner packet, and says where it goes: to whoever of this node has sent that packet to the peer. None where
/// too little is quoted, or where the packet may be cut.
fn tell<I: Ip>(told: &Told<'_>, mtu: u16, world: &World, out: &mut [u8]) -> Option<(Port, EtherType, usize)> {
    let packet = told.inner.get(Ethernet::LEN..)?;
    let quoted = I::quoted(packet)?;
    let egress = match I::owners(world).get(quoted.source)? {
        Owner::Endpoint(slot) => Port::Endpoint(slot),
        Owner::KernelPod | Owner::Node => Port::Host,
        _ => return None,
    };
    let to = I::owners(world).get(quoted.destination)?;
    if !matches!(to, Owner::Peer(peer) | Owner::PeerNode(peer) if peer == told.peer)
        || fragment::is_allowed(told.inner)
    {
        return None;
    }
    let (ether_type, len) = if I::FAMILY == Family::V4 {
        let error = Icmpv4Error::FragmentationNeeded { mtu };
        (EtherType::IPV4, icmpv4_error(error, world.router.0, GATEWAY_MAC, packet, out))
    } else {
        let error = Icmpv6Error::PacketTooBig { mtu: mtu.into() };
        (EtherType::IPV6, icmpv6_error(error, world.router.1, GATEWAY_MAC, packet, out))
    };
    Some((egress, ether_type, len.ok()?))
}
