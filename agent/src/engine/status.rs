use causeway_model::Path;
use causeway_model::plugin::Request;
use rustix::fs::statvfs;

use super::{Core, Engine, MENDING};
use crate::addresses::Wanted;
use crate::caller::Caller;
use crate::datapath::Driver;
use crate::error::{Error, chain};

/// What keeps a node from serving, and whom it hurts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ailment {
    /// No new pod can be attached.
    NoAdd(String),
    /// Pods of this data path, or of any, have less than they should.
    Hurts(Option<Path>, String),
}

impl Engine {
    /// CNI 1.1.0 §2, "STATUS": nothing, or the reasons for which an ADD would fail.
    pub(super) fn serve_status(&self, request: &Request, caller: &Caller) -> Result<(), Error> {
        let mut core = self.lock();
        caller.waits()?;
        let ailments = core.ailments(request);
        if ailments.is_empty() {
            return Ok(());
        }
        let hurts = ailments.iter().any(|ailment| core.is_felt(ailment));
        let reasons = ailments.into_iter().map(|(Ailment::NoAdd(why) | Ailment::Hurts(_, why))| why);
        Err(Error::Unable { hurts, reasons: reasons.collect() })
    }
}

impl Core {
    fn ailments(&mut self, request: &Request) -> Vec<Ailment> {
        let mut ailments = Vec::new();
        match (self.missing(), self.waiting.clone()) {
            (Some(missing), _) => ailments.push(Ailment::NoAdd(format!("waiting for {missing}"))),
            // There was a desired state, and what it stands on has gone: the uplink, the node's own object.
            (None, Some(lost)) => ailments.push(Ailment::Hurts(None, format!("waiting for {lost}"))),
            (None, None) => ailments.extend(self.uplink_ailment()),
        }
        if self.desired.is_some() && !self.in_force {
            let why = "the data path has not reached its desired state";
            let trouble = self.troubles.values().next().map(|trouble| format!(": {trouble}"));
            ailments.push(Ailment::Hurts(None, format!("{why}{}", trouble.unwrap_or_default())));
        }
        if let Some(trouble) = self.troubles.get(MENDING) {
            ailments.push(Ailment::Hurts(None, format!("{MENDING}: {trouble}")));
        }
        ailments.extend(self.parts.drivers.ailments(self.parts.choice.path));
        ailments.extend(self.exhaustion(request));
        ailments
    }

    /// The interface that leads to the other nodes, where it leads nowhere.
    fn uplink_ailment(&mut self) -> Option<Ailment> {
        let uplink = self.uplink.clone();
        let links = (self.parts.links)();
        let broken = |why: String| Some(Ailment::Hurts(None, why));
        match links {
            Err(error) => broken(format!("reading the interfaces of this machine: {error}")),
            Ok(links) => match links.iter().find(|link| link.name == uplink) {
                None => broken(format!("the uplink {uplink} has gone")),
                Some(link) if !link.up => broken(format!("the uplink {uplink} is down")),
                Some(_) => None,
            },
        }
    }

    /// What an ADD needs and there is no more of.
    fn exhaustion(&self, request: &Request) -> Vec<Ailment> {
        let mut none_left = Vec::new();
        if let Some(desired) = &self.desired
            && request.ipam.delegate.is_none()
            && let Err(error) = self.grant(&desired.settings, &request.ipam, &Wanted::default())
        {
            none_left.push(Ailment::NoAdd(format!("network {}: {}", request.key.network, chain(&error))));
        }
        let state = &self.parts.config.state;
        match statvfs(state) {
            Ok(space) if space.f_bavail == 0 => {
                none_left.push(Ailment::NoAdd(format!("no space is left on {}", state.display())));
            }
            Ok(_) => {}
            Err(errno) => none_left.push(Ailment::NoAdd(format!("{}: {errno}", state.display()))),
        }
        none_left
    }

    /// Whether pods that are there suffer of it.
    fn is_felt(&self, ailment: &Ailment) -> bool {
        let mut endpoints = self.roster.endpoints().values();
        match ailment {
            Ailment::NoAdd(_) => false,
            Ailment::Hurts(path, _) => {
                endpoints.any(|endpoint| path.is_none_or(|path| endpoint.path == path))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use causeway_model::plugin::{Failure, Reply, Verb};

    use super::*;
    use crate::engine::bench::{Bench, CLUSTER, request, soon, world};

    fn status(engine: &Engine) -> Option<(u32, String)> {
        match engine.answer(&request(Verb::Status, ""), None, &soon()) {
            Reply::Done => None,
            Reply::Failed(Failure { code, msg, .. }) => Some((code, msg)),
            Reply::Attached(_) => panic!("a status attaches nothing"),
        }
    }

    #[test]
    fn a_node_that_knows_nothing_yet_cannot_serve() {
        let bench = Bench::new();
        let engine = bench.start();
        let (code, msg) = status(&engine).unwrap();
        assert_eq!((code, msg.contains("manifests in a test")), (Failure::NOT_AVAILABLE, true), "{msg}");
        engine.hear(Ok(world(&[CLUSTER])));
        assert_eq!(status(&engine), None);
    }

    #[test]
    fn a_full_range_keeps_only_new_pods_out() {
        let bench = Bench::new();
        let engine = bench.ready();
        for container in ["c1", "c2", "c3", "c4"] {
            assert_eq!(status(&engine), None);
            engine.add(container);
        }
        let (code, msg) = status(&engine).unwrap();
        assert_eq!((code, msg.contains("10.70.1.0/29")), (Failure::NOT_AVAILABLE, true), "{msg}");
        engine.del("c2");
        assert_eq!(status(&engine), None);
    }

    #[test]
    fn what_hurts_pods_is_told_otherwise_once_there_are_any() {
        let bench = Bench::new();
        let engine = bench.ready();
        let why = "the fast path is not connected";
        bench.dataplane.log().ailments = vec![Ailment::Hurts(None, why.into())];
        let (code, msg) = status(&engine).unwrap();
        assert_eq!((code, msg.contains(why)), (Failure::NOT_AVAILABLE, true), "{msg}");
        engine.add("c1");
        assert_eq!(status(&engine).unwrap().0, Failure::LIMITED);
        // Of another path than the pods': nobody feels it.
        bench.dataplane.log().ailments = vec![Ailment::Hurts(Some(Path::Fast), why.into())];
        assert_eq!(status(&engine).unwrap().0, Failure::NOT_AVAILABLE);
    }

    #[test]
    fn an_uplink_that_has_gone_or_is_down_hurts() {
        let bench = Bench::new();
        let engine = bench.ready();
        engine.add("c1");
        let there = (engine.lock().parts.links)().unwrap();
        let down: Vec<_> =
            there.iter().cloned().map(|link| crate::desired::Link { up: false, ..link }).collect();
        engine.lock().parts.links = Arc::new(move || Ok(down.clone()));
        assert_eq!(status(&engine).unwrap().0, Failure::LIMITED);
        engine.lock().parts.links = Arc::new(|| Ok(Vec::new()));
        let (code, msg) = status(&engine).unwrap();
        assert_eq!((code, msg.contains("eth0")), (Failure::LIMITED, true), "{msg}");
        // The engine has noticed: what it says then is what it waits for.
        engine.hear(Ok(world(&[CLUSTER])));
        assert_eq!(status(&engine).unwrap().0, Failure::LIMITED);
        engine.lock().parts.links = Arc::new(move || Ok(there.clone()));
        engine.hear(Ok(world(&[CLUSTER])));
        assert_eq!(status(&engine), None);
    }

    #[test]
    fn a_state_that_is_not_in_force_hurts_and_names_its_trouble() {
        let bench = Bench::new();
        let engine = bench.ready();
        engine.add("c1");
        bench.dataplane.log().fail = Some("changes");
        engine.hear(Ok(world(&[CLUSTER, crate::engine::bench::WEST])));
        let (code, msg) = status(&engine).unwrap();
        assert_eq!((code, msg.contains("changes was told to fail")), (Failure::LIMITED, true), "{msg}");
    }
}
