use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use causeway_model::plugin::{Remembered, Request};
use causeway_model::{Dataplane, Endpoint};

use super::{Core, Engine};
use crate::caller::Caller;
use crate::error::Error;
use crate::store::Netns;

impl Engine {
    /// CNI 1.1.0 §2, "CHECK".
    pub(super) fn serve_check(
        &self,
        request: &Request,
        netns: Option<OwnedFd>,
        caller: &Caller,
    ) -> Result<(), Error> {
        let mut core = self.lock();
        caller.waits()?;
        let (netns, place) = core.parts.machine.pod_namespace(&request.netns, netns)?;
        core.check(request, netns.as_fd(), &place)
    }
}

impl Core {
    /// Everything that is wrong with an attachment, as one error. What only was remembered is held against what is there.
    fn check(&mut self, request: &Request, netns: BorrowedFd<'_>, place: &Netns) -> Result<(), Error> {
        if let Some(missing) = self.missing() {
            return Err(Error::NotReady(vec![missing]));
        }
        let Some(record) = self.parts.store.get(&request.key) else {
            return Err(Error::Unknown(request.key.clone()));
        };
        let mut endpoint = record.endpoint.clone();
        let mut wrong = Vec::new();
        if (record.netns.device, record.netns.inode) != (place.device, place.inode) {
            wrong.push(format!(
                "CNI_NETNS {} is another namespace than the one it was made in",
                request.netns
            ));
        }
        for address in &endpoint.addresses {
            if self.parts.store.leases().owner(*address) != Some(&endpoint.key) {
                wrong.push(format!("it has no lease of {address}"));
            }
        }
        if let Some(remembered) = &request.remembered {
            wrong.extend(differences(remembered, &endpoint));
            // A later plugin of the chain may have made it smaller, and says so in the result.
            let smaller = remembered.mtu.and_then(|mtu| u16::try_from(mtu).ok());
            endpoint.mtu = smaller.map_or(endpoint.mtu, |mtu| mtu.min(endpoint.mtu));
        }
        if !self.in_force {
            wrong.push("the data path has not reached its desired state".to_owned());
        }
        wrong.extend(self.parts.drivers.check(&endpoint, netns)?);
        if wrong.is_empty() { Ok(()) } else { Err(Error::NotAsMade { key: endpoint.key, wrong }) }
    }
}

/// What the runtime remembers otherwise than it is.
fn differences(remembered: &Remembered, endpoint: &Endpoint) -> Vec<String> {
    let interface = &endpoint.key.interface;
    let mut wrong = Vec::new();
    if let Some(mac) = remembered.mac.filter(|mac| *mac != endpoint.mac) {
        wrong.push(format!("prevResult gives {interface} the MAC {mac}, and it was given {}", endpoint.mac));
    }
    if let Some(mtu) = remembered.mtu.filter(|mtu| *mtu > u32::from(endpoint.mtu)) {
        wrong.push(format!(
            "prevResult gives {interface} an MTU of {mtu}, and it can have {} at most",
            endpoint.mtu
        ));
    }
    let known: Vec<_> = remembered.addresses.iter().map(ipnetwork::IpNetwork::ip).collect();
    for address in known.iter().filter(|address| !endpoint.addresses.contains(address)) {
        wrong.push(format!("prevResult gives {interface} the address {address}, which it was not given"));
    }
    for address in endpoint.addresses.iter().filter(|address| !known.contains(address)) {
        wrong.push(format!("prevResult lacks the address {address} of {interface}"));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use causeway_model::plugin::{Attachment, Failure, Remembered, Reply, Request, Verb};

    use crate::engine::Engine;
    use crate::engine::bench::{Bench, request};

    fn remembered(attachment: &Attachment) -> Remembered {
        Remembered {
            mac: Some(attachment.mac),
            mtu: Some(attachment.mtu.into()),
            addresses: attachment.addresses.iter().map(|one| one.address).collect(),
        }
    }

    /// The failure of a check whose runtime remembers what `change` makes of the truth; none when nothing is wrong.
    fn check(
        engine: &Engine,
        truth: &Attachment,
        change: impl FnOnce(&mut Remembered),
    ) -> Option<(u32, String)> {
        let mut remembered = remembered(truth);
        change(&mut remembered);
        let request = Request { remembered: Some(remembered), ..request(Verb::Check, "c1") };
        match engine.ask(&request) {
            Reply::Done => None,
            Reply::Failed(Failure { code, msg, .. }) => Some((code, msg)),
            Reply::Attached(_) => panic!("a check attaches nothing"),
        }
    }

    #[test]
    fn a_check_asks_the_data_path_and_tells_everything_it_finds() {
        let bench = Bench::new();
        let engine = bench.ready();
        let made = engine.try_add("c1").unwrap();
        bench.dataplane.calls();
        assert_eq!(check(&engine, &made, |_| {}), None);
        assert_eq!(bench.dataplane.calls(), ["check c1 mtu 1450"]);
        bench.dataplane.log().wrong = vec!["link x is down".into(), "route y is missing".into()];
        let (code, msg) = check(&engine, &made, |_| {}).unwrap();
        assert_eq!(code, Failure::NOT_AS_MADE);
        assert_eq!(msg, "pods/c1/eth0 is not as it was made: link x is down; route y is missing");
    }

    #[test]
    fn what_the_runtime_remembers_is_held_against_what_was_given() {
        let bench = Bench::new();
        let engine = bench.ready();
        let made = engine.try_add("c1").unwrap();
        let wrong = |change: fn(&mut Remembered)| check(&engine, &made, change).unwrap().1;
        assert!(wrong(|r| r.mac = Some("02:00:00:00:00:09".parse().unwrap())).contains("02:00:00:00:00:09"));
        assert!(wrong(|r| r.mtu = Some(9000)).contains("9000"));
        assert!(wrong(|r| r.addresses.truncate(1)).contains("lacks the address fd70:0:0:1::3"));
        assert!(wrong(|r| r.addresses[0] = "10.70.1.9/32".parse().unwrap()).contains("10.70.1.9"));
        // What a result need not say is not missed; a smaller MTU is a later plugin's.
        assert_eq!(check(&engine, &made, |r| (r.mac, r.mtu) = (None, None)), None);
        bench.dataplane.calls();
        assert_eq!(check(&engine, &made, |r| r.mtu = Some(1300)), None);
        assert_eq!(bench.dataplane.calls(), ["check c1 mtu 1300"]);
    }

    #[test]
    fn what_was_never_attached_is_unknown_and_what_lost_its_lease_is_so_too() {
        let bench = Bench::new();
        let engine = bench.ready();
        let made = engine.try_add("c2").unwrap();
        let (code, msg) = check(&engine, &made, |_| {}).unwrap();
        assert_eq!((code, msg.contains("lease")), (Failure::UNKNOWN_CONTAINER, true), "{msg}");
    }

    #[test]
    fn another_namespace_and_a_state_that_is_not_in_force_are_named() {
        let bench = Bench::new();
        let engine = bench.ready();
        let made = engine.try_add("c1").unwrap();
        engine.lock().in_force = false;
        assert!(check(&engine, &made, |_| {}).unwrap().1.contains("desired state"));
        drop(engine);
        let engine = bench.start();
        assert_eq!(check(&engine, &made, |_| {}).unwrap().0, Failure::TRY_AGAIN, "nothing is known yet");
    }
}
