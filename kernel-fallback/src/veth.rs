//! A pod's pair of interfaces: one end on the node, the other in the pod.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use causeway_model::{Endpoint, GATEWAY_MAC};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use nix::errno::Errno;

use crate::error::KernelError;
use crate::install::remove_link;
use crate::netlink::Netlink;
use crate::objects::HOST_END_MTU;
use crate::observe;

/// A pair that has just been made; dropped, it is taken away again.
#[must_use = "dropped, the pair is taken away again"]
pub(crate) struct NewVeth {
    name: Option<String>,
}

impl NewVeth {
    /// The pair stays.
    pub(crate) fn keep(mut self) {
        self.name = None;
    }
}

impl Drop for NewVeth {
    fn drop(&mut self) {
        if let Some(name) = self.name.take()
            && let Err(error) = Netlink::route().and_then(|mut netlink| remove_link(&mut netlink, &name))
        {
            tracing::error!(%error, "a half-made pod link is left behind");
        }
    }
}

/// Makes the pair of an endpoint: the node's end under its derived name, the pod's end in the pod's namespace under its final
/// name and address. Both are down. A pair of the same name, left over from an attempt that nobody finished, goes first.
pub(crate) fn create(
    netlink: &mut Netlink,
    endpoint: &Endpoint,
    netns: BorrowedFd<'_>,
) -> Result<NewVeth, KernelError> {
    let name = endpoint.key.link_name().to_string();
    let interface = &endpoint.key.interface;
    remove_link(netlink, &name)?;
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(interface.clone()),
        LinkAttribute::Address(endpoint.mac.0.to_vec()),
        LinkAttribute::Mtu(endpoint.mtu.into()),
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
    ];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.clone()),
        LinkAttribute::Address(GATEWAY_MAC.0.to_vec()),
        LinkAttribute::Mtu(HOST_END_MTU.into()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    let made = netlink.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, || {
        format!("making veth {name} with {interface} in the pod")
    });
    match made {
        Ok(()) => Ok(NewVeth { name: Some(name) }),
        Err(error) if error.errno() == Some(Errno::EEXIST as i32) => {
            Err(KernelError::InterfaceExists(interface.clone()))
        }
        Err(error) => Err(error),
    }
}

/// How long the kernel may take to open a link's queue; it takes as long as its workers wait for a processor.
const OPENS_WITHIN: Duration = Duration::from_secs(2);

/// Waits until the node's end of a pair sends what it is given. It is brought up first, and the kernel opens its queue only when one
/// of its workers gets round to the carrier that the pod's end brought (linkwatch): until then every packet to the pod is lost.
pub(crate) fn await_open(netlink: &mut Netlink, name: &str) -> Result<(), KernelError> {
    let begun = Instant::now();
    loop {
        // Since Linux 6.8 the question alone makes it so.
        let link = observe::link(netlink, name)?.ok_or_else(|| KernelError::NoLink(name.to_owned()))?;
        if link.running {
            return Ok(());
        }
        if begun.elapsed() > OPENS_WITHIN {
            let source = std::io::Error::from(std::io::ErrorKind::TimedOut);
            return Err(KernelError::Io { doing: format!("waiting for link {name} to run"), source });
        }
        sleep(Duration::from_millis(1));
    }
}
