use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::watch;

use super::SourceError;
use super::world::CLUSTERS;

/// How long a directory must be quiet before its change is told: writers come in bursts.
const QUIET: Duration = Duration::from_millis(50);
/// How long a burst may delay the news at most.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often news is told although nothing was noticed: what the kernel's events cannot tell (the target of a link, a network
/// file system) is found then.
const RESCAN: Duration = Duration::from_secs(10);

/// Word of changes in a directory of manifests, until it is dropped. The directory need not be there yet.
#[derive(Debug)]
pub struct ManifestWatch {
    changes: watch::Receiver<u64>,
    stop: mpsc::Sender<Word>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Word {
    Changed,
    Stop,
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
        let thread = thread::Builder::new().name("manifests".into()).spawn({
            let dir = dir.to_owned();
            move || {
                while next_burst(&words, rescan) {
                    rearm(&dir, &mut watcher, &mut watched);
                    tell.send_modify(|count| *count += 1);
                }
            }
        });
        let thread = thread.map_err(|e| failed(e.into()))?;
        Ok(Self { changes, stop, thread: Some(thread) })
    }

    /// A counter that goes up when something may have changed: after each burst of writes, and now and then.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
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

/// Waits for a burst of changes and its end, or for the time of a rescan; false to stop.
fn next_burst(words: &mpsc::Receiver<Word>, rescan: Duration) -> bool {
    match words.recv_timeout(rescan) {
        Ok(Word::Changed) => {}
        Err(RecvTimeoutError::Timeout) => return true,
        Ok(Word::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
    }
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        match words.recv_timeout(QUIET) {
            Ok(Word::Changed) => {}
            Err(RecvTimeoutError::Timeout) => return true,
            Ok(Word::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
    true
}

fn watcher(dir: &Path, words: mpsc::Sender<Word>) -> notify::Result<RecommendedWatcher> {
    let dir = dir.to_owned();
    notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // An error is news: a queue that ran over may have held any.
        if event.map_or(true, |event| is_news(&event, &dir)) {
            drop(words.send(Word::Changed));
        }
    })
}

/// Whether an event tells of a change in the manifests. Reading them is none, nor is what happens to their neighbours in the
/// directory above.
fn is_news(event: &notify::Event, dir: &Path) -> bool {
    let mere_access = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        EventKind::Access(_) => true,
        _ => false,
    };
    let near = |path: &PathBuf| path.starts_with(dir) || dir.starts_with(path);
    !mere_access && (event.paths.is_empty() || event.paths.iter().any(near))
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
