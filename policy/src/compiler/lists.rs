//! The policies' lists of rules: selectors and rule ids turned into numbers, all policies in the order they are asked.

use std::collections::{BTreeMap, BTreeSet};

use causeway_model::policy::{Action, Direction, RuleId, RuleIndex, RuleNumber, Rulebook};
use causeway_model::{ClusterName, Identity};

use super::numbers::Numbers;
use super::selectors::{SelectorId, Selectors};
use crate::identity::LabelSet;
use crate::policy::{Block, Peer, Policy, PolicyKey, PolicyKind, PortMatch, Rule, Tier};
use crate::selector::LabelSelector;

/// A list that never changes: a changed one is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ListId(u32);

/// One policy's rules of one direction.
#[derive(Debug)]
pub(super) struct List {
    /// The rules in order.
    pub rules: Vec<ListedRule>,
    /// What denies where no rule of a NetworkPolicy allows.
    pub isolation: Option<RuleNumber>,
    /// The names of ports that its rules speak of.
    pub port_names: BTreeSet<String>,
}

/// A rule with numbers for names.
#[derive(Debug)]
pub(super) struct ListedRule {
    pub action: Action,
    pub number: RuleNumber,
    pub peers: ListedPeers,
    pub ports: Option<Vec<PortMatch>>,
}

/// Any of them.
#[derive(Debug, Default)]
pub(super) struct ListedPeers {
    pub anybody: bool,
    pub selectors: Vec<SelectorId>,
    pub blocks: Vec<Block>,
    pub nodes: Vec<LabelSelector>,
}

/// A policy that is taken up.
#[derive(Debug, PartialEq, Eq)]
struct Installed {
    subject: SelectorId,
    lists: [Option<ListId>; 2],
}

/// Everything that policies name, which outlives each of them.
pub(super) struct Names<'a> {
    pub own: &'a ClusterName,
    pub selectors: &'a mut Selectors,
    pub numbers: &'a mut Numbers,
    pub book: &'a mut Rulebook,
}

/// All policies that are taken up.
#[derive(Debug, Default)]
pub(super) struct Lists {
    order: BTreeMap<(Tier, u16, PolicyKey), Installed>,
    lists: BTreeMap<ListId, List>,
    last: u32,
}

impl Lists {
    /// Puts a policy in the place of an older one of its key; the identities to which the one or the other applies.
    pub(super) fn replace(
        &mut self,
        old: Option<&Policy>,
        new: Option<&Policy>,
        names: &mut Names<'_>,
    ) -> BTreeSet<Identity> {
        let before = old.and_then(|old| self.order.remove(&place(old)));
        let kept = |direction: Direction| {
            let (this, old, new) = (before.as_ref()?, old?, new?);
            let same =
                old.uid == new.uid && old.tier == new.tier && old.rules(direction) == new.rules(direction);
            this.lists[direction as usize].filter(|_| same)
        };
        let after = new.map(|new| Installed {
            lists: Direction::BOTH.map(|direction| {
                kept(direction).or_else(|| Some(self.add(new, direction, new.rules(direction)?, names)))
            }),
            subject: names.selectors.take(&new.subject, names.own),
        });
        let moved = before != after || old.map(Policy::rank) != new.map(Policy::rank);
        let both = before.iter().chain(&after).filter(|_| moved);
        let dirty = both.flat_map(|this| names.selectors.members(this.subject)).copied().collect();
        if let Some(before) = before {
            names.selectors.release(before.subject);
            let kept = after.as_ref().map_or([None, None], |after| after.lists);
            for list in before.lists.into_iter().filter(|list| !kept.contains(list)).flatten() {
                self.remove(list, names);
            }
        }
        if let (Some(new), Some(after)) = (new, after) {
            self.order.insert(place(new), after);
        }
        dirty
    }

    fn add(
        &mut self,
        policy: &Policy,
        direction: Direction,
        rules: &[Rule],
        names: &mut Names<'_>,
    ) -> ListId {
        let number = |names: &mut Names<'_>, index| {
            let id = RuleId { policy: policy.uid.clone(), direction, index };
            names.numbers.take(&id, &mut names.book.rules)
        };
        let isolation = (policy.tier == Tier::NetworkPolicy).then(|| number(names, RuleIndex::Isolation));
        let mut port_names = BTreeSet::new();
        let mut listed = Vec::with_capacity(rules.len());
        for rule in rules {
            let mut peers = ListedPeers::default();
            for peer in &rule.peers {
                match peer {
                    Peer::Any => peers.anybody = true,
                    Peer::Pods(selector) => peers.selectors.push(names.selectors.take(selector, names.own)),
                    Peer::Block(block) => peers.blocks.push(block.clone()),
                    Peer::Nodes(selector) => peers.nodes.push(selector.clone()),
                }
            }
            for port in rule.ports.iter().flatten() {
                if let PortMatch::Named(_, name) = port {
                    port_names.insert(name.clone());
                }
            }
            let number = number(names, RuleIndex::Rule(rule.index));
            listed.push(ListedRule { action: rule.action, number, peers, ports: rule.ports.clone() });
        }
        self.last += 1;
        let id = ListId(self.last);
        self.lists.insert(id, List { rules: listed, isolation, port_names });
        id
    }

    fn remove(&mut self, id: ListId, names: &mut Names<'_>) {
        let Some(list) = self.lists.remove(&id) else { return };
        for selector in list.rules.iter().flat_map(|rule| &rule.peers.selectors) {
            names.selectors.release(*selector);
        }
        for number in list.rules.iter().map(|rule| rule.number).chain(list.isolation) {
            names.numbers.release(number, &mut names.book.rules);
        }
    }

    /// A list.
    pub(super) fn get(&self, id: ListId) -> Option<&List> {
        self.lists.get(&id)
    }

    /// What applies to identities, one after the other.
    pub(super) fn applying<'a>(&'a self, selectors: &'a Selectors) -> Applying<'a> {
        let of = |((tier, ..), this): (&(Tier, u16, PolicyKey), &Installed)| Wide {
            tier: *tier,
            lists: this.lists,
            members: selectors.members(this.subject),
        };
        let admin = self.order.iter().take_while(|((tier, ..), _)| *tier == Tier::Admin);
        let baseline = self.order.iter().rev().take_while(|((tier, ..), _)| *tier == Tier::Baseline);
        // Both ends alone are looked at: there may be many policies between them.
        let mut baseline: Vec<_> = baseline.map(of).collect();
        baseline.reverse();
        let wide = admin.map(of).chain(baseline).collect();
        Applying { lists: self, selectors, wide }
    }
}

/// The lists of each tier, by direction, in the order they are asked.
pub(super) type Tiers = [[Vec<ListId>; 3]; 2];

/// What applies to identities that are asked for in ascending order.
pub(super) struct Applying<'a> {
    lists: &'a Lists,
    selectors: &'a Selectors,
    wide: Vec<Wide<'a>>,
}

/// A policy of the whole cluster.
struct Wide<'a> {
    tier: Tier,
    lists: [Option<ListId>; 2],
    /// Those to whom it applies and of whom nobody has asked yet.
    members: &'a [Identity],
}

impl Wide<'_> {
    /// Whether it applies to this one, who comes after all that were asked for.
    fn applies_to(&mut self, identity: Identity) -> bool {
        // Mostly the next one is not far away.
        let mut reach = 1;
        while self.members.get(reach).is_some_and(|member| *member < identity) {
            reach *= 2;
        }
        let near = &self.members[..reach.min(self.members.len())];
        self.members = &self.members[near.partition_point(|member| *member < identity)..];
        self.members.first() == Some(&identity)
    }
}

impl Applying<'_> {
    /// The lists that apply to an identity.
    pub(super) fn to(&mut self, identity: Identity, labels: &LabelSet) -> Tiers {
        let mut found = Tiers::default();
        let mut take = |tier: Tier, lists: [Option<ListId>; 2]| {
            for (direction, list) in Direction::BOTH.into_iter().zip(lists) {
                found[direction as usize][tier as usize].extend(list);
            }
        };
        for wide in &mut self.wide {
            if wide.applies_to(identity) {
                take(wide.tier, wide.lists);
            }
        }
        // The namespace's own policies lie beside each other.
        let first = PolicyKey {
            kind: PolicyKind::NetworkPolicy,
            namespace: labels.namespace().to_owned(),
            name: String::new(),
        };
        let of_namespace = self.lists.order.range((Tier::NetworkPolicy, 0, first)..);
        let of_namespace = of_namespace.take_while(|((tier, _, key), _)| {
            *tier == Tier::NetworkPolicy && key.namespace == labels.namespace()
        });
        for ((tier, ..), this) in of_namespace {
            if self.selectors.chooses(this.subject, identity) {
                take(*tier, this.lists);
            }
        }
        found
    }
}

fn place(policy: &Policy) -> (Tier, u16, PolicyKey) {
    (policy.tier, policy.priority, policy.key.clone())
}
