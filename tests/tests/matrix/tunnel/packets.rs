//! Packets and tunnel frames, byte by byte, and what must become of them.

use std::net::IpAddr;

use anyhow::Context;
use causeway_wire::IpProtocol;
use causeway_wire::checksum::{Sum, internet, never_zero};
use etherparse::PacketBuilder;

use super::super::spoof::Mac;
use super::TUNNEL;

/// An IP packet with a datagram in it, its checksum right.
pub fn udp(ends: (IpAddr, IpAddr), ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64)
            .udp(ports.0, ports.1)
            .write(&mut bytes, payload),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64)
            .udp(ports.0, ports.1)
            .write(&mut bytes, payload),
        mixed => unreachable!("{mixed:?} are of two families"),
    }
    .unwrap_or_else(|error| unreachable!("into memory: {error}"));
    bytes
}

/// An IP packet that asks for a connection.
pub fn syn(ends: (IpAddr, IpAddr), ports: (u16, u16)) -> Vec<u8> {
    let mut bytes = Vec::new();
    match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64)
            .tcp(ports.0, ports.1, 1, 1000)
            .syn()
            .write(&mut bytes, &[]),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64)
            .tcp(ports.0, ports.1, 1, 1000)
            .syn()
            .write(&mut bytes, &[]),
        mixed => unreachable!("{mixed:?} are of two families"),
    }
    .unwrap_or_else(|error| unreachable!("into memory: {error}"));
    bytes
}

pub fn is_v4(packet: &[u8]) -> bool {
    packet[0] >> 4 == 4
}

/// An Ethernet frame around a packet.
pub fn ether(destination: Mac, source: Mac, packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if is_v4(packet) { [8, 0] } else { [0x86, 0xdd] };
    [&destination[..], &source, &kind, packet].concat()
}

/// Changes bytes of a packet's header, and makes its header's checksum right again.
pub fn with(mut packet: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    packet[at..at + bytes.len()].copy_from_slice(bytes);
    if is_v4(&packet) {
        packet[10..12].fill(0);
        let checksum = internet(&packet[..20]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    packet
}

/// A packet's traffic class: code point and congestion bits.
pub fn class(packet: &[u8]) -> u8 {
    if is_v4(packet) { packet[1] } else { packet[0] << 4 | packet[1] >> 4 }
}

/// The packet with another traffic class.
pub fn with_class(packet: Vec<u8>, class: u8) -> Vec<u8> {
    if is_v4(&packet) {
        return with(packet, 1, &[class]);
    }
    let low = packet[1] & 15;
    with(packet, 0, &[0x60 | class >> 4, class << 4 | low])
}

/// The packet as a router passes it on.
pub fn forwarded(packet: Vec<u8>) -> Vec<u8> {
    let at = if is_v4(&packet) { 8 } else { 7 };
    let left = packet[at] - 1;
    with(packet, at, &[left])
}

/// The checksum of an outer datagram.
#[derive(Clone, Copy)]
pub enum Checksum {
    Right,
    This(u16),
}

/// The outer packet around a VXLAN header and an inner frame.
pub fn outer(ends: (IpAddr, IpAddr), vxlan: [u8; 8], inner: &[u8], checksum: Checksum) -> Vec<u8> {
    let packet = udp(ends, (50_000, TUNNEL), &[&vxlan[..], inner].concat());
    match checksum {
        Checksum::Right => packet,
        Checksum::This(checksum) => {
            let at = if is_v4(&packet) { 26 } else { 46 };
            with(packet, at, &checksum.to_be_bytes())
        }
    }
}

/// The checksum that an outer datagram with these bytes would have.
pub fn right_checksum(ends: (IpAddr, IpAddr), datagram: &[u8]) -> u16 {
    let len = u16::try_from(datagram.len()).unwrap_or_else(|_| unreachable!("shorter than a packet"));
    let pseudo = match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => Sum::ipv4_pseudo(from, to, IpProtocol::UDP, len),
        (IpAddr::V6(from), IpAddr::V6(to)) => Sum::ipv6_pseudo(from, to, IpProtocol::UDP, len.into()),
        mixed => unreachable!("{mixed:?} are of two families"),
    };
    never_zero(pseudo.bytes(&datagram[..6]).bytes(&datagram[8..]).checksum())
}

/// A tunnel frame that was seen on the wire, taken apart.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Bytes of the outer packet.
    pub len: usize,
    pub class: u8,
    /// Flags and offset of an outer IPv4 packet: "do not fragment" is 0x4000.
    pub fragment: u16,
    pub source_port: u16,
    pub checksum: u16,
    /// What the checksum must be if it is not zero.
    pub right_checksum: u16,
    pub vxlan: [u8; 8],
    /// The outer packet.
    pub outer: Vec<u8>,
    /// The inner frame.
    pub inner: Vec<u8>,
}

impl Seen {
    /// None when it is no tunnel frame between these ends.
    pub fn of(frame: &[u8], ends: (IpAddr, IpAddr)) -> Option<Self> {
        let packet = frame.get(14..)?;
        let (header, len, protocol, fragment, found): (_, _, _, _, (IpAddr, IpAddr)) = match frame
            .get(12..14)?
        {
            [8, 0] => {
                let address = |at: usize| <[u8; 4]>::try_from(packet.get(at..at + 4)?).ok().map(IpAddr::from);
                let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
                (20, usize::from(word(2)?), *packet.get(9)?, word(6)?, (address(12)?, address(16)?))
            }
            [0x86, 0xdd] => {
                let address =
                    |at: usize| <[u8; 16]>::try_from(packet.get(at..at + 16)?).ok().map(IpAddr::from);
                let payload = u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]);
                (40, 40 + usize::from(payload), *packet.get(6)?, 0, (address(8)?, address(24)?))
            }
            _ => return None,
        };
        let datagram = packet.get(header..len)?;
        let word = |at: usize| u16::from_be_bytes([datagram[at], datagram[at + 1]]);
        if found != ends || protocol != 17 || datagram.len() < 30 || word(2) != TUNNEL {
            return None;
        }
        Some(Self {
            len,
            class: class(packet),
            fragment,
            source_port: word(0),
            checksum: word(6),
            right_checksum: right_checksum(ends, datagram),
            vxlan: datagram[8..16].try_into().ok()?,
            outer: packet[..len].to_vec(),
            inner: datagram[16..].to_vec(),
        })
    }

    /// The inner packet.
    pub fn packet(&self) -> &[u8] {
        &self.inner[14..]
    }
}

/// Cuts a packet into fragments of at most so many bytes of payload each, a multiple of eight.
pub fn fragments(packet: &[u8], step: usize, identification: u16) -> Vec<Vec<u8>> {
    let header = if is_v4(packet) { 20 } else { 40 };
    let payload = &packet[header..];
    let piece = |(index, bytes): (usize, &[u8])| {
        let at = index * step;
        let more = at + bytes.len() < payload.len();
        fragment(packet, (at, bytes), more, identification)
    };
    payload.chunks(step).enumerate().map(piece).collect()
}

/// One fragment of a packet, with these bytes at this place.
pub fn fragment(packet: &[u8], (at, bytes): (usize, &[u8]), more: bool, identification: u16) -> Vec<u8> {
    let at = u16::try_from(at).unwrap_or_else(|_| unreachable!("no packet is so long"));
    let len = |extra: usize| u16::try_from(bytes.len() + extra).unwrap_or(u16::MAX).to_be_bytes();
    if is_v4(packet) {
        let place = ((at / 8) | if more { 0x2000 } else { 0 }).to_be_bytes();
        let [a, b] = identification.to_be_bytes();
        let head = [&len(20)[..], &[a, b], &place].concat();
        return [&with(packet[..20].to_vec(), 2, &head)[..], bytes].concat();
    }
    let place = (at | u16::from(more)).to_be_bytes();
    let [a, b] = identification.to_be_bytes();
    let extension = [&[packet[6], 0][..], &place, &[0, 0, a, b]].concat();
    let mut header = packet[..40].to_vec();
    header[4..6].copy_from_slice(&len(8));
    header[6] = 44;
    [header, extension, bytes.to_vec()].concat()
}

/// The payload that IPv4 fragments make up; an error when they do not.
pub fn joined(pieces: &[&[u8]]) -> anyhow::Result<Vec<u8>> {
    let mut places: Vec<(usize, bool, &[u8])> = pieces
        .iter()
        .map(|piece| {
            let flags = u16::from_be_bytes([piece[6], piece[7]]);
            (usize::from(flags & 0x1fff) * 8, flags & 0x2000 != 0, &piece[20..])
        })
        .collect();
    places.sort_by_key(|place| place.0);
    let mut payload = Vec::new();
    for (at, ..) in &places {
        anyhow::ensure!(*at == payload.len(), "a hole at {}", payload.len());
        let (_, _, bytes) = places.iter().find(|place| place.0 == *at).context("a place")?;
        payload.extend_from_slice(bytes);
    }
    anyhow::ensure!(places.last().is_some_and(|last| !last.1), "the last fragment is missing");
    Ok(payload)
}
