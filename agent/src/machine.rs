//! What the agent knows of the machine it runs on: its boot, and the namespaces that are its own.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::fstat;
use nix::sys::statfs::{FsType, fstatfs};

use crate::error::Error;
use crate::store::Netns;

/// What network namespaces live on.
const NSFS: FsType = FsType(nix::libc::NSFS_MAGIC as _);

/// The machine, as it is for as long as the agent runs.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// This boot's id: what was of another boot has lost its namespaces.
    pub boot: String,
    /// The namespaces no pod can be in, by device and inode: the agent's own, and that of the machine's first process.
    pub own: Vec<(u64, u64)>,
}

impl Machine {
    /// Looks around.
    pub(crate) fn look() -> Result<Self, Error> {
        const BOOT: &str = "/proc/sys/kernel/random/boot_id";
        let boot = fs::read_to_string(BOOT).map_err(Error::io(format!("reading {BOOT}")))?;
        // The first process may be out of sight, in a container; then a pod cannot be given its namespace either.
        let seen =
            ["/proc/self/ns/net", "/proc/1/ns/net"].into_iter().filter_map(|path| fs::metadata(path).ok());
        let own: Vec<_> = seen.map(|metadata| (metadata.dev(), metadata.ino())).collect();
        Ok(Self { boot: boot.trim().to_owned(), own })
    }

    /// The namespace of a pod, if it is one that a pod can be in: not the node's own, which a recycled process number or a
    /// mistake can make it, however it is called.
    pub(crate) fn pod_namespace(
        &self,
        path: &str,
        netns: Option<OwnedFd>,
    ) -> Result<(OwnedFd, Netns), Error> {
        let refused = |why: &str| Error::Namespace { netns: path.to_owned(), why: why.to_owned() };
        let netns = netns.ok_or_else(|| refused("no descriptor came with the request"))?;
        let looking = || Error::io(format!("looking at network namespace {path}"));
        let on = fstatfs(netns.as_fd()).map_err(|errno| looking()(errno.into()))?.filesystem_type();
        if on != NSFS {
            return Err(refused("it is not a network namespace"));
        }
        let status = fstat(netns.as_fd()).map_err(|errno| looking()(errno.into()))?;
        let (device, inode) = (status.st_dev, status.st_ino);
        if self.own.contains(&(device, inode)) {
            return Err(refused("it is the node's own network namespace"));
        }
        Ok((netns, Netns { path: path.to_owned(), device, inode }))
    }

    /// Whether a namespace is certainly not where it was: what cannot be looked at may be there.
    pub(crate) fn is_gone(&self, netns: &Netns) -> bool {
        match fs::metadata(&netns.path) {
            // What is no namespace at all may be the place of one that is mounted out of our sight.
            Ok(found) => found.dev() == netns.device && found.ino() != netns.inode,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// The network namespaces that processes live in, by device and inode. The first process is nobody's pod, and not everywhere
    /// may one look at it.
    pub(crate) fn inhabited(&self) -> Result<BTreeSet<(u64, u64)>, Error> {
        let mut namespaces = BTreeSet::new();
        let reading = || Error::io("reading /proc");
        for entry in fs::read_dir("/proc").map_err(reading())? {
            let name = entry.map_err(reading())?.file_name();
            let Some(process) = name.to_str().and_then(|name| name.parse::<u32>().ok()).filter(|id| *id != 1)
            else {
                continue;
            };
            match fs::metadata(format!("/proc/{process}/ns/net")) {
                Ok(found) => drop(namespaces.insert((found.dev(), found.ino()))),
                // It has ended meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
                Err(error) => return Err(Error::io(format!("looking where process {process} lives"))(error)),
            }
        }
        Ok(namespaces)
    }

    /// Whether a namespace still is where it was.
    pub(crate) fn is_there(&self, netns: &Netns) -> bool {
        // A closed file's number may be another's by now: both must agree.
        let found: io::Result<_> = File::open(&netns.path).and_then(|file| file.metadata());
        found.is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == (netns.device, netns.inode))
    }
}
