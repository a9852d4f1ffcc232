//! What a policy chooses pods by.

use std::collections::{BTreeMap, BTreeSet};

use causeway_model::ClusterName;

use crate::identity::LabelSet;
use crate::world::CLUSTER_LABEL;

/// One condition on labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Requirement {
    /// The label is there and has one of these values.
    In(String, BTreeSet<String>),
    /// The label is not there, or has none of these values.
    NotIn(String, BTreeSet<String>),
    /// The label is there.
    Exists(String),
    /// The label is not there.
    DoesNotExist(String),
}

impl Requirement {
    /// The label it is about.
    pub fn key(&self) -> &str {
        match self {
            Self::In(key, _) | Self::NotIn(key, _) | Self::Exists(key) | Self::DoesNotExist(key) => key,
        }
    }

    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(self.key());
        match self {
            Self::In(_, values) => value.is_some_and(|value| values.contains(value)),
            Self::NotIn(_, values) => value.is_none_or(|value| !values.contains(value)),
            Self::Exists(_) => value.is_some(),
            Self::DoesNotExist(_) => value.is_none(),
        }
    }
}

/// Conditions that must all hold; without any, everything is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelSelector(BTreeSet<Requirement>);

impl LabelSelector {
    /// The selector of these conditions.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        Self(requirements.into_iter().collect())
    }

    /// Its conditions.
    pub fn requirements(&self) -> impl Iterator<Item = &Requirement> {
        self.0.iter()
    }

    /// Whether these labels are chosen.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| requirement.holds(labels))
    }

    /// The labels it is about.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(Requirement::key)
    }
}

/// Whose pods are chosen from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    /// Those of this namespace of the own cluster.
    Own(String),
    /// Those of the chosen namespaces: of the own cluster, unless the selector speaks of `causeway.dev/cluster`.
    Selected(LabelSelector),
}

impl Namespaces {
    /// Whether pods of other clusters may be chosen.
    pub fn of_every_cluster(&self) -> bool {
        match self {
            Self::Own(_) => false,
            Self::Selected(selector) => selector.keys().any(|key| key == CLUSTER_LABEL),
        }
    }

    /// Whether pods of a namespace are chosen from.
    pub fn matches(
        &self,
        own: &ClusterName,
        cluster: &ClusterName,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> bool {
        match self {
            Self::Own(name) => cluster == own && namespace == name,
            Self::Selected(selector) => {
                (cluster == own || self.of_every_cluster()) && selector.matches(labels)
            }
        }
    }
}

/// Pods by their namespaces and by their own labels: both must be right.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodSelector {
    /// Whose pods.
    pub namespaces: Namespaces,
    /// Which of them.
    pub pods: LabelSelector,
}

impl PodSelector {
    /// Whether pods of these labels are chosen.
    pub fn matches(&self, own: &ClusterName, labels: &LabelSet) -> bool {
        self.namespaces.matches(own, labels.cluster(), labels.namespace(), labels.namespace_labels())
            && self.pods.matches(labels.labels())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn values(values: &[&str]) -> BTreeSet<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    #[test]
    fn conditions_hold_as_kubernetes_has_them() {
        let labels = map(&[("app", "web")]);
        let app = || "app".to_owned();
        let tier = || "tier".to_owned();
        for (requirement, holds) in [
            (Requirement::In(app(), values(&["web", "api"])), true),
            (Requirement::In(app(), values(&["api"])), false),
            (Requirement::In(tier(), values(&["web"])), false),
            (Requirement::NotIn(app(), values(&["web"])), false),
            (Requirement::NotIn(app(), values(&["api"])), true),
            (Requirement::NotIn(tier(), values(&["web"])), true),
            (Requirement::Exists(app()), true),
            (Requirement::Exists(tier()), false),
            (Requirement::DoesNotExist(app()), false),
            (Requirement::DoesNotExist(tier()), true),
        ] {
            assert_eq!(LabelSelector::new([requirement.clone()]).matches(&labels), holds, "{requirement:?}");
        }
        assert!(LabelSelector::default().matches(&labels));
        let both = LabelSelector::new([Requirement::Exists(app()), Requirement::Exists(tier())]);
        assert!(!both.matches(&labels), "all of them must hold");
    }

    #[test]
    fn other_clusters_are_chosen_from_only_by_name() {
        let (lyon, paris): (ClusterName, ClusterName) = ("lyon".parse().unwrap(), "paris".parse().unwrap());
        let web = |cluster: &ClusterName| {
            let mut namespace = map(&[("team", "red")]);
            if *cluster != lyon {
                namespace.insert(CLUSTER_LABEL.to_owned(), cluster.to_string());
            }
            LabelSet::new(cluster.clone(), "shop", namespace, map(&[("app", "web")]))
        };
        let chosen = |requirements: Vec<Requirement>| {
            let namespaces = Namespaces::Selected(LabelSelector::new(requirements));
            let selector = PodSelector { namespaces, pods: LabelSelector::default() };
            [&lyon, &paris].map(|cluster| selector.matches(&lyon, &web(cluster)))
        };
        let label = || CLUSTER_LABEL.to_owned();
        assert_eq!(chosen(vec![]), [true, false]);
        assert_eq!(chosen(vec![Requirement::Exists("team".to_owned())]), [true, false]);
        assert_eq!(chosen(vec![Requirement::Exists(label())]), [false, true]);
        assert_eq!(chosen(vec![Requirement::In(label(), values(&["paris"]))]), [false, true]);
        assert_eq!(chosen(vec![Requirement::In(label(), values(&["turin"]))]), [false, false]);
        assert_eq!(chosen(vec![Requirement::NotIn(label(), values(&["turin"]))]), [true, true]);
        let own = PodSelector { namespaces: Namespaces::Own("shop".into()), pods: LabelSelector::default() };
        assert!(own.matches(&lyon, &web(&lyon)) && !own.matches(&lyon, &web(&paris)));
    }
}
