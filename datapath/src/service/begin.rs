//! The first packet of a connection with a service: who is asked, who answers, and by which ports the two know each other.

use std::net::IpAddr;

use causeway_model::service::{Answer, Backend};
use causeway_model::{DropReason, GATEWAY_V4};
use causeway_wire::IpProtocol;

use super::choice::{Member, digest};
use super::rewrite::{Ends, ends_of};
use super::stage::{find_way, noted, plainly, turn_and_send, way};
use super::table::Record;
use crate::burst::Kept;
use crate::connection::{Class, End, Found, Key, Keys, Moment, Standing, Turn};
use crate::datagrams::Hands;
use crate::entropy::mix;
use crate::packet::{Family, Front, Ip, front};
use crate::policy::Refusal;
use crate::send::Hop;
use crate::track::{Flow, Passage, Stood, Tracking, note, packet_of};
use crate::world::{Owner, World};
use crate::{Buffer, Frame, Pool, Port};

/// Ports that are tried, at most, for a connection that needs one of its own.
const TRIES: u16 = 1024;

/// What is at an address and a port.
pub(super) enum Served<'a> {
    /// A frontend.
    Frontend(&'a Record),
    /// A port of this node that leads to a pod.
    HostPort(&'a Backend),
    /// A service's address, at a port that is none of its.
    Address,
    /// Nobody, among addresses of services.
    Nobody,
    /// No service.
    No,
}

pub(super) fn find(
    (address, port): (IpAddr, u16),
    owner: Owner,
    protocol: IpProtocol,
    world: &World,
) -> Served<'_> {
    let services = &world.services;
    let of_node = match owner {
        Owner::Node => true,
        Owner::PeerNode(peer) => world.is_of_cluster(peer),
        _ => false,
    };
    if let Some(record) = services.record((address, of_node), protocol, port) {
        return Served::Frontend(record);
    }
    match services.host_port(address, protocol, port).filter(|_| owner == Owner::Node) {
        Some(pod) => Served::HostPort(pod),
        None if services.is_address(address) => Served::Address,
        None if services.covers(address) => Served::Nobody,
        None => Served::No,
    }
}

/// The backend of a client's next connection to a frontend.
fn choose<'a>(
    record: &Record,
    client: IpAddr,
    hash: u64,
    (world, tracking): (&'a World, &Tracking),
    now: u64,
) -> Result<&'a Member, DropReason> {
    if !record.serves(client) {
        return Err(DropReason::ServiceSource);
    }
    let set = match record.answer {
        Answer::Backends(id) => world.services.set(id).ok_or(DropReason::ServiceRefused)?,
        Answer::Refuse => return Err(DropReason::ServiceRefused),
        Answer::Drop => return Err(DropReason::NoLocalBackend),
    };
    let sticks = record.affinity.zip(tracking.clients);
    let last = sticks.and_then(|(within, clients)| clients.last(who(record, client), within, now));
    let same = last.and_then(|half| set.chosen_before(half));
    same.or_else(|| set.choose(hash)).ok_or(DropReason::ServiceRefused)
}

/// A client at a frontend.
fn who(record: &Record, client: IpAddr) -> u64 {
    mix(digest(client, 0) ^ record.digest)
}

/// Begins a connection to whoever is at its destination.
#[inline(never)]
pub(super) fn begin<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    front: &Front<I>,
    (slot, owner): (u16, Owner),
    asked: (Key, u64, End),
    tracking: &Tracking,
    world: &World,
    now: u64,
) -> Result<Stood, DropReason> {
    let (key, hash, _) = asked;
    let (protocol, client) = (key.protocol(), I::any(front.source));
    let [source, destination] = ends_of(front);
    let (record, backend) = match find((I::any(destination.0), destination.1), owner, protocol, world) {
        Served::Frontend(record) => {
            let member = choose(record, client, hash, (world, tracking), now)?;
            (Some((record, member.digest)), member.backend)
        }
        Served::HostPort(pod) => (None, *pod),
        Served::Address => return Err(DropReason::ServiceRefused),
        Served::Nobody => return Err(DropReason::NoSuchService),
        Served::No => return plainly(frame, front, (Port::Endpoint(slot), owner), tracking, world, now),
    };
    let to = (I::of(backend.address).ok_or(DropReason::NoRoute)?, backend.port);
    find_way(frame, front, to.0, world)?;
    // Whoever is its own backend must not see itself as the sender: the answer would never leave it.
    let is_own = frame.egress == Port::Endpoint(slot);
    let source = if is_own { (stranger::<I>(world), source.1) } else { source };
    let (found, begun) = make(frame, front, (slot, [source, to]), asked, tracking, world, now)?;
    found.set_way(world.number as u32, way(frame));
    if let (true, Some((record, digest))) = (begun, record) {
        record.count();
        if let (Some(_), Some(clients)) = (record.affinity, tracking.clients) {
            clients.note(who(record, client), digest, now);
        }
    }
    Ok(Stood::of(&found))
}

/// Makes a connection that has these ends on the wire, but for the source's port where another has that; whether it is new.
fn make<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    front: &Front<I>,
    (slot, [source, to]): (u16, Ends<I>),
    (key, hash, end): (Key, u64, End),
    tracking: &Tracking,
    world: &World,
    now: u64,
) -> Result<(Found, bool), DropReason> {
    let transport = front.transport.ok_or(DropReason::Malformed)?;
    let ends = [(front.source, transport.ports()[0]), (front.destination, transport.ports()[1])];
    let (first, last) = tracking.ports;
    let count = (last - first).saturating_add(1);
    // In steps that lead everywhere, and away from ports that a client has taken one after the other.
    let (at, step) = (hash >> 32, if count > 0xff { 0x9e3 } else { 1 });
    let others =
        (0..u64::from(count.min(TRIES))).map(|n| first + ((at + n * step) % u64::from(count)) as u16);
    for port in std::iter::once(source.1).chain(others) {
        let source = (source.0, port);
        let (wire, from) = I::key(source, to, transport.protocol());
        let keys = Keys { wire: (wire, wire.hash()), client: Some((key, hash, end)) };
        // Told is who asks, whoever is seen on the wire.
        let told = if source == ends[0] { (wire, from) } else { I::key(ends[0], to, transport.protocol()) };
        // One that is in the way, or, of an untranslated connection, the packet's own ends.
        if [source, to] == ends || tracking.connections.is_on_wire(&keys.wire.0, keys.wire.1) {
            continue;
        }
        let standing = {
            let gate = Passage::new(frame, Port::Endpoint(slot), slot, tracking, world);
            let packet = packet_of(frame, &Flow::of(front), transport);
            let at = (Moment { nanos: now }, &world.timeouts);
            let standing = tracking.connections.begin(&packet, &keys, from, at, &gate);
            note(tracking, (&packet, Class::Of(told.0, told.1)), &standing, now);
            standing
        };
        match standing {
            Ok(Standing::Begins(found)) => return Ok((found, true)),
            Ok(Standing::Belongs(found)) => return Ok((found, false)),
            Ok(_) => return Err(DropReason::InvalidConnection),
            Err(Refusal { reason: DropReason::NoPortLeft, .. }) => {}
            Err(refusal) => return Err(noted(frame, refusal)),
        }
    }
    Err(DropReason::NoPortLeft)
}

/// Sends a packet that would begin a connection to its destination, where another of the same pod, to a service, has the same ends on the
/// wire already: it gets a port of its own.
#[cold]
pub(crate) fn step_aside<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    slot: u16,
    world: &World,
    now: u64,
    hands: Hands<'_, P>,
) -> Result<Kept, DropReason> {
    let front = front::<I>(frame.head())?;
    let transport = front.transport.ok_or(DropReason::Malformed)?;
    let tracking = hands.tracking.ok_or(DropReason::NoPortLeft)?;
    let ends = ends_of(&front);
    let (key, end) = I::key(ends[0], ends[1], transport.protocol());
    let (found, _) = make(frame, &front, (slot, ends), (key, key.hash(), end), tracking, world, now)?;
    match Turn::of(&found) {
        Some(turn) => turn_and_send::<P, I>(frame, turn, Hop::Router, world, hands),
        None => Err(DropReason::NoPortLeft),
    }
}

/// Whom a pod sees that is its own backend: the gateway, and over IPv6 the node, since to a link-local address it would answer from one.
fn stranger<I: Ip>(world: &World) -> I::Address {
    let any = if I::FAMILY == Family::V4 { IpAddr::V4(GATEWAY_V4) } else { IpAddr::V6(world.router.1) };
    I::of(any).unwrap_or_else(|| unreachable!("an address of either family"))
}
