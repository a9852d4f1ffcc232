//! Packets of sequences, byte by byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use causeway_model::{Family, GATEWAY_MAC};
use causeway_wire::IpProtocol;
use causeway_wire::checksum::{internet, never_zero, transport_v4, transport_v6};
use fastrand::Rng;

use super::super::spoof::Mac;
use super::super::tunnel::HEADER;
use super::super::tunnel::packets::{Checksum, ether, fragment, fragments, is_v4, outer, with, with_class};
use super::sequence::{
    Elsewhere, ErrorKind, Fault, Lie, Load, Segment, Sequence, Step, TunnelLie, Twist, Who,
};

/// The port of the tunnel.
const TUNNEL: u16 = 4789;
/// The ports of what tells that everything before it has come.
const SENTINELS: [u16; 2] = [40_001, 40_002];

/// Everybody's addresses.
#[derive(Clone, Debug)]
pub struct Cast {
    /// Of everybody, over IPv4 and IPv6.
    pub addresses: [[IpAddr; 2]; Who::ALL.len()],
    pub macs: [Mac; Who::ALL.len()],
    /// The first node's own.
    pub node: [IpAddr; 2],
    /// The tunnel's ends: the first node and the peer.
    pub underlay: [IpAddr; 2],
    pub outer_macs: [Mac; 2],
    pub vtep_macs: [Mac; 2],
}

impl Cast {
    pub fn address(&self, who: Who, family: Family) -> IpAddr {
        self.addresses[who as usize][usize::from(family == Family::V6)]
    }
}

/// One play of a sequence: flows and datagrams of its own.
pub struct Play<'a> {
    pub cast: &'a Cast,
    pub sequence: &'a Sequence,
    pub number: u16,
}

impl Play<'_> {
    /// The frames of a step, as its sender sends them.
    pub fn frames(&self, index: usize) -> Vec<Vec<u8>> {
        let step = &self.sequence.steps[index];
        let packet = self.packet(step);
        let packets = match step.twist {
            Twist::Fragments { step: cut, order, fault } => {
                let identification = self.number.wrapping_mul(31).wrapping_add(index as u16);
                cut_up(&packet, cut, identification, fault, order)
            }
            _ => vec![packet],
        };
        packets.iter().map(|packet| self.frame(step.from, packet, step.twist)).collect()
    }

    /// What tells the other end that everything before it has come.
    pub fn sentinel(&self, from: usize, number: u32) -> Vec<u8> {
        let ports = [SENTINELS[from], SENTINELS[1 - from]];
        let payload = number.to_be_bytes();
        let segment = datagram(ports, &payload);
        self.frame(from, &whole(self.between(from), IpProtocol::UDP.0, segment, &[]), Twist::None)
    }

    /// The number of a sentinel for this end.
    pub fn sentinel_in(&self, frame: &[u8]) -> Option<u32> {
        let at = if self.sequence.family == Family::V4 { 34 } else { 54 };
        let ports = [frame.get(at..at + 2)?, frame.get(at + 2..at + 4)?];
        let is = SENTINELS.map(u16::to_be_bytes);
        let matches = (ports == [&is[0], &is[1]] || ports == [&is[1], &is[0]]) && frame.len() >= at + 12;
        matches.then(|| frame.get(at + 8..at + 12)?.try_into().ok().map(u32::from_be_bytes)).flatten()
    }

    fn address(&self, end: usize) -> IpAddr {
        self.cast.address(self.sequence.ends[end], self.sequence.family)
    }

    fn between(&self, from: usize) -> (IpAddr, IpAddr) {
        (self.address(from), self.address(1 - from))
    }

    /// A flow's ports, or identifiers, of both ends: no two plays have the same.
    fn ports(&self, flow: u16) -> [u16; 2] {
        const MOST: u32 = 38_000;
        let number = u32::from(self.number) * 16 + u32::from(flow);
        [1024 + (number % MOST) as u16, 80 + flow + (number / MOST) as u16 * 16]
    }

    fn frame(&self, from: usize, packet: &[u8], twist: Twist) -> Vec<u8> {
        let (who, cast) = (self.sequence.ends[from], self.cast);
        let lie = |is: Twist, mac: Mac| if twist == is { [2, 0, 0, 0, 0, 0x77] } else { mac };
        if who != Who::Peer {
            let own = lie(Twist::SourceMac, cast.macs[who as usize]);
            let to = lie(Twist::DestinationMac, GATEWAY_MAC.0);
            return shortened(as_kind(ether(to, own, packet), self.sequence.family), twist);
        }
        let Twist::Tunnel(tunnel) = twist else {
            let inner = as_kind(ether(cast.vtep_macs[0], cast.vtep_macs[1], packet), self.sequence.family);
            let outer = outer(self.through(), HEADER, &shortened(inner, twist), Checksum::Right);
            return ether(cast.outer_macs[0], cast.outer_macs[1], &outer);
        };
        let mut inner = as_kind(ether(cast.vtep_macs[0], cast.vtep_macs[1], packet), self.sequence.family);
        let (mut header, mut ends) = (HEADER, self.through());
        match tunnel {
            TunnelLie::Network => header[6] ^= 0x40,
            TunnelLie::NoFlag => header[0] = 0,
            TunnelLie::Reserved => header[2] = 0x5a,
            TunnelLie::Stranger => ends.0 = stranger(ends.0),
            TunnelLie::InnerMac => inner[5] ^= 0x11,
            TunnelLie::InnerTag => drop(inner.splice(12..12, [0x81, 0, 0, 5])),
            TunnelLie::InnerKind => inner[12..14].copy_from_slice(&[0x88, 0xb5]),
            TunnelLie::Checksum | TunnelLie::UdpLength(_) | TunnelLie::Class(_) => {}
        }
        let mut outer = outer(ends, header, &inner, Checksum::Right);
        let udp = if is_v4(&outer) { 20 } else { 40 };
        match tunnel {
            TunnelLie::Checksum => outer[udp + 6] ^= 0x55,
            TunnelLie::UdpLength(more) => {
                let length = u16::from_be_bytes([outer[udp + 4], outer[udp + 5]]).wrapping_add_signed(more);
                outer[udp + 4..udp + 6].copy_from_slice(&length.to_be_bytes());
                // Without a checksum, so that the length alone is wrong.
                outer[udp + 6..udp + 8].fill(0);
            }
            TunnelLie::Class(class) => outer = with_class(outer, class),
            _ => {}
        }
        ether(cast.outer_macs[0], cast.outer_macs[1], &outer)
    }

    fn through(&self) -> (IpAddr, IpAddr) {
        (self.cast.underlay[1], self.cast.underlay[0])
    }

    /// The packet of a step, before it is cut up.
    fn packet(&self, step: &Step) -> Vec<u8> {
        let (mut from, mut to) = self.between(step.from);
        let (mut protocol, mut segment) = self.segment(&step.load, step.from);
        match step.twist {
            Twist::From(lie) => from = self.liar(lie, step.from),
            Twist::To(elsewhere) => {
                to = self.elsewhere(elsewhere, step.from);
                if elsewhere == Elsewhere::TunnelOfTheNode {
                    protocol = IpProtocol::UDP.0;
                    segment = datagram([self.ports(0)[0], TUNNEL], &[8; 60]);
                }
            }
            Twist::TransportLength(more) => change_length(protocol, &mut segment, more),
            _ => {}
        }
        let options = if let Twist::Options(n) = step.twist { vec![1; usize::from(n) * 8] } else { vec![] };
        let mut packet = whole((from, to), protocol, segment, &options);
        let v4 = is_v4(&packet);
        match step.twist {
            Twist::Hops(hops) => packet = with(packet, if v4 { 8 } else { 7 }, &[hops]),
            Twist::Class(class) => packet = with_class(packet, class),
            Twist::IpChecksum => packet[10] ^= 0x10,
            Twist::Version(version) => {
                packet[0] = version << 4 | packet[0] & 15;
            }
            Twist::HeaderWords(words) => packet = with(packet, 0, &[0x40 | words]),
            Twist::Longer(more) => {
                let at = if v4 { 2 } else { 4 };
                let length = u16::from_be_bytes([packet[at], packet[at + 1]]).wrapping_add(more);
                packet = with(packet, at, &length.to_be_bytes());
            }
            Twist::MayFragment if v4 => {
                let [a, b] = self.number.to_be_bytes();
                packet = with(packet, 4, &[a, b, 0, 0]);
            }
            _ => {}
        }
        packet
    }

    fn liar(&self, lie: Lie, from: usize) -> IpAddr {
        let (family, v4) = (self.sequence.family, self.sequence.family == Family::V4);
        let own = self.sequence.ends[from];
        let pick = |v4_address: [u8; 4], v6_address: [u16; 8]| {
            if v4 { IpAddr::from(v4_address) } else { IpAddr::from(v6_address) }
        };
        match lie {
            Lie::Neighbour => self.cast.address(if own == Who::B { Who::A } else { Who::B }, family),
            Lie::OtherNode => self.cast.address(if own == Who::Far { Who::A } else { Who::Far }, family),
            Lie::World => pick([198, 51, 100, 7], [0x2001, 0xdb8, 9, 0, 0, 0, 0, 7]),
            Lie::Receiver => self.address(1 - from),
            Lie::Node => self.cast.node[usize::from(!v4)],
            Lie::Loopback => pick([127, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 1]),
            Lie::Multicast => pick([224, 0, 0, 5], [0xff02, 0, 0, 0, 0, 0, 0, 5]),
            Lie::Unspecified => pick([0; 4], [0; 8]),
        }
    }

    fn elsewhere(&self, elsewhere: Elsewhere, from: usize) -> IpAddr {
        let v4 = self.sequence.family == Family::V4;
        let last = |address: IpAddr| match address {
            IpAddr::V4(address) => IpAddr::V4((u32::from(address) & !0xff | 0xfa).into()),
            IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !0xff | 0xfa).into()),
        };
        match elsewhere {
            Elsewhere::NobodyHere => last(self.address(from)),
            Elsewhere::NobodyThere => last(self.address(1 - from)),
            Elsewhere::TunnelOfTheNode => self.cast.node[usize::from(!v4)],
            Elsewhere::Loopback if v4 => Ipv4Addr::LOCALHOST.into(),
            Elsewhere::Loopback => Ipv6Addr::LOCALHOST.into(),
            Elsewhere::Multicast if v4 => IpAddr::from([224, 0, 0, 251]),
            Elsewhere::Multicast => IpAddr::from([0xff02, 0, 0, 0, 0, 0, 0, 0xfb]),
        }
    }

    /// What an IP header would carry, its checksum still missing.
    fn segment(&self, load: &Load, from: usize) -> (u8, Vec<u8>) {
        let v4 = self.sequence.family == Family::V4;
        let icmp = if v4 { IpProtocol::ICMPV4.0 } else { IpProtocol::ICMPV6.0 };
        match load {
            Load::Tcp(segment) => (IpProtocol::TCP.0, self.tcp(segment, from)),
            Load::Udp { flow, len } => {
                let ports = self.ports(*flow);
                (IpProtocol::UDP.0, datagram([ports[from], ports[1 - from]], &payload(*len)))
            }
            Load::Echo { reply, flow, len } => {
                let kind = match (v4, reply) {
                    (true, false) => 8,
                    (true, true) => 0,
                    (false, false) => 128,
                    (false, true) => 129,
                };
                let [a, b] = self.ports(*flow)[0].to_be_bytes();
                (icmp, [&[kind, 0, 0, 0, a, b, 0, 1][..], &payload(*len)].concat())
            }
            Load::Error { kind, about, by, quoted } => {
                let (kind, code, rest) = kind_of(*kind, v4);
                let (protocol, segment) = self.segment(about, *by);
                let packet = whole(self.between(*by), protocol, segment, &[]);
                let quoted = (quoted + if v4 { 20 } else { 40 }).min(packet.len());
                (icmp, [&[kind, code, 0, 0][..], &rest, &packet[..quoted]].concat())
            }
            Load::Other { protocol, len } => (*protocol, payload(*len)),
        }
    }

    fn tcp(&self, segment: &Segment, from: usize) -> Vec<u8> {
        // Both ends begin near the end of the numbers, so that they wrap around.
        const BEGIN: [u32; 2] = [0xffff_fff0, 0x7fff_fff0];
        let ports = self.ports(segment.flow);
        let options: &[u8] = match segment.scale {
            Some(scale) => &[1, 3, 3, scale],
            None => &[],
        };
        let has_ack = segment.flags.0 & 0x10 != 0;
        let acknowledgment = BEGIN[1 - from].wrapping_add(segment.acknowledgment);
        let acknowledgment = if has_ack { acknowledgment } else { 0 };
        let words = (20 + options.len()) as u8 / 4;
        [
            &ports[from].to_be_bytes()[..],
            &ports[1 - from].to_be_bytes(),
            &BEGIN[from].wrapping_add(segment.sequence).to_be_bytes(),
            &acknowledgment.to_be_bytes(),
            &[words << 4, segment.flags.0],
            &segment.window.to_be_bytes(),
            &[0; 4],
            options,
            &payload(segment.len),
        ]
        .concat()
    }
}

/// Bytes that tell where they are.
fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

fn datagram(ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let [from, to] = ports.map(u16::to_be_bytes);
    let len = (8 + payload.len()) as u16;
    [&from[..], &to, &len.to_be_bytes(), &[0, 0], payload].concat()
}

fn kind_of(kind: ErrorKind, v4: bool) -> (u8, u8, [u8; 4]) {
    match (kind, v4) {
        (ErrorKind::PortUnreachable, true) => (3, 3, [0; 4]),
        (ErrorKind::HostUnreachable, true) => (3, 1, [0; 4]),
        (ErrorKind::TooBig, true) => (3, 4, [0, 0, 5, 0]),
        (ErrorKind::HopLimit, true) => (11, 0, [0; 4]),
        (ErrorKind::Parameter, true) => (12, 0, [9, 0, 0, 0]),
        (ErrorKind::PortUnreachable, false) => (1, 4, [0; 4]),
        (ErrorKind::HostUnreachable, false) => (1, 3, [0; 4]),
        (ErrorKind::TooBig, false) => (2, 0, [0, 0, 5, 0]),
        (ErrorKind::HopLimit, false) => (3, 0, [0; 4]),
        (ErrorKind::Parameter, false) => (4, 0, [0, 0, 0, 6]),
    }
}

/// Where a protocol's checksum is.
fn checksum_at(protocol: u8) -> Option<usize> {
    match IpProtocol(protocol) {
        IpProtocol::TCP => Some(16),
        IpProtocol::UDP => Some(6),
        IpProtocol::ICMPV4 | IpProtocol::ICMPV6 => Some(2),
        _ => None,
    }
}

/// A packet around a segment whose checksum is computed.
fn whole(ends: (IpAddr, IpAddr), protocol: u8, mut segment: Vec<u8>, options: &[u8]) -> Vec<u8> {
    let number = IpProtocol(protocol);
    if let Some(at) = checksum_at(protocol).filter(|at| segment.len() >= at + 2) {
        let sum = match ends {
            _ if number == IpProtocol::ICMPV4 => internet(&segment),
            (IpAddr::V4(from), IpAddr::V4(to)) => transport_v4(from, to, number, &segment),
            (IpAddr::V6(from), IpAddr::V6(to)) => transport_v6(from, to, number, &segment),
            mixed => unreachable!("{mixed:?} are of two families"),
        };
        let sum = if number == IpProtocol::UDP { never_zero(sum) } else { sum };
        segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let words = (20 + options.len()) as u8 / 4;
            let len = (20 + options.len() + segment.len()) as u16;
            let head = [
                &[0x40 | words, 0][..],
                &len.to_be_bytes(),
                &[0, 0, 0x40, 0, 64, protocol, 0, 0],
                &from.octets(),
                &to.octets(),
                options,
            ]
            .concat();
            let mut packet = [head, segment].concat();
            let sum = internet(&packet[..usize::from(words) * 4]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            packet
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            // A destination options header of padding: PadN up to its end.
            let extension = match options.len() {
                0 => vec![],
                len => {
                    let head = [protocol, (len / 8 - 1) as u8, 1, (len - 4) as u8];
                    [&head[..], &vec![0; len - 4]].concat()
                }
            };
            let next = if extension.is_empty() { protocol } else { 60 };
            let len = (extension.len() + segment.len()) as u16;
            [
                &[0x60, 0, 0, 0][..],
                &len.to_be_bytes(),
                &[next, 64],
                &from.octets(),
                &to.octets(),
                &extension,
                &segment,
            ]
            .concat()
        }
        mixed => unreachable!("{mixed:?} are of two families"),
    }
}

fn change_length(protocol: u8, segment: &mut [u8], more: i16) {
    match IpProtocol(protocol) {
        IpProtocol::UDP => {
            let length = u16::from_be_bytes([segment[4], segment[5]]).wrapping_add_signed(more);
            segment[4..6].copy_from_slice(&length.to_be_bytes());
        }
        IpProtocol::TCP => {
            segment[12] = segment[12].wrapping_add_signed(more as i8) & 0xf0 | 0x10 & more as u8;
        }
        _ => {}
    }
}

/// A frame says what it carries by the family, whatever its packet's version is.
fn as_kind(mut frame: Vec<u8>, family: Family) -> Vec<u8> {
    let kind: [u8; 2] = if family == Family::V4 { [8, 0] } else { [0x86, 0xdd] };
    frame[12..14].copy_from_slice(&kind);
    frame
}

fn shortened(mut frame: Vec<u8>, twist: Twist) -> Vec<u8> {
    if let Twist::Cut(bytes) = twist {
        frame.truncate(frame.len().saturating_sub(bytes).max(14));
    }
    frame
}

fn stranger(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => IpAddr::from([203, 0, 113, 9]),
        IpAddr::V6(_) => IpAddr::from([0x2001, 0xdb8, 9, 0, 0, 0, 0, 9]),
    }
}

/// The fragments of a packet, in an order of chance, with a fault.
fn cut_up(packet: &[u8], step: usize, identification: u16, fault: Fault, order: u64) -> Vec<Vec<u8>> {
    let mut pieces = fragments(packet, step, identification);
    if pieces.len() < 2 {
        return vec![packet.to_vec()];
    }
    let header = if is_v4(packet) { 20 } else { 40 };
    let payload = &packet[header..];
    match fault {
        Fault::None => {}
        Fault::Overlap => {
            let end = (2 * step).min(payload.len());
            let piece =
                fragment(packet, (step - 8, &payload[step - 8..end]), end < payload.len(), identification);
            pieces[1] = piece;
        }
        Fault::Doubled => pieces.push(pieces[0].clone()),
        Fault::UnevenLength => {
            pieces[0] = fragment(packet, (0, &payload[..step - 3]), true, identification);
        }
    }
    Rng::with_seed(order).shuffle(&mut pieces);
    pieces
}
