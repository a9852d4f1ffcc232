use std::fmt;

use serde::{Deserialize, Serialize};

/// How fast one direction may be: a bucket of `burst` bits that fills with `rate` bits a second. Every frame is charged the
/// bytes that it has on an Ethernet link, each of its segments with headers of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RateLimit {
    /// Bits per second; at least eight.
    pub rate: u64,
    /// Bits that may pass at once.
    pub burst: u64,
}

impl RateLimit {
    /// Its rate in bytes per second.
    pub const fn bytes_per_second(&self) -> u64 {
        self.rate / 8
    }

    /// Its burst in bytes.
    pub const fn burst_bytes(&self) -> u64 {
        self.burst / 8
    }
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bit/s, bursts of {} bit", self.rate, self.burst)
    }
}

/// The limits of an endpoint (the CNI capability `bandwidth`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Of what is delivered to it; CNI calls it ingress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_pod: Option<RateLimit>,
    /// Of what it sends; CNI calls it egress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_pod: Option<RateLimit>,
}

impl Bandwidth {
    /// Whether it limits nothing.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}
