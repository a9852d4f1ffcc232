//! Some seconds of inputs made of the kept ones, by a seed that changes with the commit.
#![expect(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::{Duration, Instant};

use causeway_fuzz::mutate::{Dice, mutated};
use causeway_fuzz::{TARGETS, Target, directory, kept};

/// The seed: asked for, else the commit's, else, where there is no commit, always the same.
fn seed() -> u64 {
    if let Ok(asked) = std::env::var("CAUSEWAY_FUZZ_SEED") {
        return asked.parse().unwrap();
    }
    let head = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(directory()).output();
    let mut hasher = DefaultHasher::new();
    head.map(|head| head.stdout).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

fn span() -> Duration {
    let full = std::env::var("CAUSEWAY_TESTS").is_ok_and(|tier| tier == "full");
    Duration::from_secs(if full { 60 } else { 3 })
}

/// Feeds a target until the time is over, or something breaks: then the input is kept where the message says.
fn feed(target: &Target) {
    let seed = seed();
    let mut corpus: Vec<_> =
        kept("corpus", target.name).unwrap().into_iter().map(|(_, input)| input).collect();
    corpus.extend(kept("crashes", target.name).unwrap().into_iter().map(|(_, input)| input));
    let mut dice = Dice::new(seed);
    let (until, mut fed) = (Instant::now() + span(), 0_u64);
    while Instant::now() < until {
        let input = mutated(&mut dice, &corpus);
        if catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_err() {
            let file = std::env::temp_dir().join(format!("causeway-fuzz-{}-{seed}-{fed}", target.name));
            fs::write(&file, &input).unwrap();
            panic!(
                "{} breaks of input {fed} of CAUSEWAY_FUZZ_SEED={seed}, which is in {}: mend it, and keep the input in fuzz/crashes/{}",
                target.name,
                file.display(),
                target.name
            );
        }
        fed += 1;
    }
    println!("{}: {fed} inputs, CAUSEWAY_FUZZ_SEED={seed}", target.name);
    assert!(fed > 20, "{fed} inputs in {:?} are no test", span());
}

fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).unwrap()
}

#[test]
fn headers_stand_anything() {
    feed(target("wire"));
}

#[test]
fn the_packet_program_stands_anything() {
    feed(target("program"));
}

#[test]
fn agent_and_fast_path_stand_anything_from_each_other() {
    feed(target("protocol"));
}

#[test]
fn the_plugin_stands_any_configuration() {
    feed(target("stdin"));
}

#[test]
fn a_target_that_breaks_is_noticed() {
    let glass = Target { name: "wire", run: |input| assert!(input.len() != 41, "glass") };
    let broken = catch_unwind(|| feed(&glass)).unwrap_err();
    let words = broken.downcast_ref::<String>().unwrap();
    assert!(words.contains("CAUSEWAY_FUZZ_SEED="), "{words}");
    // Its input is found where it says.
    let file = words.split("which is in ").nth(1).unwrap().split(':').next().unwrap();
    assert_eq!(fs::read(file).unwrap().len(), 41);
    fs::remove_file(file).unwrap();
}
