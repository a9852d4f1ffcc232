//! One stage: an ordered list of rules laid out for look-up.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use causeway_model::policy::{Class, Direction, Peers, Row, RowVerdicts, Stage, StageRule};
use causeway_model::{ClusterName, Identity, NodeId, PortProtocol};

use super::lists::{List, ListedRule};
use super::pieces::{Range, cut, number, of_block};
use super::selectors::{SelectorId, Selectors};
use crate::identity::Identities;
use crate::policy::{Block, PortMatch};
use crate::world::{NamedPort, NodeFacts};

/// What a stage is made from beside its lists.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    pub own: &'a ClusterName,
    pub selectors: &'a Selectors,
    pub identities: &'a Identities,
    pub nodes: &'a BTreeMap<NodeId, NodeFacts>,
    pub peers: &'a Peers,
}

/// What is needed beside a stage to change it.
#[derive(Debug)]
pub(super) struct Draft {
    atoms: Vec<Atom>,
    rows: HashMap<Vec<u32>, Row>,
    /// The selectors that its rows depend on.
    pub selectors: BTreeSet<SelectorId>,
    /// It depends on which ports its peers name, and so on every identity and address.
    pub names_ports_of_peers: bool,
    /// It depends on nodes.
    pub has_nodes: bool,
}

/// A part of a rule that one set of ports and one set of peers tell: a rule without port names is one atom.
#[derive(Debug)]
struct Atom {
    /// The rule's place.
    place: u32,
    /// The classes of its ports; `None` is all traffic.
    classes: Option<Vec<Class>>,
    /// Its peers among identities.
    selectors: Vec<SelectorId>,
}

/// What the atoms cover, before rows and classes are known.
#[derive(Default)]
struct Cover {
    atoms: Vec<Atom>,
    identities: BTreeMap<Identity, Vec<u32>>,
    v4: Vec<Range>,
    v6: Vec<Range>,
    ports: [Vec<Range>; 3],
}

impl Draft {
    /// Lays out lists of rules. `served` are the ports that the endpoints themselves name: by these a rule for ingress means
    /// its port names.
    pub(super) fn new(
        direction: Direction,
        lists: &[&List],
        served: &[NamedPort],
        facts: Facts<'_>,
    ) -> (Self, Stage) {
        let rules: Vec<_> = lists.iter().flat_map(|list| &list.rules).collect();
        let mut cover = Cover::default();
        for (place, rule) in (0..).zip(&rules) {
            cover.add(direction, place, rule, served, facts);
        }
        let Cover { atoms, identities, v4, v6, ports } = cover;
        let mut stage = Stage {
            rules: rules.iter().map(|rule| StageRule { action: rule.action, number: rule.number }).collect(),
            otherwise: lists.iter().find_map(|list| list.isolation),
            identities: Vec::new(),
            v4: Vec::new(),
            v6: Vec::new(),
            ports: Default::default(),
            rows: Vec::new(),
            verdicts: Vec::new(),
        };
        let has_nodes = rules.iter().any(|rule| !rule.peers.nodes.is_empty());
        let names_ports_of_peers =
            direction == Direction::Egress && lists.iter().any(|list| !list.port_names.is_empty());
        let selectors = rules.iter().flat_map(|rule| rule.peers.selectors.iter().copied()).collect();
        let mut draft = Self { atoms, rows: HashMap::new(), selectors, names_ports_of_peers, has_nodes };
        draft.lay_ports(&ports, &mut stage);
        // Row::NONE.
        draft.row(Vec::new(), &mut stage);
        stage.identities = identities
            .into_iter()
            .map(|(identity, atoms)| (identity, draft.row(atoms, &mut stage)))
            .collect();
        let mut pieces = |ranges: &[Range], last: u128| -> Vec<(u128, Row)> {
            cut(ranges, last)
                .into_iter()
                .map(|(start, atoms)| (start, draft.row(atoms, &mut stage)))
                .collect()
        };
        let (v4, v6) = (pieces(&v4, u128::from(u32::MAX)), pieces(&v6, u128::MAX));
        stage.v4 = merged(v4, |bits| Ipv4Addr::from_bits(bits as u32));
        stage.v6 = merged(v6, Ipv6Addr::from_bits);
        (draft, stage)
    }

    /// Cuts the ports into classes, and tells the atoms theirs.
    fn lay_ports(&mut self, ports: &[Vec<Range>; 3], stage: &mut Stage) {
        let mut classes: HashMap<Vec<u32>, Class> = HashMap::from([(Vec::new(), Class::PORTLESS)]);
        for (laid, ranges) in stage.ports.iter_mut().zip(ports) {
            let pieces = cut(ranges, u128::from(u16::MAX)).into_iter().map(|(start, atoms)| {
                let next = Class(classes.len() as u32);
                let class = *classes.entry(atoms).or_insert(next);
                (start, class)
            });
            *laid = merged(pieces.collect(), |port| port as u16);
        }
        let mut classes: Vec<_> = classes.into_iter().collect();
        classes.sort_unstable_by_key(|(_, class)| *class);
        for (atoms, class) in classes {
            for atom in atoms {
                if let Some(classes) = &mut self.atoms[atom as usize].classes {
                    classes.push(class);
                }
            }
        }
    }

    /// Nothing comes after a rule that takes all traffic.
    fn cut_short(&self, atoms: &mut Vec<u32>) {
        if let Some(last) = atoms.iter().position(|atom| self.atoms[*atom as usize].classes.is_none()) {
            atoms.truncate(last + 1);
        }
    }

    /// The row of peers that these atoms speak of, in order.
    fn row(&mut self, mut atoms: Vec<u32>, stage: &mut Stage) -> Row {
        self.cut_short(&mut atoms);
        if let Some(row) = self.rows.get(&atoms) {
            return *row;
        }
        let row = Row(stage.rows.len() as u32);
        let mut verdicts: Vec<(Class, u32)> = Vec::new();
        let mut otherwise = Stage::NO_RULE;
        for atom in atoms.iter().map(|atom| &self.atoms[*atom as usize]) {
            match &atom.classes {
                None => otherwise = atom.place,
                Some(classes) => verdicts.extend(classes.iter().map(|class| (*class, atom.place))),
            }
        }
        verdicts.sort_unstable();
        verdicts.dedup_by_key(|(class, _)| *class);
        let start = stage.verdicts.len() as u32;
        stage.rows.push(RowVerdicts { start, otherwise });
        stage.verdicts.append(&mut verdicts);
        self.rows.insert(atoms, row);
        row
    }

    /// Gives identities the rows of those whom their selectors choose, identities and selectors being sorted; whether any had another
    /// one. Not for stages that depend on the ports of peers: these are laid out anew.
    pub(super) fn put(&mut self, identities: &[(Identity, &[SelectorId])], stage: &mut Arc<Stage>) -> bool {
        let mut new = Vec::new();
        let (mut changed, mut gone) = (false, false);
        for (identity, chosen) in identities {
            let atoms = self.chosen_by(chosen);
            let place = stage.identities.binary_search_by_key(identity, |(identity, _)| *identity);
            let before = place.map_or(Row::NONE, |place| stage.identities[place].1);
            // A data path may hold the stage as it was: it is copied only if it changes.
            if self.rows.get(&atoms) == Some(&before) {
                continue;
            }
            changed = true;
            let stage = Arc::make_mut(stage);
            let row = self.row(atoms, stage);
            match place {
                Ok(place) => stage.identities[place].1 = row,
                Err(_) => new.push((*identity, row)),
            }
            gone |= row == Row::NONE;
        }
        if gone {
            Arc::make_mut(stage).identities.retain(|(_, row)| *row != Row::NONE);
        }
        if !new.is_empty() {
            let all = &mut Arc::make_mut(stage).identities;
            let behind = all.last() < new.first();
            all.append(&mut new);
            if !behind {
                // Two sorted runs are one walk.
                all.sort_by_key(|(identity, _)| *identity);
            }
        }
        changed
    }

    /// The atoms of which any selector is one of these.
    fn chosen_by(&self, selectors: &[SelectorId]) -> Vec<u32> {
        let speaks = |atom: &Atom| atom.selectors.iter().any(|id| selectors.binary_search(id).is_ok());
        let atoms = (0..).zip(&self.atoms).filter(|(_, atom)| speaks(atom));
        let mut atoms = atoms.map(|(index, _)| index).collect();
        self.cut_short(&mut atoms);
        atoms
    }
}

impl Cover {
    fn add(
        &mut self,
        direction: Direction,
        place: u32,
        rule: &ListedRule,
        served: &[NamedPort],
        facts: Facts<'_>,
    ) {
        let mut names = Vec::new();
        let mut ranges = Vec::new();
        for port in rule.ports.iter().flatten() {
            match port {
                PortMatch::Range(protocol, range) => ranges.push((*protocol, *range.start(), *range.end())),
                PortMatch::Named(protocol, name) => names.push((*protocol, name.as_str())),
            }
        }
        if direction == Direction::Ingress {
            ranges.extend(resolved(&names, served).map(|(protocol, port)| (protocol, port, port)));
        }
        let all = rule.ports.is_none();
        if all || !ranges.is_empty() {
            let atom = self.atom(place, rule.peers.selectors.clone(), (!all).then_some(&ranges));
            for identity in chosen(rule, facts) {
                self.speak_of(identity, atom);
            }
            self.cover_addresses(rule, atom, facts);
        }
        if direction == Direction::Egress && !names.is_empty() {
            self.add_names(place, rule, &names, facts);
        }
    }

    /// Adds what a rule for egress says of named ports: each peer is asked by itself.
    fn add_names(
        &mut self,
        place: u32,
        rule: &ListedRule,
        names: &[(Option<PortProtocol>, &str)],
        facts: Facts<'_>,
    ) {
        type Peers = (BTreeSet<Identity>, BTreeSet<IpAddr>);
        let mut serving: BTreeMap<(PortProtocol, u16), Peers> = BTreeMap::new();
        let ports = |identity| {
            let labels = facts.identities.labels(identity);
            labels.into_iter().flat_map(|labels| resolved(names, labels.ports()))
        };
        let everybody = facts.selectors.everybody().filter(|_| rule.peers.anybody);
        for identity in everybody.chain(chosen(rule, facts)) {
            for port in ports(identity) {
                serving.entry(port).or_default().0.insert(identity);
            }
        }
        for (address, identity) in facts.peers.addresses.iter().filter(|_| !rule.peers.blocks.is_empty()) {
            if rule.peers.blocks.iter().any(|block| block.contains(*address)) {
                for port in ports(*identity) {
                    serving.entry(port).or_default().1.insert(*address);
                }
            }
        }
        for ((protocol, port), (identities, addresses)) in serving {
            let atom = self.atom(place, Vec::new(), Some(&[(protocol, port, port)]));
            for identity in identities {
                self.speak_of(identity, atom);
            }
            for address in addresses {
                self.cover_address(address, atom);
            }
        }
    }

    fn atom(
        &mut self,
        place: u32,
        selectors: Vec<SelectorId>,
        ports: Option<&[(PortProtocol, u16, u16)]>,
    ) -> u32 {
        let atom = self.atoms.len() as u32;
        self.atoms.push(Atom { place, classes: ports.map(|_| Vec::new()), selectors });
        for (protocol, start, end) in ports.into_iter().flatten() {
            self.ports[*protocol as usize].push((u128::from(*start), u128::from(*end), atom));
        }
        atom
    }

    fn speak_of(&mut self, identity: Identity, atom: u32) {
        let atoms = self.identities.entry(identity).or_default();
        if atoms.last() != Some(&atom) {
            atoms.push(atom);
        }
    }

    fn cover_addresses(&mut self, rule: &ListedRule, atom: u32, facts: Facts<'_>) {
        if rule.peers.anybody {
            self.v4.push((0, u128::from(u32::MAX), atom));
            self.v6.push((0, u128::MAX, atom));
        }
        for block in &rule.peers.blocks {
            self.cover_block(block, atom);
        }
        for selector in &rule.peers.nodes {
            let nodes = facts.nodes.iter().filter(|(id, _)| id.cluster == *facts.own);
            for (_, node) in nodes.filter(|(_, node)| selector.matches(&node.labels)) {
                node.addresses.iter().for_each(|address| self.cover_address(*address, atom));
            }
        }
    }

    fn cover_block(&mut self, block: &Block, atom: u32) {
        let ranges = of_block(block, atom);
        if block.cidr.is_ipv4() { &mut self.v4 } else { &mut self.v6 }.extend(ranges);
    }

    fn cover_address(&mut self, address: IpAddr, atom: u32) {
        let at = number(address);
        if address.is_ipv4() { &mut self.v4 } else { &mut self.v6 }.push((at, at, atom));
    }
}

/// The identities that a rule chooses; some may come twice.
fn chosen<'a>(rule: &'a ListedRule, facts: Facts<'a>) -> impl Iterator<Item = Identity> + 'a {
    rule.peers.selectors.iter().flat_map(move |id| facts.selectors.members(*id).iter().copied())
}

/// The ports behind names, as somebody has named them.
fn resolved<'a>(
    names: &'a [(Option<PortProtocol>, &'a str)],
    served: impl IntoIterator<Item = &'a NamedPort>,
) -> impl Iterator<Item = (PortProtocol, u16)> {
    served.into_iter().filter_map(|port| {
        let is = |(protocol, name): &(Option<PortProtocol>, &str)| {
            port.name == *name && protocol.is_none_or(|protocol| protocol == port.protocol)
        };
        names.iter().any(is).then_some((port.protocol, port.port))
    })
}

/// Pieces in their own type, neighbours of one value being one piece.
fn merged<K, V: PartialEq>(mut pieces: Vec<(u128, V)>, start: impl Fn(u128) -> K) -> Vec<(K, V)> {
    pieces.dedup_by(|next, last| next.1 == last.1);
    pieces.into_iter().map(|(at, value)| (start(at), value)).collect()
}
