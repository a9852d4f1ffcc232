//! One question to the agent: HTTP/1.0 over its unix socket, which ends with the answer and needs no library.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

/// How long the agent may take for a page.
const PATIENCE: Duration = Duration::from_secs(10);

/// The body of a page.
pub fn get(socket: &Path, page: &str) -> anyhow::Result<String> {
    let asking = || format!("asking the agent at {}", socket.display());
    let stream =
        UnixStream::connect(socket).with_context(|| format!("no agent answers at {}", socket.display()))?;
    let answer = exchange(&stream, page).with_context(asking)?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("{}: no HTTP answer", asking()) };
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => bail!("{}: {}: {body}", asking(), head.lines().next().unwrap_or_default()),
    }
}

fn exchange(mut stream: &UnixStream, page: &str) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {page} HTTP/1.0\r\nHost: causeway\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Prints a text and ends its last line. A reader that has seen enough is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.context("writing the answer"),
    }
}
