//! The sets and maps of the table.

use causeway_model::Family;

use crate::tables::{Definition, Kind, Named, words};

/// A set or map that updates change. A frontend is (address, protocol, port), a node port one at the unspecified address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Set {
    /// Frontend → (0, the number of its sources or 0, backends and way from inside, backends and way from outside).
    Frontends(Family),
    /// The frontends again: each counts the connections that began there.
    Hits(Family),
    /// (backends, slot) → (0, address, port); a slot in the machine's own order.
    Backends(Family),
    /// (backends, address, port), for backends to which clients stick.
    Members(Family),
    /// (the number of sources, address), in intervals.
    Sources(Family),
    /// Addresses that are services' and nothing else.
    Addresses(Family),
    /// The prefixes of services.
    Prefixes(Family),
    /// Every address of the cluster's nodes.
    Nodes(Family),
    /// (address, address) of one endpoint.
    Selves(Family),
    /// The addresses of this node's pods.
    Pods(Family),
    /// The same, and the node's own addresses.
    Local(Family),
    /// Who sees pods' own addresses.
    Kept(Family),
    /// (reason, address) of this node's pods: each counts what was dropped of them.
    Dropped(Family),
}

impl Set {
    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let kinds = [
            Self::Frontends,
            Self::Hits,
            Self::Backends,
            Self::Members,
            Self::Sources,
            Self::Addresses,
            Self::Prefixes,
            Self::Nodes,
            Self::Selves,
            Self::Pods,
            Self::Local,
            Self::Kept,
            Self::Dropped,
        ];
        kinds.into_iter().flat_map(|set| Family::BOTH.map(set))
    }

    pub(super) fn definition(self) -> Definition {
        const WORD: Kind = Kind::Word;
        let interval = |key: &[Kind]| Definition::new(true, key, &[]);
        let plain = |key: &[Kind], data: &[Kind]| Definition::new(false, key, data);
        match self {
            Self::Frontends(of) => plain(&frontend(of), &[WORD; 6]),
            Self::Hits(of) => plain(&frontend(of), &[]).counted(),
            Self::Backends(of) => plain(&[WORD, WORD], &[WORD, address(of), Kind::Port]),
            Self::Dropped(of) => plain(&[WORD, address(of)], &[]).counted(),
            Self::Members(of) => plain(&[WORD, address(of), Kind::Port], &[]),
            Self::Sources(of) => interval(&[WORD, address(of)]),
            Self::Addresses(of) | Self::Nodes(of) => plain(&[address(of)], &[]),
            Self::Selves(of) => plain(&[address(of), address(of)], &[]),
            Self::Prefixes(of) | Self::Pods(of) | Self::Local(of) | Self::Kept(of) => {
                interval(&[address(of)])
            }
        }
    }
}

impl Named for Set {
    fn name(self) -> &'static str {
        let named = |of, names: [&'static str; 2]| match of {
            Family::V4 => names[0],
            Family::V6 => names[1],
        };
        match self {
            Self::Frontends(of) => named(of, ["frontends4", "frontends6"]),
            Self::Hits(of) => named(of, ["hits4", "hits6"]),
            Self::Backends(of) => named(of, ["backends4", "backends6"]),
            Self::Members(of) => named(of, ["members4", "members6"]),
            Self::Sources(of) => named(of, ["sources4", "sources6"]),
            Self::Addresses(of) => named(of, ["addresses4", "addresses6"]),
            Self::Prefixes(of) => named(of, ["prefixes4", "prefixes6"]),
            Self::Nodes(of) => named(of, ["nodes4", "nodes6"]),
            Self::Selves(of) => named(of, ["selves4", "selves6"]),
            Self::Pods(of) => named(of, ["pods4", "pods6"]),
            Self::Local(of) => named(of, ["local4", "local6"]),
            Self::Kept(of) => named(of, ["kept4", "kept6"]),
            Self::Dropped(of) => named(of, ["dropped4", "dropped6"]),
        }
    }
}

fn address(of: Family) -> Kind {
    match of {
        Family::V4 => Kind::V4,
        Family::V6 => Kind::V6,
    }
}

fn frontend(of: Family) -> [Kind; 3] {
    [address(of), Kind::Protocol, Kind::Port]
}

fn backend(of: Family) -> [Kind; 2] {
    [address(of), Kind::Port]
}

/// (client, frontend) → backend, for as long as a client sticks to it; packets fill it.
pub(super) fn sticking(of: Family) -> &'static str {
    match of {
        Family::V4 => "sticking4",
        Family::V6 => "sticking6",
    }
}

/// How many clients of how many services may stick, at most; more are served without.
const STICKING: u32 = 1 << 18;

/// Every map that packets fill.
pub(super) fn filled() -> impl Iterator<Item = (&'static str, Definition)> {
    Family::BOTH.into_iter().map(|of| {
        let [at, protocol, port] = frontend(of);
        let definition = Definition::new(false, &[address(of), at, protocol, port], &backend(of));
        (sticking(of), definition.filled(STICKING).ageing())
    })
}

/// The maps that lead by a way, from inside and from outside.
pub(super) fn ways() -> Definition {
    Definition::leading(&[Kind::Word])
}

/// A way as a key.
pub(super) fn way(number: u32) -> Vec<u8> {
    words([number])
}

/// An entry of one of them.
pub(super) type Entry = crate::tables::Entry<Set>;
