//! One question in, one answer out (RFC 1035, RFC 6891, RFC 2308), as bytes.

use causeway_mesh::dns::{Data, Kind, Record, Reply, SRV_ORDER, TTL, ZONE};
use domain::base::iana::{Class, Opcode, OptRcode, Rtype};
use domain::base::message_builder::{PushError, RecordSectionBuilder};
use domain::base::name::ToName;
use domain::base::opt::{Opt, OptRecord};
use domain::base::{Message, MessageBuilder, Name, ParsedName, Question, Serial, StaticCompressor, Ttl};
use domain::rdata::{A, Aaaa, Ptr, Soa, Srv, Txt};

use super::{Answers, NameMeter};

/// The longest answer by UDP: what passes every link unfragmented. A client that says less gets less, one that says nothing 512.
const LONGEST: u16 = 1232;
const LONGEST_UNSAID: u16 = 512;
/// An OPT record without options.
const OPT_LEN: usize = 11;

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

type Builder = StaticCompressor<Vec<u8>>;
type Text = Name<Vec<u8>>;

/// What of a question's EDNS the answer depends on.
#[derive(Clone, Copy)]
struct Edns {
    size: u16,
    version: u8,
    dnssec_ok: bool,
}

/// A question that was understood.
struct Asked<'a> {
    message: &'a Message<[u8]>,
    name: Text,
    /// The same as text, as it was written.
    text: String,
    kind: Rtype,
    class: Class,
    edns: Option<Edns>,
}

/// What is said to a question.
struct Said {
    code: OptRcode,
    answers: Vec<Record>,
    additional: Vec<Record>,
    /// The zone in which there is nothing, or no more than that.
    soa: Option<(Text, Section)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Answer,
    Authority,
}

impl Said {
    fn nothing(code: OptRcode) -> Self {
        Self { code, answers: Vec::new(), additional: Vec::new(), soa: None }
    }
}

/// Answers a question. None where that would be an answer to what is none.
pub(super) fn answer(
    question: &[u8],
    by: Transport,
    answers: &Answers,
    meter: &NameMeter,
) -> Option<Vec<u8>> {
    meter.asked(by);
    let message = Message::from_slice(question).ok().filter(|message| !message.header().qr());
    let Some(message) = message else {
        meter.malformed();
        meter.dropped();
        return None;
    };
    let asked = read(message);
    let said = match &asked {
        Ok(asked) => judge(asked, answers),
        Err(code) => Said::nothing(*code),
    };
    if said.code == OptRcode::FORMERR {
        meter.malformed();
    }
    let edns = asked.as_ref().ok().and_then(|asked| asked.edns);
    let most = match (by, edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, None) => LONGEST_UNSAID,
        (Transport::Udp, Some(edns)) => edns.size.clamp(LONGEST_UNSAID, LONGEST),
    };
    match write(message, asked.as_ref().ok(), &said, (most.into(), edns)) {
        Ok((bytes, truncated)) => {
            meter.answered(&said.code.to_string(), truncated);
            Some(bytes)
        }
        // A question that fills a whole answer: nobody means that.
        Err(_) => {
            meter.dropped();
            None
        }
    }
}

/// Takes a message for a question, or says what is wrong with it.
fn read(message: &Message<[u8]>) -> Result<Asked<'_>, OptRcode> {
    if message.header().opcode() != Opcode::QUERY {
        return Err(OptRcode::NOTIMP);
    }
    let question: Question<ParsedName<_>> = message.sole_question().map_err(|_| OptRcode::FORMERR)?;
    let edns = edns(message).map_err(|()| OptRcode::FORMERR)?;
    let name: Text = question.qname().to_vec();
    Ok(Asked {
        message,
        text: name.to_string(),
        name,
        kind: question.qtype(),
        class: question.qclass(),
        edns,
    })
}

/// The one OPT record there may be (RFC 6891 §6.1.1), in a message that is whole.
fn edns(message: &Message<[u8]>) -> Result<Option<Edns>, ()> {
    for section in [message.answer(), message.authority()] {
        section.map_err(drop)?.try_for_each(|record| record.map(drop)).map_err(drop)?;
    }
    let mut edns = None;
    for record in message.additional().map_err(drop)? {
        let record = record.map_err(drop)?;
        let Some(record) = record.into_record::<Opt<_>>().map_err(drop)? else { continue };
        let opt = OptRecord::from(record);
        let found = Edns { size: opt.udp_payload_size(), version: opt.version(), dnssec_ok: opt.dnssec_ok() };
        if edns.replace(found).is_some() {
            return Err(());
        }
    }
    Ok(edns)
}

fn judge(asked: &Asked<'_>, answers: &Answers) -> Said {
    if asked.edns.is_some_and(|edns| edns.version > 0) {
        return Said::nothing(OptRcode::BADVERS);
    }
    // Nobody takes the zone from here whole (RFC 5936 §2.2).
    if asked.class != Class::IN || matches!(asked.kind, Rtype::AXFR | Rtype::IXFR) {
        return Said::nothing(OptRcode::REFUSED);
    }
    if asked.kind == Rtype::SOA && asked.text.eq_ignore_ascii_case(ZONE) {
        return Said { soa: Some((asked.name.clone(), Section::Answer)), ..Said::nothing(OptRcode::NOERROR) };
    }
    let negative = |code| Said { soa: Some((zone(&asked.name), Section::Authority)), ..Said::nothing(code) };
    match answers(&asked.text, kind(asked.kind)) {
        None => Said::nothing(OptRcode::SERVFAIL),
        Some(Reply::NotOurs) => Said::nothing(OptRcode::REFUSED),
        Some(Reply::NoName) => negative(OptRcode::NXDOMAIN),
        Some(Reply::NoData) => negative(OptRcode::NOERROR),
        Some(Reply::Answer { mut answers, additional }) => {
            // Whoever takes the first one takes another one each time.
            let first = usize::from(asked.message.header().id()) % answers.len().max(1);
            answers.rotate_left(first);
            Said { answers, additional, ..Said::nothing(OptRcode::NOERROR) }
        }
    }
}

fn kind(kind: Rtype) -> Kind {
    match kind {
        Rtype::A => Kind::A,
        Rtype::AAAA => Kind::Aaaa,
        Rtype::SRV => Kind::Srv,
        Rtype::TXT => Kind::Txt,
        Rtype::PTR => Kind::Ptr,
        _ => Kind::Other,
    }
}

/// The zone that a name is in; of an address's name the one above it.
fn zone(name: &Text) -> Text {
    let in_zone = name.iter_suffixes().find(|suffix| suffix.to_string().eq_ignore_ascii_case(ZONE));
    match in_zone.or_else(|| name.parent()) {
        Some(zone) => zone.to_vec(),
        None => Name::root_vec(),
    }
}

/// Writes an answer of so many bytes at most; whether something was left out of it that was asked for.
fn write(
    question: &Message<[u8]>,
    asked: Option<&Asked<'_>>,
    said: &Said,
    (most, edns): (usize, Option<Edns>),
) -> Result<(Vec<u8>, bool), PushError> {
    let mut builder = MessageBuilder::from_target(StaticCompressor::new(Vec::with_capacity(512)))?;
    builder.set_push_limit(most - edns.map_or(0, |_| OPT_LEN));
    let mut answer = builder.start_answer(question, said.code.rcode())?;
    let ours = matches!(said.code, OptRcode::NOERROR | OptRcode::NXDOMAIN);
    answer.header_mut().set_aa(ours);
    let mut truncated = false;
    for record in &said.answers {
        truncated = truncated || push(&mut answer, record, asked).is_err();
    }
    answer.header_mut().set_tc(truncated);
    if let Some((zone, Section::Answer)) = &said.soa {
        answer.push((zone, TTL, soa(zone)?))?;
    }
    let mut authority = answer.authority();
    if let Some((zone, Section::Authority)) = &said.soa {
        authority.push((zone, TTL, soa(zone)?))?;
    }
    let mut additional = authority.additional();
    for record in said.additional.iter().filter(|_| !truncated) {
        // What nobody has asked for may be missing (RFC 2181 §9).
        if push(&mut additional, record, asked).is_err() {
            break;
        }
    }
    additional.clear_push_limit();
    if let Some(edns) = edns {
        additional.opt(|opt| {
            opt.set_udp_payload_size(LONGEST);
            opt.set_rcode(said.code);
            opt.set_dnssec_ok(edns.dnssec_ok);
            Ok(())
        })?;
    }
    Ok((additional.finish().into_target(), truncated))
}

fn push(
    section: &mut impl RecordSectionBuilder<Builder>,
    record: &Record,
    asked: Option<&Asked<'_>>,
) -> Result<(), PushError> {
    // The name that was asked for is written as it was (draft-vixie-dnsext-dns0x20).
    let owner = match asked.filter(|asked| asked.text.eq_ignore_ascii_case(&record.name)) {
        Some(asked) => asked.name.clone(),
        None => text(&record.name)?,
    };
    let ttl = record.ttl;
    match &record.data {
        Data::A(address) => section.push((owner, ttl, A::new(*address))),
        Data::Aaaa(address) => section.push((owner, ttl, Aaaa::new(*address))),
        Data::Srv { port, target } => {
            let (priority, weight) = SRV_ORDER;
            section.push((owner, ttl, Srv::new(priority, weight, *port, text(target)?)))
        }
        Data::Ptr(target) => section.push((owner, ttl, Ptr::new(text(target)?))),
        Data::Txt(said) => {
            let said = Txt::<Vec<u8>>::build_from_slice(said.as_bytes()).map_err(|_| PushError::ShortBuf)?;
            section.push((owner, ttl, said))
        }
    }
}

/// A name of ours: of parts that Kubernetes has checked, though together they may be too long for one.
fn text(name: &str) -> Result<Text, PushError> {
    name.parse().map_err(|_| PushError::ShortBuf)
}

/// What says for how long nothing may be remembered. Nobody takes the zone from here whole.
fn soa(zone: &Text) -> Result<Soa<Text>, PushError> {
    let of = |who: &str| text(&format!("{who}.{zone}"));
    let [refresh, retry, expire] = [7200, 1800, 86_400].map(Ttl::from_secs);
    Ok(Soa::new(of("ns.dns")?, of("hostmaster")?, Serial(1), refresh, retry, expire, Ttl::from_secs(TTL)))
}
