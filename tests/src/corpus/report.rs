//! What became of cases.

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
