use std::collections::BTreeMap;
use std::fmt;

use causeway_wire::Malformed;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::Count;

// One list from which index, label and help are made, so that none of the three can be forgotten or disagree.
macro_rules! drop_reasons {
    (
        $($(#[doc = $help:literal])+ $variant:ident = $label:literal,)+
        else
        #[doc = $other_help:literal] $other:ident = $other_label:literal
    ) => {
        /// Why a packet was dropped: the index is its counter, the label its metric label, the doc line the operator's help text.
        /// Both data paths use the same names.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $help])+ #[serde(rename = $label)] $variant,)+
            #[doc = $other_help]
            #[serde(rename = $other_label, other)]
            $other,
        }

        impl DropReason {
            /// Every reason, in the order of their indexes.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+ DropReason::$other];

            /// The name in metrics, status and nft counters.
            pub const fn label(self) -> &'static str {
                match self { $(DropReason::$variant => $label,)+ DropReason::$other => $other_label }
            }

            /// One sentence for an operator.
            pub const fn help(self) -> &'static str {
                match self {
                    $(DropReason::$variant => concat!($($help,)+).trim_ascii(),)+
                    DropReason::$other => $other_help.trim_ascii(),
                }
            }
        }
    };
}

drop_reasons! {
    /// A header is cut short or contradicts the bytes that are there.
    Malformed = "malformed",
    /// The kernel refused a tunnel frame, or an IPv4 packet of any link, without a reason of ours: lengths or checksums are wrong.
    KernelMalformed = "kernel-malformed",
    /// A VXLAN header without the I flag (RFC 7348 §5).
    VxlanWithoutVni = "vxlan-without-vni",
    /// A tunnel frame whose network identifier is nobody's here.
    NoSuchTunnel = "no-such-tunnel",
    /// A tunnel frame with our network identifier from an address that is no known node.
    UnknownSender = "unknown-sender",
    /// A tunnel frame whose inner source is neither in its sender's pod prefixes nor one of the sender's own addresses.
    ForeignInnerSource = "foreign-inner-source",
    /// A tunnel frame that carries something else than IPv4 or IPv6.
    InnerNotIp = "inner-not-ip",
    /// A tunnel frame whose inner frame has a VLAN tag (RFC 7348 §6.1).
    InnerVlan = "inner-vlan",
    /// A fragment of a tunnel datagram (RFC 7348 §4.3).
    OuterFragment = "outer-fragment",
    /// A tunnel frame whose outer checksum is wrong, or zero over IPv6.
    OuterChecksum = "outer-checksum",
    /// A tunnel frame marked "congested" around a packet whose sender cannot be told (RFC 6040 §4.2).
    EcnNotCapable = "ecn-not-capable",
    /// A pod sent with a hardware address that is not its own.
    SpoofedMac = "spoofed-mac",
    /// A pod sent from an address that is not its own.
    SpoofedAddress = "spoofed-address",
    /// A pod sent to the tunnel port of a node.
    TunnelPortFromPod = "tunnel-port-from-pod",
    /// A frame came from a port that belongs to no endpoint.
    NoSuchPort = "no-such-port",
    /// The destination is in this node's pod prefixes, but no endpoint has it.
    NoSuchEndpoint = "no-such-endpoint",
    /// No node, endpoint or route has the destination.
    NoRoute = "no-route",
    /// The hardware address of the next hop towards a node is not known.
    UnresolvedNextHop = "unresolved-next-hop",
    /// Not addressed to us: on the uplink no tunnel frame for this node, elsewhere another hardware address than ours.
    NotForUs = "not-for-us",
    /// Neither IPv4, IPv6 nor ARP.
    UnhandledEtherType = "unhandled-ethertype",
    /// An ARP or neighbour request that is not for the gateway, or one that is not addressed to us.
    UnansweredNeighbour = "unanswered-neighbour",
    /// The hop count ran out; the sender was told, within the limits of RFC 1122 §3.2.2.
    HopLimit = "hop-limit",
    /// Too big for the next link; the sender was told the MTU.
    TooBig = "too-big",
    /// No room in front of the frame for the outer headers.
    NoHeadroom = "no-headroom",
    /// A packet of no connection that cannot begin one, outside of its connection's window, or an error about no packet of ours.
    InvalidConnection = "invalid-connection",
    /// A packet would have begun a connection that its endpoint refuses.
    DeniedNew = "denied-new",
    /// A packet would have begun a connection, and every place in the table is in use.
    ConnectionsFull = "connections-full",
    /// A fragment that overlaps another of its datagram, is too short for what it must hold, or reaches beyond the longest packet
    /// (RFC 1858, RFC 3128, RFC 5722).
    BadFragment = "bad-fragment",
    /// A fragment of a datagram whose first one did not come in time, or for which there was no room to wait.
    LoneFragment = "lone-fragment",
    /// A packet would have begun a connection beyond its endpoint's limit.
    ConnectionLimit = "connection-limit",
    /// A rule of a policy denies the connection; which one is counted by rule.
    PolicyDenied = "policy-denied",
    /// No packet buffer was free.
    NoBuffer = "no-buffer",
    /// The port that should send the frame did not take it.
    PortFull = "port-full",
    /// The port that should send the frame is down.
    PortDown = "port-down",
    /// More than the pod's bandwidth limit lets through (capability `bandwidth`).
    RateLimited = "rate-limited",
    /// A service with backends elsewhere and none on this node, asked where only those of this node serve (a traffic policy `Local`).
    NoLocalBackend = "no-local-backend",
    /// A service that answers some sources only (`loadBalancerSourceRanges`), asked by another.
    ServiceSource = "service-source",
    /// The destination is in a prefix of services, and no service has it.
    NoSuchService = "no-such-service",
    /// A service without any backend, or an address of services, or of names, at a port that is none of its; the sender was refused at once.
    ServiceRefused = "service-refused",
    /// A connection to a service needs a port of its own to be told from others, and none was free.
    NoPortLeft = "no-port-left",
    else
    /// Dropped by a newer release for a reason that this one has no name for.
    Other = "other"
}

impl DropReason {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The index of its counter.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Reads counts by reason. What another release counts under several names that are unknown here is one sum.
pub(crate) fn by_reason<'de, D: Deserializer<'de>>(
    input: D,
) -> Result<BTreeMap<DropReason, Count>, D::Error> {
    struct ByReason;
    impl<'de> Visitor<'de> for ByReason {
        type Value = BTreeMap<DropReason, Count>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("counts by reason")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut counts = BTreeMap::new();
            while let Some((reason, count)) = map.next_entry::<DropReason, Count>()? {
                *counts.entry(reason).or_default() += count;
            }
            Ok(counts)
        }
    }
    input.deserialize_map(ByReason)
}

impl From<Malformed> for DropReason {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::VxlanWithoutVni => DropReason::VxlanWithoutVni,
            _ => DropReason::Malformed,
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_an_index_a_label_and_a_sentence() {
        let labels: BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), DropReason::COUNT);
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index);
            assert!(reason.label().chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{reason}");
            assert!(reason.help().ends_with('.'), "{reason}: {:?}", reason.help());
            assert_eq!(serde_json::to_string(reason).unwrap(), format!("\"{reason}\""));
        }
    }
}
