//! YAML text: documents with their lines, errors with their positions.

use serde_json::Value;
use serde_saphyr::{Error, NonFiniteFloatPolicy, Options, Spanned};

/// The longest text that is read: a dump of a hundred thousand pods, but not somebody's disk image.
pub(crate) const LONGEST: u64 = 512 << 20;

/// One document and the line it begins at.
pub(super) struct Document {
    pub line: u64,
    pub value: Value,
}

/// Every document of a text; empty ones are left out.
pub(super) fn documents(file: &str, text: &str) -> Result<Vec<Document>, String> {
    let documents: Vec<Spanned<Value>> = serde_saphyr::from_multiple_with_options(text, options(text.len()))
        .map_err(|e| describe(file, &e))?;
    Ok(documents.into_iter().map(|d| Document { line: d.referenced.line(), value: d.value }).collect())
}

/// As much as an honest text of this length can need, so that a long one is read and a short one that aliases itself
/// into the sky is not.
fn options(length: usize) -> Options {
    let most = length.saturating_add(1 << 12);
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: most,
            max_nodes: most,
            max_documents: most,
            max_total_scalar_bytes: most,
            max_aliases: 1000,
            max_anchors: 1000,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: most.min(100_000) },
        // A name such as y or on is text, as it is to YAML 1.2 and to Kubernetes.
        strict_booleans: true,
        // A name such as 123e4567 is a float without end to YAML: as text it is refused where a number is wanted.
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
    }
}

/// An error in the words of its reader, with `file:line:column` first where it has a position.
pub(crate) fn describe(file: &str, error: &Error) -> String {
    let (position, message) = split(error);
    format!("{file}{position}: {message}")
}

/// An error's `:line:column`, and its message without it.
pub(crate) fn split(error: &Error) -> (String, String) {
    let message = error.without_snippet().to_string();
    let Some(at) = error.location().filter(|at| at.line() > 0) else { return (String::new(), message) };
    let (line, column) = (at.line(), at.column());
    let message = message.replace(&format!(" at line {line}, column {column}"), "");
    // The library's advice to programmers is none to an operator.
    let message = message.split(", set DuplicateKeyPolicy").next().unwrap_or_default();
    let message = message.split("; use from_str_multiple").next().unwrap_or_default();
    (format!(":{line}:{column}"), message.to_owned())
}
