//! Processes that outlive whoever started them, known by number and start time.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process that we started. Its number may be used again; number and start time together are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
}

impl Process {
    /// Starts a command in the background: no input, its output appended to a log, its own process group.
    pub fn start(command: &mut Command, log: &Path) -> io::Result<Self> {
        use std::os::unix::process::CommandExt;
        let log = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        Self::of(pid).ok_or_else(|| io::Error::other("it ended at once"))
    }

    /// The process that has this number now.
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, started: stat_fields(pid)?.get(19)?.parse().ok()? })
    }

    /// This process.
    pub fn own() -> Option<Self> {
        Self::of(i32::try_from(std::process::id()).ok()?)
    }

    /// Whether it still runs. A child of ours that has ended is buried by this look.
    pub fn is_alive(self) -> bool {
        // Not our child, or ended long ago: the state below tells.
        let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        let Some(fields) = stat_fields(self.pid) else { return false };
        let field = |index: usize| fields.get(index).map(String::as_str).unwrap_or_default();
        // A first thread that has ended is a zombie while others still hold the sockets.
        let (buried, threads) = (matches!(field(0), "Z" | "X"), field(17).parse().unwrap_or(0));
        field(19) == self.started.to_string() && (!buried || threads > 1)
    }

    /// Sends a signal, if it still runs.
    pub fn signal(self, signal: Signal) -> io::Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Kills it without warning and waits until it is gone.
    pub fn kill(self) -> io::Result<()> {
        self.signal(Signal::SIGKILL)?;
        if self.ends_within(Duration::from_secs(10)) {
            Ok(())
        } else {
            Err(io::Error::other(format!("process {} does not die", self.pid)))
        }
    }

    /// Asks it to end, waits that long, then kills it.
    pub fn stop(self, patience: Duration) -> io::Result<()> {
        self.signal(Signal::SIGTERM)?;
        if self.ends_within(patience) { Ok(()) } else { self.kill() }
    }

    /// Waits until it has ended, or the time is over.
    pub fn ends_within(self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_alive() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// The seconds of processor time it has used so far, its children's left out.
    pub fn cpu_seconds(self) -> Option<f64> {
        let fields = stat_fields(self.pid)?;
        let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
        Some(ticks / 100.0)
    }
}

/// The fields of /proc/PID/stat from the third on: the second, a name in brackets, may hold anything.
fn stat_fields(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_stopped_even_when_it_does_not_listen() {
        let log = std::env::temp_dir().join(format!("cwl-process-{}.log", std::process::id()));
        let script = "trap '' TERM; echo started; while :; do sleep 0.05; done";
        let process = Process::start(Command::new("sh").args(["-c", script]), &log).unwrap();
        while !fs::read_to_string(&log).unwrap().contains("started") {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(process.is_alive());
        process.stop(Duration::from_millis(100)).unwrap();
        assert!(!process.is_alive());
        process.kill().unwrap();
        fs::remove_file(log).unwrap();
    }

    #[test]
    fn another_process_of_the_same_number_is_not_ours() {
        let own = Process::own().unwrap();
        assert!(own.is_alive());
        assert!(!Process { started: own.started + 1, ..own }.is_alive());
    }
}
