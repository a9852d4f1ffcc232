//! A look at the node that holds nobody up: what is there is compared with what shall be beside whatever goes on, and only what
//! looks wrong is looked at again by who may change it.
//!
//! It costs what all endpoints cost. Under the agent's lock it would be paid by every attachment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::dataplane::KernelDataplane;
use crate::desired::Wanted;
use crate::error::KernelError;
use crate::netlink::Netlink;
use crate::objects::{LinkState, Object, ObjectId, is_governed};
use crate::observe::{self, Link};
use crate::shaping;

/// What shall be there, to be compared with what is.
#[derive(Debug)]
pub struct Survey {
    objects: Arc<Wanted<Object>>,
}

/// What a survey found.
#[derive(Debug)]
pub struct Sight {
    /// Objects that seem to be missing, or to be too many. What has changed meanwhile may be among them.
    suspects: Vec<Object>,
    /// The links that were there.
    links: BTreeMap<String, Link>,
}

impl Survey {
    /// Looks, in the network namespace of this thread.
    pub fn look(self) -> Result<Sight, KernelError> {
        let mut netlink = Netlink::route()?;
        let links = observe::links(&mut netlink)?;
        let Difference { missing, surplus } = difference(&mut netlink, &links, &self.objects)?;
        Ok(Sight { suspects: missing.into_iter().chain(surplus).collect(), links })
    }
}

impl Sight {
    /// Whether something looks wrong that nobody has changed meanwhile.
    fn is_suspicious(&self, changed: &[Object]) -> bool {
        let changed: BTreeSet<ObjectId<'_>> = changed.iter().map(Object::id).collect();
        self.suspects.iter().any(|suspect| !changed.contains(&suspect.id()))
    }
}

impl KernelDataplane {
    /// What there is to look at now; none before there is a state. What changes from now on is remembered until the next one.
    pub fn survey(&mut self) -> Option<Survey> {
        self.changed.clear();
        self.desired.as_ref().map(|desired| Survey { objects: Arc::clone(&desired.objects) })
    }

    /// Mends what a survey has seen, and what only who holds all of this can look at. Returns what was mended, in words.
    pub fn mend_seen(&mut self, sight: &Sight) -> Result<Vec<String>, KernelError> {
        if sight.is_suspicious(&self.changed) || self.are_odd(&sight.links) || self.has_lost(&sight.links) {
            // Only now all of it is looked at once more, while everybody waits.
            return self.reconcile();
        }
        self.speed_leaving(&sight.links);
        self.reconcile_unseen()
    }

    /// Whether an endpoint had no link although it lives and nobody has touched it meanwhile.
    fn has_lost(&self, links: &BTreeMap<String, Link>) -> bool {
        let Some(desired) = &self.desired else { return false };
        let touched: BTreeSet<&str> = self.changed.iter().filter_map(Object::link).collect();
        desired.veths().any(|endpoint| {
            let name = endpoint.key.link_name();
            !links.contains_key(name.as_str())
                && !touched.contains(name.as_str())
                && self.lives(&endpoint.key)
        })
    }
}

/// In what a node differs from what it shall be.
pub(crate) struct Difference {
    pub(crate) missing: Vec<Object>,
    pub(crate) surplus: Vec<Object>,
}

/// Compares. What hangs on a link that is not there is not missed: it comes with the link.
pub(crate) fn difference(
    netlink: &mut Netlink,
    links: &BTreeMap<String, Link>,
    desired: &Wanted<Object>,
) -> Result<Difference, KernelError> {
    let mut found = observe::objects(netlink, links, is_governed)?;
    found.extend(shaping::observe(netlink, links, desired.iter())?);
    let (mut missing, mut wanted) = (Vec::new(), BTreeMap::new());
    for object in desired.iter() {
        wanted.insert(object.id(), object);
        let hangs_on_nothing = object.link().is_some_and(|link| !links.contains_key(link));
        if !hangs_on_nothing && !is_right(netlink, object, &found, links)? {
            missing.push(object.clone());
        }
    }
    let in_the_way = |object: &&Object| {
        wanted.get(&object.id()).is_none_or(|wanted| object.blocks(wanted)) && is_removable(object)
    };
    let surplus = found.iter().filter(in_the_way).cloned().collect();
    Ok(Difference { missing, surplus })
}

fn is_right(
    netlink: &mut Netlink,
    object: &Object,
    found: &BTreeSet<Object>,
    links: &BTreeMap<String, Link>,
) -> Result<bool, KernelError> {
    match object {
        // The device is made right before.
        Object::Vxlan(_) => Ok(true),
        Object::Sysctl(setting) => {
            // Of a thousand links it is told with the links, not read from as many files.
            let listed = setting.link.as_ref().and_then(|link| links.get(link)?.setting(&setting.path));
            if let Some(value) = listed {
                return Ok(setting.value.parse() == Ok(value));
            }
            let value = netlink.sysctls().read(&setting.path)?;
            Ok(value.is_none_or(|value| value == setting.value))
        }
        Object::Link(LinkState { name, mac: None, mtu }) => {
            Ok(links.get(name).is_some_and(|link| link.up && link.mtu == u32::from(*mtu)))
        }
        object => Ok(found.contains(object)),
    }
}

/// A link's state cannot be taken away, and a pod's link that no endpoint has is left to whoever removes it: what comes from it is refused.
fn is_removable(object: &Object) -> bool {
    !matches!(object.id(), ObjectId::Link(_) | ObjectId::Vxlan | ObjectId::Sysctl(_))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use causeway_model::{Dataplane, TunnelOwner, Update};
    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::KernelOptions;
    use crate::desired::tests::state;

    #[test]
    fn who_holds_the_data_path_up_lists_nothing_where_a_look_found_nothing() {
        let look = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
            let directory = tempfile::tempdir().unwrap();
            let state_file = directory.path().join("sysctls.json");
            let options = KernelOptions { state: state_file, mask_reserved_bits: false };
            let mut dataplane = KernelDataplane::new(options).unwrap();
            dataplane.apply(Update::Whole(&state(TunnelOwner::Kernel))).unwrap();
            let mut asked = || {
                let sight = dataplane.survey().unwrap().look().unwrap();
                let before = dataplane.netlink.sent();
                let mended = dataplane.mend_seen(&sight).unwrap();
                (mended.is_empty(), dataplane.netlink.sent() - before)
            };
            assert_eq!(asked(), (true, 0));
            let words = ["link", "set", "cw-vxlan", "mtu", "1400"];
            assert!(Command::new("ip").args(words).status().unwrap().success());
            let (whole, requests) = asked();
            assert!(!whole && requests > 0);
            assert_eq!(asked(), (true, 0));
        };
        thread::spawn(look).join().unwrap();
    }
}
