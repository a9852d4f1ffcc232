//! Bytes that nobody expects, for everything that reads bytes from elsewhere.

pub mod mutate;
mod program;
mod protocol;
// Two nodes and their pods, as the packet program's own tests have them.
#[path = "../../datapath/tests/rig/mod.rs"]
mod rig;
pub mod seeds;
mod stdin;
mod wire;

use std::path::{Path, PathBuf};
use std::{fs, io};

/// Something that reads bytes from elsewhere. It panics when what must hold does not.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which its directories have, too.
    pub name: &'static str,
    /// Gives it an input.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "wire", run: wire::run },
    Target { name: "program", run: program::run },
    Target { name: "protocol", run: protocol::run },
    Target { name: "stdin", run: stdin::run },
];

/// The directory of this crate.
pub fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The kept inputs of a target in one of this crate's directories, by name.
pub fn kept(place: &str, target: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
    let directory = directory().join(place).join(target);
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut inputs = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        inputs.push((name(&path), fs::read(&path)?));
    }
    inputs.sort();
    Ok(inputs)
}

fn name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}
