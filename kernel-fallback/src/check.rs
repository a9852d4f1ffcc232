//! Whether one endpoint is as it was made: a look at the kernel, for whoever asks, that mends nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;

use causeway_model::Endpoint;

use crate::dataplane::KernelDataplane;
use crate::desired::has_veth;
use crate::error::KernelError;
use crate::netlink::Netlink;
use crate::objects::{LinkState, Object, is_governed};
use crate::observe::{self, Link};
use crate::ruleset::Ruleset;
use crate::{pod, shaping};

impl KernelDataplane {
    /// What is wrong with an endpoint. Of one that hangs on another data path: what is wrong with the node's ways to it.
    pub(crate) fn examine(
        &mut self,
        endpoint: &Endpoint,
        netns: BorrowedFd<'_>,
    ) -> Result<Vec<String>, KernelError> {
        let Some(desired) = &self.desired else {
            return Ok(vec!["the kernel path was not told what there shall be".to_owned()]);
        };
        let Some(told) = desired.snapshot.endpoints.get(&endpoint.key) else {
            return Ok(vec!["the kernel path was not told of it".to_owned()]);
        };
        let (mut objects, elements) = desired.wishes_of(told);
        objects.extend(desired.objects_of_node());
        let ruleset = Ruleset::new(&desired.snapshot.settings);
        let links = observe::links(&mut self.netlink)?;
        let mut found = observe::objects(&mut self.netlink, &links, is_governed)?;
        found.extend(shaping::observe(&mut self.netlink, &links, objects.iter())?);
        let mut wrong = Vec::new();
        if has_veth(endpoint) {
            wrong.extend(pod::check(netns, &endpoint.key.interface, endpoint)?);
            wrong.extend(not_a_pair(endpoint, netns, &links)?);
        }
        for object in &objects {
            wrong.extend(complaint(&mut self.netlink, object, &found, &links)?);
        }
        wrong.extend(self.nft.check(&ruleset, &elements)?);
        wrong.extend(self.nft.check_policy(&endpoint.key)?);
        Ok(wrong)
    }
}

/// Whether the pod's link and the node's are two other ones than the two ends of one pair.
fn not_a_pair(
    endpoint: &Endpoint,
    netns: BorrowedFd<'_>,
    links: &BTreeMap<String, Link>,
) -> Result<Option<String>, KernelError> {
    let (interface, name) = (&endpoint.key.interface, endpoint.key.link_name());
    let ends = pod::ends(netns, interface)?;
    // What is not there is complained of by name elsewhere.
    let Some(link) = links.get(name.as_str()) else { return Ok(None) };
    let pair = ends.is_none_or(|(own, peer)| peer == link.index && Some(own) == link.peer);
    Ok((!pair).then(|| format!("link {interface} in the pod is not the other end of {name}")))
}

/// In what an object differs from what is there.
pub(crate) fn complaint(
    netlink: &mut Netlink,
    object: &Object,
    found: &BTreeSet<Object>,
    links: &BTreeMap<String, Link>,
) -> Result<Option<String>, KernelError> {
    match object {
        // The tunnel device is a link as well, which is looked at as one.
        Object::Vxlan(_) => Ok(None),
        Object::Sysctl(setting) => {
            let value = netlink.sysctls().read(&setting.path)?;
            let wrong = value.filter(|value| *value != setting.value);
            Ok(wrong.map(|value| format!("sysctl {} is {value}, not {}", setting.path, setting.value)))
        }
        Object::Link(state) => Ok(link_complaint(state, links.get(&state.name))),
        object if found.contains(object) => Ok(None),
        object => Ok(Some(match found.iter().find(|other| other.id() == object.id()) {
            Some(other) => format!("{other} stands where {object} should"),
            None => format!("{object} is missing"),
        })),
    }
}

fn link_complaint(state: &LinkState, link: Option<&Link>) -> Option<String> {
    let name = &state.name;
    let Some(link) = link else { return Some(format!("link {name} is missing")) };
    let mut wrong = Vec::new();
    if !link.up {
        wrong.push(format!("link {name} is down"));
    }
    if let Some(mac) = state.mac.filter(|mac| link.mac != Some(*mac)) {
        let there = link.mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string());
        wrong.push(format!("the MAC of link {name} is {there}, not {mac}"));
    }
    if link.mtu != u32::from(state.mtu) {
        wrong.push(format!("the MTU of link {name} is {}, not {}", link.mtu, state.mtu));
    }
    (!wrong.is_empty()).then(|| wrong.join(", "))
}
