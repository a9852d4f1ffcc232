//! DPDK's environment: started once, with memory that was looked at before.

use crate::{
    error::{SysError, hear},
    ffi, hugepages, log,
};
use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::{Pid, mkdtemp},
};
use std::{
    env,
    ffi::{CStr, CString, OsString, c_char},
    fmt, fs,
    marker::PhantomData,
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Where DPDK's memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Pages of 2 MiB, that many mebibytes of them taken at once; no hugetlbfs mount is needed.
    Hugepages {
        /// Mebibytes.
        mib: u32,
    },
    /// Ordinary pages: it works anywhere and is slower.
    Slow {
        /// Mebibytes.
        mib: u32,
    },
}

/// How much DPDK tells through `tracing`, target `dpdk`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogLevel {
    /// Errors and warnings.
    Warning,
    /// What it deems worth a notice, too.
    #[default]
    Notice,
    /// Everything but debug lines.
    Info,
    /// Everything.
    Debug,
}

/// A PCI device's address, such as 0000:03:00.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciAddress {
    domain: u16,
    bus: u8,
    device: u8,
    function: u8,
}

impl FromStr for PciAddress {
    type Err = SysError;

    fn from_str(text: &str) -> Result<Self, SysError> {
        // The EAL prints its usage on stdout when it cannot read an address: it must get none such.
        let parse = || {
            let (domain, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            let hex = |part: &str, digits: usize, limit: u16| {
                let plain = part.len() == digits && part.bytes().all(|byte| byte.is_ascii_hexdigit());
                let value = plain.then(|| u16::from_str_radix(part, 16).ok())??;
                (value <= limit).then_some(value)
            };
            Some(Self {
                domain: hex(domain, 4, u16::MAX)?,
                bus: u8::try_from(hex(bus, 2, 0xff)?).ok()?,
                device: u8::try_from(hex(device, 2, 0x1f)?).ok()?,
                function: u8::try_from(hex(function, 1, 7)?).ok()?,
            })
        };
        parse().ok_or_else(|| SysError::PciAddress(text.to_owned()))
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

/// How to start DPDK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EalConfig {
    /// Where memory comes from.
    pub memory: Memory,
    /// The PCI devices that may be taken; none is touched otherwise.
    pub pci: Vec<PciAddress>,
    /// How much DPDK tells.
    pub log: LogLevel,
}

impl EalConfig {
    /// No PCI device, notices logged.
    pub fn new(memory: Memory) -> Self {
        Self { memory, pci: Vec::new(), log: LogLevel::default() }
    }

    fn arguments(&self, cpus: &str) -> Vec<String> {
        let mut arguments: Vec<String> = vec!["causeway".into()];
        match self.memory {
            Memory::Hugepages { mib } => {
                arguments.extend(["--in-memory".into(), "-m".into(), mib.to_string()]);
            }
            Memory::Slow { mib } => {
                arguments.extend(["--no-huge".into(), "--no-shconf".into(), "-m".into(), mib.to_string()]);
            }
        }
        // One lcore that may run where the calling thread already may: its affinity stays.
        arguments.push(format!("--lcores=0@({cpus})"));
        // Its sockets would be left in /run.
        arguments.push("--no-telemetry".into());
        if self.pci.is_empty() {
            arguments.extend(["--no-pci".into(), "--iova-mode=va".into()]);
        }
        for address in &self.pci {
            arguments.extend(["-a".into(), address.to_string()]);
        }
        arguments
    }
}

/// Proof that DPDK runs; everything made of it keeps it running.
#[derive(Debug, Clone)]
pub struct Eal(Arc<Life>);

#[derive(Debug)]
struct Life {
    memory: Memory,
}

impl Drop for Life {
    fn drop(&mut self) {
        // SAFETY: the EAL was started (this value proves it) and no pool, port or frame is left:
        // each of them holds a clone of the Arc around this value.
        if unsafe { ffi::cw_eal_cleanup() } != 0 {
            tracing::warn!("DPDK did not clean up");
        }
    }
}

static STARTED: AtomicBool = AtomicBool::new(false);

impl Eal {
    /// Starts DPDK. Memory is looked at first, and only a start that reached DPDK counts as one.
    /// To be called early: no other thread may be reading the environment through C meanwhile.
    pub fn start(config: &EalConfig) -> Result<Self, SysError> {
        if STARTED.load(Ordering::Acquire) {
            return Err(SysError::StartedBefore);
        }
        if let Memory::Hugepages { mib } = config.memory {
            hugepages::check(mib)?;
        }
        let mut arguments = Vec::new();
        for argument in config.arguments(&allowed_cpus()) {
            arguments.push(CString::new(argument.clone()).map_err(|_| SysError::ZeroByte(argument))?);
        }
        if STARTED.swap(true, Ordering::AcqRel) {
            return Err(SysError::StartedBefore);
        }
        let level = match config.log {
            LogLevel::Warning => 5,
            LogLevel::Notice => 6,
            LogLevel::Info => 7,
            LogLevel::Debug => 8,
        };
        hear(|| log::take_over(level)).map_err(SysError::Start)?;
        // The EAL keeps pointers into its arguments (getopt permutes them): they live for ever.
        let count = arguments.len();
        let pointers: Vec<*mut c_char> = arguments.into_iter().map(CString::into_raw).collect();
        let argv = Vec::leak(pointers).as_mut_ptr();
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        let _scratch = Scratch::new();
        // SAFETY: argv holds `count` NUL-terminated writable strings that are never freed, and
        // this is the process's only call.
        hear(|| unsafe { ffi::cw_eal_init(count, argv) }).map_err(SysError::Start)?;
        Ok(Self(Arc::new(Life { memory: config.memory })))
    }

    /// The memory it was started with.
    pub fn memory(&self) -> Memory {
        self.0.memory
    }

    /// What DPDK's heap holds now.
    pub fn memory_figures(&self) -> Result<MemoryFigures, SysError> {
        let mut figures = ffi::cw_memory::default();
        // SAFETY: the EAL runs, and `figures` may be written.
        hear(|| unsafe { ffi::cw_memory(&raw mut figures) }).map_err(SysError::Memory)?;
        Ok(MemoryFigures { total: figures.total, free: figures.free, largest_free: figures.largest_free })
    }

    /// Makes the calling thread known to DPDK until the guard is dropped: it gets a cache in every
    /// pool. The thread that started the EAL has one already. Where the thread runs is its own affair.
    pub fn register_thread(&self) -> Result<Registered, SysError> {
        // SAFETY: the EAL runs; the shim refuses a thread that is registered already.
        hear(|| unsafe { ffi::cw_thread_register() }).map_err(SysError::Thread)?;
        Ok(Registered { _eal: self.clone(), _of_this_thread: PhantomData })
    }

    /// Ticks of `tsc` in a second.
    pub fn tsc_hz(&self) -> u64 {
        // SAFETY: the EAL runs, and found the rate when it started.
        unsafe { ffi::cw_tsc_hz() }
    }

    /// DPDK's version, as it says it; needs no running EAL.
    pub fn version() -> String {
        // SAFETY: returns a string that lives as long as the library.
        unsafe { CStr::from_ptr(ffi::cw_version()) }.to_string_lossy().into_owned()
    }
}

/// The calling CPU's time stamp counter.
#[inline]
pub fn tsc() -> u64 {
    // SAFETY: reads a register, needs nothing.
    unsafe { ffi::cw_tsc() }
}

/// Bytes of DPDK's heap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryFigures {
    /// All of it.
    pub total: u64,
    /// What is free.
    pub free: u64,
    /// The largest free piece.
    pub largest_free: u64,
}

/// A thread that DPDK knows, for as long as this lives; it stays on its thread.
#[derive(Debug)]
pub struct Registered {
    _eal: Eal,
    _of_this_thread: PhantomData<*const ()>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: this thread was registered when the guard was made, and the guard cannot leave it.
        unsafe { ffi::cw_thread_unregister() }
    }
}

/// Where the EAL makes its runtime directory, which stays empty in both memory modes: it would be
/// left in /run otherwise. A directory of its own cannot pull away another process's.
struct Scratch {
    path: Option<PathBuf>,
    before: Option<OsString>,
}

const RUNTIME: &str = "RUNTIME_DIRECTORY";

impl Scratch {
    fn new() -> Self {
        let path = mkdtemp(&env::temp_dir().join("causeway-dpdk-XXXXXX")).ok();
        let before = env::var_os(RUNTIME);
        if let Some(path) = &path {
            // SAFETY: std serialises this with every reader in Rust; `start` tells its caller that
            // no other thread may be reading the environment from C.
            unsafe { env::set_var(RUNTIME, path) }
        }
        Self { path, before }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        match &self.before {
            // SAFETY: as in `new`.
            Some(before) => unsafe { env::set_var(RUNTIME, before) },
            // SAFETY: as in `new`.
            None => unsafe { env::remove_var(RUNTIME) },
        }
        if let Some(path) = &self.path
            && let Err(why) = fs::remove_dir_all(path)
        {
            tracing::warn!("removing {}: {why}", path.display());
        }
    }
}

/// The CPUs the calling thread may run on, as a list the EAL reads.
fn allowed_cpus() -> String {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    let cpus: Vec<String> = (0..CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
        .map(|cpu| cpu.to_string())
        .collect();
    if cpus.is_empty() { "0".into() } else { cpus.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_addresses_are_whole_or_refused() {
        assert_eq!("0000:03:1f.7".parse::<PciAddress>().unwrap().to_string(), "0000:03:1f.7");
        for wrong in
            ["", "03:00.0", "0000:03:00", "0000:03:20.0", "0000:03:00.8", "0000:+3:00.0", "0000:03:00.0,x"]
        {
            let refused = wrong.parse::<PciAddress>().unwrap_err().to_string();
            assert!(refused.contains("is not a PCI address"), "{refused}");
        }
    }

    #[test]
    fn no_pci_device_is_touched_unless_named() {
        let mut config = EalConfig::new(Memory::Hugepages { mib: 512 });
        let told = config.arguments("0,1").join(" ");
        assert_eq!(
            told,
            "causeway --in-memory -m 512 --lcores=0@(0,1) --no-telemetry --no-pci --iova-mode=va"
        );
        config.memory = Memory::Slow { mib: 64 };
        config.pci = vec!["0000:03:00.0".parse().unwrap()];
        let told = config.arguments("0").join(" ");
        assert_eq!(
            told,
            "causeway --no-huge --no-shconf -m 64 --lcores=0@(0) --no-telemetry -a 0000:03:00.0"
        );
    }
}
