//! Stamps version and commit.

use std::path::Path;
use std::process::Command;

fn main() {
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let release = match commit() {
        Some(commit) => format!("{version} ({commit})"),
        // A tarball: the version says it all.
        None => version,
    };
    println!("cargo:rustc-env=CAUSEWAY_RELEASE={release}");
    println!("cargo:rerun-if-changed=build.rs");
    // A path that is not there would make every build a new one.
    for file in [".git/HEAD", ".git/logs/HEAD"].into_iter().filter(|file| Path::new(file).exists()) {
        println!("cargo:rerun-if-changed={file}");
    }
}

/// The commit, if this is a clone and git is there.
fn commit() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    let commit = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !commit.is_empty()).then_some(commit)
}
