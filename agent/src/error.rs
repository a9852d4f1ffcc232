use std::io;
use std::path::PathBuf;

use causeway_model::plugin::Failure;
use causeway_model::{DataplaneError, EndpointKey, PortMapping};
use causeway_socket::SocketError;
use thiserror::Error as ThisError;

use crate::addresses::AddressError;

/// An operation of the agent that failed, with the object in it.
#[derive(Debug, ThisError)]
pub enum Error {
    /// A file, directory or socket; `doing` names it.
    #[error("{doing}")]
    Io {
        /// The operation and its object.
        doing: String,
        /// Its cause.
        #[source]
        source: io::Error,
    },
    /// The store could not be read or written.
    #[error("{doing} {}", file.display())]
    Store {
        /// The operation, as in "writing".
        doing: &'static str,
        /// The store's file.
        file: PathBuf,
        /// Its cause.
        #[source]
        source: Box<redb::Error>,
    },
    /// The store is there and is not what was written: never taken for an empty one.
    #[error("{} is damaged: {why}; restore it, or move it away once no pod of this node is left", file.display())]
    Damaged {
        /// The store's file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another agent serves this node or uses this directory.
    #[error("another agent {} {what}", .pid.map_or("(pid unknown)".to_owned(), |pid| format!("(pid {pid})")))]
    AnotherAgent {
        /// What it holds.
        what: String,
        /// Its process.
        pid: Option<i32>,
    },
    /// A socket's path or port is somebody else's.
    #[error("{what} is taken: {why}")]
    Taken {
        /// The path or port.
        what: String,
        /// By what.
        why: String,
    },
    /// A file of somebody else is where one of ours shall be.
    #[error("{} is not ours: {why}; it stays as it is", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// By what that is seen.
        why: String,
    },
    /// What shall be installed as the plugin is not one.
    #[error("{} is not the plugin: {why}", path.display())]
    NoPlugin {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The kernel has not so much memory in one piece.
    #[error("{need} hugepages are needed, {free} are free: the kernel gave no more")]
    Hugepages {
        /// How many are needed.
        need: u64,
        /// How many are free.
        free: u64,
    },
    /// The agent does not serve, so the runtime is not told of it.
    #[error("the network configuration is not put in place: {0}")]
    NotServing(String),
    /// The uplink that was configured is not there.
    #[error("uplink: this machine has no interface {0}")]
    NoUplink(String),
    /// No address could be given.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// An attachment that is there already.
    #[error("{0} is attached already")]
    Exists(EndpointKey),
    /// An attachment that is not there, neither its record nor its lease.
    #[error("{0} is not attached: there is no lease of it")]
    Unknown(EndpointKey),
    /// An attachment that is not as it was made.
    #[error("{key} is not as it was made: {}", wrong.join("; "))]
    NotAsMade {
        /// The attachment.
        key: EndpointKey,
        /// Everything that is wrong with it.
        wrong: Vec<String>,
    },
    /// No pod could be attached now.
    #[error("the plugin cannot serve ADD{}: {}", if *.hurts { ", and pods that are there suffer" } else { "" }, reasons.join("; "))]
    Unable {
        /// Whether existing pods suffer, too.
        hurts: bool,
        /// Why, in words.
        reasons: Vec<String>,
    },
    /// Another attachment has a port of the node that this one asks for.
    #[error("portMappings: port {port} of this node is held by {holder}")]
    PortTaken {
        /// The port, as it was asked for.
        port: PortMapping,
        /// Who has it.
        holder: String,
    },
    /// What the runtime gave for a namespace is not one a pod can be in.
    #[error("CNI_NETNS {netns:?}: {why}")]
    Namespace {
        /// As the runtime gave it.
        netns: String,
        /// What is wrong with it.
        why: String,
    },
    /// The request cannot be served as it is; the text names the key.
    #[error("{0}")]
    BadRequest(String),
    /// The agent cannot serve yet, or the pod's object has not arrived.
    #[error("not ready: waiting for {}", .0.join(", "))]
    NotReady(Vec<String>),
    /// Others took the time this would have needed.
    #[error("the agent is busy, and nobody waits for this any more")]
    Busy,
    /// Whoever asked has gone: what it asked for may have been taken back by now.
    #[error("whoever asked has gone")]
    CallerGone,
    /// A plugin of another release.
    #[error("the plugin speaks version {0} of the agent's protocol, this agent {version}; install both from one release", version = causeway_model::plugin::VERSION)]
    Protocol(u32),
    /// The fast path's socket could not be had.
    #[error(transparent)]
    FastPathSocket(#[from] SocketError),
    /// The data path could not do it.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// Several things failed, and what could go on went on.
    #[error("{}", .0.iter().map(|error| chain(error)).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
}

impl Error {
    /// An I/O error and what was being done.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// Goes on past failures, and tells all of them.
    pub(crate) fn all(results: impl IntoIterator<Item = Result<(), Self>>) -> Result<(), Self> {
        let mut failures: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        match failures.len() {
            0 => Ok(()),
            1 => Err(failures.remove(0)),
            _ => Err(Self::Several(failures)),
        }
    }

    /// The error as the runtime shall see it: the one place where errors become CNI's codes.
    pub fn failure(&self) -> Failure {
        let code = match self {
            Self::Io { .. } | Self::Store { .. } | Self::Damaged { .. } => Failure::IO,
            Self::AnotherAgent { .. }
            | Self::Taken { .. }
            | Self::NotServing(_)
            | Self::NotReady(_)
            | Self::Busy
            | Self::CallerGone
            | Self::FastPathSocket(_)
            // A data path that is away comes back.
            | Self::Dataplane(DataplaneError::Unavailable(_)) => Failure::TRY_AGAIN,
            Self::Address(error) => error.code(),
            Self::Exists(_) => Failure::EXISTS,
            Self::Unknown(_) => Failure::UNKNOWN_CONTAINER,
            Self::NotAsMade { .. } => Failure::NOT_AS_MADE,
            Self::Unable { hurts: false, .. } => Failure::NOT_AVAILABLE,
            Self::Unable { hurts: true, .. } => Failure::LIMITED,
            Self::PortTaken { .. } => Failure::HOST_PORT_TAKEN,
            Self::Namespace { .. } => Failure::INVALID_ENVIRONMENT,
            Self::BadRequest(_) => Failure::INVALID_CONFIG,
            Self::Protocol(_) => Failure::INCOMPATIBLE_VERSION,
            Self::NotOurs { .. } | Self::NoPlugin { .. } | Self::Hugepages { .. } => Failure::IO,
            Self::Dataplane(_) | Self::NoUplink(_) => Failure::DATAPATH,
            Self::Several(errors) => errors.first().map_or(Failure::DATAPATH, |error| error.failure().code),
        };
        Failure::new(code, chain(self))
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let mut line = error.to_string();
    for cause in causes.map(ToString::to_string) {
        // Some errors show their cause themselves.
        if !line.ends_with(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}
