//! The Multi-Cluster Services API as it is written: `multicluster.x-k8s.io/v1beta1` (KEP-1645).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::SessionAffinityConfig;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use serde::{Deserialize, Serialize};

/// The group and the version that is spoken here.
pub const API_VERSION: &str = "multicluster.x-k8s.io/v1beta1";
/// The group alone.
pub const GROUP: &str = "multicluster.x-k8s.io";
/// Who offers a service.
pub const SERVICE_EXPORT: &str = "ServiceExport";
/// What is offered, where it is used.
pub const SERVICE_IMPORT: &str = "ServiceImport";

type Texts = BTreeMap<String, String>;

/// Offers the Service of its own name and namespace to all clusters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceExport {
    /// [`API_VERSION`].
    pub api_version: String,
    /// [`SERVICE_EXPORT`].
    pub kind: String,
    /// Its name is the Service's.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What goes with it.
    #[serde(default)]
    pub spec: ServiceExportSpec,
    /// What became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ServiceExportStatus>,
}

/// What goes with an export; nothing of its own metadata travels.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceExportSpec {
    /// Labels of the import.
    #[serde(default, skip_serializing_if = "Texts::is_empty")]
    pub exported_labels: Texts,
    /// Annotations of the import.
    #[serde(default, skip_serializing_if = "Texts::is_empty")]
    pub exported_annotations: Texts,
}

/// What became of an export.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceExportStatus {
    /// Valid, Ready and Conflict.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// A service of the whole set of clusters, as one of them sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceImport {
    /// [`API_VERSION`].
    pub api_version: String,
    /// [`SERVICE_IMPORT`].
    pub kind: String,
    /// Name and namespace of all its exports.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// How it is used.
    #[serde(default)]
    pub spec: ServiceImportSpec,
    /// Where it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ServiceImportStatus>,
}

/// How an import is used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceImportSpec {
    /// The union of all exporters' ports.
    #[serde(default)]
    pub ports: Vec<ImportPort>,
    /// Its addresses, one for each of `ip_families` and in their order; none of a headless one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// `ClusterSetIP` or `Headless`.
    #[serde(default, rename = "type")]
    pub type_: String,
    /// `None` or `ClientIP`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub session_affinity: String,
    /// How long a client keeps its backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// `IPv4`, `IPv6`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_families: Vec<String>,
    /// `Cluster` or `Local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal_traffic_policy: Option<String>,
    /// `PreferClose`, `PreferSameZone`, `PreferSameNode`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<String>,
}

/// A port of an import.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImportPort {
    /// Its name; empty where there is one port and no name for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `TCP`, `UDP`, `SCTP`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// What is spoken there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    /// Its number.
    pub port: i32,
}

/// Where an import comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceImportStatus {
    /// `Present` or `Absent`: whether EndpointSlices are written for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub endpoint_slice_objects: String,
    /// Who exports it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<ClusterStatus>,
    /// Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// A cluster that exports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterStatus {
    /// Its name.
    pub cluster: String,
}
