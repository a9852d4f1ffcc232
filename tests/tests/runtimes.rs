//! Container runtimes of the distribution, over every data path: what they make of the plugin, and what they leave.
//!
//! `--full` (or CAUSEWAY_TESTS=full) adds the burst, mixed nodes, and the proof that each family can fail. `--fault NAME` spoils
//! something on purpose, so that the family it is for must fail.

mod runtimes {
    pub mod burst;
    pub mod containerd;
    pub mod podman;
    pub mod recovery;
    pub mod stage;
}

use std::process::{Command, ExitCode};
use std::sync::Arc;

use causeway_tests::lab::{Datapath, Lab};
use libtest_mimic::{Arguments, Trial};

use runtimes::stage::{Stage, Story};
use runtimes::{burst, containerd, podman, recovery};

/// The stories by family.
const FAMILIES: &[(&str, &[(&str, Story)])] =
    &[("containerd", containerd::STORIES), ("podman", podman::STORIES), ("recovery", recovery::STORIES)];

/// What takes long.
const FULL_FAMILIES: &[(&str, &[(&str, Story)])] = &[("burst", burst::STORIES)];

/// The faults, and the family that must fail of each.
const FAULTS: &[(&str, &str)] = &[
    ("pod-kept", "containerd"),
    ("port-forgotten", "containerd"),
    ("wire-cut", "podman"),
    ("late-del-lost", "recovery"),
];

fn main() -> ExitCode {
    let (mut words, mut fault) = (Vec::new(), None);
    let mut full = std::env::var("CAUSEWAY_TESTS").is_ok_and(|tier| tier == "full");
    let mut given = std::env::args();
    while let Some(word) = given.next() {
        match word.as_str() {
            "--full" => full = true,
            "--fault" => fault = given.next(),
            _ => words.push(word),
        }
    }
    if let Some(unknown) = fault.iter().find(|fault| !FAULTS.iter().any(|(known, _)| known == fault)) {
        eprintln!("there is no fault {unknown}");
        return ExitCode::FAILURE;
    }
    let arguments = Arguments::from_iter(words);
    if let Err(error) = Lab::sweep() {
        eprintln!("an earlier run left something that does not go: {error}");
    }
    let modes: &[_] = match full {
        true => &[Datapath::Kernel, Datapath::Mixed, Datapath::Fast],
        false => &[Datapath::Kernel, Datapath::Fast],
    };
    let families = FAMILIES.iter().chain(if full { FULL_FAMILIES } else { &[] });
    let mut trials = Vec::new();
    for (family, stories) in families {
        for mode in modes {
            let stage = Arc::new(Stage::new(*mode, fault.clone()));
            trials.extend(stories.iter().map(|(name, story)| {
                let (stage, story) = (stage.clone(), *story);
                let told = move || story(&stage).map_err(|error| format!("{error:#}").into());
                Trial::test(format!("{mode}::{family}::{name}"), told)
            }));
        }
    }
    if full && fault.is_none() {
        trials.extend(
            FAULTS
                .iter()
                .map(|(fault, family)| Trial::test(format!("faults::{fault}"), || notices(fault, family))),
        );
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// This very program, run with a fault, must not succeed.
fn notices(fault: &str, family: &str) -> Result<(), libtest_mimic::Failed> {
    let own = std::env::current_exe()?;
    let output = Command::new(own)
        .args(["--fault", fault, &format!("::{family}::")])
        .env_remove("CAUSEWAY_TESTS")
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    match !output.status.success() && said.contains("test result: FAILED") {
        true => Ok(()),
        false => Err(format!("with the fault {fault} no story of {family} fails:\n{said}").into()),
    }
}
