//! Packets that we originate ourselves: answers to ARP, Neighbor Discovery and echo, ICMP errors,
//! refusals, probes.
//!
//! Each function writes an Ethernet payload, checksums included, into the space it is given and returns
//! its length; the Ethernet header in front is the caller's. The space may be longer than needed, its rest
//! is left alone.

mod arp;
mod echo;
mod icmpv4;
mod icmpv6;
mod ndp;
mod refusal;

use thiserror::Error;
use zerocopy::IntoBytes;

pub use arp::arp_reply;
pub use echo::{Echo, icmpv4_echo_reply, icmpv4_echo_request, icmpv6_echo_reply, icmpv6_echo_request};
pub use icmpv4::{ICMPV4_ERROR_LIMIT, Icmpv4Error, icmpv4_error, icmpv4_error_forbidden};
pub use icmpv6::{ICMPV6_ERROR_LIMIT, Icmpv6Error, icmpv6_error, icmpv6_error_forbidden};
pub use ndp::neighbor_advertisement;
pub use refusal::{REFUSAL_LIMIT, sctp_abort, tcp_reset};

use crate::{Icmpv4, Icmpv6, IpProtocol, Ipv4, Ipv6, Malformed, checksum};

/// Why nothing was written.
#[derive(Error, Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NoReply {
    /// The packet to reply to is not what it should be.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The packet asks nothing that is answered here.
    #[error("the packet is no request")]
    NotRequest,
    /// The standards say that this packet is not to be replied to.
    #[error("a packet like this must not be replied to")]
    Forbidden,
    /// The reply is longer than the space given, or than its length fields can say.
    #[error("the reply does not fit")]
    NoRoom,
}

/// Lays the pieces end to end at the front of `out` and returns that front.
fn lay<'a>(pieces: &[&[u8]], out: &'a mut [u8]) -> Result<&'a mut [u8], NoReply> {
    let len = pieces.iter().map(|piece| piece.len()).sum();
    let out = out.get_mut(..len).ok_or(NoReply::NoRoom)?;
    let mut at = 0;
    for piece in pieces {
        out[at..at + piece.len()].copy_from_slice(piece);
        at += piece.len();
    }
    Ok(out)
}

/// Writes an ICMP message under an IPv4 header whose lengths and checksums are still to come.
fn lay_icmpv4(mut header: Ipv4, message: Icmpv4, data: &[u8], out: &mut [u8]) -> Result<usize, NoReply> {
    let len = Ipv4::LEN + Icmpv4::LEN + data.len();
    header.set_total_length(len.try_into().map_err(|_| NoReply::NoRoom)?);
    header.seal();
    let packet = lay(&[header.as_bytes(), message.as_bytes(), data], out)?;
    let sum = checksum::internet(&packet[Ipv4::LEN..]);
    Icmpv4::split_mut(&mut packet[Ipv4::LEN..])?.0.set_checksum(sum);
    Ok(len)
}

/// Writes an ICMPv6 message, in pieces that begin with its header, under an IPv6 header whose payload
/// length is still to come.
fn lay_icmpv6(mut header: Ipv6, pieces: [&[u8]; 2], out: &mut [u8]) -> Result<usize, NoReply> {
    let len = pieces[0].len() + pieces[1].len();
    header.set_payload_length(len.try_into().map_err(|_| NoReply::NoRoom)?);
    let packet = lay(&[header.as_bytes(), pieces[0], pieces[1]], out)?;
    let (source, destination) = (header.source(), header.destination());
    let message = &mut packet[Ipv6::LEN..];
    let sum = checksum::transport_v6(source, destination, IpProtocol::ICMPV6, message);
    Icmpv6::split_mut(message)?.0.set_checksum(sum);
    Ok(Ipv6::LEN + len)
}
