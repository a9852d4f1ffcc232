use std::collections::BTreeMap;

/// A growing set of numbers as the spans it consists of, so that what is full is passed over in one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spans {
    /// First → last, both included; no two touch.
    spans: BTreeMap<u128, u128>,
}

impl Spans {
    /// The last number of the span that has this one.
    pub(super) fn end_of(&self, number: u128) -> Option<u128> {
        let (_, last) = self.spans.range(..=number).next_back()?;
        (*last >= number).then_some(*last)
    }

    /// Takes up a number.
    pub(super) fn insert(&mut self, number: u128) {
        if self.end_of(number).is_some() {
            return;
        }
        let before = number.checked_sub(1).and_then(|before| {
            let (first, last) = self.spans.range(..=before).next_back()?;
            (*last == before).then_some(*first)
        });
        let after = number.checked_add(1).and_then(|after| self.spans.remove(&after));
        self.spans.insert(before.unwrap_or(number), after.unwrap_or(number));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn spans_are_the_set_they_stand_for(numbers in prop::collection::vec(prop_oneof![0..40_u128, Just(u128::MAX), Just(u128::MAX - 1)], 0..60)) {
            let (mut spans, mut set) = (Spans::default(), BTreeSet::new());
            for number in numbers {
                spans.insert(number);
                set.insert(number);
            }
            for number in (0..42).chain([u128::MAX - 2, u128::MAX - 1, u128::MAX]) {
                let slow = set.contains(&number).then(|| {
                    let rest = (number..=u128::MAX).take_while(|next| set.contains(next));
                    rest.last().unwrap_or(number)
                });
                prop_assert_eq!(spans.end_of(number), slow, "{}", number);
            }
            prop_assert!(spans.spans.iter().zip(spans.spans.iter().skip(1)).all(|((_, last), (first, _))| last + 1 < *first));
        }
    }
}
