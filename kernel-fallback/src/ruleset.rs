//! The nft table as text: chains that never change after they are loaded, over sets that do.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use causeway_model::{Count, DropReason, Family, IpNetwork, LinkName, NameServer, Settings, TunnelOwner};

use crate::desired::flatten;
use crate::element::{BySet, Element, by_set};
use crate::host_ports;
use crate::names;
use crate::objects::{HOST_LINK, TUNNEL_LINK, UPLINK_LINK};

/// The name of our table.
pub(crate) const TABLE: &str = "causeway";
/// What was dropped by pod's link and reason; packets fill it.
pub(crate) const DROPS: &str = "drops";
/// The connections that addresses have; packets fill them.
const COUNTED: [&str; 2] = ["connections4", "connections6"];
/// The sets that packets fill: what is in them says nothing of what was loaded.
pub(crate) const FILLED: [&str; 3] = [DROPS, COUNTED[0], COUNTED[1]];

/// What the chains depend on; while it is the same, only elements change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ruleset {
    vni: u32,
    port: u16,
    underlay: Family,
    kernel_tunnel: bool,
    pod_prefixes: Vec<IpNetwork>,
    /// How many connections each address of a pod may have.
    connections: Option<u32>,
    names: NameServer,
    /// The chains that lead ports of the node to pods.
    host_ports: String,
}

impl Ruleset {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            vni: settings.overlay.vni.into(),
            port: settings.overlay.port,
            underlay: settings.underlay_family(),
            kernel_tunnel: settings.tunnel == TunnelOwner::Kernel,
            pod_prefixes: flatten(settings.node.pod_prefixes.iter().copied()),
            connections: settings.connections.per_endpoint,
            names: settings.names.clone(),
            host_ports: host_ports::chains(settings),
        }
    }

    /// One transaction that puts the whole table in the place of whatever is there.
    pub(crate) fn document<'a>(
        &self,
        elements: impl IntoIterator<Item = &'a Element>,
        dropped: &Dropped,
    ) -> String {
        let mut text = format!("add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n");
        for reason in DropReason::ALL {
            let Count { packets, bytes } = dropped.of_all.get(reason).copied().unwrap_or_default();
            // `write!` to a string never fails; the same below.
            let _ = writeln!(text, " counter {reason} {{ packets {packets} bytes {bytes}\n }}");
        }
        let mut elements = by_set(elements);
        if !dropped.of_pods.is_empty() {
            elements.insert(DROPS, dropped.elements());
        }
        for (keyword, name, kind) in self.sets() {
            let members = elements.remove(name).map(|texts| texts.join(", "));
            let members = members.map(|texts| format!("  elements = {{ {texts} }}\n")).unwrap_or_default();
            let _ = writeln!(text, " {keyword} {name} {{\n  {kind}\n{members} }}");
        }
        text.push_str(&self.guard_pods());
        text.push_str(&self.guard_fragments());
        text.push_str(&self.guard_connections());
        text.push_str(&names::chains(&self.names));
        text.push_str(&drops());
        text.push_str(&if self.kernel_tunnel { self.guard_tunnel() } else { self.guard_port() });
        text.push_str(&self.host_ports);
        text.push_str("}\n");
        text
    }

    /// The table without what changes in it: two rulesets of one text are the same.
    pub(crate) fn text(&self) -> String {
        self.document([], &Dropped::default())
    }

    /// Every set and map: its keyword, its name, its type.
    fn sets(&self) -> Vec<(&'static str, &'static str, &'static str)> {
        let mut sets = vec![
            ("pod_links", "type ifname"),
            ("pod_macs", "type ifname . ether_addr"),
            ("pod_addresses4", "type ifname . ipv4_addr"),
            ("pod_addresses6", "type ifname . ipv6_addr"),
            ("endpoints4", "type ipv4_addr"),
            ("endpoints6", "type ipv6_addr"),
            ("deny_new4", "type ipv4_addr"),
            ("deny_new6", "type ipv6_addr"),
            ("nodes4", "type ipv4_addr"),
            ("nodes6", "type ipv6_addr"),
            (DROPS, "typeof iifname . meta mark; flags dynamic; counter; size 65536"),
        ];
        if self.connections.is_some() {
            sets.push((COUNTED[0], "type ipv4_addr; flags dynamic; size 65536"));
            sets.push((COUNTED[1], "type ipv6_addr; flags dynamic; size 65536"));
        }
        // The offsets are those of the inner source address behind the outer UDP header: UDP 8, VXLAN 8 and Ethernet 14
        // bytes, then 12 bytes into IPv4 or 8 into IPv6.
        sets.push(("other_tunnels", "typeof @th,96,24"));
        if self.kernel_tunnel {
            sets.extend(match self.underlay {
                Family::V4 => [
                    ("senders", "type ipv4_addr"),
                    ("inner4", "typeof ip saddr . @th,336,32; flags interval"),
                    ("inner6", "typeof ip saddr . @th,304,128; flags interval"),
                ],
                Family::V6 => [
                    ("senders", "type ipv6_addr"),
                    ("inner4", "typeof ip6 saddr . @th,336,32; flags interval"),
                    ("inner6", "typeof ip6 saddr . @th,304,128; flags interval"),
                ],
            });
        }
        let sets = sets.into_iter().map(|(name, kind)| ("set", name, kind));
        sets.chain(host_ports::sets(!self.kernel_tunnel)).collect()
    }

    /// What guards pods' links and pods' addresses. It runs before connection tracking, so that what is
    /// refused leaves no trace there.
    fn guard_pods(&self) -> String {
        let port = self.port;
        let pods = LinkName::POD_PREFIX;
        let mut text = String::from(
            " chain prerouting {\n  type filter hook prerouting priority -310; policy accept;\n",
        );
        if !self.kernel_tunnel {
            // Nobody else writes there. Each flow inside would be a connection of the node's own outside.
            let _ = writeln!(text, "  iifname \"{UPLINK_LINK}\" notrack accept");
        }
        let _ = writeln!(text, "  iifname \"{pods}*\" jump from_pod");
        // Where the node's loopback may speak to pods through a link (`route_localnet`), nothing may speak to it that way.
        let no_route = Side::From.refuse(DropReason::NoRoute);
        let _ =
            writeln!(text, "  iifname {{ \"{pods}*\", \"{HOST_LINK}\" }} ip daddr 127.0.0.0/8 {no_route}");
        for prefix in &self.pod_prefixes {
            let (header, set) = match prefix {
                IpNetwork::V4(_) => ("ip", "endpoints4"),
                IpNetwork::V6(_) => ("ip6", "endpoints6"),
            };
            let nobody = Side::From.refuse(DropReason::NoSuchEndpoint);
            let _ = writeln!(text, "  {header} daddr {prefix} {header} daddr != @{set} {nobody}");
        }
        if !self.kernel_tunnel {
            // Another node's own packets to a pod come through the tunnel; what it asks of this node is not for a pod yet.
            let spoofed = refuse(DropReason::SpoofedAddress);
            for (header, number) in [("ip", 4), ("ip6", 6)] {
                let (peer, pod) = (format!("saddr @peers{number}"), format!("daddr @fast_pods{number}"));
                let _ =
                    writeln!(text, "  iifname != \"{HOST_LINK}\" {header} {peer} {header} {pod} {spoofed}");
            }
        }
        let (no_port, mac, address, tunnel) = (
            refuse(DropReason::NoSuchPort),
            Side::From.refuse(DropReason::SpoofedMac),
            Side::From.refuse(DropReason::SpoofedAddress),
            Side::From.refuse(DropReason::TunnelPortFromPod),
        );
        // Neighbour discovery, router solicitation and multicast listening speak from link-local addresses and from
        // the unspecified one (RFC 4861 §4, RFC 3810 §5); none of it is ever forwarded.
        let _ = write!(
            text,
            " }}
 chain from_pod {{
  iifname != @pod_links {no_port}
  iifname . ether saddr != @pod_macs {mac}
  meta nfproto ipv4 iifname . ip saddr != @pod_addresses4 {address}
  meta nfproto ipv6 jump from_pod6
  udp dport {port} ip daddr @nodes4 {tunnel}
  udp dport {port} ip6 daddr @nodes6 {tunnel}
  udp dport {port} fib daddr type local {tunnel}
 }}
 chain from_pod6 {{
  ip6 saddr {{ fe80::/10, :: }} icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, mld-listener-done, mld2-listener-report }} return
  iifname . ip6 saddr != @pod_addresses6 {address}
 }}
"
        );
        text
    }

    /// What the tunnel's port lets in on a fast node: our own frames are taken before they get here, so one of
    /// them means that nobody takes them.
    fn guard_port(&self) -> String {
        let (port, vni, down) = (self.port, self.vni, refuse(DropReason::PortDown));
        let (no_tunnel, malformed) = (DropReason::NoSuchTunnel, refuse(DropReason::Malformed));
        format!(
            " chain input {{
  type filter hook input priority -310; policy accept;
  udp dport {port} jump tunnel
 }}
 chain tunnel {{
  udp length < 16 {malformed}
  @th,96,24 @other_tunnels return
  @th,96,24 != {vni} counter name \"{no_tunnel}\" return
  {down}
 }}
"
        )
    }

    /// What must not come in fragments, judged before they are put together (-400): the tunnel's own datagrams (RFC 7348 §4.3), of which
    /// only the first fragment shows its port, without which the others come to nothing; and TCP headers that are cut
    /// (RFC 1858 §4, RFC 3128).
    fn guard_fragments(&self) -> String {
        let (port, pods) = (self.port, LinkName::POD_PREFIX);
        let (outer, bad) = (refuse(DropReason::OuterFragment), Side::From.refuse(DropReason::BadFragment));
        let mut text =
            String::from(" chain fragments {\n  type filter hook prerouting priority -450; policy accept;\n");
        if self.kernel_tunnel {
            let _ = write!(
                text,
                "  ip frag-off & 0x3fff != 0 udp dport {port} {outer}\n  exthdr frag exists udp dport {port} {outer}\n"
            );
        }
        let _ = write!(
            text,
            "  iifname {{ \"{pods}*\", \"{TUNNEL_LINK}\" }} ip frag-off & 0x3fff != 0 ip protocol tcp jump cut_headers
  iifname {{ \"{pods}*\", \"{TUNNEL_LINK}\" }} frag nexthdr tcp jump cut_headers6
 }}
 chain cut_headers {{
  ip frag-off & 0x1fff == 1 {bad}
  ip frag-off & 0x1fff != 0 return
"
        );
        for words in 5..=15 {
            let _ = writeln!(text, "  ip hdrlength {words} ip length < {} {bad}", words * 4 + 20);
        }
        // The header of IPv6 is not counted in its length, the one of the fragment is.
        let _ = write!(
            text,
            " }}
 chain cut_headers6 {{
  frag frag-off 1 {bad}
  frag frag-off 0 frag more-fragments 1 ip6 length < 28 {bad}
 }}
"
        );
        text
    }

    /// What the tunnel lets in. A frame is judged whole, before the tunnel device opens it; a field that lies behind the end
    /// of the packet matches nothing, so what is let in must match and everything else is refused.
    fn guard_tunnel(&self) -> String {
        let port = self.port;
        let hooks = format!(
            " chain input {{
  type filter hook input priority -310; policy accept;
  udp dport {port} jump tunnel
 }}
"
        );
        hooks + &self.outer() + &self.inner() + &self.departing() + &transit()
    }

    /// What the tunnel device sends: no connection of the node's own, as each flow inside would be. The device hides the mark
    /// "congested" from the outer header (RFC 3168 §9.1.1), where RFC 6040 §4.1 has it copied.
    fn departing(&self) -> String {
        let (port, vni) = (self.port, self.vni);
        let outer = match self.underlay {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        format!(
            " chain untracked {{
  type filter hook output priority -310; policy accept;
  udp dport {port} @th,96,24 {vni} notrack
 }}
 chain departing {{
  type filter hook output priority 0; policy accept;
  udp dport {port} @th,96,24 {vni} jump congested
 }}
 chain congested {{
  @th,224,16 0x0800 @th,254,2 3 {outer} ecn set ce
  @th,224,16 0x86dd @th,250,2 3 {outer} ecn set ce
 }}
"
        )
    }

    /// Outer headers and the VXLAN header.
    fn outer(&self) -> String {
        let vni = self.vni;
        let (outer, other) = match self.underlay {
            Family::V4 => ("ip", "ipv6"),
            Family::V6 => ("ip6", "ipv4"),
        };
        let (malformed, no_flag) = (refuse(DropReason::Malformed), refuse(DropReason::VxlanWithoutVni));
        let (sender, checksum) = (refuse(DropReason::UnknownSender), refuse(DropReason::OuterChecksum));
        let not_ip = refuse(DropReason::InnerNotIp);
        // Connection tracking has found lengths that contradict each other, or a wrong checksum: it does not tell which.
        let refused = refuse(DropReason::KernelMalformed);
        // A network identifier that is nobody's here is counted and left to the kernel, which drops it: a device that was
        // moved to another namespace keeps its socket in this one and cannot be seen from here.
        let no_tunnel = DropReason::NoSuchTunnel;
        format!(
            " chain tunnel {{
  udp length < 16 {malformed}
  @th,64,8 & 0x08 == 0 {no_flag}
  @th,96,24 @other_tunnels return
  @th,96,24 != {vni} counter name \"{no_tunnel}\" return
  meta nfproto {other} {sender}
  {outer} saddr != @senders {sender}
  udp length < 30 {malformed}
  ct state invalid {refused}
  meta nfproto ipv6 udp checksum 0 {checksum}
  @th,224,16 vmap {{ 0x0800 : goto inner4, 0x86dd : goto inner6, 0x8100 : goto inner_vlan, 0x88a8 : goto inner_vlan }}
  {not_ip}
 }}
"
        )
    }

    /// What lies inside: its length, its congestion marks, its source.
    fn inner(&self) -> String {
        let outer = match self.underlay {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        let (malformed, vlan) = (refuse(DropReason::Malformed), refuse(DropReason::InnerVlan));
        let foreign = refuse(DropReason::ForeignInnerSource);
        // The tunnel device would refuse it as well (RFC 6040 §4.2), but counts it under one name with other errors.
        let ecn = refuse(DropReason::EcnNotCapable);
        format!(
            " chain inner_vlan {{
  {vlan}
 }}
 chain inner4 {{
  udp length < 50 {malformed}
  {outer} ecn ce @th,254,2 0 {ecn}
  {outer} saddr . @th,336,32 @inner4 return
  {foreign}
 }}
 chain inner6 {{
  udp length < 70 {malformed}
  {outer} ecn ce @th,250,2 0 {ecn}
  {outer} saddr . @th,304,128 @inner6 return
  {foreign}
 }}
"
        )
    }

    /// What pods may begin. It runs behind connection tracking and behind any rewriting of destinations, wherever packets of pods
    /// pass: a packet that belongs to a connection goes on, whatever else is said. So does what the node itself says of a packet,
    /// which may have been of none.
    fn guard_connections(&self) -> String {
        let pods = LinkName::POD_PREFIX;
        let mut text = format!(
            " chain forward {{
  type filter hook forward priority -5; policy accept;
  iifname \"{pods}*\" jump connections_from
  oifname \"{pods}*\" jump connections_to
 }}
 chain to_node {{
  type filter hook input priority -5; policy accept;
  iifname \"{pods}*\" jump connections_from
 }}
 chain from_node {{
  type filter hook output priority -5; policy accept;
  icmp type {{ destination-unreachable, time-exceeded, parameter-problem }} return
  icmpv6 type {{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem }} return
  oifname \"{pods}*\" jump connections_to
 }}
"
        );
        // Who begins one counts it; a pod that is reached from elsewhere counts what reaches it.
        let from = (Side::From, "saddr", String::new());
        let to = (Side::To, "daddr", format!("iifname != \"{pods}*\" "));
        for (side, end, whose) in [from, to] {
            let (invalid, denied) =
                (side.refuse(DropReason::InvalidConnection), side.refuse(DropReason::DeniedNew));
            let _ = write!(
                text,
                " chain connections_{side} {{
  ct state established,related return
  ct state invalid {invalid}
  ct state new ip saddr @deny_new4 {denied}
  ct state new ip daddr @deny_new4 {denied}
  ct state new ip6 saddr @deny_new6 {denied}
  ct state new ip6 daddr @deny_new6 {denied}
"
            );
            for (header, set) in [("ip", COUNTED[0]), ("ip6", COUNTED[1])] {
                if let Some(most) = self.connections {
                    let over = side.refuse(DropReason::ConnectionLimit);
                    let _ = writeln!(
                        text,
                        "  {whose}ct state new add @{set} {{ {header} {end} ct count over {most} }} {over}"
                    );
                }
            }
            text.push_str(" }\n");
        }
        text
    }
}

/// What comes out of the tunnel leaves it here, for this node or its pods: nobody is led through it to elsewhere, but by who
/// has asked a port of this node that another node's pod serves.
fn transit() -> String {
    let (pods, no_route) = (LinkName::POD_PREFIX, refuse(DropReason::NoRoute));
    format!(
        " chain transit {{
  type filter hook forward priority -6; policy accept;
  iifname \"{TUNNEL_LINK}\" oifname != \"{pods}*\" jump elsewhere
 }}
 chain elsewhere {{
  ct status dnat return
  {no_route}
 }}
"
    )
}

/// What was dropped so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dropped {
    /// By reason.
    pub(crate) of_all: BTreeMap<DropReason, Count>,
    /// By the link of the pod that it came from or was for, and by reason.
    pub(crate) of_pods: BTreeMap<(String, DropReason), Count>,
}

impl Dropped {
    fn elements(&self) -> Vec<String> {
        let element = |((link, reason), count): (&(String, DropReason), &Count)| {
            let Count { packets, bytes } = count;
            format!("{} counter packets {packets} bytes {bytes}", drop_key(link, *reason))
        };
        self.of_pods.iter().map(element).collect()
    }
}

/// The element that counts what one pod's link drops for a reason.
pub(crate) fn drop_key(link: &str, reason: DropReason) -> String {
    format!("\"{link}\" . {:#x}", reason.index())
}

/// The end of a packet at which the pod is that a drop is counted for.
#[derive(Clone, Copy)]
enum Side {
    From,
    To,
}

impl Side {
    /// What is dropped here for which reasons.
    const ALL: [(Self, &[DropReason]); 2] = [
        (
            Self::From,
            &[
                DropReason::NoRoute,
                DropReason::NoSuchEndpoint,
                DropReason::SpoofedMac,
                DropReason::SpoofedAddress,
                DropReason::TunnelPortFromPod,
                DropReason::BadFragment,
                DropReason::InvalidConnection,
                DropReason::DeniedNew,
                DropReason::ConnectionLimit,
            ],
        ),
        (Self::To, &[DropReason::InvalidConnection, DropReason::DeniedNew, DropReason::ConnectionLimit]),
    ];

    fn refuse(self, reason: DropReason) -> String {
        format!("goto {}", self.chain(reason))
    }

    fn chain(self, reason: DropReason) -> String {
        format!("drop_{self}_{}", reason.label().replace('-', "_"))
    }

    fn link(self) -> &'static str {
        match self {
            Self::From => "iifname",
            Self::To => "oifname",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::From => "from",
            Self::To => "to",
        })
    }
}

/// The chains that drop what is of a pod. Counting by pod is a rule of its own: one that finds its set full ends there, and what
/// is to be dropped must be dropped all the same.
fn drops() -> String {
    let mut text = String::new();
    for (side, reasons) in Side::ALL {
        for reason in reasons {
            let (chain, link, pods) = (side.chain(*reason), side.link(), LinkName::POD_PREFIX);
            let (number, refuse) = (reason.index(), refuse(*reason));
            let _ = write!(
                text,
                " chain {chain} {{
  {link} \"{pods}*\" update @{DROPS} {{ {link} . {number:#x} }}
  {refuse}
 }}
"
            );
        }
    }
    text
}

pub(crate) fn refuse(reason: DropReason) -> String {
    // Where nobody is the node's own route says so to the sender.
    let verdict = if reason == DropReason::NoSuchEndpoint { "accept" } else { "drop" };
    format!("counter name \"{reason}\" {verdict}")
}

/// One transaction that takes elements away and brings others.
pub(crate) fn delta(gone: &BySet<'_>, new: &BySet<'_>) -> String {
    let mut text = String::new();
    for (verb, elements) in [("delete", gone), ("add", new)] {
        for (set, texts) in elements.iter().filter(|(_, texts)| !texts.is_empty()) {
            let _ = writeln!(text, "{verb} element inet {TABLE} {set} {{ {} }}", texts.join(", "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_elements_are_one_line_a_set() {
        let new = [
            Element::OtherTunnel(5),
            Element::Endpoint([10, 0, 0, 3].into()),
            Element::Endpoint([10, 0, 0, 4].into()),
        ];
        assert_eq!(
            delta(&by_set(&[Element::Sender([192, 0, 2, 1].into())]), &by_set(&new)),
            "delete element inet causeway senders { 192.0.2.1 }\n\
             add element inet causeway endpoints4 { 10.0.0.3, 10.0.0.4 }\n\
             add element inet causeway other_tunnels { 0x5 }\n"
        );
        assert_eq!(delta(&by_set(&[]), &by_set(&[])), "");
    }
}
