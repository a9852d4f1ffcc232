//! The answer to an ARP request.

use zerocopy::IntoBytes;

use super::{NoReply, lay};
use crate::{Arp, ArpOperation, MacAddr};

/// Answers the ARP request in `payload` with `mac` (RFC 826). Whether the address asked for is ours to
/// answer for is the caller's to know, and whether the question is somebody's probe for a conflict (its
/// sender address is unspecified, RFC 5227).
pub fn arp_reply(payload: &[u8], mac: MacAddr, out: &mut [u8]) -> Result<usize, NoReply> {
    let (request, _) = Arp::split(payload)?;
    if request.operation() != ArpOperation::REQUEST {
        return Err(NoReply::NotRequest);
    }
    // An answer would go to everybody, in the name of nobody.
    if request.sender_mac().is_multicast() {
        return Err(NoReply::Forbidden);
    }
    let asker = (request.sender_mac(), request.sender_ip());
    let reply = Arp::new(ArpOperation::REPLY, (mac, request.target_ip()), asker);
    Ok(lay(&[reply.as_bytes()], out)?.len())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::Malformed;

    const ASKER: (MacAddr, Ipv4Addr) = (MacAddr([2, 0, 0, 0, 0, 0x0a]), Ipv4Addr::new(10, 70, 1, 5));
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
    const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0b]);

    #[test]
    fn a_request_is_answered_to_its_sender() {
        let request = Arp::new(ArpOperation::REQUEST, ASKER, (MacAddr::ZERO, GATEWAY));
        let mut out = [0xee; 40];
        assert_eq!(arp_reply(request.as_bytes(), OURS, &mut out), Ok(28));
        assert_eq!(Arp::split(&out).unwrap().0, &Arp::new(ArpOperation::REPLY, (OURS, GATEWAY), ASKER));
        assert_eq!(out[28..], [0xee; 12]);
        assert_eq!(arp_reply(request.as_bytes(), OURS, &mut out[..27]), Err(NoReply::NoRoom));
    }

    #[test]
    fn nothing_else_is_answered() {
        let mut out = [0; 28];
        let reply = Arp::new(ArpOperation::REPLY, ASKER, (OURS, GATEWAY));
        assert_eq!(arp_reply(reply.as_bytes(), OURS, &mut out), Err(NoReply::NotRequest));
        let from_all = Arp::new(ArpOperation::REQUEST, (MacAddr::BROADCAST, ASKER.1), (OURS, GATEWAY));
        assert_eq!(arp_reply(from_all.as_bytes(), OURS, &mut out), Err(NoReply::Forbidden));
        assert_eq!(arp_reply(&reply.as_bytes()[..9], OURS, &mut out), Err(Malformed::ArpShort.into()));
        assert_eq!(out, [0; 28]);
    }
}
