//! Our nft table: loaded whole in one transaction, changed by elements, compared with what is really there.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use causeway_model::policy::{RuleId, RuleNumber};
use causeway_model::{Count, Delta, EndpointKey, Snapshot};
use netlink_sys::protocols::NETLINK_NETFILTER;
use serde::{Deserialize, Serialize};

use crate::desired::{Difference, Wanted};
use crate::element::{BySet, Element, by_set};
use crate::error::KernelError;
use crate::netlink::Netlink;
use crate::nfnetlink::{Found, counters, elements, find_element, generation, pod_drops, transact};
use crate::policy::{self, Denied, PolicyTable};
use crate::ruleset::{DROPS, Dropped, Ruleset, TABLE, delta, drop_key};
use crate::services::{self, Counted, Moved, ServicesTable};

mod command;
mod listing;
mod services_table;

pub(crate) use command::{list, run};
use listing::{chains, complaints, listing, sets};

/// So often is the table loaded again when others change something meanwhile.
const LOADS: usize = 3;

/// What was loaded, for the next process: the text that we wrote, and how nft lists it.
#[derive(Debug, Serialize, Deserialize)]
struct Memory {
    text: String,
    chains: String,
}

/// What is loaded, and what it looked like.
#[derive(Debug)]
struct Loaded {
    ruleset: Ruleset,
    /// The number the kernel gave the state we left; another number means another hand. None: not sure.
    generation: Option<u32>,
    /// How nft lists the table without its elements.
    chains: String,
    elements: BTreeSet<Element>,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Nft {
    netlink: Netlink,
    /// Where what was loaded is remembered for the next process.
    memory: PathBuf,
    loaded: Option<Loaded>,
    /// Nobody else had made a transaction between the last two looks.
    untouched: bool,
    /// The highest counts seen: they go on where they were when the table is loaded again.
    dropped: Dropped,
    /// The table for policy, and the generation in which it was what was loaded.
    policy: PolicyTable,
    policy_generation: Option<u32>,
    /// The same for services.
    services: ServicesTable,
    services_generation: Option<u32>,
}

/// What of a state has entries in tables of their own.
#[derive(Debug, Default)]
pub(crate) struct Things {
    policy: BTreeSet<policy::Thing>,
    services: BTreeSet<services::Thing>,
}

impl Things {
    /// What changes are about.
    pub(crate) fn of(deltas: &[Delta]) -> Self {
        Self {
            policy: deltas.iter().filter_map(policy::Thing::of).collect(),
            services: deltas.iter().flat_map(services::Thing::of).collect(),
        }
    }
}

/// What is to be sent for them.
#[derive(Default)]
struct Pending {
    policy: Option<policy::Pending>,
    services: Option<services::Pending>,
}

impl Nft {
    pub(crate) fn new(memory: PathBuf) -> Result<Self, KernelError> {
        let netlink =
            Netlink::open(NETLINK_NETFILTER).map_err(KernelError::io("opening a netfilter socket"))?;
        Ok(Self {
            netlink,
            services: ServicesTable::new(memory_of_services(&memory)),
            memory,
            loaded: None,
            untouched: false,
            dropped: Dropped::default(),
            policy: PolicyTable::default(),
            policy_generation: None,
            services_generation: None,
        })
    }

    /// Makes all tables what they shall be; touches nothing that is so already, and does not even look when nobody has touched
    /// anything since. Returns what was wrong, in words.
    pub(crate) fn ensure(
        &mut self,
        ruleset: &Ruleset,
        elements: &Wanted<Element>,
        snapshot: &Snapshot,
    ) -> Result<Vec<String>, KernelError> {
        let mut words = self.ensure_policy(snapshot)?;
        words.extend(self.ensure_services(snapshot)?);
        words.extend(self.ensure_table(ruleset, elements)?);
        Ok(words)
    }

    fn ensure_policy(&mut self, snapshot: &Snapshot) -> Result<Vec<String>, KernelError> {
        if !self.policy.is_loaded() {
            self.load_policy(snapshot)?;
            return Ok(vec![format!("loaded nft table inet {}", policy::TABLE)]);
        }
        let generation = generation(&mut self.netlink)?;
        if self.policy_generation != Some(generation) {
            let complaints = self.policy.compare(&mut self.netlink)?;
            if !complaints.is_empty() {
                self.policy.distrust();
                self.load_policy(snapshot)?;
                return Ok(complaints);
            }
            self.policy_generation = Some(generation);
        }
        let things = Things { policy: self.policy.differing(snapshot), ..Things::default() };
        let changed = self.change(&Difference::default(), things, snapshot)?;
        self.policy.refresh_stamps()?;
        Ok(changed
            .then(|| format!("changed elements of nft table inet {}", policy::TABLE))
            .into_iter()
            .collect())
    }

    /// What another hand changes in the moment of loading must not pass for ours.
    fn load_policy(&mut self, snapshot: &Snapshot) -> Result<(), KernelError> {
        self.policy_generation = None;
        for _ in 0..LOADS {
            let before = generation(&mut self.netlink)?;
            self.policy.load(&mut self.netlink, snapshot)?;
            let after = generation(&mut self.netlink)?;
            self.policy_generation = (after == before.wrapping_add(1)).then_some(after);
            follow(&mut self.services_generation, before, after);
            if let Some(loaded) = &mut self.loaded {
                follow(&mut loaded.generation, before, after);
            }
            if self.policy_generation.is_some() {
                break;
            }
        }
        Ok(())
    }

    fn ensure_table(
        &mut self,
        ruleset: &Ruleset,
        elements: &Wanted<Element>,
    ) -> Result<Vec<String>, KernelError> {
        self.untouched = false;
        self.forget_gone_pods(elements);
        if self.loaded.is_none() {
            self.loaded = self.adopt(ruleset, elements).unwrap_or_else(|error| {
                tracing::debug!(%error, "the nft table that was there is not taken over");
                None
            });
        }
        let Some(loaded) = self.loaded.as_mut().filter(|loaded| loaded.ruleset == *ruleset) else {
            self.load(ruleset, elements)?;
            return Ok(vec![format!("loaded nft table inet {TABLE}")]);
        };
        let generation = generation(&mut self.netlink)?;
        self.untouched = loaded.generation == Some(generation);
        if !self.untouched {
            let complaints = match listing()? {
                None => vec![format!("nft table inet {TABLE} was gone")],
                Some(listing) => complaints(&listing, &loaded.chains, loaded.elements.iter()),
            };
            if !complaints.is_empty() {
                self.load(ruleset, elements)?;
                return Ok(complaints);
            }
            loaded.generation = Some(generation);
        }
        let gone = loaded.elements.iter().filter(|element| !elements.contains(element)).cloned().collect();
        let new = elements.iter().filter(|element| !loaded.elements.contains(element)).cloned().collect();
        let difference = Difference { gone, new };
        self.transact(&difference, Pending::default())?;
        let changed = difference.gone.len() + difference.new.len();
        Ok(if changed == 0 { Vec::new() } else { vec![format!("changed {changed} elements of nft sets")] })
    }

    /// Whether the last look found that nobody else had touched nftables since the one before.
    pub(crate) fn is_untouched(&self) -> bool {
        self.untouched
    }

    /// Changes elements of all tables in one transaction; returns whether there was anything to change.
    pub(crate) fn change(
        &mut self,
        difference: &Difference<Element>,
        things: Things,
        snapshot: &Snapshot,
    ) -> Result<bool, KernelError> {
        let pending = Pending {
            policy: self.policy.prepare(things.policy, snapshot)?,
            services: self.services.prepare(things.services, snapshot),
        };
        self.transact(difference, pending)
    }

    fn transact(
        &mut self,
        difference: &Difference<Element>,
        mut pending: Pending,
    ) -> Result<bool, KernelError> {
        let mut messages = Vec::new();
        let Pending { policy, services } = &mut pending;
        messages.extend(policy.iter_mut().flat_map(|pending| std::mem::take(&mut pending.gone)));
        messages.extend(elements(&difference.gone, &difference.new));
        messages.extend(policy.iter_mut().flat_map(|pending| std::mem::take(&mut pending.new)));
        messages.extend(services.iter_mut().flat_map(|pending| std::mem::take(&mut pending.gone)));
        messages.extend(services.iter_mut().flat_map(|pending| std::mem::take(&mut pending.new)));
        if messages.is_empty() {
            self.take_note(pending, None)?;
            return Ok(false);
        }
        let before = generation(&mut self.netlink)?;
        // By netlink, not by nft: starting it would take longer than all the rest of an attachment.
        transact(&mut self.netlink, messages, "changing elements of nft sets")?;
        let after = generation(&mut self.netlink)?;
        follow(&mut self.policy_generation, before, after);
        follow(&mut self.services_generation, before, after);
        if let Some(loaded) = &mut self.loaded {
            follow(&mut loaded.generation, before, after);
            for element in &difference.gone {
                loaded.elements.remove(element);
            }
            loaded.elements.extend(difference.new.iter().cloned());
        }
        self.take_note(pending, Some(after))?;
        Ok(true)
    }

    /// What was sent is in force, since this generation.
    fn take_note(&mut self, pending: Pending, generation_then: Option<u32>) -> Result<(), KernelError> {
        if let Some(pending) = pending.policy {
            self.policy.done(pending);
        }
        if let Some(pending) = pending.services {
            let chains = pending.has_chains();
            self.services.done(pending);
            if chains {
                self.services.note_chains(&mut self.netlink)?;
                // What another hand changed meanwhile must not pass for ours.
                if Some(generation(&mut self.netlink)?) != generation_then
                    || self.services_generation.is_none()
                {
                    self.services.distrust();
                }
            }
        }
        Ok(())
    }

    /// Which services changed so that flows to them may have to begin anew, since the last call.
    pub(crate) fn take_moved(&mut self) -> Moved {
        self.services.take_moved()
    }

    /// What services have dropped, and the connections begun at their frontends.
    pub(crate) fn served(&mut self) -> Result<Counted, KernelError> {
        self.services.counted(&mut self.netlink)
    }

    /// Numbers are given to rules, whose counts begin.
    pub(crate) fn begin_counts(&mut self, deltas: &[Delta]) {
        self.policy.begin_counts(&mut self.netlink, deltas);
    }

    /// What policy has denied.
    pub(crate) fn denied(&mut self) -> Result<Denied, KernelError> {
        self.policy.denied(&mut self.netlink)
    }

    /// The rule that had a number at a time.
    pub(crate) fn rule_at(&self, number: RuleNumber, at: u64) -> Option<RuleId> {
        self.policy.rule_at(number, at)
    }

    /// What is missing of what an endpoint's connections are judged and led by.
    pub(crate) fn check_policy(&mut self, endpoint: &EndpointKey) -> Result<Vec<String>, KernelError> {
        let mut wrong = self.policy.check(&mut self.netlink, endpoint)?;
        if self.policy_generation != Some(generation(&mut self.netlink)?) {
            wrong.extend(self.policy.compare(&mut self.netlink)?);
        }
        if self.services_generation != Some(generation(&mut self.netlink)?) {
            wrong.extend(self.services.compare(&mut self.netlink)?);
        }
        Ok(wrong)
    }

    /// What is missing of what guards: chains that are not ours, elements that are not there. The kernel is asked for each.
    pub(crate) fn check(
        &mut self,
        ruleset: &Ruleset,
        elements: &[Element],
    ) -> Result<Vec<String>, KernelError> {
        let mut wrong = Vec::new();
        let generation = generation(&mut self.netlink)?;
        let loaded = self.loaded.as_ref().filter(|loaded| loaded.ruleset == *ruleset);
        match loaded {
            None => wrong.push(format!("nft table inet {TABLE} is not the one that shall be")),
            // Nobody made any transaction since the last look at the whole table.
            Some(loaded) if loaded.generation == Some(generation) => {}
            Some(loaded) => match listing()? {
                None => wrong.push(format!("nft table inet {TABLE} is missing")),
                Some(listing) if chains(&listing) != loaded.chains => {
                    wrong.push(format!("the chains of nft table inet {TABLE} are not ours"));
                }
                Some(_) => {}
            },
        }
        for element in elements {
            let (set, text) = (element.set(), element.text());
            match find_element(&mut self.netlink, element)? {
                Found::It => {}
                Found::OtherData => wrong.push(format!("nft map {set} leads elsewhere than {text}")),
                Found::Nothing => wrong.push(format!("nft set {set} lacks {text}")),
            }
        }
        Ok(wrong)
    }

    /// What was dropped since the table was first loaded.
    pub(crate) fn dropped(&mut self) -> Result<&Dropped, KernelError> {
        for (reason, count) in counters(&mut self.netlink, TABLE)? {
            rise(self.dropped.of_all.entry(reason).or_default(), count);
        }
        for (link, reason, count) in pod_drops(&mut self.netlink)? {
            rise(self.dropped.of_pods.entry((link, reason)).or_default(), count);
        }
        Ok(&self.dropped)
    }

    /// Takes away what was counted for pods that have gone. What cannot be taken away costs an element of memory.
    fn forget_gone_pods(&mut self, elements: &Wanted<Element>) {
        let links: BTreeSet<&str> = elements
            .iter()
            .filter_map(|element| match element {
                Element::PodLink(link) => Some(link.as_str()),
                _ => None,
            })
            .collect();
        let of_pods = &mut self.dropped.of_pods;
        let gone: Vec<_> =
            of_pods.keys().filter(|(link, _)| !links.contains(link.as_str())).cloned().collect();
        for (link, reason) in gone {
            let text = format!("delete element inet {TABLE} {DROPS} {{ {} }}\n", drop_key(&link, reason));
            if let Err(error) = run(&text, "taking away what was counted for a pod that has gone") {
                tracing::debug!(%error, "counted drops");
            }
            of_pods.remove(&(link, reason));
        }
    }

    /// Takes over the table that a process before us left, if it is the one that we would load; its elements are changed to ours.
    /// Not one packet is then judged by a table in the making: between the moment that a table is replaced and the moment that its
    /// interval sets are filled, the kernel finds nothing in them.
    fn adopt(
        &mut self,
        ruleset: &Ruleset,
        elements: &Wanted<Element>,
    ) -> Result<Option<Loaded>, KernelError> {
        let memory =
            fs::read(&self.memory).ok().and_then(|bytes| serde_json::from_slice::<Memory>(&bytes).ok());
        let Some(memory) = memory.filter(|memory| memory.text == ruleset.text()) else { return Ok(None) };
        let Some(listing) = listing()?.filter(|listing| chains(listing) == memory.chains) else {
            return Ok(None);
        };
        let (listed, wanted) = (sets(&listing), by_set(elements.iter()));
        let less = |all: BTreeSet<String>, but: &BTreeSet<String>| {
            all.into_iter().filter(|e| !but.contains(e)).collect()
        };
        let (mut gone, mut new) = (BySet::new(), BySet::new());
        for (set, listed) in listed {
            let wanted: BTreeSet<String> = wanted.get(set).into_iter().flatten().cloned().collect();
            new.insert(set, less(wanted.clone(), &listed));
            gone.insert(set, less(listed, &wanted));
        }
        let text = delta(&gone, &new);
        if !text.is_empty() {
            run(&text, "changing elements of the table that was there")?;
        }
        let elements = elements.iter().cloned().collect();
        // The generation is left open, so that the next look compares everything once.
        Ok(Some(Loaded { ruleset: ruleset.clone(), generation: None, chains: memory.chains, elements }))
    }

    /// Without the memory the next process loads the table again: no reason to fail.
    fn remember(&self, memory: &Memory) {
        let aside = self.memory.with_extension("nft.new");
        let written = serde_json::to_vec(memory).map_err(std::io::Error::from).and_then(|json| {
            fs::create_dir_all(self.memory.parent().unwrap_or(Path::new("/")))?;
            fs::write(&aside, json)?;
            fs::rename(&aside, &self.memory)
        });
        if let Err(error) = written {
            tracing::warn!(%error, path = %self.memory.display(), "the nft table cannot be remembered");
        }
    }

    fn load(&mut self, ruleset: &Ruleset, elements: &Wanted<Element>) -> Result<(), KernelError> {
        self.loaded = None;
        // Without counters of an old table the new one begins at what we remember.
        if let Err(error) = self.dropped() {
            tracing::debug!(%error, "counters of the old table are lost");
        }
        let document = ruleset.document(elements.iter(), &self.dropped);
        let before = generation(&mut self.netlink)?;
        let (generation, listing) = self.load_untouched(&document)?;
        follow(&mut self.policy_generation, before, generation.unwrap_or(before));
        follow(&mut self.services_generation, before, generation.unwrap_or(before));
        let chains = chains(&listing);
        // Whatever is listed differently right now is a matter of how this nft writes, or of another hand in this
        // very moment; loading again and again would help neither.
        let odd = complaints(&listing, &chains, elements.iter());
        if !odd.is_empty() {
            tracing::warn!(?odd, "nft lists the table differently than it was loaded");
        }
        let elements = elements.iter().cloned().collect();
        self.remember(&Memory { text: ruleset.text(), chains: chains.clone() });
        self.loaded = Some(Loaded { ruleset: ruleset.clone(), generation, chains, elements });
        Ok(())
    }

    /// Loads the table and lists it. What another hand changes in that very moment must not pass for ours, so then it is loaded
    /// again; where others change their own tables all the time, the generation stays open.
    fn load_untouched(&mut self, document: &str) -> Result<(Option<u32>, String), KernelError> {
        let mut last = String::new();
        for _ in 0..LOADS {
            let before = generation(&mut self.netlink)?;
            run(document, "loading the table")?;
            last = listing()?.unwrap_or_default();
            let after = generation(&mut self.netlink)?;
            if after == before.wrapping_add(1) {
                return Ok((Some(after), last));
            }
        }
        Ok((None, last))
    }
}

/// What was so before a transaction of ours is so behind it. Sure only if nobody had touched it before and ours is the only one.
fn follow(known: &mut Option<u32>, before: u32, after: u32) {
    *known = (*known == Some(before) && after == before.wrapping_add(1)).then_some(after);
}

/// A counter never goes back but with its table.
fn rise(highest: &mut Count, count: Count) {
    if count.packets >= highest.packets {
        *highest = count;
    }
}

/// Takes our table away.
pub(crate) fn remove(memory: &Path) -> Vec<KernelError> {
    // `add` before `delete`: deleting what is not there would be refused.
    let text: String =
        [("inet", TABLE), ("netdev", TABLE), ("inet", policy::TABLE), ("inet", services::TABLE)]
            .map(|(family, table)| format!("add table {family} {table}\ndelete table {family} {table}\n"))
            .concat();
    let forget = |path: &Path| match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(KernelError::io(format!("removing {}", path.display()))(error))
        }
        _ => Ok(()),
    };
    let forgotten = [memory, &memory_of_services(memory)].map(forget);
    [run(&text, "removing our tables")].into_iter().chain(forgotten).filter_map(Result::err).collect()
}

/// Where what was loaded of services is remembered, beside what was loaded of the rest.
fn memory_of_services(memory: &Path) -> PathBuf {
    memory.with_extension("services")
}
