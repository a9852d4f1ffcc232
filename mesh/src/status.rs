//! Exports and imports as the API's objects.

use k8s_openapi::api::core::v1::{ClientIPConfig, SessionAffinityConfig};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{self, ObjectMeta, Time};

use crate::api::{
    API_VERSION, ClusterStatus, ImportPort, SERVICE_EXPORT, SERVICE_IMPORT, ServiceExport, ServiceExportSpec,
    ServiceExportStatus, ServiceImport, ServiceImportSpec, ServiceImportStatus,
};
use crate::facts::{Port, ServiceName, family_text, protocol_text};
use crate::outcome::{Condition, Exported, Import};

/// An import as its object. Conditions that say the same as `before` keep their time, others have changed `now`.
pub fn import_object(
    name: &ServiceName,
    import: &Import,
    before: &[v1::Condition],
    now: &Time,
) -> ServiceImport {
    let affinity = import.affinity.map(|seconds| SessionAffinityConfig {
        client_ip: Some(ClientIPConfig { timeout_seconds: i32::try_from(seconds).ok() }),
    });
    let clusters = import.clusters.iter().map(|cluster| ClusterStatus { cluster: cluster.to_string() });
    ServiceImport {
        api_version: API_VERSION.to_owned(),
        kind: SERVICE_IMPORT.to_owned(),
        metadata: ObjectMeta {
            labels: Some(import.labels.clone()).filter(|labels| !labels.is_empty()),
            annotations: Some(import.annotations.clone()).filter(|annotations| !annotations.is_empty()),
            ..metadata(name)
        },
        spec: ServiceImportSpec {
            ports: import.ports.iter().map(port).collect(),
            ips: import.addresses.iter().map(ToString::to_string).collect(),
            type_: if import.headless { "Headless" } else { "ClusterSetIP" }.to_owned(),
            session_affinity: if affinity.is_some() { "ClientIP" } else { "None" }.to_owned(),
            session_affinity_config: affinity,
            ip_families: import.families.iter().map(|family| family_text(*family).to_owned()).collect(),
            internal_traffic_policy: Some(import.traffic_policy.as_str().to_owned()),
            traffic_distribution: import.distribution.clone(),
        },
        status: Some(ServiceImportStatus {
            endpoint_slice_objects: "Absent".to_owned(),
            clusters: clusters.collect(),
            conditions: conditions([&import.ready], before, now),
        }),
    }
}

/// An export's object with what became of it. Conditions that say the same as `before` keep their time, others have changed
/// `now`.
pub fn export_object(
    name: &ServiceName,
    exported: &Exported,
    before: &[v1::Condition],
    now: &Time,
) -> ServiceExport {
    ServiceExport {
        api_version: API_VERSION.to_owned(),
        kind: SERVICE_EXPORT.to_owned(),
        metadata: metadata(name),
        spec: ServiceExportSpec::default(),
        status: Some(ServiceExportStatus { conditions: conditions(&exported.conditions, before, now) }),
    }
}

fn metadata(name: &ServiceName) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.name.clone()),
        namespace: Some(name.namespace.clone()),
        ..ObjectMeta::default()
    }
}

fn port(port: &Port) -> ImportPort {
    ImportPort {
        name: port.name.clone(),
        protocol: protocol_text(port.protocol).to_owned(),
        app_protocol: port.app_protocol.clone(),
        port: i32::from(port.number),
    }
}

fn conditions<'a>(
    conditions: impl IntoIterator<Item = &'a Condition>,
    before: &[v1::Condition],
    now: &Time,
) -> Vec<v1::Condition> {
    let written = |condition: &Condition| {
        let status = condition.status.to_string();
        let same = before.iter().find(|it| it.type_ == condition.kind && it.status == status);
        v1::Condition {
            type_: condition.kind.to_owned(),
            status,
            reason: condition.reason.clone(),
            message: condition.message.clone(),
            last_transition_time: same.map_or_else(|| now.clone(), |same| same.last_transition_time.clone()),
            observed_generation: None,
        }
    };
    conditions.into_iter().map(written).collect()
}
