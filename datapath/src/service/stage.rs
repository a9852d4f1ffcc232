//! The service stage: what a pod sends to a service goes to a backend, and what comes back comes from the service.
//!
//! The first packet of a connection chooses; its entry in the table remembers both views of it, that of the client and that of the wire, and every
//! other packet is found there by the view it is in and takes the other. Nothing is looked up among services for it.

use std::net::IpAddr;

use causeway_model::DropReason;
use causeway_model::service::Answer;
use causeway_wire::{Ethernet, IpProtocol, Udp};

use super::begin::{Served, begin, find};
use super::choice::digest;
use super::rewrite::{Changes, Ends, ends_of, rewrite, rewrite_error};
use crate::burst::{Kept, Pieces};
use crate::connection::{Anew, Class, Connections, End, Found, Key, Moment, Turn, classify};
use crate::datagrams::Hands;
use crate::from_pod::route;
use crate::packet::{Front, Ip, front};
use crate::policy::Refusal;
use crate::send::{Hop, send};
use crate::track::{Flow, Passage, Stood, Tracking, note, packet_of, stand};
use crate::world::{Owner, World};
use crate::{Buffer, Frame, Pool, Port};

/// Gives a packet its other ends; what it says of itself then.
#[inline(always)]
pub(crate) fn turn<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    front: &Front<I>,
    turn: Turn,
    connections: &Connections,
) -> Result<Front<I>, DropReason> {
    let to = connections.ends_of::<I>(turn);
    if turn.is_quoted() {
        rewrite_error(frame, front, to)?;
        return Ok(crate::packet::front::<I>(frame.head())?);
    }
    rewrite(frame, front, (to, Changes::kept(connections.changes_of(turn))))?;
    Ok(with_ends(front, to))
}

#[inline(always)]
fn with_ends<I: Ip>(front: &Front<I>, ends: Ends<I>) -> Front<I> {
    let ports = ends.map(|(_, port)| port);
    let transport = front.transport.map(|transport| transport.with_ports(ports));
    Front { source: ends[0].0, destination: ends[1].0, transport, hash: 0, ..*front }
}

/// Sends a packet on the way that was found for it with other ends.
#[inline(never)]
pub(crate) fn turn_and_send<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    to: Turn,
    hop: Hop,
    world: &World,
    hands: Hands<'_, P>,
) -> Result<Kept, DropReason> {
    let Hands { pool, pieces, tracking, .. } = hands;
    let Some(tracking) = tracking else { return Err(DropReason::InvalidConnection) };
    if to.is_quoted() {
        return send_quoting::<P, I>(frame, to, (hop, tracking), world, (pool, pieces));
    }
    // Read once more: what a call is handed cannot stay in registers. The commonest kind by itself, for the same reason.
    match I::common_again(frame.head()) {
        Some(front) => send_turned(frame, front, to, (hop, tracking), world, (pool, pieces)),
        None => send_uncommon::<P, I>(frame, to, (hop, tracking), world, (pool, pieces)),
    }
}

#[inline(always)]
fn send_turned<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    front: Front<I>,
    to: Turn,
    (hop, tracking): (Hop, &Tracking),
    world: &World,
    (pool, pieces): (&mut P, &mut Pieces<P::Buffer>),
) -> Result<Kept, DropReason> {
    let (ends, changes) = (tracking.connections.ends_of::<I>(to), tracking.connections.changes_of(to));
    let way = (hop, frame.egress);
    send_as(frame, &front, (ends, Changes::kept(changes)), way, world, (pool, pieces))
}

/// The same of a packet of another than the commonest kind.
#[cold]
#[inline(never)]
fn send_uncommon<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    to: Turn,
    (hop, tracking): (Hop, &Tracking),
    world: &World,
    hands: (&mut P, &mut Pieces<P::Buffer>),
) -> Result<Kept, DropReason> {
    let front = front::<I>(frame.head())?;
    send_turned(frame, front, to, (hop, tracking), world, hands)
}

/// The same of an error that quotes a packet.
#[cold]
#[inline(never)]
fn send_quoting<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    to: Turn,
    (hop, tracking): (Hop, &Tracking),
    world: &World,
    (pool, pieces): (&mut P, &mut Pieces<P::Buffer>),
) -> Result<Kept, DropReason> {
    let front = turn(frame, &front::<I>(frame.head())?, to, &tracking.connections)?;
    let egress = frame.egress;
    send(frame, &front, (hop, egress), world, pool, pieces)
}

/// Sends a packet on with other ends.
#[inline(always)]
fn send_as<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    front: &Front<I>,
    (ends, changes): (Ends<I>, Changes),
    way: (Hop, Port),
    world: &World,
    (pool, pieces): (&mut P, &mut Pieces<P::Buffer>),
) -> Result<Kept, DropReason> {
    rewrite(frame, front, (ends, changes))?;
    match send(frame, &with_ends(front, ends), way, world, pool, pieces) {
        Err(reason) => Err(turn_back::<P::Buffer, I>(frame, (ends_of(front), changes.back()), reason)),
        sent => sent,
    }
}

/// Turns a packet back that could not be sent: whoever sent it hears of the packet that it has sent.
#[cold]
#[inline(never)]
fn turn_back<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    ends: (Ends<I>, Changes),
    reason: DropReason,
) -> DropReason {
    let back =
        front::<I>(frame.head()).map_err(DropReason::from).and_then(|front| rewrite(frame, &front, ends));
    back.map_or_else(|other| other, |()| reason)
}

/// Sends what a pod has sent to an address that is, or may be, a service's.
#[inline(never)]
pub(crate) fn serve<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    (slot, owner): (u16, Owner),
    hash: u64,
    world: &World,
    now: u64,
    hands: Hands<'_, P>,
) -> Result<Kept, DropReason> {
    let front = Front { hash, ..I::front_again(frame.head())? };
    if let Some(tracking) = hands.tracking
        && let Some((key, end)) = key_of(frame, &front)
        && let Some(found) = tracking.connections.find(&key, front.hash_of(&key), end)
        && found.for_client
        && !found.is_outdated(world.services.stamp)
        && let Some(way) = found.way(world.number as u32)
    {
        // The commonest way, compiled for itself: all is known.
        (frame.egress, frame.peer) = way_of(way.get());
        let (from, egress) = (Port::Endpoint(slot), frame.egress);
        if goes(frame, &front, (found, true), (from, slot), tracking, world, now) {
            return send_known(frame, &front, (found, egress), world, (hands.pool, hands.pieces));
        }
        // Told below, why not, and of which connection.
    }
    serve_anew::<P, I>(frame, (slot, owner), world, now, hands.again())
}

/// Sends an answer of a translated connection whose client has asked in this world. Nothing is done, and none said, where it is anything else.
#[inline(never)]
pub(crate) fn answer<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    from: Port,
    hash: u64,
    world: &World,
    now: u64,
    hands: &mut Hands<'_, P>,
) -> Option<Result<Kept, DropReason>> {
    let front = Front { hash, ..I::front_again(frame.head()).ok()? };
    let tracking = hands.tracking?;
    let (key, end) = key_of(frame, &front)?;
    let found = tracking.connections.find(&key, front.hash_of(&key), end)?;
    if found.for_client || !found.is_translated() {
        return None;
    }
    found.way(world.number as u32)?;
    let slot = found.owner();
    let (egress, before) = (Port::Endpoint(slot), frame.egress);
    frame.egress = egress;
    if !goes(frame, &front, (found, false), (from, slot), tracking, world, now) {
        frame.egress = before;
        return None;
    }
    Some(send_known(frame, &front, (found, egress), world, (&mut *hands.pool, &mut *hands.pieces)))
}

/// Whether a packet simply goes on with its connection, onward or back, which takes it up then.
#[inline(always)]
fn goes<B: Buffer, I: Ip>(
    frame: &Frame<B>,
    front: &Front<I>,
    (found, onward): (Found, bool),
    (from, slot): (Port, u16),
    tracking: &Tracking,
    world: &World,
    now: u64,
) -> bool {
    let Some(transport) = front.transport else { return false };
    let gate = Passage::new(frame, from, slot, tracking, world);
    let packet = packet_of(frame, &Flow::of(front), transport);
    let now = Moment { nanos: now };
    matches!(tracking.connections.go(&packet, (found, onward), now, &gate), Ok(Anew::Goes))
}

/// Sends a packet of a translated connection on, with its other ends.
#[inline(always)]
fn send_known<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    front: &Front<I>,
    (found, egress): (Found, Port),
    world: &World,
    (pool, pieces): (&mut P, &mut Pieces<P::Buffer>),
) -> Result<Kept, DropReason> {
    let (ends, changes) = found.turned::<I>();
    let way = (Hop::Router, egress);
    send_as(frame, front, (ends, Changes::kept(changes)), way, world, (pool, pieces))
}

/// The key of a packet whose ports are there, and which end of its connection it comes from.
#[inline(always)]
fn key_of<B: Buffer, I: Ip>(frame: &Frame<B>, front: &Front<I>) -> Option<(Key, End)> {
    let transport = front.transport.filter(|transport| transport.has_ports() && !transport.fragment())?;
    if transport.protocol() == IpProtocol::UDP {
        let (udp, _) = Udp::split_partial(frame.head().get(transport.offset()..)?).ok()?;
        let room = frame.len().saturating_sub(transport.offset());
        if !(Udp::LEN..=room).contains(&usize::from(udp.length())) {
            return None;
        }
    }
    let [source, destination] = transport.ports();
    Some(I::key((front.source, source), (front.destination, destination), transport.protocol()))
}

/// The same for what is not of the commonest kind.
#[inline(never)]
fn serve_anew<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    (slot, owner): (u16, Owner),
    world: &World,
    now: u64,
    hands: Hands<'_, P>,
) -> Result<Kept, DropReason> {
    let front = front::<I>(frame.head())?;
    let stood = stand_at_service(frame, &front, (slot, owner), hands.tracking, world, now)?;
    match stood.turn() {
        Some(turn) => turn_and_send::<P, I>(frame, turn, Hop::Router, world, hands),
        None => {
            let egress = frame.egress;
            send(frame, &front, (Hop::Router, egress), world, hands.pool, hands.pieces)
        }
    }
}

/// The kinds of ways, as an entry holds them.
const TO_PEER: u32 = 1 << 16;
const TO_POD: u32 = 2 << 16;
const TO_HOST: u32 = 3 << 16;

/// A frame's way in a word, and the other way round.
pub(super) fn way<B>(frame: &Frame<B>) -> u32 {
    match frame.egress {
        Port::Uplink => TO_PEER | u32::from(frame.peer),
        Port::Endpoint(slot) => TO_POD | u32::from(slot),
        Port::Host => TO_HOST,
    }
}

#[inline(always)]
fn way_of(way: u32) -> (Port, u16) {
    let number = way as u16;
    match way & !0xffff {
        TO_PEER => (Port::Uplink, number),
        TO_POD => (Port::Endpoint(number), 0),
        _ => (Port::Host, 0),
    }
}

/// Tells of a packet that goes no further, and notes the rule that says so.
#[cold]
#[inline(never)]
fn denied<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    refusal: Refusal,
    tracking: &Tracking,
    now: u64,
) -> DropReason {
    if let Ok(front) = front::<I>(frame.head())
        && let Some(transport) = front.transport
    {
        let packet = packet_of(frame, &Flow::of(&front), transport);
        if let Ok(class) = classify(&packet) {
            note(tracking, (&packet, class), &Err(refusal), now);
        }
    }
    noted(frame, refusal)
}

/// Finds the way of a packet of a pod to an address that is, or may be, a service's, and its connection.
pub(crate) fn stand_at_service<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    front: &Front<I>,
    (slot, owner): (u16, Owner),
    tracking: Option<&Tracking>,
    world: &World,
    now: u64,
) -> Result<Stood, DropReason> {
    let from = Port::Endpoint(slot);
    let flow = Flow::of(front);
    let (Some(tracking), Some(transport)) = (tracking, front.transport.filter(|t| !t.inside())) else {
        return without_connection(frame, front, (from, owner), tracking, world, now);
    };
    let connections = &tracking.connections;
    let class = classify(&packet_of(frame, &flow, transport))?;
    let (key, hash, end) = match class {
        Class::Of(key, end) => (key, key.hash(), end),
        Class::About(key, sender) => {
            let quoted = connections.find_quoted(&key, key.hash(), sender);
            let is_for_host = |found: Found| found.is_by_host() && found.is_onward();
            if matches!(owner, Owner::PeerNode(_)) && quoted.is_some_and(is_for_host) {
                route(frame, front, Some(owner), world)?;
                frame.egress = Port::Host;
                return stand(frame, front, from, Some(tracking), world, now);
            }
            let turn = quoted.and_then(|found| Turn::about(&found));
            let to = turn.map(|turn| connections.ends_of::<I>(turn)[0].0);
            let Some(to) = to else { return plainly(frame, front, (from, owner), tracking, world, now) };
            find_way(frame, front, to, world)?;
            return stand(frame, front, from, Some(tracking), world, now);
        }
        Class::Single => return plainly(frame, front, (from, owner), tracking, world, now),
    };
    if let Some(found) = known(tracking, (&key, hash, end), owner, world)
        && (found.is_translated() || !matches!(owner, Owner::Service))
    {
        match go_on(frame, front, (slot, owner), found, tracking, world, now) {
            Ok(Anew::Goes) => return Ok(Stood::of(&found)),
            Ok(Anew::Begins) => {}
            // Whoever is no longer there, or not to be reached, keeps nobody from beginning again with another.
            Err(_) if connections.is_ended_by(&packet_of(frame, &flow, transport), &found) => {}
            Err(refusal) => return Err(denied::<B, I>(frame, refusal, tracking, now)),
        }
    }
    begin(frame, front, (slot, owner), (key, hash, end), tracking, world, now)
}

/// Takes a packet of a pod up into the connection that was found for it, on the way that this has.
fn go_on<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    front: &Front<I>,
    (slot, owner): (u16, Owner),
    found: Found,
    tracking: &Tracking,
    world: &World,
    now: u64,
) -> Result<Anew, Refusal> {
    let connections = &tracking.connections;
    match Turn::of(&found) {
        Some(turn) => {
            find_way(frame, front, connections.ends_of::<I>(turn)[1].0, world)?;
            if found.is_onward() {
                found.set_way(world.number as u32, way(frame));
            }
        }
        None => {
            route(frame, front, Some(owner), world)?;
            // Another node that has asked this one, whose stack translated: that knows what it was asked for.
            if found.is_by_host() && !found.is_onward() {
                frame.egress = Port::Host;
            }
        }
    }
    let transport = front.transport.ok_or(DropReason::Malformed)?;
    let gate = Passage::new(frame, Port::Endpoint(slot), slot, tracking, world);
    connections.go_on(&packet_of(frame, &Flow::of(front), transport), found, Moment { nanos: now }, &gate)
}

/// Notes the rule that denied a frame.
pub(super) fn noted<B>(frame: &mut Frame<B>, Refusal { reason, rule }: Refusal) -> DropReason {
    frame.denied_by = rule;
    reason
}

/// The connection of a packet that a pod has sent, unless services have it begin anew.
#[inline(always)]
fn known(
    tracking: &Tracking,
    (key, hash, end): (&Key, u64, End),
    owner: Owner,
    world: &World,
) -> Option<Found> {
    let found = tracking.connections.find(key, hash, end)?;
    let stamp = world.services.stamp;
    if found.is_onward() && found.is_outdated(stamp) {
        return stays(tracking, found, key.protocol(), owner, world).then_some(found);
    }
    Some(found)
}

/// Whether a connection goes where it may go now; if not it is over.
#[cold]
fn stays(tracking: &Tracking, found: Found, protocol: IpProtocol, owner: Owner, world: &World) -> bool {
    let Tracking { connections, .. } = tracking;
    let (asked, answers) = (found.asked(), found.answers());
    let stays = match find(asked, owner, protocol, world) {
        Served::Frontend(record) => match record.answer {
            Answer::Backends(id) if found.is_translated() => {
                world.services.set(id).is_some_and(|set| set.keeps(digest(answers.0, answers.1)))
            }
            _ => false,
        },
        Served::HostPort(pod) => (pod.address, pod.port) == answers,
        Served::Address | Served::Nobody => false,
        Served::No => asked == answers,
    };
    if stays {
        found.is_current(world.services.stamp);
    } else {
        connections.release(found.place());
    }
    stays
}

/// Takes what a pod sends to its gateway back to it, where it answers a connection of its own through a service; nothing else.
#[cold]
pub(crate) fn stand_at_gateway<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    front: &Front<I>,
    slot: u16,
    tracking: Option<&Tracking>,
    world: &World,
    now: u64,
) -> Result<Option<Stood>, DropReason> {
    let (Some(tracking), Some(transport)) = (tracking, front.transport.filter(|t| !t.inside())) else {
        return Ok(None);
    };
    let connections = &tracking.connections;
    let found = match classify(&packet_of(frame, &Flow::of(front), transport)) {
        Ok(Class::Of(key, end)) => connections.find(&key, key.hash(), end),
        Ok(Class::About(key, sender)) => connections.find_quoted(&key, key.hash(), sender),
        _ => None,
    };
    if !found.is_some_and(|found| found.is_translated()) {
        return Ok(None);
    }
    frame.egress = Port::Endpoint(slot);
    stand(frame, front, Port::Endpoint(slot), Some(tracking), world, now).map(Some)
}

/// Finds the way to another destination than the packet says.
#[inline(always)]
pub(super) fn find_way<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    front: &Front<I>,
    to: I::Address,
    world: &World,
) -> Result<(), DropReason> {
    let owner = I::owners(world).get_afar(to);
    let to = Front { destination: to, hash: 0, ..*front };
    route(frame, &to, owner, world).map(drop)
}

/// What becomes of a packet that is for no service after all.
pub(super) fn plainly<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    front: &Front<I>,
    (from, owner): (Port, Owner),
    tracking: &Tracking,
    world: &World,
    now: u64,
) -> Result<Stood, DropReason> {
    let receiver = beneath(front, owner, world)?;
    route(frame, front, receiver, world)?;
    stand(frame, front, from, Some(tracking), world, now)
}

/// Whose an address is that may be a service's, when it is not.
fn beneath<I: Ip>(front: &Front<I>, owner: Owner, world: &World) -> Result<Option<Owner>, DropReason> {
    let destination = I::any(front.destination);
    match owner {
        Owner::Service if world.services.is_address(destination) => Err(DropReason::ServiceRefused),
        Owner::Service if world.services.covers(destination) => Err(DropReason::NoSuchService),
        // An address of a load balancer, at a port that is none of its.
        Owner::Service => Ok(None),
        other => Ok(Some(other)),
    }
}

/// Where no connections are remembered nothing is translated.
#[cold]
fn without_connection<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    front: &Front<I>,
    (from, owner): (Port, Owner),
    tracking: Option<&Tracking>,
    world: &World,
    now: u64,
) -> Result<Stood, DropReason> {
    if let Some(transport) = front.transport.filter(|transport| transport.has_ports()) {
        let asked = (I::any(front.destination), transport.ports()[1]);
        match find(asked, owner, transport.protocol(), world) {
            Served::Frontend(_) | Served::HostPort(_) => return Err(DropReason::ConnectionsFull),
            _ => {}
        }
    }
    let receiver = beneath(front, owner, world)?;
    route(frame, front, receiver, world)?;
    stand(frame, front, from, tracking, world, now)
}

/// A connection whose packets are let through as those of its first fragment, and where they go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Detour {
    addresses: [IpAddr; 2],
    egress: Port,
    peer: u16,
}

impl Detour {
    /// Of the first fragment's.
    pub(crate) fn of<B, I: Ip>(frame: &Frame<B>, turn: Turn, connections: &Connections) -> Option<Self> {
        let addresses = connections.ends_of::<I>(turn).map(|(address, _)| I::any(address));
        (!turn.is_quoted()).then_some(Self { addresses, egress: frame.egress, peer: frame.peer })
    }

    /// Leads a later fragment there.
    pub(crate) fn lead<B: Buffer, I: Ip>(&self, frame: &mut Frame<B>) -> Result<(), DropReason> {
        let [source, destination] = self.addresses.map(I::of);
        let (Some(source), Some(destination)) = (source, destination) else {
            return Err(DropReason::BadFragment);
        };
        (frame.egress, frame.peer) = (self.egress, self.peer);
        let front = front::<I>(frame.head())?;
        let packet = frame.head_mut().get_mut(Ethernet::LEN..).unwrap_or_default();
        let to = [source, destination];
        I::readdress(packet, to, I::replaced([front.source, front.destination], to).change());
        Ok(())
    }
}
