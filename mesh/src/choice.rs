//! Which backends new connections go to: the importer's affinity and preference, over those that are healthy.

use causeway_model::ClusterName;
use causeway_model::service::{Backend, gcd};

use crate::facts::State;
use crate::prefer::{Affinity, Preference, Tier};

/// A backend that some cluster offers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// Whose it is.
    pub cluster: ClusterName,
    /// Where it is.
    pub backend: Backend,
    /// Whether it takes connections.
    pub state: State,
    /// The first tier of the preference that it is in.
    pub tier: Option<usize>,
    /// Its part of new connections among all; zero: none.
    pub weight: u32,
}

/// Who chooses, and what is known of the clusters.
pub(crate) struct Chooser<'a> {
    pub own: &'a ClusterName,
    pub affinity: Affinity,
    pub prefer: Option<&'a Preference>,
    pub region: &'a dyn Fn(&ClusterName) -> Option<&'a str>,
}

/// Every count of backends up to 16 divides it: parts of entries stay exact.
const SCALE: u64 = 720_720;

impl Chooser<'_> {
    /// Settles the weights.
    pub fn choose(&self, candidates: &mut [Candidate]) {
        for candidate in candidates.iter_mut() {
            candidate.weight = 0;
            candidate.tier = self.prefer.and_then(|prefer| {
                prefer.tiers.iter().position(|tier| self.entry(tier, &candidate.cluster).is_some())
            });
        }
        let pool = self.pool(candidates);
        let mut parts = vec![0; candidates.len()];
        match self.prefer {
            None => pool.iter().for_each(|index| parts[*index] = 1),
            Some(prefer) => self.serve(prefer, candidates, &pool, &mut parts),
        }
        let divisor = parts.iter().copied().fold(0, gcd).max(1);
        for (candidate, part) in candidates.iter_mut().zip(parts) {
            candidate.weight = u32::try_from(part / divisor).unwrap_or(u32::MAX);
        }
    }

    /// Those among whom is chosen: the healthy ones (where nobody is, those that drain), of them the own or the others'.
    fn pool(&self, candidates: &[Candidate]) -> Vec<usize> {
        let of = |state| {
            let is = move |index: &usize| candidates[*index].state == state;
            (0..candidates.len()).filter(is).collect::<Vec<_>>()
        };
        let mut live = of(State::Ready);
        if live.is_empty() {
            live = of(State::Draining);
        }
        let (own, others): (Vec<_>, Vec<_>) =
            live.iter().copied().partition(|index| candidates[*index].cluster == *self.own);
        match self.affinity {
            Affinity::None => live,
            Affinity::Local if !own.is_empty() => own,
            Affinity::Remote if others.is_empty() => own,
            Affinity::Local | Affinity::Remote => others,
        }
    }

    /// The first tier that has enough serves alone; where none has, all tiers together; where none has anybody, all others.
    fn serve(&self, prefer: &Preference, candidates: &[Candidate], pool: &[usize], parts: &mut [u64]) {
        for tier in &prefer.tiers {
            let inside: Vec<_> =
                pool.iter().filter_map(|i| Some((*i, self.entry(tier, &candidates[*i].cluster)?))).collect();
            if inside.len() >= tier.min as usize {
                share(tier, &inside, parts);
                return;
            }
        }
        for (number, tier) in prefer.tiers.iter().enumerate() {
            let first = |index: &&usize| candidates[**index].tier == Some(number);
            let inside = pool.iter().filter(first);
            let inside: Vec<_> =
                inside.filter_map(|i| Some((*i, self.entry(tier, &candidates[*i].cluster)?))).collect();
            share(tier, &inside, parts);
        }
        if parts.iter().all(|part| *part == 0) {
            pool.iter().for_each(|index| parts[*index] = 1);
        }
    }

    /// The entry of a tier that a cluster belongs to: the first that names it or its region.
    fn entry(&self, tier: &Tier, cluster: &ClusterName) -> Option<usize> {
        tier.entries.iter().position(|entry| entry.who.is(cluster, (self.region)(cluster)))
    }
}

/// Gives each backend its part of its entry's weight.
fn share(tier: &Tier, inside: &[(usize, usize)], parts: &mut [u64]) {
    for (number, entry) in tier.entries.iter().enumerate() {
        let of_entry = || inside.iter().filter(move |(_, entry)| *entry == number);
        let count = of_entry().count() as u64;
        for (index, _) in of_entry() {
            parts[*index] = (u64::from(entry.weight) * SCALE / count).max(1);
        }
    }
}
