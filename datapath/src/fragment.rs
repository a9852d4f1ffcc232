//! Fragmentation of an inner IPv4 packet (RFC 791 §3.2). The outer packet is never fragmented.

use causeway_model::DropReason;
use causeway_wire::{Ethernet, Ipv4, checksum};
use zerocopy::FromBytes;

use crate::packet::Family;
use crate::{Frame, Pool};

/// Whether routers may fragment the packet in a frame.
pub(crate) fn is_allowed(head: &[u8]) -> bool {
    let packet = head.get(Ethernet::LEN..).unwrap_or_default();
    Family::of(head) == Some(Family::V4)
        && Ipv4::split_partial(packet).is_ok_and(|(ip, _)| !ip.dont_fragment())
}

/// Cuts the IPv4 packet in a frame into fragments of at most `mtu` bytes, each in a fresh frame.
pub(crate) fn fragment<P: Pool>(
    frame: &Frame<P::Buffer>,
    mtu: usize,
    pool: &mut P,
    sink: &mut impl FnMut(Frame<P::Buffer>) -> Result<(), DropReason>,
) -> Result<(), DropReason> {
    let (ip, _) = Ipv4::split_partial(frame.head().get(Ethernet::LEN..).unwrap_or_default())?;
    let headers = Ethernet::LEN + ip.header_len();
    let payload = frame.len() - headers;
    // Offsets count in eights.
    let step = mtu.saturating_sub(ip.header_len()) & !7;
    if step == 0 {
        return Err(DropReason::TooBig);
    }
    for at in (0..payload).step_by(step) {
        let len = step.min(payload - at);
        let more = ip.more_fragments() || at + len < payload;
        let offset =
            u16::try_from(usize::from(ip.fragment_offset()) + at).map_err(|_| DropReason::Malformed)?;
        let mut piece = Frame::fresh(pool, headers + len)?;
        let (head, body) = piece.head_mut().split_at_mut(headers);
        if !frame.copy_out(0, head) || !frame.copy_out(headers + at, body) {
            return Err(DropReason::Malformed);
        }
        rewrite(&mut head[Ethernet::LEN..], len, offset, more)?;
        sink(piece)?;
    }
    Ok(())
}

/// Makes a copied header, options included, that of one fragment.
fn rewrite(header: &mut [u8], len: usize, offset: u16, more: bool) -> Result<(), DropReason> {
    let total = (header.len() + len) as u16;
    let (ip, options) = Ipv4::mut_from_prefix(header).map_err(|_| DropReason::Malformed)?;
    ip.set_total_length(total);
    ip.set_fragment(offset, more);
    ip.set_checksum(0);
    if offset > 0 {
        blank_first_only(options);
    }
    let checksum = checksum::internet(header);
    let (ip, _) = Ipv4::mut_from_prefix(header).map_err(|_| DropReason::Malformed)?;
    ip.set_checksum(checksum);
    Ok(())
}

/// Overwrites the options that belong into the first fragment only, those without the "copied" bit, by options that do nothing.
fn blank_first_only(options: &mut [u8]) {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const COPIED: u8 = 0x80;
    let mut at = 0;
    while let Some(kind) = options.get(at).copied().filter(|kind| *kind != END) {
        let len = if kind == NOTHING { 1 } else { options.get(at + 1).map_or(0, |len| usize::from(*len)) };
        let Some(option) = options.get_mut(at..at + len).filter(|option| !option.is_empty()) else { return };
        if kind & COPIED == 0 {
            option.fill(NOTHING);
        }
        at += len;
    }
}
