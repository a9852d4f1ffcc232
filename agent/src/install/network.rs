//! The network configuration that a runtime reads.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::Value;

use super::{PLUGIN, Wanted};
use crate::config::Config;
use crate::error::Error;

/// The one that is documented; what depends on the node is set in it.
const TEMPLATE: &str = include_str!("../../../deploy/10-causeway.conflist");
/// What the library that runtimes use loads (containernetworking/cni, libcni, `ConfFiles`).
const LOADED: [&str; 3] = ["conf", "conflist", "json"];

/// A version of the specification that a network configuration can be written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CniVersion {
    /// Every runtime of today takes it.
    #[default]
    V1_0_0,
    /// With STATUS and GC: containerd from 2.0 on, CRI-O from 1.32 on.
    V1_1_0,
}

impl CniVersion {
    /// As it stands in a document.
    pub fn as_str(self) -> &'static str {
        match self {
            CniVersion::V1_0_0 => "1.0.0",
            CniVersion::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for CniVersion {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let all = [CniVersion::V1_0_0, CniVersion::V1_1_0];
        all.into_iter()
            .find(|one| one.as_str() == word)
            .ok_or_else(|| format!("{word:?}: allowed: 1.0.0, 1.1.0"))
    }
}

/// The configuration for this node.
pub fn text(config: &Config, wanted: &Wanted) -> Result<String, Error> {
    let name = &wanted.network;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.bytes().all(plain) {
        let rule = "letters, digits, '_', '.' and '-', a letter or digit first";
        return Err(Error::BadRequest(format!("the network's name {name:?} must be {rule}")));
    }
    let mut network: Value =
        serde_json::from_str(TEMPLATE).unwrap_or_else(|error| unreachable!("deploy/: {error}"));
    network["cniVersion"] = wanted.cni_version.as_str().into();
    network["name"] = name.as_str().into();
    let own = &mut network["plugins"][0]["causeway"];
    own["socket"] = path(&config.cni_socket)?.into();
    own["tombstones"] = path(&config.tombstones)?.into();
    Ok(format!("{network:#}\n"))
}

fn path(path: &Path) -> Result<&str, Error> {
    let refused = || Error::BadRequest(format!("{path:?} cannot stand in a JSON document: it is not UTF-8"));
    path.to_str().ok_or_else(refused)
}

/// Whether a configuration, however edited, is for our plugin.
pub fn names_our_plugin(text: &[u8]) -> bool {
    let Ok(network) = serde_json::from_slice::<Value>(text) else { return false };
    network["plugins"].as_array().into_iter().flatten().any(|plugin| plugin["type"] == PLUGIN)
}

/// The configuration that a runtime takes instead of this one.
pub fn comes_before(conflist: &Path) -> Result<Option<PathBuf>, Error> {
    let directory = conflist.parent().unwrap_or(Path::new("/"));
    let entries = fs::read_dir(directory).map_err(Error::io(format!("reading {}", directory.display())))?;
    let loaded =
        |path: &PathBuf| path.extension().is_some_and(|end| LOADED.iter().any(|known| end == *known));
    let first = entries.flatten().map(|entry| entry.path()).filter(loaded).min();
    Ok(first.filter(|first| first != conflist))
}
