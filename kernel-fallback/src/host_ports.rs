//! Ports of the node that lead to pods: maps from port to pod, and the chains that translate by them.
//!
//! Both data paths are served alike: what is meant for a mapped port of the node arrives in the node's own stack, whoever sent
//! it, is translated there and goes on to the pod, by its veth or through `cw-host`. The sender stays who it is, unless
//! the answer would then not come back by this stack.

use std::fmt::Write;
use std::net::IpAddr;

use causeway_model::{Endpoint, Family, HostServices, Path, PortMapping, Settings, TunnelOwner};

use crate::element::Element;
use crate::names;
use crate::objects::HOST_LINK;

/// Maps and sets of the table, each with its keyword.
pub(crate) fn sets(fast: bool) -> Vec<(&'static str, &'static str, &'static str)> {
    let mut sets = vec![
        ("map", "ports4", "type inet_proto . inet_service : ipv4_addr . inet_service"),
        ("map", "ports6", "type inet_proto . inet_service : ipv6_addr . inet_service"),
        ("map", "ports_at4", "type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service"),
        ("map", "ports_at6", "type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service"),
        ("set", "mapped4", "type ipv4_addr . inet_proto . inet_service"),
        ("set", "mapped6", "type ipv6_addr . inet_proto . inet_service"),
        ("set", "hairpins4", "type ipv4_addr . ipv4_addr"),
        ("set", "hairpins6", "type ipv6_addr . ipv6_addr"),
    ];
    if fast {
        sets.extend([
            ("set", "fast_pods4", "type ipv4_addr"),
            ("set", "fast_pods6", "type ipv6_addr"),
            ("set", "tunnelled4", "type ipv4_addr; flags interval"),
            ("set", "tunnelled6", "type ipv6_addr; flags interval"),
            ("set", "peers4", "type ipv4_addr"),
            ("set", "peers6", "type ipv6_addr"),
        ]);
    }
    sets
}

/// The chains. Address translation asks once a flow, before kube-proxy and the plugin portmap (-100, 100) do; where these have
/// nothing to say, those come. What is for ::1 is left alone: the kernel lets nothing with that address out of the node.
pub(crate) fn chains(settings: &Settings) -> String {
    let spared = names::spared(&settings.names);
    let mut text = format!(
        " chain port_in {{
  type nat hook prerouting priority -105; policy accept;
  fib daddr type local jump ports
 }}
 chain port_out {{
  type nat hook output priority -105; policy accept;
  fib daddr type local jump ports
 }}
 chain ports {{
{spared}  dnat ip to ip daddr . meta l4proto . th dport map @ports_at4
  dnat ip to meta l4proto . th dport map @ports4
  ip6 daddr ::1 return
  dnat ip6 to ip6 daddr . meta l4proto . th dport map @ports_at6
  dnat ip6 to meta l4proto . th dport map @ports6
 }}
",
    );
    let fast = settings.tunnel == TunnelOwner::FastPath;
    let (mut answers, mut by_family) = (String::new(), String::new());
    for (family, header, number) in [(Family::V4, "ip", 4), (Family::V6, "ip6", 6)] {
        let Some(host) = settings.node.overlay_host_address(family) else { continue };
        let as_host = format!("snat {header} to {host}");
        let mapped = format!("{header} daddr . meta l4proto . th dport @mapped{number}");
        let _ = writeln!(answers, "  ct status dnat {mapped} jump answers{number}");
        if fast {
            // Whoever translated: the fast path would take a fast pod's answer to these straight to them.
            let to_fast_pod = format!("ct status dnat oifname \"{HOST_LINK}\" {header} saddr");
            let _ = writeln!(answers, "  {to_fast_pod} @fast_pods{number} {as_host}");
            let _ = writeln!(answers, "  {to_fast_pod} @tunnelled{number} {as_host}");
            // Where we serve services, a fast path that knows of them brings the answer to another node back here.
            let mapped = if settings.host_services == HostServices::Own { mapped.as_str() } else { "" };
            let _ = writeln!(answers, "  {mapped} {to_fast_pod} @peers{number} {as_host}");
        }
        // Nobody else can answer this node's own loopback, and no pod would send an answer to itself out.
        let _ = writeln!(by_family, " chain answers{number} {{");
        if family == Family::V4 {
            let _ = writeln!(by_family, "  ip saddr 127.0.0.0/8 {as_host}");
        }
        let _ = writeln!(by_family, "  {header} saddr . {header} daddr @hairpins{number} {as_host}\n }}");
    }
    let hook = "type nat hook postrouting priority 95; policy accept;";
    let _ = write!(text, " chain port_answers {{\n  {hook}\n{answers} }}\n{by_family}");
    text
}

/// What the mappings of an endpoint ask for.
pub(crate) fn elements(endpoint: &Endpoint) -> Vec<Element> {
    let mut elements = Vec::new();
    for mapping in &endpoint.port_mappings {
        for to in endpoint.addresses.iter().copied() {
            if !mapping.answers_over(Family::of(to)) {
                continue;
            }
            let PortMapping { host_port, container_port, protocol, .. } = *mapping;
            let (port, to_port) = (host_port.get(), container_port.get());
            elements.push(Element::HostPort { at: mapping.only_at(), protocol, port, to, to_port });
            let more = [Element::Mapped { to, protocol, to_port }, Element::Hairpin(to)];
            elements
                .extend(more.into_iter().filter(|element| !elements.contains(element)).collect::<Vec<_>>());
        }
    }
    elements
}

/// What the fast path reaches without this node's stack: an endpoint of its own.
pub(crate) fn fast_pod(endpoint: &Endpoint) -> impl Iterator<Item = Element> + '_ {
    let fast = endpoint.path == Path::Fast;
    endpoint.addresses.iter().copied().filter(move |_| fast).map(Element::FastPod)
}

/// Whether packets from the node's loopback shall find their way to an endpoint over IPv4.
pub(crate) fn wants_loopback(endpoint: &Endpoint) -> bool {
    let v4 = endpoint.address(Family::V4).is_some();
    v4 && endpoint.port_mappings.iter().any(|mapping| {
        mapping.answers_over(Family::V4)
            && mapping.only_at().is_none_or(|address: IpAddr| address.is_loopback())
    })
}
