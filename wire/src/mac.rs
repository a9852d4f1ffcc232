//! Ethernet addresses.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// An Ethernet address (IEEE 802 MAC-48), written `02:00:5e:00:53:01`.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
#[repr(transparent)]
pub struct MacAddr(pub [u8; 6]);

/// A text that is no Ethernet address.
#[derive(Error, Clone, PartialEq, Eq, Debug)]
#[error("{0:?} is not a MAC address (six pairs of hex digits, joined by colons)")]
pub struct MacAddrUnreadable(String);

impl MacAddr {
    /// Everybody on the link.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// No address: what ARP says of an address it asks for (RFC 826).
    pub const ZERO: Self = Self([0; 6]);

    /// True for group addresses, the broadcast address among them.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// True for the broadcast address alone.
    pub fn is_broadcast(self) -> bool {
        self == Self::BROADCAST
    }

    /// The group address to which an IPv6 multicast packet is sent (RFC 2464 §7).
    pub const fn for_multicast(group: Ipv6Addr) -> Self {
        let [.., a, b, c, d] = group.octets();
        Self([0x33, 0x33, a, b, c, d])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = MacAddrUnreadable;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        read(text).ok_or_else(|| MacAddrUnreadable(text.to_owned()))
    }
}

fn read(text: &str) -> Option<MacAddr> {
    let mut octets = [0; 6];
    let mut pairs = text.split(':');
    for octet in &mut octets {
        // `from_str_radix` alone would take "+f" and "f" too.
        let pair = pairs.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *octet = u8::from_str_radix(pair, 16).ok()?;
    }
    pairs.next().is_none().then_some(MacAddr(octets))
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_that_is_no_address_is_refused_by_name() {
        for text in ["", "02:00:5e:00:53", "02:00:5e:00:53:01:02", "2:0:5e:0:53:1", "02-00-5e-00-53-01"] {
            assert_eq!(text.parse::<MacAddr>(), Err(MacAddrUnreadable(text.to_owned())));
        }
        for text in ["+2:00:5e:00:53:01", "02:00:5e:00:53:0g", "02:00:5e:00:53:01 ", "0²:00:5e:00:53:01"] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
        assert_eq!("02:00:5E:00:53:aB".parse(), Ok(MacAddr([2, 0, 0x5e, 0, 0x53, 0xab])));
    }

    #[test]
    fn groups_are_told_from_hosts() {
        assert!(MacAddr::BROADCAST.is_broadcast() && MacAddr::BROADCAST.is_multicast());
        let group = MacAddr::for_multicast("ff02::1:ff28:9c5a".parse().unwrap());
        assert_eq!(group.to_string(), "33:33:ff:28:9c:5a");
        assert!(group.is_multicast() && !group.is_broadcast());
        assert!(!MacAddr::ZERO.is_multicast());
    }

    proptest! {
        #[test]
        fn text_and_json_round_trip(octets: [u8; 6]) {
            let mac = MacAddr(octets);
            prop_assert_eq!(mac.to_string().parse(), Ok(mac));
            let json = serde_json::to_string(&mac).unwrap();
            prop_assert_eq!(&json, &format!("\"{mac}\""));
            prop_assert_eq!(serde_json::from_str::<MacAddr>(&json).unwrap(), mac);
        }
    }
}
