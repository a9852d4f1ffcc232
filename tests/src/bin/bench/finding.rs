//! What a bench found: records for machines, a table for people, and whether what was to be reached is reached.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::samples::Samples;

/// Ourselves among the contenders.
pub const OURS: &str = "causeway";

/// One figure beside its peers'. Every bench speaks this form.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// The bench.
    pub bench: &'static str,
    /// What was measured, by keys that tell its records apart.
    #[serde(serialize_with = "in_order")]
    pub case: Vec<(&'static str, Value)>,
    /// The figure's name.
    pub metric: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// The median.
    pub value: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// The medians of others in the same run.
    pub peers: BTreeMap<&'static str, f64>,
}

fn in_order<S: Serializer>(case: &[(&'static str, Value)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(case.iter().map(|(key, value)| (key, value)))
}

impl Record {
    /// A record of the samples of ourselves and of peers.
    pub fn new(
        bench: &'static str,
        case: Vec<(&'static str, Value)>,
        (metric, unit): (&'static str, &'static str),
        samples: &BTreeMap<&'static str, Samples>,
    ) -> Self {
        let ours = samples.get(OURS).cloned().unwrap_or_default();
        let peers = samples.iter().filter(|(name, _)| **name != OURS);
        let peers = peers.map(|(name, samples)| (*name, rounded(samples.median()))).collect();
        let (value, min, max) = (rounded(ours.median()), rounded(ours.min()), rounded(ours.max()));
        Self { bench, case, metric, unit, value, min, max, peers }
    }
}

/// Four significant digits: no measurement here has more.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10_f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

/// What is to be reached.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// At least so many times what a peer reaches.
    TimesPeer(f64, &'static str),
    /// At most so many times what a peer needs.
    ShareOfPeer(f64, &'static str),
    /// At most so much.
    AtMost(f64),
    /// At least so much.
    AtLeast(f64),
}

impl Target {
    /// The verdict over a record, in words.
    fn verdict(self, record: &Record) -> String {
        let (has, is_met, wanted) = match self {
            Target::TimesPeer(times, peer) | Target::ShareOfPeer(times, peer) => {
                let Some(figure) = record.peers.get(peer) else {
                    return format!("{peer} was not measured");
                };
                let ratio = record.value / figure;
                let more = matches!(self, Target::TimesPeer(..));
                let is_met = if more { ratio >= times } else { ratio <= times };
                let sign = if more { "≥" } else { "≤" };
                (format!("{ratio:.2} × {peer}"), is_met, format!("{sign} {times} ×"))
            }
            Target::AtMost(most) => {
                (format!("{}", record.value), record.value <= most, format!("≤ {most} {}", record.unit))
            }
            Target::AtLeast(least) => {
                (format!("{}", record.value), record.value >= least, format!("≥ {least} {}", record.unit))
            }
        };
        format!("{has}: {} ({wanted})", if is_met { "met" } else { "MISSED" })
    }
}

/// A record and what is to be reached; without a target it is only reported.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The record.
    pub record: Record,
    /// What is to be reached.
    pub targets: Vec<Target>,
}

/// The table of one bench.
pub struct Table<'a>(pub &'a [Finding]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<[String; 6]> = self.0.iter().map(row).collect();
        let head = ["case", "metric", OURS, "min – max", "peers", "to reach"].map(str::to_owned);
        let rule = std::array::from_fn(|_| "---".to_owned());
        let rows: Vec<_> = [head, rule].into_iter().chain(rows).collect();
        let widths: [usize; 6] =
            std::array::from_fn(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0));
        for row in rows {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!(" {cell:<width$} "));
            writeln!(f, "|{}|", cells.collect::<Vec<_>>().join("|"))?;
        }
        Ok(())
    }
}

fn row(Finding { record, targets }: &Finding) -> [String; 6] {
    let said = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let case = record.case.iter().map(|(key, value)| format!("{key} {}", said(value)));
    let peers = record.peers.iter().map(|(name, value)| format!("{name} {value}"));
    let verdicts = targets.iter().map(|target| target.verdict(record)).collect::<Vec<_>>();
    [
        case.collect::<Vec<_>>().join(", "),
        format!("{}, {}", record.metric, record.unit),
        record.value.to_string(),
        format!("{} – {}", record.min, record.max),
        peers.collect::<Vec<_>>().join(", "),
        if verdicts.is_empty() { "reported".to_owned() } else { verdicts.join("; ") },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(value: f64) -> Samples {
        let mut samples = Samples::default();
        samples.push(value);
        samples
    }

    fn record() -> Record {
        let both = BTreeMap::from([(OURS, samples(30.123456)), ("ovs-dpdk", samples(15.0))]);
        let case = vec![("direction", "encap".into()), ("flows", 1024.into())];
        Record::new("pipeline", case, ("mpps", "Mpps"), &both)
    }

    #[test]
    fn a_record_has_the_form_that_readers_know() {
        let json = serde_json::to_string(&record()).unwrap();
        assert_eq!(
            json,
            r#"{"bench":"pipeline","case":{"direction":"encap","flows":1024},"metric":"mpps","unit":"Mpps","value":30.12,"min":30.12,"max":30.12,"peers":{"ovs-dpdk":15.0}}"#
        );
    }

    #[test]
    fn a_verdict_says_what_is_there_and_what_is_wanted() {
        let verdict = |target: Target| target.verdict(&record());
        assert_eq!(verdict(Target::TimesPeer(2.0, "ovs-dpdk")), "2.01 × ovs-dpdk: met (≥ 2 ×)");
        assert_eq!(verdict(Target::TimesPeer(2.5, "ovs-dpdk")), "2.01 × ovs-dpdk: MISSED (≥ 2.5 ×)");
        assert_eq!(verdict(Target::ShareOfPeer(0.5, "ovs-dpdk")), "2.01 × ovs-dpdk: MISSED (≤ 0.5 ×)");
        assert_eq!(verdict(Target::AtMost(31.0)), "30.12: met (≤ 31 Mpps)");
        assert_eq!(verdict(Target::TimesPeer(1.0, "nobody")), "nobody was not measured");
    }
}
