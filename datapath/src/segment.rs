//! Segmentation of frames that stand for several packets, where the egress cannot do it: TCP and UDP over IPv4 and IPv6, plain
//! or in a tunnel.

use causeway_model::DropReason;
use causeway_wire::checksum::{self, Sum};
use causeway_wire::{Ethernet, IpProtocol, Ipv4, Ipv6, Tcp, TcpFlags, Udp};
use zerocopy::FromBytes;

use crate::offload::{Checksum, Gso, Offload, Segments};
use crate::packet::Family;
use crate::{Frame, Pool, outer};

/// What all segments of a frame have in common.
struct Plan {
    gso: Gso,
    family: Family,
    /// Where the inner IP header begins.
    ip: usize,
    /// Where the transport header begins.
    transport: usize,
    /// The pseudo header's sum, its length left out.
    pseudo: Sum,
}

/// Cuts a frame into its segments, each with all its checksums, each in a fresh frame. Where the pool runs dry the rest is lost, as
/// if the network had dropped it.
pub fn segment<P: Pool>(
    frame: &Frame<P::Buffer>,
    pool: &mut P,
    mut sink: impl FnMut(Frame<P::Buffer>, &mut P) -> Result<(), DropReason>,
) -> Result<(), DropReason> {
    let plan = plan(frame)?;
    let headers = usize::from(plan.gso.headers);
    let (payload, step) = (frame.len() - headers, usize::from(plan.gso.size));
    for (index, at) in (0..payload).step_by(step).enumerate() {
        let len = step.min(payload - at);
        let mut piece = Frame::fresh(pool, headers + len)?;
        let (head, body) = piece.head_mut().split_at_mut(headers);
        if !frame.copy_out(0, head) || !frame.copy_out(headers + at, body) {
            return Err(DropReason::Malformed);
        }
        (piece.egress, piece.peer, piece.outer) = (frame.egress, frame.peer, frame.outer);
        let bytes = piece.head_mut();
        rewrite_ip(bytes, &plan, index as u16)?;
        rewrite_transport(bytes, &plan, at, at + len == payload)?;
        outer::refit(&mut piece)?;
        sink(piece, pool)?;
    }
    Ok(())
}

fn plan<B: crate::Buffer>(frame: &Frame<B>) -> Result<Plan, DropReason> {
    let Offload { checksum: Checksum::Partial { start, offset }, gso: Some(gso) } = frame.offload else {
        return Err(DropReason::Malformed);
    };
    let (head, transport) = (frame.head(), usize::from(start));
    let inner = head.get(frame.outer_len()..).ok_or(DropReason::Malformed)?;
    let family = Family::of(inner).ok_or(DropReason::Malformed)?;
    let field = transport + usize::from(offset);
    let partial = head.get(field..field + 2).ok_or(DropReason::Malformed)?;
    // The sender summed up a pseudo header with the length of the whole; the addresses in it are not always those of the
    // IP header (RFC 8200 §8.1 on routing headers), so the length is taken out instead of summing anew.
    let whole = (frame.len() - transport) as u16;
    let pseudo = Sum::ZERO.bytes(partial).word(!whole);
    let usable =
        gso.size > 0 && usize::from(gso.headers) <= head.len() && usize::from(gso.headers) > transport;
    let plan = Plan { gso, family, ip: frame.outer_len() + Ethernet::LEN, transport, pseudo };
    usable.then_some(plan).ok_or(DropReason::Malformed)
}

fn rewrite_ip(bytes: &mut [u8], plan: &Plan, index: u16) -> Result<(), DropReason> {
    let len = bytes.len() - plan.ip;
    let packet = &mut bytes[plan.ip..];
    if plan.family == Family::V6 {
        let (ip, _) = Ipv6::mut_from_prefix(packet).map_err(|_| DropReason::Malformed)?;
        ip.set_payload_length((len - Ipv6::LEN) as u16);
        return Ok(());
    }
    let (ip, _) = Ipv4::mut_from_prefix(packet).map_err(|_| DropReason::Malformed)?;
    ip.set_total_length(len as u16);
    ip.set_identification(ip.identification().wrapping_add(index));
    ip.set_checksum(0);
    let checksum = checksum::internet(&packet[..plan.transport - plan.ip]);
    let (ip, _) = Ipv4::mut_from_prefix(packet).map_err(|_| DropReason::Malformed)?;
    ip.set_checksum(checksum);
    Ok(())
}

/// Rewrites the transport header of the segment whose payload lies `at` bytes into the whole, and computes its checksum.
fn rewrite_transport(bytes: &mut [u8], plan: &Plan, at: usize, last: bool) -> Result<(), DropReason> {
    let segment = &mut bytes[plan.transport..];
    let len = segment.len() as u16;
    let protocol = match plan.gso.kind {
        Segments::Udp => {
            let (udp, _) = Udp::mut_from_prefix(segment).map_err(|_| DropReason::Malformed)?;
            udp.set_length(len);
            udp.set_checksum(0);
            IpProtocol::UDP
        }
        Segments::Tcp4 | Segments::Tcp6 => {
            let (tcp, _) = Tcp::mut_from_prefix(segment).map_err(|_| DropReason::Malformed)?;
            tcp.set_sequence(tcp.sequence().wrapping_add(at as u32));
            tcp.set_flags(flags(tcp.flags(), at == 0, last));
            tcp.set_checksum(0);
            IpProtocol::TCP
        }
    };
    let checksum = plan.pseudo.word(len).bytes(segment).checksum();
    if protocol == IpProtocol::UDP {
        let (udp, _) = Udp::mut_from_prefix(segment).map_err(|_| DropReason::Malformed)?;
        udp.set_checksum(checksum::never_zero(checksum));
    } else {
        let (tcp, _) = Tcp::mut_from_prefix(segment).map_err(|_| DropReason::Malformed)?;
        tcp.set_checksum(checksum);
    }
    Ok(())
}

/// The flags of one segment: what ends the stream is said by the last, and the window's reduction by the first (RFC 3168 §6.1.2).
fn flags(all: TcpFlags, first: bool, last: bool) -> TcpFlags {
    let first_only = if first { 0 } else { TcpFlags::CWR.0 };
    let last_only = if last { 0 } else { (TcpFlags::FIN | TcpFlags::PSH).0 };
    TcpFlags(all.0 & !(first_only | last_only))
}
