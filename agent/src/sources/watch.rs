use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::watch;

use super::SourceError;
use super::manifests::{News, is_read};
use super::world::CLUSTERS;

/// How long a directory must be quiet before its change is told, when everybody who wrote has finished: some write several files.
const FINISHED: Duration = Duration::from_millis(2);
/// The same, when a file has appeared of which nobody knows whether something will be written to it.
const CREATED: Duration = Duration::from_millis(10);
/// How long a burst may delay the news at most, and a file that is being written the others.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often news is told although nothing was noticed: what the kernel's events cannot tell (the target of a link, a network
/// file system) is found then.
const RESCAN: Duration = Duration::from_secs(10);

/// Word of changes in a directory of manifests, until it is dropped. The directory need not be there yet.
#[derive(Debug)]
pub struct ManifestWatch {
    changes: watch::Receiver<u64>,
    news: Arc<Mutex<News>>,
    stop: mpsc::Sender<Word>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Word {
    Touched(Touched),
    Stop,
}

/// What an event says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Touched {
    /// Anything may have changed.
    Anything,
    /// A name in the directory.
    Name(PathBuf, Stage),
}

/// How far whoever touches a file has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It is there, and may be written to.
    Created,
    /// It is being written.
    Open,
    /// It was closed, renamed or removed.
    Finished,
    /// Not to be told from this.
    AsBefore,
}

impl ManifestWatch {
    /// Begins to watch. Changes made before this returns are not told.
    pub fn new(dir: impl Into<PathBuf>) -> Result<Self, SourceError> {
        Self::with_rescan(&dir.into(), RESCAN)
    }

    fn with_rescan(dir: &Path, rescan: Duration) -> Result<Self, SourceError> {
        let (stop, words) = mpsc::channel();
        let failed = |source| SourceError::Watch { dir: dir.to_owned(), source };
        let mut watcher = watcher(dir, stop.clone()).map_err(|e| failed(e.into()))?;
        let mut watched = BTreeMap::new();
        rearm(dir, &mut watcher, &mut watched);
        let (tell, changes) = watch::channel(0);
        let news = Arc::new(Mutex::new(News::default()));
        let thread = thread::Builder::new().name("manifests".into()).spawn({
            let (dir, news) = (dir.to_owned(), news.clone());
            move || {
                let mut bursts = Bursts::new(rescan);
                while let Some(burst) = bursts.next(&words) {
                    if burst == News::Anything {
                        rearm(&dir, &mut watcher, &mut watched);
                    }
                    news.lock().unwrap_or_else(PoisonError::into_inner).extend(burst);
                    tell.send_modify(|count| *count += 1);
                }
            }
        });
        let thread = thread.map_err(|e| failed(e.into()))?;
        Ok(Self { changes, news, stop, thread: Some(thread) })
    }

    /// A counter that goes up when something may have changed: after each burst of writes, and now and then.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// What may have changed since this was last asked for.
    pub fn news(&self) -> News {
        mem::take(&mut *self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for ManifestWatch {
    fn drop(&mut self) {
        // Neither can fail in a way that matters: a thread that has gone needs no telling.
        drop(self.stop.send(Word::Stop));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn watcher(dir: &Path, words: mpsc::Sender<Word>) -> notify::Result<RecommendedWatcher> {
    let dir = dir.to_owned();
    notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // An error is news: a queue that ran over may have held any.
        let touched = event.map_or_else(|_| vec![Touched::Anything], |event| touched(&event, &dir));
        touched.into_iter().for_each(|touched| drop(words.send(Word::Touched(touched))));
    })
}

/// What an event tells of the manifests. Reading them is nothing, nor is what happens to their neighbours in the directory above.
fn touched(event: &notify::Event, dir: &Path) -> Vec<Touched> {
    let stage = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Stage::Finished,
        EventKind::Access(_) => return Vec::new(),
        EventKind::Create(_) => Stage::Created,
        EventKind::Modify(ModifyKind::Data(_)) => Stage::Open,
        EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_) => Stage::Finished,
        _ => Stage::AsBefore,
    };
    if event.need_rescan() || event.paths.is_empty() {
        return vec![Touched::Anything];
    }
    let of_directory =
        matches!(event.kind, EventKind::Create(CreateKind::Folder) | EventKind::Remove(RemoveKind::Folder));
    let touched = |path: &PathBuf| match path.strip_prefix(dir) {
        Err(_) => dir.starts_with(path).then_some(Touched::Anything),
        Ok(name) if of_directory || !is_place_of_files(name) => Some(Touched::Anything),
        Ok(name) if is_read(name) => Some(Touched::Name(name.to_owned(), stage)),
        // What nobody reads can be written to by anybody; but a link may come under such a name.
        Ok(_) if matches!(event.kind, EventKind::Access(_) | EventKind::Modify(ModifyKind::Data(_))) => None,
        Ok(name) => Some(Touched::Name(name.to_owned(), Stage::Finished)),
    };
    event.paths.iter().filter_map(touched).collect()
}

/// Whether something of this name is a file, if it is what it should be.
fn is_place_of_files(name: &Path) -> bool {
    match name.components().count() {
        1 => name != Path::new(CLUSTERS),
        depth => depth == 3 && name.starts_with(CLUSTERS),
    }
}

/// Makes bursts of words, each of which is told once.
struct Bursts {
    rescan: Duration,
    /// When anything is to be looked at next, whatever was told.
    due: Instant,
    /// Files that are being written, and since when: half of one is not to be read.
    open: BTreeMap<PathBuf, Instant>,
}

impl Bursts {
    fn new(rescan: Duration) -> Self {
        Self { rescan, due: Instant::now() + rescan, open: BTreeMap::new() }
    }

    /// Waits for a burst of changes and its end, or for the time of a rescan; none to stop.
    fn next(&mut self, words: &mpsc::Receiver<Word>) -> Option<News> {
        let mut burst = News::default();
        let mut created = BTreeSet::new();
        let mut wait = self.due.saturating_duration_since(Instant::now());
        let mut end = None;
        loop {
            match words.recv_timeout(wait) {
                Ok(Word::Touched(touched)) => self.take(touched, &mut burst, &mut created),
                Ok(Word::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => break,
            }
            let now = Instant::now();
            let end = *end.get_or_insert(now + PATIENCE);
            if now >= end {
                break;
            }
            let written = self.open.values().map(|since| *since + PATIENCE).filter(|end| *end > now).max();
            let quiet = if created.is_empty() { FINISHED } else { CREATED };
            wait = written.unwrap_or(now + quiet).min(end) - now;
        }
        if Instant::now() >= self.due {
            self.due = Instant::now() + self.rescan;
            burst = News::Anything;
        }
        if let News::Names(names) = &mut burst {
            // What takes longer than all patience is told when it is done.
            names.retain(|name| !self.open.contains_key(name));
        }
        Some(burst)
    }

    fn take(&mut self, touched: Touched, burst: &mut News, created: &mut BTreeSet<PathBuf>) {
        let Touched::Name(name, stage) = touched else {
            // The end of a writing may have been missed.
            self.open.clear();
            return *burst = News::Anything;
        };
        match stage {
            Stage::Open => drop(self.open.entry(name.clone()).or_insert_with(Instant::now)),
            Stage::Created => drop(created.insert(name.clone())),
            Stage::Finished => {
                self.open.remove(&name);
                created.remove(&name);
            }
            Stage::AsBefore => {}
        }
        burst.extend(News::Names(BTreeSet::from([name])));
    }
}

/// Watches the directories that are there now: by path and inode, because a directory may have been replaced by another of
/// its name. A directory that cannot be watched is left to the rescan.
fn rearm(dir: &Path, watcher: &mut RecommendedWatcher, watched: &mut BTreeMap<PathBuf, u64>) {
    let wanted = directories(dir);
    watched.retain(|path, inode| {
        let keep = wanted.get(path) == Some(inode);
        if !keep {
            // It may have gone by itself with its directory.
            drop(watcher.unwatch(path));
        }
        keep
    });
    for (path, inode) in wanted {
        if !watched.contains_key(&path) && watcher.watch(&path, RecursiveMode::NonRecursive).is_ok() {
            watched.insert(path, inode);
        }
    }
}

/// The directories whose changes matter, with their inodes: the manifests', those of other clusters, and the nearest one above
/// that exists, where the manifests' own would appear or be replaced.
fn directories(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut add = |path: &Path| match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            found.insert(path.to_owned(), metadata.ino());
            true
        }
        _ => false,
    };
    if dir.ancestors().skip(1).any(&mut add) && add(dir) {
        let clusters = dir.join(CLUSTERS);
        if add(&clusters) {
            for entry in fs::read_dir(&clusters).into_iter().flatten().flatten() {
                add(&entry.path());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests;
