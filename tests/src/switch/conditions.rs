//! What the wire does to frames, said in words.

use std::collections::BTreeSet;
use std::time::Duration;

/// What may happen to a frame on one way; what is `None` is decided by a wider scope.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Conditions {
    /// Every frame comes so much later.
    pub delay: Option<Duration>,
    /// And up to so much more, by chance; the order is kept.
    pub jitter: Option<Duration>,
    /// So many of a hundred frames vanish.
    pub loss: Option<f64>,
    /// So many of a hundred come twice.
    pub duplicate: Option<f64>,
    /// So many of a hundred are held back until others have overtaken them.
    pub reorder: Option<f64>,
    /// So many of a hundred have one bit turned over.
    pub corrupt: Option<f64>,
    /// Bits a second; what would wait longer than a tenth of a second is lost.
    pub rate: Option<u64>,
    /// Longer IP packets vanish.
    pub mtu: Option<usize>,
}

/// Which ways conditions are for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// All.
    All,
    /// All from one port.
    From(String),
    /// One.
    Way(String, String),
}

/// Everything that was said and holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    conditions: Vec<(Scope, Conditions)>,
    /// Ways that carry nothing.
    pub cuts: BTreeSet<(String, String)>,
    /// The seed of chance, when one was given.
    pub seed: Option<u64>,
}

impl Rules {
    /// What holds after these words, or what is wrong with the first bad one.
    pub fn after(&self, words: &[String], ports: &[&str]) -> Result<Self, String> {
        words.iter().try_fold(self.clone(), |rules, word| {
            rules.take_up(word, ports).map_err(|why| format!("{word}: {why}; {GRAMMAR}"))
        })
    }

    fn take_up(mut self, word: &str, ports: &[&str]) -> Result<Self, String> {
        if word == "clear" {
            return Ok(Self::default());
        }
        let (scope, setting) = word.rsplit_once(':').unwrap_or(("", word));
        let (key, value) = setting.split_once('=').ok_or("neither clear nor KEY=VALUE")?;
        match key {
            "cut" => drop(self.cuts.insert(way(value, ports)?)),
            "mend" => drop(self.cuts.remove(&way(value, ports)?)),
            "seed" => self.seed = Some(value.parse().map_err(|_| "a seed is a number")?),
            _ => self.of_scope(scope_of(scope, ports)?).set(key, value)?,
        }
        self.conditions.retain(|(_, conditions)| *conditions != Conditions::default());
        Ok(self)
    }

    fn of_scope(&mut self, scope: Scope) -> &mut Conditions {
        let at = self.conditions.iter().position(|(known, _)| *known == scope).unwrap_or_else(|| {
            self.conditions.push((scope, Conditions::default()));
            self.conditions.sort_by(|a, b| a.0.cmp(&b.0));
            self.conditions.iter().position(|(_, c)| *c == Conditions::default()).unwrap_or_default()
        });
        &mut self.conditions[at].1
    }

    /// What holds on one way: the narrower scope decides.
    pub fn on_way(&self, from: &str, to: &str) -> Conditions {
        let mut sum = Conditions::default();
        for (scope, conditions) in &self.conditions {
            let holds = match scope {
                Scope::All => true,
                Scope::From(port) => port == from,
                Scope::Way(a, b) => a == from && b == to,
            };
            if holds {
                sum.overlay(conditions);
            }
        }
        sum
    }

    /// The words that would say the same.
    pub fn words(&self) -> Vec<String> {
        let conditions = self.conditions.iter().flat_map(|(scope, conditions)| {
            let prefix = match scope {
                Scope::All => String::new(),
                Scope::From(port) => format!("{port}:"),
                Scope::Way(from, to) => format!("{from}>{to}:"),
            };
            conditions.words().into_iter().map(move |word| format!("{prefix}{word}"))
        });
        let cuts = self.cuts.iter().map(|(from, to)| format!("cut={from}>{to}"));
        conditions.chain(cuts).chain(self.seed.map(|seed| format!("seed={seed}"))).collect()
    }
}

/// What can be said, for whoever said something else.
pub const GRAMMAR: &str = "say clear, cut=A>B, mend=A>B, seed=N, or [A:|A>B:]KEY=VALUE with delay=20ms, jitter=5ms, loss=1%, \
                           duplicate=1%, reorder=1%, corrupt=1%, rate=100mbit, mtu=1400; VALUE off ends it";

impl Conditions {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let off = value == "off";
        let time = |v: &str| if off { Ok(None) } else { time(v).map(Some) };
        let share = |v: &str| if off { Ok(None) } else { share(v).map(Some) };
        match key {
            "delay" => self.delay = time(value)?,
            "jitter" => self.jitter = time(value)?,
            "loss" => self.loss = share(value)?,
            "duplicate" => self.duplicate = share(value)?,
            "reorder" => self.reorder = share(value)?,
            "corrupt" => self.corrupt = share(value)?,
            "rate" => self.rate = if off { None } else { Some(rate(value)?) },
            "mtu" => {
                self.mtu = if off { None } else { Some(value.parse().map_err(|_| "an MTU is a number")?) }
            }
            _ => return Err(format!("the wire knows no {key}")),
        }
        Ok(())
    }

    fn overlay(&mut self, narrower: &Self) {
        self.delay = narrower.delay.or(self.delay);
        self.jitter = narrower.jitter.or(self.jitter);
        self.loss = narrower.loss.or(self.loss);
        self.duplicate = narrower.duplicate.or(self.duplicate);
        self.reorder = narrower.reorder.or(self.reorder);
        self.corrupt = narrower.corrupt.or(self.corrupt);
        self.rate = narrower.rate.or(self.rate);
        self.mtu = narrower.mtu.or(self.mtu);
    }

    fn words(&self) -> Vec<String> {
        let micros = |key, time: Option<Duration>| time.map(|t| format!("{key}={}us", t.as_micros()));
        let share = |key, share: Option<f64>| share.map(|s| format!("{key}={s}%"));
        let words = [
            micros("delay", self.delay),
            micros("jitter", self.jitter),
            share("loss", self.loss),
            share("duplicate", self.duplicate),
            share("reorder", self.reorder),
            share("corrupt", self.corrupt),
            self.rate.map(|rate| format!("rate={rate}bit")),
            self.mtu.map(|mtu| format!("mtu={mtu}")),
        ];
        words.into_iter().flatten().collect()
    }
}

fn port(name: &str, ports: &[&str]) -> Result<String, String> {
    if ports.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(format!("the wire has no port {name:?}, only {}", ports.join(", ")))
}

fn way(text: &str, ports: &[&str]) -> Result<(String, String), String> {
    let (from, to) = text.split_once('>').ok_or("a way is A>B")?;
    Ok((port(from, ports)?, port(to, ports)?))
}

fn scope_of(text: &str, ports: &[&str]) -> Result<Scope, String> {
    match text {
        "" => Ok(Scope::All),
        text if text.contains('>') => way(text, ports).map(|(from, to)| Scope::Way(from, to)),
        text => port(text, ports).map(Scope::From),
    }
}

/// A number and its unit.
fn number(text: &str, units: &[(&str, f64)], example: &str) -> Result<f64, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic() || c == '%').unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor = units.iter().find(|(known, _)| *known == unit).map(|(_, factor)| factor);
    let value = digits.parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0);
    value.zip(factor).map(|(value, factor)| value * factor).ok_or_else(|| format!("not as in {example}"))
}

fn time(text: &str) -> Result<Duration, String> {
    let seconds = number(text, &[("us", 1e-6), ("ms", 1e-3), ("s", 1.0)], "20ms, 500us, 1s")?;
    if seconds > 60.0 { Err("a minute is the most".into()) } else { Ok(Duration::from_secs_f64(seconds)) }
}

fn share(text: &str) -> Result<f64, String> {
    let share = number(text, &[("%", 1.0)], "10%")?;
    if share > 100.0 { Err("more than all of them".into()) } else { Ok(share) }
}

fn rate(text: &str) -> Result<u64, String> {
    let units = [("bit", 1.0), ("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9)];
    let rate = number(text, &units, "100mbit, 1gbit, 64kbit")?;
    if rate < 1000.0 { Err("below one kbit".into()) } else { Ok(rate as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTS: &[&str] = &["n1", "n2", "n3"];

    fn said(words: &str) -> Result<Rules, String> {
        let words: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
        Rules::default().after(&words, PORTS)
    }

    #[test]
    fn the_narrower_scope_decides_and_leaves_the_rest_to_the_wider() {
        let rules = said("n1>n2:delay=5ms delay=20ms n1:loss=10% rate=1gbit").unwrap();
        let way = rules.on_way("n1", "n2");
        assert_eq!((way.delay, way.loss), (Some(Duration::from_millis(5)), Some(10.0)));
        assert_eq!(way.rate, Some(1_000_000_000));
        let back = rules.on_way("n2", "n1");
        assert_eq!((back.delay, back.loss), (Some(Duration::from_millis(20)), None));
    }

    #[test]
    fn words_say_the_same_again() {
        let text = "delay=20ms n1:loss=1.5% n1>n3:mtu=1400 n2:corrupt=3% rate=64kbit cut=n1>n2 seed=7";
        let rules = said(text).unwrap();
        assert_eq!(Rules::default().after(&rules.words(), PORTS), Ok(rules));
    }

    #[test]
    fn what_was_said_can_be_taken_back() {
        let rules = said("delay=20ms cut=n1>n2 loss=1%").unwrap();
        let rules = rules.after(&["mend=n1>n2".into(), "delay=off".into()], PORTS).unwrap();
        assert_eq!(rules.words(), ["loss=1%"]);
        assert_eq!(rules.after(&["clear".into()], PORTS), Ok(Rules::default()));
    }

    #[test]
    fn bad_words_are_named_with_the_reason() {
        let table = [
            ("delay=20", "delay=20: not as in 20ms"),
            ("delay=2h", "not as in 20ms"),
            ("loss=101%", "more than all"),
            ("loss=-1%", "not as in 10%"),
            ("speed=1", "the wire knows no speed"),
            ("cut=n1", "a way is A>B"),
            ("cut=n1>n9", "the wire has no port \"n9\", only n1, n2, n3"),
            ("x:delay=1ms", "no port \"x\""),
            ("hello", "neither clear nor KEY=VALUE"),
            ("rate=1bit", "below one kbit"),
        ];
        for (word, expected) in table {
            let error = said(word).expect_err(word);
            assert!(error.contains(expected), "{word}: {error}");
        }
    }
}
