use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

use causeway_model::{EndpointKey, PodName};

use crate::error::Error;
use crate::log;
use crate::version::SpecVersion;

/// What the runtime wants done (CNI 1.1.0 §2, "CNI operations").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// See whether an attachment is as it was made.
    Check,
    /// Detach what is not in a list.
    Gc,
    /// Say whether ADD can be served.
    Status,
    /// Say which versions of the specification are spoken.
    Version,
}

impl Command {
    const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// The first version of the specification that has it, among those we speak.
    pub fn since(self) -> SpecVersion {
        match self {
            Self::Add | Self::Del | Self::Version => SpecVersion::V0_3_1,
            Self::Check => SpecVersion::V0_4_0,
            Self::Gc | Self::Status => SpecVersion::V1_1_0,
        }
    }

    /// Whether it is about one attachment, so that container and interface must be named.
    fn names_attachment(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }

    /// Whether it is nothing without the pod's namespace and arguments; DEL goes on past bad ones (§2, "DEL").
    fn needs_pod(self) -> bool {
        matches!(self, Self::Add | Self::Check)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The parameters of a call (CNI 1.1.0 §2, "Parameters"); what its command does not need is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// CNI_COMMAND.
    pub command: Command,
    /// CNI_CONTAINERID.
    pub container: String,
    /// CNI_IFNAME.
    pub interface: String,
    /// CNI_NETNS.
    pub netns: String,
    /// CNI_ARGS.
    pub args: BTreeMap<String, String>,
    /// All variables as they came, for a plugin that is asked in turn.
    pub environment: Vec<(&'static str, Option<OsString>)>,
}

/// The variables of a call.
const VARIABLES: [&str; 5] = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];

impl Parameters {
    /// Reads and validates the environment; the error names every variable that is wrong.
    pub fn read(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let command = command(variable).map_err(|complaint| Error::Environment(vec![complaint]))?;
        let mut complaints = Vec::new();
        let mut required = |needed: bool, name: &str, check: fn(&str) -> Result<(), &'static str>| {
            if !needed {
                return String::new();
            }
            let text = text(variable, name).and_then(|text| match check(&text) {
                Ok(()) => Ok(text),
                Err(complaint) => Err(format!("{name} {text:?} {complaint}")),
            });
            text.unwrap_or_else(|complaint| {
                complaints.push(complaint);
                String::new()
            })
        };
        let container = required(command.names_attachment(), "CNI_CONTAINERID", check_container);
        let interface = required(command.names_attachment(), "CNI_IFNAME", check_interface);
        let mut netns = required(command.needs_pod(), "CNI_NETNS", check_netns);
        let mut args = BTreeMap::new();
        match text(variable, "CNI_ARGS").and_then(|text| parse_args(&text)) {
            Ok(pairs) => args = pairs,
            Err(complaint) if command.needs_pod() => complaints.push(complaint),
            Err(complaint) => log(format_args!("ignored: {complaint}")),
        }
        if command == Command::Del {
            netns = text(variable, "CNI_NETNS").unwrap_or_default();
        }
        if complaints.is_empty() {
            let environment = VARIABLES.map(|name| (name, variable(name))).into();
            Ok(Self { command, container, interface, netns, args, environment })
        } else {
            Err(Error::Environment(complaints))
        }
    }

    /// What the attachment is known by.
    pub fn key(&self, network: &str) -> EndpointKey {
        EndpointKey {
            network: network.to_owned(),
            container: self.container.clone(),
            interface: self.interface.clone(),
        }
    }

    /// The pod, where the runtime names one; podman gives a name without a namespace, which is no pod.
    pub fn pod(&self) -> Option<PodName> {
        let arg = |name: &str| self.args.get(name).filter(|value| !value.is_empty()).cloned();
        Some(PodName { namespace: arg("K8S_POD_NAMESPACE")?, name: arg("K8S_POD_NAME")? })
    }
}

fn command(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Command, String> {
    let text = text(variable, "CNI_COMMAND")?;
    let known = Command::ALL.into_iter().find(|command| command.as_str() == text);
    known.ok_or_else(|| match text.as_str() {
        "" => "CNI_COMMAND is not set".to_owned(),
        _ => format!("CNI_COMMAND {text:?} is none of {}", Command::ALL.map(Command::as_str).join(", ")),
    })
}

/// A variable as text; one that is not set is the same as an empty one.
fn text(variable: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Result<String, String> {
    variable(name).unwrap_or_default().into_string().map_err(|bytes| format!("{name} {bytes:?} is not UTF-8"))
}

/// §2: an alphanumeric character, then alphanumeric ones, '_', '.' and '-'.
pub fn is_plain_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn check_container(id: &str) -> Result<(), &'static str> {
    match id {
        "" => Err("is empty"),
        _ if is_plain_name(id) => Ok(()),
        _ => Err("must be letters, digits, '_', '.' and '-', a letter or digit first"),
    }
}

/// What the kernel takes as an interface's name (`dev_valid_name` of net/core/dev.c), less '%', which it would
/// read as a template.
fn check_interface(name: &str) -> Result<(), &'static str> {
    // The kernel's isspace() works on bytes and takes 0xa0 for one.
    let forbidden = |b: u8| matches!(b, b'/' | b':' | b'%' | b' ' | b'\t'..=b'\r' | 0xa0);
    match name {
        "" => Err("is empty"),
        "." | ".." => Err("is a directory's name"),
        _ if name.len() > 15 => Err("is longer than 15 bytes"),
        _ if name.bytes().any(forbidden) => Err("must not hold '/', ':', '%' or white space"),
        _ => Ok(()),
    }
}

fn check_netns(path: &str) -> Result<(), &'static str> {
    if path.is_empty() { Err("is empty") } else { Ok(()) }
}

/// Pairs joined by ';', of which a last one may follow. All keys are taken: they go to every plugin of a chain,
/// whether it knows them or not (CNI 1.1.0 §3).
fn parse_args(text: &str) -> Result<BTreeMap<String, String>, String> {
    let text = text.strip_suffix(';').unwrap_or(text);
    if text.is_empty() {
        return Ok(BTreeMap::new());
    }
    let pair = |pair: &str| match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.contains('=') => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err(format!("CNI_ARGS holds {pair:?}, which is not KEY=VALUE")),
    };
    text.split(';').map(pair).collect()
}

#[cfg(test)]
#[path = "parameters_tests.rs"]
mod tests;
