//! What the rules share: where they keep what, and how a frontend is looked up.
//!
//! Registers: 0 to 3 the client, up to 4; from 4 on the frontend; from 10 on what a frontend leads to.

use causeway_model::Family;

use super::set::Set;
use crate::tables::{Chain, Meta, Named, Register, Rule};

pub(super) const FIRST: Register = Register(0);
pub(super) const FRONTEND: Register = Register(4);
pub(super) const FOUND: Register = Register(10);
/// Where the number of its sources lies in what a frontend leads to.
pub(super) const SOURCES: Register = Register(11);

/// Whose connections are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Inside,
    Outside,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::Inside, Self::Outside];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Inside => "inside",
            Self::Outside => "outside",
        }
    }

    /// Where the number of its backends lies in what a frontend leads to; behind it lies the way.
    pub(super) fn place(self) -> u32 {
        match self {
            Self::Inside => 2,
            Self::Outside => 4,
        }
    }

    pub(super) fn backends(self) -> Register {
        FOUND.plus(self.place())
    }

    pub(super) fn way(self) -> Register {
        self.backends().plus(1)
    }
}

/// By what a frontend is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// The address that was asked.
    Address,
    /// Being a node's address.
    Nodes,
}

pub(super) fn words_of(of: Family) -> u32 {
    match of {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}

pub(super) fn digit(of: Family) -> char {
    match of {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

/// A rule about packets of one family.
pub(super) fn about(of: Family) -> Rule {
    let number: u8 = match of {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    Rule::default().meta(Meta::Family, FIRST).equal(FIRST, &[number])
}

pub(super) trait Headers {
    fn source(self, of: Family, to: Register) -> Self;
    fn destination(self, of: Family, to: Register) -> Self;
    fn frontend(self, of: Family, by: By) -> Self;
}

impl Headers for Rule {
    fn source(self, of: Family, to: Register) -> Self {
        match of {
            Family::V4 => self.header(12, 4, to),
            Family::V6 => self.header(8, 16, to),
        }
    }

    fn destination(self, of: Family, to: Register) -> Self {
        match of {
            Family::V4 => self.header(16, 4, to),
            Family::V6 => self.header(24, 16, to),
        }
    }

    /// Loads where the packet goes.
    fn frontend(self, of: Family, by: By) -> Self {
        let behind = FRONTEND.plus(words_of(of));
        let at = match by {
            By::Address => self.destination(of, FRONTEND),
            By::Nodes => self.constant(&vec![0; 4 * words_of(of) as usize], FRONTEND),
        };
        at.meta(Meta::Protocol, behind).transport(2, 2, behind.plus(1))
    }
}

/// Looks up where the packet goes. Of what is found, these registers, and so many words from there, are read later: nft, when it
/// lists the table, takes them for the constants that were there before.
pub(super) fn find(of: Family, by: By, to: Register, read: &[(Register, u32)]) -> Rule {
    let rule = read.iter().fold(about(of), |rule, (at, words)| zeros(rule, *at, *words));
    rule.frontend(of, by).look_up(Set::Frontends(of).name(), FRONTEND, to)
}

/// Zero words. A constant has four at most.
pub(super) fn zeros(rule: Rule, at: Register, words: u32) -> Rule {
    let pieces = (0..words).step_by(4).map(|from| (at.plus(from), (words - from).min(4)));
    pieces.fold(rule, |rule, (at, words)| rule.constant(&vec![0; 4 * words as usize], at))
}

pub(super) fn chain(name: impl Into<String>, rules: impl Into<Vec<Rule>>) -> Chain {
    Chain { name: name.into(), hook: None, rules: rules.into() }
}
