use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Direction;

/// Which rule of a policy's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleIndex {
    /// The rule at this place of the list, counted from 0.
    Rule(u16),
    /// What holds for an isolated endpoint where no rule allows (NetworkPolicy).
    Isolation,
}

/// A rule of a policy: equal on all nodes and over restarts. As text `UID/DIRECTION/INDEX`, the index being `isolation` where
/// no rule allowed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct RuleId {
    /// The policy's uid, or `Kind/namespace/name` where its source gives none.
    pub policy: String,
    /// The list.
    pub direction: Direction,
    /// The place in it.
    pub index: RuleIndex,
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/", self.policy, self.direction)?;
        match self.index {
            RuleIndex::Rule(index) => write!(f, "{index}"),
            RuleIndex::Isolation => f.write_str("isolation"),
        }
    }
}

impl RuleId {
    /// What denies an *unknown* peer, of whichever policy.
    pub fn unknown(direction: Direction) -> Self {
        Self { policy: "unknown".to_owned(), direction, index: RuleIndex::Isolation }
    }
}

/// A text that is no rule id.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("no rule id: {0:?} (wanted: UID/ingress|egress/INDEX|isolation)")]
pub struct InvalidRuleId(String);

impl FromStr for RuleId {
    type Err = InvalidRuleId;

    fn from_str(text: &str) -> Result<Self, InvalidRuleId> {
        let invalid = || InvalidRuleId(text.to_owned());
        let mut parts = text.rsplitn(3, '/');
        let (index, direction, policy) = (parts.next(), parts.next(), parts.next());
        let index = match index {
            Some("isolation") => RuleIndex::Isolation,
            index => RuleIndex::Rule(index.and_then(|index| index.parse().ok()).ok_or_else(invalid)?),
        };
        let direction = Direction::BOTH.into_iter().find(|d| Some(d.as_str()) == direction);
        let policy = policy.filter(|policy| !policy.is_empty()).ok_or_else(invalid)?.to_owned();
        Ok(Self { policy, direction: direction.ok_or_else(invalid)?, index })
    }
}

impl From<RuleId> for String {
    fn from(id: RuleId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for RuleId {
    type Error = InvalidRuleId;

    fn try_from(text: String) -> Result<Self, InvalidRuleId> {
        text.parse()
    }
}

/// A rule's number on this node: small and dense, so that a data path counts by it. A number whose rule has gone is given to
/// another one later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleNumber(pub u32);

impl RuleNumber {
    /// No policy had anything to say: allowed.
    pub const DEFAULT: Self = Self(0);
    /// An endpoint and its own address: allowed, and nothing that comes to a data path.
    pub const SELF: Self = Self(1);
    /// The endpoint's own node: allowed.
    pub const HOST: Self = Self(2);
    /// The first number that a policy's rule may be given.
    pub const FIRST: u32 = 16;

    /// A peer inside a known cluster that is no known endpoint: denied where any policy applies.
    pub const fn unknown(direction: Direction) -> Self {
        Self(3 + direction as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_ids_go_through_text() {
        for (policy, index) in
            [("f62eef76-0a7b", RuleIndex::Rule(7)), ("NetworkPolicy/shop/web", RuleIndex::Isolation)]
        {
            for direction in Direction::BOTH {
                let id = RuleId { policy: policy.to_owned(), direction, index };
                assert_eq!(id.to_string().parse(), Ok(id));
            }
        }
        for text in ["", "uid", "uid/ingress", "/ingress/1", "uid/sideways/1", "uid/egress/-1"] {
            assert!(text.parse::<RuleId>().is_err(), "{text}");
        }
    }
}
