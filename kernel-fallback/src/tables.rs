//! Tables that are written over netlink: rules as expressions over registers, sets and maps, elements as messages of a transaction.
//!
//! nft's own language cannot look up by what another look-up found, and starting nft takes longer than a change of elements.
//!
//! nft 1.0.6 lists a look-up by what another look-up found as `[invalid type]`, or aborts: it does not know how long such a value is.
//! It does not ask if a constant as long as the whole key once began in the key's first register: hence the zero words that keys
//! begin with; or, where a look-up brings several words, constants beforehand where keys begin in the middle of them.

mod definition;
mod entry;
mod message;
mod rule;

pub(crate) use definition::{Definition, Kind, words};
pub(crate) use entry::{Entry, Named, difference};
pub(crate) use message::{Chain, Hook, Message, Table, Way, entries_found, key_of};
pub(crate) use rule::{Ct, End, Meta, Nat, Register, Rule, Tuple, Verdict};
