//! The connections of pods of the kernel path, as connection tracking has them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use causeway_model::Path;
use causeway_model::connection::{Connection, ConnectionRules, Filter, Listing, Timeout};

use crate::conntrack::{Flow, flows};
use crate::error::KernelError;
use crate::flows::now;
use crate::objects::{Object, Sysctl};

/// Connection tracking counts packets and bytes, and dates what it keeps.
const ACCOUNTING: [&str; 2] = ["acct", "timestamp"];

/// Those of these addresses that fit a filter, at most so many.
pub(crate) fn list(pods: &BTreeSet<IpAddr>, filter: &Filter, most: usize) -> Result<Listing, KernelError> {
    if pods.is_empty() || filter.path == Some(Path::Fast) {
        return Ok(Listing::default());
    }
    // Connection tracking dates what it keeps by the clock on the wall.
    let now = now();
    let flows = flows()?;
    let ours = flows.iter().filter(|flow| is_of(flow, pods)).map(|flow| connection(flow, now));
    Ok(Listing::of(ours.filter(|connection| filter.fits(connection)), most))
}

fn is_of(flow: &Flow, pods: &BTreeSet<IpAddr>) -> bool {
    flow.ends().iter().any(|end| pods.contains(end))
}

fn connection(flow: &Flow, now: u64) -> Connection {
    let end = |address: SocketAddr| (address.ip(), address.port());
    Connection {
        path: Path::Kernel,
        protocol: flow.protocol,
        from: end(flow.from),
        to: end(flow.to),
        answers: (flow.answers != flow.to).then(|| end(flow.answers)),
        from_pod: None,
        to_pod: None,
        stage: flow.stage,
        picked_up: false,
        sent: flow.counts[0],
        answered: flow.counts[1],
        retransmits: None,
        age_ms: flow.began.map(|began| now.saturating_sub(began) / 1_000_000),
        left_ms: u64::from(flow.left) * 1000,
        handshake_us: None,
    }
}

/// What connection tracking must be told. Timeouts are settings of the whole namespace, so that those which nobody configured are
/// left as they are.
pub(crate) fn sysctls(rules: &ConnectionRules) -> impl Iterator<Item = Object> + '_ {
    let accounting = ACCOUNTING.iter().map(|name| (*name, 1));
    let configured = rules.timeouts.iter();
    let timeouts =
        configured.flat_map(|(timeout, seconds)| names(*timeout).iter().map(|name| (*name, *seconds)));
    accounting.chain(timeouts).map(|(name, value)| {
        let path = format!("net/netfilter/nf_conntrack_{name}");
        Object::Sysctl(Sysctl { link: None, path, value: value.to_string().into() })
    })
}

/// What the kernel calls a timeout; it tells some states apart that are one here.
fn names(timeout: Timeout) -> &'static [&'static str] {
    match timeout {
        Timeout::TcpSyn => &["tcp_timeout_syn_sent"],
        Timeout::TcpSynReceived => &["tcp_timeout_syn_recv"],
        Timeout::TcpEstablished => &["tcp_timeout_established"],
        Timeout::TcpFinWait => &["tcp_timeout_fin_wait", "tcp_timeout_close_wait"],
        Timeout::TcpLastAck => &["tcp_timeout_last_ack"],
        Timeout::TcpTimeWait => &["tcp_timeout_time_wait"],
        Timeout::TcpClosed => &["tcp_timeout_close"],
        Timeout::Udp => &["udp_timeout"],
        Timeout::UdpStream => &["udp_timeout_stream"],
        Timeout::Icmp => &["icmp_timeout", "icmpv6_timeout"],
        Timeout::Sctp => &[
            "sctp_timeout_closed",
            "sctp_timeout_cookie_wait",
            "sctp_timeout_cookie_echoed",
            "sctp_timeout_shutdown_sent",
            "sctp_timeout_shutdown_recd",
            "sctp_timeout_shutdown_ack_sent",
        ],
        Timeout::SctpEstablished => &["sctp_timeout_established"],
        Timeout::Other => &["generic_timeout"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_configured_is_set() {
        let paths =
            |rules: &ConnectionRules| sysctls(rules).map(|object| object.to_string()).collect::<Vec<_>>();
        assert_eq!(paths(&ConnectionRules::default()).len(), ACCOUNTING.len());
        let rules = ConnectionRules { timeouts: [(Timeout::Icmp, 7)].into(), per_endpoint: None };
        let set = paths(&rules);
        for name in ["icmp", "icmpv6"] {
            let line = format!("sysctl net/netfilter/nf_conntrack_{name}_timeout = 7");
            assert!(set.contains(&line), "{set:?}");
        }
    }

    #[test]
    fn every_timeout_has_settings_that_this_kernel_knows() {
        for timeout in Timeout::ALL {
            for name in names(*timeout) {
                let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
                assert!(std::path::Path::new(&path).exists(), "{path}");
            }
        }
    }
}
