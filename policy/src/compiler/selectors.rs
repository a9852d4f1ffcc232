//! The selectors of all policies, each once, and the identities they choose.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use causeway_model::policy::StageId;
use causeway_model::{ClusterName, Identity};

use crate::identity::LabelSet;
use crate::selector::{LabelSelector, Namespaces, PodSelector};
use crate::world::NamespaceId;

/// A selector's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SelectorId(u32);

/// A selector that something uses.
#[derive(Debug)]
struct Slot {
    selector: Arc<PodSelector>,
    members: Vec<Identity>,
    uses: usize,
    /// The stages whose rows depend on it.
    stages: BTreeSet<StageId>,
}

/// Who chooses an identity.
#[derive(Debug)]
pub(super) struct Chosen {
    /// The selectors, sorted.
    pub by: Vec<SelectorId>,
    /// The stages whose rows depend on those of them that did not choose it before, or do no more.
    pub stages: BTreeSet<StageId>,
}

/// Every selector in use, and whom it chooses.
#[derive(Debug, Default)]
pub(super) struct Selectors {
    ids: HashMap<Arc<PodSelector>, SelectorId>,
    slots: BTreeMap<SelectorId, Slot>,
    /// By their namespaces: few selectors differ in them, and an identity is of one namespace.
    by_namespaces: BTreeMap<Namespaces, BTreeSet<SelectorId>>,
    last: u32,
    population: Population,
}

/// Every identity, by its namespace.
#[derive(Debug, Default)]
struct Population(BTreeMap<NamespaceId, BTreeMap<Identity, Arc<LabelSet>>>);

impl Selectors {
    /// A selector's place, used once more from now on.
    pub(super) fn take(&mut self, selector: &PodSelector, own: &ClusterName) -> SelectorId {
        if let Some(id) = self.ids.get(selector) {
            if let Some(slot) = self.slots.get_mut(id) {
                slot.uses += 1;
            }
            return *id;
        }
        self.last += 1;
        let id = SelectorId(self.last);
        let selector = Arc::new(selector.clone());
        let members = self.population.members(&selector, own);
        self.by_namespaces.entry(selector.namespaces.clone()).or_default().insert(id);
        self.ids.insert(selector.clone(), id);
        self.slots.insert(id, Slot { selector, members, uses: 1, stages: BTreeSet::new() });
        id
    }

    /// Ends one use of a selector.
    pub(super) fn release(&mut self, id: SelectorId) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.uses -= 1;
        if slot.uses > 0 {
            return;
        }
        let Some(slot) = self.slots.remove(&id) else { return };
        self.ids.remove(&slot.selector);
        if let Some(ids) = self.by_namespaces.get_mut(&slot.selector.namespaces) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_namespaces.remove(&slot.selector.namespaces);
            }
        }
    }

    /// Whom a selector chooses, sorted.
    pub(super) fn members(&self, id: SelectorId) -> &[Identity] {
        self.slots.get(&id).map_or(&[], |slot| &slot.members)
    }

    /// Whether a selector chooses an identity.
    pub(super) fn chooses(&self, id: SelectorId, identity: Identity) -> bool {
        self.members(id).binary_search(&identity).is_ok()
    }

    /// Every identity.
    pub(super) fn everybody(&self) -> impl Iterator<Item = Identity> {
        self.population.0.values().flat_map(|identities| identities.keys().copied())
    }

    /// Takes in a new identity.
    pub(super) fn admit(&mut self, identity: Identity, labels: &Arc<LabelSet>, own: &ClusterName) -> Chosen {
        self.population.0.entry(namespace(labels)).or_default().insert(identity, labels.clone());
        let mut chosen = Chosen { by: self.choosing(labels, own), stages: BTreeSet::new() };
        chosen.by.sort_unstable();
        for id in &chosen.by {
            let Some(slot) = self.slots.get_mut(id) else { continue };
            if let Err(place) = slot.members.binary_search(&identity) {
                slot.members.insert(place, identity);
                chosen.stages.extend(&slot.stages);
            }
        }
        chosen
    }

    /// An identity has other labels of its namespace; nothing where no selector can tell.
    pub(super) fn relabel(
        &mut self,
        identity: Identity,
        before: &LabelSet,
        labels: &Arc<LabelSet>,
        own: &ClusterName,
    ) -> Option<Chosen> {
        self.population.0.entry(namespace(labels)).or_default().insert(identity, labels.clone());
        let [before, now] = [before, labels]
            .map(|labels| self.choosing(labels, own).into_iter().collect::<BTreeSet<SelectorId>>());
        let mut stages = BTreeSet::new();
        for id in before.symmetric_difference(&now) {
            let Some(slot) = self.slots.get_mut(id) else { continue };
            match slot.members.binary_search(&identity) {
                Ok(place) => drop(slot.members.remove(place)),
                Err(place) => slot.members.insert(place, identity),
            }
            stages.extend(&slot.stages);
        }
        (before != now).then(|| Chosen { by: now.into_iter().collect(), stages })
    }

    /// The selectors that choose these labels.
    fn choosing(&self, labels: &LabelSet, own: &ClusterName) -> Vec<SelectorId> {
        let named = Namespaces::Own(labels.namespace().to_owned());
        let by_name = self.by_namespaces.get_key_value(&named).into_iter();
        let by_labels = self.by_namespaces.range(Namespaces::Selected(LabelSelector::default())..);
        let (cluster, name) = (labels.cluster(), labels.namespace());
        let fits =
            |namespaces: &Namespaces| namespaces.matches(own, cluster, name, labels.namespace_labels());
        let groups = by_name.chain(by_labels).filter(|(namespaces, _)| fits(namespaces));
        let chooses = |id: &&SelectorId| {
            self.slots.get(id).is_some_and(|slot| slot.selector.pods.matches(labels.labels()))
        };
        groups.flat_map(|(_, ids)| ids).filter(chooses).copied().collect()
    }

    /// The stages whose rows depend on an identity of these labels.
    pub(super) fn stages_of(&self, labels: &LabelSet, own: &ClusterName) -> BTreeSet<StageId> {
        let ids = self.choosing(labels, own);
        ids.iter().filter_map(|id| self.slots.get(id)).flat_map(|slot| &slot.stages).copied().collect()
    }

    /// Forgets an identity.
    pub(super) fn dismiss(&mut self, identity: Identity, labels: &LabelSet, own: &ClusterName) {
        let namespace = namespace(labels);
        if let Some(identities) = self.population.0.get_mut(&namespace) {
            identities.remove(&identity);
            if identities.is_empty() {
                self.population.0.remove(&namespace);
            }
        }
        for id in self.choosing(labels, own) {
            if let Some(slot) = self.slots.get_mut(&id)
                && let Ok(place) = slot.members.binary_search(&identity)
            {
                slot.members.remove(place);
            }
        }
    }

    /// From now on a stage's rows depend on a selector.
    pub(super) fn bind(&mut self, id: SelectorId, stage: StageId) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.stages.insert(stage);
        }
    }

    /// They do no more.
    pub(super) fn unbind(&mut self, id: SelectorId, stage: StageId) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.stages.remove(&stage);
        }
    }
}

impl Population {
    fn members(&self, selector: &PodSelector, own: &ClusterName) -> Vec<Identity> {
        let mut members = Vec::new();
        let mut take = |namespace: &NamespaceId, identities: &BTreeMap<Identity, Arc<LabelSet>>| {
            // All of a namespace share its labels.
            let Some(labels) = identities.values().next().map(|labels| labels.namespace_labels()) else {
                return;
            };
            if !selector.namespaces.matches(own, &namespace.cluster, &namespace.name, labels) {
                return;
            }
            let chosen = identities.iter().filter(|(_, labels)| selector.pods.matches(labels.labels()));
            members.extend(chosen.map(|(identity, _)| *identity));
        };
        match &selector.namespaces {
            Namespaces::Own(name) => {
                let namespace = NamespaceId { cluster: own.clone(), name: name.clone() };
                if let Some(identities) = self.0.get(&namespace) {
                    take(&namespace, identities);
                }
            }
            Namespaces::Selected(_) => {
                self.0.iter().for_each(|(namespace, identities)| take(namespace, identities));
            }
        }
        members.sort_unstable();
        members
    }
}

fn namespace(labels: &LabelSet) -> NamespaceId {
    NamespaceId { cluster: labels.cluster().clone(), name: labels.namespace().to_owned() }
}
