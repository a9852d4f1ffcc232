//! Datagrams that come in fragments: what is decided of the first fragment holds for the others, which have no ports.
//!
//! Nothing is put together here. Each worker remembers the datagrams of its own queues, since all fragments of one come by one
//! queue: queues are dealt by addresses where there are no ports, and in a tunnel they share an outer port. What comes before
//! its first fragment waits for it, within bounds of number and time; what overlaps is refused (RFC 5722, RFC 8200 §4.5).

use causeway_model::DropReason;
use causeway_wire::{Ethernet, IpProtocol, Ipv4, Ipv6, Ipv6Extension, Ipv6Fragment, Tcp, TcpFlags};

use crate::burst::{Kept, Pieces};
use crate::connection::{self, End, Moment};
use crate::entropy::mix;
use crate::packet::{Family, Front, Ip};
use crate::policy::Refusal;
use crate::send::{Hop, send};
use crate::service::{Detour, stand_at_gateway, stand_at_service, turn_and_send};
use crate::track::{Tracking, stand};
use crate::transport::Transport;
use crate::world::{Owner, World};
use crate::{Buffer, Frame, Pool, Port, Tally, Worker};

/// Datagrams that a worker remembers, 1.1 KiB each: in so many sets of so many.
const SETS: usize = 256;
const WAYS: usize = 4;
/// Fragments that wait for their first one, of all datagrams and of one: as many as the longest has on a link of 1,280 bytes.
const WAITING: usize = 256;
const WAITING_OF_ONE: usize = 64;
/// How long a fragment waits for its first one.
const PATIENCE: u64 = 2_000_000_000;
/// How long a datagram is remembered: as long as Linux waits for what is missing of one (`ipfrag_time`).
const LIFETIME: u64 = 30_000_000_000;
/// Offsets count in eights.
const UNIT: usize = 8;
/// Units of the longest datagram, in words of bits.
const WORDS: usize = (1 << 16) / UNIT / 64;

/// What a worker remembers of fragments.
#[derive(Debug)]
pub(crate) struct Datagrams<B> {
    known: Box<[Datagram]>,
    waiting: Vec<Waiting<B>>,
}

/// What was decided of a datagram.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// The place is free.
    None,
    /// Its first fragment has not come.
    Open,
    /// Its first fragment passed, as one of this connection if it has one, and with other ends if that is translated.
    Passes(Option<Leader>, Option<Detour>),
    /// Its first fragment was refused.
    Refused(Refusal),
    /// Fragments overlap.
    Spoilt,
}

/// The connection of a first fragment, as far as later ones matter to it.
#[derive(Clone, Copy, Debug)]
struct Leader {
    connection: (connection::Place, End),
    /// Of TCP: the sequence number of the datagram's first byte, were that one of data.
    sequence: Option<u32>,
}

impl Leader {
    fn of<B: Buffer>(
        connection: (connection::Place, End),
        frame: &Frame<B>,
        transport: Option<Transport>,
    ) -> Self {
        let tcp = transport.filter(|transport| transport.protocol() == IpProtocol::TCP);
        let header = tcp.and_then(|tcp| Tcp::split(frame.head().get(tcp.offset()..)?).ok());
        let sequence = header.map(|(tcp, _)| {
            let fin = u32::from(tcp.flags().contains(TcpFlags::FIN));
            tcp.sequence().wrapping_sub(tcp.header_len() as u32).wrapping_add(fin)
        });
        Self { connection, sequence }
    }
}

/// A datagram of which a fragment has come.
#[derive(Clone, Debug)]
struct Datagram {
    key: [u64; 5],
    from: Port,
    began: u64,
    fate: Fate,
    /// Fragments that wait.
    waiting: usize,
    /// Where its last fragment ends, in units, if that has come.
    end: Option<usize>,
    /// Units that have come, and which.
    covered: usize,
    units: [u64; WORDS],
}

/// A fragment that waits for the first.
#[derive(Debug)]
struct Waiting<B> {
    datagram: usize,
    /// The world in which its way was found.
    world: u64,
    since: u64,
    hop: Hop,
    /// Where in its datagram it ends.
    end: usize,
    frame: Frame<B>,
}

/// A fragment's place in its datagram.
#[derive(Clone, Copy, Debug)]
struct Piece {
    key: [u64; 5],
    protocol: IpProtocol,
    /// Where it begins, and how long it is, in bytes.
    at: usize,
    len: usize,
    more: bool,
}

/// Why a fragment does not fit among the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Clash {
    /// All of it has come before.
    Again,
    /// Some of it has come before, or there are two ends.
    Overlap,
}

/// What a worker passes fragments with.
pub(crate) struct Hands<'a, P: Pool> {
    pub(crate) pool: &'a mut P,
    pub(crate) datagrams: &'a mut Datagrams<P::Buffer>,
    pub(crate) pieces: &'a mut Pieces<P::Buffer>,
    pub(crate) tracking: Option<&'a Tracking>,
    pub(crate) tally: &'a Tally,
}

/// Where a fragment's datagram goes, as far as its address tells.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// Where the frame says.
    Pods,
    /// To what may be a service: where the first fragment's ports say.
    Service(Owner),
    /// To the gateway: back, if it answers a connection of the pod with itself.
    Gateway,
}

impl<'a, P: Pool> Hands<'a, P> {
    /// The same for a while.
    pub(crate) fn lend(&mut self) -> Hands<'_, P> {
        let Self { pool, datagrams, pieces, tracking, tally } = self;
        Hands { pool, datagrams, pieces, tracking: *tracking, tally }
    }

    /// The same in other registers: what a call is handed lies in memory from then on.
    #[inline(always)]
    pub(crate) fn again(self) -> Self {
        let Self { pool, datagrams, pieces, tracking, tally } = self;
        Self { pool, datagrams, pieces, tracking, tally }
    }

    /// Those of a worker. Made anew where a function is called: what a call is handed lies in memory from then on.
    #[inline(always)]
    pub(crate) fn of(worker: &'a mut Worker<P>, pieces: &'a mut Pieces<P::Buffer>) -> Self {
        let Worker { pool, tracking, datagrams, tally, .. } = worker;
        Self { pool, datagrams, pieces, tracking: tracking.as_ref(), tally }
    }
}

impl Piece {
    /// Reads the place of a packet that is a fragment, and refuses what no sender makes.
    fn of<I: Ip>(packet: &[u8], len: usize, front: &Front<I>) -> Result<Self, DropReason> {
        let piece =
            if I::FAMILY == Family::V4 { Self::of_v4(packet, len)? } else { Self::of_v6(packet, len)? };
        let transport = front.transport.map_or(0, |transport| transport.offset() - Ethernet::LEN);
        let tcp = piece.protocol == IpProtocol::TCP;
        // RFC 1858 §4 and RFC 3128: no part of a TCP header comes later, or could be written over by what comes later.
        let tiny = tcp && (piece.at == UNIT || piece.at == 0 && len.saturating_sub(transport) < Tcp::LEN);
        let odd = piece.more && piece.len % UNIT != 0;
        if tiny || odd || piece.len == 0 || piece.at + piece.len > usize::from(u16::MAX) {
            return Err(DropReason::BadFragment);
        }
        Ok(piece)
    }

    /// Fragments of one datagram have addresses, protocol and identification in common (RFC 791 §3.2).
    fn of_v4(packet: &[u8], len: usize) -> Result<Self, DropReason> {
        let (ip, _) = Ipv4::split_partial(packet)?;
        let addresses = u64::from(u32::from(ip.source())) << 32 | u64::from(u32::from(ip.destination()));
        let rest = u64::from(ip.identification()) << 16 | u64::from(ip.protocol().0) << 8 | 4;
        Ok(Self {
            key: [addresses, rest, 0, 0, 0],
            protocol: ip.protocol(),
            at: ip.fragment_offset().into(),
            len: len.saturating_sub(ip.header_len()),
            more: ip.more_fragments(),
        })
    }

    /// Over IPv6 addresses and identification (RFC 8200 §4.5).
    fn of_v6(packet: &[u8], len: usize) -> Result<Self, DropReason> {
        let (ip, mut rest) = Ipv6::split_partial(packet)?;
        let (mut next, mut before) = (ip.next_header(), Ipv6::LEN);
        while next != IpProtocol::FRAGMENT {
            let (header, _, behind) = Ipv6Extension::split(rest)?;
            (next, before, rest) = (header.next_header(), before + header.header_len(), behind);
        }
        let (fragment, _) = Ipv6Fragment::split(rest)?;
        let halves = |address: std::net::Ipv6Addr| {
            let address = u128::from(address);
            [(address >> 64) as u64, address as u64]
        };
        let ([a, b], [c, d]) = (halves(ip.source()), halves(ip.destination()));
        Ok(Self {
            key: [a, b, c, d, u64::from(fragment.identification()) << 8 | 6],
            protocol: fragment.next_header(),
            at: fragment.offset().into(),
            len: len.saturating_sub(before + Ipv6Fragment::LEN),
            more: fragment.more_fragments(),
        })
    }
}

impl Datagram {
    const FREE: Self = Self {
        key: [0; 5],
        from: Port::Host,
        began: 0,
        fate: Fate::None,
        waiting: 0,
        end: None,
        covered: 0,
        units: [0; WORDS],
    };

    fn is_over(&self, now: u64) -> bool {
        matches!(self.fate, Fate::None) || now.saturating_sub(self.began) > LIFETIME
    }

    /// Notes a fragment among the others.
    fn take(&mut self, piece: &Piece) -> Result<(), Clash> {
        let (from, to) = (piece.at / UNIT, (piece.at + piece.len).div_ceil(UNIT));
        let there = (from..to).filter(|unit| self.units[unit / 64] >> (unit % 64) & 1 == 1).count();
        if there == to - from {
            return Err(Clash::Again);
        }
        let beyond = match (piece.more, self.end) {
            (true, Some(end)) => to > end,
            (true, None) => false,
            (false, Some(end)) => to != end,
            (false, None) => self
                .units
                .iter()
                .rposition(|word| *word != 0)
                .is_some_and(|word| (word + 1) * 64 - self.units[word].leading_zeros() as usize > to),
        };
        if there > 0 || beyond {
            return Err(Clash::Overlap);
        }
        (from..to).for_each(|unit| self.units[unit / 64] |= 1 << (unit % 64));
        self.covered += to - from;
        if !piece.more {
            self.end = Some(to);
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.end == Some(self.covered)
    }
}

impl<B: Buffer> Datagrams<B> {
    /// Nothing is known, and no memory is taken later.
    pub(crate) fn new() -> Self {
        Self { known: vec![Datagram::FREE; SETS * WAYS].into(), waiting: Vec::with_capacity(WAITING) }
    }

    /// Whether any fragment waits.
    #[inline]
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The datagram with this key, a new one if need be. In a full set it takes the place of one that came by the same port,
    /// so that nobody's fragments cost others theirs while there is another way.
    fn place(&mut self, key: &[u64; 5], from: Port, now: u64, tally: &Tally) -> usize {
        let hash = key.iter().fold(0, |hash, word| mix(hash ^ word));
        let first = (hash >> 32) as usize % SETS * WAYS;
        let set = first..first + WAYS;
        let is_it = |at: &usize| self.known[*at].key == *key && !self.known[*at].is_over(now);
        if let Some(at) = set.clone().find(is_it) {
            return at;
        }
        let worth = |at: &usize| {
            let known = &self.known[*at];
            (!known.is_over(now), known.from != from, known.began)
        };
        let at = set.min_by_key(worth).unwrap_or(first);
        self.give_up(at, DropReason::LoneFragment.into(), tally);
        self.known[at] = Datagram { key: *key, from, began: now, fate: Fate::Open, ..Datagram::FREE };
        at
    }

    /// Lets fragments wait no longer.
    fn give_up(&mut self, datagram: usize, why: Refusal, tally: &Tally) {
        if self.known[datagram].waiting > 0 {
            let from = self.known[datagram].from;
            self.waiting.retain(|waiting| {
                let stays = waiting.datagram != datagram;
                if !stays {
                    tally.refused(why, waiting.frame.len(), whose(from, &waiting.frame));
                }
                stays
            });
            self.known[datagram].waiting = 0;
        }
    }

    /// Lets go of what has waited too long.
    pub(crate) fn expire(&mut self, now: u64, tally: &Tally) {
        let Self { known, waiting } = self;
        waiting.retain(|waiting| {
            let stays = now.saturating_sub(waiting.since) <= PATIENCE;
            if !stays {
                let datagram = &mut known[waiting.datagram];
                datagram.waiting -= 1;
                let port = whose(datagram.from, &waiting.frame);
                tally.dropped(DropReason::LoneFragment, waiting.frame.len(), port);
            }
            stays
        });
    }

    /// Has a copy of a fragment wait: its buffer belongs to the burst.
    fn wait<P: Pool<Buffer = B>>(
        &mut self,
        (datagram, hop, end): (usize, Hop, usize),
        frame: &Frame<B>,
        (world, now): (&World, u64),
        pool: &mut P,
    ) -> Result<Kept, DropReason> {
        if self.waiting.len() == WAITING || self.known[datagram].waiting == WAITING_OF_ONE {
            return Err(DropReason::LoneFragment);
        }
        let mut copy = Frame::fresh(pool, frame.len())?;
        if !frame.copy_out(0, copy.head_mut()) {
            return Err(DropReason::Malformed);
        }
        (copy.egress, copy.peer) = (frame.egress, frame.peer);
        self.known[datagram].waiting += 1;
        self.waiting.push(Waiting { datagram, world: world.number, since: now, hop, end, frame: copy });
        Ok(Kept::Replaced)
    }
}

/// The pod that a drop is counted for.
fn whose<B>(from: Port, frame: &Frame<B>) -> Port {
    if matches!(from, Port::Endpoint(_)) { from } else { frame.egress }
}

/// Takes a fragment whose way is known to where its datagram goes, if its first fragment goes there. Between others than pods of
/// this path nobody judges.
#[cold]
pub(crate) fn pass<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    front: &Front<I>,
    (from, hop, to): (Port, Hop, Place),
    (world, now): (&World, u64),
    mut hands: Hands<'_, P>,
) -> Result<Kept, DropReason> {
    let egress = frame.egress;
    if !matches!(from, Port::Endpoint(_)) && !matches!(egress, Port::Endpoint(_)) {
        return send(frame, front, (hop, egress), world, hands.pool, hands.pieces);
    }
    let packet = frame.head().get(Ethernet::LEN..).ok_or(DropReason::Malformed)?;
    let piece = Piece::of(packet, frame.len() - Ethernet::LEN, front)?;
    let at = hands.datagrams.place(&piece.key, from, now, hands.tally);
    let datagram = &mut hands.datagrams.known[at];
    if matches!(datagram.fate, Fate::Spoilt) {
        return Err(DropReason::BadFragment);
    }
    if let Err(clash) = datagram.take(&piece) {
        if clash == Clash::Overlap {
            datagram.fate = Fate::Spoilt;
            hands.datagrams.give_up(at, DropReason::BadFragment.into(), hands.tally);
        }
        return Err(DropReason::BadFragment);
    }
    let kept = if piece.at == 0 {
        first(frame, front, (at, from, hop, to), (world, now), &mut hands)
    } else {
        match datagram.fate {
            Fate::Passes(leader, detour) => {
                go_along(frame, leader, piece.at + piece.len, (hands.tracking, now))
                    .and_then(|()| follow::<P, I>(frame, (hop, detour), world, hands.pool, hands.pieces))
            }
            Fate::Refused(Refusal { reason, rule }) => {
                frame.denied_by = rule;
                Err(reason)
            }
            Fate::None | Fate::Open | Fate::Spoilt => {
                let end = piece.at + piece.len;
                hands.datagrams.wait((at, hop, end), frame, (world, now), hands.pool)
            }
        }
    };
    let datagram = &mut hands.datagrams.known[at];
    if datagram.is_complete() && datagram.waiting == 0 {
        datagram.fate = Fate::None;
    }
    kept
}

/// Judges a first fragment, and with it those that have waited for it.
fn first<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    front: &Front<I>,
    (at, from, hop, to): (usize, Port, Hop, Place),
    (world, now): (&World, u64),
    hands: &mut Hands<'_, P>,
) -> Result<Kept, DropReason> {
    let stood = match (to, from) {
        (Place::Service(owner), Port::Endpoint(slot)) => {
            stand_at_service(frame, front, (slot, owner), hands.tracking, world, now)
        }
        (Place::Gateway, Port::Endpoint(slot)) => {
            stand_at_gateway(frame, front, slot, hands.tracking, world, now)
                .and_then(|stood| stood.ok_or(DropReason::NoRoute))
        }
        _ => stand(frame, front, from, hands.tracking, world, now),
    };
    match stood {
        Ok(stood) => {
            let turn = stood.turn();
            let leader = stood.connection().map(|connection| Leader::of(connection, frame, front.transport));
            let detour = match (turn, hands.tracking) {
                (Some(turn), Some(tracking)) => Detour::of::<_, I>(frame, turn, &tracking.connections),
                _ => None,
            };
            hands.datagrams.known[at].fate = Fate::Passes(leader, detour);
            let kept = match turn {
                Some(turn) => turn_and_send::<P, I>(frame, turn, hop, world, hands.lend()),
                None => {
                    let egress = frame.egress;
                    send(frame, front, (hop, egress), world, hands.pool, hands.pieces)
                }
            };
            release::<P, I>((at, leader, detour), (world, now), hands);
            kept
        }
        Err(reason) => {
            let why = Refusal { reason, rule: frame.denied_by };
            hands.datagrams.known[at].fate = Fate::Refused(why);
            hands.datagrams.give_up(at, why, hands.tally);
            Err(reason)
        }
    }
}

/// Sends a later fragment the way of its first.
fn follow<P: Pool, I: Ip>(
    frame: &mut Frame<P::Buffer>,
    (hop, detour): (Hop, Option<Detour>),
    world: &World,
    pool: &mut P,
    pieces: &mut Pieces<P::Buffer>,
) -> Result<Kept, DropReason> {
    if let Some(detour) = detour {
        detour.lead::<_, I>(frame)?;
    }
    let front = I::front(frame.head().get(Ethernet::LEN..).unwrap_or_default())?;
    let egress = frame.egress;
    send(frame, &front, (hop, egress), world, pool, pieces)
}

/// Sends on what has waited.
fn release<P: Pool, I: Ip>(
    (at, leader, detour): (usize, Option<Leader>, Option<Detour>),
    (world, now): (&World, u64),
    hands: &mut Hands<'_, P>,
) {
    let from = hands.datagrams.known[at].from;
    while hands.datagrams.known[at].waiting > 0 {
        hands.datagrams.known[at].waiting -= 1;
        let Some(index) = hands.datagrams.waiting.iter().position(|waiting| waiting.datagram == at) else {
            return;
        };
        let Waiting { world: number, hop, end, mut frame, .. } = hands.datagrams.waiting.remove(index);
        let (bytes, port) = (frame.len(), whose(from, &frame));
        // Its way was found among pods and peers that may be others now.
        let sent = if number == world.number {
            go_along(&frame, leader, end, (hands.tracking, now))
                .and_then(|()| follow::<P, I>(&mut frame, (hop, detour), world, hands.pool, hands.pieces))
        } else {
            Err(DropReason::LoneFragment)
        };
        let done = sent.and_then(|kept| if kept == Kept::Whole { hands.pieces.push(frame) } else { Ok(()) });
        if let Err(reason) = done {
            hands.tally.dropped(reason, bytes, port);
        }
    }
}

/// Counts a later fragment into the connection of its first, which must be there still.
fn go_along<B: Buffer>(
    frame: &Frame<B>,
    leader: Option<Leader>,
    end: usize,
    (tracking, now): (Option<&Tracking>, u64),
) -> Result<(), DropReason> {
    let (Some(tracking), Some(Leader { connection, sequence })) = (tracking, leader) else { return Ok(()) };
    let bytes = (frame.len() - Ethernet::LEN) as u64;
    let sequence = sequence.map(|sequence| sequence.wrapping_add(end as u32));
    let there = tracking.connections.go_along(connection, bytes, sequence, Moment { nanos: now });
    if there { Ok(()) } else { Err(DropReason::InvalidConnection) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(at: usize, len: usize, more: bool) -> Piece {
        Piece { key: [0; 5], protocol: IpProtocol::UDP, at, len, more }
    }

    #[test]
    fn fragments_fit_in_any_order_and_no_overlap_does() {
        let table = [
            (vec![(0, 16, true), (16, 8, true), (24, 3, false)], Ok(()), true),
            (vec![(24, 3, false), (0, 16, true), (16, 8, true)], Ok(()), true),
            (vec![(0, 16, true), (16, 8, true)], Ok(()), false),
            (vec![(0, 16, true), (8, 16, true)], Err(Clash::Overlap), false),
            (vec![(8, 16, true), (0, 16, true)], Err(Clash::Overlap), false),
            (vec![(0, 16, true), (0, 16, true)], Err(Clash::Again), false),
            (vec![(0, 24, true), (8, 8, true)], Err(Clash::Again), false),
            (vec![(0, 8, true), (16, 8, false), (24, 8, true)], Err(Clash::Overlap), false),
            (vec![(0, 8, true), (16, 8, true), (8, 8, false)], Err(Clash::Overlap), false),
            (vec![(0, 8, true), (16, 8, false), (8, 16, false)], Err(Clash::Overlap), false),
            (vec![(65_528, 7, false), (0, 65_528, true)], Ok(()), true),
        ];
        for (pieces, outcome, complete) in table {
            let mut datagram = Datagram::FREE;
            let (last, before) = pieces.split_last().unwrap();
            let mut take = |(at, len, more): (usize, usize, bool)| datagram.take(&piece(at, len, more));
            before.iter().for_each(|place| take(*place).unwrap());
            assert_eq!(take(*last), outcome, "{pieces:?}");
            assert_eq!(datagram.is_complete(), complete, "{pieces:?}");
        }
    }
}
