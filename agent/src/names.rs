//! Names of the mesh, answered at an address of this node's own (docs/mesh.md): sockets here, messages in [`message`], answers by
//! whoever is asked.

mod message;
mod meter;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use causeway_mesh::dns::{Kind, Reply};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use message::{Transport, answer};
pub(crate) use meter::NameMeter;

/// How soon an address is tried again at which somebody else listens.
const RETRY: Duration = Duration::from_secs(5);
/// TCP connections at once, of all clients and of one: one pod cannot keep the others out.
const CONNECTIONS: usize = 256;
const CONNECTIONS_OF_ONE: usize = 16;
/// How long a client may take for its next question, and for reading its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many connections may wait to be taken.
const BACKLOG: i32 = 64;
/// The longest question that is read by UDP: those with any sense have a few hundred bytes.
const LONGEST: usize = 4096;

/// What is known of a name; nothing while the mesh is not known.
pub(crate) type Answers = dyn Fn(&str, Kind) -> Option<Reply> + Send + Sync;

/// Whom sockets ask and where they count.
#[derive(Clone)]
struct Desk {
    answers: Arc<Answers>,
    meter: Arc<NameMeter>,
}

/// Answers at these addresses, for ever.
pub(crate) async fn serve(places: Vec<SocketAddr>, answers: Arc<Answers>, meter: Arc<NameMeter>) {
    let mut tasks = JoinSet::new();
    for place in places {
        tasks.spawn(serve_at(place, Desk { answers: answers.clone(), meter: meter.clone() }));
    }
    while tasks.join_next().await.is_some() {}
}

async fn serve_at(place: SocketAddr, desk: Desk) {
    loop {
        match open(place) {
            Ok((datagrams, listener)) => {
                desk.meter.at(place.ip(), Ok(()));
                tokio::select! {
                    error = by_datagrams(&datagrams, &desk) => desk.meter.at(place.ip(), Err(error)),
                    error = by_streams(&listener, &desk) => desk.meter.at(place.ip(), Err(error)),
                }
            }
            Err(error) => desk.meter.at(place.ip(), Err(error)),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The sockets at an address, which the data path may give to the node later, or again.
fn open(place: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let datagrams = socket(place, SocketType::DGRAM)?;
    let datagrams = UdpSocket::from_std(datagrams.into())?;
    // Of a port that is chosen for one the other takes the same.
    let listener = socket(datagrams.local_addr()?, SocketType::STREAM)?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok((datagrams, TcpListener::from_std(listener.into())?))
}

fn socket(place: SocketAddr, kind: SocketType) -> io::Result<rustix::fd::OwnedFd> {
    let family = if place.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    match place {
        SocketAddr::V4(_) => sockopt::set_ip_freebind(&socket, true)?,
        SocketAddr::V6(_) => sockopt::set_ipv6_freebind(&socket, true)?,
    }
    if kind == SocketType::STREAM {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &place)?;
    Ok(socket)
}

async fn by_datagrams(socket: &UdpSocket, desk: &Desk) -> io::Error {
    let mut question = vec![0; LONGEST];
    loop {
        let (len, from) = match socket.recv_from(&mut question).await {
            Ok(received) => received,
            Err(error) => return error,
        };
        let said = answer(&question[..len], Transport::Udp, &*desk.answers, &desk.meter);
        // A client that does not take its answer now asks again.
        if said.is_some_and(|said| socket.try_send_to(&said, from).is_err()) {
            desk.meter.dropped();
        }
    }
}

async fn by_streams(listener: &TcpListener, desk: &Desk) -> io::Error {
    let seats = Arc::new(Seats::default());
    loop {
        match listener.accept().await {
            Ok((stream, from)) => match Seats::take(&seats, from.ip()) {
                Some(seat) => {
                    let desk = desk.clone();
                    tokio::spawn(async move {
                        // A client that goes, or takes too long, has had what it gets.
                        drop(talk(stream, &desk).await);
                        drop(seat);
                    });
                }
                None => desk.meter.dropped(),
            },
            // Of the connection, or of too many open files: neither is for ever.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return error,
        }
    }
}

/// Answers one question after the other, for as long as they come (RFC 7766).
async fn talk(mut stream: TcpStream, desk: &Desk) -> io::Result<()> {
    loop {
        let question = timeout(PATIENCE, read(&mut stream)).await??;
        let Some(said) = answer(&question, Transport::Tcp, &*desk.answers, &desk.meter) else {
            return Ok(());
        };
        let len = u16::try_from(said.len()).map_err(io::Error::other)?;
        let framed = [&len.to_be_bytes()[..], &said].concat();
        timeout(PATIENCE, stream.write_all(&framed)).await??;
    }
}

async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut question = vec![0; len.into()];
    stream.read_exact(&mut question).await?;
    Ok(question)
}

/// Who has a connection.
#[derive(Default)]
struct Seats(Mutex<BTreeMap<IpAddr, usize>>);

/// One connection's, until it is dropped.
struct Seat {
    seats: Arc<Seats>,
    client: IpAddr,
}

impl Seats {
    fn take(seats: &Arc<Self>, client: IpAddr) -> Option<Seat> {
        let mut taken = seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.get(&client).copied().unwrap_or_default();
        if own >= CONNECTIONS_OF_ONE || taken.values().sum::<usize>() >= CONNECTIONS {
            return None;
        }
        taken.insert(client, own + 1);
        Some(Seat { seats: seats.clone(), client })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.client) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.remove(&self.client)),
        }
    }
}
