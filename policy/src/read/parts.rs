//! The parts that both kinds of policies are made of.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use causeway_model::PortProtocol;
use ipnetwork::IpNetwork;
use k8s_openapi::api::networking::v1::IPBlock;
use k8s_openapi::apimachinery::pkg::apis::meta::v1;

use super::{Problems, Wrong};
use crate::policy::Block;
use crate::selector::{LabelSelector, Requirement};

/// A label selector; an empty one chooses everything.
pub(super) fn selector(
    at: &str,
    written: &v1::LabelSelector,
    problems: &mut Problems,
) -> Option<LabelSelector> {
    let mut requirements = Vec::new();
    let mut whole = true;
    for (key, value) in written.match_labels.iter().flatten() {
        let is = label_key(key).and_then(|key| Ok(Requirement::In(key, [label_value(value)?].into())));
        match problems.take(&format!("{at}.matchLabels"), is) {
            Some(requirement) => requirements.push(requirement),
            None => whole = false,
        }
    }
    for (index, expression) in written.match_expressions.iter().flatten().enumerate() {
        match problems.take(&format!("{at}.matchExpressions[{index}]"), requirement(expression)) {
            Some(requirement) => requirements.push(requirement),
            None => whole = false,
        }
    }
    whole.then(|| LabelSelector::new(requirements))
}

fn requirement(written: &v1::LabelSelectorRequirement) -> Result<Requirement, Wrong> {
    let v1::LabelSelectorRequirement { key, operator, values } = written;
    let key = label_key(key)?;
    let values =
        values.iter().flatten().map(|value| label_value(value)).collect::<Result<BTreeSet<_>, _>>()?;
    let some = |values: BTreeSet<String>| match values.is_empty() {
        true => Err(Wrong::NoValues(operator.clone())),
        false => Ok(values),
    };
    let none = |requirement| match values.is_empty() {
        true => Ok(requirement),
        false => Err(Wrong::Values(operator.clone())),
    };
    match operator.as_str() {
        "In" => Ok(Requirement::In(key, some(values)?)),
        "NotIn" => Ok(Requirement::NotIn(key, some(values)?)),
        "Exists" => none(Requirement::Exists(key)),
        "DoesNotExist" => none(Requirement::DoesNotExist(key)),
        other => Err(Wrong::Unknown { what: "operator", value: other.to_owned() }),
    }
}

/// The key of a label: a name, or a DNS name and a name with a slash between them, as Kubernetes wants it.
fn label_key(key: &str) -> Result<String, Wrong> {
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let dns_label = |label: &str| {
        let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(inside)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_dns = |prefix: &str| prefix.len() <= 253 && prefix.split('.').all(dns_label);
    let is = !name.is_empty() && is_label_text(name) && prefix.is_none_or(is_dns);
    if is { Ok(key.to_owned()) } else { Err(Wrong::NoLabelKey(key.to_owned())) }
}

/// The value of a label.
fn label_value(value: &str) -> Result<String, Wrong> {
    if is_label_text(value) { Ok(value.to_owned()) } else { Err(Wrong::NoLabelValue(value.to_owned())) }
}

/// At most 63 letters, digits, and between these `-`, `_` and `.`.
fn is_label_text(text: &str) -> bool {
    let ends = |b: Option<u8>| b.is_none_or(|b| b.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && ends(text.bytes().next())
        && ends(text.bytes().last())
}

/// A prefix. Host bits are allowed and mean nothing; a length must be there.
pub(super) fn prefix(text: &str) -> Result<IpNetwork, Wrong> {
    let invalid = || Wrong::NoPrefix(text.to_owned());
    let written: IpNetwork = text.parse().map_err(|_| invalid())?;
    if !text.contains('/') {
        return Err(invalid());
    }
    IpNetwork::new(written.network(), written.prefix()).map_err(|_| invalid())
}

/// An `ipBlock`.
pub(super) fn block(at: &str, written: &IPBlock, problems: &mut Problems) -> Option<Block> {
    let cidr = problems.take(&format!("{at}.cidr"), prefix(&written.cidr))?;
    let mut block = Block::whole(cidr);
    let mut whole = true;
    for (index, hole) in written.except.iter().flatten().enumerate() {
        let inside = |hole: IpNetwork| {
            let is = hole.is_ipv4() == cidr.is_ipv4()
                && hole.prefix() > cidr.prefix()
                && cidr.contains(hole.network());
            if is { Ok(hole) } else { Err(Wrong::HoleOutside { hole, cidr }) }
        };
        match problems.take(&format!("{at}.except[{index}]"), prefix(hole).and_then(inside)) {
            Some(hole) => drop(block.except.insert(hole)),
            None => whole = false,
        }
    }
    whole.then_some(block)
}

/// A port.
pub(super) fn port(number: i64) -> Result<u16, Wrong> {
    u16::try_from(number).ok().filter(|port| *port != 0).ok_or(Wrong::NoPort(number))
}

/// All ports.
pub(super) const ALL_PORTS: RangeInclusive<u16> = 0..=u16::MAX;

/// The name of a port: an IANA service name (RFC 6335 §5.1) in lower case, as Kubernetes wants it.
pub(super) fn port_name(name: &str) -> Result<String, Wrong> {
    let shape = !name.is_empty()
        && name.len() <= 15
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && name.bytes().any(|b| b.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--");
    if shape { Ok(name.to_owned()) } else { Err(Wrong::NoPortName(name.to_owned())) }
}

/// A protocol; TCP where none is said.
pub(super) fn protocol(name: Option<&str>) -> Result<PortProtocol, Wrong> {
    match name {
        None | Some("TCP") => Ok(PortProtocol::Tcp),
        Some("UDP") => Ok(PortProtocol::Udp),
        Some("SCTP") => Ok(PortProtocol::Sctp),
        Some(other) => Err(Wrong::Unknown { what: "protocol", value: other.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_what_kubernetes_takes() {
        for key in ["app", "a.b_c-d", "kubernetes.io/metadata.name", "x.y/Z9"] {
            assert!(label_key(key).is_ok(), "{key}");
        }
        for key in ["", "-app", "app-", "a b", "/app", "UPPER.io/app", "a//b", &"x".repeat(64)] {
            assert!(label_key(key).is_err(), "{key}");
        }
        assert!(label_value("").is_ok() && label_value("v1.2_3-x").is_ok());
        assert!(label_value("a/b").is_err() && label_value("_").is_err());
    }

    #[test]
    fn host_bits_of_a_prefix_mean_nothing_and_a_length_must_be_there() {
        assert_eq!(prefix("10.70.2.99/24").unwrap().to_string(), "10.70.2.0/24");
        assert_eq!(prefix("FD70:0000:0000:0001:0000::/64").unwrap().to_string(), "fd70:0:0:1::/64");
        for text in ["10.0.0.1", "10.0.0.0/33", "10.0.0/8", "fd00::/129", "", "10.0.0.0/ 8"] {
            assert!(prefix(text).is_err(), "{text}");
        }
    }
}
