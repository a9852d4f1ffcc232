//! The door through which Services and EndpointSlices come: what is wrong with one is said by name, grants nothing and disturbs
//! no other.

mod parts;
mod service;
mod slice;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;

use causeway_model::Family;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use crate::objects::{Service, ServiceName, Slice, SliceName};

/// What is wrong with a part of an object.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "each is its sentence")]
pub enum Wrong {
    #[error("unknown field")]
    UnknownField,
    #[error("{0}")]
    Unreadable(String),
    #[error("missing")]
    Missing,
    #[error("{0} is not supported")]
    NotSupported(&'static str),
    #[error("unknown {what} {value:?}")]
    Unknown { what: &'static str, value: String },
    #[error("{0} is not from 1 to 65535")]
    NoPort(i64),
    #[error("{0:?} is no address")]
    NoAddress(String),
    #[error("{0:?} is no prefix (ADDRESS/LENGTH)")]
    NoPrefix(String),
    #[error("{0} is no address of an endpoint: it would lead somewhere else on each node")]
    Nowhere(IpAddr),
    #[error("{address} is not of {family}")]
    OtherFamily { address: IpAddr, family: Family },
    #[error("{0:?} is said twice")]
    Twice(String),
    #[error("{0} is not from 1 to 86400 seconds")]
    NoTimeout(i64),
    #[error("a service of type ClusterIP has no node ports")]
    NodePortOfClusterIp,
}

/// What is wrong with an object, and where: `spec.ports[1].nodePort`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field.
    pub at: String,
    /// What is wrong with it.
    pub wrong: Wrong,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.wrong)
    }
}

/// What an object's problems make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// It is taken up as it is written; unknown fields mean nothing.
    Whole,
    /// What is named is left out.
    InPart,
    /// Nothing of it is taken up.
    None,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Whole => "taken up without what is named here",
            Self::InPart => "taken up in part: what is named here leads nowhere",
            Self::None => "not taken up",
        })
    }
}

/// What an object is, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// A Service.
    Service(ServiceName),
    /// An EndpointSlice.
    Slice(SliceName),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service/{name}"),
            Self::Slice(name) => write!(f, "EndpointSlice/{}/{}", name.namespace, name.name),
        }
    }
}

/// What is to be told of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whose problems they are.
    pub object: Object,
    /// What they make of it.
    pub effect: Effect,
    /// All of them.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.effect)?;
        self.problems.iter().try_for_each(|problem| write!(f, "; {problem}"))
    }
}

/// An object that was read. One with nothing for a proxy to do, as a headless service, is nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// A Service.
    Service(ServiceName, Option<Service>, Report),
    /// An EndpointSlice.
    Slice(SliceName, Option<Slice>, Report),
}

impl Read {
    /// What is to be told of it.
    pub fn report(&self) -> &Report {
        let (Self::Service(.., report) | Self::Slice(.., report)) = self;
        report
    }
}

/// Something that cannot be told which object it is.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoObject {
    /// It is of no kind that is known here.
    #[error("{kind} of {api_version} is no kind that is known here")]
    Kind {
        /// Its group and version.
        api_version: String,
        /// Its kind.
        kind: String,
    },
    /// It has no name.
    #[error("a {0} without metadata.name")]
    Name(String),
}

/// The label of what another proxy cares for.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The label of what has no ClusterIP to be reached by.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// The label that tells whose a slice is.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What an object says of itself.
struct Meta<'a> {
    labels: &'a Value,
}

impl Meta<'_> {
    fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).and_then(Value::as_str)
    }

    /// Whether it is left to others: kube-proxy has one rule for services and slices.
    fn is_left(&self) -> bool {
        self.labels.get(PROXY_NAME).is_some() || self.labels.get(HEADLESS).is_some()
    }
}

/// Reads a Service or an EndpointSlice.
pub fn read(document: &Value) -> Result<Read, NoObject> {
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
    let api_version = text(document, "apiVersion").unwrap_or_default();
    let kind = text(document, "kind").unwrap_or_default();
    let metadata = document.get("metadata").unwrap_or(&Value::Null);
    let name = text(metadata, "name").filter(|name| !name.is_empty());
    let namespace = text(metadata, "namespace").unwrap_or_else(|| "default".to_owned());
    let meta = Meta { labels: metadata.get("labels").unwrap_or(&Value::Null) };
    let mut problems = Problems::default();
    match (api_version.as_str(), kind.as_str()) {
        ("v1", "Service") => {
            let name = ServiceName { namespace, name: name.ok_or(NoObject::Name(kind))? };
            let service = service::read(&meta, document, &mut problems);
            let report = problems.report(Object::Service(name.clone()));
            Ok(Read::Service(name, service, report))
        }
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            let name = SliceName { namespace, name: name.ok_or(NoObject::Name(kind))? };
            let slice = slice::read(&meta, document, &mut problems);
            let report = problems.report(Object::Slice(name.clone()));
            Ok(Read::Slice(name, slice, report))
        }
        _ => Err(NoObject::Kind { api_version, kind }),
    }
}

/// What was found wrong so far.
#[derive(Default)]
struct Problems {
    found: Vec<Problem>,
    /// Nothing can be made of it.
    fatal: bool,
}

impl Problems {
    fn add(&mut self, at: impl Into<String>, wrong: Wrong) {
        self.found.push(Problem { at: at.into(), wrong });
    }

    /// Something without which there is nothing.
    fn fatal<T>(&mut self, at: impl Into<String>, wrong: Wrong) -> Option<T> {
        self.add(at, wrong);
        self.fatal = true;
        None
    }

    /// What a part is, unless something is wrong with it.
    fn take<T>(&mut self, at: impl Into<String>, part: Result<T, Wrong>) -> Option<T> {
        part.map_err(|wrong| self.add(at, wrong)).ok()
    }

    /// A document as a type; fields that the type does not know are named.
    fn typed<T: DeserializeOwned>(&mut self, at: &str, document: &Value) -> Option<T> {
        let place = |path: &str| match (at, path) {
            ("", path) => path.to_owned(),
            (at, ".") => at.to_owned(),
            (at, path) => format!("{at}.{path}"),
        };
        let mut unknown = Vec::new();
        let mut track = serde_path_to_error::Track::new();
        let known = serde_path_to_error::Deserializer::new(document, &mut track);
        let read = serde_ignored::deserialize(known, |path| unknown.push(path.to_string()));
        match read {
            Ok(read) => {
                for path in unknown {
                    self.add(place(&field(&path)), Wrong::UnknownField);
                }
                Some(read)
            }
            Err(error) => {
                let path = track.path().to_string();
                self.fatal(place(&path), Wrong::Unreadable(error.to_string()))
            }
        }
    }

    fn report(self, object: Object) -> Report {
        let only_unknown = self.found.iter().all(|problem| problem.wrong == Wrong::UnknownField);
        let effect = match () {
            () if self.fatal => Effect::None,
            () if only_unknown => Effect::Whole,
            () => Effect::InPart,
        };
        Report { object, effect, problems: self.found }
    }
}

/// A path as messages write it: `ports[1].name`. It comes with a question mark for what may be missing, and dots only.
fn field(path: &str) -> String {
    let parts = path.split('.').filter(|part| *part != "?");
    parts.fold(String::new(), |mut path, part| {
        match part.parse::<usize>() {
            Ok(index) => path.push_str(&format!("[{index}]")),
            Err(_) if path.is_empty() => path.push_str(part),
            Err(_) => {
                path.push('.');
                path.push_str(part);
            }
        }
        path
    })
}
