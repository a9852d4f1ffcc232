//! The connection stage: a packet of a pod belongs to a connection, begins one that it may begin, or goes no further.

use std::hint;

use causeway_model::DropReason;
use causeway_wire::{Ethernet, IpProtocol, Ipv4, Ports};

use crate::connection::{Asks, Class, Connections, End, Key, Moment, Packet, Place, Standing, classify};
use crate::packet::{Front, Ip, Transport};
use crate::{Buffer, Burst, Frame, Port, World};

/// The connections of a node's pods.
#[derive(Clone, Copy, Debug)]
pub struct Tracking {
    /// The table that all workers share.
    pub connections: Connections,
}

/// Follows a packet between two ports; one between others than pods of this path is none of ours.
#[inline(always)]
pub(crate) fn track<B: Buffer, I: Ip>(
    frame: &Frame<B>,
    front: &Front<I>,
    from: Port,
    tracking: Option<&Tracking>,
    world: &World,
    now: u64,
) -> Result<(), DropReason> {
    // Without connections every packet stands alone, and mostly nobody minds.
    if tracking.is_none() && !world.denies_new {
        return Ok(());
    }
    stand(frame, front, from, tracking, world, now).map(drop)
}

/// [`track`], and which connection that is, and which of its ends has sent the packet.
#[inline(always)]
pub(crate) fn stand<B: Buffer, I: Ip>(
    frame: &Frame<B>,
    front: &Front<I>,
    from: Port,
    tracking: Option<&Tracking>,
    world: &World,
    now: u64,
) -> Result<Option<(Place, End)>, DropReason> {
    let flow = Flow::<I> { source: front.source, destination: front.destination, transport: front.transport };
    follow(frame, flow, from, tracking, world, now)
}

/// What of a packet the stage must know.
#[derive(Clone, Copy)]
struct Flow<I: Ip> {
    source: I::Address,
    destination: I::Address,
    transport: Option<Transport>,
}

/// The stage itself. A call, so that the program around it, and its registers, are the same with and without connections. What
/// is known of the packet is handed over as a copy: what others point to cannot stay in registers.
#[inline(never)]
fn follow<B: Buffer, I: Ip>(
    frame: &Frame<B>,
    flow: Flow<I>,
    from: Port,
    tracking: Option<&Tracking>,
    world: &World,
    now: u64,
) -> Result<Option<(Place, End)>, DropReason> {
    let ((Port::Endpoint(owner), _) | (_, Port::Endpoint(owner))) = (from, frame.egress) else {
        return Ok(None);
    };
    let may_begin = |asks| {
        let refuses =
            |port| matches!(port, Port::Endpoint(slot) if world.pod(slot).is_none_or(|pod| pod.deny_new));
        if refuses(from) || refuses(frame.egress) {
            return Err(DropReason::DeniedNew);
        }
        let has = |tracking: &Tracking| tracking.connections.count_of(owner);
        match tracking {
            Some(tracking) if asks == Asks::ToBegin && has(tracking) >= world.connections_per_pod => {
                Err(DropReason::ConnectionLimit)
            }
            _ => Ok(owner),
        }
    };
    let (Some(tracking), Some(transport)) = (tracking, flow.transport.filter(|t| !t.inside)) else {
        return may_begin(Asks::ToBegin).map(|_| None);
    };
    let packet: Packet<'_, I> = Packet {
        source: flow.source,
        destination: flow.destination,
        protocol: transport.protocol,
        transport: frame.head().get(transport.offset..).unwrap_or_default(),
        len: frame.len() - transport.offset.min(frame.len()),
        count: (packets(frame), (frame.len() - Ethernet::LEN) as u64),
    };
    let class = classify(&packet)?;
    let hash = match class {
        Class::Of(key, _) | Class::About(key, _) => key.hash(),
        Class::Single => 0,
    };
    let now = (Moment { nanos: now }, &world.timeouts);
    let standing = tracking.connections.follow(&packet, class, hash, now, may_begin)?;
    Ok(match (class, standing) {
        (Class::Of(_, end), Standing::Begins(place) | Standing::Belongs(place, _)) => Some((place, end)),
        _ => None,
    })
}

/// How many packets a frame stands for.
#[inline(always)]
fn packets<B: Buffer>(frame: &Frame<B>) -> u64 {
    match frame.offload.gso {
        None => 1,
        Some(gso) => (frame.len() - usize::from(gso.headers)).div_ceil(gso.size.max(1).into()) as u64,
    }
}

/// Brings the connections of a burst nearer before they are asked for one by one: reads that wait for nothing overlap. `at` is
/// where in a frame the pods' part begins.
#[inline(always)]
pub(crate) fn approach<B: Buffer>(burst: &Burst<B>, at: usize, tracking: Option<&Tracking>) {
    let Some(Tracking { connections, .. }) = tracking else { return };
    let mut seen = 0;
    for frame in burst.frames() {
        if let Some(hash) = glance(frame.head().get(at..).unwrap_or_default()) {
            seen ^= connections.approach(hash);
        }
    }
    hint::black_box(seen);
}

/// The hash of the connection of the commonest packets. A wrong guess costs time and nothing else.
#[inline(always)]
fn glance(inner: &[u8]) -> Option<u64> {
    let packet = inner.get(Ethernet::LEN..)?;
    let (ip, rest) = packet.split_first_chunk::<{ Ipv4::LEN }>()?;
    if ip[0] != 0x45 || inner[12..14] != [8, 0] {
        return None;
    }
    let (ports, _) = Ports::split(rest).ok()?;
    let word = |at: usize| u32::from_be_bytes([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
    let (source, destination) = ((word(12), ports.source()), (word(16), ports.destination()));
    Some(Key::v4(source, destination, IpProtocol(ip[9])).0.hash())
}
