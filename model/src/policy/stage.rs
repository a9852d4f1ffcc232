use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::{RuleNumber, Traffic};
use crate::{Identity, PortProtocol};

/// A stage's number on this node. A number whose stage has gone is given to another one later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StageId(pub u32);

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Allows it; no further stage is asked.
    Accept,
    /// Denies it; no further stage is asked.
    Deny,
    /// Leaves it to the next stage.
    Pass,
}

/// A rule as a stage has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StageRule {
    /// What it does.
    pub action: Action,
    /// Which one it is.
    pub number: RuleNumber,
}

/// One kind of peer: the peers that the same rules of a stage speak of. [`Row::NONE`] is a peer that none speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Row(pub u32);

impl Row {
    /// No rule speaks of such a peer.
    pub const NONE: Self = Self(0);
}

/// Ports that no rule of a stage tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Class(pub u32);

impl Class {
    /// Traffic without ports.
    pub const PORTLESS: Self = Self(0);
}

/// An ordered list of rules, laid out for look-up. A connection meets the first rule that speaks of its peer and its port.
/// A peer may be spoken of by identity, by address or both: the earlier rule of the two rows counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// The rules in order.
    pub rules: Vec<StageRule>,
    /// What denies where no rule matches; without it the next stage is asked.
    pub otherwise: Option<RuleNumber>,
    /// The rows of identities, sorted. One that is not here has [`Row::NONE`].
    pub identities: Vec<(Identity, Row)>,
    /// The IPv4 space in pieces: each begins at its address and ends before the next one; the first begins at 0.0.0.0.
    pub v4: Vec<(Ipv4Addr, Row)>,
    /// The IPv6 space in pieces, likewise.
    pub v6: Vec<(Ipv6Addr, Row)>,
    /// The ports of TCP, UDP and SCTP in pieces, likewise: the first begins at 0.
    pub ports: [Vec<(u16, Class)>; 3],
    /// What each row has.
    pub rows: Vec<RowVerdicts>,
    /// The verdicts of rows, one row's after the other's, each row's sorted by class: the first rule that matches, as a place
    /// in `rules`.
    pub verdicts: Vec<(Class, u32)>,
}

/// The verdicts of one kind of peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowVerdicts {
    /// Where its own verdicts begin; they end where the next row's begin.
    pub start: u32,
    /// The first rule without ports that matches: for every class that has no verdict. A place in `rules` or [`Stage::NO_RULE`].
    pub otherwise: u32,
}

impl Stage {
    /// No rule matches.
    pub const NO_RULE: u32 = u32::MAX;

    /// The first rule that matches.
    pub fn first(&self, identity: Identity, address: IpAddr, traffic: Traffic) -> Option<&StageRule> {
        let class = self.class(traffic);
        let by_identity = self.verdict(self.row_of_identity(identity), class);
        let by_address = self.verdict(self.row_of_address(address), class);
        // NO_RULE is greater than any place.
        self.rules.get(by_identity.min(by_address) as usize)
    }

    /// Takes out an identity's row; whether it was there.
    pub fn forget(&mut self, identity: Identity) -> bool {
        let found = self.identities.binary_search_by_key(&identity, |(identity, _)| *identity);
        found.map(|place| self.identities.remove(place)).is_ok()
    }

    /// The row of an identity.
    pub fn row_of_identity(&self, identity: Identity) -> Row {
        let found = self.identities.binary_search_by_key(&identity, |(identity, _)| *identity);
        found.map_or(Row::NONE, |place| self.identities[place].1)
    }

    /// The row of an address.
    pub fn row_of_address(&self, address: IpAddr) -> Row {
        match address {
            IpAddr::V4(address) => piece(&self.v4, address),
            IpAddr::V6(address) => piece(&self.v6, address),
        }
        .unwrap_or(Row::NONE)
    }

    /// The class of some traffic.
    pub fn class(&self, traffic: Traffic) -> Class {
        match traffic {
            Traffic::To(protocol, port) => piece(self.ports_of(protocol), port).unwrap_or(Class::PORTLESS),
            Traffic::Portless => Class::PORTLESS,
        }
    }

    /// The pieces of one protocol's ports.
    pub fn ports_of(&self, protocol: PortProtocol) -> &[(u16, Class)] {
        match protocol {
            PortProtocol::Tcp => &self.ports[0],
            PortProtocol::Udp => &self.ports[1],
            PortProtocol::Sctp => &self.ports[2],
        }
    }

    /// The verdicts of a row that depend on the class of ports.
    pub fn verdicts_of(&self, row: Row) -> &[(Class, u32)] {
        let start = |row: usize| self.rows.get(row).map_or(self.verdicts.len(), |row| row.start as usize);
        &self.verdicts[start(row.0 as usize)..start(row.0 as usize + 1)]
    }

    /// The first rule that matches a row and a class, as a place in `rules` or [`Stage::NO_RULE`].
    fn verdict(&self, row: Row, class: Class) -> u32 {
        let Some(verdicts) = self.rows.get(row.0 as usize) else { return Self::NO_RULE };
        let own = self.verdicts_of(row);
        let found = own.binary_search_by_key(&class, |(class, _)| *class);
        found.map_or(verdicts.otherwise, |place| own[place].1)
    }
}

/// The piece that something lies in.
fn piece<K: Copy + Ord, V: Copy>(pieces: &[(K, V)], at: K) -> Option<V> {
    let after = pieces.partition_point(|(start, _)| *start <= at);
    pieces.get(after.checked_sub(1)?).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rule 0 denies identity 300 on TCP 80, rule 1 accepts 10.0.0.0/8 on everything.
    fn stage() -> Stage {
        let rule = |action, number| StageRule { action, number: RuleNumber(number) };
        Stage {
            rules: vec![rule(Action::Deny, 16), rule(Action::Accept, 17)],
            otherwise: None,
            identities: vec![(Identity(300), Row(1))],
            v4: vec![
                (Ipv4Addr::UNSPECIFIED, Row::NONE),
                (Ipv4Addr::new(10, 0, 0, 0), Row(2)),
                (Ipv4Addr::new(11, 0, 0, 0), Row::NONE),
            ],
            v6: Vec::new(),
            ports: [vec![(0, Class(0)), (80, Class(1)), (81, Class(0))], Vec::new(), Vec::new()],
            rows: vec![
                RowVerdicts { start: 0, otherwise: Stage::NO_RULE },
                RowVerdicts { start: 0, otherwise: Stage::NO_RULE },
                RowVerdicts { start: 1, otherwise: 1 },
            ],
            verdicts: vec![(Class(1), 0)],
        }
    }

    #[test]
    fn the_earlier_rule_of_identity_and_address_counts() {
        let stage = stage();
        let number = |identity, address: &str, traffic| {
            stage.first(identity, address.parse().unwrap(), traffic).map(|rule| rule.number.0)
        };
        let tcp = |port| Traffic::To(PortProtocol::Tcp, port);
        assert_eq!(number(Identity(300), "10.1.1.1", tcp(80)), Some(16));
        assert_eq!(number(Identity(300), "10.1.1.1", tcp(81)), Some(17));
        assert_eq!(number(Identity(300), "11.0.0.0", tcp(80)), Some(16));
        assert_eq!(number(Identity(300), "11.0.0.0", tcp(79)), None);
        assert_eq!(number(Identity(301), "10.255.255.255", Traffic::Portless), Some(17));
        assert_eq!(number(Identity(301), "9.255.255.255", Traffic::Portless), None);
        assert_eq!(number(Identity(301), "fd00::1", tcp(80)), None);
    }
}
