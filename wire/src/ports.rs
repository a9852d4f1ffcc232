//! The two ports that TCP, UDP and SCTP have in common.

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Malformed;

/// The first four bytes of a TCP, UDP or SCTP header (RFC 9293 §3.1, RFC 768, RFC 9260 §3.1), which is
/// all that an ICMP error must quote of them that names a flow. Ask [`IpProtocol::has_ports`] first.
///
/// [`IpProtocol::has_ports`]: crate::IpProtocol::has_ports
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Ports {
    source: U16,
    destination: U16,
}

impl Ports {
    /// Splits an IP payload after its ports.
    #[inline]
    pub fn split(payload: &[u8]) -> Result<(&Self, &[u8]), Malformed> {
        Self::ref_from_prefix(payload).map_err(|_| Malformed::PortsShort)
    }

    /// [`split`](Self::split), to write.
    #[inline]
    pub fn split_mut(payload: &mut [u8]) -> Result<(&mut Self, &mut [u8]), Malformed> {
        Self::mut_from_prefix(payload).map_err(|_| Malformed::PortsShort)
    }

    /// The sender's port.
    pub const fn source(&self) -> u16 {
        self.source.get()
    }

    /// Sets the sender's port; the checksum is the caller's.
    pub const fn set_source(&mut self, port: u16) {
        self.source = U16::new(port);
    }

    /// The receiver's port.
    pub const fn destination(&self) -> u16 {
        self.destination.get()
    }

    /// Sets the receiver's port; the checksum is the caller's.
    pub const fn set_destination(&mut self, port: u16) {
        self.destination = U16::new(port);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Sctp, Tcp, Udp};

    proptest! {
        #[test]
        fn all_three_transports_begin_with_their_ports(source: u16, destination: u16) {
            let mut bytes = [0; 20];
            bytes[12] = 0x50;
            bytes[5] = 20;
            let (ports, _) = Ports::split_mut(&mut bytes).unwrap();
            ports.set_source(source);
            ports.set_destination(destination);
            let (ports, _) = Ports::split(&bytes).unwrap();
            let (tcp, _) = Tcp::split(&bytes).unwrap();
            let (udp, _) = Udp::split(&bytes).unwrap();
            let (sctp, _) = Sctp::split(&bytes).unwrap();
            for pair in [
                (ports.source(), ports.destination()),
                (tcp.source(), tcp.destination()),
                (udp.source(), udp.destination()),
                (sctp.source(), sctp.destination()),
            ] {
                prop_assert_eq!(pair, (source, destination));
            }
        }
    }

    #[test]
    fn three_bytes_are_no_ports() {
        assert_eq!(Ports::split(&[0; 3]), Err(Malformed::PortsShort));
    }
}
