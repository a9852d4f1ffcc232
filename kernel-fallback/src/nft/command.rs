//! The nft command: what it reads, and what it lists.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::error::KernelError;

pub(crate) fn run(document: &str, doing: &str) -> Result<(), KernelError> {
    let failed = || KernelError::io(format!("running nft, {doing}"));
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed())?;
    // nft reads to the end before it says a word; a pipe that it closed early shows in its exit status.
    if let Some(mut stdin) = nft.stdin.take() {
        let _ = stdin.write_all(document.as_bytes());
    }
    let output = nft.wait_with_output().map_err(failed())?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    // The complaint repeats the whole line, which may be long; what is wrong stands first.
    let stderr: String = stderr.trim().chars().take(1000).collect();
    Err(KernelError::Nft { doing: doing.to_owned(), stderr })
}

pub(crate) fn list(arguments: &[&str]) -> Result<Option<String>, KernelError> {
    let output = Command::new("nft").args(arguments).output().map_err(KernelError::io("running nft"))?;
    if output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("No such file or directory") {
        return Ok(None);
    }
    Err(KernelError::Nft { doing: format!("nft {}", arguments.join(" ")), stderr: stderr.trim().to_owned() })
}
