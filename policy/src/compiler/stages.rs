//! The stages in use, and whose tables they are in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use causeway_model::policy::{Direction, Rulebook, Stage, StageId};
use causeway_model::{ClusterName, Identity, NodeId};

use super::lists::{List, ListId, Lists};
use super::selectors::{Chosen, SelectorId, Selectors};
use super::stage::{Draft, Facts};
use crate::identity::{Identities, LabelSet};
use crate::world::{NamedPort, NodeFacts};

/// What a stage is made of: two endpoints to which the same applies have the same one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    direction: Direction,
    lists: Vec<ListId>,
    /// Of the ports that the endpoints name, those that the rules speak of.
    served: Vec<NamedPort>,
}

/// A stage in use. The record itself is in the rulebook.
#[derive(Debug)]
struct Entry {
    key: Key,
    draft: Draft,
    users: BTreeSet<Identity>,
}

/// Every stage in use.
#[derive(Debug, Default)]
pub(super) struct Stages {
    by_key: HashMap<Key, StageId>,
    entries: BTreeMap<StageId, Entry>,
    free: BTreeSet<u32>,
    given: u32,
}

/// What stages are made from, and where they go.
pub(super) struct Shop<'a> {
    pub own: &'a ClusterName,
    pub selectors: &'a mut Selectors,
    pub identities: &'a Identities,
    pub nodes: &'a BTreeMap<NodeId, NodeFacts>,
    pub lists: &'a Lists,
    pub book: &'a mut Rulebook,
}

impl Shop<'_> {
    fn make(&self, key: &Key) -> (Draft, Stage) {
        let lists: Vec<&List> = key.lists.iter().filter_map(|id| self.lists.get(*id)).collect();
        let facts = Facts {
            own: self.own,
            selectors: self.selectors,
            identities: self.identities,
            nodes: self.nodes,
            peers: &self.book.peers,
        };
        Draft::new(key.direction, &lists, &key.served, facts)
    }
}

impl Stages {
    /// The stage of some lists for the endpoints of an identity, made if there is none yet; it goes to `made` then.
    pub(super) fn of(
        &mut self,
        direction: Direction,
        lists: Vec<ListId>,
        labels: &LabelSet,
        shop: &mut Shop<'_>,
        made: &mut BTreeSet<StageId>,
    ) -> StageId {
        let names = |name: &String| {
            let lists = lists.iter().filter_map(|id| shop.lists.get(*id));
            direction == Direction::Ingress && lists.into_iter().any(|list| list.port_names.contains(name))
        };
        let served = labels.ports().iter().filter(|port| names(&port.name)).cloned().collect();
        let key = Key { direction, lists, served };
        if let Some(id) = self.by_key.get(&key) {
            return *id;
        }
        let id = self.free.pop_first().unwrap_or_else(|| {
            self.given += 1;
            self.given
        });
        let id = StageId(id);
        let (draft, stage) = shop.make(&key);
        for selector in &draft.selectors {
            shop.selectors.bind(*selector, id);
        }
        shop.book.stages.insert(id, Arc::new(stage));
        self.by_key.insert(key.clone(), id);
        self.entries.insert(id, Entry { key, draft, users: BTreeSet::new() });
        made.insert(id);
        id
    }

    /// An identity's endpoints have a stage from now on, or no more.
    pub(super) fn set_user(&mut self, id: StageId, identity: Identity, uses: bool) {
        if let Some(entry) = self.entries.get_mut(&id) {
            if uses {
                entry.users.insert(identity);
            } else {
                entry.users.remove(&identity);
            }
        }
    }

    /// The identities whose endpoints have a stage.
    pub(super) fn users(&self, id: StageId) -> impl Iterator<Item = Identity> {
        self.entries.get(&id).into_iter().flat_map(|entry| entry.users.iter().copied())
    }

    /// The stages that depend on which ports peers name.
    pub(super) fn naming_ports_of_peers(&self) -> impl Iterator<Item = StageId> {
        self.entries.iter().filter(|(_, entry)| entry.draft.names_ports_of_peers).map(|(id, _)| *id)
    }

    /// Puts identities where they belong in the stages that depend on them; those that have changed.
    pub(super) fn put(
        &mut self,
        identities: &BTreeMap<Identity, Chosen>,
        book: &mut Rulebook,
    ) -> BTreeSet<StageId> {
        let mut of_stage: BTreeMap<StageId, Vec<(Identity, &[SelectorId])>> = BTreeMap::new();
        for (identity, chosen) in identities {
            for id in &chosen.stages {
                of_stage.entry(*id).or_default().push((*identity, &chosen.by));
            }
        }
        let mut changed = BTreeSet::new();
        for (id, identities) in of_stage {
            if let (Some(entry), Some(stage)) = (self.entries.get_mut(&id), book.stages.get_mut(&id))
                && !entry.draft.names_ports_of_peers
                && entry.draft.put(&identities, stage)
            {
                changed.insert(id);
            }
        }
        changed
    }

    /// Lays out anew what cannot be changed piece by piece; those that have changed.
    pub(super) fn renew(&mut self, peers: bool, nodes: bool, shop: &mut Shop<'_>) -> BTreeSet<StageId> {
        let mut changed = BTreeSet::new();
        for (id, entry) in &mut self.entries {
            let draft = &entry.draft;
            if !(peers && draft.names_ports_of_peers || nodes && draft.has_nodes) {
                continue;
            }
            let (draft, stage) = shop.make(&entry.key);
            entry.draft = draft;
            if shop.book.stages.get(id).is_none_or(|before| **before != stage) {
                shop.book.stages.insert(*id, Arc::new(stage));
                changed.insert(*id);
            }
        }
        changed
    }

    /// Takes away the stages that nobody has any more.
    pub(super) fn sweep(&mut self, selectors: &mut Selectors, book: &mut Rulebook) -> BTreeSet<StageId> {
        let unused = self.entries.iter().filter(|(_, entry)| entry.users.is_empty());
        let gone: BTreeSet<_> = unused.map(|(id, _)| *id).collect();
        for id in &gone {
            let Some(Entry { key, draft, .. }) = self.entries.remove(id) else { continue };
            for selector in draft.selectors {
                selectors.unbind(selector, *id);
            }
            self.by_key.remove(&key);
            book.stages.remove(id);
            self.free.insert(id.0);
        }
        gone
    }
}
