//! Every header over any bytes.

use std::fmt::Debug;
use std::net::{Ipv4Addr, Ipv6Addr};

use causeway_wire::reply::{
    Icmpv4Error, Icmpv6Error, NoReply, arp_reply, icmpv4_echo_reply, icmpv4_error, icmpv6_echo_reply,
    icmpv6_error, neighbor_advertisement,
};
use causeway_wire::{
    Arp, Ethernet, Icmpv4, Icmpv6, Ipv4, Ipv6, MacAddr, Malformed, NeighborAdvertisement,
    NeighborSolicitation, Ports, Sctp, Tcp, Udp, Upper, VlanTag, Vxlan, checksum, crc32c,
};

type Split<H> = fn(&[u8]) -> Result<(&H, &[u8]), Malformed>;
type SplitMut<H> = fn(&mut [u8]) -> Result<(&mut H, &mut [u8]), Malformed>;

/// Both splits say the same, and the rest lies behind the header and within the bytes.
fn agree<H: PartialEq + Debug>(bytes: &[u8], split: Split<H>, split_mut: SplitMut<H>) {
    let mut copy = bytes.to_vec();
    let written = split_mut(&mut copy).map(|(header, rest)| (&*header, &*rest));
    let read = split(bytes);
    assert_eq!(read, written);
    if let Ok((_, rest)) = read {
        let (whole, rest) = (bytes.as_ptr_range(), rest.as_ptr_range());
        assert!(whole.start as usize + size_of::<H>() <= rest.start as usize && rest.end <= whole.end);
    }
}

/// What was written about these bytes is a packet of its version, no longer than its buffer.
fn is_reply(written: Result<usize, NoReply>, out: &[u8]) {
    let Ok(len) = written else { return };
    let packet = &out[..len];
    match packet.first().map(|first| first >> 4) {
        Some(4) => {
            let (_, message) =
                Ipv4::split_verified(packet).unwrap_or_else(|error| panic!("a reply of ours: {error:?}"));
            assert_eq!(Icmpv4::verify(message), Ok(()));
        }
        Some(6) => {
            let (ip, message) =
                Ipv6::split(packet).unwrap_or_else(|error| panic!("a reply of ours: {error:?}"));
            assert_eq!(Icmpv6::verify(ip.source(), ip.destination(), message), Ok(()));
        }
        other => panic!("a reply of version {other:?}"),
    }
}

/// Splits the bytes as each header, and builds every answer to them.
pub fn run(bytes: &[u8]) {
    agree(bytes, Ethernet::split, Ethernet::split_mut);
    agree(bytes, VlanTag::split, VlanTag::split_mut);
    agree(bytes, Arp::split, Arp::split_mut);
    agree(bytes, Ipv4::split, Ipv4::split_mut);
    agree(bytes, Ipv6::split, Ipv6::split_mut);
    agree(bytes, Udp::split, Udp::split_mut);
    agree(bytes, Tcp::split, Tcp::split_mut);
    agree(bytes, Sctp::split, Sctp::split_mut);
    agree(bytes, Icmpv4::split, Icmpv4::split_mut);
    agree(bytes, Icmpv6::split, Icmpv6::split_mut);
    let _ = (Vxlan::split(bytes), Ports::split(bytes), Sctp::checksum_of(bytes), crc32c(&[bytes]));
    for options in [
        NeighborSolicitation::split(bytes).map(|(_, options)| options),
        NeighborAdvertisement::split(bytes).map(|(_, options)| options),
    ]
    .into_iter()
    .flatten()
    {
        assert!(options.count() <= bytes.len() / 8 + 1);
    }
    if let Ok((ip, payload)) = Ipv6::split(bytes)
        && let Ok(upper) = Upper::find(ip.next_header(), payload)
    {
        assert!(upper.payload.len() <= payload.len());
    }
    // Of a whole packet, its sum is right where its header says so.
    if let Ok((_, message)) = Ipv4::split_verified(bytes) {
        assert!(message.len() < bytes.len());
        assert_eq!(Ipv4::verify(bytes), Ok(()));
    }
    assert_eq!(checksum::Sum::ZERO.bytes(bytes).checksum(), checksum::internet(bytes));
    build(bytes);
}

fn build(bytes: &[u8]) {
    let link = MacAddr([2, 0, 0, 0, 0, 1]);
    let (v4, v6) = (Ipv4Addr::new(10, 70, 1, 1), Ipv6Addr::new(0xfd70, 0, 0, 1, 0, 0, 0, 1));
    let mut out = vec![0xa5; 2048];
    let mtu = u32::from_be_bytes([0, 0, bytes.first().copied().unwrap_or(5), 0]);
    is_reply(
        icmpv4_error(Icmpv4Error::FragmentationNeeded { mtu: mtu as u16 }, v4, link, bytes, &mut out),
        &out,
    );
    is_reply(icmpv4_echo_reply(bytes, &mut out), &out);
    is_reply(icmpv6_error(Icmpv6Error::PacketTooBig { mtu }, v6, link, bytes, &mut out), &out);
    is_reply(icmpv6_echo_reply(bytes, &mut out), &out);
    is_reply(neighbor_advertisement(bytes, link, true, &mut out), &out);
    if let Ok(len) = arp_reply(bytes, link, &mut out) {
        assert!(Arp::split(&out[..len]).is_ok());
    }
}
