use crate::packet::{Front, Ip};

/// The outer source port of an inner flow: from the range that RFC 7348 §5 recommends, the same for both directions, and
/// the same for all fragments of a datagram, which is why no fragment's ports are looked at.
#[inline(always)]
pub(crate) fn source_port<I: Ip>(front: &Front<I>) -> u16 {
    let (one, other) = (I::digest(front.source), I::digest(front.destination));
    let [source, destination, protocol] = transport(front);
    // A sum does not tell which end is which; each end is mixed before, so that it tells everything else.
    let sum = mix(one ^ source << 48).wrapping_add(mix(other ^ destination << 48));
    0xc000 | (mix(sum ^ protocol) >> 50) as u16
}

/// Source port, destination port, protocol; without ports where there are none that every packet of the flow has.
#[inline(always)]
fn transport<I: Ip>(front: &Front<I>) -> [u64; 3] {
    let Some(transport) = front.transport else { return [0; 3] };
    let protocol = transport.protocol().0.into();
    let ports = if transport.fragment() { [0; 2] } else { transport.ports() };
    [ports[0].into(), ports[1].into(), protocol]
}

/// Both halves of a product with an odd constant: every bit of `value` reaches every bit of the result.
#[inline]
pub(crate) const fn mix(value: u64) -> u64 {
    let product = (value ^ 0x9e37_79b9_7f4a_7c15) as u128 * 0xd6e8_feb8_6659_fd93;
    product as u64 ^ (product >> 64) as u64
}
