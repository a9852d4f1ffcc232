//! A packet and its connection: whether it has one, may begin one, or belongs to none.

use causeway_model::DropReason;
use causeway_model::connection::{Stage, Timeouts};
use causeway_wire::{Icmpv4, Icmpv4Type, Icmpv6, Icmpv6Type, IpProtocol, Ports, Sctp, Tcp, Udp};

use super::entry::{Entry, Life, State, Window};
use super::key::{End, Key};
use super::sctp;
use super::table::{Connections, Place, beginning};
use super::tcp::{self, Judgement, Segment, Track};
use crate::packet::{Ip, Quoted};

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

/// What a packet asks leave for that nobody has answered yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asks {
    /// To begin a connection.
    ToBegin,
    /// To go on with one that was begun.
    ToGoOn,
}

/// How a packet stands to a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// It began one.
    Begins(Place),
    /// It belongs to one, and goes the way that its first packet went, or the other way.
    Belongs(Place, bool),
    /// It tells one end of a connection what became of a packet.
    Related(Place),
    /// It stands alone, and was let through as such.
    Alone,
}

/// Finds out which connection a packet would be of.
#[inline(always)]
pub(crate) fn classify<I: Ip>(packet: &Packet<'_, I>) -> Result<Class, DropReason> {
    let ports = match packet.protocol {
        IpProtocol::TCP | IpProtocol::UDP | IpProtocol::SCTP => {
            let (ports, _) = Ports::split(packet.transport)?;
            (ports.source(), ports.destination())
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
    if ![ECHO_V4, ECHO_V6].iter().any(|echo| echo.contains(&kind)) {
        return Ok(Class::Single);
    }
    let id = packet.transport.get(4..6).map_or(0, |id| u16::from_be_bytes([id[0], id[1]]));
    let (key, end) = I::key((packet.source, id), (packet.destination, id), packet.protocol);
    Ok(Class::Of(key, end))
}

/// Requests and replies.
const ECHO_V4: [u8; 2] = [Icmpv4Type::ECHO_REQUEST.0, Icmpv4Type::ECHO_REPLY.0];
const ECHO_V6: [u8; 2] = [Icmpv6Type::ECHO_REQUEST.0, Icmpv6Type::ECHO_REPLY.0];

/// The connection of the packet that an error is about, as far as it quotes it: ports and identifiers are there (RFC 792,
/// RFC 4443 §2.4). It must be for the one who sent that packet.
fn about<I: Ip>(error: &Packet<'_, I>, quoted: &[u8]) -> Option<Class> {
    let Quoted { source, destination, protocol, transport } = I::quoted(quoted)?;
    let word = |at: usize| transport.get(at..at + 2).map(|word| u16::from_be_bytes([word[0], word[1]]));
    let ports = match protocol {
        IpProtocol::TCP | IpProtocol::UDP | IpProtocol::SCTP => (word(0)?, word(2)?),
        IpProtocol::ICMPV4 | IpProtocol::ICMPV6 => (word(4)?, word(4)?),
        _ => (0, 0),
    };
    let (key, end) = I::key((source, ports.0), (destination, ports.1), protocol);
    (error.destination == source).then_some(Class::About(key, end))
}

impl Connections {
    /// Follows a packet: finds its connection and takes up what it says, or makes one if it can begin one and
    /// `may_begin` lets it. Who it belongs to is what that returns.
    #[inline]
    pub(crate) fn follow<I: Ip>(
        &self,
        packet: &Packet<'_, I>,
        class: Class,
        hash: u64,
        (now, timeouts): (Moment, &Timeouts),
        may_begin: impl Fn(Asks) -> Result<u16, DropReason>,
    ) -> Result<Standing, DropReason> {
        match class {
            Class::Of(key, from) => match self.find(&key, hash) {
                Some(found) => self.go_on(packet, (&key, hash), from, found, (now, timeouts), &may_begin),
                None => self.begin(packet, (&key, hash), from, (now, timeouts), &may_begin),
            },
            Class::About(key, _) => {
                let (place, _) = self.find(&key, hash).ok_or(DropReason::InvalidConnection)?;
                Ok(Standing::Related(place))
            }
            Class::Single => may_begin(Asks::ToBegin).map(|_| Standing::Alone),
        }
    }

    /// Counts a later fragment, of so many bytes, of a packet that was let through; false when its connection is no more.
    pub(crate) fn go_along(&self, place: Place, from: End, bytes: u64, now: Moment) -> bool {
        let entry = self.entry(place.index);
        let state = entry.state();
        let there = state.life == Life::Live && state.generation == place.generation;
        if there {
            entry.see(now.millis());
            entry.count(from, 1, bytes);
        }
        there
    }

    #[cold]
    fn begin<I: Ip>(
        &self,
        packet: &Packet<'_, I>,
        key: (&Key, u64),
        from: End,
        (now, timeouts): (Moment, &Timeouts),
        may_begin: &impl Fn(Asks) -> Result<u16, DropReason>,
    ) -> Result<Standing, DropReason> {
        let first = First::of(packet, from)?.ok_or(DropReason::InvalidConnection)?;
        let owner = may_begin(Asks::ToBegin)?;
        let millis = now.millis();
        let fill = |entry: Entry<'_>| {
            entry.fill(key.0, millis, owner, now.nanos);
            [End::Low, End::High]
                .into_iter()
                .for_each(|end| entry.set_window(end, first.windows[end.index()]));
            entry.count(from, packet.count.0, packet.count.1);
        };
        match self.insert(key, first.state, fill, millis, timeouts) {
            Ok((place, _, true)) => Ok(Standing::Begins(place)),
            Ok((place, state, false)) => {
                self.go_on(packet, key, from, (place, state), (now, timeouts), may_begin)
            }
            Err(_) => Err(DropReason::ConnectionsFull),
        }
    }

    #[inline]
    fn go_on<I: Ip>(
        &self,
        packet: &Packet<'_, I>,
        key: (&Key, u64),
        from: End,
        (place, state): (Place, State),
        (now, timeouts): (Moment, &Timeouts),
        may_begin: &impl Fn(Asks) -> Result<u16, DropReason>,
    ) -> Result<Standing, DropReason> {
        // Nobody has answered yet: until then each packet asks again, so that whoever refuses from now on need not answer.
        if state.stage == Stage::New && from == state.originator {
            may_begin(Asks::ToGoOn)?;
        }
        let entry = self.entry(place.index);
        match packet.protocol {
            IpProtocol::TCP => {
                let (header, options, data) = Tcp::split_with_options(packet.transport)?;
                // Data may go on in the second segment.
                let data = data.len() + packet.len.saturating_sub(packet.transport.len());
                let segment = Segment::of(header, options, data);
                if take_segment(entry, state, from, &segment, now)? == Anew::Begins {
                    self.release(place);
                    return self.begin(packet, key, from, (now, timeouts), may_begin);
                }
            }
            IpProtocol::SCTP => take_chunks(entry, state, from, packet.transport, now)?,
            _ if from == state.originator => {}
            IpProtocol::ICMPV4 | IpProtocol::ICMPV6 if is_echo_request(packet) => {}
            _ => answered(entry, state, now),
        }
        entry.see(now.millis());
        entry.count(from, packet.count.0, packet.count.1);
        Ok(Standing::Belongs(place, from == state.originator))
    }
}

/// Whether a segment begins another connection.
#[derive(PartialEq, Eq)]
enum Anew {
    Begins,
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
    mut state: State,
    from: End,
    packet: &[u8],
    now: Moment,
) -> Result<(), DropReason> {
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

/// Notes that the other end has spoken.
#[inline]
fn answered(entry: Entry<'_>, state: State, now: Moment) {
    if state.stage == Stage::New && entry.change(state, State { stage: Stage::Established, ..state }).is_ok()
    {
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
