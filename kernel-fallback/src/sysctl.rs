//! Kernel settings below /proc/sys, of the network namespace of the calling thread, and the record of what they were.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use crate::error::KernelError;
use crate::objects::is_our_link;

/// Forwarding over IPv4, of the whole namespace.
pub(crate) const IPV4_FORWARDING: &str = "net/ipv4/ip_forward";
/// Forwarding over IPv6, of the whole namespace.
pub(crate) const IPV6_FORWARDING: &str = "net/ipv6/conf/all/forwarding";

/// Of a link: packets from the node's loopback may leave by it, and those to it come in.
pub(crate) const ROUTE_LOCALNET: &str = "route_localnet";

/// Where all settings of a network namespace lie.
const NET: &str = "/proc/sys/net";
/// The longest value that is read.
const LONGEST: usize = 256;

/// The settings of one network namespace, that of the threads that use it, with the directories that were opened. Below [`NET`] the
/// kernel keeps the `ipv6` of every namespace under one name, and goes through all of them for each path that leads there: with a
/// thousand pods that takes longer than all the rest of setting something.
#[derive(Debug, Default)]
pub(crate) struct Sysctls {
    directories: BTreeMap<String, File>,
}

impl Sysctls {
    /// The value of a setting; none where the kernel has no such setting.
    pub(crate) fn read(&mut self, path: &str) -> Result<Option<String>, KernelError> {
        match self.file(path, OFlag::O_RDONLY) {
            Ok(file) => value(&file, path).map(Some),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(failed(format!("reading sysctl {path}"), errno)),
        }
    }

    /// Gives a setting its value, and touches nothing when it has it already. A setting that the kernel does not have, IPv6
    /// being off, is not missed: what needs it fails by itself.
    pub(crate) fn write(&mut self, path: &str, wanted: &str) -> Result<(), KernelError> {
        let file = match self.file(path, OFlag::O_RDWR) {
            Ok(file) => file,
            Err(Errno::ENOENT) => return Ok(()),
            // What nobody may write may be right.
            Err(_) if self.read(path)?.as_deref() == Some(wanted) => return Ok(()),
            Err(errno) => return Err(failed(format!("setting sysctl {path} to {wanted}"), errno)),
        };
        if value(&file, path)? == wanted {
            return Ok(());
        }
        let written = file.write_all_at(wanted.as_bytes(), 0);
        written.map_err(KernelError::io(format!("setting sysctl {path} to {wanted}")))
    }

    fn file(&mut self, path: &str, access: OFlag) -> nix::Result<File> {
        let below = path.strip_prefix("net/").and_then(|below| below.split_once('/'));
        let (area, below) = below.ok_or(Errno::EINVAL)?;
        if !self.directories.contains_key(area) {
            let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let opened = open(format!("{NET}/{area}").as_str(), directory, Mode::empty())?;
            self.directories.insert(area.to_owned(), opened.into());
        }
        openat(&self.directories[area], below, access | OFlag::O_CLOEXEC, Mode::empty()).map(File::from)
    }
}

fn failed(doing: String, errno: Errno) -> KernelError {
    KernelError::Io { doing, source: errno.into() }
}

fn value(file: &File, path: &str) -> Result<String, KernelError> {
    let mut bytes = [0; LONGEST];
    let length = file.read_at(&mut bytes, 0).map_err(KernelError::io(format!("reading sysctl {path}")))?;
    Ok(String::from_utf8_lossy(&bytes[..length]).trim_end().to_owned())
}

/// What settings of the whole namespace were before they were ours.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// Settings do not outlive a boot, and neither does what is known of them.
    boot: String,
    /// Path and value, in the order in which they are to be restored.
    settings: Vec<(String, String)>,
}

/// The file that remembers what settings were.
#[derive(Debug)]
pub(crate) struct Before {
    path: PathBuf,
}

impl Before {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Gives a setting of the whole namespace its value; what it was, and what changes with it, is on disk before.
    pub(crate) fn write(&self, sysctls: &mut Sysctls, path: &str, value: &str) -> Result<(), KernelError> {
        if sysctls.read(path)?.is_none_or(|present| present == value) {
            return Ok(());
        }
        self.remember(sysctls, path)?;
        sysctls.write(path, value)
    }

    fn remember(&self, sysctls: &mut Sysctls, path: &str) -> Result<(), KernelError> {
        let boot = boot_id()?;
        let mut record = self.read()?.filter(|record| record.boot == boot);
        let record = record.get_or_insert_with(|| Record { boot, settings: Vec::new() });
        let known: BTreeMap<_, _> = record.settings.iter().cloned().collect();
        for path in std::iter::once(path.to_owned()).chain(companions(path)?) {
            if let (false, Some(value)) = (known.contains_key(&path), sysctls.read(&path)?) {
                record.settings.push((path, value));
            }
        }
        self.store(record)?;
        if path == IPV6_FORWARDING { keep_router_advertisements(sysctls) } else { Ok(()) }
    }

    /// Gives every setting back what it was. Goes on past failures.
    pub(crate) fn restore(&self) -> Vec<KernelError> {
        let record = match self.read() {
            Ok(Some(record)) if boot_id().is_ok_and(|boot| boot == record.boot) => record,
            Ok(_) => return self.forget().err().into_iter().collect(),
            Err(error) => return vec![error],
        };
        let mut sysctls = Sysctls::default();
        // Where the link has gone that one belonged to, there is nothing to write.
        let written = record.settings.iter().map(|(path, value)| sysctls.write(path, value));
        let mut errors: Vec<_> = written.filter_map(Result::err).collect();
        if errors.is_empty() {
            errors.extend(self.forget().err());
        }
        errors
    }

    fn read(&self) -> Result<Option<Record>, KernelError> {
        let path = &self.path;
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| KernelError::Record { path: path.clone(), source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(KernelError::Io { doing: format!("reading {}", path.display()), source }),
        }
    }

    fn store(&self, record: &Record) -> Result<(), KernelError> {
        let json = serde_json::to_vec_pretty(record)
            .map_err(|source| KernelError::Record { path: self.path.clone(), source })?;
        let doing = || KernelError::io(format!("writing {}", self.path.display()));
        let aside = self.path.with_extension("new");
        fs::create_dir_all(self.path.parent().unwrap_or(Path::new("/"))).map_err(doing())?;
        fs::write(&aside, json).map_err(doing())?;
        File::open(&aside).and_then(|file| file.sync_all()).map_err(doing())?;
        fs::rename(&aside, &self.path).map_err(doing())
    }

    fn forget(&self) -> Result<(), KernelError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(KernelError::Io { doing: format!("removing {}", self.path.display()), source: error })
            }
            _ => Ok(()),
        }
    }
}

fn boot_id() -> Result<String, KernelError> {
    let path = "/proc/sys/kernel/random/boot_id";
    fs::read_to_string(path)
        .map(|id| id.trim().to_owned())
        .map_err(KernelError::io(format!("reading {path}")))
}

/// The settings that the kernel changes along with one of ours (`inet_forward_change`, `addrconf_fixup_forwarding`).
fn companions(path: &str) -> Result<Vec<String>, KernelError> {
    let mut paths = Vec::new();
    let family = match path {
        IPV4_FORWARDING => {
            paths.push("net/ipv4/conf/all/accept_redirects".to_owned());
            "ipv4"
        }
        IPV6_FORWARDING => "ipv6",
        _ => return Ok(paths),
    };
    for link in links_of(family)? {
        paths.push(format!("net/{family}/conf/{link}/forwarding"));
        if family == "ipv6" {
            paths.push(format!("net/ipv6/conf/{link}/accept_ra"));
        }
    }
    Ok(paths)
}

/// The links of others, and the defaults for new ones.
fn links_of(family: &str) -> Result<Vec<String>, KernelError> {
    let folder = format!("/proc/sys/net/{family}/conf");
    let doing = || KernelError::io(format!("listing {folder}"));
    let mut links = Vec::new();
    for entry in fs::read_dir(&folder).map_err(doing())? {
        let name = entry.map_err(doing())?.file_name().to_string_lossy().into_owned();
        if name != "all" && !is_our_link(&name) {
            links.push(name);
        }
    }
    Ok(links)
}

/// A host that takes its default route from router advertisements loses it when it begins to forward, unless each
/// interface is told to go on (accept_ra = 2). The node keeps its way out.
fn keep_router_advertisements(sysctls: &mut Sysctls) -> Result<(), KernelError> {
    for link in links_of("ipv6")? {
        let path = format!("net/ipv6/conf/{link}/accept_ra");
        if link != "default" && sysctls.read(&path)?.as_deref() == Some("1") {
            sysctls.write(&path, "2")?;
        }
    }
    Ok(())
}
