//! Network namespaces by name, as `ip netns` knows them.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::command::{self, CommandError};

/// Where names of namespaces live, for us and for `ip netns`.
pub const DIRECTORY: &str = "/run/netns";

/// A named network namespace. The value is only its name: dropping it deletes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// The namespace of this name, whether or not it is there.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Makes the namespace, with its loopback up. `ip netns add` would leave a mount on /run/netns for ever.
    pub fn create(name: impl Into<String>) -> io::Result<Self> {
        let this = Self::named(name);
        fs::create_dir_all(DIRECTORY)?;
        File::create_new(this.path())?;
        let made = std::thread::scope(|scope| {
            let mounted = scope.spawn(|| -> nix::Result<()> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                let none = None::<&str>;
                mount(Some("/proc/thread-self/ns/net"), &this.path(), none, MsFlags::MS_BIND, none)
            });
            mounted.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        if let Err(error) = made {
            this.delete()?;
            return Err(error.into());
        }
        this.ip("link set lo up").map_err(io::Error::other)?;
        Ok(this)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path, as a runtime passes it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(DIRECTORY).join(&self.name)
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Deletes the name; the namespace goes when its last process has gone. Deleting what is not there succeeds.
    pub fn delete(&self) -> io::Result<()> {
        let path = self.path();
        match umount2(&path, MntFlags::MNT_DETACH) {
            // Not mounted: a creation that failed half-way.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Enters the namespace with this thread, for the rest of its life.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(File::open(self.path())?, CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs a closure on a thread of its own inside the namespace: its sockets and its children live there.
    ///
    /// # Panics
    /// When the namespace is not there, and with whatever the closure panics with.
    pub fn run<T: Send>(&self, closure: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter().unwrap_or_else(|error| panic!("entering namespace {}: {error}", self.name));
                closure()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a command inside, given as one line of words, and returns its stdout.
    pub fn exec(&self, words: &str) -> Result<String, CommandError> {
        self.stdout(&mut command::parse(words), b"")
    }

    /// Runs a command inside with this on its stdin, and returns its stdout.
    pub fn stdout(&self, command: &mut Command, stdin: &[u8]) -> Result<String, CommandError> {
        self.run(|| command::stdout(command, stdin))
    }

    /// `ip` in this namespace.
    pub fn ip(&self, words: &str) -> Result<String, CommandError> {
        self.exec(&format!("ip {words}"))
    }

    /// Several lines of `ip` at once.
    pub fn ip_batch(&self, lines: &str) -> Result<String, CommandError> {
        self.stdout(&mut command::parse("ip -batch -"), lines.as_bytes())
    }

    /// Sets a sysctl of this namespace, by its path below /proc/sys.
    pub fn sysctl(&self, path: &str, value: &str) -> io::Result<()> {
        self.run(|| fs::write(format!("/proc/sys/{path}"), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_what_ip_netns_would_have_made_and_leaves_nothing() {
        let before = fs::read_to_string("/proc/mounts").unwrap();
        let name = format!("cwl-unit-{}", std::process::id());
        let namespace = Namespace::create(&name).unwrap();
        assert!(command::run("ip netns list").unwrap().contains(&name));
        assert!(Namespace::create(&name).is_err(), "the name is taken");
        assert!(namespace.ip("addr show dev lo").unwrap().contains("127.0.0.1/8"));
        let inside = namespace.run(|| std::net::TcpListener::bind("127.0.0.1:1").map(drop));
        assert!(inside.is_ok(), "{inside:?}");
        assert_eq!(
            command::run(&format!("ip -n {name} -br link")).unwrap(),
            namespace.ip("-br link").unwrap()
        );
        namespace.delete().unwrap();
        namespace.delete().unwrap();
        assert!(!namespace.exists());
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let new = mounts.lines().filter(|line| !before.contains(line) && line.contains(&name)).count();
        assert_eq!(new, 0, "{mounts}");
    }
}
