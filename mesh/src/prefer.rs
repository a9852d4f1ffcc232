//! Which backends an importer wants: the annotations `causeway.dev/affinity` and `causeway.dev/prefer`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use causeway_model::ClusterName;
use thiserror::Error;

use crate::read::{Problem, Wrong};

/// The annotation that says whether the importer's own backends are wanted.
pub const AFFINITY: &str = "causeway.dev/affinity";
/// The annotation that says which clusters are wanted before others.
pub const PREFER: &str = "causeway.dev/prefer";
/// What all our annotations begin with.
pub(crate) const OURS: &str = "causeway.dev/";

/// The heaviest entry.
pub const MOST_WEIGHT: u32 = 1000;

/// What annotations ask for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wish {
    /// Whether the importer's own backends are wanted, if anything is said of it.
    pub affinity: Option<Affinity>,
    /// Which clusters are wanted before others, if anything is said of it.
    pub prefer: Option<Arc<Preference>>,
}

impl Wish {
    /// What annotations ask for. What cannot be read is no wish, and told.
    pub fn read(at: &str, annotations: &BTreeMap<String, String>) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut note = |key: &str, why: BadWish| {
            problems.push(Problem { at: format!("{at}[{key}]"), wrong: Wrong::Wish(why) });
        };
        let affinity = annotations.get(AFFINITY).map(|text| text.parse());
        let prefer = annotations.get(PREFER).map(|text| text.parse());
        let affinity = affinity.and_then(|read: Result<_, _>| read.map_err(|why| note(AFFINITY, why)).ok());
        let prefer = prefer.and_then(|read: Result<_, _>| read.map_err(|why| note(PREFER, why)).ok());
        (Self { affinity, prefer: prefer.map(Arc::new) }, problems)
    }
}

/// Whether the importer's own backends are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    /// All are alike.
    #[default]
    None,
    /// Own ones while one is healthy, else the others.
    Local,
    /// Others while one is healthy, else the own ones.
    Remote,
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Local => "local",
            Self::Remote => "remote",
        })
    }
}

impl FromStr for Affinity {
    type Err = BadWish;

    fn from_str(text: &str) -> Result<Self, BadWish> {
        let known = [Self::None, Self::Local, Self::Remote];
        let found = known.into_iter().find(|affinity| affinity.to_string() == text.trim());
        found.ok_or_else(|| BadWish::Affinity(text.to_owned()))
    }
}

/// Clusters in the order in which they are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preference {
    /// The first that has enough healthy backends serves alone.
    pub tiers: Vec<Tier>,
}

/// Clusters that are wanted alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Which ones.
    pub entries: Vec<Entry>,
    /// How many healthy backends it takes for this tier to serve.
    pub min: u32,
}

/// One or several clusters, and their part of a tier's connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which ones.
    pub who: Who,
    /// Its part, which its backends share.
    pub weight: u32,
}

/// One or several clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// The one of this name.
    Cluster(ClusterName),
    /// All of this region.
    Region(String),
}

impl Who {
    /// Whether a cluster is meant.
    pub fn is(&self, cluster: &ClusterName, region: Option<&str>) -> bool {
        match self {
            Self::Cluster(name) => name == cluster,
            Self::Region(name) => Some(name.as_str()) == region,
        }
    }
}

/// Why an annotation is no wish.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "each is its sentence")]
pub enum BadWish {
    #[error("{0:?} is none of none, local, remote")]
    Affinity(String),
    #[error("tier {0} is empty")]
    EmptyTier(usize),
    #[error("tier {0} names no cluster and no region")]
    NobodyInTier(usize),
    #[error("{0:?} is no cluster:NAME, region:NAME or min=NUMBER")]
    Entry(String),
    #[error("{0:?} is no name of a cluster")]
    Cluster(String),
    #[error("the weight in {0:?} is not from 1 to {MOST_WEIGHT}")]
    Weight(String),
    #[error("{0:?} is no number above 0")]
    Min(String),
    #[error("{0:?} is said twice in a tier")]
    Twice(String),
}

impl FromStr for Preference {
    type Err = BadWish;

    fn from_str(text: &str) -> Result<Self, BadWish> {
        let tier = |(index, text): (usize, &str)| tier(index + 1, text);
        Ok(Self { tiers: text.split(';').enumerate().map(tier).collect::<Result<_, _>>()? })
    }
}

fn tier(number: usize, text: &str) -> Result<Tier, BadWish> {
    if text.trim().is_empty() {
        return Err(BadWish::EmptyTier(number));
    }
    let mut entries: Vec<Entry> = Vec::new();
    let mut min = None;
    for part in text.split(',').map(str::trim) {
        if let Some(number) = part.strip_prefix("min=") {
            let number = number.parse().ok().filter(|number| *number > 0);
            let number = number.ok_or_else(|| BadWish::Min(part.to_owned()))?;
            if min.replace(number).is_some() {
                return Err(BadWish::Twice("min".to_owned()));
            }
            continue;
        }
        let entry = entry(part)?;
        if entries.iter().any(|other| other.who == entry.who) {
            return Err(BadWish::Twice(part.to_owned()));
        }
        entries.push(entry);
    }
    if entries.is_empty() {
        return Err(BadWish::NobodyInTier(number));
    }
    Ok(Tier { entries, min: min.unwrap_or(1) })
}

fn entry(text: &str) -> Result<Entry, BadWish> {
    let invalid = || BadWish::Entry(text.to_owned());
    let (who, weight) = match text.split_once('*') {
        None => (text, 1),
        Some((who, weight)) => {
            let weight = weight.trim().parse().ok().filter(|weight| (1..=MOST_WEIGHT).contains(weight));
            (who.trim(), weight.ok_or_else(|| BadWish::Weight(text.to_owned()))?)
        }
    };
    let (kind, name) = who.split_once(':').ok_or_else(invalid)?;
    let who = match kind {
        "cluster" => Who::Cluster(name.parse().map_err(|_| BadWish::Cluster(name.to_owned()))?),
        "region" if !name.is_empty() && name.trim() == name => Who::Region(name.to_owned()),
        _ => return Err(invalid()),
    };
    Ok(Entry { who, weight })
}

impl fmt::Display for Preference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tiers: Vec<_> = self.tiers.iter().map(ToString::to_string).collect();
        f.write_str(&tiers.join("; "))
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<_> = self.entries.iter().map(ToString::to_string).collect();
        if self.min != 1 {
            parts.push(format!("min={}", self.min));
        }
        f.write_str(&parts.join(","))
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Cluster(name) => write!(f, "cluster:{name}")?,
            Who::Region(name) => write!(f, "region:{name}")?,
        }
        if self.weight == 1 { Ok(()) } else { write!(f, "*{}", self.weight) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let read: Preference = "cluster:lyon*3,region:west,min=2; cluster:turin".parse().unwrap();
        assert_eq!(read.tiers[0].min, 2);
        assert_eq!(read.tiers[0].entries[0], Entry { who: Who::Cluster("lyon".parse().unwrap()), weight: 3 });
        assert_eq!(read.to_string(), "cluster:lyon*3,region:west,min=2; cluster:turin");
        let spaced: Preference = " min=2 , cluster:lyon * 3,region:west ;cluster:turin*1 ".parse().unwrap();
        assert_eq!(spaced, read);
        assert_eq!("local".parse(), Ok(Affinity::Local));
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        for (text, why) in [
            ("", "tier 1 is empty"),
            ("cluster:a;", "tier 2 is empty"),
            ("cluster:a;;cluster:b", "tier 2 is empty"),
            ("min=2", "tier 1 names no cluster and no region"),
            ("cluster:a,", r#""" is no cluster:NAME, region:NAME or min=NUMBER"#),
            ("zone:a", r#""zone:a" is no cluster:NAME, region:NAME or min=NUMBER"#),
            ("lyon", r#""lyon" is no cluster:NAME, region:NAME or min=NUMBER"#),
            ("region:", r#""region:" is no cluster:NAME, region:NAME or min=NUMBER"#),
            ("cluster:A", r#""A" is no name of a cluster"#),
            ("cluster:a*0", r#"the weight in "cluster:a*0" is not from 1 to 1000"#),
            ("cluster:a*1001", r#"the weight in "cluster:a*1001" is not from 1 to 1000"#),
            ("cluster:a*x", r#"the weight in "cluster:a*x" is not from 1 to 1000"#),
            ("cluster:a,min=0", r#""min=0" is no number above 0"#),
            ("cluster:a,min=1,min=2", r#""min" is said twice in a tier"#),
            ("cluster:a*2,cluster:a", r#""cluster:a" is said twice in a tier"#),
        ] {
            assert_eq!(text.parse::<Preference>().map_err(|error| error.to_string()), Err(why.to_owned()));
        }
        assert!("Local".parse::<Affinity>().is_err());
    }
}
