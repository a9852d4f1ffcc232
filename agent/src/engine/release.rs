use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use causeway_model::plugin::Tombstone;
use causeway_model::{Dataplane, EndpointKey};

use super::Core;
use crate::error::{Error, chain};

impl Core {
    /// Takes an attachment away, whatever of it is there: the link first, then its guards, then the lease. Goes on past
    /// failures and tells all of them; asked again, it tries again what is left.
    pub(super) fn release(&mut self, key: &EndpointKey) -> Result<(), Error> {
        self.leaks.forget(key);
        let mut failures = Vec::new();
        failures.extend(self.parts.drivers.detach(key).err().map(Error::from));
        let world = self.world.clone().unwrap_or_default();
        let changes = self.roster.dismiss(key, &world);
        if !changes.is_empty() {
            failures.extend(self.bring_changes(&changes).err().map(Error::from));
        }
        match self.parts.store.remove(key) {
            Ok(Some(_)) => tracing::info!("released {key}"),
            Ok(None) => {}
            Err(error) => failures.push(error),
        }
        match failures.len() {
            0 => Ok(()),
            1 => Err(failures.remove(0)),
            _ => Err(Error::Several(failures)),
        }
    }

    /// Carries out the deletions that the plugin could not tell us of.
    pub(super) fn replay_tombstones(&mut self) {
        let directory = self.parts.config.tombstones.clone();
        let done = match list(&directory) {
            Err(error) => Err(chain(&error)),
            Ok(files) => {
                let failures = files.iter().filter_map(|file| self.replay(file).err());
                let texts: Vec<_> = failures.map(|error| chain(&error)).collect();
                if texts.is_empty() { Ok(()) } else { Err(texts.join("; ")) }
            }
        };
        self.note("replaying deletions", done);
    }

    fn replay(&mut self, file: &Path) -> Result<(), Error> {
        let reading = || format!("reading tombstone {}", file.display());
        let text = fs::read(file).map_err(Error::io(reading()))?;
        let stone: Tombstone =
            serde_json::from_slice(&text).map_err(|error| Error::io(reading())(error.into()))?;
        self.release(&stone.key)?;
        fs::remove_file(file).map_err(Error::io(format!("removing tombstone {}", file.display())))
    }

    /// Releases what a reboot took: of another boot, and its namespace is not there any more. Of this boot, only the runtime
    /// may say that a pod is gone.
    pub(super) fn release_the_dead(&mut self) {
        let machine = &self.parts.machine;
        let dead = self
            .parts
            .store
            .records()
            .iter()
            .filter(|(_, record)| record.boot != machine.boot && !machine.is_there(&record.netns));
        for key in dead.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            tracing::info!("{key} did not live through the reboot");
            let done = self.release(&key).map_err(|error| chain(&error));
            self.note(&format!("releasing {key} after the reboot"), done);
        }
    }
}

/// The tombstones of a directory; one that is being written has another ending.
fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = || Error::io(format!("reading {}", directory.display()));
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed())?,
    };
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>().map_err(failed())?;
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "json")).collect())
}
