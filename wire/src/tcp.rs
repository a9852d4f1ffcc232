//! TCP.

use std::ops::BitOr;

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Malformed;

/// The control bits of a segment (RFC 9293 §3.1, RFC 3168 §6.1).
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Hash, Debug,
)]
#[repr(transparent)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment number means something.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer means something.
    pub const URG: Self = Self(0x20);
    /// Congestion was seen.
    pub const ECE: Self = Self(0x40);
    /// The congestion window was reduced.
    pub const CWR: Self = Self(0x80);

    /// True when every flag of `flags` is set.
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl BitOr for TcpFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The TCP header, without its options, as it lies in a packet (RFC 9293 §3.1).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Tcp {
    source: U16,
    destination: U16,
    sequence: U32,
    acknowledgment: U32,
    data_offset: u8,
    flags: TcpFlags,
    window: U16,
    checksum: U16,
    urgent: U16,
}

impl Tcp {
    /// Bytes of the header without options.
    pub const LEN: usize = size_of::<Self>();

    /// A header without options, in which all but the ports is zero.
    pub const fn bare(source: u16, destination: u16) -> Self {
        Self {
            source: U16::new(source),
            destination: U16::new(destination),
            sequence: U32::ZERO,
            acknowledgment: U32::ZERO,
            data_offset: (Self::LEN as u8 / 4) << 4,
            flags: TcpFlags(0),
            window: U16::ZERO,
            checksum: U16::ZERO,
            urgent: U16::ZERO,
        }
    }

    /// Splits an IP payload into its TCP header and the data after the options.
    #[inline]
    pub fn split(payload: &[u8]) -> Result<(&Self, &[u8]), Malformed> {
        let (header, _, data) = Self::split_with_options(payload)?;
        Ok((header, data))
    }

    /// [`split`](Self::split), with the options between header and data.
    #[inline]
    pub fn split_with_options(payload: &[u8]) -> Result<(&Self, &[u8], &[u8]), Malformed> {
        let (header, rest) = Self::ref_from_prefix(payload).map_err(|_| Malformed::TcpShort)?;
        let (options, data) = rest.split_at_checked(header.options_len()?).ok_or(Malformed::TcpDataOffset)?;
        Ok((header, options, data))
    }

    /// [`split`](Self::split), to write.
    #[inline]
    pub fn split_mut(payload: &mut [u8]) -> Result<(&mut Self, &mut [u8]), Malformed> {
        let (header, rest) = Self::mut_from_prefix(payload).map_err(|_| Malformed::TcpShort)?;
        let data = rest.get_mut(header.options_len()?..).ok_or(Malformed::TcpDataOffset)?;
        Ok((header, data))
    }

    fn options_len(&self) -> Result<usize, Malformed> {
        self.header_len().checked_sub(Self::LEN).ok_or(Malformed::TcpDataOffset)
    }

    /// Bytes of header and options.
    pub const fn header_len(&self) -> usize {
        (self.data_offset >> 4) as usize * 4
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

    /// The number of the first byte of data, or of the SYN.
    pub const fn sequence(&self) -> u32 {
        self.sequence.get()
    }

    /// Sets the number of the first byte of data.
    pub const fn set_sequence(&mut self, sequence: u32) {
        self.sequence = U32::new(sequence);
    }

    /// The next byte that the sender waits for; means something under [`TcpFlags::ACK`] only.
    pub const fn acknowledgment(&self) -> u32 {
        self.acknowledgment.get()
    }

    /// Sets the next byte that the sender waits for.
    pub const fn set_acknowledgment(&mut self, acknowledgment: u32) {
        self.acknowledgment = U32::new(acknowledgment);
    }

    /// The control bits.
    pub const fn flags(&self) -> TcpFlags {
        self.flags
    }

    /// Sets the control bits.
    pub const fn set_flags(&mut self, flags: TcpFlags) {
        self.flags = flags;
    }

    /// How much the sender would take, before scaling.
    pub const fn window(&self) -> u16 {
        self.window.get()
    }

    /// Sets how much the sender would take.
    pub const fn set_window(&mut self, window: u16) {
        self.window = U16::new(window);
    }

    /// The checksum.
    pub const fn checksum(&self) -> u16 {
        self.checksum.get()
    }

    /// Sets the checksum.
    pub const fn set_checksum(&mut self, checksum: u16) {
        self.checksum = U16::new(checksum);
    }

    /// Where urgent data ends; means something under [`TcpFlags::URG`] only.
    pub const fn urgent(&self) -> u16 {
        self.urgent.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9293 §3.1's picture for a SYN with one option (MSS 1460, RFC 6691) and two bytes of data.
    const SYN: [u8; 26] = [
        0xc3, 0x50, 0x01, 0xbb, 0x11, 0x22, 0x33, 0x44, 0, 0, 0, 0, 0x60, 0xc2, 0xfa, 0xf0, 0xab, 0xcd, 0, 7,
        2, 4, 0x05, 0xb4, b'h', b'i',
    ];

    #[test]
    fn a_syn_is_read() {
        let (header, options, data) = Tcp::split_with_options(&SYN).unwrap();
        assert_eq!((header.source(), header.destination()), (50_000, 443));
        assert_eq!((header.sequence(), header.acknowledgment()), (0x1122_3344, 0));
        assert_eq!((header.window(), header.checksum(), header.urgent()), (64_240, 0xabcd, 7));
        assert_eq!(header.flags(), TcpFlags::SYN | TcpFlags::ECE | TcpFlags::CWR);
        assert!(
            header.flags().contains(TcpFlags::SYN) && !header.flags().contains(TcpFlags::SYN | TcpFlags::ACK)
        );
        assert_eq!((header.header_len(), options, data), (24, &[2, 4, 0x05, 0xb4][..], &b"hi"[..]));
        assert_eq!(Tcp::split(&SYN).unwrap().1, b"hi");
    }

    #[test]
    fn offsets_that_lie_are_named() {
        for offset in [0x00, 0x40, 0x70, 0xf0] {
            let mut bytes = SYN;
            bytes[12] = offset;
            assert_eq!(Tcp::split(&bytes), Err(Malformed::TcpDataOffset));
            assert_eq!(Tcp::split_mut(&mut bytes), Err(Malformed::TcpDataOffset));
        }
        assert_eq!(Tcp::split(&SYN[..19]), Err(Malformed::TcpShort));
    }

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = SYN;
        let (header, data) = Tcp::split_mut(&mut bytes).unwrap();
        header.set_source(1);
        header.set_destination(2);
        header.set_sequence(3);
        header.set_acknowledgment(4);
        header.set_flags(TcpFlags::RST | TcpFlags::ACK);
        header.set_window(5);
        header.set_checksum(6);
        data.fill(b'!');
        let want =
            [0, 1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0x60, 0x14, 0, 5, 0, 6, 0, 7, 2, 4, 0x05, 0xb4, b'!', b'!'];
        assert_eq!(bytes, want);
    }
}
