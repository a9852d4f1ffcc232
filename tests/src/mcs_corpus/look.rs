//! What a cluster shows to who looks, whatever settles it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::Result;
use causeway_mesh::dns::{self, Kind, Reply};
use causeway_mesh::{Exported, Import, Refusal, ServiceName, World};
use causeway_model::ClusterName;
use ipnetwork::IpNetwork;

use super::expect::Local;
use super::format::Name;

/// A cluster as it is looked at.
pub(super) trait Look {
    /// An import, with the backends that serve it.
    fn import(&self, name: &ServiceName) -> Option<&Import>;
    /// What became of a cluster's export, where this one tells of it.
    fn export(&self, name: &ServiceName, by: &ClusterName) -> Option<&Exported>;
    /// Prefixes of the addresses of imports.
    fn clusterset(&self) -> &[IpNetwork];
    /// What its DNS server says.
    fn answer(&self, question: &str, kind: Kind) -> Result<Reply>;
    /// Why clusters are refused, in codes.
    fn refused(&self) -> BTreeMap<String, BTreeSet<String>>;
    /// What its own prefixes of imports overlap, where they are refused: `PREFIX of CLUSTER`.
    fn refused_prefixes(&self) -> BTreeSet<String>;
    /// The addresses of all its imports.
    fn addresses(&self) -> BTreeMap<ServiceName, Vec<IpAddr>>;
    /// What is wrong with a Service of its own that others export, too.
    fn wrong_of_own(&self, name: &Name, local: &Local) -> Vec<String>;
}

impl Look for World {
    fn import(&self, name: &ServiceName) -> Option<&Import> {
        self.imports().get(name).map(|import| &**import)
    }

    fn export(&self, name: &ServiceName, by: &ClusterName) -> Option<&Exported> {
        self.exports().get(name)?.get(by)
    }

    fn clusterset(&self) -> &[IpNetwork] {
        Self::clusterset(self)
    }

    fn answer(&self, question: &str, kind: Kind) -> Result<Reply> {
        Ok(dns::answer(self, question, kind))
    }

    fn refused(&self) -> BTreeMap<String, BTreeSet<String>> {
        let codes = |why: &[Refusal]| why.iter().map(Refusal::code).collect();
        Self::refused(self).iter().map(|(name, why)| (name.to_string(), codes(why))).collect()
    }

    fn refused_prefixes(&self) -> BTreeSet<String> {
        Self::refused_prefixes(self).iter().map(|why| format!("{} of {}", why.with, why.of)).collect()
    }

    fn addresses(&self) -> BTreeMap<ServiceName, Vec<IpAddr>> {
        self.imports().iter().map(|(name, import)| (name.clone(), import.addresses.clone())).collect()
    }

    /// It is none of the mesh's business: no import has its addresses, and no name of it is answered.
    fn wrong_of_own(&self, name: &Name, local: &Local) -> Vec<String> {
        let taken = local.addresses.iter().filter_map(|address: &IpAddr| self.holder(*address));
        let mut wrong: Vec<_> = taken.map(|holder| format!("an address of it is {holder}'s")).collect();
        wrong.extend(answered_as_own(self, name));
        wrong
    }
}

/// What is said of the name that a Service has in its own cluster, which is none of the mesh's business.
pub(super) fn answered_as_own(look: &dyn Look, name: &Name) -> Option<String> {
    let question = format!("{}.{}.svc.cluster.local", name.name, name.namespace);
    match look.answer(&question, Kind::A) {
        Ok(Reply::NotOurs) => None,
        other => Some(format!("{question}: {other:?}")),
    }
}
