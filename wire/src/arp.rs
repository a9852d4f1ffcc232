//! ARP for IPv4 over Ethernet.

use std::net::Ipv4Addr;

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{EtherType, MacAddr, Malformed};

/// What an ARP packet does (`ar$op`, RFC 826). Every number is legal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ArpOperation(pub u16);

impl ArpOperation {
    /// Who has this address?
    pub const REQUEST: Self = Self(1);
    /// I have.
    pub const REPLY: Self = Self(2);
}

/// An ARP packet for IPv4 over Ethernet as it lies in a frame (RFC 826).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Arp {
    hardware_type: U16,
    protocol_type: U16,
    hardware_length: u8,
    protocol_length: u8,
    operation: U16,
    sender_mac: MacAddr,
    sender_ip: [u8; 4],
    target_mac: MacAddr,
    target_ip: [u8; 4],
}

impl Arp {
    /// Bytes of the packet.
    pub const LEN: usize = size_of::<Self>();
    const ETHERNET: u16 = 1;
    /// The two types and the two lengths: what says which addresses follow.
    const KIND: [u8; 6] = [0, Self::ETHERNET as u8, 0x08, 0x00, 6, 4];

    /// A packet from `sender` about `target`.
    pub const fn new(
        operation: ArpOperation,
        sender: (MacAddr, Ipv4Addr),
        target: (MacAddr, Ipv4Addr),
    ) -> Self {
        Self {
            hardware_type: U16::new(Self::ETHERNET),
            protocol_type: U16::new(EtherType::IPV4.0),
            hardware_length: 6,
            protocol_length: 4,
            operation: U16::new(operation.0),
            sender_mac: sender.0,
            sender_ip: sender.1.octets(),
            target_mac: target.0,
            target_ip: target.1.octets(),
        }
    }

    /// Splits an Ethernet payload into its ARP packet and the padding.
    #[inline]
    pub fn split(payload: &[u8]) -> Result<(&Self, &[u8]), Malformed> {
        Self::validate(payload)?;
        Self::ref_from_prefix(payload).map_err(|_| Malformed::ArpShort)
    }

    /// [`split`](Self::split), to write.
    #[inline]
    pub fn split_mut(payload: &mut [u8]) -> Result<(&mut Self, &mut [u8]), Malformed> {
        Self::validate(payload)?;
        Self::mut_from_prefix(payload).map_err(|_| Malformed::ArpShort)
    }

    // Asked before the length, since ARP for other addresses is of another length.
    fn validate(payload: &[u8]) -> Result<(), Malformed> {
        match payload.first_chunk() {
            None => Err(Malformed::ArpShort),
            Some(&Self::KIND) => Ok(()),
            Some(_) => Err(Malformed::ArpUnsupported),
        }
    }

    /// What the packet does.
    pub const fn operation(&self) -> ArpOperation {
        ArpOperation(self.operation.get())
    }

    /// Sets what the packet does.
    pub const fn set_operation(&mut self, operation: ArpOperation) {
        self.operation = U16::new(operation.0);
    }

    /// The sender's Ethernet address.
    pub const fn sender_mac(&self) -> MacAddr {
        self.sender_mac
    }

    /// The sender's IPv4 address; unspecified in a probe (RFC 5227 §2.1.1).
    pub fn sender_ip(&self) -> Ipv4Addr {
        self.sender_ip.into()
    }

    /// Sets who speaks.
    pub const fn set_sender(&mut self, mac: MacAddr, ip: Ipv4Addr) {
        self.sender_mac = mac;
        self.sender_ip = ip.octets();
    }

    /// The target's Ethernet address; means nothing in a request.
    pub const fn target_mac(&self) -> MacAddr {
        self.target_mac
    }

    /// The IPv4 address that is spoken of.
    pub fn target_ip(&self) -> Ipv4Addr {
        self.target_ip.into()
    }

    /// Sets who is spoken of.
    pub const fn set_target(&mut self, mac: MacAddr, ip: Ipv4Addr) {
        self.target_mac = mac;
        self.target_ip = ip.octets();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x0a]);
    const B: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x0b]);

    /// RFC 826, "Packet format", written out for a request.
    const REQUEST: [u8; 30] = [
        0, 1, 0x08, 0, 6, 4, 0, 1, 0x02, 0, 0, 0, 0, 0x0a, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 192, 0, 2, 2, 0, 0,
    ];

    #[test]
    fn a_request_is_read_and_its_padding_is_set_apart() {
        let (arp, padding) = Arp::split(&REQUEST).unwrap();
        assert_eq!(arp.operation(), ArpOperation::REQUEST);
        assert_eq!((arp.sender_mac(), arp.sender_ip()), (A, Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!((arp.target_mac(), arp.target_ip()), (MacAddr::ZERO, Ipv4Addr::new(192, 0, 2, 2)));
        assert_eq!(padding.len(), 2);
        let sender = (arp.sender_mac(), arp.sender_ip());
        let target = (arp.target_mac(), arp.target_ip());
        assert_eq!(Arp::new(ArpOperation::REQUEST, sender, target).as_bytes(), &REQUEST[..28]);
    }

    #[test]
    fn a_request_is_rewritten_in_place() {
        let mut bytes = REQUEST;
        let (arp, _) = Arp::split_mut(&mut bytes).unwrap();
        let (asker, asked) = (arp.sender_ip(), arp.target_ip());
        arp.set_operation(ArpOperation::REPLY);
        arp.set_target(A, asker);
        arp.set_sender(B, asked);
        let want = Arp::new(ArpOperation::REPLY, (B, asked), (A, asker));
        assert_eq!(Arp::split(&bytes).unwrap().0, &want);
    }

    #[test]
    fn other_addresses_and_short_packets_are_named() {
        for (at, value) in [(1, 6), (2, 0x86), (4, 8), (5, 16)] {
            let mut bytes = REQUEST;
            bytes[at] = value;
            assert_eq!(Arp::split(&bytes[..20]), Err(Malformed::ArpUnsupported));
        }
        for len in [0, 5, 6, 27] {
            assert_eq!(Arp::split(&REQUEST[..len]), Err(Malformed::ArpShort));
        }
    }
}
