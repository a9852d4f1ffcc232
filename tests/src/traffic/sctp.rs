//! SCTP without the kernel's help, which may have none: the four packets that begin an association (RFC 9260 §5.1), as whole
//! frames.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use causeway_wire::{EtherType, Ethernet, IpProtocol, Ipv4, Ipv6, MacAddr, Sctp};
use zerocopy::IntoBytes;

use crate::namespace::Namespace;
use crate::packet_socket::PacketSocket;

/// How long a packet may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Chunk types (RFC 9260 §3.2).
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
/// What each end gives out to know its association by.
const CLIENT_TAG: u32 = 0x0c11_e147;
const SERVER_TAG: u32 = 0x5e12_7e12;
const COOKIE: &[u8] = b"cake";

/// One end of associations: an address, a port, and the interface by which they are reached.
#[derive(Debug)]
pub struct SctpEnd {
    socket: PacketSocket,
    macs: (MacAddr, MacAddr),
    own: SocketAddr,
}

/// A packet for an end.
#[derive(Debug)]
struct Heard {
    from: SocketAddr,
    tag: u32,
    chunk: Vec<u8>,
}

impl SctpEnd {
    /// Listens on an interface; `macs` are its own and that of its next hop.
    pub fn open(
        place: &Namespace,
        link: &str,
        macs: (MacAddr, MacAddr),
        own: SocketAddr,
    ) -> io::Result<Self> {
        Ok(Self { socket: place.run(|| PacketSocket::open(link))?, macs, own })
    }

    fn send(&self, to: SocketAddr, tag: u32, chunk: &[u8]) -> io::Result<()> {
        let packet = packet((self.own.port(), to.port()), tag, chunk)?;
        let length = u16::try_from(packet.len()).map_err(io::Error::other)?;
        let (kind, ip) = match (self.own.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                (EtherType::IPV4, Ipv4::new(from, to, IpProtocol::SCTP, length + 20).as_bytes().to_vec())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                (EtherType::IPV6, Ipv6::new(from, to, IpProtocol::SCTP, length).as_bytes().to_vec())
            }
            mixed => return Err(io::Error::other(format!("{mixed:?} are of two families"))),
        };
        let ethernet = Ethernet::new(self.macs.1, self.macs.0, kind);
        self.socket.send(&[ethernet.as_bytes(), &ip, &packet].concat())
    }

    /// The next packet for this end whose first chunk is of this type.
    fn receive(&self, kind: u8) -> io::Result<Heard> {
        let until = Instant::now() + PATIENCE;
        while let Some(frame) = self.socket.receive(until.saturating_duration_since(Instant::now()))? {
            if let Some(heard) = self.heard(&frame)
                && heard.chunk.first() == Some(&kind)
            {
                return Ok(heard);
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no chunk of type {kind} reaches {}", self.own)))
    }

    /// A packet for this end whose checksum is right.
    fn heard(&self, frame: &[u8]) -> Option<Heard> {
        let (ethernet, payload) = Ethernet::split(frame).ok()?;
        let (from, to, protocol, packet): (IpAddr, IpAddr, _, _) = match ethernet.ether_type() {
            EtherType::IPV4 => {
                let (ip, packet) = Ipv4::split(payload).ok()?;
                (ip.source().into(), ip.destination().into(), ip.protocol(), packet)
            }
            EtherType::IPV6 => {
                let (ip, packet) = Ipv6::split(payload).ok()?;
                (ip.source().into(), ip.destination().into(), ip.next_header(), packet)
            }
            _ => return None,
        };
        let (header, chunk) = (protocol == IpProtocol::SCTP).then(|| Sctp::split(packet).ok())??;
        let ours = SocketAddr::new(to, header.destination()) == self.own;
        let whole = Sctp::checksum_of(packet).ok()? == header.checksum();
        let from = SocketAddr::new(from, header.source());
        (ours && whole).then(|| Heard { from, tag: header.verification_tag(), chunk: chunk.to_vec() })
    }
}

/// A whole packet from one port to another.
pub(crate) fn packet((from, to): (u16, u16), tag: u32, chunk: &[u8]) -> io::Result<Vec<u8>> {
    let mut packet = vec![0; Sctp::LEN];
    packet.extend(chunk);
    let odd = |error| io::Error::other(format!("a packet of ours: {error:?}"));
    let (header, _) = Sctp::split_mut(&mut packet).map_err(odd)?;
    header.set_source(from);
    header.set_destination(to);
    header.set_verification_tag(tag);
    let checksum = Sctp::checksum_of(&packet).map_err(odd)?;
    Sctp::split_mut(&mut packet).map_err(odd)?.0.set_checksum(checksum);
    Ok(packet)
}

/// The chunk that begins an association, of an end that wants to be known by this tag.
pub(crate) fn begins(tag: u32) -> Vec<u8> {
    init(INIT, tag, &[])
}

/// The chunk that answers one that begins an association, by an end that wants to be known by this tag; none to any other.
pub(crate) fn answer(chunk: &[u8], tag: u32) -> Option<(u32, Vec<u8>)> {
    answer_with(chunk, tag, COOKIE)
}

/// The same with this cookie, whose length is a multiple of four.
pub(crate) fn answer_with(chunk: &[u8], tag: u32, cookie: &[u8]) -> Option<(u32, Vec<u8>)> {
    let theirs = chunk.get(4..8)?.try_into().ok()?;
    let length = u16::try_from(cookie.len()).ok()? + 4;
    let cookie = [&[0, 7][..], &length.to_be_bytes(), cookie].concat();
    (chunk.first() == Some(&INIT)).then(|| (u32::from_be_bytes(theirs), init(INIT_ACK, tag, &cookie)))
}

/// The cookie in a chunk that answers one that begins an association: where it is the only parameter.
pub(crate) fn cookie(chunk: &[u8]) -> Option<&[u8]> {
    let (head, cookie) = chunk.get(20..)?.split_at_checked(4)?;
    (is_answer(chunk) && head[..2] == [0, 7]).then_some(cookie)
}

/// The chunk that says that nobody is there (RFC 9260 §3.3.7), to one who was to be known by its tag.
pub(crate) const ABORT: [u8; 4] = [6, 0, 0, 4];

/// Whether a chunk ends an association, or its beginning.
pub(crate) fn is_abort(chunk: &[u8]) -> bool {
    chunk.first() == Some(&ABORT[0])
}

/// Whether a chunk begins an association.
pub(crate) fn is_begin(chunk: &[u8]) -> bool {
    chunk.first() == Some(&INIT)
}

/// A chunk of data (RFC 9260 §3.3.1), whole in itself.
pub(crate) fn data(payload: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(16 + payload.len()).map_err(io::Error::other)?;
    let mut chunk = [&[0, 3][..], &length.to_be_bytes(), &[0, 0, 0, 1], &[0; 8], payload].concat();
    chunk.resize(chunk.len().next_multiple_of(4), 0);
    Ok(chunk)
}

/// What is in a chunk of data.
pub(crate) fn payload(chunk: &[u8]) -> Option<&[u8]> {
    let length = usize::from(u16::from_be_bytes(chunk.get(2..4)?.try_into().ok()?));
    (chunk.first() == Some(&0)).then(|| chunk.get(16..length))?
}

/// Whether a chunk answers the one that begins an association.
pub(crate) fn is_answer(chunk: &[u8]) -> bool {
    chunk.first() == Some(&INIT_ACK)
}

/// Begins an association with whoever is behind an address; who the server saw. Both ends check tags and checksums.
pub fn associate(client: &SctpEnd, server: &SctpEnd, target: SocketAddr) -> io::Result<SocketAddr> {
    let step = |name: &str, error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
    let from = |heard: &Heard, who: SocketAddr, tag: u32| {
        let right = heard.from == who && heard.tag == tag;
        right
            .then_some(())
            .ok_or_else(|| io::Error::other(format!("from {who} with tag {tag:x} came {heard:?}")))
    };
    client.send(target, 0, &init(INIT, CLIENT_TAG, &[]))?;
    let init_heard = server.receive(INIT).map_err(|error| step("INIT", error))?;
    let seen = init_heard.from;
    from(&init_heard, seen, 0)?;
    let cookie = [&[0, 7, 0, 8][..], COOKIE].concat();
    server.send(seen, CLIENT_TAG, &init(INIT_ACK, SERVER_TAG, &cookie))?;
    let answer = client.receive(INIT_ACK).map_err(|error| step("INIT ACK", error))?;
    from(&answer, target, CLIENT_TAG)?;
    client.send(target, SERVER_TAG, &[&[COOKIE_ECHO, 0, 0, 8][..], COOKIE].concat())?;
    let echo = server.receive(COOKIE_ECHO).map_err(|error| step("COOKIE ECHO", error))?;
    from(&echo, seen, SERVER_TAG)?;
    server.send(seen, CLIENT_TAG, &[COOKIE_ACK, 0, 0, 4])?;
    let answer = client.receive(COOKIE_ACK).map_err(|error| step("COOKIE ACK", error))?;
    from(&answer, target, CLIENT_TAG)?;
    Ok(seen)
}

/// INIT or INIT ACK (RFC 9260 §3.3.2): a window of 64 KiB, one stream each way.
fn init(kind: u8, tag: u32, parameters: &[u8]) -> Vec<u8> {
    let length = 20 + parameters.len() as u16;
    let fixed = [&[kind, 0][..], &length.to_be_bytes(), &tag.to_be_bytes(), &0x10000_u32.to_be_bytes()];
    [&fixed.concat()[..], &[0, 1, 0, 1], &1_u32.to_be_bytes(), parameters].concat()
}
