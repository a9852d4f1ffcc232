//! Faults made on purpose: each family of stories must notice its own.

use std::process::Command;

use libtest_mimic::Trial;

/// The faults, and the family that must fail of each.
pub const FAULTS: &[(&str, &str)] = &[
    ("route-missing", "reach"),
    ("too-big-silenced", "sizes"),
    ("rule-missing", "hosts"),
    ("pod-not-deleted", "change"),
    ("deny-new-ignored", "connections"),
    ("policy-unsaid", "policy"),
    ("shy-is-open", "policy"),
    ("roll-unsaid", "service"),
    ("export-unsaid", "mesh"),
    ("loss-unsaid", "mesh"),
    ("names-unsaid", "names"),
    ("litter", "traces"),
    ("gc-not-called", "verbs"),
    ("uplink-stays-up", "verbs"),
    ("nothing-broken", "check"),
    ("agent-frozen", "recovery"),
    ("backend-elsewhere", "translation"),
    ("services-forgotten", "service"),
    ("fastpath-stays-dead", "fastpath"),
    ("table-lost", "upgrade"),
    ("answers-open", "ethdev"),
    ("means-granted", "means"),
    ("frames-cut", "throughput"),
    ("checksum-wrong", "throughput"),
    ("flows-shuffled", "throughput"),
    ("foreign-mac-wrong", "foreign"),
    ("range-unsaid", "addresses"),
    ("gateway-elsewhere", "neighbours"),
    ("delete-forgotten", "killed"),
    ("stranger-known", "spoof"),
    ("open-on-one-path", "differential"),
    ("marks-lost", "tunnel"),
    ("deny-new-missing", "tunnel"),
    ("narrow-unsaid", "tunnel"),
    ("config-good", "bad_input"),
    ("port-unmapped", "capabilities"),
    ("limit-missing", "capabilities"),
];

/// One trial a fault: this very program, run with it, must not succeed.
pub fn trials() -> impl Iterator<Item = Trial> {
    FAULTS.iter().map(|(fault, family)| {
        Trial::test(format!("faults::{fault}"), move || {
            let own = std::env::current_exe()?;
            let output = Command::new(own).args(["--fault", fault, &format!("::{family}::")]).output()?;
            let said = String::from_utf8_lossy(&output.stdout);
            if !output.status.success() && said.contains("test result: FAILED") {
                return Ok(());
            }
            Err(format!("with the fault {fault} no story of {family} fails:\n{said}").into())
        })
    })
}
