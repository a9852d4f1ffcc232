//! The virtio header before every frame of a TAP (`linux/virtio_net.h`), in the host's byte order as TUN has it.
//!
//! ```text
//!  0 flags  1 gso_type  2 hdr_len  4 gso_size  6 csum_start  8 csum_offset          struct virtio_net_hdr
//! 10 num_buffers  12 hash_value  16 hash_report  18 padding                          … _v1_hash
//! 20 outer transport offset  22 inner network offset                                 … _v1_hash_tunnel
//! ```

use causeway_datapath::{Checksum, Gso, Offload, Segments};

/// The longest header.
pub(crate) const LONGEST: usize = 24;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const UDP_TUNNEL_CSUM: u8 = 8;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_UDP_TUNNEL_IPV4: u8 = 0x20;
const GSO_UDP_TUNNEL_IPV6: u8 = 0x40;
const GSO_ECN: u8 = 0x80;

/// Bytes of Ethernet before the outer and the inner network header.
const ETHERNET: usize = 14;
/// Bytes of the tunnel's headers over IPv4, the outer Ethernet header included.
const OUTER_V4: usize = 50;

/// What a header says is left to do; nothing when it names a segmentation that nobody was offered.
pub(crate) fn read(header: &[u8; LONGEST]) -> Option<Offload> {
    let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let checksum = match header[0] {
        flags if flags & NEEDS_CSUM != 0 => Checksum::Partial { start: word(6), offset: word(8) },
        flags if flags & DATA_VALID != 0 => Checksum::Verified,
        _ => Checksum::Whole,
    };
    // Whether the frame is in a tunnel is seen by whoever opens it.
    let kind = match header[1] & !(GSO_ECN | GSO_UDP_TUNNEL_IPV4 | GSO_UDP_TUNNEL_IPV6) {
        GSO_NONE => return Some(Offload { checksum, gso: None }),
        GSO_TCPV4 => Segments::Tcp4,
        GSO_TCPV6 => Segments::Tcp6,
        GSO_UDP_L4 => Segments::Udp,
        _ => return None,
    };
    let gso = Gso { kind, ecn: header[1] & GSO_ECN != 0, size: word(4), headers: word(2) };
    Some(Offload { checksum, gso: Some(gso) })
}

/// The header that tells the kernel what is left to do for a frame with `outer` bytes of tunnel headers.
pub(crate) fn write(offload: Offload, outer: usize) -> [u8; LONGEST] {
    let mut header = [0; LONGEST];
    let mut put = |at: usize, word: u16| header[at..at + 2].copy_from_slice(&word.to_ne_bytes());
    let mut flags = 0;
    if let Checksum::Partial { start, offset } = offload.checksum {
        flags |= NEEDS_CSUM;
        put(6, start);
        put(8, offset);
    }
    let Some(gso) = offload.gso else {
        header[0] = flags;
        return header;
    };
    put(2, gso.headers);
    put(4, gso.size);
    let mut kind = match gso.kind {
        Segments::Tcp4 => GSO_TCPV4,
        Segments::Tcp6 => GSO_TCPV6,
        Segments::Udp => GSO_UDP_L4,
    };
    if gso.ecn {
        kind |= GSO_ECN;
    }
    if outer != 0 {
        // The outer UDP header ends 16 bytes before the inner frame: itself 8, VXLAN 8.
        put(20, (outer - 16) as u16);
        put(22, (outer + ETHERNET) as u16);
        kind |= if outer == OUTER_V4 { GSO_UDP_TUNNEL_IPV4 } else { GSO_UDP_TUNNEL_IPV6 };
        // Over IPv6 the outer checksum is computed for every segment (RFC 8200 §8.1).
        flags |= if outer == OUTER_V4 { 0 } else { UDP_TUNNEL_CSUM };
    }
    header[0] = flags;
    header[1] = kind;
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for kind in [Segments::Tcp4, Segments::Tcp6, Segments::Udp] {
            for outer in [0, 50, 70] {
                let gso = Some(Gso { kind, ecn: kind == Segments::Tcp4, size: 1400, headers: 54 });
                let offload = Offload { checksum: Checksum::Partial { start: 34, offset: 16 }, gso };
                assert_eq!(read(&write(offload, outer)), Some(offload));
            }
        }
        assert_eq!(write(Offload::NONE, 50), [0; LONGEST], "nothing to do, nothing to say");
    }

    #[test]
    fn a_tunnel_over_ipv4_is_said_as_the_kernel_wants_it() {
        let gso = Some(Gso { kind: Segments::Tcp4, ecn: false, size: 1400, headers: 116 });
        let offload = Offload { checksum: Checksum::Partial { start: 84, offset: 16 }, gso };
        let header = write(offload, 50);
        assert_eq!(header[1], 0x21);
        assert_eq!([header[20], header[22]], [34, 64], "outer transport, inner network");
    }

    #[test]
    fn a_segmentation_that_nobody_was_offered_is_refused() {
        let mut header = [0; LONGEST];
        header[1] = 3;
        assert_eq!(read(&header), None, "UDP fragmentation offload is gone since Linux 4.14");
    }
}
