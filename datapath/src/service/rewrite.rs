//! Other addresses and ports in a packet, and all checksums changed by as much: a wrong one stays wrong.

use causeway_model::DropReason;
use causeway_wire::checksum::{self, Change, Sum};
use causeway_wire::{Ethernet, Icmpv6, IpProtocol, Ports, Sctp};

use crate::packet::{Family, Front, Ip};
use crate::transport::Transport;
use crate::{Buffer, Checksum, Frame};

/// Where a packet comes from and where it goes: addresses and ports.
pub(crate) type Ends<I> = [(<I as Ip>::Address, u16); 2];

/// Where the front of a packet says that it comes from and goes to.
pub(crate) fn ends_of<I: Ip>(front: &Front<I>) -> Ends<I> {
    let [source, destination] = front.transport.map_or([0; 2], Transport::ports);
    [(front.source, source), (front.destination, destination)]
}

/// What other ends do to checksums.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Changes {
    /// To one over both addresses.
    addresses: Change,
    /// To one over both addresses and ports.
    all: Change,
}

impl Changes {
    /// Of which the table keeps them.
    #[inline(always)]
    pub(super) fn kept([addresses, all]: [Change; 2]) -> Self {
        Self { addresses, all }
    }

    /// What takes them back.
    pub(super) fn back(self) -> Self {
        Self { addresses: self.addresses.back(), all: self.all.back() }
    }

    fn of<I: Ip>(from: &Ends<I>, to: &Ends<I>) -> Self {
        let addresses = I::replaced([from[0].0, from[1].0], [to[0].0, to[1].0]);
        Self { addresses: addresses.change(), all: addresses.and(ports(from), ports(to)).change() }
    }
}

/// Two ports as they lie in a header.
#[inline(always)]
fn ports<A>(ends: &[(A, u16); 2]) -> u32 {
    u32::from(ends[0].1) << 16 | u32::from(ends[1].1)
}

/// Gives the packet in a frame other ends.
#[inline(always)]
pub(super) fn rewrite<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    front: &Front<I>,
    (to, changes): (Ends<I>, Changes),
) -> Result<(), DropReason> {
    let transport = front.transport.ok_or(DropReason::Malformed)?;
    let len = frame.len() - transport.offset().min(frame.len());
    let partial = !frame.offload.is_none()
        && matches!(frame.offload.checksum,
            Checksum::Partial { start, .. } if usize::from(start) == transport.offset());
    let head = frame.head_mut();
    let segment = head.get_mut(transport.offset()..).ok_or(DropReason::Malformed)?;
    if partial {
        change_partial::<I>(segment, transport, &to, changes)?;
    } else {
        change_transport::<I>(segment, transport, (&to, changes), Some(len))?;
    }
    let packet = head.get_mut(Ethernet::LEN..).ok_or(DropReason::Malformed)?;
    I::readdress(packet, [to[0].0, to[1].0], changes.addresses);
    Ok(())
}

/// Where the checksum is in a transport header.
#[inline(always)]
fn field(protocol: IpProtocol) -> usize {
    if protocol == IpProtocol::TCP { 16 } else { 6 }
}

/// Gives a transport header other ports, and its checksum what these and the addresses make of it. Without a length it is the front
/// of one that an error quotes.
#[inline(always)]
fn change_transport<I: Ip>(
    segment: &mut [u8],
    transport: Transport,
    (to, Changes { all, .. }): (&Ends<I>, Changes),
    len: Option<usize>,
) -> Result<(), DropReason> {
    if transport.protocol() == IpProtocol::SCTP {
        return change_sctp(segment, transport, [to[0].1, to[1].1], len);
    }
    let at = field(transport.protocol());
    set_ports(segment, to)?;
    let Some(word) = segment.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) else {
        // A quotation ends before it.
        return if len.is_none() { Ok(()) } else { Err(DropReason::Malformed) };
    };
    let old = u16::from_be_bytes(*word);
    let is_udp = transport.protocol() == IpProtocol::UDP;
    let new = if is_udp { all.of_udp(old) } else { all.of(old) };
    *word = new.to_be_bytes();
    Ok(())
}

/// The same where the checksum is the sum of the pseudo header so far: what is behind that is still to be added up.
#[cold]
fn change_partial<I: Ip>(
    segment: &mut [u8],
    transport: Transport,
    to: &Ends<I>,
    Changes { addresses, .. }: Changes,
) -> Result<(), DropReason> {
    set_ports(segment, to)?;
    let word = segment.get_mut(field(transport.protocol())..).and_then(|rest| rest.first_chunk_mut::<2>());
    let word = word.ok_or(DropReason::Malformed)?;
    *word = addresses.of_sum(u16::from_be_bytes(*word)).to_be_bytes();
    Ok(())
}

#[inline(always)]
fn set_ports<A>(segment: &mut [u8], to: &[(A, u16); 2]) -> Result<(), DropReason> {
    let place = segment.first_chunk_mut::<4>().ok_or(DropReason::Malformed)?;
    *place = ports(to).to_be_bytes();
    Ok(())
}

#[cold]
fn change_sctp(
    segment: &mut [u8],
    transport: Transport,
    to: [u16; 2],
    len: Option<usize>,
) -> Result<(), DropReason> {
    if transport.ports() == to {
        return Ok(());
    }
    let Some(len) = len else {
        let (place, _) = Ports::split_mut(segment)?;
        place.set_source(to[0]);
        place.set_destination(to[1]);
        return Ok(());
    };
    if transport.fragment() {
        // How much its checksum changes depends on the length of the whole, which no fragment tells.
        return Err(DropReason::BadFragment);
    }
    Sctp::split_mut(segment)?.0.change_ports(to[0], to[1], len);
    Ok(())
}

/// Gives the packet that an ICMP error quotes other ends, and the error the addresses that follow: it goes to whom that packet is from
/// now, and comes, if it came from whom that packet was for, from whom it is for now.
#[cold]
pub(crate) fn rewrite_error<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    front: &Front<I>,
    to: Ends<I>,
) -> Result<(), DropReason> {
    /// Bytes of an error's own header, and how far its checksum lies in it.
    const HEADER: usize = 8;
    const FIELD: usize = 2;
    let transport = front.transport.ok_or(DropReason::Malformed)?;
    let partial = matches!(frame.offload.checksum, Checksum::Partial { .. });
    let message = frame.head_mut().get_mut(transport.offset()..).ok_or(DropReason::Malformed)?;
    let quotation = message.get_mut(HEADER..).ok_or(DropReason::Malformed)?;
    let before = Sum::of(quotation);
    let (source, destination) = change_quoted::<I>(quotation, to)?;
    let after = Sum::of(quotation);
    let from_target = front.source == destination;
    let outer = [if from_target { to[1].0 } else { front.source }, to[0].0];
    debug_assert!(front.destination == source, "an error is for whom the packet is from");
    let word = message.get_mut(FIELD..).and_then(|rest| rest.first_chunk_mut::<2>());
    let word = word.ok_or(DropReason::Malformed)?;
    let mut sum = u16::from_be_bytes(*word);
    let addresses = I::replaced([front.source, front.destination], outer).change();
    if partial {
        sum = addresses.of_sum(sum);
    } else {
        sum = checksum::replace(sum, before, after);
        if I::FAMILY == Family::V6 {
            sum = addresses.of(sum);
        }
    }
    const _: () = assert!(HEADER == size_of::<Icmpv6>());
    *word = sum.to_be_bytes();
    I::readdress(frame.head_mut().get_mut(Ethernet::LEN..).unwrap_or_default(), outer, addresses);
    Ok(())
}

/// Gives a quoted packet other ends; its addresses so far.
fn change_quoted<I: Ip>(quotation: &mut [u8], to: Ends<I>) -> Result<(I::Address, I::Address), DropReason> {
    let quoted = I::quoted(quotation).ok_or(DropReason::Malformed)?;
    let (source, destination, protocol) = (quoted.source, quoted.destination, quoted.protocol);
    let offset = quoted.offset;
    let (ports, _) = Ports::split(quoted.transport)?;
    let from = [(source, ports.source()), (destination, ports.destination())];
    let numbers = [ports.source(), ports.destination()];
    let transport = Transport::new(protocol, offset, Some(numbers), (false, false));
    let transport = transport.ok_or(DropReason::Malformed)?;
    let changes = Changes::of::<I>(&from, &to);
    change_transport::<I>(&mut quotation[offset..], transport, (&to, changes), None)?;
    I::readdress(quotation, [to[0].0, to[1].0], changes.addresses);
    Ok((source, destination))
}
