//! The answer to a neighbor solicitation.

use std::net::Ipv6Addr;

use zerocopy::IntoBytes;

use super::{NoReply, icmpv6, lay_icmpv6};
use crate::{
    Icmpv6, Icmpv6Type, IpProtocol, Ipv6, MacAddr, Malformed, NdpOption, NeighborAdvertisement,
    NeighborSolicitation, Upper,
};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// No router passes Neighbor Discovery on: it is sent with the highest hop limit and taken with no other.
const HOP_LIMIT: u8 = 255;

/// Answers the neighbor solicitation in `packet`, an IPv6 packet, with `mac` (RFC 4861 §7.2.4); whether the
/// target is ours to answer for is the caller's to know. `router` says that the target is one. A question
/// from nobody (duplicate address detection) is answered to all nodes: the destination address of what was
/// written tells, and [`MacAddr::for_multicast`] then says where its frame goes.
pub fn neighbor_advertisement(
    packet: &[u8],
    mac: MacAddr,
    router: bool,
    out: &mut [u8],
) -> Result<usize, NoReply> {
    let (about, target) = solicited(packet)?;
    let asker = about.source();
    let (destination, solicited) = if asker.is_unspecified() {
        (ALL_NODES, 0)
    } else if icmpv6::is_single_host(asker) {
        (asker, NeighborAdvertisement::SOLICITED)
    } else {
        return Err(NoReply::Forbidden);
    };
    let router = if router { NeighborAdvertisement::ROUTER } else { 0 };
    let flags = router | solicited | NeighborAdvertisement::OVERRIDE;
    let mut header = Ipv6::new(target, destination, IpProtocol::ICMPV6, 0);
    header.set_hop_limit(HOP_LIMIT);
    let head = NeighborAdvertisement::new(target, flags);
    let option = NdpOption::link_layer(NdpOption::TARGET_LINK_LAYER, mac);
    lay_icmpv6(header, [head.as_bytes(), &option], out)
}

/// The header and the target of a solicitation that is valid by RFC 4861 §7.1.1.
fn solicited(packet: &[u8]) -> Result<(&Ipv6, Ipv6Addr), NoReply> {
    let (about, payload) = Ipv6::split(packet)?;
    let upper = Upper::find(about.next_header(), payload)?;
    let kind = upper.payload.first().map(|kind| Icmpv6Type(*kind));
    if upper.protocol != IpProtocol::ICMPV6
        || upper.is_inside_fragment()
        || kind != Some(Icmpv6Type::NEIGHBOR_SOLICITATION)
    {
        return Err(NoReply::NotRequest);
    }
    let (head, options) = NeighborSolicitation::split(upper.payload)?;
    let source_mac = options.link_layer(NdpOption::SOURCE_LINK_LAYER)?;
    let from_nobody = about.source().is_unspecified();
    if about.hop_limit() != HOP_LIMIT
        || upper.fragment.is_some() // RFC 6980 §5
        || head.target().is_multicast()
        || (from_nobody && (source_mac.is_some() || !is_solicited_node(about.destination())))
    {
        return Err(Malformed::NdpInvalid.into());
    }
    Icmpv6::verify(about.source(), about.destination(), upper.payload)?;
    Ok((about, head.target()))
}

/// True for the groups that addresses of the same last 24 bits share (RFC 4291 §2.7.1).
fn is_solicited_node(address: Ipv6Addr) -> bool {
    matches!(address.segments(), [0xff02, 0, 0, 0, 0, 1, 0xff00..=0xffff, _])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum;

    const POD: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99);
    const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 1);
    const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0b]);
    const SOURCE_OPTION: [u8; 8] =
        NdpOption::link_layer(NdpOption::SOURCE_LINK_LAYER, MacAddr([2, 0, 0, 0, 0, 0x0a]));

    fn question(source: Ipv6Addr, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
        let mut header = Ipv6::new(source, GROUP, IpProtocol::ICMPV6, 0);
        header.set_hop_limit(255);
        let mut out = vec![0; 200];
        let head = NeighborSolicitation::new(target);
        let len = lay_icmpv6(header, [head.as_bytes(), options], &mut out).unwrap();
        out.truncate(len);
        out
    }

    fn answer(packet: &[u8]) -> Result<Vec<u8>, NoReply> {
        let mut out = vec![0xee; 100];
        let written = neighbor_advertisement(packet, OURS, true, &mut out);
        if written.is_err() {
            assert_eq!(out, [0xee; 100]);
        }
        written.map(|len| out[..len].to_vec())
    }

    #[test]
    fn a_question_is_answered_to_its_sender() {
        let bytes = answer(&question(POD, GATEWAY, &SOURCE_OPTION)).unwrap();
        let (header, message) = Ipv6::split(&bytes).unwrap();
        assert_eq!((header.source(), header.destination(), header.hop_limit()), (GATEWAY, POD, 255));
        assert_eq!(Icmpv6::verify(GATEWAY, POD, message), Ok(()));
        let (head, options) = NeighborAdvertisement::split(message).unwrap();
        assert_eq!(head.target(), GATEWAY);
        assert!(head.is_router() && head.is_solicited() && head.overrides());
        assert_eq!(options.link_layer(NdpOption::TARGET_LINK_LAYER), Ok(Some(OURS)));
        let mut out = [0; 100];
        neighbor_advertisement(&question(POD, GATEWAY, &[]), OURS, false, &mut out).unwrap();
        let (head, _) = NeighborAdvertisement::split(Ipv6::split(&out).unwrap().1).unwrap();
        assert!(!head.is_router());
        let short = neighbor_advertisement(&question(POD, GATEWAY, &[]), OURS, true, &mut out[..71]);
        assert_eq!(short, Err(NoReply::NoRoom));
    }

    #[test]
    fn a_question_from_nobody_is_answered_to_all() {
        let bytes = answer(&question(Ipv6Addr::UNSPECIFIED, GATEWAY, &[])).unwrap();
        let (header, message) = Ipv6::split(&bytes).unwrap();
        assert_eq!(header.destination(), ALL_NODES);
        assert_eq!(MacAddr::for_multicast(header.destination()).to_string(), "33:33:00:00:00:01");
        assert!(!NeighborAdvertisement::split(message).unwrap().0.is_solicited());
    }

    #[test]
    fn what_rfc_4861_discards_is_not_answered() {
        let invalid = Err(NoReply::Malformed(Malformed::NdpInvalid));
        let mut off_link = question(POD, GATEWAY, &SOURCE_OPTION);
        off_link[7] = 254;
        assert_eq!(answer(&off_link), invalid);
        assert_eq!(answer(&question(POD, GROUP, &SOURCE_OPTION)), invalid);
        assert_eq!(answer(&question(Ipv6Addr::UNSPECIFIED, GATEWAY, &SOURCE_OPTION)), invalid);
        let mut to_one = question(Ipv6Addr::UNSPECIFIED, GATEWAY, &[]);
        Ipv6::split_mut(&mut to_one).unwrap().0.set_destination(GATEWAY);
        assert_eq!(answer(&to_one), invalid);
        assert_eq!(answer(&question(ALL_NODES, GATEWAY, &[])), Err(NoReply::Forbidden));
        let zero_length = question(POD, GATEWAY, &[1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(answer(&zero_length), Err(Malformed::NdpOption.into()));
        let mut damaged = question(POD, GATEWAY, &SOURCE_OPTION);
        damaged[71] ^= 1;
        assert_eq!(answer(&damaged), Err(Malformed::IcmpChecksum.into()));
        let mut code = question(POD, GATEWAY, &SOURCE_OPTION);
        code[41] = 1;
        assert_eq!(answer(&code), Err(Malformed::NdpKind.into()));
        assert_eq!(answer(&answer(&question(POD, GATEWAY, &[])).unwrap()), Err(NoReply::NotRequest));
    }

    #[test]
    fn a_fragmented_question_is_not_answered() {
        let plain = question(POD, GATEWAY, &SOURCE_OPTION);
        let mut bytes = [&plain[..40], &[58, 0, 0, 0, 0, 0, 0, 1], &plain[40..]].concat();
        let (header, _) = Ipv6::split_mut(&mut bytes).unwrap();
        header.set_next_header(IpProtocol::FRAGMENT);
        header.set_payload_length(40);
        assert_eq!(checksum::transport_v6(POD, GROUP, IpProtocol::ICMPV6, &bytes[48..]), 0);
        assert_eq!(answer(&bytes), Err(Malformed::NdpInvalid.into()));
    }
}
