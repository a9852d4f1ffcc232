//! What a namespace, or the machine, holds: looked at twice, so that what was left, or taken, shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use crate::command::{self, CommandError};
use crate::namespace::Namespace;

/// Sections of lines, without whatever changes by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    sections: BTreeMap<&'static str, BTreeSet<String>>,
}

/// What one look has and another has not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    lines: Vec<String>,
}

/// What is looked at in a namespace, and the command that shows it.
const LOOKS: &[(&str, &str)] = &[
    ("links", "ip -details -oneline link show"),
    ("addresses", "ip -oneline addr show"),
    ("routes", "ip -4 route show table all"),
    ("routes6", "ip -6 route show table all"),
    ("rules", "ip -4 rule show"),
    ("rules6", "ip -6 rule show"),
    ("neighbours", "ip neigh show nud permanent"),
    ("forwarding", "bridge fdb show"),
    ("nft", "nft --stateless list ruleset"),
    ("sysctls", "sysctl --all --ignore --pattern ^net"),
];

/// What a link is called that DEL took out of use, and how long it may take to go.
const LEAVING: &str = "cwx";
const WAY_OUT: Duration = Duration::from_secs(1);

/// Settings that are measures: they change by themselves.
const MEASURES: &[&str] =
    &["nf_conntrack_count", "fs.", "random", "nf_conntrack_max", "route.gc", "tcp_mem", "udp_mem"];

impl Holdings {
    /// What a namespace holds. Links that are on their way out are waited for, for as long as they may take.
    pub fn of(namespace: &Namespace) -> Result<Self, CommandError> {
        let deadline = Instant::now() + WAY_OUT;
        loop {
            let late = Instant::now() > deadline;
            let holdings = Self { sections: namespace.run(look)? };
            if late || !holdings.sections["links"].iter().any(|link| link.starts_with(LEAVING)) {
                return Ok(holdings);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the machine itself holds outside of all nodes: namespaces, mounts, files of /run, programs of ours, and
    /// everything of its own network.
    pub fn of_machine() -> Result<Self, CommandError> {
        let mut sections = look()?;
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        sections.insert("namespaces", names("/run/netns"));
        sections.insert("run", names("/run"));
        sections.insert("mounts", mounts.lines().map(str::to_owned).collect());
        sections.insert("processes", programs());
        Ok(Self { sections })
    }

    /// What an earlier look lacks, and what it had that is gone.
    pub fn since(&self, earlier: &Self) -> Leftovers {
        let none = BTreeSet::new();
        let keys: BTreeSet<_> = self.sections.keys().chain(earlier.sections.keys()).collect();
        let mut lines = Vec::new();
        for key in keys {
            let (now, then) =
                (self.sections.get(key).unwrap_or(&none), earlier.sections.get(key).unwrap_or(&none));
            lines.extend(now.difference(then).map(|line| format!("{key}: new: {line}")));
            lines.extend(then.difference(now).map(|line| format!("{key}: gone: {line}")));
        }
        Leftovers { lines }
    }

    /// The same without some sections.
    pub fn without(mut self, sections: &[&str]) -> Self {
        self.sections.retain(|section, _| !sections.contains(section));
        self
    }
}

impl Leftovers {
    /// Nothing is left.
    pub const NONE: Leftovers = Leftovers { lines: Vec::new() };

    /// Only what speaks of one of these words.
    pub fn about(mut self, words: &[&str]) -> Self {
        self.lines.retain(|line| words.iter().any(|word| line.contains(word)));
        self
    }

    /// Without what speaks of another lab than this one: several may be up, each is removed by its own owner.
    pub fn without_other_labs(mut self, lab: &str) -> Self {
        let (own, place) = (format!("cwl-{lab}-"), format!("{}/{lab}", crate::lab::DIRECTORY));
        let of_a_lab = |line: &str| line.contains("cwl-") || line.contains(crate::lab::DIRECTORY);
        self.lines.retain(|line| !of_a_lab(line) || line.contains(&own) || line.contains(&place));
        self
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lines.is_empty() {
            return f.write_str("nothing is left");
        }
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Everything of this thread's namespace.
fn look() -> Result<BTreeMap<&'static str, BTreeSet<String>>, CommandError> {
    LOOKS.iter().map(|(section, words)| Ok((*section, tidy(section, &command::run(words)?)))).collect()
}

/// A listing of nft without what the sets of policy and of services hold, and without the chains that choose among backends: that is
/// what the source's objects say, whoever is attached.
fn without_objects(listing: &str) -> String {
    let (mut of_objects, mut elements, mut choice) = (false, false, false);
    let lines = listing.lines().filter(|line| {
        if line.starts_with("table ") {
            of_objects = ["policy", "services"]
                .iter()
                .any(|table| line.starts_with(&format!("table inet causeway-{table} ")));
        }
        let begins = |side| line.trim_start().starts_with(&format!("chain {side}_"));
        choice |= of_objects && (begins("inside") || begins("outside"));
        elements |= of_objects && line.contains("elements = {");
        let shown = !elements && !choice;
        elements &= !line.contains('}');
        choice &= line.trim() != "}";
        shown
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The lines of one look, without indexes of links, times and measures.
fn tidy(section: &str, text: &str) -> BTreeSet<String> {
    let text = if section == "nft" { without_objects(text) } else { text.to_owned() };
    let lines = text.lines().filter(|line| !MEASURES.iter().any(|measure| line.contains(measure)));
    let lines = lines.map(|line| match section {
        // "7: eth0@if6: <…>": the number is given anew to whatever is made anew.
        "links" | "addresses" => {
            let line = line.split_once(": ").map_or(line, |(_, rest)| rest);
            line.split_whitespace()
                .map(|word| word.split_once("@if").map_or(word, |(name, _)| name))
                .collect::<Vec<_>>()
                .join(" ")
        }
        // A set's elements are listed in an order of their own.
        "nft" => line.trim().trim_start_matches("elements = {").trim_matches([' ', ',', '}']).to_owned(),
        _ => line.trim().to_owned(),
    });
    lines.filter(|line| !line.is_empty()).collect()
}

fn names(directory: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}

/// The command lines of programs of ours that run.
fn programs() -> BTreeSet<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = entries.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| line.replace('\0', " ").trim().to_owned());
    let ours = |line: &String| {
        let program = line.split(' ').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        program.starts_with("causeway") || (program == "lab" && line.contains(" switch "))
    };
    lines.filter(ours).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_made_shows_and_nothing_when_it_is_gone() {
        let namespace = Namespace::create(format!("cwl-left-{}", std::process::id())).unwrap();
        let before = Holdings::of(&namespace).unwrap();
        assert_eq!(Holdings::of(&namespace).unwrap().since(&before), Leftovers::NONE);
        let made = [
            ("links", "ip link add v0 type veth peer name v1", "ip link del v0"),
            (
                "routes",
                "ip route add unreachable 198.51.100.0/24",
                "ip route del unreachable 198.51.100.0/24",
            ),
            ("rules6", "ip -6 rule add from fd00::/64 lookup 77", "ip -6 rule del from fd00::/64 lookup 77"),
            ("nft", "nft add table inet x", "nft delete table inet x"),
            ("sysctls", "sysctl -q net.ipv4.ip_forward=1", "sysctl -q net.ipv4.ip_forward=0"),
        ];
        for (section, make, unmake) in made {
            namespace.exec(make).unwrap();
            let left = Holdings::of(&namespace).unwrap().since(&before);
            assert!(left.to_string().contains(&format!("{section}: new: ")), "{make}: {left}");
            namespace.exec(unmake).unwrap();
        }
        let left = Holdings::of(&namespace).unwrap().since(&before);
        assert_eq!(left, Leftovers::NONE, "{left}");
        namespace.delete().unwrap();
    }
}
