//! The connection stage: a packet of a pod belongs to a connection, begins one that it may begin, or goes no further.

use std::array;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use causeway_model::DropReason;
use causeway_model::policy::{Direction, RuleNumber, Verdict};
use causeway_wire::{Ethernet, IpProtocol, Ipv4, Ipv6, Ports};

use crate::connection::{
    Anew, Class, Connections, End, Found, Gate, How, Key, Moment, Packet, Place, Standing, Turn, classify,
    ends,
};
use crate::events::Events;
use crate::packet::{Family, Front, Ip};
use crate::policy::{Ends, Refusal};
use crate::send::impassable;
use crate::service::Clients;
use crate::transport::Transport;
use crate::{Buffer, Burst, Frame, Port, World, burst};

/// Ports for connections that need another one than their own.
const PORTS: (u16, u16) = (1024, u16::MAX);

/// The connections of a node's pods.
#[derive(Clone, Copy, Debug)]
pub struct Tracking {
    /// The table that all workers share.
    pub connections: Connections,
    /// The backends that clients had, where services want them to keep those.
    pub(crate) clients: Option<Clients>,
    /// Where this worker tells what becomes of them.
    events: Option<&'static Events>,
    /// The first and the last of the ports that this worker gives to connections that need another one than their own.
    pub(crate) ports: (u16, u16),
}

impl Tracking {
    /// Connections of which nothing is told, and clients that nobody remembers.
    pub fn new(connections: Connections) -> Self {
        Self { connections, clients: None, events: None, ports: PORTS }
    }

    /// The same with clients that are remembered.
    #[must_use]
    pub fn remembering(self, clients: Clients) -> Self {
        Self { clients: Some(clients), ..self }
    }

    /// The same told of there, which is nobody else's to write.
    #[must_use]
    pub fn telling(self, events: &'static Events) -> Self {
        Self { events: Some(events), ..self }
    }

    /// The same for one of several workers: no two give the same ports to connections.
    #[must_use]
    pub fn of_worker(self, number: u16, workers: u16) -> Self {
        let (first, last) = PORTS;
        let share = (last - first) / workers.max(1);
        let first = first + share * number.min(workers.saturating_sub(1));
        Self { ports: (first, first + share.saturating_sub(1)), ..self }
    }
}

/// What became of a packet at the connection stage: the connection that it belongs to, which end of that has sent it, and whether it is to
/// be given other ends. One word, since what is put together of smaller things is slow to be handed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stood(u64);

impl Stood {
    const ALONE: Self = Self(0);
    /// Where in the word is said that there is a connection, that its higher end has sent the packet, and, from there on, the turn.
    const BELONGS: u64 = 1 << 48;
    const HIGH: u64 = 1 << 49;
    const TURN: u32 = 56;

    /// Of a packet that belongs to a connection.
    #[inline(always)]
    pub(crate) fn of(found: &Found) -> Self {
        let (index, generation) = found.place().words();
        let high = if found.from == End::High { Self::HIGH } else { 0 };
        let place = u64::from(index) | u64::from(generation) << 32;
        Self(place | Self::BELONGS | high | Self::turned(Turn::of(found)))
    }

    /// Of an error about a packet of a connection.
    #[cold]
    fn about(found: &Found) -> Self {
        Self(Turn::about(found).map_or(0, |turn| u64::from(turn.index)) | Self::turned(Turn::about(found)))
    }

    #[inline(always)]
    fn turned(turn: Option<Turn>) -> u64 {
        turn.map_or(0, |turn| (turn.how as u64 + 1) << Self::TURN)
    }

    /// The connection that a packet belongs to, and which end of it has sent the packet.
    pub(crate) fn connection(self) -> Option<(Place, End)> {
        let place = Place::of(self.0 as u32, (self.0 >> 32) as u16);
        let end = if self.0 & Self::HIGH == 0 { End::Low } else { End::High };
        (self.0 & Self::BELONGS != 0).then_some((place, end))
    }

    /// The other ends that the packet is to be given.
    #[inline(always)]
    pub(crate) fn turn(self) -> Option<Turn> {
        let how = match self.0 >> Self::TURN {
            0 => return None,
            1 => How::Onward,
            2 => How::Back,
            3 => How::QuotedOnward,
            _ => How::QuotedBack,
        };
        Some(Turn { index: self.0 as u32, how })
    }
}

/// Why a packet goes no further, in a word, for the same reason.
#[derive(Clone, Copy)]
struct Refused(u64);

impl From<Refusal> for Refused {
    fn from(Refusal { reason, rule }: Refusal) -> Self {
        Self(u64::from(rule.0) << 8 | reason.index() as u64)
    }
}

impl From<DropReason> for Refused {
    fn from(reason: DropReason) -> Self {
        Refusal::from(reason).into()
    }
}

impl Refused {
    #[cold]
    fn refusal(self) -> Refusal {
        let reason = DropReason::ALL.get((self.0 & 0xff) as usize).copied().unwrap_or(DropReason::Other);
        Refusal { reason, rule: RuleNumber((self.0 >> 8) as u32) }
    }
}

/// Follows a packet between two ports; one between others than pods of this path is none of ours. Where it belongs to a translated
/// connection it is to be turned.
#[inline(always)]
pub(crate) fn track<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    front: &Front<I>,
    from: Port,
    tracking: Option<&Tracking>,
    world: &World,
    now: u64,
) -> Result<Option<Turn>, DropReason> {
    // Without connections every packet stands alone, and mostly nobody minds.
    if tracking.is_none() && !world.denies_new && !world.policies.judges {
        return Ok(None);
    }
    stand(frame, front, from, tracking, world, now).map(Stood::turn)
}

/// [`track`], and which connection that is.
#[inline(always)]
pub(crate) fn stand<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    front: &Front<I>,
    from: Port,
    tracking: Option<&Tracking>,
    world: &World,
    now: u64,
) -> Result<Stood, DropReason> {
    follow(frame, Flow::of(front), from, tracking, world, now).map_err(|refused| {
        let Refusal { reason, rule } = refused.refusal();
        frame.denied_by = rule;
        reason
    })
}

/// What of a packet the stage must know.
#[derive(Clone, Copy)]
pub(crate) struct Flow<I: Ip> {
    source: I::Address,
    destination: I::Address,
    transport: Option<Transport>,
    hash: u64,
}

impl<I: Ip> Flow<I> {
    #[inline(always)]
    pub(crate) fn of(front: &Front<I>) -> Self {
        let Front { source, destination, transport, hash, .. } = *front;
        Self { source, destination, transport, hash }
    }
}

/// The packet in a frame, as the table of connections takes it.
#[inline(always)]
pub(crate) fn packet_of<'a, B: Buffer, I: Ip>(
    frame: &'a Frame<B>,
    flow: &Flow<I>,
    transport: Transport,
) -> Packet<'a, I> {
    Packet {
        source: flow.source,
        destination: flow.destination,
        protocol: transport.protocol(),
        transport: frame.head().get(transport.offset()..).unwrap_or_default(),
        len: frame.len() - transport.offset().min(frame.len()),
        whole: !transport.fragment(),
        count: (packets(frame), (frame.len() - Ethernet::LEN) as u64),
    }
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
) -> Result<Stood, Refused> {
    let ((Port::Endpoint(owner), _) | (_, Port::Endpoint(owner))) = (from, frame.egress) else {
        return Ok(Stood::ALONE);
    };
    let gate = Passage { frame, from, owner, tracking, world };
    let (Some(tracking), Some(transport)) = (tracking, flow.transport.filter(|t| !t.inside())) else {
        gate.admit()?;
        let (protocol, ports) = flow.transport.map_or((IpProtocol(0), [0; 2]), |t| (t.protocol(), t.ports()));
        let (key, from) = I::key((flow.source, ports[0]), (flow.destination, ports[1]), protocol);
        gate.judge(true, &ends(&key, from), protocol).map_err(Refused::from)?;
        return Ok(Stood::ALONE);
    };
    let packet = packet_of(frame, &flow, transport);
    let mut refused = None;
    if let Class::Of(key, sender) = classify(&packet)? {
        let hash = if flow.hash == 0 { key.hash() } else { flow.hash };
        if let Some(found) = tracking.connections.find(&key, hash, sender) {
            match tracking.connections.go_on(&packet, found, Moment { nanos: now }, &gate) {
                // Mostly; what others need would have to lie in memory for it.
                Ok(Anew::Goes) => return Ok(Stood::of(&found)),
                Ok(Anew::Begins) => {}
                Err(refusal) => refused = Some(refusal),
            }
        }
    }
    look_closer(frame, flow, (from, owner), tracking, (world, now), refused)
}

/// [`follow`], of what is of no connection yet, or says something about one, or was refused just now.
#[inline(never)]
fn look_closer<B: Buffer, I: Ip>(
    frame: &Frame<B>,
    flow: Flow<I>,
    (from, owner): (Port, u16),
    tracking: &Tracking,
    (world, now): (&World, u64),
    refused: Option<Refusal>,
) -> Result<Stood, Refused> {
    let transport = flow.transport.ok_or(DropReason::Malformed)?;
    let packet = packet_of(frame, &flow, transport);
    let class = classify(&packet)?;
    let hash = match class {
        Class::Of(..) if flow.hash != 0 => flow.hash,
        Class::Of(key, _) | Class::About(key, _) => key.hash(),
        Class::Single => 0,
    };
    let at = (Moment { nanos: now }, &world.timeouts);
    let gate = Passage::new(frame, from, owner, tracking, world);
    let followed = match refused {
        Some(refusal) => Err(refusal),
        None => tracking.connections.take_up(&packet, (class, hash), at, &gate),
    };
    note(tracking, (&packet, class), &followed, now);
    match followed {
        Ok(Standing::Begins(found) | Standing::Belongs(found)) => Ok(Stood::of(&found)),
        Ok(Standing::Related(found)) => Ok(Stood::about(&found)),
        Ok(Standing::Alone) => Ok(Stood::ALONE),
        Err(refusal) => Err(refusal.into()),
    }
}

/// Tells what became of a packet, where that is to be told.
#[inline(always)]
pub(crate) fn note<I: Ip>(
    tracking: &Tracking,
    (packet, class): (&Packet<'_, I>, Class),
    followed: &Result<Standing, Refusal>,
    now: u64,
) {
    if let (Some(events), Ok(Standing::Begins(_)) | Err(_)) = (tracking.events, followed) {
        tell(events, (packet, class), followed, (tracking, now));
    }
}

/// Tells that a connection began, or which rule denied it.
#[cold]
fn tell<I: Ip>(
    events: &Events,
    (packet, class): (&Packet<'_, I>, Class),
    followed: &Result<Standing, Refusal>,
    (tracking, now): (&Tracking, u64),
) {
    let (verdict, rules) = match followed {
        Ok(Standing::Begins(found)) => (Verdict::Allow, tracking.connections.rules(found.place())),
        Err(Refusal { reason: DropReason::PolicyDenied, rule }) => (Verdict::Deny, [*rule; 2]),
        _ => return,
    };
    let (key, from) = match class {
        Class::Of(key, from) => (key, from),
        Class::About(..) | Class::Single => {
            I::key((packet.source, 0), (packet.destination, 0), packet.protocol)
        }
    };
    events.tell((&key, from), (now, packet.count.1), verdict, rules);
}

/// The two ports between which a packet goes, one of them a pod's, and what holds there.
pub(crate) struct Passage<'a, B> {
    frame: &'a Frame<B>,
    from: Port,
    /// Whose a connection would be.
    owner: u16,
    tracking: Option<&'a Tracking>,
    world: &'a World,
}

impl<'a, B> Passage<'a, B> {
    /// The ends as who they are. A pod that is its own backend is hidden from itself, and not from policy.
    fn as_themselves(&self, ends: Ends) -> Ends {
        let [(begins, port), answers] = ends;
        let own = match self.from {
            Port::Endpoint(slot) if self.from == self.frame.egress => self.world.pod(slot),
            _ => None,
        };
        let own = own.and_then(|pod| match begins {
            IpAddr::V4(_) => pod.v4.map(|address| Ipv4Addr::from(address).into()),
            IpAddr::V6(_) => pod.v6.map(|bytes| Ipv6Addr::from(u128::from_ne_bytes(bytes)).into()),
        });
        [(own.unwrap_or(begins), port), answers]
    }

    /// From a pod to wherever its frame goes.
    pub(crate) fn new(
        frame: &'a Frame<B>,
        from: Port,
        owner: u16,
        tracking: &'a Tracking,
        world: &'a World,
    ) -> Self {
        Self { frame, from, owner, tracking: Some(tracking), world }
    }

    /// The ports of who begins and of who answers.
    fn ports(&self, onward: bool) -> [Port; 2] {
        let to = self.frame.egress;
        if onward { [self.from, to] } else { [to, self.from] }
    }
}

/// The direction of a connection as its first and its second end see it.
const ROLES: [Direction; 2] = [Direction::Egress, Direction::Ingress];

impl<B: Buffer> Gate for Passage<'_, B> {
    fn admit(&self) -> Result<u16, DropReason> {
        // What does not go on its way begins nothing.
        if let Some(reason) = impassable(self.frame, self.from, self.world) {
            return Err(reason);
        }
        if self.refuses_new() {
            return Err(DropReason::DeniedNew);
        }
        let has = |tracking: &Tracking| tracking.connections.count_of(self.owner);
        match self.tracking {
            Some(tracking) if has(tracking) >= self.world.connections_per_pod => {
                Err(DropReason::ConnectionLimit)
            }
            _ => Ok(self.owner),
        }
    }

    #[inline(always)]
    fn refuses_new(&self) -> bool {
        let refuses = |port| matches!(port, Port::Endpoint(slot) if self.world.pod(slot).is_none_or(|pod| pod.deny_new));
        refuses(self.from) || refuses(self.frame.egress)
    }

    #[inline(always)]
    fn stamp(&self, onward: bool) -> u64 {
        let [begins, answers] = self.ports(onward);
        let of = |port, direction: Direction| match port {
            Port::Endpoint(slot) => self.world.pod(slot).map_or(0, |pod| pod.stamps[direction as usize]),
            Port::Host | Port::Uplink => 0,
        };
        u64::from(of(begins, ROLES[0])) << 32 | u64::from(of(answers, ROLES[1]))
    }

    fn services(&self) -> u32 {
        self.world.services.stamp
    }

    fn is_by_host(&self) -> bool {
        self.from == Port::Host
    }

    fn judge(&self, onward: bool, ends: &Ends, protocol: IpProtocol) -> Result<[RuleNumber; 2], Refusal> {
        let ends = &self.as_themselves(*ends);
        let mut rules = [RuleNumber::DEFAULT; 2];
        for ((rule, port), role) in rules.iter_mut().zip(self.ports(onward)).zip(ROLES) {
            if let Port::Endpoint(slot) = port {
                *rule = self.world.policies.judge(slot, role, ends, protocol)?;
            }
        }
        Ok(rules)
    }
}

/// How many packets a frame stands for.
#[inline(always)]
fn packets<B: Buffer>(frame: &Frame<B>) -> u64 {
    match frame.offload.gso {
        None => 1,
        Some(gso) => (frame.len() - usize::from(gso.headers)).div_ceil(gso.size.max(1).into()) as u64,
    }
}

/// What is known of a burst's frames before they are looked at one by one.
pub(crate) struct Hints {
    /// The hashes of their connections' keys, zero where there is none.
    hashes: array::IntoIter<u64, { burst::SIZE }>,
    /// Which seem to answer in a translated connection, from the lowest bit on.
    answers: u32,
}

/// What is known of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hint {
    /// The hash of its connection's key, or zero.
    pub(crate) hash: u64,
    /// Whether it seems to be an answer of a translated one.
    pub(crate) is_answer: bool,
}

impl Hint {
    pub(crate) const NONE: Self = Self { hash: 0, is_answer: false };
}

impl Hints {
    /// The next frame's.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Hint {
        let hint = Hint { hash: self.hashes.next().unwrap_or_default(), is_answer: self.answers & 1 != 0 };
        self.answers >>= 1;
        hint
    }
}

/// Asks for the connections of a burst before they are looked up one by one, so that one does not wait for another's memory. `at`
/// is where in a frame the pods' part begins. Of a packet that begins there, is no fragment and has ports, the hash is the right one.
#[inline(always)]
pub(crate) fn approach<B: Buffer>(burst: &Burst<B>, at: usize, tracking: Option<&Tracking>) -> Hints {
    let (mut hashes, mut answers) = ([0; burst::SIZE], 0);
    if let Some(Tracking { connections, .. }) = tracking {
        // Two rounds: what the index says is read when it has had the time of all others to come.
        for (place, frame) in hashes.iter_mut().zip(burst.frames()) {
            if let Some(hash) = glance(frame.head().get(at..).unwrap_or_default()) {
                connections.approach(hash);
                *place = hash;
            }
        }
        for (number, hash) in hashes.into_iter().take(burst.len()).enumerate().filter(|(_, hash)| *hash != 0)
        {
            answers |= u32::from(connections.approach_entry(hash)) << number;
        }
    }
    Hints { hashes: hashes.into_iter(), answers }
}

/// The hash of the connection of the commonest packets. Of others it is a guess, and a wrong one costs time and nothing else.
#[inline(always)]
fn glance(inner: &[u8]) -> Option<u64> {
    let packet = inner.get(Ethernet::LEN..)?;
    let (ip, rest) = packet.split_first_chunk::<{ Ipv4::LEN }>()?;
    if ip[0] != 0x45 || inner[12..14] != [8, 0] || !IpProtocol(ip[9]).has_ports() {
        return glance_v6(inner);
    }
    let (ports, _) = Ports::split(rest).ok()?;
    let word = |at: usize| u32::from_be_bytes([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
    let (source, destination) = ((word(12), ports.source()), (word(16), ports.destination()));
    Some(Key::v4(source, destination, IpProtocol(ip[9])).0.hash())
}

/// The same of IPv6 without extension headers.
#[inline(never)]
fn glance_v6(inner: &[u8]) -> Option<u64> {
    if Family::of(inner) != Some(Family::V6) {
        return None;
    }
    let (ip, payload) = Ipv6::split_partial(inner.get(Ethernet::LEN..)?).ok()?;
    if !ip.next_header().has_ports() {
        return None;
    }
    let (ports, _) = Ports::split(payload).ok()?;
    let (source, destination) = (ip.source().into(), ip.destination().into());
    Some(Key::v6((source, ports.source()), (destination, ports.destination()), ip.next_header()).0.hash())
}
