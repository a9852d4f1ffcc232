//! A directory of the bench, and the processes it runs in the background: all of them gone when the bench is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use causeway_tests::namespace::Namespace;
use causeway_tests::process::Process;

use super::undo::Undo;

/// How long a process may take to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(3);

/// A directory that goes with this value.
pub struct Scratch {
    path: PathBuf,
    _undo: Undo,
}

impl Scratch {
    /// A new one.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("causeway-bench-{}-{number}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        let gone = path.clone();
        let undo = Undo::with(move || {
            if let Err(error) = fs::remove_dir_all(&gone) {
                eprintln!("removing {}: {error}", gone.display());
            }
        });
        Ok(Self { path, _undo: undo })
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// A process that ends with this value.
pub struct Background {
    process: Process,
    log: PathBuf,
    _undo: Undo,
}

impl Background {
    /// Starts it, with its output in a log.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let process = Process::start(command, log).with_context(|| format!("starting {command:?}"))?;
        let undo = Undo::with(move || {
            if let Err(error) = process.stop(PATIENCE) {
                eprintln!("stopping process {}: {error}", process.pid);
            }
        });
        Ok(Self { process, log: log.to_owned(), _undo: undo })
    }

    /// The memory that it holds, in MiB.
    pub fn resident(&self) -> Result<f64> {
        resident(self.process.pid)
    }

    /// Waits until something about it is as it should be.
    pub fn until<T>(&self, what: &str, patience: Duration, look: impl Fn() -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if !self.process.is_alive() || Instant::now() > deadline {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                bail!("{what}: not within {patience:?}; its log:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The memory that a process holds, in MiB.
pub fn resident(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/statm");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok());
    Ok(pages.with_context(|| format!("no resident pages in {path}"))? * 4096.0 / f64::from(1 << 20))
}

/// A network namespace that goes with this value.
pub struct Place {
    /// The namespace.
    pub namespace: Namespace,
    _undo: Undo,
}

impl Place {
    /// A new one, whose name tells whose it is.
    pub fn new(what: &str) -> Result<Self> {
        let namespace = Namespace::create(format!("cwb-{}-{what}", std::process::id()))
            .with_context(|| format!("making a namespace for {what}"))?;
        let gone = namespace.clone();
        let undo = Undo::with(move || {
            if let Err(error) = gone.delete() {
                eprintln!("deleting namespace {}: {error}", gone.name());
            }
        });
        Ok(Self { namespace, _undo: undo })
    }
}
