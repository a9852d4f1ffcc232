//! ICMP errors, and refusals in the words of the transport. The packet that could not be forwarded becomes the answer in its own buffer, so that an answer never fails for want
//! of one.

use causeway_model::{DropReason, GATEWAY_MAC};
use causeway_wire::reply::{
    ICMPV4_ERROR_LIMIT, ICMPV6_ERROR_LIMIT, Icmpv4Error, Icmpv6Error, NoReply, REFUSAL_LIMIT, icmpv4_error,
    icmpv4_error_forbidden, icmpv6_error, icmpv6_error_forbidden, sctp_abort, tcp_reset,
};
use causeway_wire::{EtherType, Ethernet};

use crate::limit::ErrorLimits;
use crate::send::{dispatch_anew, mtu};
use crate::world::World;
use crate::{Buffer, Frame, Port};

/// Makes a refused packet the answer to its sender, where there is one to give; false when there is none.
#[cold]
pub(crate) fn tell_sender<B: Buffer>(
    frame: &mut Frame<B>,
    reason: DropReason,
    from: Port,
    world: &World,
    limits: &mut ErrorLimits,
    now: u64,
) -> bool {
    let (v4, v6, bucket) = match reason {
        DropReason::TooBig => {
            let mtu = mtu((frame.egress, frame.peer), world);
            let v4 = Icmpv4Error::FragmentationNeeded { mtu: mtu as u16 };
            (v4, Icmpv6Error::PacketTooBig { mtu: mtu as u32 }, &mut limits.too_big)
        }
        DropReason::NoSuchEndpoint => {
            (Icmpv4Error::HostUnreachable, Icmpv6Error::NoRoute, &mut limits.others)
        }
        DropReason::ServiceRefused => match refuse(frame, from, world) {
            Err(NoReply::NotRequest) => {
                (Icmpv4Error::PortUnreachable, Icmpv6Error::PortUnreachable, &mut limits.others)
            }
            answered => return answered.is_ok(),
        },
        DropReason::HopLimit => (Icmpv4Error::TimeExceeded, Icmpv6Error::TimeExceeded, &mut limits.others),
        _ => return false,
    };
    let Ok((ethernet, packet)) = Ethernet::split(frame.head()) else { return false };
    let (link, ether_type) = (ethernet.destination(), ethernet.ether_type());
    let forbidden = match ether_type {
        EtherType::IPV4 => icmpv4_error_forbidden(link, packet),
        _ => icmpv6_error_forbidden(v6, link, packet),
    };
    if forbidden || !bucket.take(now) {
        return false;
    }
    let mut answer =
        [0; if ICMPV4_ERROR_LIMIT > ICMPV6_ERROR_LIMIT { ICMPV4_ERROR_LIMIT } else { ICMPV6_ERROR_LIMIT }];
    let len = match ether_type {
        EtherType::IPV4 => icmpv4_error(v4, world.router.0, link, packet, &mut answer),
        _ => icmpv6_error(v6, world.router.1, link, packet, &mut answer),
    };
    let Ok(len) = len else { return false };
    frame.egress = from;
    let ethernet = Ethernet::new(link, GATEWAY_MAC, ether_type);
    frame.replace(ethernet, &answer[..len]).and_then(|()| dispatch_anew(frame, world)).is_ok()
}

/// Makes a packet its own refusal, where its transport has one: that is one answer to one packet, no longer than it, and needs no limit.
fn refuse<B: Buffer>(frame: &mut Frame<B>, from: Port, world: &World) -> Result<(), NoReply> {
    let (ethernet, packet) = Ethernet::split(frame.head())?;
    let ether_type = ethernet.ether_type();
    let mut answer = [0; REFUSAL_LIMIT];
    let len = match tcp_reset(packet, &mut answer) {
        Err(NoReply::NotRequest) => sctp_abort(packet, &mut answer),
        written => written,
    }?;
    frame.egress = from;
    let ethernet = Ethernet::new(GATEWAY_MAC, GATEWAY_MAC, ether_type);
    let sent = frame.replace(ethernet, &answer[..len]).and_then(|()| dispatch_anew(frame, world));
    sent.map_err(|_| NoReply::NoRoom)
}
