use std::fmt::Display;
use std::io;

use causeway_model::plugin::Failure;
use thiserror::Error;

use crate::command::CommandError;

/// What went wrong in a lab.
#[derive(Debug, Error)]
pub enum LabError {
    /// It cannot be had; the text says what and why.
    #[error("{0}")]
    Refused(String),
    /// Nothing has this name.
    #[error("there is no {what} {name:?}{place}; {there}")]
    NoSuch {
        /// What was looked for.
        what: &'static str,
        /// By which name.
        name: String,
        /// Where.
        place: String,
        /// What is there instead.
        there: String,
    },
    /// A command failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The system refused something.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Its cause.
        #[source]
        source: io::Error,
    },
    /// The plugin answered with an error.
    #[error("CNI {verb} for pod {pod}: code {}: {}{}", failure.code, failure.msg, details(failure))]
    Cni {
        /// The call.
        verb: &'static str,
        /// For which pod.
        pod: String,
        /// The answer.
        failure: Failure,
    },
    /// Several things failed, each on its own.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<LabError>),
}

fn details(failure: &Failure) -> String {
    if failure.details.is_empty() { String::new() } else { format!(" ({})", failure.details) }
}

impl LabError {
    pub(crate) fn io(doing: impl Display, source: io::Error) -> Self {
        Self::Io { doing: doing.to_string(), source }
    }

    pub(super) fn no_such(what: &'static str, name: &str, lab: &str, there: &[String]) -> Self {
        let place = if lab.is_empty() { String::new() } else { format!(" in lab {lab}") };
        let there = if there.is_empty() {
            "there is none at all".into()
        } else {
            format!("there is {}", there.join(", "))
        };
        Self::NoSuch { what, name: name.to_owned(), place, there }
    }

    /// One error of many, or none.
    pub(super) fn all(mut problems: Vec<LabError>) -> Result<(), LabError> {
        match problems.len() {
            0 => Ok(()),
            1 => Err(problems.remove(0)),
            _ => Err(LabError::Several(problems)),
        }
    }
}
