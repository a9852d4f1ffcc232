//! Taking everything of ours away from a node on which no agent runs.

use std::fs;
use std::io;
use std::path::Path;

use causeway_kernel_fallback::KernelDataplane;
use causeway_model::Path as DataPath;

use crate::claim::Claim;
use crate::config::Config;
use crate::error::Error;
use crate::fast;
use crate::hugepages;
use crate::install::{Places, Removal};
use crate::run::sysctl_record;
use crate::store::{self, Store};

/// Removes the network configuration, so that no runtime calls us any more, every kernel object of ours, the sockets, the
/// connections and the plugin, and gives kernel settings back what they were; the store of endpoints and leases goes only when `purge` says so.
/// Refuses while an agent runs. Goes on past failures and tells all.
pub fn uninstall(config: &Config, places: &Places, purge: bool) -> Result<(), Error> {
    let claim = Claim::of(&config.state)?;
    let mut failures = Vec::new();
    let installed = Removal::of(config, places).map_err(|error| failures.push(error)).ok();
    failures.extend(installed.as_ref().and_then(|installed| installed.conflists().err()));
    failures.extend(remove_pod_taps(config).err());
    let removed = KernelDataplane::remove_all(&sysctl_record(config));
    failures.extend(removed.err().map(|error| Error::Dataplane(error.into())));
    failures.extend(hugepages::restore(config).err());
    let connections = config.run.join("connections");
    for file in [&config.cni_socket, &config.api_socket, &config.fastpath_socket, &connections] {
        failures.extend(remove(file, fs::remove_file).err());
    }
    failures.extend(remove_empty(&config.run).err());
    failures.extend(installed.and_then(|installed| installed.programs().err()));
    if purge && failures.is_empty() {
        failures.extend(remove(&config.tombstones, fs::remove_dir_all).err());
        for file in store::FILES.iter().chain(&["lock"]) {
            failures.extend(remove(&config.state.join(file), fs::remove_file).err());
        }
        failures.extend(remove_empty(&config.state).err());
    }
    drop(claim);
    Error::all(failures.into_iter().map(Err))
}

/// Fast pods have no link on the node by which theirs would go: each is deleted where it is.
fn remove_pod_taps(config: &Config) -> Result<(), Error> {
    if !store::exists(&config.state) {
        return Ok(());
    }
    let mut failures = Vec::new();
    for record in Store::open(&config.state)?.records().values() {
        if record.endpoint.path == DataPath::Fast {
            let removed = fast::delete_pod_tap(&record.endpoint.key.interface, &record.netns);
            failures.extend(removed.err().map(Error::Dataplane));
        }
    }
    Error::all(failures.into_iter().map(Err))
}

/// Removes what may not be there.
fn remove<'a>(path: &'a Path, how: impl FnOnce(&'a Path) -> io::Result<()>) -> Result<(), Error> {
    match how(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(Error::io(format!("removing {}", path.display()))),
    }
}

/// Removes a directory of ours unless somebody else keeps something in it.
fn remove_empty(directory: &Path) -> Result<(), Error> {
    remove(directory, |path| match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        done => done,
    })
}
