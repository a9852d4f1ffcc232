use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, FileType, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;

use super::documents::Parsed;
use super::offers;
use super::world::{CLUSTERS, Scope, World};
use super::yaml;

/// What may have changed in a directory of manifests since it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Anything.
    Anything,
    /// Nothing but what these names in it lead to, which may be no manifests at all.
    Names(BTreeSet<PathBuf>),
}

impl Default for News {
    fn default() -> Self {
        Self::Names(BTreeSet::new())
    }
}

impl News {
    /// Both together.
    pub(super) fn extend(&mut self, more: News) {
        match (&mut *self, more) {
            (Self::Names(names), Self::Names(more)) => names.extend(more),
            _ => *self = Self::Anything,
        }
    }
}

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
    /// Directories and links, by path: what changes there may change what lies elsewhere.
    others: BTreeSet<PathBuf>,
    /// What was wrong with places, not with contents.
    problems: BTreeMap<PathBuf, String>,
    world: Option<Arc<World>>,
    /// Whether the last reading failed, so that news of names alone may not be all that is new.
    missed: bool,
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

/// A file whose objects may not be what they were.
struct Moved {
    path: PathBuf,
    scope: Scope,
    /// What it said, if it was there.
    before: Option<Parsed>,
}

/// The manifest files that are there now.
#[derive(Default)]
struct Listing {
    files: BTreeMap<PathBuf, Scope>,
    /// Clusters whose directory is there and could not be read; all of them when `clusters/` itself could not.
    unreadable: BTreeSet<PathBuf>,
    others: BTreeSet<PathBuf>,
    problems: BTreeMap<PathBuf, String>,
}

impl ManifestSource {
    /// A source that has not been read yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            files: BTreeMap::new(),
            others: BTreeSet::new(),
            problems: BTreeMap::new(),
            world: None,
            missed: true,
        }
    }

    /// What the source is, for status: "manifests in /etc/causeway/manifests".
    pub fn what(&self) -> String {
        format!("manifests in {}", self.dir.display())
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads what has changed since the last time, after a look at everything. A world in which nothing is new is the same `Arc`.
    ///
    /// A file that cannot be parsed keeps its last good objects, and the world says what is wrong with it.
    pub fn read(&mut self) -> Result<Arc<World>, SourceError> {
        let listing = self.list().inspect_err(|_| self.missed = true)?;
        let unreadable = |path: &Path| listing.unreadable.iter().any(|dir| path.starts_with(dir));
        // A listing may miss what is replaced meanwhile.
        let is_there = |path: &Path| fs::symlink_metadata(self.dir.join(path)).is_ok();
        let gone = self.files.keys().filter(|path| !listing.files.contains_key(*path));
        let gone =
            gone.filter(|path| !unreadable(path) && (listing.others.contains(*path) || !is_there(path)));
        let gone: Vec<_> = gone.cloned().collect();
        let mut moved: Vec<_> = gone.iter().filter_map(|path| self.drop_file(path)).collect();
        let mut problems = listing.problems;
        for (path, scope) in listing.files {
            moved.extend(self.take(&path, scope, &mut problems));
        }
        let same_problems = problems == self.problems;
        (self.others, self.problems, self.missed) = (listing.others, problems, false);
        Ok(self.conclude(&moved, same_problems))
    }

    /// Reads what news is of, as [`Self::read`] does, without a look at all other files where that can be told. None where news
    /// of names turns out to be nothing new.
    pub fn read_news(&mut self, news: &News) -> Result<Option<Arc<World>>, SourceError> {
        match news {
            News::Names(names) if !self.missed && !names.iter().any(|name| self.leads_elsewhere(name)) => {
                let last = self.world.clone();
                let world = self.read_files(names);
                Ok((!last.is_some_and(|last| Arc::ptr_eq(&last, &world))).then_some(world))
            }
            _ => self.read().map(Some),
        }
    }

    /// Whether a name is, or was when it was last looked at, anything but a file.
    fn leads_elsewhere(&self, name: &Path) -> bool {
        let now = fs::symlink_metadata(self.dir.join(name));
        self.others.contains(name) || now.is_ok_and(|metadata| !metadata.is_file())
    }

    fn read_files(&mut self, names: &BTreeSet<PathBuf>) -> Arc<World> {
        let mut problems = self.problems.clone();
        let mut moved = Vec::new();
        for path in names.iter().filter(|path| is_read(path)) {
            problems.remove(path);
            match Scope::of(path) {
                Ok(scope) => moved.extend(self.take(path, scope, &mut problems)),
                Err(problem) => drop(problems.insert(path.clone(), format!("{}: {problem}", path.display()))),
            }
        }
        let same_problems = problems == self.problems;
        self.problems = problems;
        self.conclude(&moved, same_problems)
    }

    /// The world after these files have moved.
    fn conclude(&mut self, moved: &[Moved], same_problems: bool) -> Arc<World> {
        if same_problems && let Some(world) = self.renewed(moved) {
            return self.world.insert(world).clone();
        }
        let files = self.files.values().map(|file| (&file.scope, &file.parsed));
        let world = World::assemble(files, self.problems.values().cloned().collect());
        let unchanged = self.world.take().filter(|last| **last == world);
        self.world.insert(unchanged.unwrap_or_else(|| Arc::new(world))).clone()
    }

    /// The last world with what these files say now. None where that cannot be told without a look at all others.
    fn renewed(&self, moved: &[Moved]) -> Option<Arc<World>> {
        let mut world = self.world.clone()?;
        let nothing = Parsed::default();
        for Moved { path, scope, before } in moved {
            let now = self.files.get(path).map_or(&nothing, |file| &file.parsed);
            let difference = world.difference(scope, before.as_ref().unwrap_or(&nothing), now)?;
            if !difference.is_empty() {
                Arc::make_mut(&mut world).renew(scope, difference);
            }
        }
        Some(world)
    }

    fn list(&self) -> Result<Listing, SourceError> {
        let mut listing = Listing::default();
        let failed = |source| SourceError::Directory { dir: self.dir.clone(), source };
        for (name, kind) in entries(&self.dir).map_err(failed)? {
            if name == Path::new(CLUSTERS) {
                listing.others.insert(name);
                self.list_clusters(&mut listing);
            } else {
                self.list_entry(&mut listing, name, kind);
            }
        }
        Ok(listing)
    }

    fn list_clusters(&self, listing: &mut Listing) {
        for (cluster, _) in self.entries_or_problem(listing, Path::new(CLUSTERS)) {
            if is_hidden(&cluster) {
                continue;
            }
            let relative = Path::new(CLUSTERS).join(cluster);
            if !self.dir.join(&relative).is_dir() {
                if is_manifest(&relative) {
                    let text = format!("{}: manifests lie in {CLUSTERS}/NAME/", relative.display());
                    listing.problems.insert(relative, text);
                }
                continue;
            }
            for (name, kind) in self.entries_or_problem(listing, &relative) {
                self.list_entry(listing, relative.join(name), kind);
            }
        }
    }

    /// What is in a directory below the top, which does not take the others with it when it cannot be read.
    fn entries_or_problem(&self, listing: &mut Listing, relative: &Path) -> Vec<(PathBuf, FileType)> {
        match entries(&self.dir.join(relative)) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                listing.problems.insert(relative.to_owned(), format!("{}: {error}", relative.display()));
                listing.unreadable.insert(relative.to_owned());
                Vec::new()
            }
        }
    }

    fn list_entry(&self, listing: &mut Listing, relative: PathBuf, kind: FileType) {
        if !kind.is_file() {
            listing.others.insert(relative.clone());
        }
        if is_hidden(&relative) {
            return;
        }
        if kind.is_dir() || kind.is_symlink() && self.dir.join(&relative).is_dir() {
            let text =
                format!("{}: this directory is not read; others' are {CLUSTERS}/NAME/", relative.display());
            listing.problems.insert(relative, text);
        } else if is_read(&relative) {
            match Scope::of(&relative) {
                Ok(scope) => drop(listing.files.insert(relative, scope)),
                Err(problem) => {
                    let text = format!("{}: {problem}", relative.display());
                    listing.problems.insert(relative, text);
                }
            }
        }
    }

    /// Reads one file if it is not what it was.
    fn take(&mut self, path: &Path, scope: Scope, problems: &mut BTreeMap<PathBuf, String>) -> Option<Moved> {
        let whole = self.dir.join(path);
        let name = path.display().to_string();
        let last = self.files.get(path);
        // The stamp is taken before the content: a write in between shows in the next stamp.
        let metadata = match fs::metadata(&whole) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if fs::symlink_metadata(&whole).is_ok() {
                    problems.insert(path.to_owned(), format!("{name}: a link to nowhere"));
                }
                return self.drop_file(path);
            }
            Err(error) => {
                problems.insert(path.to_owned(), format!("{name}: {error}"));
                return None;
            }
        };
        let stamp = Stamp::of(&metadata);
        if last.is_some_and(|last| last.stamp == stamp && stamp.settled) {
            return None;
        }
        let mut parsed = match text_of(&whole, &metadata) {
            Ok(text) => Parsed::read(&name, &text),
            Err(problem) => Parsed::unreadable(format!("{name}: {problem}")),
        };
        if let Some(last) = last {
            parsed.keep_last_good(&last.parsed);
        }
        let before = self.files.insert(path.to_owned(), File { scope: scope.clone(), stamp, parsed });
        Some(Moved { path: path.to_owned(), scope, before: before.map(|file| file.parsed) })
    }

    /// Forgets a file that has gone.
    fn drop_file(&mut self, path: &Path) -> Option<Moved> {
        let File { scope, parsed, .. } = self.files.remove(path)?;
        Some(Moved { path: path.to_owned(), scope, before: Some(parsed) })
    }
}

/// Everything in a directory, in order, with what it is itself: a link is a link.
fn entries(dir: &Path) -> io::Result<Vec<(PathBuf, FileType)>> {
    let entry = |entry: io::Result<fs::DirEntry>| {
        let entry = entry?;
        Ok((PathBuf::from(entry.file_name()), entry.file_type()?))
    };
    let mut found = fs::read_dir(dir)?.map(entry).collect::<io::Result<Vec<_>>>()?;
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found)
}

/// Dot files are editors' and Kubernetes' own (`..data`).
fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Whether a file of this name is read.
pub(super) fn is_read(path: &Path) -> bool {
    !is_hidden(path) && (is_manifest(path) || offers::marks_lost(path))
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
