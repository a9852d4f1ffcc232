//! Waiting until something of the kernel's tables changes that concerns us.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::net::if_::if_indextoname;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::KernelError;
use crate::objects::{ROUTE_PROTOCOL, is_governed};

/// RTNLGRP_…: links, neighbours, addresses, routes, rules and settings, of both families.
const GROUPS: [u32; 10] = [1, 3, 5, 7, 8, 9, 11, 19, 24, 25];
/// NFNLGRP_NFTABLES.
const NFTABLES_GROUP: u32 = 7;
/// Changes come in bursts: so long must it be quiet before it is worth looking …
const QUIET: Duration = Duration::from_millis(50);
/// … and so long is waited for quiet.
const PATIENCE: Duration = Duration::from_millis(500);
const DATAGRAM: usize = 64 << 10;

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Something changed that concerns us.
    Changed,
    /// The time ran out.
    TimedOut,
    /// Somebody called [`Stop::stop`].
    Stopped,
}

/// Ears on the kernel's tables, in the network namespace of the thread that made them.
#[derive(Debug)]
pub struct Watcher {
    route: Socket,
    nftables: Socket,
    stop: Arc<EventFd>,
}

/// Ends the waiting of a [`Watcher`], from any thread and for good.
#[derive(Clone, Debug)]
pub struct Stop(Arc<EventFd>);

impl Stop {
    /// Every wait from now on, and the one under way, ends at once.
    pub fn stop(&self) {
        // A write fails only when the counter is full, and then it wakes as well.
        let _ = self.0.write(1);
    }
}

impl Watcher {
    /// Begins to listen: what changes from now on ends the next wait.
    pub fn new() -> Result<Self, KernelError> {
        let listening = || -> io::Result<Self> {
            let (route, nftables) = (listen(NETLINK_ROUTE)?, listen(NETLINK_NETFILTER)?);
            for group in GROUPS {
                route.add_membership(group)?;
            }
            nftables.add_membership(NFTABLES_GROUP)?;
            let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
            Ok(Self { route, nftables, stop })
        };
        listening().map_err(KernelError::io("listening for changes of the kernel's tables"))
    }

    /// The handle by which another thread ends the waiting.
    pub fn stop(&self) -> Stop {
        Stop(Arc::clone(&self.stop))
    }

    /// Waits until something changed and it has become quiet, until the time is out, or until stopped. Our own
    /// changes are changes too.
    pub fn wait(&self, timeout: Duration) -> Result<Woken, KernelError> {
        self.listen_until(timeout).map_err(KernelError::io("listening for changes of the kernel's tables"))
    }

    fn listen_until(&self, timeout: Duration) -> io::Result<Woken> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.poll(deadline.saturating_duration_since(Instant::now()))? {
                Woken::Changed if self.drain()? => break,
                Woken::Changed => {}
                other => return Ok(other),
            }
        }
        let patience = Instant::now() + PATIENCE;
        while Instant::now() < patience {
            match self.poll(QUIET)? {
                Woken::Changed => self.ignore()?,
                Woken::TimedOut => break,
                Woken::Stopped => return Ok(Woken::Stopped),
            }
        }
        Ok(Woken::Changed)
    }

    /// Waits for so long, or until stopped, whatever changes meanwhile: the next wait ends by it.
    pub fn rest(&self, time: Duration) {
        let mut stop = [PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        // What fails or is interrupted makes a rest shorter.
        let _ = poll(&mut stop, PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX));
    }

    fn poll(&self, timeout: Duration) -> io::Result<Woken> {
        let mut sources = [
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.route.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.nftables.as_fd(), PollFlags::POLLIN),
        ];
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut sources, timeout) {
            Ok(0) => Ok(Woken::TimedOut),
            Ok(_) if sources[0].any().unwrap_or(false) => Ok(Woken::Stopped),
            Ok(_) => Ok(Woken::Changed),
            Err(Errno::EINTR) => Ok(Woken::TimedOut),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes in everything that has come, where it is known already that something concerns us.
    fn ignore(&self) -> io::Result<()> {
        read_all(&self.route, |_, _| false)?;
        read_all(&self.nftables, |_, _| false).map(drop)
    }

    /// Takes in everything that has come; true when any of it concerns us.
    fn drain(&self) -> io::Result<bool> {
        let concerned = read_all(&self.route, route_concerns_us)?;
        Ok(read_all(&self.nftables, |_, _| true)? || concerned)
    }
}

pub(crate) fn listen(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Reads until nothing is left; true when a record concerns us, or when some were lost.
fn read_all(socket: &Socket, concerns_us: impl Fn(u16, &[u8]) -> bool) -> io::Result<bool> {
    let mut concerned = false;
    let mut buffer = Vec::with_capacity(DATAGRAM);
    loop {
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Ok(_) => concerned = concerned || records(&buffer).any(|(kind, body)| concerns_us(kind, body)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(concerned),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => concerned = true,
            Err(error) => return Err(error),
        }
    }
}

/// The records of a datagram: kind and body (`struct nlmsghdr`).
pub(crate) fn records(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let [a, b, c, d, e, f, ..] = *rest else { return None };
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let body = rest.get(16..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([e, f]), body))
    })
}

/// Whether a change of a routing table concerns us. Others' neighbours and routes change all the time.
fn route_concerns_us(kind: u16, body: &[u8]) -> bool {
    let index = |at: usize| body.get(at..at + 4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    // The index stands at its place of `ifinfomsg`, `ifaddrmsg` and `ndmsg`; the protocol at its place of `rtmsg`.
    match kind {
        16 | 17 | 20 | 21 | 28 | 29 => index(4).is_none_or(|index| link_concerns_us(kind, index)),
        24 | 25 => body.get(5) == Some(&ROUTE_PROTOCOL),
        // Settings: the first attribute tells of which link; below zero they are those of the whole namespace.
        80 | 81 => index(8).is_none_or(|index| index.cast_signed() < 0 || link_concerns_us(kind, index)),
        _ => true,
    }
}

fn link_concerns_us(kind: u16, index: u32) -> bool {
    match if_indextoname(index) {
        Ok(name) => is_governed(&name.to_string_lossy()),
        // Gone already: it may have been ours. Its neighbours are told of one by one, its going once.
        Err(_) => kind == 17,
    }
}
