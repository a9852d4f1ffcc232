//! A node without a kernel, for tests: directories, a recording data path, and the engine between them.

use std::fs::{self, File};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use causeway_model::connection::{Connection, Filter, Listing};
use causeway_model::plugin::{self, Attachment, Failure, Reply, Request, Tombstone, Verb};
use causeway_model::{Counters, Endpoint, EndpointKey, PodName};

use super::*;
use crate::caller::Caller;
use crate::config::PathWish;

/// What a data path was told, and what it has; fails when told to.
#[derive(Default)]
pub(crate) struct Log {
    pub calls: Vec<String>,
    pub fail: Option<&'static str>,
    /// Dies with the process at this call.
    pub die: Option<&'static str>,
    pub snapshot: Option<Snapshot>,
    pub attached: Vec<EndpointKey>,
    pub counters: Counters,
    pub flows: causeway_model::flow::Events,
    pub connections: Vec<Connection>,
    /// What is wrong with every endpoint.
    pub wrong: Vec<String>,
    /// What keeps it from serving.
    pub ailments: Vec<Ailment>,
}

#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<Log>>);

impl Recorder {
    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap()
    }

    fn call(&self, name: &'static str, what: &str) -> Result<(), DataplaneError> {
        let mut log = self.log();
        log.calls.push(format!("{name}{what}"));
        if log.die == Some(name) {
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).expect("a process may kill itself");
        }
        match log.fail {
            Some(failing) if failing == name => {
                Err(DataplaneError::Refused(format!("{name} was told to fail")))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.log().calls)
    }
}

fn name(delta: &Delta) -> String {
    match delta {
        Delta::Endpoint(endpoint) => format!(" +{}", endpoint.key.container),
        Delta::EndpointGone(key) => format!(" -{}", key.container),
        Delta::Peer(node) => format!(" +node {}", node.id.name),
        Delta::PeerGone(id) => format!(" -node {}", id.name),
        // What tables refer to goes along with the endpoints; tests of policy and of services look at the state.
        other if other.is_of_policy() || other.is_of_services() => String::new(),
        other => format!(" {other:?}"),
    }
}

impl Dataplane for Recorder {
    fn apply(&mut self, update: Update<'_>) -> Result<(), DataplaneError> {
        match update {
            Update::Whole(snapshot) => {
                self.call("whole", &format!(" {}", snapshot.endpoints.len()))?;
                self.log().snapshot = Some(snapshot.clone());
            }
            Update::Changes(deltas) => {
                self.call("changes", &deltas.iter().map(name).collect::<String>())?;
                let mut log = self.log();
                let snapshot = log.snapshot.as_mut().expect("changes come after a whole state");
                deltas.iter().cloned().for_each(|delta| snapshot.apply(delta));
            }
        }
        Ok(())
    }

    fn attach(&mut self, endpoint: &Endpoint, _: BorrowedFd<'_>) -> Result<(), DataplaneError> {
        self.call("attach", &format!(" {}", endpoint.key.container))?;
        self.log().attached.push(endpoint.key.clone());
        Ok(())
    }

    fn detach(&mut self, endpoint: &EndpointKey) -> Result<(), DataplaneError> {
        self.call("detach", &format!(" {}", endpoint.container))?;
        self.log().attached.retain(|key| key != endpoint);
        Ok(())
    }

    fn check(&mut self, endpoint: &Endpoint, _: BorrowedFd<'_>) -> Result<Vec<String>, DataplaneError> {
        self.call("check", &format!(" {} mtu {}", endpoint.key.container, endpoint.mtu))?;
        Ok(self.log().wrong.clone())
    }

    fn mend(&mut self) -> Result<Vec<String>, DataplaneError> {
        self.call("mend", "").map(|()| vec!["cw-vxlan was gone".to_owned()])
    }

    fn connections(&mut self, filter: &Filter, most: usize) -> Result<Listing, DataplaneError> {
        self.call("connections", "")?;
        let all = self.log().connections.clone();
        Ok(Listing::of(all.into_iter().filter(|connection| filter.fits(connection)), most))
    }

    fn flows(&mut self) -> Result<causeway_model::flow::Events, DataplaneError> {
        Ok(std::mem::take(&mut self.log().flows))
    }

    fn counters(&mut self) -> Result<Counters, DataplaneError> {
        Ok(self.log().counters.clone())
    }
}

impl Driver for Recorder {
    fn ailments(&mut self, _: causeway_model::Path) -> Vec<Ailment> {
        self.log().ailments.clone()
    }
}

pub(crate) const CLUSTER: &str = "
apiVersion: causeway.dev/v1alpha1
kind: Cluster
metadata: {name: lyon}
spec: {id: 1, podCIDRs: [10.70.0.0/16, \"fd70::/48\"], serviceCIDRs: [10.96.0.0/16]}
---
apiVersion: v1
kind: Node
metadata: {name: east, annotations: {causeway.dev/underlay: 192.0.2.11}}
spec: {podCIDRs: [10.70.1.0/29, \"fd70:0:0:1::/64\"]}
";
pub(crate) const WEST: &str = "
apiVersion: v1
kind: Node
metadata: {name: west, annotations: {causeway.dev/underlay: 192.0.2.12}}
spec: {podCIDRs: [10.70.2.0/24, \"fd70:0:0:2::/64\"]}
";

pub(crate) fn pod(name: &str, annotations: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: shop, name: {name}, annotations: {{{annotations}}}, labels: {{{labels}}}}}\nspec: {{containers: []}}\n"
    )
}

pub(crate) fn world(files: &[&str]) -> Arc<World> {
    let named: Vec<_> = files.iter().enumerate().map(|(n, text)| (format!("{n}.yaml"), *text)).collect();
    let world = World::of_files(named.iter().map(|(name, text)| (name.as_str(), *text)));
    assert_eq!(world.problems, Vec::<String>::new());
    Arc::new(world)
}

/// A node without a kernel: directories, a recording data path, and the engine between them.
pub(crate) struct Bench {
    pub directory: tempfile::TempDir,
    pub dataplane: Recorder,
    pub boot: &'static str,
    /// More lines of the configuration.
    pub config: &'static str,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("tombstones")).unwrap();
        Self { directory, dataplane: Recorder::default(), boot: "first boot", config: "" }
    }

    pub(crate) fn start(&self) -> Engine {
        self.start_in(self.directory.path())
    }

    /// The same with another directory's store.
    pub(crate) fn start_in(&self, directory: &std::path::Path) -> Engine {
        let text =
            format!("node: east\nstate: {0}\nstatus: {0}/status\n{1}", directory.display(), self.config);
        let address = "192.0.2.11/24".parse().unwrap();
        let eth0 = Link { name: "eth0".into(), mtu: 1500, addresses: vec![address], up: true };
        Engine::new(Parts {
            release: "test".into(),
            config: Config::from_yaml("test.yaml", &text).unwrap(),
            source: "manifests in a test".into(),
            store: Store::open(directory).unwrap(),
            drivers: Drivers { kernel: Box::new(self.dataplane.clone()), fast: None },
            choice: PathChoice::of(PathWish::Auto, PathWish::Auto, Err("this is a test")),
            links: Arc::new(move || Ok(vec![eth0.clone()])),
            kube_proxy: Arc::new(|| Ok(None)),
            machine: Machine { boot: self.boot.into(), own: Vec::new() },
        })
    }

    /// An engine that knows its node.
    pub(crate) fn ready(&self) -> Engine {
        let engine = self.start();
        engine.hear(Ok(world(&[CLUSTER])));
        assert_eq!(engine.waiting_for(), Vec::<String>::new());
        self.dataplane.calls();
        engine
    }

    pub(crate) fn bury(&self, container: &str) -> std::path::PathBuf {
        let stone = Tombstone { version: plugin::VERSION, key: key(container) };
        let file = self.directory.path().join("tombstones").join(stone.file_name());
        fs::write(&file, serde_json::to_vec(&stone).unwrap()).unwrap();
        file
    }
}

pub(crate) fn key(container: &str) -> EndpointKey {
    EndpointKey { network: "pods".into(), container: container.into(), interface: "eth0".into() }
}

pub(crate) fn request(verb: Verb, container: &str) -> Request {
    Request {
        version: plugin::VERSION,
        verb,
        key: key(container),
        netns: "/proc/self/ns/net".into(),
        pod: None,
        args: BTreeMap::new(),
        config: serde_json::Map::new(),
        ipam: Default::default(),
        remembered: None,
        valid: None,
        capabilities: Default::default(),
    }
}

/// A namespace; the bench's machine does not take it for its own.
pub(crate) fn netns() -> Option<OwnedFd> {
    Some(File::open("/proc/self/ns/net").unwrap().into())
}

/// Somebody who waits for an answer.
pub(crate) fn soon() -> Caller {
    Caller::new(None, None, Duration::from_secs(20))
}

impl Engine {
    pub(crate) fn ask(&self, request: &Request) -> Reply {
        self.answer(request, netns(), &soon())
    }

    pub(crate) fn try_add(&self, container: &str) -> Result<Attachment, Failure> {
        self.try_add_pod(container, None)
    }

    pub(crate) fn try_add_pod(&self, container: &str, pod: Option<&str>) -> Result<Attachment, Failure> {
        let pod = pod.map(|name| PodName { namespace: "shop".into(), name: name.into() });
        match self.ask(&Request { pod, ..request(Verb::Add, container) }) {
            Reply::Attached(attachment) => Ok(attachment),
            Reply::Failed(failure) => Err(failure),
            Reply::Done => panic!("an ADD is not just done"),
        }
    }

    pub(crate) fn add(&self, container: &str) -> String {
        self.try_add(container).unwrap().addresses[0].address.ip().to_string()
    }

    pub(crate) fn del(&self, container: &str) {
        assert_eq!(self.answer(&request(Verb::Del, container), None, &soon()), Reply::Done);
    }

    pub(crate) fn kept(&self) -> Vec<String> {
        self.lock().parts.store.records().keys().map(|key| key.container.clone()).collect()
    }

    pub(crate) fn endpoint(&self, container: &str) -> Endpoint {
        self.lock().roster.endpoints()[&key(container)].clone()
    }
}
