//! SCTP, the common header.

use zerocopy::big_endian::{U16, U32};
use zerocopy::little_endian;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::crc32c::crc32c_change;
use crate::{Malformed, crc32c};

/// The SCTP common header as it lies in a packet (RFC 9260 §3.1).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Sctp {
    source: U16,
    destination: U16,
    verification_tag: U32,
    // Little endian alone in its header: RFC 9260 appendix A sends the CRC's low byte first.
    checksum: little_endian::U32,
}

impl Sctp {
    /// Bytes of the common header.
    pub const LEN: usize = size_of::<Self>();

    /// A header whose checksum is still to come.
    pub const fn new(source: u16, destination: u16, verification_tag: u32) -> Self {
        Self {
            source: U16::new(source),
            destination: U16::new(destination),
            verification_tag: U32::new(verification_tag),
            checksum: little_endian::U32::ZERO,
        }
    }

    /// Splits an IP payload into its SCTP common header and the chunks.
    #[inline]
    pub fn split(payload: &[u8]) -> Result<(&Self, &[u8]), Malformed> {
        Self::ref_from_prefix(payload).map_err(|_| Malformed::SctpShort)
    }

    /// [`split`](Self::split), to write.
    #[inline]
    pub fn split_mut(payload: &mut [u8]) -> Result<(&mut Self, &mut [u8]), Malformed> {
        Self::mut_from_prefix(payload).map_err(|_| Malformed::SctpShort)
    }

    /// The checksum that a whole SCTP packet should have (RFC 9260 §6.8): the CRC32c of everything, with
    /// zero in place of the checksum. Unlike an Internet checksum it covers no address.
    pub fn checksum_of(packet: &[u8]) -> Result<u32, Malformed> {
        let (header, chunks) = Self::split(packet)?;
        let blank = Self { checksum: little_endian::U32::ZERO, ..*header };
        Ok(crc32c(&[blank.as_bytes(), chunks]))
    }

    /// Changes ports, and the checksum of the whole packet of `len` bytes by as much: a wrong one stays wrong. The rest of the
    /// packet need not be there.
    pub fn change_ports(&mut self, source: u16, destination: u16, len: usize) {
        let change = [self.source.get() ^ source, self.destination.get() ^ destination];
        self.source = U16::new(source);
        self.destination = U16::new(destination);
        let [[a, b], [c, d]] = change.map(u16::to_be_bytes);
        let change = crc32c_change([a, b, c, d], len.saturating_sub(4));
        self.checksum = little_endian::U32::new(self.checksum.get() ^ change);
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

    /// What the receiver gave out to know its associations by; zero in a packet with INIT.
    pub const fn verification_tag(&self) -> u32 {
        self.verification_tag.get()
    }

    /// Sets the verification tag.
    pub const fn set_verification_tag(&mut self, tag: u32) {
        self.verification_tag = U32::new(tag);
    }

    /// The checksum as [`checksum_of`](Self::checksum_of) computes it.
    pub const fn checksum(&self) -> u32 {
        self.checksum.get()
    }

    /// Sets the checksum.
    pub const fn set_checksum(&mut self, checksum: u32) {
        self.checksum = little_endian::U32::new(checksum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9260 §6.8, steps 1 to 3.
    #[test]
    fn the_checksum_covers_everything_but_itself() {
        let mut packet = [0xee_u8; 32];
        packet[..8].copy_from_slice(&[0, 1, 0, 2, 0, 0, 0, 3]);
        let mut blank = packet;
        blank[8..12].fill(0);
        let want = crc32c(&[&blank]);
        assert_eq!(Sctp::checksum_of(&packet), Ok(want));
        Sctp::split_mut(&mut packet).unwrap().0.set_checksum(want);
        assert_eq!(packet[8..12], want.to_le_bytes());
        assert_eq!(Sctp::checksum_of(&packet), Ok(Sctp::split(&packet).unwrap().0.checksum()));
        packet[31] ^= 1;
        assert_ne!(Sctp::checksum_of(&packet), Ok(want));
    }

    #[test]
    fn changed_ports_change_a_right_checksum_to_a_right_one_and_a_wrong_one_to_a_wrong_one() {
        for len in [12, 13, 16, 31, 100, 1500, 65_000] {
            let mut packet: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
            let right = Sctp::checksum_of(&packet).unwrap();
            Sctp::split_mut(&mut packet).unwrap().0.set_checksum(right);
            Sctp::split_mut(&mut packet).unwrap().0.change_ports(3868, 40_000, len);
            let header = *Sctp::split(&packet).unwrap().0;
            assert_eq!((header.source(), header.destination()), (3868, 40_000));
            assert_eq!(Sctp::checksum_of(&packet), Ok(header.checksum()), "{len} bytes");
            let header = Sctp::split_mut(&mut packet).unwrap().0;
            header.set_checksum(header.checksum() ^ 1);
            header.change_ports(1, 2, len);
            let header = *Sctp::split(&packet).unwrap().0;
            assert_eq!(Sctp::checksum_of(&packet).map(|sum| sum ^ 1), Ok(header.checksum()), "{len} bytes");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut packet = [0; 13];
        let (header, chunks) = Sctp::split_mut(&mut packet).unwrap();
        header.set_source(38_412);
        header.set_destination(2_905);
        header.set_verification_tag(0x0102_0304);
        header.set_checksum(0x1122_3344);
        chunks[0] = 9;
        assert_eq!((header.source(), header.destination()), (38_412, 2_905));
        assert_eq!((header.verification_tag(), header.checksum()), (0x0102_0304, 0x1122_3344));
        assert_eq!(packet, [0x96, 0x0c, 0x0b, 0x59, 1, 2, 3, 4, 0x44, 0x33, 0x22, 0x11, 9]);
        assert_eq!(Sctp::split(&packet[..11]), Err(Malformed::SctpShort));
    }
}
