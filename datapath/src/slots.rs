use std::collections::{BTreeMap, BTreeSet};

use causeway_model::{EndpointKey, Path, Snapshot};

/// Numbers for the endpoints of the fast path, small enough to index arrays by and the same from one world to the next.
#[derive(Clone, Debug)]
pub struct Slots {
    taken: BTreeMap<EndpointKey, u16>,
    free: BTreeSet<u16>,
    // Nobody's in the newest world, somebody's in one that a worker may still read.
    leaving: BTreeSet<u16>,
    capacity: u16,
}

impl Slots {
    /// This many slots, all free.
    pub fn new(capacity: u16) -> Self {
        Self { taken: BTreeMap::new(), free: (0..capacity).collect(), leaving: BTreeSet::new(), capacity }
    }

    /// How many there are.
    pub fn capacity(&self) -> u16 {
        self.capacity
    }

    /// The slot of an endpoint.
    pub fn of(&self, key: &EndpointKey) -> Option<u16> {
        self.taken.get(key).copied()
    }

    /// Every endpoint that has a slot, and which.
    pub fn iter(&self) -> impl Iterator<Item = (&EndpointKey, u16)> {
        self.taken.iter().map(|(key, slot)| (key, *slot))
    }

    /// Gives every endpoint of the fast path its slot and takes those back that are not in `snapshot`. Returns the endpoints for
    /// which none was left.
    pub fn take_up(&mut self, snapshot: &Snapshot) -> Vec<EndpointKey> {
        let is_fast = |key: &EndpointKey| snapshot.endpoints.get(key).is_some_and(|e| e.path == Path::Fast);
        let gone: Vec<_> = self.taken.keys().filter(|key| !is_fast(key)).cloned().collect();
        self.leaving.extend(gone.iter().filter_map(|key| self.taken.remove(key)));
        let fast = snapshot.endpoints.keys().filter(|key| is_fast(key));
        fast.filter(|key| !self.seat(key)).cloned().collect()
    }

    /// The same for one endpoint; false when no slot was left for it.
    pub fn follow(&mut self, key: &EndpointKey, snapshot: &Snapshot) -> bool {
        if snapshot.endpoints.get(key).is_some_and(|endpoint| endpoint.path == Path::Fast) {
            return self.seat(key);
        }
        self.leaving.extend(self.taken.remove(key));
        true
    }

    fn seat(&mut self, key: &EndpointKey) -> bool {
        if self.taken.contains_key(key) {
            return true;
        }
        let Some(slot) = self.free.pop_first() else { return false };
        self.taken.insert(key.clone(), slot);
        true
    }

    /// Frees the slots of endpoints that are gone, once every worker has taken up the world without them. Returns them, so that
    /// their [tallies](crate::Tally::clear) can begin anew.
    pub fn settle(&mut self) -> Vec<u16> {
        let freed: Vec<_> = std::mem::take(&mut self.leaving).into_iter().collect();
        self.free.extend(&freed);
        freed
    }
}
