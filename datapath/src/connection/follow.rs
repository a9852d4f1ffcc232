//! A packet and its connection: whether it has one, may begin one, or belongs to none.

use causeway_model::DropReason;
use causeway_model::connection::{Stage, Timeouts};
use causeway_model::policy::RuleNumber;
use causeway_wire::checksum::Change;
use causeway_wire::{Icmpv4, Icmpv4Type, Icmpv6, Icmpv6Type, IpProtocol, Ports, Sctp, Tcp, Udp};

use super::entry::{Entry, Life, State, Window};
use super::index::{Found, Keys};
use super::key::{End, Key};
use super::sctp;
use super::table::{Connections, NoPlace, Place, beginning};
use super::tcp::{self, Judgement, Segment, Track};
use crate::packet::{Ip, Quoted};
use crate::policy::{Ends, Refusal};

/// A moment on a clock that never goes back and that all processes of a boot share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// Nanoseconds.
    pub nanos: u64,
}

impl Moment {
    /// Milliseconds, which wrap around.
    #[inline]
    pub fn millis(self) -> u32 {
        (self.nanos / 1_000_000) as u32
    }
}

/// What of a packet matters to its connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet<'a, I: Ip> {
    pub(crate) source: I::Address,
    pub(crate) destination: I::Address,
    pub(crate) protocol: IpProtocol,
    /// From the transport header on, as far as it lies in the first segment.
    pub(crate) transport: &'a [u8],
    /// From the transport header on, all of it.
    pub(crate) len: usize,
    /// Whether that is all: false of the first of several fragments.
    pub(crate) whole: bool,
    /// How many packets of how many bytes it stands for.
    pub(crate) count: (u64, u64),
}

/// What a packet is to the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// A packet of the connection with this key.
    Of(Key, End),
    /// An error about a packet of the connection with this key, which that end sent.
    About(Key, End),
    /// Nothing that connections are made of.
    Single,
}

/// Who decides over the connections between two ports.
pub(crate) trait Gate {
    /// Whose a new connection would be, if that wants one.
    fn admit(&self) -> Result<u16, DropReason>;

    /// Whether one of both wants no new connections.
    fn refuses_new(&self) -> bool;

    /// The mark of the tables in force, for a packet that goes the way of its connection's first one, or the other way.
    fn stamp(&self, onward: bool) -> u64;

    /// The mark of the services in force.
    fn services(&self) -> u32;

    /// Whether a packet comes from the node's own stack.
    fn is_by_host(&self) -> bool;

    /// Judges a connection of which a packet goes the way of the first one, or the other way; the first packet's ends. The
    /// rules that let it pass.
    fn judge(&self, onward: bool, ends: &Ends, protocol: IpProtocol) -> Result<[RuleNumber; 2], Refusal>;
}

/// How a packet stands to a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Standing {
    /// It began one.
    Begins(Found),
    /// It belongs to one.
    Belongs(Found),
    /// It tells an end of a connection, the one that is said to have sent it, what became of a packet.
    Related(Found),
    /// It stands alone, and was let through as such.
    Alone,
}

/// A packet that is to be given other ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Turn {
    pub(crate) index: u32,
    pub(crate) how: How,
}

/// Which ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum How {
    /// The client's packet: those on the wire.
    Onward,
    /// An answer: those that the client knows.
    Back,
    /// An error that quotes a packet of the client as it was on the wire: what is quoted, those that the client has sent.
    QuotedOnward,
    /// An error of the client that quotes an answer as it got it: what is quoted, those on the wire.
    QuotedBack,
}

impl Turn {
    /// Of a packet that belongs to a connection, where it takes one.
    #[inline(always)]
    pub(crate) fn of(found: &Found) -> Option<Self> {
        let how = if found.is_onward() { How::Onward } else { How::Back };
        found.is_translated().then_some(Self { index: found.place().index, how })
    }

    /// Of an error about a packet of a connection: one of the client about an answer, and one for the client.
    #[cold]
    pub(crate) fn about(found: &Found) -> Option<Self> {
        let how = if found.for_client { How::QuotedBack } else { How::QuotedOnward };
        let is_one = found.is_translated() && (found.for_client || found.is_onward());
        is_one.then_some(Self { index: found.place().index, how })
    }

    /// Whether it is what the packet quotes.
    #[inline(always)]
    pub(crate) fn is_quoted(self) -> bool {
        matches!(self.how, How::QuotedOnward | How::QuotedBack)
    }
}

/// Finds out which connection a packet would be of.
#[inline(always)]
pub(crate) fn classify<I: Ip>(packet: &Packet<'_, I>) -> Result<Class, DropReason> {
    let ports = match packet.protocol {
        IpProtocol::TCP | IpProtocol::SCTP => {
            let (ports, _) = Ports::split(packet.transport)?;
            (ports.source(), ports.destination())
        }
        IpProtocol::UDP => {
            let (udp, _) = Udp::split_partial(packet.transport)?;
            let len = usize::from(udp.length());
            if len < Udp::LEN || packet.whole && len > packet.len {
                return Err(DropReason::InvalidConnection);
            }
            (udp.source(), udp.destination())
        }
        IpProtocol::ICMPV4 | IpProtocol::ICMPV6 => return classify_icmp(packet),
        _ => (0, 0),
    };
    let (key, end) = I::key((packet.source, ports.0), (packet.destination, ports.1), packet.protocol);
    Ok(Class::Of(key, end))
}

#[cold]
fn classify_icmp<I: Ip>(packet: &Packet<'_, I>) -> Result<Class, DropReason> {
    let (kind, is_error, quoted) = match packet.protocol {
        IpProtocol::ICMPV4 => {
            let (icmp, rest) = Icmpv4::split(packet.transport)?;
            (icmp.kind().0, icmp.kind().is_error(), rest)
        }
        _ => {
            let (icmp, rest) = Icmpv6::split(packet.transport)?;
            (icmp.kind().0, icmp.kind().is_error(), rest)
        }
    };
    if is_error {
        return about(packet, quoted).ok_or(DropReason::InvalidConnection);
    }
    let id = packet.transport.get(4..6).map_or(0, |id| u16::from_be_bytes([id[0], id[1]]));
    let Some((source, destination)) = echo_ends(packet.protocol, kind, id) else { return Ok(Class::Single) };
    let (key, end) = I::key((packet.source, source), (packet.destination, destination), packet.protocol);
    Ok(Class::Of(key, end))
}

/// What stands for the ports of an echo of this type: who asks has the identifier, who answers its complement, so that an answer
/// belongs to a question the other way, and questions of both ends are two connections.
fn echo_ends(protocol: IpProtocol, kind: u8, id: u16) -> Option<(u16, u16)> {
    let (request, reply) = match protocol {
        IpProtocol::ICMPV4 => (Icmpv4Type::ECHO_REQUEST.0, Icmpv4Type::ECHO_REPLY.0),
        _ => (Icmpv6Type::ECHO_REQUEST.0, Icmpv6Type::ECHO_REPLY.0),
    };
    match kind {
        kind if kind == request => Some((id, !id)),
        kind if kind == reply => Some((!id, id)),
        _ => None,
    }
}

/// The connection of the packet that an error is about, as far as it quotes it: ports and identifiers are there (RFC 792,
/// RFC 4443 §2.4). It must be for the one who sent that packet.
fn about<I: Ip>(error: &Packet<'_, I>, quoted: &[u8]) -> Option<Class> {
    let Quoted { source, destination, protocol, transport, .. } = I::quoted(quoted)?;
    let word = |at: usize| transport.get(at..at + 2).map(|word| u16::from_be_bytes([word[0], word[1]]));
    let ports = match protocol {
        IpProtocol::TCP | IpProtocol::UDP | IpProtocol::SCTP => (word(0)?, word(2)?),
        IpProtocol::ICMPV4 | IpProtocol::ICMPV6 => {
            let header = transport.first_chunk::<8>()?;
            echo_ends(protocol, header[0], word(4)?)?
        }
        _ => (0, 0),
    };
    let (key, end) = I::key((source, ports.0), (destination, ports.1), protocol);
    (error.destination == source).then_some(Class::About(key, end))
}

impl Connections {
    /// Makes a connection for a packet that has none and can begin one, finds the one that an error is about, or lets pass what stands alone;
    /// each if `gate` lets it.
    pub(crate) fn take_up<I: Ip>(
        &self,
        packet: &Packet<'_, I>,
        (class, hash): (Class, u64),
        at: (Moment, &Timeouts),
        gate: &impl Gate,
    ) -> Result<Standing, Refusal> {
        match class {
            Class::Of(key, from) => {
                self.begin(packet, &Keys { wire: (key, hash), client: None }, from, at, gate)
            }
            Class::About(key, sender) => {
                let found = self.find_quoted(&key, hash, sender).ok_or(DropReason::InvalidConnection)?;
                let (place, state, receiver) = (found.place(), found.state(), found.from);
                // It may come from somebody on the way: of whose tables it passes, the marks must be the connection's.
                let stamp = gate.stamp(receiver != state.originator);
                let halves = [0xffff_ffff << 32, 0xffff_ffff];
                let differs = stamp ^ self.entry(place.index).stamp();
                let is_current = |half: u64| stamp & half == 0 || differs & half == 0;
                if !halves.into_iter().all(is_current) {
                    return Err(DropReason::InvalidConnection.into());
                }
                Ok(Standing::Related(found))
            }
            Class::Single => {
                gate.admit()?;
                let (key, from) = I::key((packet.source, 0), (packet.destination, 0), packet.protocol);
                gate.judge(true, &ends(&key, from), packet.protocol)?;
                Ok(Standing::Alone)
            }
        }
    }

    /// Counts a later fragment, of so many bytes, of a packet that was let through; false when its connection is no more. One of TCP
    /// sends up to a sequence number.
    pub(crate) fn go_along(
        &self,
        (place, from): (Place, End),
        bytes: u64,
        sequence: Option<u32>,
        now: Moment,
    ) -> bool {
        let entry = self.entry(place.index);
        let state = entry.state();
        let there = state.life == Life::Live && state.generation == place.generation;
        if there {
            entry.see(now.millis());
            entry.count(from, 1, bytes);
            let window = entry.window(from);
            if let Some(end) = sequence.filter(|end| !tcp::not_after(*end, window.end)) {
                entry.set_window(from, Window { end, ..window });
            }
        }
        there
    }

    /// Makes a connection that its first packet, from this end of its key on the wire, may begin.
    #[cold]
    pub(crate) fn begin<I: Ip>(
        &self,
        packet: &Packet<'_, I>,
        keys: &Keys,
        from: End,
        (now, timeouts): (Moment, &Timeouts),
        gate: &impl Gate,
    ) -> Result<Standing, Refusal> {
        let first = First::of(packet, from)?.ok_or(DropReason::InvalidConnection)?;
        let owner = gate.admit()?;
        let (stamp, key) = (gate.stamp(true), &keys.wire.0);
        let rules = gate.judge(true, &ends(key, from), packet.protocol)?;
        let millis = now.millis();
        let fill = |entry: Entry<'_>| {
            entry.fill(key, millis, owner, now.nanos);
            entry.set_verdict(stamp, rules);
            entry.set_served(gate.services());
            [End::Low, End::High]
                .into_iter()
                .for_each(|end| entry.set_window(end, first.windows[end.index()]));
            entry.count(from, packet.count.0, packet.count.1);
        };
        let state = State { by_host: gate.is_by_host(), ..first.state };
        match self.insert(keys, state, fill, millis, timeouts) {
            Ok((place, state, is_new)) => {
                let for_client = keys.client.is_some();
                let from = if for_client { state.originator } else { from };
                let found = Found::new(self.entry(place.index), (place, state), from, for_client);
                if is_new {
                    return Ok(Standing::Begins(found));
                }
                match self.go_on(packet, found, now, gate)? {
                    Anew::Goes => Ok(Standing::Belongs(found)),
                    // It was over before it was found: the next try finds none.
                    Anew::Begins => Err(DropReason::InvalidConnection.into()),
                }
            }
            Err(NoPlace::Full) => Err(DropReason::ConnectionsFull.into()),
            Err(NoPlace::Clash) => Err(DropReason::NoPortLeft.into()),
        }
    }

    /// Takes a packet up into its connection. One that begins another connection of the same addresses and ports has ended this one.
    #[inline(always)]
    pub(crate) fn go_on<I: Ip>(
        &self,
        packet: &Packet<'_, I>,
        found: Found,
        now: Moment,
        gate: &impl Gate,
    ) -> Result<Anew, Refusal> {
        self.go(packet, (found, found.is_onward()), now, gate)
    }

    /// The same where it is known whether the packet goes the way of the first one.
    #[inline(always)]
    pub(crate) fn go<I: Ip>(
        &self,
        packet: &Packet<'_, I>,
        (found, onward): (Found, bool),
        now: Moment,
        gate: &impl Gate,
    ) -> Result<Anew, Refusal> {
        let from = found.from;
        // Nobody has answered yet: until then each packet asks again, so that whoever refuses from now on need not answer.
        if found.is_new() && onward && gate.refuses_new() {
            return Err(DropReason::DeniedNew.into());
        }
        // The state stays packed unless somebody needs it: to take it apart costs as much as all the rest.
        let (entry, state) = (found.entry, found.state_word());
        let stamp = gate.stamp(onward);
        if stamp != entry.stamp() {
            judge_again(entry, state, (onward, stamp), gate)?;
        }
        match packet.protocol {
            IpProtocol::TCP => {
                let (header, options, data) = Tcp::split_with_options(packet.transport)?;
                // Data may go on in the second segment.
                let data = data.len() + packet.len.saturating_sub(packet.transport.len());
                let segment = Segment::of(header, options, data);
                if take_segment(entry, found.state(), from, &segment, now)? == Anew::Begins {
                    self.release(found.place());
                    return Ok(Anew::Begins);
                }
            }
            IpProtocol::SCTP => take_chunks(entry, state, from, packet.transport, now)?,
            _ if onward || !found.is_new() => {}
            IpProtocol::ICMPV4 | IpProtocol::ICMPV6 if is_echo_request(packet) => {}
            _ => answered(entry, state, now),
        }
        entry.see(now.millis());
        entry.count(from, packet.count.0, packet.count.1);
        Ok(Anew::Goes)
    }

    /// Whether a packet begins another connection of the same addresses and ports, which has then ended this one.
    #[cold]
    pub(crate) fn is_ended_by<I: Ip>(&self, packet: &Packet<'_, I>, found: &Found) -> bool {
        let entry = found.entry;
        let windows = [entry.window(End::Low), entry.window(End::High)];
        let track = Track { state: found.state(), windows, repeated: false };
        let ended = packet.protocol == IpProtocol::TCP
            && Tcp::split_with_options(packet.transport).is_ok_and(|(header, options, data)| {
                let segment = Segment::of(header, options, data.len());
                tcp::judge(track, found.from, &segment) == Judgement::BeginsAnew
            });
        if ended {
            self.release(found.place());
        }
        ended
    }

    /// Where a packet of a translated connection comes from and goes to when it, or what it quotes, is turned.
    #[inline(always)]
    pub(crate) fn ends_of<I: Ip>(&self, turn: Turn) -> [(I::Address, u16); 2] {
        let entry = self.entry(turn.index);
        let state = entry.state();
        let client = state.client.unwrap_or(state.originator);
        match turn.how {
            How::Onward => I::ends(&entry.key(), state.originator),
            How::Back => I::ends(&entry.client_key(), client.other()),
            How::QuotedOnward => I::ends(&entry.client_key(), client),
            How::QuotedBack => I::ends(&entry.key(), state.originator.other()),
        }
    }

    /// What a packet becoming one of [these ends](Self::ends_of) does to checksums: over addresses, and over addresses and ports.
    #[inline(always)]
    pub(crate) fn changes_of(&self, turn: Turn) -> [Change; 2] {
        let changes = self.entry(turn.index).changes();
        if turn.how == How::Onward { changes } else { changes.map(Change::back) }
    }
}

/// Judges a connection by tables that have moved since it began. One that is denied stays as it is: what they allow once more goes on.
#[cold]
fn judge_again(
    entry: Entry<'_>,
    state: u64,
    (onward, stamp): (bool, u64),
    gate: &impl Gate,
) -> Result<(), Refusal> {
    let key = &entry.key();
    let originator = State::unpack(state).originator;
    let rules = gate.judge(onward, &ends(key, originator), key.protocol())?;
    entry.set_verdict(stamp, rules);
    Ok(())
}

/// The ends of a connection, the one that began it first.
pub(crate) fn ends(key: &Key, originator: End) -> Ends {
    [key.end(originator), key.end(originator.other())]
}

/// Whether a segment begins another connection.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Anew {
    /// It does.
    Begins,
    /// It does not.
    Goes,
}

/// Takes up a segment of TCP.
#[inline]
fn take_segment(
    entry: Entry<'_>,
    mut state: State,
    from: End,
    segment: &Segment,
    now: Moment,
) -> Result<Anew, DropReason> {
    loop {
        let before =
            Track { state, windows: [entry.window(End::Low), entry.window(End::High)], repeated: false };
        let after = match tcp::judge(before, from, segment) {
            Judgement::Passes(after) => after,
            Judgement::BeginsAnew => return Ok(Anew::Begins),
            Judgement::Invalid => return Err(DropReason::InvalidConnection),
        };
        if after.state != state {
            // Another worker was faster: its word counts, and this segment is judged again.
            if let Err(other) = entry.change(state, after.state) {
                state = other;
                continue;
            }
            if state.stage == Stage::New && from != state.originator {
                entry.set_handshake(now.nanos.saturating_sub(entry.began()) / 1000);
            }
        }
        entry.set_window(from, after.windows[from.index()]);
        let other = from.other();
        if after.windows[other.index()] != before.windows[other.index()] {
            entry.set_window(other, after.windows[other.index()]);
        }
        if after.repeated {
            entry.count_retransmit(from);
        }
        return Ok(Anew::Goes);
    }
}

/// Takes up a packet of SCTP.
#[cold]
fn take_chunks(
    entry: Entry<'_>,
    state: u64,
    from: End,
    packet: &[u8],
    now: Moment,
) -> Result<(), DropReason> {
    let mut state = State::unpack(state);
    loop {
        let tags = [entry.tag(End::Low), entry.tag(End::High)];
        let (stage, tags) = sctp::judge(state, tags, from, packet).ok_or(DropReason::InvalidConnection)?;
        let after = State { stage, ..state };
        if let Err(other) = entry.change(state, after) {
            state = other;
            continue;
        }
        if state.stage == Stage::New && from != state.originator {
            entry.set_handshake(now.nanos.saturating_sub(entry.began()) / 1000);
        }
        [End::Low, End::High].into_iter().for_each(|end| entry.set_tag(end, tags[end.index()]));
        return Ok(());
    }
}

/// Notes that the other end has spoken for the first time.
#[cold]
fn answered(entry: Entry<'_>, state: u64, now: Moment) {
    let state = State::unpack(state);
    if entry.change(state, State { stage: Stage::Established, ..state }).is_ok() {
        entry.set_handshake(now.nanos.saturating_sub(entry.began()) / 1000);
    }
}

fn is_echo_request<I: Ip>(packet: &Packet<'_, I>) -> bool {
    let kind = packet.transport.first().copied();
    kind == Some(if packet.protocol == IpProtocol::ICMPV4 {
        Icmpv4Type::ECHO_REQUEST.0
    } else {
        Icmpv6Type::ECHO_REQUEST.0
    })
}

/// What a first packet makes of a connection.
struct First {
    state: State,
    windows: [Window; 2],
}

impl First {
    /// None when the packet can only be an answer.
    fn of<I: Ip>(packet: &Packet<'_, I>, from: End) -> Result<Option<Self>, DropReason> {
        let state = beginning(from, Stage::New);
        let plain = Self { state, windows: [Window::default(); 2] };
        Ok(match packet.protocol {
            IpProtocol::TCP => {
                let (header, options, data) = Tcp::split_with_options(packet.transport)?;
                let data = data.len() + packet.len.saturating_sub(packet.transport.len());
                tcp::begin(&Segment::of(header, options, data), from, state)
                    .map(|track| Self { state: track.state, windows: track.windows })
            }
            IpProtocol::UDP => Udp::split_partial(packet.transport).map(|_| Some(plain))?,
            IpProtocol::SCTP => {
                Sctp::split(packet.transport)?;
                sctp::begin(packet.transport, from).map(|tags| {
                    let window = |end: End| Window { end: tags[end.index()], ..Window::default() };
                    Self { state, windows: [window(End::Low), window(End::High)] }
                })
            }
            IpProtocol::ICMPV4 | IpProtocol::ICMPV6 => is_echo_request(packet).then_some(plain),
            _ => Some(plain),
        })
    }
}
