use std::net::{Ipv4Addr, Ipv6Addr};

use causeway_model::DropReason;
use causeway_wire::{EtherType, Ethernet, IpProtocol, Ipv4, Ipv6, Malformed, Ports, TrafficClass, Upper};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::connection::{End, Key};
use crate::offload::settle;
use crate::table::{Address, Prefixes};
use crate::world::{Owner, Pod, World};
use crate::{Buffer, Frame};

/// An address family, as a frame's EtherType names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// The family of the packet in a frame, if there is one.
    #[inline]
    pub(crate) fn of(head: &[u8]) -> Option<Self> {
        match EtherType(u16::from_be_bytes(*head.get(12..)?.first_chunk()?)) {
            EtherType::IPV4 => Some(Self::V4),
            EtherType::IPV6 => Some(Self::V6),
            _ => None,
        }
    }
}

/// What the program asks of an IP header. The program is compiled once for each family, so that a packet's family is looked at once
/// and all that is known of the packet stays in registers.
pub(crate) trait Ip: Copy {
    const FAMILY: Family;
    /// A number that tables are keyed by.
    type Address: Address;

    /// Reads the front of a packet and checks its header.
    fn front(packet: &[u8]) -> Result<Front<Self>, Malformed>;

    /// Takes one from the hop limit of a packet that has more than one.
    fn count_hop(packet: &mut [u8]);

    /// Whose an address is.
    fn owners(world: &World) -> &Prefixes<Self::Address, Owner>;

    /// Whether an address is the pod's own.
    fn is_own(pod: &Pod, address: Self::Address) -> bool;

    /// Whether an address can be that of one host, and routers forward packets to and from it.
    fn is_routable(address: Self::Address) -> bool;

    /// 64 bits that tell addresses apart.
    fn digest(address: Self::Address) -> u64;

    /// The key of a connection between two addresses and ports, and the end that the first of them is.
    fn key(
        source: (Self::Address, u16),
        destination: (Self::Address, u16),
        protocol: IpProtocol,
    ) -> (Key, End);

    /// What a packet says of which at least the header is there.
    fn quoted(packet: &[u8]) -> Option<Quoted<'_, Self>>;
}

/// What the front of a packet says, read once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Front<I: Ip> {
    pub(crate) source: I::Address,
    pub(crate) destination: I::Address,
    pub(crate) class: TrafficClass,
    pub(crate) hop_limit: u8,
    /// What it carries; nothing when its extension headers lead nowhere.
    pub(crate) transport: Option<Transport>,
    /// Bytes of the packet.
    len: usize,
}

impl<I: Ip> Front<I> {
    /// A part of a packet, first or not.
    #[inline(always)]
    pub(crate) fn is_fragment(&self) -> bool {
        self.transport.is_some_and(|transport| transport.fragment)
    }
}

/// A packet as an error quotes it: its header, and of what is behind it at least the beginning.
pub(crate) struct Quoted<'a, I: Ip> {
    pub(crate) source: I::Address,
    pub(crate) destination: I::Address,
    pub(crate) protocol: IpProtocol,
    pub(crate) transport: &'a [u8],
}

/// What a packet carries, and where in its frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Transport {
    pub(crate) protocol: IpProtocol,
    /// The ports of TCP, UDP and SCTP, source first; zero where there are none, and never read from a later fragment.
    pub(crate) ports: [u16; 2],
    /// Whether they are there.
    pub(crate) has_ports: bool,
    /// Where it begins, counted from the Ethernet header.
    pub(crate) offset: usize,
    /// A part of a packet, first or not.
    pub(crate) fragment: bool,
    /// Every fragment but the first: no transport header is there.
    pub(crate) inside: bool,
}

/// Takes a packet whose front was read for what it says: cuts off Ethernet's padding, and checks what was left to hardware.
#[inline(always)]
pub(crate) fn examine<B: Buffer, I: Ip>(
    frame: &mut Frame<B>,
    front: Result<Front<I>, Malformed>,
) -> Result<Front<I>, DropReason> {
    let front = front?;
    let len = Ethernet::LEN + front.len;
    if len != frame.len() {
        if len > frame.len() {
            return Err(DropReason::Malformed);
        }
        frame.truncate(len);
    }
    if !frame.offload.is_none() {
        settle::<B, I>(frame, front.transport)?;
    }
    Ok(front)
}

impl Ip for Ipv4 {
    const FAMILY: Family = Family::V4;
    type Address = u32;

    fn front(packet: &[u8]) -> Result<Front<Self>, Malformed> {
        let (ip, payload) = Self::split_verified(packet)?;
        let ports = Ports::split(payload).ok().map(|(ports, _)| *ports);
        let part = (ip.is_fragment(), ip.fragment_offset() != 0);
        Ok(front_v4(ip, ip.header_len(), ports, part))
    }

    #[inline(always)]
    fn count_hop(packet: &mut [u8]) {
        if let Ok((ip, _)) = FromBytes::mut_from_prefix(packet) {
            Self::decrement_ttl(ip);
        }
    }

    #[inline(always)]
    fn owners(world: &World) -> &Prefixes<u32, Owner> {
        &world.owners_v4
    }

    #[inline(always)]
    fn is_own(pod: &Pod, address: u32) -> bool {
        pod.v4 == Some(address)
    }

    fn is_routable(address: u32) -> bool {
        let address = Ipv4Addr::from(address);
        let first = address.octets()[0];
        !(address.is_multicast() || address.is_loopback() || first == 0 || first >= 240)
    }

    #[inline(always)]
    fn digest(address: u32) -> u64 {
        address.into()
    }

    #[inline(always)]
    fn key(source: (u32, u16), destination: (u32, u16), protocol: IpProtocol) -> (Key, End) {
        Key::v4(source, destination, protocol)
    }

    fn quoted(packet: &[u8]) -> Option<Quoted<'_, Self>> {
        let (ip, transport) = Self::split_partial(packet).ok()?;
        let (source, destination) = (ip.source().into(), ip.destination().into());
        Some(Quoted { source, destination, protocol: ip.protocol(), transport })
    }
}

impl Ip for Ipv6 {
    const FAMILY: Family = Family::V6;
    type Address = u128;

    #[inline(always)]
    fn front(packet: &[u8]) -> Result<Front<Self>, Malformed> {
        let (ip, payload) = Self::split_partial(packet)?;
        let transport = match ip.next_header() {
            protocol @ (IpProtocol::TCP | IpProtocol::UDP) => {
                let ports = Ports::split(payload).ok().map(|(ports, _)| *ports);
                Some(Transport {
                    protocol,
                    ports: numbers(ports),
                    has_ports: ports.is_some(),
                    offset: Ethernet::LEN + Self::LEN,
                    fragment: false,
                    inside: false,
                })
            }
            other => behind_extensions(other, payload),
        };
        Ok(Front {
            source: ip.source().into(),
            destination: ip.destination().into(),
            class: ip.traffic_class(),
            hop_limit: ip.hop_limit(),
            transport,
            len: Self::LEN + usize::from(ip.payload_length()),
        })
    }

    #[inline(always)]
    fn count_hop(packet: &mut [u8]) {
        if let Ok((ip, _)) = FromBytes::mut_from_prefix(packet) {
            Self::decrement_hop_limit(ip);
        }
    }

    #[inline(always)]
    fn owners(world: &World) -> &Prefixes<u128, Owner> {
        &world.owners_v6
    }

    #[inline(always)]
    fn is_own(pod: &Pod, address: u128) -> bool {
        pod.v6 == Some(address.to_ne_bytes())
    }

    fn is_routable(address: u128) -> bool {
        let address = Ipv6Addr::from(address);
        !(address.is_multicast()
            || address.is_loopback()
            || address.is_unspecified()
            || address.is_unicast_link_local())
    }

    #[inline(always)]
    fn digest(address: u128) -> u64 {
        crate::entropy::mix((address >> 64) as u64).wrapping_add(address as u64)
    }

    #[inline(always)]
    fn key(source: (u128, u16), destination: (u128, u16), protocol: IpProtocol) -> (Key, End) {
        Key::v6(source, destination, protocol)
    }

    fn quoted(packet: &[u8]) -> Option<Quoted<'_, Self>> {
        let (ip, payload) = Self::split_partial(packet).ok()?;
        let upper = Upper::find(ip.next_header(), payload).ok()?;
        let transport = payload.get(upper.offset..)?;
        let (source, destination) = (ip.source().into(), ip.destination().into());
        Some(Quoted { source, destination, protocol: upper.protocol, transport })
    }
}

/// The commonest frame: IPv4 without options, no fragment, and at least four bytes behind the header.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Common {
    ethernet: Ethernet,
    ip: Ipv4,
    ports: Ports,
}

/// What the front of a packet says, if its frame is of the commonest kind. Whoever asks this first and [`front`] for the others, in a
/// function of its own, has nothing in memory of what it knows of the packet.
#[inline(always)]
pub(crate) fn common_front(head: &[u8]) -> Option<Result<Front<Ipv4>, Malformed>> {
    let (Common { ethernet, ip, ports }, _) = Common::ref_from_prefix(head).ok()?;
    let is_common = ethernet.ether_type() == EtherType::IPV4 && ip.is_without_options() && !ip.is_fragment();
    is_common.then(|| {
        ip.is_right_without_options().map(|()| front_v4(ip, Ipv4::LEN, Some(*ports), (false, false)))
    })
}

/// What the front of the packet in a frame says.
#[inline(always)]
pub(crate) fn front<I: Ip>(head: &[u8]) -> Result<Front<I>, Malformed> {
    I::front(head.get(Ethernet::LEN..).ok_or(Malformed::EthernetShort)?)
}

/// The front of a packet with a right header of so many bytes; `ports` is what is behind it, whatever that is.
#[inline(always)]
fn front_v4(ip: &Ipv4, header: usize, ports: Option<Ports>, (fragment, inside): (bool, bool)) -> Front<Ipv4> {
    let protocol = ip.protocol();
    let len = usize::from(ip.total_length());
    let ports = ports.filter(|_| protocol.has_ports() && !inside && len >= header + size_of::<Ports>());
    let transport = Transport {
        protocol,
        ports: numbers(ports),
        has_ports: ports.is_some(),
        offset: Ethernet::LEN + header,
        fragment,
        inside,
    };
    Front {
        source: ip.source().into(),
        destination: ip.destination().into(),
        class: ip.traffic_class(),
        hop_limit: ip.ttl(),
        transport: Some(transport),
        len,
    }
}

#[inline(always)]
fn numbers(ports: Option<Ports>) -> [u16; 2] {
    ports.map_or([0; 2], |ports| [ports.source(), ports.destination()])
}

/// What lies behind IPv6 extension headers, if they lead anywhere.
#[cold]
fn behind_extensions(next_header: IpProtocol, payload: &[u8]) -> Option<Transport> {
    let upper = Upper::find(next_header, payload).ok()?;
    let has_ports = upper.protocol.has_ports() && !upper.is_inside_fragment();
    let behind = payload.get(upper.offset..).filter(|_| has_ports);
    let ports = behind.and_then(|behind| Ports::split(behind).ok()).map(|(ports, _)| *ports);
    Some(Transport {
        protocol: upper.protocol,
        ports: numbers(ports),
        has_ports: ports.is_some(),
        offset: Ethernet::LEN + Ipv6::LEN + upper.offset,
        fragment: upper.is_fragment(),
        inside: upper.is_inside_fragment(),
    })
}
