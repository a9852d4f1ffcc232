//! UDP.

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Malformed;

/// The UDP header as it lies in a packet (RFC 768).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Udp {
    source: U16,
    destination: U16,
    length: U16,
    checksum: U16,
}

impl Udp {
    /// Bytes of the header.
    pub const LEN: usize = size_of::<Self>();

    /// A header without a checksum; `length` counts the header too.
    pub const fn new(source: u16, destination: u16, length: u16) -> Self {
        Self {
            source: U16::new(source),
            destination: U16::new(destination),
            length: U16::new(length),
            checksum: U16::ZERO,
        }
    }

    /// Splits an IP payload into its UDP header and the data, trimmed to the length field. A length of
    /// zero is refused: it means a jumbogram (RFC 2675 §4), and there are none here.
    #[inline]
    pub fn split(payload: &[u8]) -> Result<(&Self, &[u8]), Malformed> {
        let (header, data) = Self::split_partial(payload)?;
        Ok((header, data.get(..header.data_len()?).ok_or(Malformed::UdpLength)?))
    }

    /// [`split`](Self::split), to write.
    #[inline]
    pub fn split_mut(payload: &mut [u8]) -> Result<(&mut Self, &mut [u8]), Malformed> {
        let (header, data) = Self::mut_from_prefix(payload).map_err(|_| Malformed::UdpShort)?;
        let data = data.get_mut(..header.data_len()?).ok_or(Malformed::UdpLength)?;
        Ok((header, data))
    }

    /// Splits what may be only the front of a datagram: a first fragment, a packet quoted in an ICMP
    /// error, or the first part of a chain of buffers. The length field is not looked at.
    #[inline]
    pub fn split_partial(payload: &[u8]) -> Result<(&Self, &[u8]), Malformed> {
        Self::ref_from_prefix(payload).map_err(|_| Malformed::UdpShort)
    }

    fn data_len(&self) -> Result<usize, Malformed> {
        usize::from(self.length()).checked_sub(Self::LEN).ok_or(Malformed::UdpLength)
    }

    /// The sender's port.
    pub const fn source(&self) -> u16 {
        self.source.get()
    }

    /// Sets the sender's port.
    pub const fn set_source(&mut self, port: u16) {
        self.source = U16::new(port);
    }

    /// The receiver's port.
    pub const fn destination(&self) -> u16 {
        self.destination.get()
    }

    /// Sets the receiver's port.
    pub const fn set_destination(&mut self, port: u16) {
        self.destination = U16::new(port);
    }

    /// Bytes of header and data.
    pub const fn length(&self) -> u16 {
        self.length.get()
    }

    /// Sets the bytes of header and data.
    pub const fn set_length(&mut self, length: u16) {
        self.length = U16::new(length);
    }

    /// The checksum; zero over IPv4 means "none" (RFC 768), over IPv6 only in tunnels that agreed on it
    /// (RFC 6935).
    pub const fn checksum(&self) -> u16 {
        self.checksum.get()
    }

    /// Sets the checksum; see [`checksum::never_zero`](crate::checksum::never_zero).
    pub const fn set_checksum(&mut self, checksum: u16) {
        self.checksum = U16::new(checksum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 768's picture: source 53, destination 40000, nine bytes in all, no checksum, then padding.
    const DATAGRAM: [u8; 11] = [0, 53, 0x9c, 0x40, 0, 9, 0, 0, b'x', 0, 0];

    #[test]
    fn the_data_ends_where_the_length_says() {
        let (header, data) = Udp::split(&DATAGRAM).unwrap();
        assert_eq!((header.source(), header.destination(), header.length()), (53, 40_000, 9));
        assert_eq!((header.checksum(), data), (0, &b"x"[..]));
        assert_eq!(Udp::new(53, 40_000, 9).as_bytes(), &DATAGRAM[..8]);
        assert_eq!(Udp::split_partial(&DATAGRAM).unwrap().1, b"x\0\0");
    }

    #[test]
    fn lengths_that_lie_are_named() {
        for length in [0, 1, 7, 12, 0xffff_u16] {
            let mut bytes = DATAGRAM;
            bytes[4..6].copy_from_slice(&length.to_be_bytes());
            assert_eq!(Udp::split(&bytes), Err(Malformed::UdpLength), "{length}");
            assert_eq!(Udp::split_mut(&mut bytes), Err(Malformed::UdpLength), "{length}");
        }
        assert_eq!(Udp::split(&DATAGRAM[..7]), Err(Malformed::UdpShort));
    }

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = DATAGRAM;
        let (header, data) = Udp::split_mut(&mut bytes).unwrap();
        header.set_source(1);
        header.set_destination(2);
        header.set_length(10);
        header.set_checksum(0xabcd);
        data[0] = b'y';
        assert_eq!(bytes, [0, 1, 0, 2, 0, 10, 0xab, 0xcd, b'y', 0, 0]);
    }
}
