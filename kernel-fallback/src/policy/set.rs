//! The sets and maps of the table, and what an entry of them is.

use causeway_model::Family;

use crate::tables::{Definition, Kind, Named};

/// A set or map that updates change. Numbers are four bytes each, the highest first. A key of several parts with a number from
/// a look-up among them begins with a zero word ([`super::program`] says why).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Set {
    /// (address, direction) → the stamp that flows judged under the endpoint's table bear. What has one is an endpoint of this node.
    Stamps(Family),
    /// (address, a field of the connection's mark): what such a flow has been judged under holds still.
    Current(Family),
    /// (address, place) → stage: what is asked of an endpoint.
    Tables(Family),
    /// Address → identity; nobody's: [`NOBODY`].
    Peers(Family),
    /// The pod prefixes of all clusters.
    Clusters(Family),
    /// (stage, identity) → row; no rule speaks of it: 0.
    Rows,
    /// (stage, address) → row, in intervals that cover each stage's whole space.
    Pieces(Family),
    /// (stage, protocol, port) → class, in intervals that cover all of it.
    Classes,
    /// (stage, row, class) → (order, action, number) of the rule, in intervals that cover each row.
    Verdicts,
    /// (order, order), the first being no later than the second.
    Earlier,
    /// Zero → the number of the last change, as far as two changes in the middle of a judgement are to be told apart.
    Phase,
}

/// An address that nobody is known to have.
pub(super) const NOBODY: u32 = 0;
/// The order of no rule: behind all.
pub(super) const LAST: u32 = u32::MAX;
/// How many stages a table may have.
pub(super) const PLACES: u32 = 3;

impl Set {
    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let of_family =
            [Self::Stamps, Self::Current, Self::Tables, Self::Peers, Self::Clusters, Self::Pieces];
        let both = of_family.into_iter().flat_map(|set| Family::BOTH.into_iter().map(set));
        both.chain([Self::Rows, Self::Classes, Self::Verdicts, Self::Earlier, Self::Phase])
    }

    pub(super) fn is_interval(self) -> bool {
        matches!(self, Self::Clusters(_) | Self::Pieces(_) | Self::Classes | Self::Verdicts | Self::Earlier)
    }

    pub(super) fn definition(self) -> Definition {
        let address = |family| match family {
            Family::V4 => Kind::V4,
            Family::V6 => Kind::V6,
        };
        const WORD: Kind = Kind::Word;
        let interval = self.is_interval();
        match self {
            Self::Stamps(family) | Self::Tables(family) => {
                Definition::new(interval, &[address(family), WORD], &[WORD])
            }
            Self::Current(family) => Definition::new(interval, &[address(family), WORD], &[]),
            Self::Peers(family) => Definition::new(interval, &[address(family)], &[WORD]),
            Self::Clusters(family) => Definition::new(interval, &[address(family)], &[]),
            Self::Rows => Definition::new(interval, &[WORD; 3], &[WORD]),
            Self::Pieces(family) => Definition::new(interval, &[WORD, WORD, address(family)], &[WORD]),
            Self::Classes => Definition::new(interval, &[WORD; 4], &[WORD]),
            Self::Verdicts => Definition::new(interval, &[WORD; 4], &[WORD; 3]),
            Self::Earlier => Definition::new(interval, &[WORD; 3], &[]),
            Self::Phase => Definition::new(interval, &[WORD], &[WORD]),
        }
    }

    /// What a map has for keys that it does not have.
    pub(super) fn otherwise(self) -> Option<u32> {
        match self {
            Self::Peers(_) => Some(NOBODY),
            Self::Rows => Some(0),
            _ => None,
        }
    }
}

impl Named for Set {
    fn name(self) -> &'static str {
        let of = |family, v4, v6| match family {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        match self {
            Self::Stamps(family) => of(family, "stamps4", "stamps6"),
            Self::Current(family) => of(family, "current4", "current6"),
            Self::Tables(family) => of(family, "tables4", "tables6"),
            Self::Peers(family) => of(family, "peers4", "peers6"),
            Self::Clusters(family) => of(family, "clusters4", "clusters6"),
            Self::Pieces(family) => of(family, "pieces4", "pieces6"),
            Self::Rows => "rows",
            Self::Classes => "classes",
            Self::Verdicts => "verdicts",
            Self::Earlier => "earlier",
            Self::Phase => "phase",
        }
    }
}

/// An entry of one of them.
pub(super) type Entry = crate::tables::Entry<Set>;
