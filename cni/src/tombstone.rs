use std::fs::{DirBuilder, File, OpenOptions, rename};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use causeway_model::EndpointKey;
use causeway_model::plugin::{Tombstone, VERSION};

use crate::error::Error;

/// Leaves word of a deletion that survives a crash of the node: aside, synced, renamed, and the directory synced.
/// Files that begin with a dot are not finished; the agent passes over them.
pub fn leave(folder: &Path, key: &EndpointKey) -> Result<PathBuf, Error> {
    make_folder(folder).map_err(|source| Error::Tombstone { path: folder.to_owned(), source })?;
    let tombstone = Tombstone { version: VERSION, key: key.clone() };
    let name = tombstone.file_name();
    let path = folder.join(&name);
    // Two deletions of one attachment may write at once.
    let aside = folder.join(format!(".{name}.{}", std::process::id()));
    let written = write_synced(&aside, &tombstone)
        .and_then(|()| rename(&aside, &path))
        .inspect_err(|_| drop(std::fs::remove_file(&aside)))
        .and_then(|()| sync_folder(folder));
    match written {
        Ok(()) => Ok(path),
        Err(source) => Err(Error::Tombstone { path, source }),
    }
}

fn write_synced(path: &Path, tombstone: &Tombstone) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&serde_json::to_vec(tombstone)?)?;
    file.sync_all()
}

/// Makes the directory with those above it, each as durable as what will lie in it.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let Some(parent) = folder.parent() else {
        return Err(io::ErrorKind::NotADirectory.into());
    };
    make_folder(parent)?;
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !folder.is_dir() => Err(error),
        _ => sync_folder(parent),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn key() -> EndpointKey {
        EndpointKey { network: "pods".into(), container: "c1".into(), interface: "eth0".into() }
    }

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        std::fs::read_dir(folder).unwrap().map(name).collect()
    }

    #[test]
    fn a_tombstone_lies_alone_in_a_folder_for_root() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("lib/tombstones");
        for _ in 0..2 {
            let path = leave(&folder, &key()).unwrap();
            let read: Tombstone = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            assert_eq!(read, Tombstone { version: VERSION, key: key() });
            assert_eq!(names(&folder), [read.file_name()]);
        }
        assert_eq!(folder.metadata().unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn a_tombstone_that_cannot_be_written_says_where_and_leaves_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("file");
        File::create(&file).unwrap();
        let failure = leave(&file.join("tombstones"), &key()).unwrap_err().failure();
        assert_eq!(failure.code, 5);
        assert!(failure.msg.contains(file.to_str().unwrap()), "{}", failure.msg);

        let taken = scratch.path().join(format!("{}.json", key().link_name()));
        std::fs::create_dir(&taken).unwrap();
        let failure = leave(scratch.path(), &key()).unwrap_err().failure();
        assert_eq!(failure.code, 5);
        assert!(failure.msg.contains(taken.to_str().unwrap()), "{}", failure.msg);
        assert_eq!(names(scratch.path()).len(), 2, "no file aside is left");
    }
}
