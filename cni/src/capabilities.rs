//! What a runtime asks for in `runtimeConfig` (CONVENTIONS.md of containernetworking/cni, "Dynamic Plugin specific
//! fields"). containerd writes the keys inside with capitals, podman without; Go reads either.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU16;

use causeway_model::plugin::Capabilities;
use causeway_model::{Bandwidth, PortMapping, PortProtocol, RateLimit};
use serde_json::{Map, Value, json};

use crate::error::Error;

const PORT_MAPPINGS: &str = "runtimeConfig.portMappings";
const BANDWIDTH: &str = "runtimeConfig.bandwidth";
const DNS: &str = "runtimeConfig.dns";
const ANNOTATIONS: &str = "runtimeConfig.io.kubernetes.cri.pod-annotations";
/// The longest burst that a 32-bit count of bytes holds, as the plugin `bandwidth` has it.
const LONGEST_BURST: u64 = 8 * u32::MAX as u64;

/// Reads what we know. What we do not know is not meant for us: a runtime tells every plugin of a chain what any declares.
pub fn read(runtime: Option<&Map<String, Value>>) -> Result<Capabilities, Error> {
    let Some(runtime) = runtime else { return Ok(Capabilities::default()) };
    let value = |key: &str| runtime.get(key).filter(|value| !value.is_null());
    if let Some(device) = value("deviceID").filter(|device| **device != "") {
        return Err(Error::Device { value: device.clone() });
    }
    Ok(Capabilities {
        port_mappings: value("portMappings").map_or(Ok(Vec::new()), port_mappings)?,
        bandwidth: value("bandwidth").map_or(Ok(Bandwidth::default()), bandwidth)?,
        annotations: value("io.kubernetes.cri.pod-annotations").map_or(Ok(BTreeMap::new()), annotations)?,
    })
}

fn port_mappings(value: &Value) -> Result<Vec<PortMapping>, Error> {
    let Value::Array(entries) = value else { return Err(not_a(PORT_MAPPINGS, value, "a list")) };
    let mut mappings = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let read = port_mapping(entry)
            .map_err(|reason| Error::config(PORT_MAPPINGS, format!("entry {index}: {reason}")))?;
        // A runtime names all ports of a container; most are mapped to none of the node.
        let Some(mapping) = read.filter(|mapping| !mappings.contains(mapping)) else { continue };
        if let Some(other) = mappings.iter().find(|other| mapping.overlaps(other)) {
            return Err(Error::config(PORT_MAPPINGS, format!("entry {index}: {mapping} overlaps {other}")));
        }
        mappings.push(mapping);
    }
    Ok(mappings)
}

fn port_mapping(entry: &Value) -> Result<Option<PortMapping>, String> {
    let Value::Object(fields) = entry else { return Err(format!("{entry} is not an object")) };
    let Some(host_port) = port(fields, "hostPort")? else { return Ok(None) };
    let container_port = port(fields, "containerPort")?.ok_or("containerPort is missing or 0")?;
    let protocol = match text(fields, "protocol")?.to_ascii_lowercase().as_str() {
        "" => PortProtocol::Tcp,
        name => {
            PortProtocol::ALL.into_iter().find(|protocol| protocol.as_str() == name).ok_or_else(|| {
                format!(
                    "protocol {name:?} is none of {}",
                    PortProtocol::ALL.map(PortProtocol::as_str).join(", ")
                )
            })?
        }
    };
    let host_ip = match text(fields, "hostIP")? {
        "" => None,
        address => Some(
            address
                .parse::<IpAddr>()
                .ok()
                // From ::1 no packet leaves a node, not even for its own pods.
                .filter(|address| !address.is_multicast() && *address != Ipv6Addr::LOCALHOST)
                .ok_or_else(|| {
                    format!("hostIP {address:?} is no address at which a port can lead to a pod")
                })?,
        ),
    };
    Ok(Some(PortMapping { host_ip, host_port, container_port, protocol }))
}

/// A port; none when it is absent or 0.
fn port(fields: &Map<String, Value>, key: &str) -> Result<Option<NonZeroU16>, String> {
    let Some(value) = field(fields, key) else { return Ok(None) };
    let port = value.as_u64().and_then(|port| u16::try_from(port).ok());
    port.map(NonZeroU16::new).ok_or_else(|| format!("{key} {value} is not a number from 0 to 65535"))
}

fn bandwidth(value: &Value) -> Result<Bandwidth, Error> {
    let Value::Object(fields) = value else { return Err(not_a(BANDWIDTH, value, "an object")) };
    let limit = |rate, burst| limit(fields, rate, burst).map_err(|reason| Error::config(BANDWIDTH, reason));
    Ok(Bandwidth {
        to_pod: limit("ingressRate", "ingressBurst")?,
        from_pod: limit("egressRate", "egressBurst")?,
    })
}

/// Both of rate and burst or neither, as the plugin `bandwidth` wants it.
fn limit(fields: &Map<String, Value>, rate: &str, burst: &str) -> Result<Option<RateLimit>, String> {
    let number = |key: &str| match field(fields, key) {
        None => Ok(0),
        Some(value) => value.as_u64().ok_or_else(|| format!("{key} {value} is not a number of bits")),
    };
    match (number(rate)?, number(burst)?) {
        (0, 0) => Ok(None),
        (0, bits) => Err(format!("{burst} is {bits}, but {rate} is not set")),
        (bits, 0) => Err(format!("{rate} is {bits}, but {burst} is not set")),
        (1..8, _) => Err(format!("{rate}: less than 8 bits a second let nothing through")),
        (_, bits) if bits > LONGEST_BURST => Err(format!("{burst} {bits} is more than {LONGEST_BURST} bits")),
        (rate, burst) => Ok(Some(RateLimit { rate, burst })),
    }
}

fn annotations(value: &Value) -> Result<BTreeMap<String, String>, Error> {
    serde_json::from_value(value.clone()).map_err(|error| Error::config(ANNOTATIONS, error.to_string()))
}

/// What the result shall say of name resolution: what the runtime wants for this pod goes before what the network's configuration
/// has for all.
pub fn dns(
    configured: Option<&Map<String, Value>>,
    runtime: Option<&Map<String, Value>>,
) -> Result<Map<String, Value>, Error> {
    let mut dns = configured.cloned().unwrap_or_default();
    let wanted = match runtime.and_then(|runtime| runtime.get("dns")) {
        None | Some(Value::Null) => return Ok(dns),
        Some(Value::Object(wanted)) => wanted,
        Some(other) => return Err(not_a(DNS, other, "an object")),
    };
    // The capability's names, and those of a result (CNI 1.1.0 §5).
    for (key, name) in [("servers", "nameservers"), ("searches", "search"), ("options", "options")] {
        match field(wanted, key) {
            None => {}
            Some(Value::Array(texts)) if texts.is_empty() => {}
            Some(Value::Array(texts)) if texts.iter().all(Value::is_string) => {
                dns.insert(name.to_owned(), json!(texts));
            }
            Some(other) => {
                return Err(Error::config(DNS, format!("{key}: {other} is not a list of strings")));
            }
        }
    }
    Ok(dns)
}

/// A field by its name in any case; `null` is nothing.
fn field<'a>(fields: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let (_, value) = fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(key))?;
    (!value.is_null()).then_some(value)
}

fn text<'a>(fields: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
    match field(fields, key) {
        None => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("{key} {other} is not a string")),
    }
}

fn not_a(key: &'static str, value: &Value, what: &str) -> Error {
    Error::config(key, format!("{value} is not {what}"))
}

#[cfg(test)]
#[path = "capabilities_tests.rs"]
mod tests;
