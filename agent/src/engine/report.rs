use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::SystemTime;

use causeway_model::operator::{
    EndpointStatus, MOST_RULES, NodeStatus, PathStatus, PeerStatus, RuleStatus, SourceStatus, Status, VERSION,
};
use causeway_model::policy::RuleId;
use causeway_model::{Count, Counters, Dataplane};

use super::{Core, Engine};
use crate::datapath::Driver;
use crate::error::chain;

/// What the agent knows of itself that is not for the operator's page alone.
pub(crate) struct Report {
    /// The page.
    pub status: Status,
    /// When the source was last read.
    pub last_read: Option<SystemTime>,
}

impl Engine {
    /// One page about this node.
    pub(crate) fn report(&self) -> Report {
        let mut core = self.lock();
        let counters = core.counters();
        let last_read = core.read.map(|(_, read)| read);
        let status = Status { names: self.names.status(), ..core.status(counters) };
        Report { status, last_read }
    }

    /// The endpoints and what they carried.
    pub(crate) fn endpoints(&self) -> Vec<EndpointStatus> {
        let mut core = self.lock();
        let mut counters = core.counters().endpoints;
        let cluster = core.world.as_ref().and_then(|world| world.cluster.clone());
        let endpoints = core.roster.endpoints().values().map(|endpoint| EndpointStatus {
            endpoint: endpoint.clone(),
            cluster: cluster.clone(),
            counters: counters.remove(&endpoint.key).unwrap_or_default(),
        });
        endpoints.collect()
    }

    /// What keeps this agent from serving, if anything does.
    pub(crate) fn waiting_for(&self) -> Vec<String> {
        self.lock().waiting_for()
    }
}

impl Core {
    pub(super) fn counters(&mut self) -> Counters {
        let counters = match self.desired {
            Some(_) => self.parts.drivers.counters(),
            None => Ok(Counters::default()),
        };
        let done = counters.as_ref().map(|_| ()).map_err(|error| chain(error));
        self.note("reading counters", done);
        counters.unwrap_or_default()
    }

    fn waiting_for(&self) -> Vec<String> {
        let not_in_force = (self.desired.is_some() && !self.in_force)
            .then(|| "the data path to reach its desired state".to_owned());
        self.waiting.clone().or(not_in_force).into_iter().collect()
    }

    fn status(&self, counters: Counters) -> Status {
        let choice = &self.parts.choice;
        let mut endpoints = BTreeMap::new();
        for endpoint in self.roster.endpoints().values() {
            *endpoints.entry(endpoint.path).or_default() += 1;
        }
        let troubles = self.troubles.iter().map(|(doing, trouble)| format!("{doing}: {trouble}"));
        Status {
            version: VERSION,
            release: self.parts.release.clone(),
            node: self.node_status(),
            waiting_for: self.waiting_for(),
            path: PathStatus {
                asked: choice.asked.to_string(),
                path: choice.path,
                reason: choice.reason.clone(),
                tunnel: choice.tunnel,
            },
            peers: self.peers(&counters.paths),
            endpoints,
            tunnel_sent: counters.tunnel_sent,
            tunnel_received: counters.tunnel_received,
            rules: self.rules(counters.rules),
            audited: self.rules(self.audited.clone()),
            drops: counters.drops.into_iter().filter(|(_, count)| count.packets > 0).collect(),
            source: SourceStatus {
                what: self.parts.source.clone(),
                synchronised: self.world.is_some(),
                age_seconds: self.read.map(|(read, _)| read.elapsed().as_secs()),
                revision: self.revision(),
            },
            problems: self.problems().chain(troubles).collect(),
            services: self.served.status(),
            names: Default::default(),
            limits: self.parts.drivers.limits(),
            fastpath: self.parts.drivers.process(),
            repairs: self.repairs,
            mended: self.mended.iter().cloned().collect(),
        }
    }

    /// What is wrong with what others say.
    fn problems(&self) -> impl Iterator<Item = String> {
        self.refused.iter().cloned().chain(self.meshed.problems()).chain(self.served.problems())
    }

    /// What has denied most.
    fn rules(&self, counters: BTreeMap<RuleId, Count>) -> Vec<RuleStatus> {
        let mut rules: Vec<_> = counters.into_iter().filter(|(_, denied)| denied.packets > 0).collect();
        rules.sort_by_key(|(_, denied)| Reverse(denied.packets));
        rules.truncate(MOST_RULES);
        let of = |(rule, denied)| RuleStatus { policy: self.policy_of(&rule), rule, denied };
        rules.into_iter().map(of).collect()
    }

    /// What the source calls the state that is in force; none where another one may be.
    fn revision(&self) -> Option<String> {
        let world = self.world.as_ref().filter(|_| self.in_force && self.waiting.is_none());
        world.and_then(|world| world.revision()).map(str::to_owned)
    }

    fn node_status(&self) -> Option<NodeStatus> {
        let settings = &self.desired.as_ref()?.settings;
        Some(NodeStatus {
            id: settings.node.id.clone(),
            tunnel_address: settings.tunnel_address,
            uplink: self.uplink.clone(),
            vtep_mac: settings.node.vtep_mac,
            pod_prefixes: settings.node.pod_prefixes.clone(),
            vni: settings.overlay.vni,
            port: settings.overlay.port,
            pod_mtu: settings.pod_mtu,
        })
    }

    fn peers(&self, paths: &BTreeMap<IpAddr, u16>) -> Vec<PeerStatus> {
        let Some(desired) = &self.desired else { return Vec::new() };
        let family = desired.settings.underlay_family();
        let known = desired.peers.values().filter_map(|peer| {
            let tunnel_address = peer.tunnel_address(family)?;
            Some(PeerStatus {
                id: peer.id.clone(),
                tunnel_address,
                pod_prefixes: peer.pod_prefixes.clone(),
                path_mtu: paths.get(&tunnel_address).copied(),
            })
        });
        known.collect()
    }
}
