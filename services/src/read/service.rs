//! A Service (`v1`).

use std::collections::BTreeSet;

use causeway_model::{Family, PortProtocol};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, ServicePort, ServiceSpec, ServiceStatus};
use serde_json::Value;

use super::{Meta, Problems, Wrong, parts};
use crate::objects::{Port, Service, Sources};

/// How long a client stays with its backend unless told otherwise: three hours.
const AFFINITY: u32 = 10_800;

pub(super) fn read(meta: &Meta<'_>, document: &Value, problems: &mut Problems) -> Option<Service> {
    let Some(spec) = document.get("spec").filter(|spec| !spec.is_null()) else {
        return problems.fatal("spec", Wrong::Missing);
    };
    let spec: ServiceSpec = problems.typed("spec", spec)?;
    let status = document.get("status").filter(|status| !status.is_null());
    let status = status.and_then(|status| problems.typed::<ServiceStatus>("status", status));
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    match kind {
        "ClusterIP" | "NodePort" | "LoadBalancer" => {}
        "ExternalName" => return None,
        other => {
            let value = other.to_owned();
            return problems.fatal("spec.type", Wrong::Unknown { what: "type", value });
        }
    }
    if meta.is_left() || is_headless(&spec) {
        return None;
    }
    let local = |written: Option<&str>, field: &str, problems: &mut Problems| match written {
        None | Some("Cluster") => Some(false),
        Some("Local") => Some(true),
        Some(other) => {
            let value = other.to_owned();
            problems.fatal(format!("spec.{field}"), Wrong::Unknown { what: "policy", value })
        }
    };
    let internal_local = local(spec.internal_traffic_policy.as_deref(), "internalTrafficPolicy", problems)?;
    let external_local = local(spec.external_traffic_policy.as_deref(), "externalTrafficPolicy", problems)?;
    let external_ips = addresses(&spec, problems);
    // On a service that nobody reaches from outside it is a leftover.
    let external_local = external_local && (kind != "ClusterIP" || !external_ips.is_empty());
    let balanced = kind == "LoadBalancer" && external_local;
    let health_check = spec.health_check_node_port.filter(|port| balanced && *port != 0);
    Some(Service {
        cluster_ips: cluster_ips(&spec, problems),
        external_ips,
        ingress: ingress(status, problems),
        sources: sources(spec.load_balancer_source_ranges.as_deref(), problems),
        ports: ports(&spec, kind, problems),
        internal_local,
        external_local,
        affinity: affinity(&spec, problems)?,
        health_check: health_check
            .and_then(|port| problems.take("spec.healthCheckNodePort", parts::port(port))),
    })
}

/// A service that has no address has nothing to translate.
fn is_headless(spec: &ServiceSpec) -> bool {
    matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"))
        && spec.cluster_ips.iter().flatten().all(|ip| ip.is_empty() || ip == "None")
}

/// One address a family, of the families that it says it has.
fn cluster_ips(spec: &ServiceSpec, problems: &mut Problems) -> Vec<std::net::IpAddr> {
    let many = spec.cluster_ips.iter().flatten().enumerate();
    let many = many.map(|(index, ip)| (format!("spec.clusterIPs[{index}]"), ip));
    let one = spec.cluster_ip.iter().map(|ip| ("spec.clusterIP".to_owned(), ip));
    let written: Vec<_> = match spec.cluster_ips.as_deref() {
        None | Some([]) => one.collect(),
        Some(_) => many.collect(),
    };
    let mut taken = Vec::new();
    let mut families = BTreeSet::new();
    for (at, written) in written {
        let Some(address) = problems.take(at.as_str(), parts::address(written)) else { continue };
        let family = Family::of(address);
        let listed = |families: &Vec<String>| families.iter().any(|one| *one == family.to_string());
        match spec.ip_families.as_ref().filter(|families| !families.is_empty()) {
            Some(families) if !listed(families) => {
                problems.add(at, Wrong::NotSupported("an address of a family that spec.ipFamilies lacks"));
            }
            _ if !families.insert(family) => {
                problems.add(at, Wrong::Twice(family.to_string()));
            }
            _ => taken.push(address),
        }
    }
    taken
}

fn addresses(spec: &ServiceSpec, problems: &mut Problems) -> Vec<std::net::IpAddr> {
    let written = spec.external_ips.iter().flatten().enumerate();
    let taken = written.filter_map(|(index, ip)| {
        let address = parts::address(ip).and_then(parts::somewhere);
        problems.take(format!("spec.externalIPs[{index}]"), address)
    });
    taken.collect()
}

/// The addresses that nodes are to take for their own: not those behind which a load balancer ends connections itself, and not
/// names.
fn ingress(status: Option<ServiceStatus>, problems: &mut Problems) -> Vec<std::net::IpAddr> {
    let ingress = status.and_then(|status| status.load_balancer?.ingress).unwrap_or_default();
    let mut taken = Vec::new();
    for (index, LoadBalancerIngress { ip, ip_mode, .. }) in ingress.into_iter().enumerate() {
        let at = |field: &str| format!("status.loadBalancer.ingress[{index}].{field}");
        let Some(ip) = ip.filter(|ip| !ip.is_empty()) else { continue };
        match ip_mode.as_deref() {
            None | Some("VIP") => {
                let address = parts::address(&ip).and_then(parts::somewhere);
                taken.extend(problems.take(at("ip"), address));
            }
            Some("Proxy") => {}
            Some(other) => {
                let value = other.to_owned();
                problems.add(at("ipMode"), Wrong::Unknown { what: "mode", value });
            }
        }
    }
    taken
}

fn sources(written: Option<&[String]>, problems: &mut Problems) -> Option<Sources> {
    let written = written.filter(|written| !written.is_empty())?;
    let mut sources = Sources::default();
    for (index, range) in written.iter().enumerate() {
        // The API server lets blanks around a range pass.
        let range = range.trim();
        let prefix = range.contains('/').then(|| range.parse::<IpNetwork>().ok()).flatten();
        let prefix = prefix.ok_or_else(|| Wrong::NoPrefix(range.to_owned()));
        match problems.take(format!("spec.loadBalancerSourceRanges[{index}]"), prefix) {
            Some(prefix) => sources.ranges.push(prefix),
            None => sources.unreadable = true,
        }
    }
    Some(sources)
}

fn ports(spec: &ServiceSpec, kind: &str, problems: &mut Problems) -> Vec<Port> {
    let mut taken: Vec<Port> = Vec::new();
    for (index, written) in spec.ports.iter().flatten().enumerate() {
        let at = |field: &str| format!("spec.ports[{index}].{field}");
        let ServicePort { name, protocol, port, node_port, .. } = written;
        let protocol = problems.take(at("protocol"), parts::protocol(protocol.as_deref()));
        let port = problems.take(at("port"), parts::port(*port));
        let (Some(protocol), Some(port)) = (protocol, port) else { continue };
        let name = name.clone().unwrap_or_default();
        if let Some(twice) = twice(&taken, (&name, protocol), port) {
            problems.add(format!("spec.ports[{index}]"), Wrong::Twice(twice));
            continue;
        }
        let node_port = node_port.filter(|port| *port != 0).and_then(|port| match kind {
            "ClusterIP" => problems.take(at("nodePort"), Err(Wrong::NodePortOfClusterIp)),
            _ => problems.take(at("nodePort"), parts::port(port)),
        });
        taken.push(Port { name, protocol, port, node_port });
    }
    taken
}

/// What a port repeats of those before it.
fn twice(before: &[Port], (name, protocol): (&str, PortProtocol), port: u16) -> Option<String> {
    let mut before = before.iter().filter(|one| one.protocol == protocol);
    let same = before.find(|one| one.port == port || one.name == name)?;
    Some(if same.port == port { format!("{protocol} {port}") } else { name.to_owned() })
}

/// For how long a client stays, where it does.
fn affinity(spec: &ServiceSpec, problems: &mut Problems) -> Option<Option<u32>> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => Some(None),
        Some("ClientIP") => {
            let config = spec.session_affinity_config.as_ref();
            let seconds = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
            let Some(seconds) = seconds else { return Some(Some(AFFINITY)) };
            let taken = u32::try_from(seconds).ok().filter(|seconds| (1..=86_400).contains(seconds));
            let at = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            Some(Some(problems.take(at, taken.ok_or(Wrong::NoTimeout(seconds.into()))).unwrap_or(AFFINITY)))
        }
        Some(other) => {
            let value = other.to_owned();
            problems.fatal("spec.sessionAffinity", Wrong::Unknown { what: "affinity", value })
        }
    }
}
