//! VXLAN network identifiers.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A VXLAN network identifier: 24 bits. Zero is legal on the wire (RFC 7348) and never handed out by us.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

/// A number that does not fit into 24 bits.
#[derive(Error, Clone, Copy, PartialEq, Eq, Debug)]
#[error("VNI {0} does not fit into 24 bits")]
pub struct VniTooLarge(pub u32);

impl Vni {
    /// The identifier that lies in these three bytes.
    pub const fn from_be_bytes([a, b, c]: [u8; 3]) -> Self {
        Self(u32::from_be_bytes([0, a, b, c]))
    }

    /// The identifier as it lies in a header.
    pub const fn to_be_bytes(self) -> [u8; 3] {
        let [_, a, b, c] = self.0.to_be_bytes();
        [a, b, c]
    }
}

impl TryFrom<u32> for Vni {
    type Error = VniTooLarge;

    fn try_from(number: u32) -> Result<Self, Self::Error> {
        if number < 1 << 24 { Ok(Self(number)) } else { Err(VniTooLarge(number)) }
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_door_is_at_24_bits() {
        assert_eq!(Vni::try_from((1 << 24) - 1).unwrap().to_be_bytes(), [0xff; 3]);
        assert_eq!(Vni::try_from(1 << 24), Err(VniTooLarge(1 << 24)));
        assert!(serde_json::from_str::<Vni>("16777216").unwrap_err().to_string().contains("24 bits"));
    }

    proptest! {
        #[test]
        fn number_bytes_and_json_round_trip(number in 0..1_u32 << 24) {
            let vni = Vni::try_from(number).unwrap();
            prop_assert_eq!(u32::from(vni), number);
            prop_assert_eq!(Vni::from_be_bytes(vni.to_be_bytes()), vni);
            prop_assert_eq!(serde_json::to_string(&vni).unwrap(), number.to_string());
            prop_assert_eq!(serde_json::from_str::<Vni>(&number.to_string()).unwrap(), vni);
        }
    }
}
