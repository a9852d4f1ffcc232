use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::any;
use crate::namespace::Namespace;

/// Room for what the receiver has not read yet.
const ROOM: usize = 16 << 20;
/// How many datagrams may be under way: fewer than any queue on the way takes, for what overflows shows nothing.
const WINDOW: u64 = 400;
/// How long the sender waits for them to arrive; then they are lost.
const PATIENCE: Duration = Duration::from_millis(50);
/// Every how many datagrams the receiver answers, once it does.
const ANSWERED: u64 = 8;
/// Silence after which nothing is under way any more.
const SILENCE: Duration = Duration::from_millis(300);

/// What a receiver saw of flows of numbered datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// How many flows there were.
    pub flows: usize,
    /// How many datagrams were sent.
    pub sent: u64,
    /// How many arrived.
    pub received: u64,
    /// How many of them arrived after a later one of their flow.
    pub late: u64,
    /// How many answers came back.
    pub answers: u64,
}

/// Sends numbered datagrams of several flows in turn to an address in another namespace. From the middle on the receiver
/// answers, so that whatever learns a flow's way from its answers learns it under way.
pub fn order(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    flows: usize,
    datagrams: u64,
) -> io::Result<Order> {
    let server = to.run(|| UdpSocket::bind((address, 0)))?;
    server.set_read_timeout(Some(SILENCE))?;
    setsockopt(&server, sockopt::RcvBufForce, &ROOM)?;
    let target = server.local_addr()?;
    let clients: io::Result<Vec<_>> =
        from.run(|| (0..flows).map(|_| UdpSocket::bind((any(address), 0))).collect());
    let (clients, done, arrived) = (clients?, AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&server, datagrams / 2, &done, &arrived));
        let sent = from.run(|| send(&clients, target, datagrams, &arrived));
        done.store(true, Ordering::Relaxed);
        let seen = receiver.join().unwrap_or_else(|_| Err(io::Error::other("the receiver died")));
        let (sent, answers) = sent?;
        Ok(Order { flows, sent, answers, ..seen? })
    })
}

fn send(
    clients: &[UdpSocket],
    target: SocketAddr,
    datagrams: u64,
    arrived: &AtomicU64,
) -> io::Result<(u64, u64)> {
    let (mut sent, mut lost, mut answers) = (0, 0, 0);
    clients.iter().try_for_each(|client| client.set_nonblocking(true))?;
    for number in 0..datagrams {
        for client in clients {
            // A full queue of our own is a datagram less.
            sent += u64::from(client.send_to(&number.to_le_bytes(), target).is_ok());
        }
        answers += clients.iter().map(heard).sum::<u64>();
        let until = Instant::now() + PATIENCE;
        let under_way = |lost: u64| (sent - lost).saturating_sub(arrived.load(Ordering::Relaxed));
        while under_way(lost) > WINDOW {
            if Instant::now() > until {
                lost += under_way(lost);
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    std::thread::sleep(SILENCE / 3);
    Ok((sent, answers + clients.iter().map(heard).sum::<u64>()))
}

fn heard(client: &UdpSocket) -> u64 {
    std::iter::from_fn(|| client.recv(&mut [0; 8]).ok()).map(|_| 1).sum()
}

fn receive(
    server: &UdpSocket,
    answer_from: u64,
    done: &AtomicBool,
    arrived: &AtomicU64,
) -> io::Result<Order> {
    let (mut seen, mut next) = (Order::default(), BTreeMap::<SocketAddr, u64>::new());
    let mut bytes = [0; 8];
    loop {
        match server.recv_from(&mut bytes) {
            Ok((8, client)) => {
                let number = u64::from_le_bytes(bytes);
                let next = next.entry(client).or_default();
                seen.received += 1;
                arrived.store(seen.received, Ordering::Relaxed);
                seen.late += u64::from(number < *next);
                *next = (*next).max(number + 1);
                if number >= answer_from && number % ANSWERED == 0 {
                    server.send_to(&bytes, client)?;
                }
            }
            Ok((length, client)) => {
                return Err(io::Error::other(format!("{length} bytes from {client}")));
            }
            Err(_) if done.load(Ordering::Relaxed) => return Ok(seen),
            Err(_) => {}
        }
    }
}
