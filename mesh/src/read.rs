//! The door through which objects come: what is wrong with one is said by field, and such an object grants nothing.

use std::fmt;
use std::sync::Arc;

use causeway_model::{Family, PortProtocol};
use k8s_openapi::api::core::v1;
use k8s_openapi::api::discovery::v1::{self as discovery, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use crate::api::{self, ServiceExport, ServiceImport};
use crate::facts::{
    Endpoint, Export, Port, Service, ServiceKind, ServiceName, Slice, SlicePort, State, TrafficPolicy,
};
use crate::prefer::{BadWish, Wish};

/// The label of an EndpointSlice that says whose it is.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// How long a client keeps its backend where a Service does not say: `core/v1` fills this in.
pub const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// What is wrong with a part of an object.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "each is its sentence")]
pub enum Wrong {
    #[error("{0}")]
    Unreadable(String),
    #[error("unknown apiVersion {0:?}; known is {known:?}", known = api::API_VERSION)]
    Version(String),
    #[error("unknown {what} {value:?}")]
    Unknown { what: &'static str, value: String },
    #[error("{0} is not from 1 to 65535")]
    NoPort(i32),
    #[error("{0} is not from 1 to 86400 seconds")]
    NoTimeout(i32),
    #[error("{0:?} is no address of this family")]
    NoAddress(String),
    #[error("{0:?} is no DNS label")]
    NoLabel(String),
    #[error("{0} is said twice")]
    Twice(String),
    #[error("ignored: {0}")]
    Wish(#[from] BadWish),
}

/// What is wrong with an object, and where: `spec.ports[1].port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field.
    pub at: String,
    /// What is wrong with it.
    pub wrong: Wrong,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.wrong)
    }
}

/// An object that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Read<T> {
    /// Whose name it is.
    pub name: ServiceName,
    /// What it says; `None` if it cannot be read.
    pub object: Option<T>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// An object of the Multi-Cluster Services API.
#[derive(Clone, Debug, PartialEq)]
pub enum Written {
    /// A ServiceExport.
    Export(Read<Export>),
    /// A ServiceImport. Whatever it says of the service is ours to say: read is the importer's choice of backends.
    Import(Read<Wish>),
}

/// Something that is no object of the API.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoObject {
    /// Its kind is not known here.
    #[error("{kind} of {api_version} is no kind that is known here")]
    Kind {
        /// Its group and version.
        api_version: String,
        /// Its kind.
        kind: String,
    },
    /// It has no name.
    #[error("a {0} without metadata.name")]
    Name(&'static str),
}

/// Reads an object of the group `multicluster.x-k8s.io`.
pub fn read(document: &Value) -> Result<Written, NoObject> {
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
    let api_version = text(document, "apiVersion").unwrap_or_default();
    let kind = text(document, "kind").unwrap_or_default();
    let known = [api::SERVICE_EXPORT, api::SERVICE_IMPORT].into_iter().find(|known| *known == kind);
    let (Some(kind), true) = (known, api_version.split('/').next() == Some(api::GROUP)) else {
        return Err(NoObject::Kind { api_version, kind });
    };
    let metadata = document.get("metadata").unwrap_or(&Value::Null);
    let name = text(metadata, "name").filter(|name| !name.is_empty()).ok_or(NoObject::Name(kind))?;
    let namespace = text(metadata, "namespace").unwrap_or_else(|| "default".to_owned());
    let name = ServiceName { namespace, name };
    if api_version != api::API_VERSION {
        let problems = vec![Problem { at: "apiVersion".to_owned(), wrong: Wrong::Version(api_version) }];
        return Ok(match kind {
            api::SERVICE_EXPORT => Written::Export(Read { name, object: None, problems }),
            _ => Written::Import(Read { name, object: None, problems }),
        });
    }
    Ok(match kind {
        api::SERVICE_EXPORT => Written::Export(read_as(name, document, export)),
        _ => Written::Import(read_as(name, document, import)),
    })
}

fn read_as<W: DeserializeOwned, T>(
    name: ServiceName,
    document: &Value,
    of: fn(W) -> (T, Vec<Problem>),
) -> Read<T> {
    match serde_path_to_error::deserialize::<_, W>(document) {
        Ok(written) => {
            let (object, problems) = of(written);
            Read { name, object: Some(object), problems }
        }
        Err(error) => {
            let at = error.path().to_string();
            let wrong = Wrong::Unreadable(error.inner().to_string());
            Read { name, object: None, problems: vec![Problem { at, wrong }] }
        }
    }
}

fn export(written: ServiceExport) -> (Export, Vec<Problem>) {
    let ServiceExport { metadata, spec, .. } = written;
    let (wish, problems) = Wish::read("spec.exportedAnnotations", &spec.exported_annotations);
    let created = metadata.creation_timestamp;
    let (labels, annotations) = (spec.exported_labels, spec.exported_annotations);
    (Export { created, labels, annotations, wish }, problems)
}

fn import(written: ServiceImport) -> (Wish, Vec<Problem>) {
    Wish::read("metadata.annotations", &written.metadata.annotations.unwrap_or_default())
}

fn name_of(metadata: &ObjectMeta) -> ServiceName {
    let namespace = metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
    ServiceName { namespace, name: metadata.name.clone().unwrap_or_default() }
}

/// Parts of an object, and what was found wrong with them.
#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn take<T>(&mut self, at: impl Into<String>, part: Result<T, Wrong>) -> Option<T> {
        part.map_err(|wrong| self.0.push(Problem { at: at.into(), wrong })).ok()
    }

    /// The object, unless something is wrong with it.
    fn judge<T>(self, name: ServiceName, object: T) -> Read<T> {
        let object = self.0.is_empty().then_some(object);
        Read { name, object, problems: self.0 }
    }
}

/// Reads a Service.
pub fn service(written: &v1::Service) -> Read<Service> {
    let mut problems = Problems::default();
    let spec = written.spec.clone().unwrap_or_default();
    let kind = kind(&spec);
    let kind = problems.take("spec.type", kind).unwrap_or(ServiceKind::External);
    let mut ports: Vec<Port> = Vec::new();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let at = format!("spec.ports[{index}]");
        let number = problems.take(format!("{at}.port"), number(port.port));
        let protocol = problems.take(format!("{at}.protocol"), protocol(port.protocol.as_deref()));
        let (Some(number), Some(protocol)) = (number, protocol) else { continue };
        let name = port.name.clone().unwrap_or_default();
        if ports
            .iter()
            .any(|other| other.name == name || (other.protocol, other.number) == (protocol, number))
        {
            problems.take::<()>(at, Err(Wrong::Twice(format!("{name}/{protocol}/{number}"))));
            continue;
        }
        ports.push(Port { name, protocol, number, app_protocol: port.app_protocol.clone() });
    }
    let affinity = problems.take("spec.sessionAffinity", affinity(&spec)).flatten();
    let policy = traffic_policy(spec.internal_traffic_policy.as_deref());
    let traffic_policy =
        problems.take("spec.internalTrafficPolicy", policy).unwrap_or(TrafficPolicy::Cluster);
    let families = problems.take("spec.ipFamilies", families(&spec)).unwrap_or_default();
    let annotations = written.metadata.annotations.clone().unwrap_or_default();
    let (wish, ignored) = Wish::read("metadata.annotations", &annotations);
    let distribution = spec.traffic_distribution.clone().filter(|text| !text.is_empty());
    let service = Service { kind, families, ports, affinity, traffic_policy, distribution, wish };
    let mut read = problems.judge(name_of(&written.metadata), service);
    read.problems.extend(ignored);
    read
}

fn kind(spec: &v1::ServiceSpec) -> Result<ServiceKind, Wrong> {
    match spec.type_.as_deref() {
        Some("ExternalName") => Ok(ServiceKind::External),
        None | Some("ClusterIP") if spec.cluster_ip.as_deref() == Some("None") => Ok(ServiceKind::Headless),
        None | Some("ClusterIP" | "NodePort" | "LoadBalancer") => Ok(ServiceKind::Addressed),
        Some(other) => Err(Wrong::Unknown { what: "type", value: other.to_owned() }),
    }
}

fn number(written: i32) -> Result<u16, Wrong> {
    u16::try_from(written).ok().filter(|number| *number > 0).ok_or(Wrong::NoPort(written))
}

fn protocol(written: Option<&str>) -> Result<PortProtocol, Wrong> {
    match written.unwrap_or("TCP") {
        "TCP" => Ok(PortProtocol::Tcp),
        "UDP" => Ok(PortProtocol::Udp),
        "SCTP" => Ok(PortProtocol::Sctp),
        other => Err(Wrong::Unknown { what: "protocol", value: other.to_owned() }),
    }
}

fn affinity(spec: &v1::ServiceSpec) -> Result<Option<u32>, Wrong> {
    match spec.session_affinity.as_deref() {
        None | Some("None") => Ok(None),
        Some("ClientIP") => {
            let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
            let Some(seconds) = config.and_then(|client| client.timeout_seconds) else {
                return Ok(Some(DEFAULT_AFFINITY_SECONDS));
            };
            let valid = u32::try_from(seconds).ok().filter(|seconds| (1..=86_400).contains(seconds));
            valid.map(Some).ok_or(Wrong::NoTimeout(seconds))
        }
        Some(other) => Err(Wrong::Unknown { what: "affinity", value: other.to_owned() }),
    }
}

fn traffic_policy(written: Option<&str>) -> Result<TrafficPolicy, Wrong> {
    match written {
        None | Some("Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => Err(Wrong::Unknown { what: "policy", value: other.to_owned() }),
    }
}

/// As the Service says, or as its addresses are.
fn families(spec: &v1::ServiceSpec) -> Result<Vec<Family>, Wrong> {
    let mut families = Vec::new();
    let add = |families: &mut Vec<Family>, family| {
        if !families.contains(&family) {
            families.push(family);
        }
    };
    for written in spec.ip_families.iter().flatten() {
        add(&mut families, family(written)?);
    }
    if families.is_empty() {
        let addresses = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        for address in addresses.filter(|text| !text.is_empty() && *text != "None") {
            let address = address.parse().map_err(|_| Wrong::NoAddress(address.clone()))?;
            add(&mut families, Family::of(address));
        }
    }
    Ok(families)
}

fn family(written: &str) -> Result<Family, Wrong> {
    match written {
        "IPv4" => Ok(Family::V4),
        "IPv6" => Ok(Family::V6),
        other => Err(Wrong::Unknown { what: "family", value: other.to_owned() }),
    }
}

/// Reads an EndpointSlice; `None` for one that is no Service's, or whose addresses are names.
pub fn slice(written: &EndpointSlice) -> Option<Read<Slice>> {
    let own = name_of(&written.metadata);
    let name = written.metadata.labels.as_ref()?.get(SERVICE_LABEL)?.clone();
    if written.address_type == "FQDN" {
        return None;
    }
    let mut problems = Problems::default();
    let family = problems.take("addressType", family(&written.address_type)).unwrap_or(Family::V4);
    let mut ports = Vec::new();
    for (index, port) in written.ports.iter().flatten().enumerate() {
        // One without a number is no port that a service's connections can be sent to.
        let Some(written) = port.port else { continue };
        let at = format!("ports[{index}]");
        let number = problems.take(format!("{at}.port"), number(written));
        let protocol = problems.take(format!("{at}.protocol"), protocol(port.protocol.as_deref()));
        if let (Some(number), Some(protocol)) = (number, protocol) {
            ports.push(SlicePort { name: port.name.clone().unwrap_or_default(), protocol, number });
        }
    }
    let mut endpoints = Vec::new();
    for (index, written) in written.endpoints.iter().enumerate() {
        let read = endpoint(written, family);
        endpoints.extend(problems.take(format!("endpoints[{index}]"), read));
    }
    let service = ServiceName { namespace: own.namespace.clone(), name };
    Some(problems.judge(own, Slice { service, family, ports, endpoints }))
}

fn endpoint(written: &discovery::Endpoint, family: Family) -> Result<Endpoint, Wrong> {
    let address = |text: &String| {
        let address = text.parse().ok().filter(|address| Family::of(*address) == family);
        address.ok_or_else(|| Wrong::NoAddress(text.clone()))
    };
    let hostname = match written.hostname.as_deref().filter(|name| !name.is_empty()) {
        Some(name) if !is_label(name) => return Err(Wrong::NoLabel(name.to_owned())),
        name => name.map(Arc::from),
    };
    let conditions = written.conditions.clone().unwrap_or_default();
    // What is not said of readiness is ready (`discovery/v1`).
    let state = match (conditions.ready.unwrap_or(true), conditions.serving.unwrap_or(false)) {
        (true, _) => State::Ready,
        (false, true) if conditions.terminating == Some(true) => State::Draining,
        (false, _) => State::Down,
    };
    Ok(Endpoint {
        addresses: written.addresses.iter().map(address).collect::<Result<_, _>>()?,
        hostname,
        state,
    })
}

/// RFC 1123's label.
fn is_label(text: &str) -> bool {
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    text.len() <= 63 && text.bytes().all(inside) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn export_of(document: &Value) -> Read<Export> {
        match read(document) {
            Ok(Written::Export(read)) => read,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_export_is_read() {
        let read = export_of(&json!({
            "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
            "metadata": {"name": "web", "namespace": "shop", "creationTimestamp": "2026-03-01T08:01:00Z"},
            "spec": {"exportedLabels": {"a": "b"}, "exportedAnnotations": {"causeway.dev/affinity": "local"}},
        }));
        assert_eq!(read.name.to_string(), "shop/web");
        assert!(read.problems.is_empty());
        let export = read.object.unwrap();
        assert_eq!(export.wish.affinity, Some(crate::prefer::Affinity::Local));
        assert!(export.created.is_some());
    }

    #[test]
    fn what_is_wrong_is_said_by_field_and_exports_nothing() {
        let export = |version: &str, spec: Value| {
            let metadata = json!({"name": "web"});
            export_of(
                &json!({"apiVersion": version, "kind": "ServiceExport", "metadata": metadata, "spec": spec}),
            )
        };
        for (spec, why) in [
            (json!({"exportedLabel": {}}), "spec.exportedLabel: unknown field `exportedLabel`, expected "),
            (json!({"exportedLabels": {"a": 1}}), "spec.exportedLabels.a: invalid type: integer `1`"),
            (json!("x"), "spec: invalid type: string"),
        ] {
            let read = export(api::API_VERSION, spec);
            assert!(read.object.is_none());
            assert!(read.problems[0].to_string().starts_with(why), "{}", read.problems[0]);
        }
        let read = export("multicluster.x-k8s.io/v1alpha1", json!({}));
        assert!(read.object.is_none());
        assert_eq!(
            read.problems[0].to_string(),
            r#"apiVersion: unknown apiVersion "multicluster.x-k8s.io/v1alpha1"; known is "multicluster.x-k8s.io/v1beta1""#
        );
        let bad = json!({"exportedAnnotations": {"causeway.dev/prefer": "lyon"}});
        let read = export(api::API_VERSION, bad);
        assert_eq!(read.object.map(|export| export.wish), Some(Wish::default()), "only the wish is ignored");
        assert!(
            read.problems[0]
                .to_string()
                .starts_with("spec.exportedAnnotations[causeway.dev/prefer]: ignored: \"lyon\" is no")
        );
        assert_eq!(
            super::read(&json!({"apiVersion": "net/v1", "kind": "ServiceExport"})).map_err(|e| e.to_string()),
            Err("ServiceExport of net/v1 is no kind that is known here".to_owned())
        );
    }

    #[test]
    fn a_service_that_cannot_be_read_says_why() {
        let read = |spec: Value| {
            let document = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
            let read = service(&serde_json::from_value(document).unwrap());
            assert_eq!(read.object.is_none(), !read.problems.is_empty());
            read.problems.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(read(json!({"ports": [{"port": 80}]})).is_empty());
        for (spec, why) in [
            (json!({"ports": [{"port": 0}]}), "spec.ports[0].port: 0 is not from 1 to 65535"),
            (
                json!({"ports": [{"port": 1, "protocol": "X"}]}),
                r#"spec.ports[0].protocol: unknown protocol "X""#,
            ),
            (json!({"ports": [{"port": 1}, {"port": 2}]}), "spec.ports[1]: /tcp/2 is said twice"),
            (json!({"type": "X"}), r#"spec.type: unknown type "X""#),
            (json!({"sessionAffinity": "X"}), r#"spec.sessionAffinity: unknown affinity "X""#),
            (json!({"ipFamilies": ["IPv5"]}), r#"spec.ipFamilies: unknown family "IPv5""#),
            (json!({"clusterIP": "x"}), r#"spec.ipFamilies: "x" is no address of this family"#),
            (json!({"internalTrafficPolicy": "X"}), r#"spec.internalTrafficPolicy: unknown policy "X""#),
        ] {
            assert_eq!(read(spec), [why]);
        }
    }

    #[test]
    fn a_slice_is_ready_unless_it_says_otherwise() {
        let states = |conditions: Value| {
            let read = slice(
                &serde_json::from_value(json!({
                    "metadata": {"name": "web-1", "namespace": "shop", "labels": {SERVICE_LABEL: "web"}},
                    "addressType": "IPv4", "ports": [{"port": 80}],
                    "endpoints": [{"addresses": ["10.0.0.1"], "conditions": conditions}],
                }))
                .unwrap(),
            );
            read.unwrap().object.unwrap().endpoints[0].state
        };
        assert_eq!(states(json!({})), State::Ready);
        assert_eq!(states(json!({"ready": true, "serving": false})), State::Ready);
        assert_eq!(states(json!({"ready": false, "serving": true, "terminating": true})), State::Draining);
        assert_eq!(states(json!({"ready": false, "serving": true})), State::Down);
        assert_eq!(states(json!({"ready": false})), State::Down);
    }
}
