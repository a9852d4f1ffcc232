use std::fmt;

use serde_json::{Map, Value, json};

/// A version of the specification whose results we can shape. What is published for it differs:
/// `ips[].version` went with 1.0.0, the MTUs came with 1.1.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    /// 0.3.1.
    V0_3_1,
    /// 0.4.0, the first with CHECK.
    V0_4_0,
    /// 1.0.0.
    V1_0_0,
    /// 1.1.0, the first with GC and STATUS.
    V1_1_0,
}

impl SpecVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// What we speak when we are not asked for anything else.
    pub const NEWEST: Self = Self::V1_1_0;
    /// What a configuration without `cniVersion` means (containernetworking/cni, pkg/version).
    pub const UNSAID: &str = "0.1.0";

    /// As it stands in a document.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Only what the specification published: 1.0.1 is a release of the library, never a version of the protocol.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// What a configuration asks for, if we know it.
    pub fn asked_by(document: &Map<String, Value>) -> Option<Self> {
        document.get("cniVersion").and_then(Value::as_str).and_then(Self::parse)
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The answer to VERSION (CNI 1.1.0 §5, "Version"): what was asked comes back, known or not.
pub fn document(asked: Option<&str>) -> Value {
    json!({
        "cniVersion": asked.unwrap_or(SpecVersion::NEWEST.as_str()),
        "supportedVersions": SpecVersion::ALL.map(SpecVersion::as_str),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_published_versions_are_known() {
        for version in SpecVersion::ALL {
            assert_eq!(SpecVersion::parse(version.as_str()), Some(version));
        }
        for stranger in ["", "0.1.0", "0.2.0", "0.3.0", "1.0.1", "1.1", "1.1.0 ", "v1.1.0", "9.9.9"] {
            assert_eq!(SpecVersion::parse(stranger), None, "{stranger:?}");
        }
    }

    #[test]
    fn versions_are_ordered_by_age() {
        assert!(SpecVersion::ALL.is_sorted());
        assert_eq!(SpecVersion::ALL.last(), Some(&SpecVersion::NEWEST));
    }

    #[test]
    fn version_says_what_it_was_asked_and_what_we_support() {
        let supported = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
        assert_eq!(document(Some("9.9.9")), json!({"cniVersion": "9.9.9", "supportedVersions": supported}));
        assert_eq!(document(None), json!({"cniVersion": "1.1.0", "supportedVersions": supported}));
    }
}
