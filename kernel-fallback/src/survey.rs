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
use crate::{shaping, sysctl};

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
}

impl Survey {
    /// Looks, in the network namespace of this thread.
    pub fn look(self) -> Result<Sight, KernelError> {
        let mut netlink = Netlink::route()?;
        let links = observe::links(&mut netlink)?;
        let Difference { missing, surplus } = difference(&mut netlink, &links, &self.objects)?;
        Ok(Sight { suspects: missing.into_iter().chain(surplus).collect() })
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
        let suspicious = sight.is_suspicious(&self.changed);
        self.reconcile_from(suspicious)
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
        if !hangs_on_nothing && !is_right(object, &found, links)? {
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
    object: &Object,
    found: &BTreeSet<Object>,
    links: &BTreeMap<String, Link>,
) -> Result<bool, KernelError> {
    match object {
        // The device is made right before.
        Object::Vxlan(_) => Ok(true),
        Object::Sysctl(setting) => {
            let value = sysctl::read(&setting.path)?;
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
