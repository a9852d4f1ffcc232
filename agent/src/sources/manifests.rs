use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;

use super::documents::Parsed;
use super::world::{CLUSTERS, Scope, World};
use super::yaml;

/// Two writes closer together than this can leave the same times on a file: the kernel's clock for them is coarse.
const COARSE: Duration = Duration::from_secs(1);

/// A source that could not be read or watched. What was read before stays in force.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The directory cannot be read, or is not there (yet).
    #[error("reading the directory of manifests {}", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// Its cause.
        #[source]
        source: io::Error,
    },
    /// The kernel gives no word of changes.
    #[error("watching the directory of manifests {}", dir.display())]
    Watch {
        /// The directory.
        dir: PathBuf,
        /// Its cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Desired state in a directory of manifests: this cluster's at the top, another's in `clusters/NAME/`.
#[derive(Debug)]
pub struct ManifestSource {
    dir: PathBuf,
    /// By path within the directory.
    files: BTreeMap<PathBuf, File>,
    /// What was wrong with places, not with contents.
    problems: Vec<String>,
    world: Option<Arc<World>>,
}

#[derive(Debug)]
struct File {
    scope: Scope,
    stamp: Stamp,
    parsed: Parsed,
}

/// What a file looked like when it was read; equal stamps mean equal content, unless the last write was too close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    settled: bool,
}

/// The manifest files that are there now.
#[derive(Default)]
struct Listing {
    files: BTreeMap<PathBuf, Scope>,
    /// Clusters whose directory is there and could not be read; all of them when `clusters/` itself could not.
    unreadable: BTreeSet<PathBuf>,
    problems: Vec<String>,
}

impl ManifestSource {
    /// A source that has not been read yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), files: BTreeMap::new(), problems: Vec::new(), world: None }
    }

    /// What the source is, for status: "manifests in /etc/causeway/manifests".
    pub fn what(&self) -> String {
        format!("manifests in {}", self.dir.display())
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads what has changed since the last time. A world in which nothing is new is the same `Arc`.
    ///
    /// A file that cannot be parsed keeps its last good objects, and the world says what is wrong with it.
    pub fn read(&mut self) -> Result<Arc<World>, SourceError> {
        let listing = self.list()?;
        let unreadable = |path: &Path| listing.unreadable.iter().any(|dir| path.starts_with(dir));
        let before = self.files.len();
        self.files.retain(|path, _| listing.files.contains_key(path) || unreadable(path));
        let mut changed = self.files.len() != before;
        let mut problems = listing.problems;
        for (path, scope) in listing.files {
            match self.take(&path, scope) {
                Ok(read) => changed |= read,
                Err(problem) => problems.push(problem),
            }
        }
        changed |= problems != self.problems;
        if let Some(world) = self.world.as_ref().filter(|_| !changed) {
            return Ok(world.clone());
        }
        let files = self.files.values().map(|file| (&file.scope, &file.parsed));
        let world = World::assemble(files, problems.clone());
        self.problems = problems;
        let unchanged = self.world.take().filter(|last| **last == world);
        Ok(self.world.insert(unchanged.unwrap_or_else(|| Arc::new(world))).clone())
    }

    fn list(&self) -> Result<Listing, SourceError> {
        let mut listing = Listing::default();
        let failed = |source| SourceError::Directory { dir: self.dir.clone(), source };
        for name in names_in(&self.dir).map_err(failed)? {
            if name == CLUSTERS {
                self.list_clusters(&mut listing);
            } else {
                self.list_entry(&mut listing, Path::new(&name));
            }
        }
        Ok(listing)
    }

    fn list_clusters(&self, listing: &mut Listing) {
        for cluster in self.names_or_problem(listing, Path::new(CLUSTERS)) {
            let relative = Path::new(CLUSTERS).join(cluster);
            if !self.dir.join(&relative).is_dir() {
                if is_manifest(&relative) {
                    listing
                        .problems
                        .push(format!("{}: manifests lie in {CLUSTERS}/NAME/", relative.display()));
                }
                continue;
            }
            for name in self.names_or_problem(listing, &relative) {
                self.list_entry(listing, &relative.join(name));
            }
        }
    }

    /// The names in a directory below the top, which does not take the others with it when it cannot be read.
    fn names_or_problem(&self, listing: &mut Listing, relative: &Path) -> Vec<std::ffi::OsString> {
        match names_in(&self.dir.join(relative)) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                listing.problems.push(format!("{}: {error}", relative.display()));
                listing.unreadable.insert(relative.to_owned());
                Vec::new()
            }
        }
    }

    fn list_entry(&self, listing: &mut Listing, relative: &Path) {
        if self.dir.join(relative).is_dir() {
            let text =
                format!("{}: this directory is not read; others' are {CLUSTERS}/NAME/", relative.display());
            listing.problems.push(text);
        } else if is_manifest(relative) {
            match Scope::of(relative) {
                Ok(scope) => drop(listing.files.insert(relative.to_owned(), scope)),
                Err(problem) => listing.problems.push(format!("{}: {problem}", relative.display())),
            }
        }
    }

    /// Reads one file if it is not what it was; tells whether it did.
    fn take(&mut self, path: &Path, scope: Scope) -> Result<bool, String> {
        let whole = self.dir.join(path);
        let name = path.display().to_string();
        let last = self.files.get(path);
        // The stamp is taken before the content: a write in between shows in the next stamp.
        let metadata = match fs::metadata(&whole) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let gone = self.files.remove(path).is_some();
                let dangling = fs::symlink_metadata(&whole).is_ok();
                return if dangling { Err(format!("{name}: a link to nowhere")) } else { Ok(gone) };
            }
            Err(error) => return Err(format!("{name}: {error}")),
        };
        let stamp = Stamp::of(&metadata);
        if last.is_some_and(|last| last.stamp == stamp && stamp.settled) {
            return Ok(false);
        }
        let mut parsed = match text_of(&whole, &metadata) {
            Ok(text) => Parsed::read(&name, &text),
            Err(problem) => Parsed::unreadable(format!("{name}: {problem}")),
        };
        if let Some(last) = last {
            parsed.keep_last_good(&last.parsed);
        }
        self.files.insert(path.to_owned(), File { scope, stamp, parsed });
        Ok(true)
    }
}

/// Everything in a directory but dot files, which are editors' and Kubernetes' own (`..data`).
fn names_in(dir: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let mut names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
    names.sort();
    Ok(names)
}

fn is_manifest(path: &Path) -> bool {
    ["yaml", "yml", "json"].iter().any(|extension| path.extension() == Some(OsStr::new(extension)))
}

fn text_of(path: &Path, metadata: &Metadata) -> Result<String, String> {
    if !metadata.is_file() {
        return Err("neither a file nor a link to one".to_owned());
    }
    if metadata.len() > yaml::LONGEST {
        return Err(format!("{} bytes are over the limit of {}", metadata.len(), yaml::LONGEST));
    }
    fs::read_to_string(path).map_err(|error| error.to_string())
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        let since_epoch = Duration::from_secs(u64::try_from(changed.0).unwrap_or_default());
        let age = SystemTime::now().duration_since(UNIX_EPOCH + since_epoch).unwrap_or_default();
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed,
            settled: age > COARSE,
        }
    }
}

#[cfg(test)]
mod tests;
