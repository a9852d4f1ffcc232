//! What holds after every step of every case, whatever is expected.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use causeway_mesh::dns::{Data, Kind, Reply};
use causeway_mesh::{Import, ServiceName, World};
use causeway_model::Family;

use super::look::Look;

/// Addresses that an observer's imports had after the last step.
pub type Before = BTreeMap<ServiceName, Vec<IpAddr>>;

/// What is wrong in one observer's world.
pub fn wrong(world: &World, before: &Before) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut holders: BTreeMap<IpAddr, &ServiceName> = BTreeMap::new();
    for (name, import) in world.imports() {
        wrong.extend(of_import(import).into_iter().map(|said| format!("{name}: {said}")));
        for address in &import.addresses {
            if let Some(other) = holders.insert(*address, name) {
                wrong.push(format!("ip-stable: {address} is {name}'s and {other}'s"));
            }
        }
        for address in before.get(name).into_iter().flatten() {
            let of_family = |other: &&IpAddr| Family::of(**other) == Family::of(*address);
            let now = import.addresses.iter().find(of_family);
            if now.is_some_and(|now| now != address) {
                wrong.push(format!("ip-stable: {name} had {address} and has {now:?}"));
            }
        }
    }
    wrong.extend(version(world));
    wrong
}

/// The version that names are of, if it is not told.
pub fn version(look: &dyn Look) -> Option<String> {
    let version = look.answer("dns-version.clusterset.local.", Kind::Txt);
    let is = |reply: &Reply| matches!(reply, Reply::Answer { answers, .. } if answers.len() == 1 && answers[0].data == Data::Txt("1.0.0".to_owned()));
    (!version.as_ref().is_ok_and(is)).then(|| format!("dns-version: {version:?}"))
}

fn of_import(import: &Import) -> Vec<String> {
    let mut wrong = Vec::new();
    let families: Vec<_> = import.addresses.iter().map(|address| Family::of(*address)).collect();
    let distinct: BTreeSet<_> = import.families.iter().map(|family| *family == Family::V4).collect();
    if distinct.len() != import.families.len() {
        wrong.push(format!("family-order: {:?}", import.families));
    }
    if import.headless && !import.addresses.is_empty() || !import.headless && families != import.families {
        wrong.push(format!("family-order: {:?} for {:?}", import.addresses, import.families));
    }
    for (place, candidates) in &import.backends {
        let distinct: BTreeSet<_> = candidates.iter().map(|it| it.backend).collect();
        if distinct.len() != candidates.len() {
            wrong.push(format!("no-duplicates: at {place:?} of {:?}", import.ports));
        }
    }
    wrong
}

/// What the same objects are to an engine that starts now, and is not to the one that runs.
pub fn otherwise(running: &World, fresh: &World, with_addresses: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let plain = |import: &Import| {
        let mut import = import.clone();
        if !with_addresses {
            import.addresses.clear();
        }
        import
    };
    let imports = |world: &World| -> BTreeMap<_, _> {
        world.imports().iter().map(|(name, import)| (name.clone(), plain(import))).collect()
    };
    if imports(running) != imports(fresh) {
        wrong.push(format!("determinism: {:?} against {:?}", imports(running), imports(fresh)));
    }
    if running.exports() != fresh.exports() {
        wrong.push(format!("determinism: {:?} against {:?}", running.exports(), fresh.exports()));
    }
    if running.refused() != fresh.refused() || running.refused_prefixes() != fresh.refused_prefixes() {
        wrong.push(format!("determinism: {:?} against {:?}", running.refused(), fresh.refused()));
    }
    wrong
}

/// The addresses that imports have now.
pub fn addresses(world: &World) -> Before {
    world.imports().iter().map(|(name, import)| (name.clone(), import.addresses.clone())).collect()
}
