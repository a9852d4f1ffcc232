use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use causeway_kernel_fallback::{
    HOST_LINK, UPLINK_LINK, UPLINK_MAC, delete_link, dismiss_tap, namespace, pod, without_queue,
};
use causeway_model::fastpath::{Device, PortName, Tap};
use causeway_model::{DataplaneError, Endpoint, EndpointKey, MacAddr};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use tracing::warn;

use super::{FastOptions, State};
use crate::error::chain;
use crate::store::Netns;
use crate::tap::{self, Shape, TapError};

/// The host-routed uplink, by name.
pub(super) const UPLINK: &str = UPLINK_LINK;

/// Everything a TAP without a tunnel may leave to the other side.
const OFFLOADS: u32 = tap::TUN_F_CSUM | tap::TUN_F_TSO4 | tap::TUN_F_TSO6 | tap::TUN_F_TSO_ECN;
const UDP_OFFLOADS: u32 = tap::TUN_F_USO4 | tap::TUN_F_USO6;
const TUNNEL_OFFLOADS: u32 = tap::TUN_F_UDP_TUNNEL_GSO | tap::TUN_F_UDP_TUNNEL_GSO_CSUM;

/// A port with the agent's descriptors of it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) device: Device,
    pub(super) queues: Vec<OwnedFd>,
}

impl Held {
    /// Makes the device outlive its descriptors.
    pub(super) fn keep(self, port: &PortName) -> Result<Self, DataplaneError> {
        if let Some(queue) = self.queues.first() {
            tap::keep(link_of(port), queue.as_fd())
                .map_err(failed(format!("keeping the TAP of {port:?}")))?;
        }
        Ok(self)
    }

    /// Lets the device go with its last descriptor.
    pub(super) fn forget(self, port: &PortName) {
        drop(self.release(port));
    }

    /// The descriptors, with the last of which the device will go.
    fn release(self, port: &PortName) -> Vec<OwnedFd> {
        if let Some(queue) = self.queues.first() {
            // It fails only where the device has gone already, which is what is wanted.
            drop(tap::forget(link_of(port), queue.as_fd()));
        }
        self.queues
    }

    /// The name of the device in a namespace, if it still is there.
    fn name_in(&self, netns: BorrowedFd<'_>) -> Option<String> {
        let place = tap::place(self.queues.first()?.as_fd()).ok()?;
        tap::is_in(&place, netns).then_some(place.name)
    }

    /// Whether an uplink is what these options ask for.
    pub(super) fn suits(&self, options: &FastOptions) -> bool {
        match &self.device {
            Device::Ethdev { arguments, .. } => Some(arguments) == options.uplink.as_ref(),
            Device::Tap(_) => options.uplink.is_none(),
        }
    }

    /// Whether somebody took its device away; one of the node's own ports has gone with its name, too.
    pub(super) fn is_gone(&self, port: &PortName) -> bool {
        let Some(queue) = self.queues.first() else { return false };
        let nameless = || {
            matches!(port, PortName::Host | PortName::Uplink)
                && if_nametoindex(link_of(port)) == Err(Errno::ENODEV)
        };
        tap::has_gone(queue.as_fd()) || nameless()
    }
}

/// Whether the device of one of the node's own ports exists.
pub(super) fn exists(port: &PortName) -> bool {
    if_nametoindex(link_of(port)).is_ok()
}

fn link_of(port: &PortName) -> &str {
    match port {
        PortName::Host => HOST_LINK,
        PortName::Uplink => UPLINK_LINK,
        PortName::Endpoint(key) => &key.interface,
    }
}

fn failed(doing: String) -> impl FnOnce(TapError) -> DataplaneError {
    move |source| DataplaneError::Failed { doing, source: Box::new(source) }
}

impl State {
    /// Opens the device of a port, as it was opened before where it was, for good.
    pub(super) fn open(&self, port: &PortName) -> Result<Held, DataplaneError> {
        self.open_unkept(port)?.keep(port)
    }

    fn open_unkept(&self, port: &PortName) -> Result<Held, DataplaneError> {
        let Some(desired) = &self.desired else {
            return Err(DataplaneError::Refused("a port of a state that was never told".into()));
        };
        match port {
            PortName::Host => {
                let open = || open_tap(HOST_LINK, self.options.queues, desired.settings.node.vtep_mac);
                open().map_err(failed(format!("opening {HOST_LINK}")))
            }
            PortName::Uplink => self.open_uplink(),
            PortName::Endpoint(key) => {
                let lost = || {
                    DataplaneError::Refused(format!("endpoint {key}: where its namespace is, is not known"))
                };
                let gone = || DataplaneError::Refused(format!("endpoint {key}: its namespace has gone"));
                let endpoint = desired.endpoints.get(key).ok_or_else(lost)?;
                let place = self.namespaces.get(key).ok_or_else(lost)?;
                let netns = open_namespace(place).ok_or_else(gone)?;
                // A device that outlived both processes is as they left it; one that did not is made anew.
                let left = namespace::within(netns.as_fd(), || {
                    let there = if_nametoindex(key.interface.as_str()).is_ok();
                    there.then(|| open_tap(&key.interface, self.options.queues, endpoint.mac))
                })?;
                match left {
                    Some(opened) => opened.map_err(failed(format!("opening the TAP of {key} again"))),
                    None => make_pod_tap(endpoint, netns.as_fd(), &self.options),
                }
            }
        }
    }

    /// Makes the TAP of a living pod again whose device somebody deleted; none where the pod is no more. What has its name
    /// meanwhile is somebody else's, and stays.
    pub(super) fn open_again(&self, key: &EndpointKey) -> Result<Option<Held>, DataplaneError> {
        let endpoint = self.desired.as_ref().and_then(|desired| desired.endpoints.get(key));
        let netns = self.namespaces.get(key).and_then(open_namespace);
        let Some((endpoint, netns)) = endpoint.zip(netns) else { return Ok(None) };
        make_pod_tap(endpoint, netns.as_fd(), &self.options)?.keep(&PortName::Endpoint(key.clone())).map(Some)
    }

    fn open_uplink(&self) -> Result<Held, DataplaneError> {
        let queues = self.options.queues;
        if let Some(arguments) = &self.options.uplink {
            let device = Device::Ethdev { arguments: arguments.clone(), queues };
            return Ok(Held { device, queues: Vec::new() });
        }
        let whole =
            Shape { queues, header: tap::TUNNEL_HEADER, offloads: OFFLOADS | UDP_OFFLOADS | TUNNEL_OFFLOADS };
        if !self.options.mask_tunnel_gso {
            match tap::open(UPLINK_LINK, whole) {
                Ok(opened) => return Ok(held(opened, whole, UPLINK_MAC)),
                // A kernel before 6.17 knows neither the offload nor the longer header.
                Err(error) if error.errno() == Errno::EINVAL => {}
                Err(error) => return Err(failed(format!("opening {UPLINK_LINK}"))(error)),
            }
        }
        // Without tunnel offload nothing may come or go unsegmented: what would be is the outer datagram.
        let plain = Shape { queues, header: tap::HEADER, offloads: 0 };
        let opened = tap::open(UPLINK_LINK, plain).map_err(failed(format!("opening {UPLINK_LINK}")))?;
        Ok(held(opened, plain, UPLINK_MAC))
    }
}

/// Opens a TAP that takes and gives TCP unsegmented, and UDP where the kernel can (Linux 6.2).
fn open_tap(name: &str, queues: u16, mac: MacAddr) -> Result<Held, TapError> {
    let with_udp = Shape { queues, header: tap::HEADER, offloads: OFFLOADS | UDP_OFFLOADS };
    match tap::open(name, with_udp) {
        Ok(opened) => Ok(held(opened, with_udp, mac)),
        Err(error) if error.errno() == Errno::EINVAL => {
            let without = Shape { offloads: OFFLOADS, ..with_udp };
            Ok(held(tap::open(name, without)?, without, mac))
        }
        Err(error) => Err(error),
    }
}

fn held(queues: Vec<OwnedFd>, shape: Shape, mac: MacAddr) -> Held {
    let tap = Tap { queues: shape.queues, header: shape.header, offloads: shape.offloads, mac };
    Held { device: Device::Tap(tap), queues }
}

impl State {
    /// Takes a pod's link away: out of use and out of the way of its name at once, deleted behind it. A stopped fast path
    /// holds its descriptors, and a restarted agent may hold none: the link goes all the same.
    pub(super) fn take_away(
        &mut self,
        key: &EndpointKey,
        netns: Option<OwnedFd>,
    ) -> Result<(), DataplaneError> {
        let port = PortName::Endpoint(key.clone());
        let held = self.give_up(&port).or(self.prepared.remove(key));
        let mut dismissed = Ok(());
        if let Some(netns) = netns {
            // Whatever has its name meanwhile is not ours while our own device can be told.
            let name = match &held {
                Some(held) => held.name_in(netns.as_fd()),
                None => Some(key.interface.clone()),
            };
            let dismissed_there = |name: String| {
                namespace::within(netns.as_fd(), || dismiss_tap(&name)).and_then(|there| there)
            };
            match name.map_or(Ok(None), dismissed_there) {
                Ok(Some(index)) => self.reaper.delete(netns, index),
                Ok(None) => {}
                Err(error) => dismissed = Err(error.into()),
            }
        }
        if let Some(held) = held {
            self.reaper.close(held.release(&port));
        }
        dismissed
    }
}

/// Makes a pod's TAP inside its namespace and configures it; until it is kept it goes with its descriptors. On failure nothing
/// is left there.
pub(super) fn make_pod_tap(
    endpoint: &Endpoint,
    netns: BorrowedFd<'_>,
    options: &FastOptions,
) -> Result<Held, DataplaneError> {
    let name = &endpoint.key.interface;
    let opened = namespace::within(netns, || {
        if if_nametoindex(name.as_str()).is_ok() {
            return Err(DataplaneError::Refused(format!("interface {name} exists in the pod's namespace")));
        }
        let opened = open_tap(name, options.queues, endpoint.mac)
            .map_err(failed(format!("making the TAP of {}", endpoint.key)))?;
        if let Err(error) = without_queue(name) {
            // With one it works as well, and takes more memory.
            warn!("{}", chain(&error));
        }
        Ok(opened)
    })??;
    if let Err(error) = pod::configure(netns, name, endpoint) {
        opened.forget(&PortName::Endpoint(endpoint.key.clone()));
        return Err(error.into());
    }
    Ok(opened)
}

/// A pod's namespace, unless it has gone or another one has its path.
pub(super) fn open_namespace(place: &Netns) -> Option<File> {
    let file = namespace::open(place.path.as_ref()).ok()?;
    let metadata = file.metadata().ok()?;
    ((metadata.dev(), metadata.ino()) == (place.device, place.inode)).then_some(file)
}

/// Deletes a pod's TAP by name. A namespace or a link that has gone is no failure.
pub(crate) fn delete_pod_tap(interface: &str, place: &Netns) -> Result<(), DataplaneError> {
    let Some(netns) = open_namespace(place) else { return Ok(()) };
    Ok(namespace::within(netns.as_fd(), || delete_link(interface))??)
}
