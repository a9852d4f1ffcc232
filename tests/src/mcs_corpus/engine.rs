//! The mesh's engine of every cluster of a case.

use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::{Context, Result};
use causeway_mesh::{Memory, Moved, World};
use causeway_model::ClusterName;

use super::expect::Expect;
use super::invariants::{self, Before};
use super::look::Look;
use super::run::Subject;
use super::stage::{Done, Member, Stage};

/// The engines of all clusters that are there.
#[derive(Default)]
pub(super) struct Engine {
    worlds: BTreeMap<ClusterName, Rc<World>>,
    /// Addresses that imports had after the step before, by observer.
    before: BTreeMap<String, Before>,
}

impl Engine {
    /// What a cluster sees.
    fn world(&self, name: &str) -> Result<&Rc<World>> {
        let found = self.worlds.iter().find(|(cluster, _)| cluster.as_str() == name);
        found.map(|(_, world)| world).with_context(|| format!("cluster {name} is not there"))
    }

    fn change(world: &mut Rc<World>) -> Result<&mut World> {
        Rc::get_mut(world).context("nobody looks while something changes")
    }
}

impl Subject for Engine {
    fn begin(&mut self, stage: &Stage<'_>) -> Result<Option<String>> {
        *self = Self::default();
        for member in stage.members() {
            let world = fresh(stage, member, Memory::default(), false)?;
            self.worlds.insert(member.name.clone(), Rc::new(world));
        }
        Ok(None)
    }

    fn tell(&mut self, stage: &Stage<'_>, done: &Done) -> Result<()> {
        if let Done::Left(name) = done {
            self.worlds.remove(name);
        }
        for (observer, world) in &mut self.worlds {
            let world = Self::change(world)?;
            for change in news(stage, done, observer)? {
                world.apply(change);
            }
        }
        if let Done::Joined(name) = done {
            let world = fresh(stage, stage.member(name.as_str())?, Memory::default(), false)?;
            self.worlds.insert(name.clone(), Rc::new(world));
        }
        Ok(())
    }

    fn settle(&mut self, _: &Stage<'_>) -> Result<()> {
        for world in self.worlds.values_mut() {
            drop::<Moved>(Self::change(world)?.settle());
        }
        Ok(())
    }

    fn look(&mut self, _: &Stage<'_>, observer: &str, _: &Expect) -> Result<Rc<dyn Look>> {
        Ok(Rc::clone(self.world(observer)?) as Rc<dyn Look>)
    }

    fn again(&mut self, stage: &Stage<'_>, observer: &str) -> Result<Option<Rc<dyn Look>>> {
        let memory = self.world(observer)?.memory();
        Ok(Some(Rc::new(fresh(stage, stage.member(observer)?, memory, true)?)))
    }

    /// What always holds; and what an engine that starts now makes of the same objects, told in another order: everything the
    /// same with what the running one remembers, and all but addresses without (whoever came later is not known then).
    fn broken(&mut self, stage: &Stage<'_>, observer: &str, _: &dyn Look) -> Result<Vec<String>> {
        let member = stage.member(observer)?;
        let world = Rc::clone(self.world(observer)?);
        let before = self.before.entry(observer.to_owned()).or_default();
        let mut wrong = invariants::wrong(&world, before);
        *before = invariants::addresses(&world);
        let memory = serde_json::from_value(serde_json::to_value(world.memory())?)?;
        wrong.extend(invariants::otherwise(&world, &fresh(stage, member, memory, true)?, true));
        if world.refused().is_empty() && world.refused_prefixes().is_empty() {
            let forgetful = fresh(stage, member, Memory::default(), true)?;
            wrong.extend(invariants::otherwise(&world, &forgetful, false));
        }
        Ok(wrong)
    }
}

/// What a done thing is to an observer.
fn news(stage: &Stage<'_>, done: &Done, observer: &ClusterName) -> Result<Vec<causeway_mesh::Change>> {
    match done {
        Done::Objects(cluster, keys) => {
            let member = stage.member(cluster.as_str())?;
            let changes = keys.iter().map(|key| stage.object(member, key, observer));
            Ok(changes.collect::<Result<Vec<_>>>()?.concat())
        }
        Done::Lost(cluster) => Ok(stage.lost(stage.member(cluster.as_str())?)),
        Done::Joined(cluster) => stage.whole(stage.member(cluster.as_str())?, observer),
        Done::Left(cluster) => Ok(vec![causeway_mesh::Change::Gone(cluster.clone())]),
    }
}

/// An engine that reads everything at once, from the first object to the last or the other way round.
fn fresh(stage: &Stage<'_>, observer: &Member, memory: Memory, backwards: bool) -> Result<World> {
    let mut world = World::new(observer.name.clone(), memory);
    let mut changes = vec![stage.config(observer)];
    for member in stage.members() {
        changes.extend(stage.whole(member, &observer.name)?);
    }
    if backwards {
        changes.reverse();
    }
    changes.into_iter().for_each(|change| world.apply(change));
    world.settle();
    Ok(world)
}
