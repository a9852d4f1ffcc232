//! What becomes of connections of kernel pods: connection tracking tells of each that was let through as it begins, the table for
//! policy of each packet that it denies.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use causeway_model::Path;
use causeway_model::flow::{Event, Events};
use causeway_model::policy::{RuleId, RuleNumber, Verdict};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use crate::conntrack::{self, Flow};
use crate::denials::Denials;
use crate::error::KernelError;
use crate::nfnetlink::Record;
use crate::watch::{listen, records};

/// NFNLGRP_CONNTRACK_NEW.
const GROUP: u32 = 1;
const DATAGRAM: usize = 64 << 10;

/// Ears on both, in the network namespace of the thread that made them.
#[derive(Debug)]
pub(crate) struct Ears {
    socket: Socket,
    /// Times that the kernel had more to say than there was room for: of how many connections, it does not tell.
    lost: u64,
    /// None while somebody else listens: a process before us, which is about to end.
    denials: Option<Denials>,
}

impl Ears {
    pub(crate) fn new() -> Result<Self, KernelError> {
        let listening = || {
            let socket = listen(NETLINK_NETFILTER)?;
            socket.add_membership(GROUP)?;
            Ok(socket)
        };
        let socket = listening().map_err(KernelError::io("listening for new connections"))?;
        Ok(Self { socket, lost: 0, denials: listen_for_denials() })
    }

    /// The connections of these addresses that began since the last call, and the packets that were denied. `rule` says whose a
    /// number was at a time.
    pub(crate) fn take(
        &mut self,
        pods: &BTreeSet<IpAddr>,
        rule: impl Fn(RuleNumber, u64) -> Option<RuleId>,
    ) -> Result<Events, KernelError> {
        let mut events = self.begun(pods)?;
        if self.denials.is_none() {
            self.denials = listen_for_denials();
        }
        let mut lost = self.lost;
        if let Some(denials) = &mut self.denials {
            events.extend(denials.take(now(), rule)?);
            lost += denials.lost();
        }
        events.sort_by_key(|event| event.at);
        Ok(Events { events, lost })
    }

    fn begun(&mut self, pods: &BTreeSet<IpAddr>) -> Result<Vec<Event>, KernelError> {
        let mut events = Vec::new();
        let mut buffer = Vec::with_capacity(DATAGRAM);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => {
                    let flows = records(&buffer).filter(|(kind, _)| *kind == conntrack::NEW);
                    let flows = flows.filter_map(|(kind, body)| Flow::of(&Record::of(kind, body)));
                    events.extend(flows.filter(|flow| is_of(flow, pods)).map(|flow| event(&flow)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(events),
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => self.lost += 1,
                Err(error) => return Err(KernelError::io("hearing of new connections")(error)),
            }
        }
    }
}

fn listen_for_denials() -> Option<Denials> {
    Denials::new().inspect_err(|error| tracing::debug!(%error, "denials are counted and not told of")).ok()
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

fn is_of(flow: &Flow, pods: &BTreeSet<IpAddr>) -> bool {
    [flow.from, flow.answers].iter().any(|end| pods.contains(&end.ip()))
}

fn event(flow: &Flow) -> Event {
    let end = |address: SocketAddr| (address.ip(), address.port());
    Event {
        at: flow.began.unwrap_or_else(now),
        path: Path::Kernel,
        verdict: Verdict::Allow,
        protocol: flow.protocol,
        from: end(flow.from),
        to: end(flow.answers),
        bytes: 0,
        egress: None,
        ingress: None,
        audit: None,
        from_pod: None,
        to_pod: None,
    }
}
