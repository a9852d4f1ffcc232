//! Memory in hugepages for the fast path, and the count as it was before.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::Error;

/// The kernel's own files, and ours.
struct Hugepages {
    meminfo: PathBuf,
    count: PathBuf,
    boot_id: PathBuf,
    record: PathBuf,
}

/// The count before it was ours to change, and what we made of it; neither outlives a boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    boot: String,
    before: u64,
    set: u64,
}

/// What the kernel has, in pages.
struct Pool {
    total: u64,
    free: u64,
    page_kib: u64,
}

/// Sees to it that so many MiB are free in hugepages, and says how many pages there are then. The count is never lowered.
pub fn provide(config: &Config, mib: u64) -> Result<String, Error> {
    Hugepages::of(config).provide(mib)
}

/// Gives the count back what it was, unless somebody else has changed it since.
pub(crate) fn restore(config: &Config) -> Result<(), Error> {
    Hugepages::of(config).restore()
}

impl Hugepages {
    fn of(config: &Config) -> Self {
        Self {
            meminfo: "/proc/meminfo".into(),
            count: "/proc/sys/vm/nr_hugepages".into(),
            boot_id: "/proc/sys/kernel/random/boot_id".into(),
            record: config.state.join("hugepages.json"),
        }
    }

    fn provide(&self, mib: u64) -> Result<String, Error> {
        let pool = self.pool()?;
        let need = (mib * 1024).div_ceil(pool.page_kib);
        let short = need.saturating_sub(pool.free);
        if short == 0 {
            return Ok(format!("{} of {} hugepages are free, {need} are needed", pool.free, pool.total));
        }
        let set = pool.total + short;
        let boot = read(&self.boot_id)?;
        let known = self.record()?.filter(|record| record.boot == boot);
        let before = known.map_or(pool.total, |record| record.before);
        // Written down first: what is not on disk is not given back.
        self.write(&Record { boot, before, set })?;
        write(&self.count, &set.to_string())?;
        let now = self.pool()?;
        // The kernel gives what it can, and no error.
        match now.free >= need {
            true => Ok(format!("hugepages raised from {} to {}", pool.total, now.total)),
            false => Err(Error::Hugepages { need, free: now.free }),
        }
    }

    fn restore(&self) -> Result<(), Error> {
        let Some(record) = self.record()? else { return Ok(()) };
        let now: Option<u64> = read(&self.count)?.parse().ok();
        // Fewer than asked for is what the kernel had.
        let ours = now.is_some_and(|now| (record.before..=record.set).contains(&now));
        if ours && read(&self.boot_id)? == record.boot {
            write(&self.count, &record.before.to_string())?;
        }
        fs::remove_file(&self.record).map_err(Error::io(format!("removing {}", self.record.display())))
    }

    fn pool(&self) -> Result<Pool, Error> {
        let text = read(&self.meminfo)?;
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            let missing = || {
                Error::io(format!("reading {} of {}", key, self.meminfo.display()))(
                    io::ErrorKind::NotFound.into(),
                )
            };
            number.ok_or_else(missing)
        };
        Ok(Pool {
            total: value("HugePages_Total")?,
            free: value("HugePages_Free")?,
            page_kib: value("Hugepagesize")?,
        })
    }

    fn record(&self) -> Result<Option<Record>, Error> {
        match fs::read(&self.record) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| Error::Damaged { file: self.record.clone(), why: error.to_string() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("reading {}", self.record.display()))(error)),
        }
    }

    fn write(&self, record: &Record) -> Result<(), Error> {
        let directory = self.record.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).map_err(Error::io(format!("making {}", directory.display())))?;
        let text = serde_json::to_string(record).unwrap_or_else(|_| unreachable!("numbers and text"));
        crate::install::put_text(&self.record, &text)
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let text = fs::read_to_string(path).map_err(Error::io(format!("reading {}", path.display())))?;
    Ok(text.trim().to_owned())
}

fn write(path: &Path, value: &str) -> Result<(), Error> {
    fs::write(path, value).map_err(Error::io(format!("writing {value} to {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with 2 MiB pages, of which so many are there and free.
    fn machine(total: u64, free: u64) -> (tempfile::TempDir, Hugepages) {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        let pages = Hugepages {
            meminfo: at("meminfo"),
            count: at("count"),
            boot_id: at("boot"),
            record: at("record"),
        };
        fs::write(&pages.boot_id, "first\n").unwrap();
        have(&pages, total, free);
        (scratch, pages)
    }

    fn have(pages: &Hugepages, total: u64, free: u64) {
        let text = format!(
            "MemTotal: 1 kB\nHugePages_Total: {total}\nHugePages_Free: {free}\nHugepagesize: 2048 kB\n"
        );
        fs::write(&pages.meminfo, text).unwrap();
        fs::write(&pages.count, total.to_string()).unwrap();
    }

    fn count(pages: &Hugepages) -> String {
        fs::read_to_string(&pages.count).unwrap()
    }

    #[test]
    fn what_is_free_already_is_enough() {
        let (_scratch, pages) = machine(200, 128);
        assert_eq!(pages.provide(256).unwrap(), "128 of 200 hugepages are free, 128 are needed");
        assert_eq!(count(&pages), "200");
        pages.restore().unwrap();
        assert_eq!(count(&pages), "200");
    }

    #[test]
    fn what_is_missing_is_added_and_given_back() {
        let (_scratch, pages) = machine(100, 28);
        // This kernel has no memory left: nothing becomes free.
        let error = pages.provide(256).unwrap_err().to_string();
        assert!(error.contains("128") && error.contains("28"), "{error}");
        assert_eq!(count(&pages), "200", "100 of others and ours are in use or free, 100 more are missing");
        have(&pages, 200, 100);
        drop(pages.provide(256));
        assert_eq!(count(&pages), "228");
        pages.restore().unwrap();
        assert_eq!(
            (count(&pages).as_str(), pages.record.exists()),
            ("100", false),
            "the first count, not the second"
        );
        pages.restore().unwrap();
    }

    #[test]
    fn what_others_set_since_or_before_this_boot_stays() {
        for (reboot, others) in [(false, 4096), (true, 150)] {
            let (_scratch, pages) = machine(100, 28);
            drop(pages.provide(256));
            have(&pages, others, others);
            if reboot {
                fs::write(&pages.boot_id, "second").unwrap();
            }
            pages.restore().unwrap();
            assert_eq!(count(&pages), others.to_string());
            assert!(!pages.record.exists());
        }
    }
}
