use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use causeway_model::DropReason;
use causeway_wire::checksum::{Change, Replaced};
use causeway_wire::{EtherType, Ethernet, IpProtocol, Ipv4, Ipv6, Malformed, Ports, TrafficClass, Upper};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::connection::{End, Key};
use crate::offload::settle;
use crate::table::{Address, Prefixes};
use crate::track::Hint;
use crate::transport::Transport;
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

    /// [`front_again`](Self::front_again), if the frame is of the commonest kind.
    fn common_again(head: &[u8]) -> Option<Front<Self>>;

    /// The front of the packet in a frame that was checked before.
    #[inline(always)]
    fn front_again(head: &[u8]) -> Result<Front<Self>, Malformed> {
        front(head)
    }

    /// Takes one from the hop limit of a packet that has more than one.
    fn count_hop(packet: &mut [u8]);

    /// Whose an address is.
    fn owners(world: &World) -> &Prefixes<Self::Address, Owner>;

    /// Whether an address is in the prefix of services that most of them are in.
    fn is_among_services(world: &World, address: Self::Address) -> bool;

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

    /// Address and port of one end of a connection with this key, and of the other.
    fn ends(key: &Key, first: End) -> [(Self::Address, u16); 2];

    /// An address as any.
    fn any(address: Self::Address) -> IpAddr;

    /// Any address, if it is of this family.
    fn of(address: IpAddr) -> Option<Self::Address>;

    /// Both addresses, and others in their place.
    fn replaced(from: [Self::Address; 2], to: [Self::Address; 2]) -> Replaced;

    /// Changes where a packet comes from and goes to, and its header's checksum by as much.
    fn readdress(packet: &mut [u8], to: [Self::Address; 2], change: Change);

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
    pub(crate) len: usize,
    /// The hash of its connection's key, where that is known already; else zero.
    pub(crate) hash: u64,
}

impl<I: Ip> Front<I> {
    /// The hash of its connection's key.
    #[inline(always)]
    pub(crate) fn hash_of(&self, key: &Key) -> u64 {
        if self.hash == 0 { key.hash() } else { self.hash }
    }

    /// The same with what was known before.
    #[inline(always)]
    pub(crate) fn with(self, hint: Hint) -> Self {
        let hash = if self.is_fragment() { 0 } else { hint.hash };
        Self { hash, ..self }
    }

    /// A part of a packet, first or not.
    #[inline(always)]
    pub(crate) fn is_fragment(&self) -> bool {
        self.transport.is_some_and(Transport::fragment)
    }
}

/// A packet as an error quotes it: its header, and of what is behind it at least the beginning.
pub(crate) struct Quoted<'a, I: Ip> {
    pub(crate) source: I::Address,
    pub(crate) destination: I::Address,
    pub(crate) protocol: IpProtocol,
    /// What is behind the headers, and where that begins.
    pub(crate) transport: &'a [u8],
    pub(crate) offset: usize,
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

    #[inline(always)]
    fn common_again(head: &[u8]) -> Option<Front<Self>> {
        let (Common { ip, ports, .. }, _) = Common::ref_from_prefix(head).ok()?;
        let is_common = ip.is_without_options() && !ip.is_fragment();
        is_common.then(|| front_v4(ip, Self::LEN, Some(*ports), (false, false)))
    }

    #[inline(always)]
    fn front_again(head: &[u8]) -> Result<Front<Self>, Malformed> {
        Self::common_again(head).map_or_else(|| front(head), Ok)
    }

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
    fn is_among_services(world: &World, address: u32) -> bool {
        world.services.among_v4.has(address)
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

    #[inline(always)]
    fn ends(key: &Key, first: End) -> [(u32, u16); 2] {
        key.ends_v4(first)
    }

    #[inline(always)]
    fn any(address: u32) -> IpAddr {
        Ipv4Addr::from(address).into()
    }

    #[inline(always)]
    fn of(address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(address) => Some(address.into()),
            IpAddr::V6(_) => None,
        }
    }

    #[inline(always)]
    fn replaced(from: [u32; 2], to: [u32; 2]) -> Replaced {
        Replaced::default().and(from[0], to[0]).and(from[1], to[1])
    }

    #[inline(always)]
    fn readdress(packet: &mut [u8], to: [u32; 2], change: Change) {
        let Ok((ip, _)) = <Self as FromBytes>::mut_from_prefix(packet) else { return };
        ip.set_checksum(change.of(ip.checksum()));
        ip.set_source(to[0].into());
        ip.set_destination(to[1].into());
    }

    fn quoted(packet: &[u8]) -> Option<Quoted<'_, Self>> {
        let (ip, transport) = Self::split_partial(packet).ok()?;
        let (source, destination) = (ip.source().into(), ip.destination().into());
        Some(Quoted { source, destination, protocol: ip.protocol(), transport, offset: ip.header_len() })
    }
}

impl Ip for Ipv6 {
    const FAMILY: Family = Family::V6;
    type Address = u128;

    #[inline(always)]
    fn common_again(head: &[u8]) -> Option<Front<Self>> {
        front(head).ok()
    }

    #[inline(always)]
    fn front(packet: &[u8]) -> Result<Front<Self>, Malformed> {
        let (ip, payload) = Self::split_partial(packet)?;
        let transport = match ip.next_header() {
            protocol @ (IpProtocol::TCP | IpProtocol::UDP) => {
                let ports = Ports::split(payload).ok().map(|(ports, _)| *ports);
                Transport::new(protocol, Ethernet::LEN + Self::LEN, ports.map(numbers), (false, false))
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
            hash: 0,
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
    fn is_among_services(world: &World, address: u128) -> bool {
        world.services.among_v6.has(address)
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

    #[inline(always)]
    fn ends(key: &Key, first: End) -> [(u128, u16); 2] {
        key.ends_v6(first)
    }

    #[inline(always)]
    fn any(address: u128) -> IpAddr {
        Ipv6Addr::from(address).into()
    }

    #[inline(always)]
    fn of(address: IpAddr) -> Option<u128> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address.into()),
        }
    }

    #[inline(always)]
    fn replaced(from: [u128; 2], to: [u128; 2]) -> Replaced {
        let quarters = |address: u128| [0, 32, 64, 96].map(|shift| (address >> shift) as u32);
        let words =
            from.into_iter().zip(to).flat_map(|(old, new)| quarters(old).into_iter().zip(quarters(new)));
        words.fold(Replaced::default(), |words, (old, new)| words.and(old, new))
    }

    #[inline(always)]
    fn readdress(packet: &mut [u8], to: [u128; 2], _: Change) {
        let Ok((ip, _)) = <Self as FromBytes>::mut_from_prefix(packet) else { return };
        ip.set_source(to[0].into());
        ip.set_destination(to[1].into());
    }

    fn quoted(packet: &[u8]) -> Option<Quoted<'_, Self>> {
        let (ip, payload) = Self::split_partial(packet).ok()?;
        let upper = Upper::find(ip.next_header(), payload).ok()?;
        let transport = payload.get(upper.offset..)?;
        let (source, destination) = (ip.source().into(), ip.destination().into());
        let offset = Self::LEN + upper.offset;
        Some(Quoted { source, destination, protocol: upper.protocol, transport, offset })
    }
}

/// The commonest frame: IPv4 without options, no fragment, and at least four bytes behind the header.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Common {
    pub(crate) ethernet: Ethernet,
    pub(crate) ip: Ipv4,
    ports: Ports,
}

impl Common {
    /// A frame, if it is of that kind and its header right.
    #[inline(always)]
    pub(crate) fn of(head: &[u8]) -> Option<&Self> {
        let (common, _) = Self::ref_from_prefix(head).ok()?;
        let ip = &common.ip;
        let is_common = common.ethernet.ether_type() == EtherType::IPV4
            && ip.is_without_options()
            && !ip.is_fragment()
            && ip.is_right_without_options().is_ok();
        is_common.then_some(common)
    }

    /// What its packet's front says.
    #[inline(always)]
    pub(crate) fn front(&self) -> Front<Ipv4> {
        front_v4(&self.ip, Ipv4::LEN, Some(self.ports), (false, false))
    }
}

/// What the front of a packet says, if its frame is of the commonest kind and its header right. Whoever asks this first and [`front`] for the others, in a
/// function of its own, has nothing in memory of what it knows of the packet.
#[inline(always)]
pub(crate) fn common_front(head: &[u8]) -> Option<Front<Ipv4>> {
    Common::of(head).map(Common::front)
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
    let transport = Transport::new(protocol, Ethernet::LEN + header, ports.map(numbers), (fragment, inside));
    Front {
        source: ip.source().into(),
        destination: ip.destination().into(),
        class: ip.traffic_class(),
        hop_limit: ip.ttl(),
        transport,
        len,
        hash: 0,
    }
}

#[inline(always)]
fn numbers(ports: Ports) -> [u16; 2] {
    [ports.source(), ports.destination()]
}

/// What lies behind IPv6 extension headers, if they lead anywhere.
#[cold]
fn behind_extensions(next_header: IpProtocol, payload: &[u8]) -> Option<Transport> {
    let upper = Upper::find(next_header, payload).ok()?;
    let has_ports = upper.protocol.has_ports() && !upper.is_inside_fragment();
    let behind = payload.get(upper.offset..).filter(|_| has_ports);
    let ports = behind.and_then(|behind| Ports::split(behind).ok()).map(|(ports, _)| *ports);
    let offset = Ethernet::LEN + Ipv6::LEN + upper.offset;
    let part = (upper.is_fragment(), upper.is_inside_fragment());
    Transport::new(upper.protocol, offset, ports.map(numbers), part)
}
