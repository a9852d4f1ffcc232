use std::io;
use std::path::PathBuf;

use causeway_model::DataplaneError;
use thiserror::Error;

/// What the kernel said to a request.
#[derive(Debug, Error)]
#[error("{}{}", io::Error::from_raw_os_error(*.errno), .reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default())]
pub struct Refusal {
    /// The error number.
    pub errno: i32,
    /// The kernel's own words, where it gave any.
    pub reason: Option<String>,
}

/// A kernel operation that failed.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The kernel refused a netlink request.
    #[error("{doing}: {source}")]
    Netlink {
        /// The operation and its object.
        doing: String,
        /// Its answer.
        #[source]
        source: Refusal,
    },
    /// A system call or a file operation failed.
    #[error("{doing}: {source}")]
    Io {
        /// The operation and its object.
        doing: String,
        /// Its cause.
        #[source]
        source: io::Error,
    },
    /// nft refused a document.
    #[error("nft, {doing}: {stderr}")]
    Nft {
        /// What the document was for.
        doing: String,
        /// Its complaint.
        stderr: String,
    },
    /// A link that should be there is not.
    #[error("no interface {0}")]
    NoLink(String),
    /// The interface exists already in the pod.
    #[error("interface {0} exists already in the pod's network namespace")]
    InterfaceExists(String),
    /// Another device has the tunnel's port and identifier.
    #[error("another vxlan device of this node has network identifier {vni} on port {port}: {name}")]
    TunnelTaken {
        /// The identifier.
        vni: u32,
        /// The port.
        port: u16,
        /// The device's name, or what is known of it.
        name: String,
    },
    /// The record of sysctls cannot be read.
    #[error("the record of sysctls {}: {source}", path.display())]
    Record {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A teardown went on past several failures.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<KernelError>),
}

impl KernelError {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// The error number of a refused request.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Netlink { source, .. } => Some(source.errno),
            Self::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// Nothing, one failure, or several as one.
    pub(crate) fn all(mut errors: Vec<KernelError>) -> Result<(), KernelError> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}

impl From<KernelError> for DataplaneError {
    fn from(error: KernelError) -> Self {
        match error {
            KernelError::InterfaceExists(_) | KernelError::TunnelTaken { .. } => {
                DataplaneError::Refused(error.to_string())
            }
            KernelError::Netlink { doing, source } => {
                DataplaneError::Failed { doing, source: Box::new(source) }
            }
            KernelError::Io { doing, source } => DataplaneError::Failed { doing, source: Box::new(source) },
            KernelError::Several(errors) => {
                DataplaneError::Several(errors.into_iter().map(DataplaneError::from).collect())
            }
            other => DataplaneError::Failed { doing: "the kernel path".into(), source: Box::new(other) },
        }
    }
}
