//! Those who ask: many connections begun at once, each from a port of its own, and who answers them.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use causeway_model::{Family, PortProtocol};
use rustix::event::{PollFd, PollFlags};

use super::servers::{Reply, Servers, What};
use super::sockets::{self, End, Ports, now};
use crate::namespace::Namespace;
use crate::traffic::sctp;

/// Where the ports of those who ask are taken from: above those that services have on nodes.
const PORTS: std::ops::RangeInclusive<u16> = 33_000..=59_999;
/// When those ask again whose protocol does not do it for them.
const AGAIN: Duration = Duration::from_millis(900);
/// What those who ask say.
const QUESTION: &[u8] = b"who\n";

/// What became of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// Somebody answered, as `NAME:PORT`, who saw this address.
    Answer(String, IpAddr),
    /// It was refused at once.
    Refusal,
    /// Nothing came within the time.
    Nothing,
    /// Something else came.
    Other(String),
}

/// A connection to be begun.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    /// The namespace of who begins it.
    pub place: String,
    /// The address that it begins from; whichever the kernel takes where there is none.
    pub source: Option<IpAddr>,
    /// What it is.
    pub protocol: PortProtocol,
    /// Whom it is for.
    pub target: SocketAddr,
}

/// How one asks.
enum Way {
    Tcp(TcpStream, bool),
    Udp(UdpSocket),
    Sctp { end: End, own: SocketAddr, tag: u32, peer_tag: u32 },
}

/// One who asks.
pub(crate) struct Asker {
    target: SocketAddr,
    way: Way,
    /// When it has asked last; never before a connection stands.
    asked: Option<Instant>,
    came: Option<Came>,
}

/// Those who answer and those who ask. What is kept is a flow.
#[derive(Default)]
pub(crate) struct Prober {
    pub servers: Servers,
    flows: BTreeMap<String, Asker>,
    ports: Ports,
    /// The tag that was given out last.
    tag: u32,
}

impl Prober {
    /// Gives up the sockets in a namespace that goes.
    pub fn forget(&mut self, place: &str) {
        self.servers.forget(place);
    }

    /// Gives up the flows.
    pub fn end_flows(&mut self) {
        self.flows.clear();
    }

    /// Begins all of them, and waits until each has come to something or the time is over.
    pub fn ask(&mut self, questions: &[Question], patience: Duration) -> Result<Vec<Came>> {
        let mut askers = questions.iter().map(|question| self.begin(question)).collect::<Result<Vec<_>>>()?;
        self.wait(&mut askers, patience)?;
        Ok(askers.into_iter().map(|asker| asker.came.unwrap_or(Came::Nothing)).collect())
    }

    /// Begins one and keeps it.
    pub fn open(&mut self, flow: &str, question: &Question, patience: Duration) -> Result<Came> {
        let mut askers = vec![self.begin(question)?];
        self.wait(&mut askers, patience)?;
        let asker = askers.pop().context("one has asked")?;
        let came = asker.came.clone().unwrap_or(Came::Nothing);
        self.flows.insert(flow.to_owned(), asker);
        Ok(came)
    }

    /// Asks on one that was kept, so many times one after the other.
    pub fn resume(&mut self, flow: &str, times: usize, patience: Duration) -> Result<Vec<Came>> {
        let mut askers = vec![self.flows.remove(flow).with_context(|| format!("no flow {flow} is open"))?];
        let mut all = Vec::new();
        for _ in 0..times {
            askers[0].drain();
            askers[0].came = None;
            askers[0].asked = None;
            self.send(&mut askers[0])?;
            self.wait(&mut askers, patience)?;
            all.push(askers[0].came.clone().unwrap_or(Came::Nothing));
        }
        self.flows.insert(flow.to_owned(), askers.remove(0));
        Ok(all)
    }

    fn begin(&mut self, question: &Question) -> Result<Asker> {
        let Question { place, source, protocol, target } = question;
        let unspecified = match Family::of(target.ip()) {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let address = source.unwrap_or(unspecified);
        for _ in PORTS {
            let own = SocketAddr::new(address, self.ports.next(place, PORTS, |_| false));
            let begun = match protocol {
                PortProtocol::Tcp => Namespace::named(place).run(|| tcp(own, *target)),
                PortProtocol::Udp => Namespace::named(place).run(|| udp(own, *target)),
                PortProtocol::Sctp => {
                    self.tag += 1;
                    let (end, tag) = (End { place: place.clone(), address }, 0x0c11_0000 + self.tag);
                    self.servers.raw(&end)?;
                    Ok(Ok(Way::Sctp { end, own, tag, peer_tag: 0 }))
                }
            };
            let (way, came) = match begun {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => continue,
                Ok(Ok(way)) => (way, None),
                Ok(Err((way, came))) => (way, Some(came)),
                Err(error) => return Err(error).with_context(|| format!("{question:?}")),
            };
            let mut asker = Asker { target: *target, way, asked: None, came };
            // Over TCP that is for when the connection stands.
            if asker.came.is_none() && *protocol != PortProtocol::Tcp {
                self.send(&mut asker)?;
            }
            return Ok(asker);
        }
        bail!("no port is left in {place}");
    }

    /// Asks.
    fn send(&mut self, asker: &mut Asker) -> Result<()> {
        asker.asked = Some(Instant::now());
        let sent = match &mut asker.way {
            Way::Tcp(stream, _) => stream.write_all(QUESTION),
            Way::Udp(socket) => socket.send(QUESTION).map(drop),
            Way::Sctp { end, own, tag, peer_tag } => {
                let chunk = match peer_tag {
                    0 => sctp::begins(*tag),
                    _ => sctp::data(&tag.to_be_bytes())?,
                };
                sockets::send(self.servers.raw(end)?, *own, asker.target, *peer_tag, &chunk)
            }
        };
        match sent {
            // What a node's own rules take is told so; whether it was dropped or refused, what comes next tells.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => asker.came = Some(failed(&error)),
            Ok(()) => {}
        }
        Ok(())
    }

    /// Waits until each has come to something or the time is over.
    fn wait(&mut self, askers: &mut [Asker], patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while askers.iter().any(|asker| asker.came.is_none()) && Instant::now() < deadline {
            self.hear(askers)?;
            for asker in askers.iter_mut().filter(|asker| asker.is_due()) {
                self.send(asker)?;
            }
        }
        Ok(())
    }

    /// Takes what has come.
    fn hear(&mut self, askers: &mut [Asker]) -> Result<()> {
        let waiting: Vec<_> = (0..askers.len()).filter(|index| askers[*index].awaits().is_some()).collect();
        let mut fds = self.servers.awaited();
        let served = fds.len();
        fds.extend(waiting.iter().filter_map(|index| askers[*index].awaits()));
        let Some(ready) = sockets::ready(fds)? else { return Ok(()) };
        let (served, asked) = ready.split_at(served);
        self.servers.answer(served)?;
        for (index, _) in waiting.iter().zip(asked).filter(|(_, ready)| **ready) {
            if askers[*index].look() {
                self.send(&mut askers[*index])?;
            }
        }
        for reply in self.servers.replies() {
            if let Some(asker) = askers.iter_mut().find(|asker| asker.is_for(&reply)) {
                asker.take(&reply);
            }
        }
        Ok(())
    }
}

/// A connection that is begun, or one that has failed at once.
type Begun = io::Result<Result<Way, (Way, Came)>>;

fn tcp(own: SocketAddr, target: SocketAddr) -> Begun {
    let (socket, begun) = sockets::connect(own, target)?;
    let way = Way::Tcp(socket.into(), false);
    Ok(match begun {
        Ok(()) => Ok(way),
        Err(error) => Err((way, failed(&error))),
    })
}

fn udp(own: SocketAddr, target: SocketAddr) -> Begun {
    let socket = sockets::datagrams(own)?;
    Ok(match socket.connect(target) {
        Ok(()) => Ok(Way::Udp(socket)),
        Err(error) => Err((Way::Udp(socket), failed(&error))),
    })
}

/// What an error of a socket says.
fn failed(error: &io::Error) -> Came {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Came::Refusal,
        _ => Came::Other(error.to_string()),
    }
}

/// What a server has said of itself.
fn said(words: &[u8]) -> Option<Came> {
    let words = std::str::from_utf8(words).ok()?;
    let mut words = words.lines().next()?.split(' ');
    let (id, port, saw) = (words.next()?, words.next()?, words.next()?);
    Some(Came::Answer(format!("{id}:{port}"), saw.parse().ok()?))
}

impl Asker {
    /// What a socket of its own waits for.
    fn awaits(&self) -> Option<PollFd<'_>> {
        let (fd, flags) = match &self.way {
            Way::Tcp(stream, false) => (stream.as_fd(), PollFlags::OUT),
            Way::Tcp(stream, true) => (stream.as_fd(), PollFlags::IN),
            Way::Udp(socket) => (socket.as_fd(), PollFlags::IN),
            Way::Sctp { .. } => return None,
        };
        self.came.is_none().then(|| PollFd::from_borrowed_fd(fd, flags))
    }

    /// Reads what came late: of a question that was asked twice.
    fn drain(&mut self) {
        if let Way::Udp(socket) = &self.way {
            while !matches!(now(socket.recv(&mut [0; 256])), Ok(None)) {}
        }
    }

    /// Whether it is time to ask again.
    fn is_due(&self) -> bool {
        let late = self.asked.is_some_and(|asked| asked.elapsed() > AGAIN);
        self.came.is_none() && late && !matches!(self.way, Way::Tcp(..))
    }

    /// Looks what its socket has; whether a connection stands now, and it is to ask.
    fn look(&mut self) -> bool {
        let mut bytes = [0; 256];
        let came = match &mut self.way {
            Way::Tcp(stream, connected @ false) => match stream.take_error() {
                Ok(None) => {
                    *connected = true;
                    return true;
                }
                Ok(Some(error)) | Err(error) => Err(error),
            },
            Way::Tcp(stream, true) => now(stream.read(&mut bytes)),
            Way::Udp(socket) => now(socket.recv(&mut bytes)),
            Way::Sctp { .. } => Ok(None),
        };
        match came {
            Ok(None) => {}
            Ok(Some(0)) => self.came = Some(Came::Other("closed without an answer".into())),
            Ok(Some(length)) => self.came = said(&bytes[..length]),
            Err(error) => self.came = Some(failed(&error)),
        }
        false
    }

    fn is_for(&self, reply: &Reply) -> bool {
        let Way::Sctp { own, .. } = &self.way else { return false };
        self.came.is_none() && *own == reply.own && self.target == reply.peer
    }

    /// Takes what has come over SCTP.
    fn take(&mut self, reply: &Reply) {
        let Way::Sctp { tag: mine, peer_tag, .. } = &mut self.way else { return };
        match &reply.what {
            What::Refusal => self.came = Some(Came::Refusal),
            // Anything with another tag is of no association of ours.
            What::Chunk(tag, chunk) if tag == mine => {
                if let Some(cookie) = sctp::cookie(chunk) {
                    *peer_tag =
                        chunk.get(4..8).and_then(|tag| tag.try_into().ok()).map_or(0, u32::from_be_bytes);
                    self.came = said(cookie);
                } else if let Some(payload) = sctp::payload(chunk) {
                    self.came = said(payload);
                } else if sctp::is_abort(chunk) {
                    self.came = Some(Came::Refusal);
                }
            }
            What::Chunk(..) => {}
        }
    }
}
