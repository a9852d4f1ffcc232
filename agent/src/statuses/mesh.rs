//! What became of this cluster's exports and imports, in one file each.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use causeway_mesh::api::{SERVICE_EXPORT, SERVICE_IMPORT};
use causeway_mesh::{Moved, ServiceName, World, export_object, import_object};

use super::{conditions, now, ours, put, remove};
use crate::error::Error;

/// The statuses of ServiceExports and ServiceImports.
#[derive(Debug)]
pub(crate) struct MeshStatuses {
    directory: PathBuf,
    /// What may not be as its file says.
    stale: Moved,
    /// The directory was looked through for files of objects that have gone.
    swept: bool,
}

impl MeshStatuses {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory, stale: Moved::default(), swept: false }
    }

    /// Notes what has moved.
    pub(crate) fn note(&mut self, moved: Moved) {
        self.stale.imports.extend(moved.imports);
        self.stale.exports.extend(moved.exports);
    }

    /// Writes what is new, and takes away what is of objects that have gone.
    pub(crate) fn tell(&mut self, mesh: &World) -> Result<(), Error> {
        if !self.swept {
            self.sweep(mesh)?;
        }
        while let Some(name) = self.stale.exports.first().cloned() {
            let file = self.file(SERVICE_EXPORT, &name);
            match mesh.exports().get(&name).and_then(|exports| exports.get(mesh.own())) {
                Some(exported) => put(&file, &export_object(&name, exported, &conditions(&file), &now()))?,
                None => remove(&file)?,
            }
            self.stale.exports.remove(&name);
        }
        while let Some(name) = self.stale.imports.first().cloned() {
            let file = self.file(SERVICE_IMPORT, &name);
            match mesh.imports().get(&name) {
                Some(import) => put(&file, &import_object(&name, import, &conditions(&file), &now()))?,
                None => remove(&file)?,
            }
            self.stale.imports.remove(&name);
        }
        Ok(())
    }

    /// Takes away what an agent before left of objects that have gone since.
    fn sweep(&mut self, mesh: &World) -> Result<(), Error> {
        let own = mesh.exports().iter().filter(|(_, exports)| exports.contains_key(mesh.own()));
        let exports = own.map(|(name, _)| self.file(SERVICE_EXPORT, name));
        let imports = mesh.imports().keys().map(|name| self.file(SERVICE_IMPORT, name));
        let wanted: BTreeSet<_> = exports.chain(imports).collect();
        let there = ours(&self.directory, &[SERVICE_EXPORT, SERVICE_IMPORT])?;
        there.iter().filter(|file| !wanted.contains(*file)).try_for_each(|file| remove(file))?;
        self.swept = true;
        Ok(())
    }

    fn file(&self, kind: &str, ServiceName { namespace, name }: &ServiceName) -> PathBuf {
        self.directory.join(Path::new(&format!("{kind}_{namespace}_{name}.json")))
    }
}
