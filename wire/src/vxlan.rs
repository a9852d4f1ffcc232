//! VXLAN.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Malformed, Vni};

/// The VXLAN header as it lies in a frame (RFC 7348 §5).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Vxlan {
    flags: u8,
    reserved: [u8; 3],
    vni: [u8; 3],
    reserved2: u8,
}

impl Vxlan {
    /// Bytes of the header.
    pub const LEN: usize = size_of::<Self>();
    /// The UDP port assigned to VXLAN (RFC 7348 §5).
    pub const PORT: u16 = 4789;
    // The I flag; every other bit is sent as zero and ignored on receipt.
    const VNI_VALID: u8 = 0x08;

    /// A header for this network.
    pub const fn new(vni: Vni) -> Self {
        Self { flags: Self::VNI_VALID, reserved: [0; 3], vni: vni.to_be_bytes(), reserved2: 0 }
    }

    /// Splits a UDP payload into its VXLAN header and the inner frame.
    #[inline]
    pub fn split(payload: &[u8]) -> Result<(&Self, &[u8]), Malformed> {
        let (header, inner) = Self::ref_from_prefix(payload).map_err(|_| Malformed::VxlanShort)?;
        header.validate()?;
        Ok((header, inner))
    }

    /// [`split`](Self::split), to write.
    #[inline]
    pub fn split_mut(payload: &mut [u8]) -> Result<(&mut Self, &mut [u8]), Malformed> {
        let (header, inner) = Self::mut_from_prefix(payload).map_err(|_| Malformed::VxlanShort)?;
        header.validate()?;
        Ok((header, inner))
    }

    const fn validate(&self) -> Result<(), Malformed> {
        if self.flags & Self::VNI_VALID == 0 { Err(Malformed::VxlanWithoutVni) } else { Ok(()) }
    }

    /// The network of the inner frame.
    pub const fn vni(&self) -> Vni {
        Vni::from_be_bytes(self.vni)
    }

    /// Sets the network of the inner frame.
    pub const fn set_vni(&mut self, vni: Vni) {
        self.vni = vni.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 7348 §5: `R R R R I R R R`, 24 reserved bits, the VNI, 8 reserved bits.
    #[test]
    fn what_we_send_is_the_rfcs_picture() {
        let vni = Vni::try_from(51_717).unwrap();
        assert_eq!(Vxlan::new(vni).as_bytes(), [0x08, 0, 0, 0, 0x00, 0xca, 0x05, 0]);
    }

    #[test]
    fn without_the_flag_there_is_no_network() {
        let bytes = [0xf7, 0, 0, 0, 0, 0xca, 0x05, 0];
        assert_eq!(Vxlan::split(&bytes), Err(Malformed::VxlanWithoutVni));
        assert_eq!(Vxlan::split_mut(&mut bytes.clone()), Err(Malformed::VxlanWithoutVni));
        assert_eq!(Vxlan::split(&bytes[..7]), Err(Malformed::VxlanShort));
    }

    proptest! {
        #[test]
        fn reserved_bits_are_ignored(mut bytes: [u8; 12], vni: [u8; 3]) {
            bytes[0] |= 0x08;
            bytes[4..7].copy_from_slice(&vni);
            let before = bytes;
            let (header, inner) = Vxlan::split(&bytes).unwrap();
            prop_assert_eq!(header.vni().to_be_bytes(), vni);
            prop_assert_eq!(inner, &before[8..]);
            let (header, _) = Vxlan::split_mut(&mut bytes).unwrap();
            header.set_vni(Vni::from_be_bytes([1, 2, 3]));
            prop_assert_eq!(&bytes[..8], &[before[0], before[1], before[2], before[3], 1, 2, 3, before[7]]);
        }
    }
}
