//! One question to the agent: HTTP/1.0 over its unix socket, which ends with the answer and needs no library.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

/// How long the agent may take for a page.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether the agent serves; if not, what is missing.
pub fn serves(socket: &Path) -> Result<(), String> {
    let (status, body) = ask(socket, "/v1/health").map_err(|error| format!("{error:#}"))?;
    if status.split(' ').nth(1) == Some("200") {
        return Ok(());
    }
    let health: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
    let missing: Vec<_> =
        health["waiting_for"].as_array().into_iter().flatten().filter_map(|m| m.as_str()).collect();
    match missing.is_empty() {
        true => Err(format!("the agent at {} answers {status}: {body}", socket.display())),
        false => Err(format!("the agent at {} waits for {}", socket.display(), missing.join(", "))),
    }
}

/// The body of a page.
pub fn get(socket: &Path, page: &str) -> anyhow::Result<String> {
    let (status, body) = ask(socket, page)?;
    match status.split(' ').nth(1) {
        Some("200") => Ok(body),
        _ => bail!("asking the agent at {}: {status}: {body}", socket.display()),
    }
}

/// A record of plain fields as the query of a page (URL Standard, application/x-www-form-urlencoded).
pub fn query(record: &impl serde::Serialize) -> anyhow::Result<String> {
    let json = serde_json::to_value(record).context("writing the question")?;
    let fields = json.as_object().into_iter().flatten();
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let pairs: Vec<_> = fields.map(|(name, value)| format!("{name}={}", encoded(&text(value)))).collect();
    Ok(pairs.join("&"))
}

fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"*-._".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// The status line and the body of a page.
fn ask(socket: &Path, page: &str) -> anyhow::Result<(String, String)> {
    let asking = || format!("asking the agent at {}", socket.display());
    let stream =
        UnixStream::connect(socket).with_context(|| format!("no agent answers at {}", socket.display()))?;
    let answer = exchange(&stream, page).with_context(asking)?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("{}: no HTTP answer", asking()) };
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    fn answer_with(answer: &'static str) -> anyhow::Result<String> {
        let path = std::env::temp_dir().join(format!("causeway-client-{:?}.sock", thread::current().id()));
        drop(std::fs::remove_file(&path));
        let listener = UnixListener::bind(&path)?;
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut question = [0; 64];
            let length = stream.read(&mut question).expect("a question");
            stream.write_all(answer.as_bytes()).expect("a listener");
            String::from_utf8_lossy(&question[..length]).into_owned()
        });
        let got = get(&path, "/v1/status");
        assert!(server.join().expect("a server").starts_with("GET /v1/status HTTP/1.0\r\n"));
        std::fs::remove_file(&path)?;
        got
    }

    #[test]
    fn a_page_is_its_body_and_a_refusal_an_error() {
        let page = answer_with("HTTP/1.0 200 OK\r\ncontent-type: x\r\n\r\n{}");
        assert_eq!(page.expect("a page"), "{}");
        let refused = answer_with("HTTP/1.0 404 Not Found\r\n\r\nno such page").expect_err("a refusal");
        assert!(refused.to_string().contains("404 Not Found: no such page"), "{refused}");
        assert!(answer_with("nonsense").is_err());
    }

    #[test]
    fn a_question_survives_whatever_is_in_it() {
        let record = serde_json::json!({"pod": "a b/c&d=e%", "port": 80});
        assert_eq!(query(&record).expect("plain fields"), "pod=a%20b%2Fc%26d%3De%25&port=80");
    }

    #[test]
    fn a_missing_agent_is_named_by_its_socket() {
        let error = get(Path::new("/nowhere/api.sock"), "/v1/status").expect_err("nobody");
        assert_eq!(error.to_string(), "no agent answers at /nowhere/api.sock");
    }
}
