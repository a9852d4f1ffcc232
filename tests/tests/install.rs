//! `causeway install` as an operator and a runtime see it: programs that run, disks that are full, installers that are killed.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use causeway_tests::lab::Binaries;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

/// A node without any network: its configuration, its runtime's directories, and an agent that says what it is told to say.
struct Node {
    directory: PathBuf,
    serves: Arc<AtomicBool>,
    mounted: Vec<PathBuf>,
}

impl Node {
    fn new(name: &str) -> anyhow::Result<Self> {
        let directory = std::env::temp_dir().join(format!("causeway-install-{}-{name}", std::process::id()));
        fs::create_dir_all(directory.join("run"))?;
        let text = format!("{{node: east, state: {0}/state, run: {0}/run}}", directory.display());
        fs::write(directory.join("agent.yaml"), text)?;
        let serves = Arc::new(AtomicBool::new(true));
        let listener = UnixListener::bind(directory.join("run/api.sock"))?;
        let says = serves.clone();
        // It ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(&stream, says.load(Ordering::Relaxed));
            }
        });
        Ok(Self { directory, serves, mounted: Vec::new() })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn program(&self) -> PathBuf {
        self.at("bin/causeway-cni")
    }

    fn conflist(&self) -> PathBuf {
        self.at("net.d/10-causeway.conflist")
    }

    fn command(&self, words: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(Binaries::find()?.get("causeway")?);
        command.arg("install").arg("--config").arg(self.at("agent.yaml"));
        command.arg("--bin-dir").arg(self.at("bin")).arg("--conf-dir").arg(self.at("net.d")).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command)
    }

    fn install(&self, words: &[&str]) -> anyhow::Result<Output> {
        Ok(self.command(words)?.output()?)
    }

    /// A file system of its own for a directory.
    fn small(&mut self, name: &str, bytes: u64) -> anyhow::Result<()> {
        let path = self.at(name);
        fs::create_dir_all(&path)?;
        let size = format!("size={bytes}");
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))?;
        self.mounted.push(path);
        Ok(())
    }

    /// What a plugin of another release would be: the same program with something behind it.
    fn other_release(&self, release: &str) -> anyhow::Result<PathBuf> {
        let path = self.at(&format!("causeway-cni-{release}"));
        let mut bytes = fs::read(Binaries::find()?.get("causeway-cni")?)?;
        bytes.extend(release.as_bytes());
        fs::write(&path, bytes)?;
        Ok(path)
    }
}

/// The agent's page of its health.
fn answer(mut stream: &UnixStream, serves: bool) {
    let mut line = String::new();
    drop(BufReader::new(stream).read_line(&mut line));
    let (status, body) = match (line.starts_with("GET /v1/health "), serves) {
        (true, true) => ("200 OK", r#"{"serving":true,"waiting_for":[]}"#),
        (true, false) => {
            ("503 Service Unavailable", r#"{"serving":false,"waiting_for":["the Node object"]}"#)
        }
        (false, _) => ("404 Not Found", ""),
    };
    drop(write!(stream, "HTTP/1.0 {status}\r\n\r\n{body}"));
}

impl Drop for Node {
    fn drop(&mut self) {
        for path in &self.mounted {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
        drop(fs::remove_dir_all(&self.directory));
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn full() -> bool {
    std::env::var("CAUSEWAY_TESTS").is_ok_and(|tier| tier == "full")
}

/// What a runtime does on every change: it reads whatever it would load, and must understand it.
fn understood(directory: &Path) -> anyhow::Result<bool> {
    let mut seen = false;
    for name in names(directory) {
        if [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end)) {
            let text = fs::read_to_string(directory.join(&name))?;
            let network: Value = serde_json::from_str(&text).with_context(|| format!("{name}: {text:?}"))?;
            let whole = network["plugins"][0]["causeway"]["socket"].is_string() && text.ends_with("}\n");
            ensure!(whole, "{name} is not whole: {text:?}");
            seen = true;
        }
    }
    Ok(seen)
}

#[test]
fn the_configuration_comes_only_when_the_agent_serves() -> anyhow::Result<()> {
    let node = Node::new("waits")?;
    node.serves.store(false, Ordering::Relaxed);
    let refused = node.install(&["--wait", "0"])?;
    ensure!(
        !refused.status.success() && said(&refused).contains("waits for the Node object"),
        "{}",
        said(&refused)
    );
    ensure!(node.program().exists() && !node.conflist().exists(), "{:?}", names(&node.at("net.d")));
    let waiting = node.command(&["--wait", "30"])?.spawn()?;
    thread::sleep(Duration::from_millis(500));
    ensure!(!node.conflist().exists(), "the agent does not serve");
    node.serves.store(true, Ordering::Relaxed);
    let done = waiting.wait_with_output()?;
    ensure!(done.status.success() && node.conflist().exists(), "{}", said(&done));
    fs::remove_file(node.at("run/api.sock"))?;
    let nobody = node.install(&["--wait", "0"])?;
    ensure!(said(&nobody).contains("no agent answers at"), "{}", said(&nobody));
    ensure!(node.conflist().exists(), "one that was there stays");
    Ok(())
}

#[test]
fn a_plugin_that_runs_goes_on_while_another_release_takes_its_place() -> anyhow::Result<()> {
    let node = Node::new("busy")?;
    ensure!(node.install(&[])?.status.success());
    let mut running = Running::start(&node.program())?;
    for release in ["newer", "older"] {
        let plugin = node.other_release(release)?;
        let done = node.install(&["--plugin", &plugin.display().to_string()])?;
        ensure!(done.status.success(), "{}", said(&done));
        ensure!(fs::read(node.program())? == fs::read(&plugin)?, "{release}: another program is there");
    }
    ensure!(running.0.try_wait()?.is_none(), "the running one was hurt");
    ensure!(
        names(&node.at("bin")) == BTreeSet::from(["causeway-cni".into()]),
        "{:?}",
        names(&node.at("bin"))
    );
    Ok(())
}

/// A plugin that waits for its configuration.
struct Running(Child);

impl Running {
    fn start(program: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.env_clear().envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")]);
        command
            .env("CNI_NETNS", "/nowhere")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Self(command.spawn()?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_full_disk_leaves_what_was_there_and_nothing_half_written() -> anyhow::Result<()> {
    let mut node = Node::new("full")?;
    let size = fs::metadata(Binaries::find()?.get("causeway-cni")?)?.len();
    node.small("bin", size * 3 / 2)?;
    node.small("net.d", 16 << 10)?;
    ensure!(node.install(&["--network", "first"])?.status.success());
    let (program, conflist) = (fs::read(node.program())?, fs::read(node.conflist())?);
    let plugin = node.other_release("newer")?.display().to_string();
    let refused = node.install(&["--plugin", &plugin])?;
    ensure!(!refused.status.success() && said(&refused).contains("No space left"), "{}", said(&refused));
    ensure!(fs::read(node.program())? == program, "the program was hurt");
    ensure!(names(&node.at("bin")).len() == 1, "{:?}", names(&node.at("bin")));
    // Whatever is left of the other one, taken.
    drop(fs::write(node.at("net.d/filler"), vec![0; 64 << 10]));
    let refused = node.install(&["--network", "second"])?;
    ensure!(!refused.status.success() && said(&refused).contains("No space left"), "{}", said(&refused));
    ensure!(fs::read(node.conflist())? == conflist, "the configuration was hurt");
    ensure!(understood(&node.at("net.d"))?);
    fs::remove_file(node.at("net.d/filler"))?;
    ensure!(names(&node.at("net.d")).len() == 1, "{:?}", names(&node.at("net.d")));
    ensure!(node.install(&["--network", "second"])?.status.success(), "with room again");
    Ok(())
}

#[test]
fn a_watcher_never_sees_a_half_written_configuration() -> anyhow::Result<()> {
    let node = Node::new("watched")?;
    ensure!(node.install(&["--network", "first"])?.status.success());
    let (stop, looks) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (kills, seen) = thread::scope(|scope| {
        let watcher = scope.spawn(|| -> anyhow::Result<()> {
            while !stop.load(Ordering::Relaxed) {
                ensure!(understood(&node.at("net.d"))?, "there was no configuration at a time");
                looks.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let kills = rewrite(&node, if full() { 1000 } else { 150 });
        stop.store(true, Ordering::Relaxed);
        (kills, watcher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    seen?;
    ensure!(kills? > 20 && looks.load(Ordering::Relaxed) > 1000, "{looks:?} looks");
    let done = node.install(&["--network", "last"])?;
    ensure!(done.status.success(), "{}", said(&done));
    ensure!(
        names(&node.at("net.d")).len() == 1 && names(&node.at("bin")).len() == 1,
        "a killed installer's file is left"
    );
    Ok(())
}

/// Installs again and again, and kills every other installer at some moment; the number of those killed.
fn rewrite(node: &Node, times: usize) -> anyhow::Result<usize> {
    let releases = [node.other_release("newer")?, node.other_release("older")?];
    let (mut kills, mut typical) = (0, Duration::from_millis(50));
    for time in 0..times {
        let (network, plugin) = (format!("n{time}"), releases[time % 2].display().to_string());
        let began = Instant::now();
        let mut child = node.command(&["--network", &network, "--plugin", &plugin])?.spawn()?;
        if time % 2 == 0 {
            let done = child.wait_with_output()?;
            ensure!(done.status.success(), "{}", said(&done));
            typical = began.elapsed();
            continue;
        }
        thread::sleep(typical.mul_f64(fastrand::f64()));
        child.kill()?;
        kills += usize::from(!child.wait()?.success());
    }
    Ok(kills)
}

#[test]
fn units_are_what_systemd_takes() -> anyhow::Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let units: Vec<_> = names(&directory).into_iter().filter(|name| name.ends_with(".service")).collect();
    ensure!(units == ["causeway-agent.service", "causeway-fastpath.service"], "{units:?}");
    let node = Node::new("units")?;
    let programs = format!("{}/", Binaries::find()?.directory().display());
    for unit in &units {
        let text = fs::read_to_string(directory.join(unit))?;
        promises(&text).with_context(|| unit.clone())?;
        // Programs must be there for it to be content.
        fs::write(node.at(unit), text.replace("/usr/local/bin/", &programs))?;
    }
    let paths = units.iter().map(|unit| node.at(unit));
    match Command::new("systemd-analyze").arg("verify").args(paths).output() {
        Ok(output) => {
            let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
            let ours = complaints.lines().any(|line| units.iter().any(|unit| line.contains(unit.as_str())));
            ensure!(output.status.success() && !ours, "{complaints}");
        }
        // Where systemd is not installed, the text itself has to do.
        Err(error) => ensure!(error.kind() == std::io::ErrorKind::NotFound, "systemd-analyze: {error}"),
    }
    Ok(())
}

/// What a unit must say, whoever reads it.
fn promises(unit: &str) -> anyhow::Result<()> {
    let mut section = "";
    let mut lines = BTreeSet::new();
    for line in unit.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            Some(name) => section = name,
            None => {
                ensure!(line.contains('=') && !section.is_empty(), "{line:?} is no setting");
                lines.insert(format!("{section}: {line}"));
            }
        }
    }
    for wanted in [
        "Unit: StartLimitIntervalSec=0",
        "Service: Restart=always",
        "Service: KillMode=mixed",
        "Service: RuntimeDirectory=causeway",
        "Service: RuntimeDirectoryPreserve=yes",
        "Install: WantedBy=multi-user.target",
    ] {
        ensure!(lines.contains(wanted), "{wanted} is missing");
    }
    let told = |key: &str| lines.iter().any(|line| line.starts_with(&format!("Service: {key}=")));
    for key in ["RestartSec", "RestartPreventExitStatus", "OOMScoreAdjust", "ExecStart"] {
        ensure!(told(key), "{key} is missing");
    }
    let bound = lines
        .iter()
        .find(|line| ["Requires", "BindsTo", "PartOf", "Requisite"].iter().any(|key| line.contains(key)));
    ensure!(bound.is_none(), "one must outlive the other: {bound:?}");
    Ok(())
}

#[test]
fn a_configuration_of_the_agent_that_no_restart_mends_says_so_by_its_status() -> anyhow::Result<()> {
    let node = Node::new("status")?;
    fs::write(node.at("agent.yaml"), "port: http")?;
    let mut command = Command::new(Binaries::find()?.get("causeway")?);
    let refused = command.arg("agent").arg("--config").arg(node.at("agent.yaml")).output()?;
    ensure!(refused.status.code() == Some(78), "{:?}: {}", refused.status, said(&refused));
    let wrong =
        Command::new(Binaries::find()?.get("causeway")?).args(["agent", "--no-such-option"]).output()?;
    ensure!(wrong.status.code() == Some(2), "{:?}: {}", wrong.status, said(&wrong));
    Ok(())
}
