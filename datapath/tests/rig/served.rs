//! A node that serves services, and packets to and from them.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use causeway_datapath::connection::Connections;
use causeway_datapath::{Clients, Links, NextHop, Port, Touched, Tracking};
use causeway_model::service::{
    Answer, At, Backend, Backends, BackendsId, Frontend, Service, ServicePort, Services,
};
use causeway_model::{Delta, DropReason, Family, PortProtocol, Snapshot};

use super::*;

pub const A: [&str; 2] = ["10.70.1.10", "fd70:0:0:1::10"];
pub const B: [&str; 2] = ["10.70.1.11", "fd70:0:0:1::11"];
pub const FAR: [&str; 2] = ["10.70.2.10", "fd70:0:0:2::10"];
pub const VIP: [&str; 2] = ["10.96.0.9", "fd96::9"];
pub const EXTERNAL: &str = "203.0.113.9";
pub const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
pub const PEER: &str = "192.0.2.2";
/// Whom a pod sees that is its own backend.
pub const STRANGER: [&str; 2] = ["169.254.1.1", "fd70:0:0:1::1"];
pub const WORLD: &str = "198.51.100.7";

pub const CAPACITY: u32 = 1024;

pub fn words() -> &'static [AtomicU64] {
    (0..Connections::words(CAPACITY)).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak()
}

pub fn clients() -> Clients {
    Clients::over((0..Clients::WORDS).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak())
}

pub fn tracking() -> Tracking {
    Tracking::new(Connections::open(words(), CAPACITY).unwrap()).remembering(clients())
}

pub fn frontend(at: &str, protocol: PortProtocol, port: u16) -> Frontend {
    let at = match at {
        "nodes" => At::Nodes(Family::V4),
        "nodes6" => At::Nodes(Family::V6),
        address => At::Address(ip(address)),
    };
    Frontend { at, protocol, port }
}

pub fn service(inside: Answer) -> Service {
    let id = ServicePort {
        cluster: "lyon".parse().unwrap(),
        namespace: "default".into(),
        name: "web".into(),
        port: String::new(),
    };
    Service { id, inside, outside: inside, sources: None, affinity: None }
}

pub fn backends(chosen: &[&str], leaving: &[&str], port: u16) -> Arc<Backends> {
    let of = |list: &[&str]| list.iter().map(|address| Backend { address: ip(address), port }).collect();
    Arc::new(Backends::alike(of(chosen), of(leaving)))
}

/// A node and its services, which change.
pub struct Served {
    pub side: Side,
    pub snapshot: Snapshot,
    pub tracking: Tracking,
}

impl Served {
    /// Services in the prefixes of ClusterIPs: port 80 of either family goes to these backends' port 8080, over every transport.
    pub fn by(chosen: [&[&str]; 2]) -> Self {
        Self::of(serving(snapshot(1, Family::V4), chosen), tracking())
    }

    pub fn of(snapshot: Snapshot, tracking: Tracking) -> Self {
        Self { side: with_connections(Side::of(&snapshot), tracking), snapshot, tracking }
    }

    pub fn change(&mut self, deltas: impl IntoIterator<Item = Delta>) {
        let mut touched = Touched::default();
        for delta in deltas {
            touched.note(&delta);
            self.snapshot.apply(delta);
        }
        let links = Links { host: HOST_MAC, source: UPLINK_MAC, next_hop: NextHop::Same(NEXT_HOP) };
        self.side.world = self.side.world.after(&touched, &self.snapshot, &self.side.slots, &links).unwrap();
    }

    /// The same after the process has died: another one with the same table and a state that was told anew.
    pub fn again(&self) -> Self {
        let Self { snapshot, tracking, .. } = self;
        Self::of(snapshot.clone(), *tracking)
    }

    /// A packet of pod `a`, and where it goes, as what.
    pub fn sent(&self, packet: &[u8]) -> Result<Out, DropReason> {
        self.side.one(self.side.port("a"), plain(&sent_by(10, packet)))
    }

    pub fn sent_by_b(&self, packet: &[u8]) -> Result<Out, DropReason> {
        self.side.one(self.side.port("b"), plain(&sent_by(11, packet)))
    }

    /// A packet from node 2.
    pub fn arrives(&self, packet: &[u8]) -> Result<Out, DropReason> {
        self.side.one(Port::Uplink, plain(&tunnelled(&inner_to_east(packet))))
    }

    pub fn arrives_at_host(&self, packet: &[u8]) -> Result<Out, DropReason> {
        self.side.one(Port::Host, plain(&ether(GATEWAY_MAC, HOST_MAC, packet)))
    }

    /// What the sender hears of a packet that is dropped.
    pub fn refused(&self, packet: &[u8], reason: DropReason) -> Vec<u8> {
        let before = self.side.dropped(reason);
        let mut told = self.side.run(self.side.port("a"), [plain(&sent_by(10, packet))]);
        assert_eq!(self.side.dropped(reason), before + 1, "{:?}", self.side.drops());
        assert_eq!((told.len(), told[0].egress), (1, self.side.port("a")));
        let told = told.remove(0).packet().to_vec();
        assert_right(&told);
        told
    }

    pub fn hits(&self) -> u64 {
        self.side.world.begun().map(|(_, begun)| begun).sum()
    }
}

pub fn with_connections(side: Side, tracking: Tracking) -> Side {
    let Side { world, worker, slots, now } = side;
    let worker = RefCell::new(worker.into_inner().tracking(tracking));
    Side { world, worker, slots, now }
}

/// A packet of some transport between ends, with right checksums.
pub fn packet(transport: &str, from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    let ports = (from.1, to.1);
    match transport {
        "udp" => udp(from.0, to.0, ports, 40),
        "syn" => syn(from.0, to.0, ports),
        "sctp" => sctp(from.0, to.0, ports, 0, 1),
        "init-ack" => sctp(from.0, to.0, ports, 42, 2),
        "syn-ack" => flagged(tcp(from.0, to.0, ports, 0), 0x12, 0xffff_fa01),
        other => panic!("{other}?"),
    }
}

pub fn syn(from: &str, to: &str, ports: (u16, u16)) -> Vec<u8> {
    flagged(tcp(from, to, ports, 0), 0x02, 0)
}

/// A TCP segment with other flags, and an acknowledgment.
pub fn flagged(mut packet: Vec<u8>, flags: u8, acknowledgment: u32) -> Vec<u8> {
    let at = if packet[0] >> 4 == 4 { 20 } else { 40 };
    packet[at + 13] = flags;
    packet[at + 8..at + 12].copy_from_slice(&acknowledgment.to_be_bytes());
    seal_transport(&mut packet, at, 16);
    packet
}

/// Recomputes the checksum of a transport that has a pseudo header.
pub fn seal_transport(packet: &mut [u8], at: usize, field: usize) {
    packet[at + field..at + field + 2].fill(0);
    let sum = pseudo_sum(packet, at);
    packet[at + field..at + field + 2].copy_from_slice(&(!sum).to_be_bytes());
}

pub fn pseudo_sum(packet: &[u8], at: usize) -> u16 {
    let len = ((packet.len() - at) as u32).to_be_bytes();
    let (addresses, protocol) =
        if at == 20 { (&packet[12..20], packet[9]) } else { (&packet[8..40], packet[6]) };
    slow_sum(&[addresses, &len, &[0, protocol], &packet[at..]])
}

/// A chunk of SCTP without a meaning but its type.
pub fn sctp(from: &str, to: &str, ports: (u16, u16), tag: u32, chunk: u8) -> Vec<u8> {
    let mut packet = udp(from, to, ports, 24);
    let at = if packet[0] >> 4 == 4 { 20 } else { 40 };
    packet[if at == 20 { 9 } else { 6 }] = 132;
    let mut body = vec![0; 32];
    body[..2].copy_from_slice(&ports.0.to_be_bytes());
    body[2..4].copy_from_slice(&ports.1.to_be_bytes());
    body[4..8].copy_from_slice(&tag.to_be_bytes());
    body[12..16].copy_from_slice(&[chunk, 0, 0, 20]);
    body[16..20].copy_from_slice(&42_u32.to_be_bytes());
    let crc = causeway_wire::crc32c(&[&body]);
    body[8..12].copy_from_slice(&crc.to_le_bytes());
    packet.splice(at.., body);
    if at == 20 {
        seal_v4(&mut packet);
    }
    packet
}

/// Source, destination and both ports of a packet whose every sum is right.
pub fn ends(packet: &[u8]) -> (IpAddr, u16, IpAddr, u16) {
    assert_right(packet);
    let (at, protocol) = if packet[0] >> 4 == 4 { (20, packet[9]) } else { (40, packet[6]) };
    if protocol == 132 {
        assert_eq!(
            causeway_wire::Sctp::checksum_of(&packet[at..]).unwrap().to_le_bytes(),
            packet[at + 8..at + 12]
        );
    }
    let address = |v4: usize, v6: usize| -> IpAddr {
        if at == 20 {
            <[u8; 4]>::try_from(&packet[v4..v4 + 4]).unwrap().into()
        } else {
            <[u8; 16]>::try_from(&packet[v6..v6 + 16]).unwrap().into()
        }
    };
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    (address(12, 8), port(at), address(16, 24), port(at + 2))
}

pub fn as_ends(from: (&str, u16), to: (&str, u16)) -> (IpAddr, u16, IpAddr, u16) {
    (ip(from.0), from.1, ip(to.0), to.1)
}

/// A node with services: port 80 of an address of either family goes to these backends' port 8080, over every transport.
pub fn serving(mut snapshot: Snapshot, chosen: [&[&str]; 2]) -> Snapshot {
    let mut services = Services {
        prefixes: vec!["10.96.0.0/12".parse().unwrap(), "fd96::/112".parse().unwrap()],
        addresses: VIP.map(ip).into(),
        ..Services::default()
    };
    for (number, (vip, chosen)) in (0..).zip(VIP.iter().zip(chosen)) {
        let id = BackendsId(number);
        services.backends.insert(id, backends(chosen, &[], 8080));
        for protocol in PortProtocol::ALL {
            services.frontends.insert(frontend(vip, protocol, 80), service(Answer::Backends(id)));
        }
    }
    snapshot.services = Arc::new(services);
    snapshot
}
