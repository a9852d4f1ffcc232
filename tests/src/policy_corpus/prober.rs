//! Many connections begun at once, each from a port of its own, and which of them arrive and are answered.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use causeway_model::PortProtocol;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{self, RecvFlags, sockopt};

use crate::corpus::sockets::{self, End, Ports, SERVER_TAG, heard, now, plain};
use crate::namespace::Namespace;
use crate::traffic::sctp;

/// Where the ports of those who begin are taken from.
const PORTS: std::ops::RangeInclusive<u16> = 20_000..=59_999;

/// A connection to be begun.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// Who begins it.
    pub from: End,
    /// From which port; any that was not used before where there is none.
    pub from_port: Option<u16>,
    /// Who answers.
    pub to: End,
    /// What it is.
    pub protocol: PortProtocol,
    /// Its port there.
    pub port: u16,
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fate {
    /// Whom it was for has seen it.
    pub arrived: bool,
    /// Who began it has its answer.
    pub answered: bool,
}

/// Sockets in many namespaces: those who answer stay, those who ask come and go.
#[derive(Default)]
pub(super) struct Prober {
    tcp: BTreeMap<(End, u16), TcpListener>,
    udp: BTreeMap<(End, u16), UdpSocket>,
    /// Raw ones, which hear all ports and both roles.
    sctp: BTreeMap<End, OwnedFd>,
    ports: Ports,
    /// Ports that somebody is asked at somewhere.
    served: BTreeSet<u16>,
}

/// A connection by protocol, who begins it and whom it is for.
type Key = (PortProtocol, SocketAddr, SocketAddr);

/// One who asks; dropping it ends the connection without a word from TCP.
enum Asker {
    Tcp(OwnedFd),
    Udp(UdpSocket),
    /// By the raw socket of its end.
    Sctp,
    /// One that was told that nobody is there.
    Refused,
}

/// What is under way.
#[derive(Default)]
struct Volley {
    fates: Vec<Fate>,
    by_key: HashMap<Key, usize>,
    /// Who asks each question.
    askers: Vec<Asker>,
    /// What servers have accepted; closed after those who asked are.
    accepted: Vec<TcpStream>,
}

impl Prober {
    /// Gives up the sockets in a namespace that goes.
    pub fn forget(&mut self, place: &str) {
        self.tcp.retain(|(end, _), _| end.place != place);
        self.udp.retain(|(end, _), _| end.place != place);
        self.sctp.retain(|end, _| end.place != place);
    }

    /// Begins all of them, and waits until the caller has seen enough or the time is over.
    pub fn ask(
        &mut self,
        questions: &[Question],
        patience: Duration,
        mut enough: impl FnMut(&[Fate]) -> Result<bool>,
    ) -> Result<Vec<Fate>> {
        self.serve(questions)?;
        let mut volley = self.fire(questions)?;
        let deadline = Instant::now() + patience;
        loop {
            self.hear(&mut volley)?;
            if enough(&volley.fates)? || Instant::now() > deadline {
                // What came in meanwhile counts, above all where nothing should.
                while self.hear(&mut volley)? {}
                volley.askers.clear();
                return Ok(volley.fates);
            }
        }
    }

    /// Opens whatever is asked at and not served yet, and closes what stands in the way of those who ask from a certain port.
    fn serve(&mut self, questions: &[Question]) -> Result<()> {
        for question in questions {
            if let Some(port) = question.from_port {
                self.tcp.remove(&(question.from.clone(), port));
                self.udp.remove(&(question.from.clone(), port));
            }
        }
        let mut missing: BTreeMap<&str, Vec<(PortProtocol, &End, u16)>> = BTreeMap::new();
        for Question { from, to, protocol, port, .. } in questions {
            self.served.insert(*port);
            let place = (to.clone(), *port);
            let ends = match protocol {
                PortProtocol::Tcp if !self.tcp.contains_key(&place) => vec![to],
                PortProtocol::Udp if !self.udp.contains_key(&place) => vec![to],
                PortProtocol::Sctp => {
                    [from, to].into_iter().filter(|end| !self.sctp.contains_key(end)).collect()
                }
                _ => Vec::new(),
            };
            for end in ends {
                missing.entry(&end.place).or_default().push((*protocol, end, *port));
            }
        }
        for (place, servers) in missing {
            let opened = Namespace::named(place).run(|| self.open(servers));
            opened.with_context(|| format!("serving in {place}"))?;
        }
        Ok(())
    }

    /// Opens servers in the namespace of this thread.
    fn open(&mut self, servers: Vec<(PortProtocol, &End, u16)>) -> io::Result<()> {
        for (protocol, end, port) in servers {
            let (place, address) = ((end.clone(), port), SocketAddr::new(end.address, port));
            match protocol {
                PortProtocol::Tcp if !self.tcp.contains_key(&place) => {
                    self.tcp.insert(place, sockets::listener(address)?);
                }
                PortProtocol::Udp if !self.udp.contains_key(&place) => {
                    self.udp.insert(place, sockets::datagrams(address)?);
                }
                PortProtocol::Sctp if !self.sctp.contains_key(end) => {
                    self.sctp.insert(end.clone(), sockets::raw(end.address)?);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn fire(&mut self, questions: &[Question]) -> Result<Volley> {
        let mut by_place: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, question) in questions.iter().enumerate() {
            by_place.entry(&question.from.place).or_default().push(index);
        }
        let askers = questions.iter().map(|_| Asker::Refused).collect();
        let fates = vec![Fate::default(); questions.len()];
        let mut volley = Volley { fates, askers, ..Volley::default() };
        for (place, indices) in by_place {
            let fired = Namespace::named(place).run(|| {
                indices.into_iter().try_for_each(|index| {
                    let question = &questions[index];
                    self.begin(question, index, &mut volley).with_context(|| format!("{question:?}"))
                })
            });
            fired?;
        }
        Ok(volley)
    }

    /// Begins a connection from the namespace of this thread.
    fn begin(&mut self, question: &Question, index: usize, volley: &mut Volley) -> Result<()> {
        let Question { from, from_port, to, protocol, port } = question;
        let target = SocketAddr::new(to.address, *port);
        for _ in PORTS {
            let own = SocketAddr::new(from.address, from_port.unwrap_or_else(|| self.next_port(&from.place)));
            let asker = match self.asker(from, *protocol, own, target, index) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && from_port.is_none() => continue,
                asker => asker?,
            };
            volley.by_key.insert((*protocol, own, target), index);
            volley.askers[index] = asker;
            return Ok(());
        }
        bail!("no port is left");
    }

    fn asker(
        &self,
        from: &End,
        protocol: PortProtocol,
        own: SocketAddr,
        target: SocketAddr,
        index: usize,
    ) -> io::Result<Asker> {
        Ok(match protocol {
            PortProtocol::Tcp => {
                let (socket, begun) = sockets::connect(own, target)?;
                begun?;
                Asker::Tcp(socket)
            }
            PortProtocol::Udp => {
                let socket = sockets::datagrams(own)?;
                socket.connect(target)?;
                socket.send(b"who?")?;
                Asker::Udp(socket)
            }
            PortProtocol::Sctp => {
                let socket = self.sctp.get(from).ok_or_else(|| io::Error::other("no raw socket"))?;
                sockets::send(socket, own, target, 0, &sctp::begins(client_tag(index)))?;
                Asker::Sctp
            }
        })
    }

    /// A port that nobody in a namespace has begun anything from for a long time.
    fn next_port(&mut self, place: &str) -> u16 {
        let served = &self.served;
        self.ports.next(place, PORTS, |port| served.contains(&port))
    }

    /// Takes what has come; whether anything had.
    fn hear(&self, volley: &mut Volley) -> Result<bool> {
        let waiting: Vec<_> = volley.waiting().collect();
        let mut fds: Vec<_> = self.tcp.values().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
        fds.extend(self.udp.values().map(|socket| PollFd::new(socket, PollFlags::IN)));
        fds.extend(self.sctp.values().map(|socket| PollFd::new(socket, PollFlags::IN)));
        fds.extend(waiting.iter().filter_map(|index| volley.askers[*index].awaits()));
        let Some(ready) = sockets::ready(fds)? else { return Ok(false) };
        let (tcp, ready) = ready.split_at(self.tcp.len());
        let (udp, ready) = ready.split_at(self.udp.len());
        let (sctp, asked) = ready.split_at(self.sctp.len());
        for (listener, _) in self.tcp.values().zip(tcp).filter(|(_, ready)| **ready) {
            volley.accept(listener)?;
        }
        for (socket, _) in self.udp.values().zip(udp).filter(|(_, ready)| **ready) {
            volley.echo(socket)?;
        }
        for ((end, socket), _) in self.sctp.iter().zip(sctp).filter(|(_, ready)| **ready) {
            volley.associate(end.address, socket)?;
        }
        for (index, _) in waiting.iter().zip(asked).filter(|(_, ready)| **ready) {
            volley.look_at(*index)?;
        }
        Ok(true)
    }
}

impl Volley {
    /// Those who have sockets of their own and no answer yet.
    fn waiting(&self) -> impl Iterator<Item = usize> + '_ {
        let asks = |index: &usize| !self.fates[*index].answered && self.askers[*index].awaits().is_some();
        (0..self.askers.len()).filter(asks)
    }

    fn saw(&mut self, protocol: PortProtocol, from: SocketAddr, to: SocketAddr, see: impl FnOnce(&mut Fate)) {
        // Anything else is late: of an earlier volley.
        if let Some(index) = self.by_key.get(&(protocol, plain(from), plain(to))) {
            see(&mut self.fates[*index]);
        }
    }

    fn accept(&mut self, listener: &TcpListener) -> Result<()> {
        while let Some((stream, from)) = now(listener.accept())? {
            let to = listener.local_addr()?;
            self.saw(PortProtocol::Tcp, from, to, |fate| fate.arrived = true);
            self.accepted.push(stream);
        }
        Ok(())
    }

    fn echo(&mut self, socket: &UdpSocket) -> Result<()> {
        let mut bytes = [0; 64];
        while let Some((length, from)) = now(socket.recv_from(&mut bytes))? {
            let to = socket.local_addr()?;
            self.saw(PortProtocol::Udp, from, to, |fate| fate.arrived = true);
            drop(socket.send_to(&bytes[..length], from));
        }
        Ok(())
    }

    /// Reads what has come to a raw socket: for one who is asked, or for one who has asked.
    fn associate(&mut self, own: IpAddr, socket: &OwnedFd) -> Result<()> {
        let mut bytes = [0; 512];
        while let Some((length, _, from)) =
            now(net::recvfrom(socket, &mut bytes[..], RecvFlags::empty()).map_err(io::Error::from))?
        {
            let Some(from) = from.and_then(|from| SocketAddr::try_from(from).ok()) else { continue };
            let Some((header, chunk)) = heard(&bytes[..length], own) else { continue };
            let (from, to) =
                (SocketAddr::new(from.ip(), header.source()), SocketAddr::new(own, header.destination()));
            if sctp::is_answer(chunk) {
                let expected = |index: &usize| client_tag(*index) == header.verification_tag();
                let known = self.by_key.get(&(PortProtocol::Sctp, plain(to), plain(from))).copied();
                if let Some(index) = known.filter(expected) {
                    self.fates[index].answered = true;
                }
            } else if let Some((tag, chunk)) = sctp::answer(chunk, SERVER_TAG) {
                self.saw(PortProtocol::Sctp, from, to, |fate| fate.arrived = true);
                // One that cannot be sent does not come.
                let _ = sockets::send(socket, to, from, tag, &chunk);
            }
        }
        Ok(())
    }

    /// Looks whether one who has asked has the answer.
    fn look_at(&mut self, index: usize) -> Result<()> {
        let told = match &self.askers[index] {
            Asker::Tcp(socket) => sockopt::socket_error(socket)?.map(Some).map_err(io::Error::from),
            Asker::Udp(socket) => now(socket.recv(&mut [0; 64])).map(|answer| answer.map(drop)),
            Asker::Sctp | Asker::Refused => Ok(None),
        };
        match told {
            Ok(answer) => self.fates[index].answered = answer.is_some(),
            Err(_) => self.askers[index] = Asker::Refused,
        }
        Ok(())
    }
}

impl Asker {
    /// What a socket of its own waits for.
    fn awaits(&self) -> Option<PollFd<'_>> {
        match self {
            Self::Tcp(socket) => Some(PollFd::new(socket, PollFlags::OUT)),
            Self::Udp(socket) => Some(PollFd::new(socket, PollFlags::IN)),
            Self::Sctp | Self::Refused => None,
        }
    }
}

/// What the one who asks wants an association to be known by.
fn client_tag(index: usize) -> u32 {
    0x0c11_0000 + index as u32
}
