//! The promise of a data path, kept by the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use causeway_model::connection::{Filter, Listing};
use causeway_model::flow::Events;
use causeway_model::{
    Count, Counters, Dataplane, DataplaneError, Delta, DropReason, Endpoint, EndpointCounters, EndpointKey,
    IpNetwork, LinkName, Snapshot, TunnelOwner, Update, UplinkKind,
};

use crate::capture::{Capture, Uplink};
use crate::desired::{Change, Desired, Facts};
use crate::element::Element;
use crate::error::KernelError;
use crate::flows::Ears;
use crate::install::{index, install, install_all, remove, remove_link};
use crate::leaving::{self, Reaper};
use crate::netlink::Netlink;
use crate::nft::{Nft, Things};
use crate::objects::{HOST_LINK, Object, Sysctl, TUNNEL_LINK, UPLINK_LINK, is_pod_link};
use crate::observe::{self, Link};
use crate::ruleset::Ruleset;
use crate::sysctl::Before;
use crate::{connections, conntrack, paths, pod, refused, removal, services, shaping, uplink, veth};

/// How the kernel path is to be run.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// The file that remembers what kernel settings were before they were ours. A second one beside it, ending in
    /// `.nft`, remembers how the kernel lists our table.
    pub state: PathBuf,
    /// Do without the tunnel device's attribute for reserved bits, as if this kernel had none.
    pub mask_reserved_bits: bool,
}

/// Where a pod's network namespace is found again. No descriptor is held, which would keep a dead pod's namespace alive.
#[derive(Clone, Debug)]
struct Netns {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Netns {
    /// Opens the namespace, unless it is gone or another one has its place.
    fn open(&self) -> Option<File> {
        let file = File::open(&self.path).ok()?;
        let metadata = file.metadata().ok()?;
        ((metadata.dev(), metadata.ino()) == (self.device, self.inode)).then_some(file)
    }
}

/// The data path of the Linux kernel, in the network namespace of the thread that made it. It must be called
/// from threads in that namespace only.
#[derive(Debug)]
pub struct KernelDataplane {
    pub(crate) netlink: Netlink,
    pub(crate) nft: Nft,
    pub(crate) capture: Capture,
    pub(crate) before: Before,
    pub(crate) lenient: bool,
    masked: bool,
    pub(crate) desired: Option<Desired>,
    pub(crate) reaper: Reaper,
    ears: Ears,
    netns: BTreeMap<EndpointKey, Netns>,
    /// What was made or taken away since the last survey began.
    pub(crate) changed: Vec<Object>,
    /// What the kernel had counted before: malformed packets, datagrams of which a part was missing, and overlapping ones.
    counted_before: (u64, u64, u64),
}

impl KernelDataplane {
    /// A data path that has not been told anything yet; changes nothing.
    pub fn new(options: KernelOptions) -> Result<Self, KernelError> {
        Ok(Self {
            netlink: Netlink::route()?,
            nft: Nft::new(options.state.with_extension("nft"))?,
            capture: Capture::default(),
            before: Before::new(options.state),
            lenient: !options.mask_reserved_bits,
            masked: options.mask_reserved_bits,
            desired: None,
            reaper: Reaper::start()?,
            ears: Ears::new()?,
            netns: BTreeMap::new(),
            changed: Vec::new(),
            counted_before: refused_so_far()?,
        })
    }

    /// What this node's kernel does less well than it could, or than the fast path does, and why. Complete once a state has been applied.
    pub fn limits(&self) -> Vec<String> {
        if self.desired.as_ref().is_some_and(|d| d.snapshot.settings.tunnel != TunnelOwner::Kernel) {
            return Vec::new();
        }
        let mut limits = vec![
            "the two directions of a flow have outer source ports of their own: the kernel's tunnel device chooses them".to_owned(),
            "lengths and checksums that the kernel finds wrong are all counted as kernel-malformed".to_owned(),
            "pods hear of a path narrower than the uplink some seconds late, and counts of fragments are the whole node's".to_owned(),
        ];
        if !self.lenient {
            let why = if self.masked { "masked by configuration" } else { "needs Linux 6.14" };
            limits.push(format!(
                "strict reserved bits: tunnel frames with reserved bits set are dropped ({why})"
            ));
        }
        limits
    }

    /// Tells where an endpoint's network namespace is found, so that [`Dataplane::mend`] can plug it in again when its
    /// link was deleted. The namespace is not held; one that has gone is not missed.
    pub fn remember_netns(&mut self, key: &EndpointKey, path: &Path, device: u64, inode: u64) {
        self.netns.insert(key.clone(), Netns { path: path.to_owned(), device, inode });
    }

    /// Takes every object of ours away from the namespace of this thread, whoever made it and whether or not a record is
    /// left, and gives kernel settings back what they were. Goes on past failures and reports all.
    pub fn remove_all(state: &Path) -> Result<(), KernelError> {
        removal::remove_all(state)
    }

    fn take_up(&mut self, snapshot: &Snapshot) -> Result<(), KernelError> {
        let links = observe::links(&mut self.netlink)?;
        let facts = self.facts(&links, snapshot);
        self.desired = Some(Desired::new(snapshot.clone(), facts));
        self.netns.retain(|key, _| snapshot.endpoints.contains_key(key));
        let mended = self.reconcile()?;
        tracing::debug!(?mended, "took up a whole state");
        self.forget_orphans();
        self.move_flows();
        Ok(())
    }

    /// What changed while nobody was there to see it: flows to pods that are no more, and those that mappings should have led.
    fn forget_orphans(&self) {
        let Some(desired) = &self.desired else { return };
        let own = &desired.snapshot.settings.node.pod_prefixes;
        let is_nobodys = |address: &IpAddr| {
            own.iter().any(|prefix| prefix.contains(*address))
                && !desired.elements.contains(&Element::Endpoint(*address))
        };
        conntrack::forget_where(|flow| flow.ends().iter().any(is_nobodys));
        let all: Vec<Element> = desired.elements.iter().cloned().collect();
        conntrack::forget(&[], &all, local_addresses);
    }

    /// Datagrams to services whose backends changed begin new flows.
    fn move_flows(&mut self) {
        let moved = self.nft.take_moved();
        if let Some(desired) = &self.desired {
            services::forget(&moved, &desired.snapshot, local_addresses);
        }
    }

    /// What of the node decides over what can be made.
    pub(crate) fn facts(&self, links: &BTreeMap<String, Link>, snapshot: &Snapshot) -> Facts {
        let overlay = snapshot.settings.overlay;
        let others = links.values().filter(|link| link.name != TUNNEL_LINK).filter_map(Link::tunnel);
        let mut other_tunnels: Vec<u32> = others
            .filter(|(vni, port)| *port == overlay.port && *vni != u32::from(overlay.vni))
            .map(|(vni, _)| vni)
            .collect();
        other_tunnels.sort_unstable();
        other_tunnels.dedup();
        // On a fast node tunnel frames go to `cw-up` as soon as it is there; without it the kernel refuses them. Those that
        // the fast path reads from a device of its own the kernel must not even refuse.
        let uplink_port = links.contains_key(UPLINK_LINK);
        let settings = &snapshot.settings;
        let captures = settings.tunnel == TunnelOwner::FastPath
            && (uplink_port || settings.uplink == UplinkKind::Ethdev);
        let uplink = captures.then(|| uplink::find(settings.tunnel_address).ok().flatten()).flatten();
        let known = self.desired.as_ref().map(|desired| &desired.facts.path_mtus);
        let path_mtus = if settings.tunnel == TunnelOwner::Kernel {
            paths::learned(snapshot, known.unwrap_or(&BTreeMap::new())).unwrap_or_else(|error| {
                tracing::warn!(%error, "smaller paths to other nodes");
                known.cloned().unwrap_or_default()
            })
        } else {
            BTreeMap::new()
        };
        Facts {
            host_port: links.contains_key(HOST_LINK),
            uplink_port,
            uplink: uplink.map(|uplink| Uplink { name: uplink.name }),
            lenient: self.lenient,
            other_tunnels,
            path_mtus,
        }
    }

    fn change(&mut self, deltas: &[Delta]) -> Result<(), KernelError> {
        let Some(desired) = &mut self.desired else {
            return Err(KernelError::Io {
                doing: "taking up changes".into(),
                source: std::io::Error::other("no whole state was taken up before"),
            });
        };
        // Other settings may mean another tunnel device, on which everything hangs: that is a matter for comparison.
        let whole = deltas.iter().any(|delta| matches!(delta, Delta::Settings(_)));
        self.nft.begin_counts(deltas);
        let change = desired.apply(deltas.iter().cloned());
        self.changed.extend(change.objects.gone.iter().chain(&change.objects.new).cloned());
        let result = if whole { self.reconcile().map(drop) } else { self.issue(&change, deltas) };
        if result.is_err() {
            self.go_back(change.inverses);
        } else {
            conntrack::forget(&change.elements.gone, &change.elements.new, local_addresses);
            self.move_flows();
            let gone = change.elements.gone.iter().filter_map(|element| match element {
                Element::Endpoint(address) => Some(*address),
                _ => None,
            });
            let gone: BTreeSet<_> = gone.collect();
            if !gone.is_empty() {
                self.reaper.forget(gone);
            }
        }
        result
    }

    /// Makes a difference real: what guards comes first, then what leads.
    fn issue(&mut self, change: &Change, deltas: &[Delta]) -> Result<(), KernelError> {
        let Change { objects, elements, .. } = change;
        let things = Things::of(deltas);
        let snapshot = self.desired.as_ref().map(|desired| &desired.snapshot);
        let changed = snapshot.map(|snapshot| self.nft.change(elements, things, snapshot));
        if let Some(Err(error)) = changed {
            tracing::warn!(%error, "comparing the whole tables, since a change of them failed");
            self.ensure_nft()?;
        }
        let mut errors = Vec::new();
        let new: BTreeMap<_, _> = objects.new.iter().map(|object| (object.id(), object)).collect();
        for object in objects.gone.iter().rev() {
            if new.get(&object.id()).is_none_or(|new| object.blocks(new)) {
                errors.extend(remove(&mut self.netlink, object).err());
            }
        }
        // Of a new pod nothing can be made yet, which is asked once and not for each of its dozen objects.
        let mut there: BTreeMap<&str, bool> = BTreeMap::new();
        for object in &objects.new {
            let link = object.link().filter(|link| is_pod_link(link));
            if link.is_none_or(|link| *there.entry(link).or_insert_with(|| index(link).is_ok())) {
                errors.extend(self.make(object).err());
            }
        }
        KernelError::all(errors)
    }

    /// Makes an object, unless it hangs on a pod's link that does not exist yet: `attach` makes it then.
    pub(crate) fn make(&mut self, object: &Object) -> Result<(), KernelError> {
        match object {
            Object::Sysctl(Sysctl { link: None, path, value }) => {
                self.before.write(self.netlink.sysctls(), path, value)
            }
            object if object.link().is_some_and(|link| is_pod_link(link) && index(link).is_err()) => Ok(()),
            object => install(&mut self.netlink, object),
        }
    }

    /// After a failure: the old state, as far as it can be had.
    fn go_back(&mut self, inverses: Vec<Delta>) {
        if let Some(desired) = &mut self.desired {
            desired.apply(inverses);
        }
        if let Err(error) = self.reconcile() {
            tracing::warn!(%error, "going back to the state before a failed change");
        }
    }

    pub(crate) fn ensure_nft(&mut self) -> Result<Vec<String>, KernelError> {
        let Some(desired) = &self.desired else { return Ok(Vec::new()) };
        let Desired { snapshot, elements, .. } = desired;
        self.nft.ensure(&Ruleset::new(&snapshot.settings), elements, snapshot)
    }

    fn plug(&mut self, endpoint: &Endpoint, netns: BorrowedFd<'_>) -> Result<(), KernelError> {
        let name = endpoint.key.link_name();
        let objects: Vec<Object> = self.desired.as_ref().map_or_else(Vec::new, |desired| {
            let on_link = |object: &&Object| object.link() == Some(name.as_str());
            desired.objects_of(endpoint).iter().filter(on_link).cloned().collect()
        });
        if objects.is_empty() {
            return Err(KernelError::Io {
                doing: format!("attaching {}", endpoint.key),
                source: std::io::Error::other("the state does not have it as an endpoint of the kernel path"),
            });
        }
        self.changed.extend(objects.iter().cloned());
        self.reaper.make_way();
        let made = veth::create(&mut self.netlink, endpoint, netns)?;
        install_all(&mut self.netlink, &objects)?;
        pod::configure(netns, &endpoint.key.interface, endpoint)?;
        veth::await_open(&mut self.netlink, name.as_str())?;
        made.keep();
        self.reaper.make_way();
        Ok(())
    }

    /// Whether an endpoint's network namespace is where it was.
    pub(crate) fn lives(&self, key: &EndpointKey) -> bool {
        self.netns.get(key).is_some_and(|netns| netns.open().is_some())
    }

    /// Plugs endpoints in again whose link has gone while their pod lives. Returns what was done.
    pub(crate) fn plug_again(&mut self, links: &BTreeMap<String, Link>) -> Result<Vec<String>, KernelError> {
        let Some(desired) = &self.desired else { return Ok(Vec::new()) };
        let lost = desired.veths().filter(|endpoint| !links.contains_key(endpoint.key.link_name().as_str()));
        let lost: Vec<(Endpoint, File)> = lost
            .filter_map(|endpoint| {
                let netns = self.netns.get(&endpoint.key)?.open()?;
                Some((endpoint.clone(), netns))
            })
            .collect();
        let (mut mended, mut errors) = (Vec::new(), Vec::new());
        for (endpoint, netns) in lost {
            match self.plug(&endpoint, netns.as_fd()) {
                Ok(()) => mended.push(format!("plugged {} in again: its link had gone", endpoint.key)),
                Err(error) => errors.push(error),
            }
        }
        KernelError::all(errors).map(|()| mended)
    }

    fn count(&mut self) -> Result<Counters, KernelError> {
        let links = observe::links(&mut self.netlink)?;
        let mut counters = Counters::default();
        let denied = self.nft.denied()?;
        let served = self.nft.served()?;
        let dropped = self.nft.dropped()?;
        // nft counts from the network header on; an Ethernet header lies before it.
        let whole = |Count { packets, bytes }: Count| Count { packets, bytes: bytes + 14 * packets };
        for (reason, count) in dropped.of_all.iter().filter(|(_, count)| count.packets > 0) {
            counters.drops.insert(*reason, whole(*count));
        }
        let mut of_pods: BTreeMap<&str, BTreeMap<DropReason, Count>> = BTreeMap::new();
        for ((link, reason), count) in &dropped.of_pods {
            of_pods.entry(link).or_default().insert(*reason, whole(*count));
        }
        for (reason, count) in denied.by_reason.iter().filter(|(_, count)| count.packets > 0) {
            *counters.drops.entry(*reason).or_default() += whole(*count);
        }
        for (reason, count) in served.by_reason.iter().filter(|(_, count)| count.packets > 0) {
            *counters.drops.entry(*reason).or_default() += whole(*count);
        }
        counters.services = served.hits;
        counters.rules = denied.by_rule.iter().map(|(id, count)| (id.clone(), whole(*count))).collect();
        if let Some(tunnel) = links.get(TUNNEL_LINK) {
            let stats = &tunnel.stats;
            counters.tunnel_sent = Count { packets: stats.tx_packets, bytes: stats.tx_bytes };
            counters.tunnel_received = Count { packets: stats.rx_packets, bytes: stats.rx_bytes };
            // IPv6's count of malformed ones began anew if the device was made anew.
            let ((malformed, late, overlapping), before) = (refused_so_far()?, self.counted_before);
            let malformed = malformed.saturating_sub(before.0);
            drop_more(&mut counters.drops, DropReason::KernelMalformed, stats.rx_errors + malformed);
            drop_more(&mut counters.drops, DropReason::LoneFragment, late.saturating_sub(before.1));
            drop_more(&mut counters.drops, DropReason::BadFragment, overlapping.saturating_sub(before.2));
            drop_more(&mut counters.drops, DropReason::NotForUs, stats.rx_otherhost_dropped);
        }
        if let Some(Desired { snapshot, facts, .. }) = &self.desired {
            let family = snapshot.settings.underlay_family();
            let address = |id| snapshot.peers.get(id)?.tunnel_address(family);
            let narrow = facts.path_mtus.iter().filter_map(|(id, mtu)| Some((address(id)?, *mtu)));
            counters.paths.extend(narrow);
        }
        let limited = self.desired.iter().flat_map(Desired::veths).any(|e| !e.bandwidth.is_none());
        let filters = if limited { shaping::filters(&mut self.netlink)? } else { Vec::new() };
        let held_back = |name: &LinkName| {
            let filter = links.get(name.as_str()).and_then(|link| shaping::of_link(&filters, link.index));
            filter.map_or(0, |filter| filter.dropped)
        };
        for endpoint in self.desired.iter().flat_map(Desired::veths) {
            let mut drops = of_pods.remove(endpoint.key.link_name().as_str()).unwrap_or_default();
            for count in endpoint.addresses.iter().filter_map(|address| denied.by_address.get(address)) {
                *drops.entry(DropReason::PolicyDenied).or_default() += whole(*count);
            }
            for address in &endpoint.addresses {
                let unserved = served.of_pods.range((*address, DropReason::ALL[0])..);
                for ((_, reason), count) in unserved.take_while(|((of, _), _)| of == address) {
                    if count.packets > 0 {
                        *drops.entry(*reason).or_default() += whole(*count);
                    }
                }
            }
            if !endpoint.bandwidth.is_none() {
                let names = [endpoint.key.link_name(), endpoint.key.limit_name()];
                drop_more(&mut drops, DropReason::RateLimited, names.iter().map(held_back).sum());
            }
            if let Some(link) = links.get(endpoint.key.link_name().as_str()) {
                drop_more(&mut drops, DropReason::NotForUs, link.stats.rx_otherhost_dropped);
                for reason in [DropReason::RateLimited, DropReason::NotForUs] {
                    let packets = drops.get(&reason).map_or(0, |count| count.packets);
                    drop_more(&mut counters.drops, reason, packets);
                }
                let from_pod = Count { packets: link.stats.rx_packets, bytes: link.stats.rx_bytes };
                let to_pod = Count { packets: link.stats.tx_packets, bytes: link.stats.tx_bytes };
                counters.endpoints.insert(endpoint.key.clone(), EndpointCounters { from_pod, to_pod, drops });
            }
        }
        Ok(counters)
    }
}

/// What the kernel itself has refused since this namespace was made.
fn refused_so_far() -> Result<(u64, u64, u64), KernelError> {
    let (late, overlapping) = refused::datagrams()?;
    Ok((refused::malformed(TUNNEL_LINK)?, late, overlapping))
}

/// Adds what the kernel has dropped outside of our chains, where it counts no bytes.
fn drop_more(drops: &mut BTreeMap<DropReason, Count>, reason: DropReason, packets: u64) {
    if packets > 0 {
        *drops.entry(reason).or_default() += Count { packets, bytes: 0 };
    }
}

/// Every address of this node.
fn local_addresses() -> Vec<IpAddr> {
    let links = uplink::all().unwrap_or_else(|error| {
        tracing::warn!(%error, "this node's addresses");
        Vec::new()
    });
    links.iter().flat_map(|link| link.addresses.iter().map(IpNetwork::ip)).collect()
}

impl Dataplane for KernelDataplane {
    fn apply(&mut self, update: Update<'_>) -> Result<(), DataplaneError> {
        match update {
            Update::Whole(snapshot) => Ok(self.take_up(snapshot)?),
            Update::Changes(deltas) => Ok(self.change(deltas)?),
        }
    }

    fn attach(&mut self, endpoint: &Endpoint, netns: BorrowedFd<'_>) -> Result<(), DataplaneError> {
        Ok(self.plug(endpoint, netns)?)
    }

    fn detach(&mut self, endpoint: &EndpointKey) -> Result<(), DataplaneError> {
        let name = endpoint.link_name();
        let netns = self.netns.remove(endpoint).and_then(|netns| netns.open()).map(OwnedFd::from);
        match leaving::dismiss_pair(&mut self.netlink, name.as_str(), netns) {
            Ok(true) => self.reaper.delete_group(),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "{endpoint}: its link is deleted while the runtime waits");
                remove_link(&mut self.netlink, name.as_str())?;
            }
        }
        Ok(())
    }

    fn check(&mut self, endpoint: &Endpoint, netns: BorrowedFd<'_>) -> Result<Vec<String>, DataplaneError> {
        Ok(self.examine(endpoint, netns)?)
    }

    fn mend(&mut self) -> Result<Vec<String>, DataplaneError> {
        Ok(self.reconcile()?)
    }

    fn connections(&mut self, filter: &Filter, most: usize) -> Result<Listing, DataplaneError> {
        let pods: BTreeSet<IpAddr> =
            self.desired.iter().flat_map(Desired::veths).flat_map(|pod| pod.addresses.clone()).collect();
        Ok(connections::list(&pods, filter, most)?)
    }

    fn flows(&mut self) -> Result<Events, DataplaneError> {
        let pods =
            self.desired.iter().flat_map(Desired::veths).flat_map(|pod| pod.addresses.clone()).collect();
        let nft = &self.nft;
        Ok(self.ears.take(&pods, |number, at| nft.rule_at(number, at))?)
    }

    fn counters(&mut self) -> Result<Counters, DataplaneError> {
        Ok(self.count()?)
    }
}
