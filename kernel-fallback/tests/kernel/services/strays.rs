//! What a backend sends out of its connection's window (F25 of the field log): no client sees it with the backend's own address,
//! nobody is reset.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use causeway_model::DropReason;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

use super::world::{PORT, VIP4, World, at, open};
use crate::lab::Namespace;

const ACK: u8 = 0x10;
const RST: u8 = 0x04;

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => panic!("{v6}"),
    }
}

/// Sends a segment with a sequence number in one of four quarters: far above a window, where it is invalid, in two of them; in one of
/// 16,000 runs by chance within.
fn send_segment(ns: &Namespace, from: SocketAddr, to: SocketAddr, flags: u8, quarter: u8) {
    let (source, destination) = (v4(from.ip()).octets(), v4(to.ip()).octets());
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet.extend([source, destination].concat());
    let mut tcp = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let first = 0x1a + (quarter << 6);
    tcp.extend([first, 0x11, 0x5e, 0x0d, first, 0x0d, 0x7a, 0x11, 0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    let pseudo = [&source[..], &destination, &[0, 6, 0, 20], &tcp].concat();
    let mut sum: u32 = pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    tcp[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet.extend(tcp);
    ns.inside(|| {
        let raw =
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), Some(SockProtocol::Raw)).unwrap();
        let to = SockaddrIn::from(std::net::SocketAddrV4::new(v4(to.ip()), 0));
        sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty()).unwrap();
    });
}

/// Counts what comes in and matches.
fn listen(ns: &Namespace, what: &str) {
    ns.run("nft add table inet heard");
    ns.run("nft 'add chain inet heard c { type filter hook prerouting priority -300; }'");
    ns.run(&format!("nft add rule inet heard c {what} counter"));
}

fn heard(ns: &Namespace) -> bool {
    !ns.run("nft list table inet heard").contains("packets 0 ")
}

#[test]
fn what_is_out_of_its_window_is_nobodys() {
    let mut world = World::new();
    let far = world.far.v4();
    world.serve(&[far], &[]);
    listen(&world.client.ns, &format!("ip saddr {far}"));
    listen(&world.far.ns, "tcp flags rst");
    for of_pod in [true, false] {
        let from = if of_pod { &world.client.ns } else { &world.lab.nodes[0].ns };
        let (mut stream, met) = open(from, at(VIP4, 80)).unwrap();
        assert_eq!(met.server(), "far");
        let client = SocketAddr::new(met.seen(), stream.local_addr().unwrap().port());
        // Its own node would not let it do so.
        let careless = &world.lab.nodes[1].ns;
        careless.run("nft add table inet careless");
        careless.run("nft 'add chain inet careless c { type filter hook prerouting priority -300; }'");
        careless.run("nft add rule inet careless c tcp sport 8080 notrack");
        for (flags, quarter) in
            [ACK, RST, ACK | RST].into_iter().flat_map(|flags| (0..4).map(move |q| (flags, q)))
        {
            send_segment(&world.far.ns, SocketAddr::new(far, PORT), client, flags, quarter);
        }
        std::thread::sleep(Duration::from_millis(200));
        careless.run("nft delete table inet careless");
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let error = stream.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "neither reset nor ended");
    }
    assert!(!heard(&world.client.ns) && !heard(&world.far.ns));
    assert!(world.drops(DropReason::InvalidConnection) > 0);
}
