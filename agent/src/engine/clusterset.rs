//! Services across clusters as an operator sees them, and as a question of why meets them.

use std::net::IpAddr;

use causeway_mesh::dns::{self, Data, Kind, Reply, ZONE};
use causeway_mesh::{Candidate, Choice, Condition, Import, ServiceName, State, World};
use causeway_model::clusterset::{
    Across, Clusterset, ConditionStatus, ConflictStatus, ExportStatus, ImportPortStatus, ImportStatus,
    Refused, RemoteBackend,
};
use causeway_model::operator::ServiceQuery;
use causeway_model::policy::Traffic;
use causeway_model::service::{At, Frontend};
use causeway_model::{Counters, Family};

use super::{Core, Engine};

impl Engine {
    /// The services across clusters that are asked for.
    pub(crate) fn clusterset(&self, query: &ServiceQuery) -> Clusterset {
        let mut core = self.lock();
        let counters = core.counters();
        let mesh = core.meshed.mesh.clone();
        drop(core);
        mesh.read(|mesh| page(mesh, query, &counters)).unwrap_or_default()
    }
}

fn page(mesh: &World, query: &ServiceQuery, counters: &Counters) -> Clusterset {
    let fits = |wanted: &Option<String>, has: &str| wanted.as_deref().is_none_or(|wanted| wanted == has);
    let wanted =
        |name: &ServiceName| fits(&query.namespace, &name.namespace) && fits(&query.name, &name.name);
    let exports = mesh.exports().iter().filter(|(name, _)| wanted(name)).flat_map(|(name, exports)| {
        exports.iter().map(|(cluster, exported)| ExportStatus {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            cluster: cluster.clone(),
            conditions: exported.conditions.iter().map(condition).collect(),
        })
    });
    let imports = mesh.imports().iter().filter(|(name, _)| wanted(name));
    let refused = mesh.refused().iter().map(|(cluster, refusals)| Refused {
        cluster: cluster.clone(),
        codes: refusals.iter().map(causeway_mesh::Refusal::code).collect(),
        reasons: refusals.iter().map(ToString::to_string).collect(),
    });
    Clusterset {
        own: Some(mesh.own().clone()),
        exports: exports.collect(),
        imports: imports.map(|(name, import)| import_status(name, import, counters)).collect(),
        refused: refused.collect(),
        lost: mesh.lost().map(|(cluster, age)| (cluster.clone(), age.as_secs())).collect(),
    }
}

fn import_status(name: &ServiceName, import: &Import, counters: &Counters) -> ImportStatus {
    let port = |((family, index), candidates): (&(Family, usize), &Vec<Candidate>)| {
        let address = import.addresses.iter().find(|address| Family::of(**address) == *family)?;
        let port = import.ports.get(*index)?;
        let frontend = Frontend { at: At::Address(*address), protocol: port.protocol, port: port.number };
        Some(ImportPortStatus {
            name: port.name.clone(),
            frontend,
            backends: candidates.iter().map(backend).collect(),
            hits: counters.services.get(&frontend).copied().unwrap_or_default(),
        })
    };
    let ports: Vec<_> = import.backends.iter().filter_map(port).collect();
    let conflicts = import
        .conflicts
        .iter()
        .map(|conflict| ConflictStatus { about: conflict.about.to_string(), said: conflict.said.clone() });
    ImportStatus {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        headless: import.headless,
        addresses: import.addresses.clone(),
        clusters: import.clusters.clone(),
        ready: condition(&import.ready),
        conflicts: conflicts.collect(),
        choice: choice(&import.choice),
        hits: ports.iter().map(|port| port.hits).sum(),
        ports,
        left_out: import.left_out.iter().cloned().collect(),
    }
}

fn condition(condition: &Condition) -> ConditionStatus {
    ConditionStatus {
        kind: condition.kind.to_owned(),
        status: condition.status.to_string(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    }
}

fn backend(candidate: &Candidate) -> RemoteBackend {
    RemoteBackend {
        cluster: candidate.cluster.clone(),
        backend: candidate.backend,
        ready: candidate.state == State::Ready,
        tier: candidate.tier.map(|tier| tier + 1),
        weight: candidate.weight,
    }
}

fn choice(choice: &Choice) -> String {
    let affinity = choice.affinity_by.as_ref().map(|word| format!("affinity {} ({word})", choice.affinity));
    let prefer = choice.prefer.as_ref().zip(choice.prefer_by.as_ref());
    let prefer = prefer.map(|(prefer, word)| format!("prefer {prefer} ({word})"));
    let said: Vec<_> = affinity.into_iter().chain(prefer).collect();
    if said.is_empty() { "all alike".to_owned() } else { said.join(", ") }
}

impl Core {
    /// The addresses of a name under `clusterset.local`; why it has none, at the first thing that is missing.
    pub(super) fn addresses_of_name(&self, name: &str) -> Option<Result<Vec<IpAddr>, String>> {
        let name = name.trim_end_matches('.');
        let inside = name.strip_suffix(ZONE)?.strip_suffix('.')?;
        let found = self.meshed.mesh.read(|mesh| {
            let kinds = [Kind::A, Kind::Aaaa].into_iter();
            let addresses: Vec<_> = kinds.flat_map(|kind| answers(mesh, name, kind)).collect();
            if addresses.is_empty() {
                Err(format!("{name}: {}", missing(mesh, inside)))
            } else {
                Ok(addresses)
            }
        });
        Some(found.unwrap_or_else(|| Err(format!("{name}: this cluster is not known yet"))))
    }

    /// The import that an address is of, and who serves it there.
    pub(super) fn across(&self, to: IpAddr, traffic: Traffic) -> Option<Across> {
        self.meshed.mesh.read(|mesh| across(mesh, to, traffic)).flatten()
    }

    /// What a connection to an import is about where nothing is said of it: its first port.
    pub(super) fn first_port(&self, to: IpAddr) -> Option<Traffic> {
        let port = |mesh: &World| {
            let port = mesh.imports().get(mesh.holder(to)?)?.ports.first().cloned()?;
            Some(Traffic::To(port.protocol, port.number))
        };
        self.meshed.mesh.read(port).flatten()
    }
}

fn answers(mesh: &World, name: &str, kind: Kind) -> Vec<IpAddr> {
    let Reply::Answer { answers, .. } = dns::answer(mesh, name, kind) else { return Vec::new() };
    let address = |record: dns::Record| match record.data {
        Data::A(address) => Some(address.into()),
        Data::Aaaa(address) => Some(address.into()),
        _ => None,
    };
    answers.into_iter().filter_map(address).collect()
}

/// What keeps a name from having addresses.
fn missing(mesh: &World, inside: &str) -> String {
    let labels: Vec<_> = inside.split('.').collect();
    let [below @ .., service, namespace, "svc"] = &labels[..] else {
        return format!("names are NAME.NAMESPACE.svc.{ZONE}");
    };
    let service = ServiceName { namespace: (*namespace).to_owned(), name: (*service).to_owned() };
    if let Some(import) = mesh.imports().get(&service) {
        return match import.addresses.is_empty() && !import.headless {
            true => format!("{service} is imported and has no address: {}", import.ready.message),
            false if below.is_empty() => format!("{service} is imported, and no pod of it is ready"),
            false => format!("{service} is imported, and has no such name below it"),
        };
    }
    let Some(exports) = mesh.exports().get(&service) else {
        return format!("no cluster exports {service}");
    };
    let good =
        |condition: &&Condition| condition.kind != "Conflict" && condition.status.to_string() != "True";
    let bad: Vec<_> = exports
        .iter()
        .filter_map(|(cluster, exported)| {
            let condition = exported.conditions.iter().find(good)?;
            Some(format!(
                "{cluster}'s export: {} {}: {}",
                condition.kind, condition.status, condition.message
            ))
        })
        .collect();
    match bad.len() == exports.len() {
        true => bad.join("; "),
        false => {
            format!("{service} is exported, and namespace {namespace} is not imported here or not there")
        }
    }
}

fn across(mesh: &World, to: IpAddr, traffic: Traffic) -> Option<Across> {
    let name = mesh.holder(to)?;
    let import = mesh.imports().get(name)?;
    let asked = |index: &usize| {
        let port = import.ports.get(*index);
        port.is_some_and(|port| traffic == Traffic::To(port.protocol, port.number))
    };
    let serving =
        import.backends.iter().filter(|((family, index), _)| *family == Family::of(to) && asked(index));
    Some(Across {
        name: format!("{}.{}.svc.{ZONE}", name.name, name.namespace),
        clusters: import.clusters.clone(),
        choice: choice(&import.choice),
        backends: serving.flat_map(|(_, candidates)| candidates).map(backend).collect(),
    })
}
