use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_model::plugin::{AddressRange, IpamRequest};
use causeway_model::{Family, GATEWAY_V4, GATEWAY_V6, IpNetwork, MacAddr};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::{object, says_something};
use crate::error::Error;

/// The kind of IPAM that is the agent's own.
const OWN: &str = "causeway";

/// The plugin that gives the addresses of a network, unless the agent does.
pub fn delegate(document: &Map<String, Value>) -> Result<Option<&str>, Error> {
    let Some(ipam) = object(document, "ipam")?.filter(|ipam| ipam.values().any(says_something)) else {
        return Ok(None);
    };
    match ipam.get("type") {
        Some(Value::String(kind)) if kind == OWN => Ok(None),
        Some(Value::String(kind)) if kind.is_empty() || kind.contains(['/', '\\', '\0']) => {
            Err(Error::config("ipam.type", format!("{kind:?} is not the name of a plugin")))
        }
        // It would ask itself for ever.
        Some(kind) if document.get("type") == Some(kind) => {
            Err(Error::config("ipam.type", format!("{kind} is this very plugin; the agent's own is {OWN:?}")))
        }
        Some(Value::String(kind)) => Ok(Some(kind)),
        None | Some(Value::Null) => Err(Error::config("ipam.type", format!("is missing; ours is {OWN:?}"))),
        Some(other) => Err(Error::config("ipam.type", format!("{other} is not a string"))),
    }
}

/// What a call asks of addresses: by its network's `ipam`, by capabilities (`ips`, `ipRanges`, `mac`), by CNI_ARGS (`IP`,
/// `MAC`) and by `args.cni`. Where another plugin gives them, it reads what concerns it by itself.
pub fn request(document: &Map<String, Value>, args: &BTreeMap<String, String>) -> Result<IpamRequest, Error> {
    let mac = mac(document, args)?;
    if delegate(document)?.is_some() {
        return Ok(IpamRequest { mac, ..IpamRequest::default() });
    }
    let mut request = IpamRequest { mac, addresses: addresses(document, args)?, ..IpamRequest::default() };
    for (key, value) in object(document, "ipam")?.into_iter().flatten() {
        match key.as_str() {
            "type" => {}
            "ranges" if says_something(value) => request.sets = sets("ipam.ranges", value)?,
            "routes" if says_something(value) => request.routes = Some(routes("ipam.routes", value)?),
            _ if says_something(value) => {
                return Err(Error::Unsupported { key: format!("ipam.{key}"), value: value.clone() });
            }
            _ => {}
        }
    }
    let asked = object(document, "runtimeConfig")?.and_then(|asked| asked.get("ipRanges"));
    if let Some(ranges) = asked.filter(|ranges| says_something(ranges)) {
        // A pod has one address of a family: what the runtime says of one is said instead of what the network does.
        let narrower = sets("runtimeConfig.ipRanges", ranges)?;
        request.sets.retain(|set| narrower.iter().all(|other| family(set) != family(other)));
        request.sets.extend(narrower);
    }
    request.sets.sort_by_key(|set| family(set));
    Ok(request)
}

/// A range in the shape of containernetworking's host-local.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Range {
    subnet: String,
    #[serde(default)]
    range_start: Option<String>,
    #[serde(default)]
    range_end: Option<String>,
    #[serde(default)]
    gateway: Option<String>,
}

/// Sets of ranges, one address of each; no set is empty, and no two are of one family.
fn sets(key: &'static str, value: &Value) -> Result<Vec<Vec<AddressRange>>, Error> {
    let refused = |place: String, why: String| Error::config(key, format!("{place}: {why}"));
    let read =
        Vec::<Vec<Range>>::deserialize(value).map_err(|error| Error::config(key, error.to_string()))?;
    let mut sets: Vec<Vec<AddressRange>> = Vec::new();
    for (number, ranges) in read.iter().enumerate() {
        let mut set: Vec<AddressRange> = Vec::new();
        for (index, range) in ranges.iter().enumerate() {
            let place = || format!("[{number}][{index}] {}", range.subnet);
            let range = address_range(range).map_err(|why| refused(place(), why))?;
            if let Some(first) = set.iter().find(|first| Family::of(first.first) != Family::of(range.first)) {
                let why = format!("is of another family than {} in the same set", first.subnet);
                return Err(refused(place(), why));
            }
            if let Some(other) =
                set.iter().find(|other| range.first <= other.last && other.first <= range.last)
            {
                return Err(refused(place(), format!("overlaps {}-{}", other.first, other.last)));
            }
            set.push(range);
        }
        let place = format!("[{number}]");
        match family(&set) {
            None => return Err(refused(place, "is empty".to_owned())),
            Some(one) if sets.iter().any(|other| family(other) == Some(one)) => {
                return Err(refused(
                    place,
                    format!("is the second set of {one}, and a pod has one address of it"),
                ));
            }
            Some(_) => sets.push(set),
        }
    }
    Ok(sets)
}

fn family(set: &[AddressRange]) -> Option<Family> {
    set.first().map(|range| Family::of(range.first))
}

fn address_range(range: &Range) -> Result<AddressRange, String> {
    let subnet: IpNetwork = match range.subnet.contains('/') {
        true => range.subnet.parse().map_err(|error| format!("{error}"))?,
        false => return Err("is not ADDRESS/LENGTH".to_owned()),
    };
    let bits = Family::of(subnet.ip()).host_length();
    if subnet.ip() != subnet.network() {
        return Err(format!("has host bits set; the prefix is {}/{}", subnet.network(), subnet.prefix()));
    }
    if subnet.prefix() > bits - 2 {
        return Err(format!("is too small: at least a /{} has room for pods", bits - 2));
    }
    let inside = |name: &str, text: &Option<String>| match text.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => match text.parse::<IpAddr>() {
            Ok(address) if subnet.contains(address) => Ok(Some(address)),
            Ok(address) => Err(format!("{name} {address} is outside of it")),
            Err(_) => Err(format!("{name} {text:?} is not an address")),
        },
    };
    // Of IPv6 the last address is one like any other, and the network's is that of its routers (RFC 4291 §2.6.1).
    let (first, last) = match (subnet.network(), subnet.broadcast()) {
        (IpAddr::V4(network), IpAddr::V4(broadcast)) => (
            IpAddr::from((u32::from(network) + 1).to_be_bytes()),
            (u32::from(broadcast) - 1).to_be_bytes().into(),
        ),
        (IpAddr::V6(network), last) => ((u128::from(network) + 1).to_be_bytes().into(), last),
        (network, last) => (network, last),
    };
    let first = inside("rangeStart", &range.range_start)?.unwrap_or(first);
    let last = inside("rangeEnd", &range.range_end)?.unwrap_or(last);
    if first > last {
        return Err(format!("rangeStart {first} comes after rangeEnd {last}"));
    }
    Ok(AddressRange { subnet, first, last, gateway: inside("gateway", &range.gateway)? })
}

/// Destinations; all of them are reached over our gateway, so that none but it can be named.
pub fn routes(key: &'static str, value: &Value) -> Result<Vec<IpNetwork>, Error> {
    let refused = |why: String| Error::config(key, why);
    let list = value.as_array().ok_or_else(|| refused(format!("{value} is not a list")))?;
    let mut routes = Vec::new();
    for route in list {
        let route = route.as_object().ok_or_else(|| refused(format!("{route} is not an object")))?;
        let dst = route.get("dst").and_then(Value::as_str).unwrap_or_default();
        let to: IpNetwork = match dst.contains('/') {
            true => dst.parse().map_err(|error| refused(format!("{dst}: {error}")))?,
            false => return Err(refused(format!("dst {dst:?} is not ADDRESS/LENGTH"))),
        };
        let gateway = if to.is_ipv4() { IpAddr::V4(GATEWAY_V4) } else { IpAddr::V6(GATEWAY_V6) };
        for (name, value) in route.iter().filter(|(name, value)| *name != "dst" && says_something(value)) {
            let ours = name == "gw" && value.as_str().and_then(|gw| gw.parse().ok()) == Some(gateway);
            if !ours {
                return Err(refused(format!(
                    "{dst}: {name} {value}: pods have routes over {gateway} and no others"
                )));
            }
        }
        routes.push(IpNetwork::new(to.network(), to.prefix()).unwrap_or(to));
    }
    routes.sort();
    routes.dedup();
    Ok(routes)
}

/// What stands in a place where several values may be wished for, and who says so.
type Wishes<T> = Vec<(&'static str, T)>;

/// Static addresses, at most one of each family; who says the same twice says it once.
fn addresses(document: &Map<String, Value>, args: &BTreeMap<String, String>) -> Result<Vec<IpAddr>, Error> {
    let mut wishes: Wishes<String> = Vec::new();
    let listed = [("runtimeConfig.ips", asked(document, "ips")?), ("args.cni.ips", told(document, "ips")?)];
    for (place, value) in listed {
        let Some(value) = value else { continue };
        let list =
            Vec::<String>::deserialize(value).map_err(|error| Error::config(place, error.to_string()))?;
        wishes.extend(list.into_iter().map(|text| (place, text)));
    }
    let given = args.get("IP").into_iter().flat_map(|text| text.split(','));
    wishes.extend(given.map(|text| ("CNI_ARGS", text.trim().to_owned())));
    let mut found: Wishes<IpAddr> = Vec::new();
    for (place, text) in wishes.into_iter().filter(|(_, text)| !text.is_empty()) {
        // With or without the length of a subnet, which a pod of ours does not see.
        let address = text.parse().map(|network: IpNetwork| network.ip());
        let address = address.map_err(|_| wrong(place, format!("{text:?} is not an address")))?;
        match found.iter().find(|(_, other)| Family::of(*other) == Family::of(address)) {
            None => found.push((place, address)),
            Some((_, other)) if *other == address => {}
            Some((theirs, other)) => {
                let family = Family::of(address);
                let why = format!("{address} beside {other} of {theirs}: a pod has one {family} address");
                return Err(wrong(place, why));
            }
        }
    }
    let mut addresses: Vec<_> = found.into_iter().map(|(_, address)| address).collect();
    addresses.sort();
    Ok(addresses)
}

fn mac(document: &Map<String, Value>, args: &BTreeMap<String, String>) -> Result<Option<MacAddr>, Error> {
    let mut found: Option<(&'static str, MacAddr)> = None;
    let text = |value: Option<&Value>, place| match value {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(wrong(place, format!("{other} is not a string"))),
    };
    for (place, wish) in [
        ("runtimeConfig.mac", text(asked(document, "mac")?, "runtimeConfig.mac")?),
        ("args.cni.mac", text(told(document, "mac")?, "args.cni.mac")?),
        ("CNI_ARGS", args.get("MAC").cloned()),
    ] {
        let Some(wish) = wish.filter(|wish| !wish.is_empty()) else { continue };
        let mac = wish.parse().map_err(|_| wrong(place, format!("{wish:?} is not a hardware address")))?;
        match found {
            Some((theirs, other)) if other != mac => {
                return Err(wrong(place, format!("{mac} contradicts {other} of {theirs}")));
            }
            _ => found = Some((place, mac)),
        }
    }
    Ok(found.map(|(_, mac)| mac))
}

/// A static wish that cannot be.
fn wrong(place: &'static str, why: String) -> Error {
    // What the environment says has a code of its own.
    if place == "CNI_ARGS" {
        Error::Environment(vec![format!("{place}: {why}")])
    } else {
        Error::config(place, why)
    }
}

/// A capability's value.
fn asked<'a>(document: &'a Map<String, Value>, key: &str) -> Result<Option<&'a Value>, Error> {
    let asked = object(document, "runtimeConfig")?.and_then(|asked| asked.get(key));
    Ok(asked.filter(|value| says_something(value)))
}

/// A value under `args.cni` (containernetworking/cni, CONVENTIONS.md).
fn told<'a>(document: &'a Map<String, Value>, key: &str) -> Result<Option<&'a Value>, Error> {
    let told = object(document, "args")?.and_then(|args| args.get("cni")).and_then(|cni| cni.get(key));
    Ok(told.filter(|value| says_something(value)))
}

#[cfg(test)]
#[path = "ipam_tests.rs"]
mod tests;
