//! Comparing what is there with what shall be, and mending it.

use std::collections::BTreeMap;

use causeway_model::TunnelOwner;

use crate::dataplane::KernelDataplane;
use crate::desired::Desired;
use crate::error::KernelError;
use crate::install::{install, remove, remove_link};
use crate::leaving::is_leaving;
use crate::objects::{HOST_LINK, Object, TUNNEL_LINK, UPLINK_LINK, Vxlan};
use crate::observe::{self, Link};
use crate::survey::{Difference, difference};

/// Mending one thing may undo another (a link that gets another address forgets its neighbours): so often, at most,
/// is looked again.
const PASSES: usize = 4;

impl KernelDataplane {
    /// Makes everything what it shall be, touching only what is not. Returns what was mended, in words.
    pub(crate) fn reconcile(&mut self) -> Result<Vec<String>, KernelError> {
        let mut mended = Vec::new();
        // Before a state is known nothing is wrong: what is there is what an agent before us left for its pods.
        if self.desired.is_none() {
            return Ok(mended);
        }
        for _ in 0..PASSES {
            let before = mended.len();
            self.pass(&mut mended)?;
            if mended.len() == before {
                break;
            }
        }
        Ok(mended)
    }

    /// What a look at the links does not show: mended without another one.
    pub(crate) fn reconcile_unseen(&mut self) -> Result<Vec<String>, KernelError> {
        let mut mended = self.ensure_nft()?;
        mended.extend(self.mend_capture()?);
        if !mended.is_empty() {
            mended.extend(self.reconcile()?);
        }
        Ok(mended)
    }

    /// Whether these links, as they were a moment ago, are other ones than there shall be. Of what has changed meanwhile it may be
    /// mistaken.
    pub(crate) fn are_odd(&self, links: &BTreeMap<String, Link>) -> bool {
        let Some(desired) = &self.desired else { return false };
        let fast_ports = desired.snapshot.settings.tunnel == TunnelOwner::Kernel
            && [HOST_LINK, UPLINK_LINK].iter().any(|name| links.contains_key(*name));
        let tunnel = match (self.wanted_tunnel(), links.get(TUNNEL_LINK)) {
            (None, None) => true,
            (Some(vxlan), Some(found)) => found.is_tunnel(&vxlan),
            _ => false,
        };
        fast_ports || !tunnel || self.facts(links, &desired.snapshot) != desired.facts
    }

    fn pass(&mut self, mended: &mut Vec<String>) -> Result<(), KernelError> {
        let links = observe::links(&mut self.netlink)?;
        self.look_around(&links);
        self.speed_leaving(&links);
        // What guards comes first.
        mended.extend(self.ensure_nft()?);
        mended.extend(self.remove_fast_ports(&links)?);
        let tunnel = self.mend_tunnel(&links).map(|words| mended.extend(words));
        let rest = [self.plug_again(&links), self.mend_objects(), self.mend_capture()];
        let mut errors = Vec::new();
        for part in rest {
            part.map(|words| mended.extend(words)).unwrap_or_else(|error| errors.push(error));
        }
        // What fails without a tunnel fails because of it.
        tunnel.and(KernelError::all(errors))
    }

    /// Has links on their way out deleted, whoever began it.
    pub(crate) fn speed_leaving(&self, links: &BTreeMap<String, Link>) {
        if links.keys().any(|name| is_leaving(name)) {
            self.reaper.delete_group();
        }
    }

    /// Takes up what has changed about the node: the host port came, somebody made a tunnel of their own, a path got narrow.
    fn look_around(&mut self, links: &BTreeMap<String, Link>) {
        let Some(desired) = &self.desired else { return };
        let facts = self.facts(links, &desired.snapshot);
        if facts != desired.facts {
            self.desired = Some(Desired::new(desired.snapshot.clone(), facts));
        }
    }

    /// On a node whose tunnel is the kernel's, what an earlier fast path left.
    fn remove_fast_ports(&mut self, links: &BTreeMap<String, Link>) -> Result<Vec<String>, KernelError> {
        let kernel = self.desired.as_ref().is_some_and(|d| d.snapshot.settings.tunnel == TunnelOwner::Kernel);
        let left = [HOST_LINK, UPLINK_LINK].into_iter().filter(|name| kernel && links.contains_key(*name));
        left.map(|name| remove_link(&mut self.netlink, name).map(|()| format!("removed link {name}")))
            .collect()
    }

    fn mend_capture(&mut self) -> Result<Vec<String>, KernelError> {
        let Some(desired) = &self.desired else { return Ok(Vec::new()) };
        let uplink = desired.facts.uplink.as_ref();
        let untouched = self.nft.is_untouched();
        Ok(self.capture.ensure(&desired.snapshot.settings, uplink, untouched)?.into_iter().collect())
    }

    fn wanted_tunnel(&self) -> Option<Vxlan> {
        self.desired.iter().flat_map(|desired| desired.objects.iter()).find_map(|object| match object {
            Object::Vxlan(vxlan) => Some(vxlan.clone()),
            _ => None,
        })
    }

    /// The tunnel device: none, or exactly the one that shall be.
    fn mend_tunnel(&mut self, links: &BTreeMap<String, Link>) -> Result<Option<String>, KernelError> {
        match (self.wanted_tunnel(), links.get(TUNNEL_LINK)) {
            (None, None) => Ok(None),
            (None, Some(_)) => {
                remove_link(&mut self.netlink, TUNNEL_LINK)?;
                Ok(Some(format!("removed device {TUNNEL_LINK}")))
            }
            (Some(vxlan), Some(found)) if found.is_tunnel(&vxlan) => Ok(None),
            (Some(vxlan), found) => {
                if found.is_some() {
                    remove_link(&mut self.netlink, TUNNEL_LINK)?;
                }
                self.create_tunnel(&vxlan).map(Some)
            }
        }
    }

    /// Makes the tunnel device; without the attribute for reserved bits where the kernel does not know it.
    fn create_tunnel(&mut self, vxlan: &Vxlan) -> Result<String, KernelError> {
        let object = Object::Vxlan(vxlan.clone());
        install(&mut self.netlink, &object)?;
        if vxlan.lenient {
            let links = observe::links(&mut self.netlink)?;
            // A kernel that does not know an attribute takes no notice of it, and shows it by not telling of it.
            if links.get(TUNNEL_LINK).is_some_and(|link| !link.is_tunnel(vxlan)) {
                self.lenient = false;
                if let Some(desired) = &self.desired {
                    let facts = self.facts(&links, &desired.snapshot);
                    self.desired = Some(Desired::new(desired.snapshot.clone(), facts));
                }
            }
        }
        Ok(format!("made {object}"))
    }

    fn mend_objects(&mut self) -> Result<Vec<String>, KernelError> {
        let links = observe::links(&mut self.netlink)?;
        let Some(desired) = &self.desired else { return Ok(Vec::new()) };
        let Difference { missing, surplus } = difference(&mut self.netlink, &links, &desired.objects)?;
        let (mut mended, mut errors) = (Vec::new(), Vec::new());
        for object in surplus.iter().rev() {
            match remove(&mut self.netlink, object) {
                Ok(()) => mended.push(format!("removed {object}")),
                Err(error) => errors.push(error),
            }
        }
        for object in &missing {
            match self.make(object) {
                Ok(()) => mended.push(format!("made {object}")),
                Err(error) => errors.push(error),
            }
        }
        KernelError::all(errors).map(|()| mended)
    }
}
