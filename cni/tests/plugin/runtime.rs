//! What a container runtime does: makes a namespace, executes the plugin, reads its answer.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

const PLUGIN: &str = env!("CARGO_BIN_EXE_causeway-cni");

/// One network on one node: a place for its socket and its tombstones.
pub struct Network {
    folder: TempDir,
}

impl Network {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("cni.sock")
    }

    pub fn tombstones(&self) -> PathBuf {
        self.folder.path().join("tombstones")
    }

    /// The names of all files that word of deletions was left in.
    pub fn left(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.tombstones()).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    pub fn config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "causeway-cni",
            "causeway": {"socket": self.socket(), "tombstones": self.tombstones()}
        })
    }

    /// A good call, to be changed by the test.
    pub fn call(&self, command: &str) -> Call {
        let variables = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Call { variables: variables.into(), stdin: self.config().to_string() }
    }
}

/// What the plugin said.
#[derive(Debug)]
pub struct Said {
    pub succeeded: bool,
    /// The documents on stdout: judged in one place to be one, or none where the specification wants none.
    pub document: Option<Value>,
    pub log: String,
    pub took: Duration,
}

impl Said {
    fn from_output(output: Output, since: Instant) -> Self {
        let took = since.elapsed();
        let stdout = String::from_utf8(output.stdout).expect("stdout is text");
        let documents: Vec<Value> = serde_json::Deserializer::from_str(&stdout)
            .into_iter()
            .collect::<Result<_, _>>()
            .unwrap_or_else(|error| panic!("stdout is not JSON: {error}\n{stdout}"));
        assert!(documents.len() <= 1, "more than one document on stdout: {stdout}");
        assert!(output.status.code().is_some_and(|code| code <= 1), "{:?}", output.status);
        let log = String::from_utf8(output.stderr).expect("stderr is text");
        Self { succeeded: output.status.success(), document: documents.into_iter().next(), log, took }
    }

    /// A result, and exit status 0.
    pub fn result(self) -> Value {
        assert!(self.succeeded, "{self:?}");
        self.document.expect("a result on stdout")
    }

    /// No result where the specification has none, and exit status 0.
    pub fn silence(self) -> Self {
        assert!(self.succeeded && self.document.is_none(), "{self:?}");
        self
    }

    /// An error in the specification's shape with this code and these words, and exit status 1.
    pub fn error(self, code: u32, words: &[&str]) -> Map<String, Value> {
        assert!(!self.succeeded, "{self:?}");
        let Some(Value::Object(error)) = self.document else { panic!("no error on stdout: {:?}", self.log) };
        assert_eq!(error["code"], code, "{error:?}");
        let message = error["msg"].as_str().expect("msg is a text");
        for word in words {
            assert!(message.contains(word), "{message:?} lacks {word:?}");
        }
        assert!(error["cniVersion"].is_string(), "{error:?}");
        error
    }
}

/// One execution of the plugin.
#[derive(Clone)]
pub struct Call {
    pub variables: BTreeMap<String, String>,
    pub stdin: String,
}

impl Call {
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.variables.remove(name);
        self
    }

    pub fn stdin(mut self, stdin: &(impl ToString + ?Sized)) -> Self {
        self.stdin = stdin.to_string();
        self
    }

    /// Sets one key of the network configuration.
    pub fn configured(self, key: &str, value: Value) -> Self {
        let mut config: Value = serde_json::from_str(&self.stdin).unwrap();
        config[key] = value;
        self.stdin(&config)
    }

    fn spawn(&self, mut command: Command) -> Child {
        command.env_clear().envs(&self.variables);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub fn run(&self) -> Said {
        self.run_as(Command::new(PLUGIN))
    }

    /// Runs it in a namespace that plays the node, while the first process lives in another that is the host.
    pub fn run_on(&self, node: &Pod) -> Said {
        let mut command = Command::new("/usr/bin/unshare");
        // The shell stays, as the first process.
        let script = r#"/usr/bin/nsenter "--net=$1" "$2"; exit $?"#;
        command.args(["--pid", "--fork", "--mount-proc", "--", "/bin/sh", "-c", script, "sh"]);
        command.arg(node.path()).arg(PLUGIN);
        self.run_as(command)
    }

    fn run_as(&self, command: Command) -> Said {
        let since = Instant::now();
        let mut child = self.spawn(command);
        let written = child.stdin.take().unwrap().write_all(self.stdin.as_bytes());
        // The plugin may answer without reading what it does not need.
        assert!(written.is_ok() || written.unwrap_err().kind() == std::io::ErrorKind::BrokenPipe);
        Said::from_output(child.wait_with_output().unwrap(), since)
    }

    /// Runs it with its stdin held open until it has answered.
    pub fn run_with_open_stdin(&self) -> Said {
        let since = Instant::now();
        let mut child = self.spawn(Command::new(PLUGIN));
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(self.stdin.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        drop(stdin);
        Said::from_output(output, since)
    }
}

/// A pod's network namespace, as a runtime makes it.
pub struct Pod(String);

impl Pod {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cwcni-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let made = Command::new("ip").args(["netns", "add", &name]).status().expect("iproute2 is installed");
        assert!(made.success(), "making a namespace needs root");
        Self(name)
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// Device and inode, by which the kernel knows it.
    pub fn identity(&self) -> (u64, u64) {
        let metadata = std::fs::metadata(self.path()).unwrap();
        (metadata.dev(), metadata.ino())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let gone = Command::new("ip").args(["netns", "del", &self.0]).status();
        assert!(gone.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}
