//! Refusals of transports that have words of their own for it: TCP's reset and SCTP's ABORT.

use zerocopy::IntoBytes;

use super::{NoReply, lay};
use crate::{IpProtocol, Ipv4, Ipv6, Malformed, Sctp, Tcp, TcpFlags, Upper, checksum};

/// No refusal is longer than this.
pub const REFUSAL_LIMIT: usize = Ipv6::LEN + Tcp::LEN;

/// SCTP chunk types (RFC 9260 §3.2), and the flag that says "the tag is the one that you sent".
const INIT: u8 = 1;
const ABORT: u8 = 6;
const SHUTDOWN_ACK: u8 = 8;
const ERROR: u8 = 9;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;
const TAG_REFLECTED: u8 = 1;
/// Bytes of a chunk without a value.
const CHUNK: usize = 4;

/// Addresses as they stand in a packet, and what it carries.
struct Asked<'a> {
    header: Header,
    protocol: IpProtocol,
    /// From the transport header on, as far as it is there.
    transport: &'a [u8],
    /// From the transport header on, all of it.
    len: usize,
}

enum Header {
    V4(Ipv4),
    V6(Ipv6),
}

impl<'a> Asked<'a> {
    fn read(packet: &'a [u8]) -> Result<Self, NoReply> {
        if packet.first().is_some_and(|byte| byte >> 4 == 6) {
            let (ip, payload) = Ipv6::split_partial(packet)?;
            let upper = Upper::find(ip.next_header(), payload)?;
            if upper.is_fragment() {
                return Err(NoReply::Forbidden);
            }
            let len = usize::from(ip.payload_length()).checked_sub(upper.offset);
            return Ok(Self {
                header: Header::V6(*ip),
                protocol: upper.protocol,
                transport: payload.get(upper.offset..).unwrap_or_default(),
                len: len.ok_or(Malformed::Ipv6PayloadLength)?,
            });
        }
        let (ip, payload) = Ipv4::split_partial(packet)?;
        if ip.is_fragment() {
            return Err(NoReply::Forbidden);
        }
        let len = usize::from(ip.total_length()) - ip.header_len();
        Ok(Self { header: Header::V4(*ip), protocol: ip.protocol(), transport: payload, len })
    }

    /// Lays pieces of a transport under a header that goes back to where the packet came from.
    fn answer<'b>(&self, pieces: [&[u8]; 2], out: &'b mut [u8]) -> Result<(&'b mut [u8], usize), NoReply> {
        let len = pieces[0].len() + pieces[1].len();
        let (bytes, header) = match &self.header {
            Header::V4(ip) => {
                let total = (Ipv4::LEN + len) as u16;
                let header = Ipv4::new(ip.destination(), ip.source(), self.protocol, total);
                (lay(&[header.as_bytes(), pieces[0], pieces[1]], out)?, Ipv4::LEN)
            }
            Header::V6(ip) => {
                let header = Ipv6::new(ip.destination(), ip.source(), self.protocol, len as u16);
                (lay(&[header.as_bytes(), pieces[0], pieces[1]], out)?, Ipv6::LEN)
            }
        };
        Ok((&mut bytes[header..], header + len))
    }

    /// The checksum of a transport that answers this packet.
    fn checksum(&self, segment: &[u8]) -> u16 {
        match &self.header {
            Header::V4(ip) => checksum::transport_v4(ip.destination(), ip.source(), self.protocol, segment),
            Header::V6(ip) => checksum::transport_v6(ip.destination(), ip.source(), self.protocol, segment),
        }
    }
}

/// Writes what TCP says to a segment of a connection that does not exist (RFC 9293 §3.5.2, group 1). Of the packet only the front
/// up to the end of the TCP header need be there.
pub fn tcp_reset(packet: &[u8], out: &mut [u8]) -> Result<usize, NoReply> {
    let asked = Asked::read(packet)?;
    if asked.protocol != IpProtocol::TCP {
        return Err(NoReply::NotRequest);
    }
    let (tcp, _) = Tcp::split(asked.transport)?;
    let flags = tcp.flags();
    if flags.contains(TcpFlags::RST) {
        return Err(NoReply::Forbidden);
    }
    let (sequence, acknowledgment, answer) = if flags.contains(TcpFlags::ACK) {
        (tcp.acknowledgment(), 0, TcpFlags::RST)
    } else {
        let takes_one = |flag| u32::from(flags.contains(flag));
        let data = asked.len.saturating_sub(tcp.header_len()) as u32;
        let len = data + takes_one(TcpFlags::SYN) + takes_one(TcpFlags::FIN);
        (0, tcp.sequence().wrapping_add(len), TcpFlags::RST | TcpFlags::ACK)
    };
    let mut reset = Tcp::bare(tcp.destination(), tcp.source());
    reset.set_sequence(sequence);
    reset.set_acknowledgment(acknowledgment);
    reset.set_flags(answer);
    let (segment, len) = asked.answer([reset.as_bytes(), &[]], out)?;
    let checksum = asked.checksum(segment);
    Tcp::split_mut(segment)?.0.set_checksum(checksum);
    Ok(len)
}

/// Writes what SCTP says to a packet of an association that does not exist (RFC 9260 §8.4). Of the packet only the front up to the
/// end of its first chunk's fixed part need be there.
pub fn sctp_abort(packet: &[u8], out: &mut [u8]) -> Result<usize, NoReply> {
    let asked = Asked::read(packet)?;
    if asked.protocol != IpProtocol::SCTP {
        return Err(NoReply::NotRequest);
    }
    let (sctp, chunks) = Sctp::split(asked.transport)?;
    let &[kind, ..] = chunks.first_chunk::<CHUNK>().ok_or(Malformed::SctpShort)?;
    let (tag, chunk) = match kind {
        // Rules 2, 6, 7: what ends an association, or is about one that has ended, is not answered.
        ABORT | SHUTDOWN_COMPLETE | COOKIE_ACK | ERROR => return Err(NoReply::Forbidden),
        // Rule 3.
        INIT => {
            let tag = chunks.get(CHUNK..CHUNK + 4).and_then(|tag| tag.try_into().ok());
            (tag.map(u32::from_be_bytes).ok_or(Malformed::SctpShort)?, [ABORT, 0])
        }
        // Rule 5.
        SHUTDOWN_ACK => (sctp.verification_tag(), [SHUTDOWN_COMPLETE, TAG_REFLECTED]),
        // Rule 8.
        _ => (sctp.verification_tag(), [ABORT, TAG_REFLECTED]),
    };
    let mut header = Sctp::new(sctp.destination(), sctp.source(), tag);
    let chunk = [chunk[0], chunk[1], 0, CHUNK as u8];
    header.set_checksum(crate::crc32c(&[header.as_bytes(), &chunk]));
    let (_, len) = asked.answer([header.as_bytes(), &chunk], out)?;
    Ok(len)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;

    const ENDS: [(IpAddr, IpAddr); 2] = [
        (IpAddr::V4(Ipv4Addr::new(10, 70, 1, 5)), IpAddr::V4(Ipv4Addr::new(10, 96, 0, 9))),
        (
            IpAddr::V6(Ipv6Addr::new(0xfd70, 0, 0, 1, 0, 0, 0, 5)),
            IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 9)),
        ),
    ];

    fn packet(ends: (IpAddr, IpAddr), protocol: IpProtocol, transport: &[u8]) -> Vec<u8> {
        let len = transport.len() as u16;
        match ends {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                [Ipv4::new(from, to, protocol, 20 + len).as_bytes(), transport].concat()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                [Ipv6::new(from, to, protocol, len).as_bytes(), transport].concat()
            }
            _ => unreachable!("two families"),
        }
    }

    fn segment(flags: TcpFlags, sequence: u32, acknowledgment: u32, data: usize) -> Vec<u8> {
        let mut tcp = Tcp::bare(40_000, 80);
        tcp.set_flags(flags);
        tcp.set_sequence(sequence);
        tcp.set_acknowledgment(acknowledgment);
        [tcp.as_bytes(), &vec![7; data]].concat()
    }

    #[test]
    fn a_segment_of_no_connection_is_reset_as_the_rfc_says() {
        use TcpFlags as F;
        let table = [
            (F::SYN, 1000, 0, 0, (0, 1001, F::RST | F::ACK)),
            (F::SYN, u32::MAX, 0, 5, (0, 5, F::RST | F::ACK)),
            (F::SYN | F::ACK, 7, 77, 0, (77, 0, F::RST)),
            (F::ACK | F::PSH, 9, 99, 30, (99, 0, F::RST)),
            (F::FIN, 9, 0, 3, (0, 13, F::RST | F::ACK)),
        ];
        for ends in ENDS {
            for (flags, sequence, acknowledgment, data, expected) in table {
                let asked = packet(ends, IpProtocol::TCP, &segment(flags, sequence, acknowledgment, data));
                let mut out = [0; REFUSAL_LIMIT];
                let len = tcp_reset(&asked, &mut out).unwrap();
                let front_only = tcp_reset(&asked[..asked.len() - data], &mut [0; REFUSAL_LIMIT]);
                assert_eq!(front_only, Ok(len), "the data need not be there");
                let (from, to, right, tcp) = read(&out[..len]);
                assert_eq!((from, to, right), (ends.1, ends.0, true));
                let said = (tcp.sequence(), tcp.acknowledgment(), tcp.flags());
                assert_eq!((said, tcp.source(), tcp.destination()), (expected, 80, 40_000));
            }
            let reset = packet(ends, IpProtocol::TCP, &segment(F::RST | F::ACK, 1, 1, 0));
            assert_eq!(tcp_reset(&reset, &mut [0; 60]), Err(NoReply::Forbidden));
        }
    }

    /// The ends of an answer, whether its sums are right, and its segment.
    fn read(packet: &[u8]) -> (IpAddr, IpAddr, bool, Tcp) {
        if packet[0] >> 4 == 4 {
            let (ip, payload) = Ipv4::split_verified(packet).unwrap();
            let sum = checksum::transport_v4(ip.source(), ip.destination(), IpProtocol::TCP, payload);
            (ip.source().into(), ip.destination().into(), sum == 0, *Tcp::split(payload).unwrap().0)
        } else {
            let (ip, payload) = Ipv6::split(packet).unwrap();
            let sum = checksum::transport_v6(ip.source(), ip.destination(), IpProtocol::TCP, payload);
            (ip.source().into(), ip.destination().into(), sum == 0, *Tcp::split(payload).unwrap().0)
        }
    }

    fn sctp(tag: u32, kind: u8) -> Vec<u8> {
        let header = Sctp::new(40_000, 3868, tag);
        [header.as_bytes(), &[kind, 0, 0, 20, 0, 0, 0, 42], &[0; 12]].concat()
    }

    #[test]
    fn a_packet_of_no_association_is_aborted_as_the_rfc_says() {
        // What came, and the tag and the chunk of the answer (RFC 9260 §8.4).
        let table = [
            (sctp(0, INIT), Some((42, [ABORT, 0]))),
            (sctp(9, 0), Some((9, [ABORT, TAG_REFLECTED]))),
            (sctp(9, 10), Some((9, [ABORT, TAG_REFLECTED]))),
            (sctp(9, SHUTDOWN_ACK), Some((9, [SHUTDOWN_COMPLETE, TAG_REFLECTED]))),
            (sctp(9, ABORT), None),
            (sctp(9, SHUTDOWN_COMPLETE), None),
            (sctp(9, ERROR), None),
            (sctp(9, COOKIE_ACK), None),
        ];
        for ends in ENDS {
            for (asked, expected) in &table {
                let mut out = [0; REFUSAL_LIMIT];
                let written = sctp_abort(&packet(ends, IpProtocol::SCTP, asked), &mut out);
                let Some((tag, chunk)) = expected else {
                    assert_eq!(written, Err(NoReply::Forbidden));
                    continue;
                };
                let payload = &out[written.unwrap() - Sctp::LEN - CHUNK..written.unwrap()];
                let (header, chunks) = Sctp::split(payload).unwrap();
                assert_eq!((header.source(), header.destination()), (3868, 40_000));
                assert_eq!((header.verification_tag(), chunks), (*tag, &[chunk[0], chunk[1], 0, 4][..]));
                assert_eq!(Sctp::checksum_of(payload), Ok(header.checksum()));
            }
        }
    }

    #[test]
    fn what_is_of_another_kind_or_cut_short_is_not_answered() {
        let mut out = [0; REFUSAL_LIMIT];
        for ends in ENDS {
            let asked = packet(ends, IpProtocol::TCP, &segment(TcpFlags::SYN, 1, 0, 0));
            assert_eq!(sctp_abort(&asked, &mut out), Err(NoReply::NotRequest));
            let abortable = packet(ends, IpProtocol::SCTP, &sctp(0, INIT));
            assert_eq!(tcp_reset(&abortable, &mut out), Err(NoReply::NotRequest));
            for cut in 0..asked.len() {
                assert!(tcp_reset(&asked[..cut], &mut out).is_err(), "{cut}");
            }
            for cut in 0..abortable.len() - 12 {
                assert!(sctp_abort(&abortable[..cut], &mut out).is_err(), "{cut}");
            }
            assert_eq!(tcp_reset(&asked, &mut [0; 30]), Err(NoReply::NoRoom));
        }
        let mut fragment = packet(ENDS[0], IpProtocol::TCP, &segment(TcpFlags::SYN, 1, 0, 0));
        fragment[6] |= 0x20;
        assert_eq!(tcp_reset(&fragment, &mut out), Err(NoReply::Forbidden));
    }
}
