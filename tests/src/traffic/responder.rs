use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::PATIENCE;
use crate::namespace::Namespace;

/// How often the server looks whether it shall end, in milliseconds.
const LOOK: u8 = 20;
/// How long an answer may take before there is none.
const SILENCE: Duration = Duration::from_millis(1500);

/// A server of one port that answers every question over TCP and UDP, of both families, with its own name and the address that it
/// sees asking; until it is dropped.
#[derive(Debug)]
pub struct Responder {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Who answered.
    pub by: String,
    /// Whom the server saw asking.
    pub to: IpAddr,
}

impl Responder {
    /// Listens in a namespace.
    pub fn start(place: &Namespace, port: u16, name: &str) -> io::Result<Self> {
        let any = (Ipv6Addr::UNSPECIFIED, port);
        let (listener, socket) =
            place.run(|| Ok::<_, io::Error>((TcpListener::bind(any)?, UdpSocket::bind(any)?)))?;
        listener.set_nonblocking(true)?;
        socket.set_read_timeout(Some(Duration::from_millis(LOOK.into())))?;
        let stop = Arc::new(AtomicBool::new(false));
        let tcp = std::thread::spawn({
            let (stop, name) = (stop.clone(), name.to_owned());
            move || serve_tcp(&listener, &name, &stop)
        });
        let udp = std::thread::spawn({
            let (stop, name) = (stop.clone(), name.to_owned());
            move || serve_udp(&socket, &name, &stop)
        });
        Ok(Self { stop, threads: vec![tcp, udp] })
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn serve_tcp(listener: &TcpListener, name: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            // Who asks sees that there is no answer.
            Ok((stream, client)) => drop(answer(stream, name, client)),
            Err(_) => {
                let mut waits = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut waits, PollTimeout::from(LOOK));
            }
        }
    }
}

fn answer(mut stream: TcpStream, name: &str, client: SocketAddr) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    write!(stream, "{name} {}", client.ip().to_canonical())?;
    stream.shutdown(Shutdown::Write)
}

fn serve_udp(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, client)) = socket.recv_from(&mut [0; 64]) {
            drop(socket.send_to(format!("{name} {}", client.ip().to_canonical()).as_bytes(), client));
        }
    }
}

/// Asks a responder over TCP.
pub fn ask_tcp(from: &Namespace, target: SocketAddr) -> io::Result<Answered> {
    let text = from.run(|| -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&target, SILENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?;
    read(&text)
}

/// Asks a responder over UDP, once.
pub fn ask_udp(from: &Namespace, target: SocketAddr) -> io::Result<Answered> {
    UdpQuestioner::open(from, target)?.ask()
}

/// One UDP flow of questions: the same ports each time.
#[derive(Debug)]
pub struct UdpQuestioner(UdpSocket);

impl UdpQuestioner {
    /// A flow to a responder, whether or not it is there yet.
    pub fn open(from: &Namespace, target: SocketAddr) -> io::Result<Self> {
        let any: IpAddr = if target.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
        let socket = from.run(|| -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(target)?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(SILENCE))?;
        Ok(Self(socket))
    }

    /// Asks once more.
    pub fn ask(&self) -> io::Result<Answered> {
        // The refusal of an earlier question is told by the next call.
        drop(self.0.take_error());
        self.0.send(b"who?")?;
        let mut buffer = [0; 128];
        let length = self.0.recv(&mut buffer)?;
        read(&String::from_utf8_lossy(&buffer[..length]))
    }
}

fn read(text: &str) -> io::Result<Answered> {
    let odd = || io::Error::other(format!("the answer is {text:?}"));
    let (by, to) = text.split_once(' ').ok_or_else(odd)?;
    Ok(Answered { by: by.to_owned(), to: to.parse().map_err(|_| odd())? })
}
