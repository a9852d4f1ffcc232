//! Why bytes are not the header that was asked for.

use thiserror::Error;

/// Why bytes are not the header that was asked for: one name per reason, none of them carrying data,
/// so that a drop counter can be indexed by it.
#[derive(Error, Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Malformed {
    /// Fewer than 14 bytes of frame.
    #[error("the frame ends inside its Ethernet header")]
    EthernetShort,
    /// An 802.1Q tag was announced and the frame ends inside it.
    #[error("the frame ends inside its 802.1Q tag")]
    VlanShort,
    /// An ARP packet that ends before its addresses do.
    #[error("the frame ends inside its ARP packet")]
    ArpShort,
    /// ARP for something else than IPv4 over Ethernet.
    #[error("ARP for other addresses than IPv4 over Ethernet")]
    ArpUnsupported,
    /// The packet ends inside its IPv4 header or options.
    #[error("the packet ends inside its IPv4 header")]
    Ipv4Short,
    /// The version field is not 4.
    #[error("the IPv4 header has another version")]
    Ipv4Version,
    /// The header length field says less than 20 bytes.
    #[error("the IPv4 header length is below 20 bytes")]
    Ipv4HeaderLength,
    /// The total length is less than the header or more than the bytes present.
    #[error("the IPv4 total length contradicts the bytes present")]
    Ipv4TotalLength,
    /// The header does not sum up to its checksum.
    #[error("the IPv4 header checksum is wrong")]
    Ipv4Checksum,
    /// The packet ends inside its IPv6 header.
    #[error("the packet ends inside its IPv6 header")]
    Ipv6Short,
    /// The version field is not 6.
    #[error("the IPv6 header has another version")]
    Ipv6Version,
    /// The payload length is more than the bytes present.
    #[error("the IPv6 payload length contradicts the bytes present")]
    Ipv6PayloadLength,
    /// The packet ends inside an extension header.
    #[error("the packet ends inside an IPv6 extension header")]
    Ipv6ExtensionShort,
    /// Extension headers in a forbidden order, or more of them than anybody sends.
    #[error("the IPv6 extension headers are too many or out of order")]
    Ipv6ExtensionChain,
    /// Fewer than 8 bytes of ICMP message.
    #[error("the packet ends inside its ICMP header")]
    IcmpShort,
    /// The message does not sum up to its checksum.
    #[error("the ICMP checksum is wrong")]
    IcmpChecksum,
    /// The message ends inside the fixed part of a Neighbor Discovery message.
    #[error("the packet ends inside its Neighbor Discovery message")]
    NdpShort,
    /// Another type or code than the Neighbor Discovery message that was asked for.
    #[error("another ICMPv6 type or code than the Neighbor Discovery message asked for")]
    NdpKind,
    /// The message breaks a validity rule of RFC 4861 §7.1 (hop limit, addresses).
    #[error("the Neighbor Discovery message must be discarded by RFC 4861")]
    NdpInvalid,
    /// A Neighbor Discovery option of length zero, or one that ends beyond the message.
    #[error("a Neighbor Discovery option has an impossible length")]
    NdpOption,
    /// The segment ends inside its TCP header or options.
    #[error("the packet ends inside its TCP header")]
    TcpShort,
    /// The data offset says less than 20 bytes or more than the bytes present.
    #[error("the TCP data offset contradicts the bytes present")]
    TcpDataOffset,
    /// Fewer than 8 bytes of UDP datagram.
    #[error("the packet ends inside its UDP header")]
    UdpShort,
    /// The UDP length is below 8 or more than the bytes present.
    #[error("the UDP length contradicts the bytes present")]
    UdpLength,
    /// Fewer than 12 bytes of SCTP packet.
    #[error("the packet ends inside its SCTP common header")]
    SctpShort,
    /// Fewer than the four bytes that carry a transport's ports.
    #[error("the packet ends before its ports do")]
    PortsShort,
    /// Fewer than 8 bytes of VXLAN payload.
    #[error("the datagram ends inside its VXLAN header")]
    VxlanShort,
    /// The I flag is not set, so the VNI field means nothing.
    #[error("the VXLAN header carries no valid VNI")]
    VxlanWithoutVni,
}
