//! The pages of the agent for human eyes.

mod clusterset;
mod services;
mod why;

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};

use causeway_model::connection::{Connection, Listing};
use causeway_model::fastpath::{ConnectionFigures, Memory};
use causeway_model::flow::Event;
use causeway_model::operator::{
    EndpointStatus, FastpathStatus, NameServerStatus, NamesStatus, NodeStatus, RuleStatus, ServicesStatus,
    Status,
};
use causeway_model::{Count, EndpointCounters, HostServices, PodName};

pub use clusterset::clusterset;
pub use services::services;
pub use why::why;

/// Rows whose columns are aligned.
#[derive(Default)]
struct Table(Vec<Vec<String>>);

impl Table {
    fn of(head: &[&str]) -> Self {
        Self(vec![head.iter().map(ToString::to_string).collect()])
    }

    fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.push(cells.into_iter().collect());
    }

    fn text(&self, indent: &str) -> String {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            self.0.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
        let mut text = String::new();
        for row in &self.0 {
            let cells: Vec<_> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            text += &format!("{indent}{}\n", cells.join("  ").trim_end());
        }
        text
    }
}

/// The status page.
pub fn status(status: &Status) -> String {
    let mut facts = Table::default();
    let mut fact = |name: &str, value: String| facts.row([name.to_owned(), value]);
    fact("agent", status.release.clone());
    match &status.node {
        Some(node) => describe_node(node, &mut fact),
        None => fact("node", "not known yet".to_owned()),
    }
    let path = &status.path;
    fact("path", format!("{} (asked: {}; {})", path.path, path.asked, path.reason));
    let count = |(path, count)| format!("{count} {path}");
    if let Some(process) = &status.fastpath {
        fact("fast path", fastpath(process));
        if let Some(figures) = &process.connections {
            fact("connections", connection_figures(figures));
        }
    }
    fact("endpoints", or(list(status.endpoints.iter().map(count)), "none"));
    fact("tunnel sent", counted(&status.tunnel_sent));
    fact("tunnel received", counted(&status.tunnel_received));
    if !status.services.reason.is_empty() {
        fact("services", services_line(&status.services));
    }
    if !status.names.servers.is_empty() {
        fact("names", names_line(&status.names));
    }
    fact("source", source(status));
    fact("state", if status.waiting_for.is_empty() { "serving".into() } else { "waiting".into() });
    let mut text = facts.text("");
    section(&mut text, "waiting for", &status.waiting_for);
    text += &peers(status);
    text += &drops(status);
    text += &rules("denied by rule", &status.rules);
    text += &rules("not denied, for an audit", &status.audited);
    section(&mut text, "problems", &status.problems);
    section(&mut text, "limits", &status.limits);
    section(&mut text, &format!("last of {} repairs", status.repairs), &status.mended);
    text
}

fn describe_node(node: &NodeStatus, fact: &mut impl FnMut(&str, String)) {
    fact("node", node.id.to_string());
    fact("uplink", format!("{} ({})", node.uplink, node.tunnel_address));
    fact("pod prefixes", list(&node.pod_prefixes));
    fact(
        "overlay",
        format!("VNI {}, port {}, pod MTU {}, MAC {}", node.vni, node.port, node.pod_mtu, node.vtep_mac),
    );
}

fn fastpath(process: &FastpathStatus) -> String {
    let memory = match process.memory {
        Memory::Hugepages => "hugepages",
        Memory::Slow => "slow memory",
    };
    format!(
        "{}, pid {}, {memory}, {} of {} buffers free, frames by worker: {}",
        process.release,
        process.pid,
        process.buffers_free,
        process.buffers,
        or(list(&process.workers), "none yet"),
    )
}

fn connection_figures(figures: &ConnectionFigures) -> String {
    let ConnectionFigures { capacity, live, half_open_gone, idle_gone, refused } = figures;
    let pressure = format!(
        "; lack of room ended {half_open_gone} half open and {idle_gone} idle ones, and refused {refused} packets"
    );
    let pressure = if half_open_gone + idle_gone + refused > 0 { pressure } else { String::new() };
    format!("{live} of {capacity} on the fast path{pressure}")
}

fn services_line(services: &ServicesStatus) -> String {
    let ServicesStatus { host, reason, services, frontends, backends } = services;
    let host = match host {
        HostServices::Own => "ours",
        HostServices::Deferred => "left to others",
    };
    format!(
        "{services} with {frontends} frontends and {backends} backends; the node's own stack is {host} ({reason})"
    )
}

fn names_line(names: &NamesStatus) -> String {
    let NamesStatus { servers, udp, tcp, answers, truncated, malformed, dropped } = names;
    let server = |NameServerStatus { address, trouble }: &NameServerStatus| match trouble {
        Some(trouble) => format!("{address} (nobody answers: {trouble})"),
        None => address.to_string(),
    };
    let answers = or(list(answers.iter().map(|(code, count)| format!("{count} {code}"))), "no answers");
    format!(
        "at {}: {udp} questions by UDP, {tcp} by TCP; {answers}; {truncated} truncated, {malformed} malformed, {dropped} dropped",
        list(servers.iter().map(server)),
    )
}

fn source(status: &Status) -> String {
    let source = &status.source;
    match (source.synchronised, source.age_seconds) {
        (true, Some(age)) => {
            let revision = source.revision.as_ref().map(|revision| format!(", revision {revision} in force"));
            format!("{}, read {age} s ago{}", source.what, revision.unwrap_or_default())
        }
        _ => format!("{}, not read yet", source.what),
    }
}

fn peers(status: &Status) -> String {
    if status.peers.is_empty() {
        return String::new();
    }
    let mut table = Table::of(&["CLUSTER", "NODE", "TUNNEL", "POD PREFIXES", "PATH MTU"]);
    for peer in &status.peers {
        let prefixes = list(&peer.pod_prefixes);
        table.row([
            peer.id.cluster.to_string(),
            peer.id.name.to_string(),
            peer.tunnel_address.to_string(),
            prefixes,
            peer.path_mtu.map_or_else(|| "-".to_owned(), |mtu| mtu.to_string()),
        ]);
    }
    format!("\npeers\n{}", table.text("  "))
}

fn drops(status: &Status) -> String {
    if status.drops.is_empty() {
        return String::new();
    }
    let mut table = Table::of(&["REASON", "PACKETS", "BYTES", "MEANING"]);
    for (reason, count) in &status.drops {
        let (packets, bytes) = (count.packets.to_string(), count.bytes.to_string());
        table.row([reason.to_string(), packets, bytes, reason.help().to_owned()]);
    }
    format!("\ndrops\n{}", table.text("  "))
}

fn section(text: &mut String, title: &str, lines: &[String]) {
    if !lines.is_empty() {
        let lines: String = lines.iter().map(|line| format!("  {line}\n")).collect();
        *text += &format!("\n{title}\n{lines}");
    }
}

fn rules(title: &str, rules: &[RuleStatus]) -> String {
    if rules.is_empty() {
        return String::new();
    }
    let mut table = Table::of(&["RULE", "PACKETS", "BYTES", "POLICY"]);
    for RuleStatus { rule, policy, denied } in rules {
        let policy = policy.clone().unwrap_or_else(|| "-".to_owned());
        table.row([rule.to_string(), denied.packets.to_string(), denied.bytes.to_string(), policy]);
    }
    format!("\n{title}\n{}", table.text("  "))
}

/// One event of a connection.
pub fn flow(event: &Event) -> String {
    let Event { at, path, verdict, protocol, from, to, bytes, egress, ingress, audit, from_pod, to_pod } =
        event;
    let party = |(address, port): &(IpAddr, u16), pod: &Option<PodName>| {
        let address = end(&(*address, *port));
        pod.as_ref().map_or_else(|| address.clone(), |pod| format!("{address} ({pod})"))
    };
    let rules: String = [egress, ingress].into_iter().flatten().map(|rule| format!(" {rule}")).collect();
    let audit = audit.as_ref().map_or_else(String::new, |rule| format!(" (audited: {rule} would deny it)"));
    let (seconds, millis) = (at / 1_000_000_000, at / 1_000_000 % 1000);
    let (from, to, transport) = (party(from, from_pod), party(to, to_pod), transport(*protocol));
    format!("{seconds}.{millis:03} {verdict} {path} {transport} {from} -> {to} {bytes} bytes{rules}{audit}")
}

/// The page of endpoints.
pub fn endpoints(endpoints: &[EndpointStatus]) -> String {
    let head =
        ["ATTACHMENT", "POD", "ADDRESSES", "MAC", "PATH", "PORT", "FROM POD", "TO POD", "DROPS", "REASON"];
    let mut table = Table::of(&head);
    for EndpointStatus { endpoint, counters, .. } in endpoints {
        let EndpointCounters { from_pod, to_pod, drops } = counters;
        table.row([
            endpoint.key.to_string(),
            endpoint.pod.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            list(&endpoint.addresses),
            endpoint.mac.to_string(),
            endpoint.path.to_string(),
            endpoint.port.to_string(),
            from_pod.packets.to_string(),
            to_pod.packets.to_string(),
            drops.values().map(|count| count.packets).sum::<u64>().to_string(),
            endpoint.path_reason.clone(),
        ]);
    }
    table.text("")
}

/// The page of connections.
pub fn connections(listing: &Listing) -> String {
    let head = ["PATH", "TRANSPORT", "FROM", "TO", "STAGE", "SENT", "ANSWERED", "AGE", "LEFT", "POD", "PEER"];
    let mut table = Table::of(&head);
    for connection in &listing.connections {
        let Connection { path, protocol, from, to, answers, stage, sent, answered, .. } = connection;
        let to = match answers {
            None => end(to),
            Some(who) => format!("{} ({})", end(to), end(who)),
        };
        let name = |pod: &Option<PodName>| pod.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        table.row([
            path.to_string(),
            transport(*protocol),
            end(from),
            to,
            stage.name().to_owned(),
            sent.packets.to_string(),
            answered.packets.to_string(),
            connection.age_ms.map_or_else(|| "-".to_owned(), seconds),
            seconds(connection.left_ms),
            name(&connection.from_pod),
            name(&connection.to_pod),
        ]);
    }
    match listing.more {
        0 => table.text(""),
        more => format!("{}{more} more are not shown (--most)\n", table.text("")),
    }
}

fn transport(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        other => other.to_string(),
    }
}

fn end((address, port): &(IpAddr, u16)) -> String {
    SocketAddr::new(*address, *port).to_string()
}

fn seconds(millis: u64) -> String {
    format!("{} s", millis / 1000)
}

fn counted(count: &Count) -> String {
    format!("{} packets, {} bytes", count.packets, count.bytes)
}

fn list(items: impl IntoIterator<Item = impl Display>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn or(text: String, none: &str) -> String {
    if text.is_empty() { none.to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use causeway_model::DropReason;
    use causeway_model::operator::{PathStatus, PeerStatus, SourceStatus};
    use causeway_model::{NodeId, Path, TunnelOwner};

    use super::*;

    fn waiting() -> Status {
        Status {
            version: 1,
            release: "1.2.3 (abc)".into(),
            node: None,
            waiting_for: vec!["Node east in cluster lyon".into()],
            path: PathStatus {
                asked: "fast".into(),
                path: Path::Kernel,
                reason: "asked for fast, but there is none".into(),
                tunnel: TunnelOwner::Kernel,
            },
            peers: Vec::new(),
            endpoints: [(Path::Kernel, 3)].into(),
            tunnel_sent: Count { packets: 2, bytes: 200 },
            tunnel_received: Count::default(),
            drops: Default::default(),
            rules: Vec::new(),
            audited: Vec::new(),
            source: SourceStatus {
                what: "manifests in /m".into(),
                synchronised: false,
                age_seconds: None,
                revision: None,
            },
            problems: Vec::new(),
            limits: Vec::new(),
            services: ServicesStatus {
                host: HostServices::Own,
                reason: "services: own".into(),
                services: 2,
                frontends: 5,
                backends: 3,
            },
            names: NamesStatus {
                servers: vec![NameServerStatus { address: [169, 254, 53, 53].into(), trouble: None }],
                udp: 7,
                tcp: 1,
                answers: [("NOERROR".to_owned(), 6), ("NXDOMAIN".to_owned(), 2)].into(),
                truncated: 1,
                ..NamesStatus::default()
            },
            fastpath: None,
            repairs: 0,
            mended: Vec::new(),
        }
    }

    #[test]
    fn a_waiting_agent_says_for_what_and_shows_no_empty_sections() {
        let page = status(&waiting());
        for line in [
            "agent            1.2.3 (abc)",
            "node             not known yet",
            "path             kernel (asked: fast; asked for fast, but there is none)",
            "endpoints        3 kernel",
            "tunnel sent      2 packets, 200 bytes",
            "services         2 with 5 frontends and 3 backends; the node's own stack is ours (services: own)",
            "names            at 169.254.53.53: 7 questions by UDP, 1 by TCP; 6 NOERROR, 2 NXDOMAIN; 1 truncated, 0 malformed, 0 dropped",
            "source           manifests in /m, not read yet",
            "state            waiting",
            "  Node east in cluster lyon",
        ] {
            assert!(page.lines().any(|found| found == line), "{line:?} is not in\n{page}");
        }
        assert!(!page.contains("peers") && !page.contains("problems") && !page.contains("repairs"), "{page}");
    }

    #[test]
    fn a_fast_path_is_one_line() {
        let process = FastpathStatus {
            release: "1.2.3".into(),
            pid: 7,
            memory: Memory::Slow,
            workers: vec![10, 0],
            buffers: 16_894,
            buffers_free: 16_800,
            connections: Some(ConnectionFigures {
                capacity: 64,
                live: 3,
                idle_gone: 2,
                ..Default::default()
            }),
        };
        let page = status(&Status { fastpath: Some(process), ..waiting() });
        let line = "fast path        1.2.3, pid 7, slow memory, 16800 of 16894 buffers free, frames by worker: 10, 0";
        assert!(page.lines().any(|found| found == line), "{page}");
        let line = "connections      3 of 64 on the fast path; lack of room ended 0 half open and 2 idle ones, and refused 0 packets";
        assert!(page.lines().any(|found| found == line), "{page}");
    }

    #[test]
    fn columns_are_aligned() {
        let mut full = waiting();
        let peer = |cluster: &str, name: &str| PeerStatus {
            id: NodeId { cluster: cluster.parse().expect("a name"), name: name.parse().expect("a name") },
            tunnel_address: [192, 0, 2, 1].into(),
            path_mtu: None,
            pod_prefixes: Vec::new(),
        };
        full.peers = vec![peer("a", "a-long-name"), peer("a-long-cluster", "b")];
        full.drops = [(DropReason::TooBig, Count { packets: 7, bytes: 10_000 })].into();
        let page = status(&full);
        let columns: Vec<_> = page.lines().filter_map(|line| line.find("192.0.2.1")).collect();
        assert_eq!(columns.len(), 2);
        assert_eq!(columns[0], columns[1], "{page}");
        assert!(page.contains("too-big  7        10000"), "{page}");
    }
}
