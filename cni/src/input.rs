use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Map, Value};

use crate::error::Error;

/// The longest network configuration: a prevResult of a thousand addresses fits many times over.
const LIMIT: usize = 1 << 20;

/// The network configuration: all of stdin, to its end.
pub fn document(stdin: BorrowedFd<'_>, patience: Duration) -> Result<Map<String, Value>, Error> {
    let bytes = read_until(stdin, patience, |_| false)?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(document)) => Ok(document),
        Ok(_) => Err(Error::Undecodable("it is some other JSON value".to_owned())),
        Err(error) => Err(Error::Undecodable(error.to_string())),
    }
}

/// The `cniVersion` on stdin, if it comes at once: a VERSION call may hold stdin open and say nothing.
pub fn prompt_version(stdin: BorrowedFd<'_>, patience: Duration) -> Option<String> {
    let object = |bytes: &[u8]| serde_json::from_slice::<Map<String, Value>>(bytes).ok();
    let bytes = read_until(stdin, patience, |bytes| object(bytes).is_some()).ok()?;
    object(&bytes)?.get("cniVersion")?.as_str().map(str::to_owned)
}

/// Reads to the end of the input, or until `enough`, and gives up when `patience` is over.
pub fn read_until(
    input: BorrowedFd<'_>,
    patience: Duration,
    enough: impl Fn(&[u8]) -> bool,
) -> io::Result<Vec<u8>> {
    let until = Instant::now() + patience;
    let mut file = File::from(input.try_clone_to_owned()?);
    let mut bytes = Vec::new();
    let mut chunk = [0; 16 << 10];
    while !enough(&bytes) {
        wait_readable(&file, until)?;
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => bytes.extend_from_slice(&chunk[..read]),
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
        if bytes.len() > LIMIT {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {LIMIT} bytes")));
        }
    }
    Ok(bytes)
}

fn wait_readable(file: &File, until: Instant) -> io::Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(0) => Err(io::Error::new(io::ErrorKind::TimedOut, "it did not come to its end in time")),
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    fn pipe(text: &str) -> (OwnedFd, io::PipeWriter) {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(text.as_bytes()).unwrap();
        (reader.into(), writer)
    }

    fn closed(text: &str) -> OwnedFd {
        pipe(text).0
    }

    #[test]
    fn a_configuration_is_an_object_and_nothing_else() {
        let document = document(closed(r#" {"name": "pods"} "#).as_fd(), SOON).unwrap();
        assert_eq!(document["name"], "pods");
        for bad in ["", " ", "null", "[]", "\"x\"", "{", "{} {}", "{}x", "\u{feff}{}", "{\"a\":1,}"] {
            let failure = super::document(closed(bad).as_fd(), SOON).unwrap_err().failure();
            assert_eq!(failure.code, 6, "{bad:?}");
        }
    }

    #[test]
    fn a_configuration_that_does_not_end_is_an_error_in_time() {
        let (reader, _held_open) = pipe(r#"{"name": "pods"}"#);
        assert_eq!(document(reader.as_fd(), SOON).unwrap_err().failure().code, 5);
    }

    #[test]
    fn a_configuration_beyond_measure_is_not_read() {
        let (reader, mut writer) = io::pipe().unwrap();
        let flood = std::thread::spawn(move || while writer.write_all(&[b' '; 65536]).is_ok() {});
        let error = document(OwnedFd::from(reader).as_fd(), Duration::from_secs(10)).unwrap_err();
        assert!(error.to_string().contains("1048576"), "{error}");
        flood.join().unwrap();
    }

    #[test]
    fn a_version_is_taken_when_it_comes_at_once() {
        let (open, _held_open) = pipe(r#"{"cniVersion":"0.4.0"}"#);
        assert_eq!(prompt_version(open.as_fd(), Duration::from_secs(10)).as_deref(), Some("0.4.0"));
        assert_eq!(
            prompt_version(closed(r#"{"cniVersion":"9.9.9"}"#).as_fd(), SOON).as_deref(),
            Some("9.9.9")
        );
        for nothing in ["", "{}", "garbage", r#"{"cniVersion":1}"#, r#"["cniVersion"]"#] {
            assert_eq!(prompt_version(closed(nothing).as_fd(), SOON), None, "{nothing:?}");
        }
        let (silent, _held_open) = pipe("");
        assert_eq!(prompt_version(silent.as_fd(), SOON), None);
    }
}
