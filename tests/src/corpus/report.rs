//! What became of cases.

use std::fmt::{Debug, Display};

use serde::Serialize;

/// How many of something were looked at, and how many were not as they should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Looked at.
    pub asserted: usize,
    /// Not as they should be.
    pub failed: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.asserted += other.asserted;
        self.failed += other.failed;
    }
}

impl std::iter::Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(tallies: I) -> Self {
        tallies.fold(Self::default(), |mut sum, tally| {
            sum += tally;
            sum
        })
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// The case.
    pub case: String,
    /// The step, counted from 0.
    pub step: usize,
    /// The flow and its ends, or the packet, or the probe, or the object.
    pub what: String,
    /// What was wanted and what was found, with what said so.
    pub found: String,
}

/// What is counted in cases of one kind, told in a line or two.
pub trait Tallies: Debug + Default + Display + Serialize {
    /// Everything that is turned round where the opposite is wanted.
    fn asserted(&self) -> Tally;
}

/// What became of a file of cases.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report<T> {
    /// Cases that passed.
    pub passed: usize,
    /// Cases that failed.
    pub failed: usize,
    /// Cases that ask for what is not supported: counted apart.
    pub unsupported: Vec<String>,
    /// What was looked at in them.
    #[serde(flatten)]
    pub tallies: T,
    /// All that failed.
    pub failures: Vec<Failure>,
}

impl<T: Tallies> Report<T> {
    /// Panics unless everything is as it should be.
    #[track_caller]
    pub fn assert_held(&self) {
        assert!(self.failures.is_empty(), "{:#?}", &self.failures[..self.failures.len().min(20)]);
    }

    /// Panics unless everything of which the opposite was wanted has failed, and nothing else.
    #[track_caller]
    pub fn assert_all_failed(&self) {
        let Tally { asserted, failed } = self.tallies.asserted();
        assert!(asserted > 0, "nothing was looked at");
        assert_eq!((failed, self.failures.len()), (asserted, asserted));
    }
}
