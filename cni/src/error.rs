use std::io;
use std::path::PathBuf;

use causeway_model::plugin::Failure;
use serde_json::Value;
use thiserror::Error;

use crate::agent::Unanswered;
use crate::namespace::NamespaceError;
use crate::parameters::Command;
use crate::version::SpecVersion;

/// A call that failed.
#[derive(Debug, Error)]
pub enum Error {
    /// Each sentence begins with the name of its variable.
    #[error("{}", .0.join("; "))]
    Environment(Vec<String>),
    /// CNI_NETNS names nothing that a pod can be attached in.
    #[error("CNI_NETNS {path:?} {source}")]
    Namespace {
        /// As the runtime gave it.
        path: String,
        /// Why not.
        source: NamespaceError,
    },
    /// The network configuration did not come.
    #[error("reading the network configuration from stdin: {0}")]
    Stdin(#[from] io::Error),
    /// The network configuration is no JSON object.
    #[error("the network configuration on stdin is not a JSON object: {0}")]
    Undecodable(String),
    /// A version of the specification that we do not speak.
    #[error("cniVersion {0:?} is not supported")]
    Incompatible(String),
    /// A verb that the asked version of the specification does not have.
    #[error("{command} needs cniVersion {} or later, and the configuration says {version}", .command.since())]
    TooOld {
        /// The verb.
        command: Command,
        /// The version.
        version: SpecVersion,
    },
    /// A value of the network configuration that cannot be.
    #[error("network configuration: {key}: {reason}")]
    Config {
        /// Where it stands.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A value of the network configuration that means something which we cannot do.
    #[error("network configuration: {key} = {value} is not supported")]
    Unsupported {
        /// Where it stands.
        key: String,
        /// What it is.
        value: Value,
    },
    /// A device that the pod shall have for itself.
    #[error(
        "network configuration: runtimeConfig.deviceID = {value}: virtual functions are not supported yet"
    )]
    Device {
        /// Its name, as the runtime gave it.
        value: Value,
    },
    /// The agent gave no answer, or none that we can read.
    #[error("the agent at {} {source}", .socket.display())]
    Unanswered {
        /// Where it should listen.
        socket: PathBuf,
        /// What happened instead.
        source: Unanswered,
    },
    /// The agent does not listen, so that an ADD would fail.
    #[error("the plugin cannot serve ADD: the agent at {} {source}", .socket.display())]
    NotServing {
        /// Where it should listen.
        socket: PathBuf,
        /// What happened instead.
        source: Unanswered,
    },
    /// The agent is dead and the deletion could not be left for it either.
    #[error("leaving a tombstone at {}: {source}", .path.display())]
    Tombstone {
        /// The directory or file.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// The agent's own words.
    #[error("{}", .0.msg)]
    Agent(Failure),
    /// The words of the plugin that gives the addresses.
    #[error("IPAM plugin {plugin}: {}", .failure.msg)]
    Ipam {
        /// Which one.
        plugin: String,
        /// What it said.
        failure: Failure,
    },
    /// Something failed, and so did what had to be done then.
    #[error("{0}; then {1}")]
    Both(Box<Error>, Box<Error>),
}

impl Error {
    /// A value of the network configuration that cannot be.
    pub fn config(key: &'static str, reason: impl Into<String>) -> Self {
        Self::Config { key, reason: reason.into() }
    }

    /// The one place where errors get the codes of CNI 1.1.0 §5, "Error".
    pub fn failure(self) -> Failure {
        if let Self::Both(first, then) = self {
            let first = first.failure();
            return Failure { msg: format!("{}; then {then}", first.msg), ..first };
        }
        let code = match &self {
            Self::Environment(_) => Failure::INVALID_ENVIRONMENT,
            Self::Namespace { source: NamespaceError::OwnUnknown(_), .. } => Failure::IO,
            Self::Namespace { .. } => Failure::INVALID_ENVIRONMENT,
            Self::Stdin(_) | Self::Tombstone { .. } => Failure::IO,
            Self::Undecodable(_) => Failure::DECODING,
            Self::Incompatible(_) | Self::TooOld { .. } => Failure::INCOMPATIBLE_VERSION,
            Self::Config { .. } => Failure::INVALID_CONFIG,
            Self::Unsupported { .. } | Self::Device { .. } => Failure::UNSUPPORTED_FIELD,
            Self::Unanswered { source, .. } => source.code(),
            Self::NotServing { .. } => Failure::NOT_AVAILABLE,
            Self::Agent(failure) | Self::Ipam { failure, .. } => failure.code,
            Self::Both(..) => unreachable!("told above"),
        };
        let details = match &self {
            Self::Agent(failure) | Self::Ipam { failure, .. } => failure.details.clone(),
            Self::Incompatible(_) => {
                format!("supported versions: {}", SpecVersion::ALL.map(SpecVersion::as_str).join(", "))
            }
            _ => String::new(),
        };
        Failure { code, msg: self.to_string(), details }
    }
}
