//! Questions as CoreDNS and resolvers put them, over real sockets.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway_mesh::dns::{Data, Kind, Record, Reply, TTL};
use domain::base::iana::{Opcode, OptRcode, Rcode, Rtype};
use domain::base::opt::OptRecord;
use domain::base::{Message, MessageBuilder, Name};
use domain::rdata::{AllRecordData, Soa};
use tokio::runtime::{Builder, Runtime};

use super::*;

type Reading = Message<Vec<u8>>;

/// A server of what a small mesh has.
struct Server {
    place: SocketAddr,
    meter: Arc<NameMeter>,
    _runtime: Runtime,
}

const WEB: &str = "web.shop.svc.clusterset.local";

fn record(name: &str, data: Data) -> Record {
    Record { name: name.to_owned(), ttl: TTL, data }
}

fn pods(count: u8) -> Vec<Record> {
    (1..=count).map(|n| record("db.shop.svc.clusterset.local", Data::A([10, 80, 1, n].into()))).collect()
}

fn known(name: &str, kind: Kind) -> Option<Reply> {
    let found = |answers| Reply::Answer { answers, additional: Vec::new() };
    let name = name.to_ascii_lowercase();
    let address = Data::A([10, 100, 0, 1].into());
    Some(match (name.as_str(), kind) {
        ("unknown.shop.svc.clusterset.local", _) => return None,
        (WEB, Kind::A) => found(vec![record(WEB, address)]),
        (WEB, Kind::Srv) => Reply::Answer {
            answers: vec![record(WEB, Data::Srv { port: 80, target: WEB.to_owned() })],
            additional: vec![record(WEB, address)],
        },
        ("dns-version.clusterset.local", Kind::Txt) => {
            found(vec![record("dns-version.clusterset.local", Data::Txt("1.0.0".to_owned()))])
        }
        ("1.0.100.10.in-addr.arpa", Kind::Ptr) => {
            found(vec![record("1.0.100.10.in-addr.arpa", Data::Ptr(WEB.to_owned()))])
        }
        ("2.0.100.10.in-addr.arpa", Kind::Ptr) => Reply::NoName,
        ("db.shop.svc.clusterset.local", Kind::A) => found(pods(200)),
        ("clusterset.local" | WEB, _) => Reply::NoData,
        (name, _) if name.ends_with("clusterset.local") => Reply::NoName,
        _ => Reply::NotOurs,
    })
}

impl Server {
    fn new() -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let meter = Arc::new(NameMeter::default());
        let desk = Desk { answers: Arc::new(known), meter: meter.clone() };
        let (place, datagrams, listener) = {
            let _inside = runtime.enter();
            let (datagrams, listener) = open(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
            (datagrams.local_addr().unwrap(), datagrams, listener)
        };
        let by_stream = desk.clone();
        runtime.spawn(async move { by_datagrams(&datagrams, &desk).await });
        runtime.spawn(async move { by_streams(&listener, &by_stream).await });
        Self { place, meter, _runtime: runtime }
    }

    /// What is answered to these bytes by UDP, if anything is within a moment.
    fn by_udp(&self, bytes: &[u8]) -> Option<Reading> {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(self.place).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send(bytes).unwrap();
        let mut answer = vec![0; 65_535];
        let len = socket.recv(&mut answer).ok()?;
        answer.truncate(len);
        Some(Message::from_octets(answer).unwrap())
    }

    fn ask(&self, name: &str, kind: Rtype) -> Reading {
        self.by_udp(&question(name, kind, Some(1232))).expect("an answer")
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.place).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }
}

fn send(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(&(bytes.len() as u16).to_be_bytes()).unwrap();
    stream.write_all(bytes).unwrap();
}

fn receive(stream: &mut TcpStream) -> io::Result<Reading> {
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut answer = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut answer)?;
    Ok(Message::from_octets(answer).unwrap())
}

/// A question as a forwarder sends it: recursion desired, and EDNS with the DO bit where a size is given.
fn question(name: &str, kind: Rtype, size: Option<u16>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_rd(true);
    builder.header_mut().set_id(4711);
    let mut builder = builder.question();
    builder.push((name.parse::<Name<Vec<u8>>>().unwrap(), kind)).unwrap();
    let mut builder = builder.additional();
    if let Some(size) = size {
        let opt = |size| {
            move |opt: &mut domain::base::message_builder::OptBuilder<'_, Vec<u8>>| {
                opt.set_udp_payload_size(size);
                opt.set_dnssec_ok(true);
                Ok(())
            }
        };
        builder.opt(opt(size)).unwrap();
    }
    builder.finish()
}

/// The records of the answer section as text: owner and data.
fn answers(reading: &Reading) -> Vec<(String, String)> {
    texts(reading.answer().unwrap().into_records::<AllRecordData<_, _>>())
}

fn texts<'a>(
    records: impl Iterator<
        Item = Result<
            domain::base::Record<
                domain::base::ParsedName<&'a [u8]>,
                AllRecordData<&'a [u8], domain::base::ParsedName<&'a [u8]>>,
            >,
            domain::base::wire::ParseError,
        >,
    >,
) -> Vec<(String, String)> {
    records
        .map(|record| record.unwrap())
        .map(|record| {
            assert_eq!(record.ttl().as_secs(), TTL);
            (record.owner().to_string(), record.data().to_string())
        })
        .collect()
}

/// The owner of the SOA record that says for how long there is nothing.
fn soa(reading: &Reading) -> Option<String> {
    let mut records = reading.authority().unwrap().limit_to::<Soa<_>>();
    let record = records.next()?.unwrap();
    assert_eq!((record.ttl().as_secs(), record.data().minimum().as_secs()), (TTL, TTL));
    Some(record.owner().to_string())
}

#[test]
fn a_forwarders_questions_are_answered() {
    let server = Server::new();
    let cases = [
        (WEB, Rtype::A, "10.100.0.1"),
        (WEB, Rtype::SRV, "0 100 80 web.shop.svc.clusterset.local."),
        ("dns-version.clusterset.local", Rtype::TXT, "\"1.0.0\""),
        ("1.0.100.10.in-addr.arpa", Rtype::PTR, "web.shop.svc.clusterset.local."),
    ];
    for (name, kind, expected) in cases {
        let answer = server.ask(name, kind);
        let header = answer.header();
        assert_eq!((header.id(), header.rcode()), (4711, Rcode::NOERROR), "{name} {kind}");
        assert!(header.qr() && header.aa() && header.rd() && !header.ra() && !header.tc(), "{name} {kind}");
        let said = answers(&answer);
        assert_eq!(said.len(), 1, "{name} {kind}");
        assert_eq!(said[0].0, name);
        assert_eq!(said[0].1.trim_end_matches('.'), expected.trim_end_matches('.'), "{name} {kind}");
        let opt: OptRecord<_> = answer.opt().expect("EDNS is answered with EDNS");
        assert!(opt.dnssec_ok() && opt.version() == 0 && opt.udp_payload_size() == 1232);
    }
    let srv = server.ask(WEB, Rtype::SRV);
    assert_eq!(srv.header_counts().arcount(), 2, "the address of whom the record names, and EDNS");
    let plain = server.by_udp(&question(WEB, Rtype::A, None)).unwrap();
    assert!(plain.opt().is_none(), "who does not speak EDNS is not spoken to so");
}

#[test]
fn the_case_of_a_question_comes_back() {
    let server = Server::new();
    let mixed = "wEb.ShOp.sVc.CluStErsEt.LoCal";
    let answer = server.ask(mixed, Rtype::A);
    assert_eq!(answer.sole_question().unwrap().qname().to_string(), mixed);
    assert_eq!(answers(&answer), [(mixed.to_owned(), "10.100.0.1".to_owned())]);
}

#[test]
fn a_forwarders_health_check_is_answered() {
    let server = Server::new();
    // CoreDNS asks so every half a second, and takes any answer for a sign of life.
    for recursion in [true, false] {
        let mut check = Message::from_octets(question(".", Rtype::NS, None)).unwrap();
        check.header_mut().set_rd(recursion);
        let answer = server.by_udp(check.as_slice()).unwrap();
        assert!(answer.is_answer(&check) && answer.opt().is_none());
        assert_eq!((answer.header().rcode(), answer.header().rd()), (Rcode::REFUSED, recursion));
    }
}

#[test]
fn what_clients_say_besides_is_passed_on_and_disturbs_nobody() {
    let server = Server::new();
    let mut whole = question(WEB, Rtype::A, Some(4096));
    // A cookie, a client's subnet, padding, and what nobody knows (RFC 7873, RFC 7871, RFC 7830, RFC 6891 §6.1.2).
    let options: [(u16, &[u8]); 4] =
        [(10, b"12345678"), (8, &[0, 1, 24, 0, 10, 80, 1]), (12, &[0; 5]), (65_001, b"?")];
    let options: Vec<u8> = options
        .iter()
        .flat_map(|(code, data)| [&code.to_be_bytes(), &(data.len() as u16).to_be_bytes(), *data].concat())
        .collect();
    // The record had no data and is the last one.
    whole.truncate(whole.len() - 2);
    whole.extend([&(options.len() as u16).to_be_bytes()[..], &options].concat());
    let mut asked = Message::from_octets(whole).unwrap();
    asked.header_mut().set_ad(true);
    asked.header_mut().set_cd(true);
    let answer = server.by_udp(asked.as_slice()).unwrap();
    assert_eq!(answers(&answer), [(WEB.to_owned(), "10.100.0.1".to_owned())]);
    assert!(!answer.header().ad() && !answer.header().z(), "nothing was proved");
    let opt = answer.opt().unwrap();
    assert!(opt.opt().is_empty(), "none of them is known");
}

#[test]
fn one_socket_asks_for_many() {
    let server = Server::new();
    // CoreDNS keeps its sockets and has many questions on the way at once.
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(server.place).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for id in 0..50 {
        let mut asked = Message::from_octets(question(WEB, Rtype::A, Some(1232))).unwrap();
        asked.header_mut().set_id(id);
        socket.send(asked.as_slice()).unwrap();
    }
    let answered = (0..50).map(|_| {
        let mut answer = [0; 1500];
        let len = socket.recv(&mut answer).unwrap();
        let answer = Message::from_octets(&answer[..len]).unwrap();
        assert_eq!(answer.header().rcode(), Rcode::NOERROR);
        answer.header().id()
    });
    assert_eq!(answered.collect::<std::collections::BTreeSet<_>>().len(), 50);
}

#[test]
fn nothing_is_said_with_how_long_that_holds() {
    let server = Server::new();
    let said = |name, kind| {
        let answer = server.ask(name, kind);
        assert!(answers(&answer).is_empty());
        (answer.opt_rcode(), answer.header().aa(), soa(&answer))
    };
    let zone = || Some("clusterset.local".to_owned());
    assert_eq!(said(WEB, Rtype::AAAA), (OptRcode::NOERROR, true, zone()));
    assert_eq!(said("no.shop.svc.clusterset.local", Rtype::A), (OptRcode::NXDOMAIN, true, zone()));
    // What resolvers of these days ask beside addresses.
    for kind in [Rtype::HTTPS, Rtype::NS, Rtype::CNAME, Rtype::ANY] {
        assert_eq!(said(WEB, kind), (OptRcode::NOERROR, true, zone()), "{kind}");
    }
    for kind in [Rtype::AXFR, Rtype::IXFR] {
        assert_eq!(said("clusterset.local", kind), (OptRcode::REFUSED, false, None), "{kind}");
    }
    let above = || Some("0.100.10.in-addr.arpa".to_owned());
    assert_eq!(said("2.0.100.10.in-addr.arpa", Rtype::PTR), (OptRcode::NXDOMAIN, true, above()));
    for other in ["web.shop.svc.cluster.local", "example.com", "."] {
        assert_eq!(said(other, Rtype::A), (OptRcode::REFUSED, false, None), "{other}");
    }
    assert_eq!(said("unknown.shop.svc.clusterset.local", Rtype::A), (OptRcode::SERVFAIL, false, None));
    let apex = server.ask("clusterset.local", Rtype::SOA);
    assert_eq!(answers(&apex).len(), 1);
}

#[test]
fn what_is_too_long_comes_by_tcp() {
    let server = Server::new();
    let name = "db.shop.svc.clusterset.local";
    let sizes = [(None, 512), (Some(300), 512), (Some(1232), 1232), (Some(4096), 1232), (Some(65_535), 1232)];
    for (size, most) in sizes {
        let answer = server.by_udp(&question(name, Rtype::A, size)).unwrap();
        assert!(answer.header().tc() && answer.as_slice().len() <= most, "{size:?}");
        assert_eq!(answer.opt().is_some(), size.is_some(), "{size:?}");
    }
    let mut stream = server.connect();
    // One question after the other, on one connection, the second before the first is answered.
    send(&mut stream, &question(name, Rtype::A, None));
    send(&mut stream, &question(WEB, Rtype::A, Some(1232)));
    let whole = receive(&mut stream).unwrap();
    assert!(!whole.header().tc());
    assert_eq!(answers(&whole).len(), 200);
    assert_eq!(answers(&receive(&mut stream).unwrap()).len(), 1);
    let status = server.meter.status();
    assert_eq!((status.udp, status.tcp, status.truncated), (5, 2, 5));
}

#[test]
fn what_is_no_question_is_counted_and_told_so() {
    let server = Server::new();
    let whole = question(WEB, Rtype::A, Some(1232));
    let mut two = whole.clone();
    two[5] = 2;
    let mut cut = whole.clone();
    cut.truncate(20);
    let mut options_cut = whole.clone();
    options_cut.truncate(whole.len() - 3);
    for (what, bytes) in
        [("two questions", &two), ("half a name", &cut), ("half an OPT record", &options_cut)]
    {
        let answer = server.by_udp(bytes).unwrap_or_else(|| panic!("{what}: no answer"));
        assert_eq!((answer.header().id(), answer.header().rcode()), (4711, Rcode::FORMERR), "{what}");
    }
    let mut newer = whole.clone();
    let version = whole.len() - 5;
    newer[version] = 1;
    assert_eq!(server.by_udp(&newer).unwrap().opt_rcode(), OptRcode::BADVERS);
    let mut chaos = whole.clone();
    let class = whole.len() - 12;
    chaos[class] = 3;
    assert_eq!(server.by_udp(&chaos).unwrap().header().rcode(), Rcode::REFUSED);
    let mut update = Message::from_octets(whole.clone()).unwrap();
    update.header_mut().set_opcode(Opcode::UPDATE);
    assert_eq!(server.by_udp(update.as_slice()).unwrap().header().rcode(), Rcode::NOTIMP);
    let before = server.meter.status();
    assert_eq!((before.malformed, before.dropped), (3, 0));
    // An answer is not answered, nor is what has no header; then two servers would talk for ever.
    let mut response = Message::from_octets(whole.clone()).unwrap();
    response.header_mut().set_qr(true);
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for bytes in [response.as_slice(), &whole[..11], &[]] {
        socket.send_to(bytes, server.place).unwrap();
    }
    assert_eq!(server.ask(WEB, Rtype::A).header().rcode(), Rcode::NOERROR);
    let after = server.meter.status();
    assert_eq!((after.malformed, after.dropped, after.udp), (6, 3, before.udp + 4));
    let counted = |code: &str| after.answers.get(code).copied().unwrap_or_default();
    let codes = ["FORMERR", "BADVERS", "REFUSED", "NOTIMP", "NOERROR"].map(counted);
    assert_eq!(codes, [3, 1, 1, 1, 1]);
}

#[test]
fn whoever_holds_connections_keeps_nobody_else_out() {
    let server = Server::new();
    let mut held: Vec<_> = (0..CONNECTIONS_OF_ONE).map(|_| server.connect()).collect();
    // One that was answered is one that was taken.
    for stream in &mut held {
        send(stream, &question(WEB, Rtype::A, None));
        receive(stream).unwrap();
    }
    let mut one_more = server.connect();
    assert!(receive(&mut one_more).is_err(), "it is closed at once");
    assert_eq!(server.meter.status().dropped, 1);
    assert_eq!(server.ask(WEB, Rtype::A).header().rcode(), Rcode::NOERROR, "datagrams have no such limit");
    // Who says nothing is sent away, and makes room.
    let began = Instant::now();
    assert!(receive(&mut held[0]).is_err());
    assert!(began.elapsed() < PATIENCE * 2);
    let taken = || {
        let mut stream = server.connect();
        stream.write_all(&[0]).is_ok_and(|()| {
            let bytes = question(WEB, Rtype::A, None);
            stream.write_all(&(bytes.len() as u16).to_be_bytes()[1..]).is_ok()
                && stream.write_all(&bytes).is_ok()
                && receive(&mut stream).is_ok()
        })
    };
    let until = Instant::now() + PATIENCE;
    while !taken() {
        assert!(Instant::now() < until, "nobody else gets a connection");
    }
}

#[test]
fn an_address_that_this_node_does_not_have_yet_is_listened_at() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    for place in ["169.254.53.53:0", "[fd53::53]:0"] {
        open(place.parse().unwrap()).unwrap();
    }
}

#[test]
fn an_address_that_somebody_else_has_is_told_of() {
    let taken = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let meter = Arc::new(NameMeter::default());
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.spawn(serve(vec![taken.local_addr().unwrap()], Arc::new(known), meter.clone()));
    let until = Instant::now() + Duration::from_secs(5);
    while meter.status().servers.iter().all(|server| server.trouble.is_none()) {
        assert!(Instant::now() < until, "nothing is said of it");
        std::thread::sleep(Duration::from_millis(10));
    }
    let [server] = &meter.status().servers[..] else { panic!("one address") };
    assert!(server.trouble.as_ref().is_some_and(|why| why.contains("in use")), "{server:?}");
}
