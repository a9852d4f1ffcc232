//! Questions for names, as resolvers and CoreDNS's forward put them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use causeway_mesh::dns::{Data, Record};
use domain::base::iana::{Rcode, Rtype};
use domain::base::name::ToName;
use domain::base::{Message, MessageBuilder, Name, Question};
use domain::rdata::AllRecordData;

use super::any;
use crate::namespace::Namespace;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often is asked by UDP, which may lose either.
const TRIES: usize = 3;

/// A question.
#[derive(Clone, Debug)]
pub struct Query {
    name: String,
    kind: Rtype,
    /// How long an answer by UDP may be, which EDNS says.
    size: Option<u16>,
}

impl Query {
    /// Without EDNS, as it is written.
    pub fn plain(name: &str, kind: Rtype) -> Self {
        Self { name: name.to_owned(), kind, size: None }
    }

    /// As it is forwarded: with EDNS for so many bytes, the DO bit, and letters of any case, which the answer must repeat.
    pub fn forwarded(name: &str, kind: Rtype, size: u16) -> Self {
        let any = |letter: char| match fastrand::bool() {
            true => letter.to_ascii_uppercase(),
            false => letter.to_ascii_lowercase(),
        };
        Self { name: name.chars().map(any).collect(), kind, size: Some(size) }
    }

    fn message(&self) -> io::Result<Message<Vec<u8>>> {
        let name: Name<Vec<u8>> = self.name.parse().map_err(io::Error::other)?;
        let mut builder = MessageBuilder::new_vec();
        builder.header_mut().set_id(fastrand::u16(..));
        builder.header_mut().set_rd(true);
        let mut question = builder.question();
        question.push((name, self.kind)).map_err(io::Error::other)?;
        let mut additional = question.additional();
        if let Some(size) = self.size {
            let edns = additional.opt(|opt| {
                opt.set_udp_payload_size(size);
                opt.set_dnssec_ok(true);
                Ok(())
            });
            edns.map_err(io::Error::other)?;
        }
        Ok(additional.into_message())
    }
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Its code, as in NXDOMAIN.
    pub code: String,
    /// The records that were asked for.
    pub answers: Vec<Record>,
    /// There are more of them, which did not fit.
    pub truncated: bool,
    /// How many bytes it has.
    pub len: usize,
}

impl Resolved {
    /// The addresses among them.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let address = |record: &Record| match record.data {
            Data::A(address) => Some(IpAddr::from(address)),
            Data::Aaaa(address) => Some(IpAddr::from(address)),
            _ => None,
        };
        self.answers.iter().filter_map(address).collect()
    }
}

/// Asks a server by UDP, once.
pub fn resolve_udp(from: &Namespace, server: SocketAddr, query: &Query) -> io::Result<Resolved> {
    let question = query.message()?;
    let mut answer = vec![0; usize::from(u16::MAX)];
    let length = from.run(|| -> io::Result<usize> {
        let socket = UdpSocket::bind((any(server.ip()), 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(question.as_slice())?;
        socket.recv(&mut answer)
    })?;
    answer.truncate(length);
    read(&question, answer)
}

/// The same by TCP.
pub fn resolve_tcp(from: &Namespace, server: SocketAddr, query: &Query) -> io::Result<Resolved> {
    let question = query.message()?;
    let answer = from.run(|| -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let bytes = question.as_slice();
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], bytes].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    })?;
    read(&question, answer)
}

/// Asks by UDP, again where nothing comes, and by TCP for what does not fit.
pub fn resolve(from: &Namespace, server: SocketAddr, query: &Query) -> io::Result<Resolved> {
    let is_silent = |error: &io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    let mut answer = resolve_udp(from, server, query);
    for _ in 1..TRIES {
        if answer.as_ref().is_err_and(is_silent) {
            answer = resolve_udp(from, server, query);
        }
    }
    match answer? {
        Resolved { truncated: true, .. } => resolve_tcp(from, server, query),
        whole => Ok(whole),
    }
}

fn odd(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("the answer {what}"))
}

/// Takes what came for the answer to a question, if it is one.
fn read(question: &Message<Vec<u8>>, answer: Vec<u8>) -> io::Result<Resolved> {
    let len = answer.len();
    let message = Message::from_octets(answer).map_err(|_| odd("is too short"))?;
    let header = message.header();
    if !header.qr() || header.id() != question.header().id() {
        return Err(odd("is to another question"));
    }
    let asked = |message: &Message<Vec<u8>>| -> io::Result<_> {
        let question: Question<_> = message.sole_question().map_err(io::Error::other)?;
        // Names are equal whatever their letters' case; text is not.
        Ok((question.qname().to_name::<Vec<u8>>().to_string(), question.qtype(), question.qclass()))
    };
    let (asked, repeated) = (asked(question)?, asked(&message)?);
    if asked != repeated {
        return Err(odd(&format!("repeats {repeated:?} for {asked:?}")));
    }
    if message.opt().is_some() != question.opt().is_some() {
        return Err(odd("has EDNS where the question has none, or the other way round"));
    }
    let records = message.answer().map_err(io::Error::other)?;
    let answers = records.into_records::<AllRecordData<_, _>>().filter_map(|record| {
        let record = match record {
            Ok(record) => record,
            Err(error) => return Some(Err(io::Error::other(error))),
        };
        let data = match record.data() {
            AllRecordData::A(a) => Data::A(a.addr()),
            AllRecordData::Aaaa(aaaa) => Data::Aaaa(aaaa.addr()),
            AllRecordData::Srv(srv) => Data::Srv { port: srv.port(), target: srv.target().to_string() },
            AllRecordData::Txt(txt) => {
                Data::Txt(String::from_utf8_lossy(&txt.text::<Vec<u8>>()).into_owned())
            }
            AllRecordData::Ptr(ptr) => Data::Ptr(ptr.ptrdname().to_string()),
            _ => return None,
        };
        let (name, ttl) = (record.owner().to_string(), record.ttl().as_secs());
        Some(Ok(Record { name, ttl, data }))
    });
    let answers = answers.collect::<io::Result<Vec<_>>>()?;
    let is_other = |name: &str| name.eq_ignore_ascii_case(&asked.0) && name != asked.0;
    if answers.iter().any(|record| is_other(&record.name)) {
        return Err(odd(&format!("has other letters than {:?}: {answers:?}", asked.0)));
    }
    let code: Rcode = header.rcode();
    Ok(Resolved { code: code.to_string(), answers, truncated: header.tc(), len })
}
