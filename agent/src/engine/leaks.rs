use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use causeway_model::{EndpointKey, PortKind};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use super::Core;
use crate::error::chain;
use crate::store::{Netns, Record};

/// How often it is looked for attachments that nobody will ever delete.
const LOOK: Duration = Duration::from_secs(5);
/// How long one must be missed before it is released: twice it is looked, with this between.
const PAUSE: Duration = Duration::from_secs(10);

/// What the looks have come to so far.
#[derive(Default)]
pub(super) struct Leaks {
    last: Option<Instant>,
    missed: BTreeMap<EndpointKey, Missed>,
}

struct Missed {
    since: Instant,
    netns: Netns,
}

impl Leaks {
    /// What comes or goes by a call of the runtime is no leak, and what was seen of it says nothing any more.
    pub(super) fn forget(&mut self, key: &EndpointKey) {
        self.missed.remove(key);
    }

    /// Whether there was no look yet.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.last.is_none()
    }
}

impl Core {
    /// Releases attachments whose pod has gone without a DEL. One is missed when its path leads to another namespace or
    /// nowhere, its link on the node is gone with the namespace it led to, and no process lives there; and it is released only
    /// when it is still missed a pause later. Whatever cannot be looked at is taken for alive.
    pub(super) fn collect_leaks(&mut self, now: Instant) {
        if self.leaks.last.is_some_and(|last| now.duration_since(last) < LOOK) {
            return;
        }
        self.leaks.last = Some(now);
        let missed = self.missed();
        self.note("looking for leaked attachments", missed.as_ref().map(|_| ()).map_err(Clone::clone));
        let missed = missed.unwrap_or_default();
        self.leaks.missed.retain(|key, before| missed.get(key) == Some(&before.netns));
        for (key, netns) in missed {
            let since = self.leaks.missed.entry(key.clone()).or_insert(Missed { since: now, netns }).since;
            if now.duration_since(since) < PAUSE {
                continue;
            }
            let done = self.release(&key);
            if done.is_ok() {
                self.mended(format!("released {key}: its pod had gone without a DEL"));
            }
            self.note(&format!("releasing {key}, whose pod has gone"), done.map_err(|error| chain(&error)));
        }
    }

    /// The attachments that are nowhere to be seen.
    fn missed(&self) -> Result<BTreeMap<EndpointKey, Netns>, String> {
        let machine = &self.parts.machine;
        let gone = |record: &&Record| machine.is_gone(&record.netns) && !has_link(record);
        let mut missed: BTreeMap<_, _> = self
            .parts
            .store
            .records()
            .values()
            .filter(gone)
            .map(|record| (record.endpoint.key.clone(), record.netns.clone()))
            .collect();
        if !missed.is_empty() {
            let inhabited = machine.inhabited().map_err(|error| chain(&error))?;
            missed.retain(|_, netns| !inhabited.contains(&(netns.device, netns.inode)));
        }
        Ok(missed)
    }
}

/// Whether the node has the link of a pod: the kernel takes it away with the namespace that its other end is in.
fn has_link(record: &Record) -> bool {
    let name = record.endpoint.key.link_name();
    record.endpoint.port == PortKind::Veth && if_nametoindex(name.as_str()) != Err(Errno::ENODEV)
}
