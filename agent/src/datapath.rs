//! The choice of data path, and the drivers behind it.

use std::os::fd::BorrowedFd;

use causeway_kernel_fallback::{KernelDataplane, Sight, Survey};
use causeway_model::connection::{Filter, Listing};
use causeway_model::flow::Events;
use causeway_model::operator::FastpathStatus;
use causeway_model::{
    Counters, Dataplane, DataplaneError, Endpoint, EndpointKey, Path, PortKind, TunnelOwner, Update,
};

use crate::config::PathWish;
use crate::engine::Ailment;
use crate::fast::FastDataplane;
use crate::store::Netns;

/// Which data path this node has and why. Made once: who holds the tunnel does not change while the agent runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PathChoice {
    /// What was asked for.
    pub asked: PathWish,
    /// What new endpoints get whose pods do not say.
    pub path: Path,
    /// Why.
    pub reason: String,
    /// Who holds the tunnel.
    pub tunnel: TunnelOwner,
}

impl PathChoice {
    /// Chooses; `fast` says why there is no fast path, where there is none. What is missing is never fatal: a node that cannot be
    /// fast serves all the same.
    pub(crate) fn of(asked: PathWish, default: PathWish, fast: Result<(), &str>) -> Self {
        let (tunnel, node) = match (asked, fast) {
            (PathWish::Kernel, _) => (TunnelOwner::Kernel, "the kernel path was asked for".to_owned()),
            (PathWish::Auto, Err(why)) => (TunnelOwner::Kernel, format!("no fast path: {why}")),
            (PathWish::Fast, Err(why)) => (TunnelOwner::Kernel, format!("asked for fast, but {why}")),
            (PathWish::Auto, Ok(())) => (TunnelOwner::FastPath, "the node has a fast path".to_owned()),
            (PathWish::Fast, Ok(())) => (TunnelOwner::FastPath, "the fast path was asked for".to_owned()),
        };
        let mut choice = Self { asked, path: Path::Kernel, reason: node, tunnel };
        match (choice.tunnel, default) {
            (TunnelOwner::Kernel, _) => {}
            (TunnelOwner::FastPath, PathWish::Auto | PathWish::Fast) => choice.path = Path::Fast,
            (TunnelOwner::FastPath, PathWish::Kernel) => {
                choice.reason = format!("{}, but default_path is kernel", choice.reason);
            }
        }
        choice
    }

    /// What one pod gets, and why. A wish that cannot be read is no wish, and said to be.
    pub(crate) fn for_pod(&self, wish: Result<Option<PathWish>, String>) -> (Path, String) {
        const ANNOTATION: &str = "annotation causeway.dev/path";
        match wish {
            Ok(None | Some(PathWish::Auto)) => (self.path, self.reason.clone()),
            Ok(Some(PathWish::Kernel)) => (Path::Kernel, format!("{ANNOTATION}: kernel")),
            Ok(Some(PathWish::Fast)) if self.tunnel == TunnelOwner::FastPath => {
                (Path::Fast, format!("{ANNOTATION}: fast"))
            }
            Ok(Some(PathWish::Fast)) => (Path::Kernel, format!("{ANNOTATION}: fast, but {}", self.reason)),
            Err(unreadable) => (self.path, format!("{unreadable}; {}", self.reason)),
        }
    }
}

/// What endpoints of a path hang on.
pub(crate) fn port_of(path: Path) -> PortKind {
    match path {
        Path::Fast => PortKind::Tap,
        Path::Kernel => PortKind::Veth,
    }
}

/// A data path and what the agent asks of one beyond the promise.
pub(crate) trait Driver: Dataplane {
    /// What it does less well than it could, and why.
    fn limits(&self) -> Vec<String> {
        Vec::new()
    }

    /// The process that carries its packets, where that is one.
    fn process(&self) -> Option<FastpathStatus> {
        None
    }

    /// What keeps it from serving, where new endpoints get this path.
    fn ailments(&mut self, _new: Path) -> Vec<Ailment> {
        Vec::new()
    }

    /// What a look at the node shall see that holds nobody up; none where mending looks by itself.
    fn survey(&mut self) -> Option<Survey> {
        None
    }

    /// Mends, after such a look where there was one; returns what was mended, in words.
    fn mend_seen(&mut self, _sight: Option<&Sight>) -> Result<Vec<String>, DataplaneError> {
        self.mend()
    }

    /// Makes what an endpoint will hang on, as far as it is nobody's to see and goes with this process: `attach` then has less to do.
    fn prepare(&mut self, _endpoint: &Endpoint, _netns: BorrowedFd<'_>) -> Result<(), DataplaneError> {
        Ok(())
    }

    /// Tells where an endpoint of before a restart lives, so that its link can be made again when somebody deletes it.
    fn remember(&mut self, _endpoint: &EndpointKey, _netns: &Netns) {}
}

impl Driver for KernelDataplane {
    fn limits(&self) -> Vec<String> {
        Self::limits(self)
    }

    fn survey(&mut self) -> Option<Survey> {
        Self::survey(self)
    }

    fn mend_seen(&mut self, sight: Option<&Sight>) -> Result<Vec<String>, DataplaneError> {
        match sight {
            Some(sight) => Ok(Self::mend_seen(self, sight)?),
            None => self.mend(),
        }
    }

    fn remember(&mut self, endpoint: &EndpointKey, netns: &Netns) {
        self.remember_netns(endpoint, netns.path.as_ref(), netns.device, netns.inode);
    }
}

impl Driver for FastDataplane {
    fn limits(&self) -> Vec<String> {
        Self::limits(self)
    }

    fn process(&self) -> Option<FastpathStatus> {
        Self::process(self)
    }

    fn ailments(&mut self, new: Path) -> Vec<Ailment> {
        Self::ailments(self, new)
    }

    fn prepare(&mut self, endpoint: &Endpoint, netns: BorrowedFd<'_>) -> Result<(), DataplaneError> {
        Self::prepare(self, endpoint, netns)
    }

    fn remember(&mut self, endpoint: &EndpointKey, netns: &Netns) {
        Self::remember(self, endpoint.clone(), netns.clone());
    }
}

/// The node's data paths as one. Both take the same desired state; each endpoint hangs on one of them.
pub(crate) struct Drivers {
    /// The kernel's, on every node.
    pub kernel: Box<dyn Driver>,
    /// The fast path's, where the node has one.
    pub fast: Option<Box<dyn Driver>>,
}

impl Drivers {
    fn each(&mut self) -> impl Iterator<Item = &mut Box<dyn Driver>> {
        // The fast path opens its ports before the kernel is asked to lead anything there.
        self.fast.iter_mut().chain(std::iter::once(&mut self.kernel))
    }

    fn of(&mut self, path: Path) -> Result<&mut Box<dyn Driver>, DataplaneError> {
        match path {
            Path::Kernel => Ok(&mut self.kernel),
            Path::Fast => self
                .fast
                .as_mut()
                .ok_or_else(|| DataplaneError::Unavailable("there is no fast path".to_owned())),
        }
    }
}

impl Driver for Drivers {
    fn limits(&self) -> Vec<String> {
        std::iter::once(&self.kernel).chain(&self.fast).flat_map(|driver| driver.limits()).collect()
    }

    fn process(&self) -> Option<FastpathStatus> {
        self.fast.as_ref().and_then(|fast| fast.process())
    }

    fn ailments(&mut self, new: Path) -> Vec<Ailment> {
        self.each().flat_map(|driver| driver.ailments(new)).collect()
    }

    fn survey(&mut self) -> Option<Survey> {
        self.kernel.survey()
    }

    fn mend_seen(&mut self, sight: Option<&Sight>) -> Result<Vec<String>, DataplaneError> {
        let mut mended = Vec::new();
        all(self.each().map(|driver| driver.mend_seen(sight).map(|repairs| mended.extend(repairs))))?;
        Ok(mended)
    }

    fn prepare(&mut self, endpoint: &Endpoint, netns: BorrowedFd<'_>) -> Result<(), DataplaneError> {
        self.of(endpoint.path)?.prepare(endpoint, netns)
    }

    fn remember(&mut self, endpoint: &EndpointKey, netns: &Netns) {
        self.each().for_each(|driver| driver.remember(endpoint, netns));
    }
}

impl Dataplane for Drivers {
    fn apply(&mut self, update: Update<'_>) -> Result<(), DataplaneError> {
        all(self.each().map(|driver| driver.apply(update.clone())))
    }

    fn attach(&mut self, endpoint: &Endpoint, netns: BorrowedFd<'_>) -> Result<(), DataplaneError> {
        self.of(endpoint.path)?.attach(endpoint, netns)
    }

    // Asked of all, for nobody may remember which one it was.
    fn detach(&mut self, endpoint: &EndpointKey) -> Result<(), DataplaneError> {
        all(self.each().map(|driver| driver.detach(endpoint)))
    }

    fn check(&mut self, endpoint: &Endpoint, netns: BorrowedFd<'_>) -> Result<Vec<String>, DataplaneError> {
        // The kernel's ways lead to every endpoint, whatever carries it.
        let mut wrong = self.kernel.check(endpoint, netns)?;
        if endpoint.path == Path::Fast {
            wrong.extend(self.of(Path::Fast)?.check(endpoint, netns)?);
        }
        Ok(wrong)
    }

    fn mend(&mut self) -> Result<Vec<String>, DataplaneError> {
        self.mend_seen(None)
    }

    fn connections(&mut self, filter: &Filter, most: usize) -> Result<Listing, DataplaneError> {
        let mut all = Listing::default();
        for driver in self.each() {
            all = all.join(driver.connections(filter, most)?, most);
        }
        Ok(all)
    }

    fn flows(&mut self) -> Result<Events, DataplaneError> {
        let mut all = Events::default();
        for driver in self.each() {
            let told = driver.flows()?;
            all.events.extend(told.events);
            all.lost += told.lost;
        }
        all.events.sort_by_key(|event| event.at);
        Ok(all)
    }

    fn counters(&mut self) -> Result<Counters, DataplaneError> {
        let mut sum = Counters::default();
        for driver in self.each() {
            let counters = driver.counters()?;
            sum.tunnel_sent += counters.tunnel_sent;
            sum.tunnel_received += counters.tunnel_received;
            for (reason, count) in counters.drops {
                *sum.drops.entry(reason).or_default() += count;
            }
            sum.endpoints.extend(counters.endpoints);
            sum.paths.extend(counters.paths);
            for (rule, count) in counters.rules {
                *sum.rules.entry(rule).or_default() += count;
            }
            for (frontend, hits) in counters.services {
                *sum.services.entry(frontend).or_default() += hits;
            }
        }
        Ok(sum)
    }
}

/// Success, or all failures: what one driver could not do does not keep the others from it.
fn all(results: impl Iterator<Item = Result<(), DataplaneError>>) -> Result<(), DataplaneError> {
    let mut failures: Vec<_> = results.filter_map(Result::err).collect();
    match failures.len() {
        0 => Ok(()),
        1 => Err(failures.remove(0)),
        _ => Err(DataplaneError::Several(failures)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MISSING: &str = "this build has no fast-path driver yet";

    #[test]
    fn what_is_missing_means_kernel_and_says_why() {
        let of = |asked, fast| PathChoice::of(asked, PathWish::Auto, fast);
        let auto = of(PathWish::Auto, Err(MISSING));
        assert_eq!((auto.path, auto.tunnel), (Path::Kernel, TunnelOwner::Kernel));
        assert_eq!(auto.reason, "no fast path: this build has no fast-path driver yet");
        let fast = of(PathWish::Fast, Err(MISSING));
        assert_eq!((fast.path, fast.tunnel), (Path::Kernel, TunnelOwner::Kernel));
        assert_eq!(fast.reason, "asked for fast, but this build has no fast-path driver yet");
        let kernel = of(PathWish::Kernel, Ok(()));
        assert_eq!((kernel.path, kernel.tunnel), (Path::Kernel, TunnelOwner::Kernel));
        let able = of(PathWish::Auto, Ok(()));
        assert_eq!((able.path, able.tunnel), (Path::Fast, TunnelOwner::FastPath));
        let default = PathChoice::of(PathWish::Auto, PathWish::Kernel, Ok(()));
        assert_eq!((default.path, default.tunnel), (Path::Kernel, TunnelOwner::FastPath));
        assert_eq!(default.reason, "the node has a fast path, but default_path is kernel");
    }

    #[test]
    fn a_pod_gets_what_it_asks_for_where_that_can_be_had() {
        let kernel = PathChoice::of(PathWish::Auto, PathWish::Auto, Err(MISSING));
        let (path, reason) = kernel.for_pod(Ok(Some(PathWish::Fast)));
        assert_eq!(path, Path::Kernel);
        assert_eq!(
            reason,
            "annotation causeway.dev/path: fast, but no fast path: this build has no fast-path driver yet"
        );
        let fast = PathChoice::of(PathWish::Auto, PathWish::Auto, Ok(()));
        assert_eq!(fast.for_pod(Ok(None)).0, Path::Fast);
        assert_eq!(fast.for_pod(Ok(Some(PathWish::Kernel))).0, Path::Kernel);
        assert_eq!(
            fast.for_pod(Err("annotation causeway.dev/path: \"fats\" is no data path".into())).0,
            Path::Fast
        );
    }
}
