//! What fast paths have counted, one after the other.

use std::collections::BTreeMap;

use causeway_model::fastpath::{Tally, WorkerDrops};
use causeway_model::policy::RuleId;
use causeway_model::service::Frontend;
use causeway_model::{Count, Counters, DropReason};

/// Adds what a fast path counted to what those before it did.
pub(super) fn add(sum: &mut Tally, more: &Tally) {
    sum.tunnel_sent += more.tunnel_sent;
    sum.tunnel_received += more.tunnel_received;
    sum.drops.extend(&more.drops);
    sum.endpoints.extend(more.endpoints.iter().cloned());
    let rules = sum.rules.iter().chain(&more.rules);
    let rules: BTreeMap<RuleId, Count> = rules.fold(BTreeMap::new(), |mut rules, (id, count)| {
        *rules.entry(id.clone()).or_default() += *count;
        rules
    });
    sum.rules = rules.into_iter().collect();
    let services = sum.services.iter().chain(&more.services);
    let services: BTreeMap<Frontend, u64> = services.fold(BTreeMap::new(), |mut services, (at, begun)| {
        *services.entry(*at).or_default() += begun;
        services
    });
    sum.services = services.into_iter().collect();
    (sum.buffers, sum.workers) = (more.buffers, more.workers.clone());
    sum.connections = more.connections;
    sum.paths.clone_from(&more.paths);
    // One line a reason and worker, however many fast paths there were.
    let drops: BTreeMap<(u16, DropReason), Count> =
        sum.drops.iter().fold(BTreeMap::new(), |mut drops, line| {
            *drops.entry((line.worker, line.reason)).or_default() += line.count;
            drops
        });
    sum.drops =
        drops.into_iter().map(|((worker, reason), count)| WorkerDrops { worker, reason, count }).collect();
}

/// The same as a data path tells it.
pub(super) fn counters(tally: &Tally) -> Counters {
    let mut counters = Counters {
        tunnel_sent: tally.tunnel_sent,
        tunnel_received: tally.tunnel_received,
        rules: tally.rules.iter().cloned().collect(),
        services: tally.services.iter().copied().collect(),
        paths: tally.paths.iter().copied().collect(),
        ..Counters::default()
    };
    for line in &tally.drops {
        *counters.drops.entry(line.reason).or_default() += line.count;
    }
    for (key, passed) in &tally.endpoints {
        let entry = counters.endpoints.entry(key.clone()).or_default();
        entry.from_pod += passed.from_pod;
        entry.to_pod += passed.to_pod;
        for (reason, count) in &passed.drops {
            *entry.drops.entry(*reason).or_default() += *count;
        }
    }
    counters
}
