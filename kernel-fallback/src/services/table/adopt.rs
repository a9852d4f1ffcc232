//! The table that a process before this one left is taken over and changed to what it shall be, element by element: where a table
//! is replaced, there is a moment in which the old one has lost its maps and the new one is not in force, and a connection that
//! begins then is refused, or not translated.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use causeway_model::Snapshot;
use causeway_model::service::{Answer, Backend};
use serde::{Deserialize, Serialize};

use super::super::choice::Choice;
use super::super::entry::{Told, backend_of, frontend_of, told_of};
use super::super::message::{self, OURS};
use super::super::program::{FIRST_WAY, Program};
use super::super::set::{Entry, Set};
use super::{Loaded, Moved, Placed, ServicesTable, all_of, sorted};
use crate::error::KernelError;
use crate::netlink::Netlink;
use crate::nfnetlink::transact;
use crate::tables::{difference, entries_found};

/// What was loaded, for the next process.
#[derive(Debug, Serialize, Deserialize)]
struct Memory {
    /// Of what we wrote, but for elements, and of how the kernel lists that. Another build may number otherwise: then the table is
    /// loaded anew.
    written: u64,
    listed: u64,
    /// Below what is chosen, for how many seconds clients stick, and the way there.
    ways: Vec<(u32, u32, u32)>,
}

fn digest(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Of everything that is written for a program and its choices.
fn written(program: &Program, ways: &BTreeMap<Choice, u32>) -> u64 {
    let choices = ways.iter().flat_map(|(choice, number)| message::choice(*choice, *number));
    digest(message::whole(program).into_iter().chain(choices).collect::<Vec<_>>())
}

/// Where what was loaded is remembered.
#[derive(Debug)]
pub(super) struct Notebook(PathBuf);

impl Notebook {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Without it the next process loads the table again: no reason to fail.
    pub(super) fn remember(&self, program: &Program, loaded: &Loaded, fixed: &BTreeSet<Vec<u8>>) {
        let ways = loaded.ways.iter().map(|(choice, way)| (choice.of, choice.sticks, *way)).collect();
        let memory = Memory { written: written(program, &loaded.ways), listed: digest(fixed), ways };
        if let Err(error) = self.write(&memory) {
            tracing::warn!(%error, path = %self.0.display(), "the table of services cannot be remembered");
        }
    }

    /// What is there is not known to be ours.
    pub(super) fn forget(&self) {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.0.display(), "a table of services that is not ours is remembered");
            }
            _ => {}
        }
    }

    fn write(&self, memory: &Memory) -> io::Result<()> {
        let aside = self.0.with_extension("services.new");
        fs::create_dir_all(self.0.parent().unwrap_or(Path::new("/")))?;
        fs::write(&aside, serde_json::to_vec(memory)?)?;
        fs::rename(&aside, &self.0)
    }

    /// The ways of the table that is there, if it is the one that we would load.
    fn recall(&self, program: &Program, fixed: &BTreeSet<Vec<u8>>) -> Option<BTreeMap<Choice, u32>> {
        let memory: Memory = serde_json::from_slice(&fs::read(&self.0).ok()?).ok()?;
        let choice = |(of, sticks, way): &(u32, u32, u32)| (Choice { of: *of, sticks: *sticks }, *way);
        let ways = memory.ways.iter().map(choice).collect();
        let same =
            !fixed.is_empty() && memory.listed == digest(fixed) && memory.written == written(program, &ways);
        same.then_some(ways)
    }
}

impl ServicesTable {
    /// Takes over the table that is there and changes its elements to what they shall be. False where there is none, or another
    /// one than we would load.
    pub(crate) fn adopt(
        &mut self,
        netlink: &mut Netlink,
        program: &Program,
        wanted: &Snapshot,
    ) -> Result<bool, KernelError> {
        if std::mem::replace(&mut self.inherited, true) {
            return Ok(false);
        }
        let fixed = OURS.fixed(netlink)?;
        let Some(ways) = self.notebook.recall(program, &fixed) else { return Ok(false) };
        let mut there = Vec::new();
        for set in Set::all() {
            there.extend(entries_found(OURS.found(netlink, set)?));
        }
        there.sort_unstable();
        let mut loaded = known(ways, &there, wanted);
        let mut things = loaded.all();
        things.extend(all_of(wanted));
        let pending = loaded.becoming(things, wanted);
        let choices = pending.ways.iter().flat_map(|(choice, way)| message::choice(*choice, *way));
        let mut messages: Vec<_> = choices.collect();
        loaded.take_up(pending);
        let (gone, new) = difference(there, sorted(loaded.entries()));
        messages.extend(OURS.entries(false, &gone));
        messages.extend(OURS.entries(true, &new));
        if !messages.is_empty() {
            transact(netlink, messages, "changing the table of services that was there")?;
        }
        self.moved = Moved::All;
        self.loaded = Some((program.clone(), loaded, fixed));
        self.note_chains(netlink)?;
        Ok(true)
    }
}

/// What is known of the table that is there, so that whatever can keep its number and its slot does.
fn known(ways: BTreeMap<Choice, u32>, there: &[Entry], wanted: &Snapshot) -> Loaded {
    let mut loaded = Loaded { ways, ..Loaded::default() };
    let mut slots: BTreeMap<u32, BTreeMap<u32, Backend>> = BTreeMap::new();
    for entry in there {
        match entry.set {
            Set::Backends(_) => {
                if let Some((number, slot, backend)) = backend_of(entry) {
                    slots.entry(number).or_default().insert(slot, backend);
                }
            }
            Set::Frontends(_) => {
                if let (Some(frontend), Some(told)) = (frontend_of(&entry.key), told_of(&entry.data)) {
                    loaded.frontends.insert(frontend, told);
                }
            }
            _ => {}
        }
    }
    loaded.numbers = slots.keys().max().copied().unwrap_or_default();
    let sources = loaded.frontends.values().filter_map(|told| told.sources.as_ref());
    loaded.sources = sources.map(|(number, _)| *number).max().unwrap_or_default();
    // Whoever compiled the services numbers their backends anew in each process; who leads to them stays.
    let mut taken = BTreeSet::new();
    for (frontend, service) in &wanted.services.frontends {
        let Some(Told { answers, .. }) = loaded.frontends.get(frontend) else { continue };
        for ((way, number), answer) in answers.iter().zip([service.inside, service.outside]) {
            let Answer::Backends(id) = answer else { continue };
            if *way < FIRST_WAY || loaded.backends.contains_key(&id) || !taken.insert(*number) {
                continue;
            }
            let slots = slots.remove(number).unwrap_or_default().into_values().collect();
            loaded.backends.insert(id, Placed { number: *number, slots, leaving: Vec::new() });
        }
    }
    loaded
}
