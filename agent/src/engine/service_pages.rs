//! The services as an operator sees them: where each is reached, who answers, how often it was asked.

use causeway_model::operator::{
    BackendState, BackendStatus, FrontendStatus, HealthStatus, ServiceQuery, ServiceStatus,
};
use causeway_model::service::{Answer, Frontend, Service, Services};
use causeway_model::why::{Outcome, Share};
use causeway_model::{Counters, Family};
use causeway_services::{Compiler, Known, ServiceName, State, known};

use super::Engine;

impl Engine {
    /// The services that are asked for.
    pub(crate) fn services(&self, query: &ServiceQuery) -> Vec<ServiceStatus> {
        let mut core = self.lock();
        let counters = core.counters();
        let Some(compiler) = core.served.compiler() else { return Vec::new() };
        let fits = |wanted: &Option<String>, has: &str| wanted.as_deref().is_none_or(|wanted| wanted == has);
        let names = compiler.world().services.keys();
        let names =
            names.filter(|name| fits(&query.namespace, &name.namespace) && fits(&query.name, &name.name));
        names.map(|name| service(compiler, name, &counters)).collect()
    }
}

fn service(compiler: &Compiler, name: &ServiceName, counters: &Counters) -> ServiceStatus {
    let tables = compiler.services();
    let told = compiler.frontends(name).filter_map(|frontend| {
        let service = tables.frontends.get(&frontend)?;
        // Where another service has it, it is that one's.
        let ours = service.id.name == name.name && service.id.namespace == name.namespace;
        ours.then(|| frontend_status(tables, frontend, service, counters))
    });
    let frontends: Vec<_> = told.collect();
    let health = compiler.health_of(name);
    ServiceStatus {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        affinity: compiler.world().services.get(name).and_then(|service| service.affinity),
        hits: frontends.iter().map(|frontend| frontend.hits).sum(),
        frontends,
        backends: backends(compiler, name),
        health: health.map(|health| HealthStatus { port: health.port, v4: health.v4, v6: health.v6 }),
    }
}

fn frontend_status(
    tables: &Services,
    frontend: Frontend,
    service: &Service,
    counters: &Counters,
) -> FrontendStatus {
    FrontendStatus {
        frontend,
        port_name: service.id.port.clone(),
        inside: outcome(tables, service.inside),
        outside: outcome(tables, service.outside),
        sources: service.sources.clone(),
        hits: counters.services.get(&frontend).copied().unwrap_or_default(),
    }
}

/// What a client gets, with the backends' numbers resolved.
pub(super) fn outcome(tables: &Services, answer: Answer) -> Outcome {
    match answer {
        Answer::Refuse => Outcome::Refused,
        Answer::Drop => Outcome::Dropped,
        Answer::Backends(id) => Outcome::Served(Share::of(
            tables.backends.get(&id).into_iter().flat_map(|backends| backends.shares()),
        )),
    }
}

/// Everybody behind a service, whatever state it is in.
fn backends(compiler: &Compiler, name: &ServiceName) -> Vec<BackendStatus> {
    let world = compiler.world();
    let Some(service) = world.services.get(name) else { return Vec::new() };
    let of_port = |port| {
        let families = service.cluster_ips.iter().map(|address| Family::of(*address));
        families.flat_map(move |family| known(world, name, port, family))
    };
    let all = service.ports.iter().flat_map(|port| of_port(port).map(move |known| (port, known)));
    all.map(|(port, Known { backend, state, local, endpoint })| BackendStatus {
        backend,
        port_name: port.name.clone(),
        state: match state {
            State::Ready => BackendState::Ready,
            State::Leaving => BackendState::Leaving,
            State::Serving => BackendState::Serving,
            State::Down => BackendState::Down,
        },
        node: endpoint.node.clone(),
        local,
    })
    .collect()
}
