use causeway_model::plugin::Remembered;
use causeway_model::{Family, IpNetwork};
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::version::SpecVersion;

/// Makes a result of any published version one of the version in use: what a chain reports is told in one shape. The
/// lists are lists afterwards, and every address belongs to an interface that is there or to none.
pub fn in_shape_of(
    version: SpecVersion,
    mut previous: Map<String, Value>,
) -> Result<Map<String, Value>, Error> {
    take_up_0_2_0(&mut previous)?;
    for key in ["interfaces", "ips", "routes"] {
        match previous.get(key) {
            None | Some(Value::Array(_)) => {}
            Some(Value::Null) => drop(previous.remove(key)),
            Some(other) => return Err(wrong(format!("{key}: {other} is not a list"))),
        }
    }
    if let Some(dns) = previous.get("dns").filter(|dns| !dns.is_null() && !dns.is_object()) {
        return Err(wrong(format!("dns: {dns} is not an object")));
    }
    let interfaces = list(&previous, "interfaces").count();
    if let Some(Value::Array(ips)) = previous.get_mut("ips") {
        for ip in ips {
            let Value::Object(ip) = ip else { return Err(wrong(format!("ips: {ip} is not an object"))) };
            // One that points behind the end would become ours as soon as ours is added.
            if let Some(index) = index_of(ip)?.filter(|index| *index >= interfaces) {
                let text = format!("ips: interface {index} of {interfaces} interfaces");
                return Err(wrong(text));
            }
            if version >= SpecVersion::V1_0_0 {
                ip.remove("version");
            } else {
                let family = match Family::of(address_of(ip)?.ip()) {
                    Family::V4 => "4",
                    Family::V6 => "6",
                };
                ip.insert("version".to_owned(), family.into());
            }
        }
    }
    previous.insert("cniVersion".to_owned(), version.as_str().into());
    Ok(previous)
}

/// What a result says of a pod's interface.
pub fn of_interface(previous: &Map<String, Value>, interface: &str) -> Result<Remembered, Error> {
    let previous = in_shape_of(SpecVersion::NEWEST, previous.clone())?;
    let of_pod = |link: &Value| {
        link["name"] == interface && link["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty())
    };
    let index = list(&previous, "interfaces").position(of_pod);
    let index = index.ok_or_else(|| wrong(format!("interfaces: it has no {interface} of a pod")))?;
    let link = list(&previous, "interfaces").nth(index).cloned().unwrap_or_default();
    let mac = match link["mac"].as_str().filter(|mac| !mac.is_empty()) {
        None => None,
        Some(mac) => Some(mac.parse().map_err(|_| wrong(format!("interfaces: {mac:?} is not a MAC")))?),
    };
    let mtu = link["mtu"].as_u64().filter(|mtu| *mtu > 0).and_then(|mtu| u32::try_from(mtu).ok());
    let mut addresses = Vec::new();
    for ip in list(&previous, "ips").filter_map(Value::as_object) {
        if index_of(ip)? == Some(index) {
            addresses.push(address_of(ip)?);
        }
    }
    Ok(Remembered { mac, mtu, addresses })
}

/// Results of 0.2.0 and before have an `ip4` and an `ip6` with routes of their own, and no interfaces.
fn take_up_0_2_0(previous: &mut Map<String, Value>) -> Result<(), Error> {
    for key in ["ip4", "ip6"] {
        let Some(old) = previous.remove(key).filter(|old| !old.is_null()) else { continue };
        let Value::Object(mut old) = old else { return Err(wrong(format!("{key}: {old} is not an object"))) };
        let mut ip = json!({"address": old.remove("ip")});
        if let Some(gateway) = old.remove("gateway") {
            ip["gateway"] = gateway;
        }
        push(previous, "ips", ip)?;
        if let Some(Value::Array(routes)) = old.remove("routes") {
            routes.into_iter().try_for_each(|route| push(previous, "routes", route))?;
        }
    }
    Ok(())
}

fn push(previous: &mut Map<String, Value>, key: &str, value: Value) -> Result<(), Error> {
    match previous.entry(key).or_insert_with(|| json!([])) {
        Value::Array(list) => list.push(value),
        other => return Err(wrong(format!("{key}: {other} is not a list"))),
    }
    Ok(())
}

fn list<'a>(previous: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = &'a Value> {
    previous.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// The interface an address belongs to; 0.3.1 and 0.4.0 may leave it out.
fn index_of(ip: &Map<String, Value>) -> Result<Option<usize>, Error> {
    match ip.get("interface") {
        None | Some(Value::Null) => Ok(None),
        Some(index) => {
            let number = index.as_u64().and_then(|number| usize::try_from(number).ok());
            number.map(Some).ok_or_else(|| wrong(format!("ips: interface {index} is no index")))
        }
    }
}

fn address_of(ip: &Map<String, Value>) -> Result<IpNetwork, Error> {
    let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
    // Without a length it would be read as a host's; the specification wants one.
    let parsed = text.contains('/').then(|| text.parse::<IpNetwork>().ok()).flatten();
    parsed.ok_or_else(|| {
        let shown = ip.get("address").cloned().unwrap_or_default();
        wrong(format!("ips: address {shown} is not an address with a length"))
    })
}

fn wrong(reason: String) -> Error {
    Error::config("prevResult", reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        let Value::Object(object) = value else { panic!("{value} is not an object") };
        object
    }

    fn result() -> Map<String, Value> {
        object(json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "cwp0", "mac": "02:ca:5e:00:00:01"},
                {"name": "eth0", "mac": "06:ca:0a:46:01:03", "mtu": 1450, "sandbox": "/run/netns/c1"},
                {"name": "net1", "mac": "06:ca:0a:46:01:04", "sandbox": "/run/netns/c1"}
            ],
            "ips": [
                {"address": "10.70.1.3/32", "interface": 1},
                {"address": "10.70.1.9/32", "interface": 2},
                {"address": "fd70:0:0:1::3/128", "interface": 1},
                {"address": "192.0.2.1/24"}
            ]
        }))
    }

    #[test]
    fn an_interface_is_told_by_its_index_whatever_the_version() {
        for version in SpecVersion::ALL {
            let told = of_interface(&in_shape_of(version, result()).unwrap(), "eth0").unwrap();
            let addresses: Vec<_> = told.addresses.iter().map(ToString::to_string).collect();
            assert_eq!(addresses, ["10.70.1.3/32", "fd70:0:0:1::3/128"]);
            assert_eq!(told.mac.unwrap().to_string(), "06:ca:0a:46:01:03");
            assert_eq!(told.mtu, Some(1450));
        }
    }

    #[test]
    fn an_interface_of_the_host_or_of_nobody_is_none_of_the_pod() {
        for stranger in ["cwp0", "eth9", ""] {
            let failure = of_interface(&result(), stranger).unwrap_err().failure();
            assert_eq!(failure.code, 7);
            assert!(failure.msg.contains("prevResult") && failure.msg.contains(stranger), "{}", failure.msg);
        }
    }

    #[test]
    fn results_of_0_2_0_are_understood() {
        let old = object(json!({
            "cniVersion": "0.2.0",
            "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
            "ip6": {"ip": "fd00::2/64"},
            "dns": {"nameservers": ["10.0.0.1"]}
        }));
        let expected = json!({
            "cniVersion": "0.4.0",
            "ips": [
                {"address": "10.0.0.2/24", "gateway": "10.0.0.1", "version": "4"},
                {"address": "fd00::2/64", "version": "6"}
            ],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dns": {"nameservers": ["10.0.0.1"]}
        });
        assert_eq!(Value::Object(in_shape_of(SpecVersion::V0_4_0, old).unwrap()), expected);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (previous, word) in [
            (json!({"ips": [{"address": "10.0.0.2/24", "interface": 0}]}), "interface 0 of 0"),
            (json!({"ips": [{"address": "10.0.0.2/24", "interface": -1}]}), "interface -1"),
            (json!({"ips": ["10.0.0.2/24"]}), "10.0.0.2/24"),
            (json!({"interfaces": {}}), "interfaces"),
            (json!({"ip4": 7}), "ip4"),
        ] {
            let failure = in_shape_of(SpecVersion::NEWEST, object(previous)).unwrap_err().failure();
            assert_eq!(failure.code, 7);
            assert!(failure.msg.contains("prevResult") && failure.msg.contains(word), "{}", failure.msg);
        }
        for bad in ["10.0.0.2", "x/24", "", "10.0.0.2/33"] {
            let previous = object(json!({"ips": [{"address": bad}]}));
            let failure = in_shape_of(SpecVersion::V0_4_0, previous).unwrap_err().failure();
            assert!(failure.msg.contains("address"), "{}", failure.msg);
        }
    }

    #[test]
    fn families_need_no_telling_from_1_0_0_on() {
        let ips = json!({"ips": [{"version": "4", "address": "10.0.0.2/24"}]});
        let now = in_shape_of(SpecVersion::V1_0_0, object(ips)).unwrap();
        assert_eq!(now["ips"], json!([{"address": "10.0.0.2/24"}]));
    }
}
