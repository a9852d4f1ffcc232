//! The table of services among the others: taken over or loaded, compared, changed, and swept.

use causeway_model::Snapshot;

use super::{LOADS, Nft, Things, follow};
use crate::desired::Difference;
use crate::error::KernelError;
use crate::nfnetlink::generation;
use crate::services::{self, Program};

impl Nft {
    pub(super) fn ensure_services(&mut self, snapshot: &Snapshot) -> Result<Vec<String>, KernelError> {
        let program = Program::new(&snapshot.settings);
        if !self.services.is_loaded(&program) {
            let adopted = self.services.adopt(&mut self.netlink, &program, snapshot);
            if let Err(error) = &adopted {
                tracing::warn!(%error, "the table of services that was there is not taken over");
            }
            if !adopted.unwrap_or(false) {
                self.load_services(&program, snapshot)?;
                return Ok(vec![format!("loaded nft table inet {}", services::TABLE)]);
            }
        }
        let generation = generation(&mut self.netlink)?;
        if self.services_generation != Some(generation) {
            let complaints = self.services.compare(&mut self.netlink)?;
            if !complaints.is_empty() {
                self.load_services(&program, snapshot)?;
                return Ok(complaints);
            }
            self.services_generation = Some(generation);
        }
        let things = Things { services: self.services.differing(snapshot), ..Things::default() };
        let changed = match self.change(&Difference::default(), things, snapshot) {
            Ok(changed) => changed,
            Err(error) => {
                tracing::warn!(%error, "loading the table of services, since a change of it failed");
                self.load_services(&program, snapshot)?;
                true
            }
        };
        self.sweep_services()?;
        let words = changed.then(|| format!("changed elements of nft table inet {}", services::TABLE));
        Ok(words.into_iter().collect())
    }

    /// Chains that nobody uses any more go; no other table has to be looked at for that.
    fn sweep_services(&mut self) -> Result<(), KernelError> {
        let before = generation(&mut self.netlink)?;
        if !self.services.sweep(&mut self.netlink)? {
            return Ok(());
        }
        let after = generation(&mut self.netlink)?;
        follow(&mut self.policy_generation, before, after);
        follow(&mut self.services_generation, before, after);
        if let Some(loaded) = &mut self.loaded {
            follow(&mut loaded.generation, before, after);
        }
        Ok(())
    }

    fn load_services(&mut self, program: &Program, snapshot: &Snapshot) -> Result<(), KernelError> {
        self.services_generation = None;
        for _ in 0..LOADS {
            let before = generation(&mut self.netlink)?;
            self.services.load(&mut self.netlink, program, snapshot)?;
            let after = generation(&mut self.netlink)?;
            self.services_generation = (after == before.wrapping_add(1)).then_some(after);
            follow(&mut self.policy_generation, before, after);
            if let Some(loaded) = &mut self.loaded {
                follow(&mut loaded.generation, before, after);
            }
            if self.services_generation.is_some() {
                break;
            }
        }
        Ok(())
    }
}
