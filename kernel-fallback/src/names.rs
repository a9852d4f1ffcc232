//! Where the agent answers for names: what the kernel lets through to that address, and from whom.

use std::fmt::Write;
use std::net::IpAddr;

use causeway_model::{DropReason, LinkName, NameServer};

use crate::objects::HOST_LINK;
use crate::ruleset::refuse;

/// The chains that guard the address: this node's pods and processes get there, by the host port those of the fast path, and the
/// pods find one port open, as they do on the fast path. None where there is no such address.
pub(crate) fn chains(names: &NameServer) -> String {
    if names.addresses.is_empty() {
        return String::new();
    }
    let (pods, port, no_route) = (LinkName::POD_PREFIX, NameServer::PORT, refuse(DropReason::NoRoute));
    let refused = format!("counter name \"{}\" reject", DropReason::ServiceRefused);
    let mut text = String::from(
        " chain to_names {\n  type filter hook input priority -8; policy accept;\n  iifname \"lo\" accept\n",
    );
    for to in destinations(names) {
        let _ = writeln!(text, "  {to} jump names");
    }
    let _ = write!(
        text,
        " }}
 chain names {{
  iifname != {{ \"{pods}*\", \"{HOST_LINK}\" }} {no_route}
  meta l4proto {{ tcp, udp }} th dport {port} return
  meta l4proto tcp {refused} with tcp reset
  {refused}
 }}
"
    );
    text
}

/// Rules that keep what is for the address out of a chain that translates what is for this node.
pub(crate) fn spared(names: &NameServer) -> String {
    destinations(names).map(|to| format!("  {to} return\n")).collect()
}

fn destinations(names: &NameServer) -> impl Iterator<Item = String> + '_ {
    names.addresses.iter().map(|address| match address {
        IpAddr::V4(address) => format!("ip daddr {address}"),
        IpAddr::V6(address) => format!("ip6 daddr {address}"),
    })
}
