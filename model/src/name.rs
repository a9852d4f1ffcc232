use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A name that Kubernetes would not accept.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{what} name {name:?} is not a DNS-1123 subdomain (lower-case letters, digits, '-' and '.', at most 253)"
)]
pub struct InvalidName {
    what: &'static str,
    name: String,
}

/// RFC 1123 as Kubernetes reads it for object names.
fn is_dns_1123(name: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 253
        && name.split('.').all(|label| {
            label.starts_with(alphanumeric)
                && label.ends_with(alphanumeric)
                && label.chars().all(|c| alphanumeric(c) || c == '-')
        })
}

// Two names of one shape that must never be mixed up: the macro exists so that their only door is the same.
macro_rules! object_name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(name: String) -> Result<Self, InvalidName> {
                if is_dns_1123(&name) { Ok(Self(name)) } else { Err(InvalidName { what: $what, name }) }
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidName;

            fn from_str(name: &str) -> Result<Self, InvalidName> {
                Self::try_from(name.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

object_name!(
    /// The name of a node, unique within its cluster.
    NodeName,
    "node"
);
object_name!(
    /// The name of a cluster, unique within a mesh.
    ClusterName,
    "cluster"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_kubernetes_accepts() {
        for good in ["a", "east", "node-1", "ip-10-0-0-1.ec2.internal", "0"] {
            assert_eq!(good.parse::<NodeName>().map(String::from), Ok(good.to_owned()));
        }
        for bad in ["", "East", "-a", "a-", "a..b", "a_b", "a/b", ".", &"a".repeat(254)] {
            let error = bad.parse::<ClusterName>().expect_err(bad);
            assert!(error.to_string().contains("cluster name"), "{error}");
        }
    }
}
