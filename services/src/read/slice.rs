//! An EndpointSlice (`discovery.k8s.io/v1`).

use std::net::IpAddr;

use causeway_model::Family;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use serde_json::Value;

use super::{Meta, Problems, SERVICE_NAME, Wrong, parts};
use crate::objects::{Slice, SliceEndpoint, SlicePort};

pub(super) fn read(meta: &Meta<'_>, document: &Value, problems: &mut Problems) -> Option<Slice> {
    let service = meta.label(SERVICE_NAME).filter(|name| !name.is_empty());
    // One that belongs to no service, or to another proxy's, is nobody's here.
    let service = service.filter(|_| !meta.is_left())?.to_owned();
    let written: EndpointSlice = problems.typed("", document)?;
    let family = match written.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        "FQDN" => return problems.fatal("addressType", Wrong::NotSupported("FQDN")),
        other => {
            let value = other.to_owned();
            return problems.fatal("addressType", Wrong::Unknown { what: "type", value });
        }
    };
    let ports = written.ports.unwrap_or_default().into_iter().enumerate();
    let ports = ports.filter_map(|(index, written)| port(index, written, problems)).collect();
    let endpoints = written.endpoints.into_iter().enumerate();
    let endpoints =
        endpoints.filter_map(|(index, written)| endpoint(index, written, family, problems)).collect();
    Some(Slice { service, family, ports, endpoints })
}

fn port(index: usize, written: EndpointPort, problems: &mut Problems) -> Option<SlicePort> {
    let at = |field: &str| format!("ports[{index}].{field}");
    let protocol = problems.take(at("protocol"), parts::protocol(written.protocol.as_deref()));
    let number = written.port.ok_or(Wrong::NotSupported("every port"));
    let number = problems.take(at("port"), number.and_then(parts::port));
    Some(SlicePort { name: written.name.unwrap_or_default(), protocol: protocol?, port: number? })
}

fn endpoint(
    index: usize,
    written: Endpoint,
    family: Family,
    problems: &mut Problems,
) -> Option<SliceEndpoint> {
    let at = format!("endpoints[{index}].addresses[0]");
    let address = written.addresses.first().ok_or(Wrong::Missing);
    let address = address.and_then(|written| parts::address(written)).and_then(parts::somewhere);
    let address = problems.take(at, address.and_then(|address| of_family(address, family)))?;
    let conditions = written.conditions.unwrap_or_default();
    let hints = written.hints.unwrap_or_default();
    let zones = hints.for_zones.unwrap_or_default().into_iter();
    let nodes = hints.for_nodes.unwrap_or_default().into_iter();
    Some(SliceEndpoint {
        address,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        weight: 1,
        node: written.node_name,
        for_zones: zones.map(|zone| zone.name).collect(),
        for_nodes: nodes.map(|node| node.name).collect(),
    })
}

fn of_family(address: IpAddr, family: Family) -> Result<IpAddr, Wrong> {
    if Family::of(address) == family { Ok(address) } else { Err(Wrong::OtherFamily { address, family }) }
}
