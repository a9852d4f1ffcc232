//! Those who answer: sockets in every pod, on every node and on hosts outside, which say who they are and whom they saw.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use causeway_model::PortProtocol;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use rustix::event::{PollFd, PollFlags};
use rustix::net::{self, RecvFlags};

use super::sockets::{self, End, SERVER_TAG, heard, now, plain};
use crate::namespace::Namespace;
use crate::traffic::sctp;

/// The types and codes of ICMP and ICMPv6 that say that nobody is at a port.
const PORT_UNREACHABLE: [(u8, u8); 2] = [(3, 3), (1, 4)];

/// Something for one who asked over SCTP.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// Who asked.
    pub own: SocketAddr,
    /// Who was asked.
    pub peer: SocketAddr,
    /// What it is.
    pub what: What,
}

/// What came for one who asked over SCTP.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// A chunk, and the tag that it came with.
    Chunk(u32, Vec<u8>),
    /// ICMP says that nobody is at the port.
    Refusal,
}

enum Listener {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// A port that is served.
struct Server {
    end: End,
    id: String,
    port: u16,
    listener: Listener,
}

/// A connection that was accepted.
struct Talk {
    place: String,
    id: String,
    port: u16,
    stream: TcpStream,
}

/// A raw socket, which hears all ports and both roles.
struct Raw {
    socket: OwnedFd,
    /// Who serves a port.
    ports: BTreeMap<u16, String>,
}

/// All who answer, in many namespaces.
#[derive(Default)]
pub(crate) struct Servers {
    servers: Vec<Server>,
    talks: Vec<Talk>,
    raw: BTreeMap<End, Raw>,
    replies: VecDeque<Reply>,
}

/// What a server says.
fn words(id: &str, port: u16, saw: IpAddr) -> String {
    format!("{id} {port} {saw}\n")
}

impl Servers {
    /// Serves ports at addresses of a namespace.
    pub fn serve(
        &mut self,
        place: &str,
        id: &str,
        addresses: &[IpAddr],
        ports: &[(PortProtocol, u16)],
    ) -> Result<()> {
        for address in addresses {
            let end = End { place: place.to_owned(), address: *address };
            self.raw(&end)?;
            for (protocol, port) in ports {
                let at = SocketAddr::new(*address, *port);
                let listener = match protocol {
                    PortProtocol::Sctp => {
                        if let Some(raw) = self.raw.get_mut(&end) {
                            raw.ports.insert(*port, id.to_owned());
                        }
                        continue;
                    }
                    PortProtocol::Tcp => {
                        Namespace::named(place).run(|| sockets::listener(at)).map(Listener::Tcp)
                    }
                    PortProtocol::Udp => {
                        Namespace::named(place).run(|| sockets::datagrams(at)).map(Listener::Udp)
                    }
                };
                let listener = listener.with_context(|| format!("serving {protocol} {at} in {place}"))?;
                self.servers.push(Server { end: end.clone(), id: id.to_owned(), port: *port, listener });
            }
        }
        Ok(())
    }

    /// Gives up all sockets in a namespace that goes.
    pub fn forget(&mut self, place: &str) {
        self.servers.retain(|server| server.end.place != place);
        self.talks.retain(|talk| talk.place != place);
        self.raw.retain(|end, _| end.place != place);
    }

    /// The raw socket of an end, which is opened if it is not there.
    pub fn raw(&mut self, end: &End) -> Result<&OwnedFd> {
        if !self.raw.contains_key(end) {
            let opened = Namespace::named(&end.place).run(|| -> io::Result<_> {
                let socket = sockets::raw(end.address)?;
                // Errors come to a queue of their own, with the packet that they are about.
                match end.address {
                    IpAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
                    IpAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
                }
                Ok(socket)
            });
            let socket = opened.with_context(|| format!("a raw socket of {end:?}"))?;
            self.raw.insert(end.clone(), Raw { socket, ports: BTreeMap::new() });
        }
        Ok(&self.raw[end].socket)
    }

    /// What came for those who ask over SCTP.
    pub fn replies(&mut self) -> impl Iterator<Item = Reply> + '_ {
        self.replies.drain(..)
    }

    /// What all of them wait for.
    pub fn awaited(&self) -> Vec<PollFd<'_>> {
        let servers = self.servers.iter().map(|server| match &server.listener {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Udp(socket) => socket.as_fd(),
        });
        let talks = self.talks.iter().map(|talk| talk.stream.as_fd());
        let raw = self.raw.values().map(|raw| raw.socket.as_fd());
        let all = servers.chain(talks).chain(raw);
        all.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect()
    }

    /// Answers whatever has come to those of them who are ready, in the order in which they wait.
    pub fn answer(&mut self, ready: &[bool]) -> Result<()> {
        let (servers, ready) = ready.split_at(self.servers.len());
        let (talks, raw) = ready.split_at(self.talks.len());
        let mut open = Vec::new();
        for (mut talk, ready) in std::mem::take(&mut self.talks).into_iter().zip(talks) {
            if !ready || talk.answer() {
                open.push(talk);
            }
        }
        self.talks = open;
        for (server, _) in self.servers.iter().zip(servers).filter(|(_, ready)| **ready) {
            match &server.listener {
                Listener::Udp(socket) => server.echo(socket)?,
                Listener::Tcp(listener) => {
                    while let Some((stream, _)) = now(listener.accept())? {
                        stream.set_nonblocking(true)?;
                        let (place, id) = (server.end.place.clone(), server.id.clone());
                        self.talks.push(Talk { place, id, port: server.port, stream });
                    }
                }
            }
        }
        for ((end, socket), _) in self.raw.iter().zip(raw).filter(|(_, ready)| **ready) {
            socket.hear(end.address, &mut self.replies)?;
        }
        Ok(())
    }
}

impl Server {
    fn echo(&self, socket: &UdpSocket) -> Result<()> {
        let mut bytes = [0; 64];
        loop {
            match now(socket.recv_from(&mut bytes)) {
                // An answer that cannot be sent does not come.
                Ok(Some((_, from))) => {
                    drop(socket.send_to(words(&self.id, self.port, from.ip()).as_bytes(), from));
                }
                Ok(None) => return Ok(()),
                // Somebody who was answered is not there any more.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Talk {
    /// Answers each line that has come; whether there may be more.
    fn answer(&mut self) -> bool {
        let mut bytes = [0; 256];
        let Ok(peer) = self.stream.peer_addr() else { return false };
        loop {
            match now(self.stream.read(&mut bytes)) {
                Ok(Some(0)) | Err(_) => return false,
                Ok(None) => return true,
                Ok(Some(length)) => {
                    let lines = bytes[..length].iter().filter(|byte| **byte == b'\n').count();
                    let answer = words(&self.id, self.port, peer.ip()).repeat(lines);
                    if self.stream.write_all(answer.as_bytes()).is_err() {
                        return false;
                    }
                }
            }
        }
    }
}

impl Raw {
    /// Reads what has come: for one who is asked, or for one who has asked.
    fn hear(&self, own: IpAddr, replies: &mut VecDeque<Reply>) -> Result<()> {
        self.errors(own, replies)?;
        let mut bytes = [0; 1024];
        loop {
            let came = net::recvfrom(&self.socket, &mut bytes[..], RecvFlags::empty());
            let came = match now(came.map_err(io::Error::from)) {
                Ok(Some((length, _, from))) => (length, from),
                Ok(None) => return Ok(()),
                // What the queue of errors tells at length.
                Err(_) => continue,
            };
            let Some(from) = came.1.and_then(|from| SocketAddr::try_from(from).ok()) else { continue };
            let Some((header, chunk)) = heard(&bytes[..came.0], own) else { continue };
            let peer = plain(SocketAddr::new(from.ip(), header.source()));
            let own = SocketAddr::new(own, header.destination());
            let server = self.ports.get(&own.port());
            match self.said(server, own.port(), peer.ip(), chunk) {
                Some((tag, chunk)) => {
                    // One that cannot be sent does not come.
                    let _ = sockets::send(&self.socket, own, peer, tag, &chunk);
                }
                None => {
                    let what = What::Chunk(header.verification_tag(), chunk.to_vec());
                    replies.push_back(Reply { own, peer, what });
                }
            }
        }
    }

    /// What a chunk is answered with, and the tag that the answer carries.
    fn said(&self, server: Option<&String>, port: u16, saw: IpAddr, chunk: &[u8]) -> Option<(u32, Vec<u8>)> {
        let Some(id) = server else {
            // Nobody is there. Its tag is where that of an answer would be.
            let (tag, _) = sctp::answer(chunk, SERVER_TAG).filter(|_| sctp::is_begin(chunk))?;
            return Some((tag, sctp::ABORT.to_vec()));
        };
        let mut words = words(id, port, saw).into_bytes();
        words.resize(words.len().next_multiple_of(4), b'\n');
        if let Some(payload) = sctp::payload(chunk) {
            let tag = payload.get(..4)?.try_into().ok()?;
            return Some((u32::from_be_bytes(tag), sctp::data(&words).ok()?));
        }
        sctp::answer_with(chunk, SERVER_TAG, &words)
    }

    /// Reads the queue of errors.
    fn errors(&self, own: IpAddr, replies: &mut VecDeque<Reply>) -> Result<()> {
        let mut bytes = [0; 256];
        loop {
            let mut iov = [io::IoSliceMut::new(&mut bytes)];
            let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
            let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
            let came = recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut iov, Some(&mut space), flags);
            let Ok(message) = came else { return Ok(()) };
            let mut refused = false;
            for control in message.cmsgs()? {
                if let ControlMessageOwned::Ipv4RecvErr(error, _)
                | ControlMessageOwned::Ipv6RecvErr(error, _) = control
                {
                    refused |= PORT_UNREACHABLE.contains(&(error.ee_type, error.ee_code));
                }
            }
            let peer = message.address.as_ref().and_then(|address| {
                let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
            });
            let length = message.bytes;
            if let (true, Some(peer), Some([a, b, c, d, ..])) = (refused, peer, bytes.get(..length)) {
                let (own, peer) = (
                    SocketAddr::new(own, u16::from_be_bytes([*a, *b])),
                    SocketAddr::new(peer, u16::from_be_bytes([*c, *d])),
                );
                replies.push_back(Reply { own, peer, what: What::Refusal });
            }
        }
    }
}
