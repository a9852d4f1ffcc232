//! Rules and their numbers.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use causeway_model::policy::{RuleId, RuleNumber};

/// Gives each rule the lowest free number for as long as anything uses it.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    used: HashMap<RuleId, (RuleNumber, usize)>,
    free: BTreeSet<u32>,
    /// How many were ever given.
    given: u32,
    moved: BTreeSet<RuleNumber>,
}

impl Numbers {
    /// The number of a rule, used once more from now on.
    pub(super) fn take(&mut self, id: &RuleId, names: &mut BTreeMap<RuleNumber, RuleId>) -> RuleNumber {
        if let Some((number, uses)) = self.used.get_mut(id) {
            *uses += 1;
            return *number;
        }
        let number = self.free.pop_first().unwrap_or_else(|| {
            self.given += 1;
            RuleNumber::FIRST + self.given - 1
        });
        let number = RuleNumber(number);
        self.used.insert(id.clone(), (number, 1));
        names.insert(number, id.clone());
        self.moved.insert(number);
        number
    }

    /// The numbers given and freed since the last call.
    pub(super) fn moved(&mut self) -> BTreeSet<RuleNumber> {
        std::mem::take(&mut self.moved)
    }

    /// Ends one use of a rule's number.
    pub(super) fn release(&mut self, number: RuleNumber, names: &mut BTreeMap<RuleNumber, RuleId>) {
        let Some(id) = names.get(&number) else { return };
        let Some((_, uses)) = self.used.get_mut(id) else { return };
        *uses -= 1;
        if *uses == 0 {
            self.used.remove(id);
            names.remove(&number);
            self.moved.insert(number);
            self.free.insert(number.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use causeway_model::policy::{Direction, RuleIndex};

    use super::*;

    #[test]
    fn numbers_are_dense_and_kept_while_in_use() {
        let id = |policy: &str, index| RuleId {
            policy: policy.to_owned(),
            direction: Direction::Ingress,
            index: RuleIndex::Rule(index),
        };
        let (mut numbers, mut names) = (Numbers::default(), BTreeMap::new());
        let mut take = |policy, index| numbers.take(&id(policy, index), &mut names);
        let first = take("a", 0);
        assert_eq!(first, RuleNumber(RuleNumber::FIRST));
        assert_eq!(take("a", 1), RuleNumber(RuleNumber::FIRST + 1));
        assert_eq!(take("a", 0), first, "one rule has one number");
        numbers.release(first, &mut names);
        assert_eq!(names.get(&first), Some(&id("a", 0)), "one use is left");
        numbers.release(first, &mut names);
        assert_eq!(names.get(&first), None);
        assert_eq!(numbers.take(&id("b", 7), &mut names), first, "the lowest free one");
    }
}
