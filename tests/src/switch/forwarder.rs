//! Ports, what is learned of them, and the frames that are under way.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use tappers::{Interface, Tap};

use super::conditions::Rules;
use super::fate::{Copy, Fates, Tally};
use super::{Order, SwitchStatus};
use crate::namespace::Namespace;

/// The longest frame a TAP without offloads can give: a 64 KiB MTU and the Ethernet header.
const LONGEST_FRAME: usize = 65_535 + 14;
/// How many frames of one port are taken before the others have their turn.
const BURST: usize = 64;

struct Port {
    tap: Tap,
    tally: Tally,
}

/// A frame that is to arrive.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct UnderWay {
    at: Instant,
    /// Frames of one moment keep their order.
    number: u64,
    from: String,
    to: String,
    bytes: Rc<Vec<u8>>,
}

/// The switch itself.
#[derive(Default)]
pub(super) struct Forwarder {
    ports: BTreeMap<String, Port>,
    rules: Rules,
    fates: Fates,
    /// Behind which port a hardware address was seen last.
    learned: HashMap<[u8; 6], String>,
    under_way: BinaryHeap<Reverse<UnderWay>>,
    counter: u64,
}

impl Forwarder {
    /// Waits for frames, arrivals or a question, moves what can be moved, and tells whether a question waits.
    pub fn turn(&mut self, listener: &UnixListener) -> io::Result<bool> {
        let now = Instant::now();
        let timeout =
            self.under_way.peek().map(|next| TimeSpec::from(next.0.at.saturating_duration_since(now)));
        let mut waits = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        waits.extend(self.ports.values().map(|port| PollFd::new(port.tap.as_fd(), PollFlags::POLLIN)));
        match ppoll(&mut waits, timeout, None) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = waits.iter().map(|wait| wait.any().unwrap_or(false)).collect();
        drop(waits);
        let names: Vec<String> = self.ports.keys().cloned().collect();
        for (name, _) in names.iter().zip(&ready[1..]).filter(|(_, ready)| **ready) {
            self.receive(name);
        }
        self.deliver_due();
        Ok(ready[0])
    }

    /// Takes a burst of frames from a port.
    fn receive(&mut self, from: &str) {
        let mut buffer = vec![0; LONGEST_FRAME];
        for _ in 0..BURST {
            let Some(port) = self.ports.get_mut(from) else { return };
            match port.tap.recv(&mut buffer) {
                Ok(length) if length >= 14 => {
                    port.tally.received += 1;
                    self.forward(from, &buffer[..length]);
                }
                // Nothing more, or the namespace is on its way out.
                Ok(_) | Err(_) => return,
            }
        }
    }

    fn forward(&mut self, from: &str, frame: &[u8]) {
        let (mut destination, mut source) = ([0; 6], [0; 6]);
        destination.copy_from_slice(&frame[..6]);
        source.copy_from_slice(&frame[6..12]);
        if self.learned.get(&source).is_none_or(|port| port != from) {
            self.learned.insert(source, from.to_owned());
        }
        let known = self.learned.get(&destination).filter(|port| self.ports.contains_key(*port));
        let targets: Vec<String> = match known {
            Some(port) if port == from => return,
            Some(port) => vec![port.clone()],
            None => self.ports.keys().filter(|port| *port != from).cloned().collect(),
        };
        for to in targets {
            self.send(from, to, frame);
        }
    }

    /// Sends a frame on one way, as the rules and chance will have it.
    fn send(&mut self, from: &str, to: String, frame: &[u8]) {
        let (now, way) = (Instant::now(), (from.to_owned(), to));
        let Some(port) = self.ports.get_mut(from) else { return };
        let copies = self.fates.judge(&self.rules, &way, frame.len(), now, &mut port.tally);
        let to = way.1;
        for Copy { at, turned } in copies {
            let mut bytes = frame.to_vec();
            if let Some(bit) = turned {
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            if at <= now {
                self.deliver(from, &to, &bytes);
                continue;
            }
            self.counter += 1;
            let (from, to, number) = (from.to_owned(), to.clone(), self.counter);
            self.under_way.push(Reverse(UnderWay { at, number, from, to, bytes: Rc::new(bytes) }));
        }
    }

    fn deliver_due(&mut self) {
        while self.under_way.peek().is_some_and(|next| next.0.at <= Instant::now()) {
            if let Some(Reverse(frame)) = self.under_way.pop() {
                self.deliver(&frame.from, &frame.to, &frame.bytes);
            }
        }
    }

    fn deliver(&mut self, from: &str, to: &str, bytes: &[u8]) {
        let sent = self.ports.get(to).is_some_and(|port| port.tap.send(bytes).is_ok());
        if let Some(port) = self.ports.get_mut(from) {
            if sent {
                port.tally.sent += 1;
            } else {
                port.tally.refused += 1;
            }
        }
    }

    /// Does what it is asked, or says why not.
    pub fn obey(&mut self, order: Order) -> Result<SwitchStatus, String> {
        match order {
            Order::Status => {}
            Order::Set { words } => {
                let ports: Vec<_> = self.ports.keys().map(String::as_str).collect();
                let rules = self.rules.after(&words, &ports)?;
                // Said again, a seed begins chance again.
                if let Some(seed) = rules.seed.filter(|_| words.iter().any(|word| word.starts_with("seed=")))
                {
                    self.fates.seed(seed);
                }
                self.rules = rules;
            }
            Order::AddPort { port, namespace } => {
                if self.ports.contains_key(&port) {
                    return Err(format!("the wire has a port {port} already"));
                }
                let tap = open_tap(&Namespace::named(&namespace))
                    .map_err(|error| format!("making eth0 in namespace {namespace}: {error}"))?;
                self.ports.insert(port, Port { tap, tally: Tally::default() });
            }
            Order::RemovePort { port } => {
                self.ports.remove(&port).ok_or_else(|| format!("the wire has no port {port}"))?;
            }
        }
        let ports = self.ports.iter().map(|(name, port)| (name.clone(), port.tally)).collect();
        Ok(SwitchStatus { words: self.rules.words(), ports })
    }
}

/// A TAP belongs to the namespace of the thread that opens it, wherever its descriptor goes then.
fn open_tap(namespace: &Namespace) -> io::Result<Tap> {
    std::thread::scope(|scope| {
        let opened = scope.spawn(|| {
            namespace.enter()?;
            let mut tap = Tap::new_named(Interface::new("eth0")?)?;
            tap.set_nonblocking(true)?;
            Ok(tap)
        });
        opened.join().unwrap_or_else(|_| Err(io::Error::other("the thread that opens it died")))
    })
}
