//! What agents have written of exports, imports and refusals, as what it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use causeway_mesh::api::{ServiceExport, ServiceImport};
use causeway_mesh::{Choice, Condition, Exported, Import, Port, ServiceName, Status, TrafficPolicy};
use causeway_model::Family;

use crate::corpus::protocol;

/// An import, whoever serves it.
pub(super) fn import(bytes: &[u8]) -> Result<(ServiceName, Import)> {
    let ServiceImport { metadata, spec, status, .. } = serde_json::from_slice(bytes)?;
    let status = status.context("no status")?;
    let ports = spec.ports.iter().map(|port| {
        Ok(Port {
            name: port.name.clone(),
            protocol: protocol(&port.protocol)?,
            number: u16::try_from(port.port)?,
            app_protocol: port.app_protocol.clone(),
        })
    });
    let family = |text: &String| match text.as_str() {
        "IPv4" => Ok(Family::V4),
        "IPv6" => Ok(Family::V6),
        other => bail!("a family {other:?}"),
    };
    let timeout = spec.session_affinity_config.and_then(|config| config.client_ip?.timeout_seconds);
    let import = Import {
        headless: spec.type_ == "Headless",
        ports: ports.collect::<Result<_>>()?,
        families: spec.ip_families.iter().map(family).collect::<Result<_>>()?,
        addresses: spec.ips.iter().map(|ip| Ok(ip.parse::<IpAddr>()?)).collect::<Result<_>>()?,
        affinity: (spec.session_affinity == "ClientIP")
            .then(|| timeout.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(10_800)),
        traffic_policy: match spec.internal_traffic_policy.as_deref() {
            Some("Local") => TrafficPolicy::Local,
            _ => TrafficPolicy::Cluster,
        },
        distribution: spec.traffic_distribution,
        labels: metadata.labels.clone().unwrap_or_default(),
        annotations: metadata.annotations.clone().unwrap_or_default(),
        clusters: status.clusters.iter().map(|it| Ok(it.cluster.parse()?)).collect::<Result<_>>()?,
        ready: {
            let first = status.conditions.first().context("no condition")?;
            condition([&first.type_, &first.status, &first.reason, &first.message])?
        },
        conflicts: Vec::new(),
        choice: Choice::default(),
        backends: BTreeMap::new(),
        pods: Vec::new(),
        left_out: BTreeSet::new(),
    };
    Ok((name(metadata.namespace, metadata.name)?, import))
}

/// What became of an export.
pub(super) fn export(bytes: &[u8]) -> Result<(ServiceName, Exported)> {
    let ServiceExport { metadata, status, .. } = serde_json::from_slice(bytes)?;
    let status = status.context("no status")?;
    let all = status.conditions.iter();
    let conditions =
        all.map(|it| condition([&it.type_, &it.status, &it.reason, &it.message])).collect::<Result<_>>()?;
    Ok((name(metadata.namespace, metadata.name)?, Exported { conditions, conflicts: Vec::new() }))
}

fn name(namespace: Option<String>, name: Option<String>) -> Result<ServiceName> {
    Ok(ServiceName { namespace: namespace.context("no namespace")?, name: name.context("no name")? })
}

fn condition([kind, status, reason, message]: [&String; 4]) -> Result<Condition> {
    let known = ["Valid", "Ready", "Conflict"].into_iter().find(|known| known == kind);
    let all = [Status::True, Status::False, Status::Unknown];
    let found = all.into_iter().find(|known| known.to_string() == *status);
    Ok(Condition {
        kind: known.with_context(|| format!("a condition {kind}"))?,
        status: found.with_context(|| format!("a status {status}"))?,
        reason: reason.clone(),
        message: message.clone(),
    })
}

/// Why clusters are refused, in codes, of what an agent says is wrong.
pub(super) fn refused(problems: &[String]) -> BTreeMap<String, BTreeSet<String>> {
    let mut refused: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for problem in problems {
        let told = problem.strip_prefix("Cluster ");
        let Some((cluster, why)) = told.and_then(|told| told.split_once(" is left out with all its nodes: "))
        else {
            continue;
        };
        let codes = why.split("; ").map(|why| match why.rsplit_once(" of cluster ") {
            Some((what, of)) if what.starts_with("its id ") => format!("duplicate-id:{of}"),
            Some((_, of)) => format!("overlapping-cidr:{of}"),
            None => "no-id".to_owned(),
        });
        refused.entry(cluster.to_owned()).or_default().extend(codes);
    }
    refused
}

/// What prefixes of imports overlap, likewise: `PREFIX of CLUSTER`.
pub(super) fn refused_prefixes(problems: &[String]) -> BTreeSet<String> {
    let told = problems.iter().filter(|problem| problem.starts_with("clusterset-cidr "));
    let overlap = |problem: &String| {
        let (with, of) = problem.split_once(" overlaps ")?.1.split_once(" of cluster ")?;
        Some(format!("{with} of {of}"))
    };
    told.filter_map(overlap).collect()
}
