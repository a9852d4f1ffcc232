//! Sets of labels and the numbers that stand for them on this node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use causeway_model::{ClusterName, Identity};

use crate::world::NamedPort;

/// Labels that differ from replica to replica or from run to run: with them, every pod would have an identity of its own.
const FILTERED: &[&str] = &[
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/job-name",
    "controller-revision-hash",
    "controller-uid",
    "job-name",
    "pod-template-generation",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
];

/// Whether a label is left out of identities as long as no selector speaks of it.
pub fn is_filtered(label: &str) -> bool {
    FILTERED.contains(&label)
}

/// All that rules can tell endpoints apart by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelSet {
    cluster: ClusterName,
    namespace: String,
    namespace_labels: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    ports: BTreeSet<NamedPort>,
}

impl LabelSet {
    /// The labels of an endpoint in a namespace of a cluster, less the filtered ones. An attachment that no pod object describes
    /// is in the namespace of no name.
    pub fn new(
        cluster: ClusterName,
        namespace: impl Into<String>,
        namespace_labels: BTreeMap<String, String>,
        labels: BTreeMap<String, String>,
    ) -> Self {
        Self::seeing(cluster, namespace, namespace_labels, labels, &BTreeSet::new())
    }

    /// Like [`LabelSet::new`], with those of the filtered labels that a selector wants to see.
    pub fn seeing(
        cluster: ClusterName,
        namespace: impl Into<String>,
        namespace_labels: BTreeMap<String, String>,
        mut labels: BTreeMap<String, String>,
        wanted: &BTreeSet<String>,
    ) -> Self {
        labels.retain(|label, _| !is_filtered(label) || wanted.contains(label));
        Self { cluster, namespace: namespace.into(), namespace_labels, labels, ports: BTreeSet::new() }
    }

    /// The same with the ports that the endpoint names: a rule may speak of a port by its name.
    pub fn with_ports(self, ports: BTreeSet<NamedPort>) -> Self {
        Self { ports, ..self }
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// The namespace's name.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The namespace's labels.
    pub fn namespace_labels(&self) -> &BTreeMap<String, String> {
        &self.namespace_labels
    }

    /// The endpoint's own labels.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }

    /// The ports that the endpoint names.
    pub fn ports(&self) -> &BTreeSet<NamedPort> {
        &self.ports
    }
}

/// Gives each set of labels one number for as long as anything uses it.
#[derive(Debug, Default)]
pub struct Identities {
    numbers: BTreeMap<Arc<LabelSet>, Identity>,
    uses: BTreeMap<Identity, Uses>,
    last: Option<u32>,
}

#[derive(Debug)]
struct Uses {
    labels: Arc<LabelSet>,
    count: usize,
}

impl Identities {
    /// The number of a set of labels, used once more from now on: [`Identities::release`] it when the use ends.
    pub fn intern(&mut self, labels: LabelSet) -> Identity {
        let identity = self.numbers.get(&labels).copied().unwrap_or_else(|| self.next_free());
        self.count_use(identity, labels);
        identity
    }

    /// Like [`Identities::intern`], for a set that had this number before a restart: it gets the same one again unless the
    /// number is another set's by now.
    pub fn intern_again(&mut self, labels: LabelSet, before: Identity) -> Identity {
        let free = before.0 >= Identity::FIRST_INTERNED && !self.uses.contains_key(&before);
        if !free || self.numbers.contains_key(&labels) {
            return self.intern(labels);
        }
        self.last = self.last.max(Some(before.0));
        self.count_use(before, labels);
        before
    }

    /// Ends one use of a number; the last one frees it. Reserved and unknown numbers have no uses to end.
    pub fn release(&mut self, identity: Identity) {
        let Some(uses) = self.uses.get_mut(&identity) else { return };
        uses.count -= 1;
        if uses.count == 0 {
            self.numbers.remove(&uses.labels);
            self.uses.remove(&identity);
        }
    }

    /// How many use a number.
    pub fn uses(&self, identity: Identity) -> usize {
        self.uses.get(&identity).map_or(0, |uses| uses.count)
    }

    /// Gives a number that is in use another set of labels, which has none: its users are known by these from now on. Returns
    /// those that it had.
    pub fn relabel(&mut self, identity: Identity, labels: LabelSet) -> Option<Arc<LabelSet>> {
        if self.numbers.contains_key(&labels) {
            return None;
        }
        let labels = Arc::new(labels);
        let before = std::mem::replace(&mut self.uses.get_mut(&identity)?.labels, labels.clone());
        self.numbers.remove(&before);
        self.numbers.insert(labels, identity);
        Some(before)
    }

    /// The number of a set of labels that is in use.
    pub fn number(&self, labels: &LabelSet) -> Option<Identity> {
        self.numbers.get(labels).copied()
    }

    /// The labels behind a number that is in use.
    pub fn labels(&self, identity: Identity) -> Option<&LabelSet> {
        self.uses.get(&identity).map(|uses| &*uses.labels)
    }

    /// Like [`Identities::labels`], to be kept.
    pub fn shared_labels(&self, identity: Identity) -> Option<Arc<LabelSet>> {
        self.uses.get(&identity).map(|uses| uses.labels.clone())
    }

    /// Every number in use and its labels.
    pub fn iter(&self) -> impl Iterator<Item = (Identity, &LabelSet)> {
        self.uses.iter().map(|(identity, uses)| (*identity, &*uses.labels))
    }

    fn count_use(&mut self, identity: Identity, labels: LabelSet) {
        let uses = self.uses.entry(identity).or_insert_with(|| Uses { labels: Arc::new(labels), count: 0 });
        uses.count += 1;
        self.numbers.entry(uses.labels.clone()).or_insert(identity);
    }

    /// The next number nobody uses. Numbers go up as long as they can, so that one just freed, which a flow may still carry,
    /// is not another's at once.
    fn next_free(&mut self) -> Identity {
        let mut number = self.last;
        loop {
            let next = number.and_then(|n| n.checked_add(1)).unwrap_or(Identity::FIRST_INTERNED);
            if !self.uses.contains_key(&Identity(next)) {
                self.last = Some(next);
                return Identity(next);
            }
            number = Some(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn set(cluster: &str, namespace: &str, labels: &[(&str, &str)]) -> LabelSet {
        LabelSet::new(cluster.parse().unwrap(), namespace, map(&[("team", namespace)]), map(labels))
    }

    #[test]
    fn what_selectors_can_tell_apart_has_different_numbers_and_nothing_else_has() {
        let mut identities = Identities::default();
        let web = identities.intern(set("lyon", "shop", &[("app", "web")]));
        assert_eq!(web, Identity(Identity::FIRST_INTERNED));
        for (other, what) in [
            (set("paris", "shop", &[("app", "web")]), "cluster"),
            (set("lyon", "bank", &[("app", "web")]), "namespace"),
            (set("lyon", "shop", &[("app", "api")]), "label"),
            (set("lyon", "shop", &[]), "no label"),
            (
                LabelSet::new("lyon".parse().unwrap(), "shop", map(&[]), map(&[("app", "web")])),
                "namespace label",
            ),
        ] {
            assert_ne!(identities.intern(other), web, "{what}");
        }
        let replica =
            set("lyon", "shop", &[("app", "web"), ("pod-template-hash", "7d4"), ("job-name", "x-1")]);
        assert_eq!(identities.intern(replica), web, "hashes of replicas and jobs are nobody's identity");
    }

    #[test]
    fn a_number_is_freed_by_its_last_user_and_not_handed_out_at_once() {
        let mut identities = Identities::default();
        let web = identities.intern(set("lyon", "shop", &[]));
        assert_eq!(identities.intern(set("lyon", "shop", &[])), web);
        identities.release(web);
        assert!(identities.labels(web).is_some(), "one user is left");
        identities.release(web);
        assert_eq!(identities.labels(web), None);
        assert_ne!(identities.intern(set("lyon", "bank", &[])), web);
        identities.release(web);
        identities.release(Identity::WORLD);
        assert_eq!(identities.iter().count(), 1, "ending what is not there ends nothing");
    }

    #[test]
    fn numbers_survive_a_restart_where_they_can() {
        let mut identities = Identities::default();
        let (shop, bank) = (set("lyon", "shop", &[]), set("lyon", "bank", &[]));
        assert_eq!(identities.intern_again(shop.clone(), Identity(700)), Identity(700));
        assert_eq!(identities.intern_again(shop.clone(), Identity(701)), Identity(700), "it has one already");
        let bank = identities.intern_again(bank, Identity(700));
        assert_eq!(bank, Identity(701), "700 is the shop's");
        let reserved = identities.intern_again(set("lyon", "x", &[]), Identity::HOST);
        assert!(reserved.0 >= Identity::FIRST_INTERNED);
    }

    #[test]
    fn the_end_of_the_numbers_is_their_beginning() {
        let mut identities = Identities::default();
        identities.intern_again(set("lyon", "a", &[]), Identity(u32::MAX));
        identities.intern_again(set("lyon", "b", &[]), Identity(Identity::FIRST_INTERNED));
        assert_eq!(identities.intern(set("lyon", "c", &[])), Identity(Identity::FIRST_INTERNED + 1));
    }

    proptest! {
        #[test]
        fn numbers_are_one_to_one_and_stable_while_in_use(steps in prop::collection::vec((0u8..12, any::<bool>()), 1..200)) {
            let mut identities = Identities::default();
            let mut model: BTreeMap<u8, (Identity, usize)> = BTreeMap::new();
            for (who, up) in steps {
                let labels = set("lyon", &who.to_string(), &[]);
                if up {
                    let identity = identities.intern(labels);
                    let entry = model.entry(who).or_insert((identity, 0));
                    prop_assert_eq!(entry.0, identity);
                    entry.1 += 1;
                } else if let Some((identity, count)) = model.get_mut(&who) {
                    identities.release(*identity);
                    *count -= 1;
                    if *count == 0 {
                        model.remove(&who);
                    }
                }
                let expected: BTreeSet<_> = model.values().map(|(identity, _)| *identity).collect();
                prop_assert_eq!(expected.len(), model.len());
                prop_assert_eq!(identities.iter().map(|(identity, _)| identity).collect::<BTreeSet<_>>(), expected);
            }
        }
    }
}
