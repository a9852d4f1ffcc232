use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg, setsockopt, sockopt};

use crate::namespace::Namespace;

/// Datagrams that one system call sends or receives.
const BATCH: usize = 32;
/// What the receiver's socket keeps, so that a pause of the receiver is no loss of the path.
const ROOM: usize = 8 << 20;
/// Until what is under way has arrived.
const SETTLE: Duration = Duration::from_millis(100);

/// What came of datagrams sent at a rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Datagrams {
    /// How many were sent.
    pub sent: u64,
    /// How many arrived.
    pub received: u64,
    /// How many of these came after one that was sent later.
    pub late: u64,
    /// How long the sender took.
    pub took: Duration,
}

impl Datagrams {
    /// How many arrived in a second.
    pub fn delivered(&self) -> f64 {
        self.received as f64 / self.took.as_secs_f64()
    }

    /// How many were sent in a second.
    pub fn offered(&self) -> f64 {
        self.sent as f64 / self.took.as_secs_f64()
    }

    /// The share that was lost.
    pub fn loss(&self) -> f64 {
        1.0 - self.received as f64 / self.sent.max(1) as f64
    }
}

/// Sends numbered UDP datagrams of one flow, so many octets of payload each, for as long as is said: so many in a second, or as many as the
/// sender can.
pub fn datagrams(
    (from, to, address): (&Namespace, &Namespace, IpAddr),
    size: usize,
    rate: Option<f64>,
    span: Duration,
) -> io::Result<Datagrams> {
    let receiver = to.run(|| UdpSocket::bind((address, 0)))?;
    setsockopt(&receiver, sockopt::RcvBufForce, &ROOM)?;
    receiver.set_read_timeout(Some(SETTLE))?;
    let target = receiver.local_addr()?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&receiver, size, &done));
        let sent = from.run(|| send(target, size, rate, span));
        std::thread::sleep(SETTLE);
        done.store(true, Ordering::Relaxed);
        let received = receiving.join().unwrap_or_else(|_| Err(io::Error::other("the receiver died")));
        let ((sent, took), (received, late)) = (sent?, received?);
        Ok(Datagrams { sent, received, late, took })
    })
}

fn send(target: SocketAddr, size: usize, rate: Option<f64>, span: Duration) -> io::Result<(u64, Duration)> {
    let socket = UdpSocket::bind((super::any(target.ip()), 0))?;
    socket.connect(target)?;
    let mut buffers = vec![vec![0; size]; BATCH];
    let (began, mut number) = (Instant::now(), 0_u64);
    while began.elapsed() < span {
        // How many are due; never more than a batch behind, or a pause would become a burst that no path takes.
        let due = rate.map_or(BATCH, |rate| {
            let due = (began.elapsed().as_secs_f64() * rate) as u64;
            usize::try_from(due.saturating_sub(number)).unwrap_or(BATCH).min(BATCH)
        });
        if due == 0 {
            std::hint::spin_loop();
            continue;
        }
        for (buffer, number) in buffers.iter_mut().zip(number..) {
            buffer[..8].copy_from_slice(&number.to_le_bytes());
        }
        let slices: Vec<_> = buffers[..due].iter().map(|buffer| [IoSlice::new(buffer)]).collect();
        let mut headers = MultiHeaders::<()>::preallocate(due, None);
        let addresses = vec![None; due];
        let sent = sendmmsg(socket.as_raw_fd(), &mut headers, &slices, addresses, [], MsgFlags::empty())?;
        number += sent.count() as u64;
    }
    Ok((number, began.elapsed()))
}

/// How many came, and how many of them late.
fn receive(socket: &UdpSocket, size: usize, done: &AtomicBool) -> io::Result<(u64, u64)> {
    let mut buffers = vec![vec![0; size]; BATCH];
    let (mut received, mut late, mut next) = (0, 0, 0);
    loop {
        let mut numbers = Vec::with_capacity(BATCH);
        {
            let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
            let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
            let flags = MsgFlags::MSG_WAITFORONE;
            match recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None) {
                Ok(came) => numbers.extend(came.map(|message| message.bytes)),
                Err(nix::Error::EAGAIN) if done.load(Ordering::Relaxed) => return Ok((received, late)),
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => continue,
                Err(error) => return Err(error.into()),
            }
        }
        for (buffer, bytes) in buffers.iter().zip(numbers) {
            let number = buffer.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            if bytes != size {
                return Err(io::Error::other(format!("a datagram of {bytes} octets came, not of {size}")));
            }
            received += 1;
            late += u64::from(number < next);
            next = next.max(number + 1);
        }
    }
}
