//! Questions for names, as a resolver puts them.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use domain::base::iana::{Rcode, Rtype};
use domain::base::{Message, MessageBuilder, Name};
use domain::rdata::A;

use crate::namespace::Namespace;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Its code, as in NXDOMAIN.
    pub code: String,
    /// The IPv4 addresses in it.
    pub addresses: Vec<IpAddr>,
}

/// Asks a server for the IPv4 addresses of a name by UDP, once.
pub fn resolve_udp(from: &Namespace, server: SocketAddr, name: &str) -> io::Result<Resolved> {
    let any: IpAddr = if server.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let mut answer = vec![0; 4096];
    let question = question(name)?;
    let length = from.run(|| -> io::Result<usize> {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(&question)?;
        socket.recv(&mut answer)
    })?;
    answer.truncate(length);
    read(answer)
}

/// The same by TCP.
pub fn resolve_tcp(from: &Namespace, server: SocketAddr, name: &str) -> io::Result<Resolved> {
    let question = question(name)?;
    let answer = from.run(|| -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = u16::try_from(question.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &question].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    })?;
    read(answer)
}

fn question(name: &str) -> io::Result<Vec<u8>> {
    let name: Name<Vec<u8>> = name.parse().map_err(io::Error::other)?;
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_rd(true);
    let mut question = builder.question();
    question.push((name, Rtype::A)).map_err(io::Error::other)?;
    Ok(question.finish())
}

fn read(answer: Vec<u8>) -> io::Result<Resolved> {
    let odd = |what: &str| io::Error::other(format!("the answer is {what}"));
    let message = Message::from_octets(answer).map_err(|_| odd("too short"))?;
    if !message.header().qr() {
        return Err(odd("none"));
    }
    let records = message.answer().map_err(io::Error::other)?.limit_to::<A>();
    let addresses = records.map(|record| record.map(|record| record.data().addr().into()));
    let addresses = addresses.collect::<Result<_, _>>().map_err(io::Error::other)?;
    let code: Rcode = message.header().rcode();
    Ok(Resolved { code: code.to_string(), addresses })
}
