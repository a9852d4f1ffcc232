//! Starting: looked at first, once per process, quiet on stdout, leaving nothing behind.

use super::{memory, quiet, story};
use dpdk_sys::{Eal, EalConfig, LogLevel, Memory, SysError};
use libtest_mimic::Trial;
use std::{
    fs,
    process::{Command, ExitCode},
};

/// The argument that makes this program only start and stop the EAL.
pub const CHILD: &str = "--only-start";

pub fn all() -> Vec<Trial> {
    vec![
        story("a_start_is_silent_on_stdout_and_leaves_no_file", silent),
        story("a_start_needs_no_hugetlbfs_mount", unmounted),
        // Last of these: what the children show must not come from this process's own start.
        story("an_eal_starts_once", once),
    ]
}

fn once() {
    let running = super::eal();
    assert_eq!(running.memory(), memory());
    assert!(matches!(Eal::start(&quiet(memory())), Err(SysError::StartedBefore)));
    assert!(Eal::version().starts_with("DPDK "), "{}", Eal::version());
}

/// What the child does: too much memory is refused before DPDK starts, so that it can start then.
pub fn child(memory: Memory) -> ExitCode {
    let too_much = Eal::start(&EalConfig::new(Memory::Hugepages { mib: 1 << 30 })).unwrap_err();
    assert!(matches!(too_much, SysError::Hugepages(_)), "{too_much}");
    let smaller = match memory {
        Memory::Slow { .. } => Memory::Slow { mib: 64 },
        Memory::Hugepages { .. } => Memory::Hugepages { mib: 32 },
    };
    let affinity = || fs::read_to_string("/proc/thread-self/status").unwrap();
    let allowed =
        |status: &str| status.lines().find(|line| line.starts_with("Cpus_allowed:")).unwrap().to_owned();
    let before = allowed(&affinity());
    let eal = Eal::start(&EalConfig { log: LogLevel::Debug, ..EalConfig::new(smaller) }).unwrap();
    assert_eq!(allowed(&affinity()), before, "the starting thread stays where it may run");
    drop(eal);
    ExitCode::SUCCESS
}

fn silent() {
    let script = r#"mount -t tmpfs none /run && mount -t tmpfs none /tmp && "$0" "$1" && find /run /tmp -mindepth 1 -not -path /run/mount"#;
    aside(script);
}

fn unmounted() {
    let script = r#"umount -a -t hugetlbfs; ! grep -q ' hugetlbfs ' /proc/mounts && exec "$0" "$1""#;
    aside(script);
}

/// Runs a script in mounts of its own with this program and the child's argument; it must succeed
/// and print nothing.
fn aside(script: &str) {
    // Its file may lie under /tmp, which the script may hide.
    let program = format!("/proc/{}/exe", std::process::id());
    let done = Command::new("unshare").args(["-m", "sh", "-c", script, &program, CHILD]).output().unwrap();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{errors}");
    assert_eq!(String::from_utf8_lossy(&done.stdout), "", "stdout is the program's, and no file is left");
}
