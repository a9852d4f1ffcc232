use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use causeway_kernel_fallback::pod;
use causeway_model::fastpath::PortName;
use causeway_model::{DataplaneError, Endpoint, EndpointKey, Path};

use super::session::OrderError;
use super::{FastDataplane, Session, State, lock};
use crate::engine::Ailment;
use crate::tap;

impl FastDataplane {
    /// What keeps the fast path from serving. Every pod of its node suffers, for it holds the tunnel.
    pub(crate) fn ailments(&self, new: Path) -> Vec<Ailment> {
        let mut state = lock(&self.state);
        let hurts = |why: String| vec![Ailment::Hurts(None, why)];
        if let Some(why) = state.absence() {
            return hurts(why);
        }
        let counted = state.session.as_mut().map(Session::count);
        let tally = match counted.and_then(|counted| state.settle("counting", counted)) {
            None => return hurts("the fast path does not answer".to_owned()),
            Some(tally) => tally,
        };
        let mut ailments = Vec::new();
        if let (all @ 1.., 0) = tally.buffers {
            ailments.push(Ailment::Hurts(
                None,
                format!("the fast path has none of its {all} packet buffers left"),
            ));
        }
        let places = state.session.as_ref().and_then(|session| session.hello().places);
        if let Some(places) = places.filter(|places| new == Path::Fast && tally.endpoints.len() >= *places) {
            ailments.push(Ailment::NoAdd(format!("the fast path carries {places} endpoints, and no more")));
        }
        state.last = tally;
        ailments
    }

    /// What is wrong with a pod of the fast path: inside the pod, and at the port that serves it.
    pub(super) fn examine(
        &self,
        endpoint: &Endpoint,
        netns: BorrowedFd<'_>,
    ) -> Result<Vec<String>, DataplaneError> {
        let mut wrong = pod::check(netns, &endpoint.key.interface, endpoint)?;
        wrong.extend(lock(&self.state).examine_port(&endpoint.key, netns));
        Ok(wrong)
    }
}

impl State {
    /// Why nobody carries packets at the moment, if nobody does.
    fn absence(&self) -> Option<String> {
        match self.session.as_ref().filter(|session| session.is_open()).map(Session::hello) {
            None => Some("the fast path is not connected".to_owned()),
            Some(hello) => hello.unable.as_ref().map(|why| format!("the fast path cannot run: {why}")),
        }
    }

    /// Asks the fast path itself: for the port's descriptors, which must be those of the pod's link, and for what it counts.
    fn examine_port(&mut self, key: &EndpointKey, netns: BorrowedFd<'_>) -> Option<String> {
        if let Some(why) = self.absence() {
            return Some(why);
        }
        let port = PortName::Endpoint(key.clone());
        if let Some(trouble) = self.trouble.get(&port) {
            return Some(format!("its port of the fast path: {trouble}"));
        }
        let session = self.session.as_mut()?;
        let asked = session.show(port).and_then(|(_, queues)| Ok((queues, session.count()?)));
        match asked {
            Err(OrderError::Refused(text)) => Some(format!("its port of the fast path: {text}")),
            Err(error) => {
                self.settle::<()>("checking a port", Err(error));
                Some("its port of the fast path does not answer".to_owned())
            }
            Ok((queues, tally)) => {
                let known = tally.endpoints.iter().any(|(other, _)| other == key);
                let unknown = || "the fast path does not know it, and lets nothing through".to_owned();
                astray(&queues, &key.interface, netns).or_else(|| (!known).then(unknown))
            }
        }
    }
}

/// Whether a queue leads to another device than the pod's link.
fn astray(queues: &[OwnedFd], interface: &str, netns: BorrowedFd<'_>) -> Option<String> {
    let leads_there = |queue: &OwnedFd| {
        tap::place(queue.as_fd()).is_ok_and(|place| place.name == interface && tap::is_in(&place, netns))
    };
    let astray = queues.is_empty() || !queues.iter().all(leads_there);
    astray.then(|| {
        format!("the queues of its port of the fast path are not those of link {interface} in the pod")
    })
}
