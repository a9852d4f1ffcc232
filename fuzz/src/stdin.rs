//! A verb and a network configuration, as a runtime gives them to the plugin.
//!
//! An input is a byte that chooses the verb and, by its highest bit, whether word of a deletion can be left; then stdin.

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use causeway_cni::{Answer, Limits, answer};
use serde_json::{Value, json};

const VERBS: &[&str] = &["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"];

/// Where nobody listens, and where deletions are left: nothing else may be touched.
static PLACE: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let place = tempfile::tempdir().unwrap_or_else(|error| panic!("a directory to work in: {error}"));
    std::fs::write(place.path().join("file"), "").unwrap_or_else(|error| panic!("a file in it: {error}"));
    place
});

/// Set where word of a deletion can be left.
pub(crate) const LEFT: u8 = 0x80;

/// An input of a verb and a configuration.
pub(crate) fn input(verb: &str, stdin: &[u8]) -> Vec<u8> {
    let number = VERBS.iter().position(|known| *known == verb).unwrap_or_default();
    [&[number as u8], stdin].concat()
}

/// Calls the plugin.
pub fn run(bytes: &[u8]) {
    let Some((choice, stdin)) = bytes.split_first() else { return };
    let verb = VERBS[usize::from(choice & !LEFT) % VERBS.len()];
    let place = PLACE.path();
    // Where a file stands no directory can be made.
    let tombstones =
        if choice & LEFT == 0 { place.join("file/tombstones") } else { place.join("tombstones") };
    let stdin = harmless(stdin, &place.join("cni.sock"), &tombstones);
    let variable = |name: &str| -> Option<OsString> {
        Some(match name {
            "CNI_COMMAND" => verb.into(),
            "CNI_CONTAINERID" => "c1".into(),
            "CNI_IFNAME" => "eth0".into(),
            // The plugin's own: nobody's pod.
            "CNI_NETNS" => "/proc/self/ns/net".into(),
            "CNI_ARGS" => "IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p".into(),
            "CNI_PATH" => place.join("plugins").into(),
            _ => return None,
        })
    };
    let (reader, mut writer) = std::io::pipe().unwrap_or_else(|error| panic!("a pipe: {error}"));
    // A pipe takes 64 KiB at once.
    writer.write_all(&stdin[..stdin.len().min(60 << 10)]).unwrap_or_else(|error| panic!("a pipe: {error}"));
    drop(writer);
    let soon = Duration::from_millis(200);
    let limits = Limits { prompt: soon, stdin: soon, connect: soon, ..Limits::default() };
    judge(verb, &answer(&variable, OwnedFd::from(reader).as_fd(), &limits));
    let left = std::fs::read_dir(place).into_iter().flatten().flatten();
    for entry in left {
        assert!(
            ["file", "tombstones"].iter().any(|known| entry.file_name() == *known),
            "{verb} leaves {entry:?}"
        );
    }
}

/// A configuration that can be read leads to the directory of this test, whatever it says of its own.
fn harmless(stdin: &[u8], socket: &Path, tombstones: &Path) -> Vec<u8> {
    match serde_json::from_slice(stdin) {
        Ok(Value::Object(mut document)) => {
            if !document.get("causeway").is_some_and(Value::is_object) {
                document.insert("causeway".to_owned(), json!({}));
            }
            document["causeway"]["socket"] = json!(socket);
            document["causeway"]["tombstones"] = json!(tombstones);
            Value::Object(document).to_string().into_bytes()
        }
        _ => stdin.to_vec(),
    }
}

fn judge(verb: &str, answer: &Answer) {
    match &answer.document {
        None => assert!(!answer.failed && verb != "VERSION", "{verb}: no word"),
        Some(document) if answer.failed => {
            assert!(document["code"].as_u64().is_some_and(|code| code > 0), "{verb}: {document}");
            assert!(document["msg"].as_str().is_some_and(|words| !words.is_empty()), "{verb}: {document}");
            assert!(document["cniVersion"].is_string(), "{verb}: {document}");
        }
        // Without an agent there is nothing that could succeed with a result.
        Some(document) => {
            assert!(verb == "VERSION" && document["supportedVersions"].is_array(), "{document}");
        }
    }
}
