use causeway_model::Family;
use causeway_model::plugin::Attachment;
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::previous;
use crate::version::SpecVersion;

/// The result of an ADD in the shape of one version (CNI 1.1.0 §5, "ADD Success"; SPEC.md of 0.3.1 and 0.4.0,
/// "Result"), grown from the one that came in.
pub struct Outcome {
    version: SpecVersion,
    document: Map<String, Value>,
}

impl Outcome {
    /// Begins with everything that the plugins before us reported.
    pub fn from_previous(version: SpecVersion, previous: Map<String, Value>) -> Result<Self, Error> {
        let document = previous::in_shape_of(version, previous)?;
        Ok(Self { version, document })
    }

    /// Adds what the agent made.
    pub fn attach(&mut self, attachment: &Attachment, interface: &str, netns: &str) {
        if let Some(name) = &attachment.host_interface {
            let link = json!({"name": name, "mac": attachment.host_mac.to_string()});
            self.push_interface(link, attachment.host_mtu);
        }
        let link = json!({"name": interface, "mac": attachment.mac.to_string(), "sandbox": netns});
        let index = self.push_interface(link, Some(attachment.mtu));
        for pod in &attachment.addresses {
            let mut ip = json!({"address": pod.address, "gateway": pod.gateway, "interface": index});
            let family = Family::of(pod.gateway);
            let (default, version) = match family {
                Family::V4 => ("0.0.0.0/0", "4"),
                Family::V6 => ("::/0", "6"),
            };
            if self.version < SpecVersion::V1_0_0 {
                ip["version"] = version.into();
            }
            self.list("ips").push(ip);
            let own = attachment.routes.iter().flatten();
            let own = own.filter(|to| Family::of(to.ip()) == family).map(ToString::to_string).collect();
            let routes = if attachment.routes.is_some() { own } else { vec![default.to_owned()] };
            for to in routes {
                let mut route = json!({"dst": to, "gw": pod.gateway});
                if self.tells_mtu() {
                    route["mtu"] = attachment.mtu.into();
                }
                self.list("routes").push(route);
            }
        }
    }

    /// Adds what the configuration says of name resolution: lists grow, and a domain that is there stays.
    pub fn resolve_by(&mut self, dns: Option<&Map<String, Value>>) {
        let Some(dns) = dns else { return };
        let merged = self.document.entry("dns").or_insert_with(|| json!({}));
        if merged.is_null() {
            *merged = json!({});
        }
        let Value::Object(merged) = merged else {
            unreachable!("the dns of a previous result was looked at before");
        };
        for (key, value) in dns {
            match (merged.get_mut(key), value) {
                (Some(Value::Array(there)), Value::Array(more)) => {
                    let new: Vec<_> = more.iter().filter(|item| !there.contains(item)).cloned().collect();
                    there.extend(new);
                }
                (Some(there), _) if !there.is_null() => {}
                _ => drop(merged.insert(key.clone(), value.clone())),
            }
        }
    }

    /// The finished document.
    pub fn into_document(self) -> Value {
        Value::Object(self.document)
    }

    fn tells_mtu(&self) -> bool {
        self.version >= SpecVersion::V1_1_0
    }

    /// Adds an interface and returns its index among all.
    fn push_interface(&mut self, mut interface: Value, mtu: Option<u16>) -> usize {
        if let Some(mtu) = mtu.filter(|_| self.tells_mtu()) {
            interface["mtu"] = mtu.into();
        }
        let interfaces = self.list("interfaces");
        interfaces.push(interface);
        interfaces.len() - 1
    }

    fn list(&mut self, key: &str) -> &mut Vec<Value> {
        match self.document.entry(key).or_insert_with(|| json!([])) {
            Value::Array(list) => list,
            _ => unreachable!("the lists of a previous result were looked at before"),
        }
    }
}

#[cfg(test)]
#[path = "outcome_tests.rs"]
mod tests;
