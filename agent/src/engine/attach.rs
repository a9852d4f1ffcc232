use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::sync::MutexGuard;
use std::thread;
use std::time::{Duration, Instant};

use causeway_kernel_fallback::HOST_END_MTU;
use causeway_model::plugin::{self, Attachment, IpamRequest, PodAddress, Reply, Request, Verb};
use causeway_model::policy::Tables;
use causeway_model::{
    Dataplane, Delta, Endpoint, EndpointKey, Family, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, Identity,
    IpNetwork, PortKind, PortProtocol, Settings,
};

use super::{Core, Engine, Parts, bring_changes};
use crate::addresses::{Grant, Pool, Wanted};
use crate::caller::Caller;
use crate::datapath::{Driver, port_of};
use crate::error::Error;
use crate::sources::PodObject;
use crate::store::{Netns, Record};

/// How long an ADD waits for its pod's object, and for the world: the runtime may be faster than the news.
const WAIT: Duration = Duration::from_secs(2);

impl Engine {
    /// Answers a request. Work that has not begun when nobody waits for it any more is not begun at all.
    pub(crate) fn answer(&self, request: &Request, netns: Option<OwnedFd>, caller: &Caller) -> Reply {
        let done = match request.verb {
            _ if !(1..=plugin::VERSION + 1).contains(&request.version) => {
                Err(Error::Protocol(request.version))
            }
            Verb::Add => self.serve_add(request, netns, caller).map(Reply::Attached),
            Verb::Del => self.serve_del(&request.key, caller).map(|()| Reply::Done),
            Verb::Check => self.serve_check(request, netns, caller).map(|()| Reply::Done),
            Verb::Gc => self.serve_gc(request, caller).map(|()| Reply::Done),
            Verb::Status => self.serve_status(request, caller).map(|()| Reply::Done),
        };
        done.unwrap_or_else(|error| {
            let failure = error.failure();
            let verb = format!("{:?}", request.verb).to_uppercase();
            tracing::warn!("{verb} {}: code {}: {}", request.key, failure.code, failure.msg);
            Reply::Failed(failure)
        })
    }

    fn serve_add(
        &self,
        request: &Request,
        netns: Option<OwnedFd>,
        caller: &Caller,
    ) -> Result<Attachment, Error> {
        let mut core = self.lock();
        caller.waits()?;
        let (netns, place) = core.parts.machine.pod_namespace(&request.netns, netns)?;
        core.replay_tombstones();
        core.refuse_repetition(&request.key)?;
        let mut core = self.wait(core, |core| core.missing_for(request))?;
        caller.waits()?;
        core.refuse_repetition(&request.key)?;
        core.trust()?;
        core.attach(request, netns.as_fd(), &place)
    }

    fn serve_del(&self, key: &EndpointKey, caller: &Caller) -> Result<(), Error> {
        let mut core = self.lock();
        caller.waits()?;
        core.release(key)
    }

    /// Waits until nothing is missing, and lets others work meanwhile.
    fn wait<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        missing: impl Fn(&Core) -> Vec<String>,
    ) -> Result<MutexGuard<'a, Core>, Error> {
        let until = Instant::now() + WAIT;
        loop {
            let lacking = missing(&core);
            let left = until.saturating_duration_since(Instant::now());
            match (lacking.is_empty(), left.is_zero()) {
                (true, _) => return Ok(core),
                (false, true) => return Err(Error::NotReady(lacking)),
                (false, false) => {
                    let woken = self.changed.wait_timeout(core, left);
                    core = woken.unwrap_or_else(std::sync::PoisonError::into_inner).0;
                }
            }
        }
    }
}

impl Core {
    fn refuse_repetition(&self, key: &EndpointKey) -> Result<(), Error> {
        match self.parts.store.get(key) {
            Some(_) => Err(Error::Exists(key.clone())),
            None => Ok(()),
        }
    }

    fn missing_for(&self, request: &Request) -> Vec<String> {
        let pod = request.pod.as_ref().filter(|_| self.pod(request).is_none());
        let pod = pod.map(|pod| format!("the object of pod {pod} ({})", self.parts.source));
        // Before the world is known, no pod can be.
        self.missing().or(pod).into_iter().collect()
    }

    fn pod(&self, request: &Request) -> Option<&PodObject> {
        self.world.as_ref()?.pod(request.pod.as_ref()?)
    }

    /// The pod as its object tells of it, or, where none does, as the annotations do that the runtime passed on.
    fn described(&self, request: &Request) -> PodObject {
        let told = || PodObject::of_annotations(&request.capabilities.annotations);
        self.pod(request).cloned().unwrap_or_else(told)
    }

    /// A port of the node leads to one endpoint, and never takes the tunnel's place.
    fn refuse_taken_ports(&self, request: &Request, tunnel_port: u16) -> Result<(), Error> {
        let wanted = &request.capabilities.port_mappings;
        for mapping in wanted {
            if mapping.protocol == PortProtocol::Udp && mapping.host_port.get() == tunnel_port {
                let text = format!("portMappings: {mapping} is the port of the tunnel between the nodes");
                return Err(Error::BadRequest(text));
            }
            let holds = |other: &&Endpoint| other.port_mappings.iter().any(|held| held.overlaps(mapping));
            if let Some(holder) = self.roster.endpoints().values().find(holds) {
                let pod = holder.pod.as_ref().map_or_else(String::new, |pod| format!(" (pod {pod})"));
                return Err(Error::PortTaken { port: *mapping, holder: format!("{}{pod}", holder.key) });
            }
        }
        Ok(())
    }

    /// Makes an endpoint of a request, in the order in which a crash or a failure leaves nothing open: remembered and guarded
    /// first, plugged in last.
    fn attach(
        &mut self,
        request: &Request,
        netns: BorrowedFd<'_>,
        place: &Netns,
    ) -> Result<Attachment, Error> {
        let Some(settings) = self.desired.as_ref().map(|desired| &desired.settings) else {
            return Err(Error::NotReady(self.missing().into_iter().collect()));
        };
        let pod_mtu = settings.pod_mtu;
        self.refuse_taken_ports(request, settings.overlay.port)?;
        let grant = self.grant(settings, &request.ipam, &self.wanted(request)?)?;
        let endpoint = self.endpoint(request, &grant, pod_mtu)?;
        let world = self.world.clone().unwrap_or_default();
        let key = endpoint.key.clone();
        let changes = self.roster.admit(endpoint, &world);
        let Some(endpoint) = self.roster.endpoints().get(&key).cloned() else {
            unreachable!("it has just been admitted")
        };
        let boot = self.parts.machine.boot.clone();
        // What policy says of it is for now, and worked out anew by whoever reads the record.
        let recorded = Endpoint { policy: Tables::default(), ..endpoint.clone() };
        let record = Record { endpoint: recorded, netns: place.clone(), boot };
        match self.plug((&endpoint, &changes), (record, &grant), netns) {
            Ok(()) => {
                self.parts.drivers.remember(&endpoint.key, place);
                tracing::info!("attached {} by the {} path", endpoint.key, endpoint.path);
                Ok(attachment(&endpoint))
            }
            Err(error) => Err(self.undo(&endpoint.key, error)),
        }
    }

    /// Writes an endpoint down, and meanwhile guards it and prepares its link, for a disk that lags takes as long as all the rest. It is
    /// plugged in once it is written: what there is before goes with this process, or leads nowhere.
    fn plug(
        &mut self,
        (endpoint, changes): (&Endpoint, &[Delta]),
        (record, grant): (Record, &Grant),
        netns: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let Self { parts: Parts { store, drivers, .. }, desired, in_force, .. } = self;
        let (written, prepared) = thread::scope(|scope| {
            let writing = scope.spawn(|| store.insert(record, grant));
            let guarded = bring_changes(changes, desired, (drivers, in_force));
            let prepared = guarded.and_then(|()| drivers.prepare(endpoint, netns));
            (writing.join().unwrap_or_else(|panic| resume_unwind(panic)), prepared)
        });
        Error::all([written, prepared.map_err(Error::from)])?;
        Ok(self.parts.drivers.attach(endpoint, netns)?)
    }

    /// Takes an attempt back as a DEL would; what fails on the way is told with what failed first.
    fn undo(&mut self, key: &EndpointKey, error: Error) -> Error {
        match self.release(key) {
            Ok(()) => error,
            Err(more) => Error::Several(vec![error, more]),
        }
    }

    /// The addresses that an attachment gets; nothing is taken yet.
    pub(super) fn grant(
        &self,
        settings: &Settings,
        asked: &IpamRequest,
        wanted: &Wanted,
    ) -> Result<Grant, Error> {
        Ok(self.parts.store.leases().grant(&Pool::for_request(&settings.node, asked)?, wanted)?)
    }

    /// What the runtime and the pod's annotations ask for by name, which must not contradict each other.
    fn wanted(&self, request: &Request) -> Result<Wanted, Error> {
        let ipam = &request.ipam;
        let mut wanted = Wanted { addresses: ipam.addresses.clone(), mac: ipam.mac };
        let object = self.described(request);
        let pod = self.pod(request).map(|pod| format!("pod {}", pod.name()));
        let pod = pod.unwrap_or_else(|| request.key.to_string());
        let invalid = |error| Error::BadRequest(format!("{pod}: {error}"));
        let other = ipam.delegate.as_ref().map_or("the runtime".into(), |kind| format!("IPAM plugin {kind}"));
        for address in object.wanted_addresses().map_err(invalid)? {
            match ipam.addresses.iter().find(|one| Family::of(**one) == Family::of(address)) {
                Some(one) if *one == address => {}
                Some(one) => {
                    let annotated = format!("{pod}: annotation causeway.dev/addresses says {address}");
                    return Err(Error::BadRequest(format!("{annotated}, {other} {one}")));
                }
                None if ipam.delegate.is_some() => {
                    let annotated = format!("{pod}: annotation causeway.dev/addresses says {address}");
                    let family = Family::of(address);
                    return Err(Error::BadRequest(format!("{annotated}, {other} gave no {family} address")));
                }
                None => wanted.addresses.push(address),
            }
        }
        match (object.wanted_mac().map_err(invalid)?, ipam.mac) {
            (Some(mac), Some(one)) if mac != one => {
                let annotated = format!("{pod}: annotation causeway.dev/mac says {mac}");
                return Err(Error::BadRequest(format!("{annotated}, the runtime {one}")));
            }
            (mac, one) => wanted.mac = mac.or(one),
        }
        Ok(wanted)
    }

    fn endpoint(&self, request: &Request, grant: &Grant, mtu: u16) -> Result<Endpoint, Error> {
        let object = self.pod(request);
        let wish = self.described(request).path_wish().map_err(|error| error.to_string());
        let (path, path_reason) = self.parts.choice.for_pod(wish);
        Ok(Endpoint {
            key: request.key.clone(),
            pod: request.pod.clone(),
            addresses: grant.addresses.clone(),
            routes: request.ipam.routes.clone(),
            mac: grant.mac,
            mtu,
            labels: match object {
                Some(object) => object.labels(),
                None => configured_labels(request)?,
            },
            identity: Identity::UNKNOWN,
            path,
            path_reason,
            port: port_of(path),
            port_mappings: request.capabilities.port_mappings.clone(),
            bandwidth: request.capabilities.bandwidth,
            deny_new: false,
            policy: Default::default(),
        })
    }
}

/// The labels that the network configuration gives to what no object describes.
fn configured_labels(request: &Request) -> Result<BTreeMap<String, String>, Error> {
    let labels = request.config.get("causeway").and_then(|ours| ours.get("labels"));
    let Some(labels) = labels else { return Ok(BTreeMap::new()) };
    serde_json::from_value(labels.clone()).map_err(|error| {
        Error::BadRequest(format!("causeway.labels of network {}: {error}", request.key.network))
    })
}

fn attachment(endpoint: &Endpoint) -> Attachment {
    let veth = endpoint.port == PortKind::Veth;
    let addresses = endpoint.addresses.iter().map(|&address| {
        let gateway = if address.is_ipv4() { GATEWAY_V4.into() } else { GATEWAY_V6.into() };
        let network = IpNetwork::new(address, Family::of(address).host_length())
            .unwrap_or_else(|_| unreachable!("the length is its family's"));
        PodAddress { address: network, gateway }
    });
    Attachment {
        host_interface: veth.then(|| endpoint.key.link_name().to_string()),
        host_mac: GATEWAY_MAC,
        host_mtu: veth.then_some(HOST_END_MTU),
        mac: endpoint.mac,
        mtu: endpoint.mtu,
        addresses: addresses.collect(),
        routes: endpoint.routes.clone(),
        path: endpoint.path,
    }
}
