//! The look at the kernel's 2 MiB pages before the EAL starts, since it cannot be started twice.

use std::{fs, io, path::Path};

/// Where the kernel tells its page pools.
pub const SYSFS: &str = "/sys/kernel/mm/hugepages";
/// The size of the pages we use.
pub const PAGE_MIB: u32 = 2;

const POOL: &str = "hugepages-2048kB";
const GIANT: &str = "hugepages-1048576kB";

/// Why the memory asked for is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// Fewer free pages of 2 MiB than needed.
    #[error("need {need}, have {have}")]
    TooFew {
        /// Pages of 2 MiB needed.
        need: u64,
        /// Pages of 2 MiB that are free.
        have: u64,
    },
    /// Only pages of 1 GiB are reserved.
    #[error("need {need} of 2 MiB, have {giant} of 1 GiB only")]
    OnlyGiant {
        /// Pages of 2 MiB needed.
        need: u64,
        /// Free pages of 1 GiB.
        giant: u64,
    },
    /// No hugepage is reserved.
    #[error("need {need}, none reserved")]
    None {
        /// Pages of 2 MiB needed.
        need: u64,
    },
    /// The kernel has no pages of 2 MiB at all.
    #[error("this kernel has no pages of 2 MiB ({0})")]
    Unsupported(String),
}

/// Pages that `mib` mebibytes take.
pub fn pages_for(mib: u32) -> u64 {
    u64::from(mib.div_ceil(PAGE_MIB))
}

/// Checks that `mib` mebibytes can be had in pages of 2 MiB.
pub fn check(mib: u32) -> Result<(), Shortage> {
    check_in(Path::new(SYSFS), mib)
}

fn check_in(sysfs: &Path, mib: u32) -> Result<(), Shortage> {
    let need = pages_for(mib);
    let small = PoolFigures::read(&sysfs.join(POOL))
        .map_err(|why| Shortage::Unsupported(format!("{}: {why}", sysfs.join(POOL).display())))?;
    let have = small.available();
    if have >= need {
        return Ok(());
    }
    if small.total > 0 || small.overcommit > 0 {
        return Err(Shortage::TooFew { need, have });
    }
    match PoolFigures::read(&sysfs.join(GIANT)).map_or(0, |giant| giant.available()) {
        0 => Err(Shortage::None { need }),
        giant => Err(Shortage::OnlyGiant { need, giant }),
    }
}

struct PoolFigures {
    total: u64,
    free: u64,
    reserved: u64,
    overcommit: u64,
    surplus: u64,
}

impl PoolFigures {
    fn read(dir: &Path) -> io::Result<Self> {
        let figure = |name: &str| -> io::Result<u64> {
            fs::read_to_string(dir.join(name))?.trim().parse().map_err(io::Error::other)
        };
        Ok(Self {
            total: figure("nr_hugepages")?,
            free: figure("free_hugepages")?,
            reserved: figure("resv_hugepages")?,
            overcommit: figure("nr_overcommit_hugepages")?,
            surplus: figure("surplus_hugepages")?,
        })
    }

    /// Free and promised to nobody, and what the kernel may add on demand.
    fn available(&self) -> u64 {
        self.free.saturating_sub(self.reserved) + self.overcommit.saturating_sub(self.surplus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sysfs whose pool directories hold (name, total, free, reserved, overcommit).
    fn sysfs(pools: &[(&str, [u64; 4])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, [total, free, reserved, overcommit]) in pools {
            let dir = root.path().join(name);
            fs::create_dir(&dir).unwrap();
            for (file, value) in [
                ("nr_hugepages", total),
                ("free_hugepages", free),
                ("resv_hugepages", reserved),
                ("nr_overcommit_hugepages", overcommit),
                ("surplus_hugepages", &0),
            ] {
                fs::write(dir.join(file), format!("{value}\n")).unwrap();
            }
        }
        root
    }

    #[test]
    fn enough_pages_are_enough() {
        assert_eq!(check_in(sysfs(&[(POOL, [256, 256, 0, 0])]).path(), 512), Ok(()));
        assert_eq!(check_in(sysfs(&[(POOL, [0, 0, 0, 256])]).path(), 511), Ok(()));
    }

    #[test]
    fn a_shortage_says_what_is_there() {
        let told = |pools: &[(&str, [u64; 4])]| {
            crate::SysError::from(check_in(sysfs(pools).path(), 512).unwrap_err()).to_string()
        };
        assert_eq!(told(&[(POOL, [100, 80, 16, 0])]), "hugepages: need 256, have 64");
        assert_eq!(told(&[(POOL, [0, 0, 0, 0])]), "hugepages: need 256, none reserved");
        assert_eq!(
            told(&[(POOL, [0, 0, 0, 0]), (GIANT, [4, 3, 0, 0])]),
            "hugepages: need 256 of 2 MiB, have 3 of 1 GiB only"
        );
        assert!(told(&[]).contains("no pages of 2 MiB"), "{}", told(&[]));
    }
}
