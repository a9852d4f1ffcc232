use causeway_wire::{Ethernet, Ipv4, Ipv6};

use crate::packet::{Family, Transport};

/// The outer source port of an inner flow: from the range that RFC 7348 §5 recommends, the same for both directions, and
/// the same for all fragments of a datagram, which is why no fragment's ports are looked at.
#[inline]
pub(crate) fn source_port(inner: &[u8]) -> u16 {
    let (one, other) = ends(inner).unwrap_or_default();
    let [source, destination, protocol] = transport(inner);
    // A sum does not tell which end is which; each end is mixed before, so that it tells everything else.
    let sum = mix(one ^ source << 48).wrapping_add(mix(other ^ destination << 48));
    0xc000 | (mix(sum ^ protocol) >> 50) as u16
}

/// Both ends' addresses, in 64 bits each.
#[inline]
fn ends(inner: &[u8]) -> Option<(u64, u64)> {
    let packet = inner.get(Ethernet::LEN..)?;
    if Family::of(inner)? == Family::V4 {
        let (ip, _) = Ipv4::split_partial(packet).ok()?;
        return Some((u32::from(ip.source()).into(), u32::from(ip.destination()).into()));
    }
    let (ip, _) = Ipv6::split_partial(packet).ok()?;
    Some((halves(ip.source().into()), halves(ip.destination().into())))
}

#[inline]
fn halves(address: u128) -> u64 {
    mix((address >> 64) as u64).wrapping_add(address as u64)
}

/// Source port, destination port, protocol; without ports where there are none that every packet of the flow has.
#[inline]
fn transport(inner: &[u8]) -> [u64; 3] {
    let Ok(transport) = Transport::find(inner) else { return [0; 3] };
    let protocol = transport.protocol.0.into();
    match transport.ports(inner).filter(|_| !transport.fragment) {
        Some(ports) => [ports.source().into(), ports.destination().into(), protocol],
        None => [0, 0, protocol],
    }
}

/// Both halves of a product with an odd constant: every bit of `value` reaches every bit of the result.
#[inline]
const fn mix(value: u64) -> u64 {
    let product = (value ^ 0x9e37_79b9_7f4a_7c15) as u128 * 0xd6e8_feb8_6659_fd93;
    product as u64 ^ (product >> 64) as u64
}
