//! Files that are never seen half-written: written aside, synced, renamed, and their directory synced.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use crate::error::Error;

/// What lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A plain file.
    File,
}

/// Whether something was to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// There was none.
    Placed,
    /// There was another one.
    Replaced,
    /// It was there.
    Same,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Done::Placed => "is in place",
            Done::Replaced => "is replaced",
            Done::Same => "is in place already",
        })
    }
}

/// How long the lock is waited for: a child of an installer that was killed holds it until it has become another program.
const PATIENCE: Duration = Duration::from_millis(500);

/// A directory held against a second installer: the kernel's lock goes with its holder.
pub struct Held {
    _directory: Flock<File>,
}

impl Held {
    pub fn of(directory: &Path) -> Result<Self, Error> {
        let doing = format!("locking {}", directory.display());
        let mut file = File::open(directory).map_err(Error::io(doing.clone()))?;
        let until = Instant::now() + PATIENCE;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self { _directory: lock }),
                Err((file, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < until => file,
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                    return Err(Error::Taken {
                        what: directory.display().to_string(),
                        why: "another `causeway install` is at work there".to_owned(),
                    });
                }
                Err((_, errno)) => return Err(Error::io(doing)(errno.into())),
            };
            thread::sleep(PATIENCE / 50);
        }
    }
}

/// What lies there; anything but a plain file is somebody else's.
pub fn find(path: &Path) -> Result<Found, Error> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => Ok(Found::File),
        Ok(found) => {
            let why =
                format!("it is a {}", if found.is_dir() { "directory" } else { "link or special file" });
            Err(Error::NotOurs { path: path.to_owned(), why })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
        Err(error) => Err(Error::io(format!("looking at {}", path.display()))(error)),
    }
}

/// Puts a program in place once `check` has run what was written aside. One that runs goes on as it was.
pub fn program(
    path: &Path,
    bytes: &[u8],
    check: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<Done, Error> {
    let executable = || fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o777 == 0o755);
    put(path, bytes, 0o755, executable, check)
}

/// Puts a text in place.
pub fn text(path: &Path, text: &str) -> Result<Done, Error> {
    put(path, text.as_bytes(), 0o644, || true, |_| Ok(()))
}

fn put(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    fits: impl FnOnce() -> bool,
    check: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<Done, Error> {
    let found = find(path)?;
    // Nothing moves under a runtime that watches the directory when there is nothing new.
    if found == Found::File && fits() && fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(Done::Same);
    }
    let aside = aside(path);
    let written = write_synced(&aside, bytes, mode)
        .map_err(Error::io(format!("writing {}", aside.display())))
        .and_then(|()| check(&aside))
        .and_then(|()| {
            fs::rename(&aside, path).map_err(Error::io(format!(
                "renaming {} to {}",
                aside.display(),
                path.display()
            )))
        });
    if let Err(error) = written {
        drop(fs::remove_file(&aside));
        return Err(error);
    }
    sync_directory_of(path)?;
    Ok(if found == Found::File { Done::Replaced } else { Done::Placed })
}

/// A name that no runtime loads: it ends in none of .conf, .conflist and .json. An installer that was killed leaves it, and
/// the next one writes it anew.
fn aside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    remove(path)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    // Whatever the umask.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

/// Removes a file and what an installer that was killed left of it, for good.
pub fn take_away(path: &Path) -> Result<(), Error> {
    let mut gone = false;
    for path in [path, &aside(path)] {
        gone |= remove(path).map_err(Error::io(format!("removing {}", path.display())))?;
    }
    if gone { sync_directory_of(path) } else { Ok(()) }
}

/// Whether there was one.
fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        done => done.map(|()| true),
    }
}

fn sync_directory_of(path: &Path) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(Error::io(format!("syncing {}", directory.display())))
}
