//! The chains that choose: one for each number of slots, and each time for which clients stick to theirs.

use causeway_model::Family;

use super::lookup::{By, FOUND, FRONTEND, Headers, Side, about, chain, find, words_of, zeros};
use super::set::{Set, sticking};
use crate::tables::{Chain, Named, Nat, Register, Rule};

/// How backends are chosen: one of so many slots, and for how many seconds a client sticks to it (0: it does not).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Choice {
    pub(super) of: u32,
    pub(super) sticks: u32,
}

/// A backend's address in what its slot has, behind a word that says nothing.
const BACKEND: Register = FOUND.plus(1);

/// Looks up the frontend for a choice.
fn asked(of: Family, by: By, side: Side) -> Rule {
    let port = BACKEND.plus(words_of(of));
    find(of, by, FOUND, &[(side.backends(), 2), (BACKEND, words_of(of)), (port, 1)])
}

/// The backend in the slot whose number was loaded, and the connection counted.
fn served(rule: Rule, of: Family, side: Side) -> Rule {
    let backend = rule.look_up(Set::Backends(of).name(), side.backends(), FOUND);
    backend.within(Set::Hits(of).name(), FRONTEND)
}

fn to_backend(rule: Rule, of: Family) -> Rule {
    rule.translate(Nat::Destination, of, BACKEND, Some(BACKEND.plus(words_of(of))))
}

/// Where a change came in the middle of a choice: the first backend, or nobody.
pub(super) fn first(side: Side) -> Chain {
    let every = Family::BOTH.into_iter().flat_map(|of| [(of, By::Address), (of, By::Nodes)]);
    let mut rules: Vec<Rule> = every
        .map(|(of, by)| {
            let slot = asked(of, by, side).constant(&[0; 4], side.backends().plus(1));
            to_backend(served(slot, of, side), of)
        })
        .collect();
    rules.push(Rule::default().goto("refuse"));
    chain(format!("first_{}", side.name()), rules)
}

/// The chains of one choice, each with the map that leads to it.
pub(super) fn choosing(choice: Choice) -> Vec<(&'static str, Chain)> {
    Side::BOTH.map(|side| (side.name(), choose(choice, side))).into()
}

fn choose(choice: Choice, side: Side) -> Chain {
    let Choice { of: number, sticks } = choice;
    let mut rules = Vec::new();
    for of in Family::BOTH {
        let client = client(of);
        for by in [By::Address, By::Nodes] {
            let slot = asked(of, by, side).random(number, side.backends().plus(1));
            let served = served(slot, of, side);
            let served = if sticks == 0 {
                served
            } else {
                rules.extend(stay(of, by, side, sticks));
                served.source(of, client).put(sticking(of), client, BACKEND, sticks)
            };
            rules.push(to_backend(served, of));
        }
    }
    rules.push(Rule::default().goto(format!("first_{}", side.name())));
    chain(format!("{}_{number}_{sticks}", side.name()), rules)
}

/// The client, in front of the frontend.
fn client(of: Family) -> Register {
    Register(FRONTEND.0 - words_of(of))
}

/// For a client that sticks to a backend: its time begins anew, and it gets that backend; or, if it is none any more, it sticks no
/// longer.
fn stay(of: Family, by: By, side: Side, sticks: u32) -> [Rule; 3] {
    let (client, words) = (client(of), words_of(of) + 1);
    let nobody = |rule| zeros(zeros(rule, BACKEND, words_of(of)), BACKEND.plus(words_of(of)), 1);
    let known = || {
        // The backends' number comes to lie where the backend's address begins behind it.
        let read = [(FOUND, words + 1), (BACKEND.plus(words_of(of)), 1)];
        let found = find(of, by, Register(FOUND.0 - side.place()), &read).frontend(of, by).source(of, client);
        found.look_up(sticking(of), client, BACKEND).within(Set::Members(of).name(), FOUND)
    };
    // What it sticks to stays. Should its time be up in this very moment, it sticks to nobody, which is no backend.
    let anew = nobody(known()).put(sticking(of), client, BACKEND, sticks);
    let same = to_backend(known().within(Set::Hits(of).name(), FRONTEND), of);
    let left = nobody(about(of).frontend(of, by).source(of, client));
    [anew, same, left.take(sticking(of), client, BACKEND)]
}
