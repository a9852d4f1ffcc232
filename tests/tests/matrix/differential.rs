//! Both data paths get the same packets, sequence for sequence: what arrives, what is said to senders and what is counted must
//! be the same. A seed decides the sequences; one that is treated differently is shortened and shown.

mod compare;
mod craft;
mod sequence;
mod theatre;

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use causeway_tests::lab::Datapath;

use super::stage::{Matrix, Story};
use compare::{difference, sightings};
use sequence::Sequence;
use theatre::{Outcome, Theatre};

pub const STORIES: &[(&str, Story)] = &[("both_paths_treat_packets_alike", both_paths_treat_packets_alike)];

/// The seed of every run; `CAUSEWAY_SEED` gives another.
const SEED: u64 = 1;
/// How many sequences a run has, and how long it may take; the second where there is time.
const SHORT: (u64, Duration) = (200, Duration::from_secs(40));
const LONG: (u64, Duration) = (20_000, Duration::from_secs(600));
/// One in so many sequences may be treated differently once and never again, since other work disturbed it.
const DISTURBED: u64 = 50;
/// After so many differences there is enough to look at.
const SHOWN: usize = 4;
/// How many plays a sequence is shortened in at most.
const SHORTENINGS: usize = 80;

fn both_paths_treat_packets_alike(matrix: &Matrix) -> anyhow::Result<()> {
    let (count, time) = if matrix.full { LONG } else { SHORT };
    let given = std::env::var("CAUSEWAY_SEED").ok().map(|seed| seed.parse()).transpose()?;
    let seed = given.unwrap_or(if matrix.full { fastrand::u64(..1 << 32) } else { SEED });
    println!("the sequences of seed {seed}");
    let mut stage = Stage::new(matrix)?;
    let (deadline, mut played, mut disturbed) = (Instant::now() + time, 0, 0);
    let mut found = Vec::new();
    while played < count && Instant::now() < deadline {
        let sequence = Sequence::of(seed << 32 | played);
        played += 1;
        let Some(first) = stage.differs(&sequence)? else { continue };
        if stage.differs(&sequence)?.is_none() && stage.differs(&sequence)?.is_none() {
            disturbed += 1;
            println!("sequence {} of seed {seed} once: {first}", played - 1);
            ensure!(disturbed * DISTURBED < count, "{disturbed} sequences were treated differently once");
            continue;
        }
        let shortest = stage.shorten(sequence)?;
        found.push(format!(
            "sequence {} of seed {seed}: {first}\nin short: {}",
            played - 1,
            stage.show(&shortest)?
        ));
        if found.len() == SHOWN {
            break;
        }
    }
    ensure!(found.is_empty(), "{}", found.join("\n"));
    println!("{played} sequences, {disturbed} of them disturbed");
    ensure!(played == count || matrix.full, "{played} of {count} sequences within {time:?}");
    Ok(())
}

/// A lab of each data path.
struct Stage {
    kernel: Theatre,
    fast: Theatre,
    plays: u16,
}

impl Stage {
    fn new(matrix: &Matrix) -> anyhow::Result<Self> {
        let kernel = Theatre::new(matrix, Datapath::Kernel)?;
        let fast = Theatre::new(matrix, Datapath::Fast)?;
        let harm = || fast.lab.annotate("closed", "causeway.dev/deny-new", "false");
        matrix.sabotage("open-on-one-path", harm).transpose()?;
        Ok(Self { kernel, fast, plays: 0 })
    }

    fn play(&mut self, sequence: &Sequence, by_step: bool) -> anyhow::Result<[Outcome; 2]> {
        self.plays = self.plays.wrapping_add(1);
        let number = self.plays;
        let play = |theatre: &Theatre| theatre.play(sequence, number, by_step);
        let (kernel, fast) = (&self.kernel, &self.fast);
        std::thread::scope(|scope| {
            let one = scope.spawn(|| play(kernel));
            let other = scope.spawn(|| play(fast));
            let both = [one.join(), other.join()]
                .map(|joined| joined.unwrap_or_else(|p| std::panic::resume_unwind(p)));
            let [one, other] = both;
            Ok([one.context("the kernel's lab")?, other.context("the fast path's lab")?])
        })
    }

    fn differs(&mut self, sequence: &Sequence) -> anyhow::Result<Option<String>> {
        let [kernel, fast] = self.play(sequence, false)?;
        Ok(difference(sequence, &kernel, &fast))
    }

    /// The same difference with fewer steps, and nothing uncommon where it does not matter.
    fn shorten(&mut self, mut sequence: Sequence) -> anyhow::Result<Sequence> {
        let mut left = SHORTENINGS;
        for change in [Sequence::without, Sequence::straightened] {
            let mut index = sequence.steps.len();
            while index > 0 && left > 0 {
                index -= 1;
                left -= 1;
                let simpler = change(&sequence, index);
                if self.differs(&simpler)?.is_some() {
                    sequence = simpler;
                }
            }
        }
        Ok(sequence)
    }

    /// A sequence, and what becomes of each of its packets on both paths.
    fn show(&mut self, sequence: &Sequence) -> anyhow::Result<String> {
        let [kernel, fast] = self.play(sequence, true)?;
        let mut text = format!("{sequence}, {}\n", difference(sequence, &kernel, &fast).unwrap_or_default());
        for (index, step) in sequence.steps.iter().enumerate() {
            writeln!(text, "{:>3}. {step}", index + 1)?;
            for (name, outcome) in [("kernel", &kernel), ("fast", &fast)] {
                let (seen, drops) = (sightings(&outcome.arrivals[index]), &outcome.drops_by_step[index]);
                writeln!(text, "     {name:6} {seen:?} {drops:?}")?;
            }
        }
        Ok(text)
    }
}
