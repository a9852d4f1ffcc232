//! Every story, over every data path: real agents, real CNI calls, real packets.
//!
//! `--full` (or CAUSEWAY_TESTS=full) adds what takes long: bigger transfers, finer steps, and the proof that each family of
//! stories can fail. `--fault NAME` spoils something on purpose, so that the family it is for must fail.

mod matrix {
    pub mod addresses;
    pub mod bad_input;
    pub mod capabilities;
    pub mod change;
    pub mod check;
    pub mod connections;
    pub mod differential;
    pub mod ethdev;
    pub mod fastpath;
    pub mod fault;
    pub mod foreign;
    pub mod hosts;
    pub mod killed;
    pub mod means;
    pub mod mesh;
    pub mod names;
    pub mod neighbours;
    pub mod policy;
    pub mod reach;
    pub mod recovery;
    pub mod service;
    pub mod sizes;
    pub mod spoof;
    pub mod stage;
    pub mod throughput;
    pub mod traces;
    pub mod translation;
    pub mod tunnel;
    pub mod upgrade;
    pub mod verbs;
}

use std::process::ExitCode;
use std::sync::Arc;

use causeway_tests::lab::{Datapath, Lab};
use libtest_mimic::{Arguments, Trial};

use matrix::stage::{Matrix, Story};
use matrix::{
    addresses, bad_input, capabilities, change, check, connections, differential, ethdev, fastpath, fault,
    foreign, hosts, killed, means, mesh, names, neighbours, policy, reach, recovery, service, sizes, spoof,
    throughput, traces, translation, tunnel, upgrade, verbs,
};

/// The data paths that every story is told over.
const MODES: &[Datapath] = &[Datapath::Kernel, Datapath::Mixed, Datapath::Fast];

/// The stories by family.
const FAMILIES: &[(&str, &[(&str, Story)])] = &[
    ("reach", reach::STORIES),
    ("sizes", sizes::STORIES),
    ("hosts", hosts::STORIES),
    ("change", change::STORIES),
    ("connections", connections::STORIES),
    ("policy", policy::STORIES),
    ("service", service::STORIES),
    ("mesh", mesh::STORIES),
    ("names", names::STORIES),
    ("traces", traces::STORIES),
    ("verbs", verbs::STORIES),
    ("check", check::STORIES),
    ("addresses", addresses::STORIES),
    ("neighbours", neighbours::STORIES),
    ("killed", killed::STORIES),
    ("recovery", recovery::STORIES),
    ("foreign", foreign::STORIES),
    ("spoof", spoof::STORIES),
    ("tunnel", tunnel::STORIES),
    ("bad_input", bad_input::STORIES),
    ("capabilities", capabilities::STORIES),
];

fn main() -> ExitCode {
    let (words, fault, full) = own_words(std::env::args());
    let arguments = Arguments::from_iter(words);
    if !nix::unistd::geteuid().is_root() {
        eprintln!("nodes and pods are network namespaces: run this as root");
        return ExitCode::FAILURE;
    }
    match Lab::sweep() {
        Ok(swept) if swept.is_empty() => {}
        Ok(swept) => eprintln!("took down what an earlier run left: {}", swept.join(", ")),
        Err(error) => eprintln!("an earlier run left something that does not go: {error}"),
    }
    let matrices: Vec<_> =
        MODES.iter().map(|mode| Arc::new(Matrix::new(*mode, full, fault.clone()))).collect();
    let mut trials: Vec<_> = matrices.iter().flat_map(stories).collect();
    if full && fault.is_none() {
        trials.extend(fault::trials());
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // The labs go before the process does, whatever the stories came to.
    drop(matrices);
    conclusion.exit_code()
}

/// Takes our own words out of those for the runner.
fn own_words(words: impl Iterator<Item = String>) -> (Vec<String>, Option<String>, bool) {
    let (mut rest, mut fault) = (Vec::new(), None);
    let mut full = std::env::var("CAUSEWAY_TESTS").is_ok_and(|tier| tier == "full");
    let mut words = words;
    while let Some(word) = words.next() {
        match word.as_str() {
            "--full" => full = true,
            "--fault" => fault = words.next(),
            _ => rest.push(word),
        }
    }
    (rest, fault, full)
}

/// Where there is a fast path, its own families, too.
const FAST_FAMILIES: &[(&str, &[(&str, Story)])] = &[
    ("fastpath", fastpath::STORIES),
    ("upgrade", upgrade::STORIES),
    ("ethdev", ethdev::STORIES),
    ("throughput", throughput::STORIES),
    ("translation", translation::STORIES),
];

/// Told once: they make their own of data paths.
const ONCE: &[(&str, &[(&str, Story)])] =
    &[("means", means::STORIES), ("differential", differential::STORIES)];

/// What takes long by its nature, where there is time.
const LONG_FAMILY: (&str, &[(&str, Story)]) = ("addresses", addresses::PATIENT);

/// One trial a story.
fn stories(matrix: &Arc<Matrix>) -> Vec<Trial> {
    let fast = if matrix.mode == Datapath::Kernel { &[] } else { FAST_FAMILIES };
    let once = if matrix.mode == Datapath::Fast { ONCE } else { &[] };
    let long = matrix.full.then_some(&LONG_FAMILY);
    let families = FAMILIES.iter().chain(fast).chain(once).chain(long);
    let all = families.flat_map(|(family, stories)| stories.iter().map(move |story| (family, story)));
    let trial = |(family, (name, story)): (&&str, &(&str, Story))| {
        let (matrix, story) = (matrix.clone(), *story);
        Trial::test(format!("{}::{family}::{name}", matrix.mode), move || {
            story(&matrix).map_err(|error| format!("{error:#}").into())
        })
    };
    all.map(trial).collect()
}
