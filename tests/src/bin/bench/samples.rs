//! Medians of interleaved runs: whatever else the machine does meets all contenders alike.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// How often every contender runs.
pub const RUNS: usize = 5;

/// What the runs of one contender gave.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Takes one more.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    /// The middle one; of an even number the upper.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The smallest value that this share of them does not exceed.
    pub fn quantile(&self, share: f64) -> f64 {
        let index = (self.0.len() as f64 * share) as usize;
        self.0.get(index.min(self.0.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    }

    /// The smallest.
    pub fn min(&self) -> f64 {
        self.quantile(0.0)
    }

    /// The largest.
    pub fn max(&self) -> f64 {
        self.quantile(1.0)
    }

    /// Each turned into something else.
    pub fn map(&self, turn: impl Fn(f64) -> f64) -> Self {
        let mut turned = Self::default();
        self.0.iter().for_each(|value| turned.push(turn(*value)));
        turned
    }
}

/// Who is measured: ourselves, or a peer by its name.
pub struct Contender<'a> {
    name: &'static str,
    run: Box<dyn FnMut() -> Result<f64> + 'a>,
}

impl<'a> Contender<'a> {
    /// A contender; one run gives one figure.
    pub fn new(name: &'static str, run: impl FnMut() -> Result<f64> + 'a) -> Self {
        Self { name, run: Box::new(run) }
    }
}

/// Runs all of them in turn, five times over.
pub fn interleave(what: &str, contenders: &mut [Contender<'_>]) -> Result<BTreeMap<&'static str, Samples>> {
    let mut samples: BTreeMap<_, Samples> = BTreeMap::new();
    for round in 1..=RUNS {
        for Contender { name, run } in contenders.iter_mut() {
            let value = run().with_context(|| format!("{what}: {name}, run {round} of {RUNS}"))?;
            eprintln!("  {what}: {name} {value:.3} ({round} of {RUNS})");
            samples.entry(*name).or_default().push(value);
        }
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_runs_have_a_middle_and_two_ends() {
        let mut samples = Samples::default();
        [3.0, 1.0, 5.0, 2.0, 4.0].into_iter().for_each(|value| samples.push(value));
        assert_eq!((samples.min(), samples.median(), samples.max()), (1.0, 3.0, 5.0));
        assert_eq!(samples.map(|v| 60.0 / v).median(), 20.0);
        assert_eq!(samples.quantile(0.99), 5.0);
        assert!(Samples::default().median().is_nan());
    }

    #[test]
    fn contenders_take_turns() {
        let order = std::cell::RefCell::new(String::new());
        let contender = |name| {
            Contender::new(name, || {
                order.borrow_mut().push_str(name);
                Ok(1.0)
            })
        };
        interleave("x", &mut [contender("a"), contender("b")]).unwrap();
        assert_eq!(order.into_inner(), "ababababab");
    }
}
