//! The tunnel frames of a fast node: handed to the fast path before the node's own stack sees them, or, where the fast path
//! reads them from a device of its own, kept from being answered.
//!
//! Taken are only frames to our address and port with our network identifier, so the node keeps its uplink and everything
//! else on it. `fwd` exists in netdev tables only: this is our second table.

use std::net::IpAddr;

use causeway_model::{Settings, UplinkKind};
use nix::net::if_::if_nametoindex;

use crate::error::KernelError;
use crate::nft::{list, run};
use crate::objects::UPLINK_LINK;
use crate::ruleset::TABLE;

/// Where tunnel frames arrive on a fast node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uplink {
    /// The interface that has the tunnel's address.
    pub(crate) name: String,
}

/// The table that takes them.
#[derive(Debug, Default)]
pub(crate) struct Capture {
    loaded: Option<Loaded>,
    /// It was looked for and was not there.
    absent: bool,
}

/// The table as it was loaded.
#[derive(Debug, PartialEq, Eq)]
struct Loaded {
    text: String,
    /// How nft lists it.
    listing: String,
    /// The interfaces that its names meant then: another one of the same name is not meant.
    links: [Option<u32>; 2],
}

impl Capture {
    /// Makes the table what it shall be, or takes it away; returns what was wrong, in words. Where nobody else has touched
    /// nftables since the last look, what it was then it is still.
    pub(crate) fn ensure(
        &mut self,
        settings: &Settings,
        uplink: Option<&Uplink>,
        untouched: bool,
    ) -> Result<Option<String>, KernelError> {
        let known = match (uplink, &self.loaded) {
            (None, _) => self.absent,
            (Some(uplink), Some(loaded)) => {
                loaded.text == document(settings, &uplink.name) && loaded.links == links(&uplink.name)
            }
            (Some(_), None) => false,
        };
        if known && untouched {
            return Ok(None);
        }
        let listed = listing()?;
        self.absent = uplink.is_none();
        let Some(uplink) = uplink else {
            self.loaded = None;
            return if listed.is_some() {
                remove()?;
                Ok(Some(format!("removed nft table netdev {TABLE}")))
            } else {
                Ok(None)
            };
        };
        let (text, links) = (document(settings, &uplink.name), links(&uplink.name));
        let wanted = listed.map(|listing| Loaded { text: text.clone(), listing, links });
        if wanted.is_some() && self.loaded == wanted {
            return Ok(None);
        }
        run(&text, "capturing the uplink's tunnel frames")?;
        self.loaded = listing()?.map(|listing| Loaded { text, listing, links });
        Ok(Some(format!("loaded nft table netdev {TABLE} on {}", uplink.name)))
    }
}

/// What the names in the table mean now.
fn links(uplink: &str) -> [Option<u32>; 2] {
    [uplink, UPLINK_LINK].map(|name| if_nametoindex(name).ok())
}

fn listing() -> Result<Option<String>, KernelError> {
    list(&["-s", "list", "table", "netdev", TABLE])
}

/// Takes the table away; one that is not there is no failure.
pub(crate) fn remove() -> Result<(), KernelError> {
    run(&format!("add table netdev {TABLE}\ndelete table netdev {TABLE}\n"), "removing the capture")
}

fn document(settings: &Settings, uplink: &str) -> String {
    // What routers say of our frames quotes them: their protocol, their source, their port. Offsets count from the ICMP header.
    let (header, about) = match settings.tunnel_address {
        IpAddr::V4(own) => {
            let own = u32::from(own);
            let quoted = format!("@th,136,8 17 @th,160,32 {own:#x} @th,240,16 {}", settings.overlay.port);
            ("ip", format!("icmp type destination-unreachable icmp code frag-needed {quoted}"))
        }
        IpAddr::V6(own) => {
            let own = u128::from(own);
            let quoted = format!("@th,112,8 17 @th,128,128 {own:#x} @th,400,16 {}", settings.overlay.port);
            ("ip6", format!("icmpv6 type packet-too-big {quoted}"))
        }
    };
    let (address, port, vni) =
        (settings.tunnel_address, settings.overlay.port, u32::from(settings.overlay.vni));
    let fate = match settings.uplink {
        UplinkKind::HostRouted => format!("fwd to \"{UPLINK_LINK}\""),
        UplinkKind::Ethdev => "drop".to_owned(),
    };
    // The node itself may say it, too, where its own route is the narrow place; it sees all of them besides.
    let hear = match settings.uplink {
        UplinkKind::HostRouted => format!("  {header} daddr {address} {about} dup to \"{UPLINK_LINK}\"\n"),
        // A device of its own shows them to the fast path.
        UplinkKind::Ethdev => String::new(),
    };
    format!(
        "add table netdev {TABLE}
delete table netdev {TABLE}
table netdev {TABLE} {{
 chain uplink {{
  type filter hook ingress device \"{uplink}\" priority -310; policy accept;
  {header} daddr {address} udp dport {port} @th,96,24 {vni} {fate}
{hear} }}
 chain own {{
  type filter hook ingress device \"lo\" priority -310; policy accept;
{hear} }}
}}
"
    )
}
