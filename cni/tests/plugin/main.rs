//! The real binary, executed as a runtime executes it, against an agent played by the test.

#![expect(clippy::unwrap_used, reason = "a test whose stage cannot be set has failed")]

mod agent;
mod attaching;
mod bad_calls;
mod delegating;
mod deleting;
mod noise;
mod runtime;
mod verbs;
mod versions;
