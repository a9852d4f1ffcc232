use std::collections::BTreeSet;

use causeway_model::plugin::Request;

use super::Engine;
use crate::caller::Caller;
use crate::error::Error;

impl Engine {
    /// CNI 1.1.0 §2, "GC": releases what the list does not name, of this network alone. Goes on past failures and tells
    /// all of them.
    pub(super) fn serve_gc(&self, request: &Request, caller: &Caller) -> Result<(), Error> {
        let Some(valid) = &request.valid else {
            let network = &request.key.network;
            return Err(Error::BadRequest(format!(
                "GC of network {network} without a list: nothing is released"
            )));
        };
        let valid: BTreeSet<(&str, &str)> =
            valid.iter().map(|one| (one.container.as_str(), one.interface.as_str())).collect();
        let mut core = self.lock();
        caller.waits()?;
        core.replay_tombstones();
        let stale: Vec<_> = core
            .parts
            .store
            .records()
            .keys()
            .filter(|key| key.network == request.key.network)
            .filter(|key| !valid.contains(&(key.container.as_str(), key.interface.as_str())))
            .cloned()
            .collect();
        let mut failures = Vec::new();
        for key in stale {
            tracing::info!("{key} is not among the valid attachments");
            failures.extend(core.release(&key).err());
        }
        match failures.len() {
            0 => Ok(()),
            1 => Err(failures.remove(0)),
            _ => Err(Error::Several(failures)),
        }
    }
}

#[cfg(test)]
mod tests {
    use causeway_model::EndpointKey;
    use causeway_model::plugin::{Failure, Reply, Request, ValidAttachment, Verb};

    use crate::engine::Engine;
    use crate::engine::bench::{Bench, key, request, soon};

    fn gc(engine: &Engine, network: &str, valid: Option<&[(&str, &str)]>) -> Result<(), Failure> {
        let one = |(container, interface): &(&str, &str)| ValidAttachment {
            container: (*container).into(),
            interface: (*interface).into(),
        };
        let nobody =
            EndpointKey { network: network.into(), container: String::new(), interface: String::new() };
        let valid = valid.map(|valid| valid.iter().map(one).collect());
        match engine.answer(&Request { key: nobody, valid, ..request(Verb::Gc, "") }, None, &soon()) {
            Reply::Done => Ok(()),
            Reply::Failed(failure) => Err(failure),
            Reply::Attached(_) => panic!("a collection attaches nothing"),
        }
    }

    #[test]
    fn what_is_not_in_the_list_goes_by_container_and_interface() {
        let bench = Bench::new();
        let engine = bench.ready();
        for container in ["c1", "c2", "c3"] {
            engine.add(container);
        }
        let second = EndpointKey { interface: "net1".into(), ..key("c1") };
        assert!(matches!(
            engine.ask(&Request { key: second, ..request(Verb::Add, "c1") }),
            Reply::Attached(_)
        ));
        gc(&engine, "pods", Some(&[("c1", "eth0"), ("c2", "eth0"), ("ghost", "eth0")])).unwrap();
        assert_eq!(engine.kept(), ["c1", "c2"]);
        assert_eq!(engine.endpoint("c1").key.interface, "eth0");
    }

    #[test]
    fn other_networks_are_none_of_its_business() {
        let bench = Bench::new();
        let engine = bench.ready();
        engine.add("c1");
        gc(&engine, "storage", Some(&[])).unwrap();
        assert_eq!(engine.kept(), ["c1"]);
        gc(&engine, "pods", Some(&[])).unwrap();
        assert_eq!(engine.kept(), Vec::<String>::new());
    }

    #[test]
    fn an_absent_list_is_not_an_empty_one() {
        let bench = Bench::new();
        let engine = bench.ready();
        engine.add("c1");
        assert_eq!(gc(&engine, "pods", None).unwrap_err().code, Failure::INVALID_CONFIG);
        assert_eq!(engine.kept(), ["c1"]);
    }

    #[test]
    fn a_failure_is_told_and_stops_no_other_release() {
        let bench = Bench::new();
        let engine = bench.ready();
        engine.add("c1");
        engine.add("c2");
        bench.dataplane.log().fail = Some("detach");
        let failure = gc(&engine, "pods", Some(&[])).unwrap_err();
        assert_eq!(failure.msg.matches("detach was told to fail").count(), 2, "{}", failure.msg);
        assert_eq!(engine.kept(), Vec::<String>::new());
    }
}
